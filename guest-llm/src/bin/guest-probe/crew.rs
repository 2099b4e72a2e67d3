//! The probe's other vCPUs: each does one task until it is turned off.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release};

use guest_abi::session::probe::task;
use guest_llm::{arch, ffa};
use hyp_abi::ffa as abi;

/// What one vCPU is to do, and did.
struct Member {
    task: AtomicU64,
    argument: AtomicU64,
    progress: AtomicU64,
    interrupts: AtomicU64,
    numbers: AtomicU64,
    errors: AtomicU64,
}

static CREW: [Member; 8] = [const {
    Member {
        task: AtomicU64::new(0),
        argument: AtomicU64::new(0),
        progress: AtomicU64::new(0),
        interrupts: AtomicU64::new(0),
        numbers: AtomicU64::new(0),
        errors: AtomicU64::new(0),
    }
}; 8];

/// The timer's interrupt.
const TIMER: u64 = 27;
/// Pages of TOUCH: all but the last of a block.
const TOUCHED: u64 = 511;

/// Turns vCPU `target` on, whatever number that is; returns PSCI's answer.
pub fn start(target: u64, task: u64, argument: u64) -> u64 {
    if let Some(member) = CREW.get(target as usize) {
        member.argument.store(argument, Relaxed);
        member.task.store(task, Release);
    }
    ffa::psci(ffa::psci::CPU_ON, [target, arch::secondary_entry(), arch::endpoint_id()])
}

/// Progress, interrupts, their numbers and errors of a vCPU.
pub fn look(index: u64) -> Option<[u64; 4]> {
    let member = CREW.get(index as usize)?;
    Some(
        [&member.progress, &member.interrupts, &member.numbers, &member.errors]
            .map(|value| value.load(Relaxed)),
    )
}

/// Waits for `count` interrupts, at most `ticks`; returns how many came and their numbers.
pub fn receive(count: u64, ticks: u64) -> [u64; 4] {
    arch::receive_interrupts();
    let deadline = arch::ticks().saturating_add(ticks);
    let (mut came, mut numbers) = (0, 0);
    while came < count && arch::ticks() < deadline {
        // Its interrupt is one of those that wake; it does not count.
        arch::set_timer(Some(deadline));
        while let Some(number) = arch::acknowledge() {
            if number != TIMER {
                came += 1;
                numbers |= 1 << number;
            }
        }
        if came < count {
            arch::wait();
        }
    }
    arch::set_timer(None);
    [came, numbers, 0, 0]
}

/// Main function of a vCPU other than the first.
pub fn serve(index: usize) -> ! {
    let Some(member) = CREW.get(index) else { ffa::stop_vcpu() };
    let argument = member.argument.load(Relaxed);
    let did = |n| {
        member.progress.fetch_add(n, Relaxed);
    };
    match member.task.load(Relaxed) {
        task::SPIN => loop {
            did(1);
        },
        task::RECEIVE => {
            arch::receive_interrupts();
            did(1);
            loop {
                while let Some(number) = arch::acknowledge() {
                    member.interrupts.fetch_add(1, Relaxed);
                    member.numbers.fetch_or(1 << number, Relaxed);
                    if argument != 0 {
                        arch::send_interrupt_raw(argument);
                    }
                }
                arch::wait();
            }
        }
        task::TIMER => {
            arch::receive_interrupts();
            let mut deadline = arch::ticks();
            loop {
                deadline += argument;
                arch::set_timer(Some(deadline));
                loop {
                    match arch::acknowledge() {
                        Some(TIMER) if arch::ticks() >= deadline => break,
                        // The line fell before the interrupt was taken.
                        Some(TIMER) => {}
                        Some(_) => {
                            member.errors.fetch_add(1, Relaxed);
                        }
                        None => arch::wait(),
                    }
                }
                did(1);
            }
        }
        task::READ => {
            // SAFETY: what stage 2 makes of it is what the task is about.
            unsafe { (argument as *const u64).read_volatile() };
            did(1);
            ffa::stop_vcpu()
        }
        task::TOUCH => loop {
            let round = member.progress.load(Relaxed);
            for page in 0..TOUCHED {
                let at = (argument + page * 4096 + 8 * (index as u64)) as *mut u64;
                // SAFETY: pages of the heap that nobody else uses, as the sender says.
                unsafe { at.write_volatile(round ^ page) };
            }
            for page in 0..TOUCHED {
                let at = (argument + page * 4096 + 8 * (index as u64)) as *const u64;
                // SAFETY: as above.
                if unsafe { at.read_volatile() } != round ^ page {
                    member.errors.fetch_add(1, Relaxed);
                }
            }
            did(1);
        },
        task::SMC_STORM => loop {
            ffa::psci(abi::ID_GET, [0; 3]);
            did(1);
        },
        task::SGI_STORM => loop {
            arch::send_interrupt_raw(1 << 24 | 0xFFFF);
            did(1);
        },
        _ => {
            did(1);
            ffa::stop_vcpu()
        }
    }
}
