//! The acts, one function call each.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::session::probe::{self, EXECUTED, PATTERN_SIZE};
use guest_llm::{arch, ffa};
use hyp_abi::ffa::error::INVALID_PARAMETERS;

use crate::virtio::Virtio;
use crate::{alias, calls, crew, debug, pauth, registers, simd};

/// What acts work on.
pub struct Probe {
    heap: &'static mut [u64],
    boot_state: [u64; 2],
    virtio: Virtio,
}

impl Probe {
    /// `boot_state`: registers that were not zero at the start.
    pub fn new(heap: &'static mut [u64], boot_state: [u64; 2]) -> Self {
        Probe { heap, boot_state, virtio: Virtio::default() }
    }

    /// Commits the act of command `kind`; returns the status for the report.
    pub fn commit(&mut self, kind: u32, args: [u64; 4], pattern: &[u8], values: &mut [u64; 4]) -> i32 {
        let [first, second, third, _] = args;
        let status = |result: Result<(), ffa::Status>| result.map_or_else(|status| status.0, |()| 0);
        match kind {
            probe::READ => values[0] = alias::read(first, second == 1),
            probe::WRITE => values[0] = alias::write(first, second),
            probe::EXECUTE => {
                if second == 1 {
                    alias::plant(first, EXECUTED as u16);
                }
                values[0] = alias::call(first);
            }
            probe::REGISTER_READ => match registers::read(first) {
                Some(value) => values[0] = value,
                None => return INVALID_PARAMETERS,
            },
            probe::REGISTER_WRITE => {
                if !registers::write(first, second) {
                    return INVALID_PARAMETERS;
                }
            }
            probe::SMC => *values = calls::random(first, second),
            probe::FILL_HEAP | probe::CHECK_HEAP | probe::KEEP => {
                let Some(pattern) = pattern.first_chunk::<PATTERN_SIZE>() else { return INVALID_PARAMETERS };
                let pattern: [u64; 2] = zerocopy::transmute!(*pattern);
                let pattern = pattern.map(|word| word ^ first);
                *values = match kind {
                    probe::FILL_HEAP => self.fill(pattern),
                    probe::CHECK_HEAP => self.check(pattern),
                    _ => keep(pattern),
                };
            }
            probe::SIMD => values[0] = simd::survive(first, second, third),
            probe::SPIN => values[0] = spin(first),
            probe::SLEEP => *values = sleep(first),
            probe::EXIT => ffa::exit(first),
            probe::PANIC => panic!(),
            // SAFETY: the probe keeps no reference to a page that can be shared, except the session's atomics.
            probe::SHARE => return status(unsafe { ffa::share(first) }),
            // SAFETY: as above; if a session page goes, the session goes with it, which is the sender's wish.
            probe::UNSHARE => return status(unsafe { ffa::unshare(first) }),
            probe::CREW_START => values[0] = crew::start(first, second, third),
            probe::CREW_LOOK => match crew::look(first) {
                Some(found) => *values = found,
                None => return INVALID_PARAMETERS,
            },
            probe::CALL => values[0] = ffa::psci(first as u32, [second, third, args[3]]),
            probe::SEND_SGI => (0..second).for_each(|_| arch::send_interrupt_raw(first)),
            probe::STORM => loop {
                ffa::psci(hyp_abi::ffa::ID_GET, [0; 3]);
            },
            probe::RECEIVE => *values = crew::receive(first, second),
            probe::FFA_CALL => return ffa_call(args, pattern, values),
            probe::SERVICE => return service(first, second, values),
            probe::ACCESS => values[0] = alias::access(first, second, (third == 1).then_some(args[3])),
            probe::LOG => return log(pattern),
            probe::BOOT_STATE => values[..2].copy_from_slice(&self.boot_state),
            probe::PAUTH => *values = pauth::sign(first, second, third),
            probe::DEBUG => *values = debug::open(first, second),
            probe::VIRTIO_READ | probe::VIRTIO_WRITE | probe::VIRTIO_ECHO => {
                return self.virtio.commit(kind, args, values);
            }
            probe::FFA => *values = calls::ffa(args),
            _ => return INVALID_PARAMETERS,
        }
        0
    }

    fn fill(&mut self, pattern: [u64; 2]) -> [u64; 4] {
        for pair in self.heap.chunks_exact_mut(2) {
            pair.copy_from_slice(&pattern);
        }
        // The bytes must be in memory, not in the compiler's mind, when somebody looks for them.
        core::hint::black_box(&mut *self.heap);
        [(size_of_val(self.heap) / 4096) as u64, 0, 0, 0]
    }

    fn check(&mut self, pattern: [u64; 2]) -> [u64; 4] {
        let heap = core::hint::black_box(&*self.heap);
        let differing = heap.chunks_exact(2).filter(|pair| **pair != pattern).count();
        [heap.len() as u64 / 2, differing as u64, 0, 0]
    }
}

fn keep(pattern: [u64; 2]) -> [u64; 4] {
    static KEPT: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    KEPT.iter().zip(pattern).for_each(|(word, value)| word.store(value, Ordering::SeqCst));
    [KEPT.as_ptr() as u64, 0, 0, 0]
}

/// Makes an FF-A call; returns its error code.
fn ffa_call([function, first, second, third]: [u64; 4], pattern: &[u8], values: &mut [u64; 4]) -> i32 {
    let [fourth, fifth]: [u64; 2] = match pattern.first_chunk::<PATTERN_SIZE>() {
        Some(pattern) => zerocopy::transmute!(*pattern),
        None => [0; 2],
    };
    // SAFETY: what such a call changes of the partition's memory, its RX buffer, is not read but by acts.
    let x = unsafe { ffa::any([function, first, second, third, fourth, fifth]) };
    let pair = |low: u64, high: u64| high << 32 | low & 0xFFFF_FFFF;
    *values = [x[0], pair(x[2], x[3]), pair(x[4], x[5]), pair(x[6], x[7])];
    if x[0] as u32 == hyp_abi::ffa::ERROR { x[2] as i32 } else { 0 }
}

/// Calls the vendor service; returns its status.
fn service(operation: u64, argument: u64, values: &mut [u64; 4]) -> i32 {
    let ids = arch::endpoint_id() << 16 | u64::from(hyp_abi::ffa::SERVICE_ID);
    let function = u64::from(hyp_abi::ffa::MSG_SEND_DIRECT_REQ_64);
    // SAFETY: what such a call changes of the partition's memory is not read but by acts.
    let x = unsafe { ffa::any([function, ids, 0, operation, argument, 0]) };
    *values = [x[4], x[5], x[6], x[7]];
    if x[0] as u32 == hyp_abi::ffa::ERROR { x[2] as i32 } else { x[3] as i32 }
}

/// Logs 16 bytes, whatever they are, and a line feed.
fn log(pattern: &[u8]) -> i32 {
    let Some(pattern) = pattern.first_chunk::<PATTERN_SIZE>() else { return INVALID_PARAMETERS };
    let [low, high]: [u64; 2] = zerocopy::transmute!(*pattern);
    let count = PATTERN_SIZE as u64 + 1;
    let function = u64::from(hyp_abi::ffa::CONSOLE_LOG_64);
    // SAFETY: FFA_CONSOLE_LOG touches no memory.
    let x = unsafe { ffa::any([function, count, low, high, u64::from(b'\n'), 0]) };
    if x[0] as u32 == hyp_abi::ffa::ERROR { x[2] as i32 } else { 0 }
}

/// Spins for that many ticks; 0: for ever.
fn spin(ticks: u64) -> u64 {
    let start = arch::ticks();
    loop {
        let spun = arch::ticks().wrapping_sub(start);
        if ticks != 0 && spun >= ticks {
            return spun;
        }
    }
}

/// Sleeps until the virtual timer fires after `ticks`; returns ticks slept and CNTV_CTL_EL0.
fn sleep(ticks: u64) -> [u64; 4] {
    let start = arch::ticks();
    let deadline = start.saturating_add(ticks);
    let control: u64;
    // SAFETY: the virtual timer is the partition's own, and its interrupt stays masked: it only ends WFI.
    unsafe {
        asm!("msr cntv_cval_el0, {deadline}", "msr cntv_ctl_el0, {on}", "isb",
             deadline = in(reg) deadline, on = in(reg) 1_u64, options(nostack));
        while arch::ticks() < deadline {
            asm!("wfi", options(nostack));
        }
        asm!("mrs {control}, cntv_ctl_el0", "msr cntv_ctl_el0, xzr", "isb", control = out(reg) control,
             options(nostack));
    }
    [arch::ticks().wrapping_sub(start), control, 0, 0]
}
