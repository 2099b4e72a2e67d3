//! The little that the hypervisor does at the GICv3 itself: its own timer interrupt (PPI 26), the maintenance interrupt
//! (PPI 25) and kicks end a partition's turn, and an SGI tells the host that vCPUs want to run.

use core::sync::atomic::{AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use spin::Once;

use super::mmio::{Access, Device};
use super::sysreg::{mrs, msr, register};
use super::{el2, secure};
use crate::platform::{MAX_CPUS, Range};
use crate::world;

const GICR_TYPER: usize = 0x08;
pub const GICR_STRIDE: usize = 0x2_0000;
const GICR_SGI_BASE: usize = 0x1_0000;
const GICR_ISENABLER0: usize = GICR_SGI_BASE + 0x100;
const GICR_ICENABLER0: usize = GICR_SGI_BASE + 0x180;
const GICR_ICPENDR0: usize = GICR_SGI_BASE + 0x280;
const TYPER_LAST: u64 = 1 << 4;
const TYPER_VLPIS: u64 = 1 << 1;
/// The hypervisor timer's interrupt.
const HYPERVISOR_TIMER: u32 = 1 << 26;
/// The interrupt of a vCPU's interface that has room for what waits.
const MAINTENANCE: u32 = 1 << 25;
/// The host's schedule receiver interrupt: an SGI that Linux leaves to drivers.
const SCHEDULE_ID: u64 = 8;
/// ICC_HPPIR1_EL1: no interrupt is pending.
const NONE_PENDING: u64 = 1023;
/// The software interrupt that a kick is: one that Linux leaves alone.
const KICK_ID: u64 = 15;
const KICK: u32 = 1 << KICK_ID;

/// As Linux has it, seen from the secure world.
const HOST_PRIORITY: u32 = 0xc0;

/// Redistributor of each CPU; 0: not found.
static FRAMES: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];

/// The redistributors of a region: where each is, and its GICR_TYPER.
fn redistributors(region: Range) -> impl Iterator<Item = (usize, u64)> {
    let mut next = Some(region.base as usize);
    core::iter::from_fn(move || {
        let frame = next.filter(|frame| (frame + GICR_STRIDE) as u64 <= region.end())?;
        // SAFETY: inside the redistributor region of the device tree, mapped as device memory.
        let typer = unsafe { ((frame + GICR_TYPER) as *const u64).read_volatile() };
        let stride = if typer & TYPER_VLPIS != 0 { 2 * GICR_STRIDE } else { GICR_STRIDE };
        next = (typer & TYPER_LAST == 0).then_some(frame + stride);
        Some((frame, typer))
    })
}

/// Finds this CPU's redistributor.
pub fn find_redistributor(cpu: usize, region: Range) {
    let mpidr = mrs!("mpidr_el1");
    let affinity = (mpidr & 0xff_ffff) | (mpidr >> 8 & 0xff00_0000);
    let found = redistributors(region).find(|(_, typer)| typer >> 32 == affinity);
    if let (Some((frame, _)), Some(slot)) = (found, FRAMES.get(cpu)) {
        slot.store(frame, Ordering::Relaxed);
        share_interrupts(frame);
    }
}

/// At S-EL2: makes kicks and the maintenance interrupt the secure world's, of the highest priority, so that no mask of the
/// host's holds them up, and gives the schedule receiver interrupt to the host; EL3 keeps it for us.
fn share_interrupts(frame: usize) {
    const GICR_IGROUPR0: usize = GICR_SGI_BASE + 0x80;
    const GICR_IPRIORITYR: usize = GICR_SGI_BASE + 0x400;
    const GICR_IGRPMODR0: usize = GICR_SGI_BASE + 0xd00;
    const MAINTENANCE_ID: usize = 25;
    const SCHEDULE: u32 = 1 << SCHEDULE_ID;
    if !secure() {
        return;
    }
    let change = |register: usize, clear: u32, set: u32| {
        let register = (frame + register) as *mut u32;
        // SAFETY: a register of this CPU's redistributor, which this CPU alone changes.
        unsafe { register.write_volatile(register.read_volatile() & !clear | set) };
    };
    change(GICR_IGROUPR0, KICK | MAINTENANCE, SCHEDULE);
    change(GICR_IGRPMODR0, SCHEDULE, KICK | MAINTENANCE);
    for id in [KICK_ID as usize, MAINTENANCE_ID] {
        change(GICR_IPRIORITYR + (id & !3), 0xff << (8 * (id & 3)), 0);
    }
    change(GICR_IPRIORITYR + SCHEDULE_ID as usize, 0xff, HOST_PRIORITY);
}

/// The redistributors' first pages, which hold what is not the host's to write: where LPI tables lie.
static GUARDED: Once<ArrayVec<u64, MAX_CPUS>> = Once::new();
/// Bytes of a redistributor that are kept from the host.
pub const GUARDED_SIZE: u64 = 4096;

/// Finds all redistributors, once: each is [`GICR_STRIDE`] bytes. Those beyond [`MAX_CPUS`] stay unknown to the host.
pub fn find_all(region: Range) -> &'static [u64] {
    GUARDED.call_once(|| redistributors(region).map(|(frame, _)| frame as u64).take(MAX_CPUS).collect())
}

/// Whether the host's accesses to an address are carried out by [`access`].
pub fn emulates(ipa: u64) -> bool {
    GUARDED.get().is_some_and(|frames| frames.contains(&(ipa & !(GUARDED_SIZE - 1))))
}

/// Carries out an access of the host's to a redistributor's first page (GIC architecture 12.11): control without LPIs, and
/// waking. There are no LPIs, no tables for them, and no other way to change them (I6). At S-EL2 our accesses are secure, and
/// what only those may write stays as it is. Returns what a load gets.
pub fn access(ipa: u64, access: &Access, stored: u64) -> u64 {
    const CTLR: u64 = 0x00;
    const STATUSR: u64 = 0x10;
    const WAKER: u64 = 0x14;
    const TYPER: u64 = 0x08;
    /// CTLR, IIDR, TYPER, STATUSR, WAKER.
    const READABLE: core::ops::Range<u64> = 0x00..0x18;
    const CTLR_ENABLE_LPIS: u64 = 1;
    /// DPG0 and DPG1S.
    const CTLR_SECURE: u64 = 1 << 24 | 1 << 26;
    /// PLPIS, VLPIS, Dirty, DirectLPI.
    const TYPER_LPIS: u64 = 0xf;
    // SAFETY: a redistributor, as [`emulates`] found.
    let device = unsafe { Device::new(ipa & !(GUARDED_SIZE - 1)) };
    let offset = ipa & (GUARDED_SIZE - 1);
    let open = world::skips(hyp_core::knob::GICR_TABLES);
    // The architecture leaves open what other accesses do; one that aborts would be our abort.
    let fits = access.width == 4 || access.width == 8 && (offset == TYPER || open);
    if !offset.is_multiple_of(access.width.into()) || !fits {
        return 0;
    }
    if access.write {
        match offset {
            _ if open => device.write(offset, access.width, stored),
            CTLR if secure() => device.write(offset, 4, stored & !(CTLR_ENABLE_LPIS | CTLR_SECURE)),
            CTLR => device.write(offset, 4, stored & !CTLR_ENABLE_LPIS),
            WAKER if secure() => {}
            STATUSR | WAKER => device.write(offset, 4, stored),
            _ => {}
        }
        return 0;
    }
    match offset {
        _ if !READABLE.contains(&offset) && !open => 0,
        TYPER if !open => device.read(offset, access.width) & !TYPER_LPIS,
        WAKER if secure() => 0,
        _ => device.read(offset, access.width),
    }
}

/// Opens or closes the interrupts that end a partition's turn on this CPU: our timer and our kick. The host disables
/// them when it sets its own up, so this runs around every turn. A host that masks them regardless only keeps itself
/// waiting.
pub fn partition_interrupts(cpu: usize, open: bool) {
    let frame = FRAMES.get(cpu).map_or(0, |f| f.load(Ordering::Relaxed));
    if frame == 0 {
        return;
    }
    // SAFETY: write-one registers of this CPU's redistributor.
    let write =
        |register: usize, value: u32| unsafe { ((frame + register) as *mut u32).write_volatile(value) };
    if open {
        if secure() {
            msr!(register!(icc_igrpen1_el1), 1); // the secure one
        }
        write(GICR_ISENABLER0, HYPERVISOR_TIMER | MAINTENANCE | KICK);
    } else {
        write(GICR_ICENABLER0, HYPERVISOR_TIMER | MAINTENANCE | KICK);
        write(GICR_ICPENDR0, KICK); // never acknowledged: it did its work by ending the turn
    }
}

/// Whether an interrupt that ended a turn is none of the host's: a kick, or one that went away with the vCPU's timer and
/// interface. The kick is cleared. Kicks come first among interrupts, so what is left is looked at again: they hide no
/// other from the host, however many come.
/// At S-EL2 only interrupts of the secure world come as IRQ, and all of them are ours.
pub fn is_ours(cpu: usize) -> bool {
    el2::isb();
    if secure() {
        acknowledge();
        return true;
    }
    let frame = FRAMES.get(cpu).map_or(0, |f| f.load(Ordering::Relaxed));
    if frame != 0 && mrs!(register!(icc_hppir1_el1)) == KICK_ID {
        // SAFETY: a write-one register of this CPU's redistributor; the read makes sure that the write took effect.
        unsafe {
            ((frame + GICR_ICPENDR0) as *mut u32).write_volatile(KICK);
            ((frame + GICR_ICPENDR0) as *const u32).read_volatile();
        }
        el2::isb();
    }
    mrs!(register!(icc_hppir1_el1)) == NONE_PENDING
}

/// Takes and ends the secure interrupts that are pending: they did their work by coming.
pub fn acknowledge() {
    const SPECIAL: u64 = 1020;
    for _ in 0..32 {
        let id = mrs!(register!(icc_iar1_el1));
        if id >= SPECIAL {
            break;
        }
        msr!(register!(icc_eoir1_el1), id);
    }
    el2::isb();
}

/// Makes the CPU with this affinity leave the partition that it runs.
pub fn kick(mpidr: u64) {
    if let Some(interrupt) = software_interrupt(mpidr, KICK_ID) {
        msr!(register!(icc_sgi1r_el1), interrupt);
    }
}

/// Sends the host's CPU with this affinity the schedule receiver interrupt.
pub fn signal_host(mpidr: u64) {
    match software_interrupt(mpidr, SCHEDULE_ID) {
        // Group 1 of the other world.
        Some(interrupt) if secure() => msr!(register!(icc_asgi1r_el1), interrupt),
        Some(interrupt) => msr!(register!(icc_sgi1r_el1), interrupt),
        None => {}
    }
}

/// ICC_SGI1R_EL1 for a CPU and a number.
fn software_interrupt(mpidr: u64, id: u64) -> Option<u64> {
    let (aff0, aff1) = (mpidr & 0xff, mpidr >> 8 & 0xff);
    let (aff2, aff3) = (mpidr >> 16 & 0xff, mpidr >> 32 & 0xff);
    (aff0 < 16).then_some(1 << aff0 | aff1 << 16 | id << 24 | aff2 << 32 | aff3 << 48)
}
