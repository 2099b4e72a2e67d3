//! A partition that debug exceptions can reach: elsewhere they stay masked.

use core::arch::asm;

use guest_llm::arch;

static WATCHED: u64 = 0x5741_5443_4845_4421;

#[inline(never)]
extern "C" fn broken_into() {
    // SAFETY: does nothing; it is only here so that the call stays.
    unsafe { asm!("nop", options(nostack)) };
}

/// Takes debug exceptions while it reads a word and calls a function, `rounds` times, `ticks` apart. Returns the addresses
/// of both.
pub fn open(rounds: u64, ticks: u64) -> [u64; 4] {
    // SAFETY: a debug exception ends the partition like any other, which is what the act is about.
    unsafe { asm!("msr daifclr, #8", "isb", options(nostack)) };
    for _ in 0..rounds {
        let start = arch::ticks();
        while arch::ticks().wrapping_sub(start) < ticks {}
        // SAFETY: reads a static.
        unsafe { (&raw const WATCHED).read_volatile() };
        core::hint::black_box(broken_into as extern "C" fn())();
    }
    // SAFETY: masks them again.
    unsafe { asm!("msr daifset, #8", "isb", options(nostack)) };
    [&raw const WATCHED as u64, broken_into as *const () as u64, 0, 0]
}
