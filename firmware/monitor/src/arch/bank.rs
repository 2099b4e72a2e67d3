//! What EL3 switches between the worlds: the registers of EL2 that the worlds share, and the keys of pointer authentication.
//! The list is Trusted Firmware-A's for an SPMC at S-EL2, for the features that [`super::el3`] gives to lower levels. Everything
//! of EL1 and EL0, SIMD, the virtual timer and the list registers are the SPMC's to switch.

use super::el3::Features;
use super::sysreg::{mrs, msr};

/// A register's name for the assembler.
macro_rules! register {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $code:literal) => {
        $code
    };
}

macro_rules! bank {
    ($($($field:ident $(= $code:literal)?)+ $(, if $feature:ident)?;)*) => {
        /// One world's registers.
        #[derive(Default)]
        pub struct Bank { $($($field: u64,)+)* }

        impl Bank {
            /// Takes the registers from the CPU.
            pub fn save(&mut self, has: &Features) {
                $(if true $(&& has.$feature)? { $(self.$field = mrs!(register!($field $($code)?));)+ })*
            }

            /// Gives them back.
            pub fn restore(&self, has: &Features) {
                $(if true $(&& has.$feature)? { $(msr!(register!($field $($code)?), self.$field);)+ })*
            }
        }
    };
}

bank! {
    actlr_el2 afsr0_el2 afsr1_el2 amair_el2 cnthctl_el2 cntvoff_el2 cptr_el2 elr_el2 esr_el2 far_el2 hacr_el2 hcr_el2;
    hpfar_el2 hstr_el2 mair_el2 mdcr_el2 sctlr_el2 spsr_el2 sp_el2 tcr_el2 tpidr_el2 ttbr0_el2 vbar_el2 vmpidr_el2;
    vpidr_el2 vtcr_el2 vttbr_el2 contextidr_el2 = "s3_4_c13_c0_1" ttbr1_el2 = "s3_4_c2_c0_1";
    icc_sre_el2 = "s3_4_c12_c9_5" ich_hcr_el2 = "s3_4_c12_c11_0" ich_vmcr_el2 = "s3_4_c12_c11_7";
    hfgrtr_el2 = "s3_4_c1_c1_4" hfgwtr_el2 = "s3_4_c1_c1_5" hfgitr_el2 = "s3_4_c1_c1_6", if fgt;
    hdfgrtr_el2 = "s3_4_c3_c1_4" hdfgwtr_el2 = "s3_4_c3_c1_5", if fgt;
    hcrx_el2 = "s3_4_c1_c2_2", if hcx;
    tcr2_el2 = "s3_4_c2_c0_3", if tcr2;
    apiakeylo_el1 = "s3_0_c2_c1_0" apiakeyhi_el1 = "s3_0_c2_c1_1" apibkeylo_el1 = "s3_0_c2_c1_2", if pauth;
    apibkeyhi_el1 = "s3_0_c2_c1_3" apdakeylo_el1 = "s3_0_c2_c2_0" apdakeyhi_el1 = "s3_0_c2_c2_1", if pauth;
    apdbkeylo_el1 = "s3_0_c2_c2_2" apdbkeyhi_el1 = "s3_0_c2_c2_3", if pauth;
    apgakeylo_el1 = "s3_0_c2_c3_0" apgakeyhi_el1 = "s3_0_c2_c3_1", if pauth;
}

impl Bank {
    /// What a world starts with: all zero but what must not be.
    pub fn new() -> Self {
        // RES1, MMU and caches off; the interrupt controller's system registers, at lower levels too.
        Self { sctlr_el2: 0x30c5_0830, icc_sre_el2: 0xf, ..Self::default() }
    }
}
