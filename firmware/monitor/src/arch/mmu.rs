//! EL3's own translation: flash read-only, of which the first 2 MiB may be executed; devices; secure RAM; the first GiB of
//! normal RAM, as non-secure memory. Everything but code is execute-never.

use core::cell::UnsafeCell;

use super::sysreg::{mrs, msr};

const BLOCK: u64 = 1;
const DEVICE: u64 = 1 << 2; // attribute 1
const NON_SECURE: u64 = 1 << 5;
const RES1: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const NEVER: u64 = 1 << 54;
const MEMORY: u64 = BLOCK | RES1 | SHAREABLE | ACCESSED;

/// Attribute 0: write-back memory; 1: device, nGnRE.
const MAIR: u64 = 0x04ff;
/// 4 GiB, 4 KiB granule, write-back inner-shareable walks, 40-bit addresses.
const TCR: u64 = 32 | 1 << 8 | 1 << 10 | 3 << 12 | 2 << 16 | 1 << 23 | 1 << 31;
/// MMU, caches, stack alignment, no code in what can be written.
const SCTLR: u64 = 0x30c5_0830 | 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;

#[repr(C, align(4096))]
struct Table(UnsafeCell<[u64; 512]>);
// SAFETY: written once, by the first core while it is alone with the MMU off; read by the table walk afterwards.
unsafe impl Sync for Table {}

static LEVEL_1: Table = Table(UnsafeCell::new([0; 512]));
static LEVEL_2: Table = Table(UnsafeCell::new([0; 512]));

/// Writes the tables.
///
/// # Safety
/// The first core, once, while it runs alone with the MMU off.
pub unsafe fn build() {
    // SAFETY: the caller's promise: nobody else accesses the tables.
    let (level_1, level_2) = unsafe { (&mut *LEVEL_1.0.get(), &mut *LEVEL_2.0.get()) };
    for (index, entry) in level_2.iter_mut().enumerate() {
        let address = (index as u64) << 21;
        *entry = match address {
            0 => address | MEMORY | READ_ONLY,
            1..0x0400_0000 => address | MEMORY | READ_ONLY | NEVER,
            0x0800_0000..0x0c00_0000 => address | MEMORY | DEVICE | NEVER,
            0x0e00_0000..0x0f00_0000 => address | MEMORY | NEVER,
            _ => 0,
        };
    }
    level_1[0] = LEVEL_2.0.get() as u64 | 3; // a table
    level_1[1] = 0x4000_0000 | MEMORY | NON_SECURE | NEVER;
}

/// Turns translation on. Identity map: we go on at the same address.
pub fn enable() {
    msr!("mair_el3", MAIR);
    msr!("tcr_el3", TCR);
    msr!("ttbr0_el3", LEVEL_1.0.get() as u64);
    // SAFETY: the tables map code, stacks and variables where they are.
    unsafe {
        core::arch::asm!("isb", "tlbi alle3", "ic iallu", "dsb nsh", "isb", "msr sctlr_el3, {}", "isb", in(reg) SCTLR);
    }
}

/// Writes cached contents back to memory, for who reads it without caches.
pub fn clean(address: usize, size: usize) {
    let line = 4 << (mrs!("ctr_el0") >> 16 & 0xf);
    for at in (address & !(line - 1)..address + size).step_by(line) {
        // SAFETY: cleaning changes no contents.
        unsafe { core::arch::asm!("dc cvac, {}", in(reg) at, options(nostack)) };
    }
    // SAFETY: barriers.
    unsafe { core::arch::asm!("dsb sy", "isb", options(nostack)) };
}
