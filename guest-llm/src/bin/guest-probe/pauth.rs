//! Pointer authentication: which keys are there.

use core::arch::asm;

/// Signs `value` with `modifier` by the generic key, after taking own keys made from `seed` if that is not 0. Returns the
/// signature and the low halves of three keys.
pub fn sign(value: u64, modifier: u64, seed: u64) -> [u64; 4] {
    let [signature, instruction, data, generic]: [u64; 4];
    // SAFETY: this code signs no pointers, so the keys are nobody's but the act's.
    unsafe {
        asm!(
            ".arch_extension pauth",
            "cbz {seed}, 1f",
            "msr S3_0_C2_C1_0, {seed}",
            "msr S3_0_C2_C1_1, {seed}",
            "msr S3_0_C2_C2_0, {seed}",
            "msr S3_0_C2_C2_1, {seed}",
            "msr S3_0_C2_C3_0, {seed}",
            "msr S3_0_C2_C3_1, {seed}",
            "isb",
            "1: pacga {signature}, {value}, {modifier}",
            "mrs {instruction}, S3_0_C2_C1_0",
            "mrs {data}, S3_0_C2_C2_0",
            "mrs {generic}, S3_0_C2_C3_0",
            seed = in(reg) seed, value = in(reg) value, modifier = in(reg) modifier,
            signature = out(reg) signature, instruction = out(reg) instruction, data = out(reg) data,
            generic = out(reg) generic, options(nostack)
        );
    }
    [signature, instruction, data, generic]
}
