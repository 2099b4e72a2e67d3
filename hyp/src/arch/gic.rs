//! The little that the hypervisor does at the GICv3 itself: its own timer interrupt (PPI 26), the maintenance interrupt
//! (PPI 25) and kicks end a partition's turn, and an SGI tells the host that vCPUs want to run.

use core::sync::atomic::{AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use spin::Once;

use super::el2;
use super::mmio::{Access, Device};
use super::sysreg::{mrs, msr, register};
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

/// Redistributor of each CPU; 0: not found.
static FRAMES: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];

/// Finds this CPU's redistributor.
pub fn find_redistributor(cpu: usize, region: Range) {
    let mpidr = mrs!("mpidr_el1");
    let affinity = (mpidr & 0xff_ffff) | (mpidr >> 8 & 0xff00_0000);
    let mut frame = region.base as usize;
    while (frame + GICR_STRIDE) as u64 <= region.end() {
        // SAFETY: inside the redistributor region of the device tree, mapped as device memory.
        let typer = unsafe { ((frame + GICR_TYPER) as *const u64).read_volatile() };
        if typer >> 32 == affinity {
            if let Some(slot) = FRAMES.get(cpu) {
                slot.store(frame, Ordering::Relaxed);
            }
            return;
        }
        if typer & TYPER_LAST != 0 {
            return;
        }
        frame += if typer & TYPER_VLPIS != 0 { 2 * GICR_STRIDE } else { GICR_STRIDE };
    }
}

/// The redistributors' first pages, which hold what is not the host's to write: where LPI tables lie.
static GUARDED: Once<ArrayVec<u64, MAX_CPUS>> = Once::new();
/// Bytes of a redistributor that are kept from the host.
pub const GUARDED_SIZE: u64 = 4096;

/// Finds all redistributors, once: each is [`GICR_STRIDE`] bytes. Those beyond [`MAX_CPUS`] stay unknown to the host.
pub fn find_all(region: Range) -> &'static [u64] {
    GUARDED.call_once(|| {
        let mut frames = ArrayVec::new();
        let mut frame = region.base;
        while frame + GICR_STRIDE as u64 <= region.end() && frames.try_push(frame).is_ok() {
            // SAFETY: inside the redistributor region of the device tree, mapped as device memory.
            let typer = unsafe { ((frame as usize + GICR_TYPER) as *const u64).read_volatile() };
            if typer & TYPER_LAST != 0 {
                break;
            }
            frame += (if typer & TYPER_VLPIS != 0 { 2 * GICR_STRIDE } else { GICR_STRIDE }) as u64;
        }
        frames
    })
}

/// Whether the host's accesses to an address are carried out by [`access`].
pub fn emulates(ipa: u64) -> bool {
    GUARDED.get().is_some_and(|frames| frames.contains(&(ipa & !(GUARDED_SIZE - 1))))
}

/// Carries out an access of the host's to a redistributor's first page (GIC architecture 12.11): control without LPIs, and
/// waking. There are no LPIs, no tables for them, and no other way to change them (I6).
pub fn access(ipa: u64, access: &Access, registers: &mut [u64; 31]) {
    const CTLR: u64 = 0x00;
    const STATUSR: u64 = 0x10;
    const WAKER: u64 = 0x14;
    const TYPER: u64 = 0x08;
    /// CTLR, IIDR, TYPER, STATUSR, WAKER.
    const READABLE: core::ops::Range<u64> = 0x00..0x18;
    const CTLR_ENABLE_LPIS: u64 = 1;
    /// PLPIS, VLPIS, Dirty, DirectLPI.
    const TYPER_LPIS: u64 = 0xf;
    // SAFETY: a redistributor, as [`emulates`] found.
    let device = unsafe { Device::new(ipa & !(GUARDED_SIZE - 1)) };
    let offset = ipa & (GUARDED_SIZE - 1);
    let open = world::skips(hyp_core::knob::GICR_TABLES);
    // The architecture leaves open what other accesses do; one that aborts would be our abort.
    let fits = access.width == 4 || access.width == 8 && (offset == TYPER || open);
    if !offset.is_multiple_of(access.width.into()) || !fits {
        return access.complete(registers, 0);
    }
    if access.write {
        let value = access.value(registers);
        match offset {
            _ if open => device.write(offset, access.width, value),
            CTLR => device.write(offset, 4, value & !CTLR_ENABLE_LPIS),
            STATUSR | WAKER => device.write(offset, 4, value),
            _ => {}
        }
        return;
    }
    let value = match offset {
        _ if !READABLE.contains(&offset) && !open => 0,
        TYPER if !open => device.read(offset, access.width) & !TYPER_LPIS,
        _ => device.read(offset, access.width),
    };
    access.complete(registers, value);
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
        write(GICR_ISENABLER0, HYPERVISOR_TIMER | MAINTENANCE | KICK);
    } else {
        write(GICR_ICENABLER0, HYPERVISOR_TIMER | MAINTENANCE | KICK);
        write(GICR_ICPENDR0, KICK); // never acknowledged: it did its work by ending the turn
    }
}

/// Whether an interrupt that ended a turn is none of the host's: a kick, or one that went away with the vCPU's timer and
/// interface. The kick is cleared. Kicks come first among interrupts, so what is left is looked at again: they hide no
/// other from the host, however many come.
pub fn is_ours(cpu: usize) -> bool {
    el2::isb();
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

/// Makes the CPU with this affinity leave the partition that it runs.
pub fn kick(mpidr: u64) {
    send(mpidr, KICK_ID);
}

/// Sends the host's CPU with this affinity the schedule receiver interrupt.
pub fn signal_host(mpidr: u64) {
    send(mpidr, SCHEDULE_ID);
}

fn send(mpidr: u64, id: u64) {
    let (aff0, aff1) = (mpidr & 0xff, mpidr >> 8 & 0xff);
    let (aff2, aff3) = (mpidr >> 16 & 0xff, mpidr >> 32 & 0xff);
    if aff0 < 16 {
        msr!("s3_0_c12_c11_5", 1 << aff0 | aff1 << 16 | id << 24 | aff2 << 32 | aff3 << 48); // ICC_SGI1R_EL1
    }
}
