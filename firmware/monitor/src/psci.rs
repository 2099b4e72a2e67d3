//! Power states of the cores (Arm DEN0022, PSCI 1.1) and what the normal world's calls do to them.
//!
//! A core goes from off over claimed (somebody writes where it starts) and pending to on. Only a caller of CPU_ON takes it out of
//! off, by one compare-and-swap; only the core itself takes it to on and to off.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use smccc::psci::error::{
    ALREADY_ON, INVALID_ADDRESS, INVALID_PARAMETERS, NOT_SUPPORTED, ON_PENDING, SUCCESS,
};
use smccc::psci::{
    PSCI_AFFINITY_INFO_32, PSCI_AFFINITY_INFO_64, PSCI_CPU_OFF, PSCI_CPU_ON_32, PSCI_CPU_ON_64,
    PSCI_CPU_SUSPEND_32, PSCI_CPU_SUSPEND_64, PSCI_FEATURES, PSCI_MIGRATE_INFO_TYPE, PSCI_SYSTEM_OFF,
    PSCI_SYSTEM_RESET, PSCI_VERSION,
};

/// PSCI 1.1.
const VERSION: i64 = 0x1_0001;
/// MIGRATE_INFO_TYPE: the trusted OS runs on every core, nothing to migrate.
const MIGRATION_NOT_REQUIRED: i64 = 2;
/// CPU_SUSPEND: this bit of the power state asks to lose the core's state.
const POWER_DOWN: u64 = 1 << 16;
const SMC_64: u32 = 1 << 30;
/// MPIDR_EL1: affinities 3 to 0.
const AFFINITIES: u64 = 0xff_00ff_ffff;

const OFF: u8 = 0;
const CLAIMED: u8 = 1;
const PENDING: u8 = 2;
const ON: u8 = 3;

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer, in x0.
    Return(i64),
    /// Wake core n, which is pending now, and answer success.
    Wake(usize),
    /// Wait for an interrupt on this core, then answer success.
    Suspend,
    /// Turn this core off.
    Off,
    /// Turn the machine off.
    SystemOff,
    /// Reset the machine.
    SystemReset,
}

struct Core {
    state: AtomicU8,
    entry: AtomicU64,
    argument: AtomicU64,
}

impl Core {
    const fn new() -> Self {
        Self { state: AtomicU8::new(OFF), entry: AtomicU64::new(0), argument: AtomicU64::new(0) }
    }
}

/// All cores; N at most, numbered by affinity 0.
pub struct Cores<const N: usize> {
    cores: [Core; N],
    count: AtomicU64,
}

impl<const N: usize> Cores<N> {
    /// All off, and none there yet.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self { cores: [const { Core::new() }; N], count: AtomicU64::new(0) }
    }

    /// The machine has `count` cores, of which the first boots.
    pub fn boot(&self, count: usize) {
        self.count.store(count.min(N) as u64, Ordering::Relaxed);
        if let Some(first) = self.cores.first() {
            first.state.store(ON, Ordering::Release);
        }
    }

    /// If somebody turned core `index` on, it is on now: where the normal world starts, and its argument.
    pub fn take_start(&self, index: usize) -> Option<(u64, u64)> {
        let core = self.cores.get(index)?;
        core.state.compare_exchange(PENDING, ON, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some((core.entry.load(Ordering::Relaxed), core.argument.load(Ordering::Relaxed)))
    }

    /// Core `index` is off now; called on it.
    pub fn set_off(&self, index: usize) {
        if let Some(core) = self.cores.get(index) {
            core.state.store(OFF, Ordering::Release);
        }
    }

    fn core(&self, mpidr: u64) -> Option<(usize, &Core)> {
        let index = usize::try_from(mpidr).ok()?;
        (mpidr < self.count.load(Ordering::Relaxed)).then(|| Some((index, self.cores.get(index)?)))?
    }

    /// Answers a call of the normal world's. `is_ram` says which addresses it may start at.
    pub fn call(&self, function: u32, mut x: [u64; 3], is_ram: fn(u64) -> bool) -> Outcome {
        if function & SMC_64 == 0 {
            x = x.map(|value| value & 0xffff_ffff);
        }
        let error = |code: i32| Outcome::Return(code.into());
        match function {
            PSCI_VERSION => Outcome::Return(VERSION),
            PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 if x[0] & POWER_DOWN != 0 => error(INVALID_PARAMETERS),
            PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 => Outcome::Suspend,
            PSCI_CPU_OFF => Outcome::Off,
            PSCI_CPU_ON_32 | PSCI_CPU_ON_64 => match self.on(x, is_ram) {
                Ok(index) => Outcome::Wake(index),
                Err(code) => error(code),
            },
            PSCI_AFFINITY_INFO_32 | PSCI_AFFINITY_INFO_64 => match self.core(x[0] & AFFINITIES) {
                Some((_, core)) if x[1] == 0 => Outcome::Return(match core.state.load(Ordering::Relaxed) {
                    ON => 0,
                    OFF => 1,
                    _ => 2,
                }),
                _ => error(INVALID_PARAMETERS),
            },
            PSCI_MIGRATE_INFO_TYPE => Outcome::Return(MIGRATION_NOT_REQUIRED),
            PSCI_SYSTEM_OFF => Outcome::SystemOff,
            PSCI_SYSTEM_RESET => Outcome::SystemReset,
            PSCI_FEATURES => error(if is_known(x[0] as u32) { SUCCESS } else { NOT_SUPPORTED }),
            _ => error(NOT_SUPPORTED),
        }
    }

    fn on(&self, [mpidr, entry, argument]: [u64; 3], is_ram: fn(u64) -> bool) -> Result<usize, i32> {
        let (index, core) = self.core(mpidr & AFFINITIES).ok_or(INVALID_PARAMETERS)?;
        if !is_ram(entry) || entry & 3 != 0 {
            return Err(INVALID_ADDRESS);
        }
        match core.state.compare_exchange(OFF, CLAIMED, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {}
            Err(ON) => return Err(ALREADY_ON),
            Err(_) => return Err(ON_PENDING),
        }
        core.entry.store(entry, Ordering::Relaxed);
        core.argument.store(argument, Ordering::Relaxed);
        core.state.store(PENDING, Ordering::Release);
        Ok(index)
    }
}

/// Whether PSCI_FEATURES says that a function is there.
fn is_known(function: u32) -> bool {
    matches!(
        function,
        PSCI_VERSION
            | PSCI_CPU_SUSPEND_32
            | PSCI_CPU_SUSPEND_64
            | PSCI_CPU_OFF
            | PSCI_CPU_ON_32
            | PSCI_CPU_ON_64
            | PSCI_AFFINITY_INFO_32
            | PSCI_AFFINITY_INFO_64
            | PSCI_MIGRATE_INFO_TYPE
            | PSCI_SYSTEM_OFF
            | PSCI_SYSTEM_RESET
            | PSCI_FEATURES
            | smccc::arch::SMCCC_VERSION
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use smccc::psci::PSCI_SYSTEM_RESET2_64;

    fn is_ram(address: u64) -> bool {
        address >= 0x4000_0000
    }

    fn call(cores: &Cores<4>, function: u32, x: [u64; 3]) -> Outcome {
        cores.call(function, x, is_ram)
    }

    fn number(code: i32) -> Outcome {
        Outcome::Return(code.into())
    }

    #[test]
    fn a_core_goes_on_once_and_off_by_itself() {
        let cores = Cores::<4>::new();
        cores.boot(2);
        let info = |core| call(&cores, PSCI_AFFINITY_INFO_64, [core, 0, 0]);
        assert_eq!((info(0), info(1), info(2)), (number(0), number(1), number(INVALID_PARAMETERS)));
        assert_eq!(call(&cores, PSCI_AFFINITY_INFO_64, [0, 1, 0]), number(INVALID_PARAMETERS));
        assert_eq!(cores.take_start(1), None);
        let on = |core, entry| call(&cores, PSCI_CPU_ON_64, [core, entry, 7]);
        assert_eq!(on(1, 0xe10_0000), number(INVALID_ADDRESS));
        assert_eq!(on(1, 0x4000_0002), number(INVALID_ADDRESS));
        for absent in [2, 4, 0x100, 1 << 32, u64::MAX] {
            assert_eq!(on(absent, 0x4000_0000), number(INVALID_PARAMETERS), "{absent:#x}");
        }
        assert_eq!(on(0, 0x4000_0000), number(ALREADY_ON));
        assert_eq!(on(1, 0x4000_0000), Outcome::Wake(1));
        assert_eq!((on(1, 0x5000_0000), info(1)), (number(ON_PENDING), number(2)));
        assert_eq!(cores.take_start(1), Some((0x4000_0000, 7)));
        assert_eq!(cores.take_start(1), None);
        assert_eq!((on(1, 0x4000_0000), info(1)), (number(ALREADY_ON), number(0)));
        cores.set_off(1);
        assert_eq!(info(1), number(1));
        // MPIDR_EL1's other bits are not part of a core's name.
        assert_eq!(on(0x8000_0001, 0x4000_0000), Outcome::Wake(1));
    }

    #[test]
    fn arguments_of_32_bit_calls_are_cut() {
        let cores = Cores::<4>::new();
        cores.boot(2);
        let high = 0xffff_ffff_0000_0000;
        assert_eq!(call(&cores, PSCI_CPU_ON_32, [high | 1, high | 0x4000_0000, high | 9]), Outcome::Wake(1));
        assert_eq!(cores.take_start(1), Some((0x4000_0000, 9)));
    }

    #[test]
    fn features_and_calls_agree() {
        let cores = Cores::<4>::new();
        cores.boot(1);
        for function in (0x8400_0000..0x8400_0020_u32).chain(0xc400_0000..0xc400_0020) {
            let known = call(&cores, PSCI_FEATURES, [function.into(), 0, 0]) == number(SUCCESS);
            let answered = call(&cores, function, [99, 0, 0]) != number(NOT_SUPPORTED);
            // PSCI_FEATURES asked about no function answers that it does not know it.
            assert_eq!(known, answered || function == PSCI_FEATURES, "{function:#x}");
        }
        assert_eq!(call(&cores, PSCI_SYSTEM_RESET2_64, [0; 3]), number(NOT_SUPPORTED));
        assert_eq!(call(&cores, PSCI_CPU_SUSPEND_64, [POWER_DOWN, 0, 0]), number(INVALID_PARAMETERS));
        assert_eq!(call(&cores, PSCI_CPU_SUSPEND_64, [0; 3]), Outcome::Suspend);
    }
}
