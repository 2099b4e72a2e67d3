//! Touching any IPA with any access, so that stage 2 alone decides: the product's stage-1 tables would refuse first.
//!
//! The probe runs on a copy of the tables in which GiB 1 is a writable and GiB 2 an executable window, moved to the GiB
//! that the act needs. What is written and read is in the address space that its IPA belongs to, or, if the act says so, in the
//! other one; code is always fetched by a secure address, as EL3 forbids all else at S-EL1. At EL1 there is one space.

use core::arch::asm;
use core::cell::UnsafeCell;

use guest_llm::arch::tables::{EXECUTABLE, NON_SECURE, TABLES, Table, WRITABLE};
use hyp_abi::manifest::PRIVATE_END;

const GIB: u64 = 1 << 30;
const WRITABLE_WINDOW: u64 = GIB;
const EXECUTABLE_WINDOW: u64 = 2 * GIB;

struct Root(UnsafeCell<Table>);
// SAFETY: one CPU, no interrupts, and only `aim` writes, without keeping a reference.
unsafe impl Sync for Root {}
static ROOT: Root = Root(UnsafeCell::new(TABLES[0]));

/// Moves both windows to `ipa`'s GiB; returns the addresses of `ipa` in them. Bits that no output address has are dropped.
fn aim(ipa: u64, other_space: bool) -> (u64, u64) {
    let block = ipa & 0x0000_FFFF_C000_0000;
    let space = if (ipa < PRIVATE_END) == other_space { NON_SECURE } else { 0 };
    // SAFETY: the writes go to a table of the probe's own; the identity map of everything else stays; the barriers and
    // the invalidation make the new windows the ones that are used from here on.
    unsafe {
        let root = ROOT.0.get().cast::<u64>();
        root.add((WRITABLE_WINDOW / GIB) as usize).write_volatile(0);
        root.add((EXECUTABLE_WINDOW / GIB) as usize).write_volatile(0);
        asm!("dsb ishst", "msr ttbr0_el1, {root}", "isb", "tlbi vmalle1", "dsb nsh", "isb", root = in(reg) root,
             options(nostack));
        root.add((WRITABLE_WINDOW / GIB) as usize).write_volatile(block | WRITABLE | space);
        root.add((EXECUTABLE_WINDOW / GIB) as usize).write_volatile(block | EXECUTABLE);
        asm!("dsb ishst", "isb", options(nostack));
    }
    let offset = ipa % GIB;
    (WRITABLE_WINDOW + offset, EXECUTABLE_WINDOW + offset)
}

/// Reads 8 bytes at `ipa`.
pub fn read(ipa: u64, other_space: bool) -> u64 {
    let (address, _) = aim(ipa, other_space);
    let value;
    // SAFETY: the window is mapped; what stage 2 says of it is what the act is about.
    unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// Writes 8 bytes at `ipa`; returns what is there afterwards.
pub fn write(ipa: u64, value: u64) -> u64 {
    let (address, _) = aim(ipa, false);
    let back;
    // SAFETY: this may well destroy the partition; that is the act.
    unsafe {
        asm!("str {1}, [{2}]", "dsb sy", "ldr {0}, [{2}]", out(reg) back, in(reg) value, in(reg) address,
             options(nostack));
    }
    back
}

/// Reads, or writes a value of, 1, 2, 4 or 8 bytes at `ipa`: one access, as device registers want it. Returns what it read.
pub fn access(ipa: u64, width: u64, write: Option<u64>) -> u64 {
    let (address, _) = aim(ipa, false);
    let mut value = write.unwrap_or(0);
    // SAFETY: as in `read` and `write`.
    unsafe {
        match (width, write) {
            (1, None) => asm!("ldrb {0:w}, [{1}]", out(reg) value, in(reg) address, options(nostack)),
            (2, None) => asm!("ldrh {0:w}, [{1}]", out(reg) value, in(reg) address, options(nostack)),
            (4, None) => asm!("ldr {0:w}, [{1}]", out(reg) value, in(reg) address, options(nostack)),
            (_, None) => asm!("ldr {0}, [{1}]", out(reg) value, in(reg) address, options(nostack)),
            (1, _) => asm!("dsb sy", "strb {0:w}, [{1}]", in(reg) value, in(reg) address, options(nostack)),
            (2, _) => asm!("dsb sy", "strh {0:w}, [{1}]", in(reg) value, in(reg) address, options(nostack)),
            (4, _) => asm!("dsb sy", "str {0:w}, [{1}]", in(reg) value, in(reg) address, options(nostack)),
            (_, _) => asm!("dsb sy", "str {0}, [{1}]", in(reg) value, in(reg) address, options(nostack)),
        }
    }
    value
}

/// Writes a function at `ipa` that returns `result`.
pub fn plant(ipa: u64, result: u16) {
    let (address, _) = aim(ipa, false);
    let code = 0xD65F_03C0_D280_0000 | u64::from(result) << 5;
    // SAFETY: as in `write`. MOVZ x0, #result; RET; made visible to instruction fetches.
    unsafe {
        asm!("str {0}, [{1}]", "dc cvau, {1}", "dsb ish", "ic ialluis", "dsb ish", "isb", in(reg) code,
             in(reg) address, options(nostack));
    }
}

/// Calls code at `ipa`; returns its x0.
pub fn call(ipa: u64) -> u64 {
    let (_, address) = aim(ipa, false);
    let result;
    // SAFETY: whatever is there runs with the partition's rights, which is what the act is about.
    unsafe { asm!("blr {0}", in(reg) address, lateout("x0") result, clobber_abi("C")) };
    result
}
