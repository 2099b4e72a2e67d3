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

/// Ticks of [`ticks`] in a second.
pub fn ticks_per_second() -> u64 {
    let value;
    // SAFETY: reading CNTFRQ_EL0 has no side effect.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) value, options(nomem, nostack)) };
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

/// Returns the index of this vCPU.
pub fn vcpu_index() -> usize {
    let value: u64;
    // SAFETY: reading MPIDR_EL1 has no side effect.
    unsafe { asm!("mrs {}, mpidr_el1", out(reg) value, options(nomem, nostack, preserves_flags)) };
    (value & 0xFF) as usize
}

/// Where vCPUs other than the first start.
pub fn secondary_entry() -> u64 {
    unsafe extern "C" {
        fn secondary_entry();
    }
    secondary_entry as *const () as u64
}

/// Lets interrupts wake this vCPU from [`wait`]. They are never taken as exceptions: [`acknowledge`] looks for them.
pub fn receive_interrupts() {
    // SAFETY: ICC_PMR_EL1 and ICC_IGRPEN1_EL1 configure this vCPU's interrupt interface; PSTATE masks stay set.
    unsafe {
        asm!("msr s3_0_c4_c6_0, {all}", "msr s3_0_c12_c12_7, {on}", "isb", all = in(reg) 0xFF_u64,
             on = in(reg) 1_u64, options(nostack));
    }
}

/// Sends interrupt 0 to 7 to the vCPUs in `targets`, a bit each, after everything before it is visible.
pub fn send_interrupt(number: u64, targets: u64) {
    // SAFETY: ICC_SGI1R_EL1 reaches vCPUs of this partition only, which take interrupts by looking for them.
    unsafe {
        asm!("dsb ishst", "msr s3_0_c12_c11_5, {}", "isb", in(reg) number << 24 | targets & 0xFFFF,
             options(nostack));
    }
}

/// Sends an interrupt as `value` of ICC_SGI1R_EL1 says.
pub fn send_interrupt_raw(value: u64) {
    // SAFETY: as in `send_interrupt`.
    unsafe { asm!("msr s3_0_c12_c11_5, {}", "isb", in(reg) value, options(nostack)) };
}

/// Takes an interrupt that is pending; none if there is none.
pub fn acknowledge() -> Option<u64> {
    let number: u64;
    // SAFETY: ICC_IAR1_EL1 and ICC_EOIR1_EL1 change this vCPU's interrupt interface only.
    unsafe { asm!("mrs {}, s3_0_c12_c12_0", "dsb sy", out(reg) number, options(nostack)) };
    if number >= 1020 {
        return None;
    }
    // SAFETY: as above.
    unsafe { asm!("msr s3_0_c12_c12_1, {}", "isb", in(reg) number, options(nostack)) };
    Some(number)
}

/// Waits for an interrupt; may return without one.
pub fn wait() {
    // SAFETY: WFI only waits; others may change memory meanwhile, so it is a barrier for the compiler.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Arms the virtual timer, whose interrupt is 27; none: turns it off.
pub fn set_timer(deadline: Option<u64>) {
    let (value, control) = deadline.map_or((0, 0_u64), |deadline| (deadline, 1));
    // SAFETY: the virtual timer is the partition's own.
    unsafe {
        asm!("msr cntv_cval_el0, {}", "msr cntv_ctl_el0, {}", "isb", in(reg) value, in(reg) control,
             options(nostack));
    }
}

/// Leaves the CPU to the host for about so long; may return earlier. Nobody else may use the timer of this vCPU.
pub fn sleep(time: u64) {
    set_timer(Some(ticks().saturating_add(time)));
    wait();
    set_timer(None);
}

/// Stops this CPU for good; reached only if the hypervisor returned from a call that does not return.
pub fn halt() -> ! {
    loop {
        // SAFETY: WFI only waits.
        unsafe { asm!("wfi", options(nomem, nostack)) };
    }
}
