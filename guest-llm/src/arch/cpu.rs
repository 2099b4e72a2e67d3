//! Single instructions.

use core::arch::asm;

/// Calls the hypervisor by SMC (SMCCC 1.2): x0-x17 go and come.
///
/// The crate smccc says that a call touches no memory, which is untrue where the call hands the CPU, or a page, to
/// somebody who shares memory with us; hence this one.
///
/// # Safety
/// The call must not take away or change memory that Rust references point to, except through atomics.
pub unsafe fn smc(x: &mut [u64; 18]) {
    let [x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15, x16, x17] = x;
    // SAFETY: the caller vouches for the call's effect on memory; SMCCC preserves everything but x0-x17.
    unsafe {
        asm!(
            "smc #0",
            inout("x0") * x0,
            inout("x1") * x1,
            inout("x2") * x2,
            inout("x3") * x3,
            inout("x4") * x4,
            inout("x5") * x5,
            inout("x6") * x6,
            inout("x7") * x7,
            inout("x8") * x8,
            inout("x9") * x9,
            inout("x10") * x10,
            inout("x11") * x11,
            inout("x12") * x12,
            inout("x13") * x13,
            inout("x14") * x14,
            inout("x15") * x15,
            inout("x16") * x16,
            inout("x17") * x17,
            options(nostack)
        );
    }
}

/// Reads the virtual counter, after everything before it is done.
pub fn ticks() -> u64 {
    let value;
    // SAFETY: reading CNTVCT_EL0 has no side effect.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nostack)) };
    value
}

/// Returns this partition's FF-A id, kept in TPIDR_EL1, where the exception vectors find it too.
pub fn endpoint_id() -> u64 {
    let value;
    // SAFETY: reading TPIDR_EL1 has no side effect.
    unsafe { asm!("mrs {}, tpidr_el1", out(reg) value, options(nomem, nostack)) };
    value
}

/// Sets what [`endpoint_id`] returns.
pub fn set_endpoint_id(id: u16) {
    // SAFETY: TPIDR_EL1 is used for this only.
    unsafe { asm!("msr tpidr_el1, {:x}", in(reg) u64::from(id), options(nomem, nostack)) };
}

/// Stops this CPU for good; reached only if the hypervisor returned from a call that does not return.
pub fn halt() -> ! {
    loop {
        // SAFETY: WFI only waits.
        unsafe { asm!("wfi", options(nomem, nostack)) };
    }
}
