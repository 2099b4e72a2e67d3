//! Looking for foreign contents in the floating-point registers.

use core::arch::asm;

use hyp_abi::ffa;

use crate::calls::Random;

/// Status bits of FPSR that can be set: QC, IDC, IXC, UFC, OFC, DZC, IOC.
const FPSR_BITS: u64 = 0x0800_009F;
/// Control bits of FPCR that every CPU has: DN, FZ, RMode.
const FPCR_BITS: u64 = 0x03C0_0000;

/// Fills v0-v31, FPCR and FPSR from `seed`, gives the CPU away (`ticks` 0) or spins that many ticks, and compares;
/// `rounds` times. Returns how many registers changed.
pub fn survive(seed: u64, ticks: u64, rounds: u64) -> u64 {
    let mut random = Random(seed);
    let mut changed = 0;
    for _ in 0..rounds {
        let before: [[u64; 2]; 32] = core::array::from_fn(|_| [random.next(), random.next()]);
        let control = [random.next() & FPCR_BITS, random.next() & FPSR_BITS];
        let mut after = [[0; 2]; 32];
        let mut control_after = [0; 2];
        // SAFETY: all SIMD registers and x0-x17 are declared; FPCR and FPSR are put back to their defaults; FFA_YIELD
        // touches no memory but shared pages.
        unsafe {
            asm!(
                "ldp q0, q1, [x18]", "ldp q2, q3, [x18, #32]", "ldp q4, q5, [x18, #64]",
                "ldp q6, q7, [x18, #96]", "ldp q8, q9, [x18, #128]", "ldp q10, q11, [x18, #160]",
                "ldp q12, q13, [x18, #192]", "ldp q14, q15, [x18, #224]", "ldp q16, q17, [x18, #256]",
                "ldp q18, q19, [x18, #288]", "ldp q20, q21, [x18, #320]", "ldp q22, q23, [x18, #352]",
                "ldp q24, q25, [x18, #384]", "ldp q26, q27, [x18, #416]", "ldp q28, q29, [x18, #448]",
                "ldp q30, q31, [x18, #480]",
                "msr fpcr, {fpcr}", "msr fpsr, {fpsr}",
                "cbnz {ticks}, 2f",
                "smc #0",
                "b 4f",
                "2: isb", "mrs {start}, cntvct_el0",
                "3: isb", "mrs {now}, cntvct_el0", "sub {now}, {now}, {start}", "cmp {now}, {ticks}", "b.lo 3b",
                "4: mrs {fpcr}, fpcr", "mrs {fpsr}, fpsr", "msr fpcr, xzr", "msr fpsr, xzr",
                "stp q0, q1, [{after}]", "stp q2, q3, [{after}, #32]", "stp q4, q5, [{after}, #64]",
                "stp q6, q7, [{after}, #96]", "stp q8, q9, [{after}, #128]", "stp q10, q11, [{after}, #160]",
                "stp q12, q13, [{after}, #192]", "stp q14, q15, [{after}, #224]", "stp q16, q17, [{after}, #256]",
                "stp q18, q19, [{after}, #288]", "stp q20, q21, [{after}, #320]", "stp q22, q23, [{after}, #352]",
                "stp q24, q25, [{after}, #384]", "stp q26, q27, [{after}, #416]", "stp q28, q29, [{after}, #448]",
                "stp q30, q31, [{after}, #480]",
                ticks = in(reg) ticks,
                start = out(reg) _,
                now = out(reg) _,
                fpcr = inout(reg) control[0] => control_after[0],
                fpsr = inout(reg) control[1] => control_after[1],
                after = in(reg) after.as_mut_ptr(),
                in("x18") before.as_ptr(),
                inout("x0") u64::from(ffa::YIELD) => _, inout("x1") 0_u64 => _, inout("x2") 0_u64 => _,
                inout("x3") 0_u64 => _, inout("x4") 0_u64 => _, inout("x5") 0_u64 => _, inout("x6") 0_u64 => _,
                inout("x7") 0_u64 => _, out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
                out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _,
                out("v14") _, out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _,
                out("v21") _, out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _,
                out("v28") _, out("v29") _, out("v30") _, out("v31") _,
                options(nostack)
            );
        }
        changed += before.iter().zip(&after).filter(|(before, after)| before != after).count() as u64;
        changed +=
            control.iter().zip(&control_after).filter(|(before, after)| before != after).count() as u64;
    }
    changed
}
