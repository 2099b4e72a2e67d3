//! `flexserve flexmem-bench`: what giving pages to a partition and recalling them costs, as the hypervisor itself counts it.
//! The partition never runs: only the transitions are measured.

use hyp_abi::manifest::{MAGIC, MAX_REGIONS, Manifest, Region, VERSION, access, kind, layout};
use hyp_abi::stats::{Cost, SystemStats};
use serde::Serialize;
use zerocopy::IntoBytes;

use crate::device::Device;
use crate::error::Result;
use crate::machine::{CallError, Contents, Machine};

/// Most pages of the benchmark's partition: what it holds beside, and the largest give.
const HEAP_PAGES: u64 = 1 << 17;

/// One operation on so many pages, several times.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Pages of the operation.
    pub pages: u64,
    /// Pages that the partition holds beside.
    pub resident: u64,
    /// Costs of the gives, one a round.
    pub give: Vec<Parts>,
    /// Costs of the recalls, one a round.
    pub recall: Vec<Parts>,
}

/// Ticks of the system counter, by part.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Parts {
    /// Calls that it took.
    pub calls: u64,
    /// Validation and planning.
    pub validate: u64,
    /// Ownership records and table writes.
    pub tables: u64,
    /// TLB invalidation.
    pub tlbi: u64,
    /// Zeroing and cleaning.
    pub scrub: u64,
}

impl Parts {
    fn between(before: Cost, after: Cost) -> Self {
        Self {
            calls: after.calls.wrapping_sub(before.calls),
            validate: after.validate.wrapping_sub(before.validate),
            tables: after.tables.wrapping_sub(before.tables),
            tlbi: after.tlbi.wrapping_sub(before.tlbi),
            scrub: after.scrub.wrapping_sub(before.scrub),
        }
    }
}

fn manifest() -> Manifest {
    let mut regions = [Region::default(); MAX_REGIONS];
    regions[0] = Region {
        ipa: layout::IMAGE,
        page_count: 1,
        kind: kind::IMAGE,
        access: access::READ | access::EXECUTE,
    };
    regions[1] = Region {
        ipa: layout::HEAP,
        page_count: HEAP_PAGES,
        kind: kind::ZERO,
        access: access::READ | access::WRITE,
    };
    Manifest {
        magic: MAGIC,
        version: VERSION,
        vcpu_count: 1,
        entry: layout::IMAGE,
        region_count: 2,
        reserved: 0,
        name: *b"flexmem-bench\0\0\0",
        regions,
    }
}

/// Gives and recalls `pages` pages `rounds` times, for each of `page_counts`, in a partition that holds `resident` pages beside.
///
/// # Errors
/// What the module or the hypervisor refuses.
pub fn flexmem(device: &Device, page_counts: &[u64], resident: u64, rounds: u32) -> Result<Vec<Row>> {
    let measure = || -> std::result::Result<Vec<Row>, CallError> {
        device.create(manifest().as_bytes())?;
        if resident > 0 {
            device.give(layout::HEAP, Contents::Zero(resident), false)?;
        }
        // Behind what is resident, at a 2 MiB boundary.
        let ipa = layout::HEAP + resident.next_multiple_of(512) * hyp_abi::PAGE_SIZE;
        let mut rows = Vec::new();
        for &pages in page_counts {
            let mut row = Row { pages, resident, give: Vec::new(), recall: Vec::new() };
            for _ in 0..rounds {
                let before: SystemStats = device.system_stats()?;
                device.give(ipa, Contents::Zero(pages), false)?;
                let given: SystemStats = device.system_stats()?;
                device.recall(ipa, pages)?;
                let recalled: SystemStats = device.system_stats()?;
                row.give.push(Parts::between(before.give, given.give));
                row.recall.push(Parts::between(given.recall, recalled.recall));
            }
            rows.push(row);
        }
        device.destroy()?;
        Ok(rows)
    };
    Ok(measure()?)
}
