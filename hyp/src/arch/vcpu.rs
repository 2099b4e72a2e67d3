//! Running a partition's vCPU on this CPU, on behalf of the host's thread that called FFA_RUN.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};
use hyp_abi::service::{MAX_PARTITIONS, MAX_VCPUS};
use hyp_core::{Exit, knob};
use stage2::{HOST_VMID, Slot};

use super::context::{El1, HostSimd, HostTimer, Simd};
#[cfg(feature = "fault-knobs")]
use super::features::Features;
use super::interrupts::Interrupts;
use super::sysreg::{mrs, msr, register};
use super::{el2, gic, idregs, mmio};
use crate::platform::MAX_CPUS;
use crate::{machine, world};

/// General registers in the layout of vectors.s.
#[derive(Clone, Copy)]
#[repr(C)]
struct Registers {
    x: [u64; 31],
    elr: u64,
    spsr: u64,
}

impl Registers {
    /// Goes on behind a data abort on a device that is not there; false if its syndrome does not say what it was.
    fn complete_without_device(&mut self, esr: u64) -> bool {
        let Some(access) = mmio::Access::decode(esr) else { return false };
        access.complete(&mut self.x, u64::MAX);
        self.elr = self.elr.wrapping_add(4);
        true
    }
}

/// Fault status class of a permission fault (lowest two bits: level).
pub const FSC_PERMISSION: u64 = 0x0c;
/// Number of the IRQ vector in vectors.s.
const VECTOR_IRQ: u64 = 1;
/// EL1h with all exceptions masked.
const SPSR_EL1H: u64 = 0x3c5;

/// One vCPU's state while it does not run.
#[derive(Clone, Copy)]
struct Vcpu {
    registers: Registers,
    el1: El1,
    simd: Simd,
    interrupts: Interrupts,
}

impl Vcpu {
    const RESET: Self = Self {
        registers: Registers { x: [0; 31], elr: 0, spsr: SPSR_EL1H },
        el1: El1::RESET,
        simd: Simd::RESET,
        interrupts: Interrupts::RESET,
    };
}

struct Shared<T>(UnsafeCell<T>);

// SAFETY: a vCPU's context is touched by the CPU that policy made its runner, or under the global lock while it runs
// nowhere; a CPU's host area by that CPU alone.
unsafe impl<T> Sync for Shared<T> {}

static VCPUS: [[Shared<Vcpu>; MAX_VCPUS]; MAX_PARTITIONS] =
    [const { [const { Shared(UnsafeCell::new(Vcpu::RESET)) }; MAX_VCPUS] }; MAX_PARTITIONS];
static HOST_SIMD: [Shared<HostSimd>; MAX_CPUS] =
    [const { Shared(UnsafeCell::new(HostSimd::RESET)) }; MAX_CPUS];

/// Which vCPU of each partition ran last on each CPU.
static LAST: [[AtomicUsize; MAX_PARTITIONS]; MAX_CPUS] =
    [const { [const { AtomicUsize::new(usize::MAX) }; MAX_PARTITIONS] }; MAX_CPUS];

fn context(slot: Slot, vcpu: usize) -> Option<*mut Vcpu> {
    Some(VCPUS.get(slot.index())?.get(vcpu)?.0.get())
}

/// Makes a vCPU's state that of a fresh one that starts at `entry` with x0 = `argument`. The global lock is held.
pub fn reset(slot: Slot, vcpu: usize, entry: u64, argument: u64) {
    if let Some(context) = context(slot, vcpu) {
        // SAFETY: the global lock is held and the vCPU runs nowhere.
        unsafe {
            *context = Vcpu::RESET;
            (*context).registers.elr = entry;
            (*context).registers.x[0] = argument;
        }
    }
}

/// When the timer of a vCPU that came out fires. The global lock is held.
pub fn timer_deadline(slot: Slot, vcpu: usize) -> Option<u64> {
    // SAFETY: the global lock is held, and the vCPU runs nowhere: it just came out.
    context(slot, vcpu).and_then(|context| unsafe { (*context).interrupts.deadline() })
}

/// Sets x0-x17 of a vCPU. The global lock is held.
pub fn set_registers(slot: Slot, vcpu: usize, registers: &[u64; 18]) {
    if let Some(context) = context(slot, vcpu) {
        // SAFETY: the global lock is held and the vCPU runs nowhere.
        let context = unsafe { &mut *context };
        context.registers.x[..18].copy_from_slice(registers);
    }
}

/// Zeroes every context: before a reset and after a panic, when nothing runs any more.
pub fn scrub_contexts() {
    for context in VCPUS.iter().flatten() {
        // SAFETY: all partitions are cut off, so no CPU uses a context.
        unsafe { *context.0.get() = Vcpu::RESET };
    }
}

unsafe extern "C" {
    fn enter_guest(registers: *mut Registers) -> u64;
    static host_vectors: u8;
    static guest_vectors: u8;
}

/// Fault knobs: takes back what the switch of EL1 state just did.
#[cfg(feature = "fault-knobs")]
fn weaken(features: &Features, host: &El1) {
    if world::skips(knob::PAUTH_SWITCH) {
        host.restore_keys(features);
    }
    if world::skips(knob::DEBUG_OFF) {
        host.restore_debug();
    }
    el2::weaken_hidden(features, world::skips(knob::HIDDEN_FEATURES));
}

/// Fault knob: enters a vCPU, or, instead of its first instruction, takes the SError that emulation never has.
///
/// # Safety
/// As for `enter_guest`.
#[cfg(feature = "fault-knobs")]
unsafe fn enter(registers: *mut Registers) -> u64 {
    unsafe extern "C" {
        fn enter_guest_with_serror(registers: *mut Registers) -> u64;
    }
    if world::skips(knob::SERROR) {
        // SAFETY: the caller's promise.
        return unsafe { enter_guest_with_serror(registers) };
    }
    // SAFETY: the caller's promise.
    unsafe { enter_guest(registers) }
}

/// What one turn of a vCPU ended with.
fn decode(vector: u64, vcpu: &mut Vcpu) -> Option<Exit> {
    match vector {
        0 => {}
        VECTOR_IRQ | 2 => return Some(Exit::Interrupt),
        3 => return Some(Exit::SError),
        _ => return Some(Exit::Undefined { class: 0 }), // AArch32 cannot be: EL1 and EL0 run AArch64 (ID registers say so)
    }
    let esr = mrs!("esr_el2");
    let class = esr >> 26 & 0x3f;
    Some(match class {
        0x17 => {
            vcpu.registers.elr = vcpu.registers.elr.wrapping_add(4);
            Exit::Call
        }
        0x01 => {
            vcpu.registers.elr = vcpu.registers.elr.wrapping_add(4);
            Exit::WaitForInterrupt { deadline: None } // the deadline is known once the timer is saved
        }
        0x18 => {
            // A read of an ID register is answered here; everything else trapped is not the partition's to use.
            let (op0, op1, crn) = (esr >> 20 & 3, esr >> 14 & 7, esr >> 10 & 15);
            let (crm, op2, rt, read) = (esr >> 1 & 15, esr >> 17 & 7, esr >> 5 & 31, esr & 1);
            if (op0, op1, crn, crm, op2, read) == (3, 0, 12, 11, 5, 0) {
                // ICC_SGI1R_EL1; x31 is the zero register.
                vcpu.registers.elr = vcpu.registers.elr.wrapping_add(4);
                return Some(Exit::Sgi { value: vcpu.registers.x.get(rt as usize).copied().unwrap_or(0) });
            }
            if (op0, op1, crn, read) != (3, 0, 0, 1) || !(1..=7).contains(&crm) {
                return Some(Exit::Undefined { class });
            }
            if let Some(register) = vcpu.registers.x.get_mut(rt as usize) {
                *register = idregs::read(crm, op2, idregs::Reader::Partition);
            }
            vcpu.registers.elr = vcpu.registers.elr.wrapping_add(4);
            return None;
        }
        0x20 | 0x24 => Exit::Abort {
            // Not valid for a permission fault, unless a stage-1 walk (ISS.S1PTW) met it; then no page is named.
            ipa: match esr & 0x3c == FSC_PERMISSION && esr & 1 << 7 == 0 {
                true => u64::MAX,
                false => mrs!("hpfar_el2") >> 4 << 12 | mrs!("far_el2") & 0xfff,
            },
            write: class == 0x24 && esr & 1 << 6 != 0,
            fetch: class == 0x20,
        },
        _ => Exit::Undefined { class },
    })
}

/// Runs a vCPU until the host is wanted. `host` are the x0-x17 that the host gets back.
pub fn run(cpu: usize, slot: Slot, vcpu: usize, host: &mut [u64; 18]) {
    let features = machine::features();
    let (Some(context), Some(host_simd)) = (context(slot, vcpu), HOST_SIMD.get(cpu)) else { return };
    // SAFETY: policy marked this vCPU as running on this CPU alone; the host area is this CPU's.
    let (guest, host_simd) = unsafe { (&mut *context, &mut *host_simd.0.get()) };

    // Where the host goes on: exceptions of the partition overwrite both.
    let host_return = (mrs!("elr_el2"), mrs!("spsr_el2"));
    let host_el1 = El1::save(features);
    let simd_switched = !world::skips(knob::SIMD_SWITCH);
    host_simd.save(features);
    let host_timer = HostTimer::save(features, !world::skips(knob::COUNTERS_STOP));
    gic::partition_interrupts(cpu, true);
    // EL1 reaches the virtual interface only, and not this; but QEMU (10.0) has no virtual interface at S-EL1.
    let interrupt_mask = mrs!(register!(icc_pmr_el1));
    let last = LAST.get(cpu).and_then(|partitions| partitions.get(slot.index()));
    let mut forget = last.is_none_or(|last| last.swap(vcpu, Ordering::Relaxed) != vcpu);
    let mut taken = world::take_pending(slot, vcpu);

    loop {
        el2::enter_partition(world::partition_root(slot), slot.vmid(), vcpu, forget);
        forget = false;
        #[cfg(feature = "fault-knobs")]
        el2::weaken(
            world::skips(knob::REGISTER_TRAPS),
            world::skips(knob::INTERRUPT_ROUTING),
            world::skips(knob::NORMAL_SPACE),
            world::skips(knob::PRIVATE_MEMORY),
        );
        guest.el1.restore(features);
        #[cfg(feature = "fault-knobs")]
        weaken(features, &host_el1);
        if simd_switched {
            guest.simd.restore();
        }
        guest.interrupts.restore(taken);
        msr!("vbar_el2", &raw const guest_vectors as u64);
        el2::isb();
        // What needs no policy (ID registers) goes on at once.
        let (vector, mut exit) = loop {
            // SAFETY: the context is exclusively ours; vectors are the partition's.
            #[cfg(not(feature = "fault-knobs"))]
            let vector = unsafe { enter_guest(&raw mut guest.registers) };
            // SAFETY: as above.
            #[cfg(feature = "fault-knobs")]
            let vector = unsafe { enter(&raw mut guest.registers) };
            if let Some(exit) = decode(vector, guest) {
                break (vector, exit);
            }
        };
        let esr = mrs!("esr_el2");
        // Policy may let another CPU enter this vCPU: before it is asked, nothing of it is left here.
        guest.interrupts.save();
        if simd_switched {
            guest.simd.save();
        }
        guest.el1 = El1::save(features);
        msr!("vbar_el2", &raw const host_vectors as u64);
        el2::leave_partition(world::host_root(), HOST_VMID);
        match &mut exit {
            // It does not wait for what is there.
            Exit::WaitForInterrupt { .. } if guest.interrupts.wakes() => {
                taken = 0;
                continue;
            }
            Exit::WaitForInterrupt { deadline } => *deadline = guest.interrupts.deadline(),
            Exit::Interrupt if vector == VECTOR_IRQ && gic::is_ours(cpu) => exit = Exit::Kick,
            _ => {}
        }
        let unseen = guest.interrupts.unseen();
        let mut registers = [0; 18];
        registers.copy_from_slice(&guest.registers.x[..18]);
        // The context belongs to policy during the call, so what changes is written back through its pointer after it,
        // and only if the vCPU is still ours.
        let write_back = |registers: &[u64; 18], no_device: bool| {
            if no_device {
                return guest.registers.complete_without_device(esr);
            }
            guest.registers.x[..18].copy_from_slice(registers);
            true
        };
        let next = world::vcpu_exit(cpu, slot, vcpu, exit, unseen, &mut registers, host, write_back);
        // They hold what the partition computed, and this stack is not scrubbed with its pages.
        registers.fill(0);
        core::hint::black_box(&mut registers);
        match next {
            Some(interrupts) => taken = interrupts,
            None => break,
        }
    }

    gic::partition_interrupts(cpu, false);
    msr!(register!(icc_pmr_el1), interrupt_mask);
    host_el1.restore(features);
    if simd_switched {
        host_simd.restore(features);
    }
    host_timer.restore(features);
    msr!("elr_el2", host_return.0);
    msr!("spsr_el2", host_return.1);
    el2::isb();
}
