//! System registers by number.

use core::arch::asm;

use guest_abi::session::probe::REGISTERS;

/// One register, if it can be accessed that way.
type Read = Option<fn() -> u64>;
type Write = Option<fn(u64)>;

macro_rules! read {
    (wo, $register:literal) => {
        None
    };
    ($access:ident, $register:literal) => {
        Some(|| {
            let value;
            // SAFETY: what the read does is what the act is about; EL1 state that Rust relies on is not in the list.
            unsafe { asm!(concat!("mrs {}, ", $register), out(reg) value, options(nostack)) };
            value
        })
    };
}

macro_rules! write {
    (ro, $register:literal) => {
        None
    };
    ($access:ident, $register:literal) => {
        // SAFETY: as for reads.
        Some(|value| unsafe { asm!(concat!("msr ", $register, ", {}"), "isb", in(reg) value, options(nostack)) })
    };
}

/// Each register: access, name, and for the assembler where that needs an extension that not every target has, encoding.
macro_rules! registers {
    ($($access:ident $name:literal $encoding:literal;)*) => {
        const NAMES: &[&str] = &[$($name),*];
        const READS: &[Read] = &[$(read!($access, $encoding)),*];
        const WRITES: &[Write] = &[$(write!($access, $encoding)),*];
    };
}

registers! {
    ro "ID_AA64PFR0_EL1" "ID_AA64PFR0_EL1";
    ro "ID_AA64PFR1_EL1" "ID_AA64PFR1_EL1";
    ro "ID_AA64DFR0_EL1" "ID_AA64DFR0_EL1";
    ro "ID_AA64ISAR1_EL1" "ID_AA64ISAR1_EL1";
    ro "ID_AA64MMFR0_EL1" "ID_AA64MMFR0_EL1";
    ro "ID_AA64MMFR1_EL1" "ID_AA64MMFR1_EL1";
    ro "ID_AA64MMFR2_EL1" "ID_AA64MMFR2_EL1";
    ro "MIDR_EL1" "MIDR_EL1";
    ro "MPIDR_EL1" "MPIDR_EL1";
    rw "HCR_EL2" "HCR_EL2";
    rw "VTTBR_EL2" "VTTBR_EL2";
    rw "VTCR_EL2" "VTCR_EL2";
    rw "SCTLR_EL2" "SCTLR_EL2";
    rw "TTBR0_EL2" "TTBR0_EL2";
    rw "VBAR_EL2" "VBAR_EL2";
    rw "ELR_EL2" "ELR_EL2";
    rw "CNTHCTL_EL2" "CNTHCTL_EL2";
    rw "CNTHP_CTL_EL2" "CNTHP_CTL_EL2";
    rw "ICH_HCR_EL2" "S3_4_C12_C11_0";
    rw "MDCR_EL2" "MDCR_EL2";
    rw "SCR_EL3" "SCR_EL3";
    rw "ICC_SRE_EL1" "S3_0_C12_C12_5";
    ro "ICC_IAR1_EL1" "S3_0_C12_C12_0";
    wo "ICC_EOIR1_EL1" "S3_0_C12_C12_1";
    rw "ICC_PMR_EL1" "S3_0_C4_C6_0";
    rw "ICC_IGRPEN1_EL1" "S3_0_C12_C12_7";
    wo "ICC_SGI1R_EL1" "S3_0_C12_C11_5";
    rw "CNTP_CTL_EL0" "CNTP_CTL_EL0";
    rw "CNTP_CVAL_EL0" "CNTP_CVAL_EL0";
    rw "CNTKCTL_EL1" "CNTKCTL_EL1";
    rw "MDSCR_EL1" "MDSCR_EL1";
    wo "OSLAR_EL1" "OSLAR_EL1";
    rw "DBGBVR0_EL1" "DBGBVR0_EL1";
    rw "DBGBCR0_EL1" "DBGBCR0_EL1";
    rw "PMCR_EL0" "PMCR_EL0";
    rw "PMCCNTR_EL0" "PMCCNTR_EL0";
    rw "ERRSELR_EL1" "S3_0_C5_C3_1";
    rw "ZCR_EL1" "S3_0_C1_C2_0";
    rw "SMCR_EL1" "S3_0_C1_C2_6";
    rw "GCR_EL1" "S3_0_C1_C0_6";
    rw "PMSCR_EL1" "S3_0_C9_C9_0";
    rw "TRBLIMITR_EL1" "S3_0_C9_C11_0";
    rw "BRBCR_EL1" "S2_1_C9_C0_0";
    rw "AMCR_EL0" "S3_3_C13_C2_0";
    rw "MPAM1_EL1" "S3_0_C10_C5_0";
    rw "LORC_EL1" "S3_0_C10_C4_3";
    rw "TPIDR2_EL0" "S3_3_C13_C0_5";
    ro "ID_AA64MMFR3_EL1" "S3_0_C0_C7_3";
    rw "PIR_EL1" "S3_0_C10_C2_3";
}

// The numbers mean the same on both sides.
const _: () = {
    assert!(NAMES.len() == REGISTERS.len());
    let mut i = 0;
    while i < NAMES.len() {
        let (here, there) = (NAMES[i].as_bytes(), REGISTERS[i].as_bytes());
        assert!(here.len() == there.len());
        let mut at = 0;
        while at < here.len() {
            assert!(here[at] == there[at]);
            at += 1;
        }
        i += 1;
    }
};

/// Reads register `number`; none if there is none or it cannot be read.
pub fn read(number: u64) -> Option<u64> {
    let read = (*READS.get(usize::try_from(number).ok()?)?)?;
    Some(read())
}

/// Writes register `number`; false if there is none or it cannot be written.
pub fn write(number: u64, value: u64) -> bool {
    let write = usize::try_from(number).ok().and_then(|number| *WRITES.get(number)?);
    if let Some(write) = write {
        write(value);
    }
    write.is_some()
}
