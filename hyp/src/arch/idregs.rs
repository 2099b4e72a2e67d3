//! ID registers as host and partitions see them (I12: visible = switched). HCR_EL2.TID3 traps every read; what comes
//! back is the hardware's value under an allow-list of fields, so that a feature this code does not know is hidden.

use super::sysreg::mrs;

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// The host: all that is switched or is not state.
    Host,
    /// A partition: no SVE, no PMU, no debug beyond the mandatory minimum.
    Partition,
}

const fn fields(shifts: &[u32]) -> u64 {
    let mut mask = 0;
    let mut i = 0;
    while i < shifts.len() {
        mask |= 0xf << shifts[i];
        i += 1;
    }
    mask
}

/// FEAT_CSV2 without its later additions: SCXTNUM registers are nobody's, since EL3 firmware keeps them from S-EL2.
const PFR0_CSV2: u64 = fields(&[56]);
const PFR0_CSV2_1: u64 = 1 << 56;
// Field positions: Arm ARM D24.2 (AArch64 ID registers).
const PFR0_COMMON: u64 = fields(&[0, 4, 16, 20, 24, 48, 60]); // EL0, EL1, FP, AdvSIMD, GIC, DIT, CSV3
const PFR0_HOST: u64 = PFR0_COMMON | fields(&[28, 32]); // RAS, SVE
const PFR1: u64 = fields(&[0, 4]); // BT, SSBS; not CSV2_frac, MTE, SME, MPAM, NMI, GCS
const DFR0_HOST: u64 = fields(&[0, 8, 12, 20, 28, 36]); // DebugVer, PMUVer, BRPs, WRPs, CTX_CMPs, DoubleLock
const ISAR0: u64 = !fields(&[0]); // all but the reserved field: instructions without state of their own
const ISAR1: u64 = fields(&[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52]); // to I8MM; not XS, LS64
const ISAR2: u64 = fields(&[0, 4, 8, 12, 16, 20, 24, 28, 40, 48, 52]); // WFxT .. BC, CLRBHB, RPRFM, CSSC; not SYSREG128
const MMFR0: u64 = !0;
const MMFR1: u64 = !fields(&[8, 16]); // not VH (no EL2 below us), LO
const MMFR2: u64 = !fields(&[24]); // not NV
const MMFR3_HOST: u64 = fields(&[0]); // TCRX; not SCTLRX

/// Reads ID register op0=3, op1=0, CRn=0, `crm`, `op2` of this CPU as `reader` may see it.
pub fn read(crm: u64, op2: u64, reader: Reader) -> u64 {
    let host = reader == Reader::Host;
    match (crm, op2) {
        (4, 0) => {
            let whole = mrs!("id_aa64pfr0_el1");
            let csv2 = if whole & PFR0_CSV2 != 0 { PFR0_CSV2_1 } else { 0 };
            let value = whole & (if host { PFR0_HOST } else { PFR0_COMMON }) | csv2;
            // EL2 and EL3 read as absent; EL0 and EL1 as AArch64 only for a partition.
            if host { value } else { (value & !0xff) | 0x11 }
        }
        (4, 1) => mrs!("id_aa64pfr1_el1") & PFR1,
        (4, 4) if host => mrs!("s3_0_c0_c4_4"), // ID_AA64ZFR0_EL1
        (5, 0) if host => mrs!("id_aa64dfr0_el1") & DFR0_HOST,
        (5, 0) => (mrs!("id_aa64dfr0_el1") & 0xf) | 0x10_1000, // the architecture's minimum: two breakpoints, two watchpoints
        (6, 0) => mrs!("id_aa64isar0_el1") & ISAR0,
        (6, 1) => mrs!("id_aa64isar1_el1") & ISAR1,
        (6, 2) => mrs!("s3_0_c0_c6_2") & ISAR2,
        (7, 0) => mrs!("id_aa64mmfr0_el1") & MMFR0,
        (7, 1) => mrs!("id_aa64mmfr1_el1") & MMFR1,
        (7, 2) => mrs!("id_aa64mmfr2_el1") & MMFR2,
        (7, 3) if host => mrs!("s3_0_c0_c7_3") & MMFR3_HOST,
        (1..=3, _) if host => aarch32(crm, op2),
        _ => 0,
    }
}

/// AArch32 ID registers: EL0 of the host may run AArch32.
fn aarch32(crm: u64, op2: u64) -> u64 {
    match (crm, op2) {
        (1, 0) => mrs!("id_pfr0_el1") & 0xffff, // not DIT, AMU, CSV2, RAS
        (1, 1) => mrs!("id_pfr1_el1"),
        (1, 2) => mrs!("id_dfr0_el1") & 0x0f00_0fff, // not trace
        (1, 4) => mrs!("id_mmfr0_el1"),
        (1, 5) => mrs!("id_mmfr1_el1"),
        (1, 6) => mrs!("id_mmfr2_el1"),
        (1, 7) => mrs!("id_mmfr3_el1"),
        (2, 0) => mrs!("id_isar0_el1"),
        (2, 1) => mrs!("id_isar1_el1"),
        (2, 2) => mrs!("id_isar2_el1"),
        (2, 3) => mrs!("id_isar3_el1"),
        (2, 4) => mrs!("id_isar4_el1"),
        (2, 5) => mrs!("id_isar5_el1"),
        (2, 6) => mrs!("id_mmfr4_el1"),
        (2, 7) => mrs!("s3_0_c0_c2_7"), // ID_ISAR6_EL1
        (3, 0) => mrs!("mvfr0_el1"),
        (3, 1) => mrs!("mvfr1_el1"),
        (3, 2) => mrs!("mvfr2_el1"),
        (3, 4) => mrs!("s3_0_c0_c3_4"), // ID_PFR2_EL1
        _ => 0,
    }
}
