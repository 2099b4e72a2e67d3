//! System register access by name. Names are the Arm ARM's, or the generic `s3_4_c1_c2_2` form where the assembler of
//! the base architecture does not know them.

/// Reads a system register.
macro_rules! mrs {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: reading this register has no side effect on memory or on the state Rust relies on.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
        value
    }};
}

/// Writes a system register. The caller of the surrounding function vouches for the value.
macro_rules! msr {
    ($name:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the registers written by this crate configure lower exception levels, timers and the interrupt
        // controller; none changes how this Rust code itself runs, except where the caller documents it.
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack)) }
    }};
}

/// Registers that the assembler's base architecture has no name for: their generic names.
macro_rules! register {
    (vsttbr_el2) => { "s3_4_c2_c6_0" };
    (vstcr_el2) => { "s3_4_c2_c6_2" };
    (icc_pmr_el1) => { "s3_0_c4_c6_0" };
    (icc_igrpen1_el1) => { "s3_0_c12_c12_7" };
    (icc_iar1_el1) => { "s3_0_c12_c12_0" };
    (icc_eoir1_el1) => { "s3_0_c12_c12_1" };
    (icc_sgi1r_el1) => { "s3_0_c12_c11_5" };
    (icc_asgi1r_el1) => { "s3_0_c12_c11_6" };
    (hcrx_el2) => { "s3_4_c1_c2_2" };
    (zcr_el2) => { "s3_4_c1_c2_0" };
    (zcr_el1) => { "s3_0_c1_c2_0" };
    (hfgrtr_el2) => { "s3_4_c1_c1_4" };
    (hfgwtr_el2) => { "s3_4_c1_c1_5" };
    (hfgitr_el2) => { "s3_4_c1_c1_6" };
    (hdfgrtr_el2) => { "s3_4_c3_c1_4" };
    (hdfgwtr_el2) => { "s3_4_c3_c1_5" };
    (mpam2_el2) => { "s3_4_c10_c5_0" };
    (icc_sre_el2) => { "s3_4_c12_c9_5" };
    (ich_hcr_el2) => { "s3_4_c12_c11_0" };
    (ich_vmcr_el2) => { "s3_4_c12_c11_7" };
    (ich_ap0r0_el2) => { "s3_4_c12_c8_0" };
    (ich_ap1r0_el2) => { "s3_4_c12_c9_0" };
    (ich_lr0_el2) => { "s3_4_c12_c12_0" };
    (ich_lr1_el2) => { "s3_4_c12_c12_1" };
    (ich_lr2_el2) => { "s3_4_c12_c12_2" };
    (ich_lr3_el2) => { "s3_4_c12_c12_3" };
    (ich_vtr_el2) => { "s3_4_c12_c11_1" };
    (icc_hppir1_el1) => { "s3_0_c12_c12_2" };
    (tcr2_el1) => { "s3_0_c2_c0_3" };
    (apiakeylo_el1) => { "s3_0_c2_c1_0" };
    (apiakeyhi_el1) => { "s3_0_c2_c1_1" };
    (apibkeylo_el1) => { "s3_0_c2_c1_2" };
    (apibkeyhi_el1) => { "s3_0_c2_c1_3" };
    (apdakeylo_el1) => { "s3_0_c2_c2_0" };
    (apdakeyhi_el1) => { "s3_0_c2_c2_1" };
    (apdbkeylo_el1) => { "s3_0_c2_c2_2" };
    (apdbkeyhi_el1) => { "s3_0_c2_c2_3" };
    (apgakeylo_el1) => { "s3_0_c2_c3_0" };
    (apgakeyhi_el1) => { "s3_0_c2_c3_1" };
}

pub(crate) use {mrs, msr, register};
