//! `flexserve switch-bench`: what it costs to move the NPU between host and partition, as the hypervisor counts it, by part and
//! for partitions of several sizes; what the ways into the hypervisor and into a partition cost, seen from the host; and how the host is
//! mapped with and without a partition.
//!
//! The partition is a few instructions ([`sys::npu_switcher`]) that acquire the NPU, release it and wait, over and over.

use std::time::{Duration, Instant};

use hyp_abi::manifest::{MAGIC, MAX_REGIONS, Manifest, Region, VERSION, access, kind, layout};
use hyp_abi::stats::SwitchCost;
use serde::Serialize;
use zerocopy::IntoBytes;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::machine::{Contents, Exit, Machine, Measured};
use crate::npu::HostNpu;
use crate::sys;

/// A change of owner, in ticks of the system counter.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Parts {
    close: u64,
    reset: u64,
    detach: u64,
    attach: u64,
    open: u64,
}

impl From<SwitchCost> for Parts {
    fn from(cost: SwitchCost) -> Self {
        let SwitchCost { close, reset, detach, attach, open } = cost;
        Self { close, reset, detach, attach, open }
    }
}

/// Changes of owner with a partition of one size.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// MiB that the partition holds.
    mebibytes: u64,
    /// Host to partition.
    to_partition: Vec<Parts>,
    /// Partition to host.
    to_host: Vec<Parts>,
}

/// Round trips, in ticks, seen from the host's user space.
#[derive(Clone, Debug, Default, Serialize)]
pub struct World {
    /// A call of the kernel module that does not leave Linux: included in the next two.
    system_call: Vec<u64>,
    /// A direct request to the hypervisor's service (NPU_STATE), by the module.
    direct_request: Vec<u64>,
    /// FFA_RUN of a partition that makes two calls (the NPU is its own) and waits again, by the module.
    run: Vec<u64>,
    /// A load that stage 2 refuses and the hypervisor answers: a register of the NPU, which the partition owns.
    stage2_fault: Vec<u64>,
}

/// How the host is mapped, and how often it left for the hypervisor in a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Census {
    leaves_1g: u64,
    leaves_2m: u64,
    leaves_4k: u64,
    tables: u64,
    exits: u64,
}

/// The host without partitions, with one that is entered all the time, and after it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Host {
    idle: Census,
    busy: Census,
    after: Census,
}

/// Gives, measures and starts the switcher with so many MiB of memory.
fn start(device: &Device, mebibytes: u64) -> Result<()> {
    let mut page = sys::npu_switcher().to_vec();
    if page.is_empty() {
        return Err(Error::usage("there is no such program for this architecture", "run it in the host"));
    }
    page.resize(hyp_abi::PAGE_SIZE as usize, 0);
    let pages = mebibytes << 20 >> 12;
    let mut regions = [Region::default(); MAX_REGIONS];
    let region = |ipa, page_count, kind, access| Region { ipa, page_count, kind, access };
    regions[0] = region(layout::IMAGE, 1, kind::IMAGE, access::READ | access::EXECUTE);
    regions[1] = region(layout::HEAP, pages, kind::ZERO, access::READ | access::WRITE);
    let manifest = Manifest {
        magic: MAGIC,
        version: VERSION,
        vcpu_count: 1,
        entry: layout::IMAGE,
        region_count: 2,
        reserved: 0,
        name: *b"switch-bench\0\0\0\0",
        regions,
    };
    device.create(manifest.as_bytes())?;
    device.give(layout::IMAGE, Contents::Bytes(&page), false)?;
    device.give(layout::HEAP, Contents::Zero(pages), false)?;
    while let Measured::Left(_) = device.measure()? {}
    Ok(device.start()?)
}

/// Lets the partition go round once.
fn turn(device: &Device) -> Result<()> {
    match device.run(0, 0)? {
        Exit::Waiting => Ok(()),
        other => Err(Error::protocol(format!("the partition does not wait: {other:?}"))),
    }
}

/// Moves the NPU to a partition that holds so much memory and back, so many times.
///
/// # Errors
/// What the module or the hypervisor refuses.
pub fn npu(device: &Device, mebibytes: u64, rounds: usize) -> Result<Row> {
    let npu = HostNpu::open()?;
    start(device, mebibytes)?;
    let mut row = Row { mebibytes, to_partition: Vec::new(), to_host: Vec::new() };
    for _ in 0..rounds {
        let before = npu.acquire()?.generation;
        npu.release()?;
        turn(device)?;
        row.to_partition.push(device.system_stats()?.npu.last.into());
        let after = npu.acquire()?.generation;
        row.to_host.push(device.system_stats()?.npu.last.into());
        if after != before + 2 {
            return Err(Error::protocol(format!("the NPU changed hands {} times", after - before)));
        }
        npu.release()?;
    }
    device.destroy()?;
    Ok(row)
}

/// Goes into the hypervisor and into a partition, so many times each way.
///
/// # Errors
/// As [`npu`].
pub fn world(device: &Device, rounds: usize) -> Result<World> {
    let npu = HostNpu::open()?;
    let registers = npu.registers()?;
    start(device, 1)?;
    turn(device)?;
    let timed = |work: &mut dyn FnMut() -> Result<()>| -> Result<Vec<u64>> {
        (0..rounds)
            .map(|_| {
                let start = sys::counter();
                work()?;
                Ok(sys::counter() - start)
            })
            .collect()
    };
    let world = World {
        system_call: timed(&mut || Ok(device.info().map(drop)?))?,
        direct_request: timed(&mut || Ok(npu.state().map(drop)?))?,
        run: timed(&mut || turn(device))?,
        stage2_fault: timed(&mut || match registers.load(0, 0u32) {
            u32::MAX => Ok(()),
            value => Err(Error::protocol(format!("a register that is not the host's reads {value:#x}"))),
        })?,
    };
    device.destroy()?;
    Ok(world)
}

/// Looks at the host while nobody needs the hypervisor, while a partition of so many MiB is entered all the time, and when it is
/// gone.
///
/// # Errors
/// As [`npu`].
pub fn host(device: &Device, mebibytes: u64) -> Result<Host> {
    const SECOND: Duration = Duration::from_secs(1);
    let census = |work: &mut dyn FnMut() -> Result<()>| -> Result<Census> {
        let before = device.system_stats()?.host_exits;
        work()?;
        let stats = device.system_stats()?;
        Ok(Census {
            leaves_1g: stats.leaves_1g,
            leaves_2m: stats.leaves_2m,
            leaves_4k: stats.leaves_4k,
            tables: stats.tables_used,
            exits: stats.host_exits.saturating_sub(before),
        })
    };
    let mut sleep = || {
        std::thread::sleep(SECOND);
        Ok(())
    };
    let idle = census(&mut sleep)?;
    start(device, mebibytes)?;
    let busy = census(&mut || {
        let start = Instant::now();
        while start.elapsed() < SECOND {
            turn(device)?;
        }
        Ok(())
    })?;
    device.destroy()?;
    Ok(Host { idle, busy, after: census(&mut sleep)? })
}
