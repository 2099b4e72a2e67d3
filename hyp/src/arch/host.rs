//! Exceptions that the host takes to EL2, and entering it.

use core::arch::asm;

use super::idregs;
use super::mmio::Access;
use super::sysreg::{mrs, msr};
use super::vcpu::FSC_PERMISSION;
use crate::machine;

/// x0-x30 of the host, on the EL2 stack.
#[derive(Default)]
#[repr(C)]
pub struct Frame {
    x: [u64; 31],
    pad: u64,
}

/// What a call of the host's leaves to do.
pub enum Answer {
    /// Nothing: the registers are set.
    Done,
    /// x0-x3 go to EL3.
    Firmware,
    /// A CPU is turned on.
    CpuOn {
        /// Its index.
        index: usize,
        /// Its MPIDR.
        target: u64,
        /// Where it enters the host.
        entry: u64,
        /// x0 there.
        context: u64,
    },
    /// x0-x3 go to EL3 and turn the machine off.
    Shutdown,
}

/// What is done about an access that stage 2 refused.
pub enum Abort {
    /// It is repeated.
    Retry,
    /// It aborts.
    Inject,
    /// It is carried out; a load gets this.
    Value(u64),
}

/// Who decides for the host: the policy in this image, or the SPMC.
pub trait Authority {
    /// An SMC #0.
    fn call(cpu: usize, registers: &mut [u64; 18]) -> Answer;
    /// What is never allowed; sets x0.
    fn refuse(registers: &mut [u64; 18]);
    /// An access to `ipa` with this syndrome, which stores `stored`, if it stores.
    fn abort(ipa: u64, syndrome: u64, stored: u64) -> Abort;
    /// Notes an exit that needed none of the others.
    fn count_exit();
}

// Exception classes (Arm ARM D24.2.40).
const EC_HVC: u64 = 0x16;
const EC_SMC: u64 = 0x17;
const EC_SYSTEM_REGISTER: u64 = 0x18;
const EC_INSTRUCTION_ABORT: u64 = 0x20;
const EC_DATA_ABORT: u64 = 0x24;
/// Fault status of a synchronous external abort.
const FSC_EXTERNAL: u64 = 0x10;
const ISS_IL: u64 = 1 << 25;
const ISS_WNR: u64 = 1 << 6;
const ISS_S1PTW: u64 = 1 << 7;
/// SCTLR_EL1 with the MMU and caches off.
pub const SCTLR_EL1_RESET: u64 = 0x30d0_0800;
/// SPSR_EL2.SS: software step, active-not-pending.
const SPSR_SS: u64 = 1 << 21;
/// Address bit that tells the kernel's half from the processes'.
const TTBR1_HALF: u64 = 1 << 55;

/// Handles an exception. `vector`: 0 synchronous, 1 IRQ, 2 FIQ, 3 SError, +4 from AArch32.
pub fn exception<A: Authority>(frame: &mut Frame, vector: u64) {
    machine::park_if_panicking();
    if vector & 3 != 0 {
        return; // interrupts and errors go to the host directly; one that was routed here in between repeats there
    }
    let esr = mrs!("esr_el2");
    match esr >> 26 & 0x3f {
        EC_SMC => {
            skip();
            smc::<A>(frame, esr);
        }
        EC_HVC => A::refuse(calls(frame)),
        EC_SYSTEM_REGISTER => {
            A::count_exit();
            system_register(frame, esr);
        }
        class @ (EC_INSTRUCTION_ABORT | EC_DATA_ABORT) => abort::<A>(frame, esr, class),
        _ => {
            A::count_exit();
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

fn smc<A: Authority>(frame: &mut Frame, esr: u64) {
    let registers = calls(frame);
    if esr & 0xffff != 0 {
        return A::refuse(registers);
    }
    match A::call(mrs!("tpidr_el2") as usize, registers) {
        Answer::Done => {}
        Answer::Firmware => {
            let result = machine::firmware(registers);
            registers[..4].copy_from_slice(&result);
        }
        Answer::CpuOn { index, target, entry, context } => {
            registers[0] = machine::cpu_on(index, target, entry, context);
        }
        Answer::Shutdown => machine::power_off(registers),
    }
}

/// A trapped system register access: ID registers are read under the allow-list, anything else is undefined.
fn system_register(frame: &mut Frame, esr: u64) {
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

/// A stage-2 abort: carried out where the hypervisor stands between host and device, repeated when the page is the host's by
/// now, else answered with an abort at EL1, which ends a process by SIGBUS and a kernel thread by an oops, and never
/// livelocks (DC ZVA and other accesses without syndrome included).
fn abort<A: Authority>(frame: &mut Frame, esr: u64, class: u64) {
    let far = mrs!("far_el2");
    let fetch = class == EC_INSTRUCTION_ABORT;
    // HPFAR_EL2 is not valid for a permission fault; the host has none but fetches from devices.
    let permission = esr & 0x3c == FSC_PERMISSION;
    let ipa = if permission { u64::MAX } else { mrs!("hpfar_el2") >> 4 << 12 | far & 0xfff };
    let access = Access::decode(esr);
    match A::abort(ipa, esr, access.map_or(0, |access| access.value(&frame.x))) {
        Abort::Retry => return,
        Abort::Value(value) => {
            if let Some(access) = access {
                access.complete(&mut frame.x, value);
            }
            return skip();
        }
        Abort::Inject => {}
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

/// Enters the host on this CPU for the first time, behind the stage 2 that [`super::el2::configure`] set.
pub fn enter(entry: u64, argument: u64) -> ! {
    unsafe extern "C" {
        fn enter_host(argument: u64, entry: u64) -> !;
    }
    msr!("sctlr_el1", SCTLR_EL1_RESET);
    msr!("cpacr_el1", 0);
    // SAFETY: drops to EL1 behind the host's stage 2; the EL2 stack of this CPU starts anew.
    unsafe { enter_host(argument, entry) }
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
