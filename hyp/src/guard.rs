//! The program `guard`: EL2 of the normal world under an SPMC. It keeps the host behind the stage 2 that the SPMC writes,
//! takes the host's calls and aborts to the SPMC ([`hyp_abi::guard`]), and carries out what can only be done here: the
//! exceptions that the host sees, its TLB maintenance, its CPUs' start. It decides nothing and holds no secret; the SPMC's
//! tables lie in its memory, since the SMMU and the host's CPUs walk them.

use core::sync::atomic::{AtomicU64, Ordering};
use hyp_abi::ffa::error::INVALID_PARAMETERS;
use hyp_abi::ffa::{
    ERROR, HOST_ID, MSG_SEND_DIRECT_REQ_32, MSG_SEND_DIRECT_REQ_64, MSG_SEND_DIRECT_REQ2,
    MSG_SEND_DIRECT_RESP_64,
};
use hyp_abi::guard::{ANSWER_ROUTE, REQUEST_ROUTE, answer, request};
use smccc::smc64;
use spin::Once;
use stage2::HOST_VMID;

use crate::arch::host::{self, Abort, Answer, Authority};
use crate::arch::{el2, stage1};
use crate::{Arena, Frame, machine};

static ARENA: Once<&'static Arena> = Once::new();
/// The host's exits that the SPMC has not heard of.
static EXITS: AtomicU64 = AtomicU64::new(0);

/// Runs on the first CPU, MMU off, stack and relocations in place.
pub fn primary_main(device_tree: u64, load_base: u64, arena: &'static Arena) -> ! {
    // SAFETY: the boot CPU runs alone with the MMU off. Nothing but our own memory is mapped.
    unsafe { stage1::Map::start(load_base) };
    ARENA.call_once(|| arena);
    configure();
    let end = stage1::image(load_base).end();
    let what = u64::from(request::BOOT) | (size_of::<Arena>() as u64) << 32;
    match ask([what, device_tree, load_base, arena as *const Arena as u64, end]) {
        [what, entry, tree, ..] if what == answer::BOOTED.into() => host::enter(entry, tree),
        _ => machine::park(), // no SPMC of ours
    }
}

/// Runs on every other CPU, MMU on.
pub fn secondary_main(cpu: u64) -> ! {
    machine::park_if_panicking();
    let (entry, argument) = machine::take_start(cpu as usize);
    configure();
    host::enter(entry, argument)
}

fn configure() {
    el2::configure(machine::features(), ARENA.wait().host_root.address(), HOST_VMID);
}

/// Takes an exception of the host.
pub fn host_exception(frame: &mut Frame, vector: u64) {
    host::exception::<Spmc>(frame, vector);
}

/// Stops: the host stays behind its stage 2, and this CPU does not return to it.
pub fn panicked() -> ! {
    machine::note_panic();
    machine::park()
}

/// Makes a call to the SPMC, and does what the SPMC wants in between.
fn exchange(function: u32, arguments: [u64; 17]) -> [u64; 18] {
    let mut answer = smc64(function, arguments);
    loop {
        let [function, route, _, what, ipa, page_count, ..] = answer;
        let is_forget = what == answer::FORGET.into() && route == ANSWER_ROUTE;
        if function as u32 != MSG_SEND_DIRECT_RESP_64 || !is_forget {
            return answer;
        }
        // VTTBR_EL2 is the host's all the time.
        el2::forget((page_count != 0).then_some((ipa, page_count)));
        answer = smc64(MSG_SEND_DIRECT_REQ_64, message([request::DONE.into(), 0, 0, 0, 0]));
    }
}

fn message(words: [u64; 5]) -> [u64; 17] {
    let mut arguments = [0; 17];
    arguments[0] = REQUEST_ROUTE;
    arguments[2..7].copy_from_slice(&words);
    arguments
}

/// Asks the SPMC something; returns what it answers in x3-x7.
fn ask(words: [u64; 5]) -> [u64; 5] {
    let [function, route, _, a, b, c, d, e, ..] = exchange(MSG_SEND_DIRECT_REQ_64, message(words));
    if function as u32 == MSG_SEND_DIRECT_RESP_64 && route == ANSWER_ROUTE { [a, b, c, d, e] } else { [0; 5] }
}

/// Asks for the host, and reports its exits.
fn ask_for_host(what: u32, [a, b, c, d]: [u64; 4]) -> [u64; 5] {
    let exits = EXITS.swap(0, Ordering::Relaxed).min(u32::MAX.into());
    ask([u64::from(what) | exits << 32, a, b, c, d])
}

/// The policy at S-EL2.
struct Spmc;

impl Authority for Spmc {
    fn call(_cpu: usize, registers: &mut [u64; 18]) -> Answer {
        let function = registers[0] as u32;
        if hyp_core::is_ffa(function) {
            if is_under_another_name(function, registers[1])
                && !ARENA.wait().skips(hyp_core::knob::GUARD_NAME)
            {
                Self::refuse(registers);
                registers[..8].fill(0);
                (registers[0], registers[2]) = (ERROR.into(), INVALID_PARAMETERS as u32 as u64);
                return Answer::Done;
            }
            let mut arguments = [0; 17];
            arguments.copy_from_slice(&registers[1..]);
            *registers = exchange(function, arguments);
            return Answer::Done;
        }
        let [a, b, c, d, ..] = *registers;
        let [what, a, b, c, d] = ask_for_host(request::CALL, [a, b, c, d]);
        match what as u32 {
            answer::CPU_ON => return Answer::CpuOn { index: d as usize, target: a, entry: b, context: c },
            answer::FIRMWARE | answer::SHUTDOWN => {
                registers[..4].copy_from_slice(&[a, b, c, d]);
                return if what as u32 == answer::FIRMWARE { Answer::Firmware } else { Answer::Shutdown };
            }
            _ => registers[0] = a,
        }
        Answer::Done
    }

    fn refuse(registers: &mut [u64; 18]) {
        let [_, result, ..] = ask_for_host(request::REFUSE, [0; 4]);
        registers[0] = result;
    }

    fn abort(ipa: u64, syndrome: u64, stored: u64) -> Abort {
        match ask_for_host(request::ABORT, [ipa, syndrome, stored, 0]) {
            [what, ..] if what == answer::RETRY.into() => Abort::Retry,
            [what, value, ..] if what == answer::VALUE.into() => Abort::Value(value),
            _ => Abort::Inject,
        }
    }

    fn count_exit() {
        EXITS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether the host calls itself somebody else in a direct message: the guard, above all.
fn is_under_another_name(function: u32, route: u64) -> bool {
    let is_direct =
        matches!(function, MSG_SEND_DIRECT_REQ_32 | MSG_SEND_DIRECT_REQ_64 | MSG_SEND_DIRECT_REQ2);
    is_direct && route >> 16 & 0xffff != HOST_ID.into()
}
