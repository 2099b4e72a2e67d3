//! The program `spmc`: the policy at S-EL2, as an FF-A Secure Partition Manager Core below an SPMD at EL3 (DEN0077A 1.2, 4.1),
//! stock Trusted Firmware-A's or this project's monitor.
//!
//! Each CPU waits in an SMC for the next call: the host's FF-A calls as they are, and what the guard asks for it
//! ([`hyp_abi::guard`]). A call that changes the host's stage 2 must have the CPUs of the normal world forget the old
//! translations; TLB maintenance at S-EL2 does not reach them. [`forget_host`] therefore hands over to the guard in the
//! middle of the call, with the policy's lock held, and goes on where it was once the guard is done: what the policy does in
//! between two steps is the same in both deployments.

use core::sync::atomic::{AtomicU64, Ordering};
use hyp_abi::ffa::error::{BUSY, NOT_SUPPORTED};
use hyp_abi::ffa::{
    ERROR, INTERRUPT, MSG_SEND_DIRECT_REQ_32, MSG_SEND_DIRECT_REQ_64, MSG_SEND_DIRECT_RESP_32,
    MSG_SEND_DIRECT_RESP_64, MSG_WAIT, NORMAL_WORLD_RESUME, SECONDARY_EP_REGISTER, SPMD_ANSWER_ROUTE,
    SPMD_ROUTE, SUCCESS_64, VERSION, VERSION_1_2, framework,
};
use hyp_abi::guard::{ANSWER_ROUTE, REQUEST_ROUTE, answer, request};
use hyp_core::Outcome;
use log::info;
use smccc::smc64;

use crate::arch::host::Abort;
use crate::arch::{self, gic, memory, stage1, vcpu};
use crate::platform::MAX_CPUS;
use crate::{Arena, SecureRam, boot, machine, world};

/// x0-x17 of a call or an answer.
type Registers = [u64; 18];

/// MPIDR of each CPU, by index, for CPUs that start: read with the MMU off.
#[unsafe(no_mangle)]
static AFFINITIES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];

/// Runs on the first CPU, MMU off, stack and relocations in place.
pub fn primary_main(load_base: u64, secure_ram: &'static SecureRam) -> ! {
    unsafe extern "C" {
        fn spmc_secondary_entry();
    }
    arch::set_secure();
    // SAFETY: the boot CPU runs alone with the MMU off.
    let mut map = unsafe { stage1::Map::start(load_base) };
    let ours = call([VERSION.into(), VERSION_1_2.into()]);
    assert!(ours[0] as u32 >> 16 == VERSION_1_2 >> 16, "SPMD of version {:#x}", ours[0]);
    let registered = call([SECONDARY_EP_REGISTER.into(), spmc_secondary_entry as *const () as u64]);
    assert!(
        registered[0] as u32 == SUCCESS_64,
        "SPMD refuses the entry of further CPUs: {:#x}",
        registered[2]
    );

    let mut registers = padded([MSG_WAIT.into()]);
    let boot = loop {
        registers = exchange(registers);
        match asked(&registers) {
            Some(request::BOOT) => break registers,
            _ => registers = respond(0, &registers, |_| failure(BUSY)),
        }
    };
    let [_, _, _, what, tree, bundle, arena, end, ..] = boot;
    let fits = what >> 32 == size_of::<Arena>() as u64 && arena.is_multiple_of(align_of::<Arena>() as u64);
    assert!(fits, "the guard is of another build");
    // SAFETY: the guard, loaded by the same firmware as we are, gives this memory to us alone and for ever; it is mapped with
    // the rest of RAM before anybody uses it, is aligned, and atomics and bytes may have any value.
    let arena = unsafe { &*(arena as *const Arena) };
    let (entry, tree) = boot::prepare_host(&mut map, &boot::Given { tree, bundle, end, arena });
    world::take_secure_ram(secure_ram).expect("tables suffice");
    for (place, affinity) in AFFINITIES.iter().zip(&world::platform().cpus) {
        place.store(*affinity, Ordering::Relaxed);
    }
    memory::clean(AFFINITIES.as_ptr() as usize, size_of_val(&AFFINITIES));
    world::start_cpu(0);
    info!("the guard enters the host at {entry:#x}");
    serve(0, to_guard([answer::BOOTED.into(), entry, tree]))
}

/// Runs on every other CPU, and on one that comes back, MMU on.
pub fn secondary_main(cpu: u64) -> ! {
    machine::park_if_panicking();
    world::start_cpu(cpu as usize);
    serve(cpu as usize, padded([MSG_WAIT.into()]))
}

/// Answers calls for ever.
fn serve(cpu: usize, mut registers: Registers) -> ! {
    loop {
        registers = exchange(registers);
        machine::park_if_panicking();
        registers = respond(cpu, &registers, |registers| match registers[0] as u32 {
            MSG_SEND_DIRECT_REQ_64 if registers[1] == REQUEST_ROUTE => guard_request(cpu, registers),
            _ => host_call(cpu, *registers),
        });
    }
}

/// Answers what EL3 wants itself, and by `other` the rest.
fn respond(cpu: usize, registers: &Registers, other: impl FnOnce(&Registers) -> Registers) -> Registers {
    let [function, route, message, argument, ..] = *registers;
    match function as u32 {
        INTERRUPT => resume_normal_world(),
        MSG_SEND_DIRECT_REQ_32 if route == SPMD_ROUTE => {
            let (message, result) = match message {
                framework::VERSION => {
                    let version = host_call(cpu, padded([VERSION.into(), argument]));
                    (framework::VERSION_ANSWER, version[0])
                }
                // A CPU goes off: nothing of it is left here, and it comes back through the secondary entry.
                framework::PSCI => (framework::PSCI_ANSWER, 0),
                _ => (message, NOT_SUPPORTED as u32 as u64),
            };
            padded([MSG_SEND_DIRECT_RESP_32.into(), SPMD_ANSWER_ROUTE, message, result])
        }
        _ => other(registers),
    }
}

/// A secure interrupt came while the normal world ran.
fn resume_normal_world() -> Registers {
    gic::acknowledge();
    padded([NORMAL_WORLD_RESUME.into()])
}

/// A call of the host's. What is not FF-A does not come this way, and would be answered without effect.
fn host_call(cpu: usize, mut registers: Registers) -> Registers {
    match world::host_call(cpu, &mut registers) {
        Outcome::Return => registers,
        Outcome::Enter { slot, vcpu } => {
            vcpu::run(cpu, slot, vcpu, &mut registers);
            registers
        }
        Outcome::Firmware | Outcome::CpuOn { .. } | Outcome::Shutdown => failure(NOT_SUPPORTED),
    }
}

/// What the guard asks for the host.
fn guard_request(cpu: usize, registers: &Registers) -> Registers {
    let [_, _, _, what, a, b, c, d, ..] = *registers;
    world::lock().count_host_exits(what >> 32);
    let mut call = padded([a, b, c, d]);
    let reply = match what as u32 {
        request::CALL => match world::host_call(cpu, &mut call) {
            Outcome::Firmware => answer::FIRMWARE,
            Outcome::CpuOn { target, entry, context } => {
                let index = world::platform().cpu_index(target).unwrap_or(MAX_CPUS);
                call = padded([target, entry, context, index as u64]);
                answer::CPU_ON
            }
            Outcome::Shutdown => {
                world::end_partitions(call[0]);
                answer::SHUTDOWN
            }
            Outcome::Return | Outcome::Enter { .. } => answer::RETURN,
        },
        request::ABORT => match world::host_abort(a, b, c) {
            Abort::Retry => answer::RETRY,
            Abort::Inject => answer::INJECT,
            Abort::Value(value) => {
                call[0] = value;
                answer::VALUE
            }
        },
        _ => {
            world::lock().host_refuse(&mut call);
            answer::RETURN
        }
    };
    to_guard([reply.into(), call[0], call[1], call[2], call[3]])
}

/// Has the guard make all CPUs forget translations of the host's: pages from an address on, or everything. Complete on return.
pub fn forget_host(pages: Option<(u64, u64)>) {
    let (ipa, page_count) = pages.unwrap_or_default();
    let mut registers = to_guard([answer::FORGET.into(), ipa, page_count]);
    loop {
        registers = exchange(registers);
        // Nobody else runs on this CPU meanwhile: the guard does not return to the host before it has our answer.
        registers = match registers[0] as u32 {
            _ if asked(&registers) == Some(request::DONE) => return,
            INTERRUPT => resume_normal_world(),
            _ => failure(BUSY),
        };
    }
}

/// What the guard asks, if it is the guard that asks.
fn asked(registers: &Registers) -> Option<u32> {
    let [function, route, _, what, ..] = *registers;
    (function as u32 == MSG_SEND_DIRECT_REQ_64 && route == REQUEST_ROUTE).then_some(what as u32)
}

fn to_guard<const N: usize>(words: [u64; N]) -> Registers {
    let mut registers = padded([MSG_SEND_DIRECT_RESP_64.into(), ANSWER_ROUTE]);
    registers.iter_mut().skip(3).zip(words).for_each(|(register, word)| *register = word);
    registers
}

fn failure(code: i32) -> Registers {
    padded([ERROR.into(), 0, code as u32 as u64])
}

fn padded<const N: usize>(words: [u64; N]) -> Registers {
    let mut registers = [0; 18];
    registers.iter_mut().zip(words).for_each(|(register, word)| *register = word);
    registers
}

/// Calls EL3; also ends a call and waits for the next one.
fn exchange(registers: Registers) -> Registers {
    let mut arguments = [0; 17];
    arguments.copy_from_slice(&registers[1..]);
    smc64(registers[0] as u32, arguments)
}

fn call<const N: usize>(words: [u64; N]) -> Registers {
    exchange(padded(words))
}

/// Reports that the SPMC failed; what partitions had is scrubbed.
pub fn panicked(info: &core::panic::PanicInfo) -> ! {
    world::panicked(format_args!("PANIC {info}"))
}
