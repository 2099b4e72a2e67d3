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

/// SCR_EL3: the normal world's registers.
const SCR_NS: u64 = 1 << 0;

/// SCR_EL3 of a world (Arm ARM D24.2.117). Interrupts of the secure world are FIQs in the normal world: they come here.
fn scr(world: World, has: &Features) -> u64 {
    let when = |present: bool, bits: u64| if present { bits } else { 0 };
    3 << 4 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 18 // RES1, HCE, SIF, RW, ST, EEL2
        | when(world == World::Normal, SCR_NS | 1 << 2) // FIQ
        | when(has.pauth, 3 << 16) // APK, API
        | when(has.fgt, 1 << 27) // FGTEn
        | when(has.hcx, 1 << 38) // HXEn
        | when(has.tcr2, 1 << 43) // TCR2En
}

/// Configures this core, and makes it the secure world's.
pub fn configure(has: &Features) {
    select(World::Secure, has);
    // SVE may be used (EZ), trace and activity monitors trap (TTA, TAM), SME does (ESM is 0).
    msr!("cptr_el3", 1 << 8 | 1 << 20 | 1 << 30);
    // No AArch32 debug and no self-hosted debug in the secure world (SPD32, SDD); cycles are not counted there nor here (SCCD,
    // MCCD); trace filters trap (TTRF); sampling and trace buffers are nobody's (NSPB and NSTB are 0).
    msr!("mdcr_el3", 2 << 14 | 1 << 16 | 1 << 19 | 1 << 23 | 1 << 34);
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
