//! The GICv3: which interrupts are the secure world's, and waking cores. SGIs 8-15 are secure, as Trusted Firmware-A has it;
//! everything else is the normal world's until the SPMC says otherwise.

use super::device::{read, write};
use super::el3::isb;
use super::sysreg::{mrs, msr};

/// Distributor and redistributors of the `virt` machine (Arm IHI 0069, chapter 12).
pub const GICD: usize = 0x0800_0000;
const GICR: usize = 0x080a_0000;
const GICR_STRIDE: usize = 0x2_0000;
/// GICD_CTLR: affinity routing in both worlds; groups 1 non-secure and 1 secure; a write is not yet done.
const CTLR_ARE: u32 = 3 << 4;
const CTLR_GROUPS: u32 = 3 << 1;
const CTLR_RWP: u32 = 1 << 31;
const SECURE_SGIS: u32 = 0xff00;
/// The SGI that wakes a core that is off.
const WAKE: u64 = 14;
/// ICC_IAR1_EL1: from here on nothing is pending.
const SPECIAL: u64 = 1020;

/// Sets the distributor up; the other cores wait for that.
pub fn set_up_distributor() {
    let wait = || while read(GICD) & CTLR_RWP != 0 {};
    write(GICD, CTLR_ARE);
    wait();
    for register in 1..=(read(GICD + 4) & 0x1f) as usize {
        write(GICD + 0x080 + 4 * register, !0); // GICD_IGROUPR: not group 0
        write(GICD + 0xd00 + 4 * register, 0); // GICD_IGRPMODR: nor group 1 secure
    }
    write(GICD, CTLR_ARE | CTLR_GROUPS);
    wait();
}

/// Cores that the machine has: one redistributor each.
pub fn core_count(limit: usize) -> usize {
    let last = |core: &usize| read(GICR + core * GICR_STRIDE + 8) & 1 << 4 != 0; // GICR_TYPER.Last
    (0..limit).find(last).map_or(limit, |core| core + 1)
}

/// Sets this core's redistributor and interface up, as the secure world.
pub fn set_up_core(core: usize) {
    let frame = GICR + core * GICR_STRIDE;
    write(frame + 0x14, read(frame + 0x14) & !(1 << 1)); // GICR_WAKER.ProcessorSleep
    while read(frame + 0x14) & 1 << 2 != 0 {} // ChildrenAsleep
    write(frame + 0x1_0080, !SECURE_SGIS); // GICR_IGROUPR0
    write(frame + 0x1_0d00, SECURE_SGIS); // GICR_IGRPMODR0
    write(frame + 0x1_0100, SECURE_SGIS); // GICR_ISENABLER0
    msr!("s3_6_c12_c12_5", 0xf); // ICC_SRE_EL3: system registers, at lower levels too
    isb();
    msr!("s3_0_c4_c6_0", 0xff); // ICC_PMR_EL1: every priority
    msr!("s3_6_c12_c12_7", 1 << 1); // ICC_IGRPEN1_EL3: the secure group; the normal world enables its own
    isb();
}

/// Wakes a core that is off.
pub fn wake(core: usize) {
    // SAFETY: a barrier: what the core is to find comes before.
    unsafe { core::arch::asm!("dsb sy", options(nostack)) };
    msr!("s3_0_c12_c11_5", WAKE << 24 | 1 << core); // ICC_SGI1R_EL1, secure
    isb();
}

/// Takes every secure interrupt that is pending on this core, and drops it.
pub fn drop_pending() {
    // ICC_IAR1_EL1, ICC_EOIR1_EL1.
    while let id @ ..SPECIAL = mrs!("s3_0_c12_c12_0") {
        msr!("s3_0_c12_c12_1", id);
        isb();
    }
}
