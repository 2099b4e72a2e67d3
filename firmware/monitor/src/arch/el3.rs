//! EL3's own control registers: what lower levels may touch. A feature is open to them only if its state is switched: here
//! ([`super::bank`]), or by the SPMC. SME, MTE, trace, sampling, activity monitors, SCXTNUM and SCTLR2 stay closed.

use super::sysreg::{mrs, msr};
use monitor::spmd::World;

/// What the CPU has of what is given to lower levels, beyond what every CPU with a secure EL2 has.
#[derive(Clone, Copy)]
pub struct Features {
    sve: bool,
    /// FEAT_PAuth, any algorithm.
    pub pauth: bool,
    /// FEAT_FGT.
    pub fgt: bool,
    /// FEAT_HCX.
    pub hcx: bool,
    /// FEAT_TCR2.
    pub tcr2: bool,
}

impl Features {
    /// Reads the ID registers of this core.
    pub fn probe() -> Self {
        let field = |register: u64, shift: u32| (register >> shift) & 0xf;
        let isar1 = mrs!("id_aa64isar1_el1");
        Self {
            sve: field(mrs!("id_aa64pfr0_el1"), 32) != 0,
            pauth: field(isar1, 4) | field(isar1, 8) | field(mrs!("s3_0_c0_c6_2"), 12) != 0,
            fgt: field(mrs!("id_aa64mmfr0_el1"), 56) != 0,
            hcx: field(mrs!("id_aa64mmfr1_el1"), 40) != 0,
            tcr2: field(mrs!("s3_0_c0_c7_3"), 0) != 0,
        }
    }
}

// SCR_EL3 (Arm ARM D24.2.117).
const SCR_NS: u64 = 1 << 0;
const SCR_FIQ: u64 = 1 << 2;
const SCR_RES1: u64 = 3 << 4;
const SCR_HCE: u64 = 1 << 8;
const SCR_SIF: u64 = 1 << 9;
const SCR_RW: u64 = 1 << 10;
const SCR_ST: u64 = 1 << 11;
const SCR_APK: u64 = 1 << 16;
const SCR_API: u64 = 1 << 17;
const SCR_EEL2: u64 = 1 << 18;
const SCR_FGTEN: u64 = 1 << 27;
const SCR_HXEN: u64 = 1 << 38;
const SCR_TCR2EN: u64 = 1 << 43;

/// SCR_EL3 of a world. Interrupts of the secure world are FIQs in the normal world: they come here.
fn scr(world: World, has: &Features) -> u64 {
    let when = |present: bool, bits: u64| if present { bits } else { 0 };
    let common = SCR_RES1 | SCR_HCE | SCR_SIF | SCR_RW | SCR_ST | SCR_EEL2;
    let features = when(has.pauth, SCR_APK | SCR_API) | when(has.fgt, SCR_FGTEN) | when(has.hcx, SCR_HXEN);
    common | features | when(has.tcr2, SCR_TCR2EN) | when(world == World::Normal, SCR_NS | SCR_FIQ)
}

// CPTR_EL3: SVE may be used, trace and activity monitors trap, SME does (its bit is 0).
const CPTR_EZ: u64 = 1 << 8;
const CPTR_TTA: u64 = 1 << 20;
const CPTR_TAM: u64 = 1 << 30;

// MDCR_EL3: no AArch32 debug and no self-hosted debug in the secure world; cycles are not counted there nor here; sampling and
// trace buffers are nobody's (NSPB and NSTB are 0), trace filters trap.
const MDCR_SPD32: u64 = 2 << 14;
const MDCR_SDD: u64 = 1 << 16;
const MDCR_TTRF: u64 = 1 << 19;
const MDCR_SCCD: u64 = 1 << 23;
const MDCR_MCCD: u64 = 1 << 34;

/// Configures this core, and makes it the secure world's.
pub fn configure(has: &Features) {
    select(World::Secure, has);
    msr!("cptr_el3", CPTR_EZ | CPTR_TTA | CPTR_TAM);
    msr!("mdcr_el3", MDCR_SPD32 | MDCR_SDD | MDCR_TTRF | MDCR_SCCD | MDCR_MCCD);
    isb();
    if has.sve {
        msr!("s3_6_c1_c2_0", 0xf); // ZCR_EL3: every length
    }
}

/// Makes a world the one whose registers are accessed, and that is entered next.
pub fn select(world: World, has: &Features) {
    msr!("scr_el3", scr(world, has));
    isb();
}

/// The world that was interrupted.
pub fn selected() -> World {
    if mrs!("scr_el3") & SCR_NS == 0 { World::Secure } else { World::Normal }
}

/// Gives this core's EL2 an undefined-instruction exception for what it, or what runs above it, tried: it touched what is closed.
/// Returns where to go on, and with which state.
pub fn undefined(elr: u64, spsr: u64) -> (u64, u64) {
    const UNKNOWN_32_BIT: u64 = 1 << 25;
    const EL2H_MASKED: u64 = 0x3c9;
    msr!("esr_el2", UNKNOWN_32_BIT);
    msr!("elr_el2", elr);
    msr!("spsr_el2", spsr);
    // Vectors: current EL with its own stack, or lower EL.
    let offset = if spsr & 0xf == EL2H_MASKED & 0xf { 0x200 } else { 0x400 };
    (mrs!("vbar_el2").wrapping_add(offset), EL2H_MASKED)
}

/// Instruction synchronisation.
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { core::arch::asm!("isb", options(nostack)) };
}

/// Waits for an interrupt, masked or not.
pub fn wait() {
    // SAFETY: a hint.
    unsafe { core::arch::asm!("dsb sy", "wfi", options(nostack)) };
}
