//! What the CPU has, probed once on the boot CPU. Registers of a feature are touched only where it is present.

use super::secure;
use super::sysreg::mrs;

/// CPU features that change what the hypervisor configures or switches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// FEAT_SVE.
    pub sve: bool,
    /// FEAT_FGT: fine-grained traps.
    pub fgt: bool,
    /// FEAT_HCX: HCRX_EL2.
    pub hcx: bool,
    /// FEAT_MPAM.
    pub mpam: bool,
    /// FEAT_PAuth, any algorithm.
    pub pauth: bool,
    /// FEAT_TCR2.
    pub tcr2: bool,
    /// FEAT_PMUv3.
    pub pmu: bool,
    /// FEAT_BBM level 2: blocks and tables replace each other in place.
    pub bbm_level_2: bool,
}

fn field(register: u64, shift: u32) -> u64 {
    (register >> shift) & 0xf
}

impl Features {
    /// Reads the ID registers of this CPU.
    pub fn probe() -> Self {
        let pfr0 = mrs!("id_aa64pfr0_el1");
        let dfr0 = mrs!("id_aa64dfr0_el1");
        let isar1 = mrs!("id_aa64isar1_el1");
        let isar2 = mrs!("s3_0_c0_c6_2");
        let mmfr0 = mrs!("id_aa64mmfr0_el1");
        let mmfr1 = mrs!("id_aa64mmfr1_el1");
        let mmfr3 = mrs!("s3_0_c0_c7_3");
        Self {
            sve: field(pfr0, 32) != 0,
            fgt: field(mmfr0, 56) != 0,
            hcx: field(mmfr1, 40) != 0,
            // EL3 keeps its registers from S-EL2.
            mpam: field(pfr0, 40) != 0 && !secure(),
            pauth: field(isar1, 4) | field(isar1, 8) | field(isar2, 12) != 0,
            tcr2: field(mmfr3, 0) != 0,
            bbm_level_2: field(mrs!("id_aa64mmfr2_el1"), 52) >= 2,
            pmu: !matches!(field(dfr0, 8), 0 | 0xf),
        }
    }
}
