//! The GICv3: which interrupts are the secure world's, and waking cores. SGIs 8-15 are secure, as Trusted Firmware-A has it;
//! everything else is the normal world's until the SPMC says otherwise.

use super::device::{read, write};
use super::el3::isb;
use super::sysreg::{mrs, msr};

/// Distributor of the `virt` machine.
pub const GICD: usize = 0x0800_0000;
const GICR: usize = 0x080a_0000;
const GICR_STRIDE: usize = 0x2_0000;
const SGI_BASE: usize = 0x1_0000;

const GICD_TYPER: usize = GICD + 0x004;
const GICD_IGROUPR: usize = GICD + 0x080;
const GICD_IGRPMODR: usize = GICD + 0xd00;
/// Affinity routing in both worlds.
const CTLR_ARE: u32 = 3 << 4;
/// Groups 1 non-secure and 1 secure.
const CTLR_GROUPS: u32 = 3 << 1;
const CTLR_RWP: u32 = 1 << 31;
const GICR_TYPER: usize = 0x08;
const TYPER_LAST: u32 = 1 << 4;
const GICR_WAKER: usize = 0x14;
const WAKER_SLEEP: u32 = 1 << 1;
const WAKER_ASLEEP: u32 = 1 << 2;
const GICR_IGROUPR0: usize = SGI_BASE + 0x080;
const GICR_ISENABLER0: usize = SGI_BASE + 0x100;
const GICR_IGRPMODR0: usize = SGI_BASE + 0xd00;
const SECURE_SGIS: u32 = 0xff00;
/// The SGI that wakes a core that is off.
const WAKE: u64 = 14;
/// ICC_IAR1_EL1: from here on nothing is pending.
const SPECIAL: u64 = 1020;
/// ICC_IGRPEN1_EL3.
const ENABLE_SECURE: u64 = 1 << 1;

/// Sets the distributor up; the other cores wait for that.
pub fn set_up_distributor() {
    let wait = || while read(GICD) & CTLR_RWP != 0 {};
    write(GICD, CTLR_ARE);
    wait();
    let lines = (read(GICD_TYPER) & 0x1f) as usize + 1;
    for register in 1..lines {
        write(GICD_IGROUPR + 4 * register, !0);
        write(GICD_IGRPMODR + 4 * register, 0);
    }
    write(GICD, CTLR_ARE | CTLR_GROUPS);
    wait();
}

/// Cores that the machine has: one redistributor each.
pub fn core_count(limit: usize) -> usize {
    let last = |core: &usize| read(GICR + core * GICR_STRIDE + GICR_TYPER) & TYPER_LAST != 0;
    (0..limit).find(last).map_or(limit, |core| core + 1)
}

/// Sets this core's redistributor and interface up, as the secure world.
pub fn set_up_core(core: usize) {
    let frame = GICR + core * GICR_STRIDE;
    write(frame + GICR_WAKER, read(frame + GICR_WAKER) & !WAKER_SLEEP);
    while read(frame + GICR_WAKER) & WAKER_ASLEEP != 0 {}
    write(frame + GICR_IGROUPR0, !SECURE_SGIS);
    write(frame + GICR_IGRPMODR0, SECURE_SGIS);
    write(frame + GICR_ISENABLER0, SECURE_SGIS);
    msr!("s3_6_c12_c12_5", 0xf); // ICC_SRE_EL3: system registers, at lower levels too
    isb();
    msr!("s3_0_c4_c6_0", 0xff); // ICC_PMR_EL1: every priority
    msr!("s3_6_c12_c12_7", ENABLE_SECURE); // ICC_IGRPEN1_EL3; the normal world enables its own
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
    loop {
        let id = mrs!("s3_0_c12_c12_0"); // ICC_IAR1_EL1
        if id >= SPECIAL {
            return;
        }
        msr!("s3_0_c12_c12_1", id); // ICC_EOIR1_EL1
        isb();
    }
}
