//! Stage 1: a fixed identity map (4 KiB granule, 39-bit addresses), known when the image is linked.
//!
//! Whole regions are mapped, in blocks of 2 MiB (image) and 1 GiB (the rest); which pages of them exist is the business
//! of stage 2 alone, and a touch of one that was not given ends in the hypervisor. So nothing here ever changes while the
//! partition runs: the tables lie in read-only memory, and no code in the partition edits them. Nothing is both writable
//! and executable, and nothing is reachable from EL0. One GiB is no identity: the NPU's registers, whose IPA is beyond the
//! addresses of stage 1.
//!
//! Descriptors: Arm ARM (DDI 0487) D8.3, "VMSAv8-64 block and page descriptors".

use hyp_abi::manifest::layout;

use crate::layout::{DATA, HEAP_MAX, MODEL_MAX, NPU, NPU_IPA, RODATA, TEXT, WINDOW_SIZE};

/// 512 descriptors, aligned as the walker wants them.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct Table(pub [u64; 512]);

const TABLE: u64 = 3;
const BLOCK: u64 = 1;
/// Output address in the non-secure space: Flex-Mem is normal memory also at S-EL1. Ignored at EL1.
pub const NON_SECURE: u64 = 1 << 5;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const NEVER_EL1: u64 = 1 << 53;
const NEVER_EL0: u64 = 1 << 54;
/// Normal memory: attribute 0 of [`MAIR`].
const NORMAL: u64 = BLOCK | INNER_SHAREABLE | ACCESSED | NEVER_EL0;

/// Block attributes: code.
pub const EXECUTABLE: u64 = NORMAL | READ_ONLY;
/// Block attributes: constants.
pub const CONSTANT: u64 = NORMAL | READ_ONLY | NEVER_EL1;
/// Block attributes: data.
pub const WRITABLE: u64 = NORMAL | NEVER_EL1;

/// Block attributes: registers. Attribute 1 of [`MAIR`].
pub const DEVICE: u64 = BLOCK | 1 << 2 | ACCESSED | NEVER_EL0 | NEVER_EL1;

/// MAIR_EL1: attribute 0 is normal memory, write-back, read and write allocate; attribute 1 is Device-nGnRE.
pub const MAIR: u64 = 0x04FF;
/// TCR_EL1 without IPS: T0SZ 25, write-back inner-shareable walks, 4 KiB, no TTBR1.
pub const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23;
/// SCTLR_EL1: RES1 bits, MMU, caches, SP alignment check, WXN.
pub const SCTLR: u64 = 0x30D0_0800 | 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;

const MIB_2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

const fn fill(mut table: Table, first: u64, size: u64, block: u64, attributes: u64) -> Table {
    let mut address = first;
    while address < first + size {
        table.0[(address / block) as usize] = address | attributes;
        address += block;
    }
    table
}

const fn image() -> Table {
    let table = Table([0; 512]);
    let table = fill(table, TEXT, WINDOW_SIZE, MIB_2, EXECUTABLE);
    let table = fill(table, RODATA, WINDOW_SIZE, MIB_2, CONSTANT);
    fill(table, DATA, WINDOW_SIZE, MIB_2, WRITABLE)
}

const fn root() -> Table {
    let mut table = Table([0; 512]);
    // The second table of TABLES, which `link.ld` puts first in the read-only data.
    table.0[0] = (RODATA + size_of::<Table>() as u64) | TABLE;
    let table = fill(table, layout::HEAP, HEAP_MAX, GIB, WRITABLE | NON_SECURE);
    let mut table = fill(table, layout::SESSION, GIB, GIB, WRITABLE | NON_SECURE);
    table.0[(NPU / GIB) as usize] = NPU_IPA | DEVICE | NON_SECURE;
    fill(table, layout::MODEL, MODEL_MAX, GIB, CONSTANT | NON_SECURE)
}

/// The root (level 1), then the level-2 table of the image's GiB.
#[used]
#[cfg_attr(target_os = "none", unsafe(link_section = ".rodata.tables"))]
pub static TABLES: [Table; 2] = [root(), image()];

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as the MMU does; returns the attributes if the identity holds.
    fn walk(address: u64) -> Option<u64> {
        let entry = TABLES[0].0[(address / GIB) as usize];
        let (entry, size) = match entry & 3 {
            TABLE => {
                assert_eq!(entry & !0xFFF, RODATA + 4096);
                (TABLES[1].0[(address % GIB / MIB_2) as usize], MIB_2)
            }
            _ => (entry, GIB),
        };
        if entry & 3 != BLOCK {
            return None;
        }
        let output = entry & 0x0000_FFFF_FFFF_F000;
        let expected = if address / GIB == NPU / GIB { NPU_IPA } else { address / size * size };
        assert_eq!(output, expected, "mapped wrongly at {address:#x}");
        Some(entry & !0x0000_FFFF_FFFF_F000)
    }

    #[test]
    fn exactly_the_regions_are_mapped_with_their_own_access() {
        let windows = [
            (TEXT, WINDOW_SIZE, EXECUTABLE),
            (RODATA, WINDOW_SIZE, CONSTANT),
            (DATA, WINDOW_SIZE, WRITABLE),
            (layout::HEAP, HEAP_MAX, WRITABLE | NON_SECURE),
            (layout::SESSION, GIB, WRITABLE | NON_SECURE),
            (layout::MODEL, MODEL_MAX, CONSTANT | NON_SECURE),
            (NPU, GIB, DEVICE | NON_SECURE),
        ];
        let mut address = 0;
        while address < 1 << 39 {
            let expected = windows.iter().find(|(first, size, _)| (*first..first + size).contains(&address));
            assert_eq!(walk(address), expected.map(|(_, _, attributes)| *attributes), "{address:#x}");
            address += if address < GIB { MIB_2 } else { GIB };
        }
    }

    #[test]
    fn nothing_is_writable_and_executable_or_open_to_el0() {
        for entry in TABLES.iter().flat_map(|table| table.0).filter(|entry| entry & 3 == BLOCK) {
            assert!(entry & READ_ONLY != 0 || entry & NEVER_EL1 != 0);
            assert_eq!(entry & (1 << 6), 0);
            assert_ne!(entry & NEVER_EL0, 0);
        }
    }
}
