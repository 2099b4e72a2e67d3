//! What each program knows of its CPUs: their features, how to start and how to stop them.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use smccc::smc64;
use spin::Once;

use crate::arch::features::Features;
use crate::platform::MAX_CPUS;

static FEATURES: Once<Features> = Once::new();
static PANICKING: AtomicBool = AtomicBool::new(false);
/// Where a CPU that is being turned on enters the host, and x0 there.
static STARTS: [(AtomicU64, AtomicU64); MAX_CPUS] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; MAX_CPUS];

const PSCI_CPU_ON: u32 = 0xC400_0003;
const PSCI_SYSTEM_RESET: u32 = 0x8400_0009;
const PSCI_INVALID_PARAMETERS: u64 = -2i64 as u64;

/// The CPUs' features, probed by whoever asks first.
pub fn features() -> &'static Features {
    FEATURES.call_once(Features::probe)
}

/// Turns a CPU on for the host, with our own entry. Returns PSCI's answer.
pub fn cpu_on(index: usize, target: u64, entry: u64, context: u64) -> u64 {
    unsafe extern "C" {
        fn secondary_entry();
    }
    let Some(start) = STARTS.get(index) else { return PSCI_INVALID_PARAMETERS };
    start.0.store(entry, Ordering::Relaxed);
    start.1.store(context, Ordering::Release);
    let mut arguments = [0; 17];
    arguments[0] = target;
    arguments[1] = secondary_entry as *const () as u64;
    arguments[2] = index as u64;
    smc64(PSCI_CPU_ON, arguments)[0]
}

/// Takes what [`cpu_on`] left for this CPU: the host's entry and x0 there.
pub fn take_start(cpu: usize) -> (u64, u64) {
    STARTS.get(cpu).map_or((0, 0), |s| (s.0.load(Ordering::Acquire), s.1.load(Ordering::Relaxed)))
}

/// Forwards a call of four registers to EL3.
pub fn firmware(registers: &[u64; 18]) -> [u64; 4] {
    let mut arguments = [0; 17];
    arguments[..3].copy_from_slice(&registers[1..4]);
    let [a, b, c, d, ..] = smc64(registers[0] as u32, arguments);
    [a, b, c, d]
}

/// Switches the machine off or resets it, as the host's registers say, once nothing of any partition is left.
pub fn power_off(registers: &[u64; 18]) -> ! {
    let result = firmware(registers);
    log::info!("firmware refused: {:#x}; resetting", result[0]);
    let mut reset = [0; 18];
    reset[0] = u64::from(PSCI_SYSTEM_RESET);
    firmware(&reset);
    park()
}

/// Notes a panic; false if there is one already.
pub fn note_panic() -> bool {
    !PANICKING.swap(true, Ordering::AcqRel)
}

/// Whether a CPU panicked.
pub fn is_panicking() -> bool {
    PANICKING.load(Ordering::Acquire)
}

/// Stops this CPU for good if another panicked.
pub fn park_if_panicking() {
    if is_panicking() {
        park();
    }
}

/// Stops this CPU for good.
pub fn park() -> ! {
    loop {
        aarch64_cpu::asm::wfe();
    }
}
