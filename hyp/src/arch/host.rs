//! Exceptions that the host takes to EL2.

use core::arch::asm;
use hyp_core::{HostAbort, Outcome};
use smccc::smc64;

use super::mmio::Access;
use super::sysreg::{mrs, msr};
use super::vcpu::FSC_PERMISSION;
use super::{idregs, vcpu};
use crate::world;

/// x0-x30 of the host, on the EL2 stack.
#[repr(C)]
pub struct Frame {
    x: [u64; 31],
    pad: u64,
}

// Exception classes (Arm ARM D24.2.40).
const EC_HVC: u64 = 0x16;
const EC_SMC: u64 = 0x17;
const EC_SYSTEM_REGISTER: u64 = 0x18;
const EC_INSTRUCTION_ABORT: u64 = 0x20;
const EC_DATA_ABORT: u64 = 0x24;
const PSCI_CPU_OFF: u32 = 0x8400_0002;
/// Fault status of a synchronous external abort.
const FSC_EXTERNAL: u64 = 0x10;
const ISS_IL: u64 = 1 << 25;
const ISS_WNR: u64 = 1 << 6;
const ISS_S1PTW: u64 = 1 << 7;
/// SPSR_EL2.SS: software step, active-not-pending.
const SPSR_SS: u64 = 1 << 21;
/// Address bit that tells the kernel's half from the processes'.
const TTBR1_HALF: u64 = 1 << 55;

/// Entry from vectors.s. `vector`: 0 synchronous, 1 IRQ, 2 FIQ, 3 SError, +4 from AArch32.
#[unsafe(no_mangle)]
extern "C" fn host_exception(frame: &mut Frame, vector: u64) {
    world::park_if_panicking();
    if vector & 3 != 0 {
        return; // interrupts and errors go to the host directly; one that was routed here in between repeats there
    }
    let esr = mrs!("esr_el2");
    match esr >> 26 & 0x3f {
        EC_SMC => {
            skip();
            smc(frame, esr);
        }
        EC_HVC => world::lock().host_refuse(calls(frame)),
        EC_SYSTEM_REGISTER => system_register(frame, esr),
        class @ (EC_INSTRUCTION_ABORT | EC_DATA_ABORT) => abort(frame, esr, class),
        _ => {
            world::count_host_exit();
            inject(ISS_IL, 0); // EC 0: undefined
        }
    }
}

/// Returns past the trapped instruction.
fn skip() {
    msr!("elr_el2", mrs!("elr_el2").wrapping_add(4));
    // A kernel that steps itself gets its step exception behind the instruction, as if it had run.
    msr!("spsr_el2", mrs!("spsr_el2") & !SPSR_SS);
}

fn calls(frame: &mut Frame) -> &mut [u64; 18] {
    // A prefix of the 31 registers.
    match frame.x.first_chunk_mut() {
        Some(registers) => registers,
        None => unreachable!(),
    }
}

fn smc(frame: &mut Frame, esr: u64) {
    #[cfg(feature = "fault-knobs")]
    if world::skips(hyp_core::knob::SERROR) {
        host_exception(frame, 3); // as if it had come first
    }
    let cpu = mrs!("tpidr_el2") as usize;
    let registers = calls(frame);
    if esr & 0xffff != 0 {
        return world::lock().host_refuse(registers);
    }
    let outcome = world::host_call(cpu, registers);
    #[cfg(feature = "fault-knobs")]
    super::el2::weaken_hidden(world::features(), world::skips(hyp_core::knob::HIDDEN_FEATURES));
    match outcome {
        Outcome::Return => {}
        Outcome::Enter { slot, vcpu } => vcpu::run(cpu, slot, vcpu, registers),
        Outcome::Firmware => {
            // The CPU may be gone after the call.
            let turns_off = registers[0] as u32 == PSCI_CPU_OFF;
            world::note_online(cpu, !turns_off);
            let result = firmware(registers);
            world::note_online(cpu, true);
            registers[..4].copy_from_slice(&result);
        }
        Outcome::CpuOn { target, entry, context } => {
            registers[0] = world::cpu_on(target, entry, context);
        }
        Outcome::Shutdown => world::shut_down(registers),
    }
}

/// Forwards a call of four registers to EL3.
pub fn firmware(registers: &[u64; 18]) -> [u64; 4] {
    let mut arguments = [0; 17];
    arguments[..3].copy_from_slice(&registers[1..4]);
    let result = smc64(registers[0] as u32, arguments);
    [result[0], result[1], result[2], result[3]]
}

/// A trapped system register access: ID registers are read under the allow-list, anything else is undefined.
fn system_register(frame: &mut Frame, esr: u64) {
    world::count_host_exit();
    let (op0, op1, crn) = (esr >> 20 & 3, esr >> 14 & 7, esr >> 10 & 15);
    let (crm, op2, rt, read) = (esr >> 1 & 15, esr >> 17 & 7, esr >> 5 & 31, esr & 1);
    if (op0, op1, crn, read) == (3, 0, 0, 1) && (1..=7).contains(&crm) {
        if let Some(register) = frame.x.get_mut(rt as usize) {
            *register = idregs::read(crm, op2, idregs::Reader::Host);
        }
        return skip();
    }
    inject(ISS_IL, 0);
}

/// A stage-2 abort: carried out where the hypervisor stands between host and device, repeated when the page is the host's by now, else answered with an abort at EL1, which ends a
/// process by SIGBUS and a kernel thread by an oops, and never livelocks (DC ZVA and other accesses without syndrome
/// included).
fn abort(frame: &mut Frame, esr: u64, class: u64) {
    let far = mrs!("far_el2");
    let fetch = class == EC_INSTRUCTION_ABORT;
    // HPFAR_EL2 is not valid for a permission fault; the host has none but fetches from devices.
    let permission = esr & 0x3c == FSC_PERMISSION;
    let ipa = if permission { u64::MAX } else { mrs!("hpfar_el2") >> 4 << 12 | far & 0xfff };
    let access = Access::decode(esr).filter(|_| !fetch);
    if let Some(access) = access
        && world::host_access(ipa, &access, &mut frame.x)
    {
        return skip();
    }
    match (world::host_abort(ipa, fetch), access) {
        (HostAbort::Retry, _) => return,
        (HostAbort::NoDevice, Some(access)) => {
            access.complete(&mut frame.x, u64::MAX);
            return skip();
        }
        (HostAbort::NoDevice | HostAbort::Inject, _) => {}
    }
    let from_el0 = mrs!("spsr_el2") & 0xf == 0;
    let class = if from_el0 { class } else { class + 1 };
    let write = if fetch { 0 } else { esr & ISS_WNR };
    // The kernel reads past the end of what it may read in a few places that are prepared for a fault
    // (load_unaligned_zeropad), but not for an external abort: on its own half of the addresses it gets a permission
    // fault, which ends an unprepared access just the same. On user addresses that would repeat for ever.
    let prepared = !from_el0 && !fetch && far & TTBR1_HALF != 0 && esr & ISS_S1PTW == 0;
    let status = if prepared { FSC_PERMISSION | 3 } else { FSC_EXTERNAL };
    inject(class << 26 | ISS_IL | write | status, far);
}

/// Makes the host take a synchronous exception at EL1 (Arm ARM, AArch64.TakeException).
fn inject(esr: u64, far: u64) {
    let spsr = mrs!("spsr_el2");
    let offset = match spsr & 0x1f {
        0x05 => 0x200, // EL1h
        0x04 => 0x000, // EL1t
        0x00 => 0x400, // EL0, AArch64
        _ => 0x600,    // EL0, AArch32
    };
    msr!("esr_el1", esr);
    msr!("far_el1", far);
    msr!("elr_el1", mrs!("elr_el2"));
    msr!("spsr_el1", spsr);
    msr!("elr_el2", mrs!("vbar_el1").wrapping_add(offset));
    let sctlr = mrs!("sctlr_el1");
    const PAN: u64 = 1 << 22;
    const TCO: u64 = 1 << 25;
    const DIT: u64 = 1 << 24;
    let mut state = 0x3c5 | spsr & (PAN | DIT) | TCO;
    if sctlr & 1 << 23 == 0 {
        state |= PAN; // SPAN clear: PAN is set on entry
    }
    if sctlr & 1 << 44 != 0 {
        state |= 1 << 12; // DSSBS
    }
    msr!("spsr_el2", state);
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack)) };
}

/// An exception of the hypervisor itself: a bug of ours.
#[unsafe(no_mangle)]
extern "C" fn own_exception(vector: u64) -> ! {
    panic!(
        "exception {vector} at EL2: esr {:#x} elr {:#x} far {:#x}",
        mrs!("esr_el2"),
        mrs!("elr_el2"),
        mrs!("far_el2")
    );
}
