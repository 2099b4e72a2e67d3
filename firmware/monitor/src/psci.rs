//! Power states of the cores (Arm DEN0022, PSCI 1.1) and what the normal world's calls do to them.
//!
//! A core goes from off over pending to on; only CPU_ON takes it out of off, only the core itself to on, and to off. All of it is
//! under one lock, the caller's.

use smccc::arch::SMCCC_VERSION;
use smccc::psci::error::{
    ALREADY_ON, INVALID_ADDRESS, INVALID_PARAMETERS, NOT_SUPPORTED, ON_PENDING, SUCCESS,
};
use smccc::psci::*;

/// CPU_SUSPEND: this bit of the power state asks to lose the core's state.
const POWER_DOWN: u64 = 1 << 16;
const SMC_64: u32 = 1 << 30;
/// MPIDR_EL1: affinities 3 to 0.
const AFFINITIES: u64 = 0xff_00ff_ffff;

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer, in x0.
    Return(i32),
    /// Wake core n, which is pending now, and answer success.
    Wake(usize),
    /// Wait for an interrupt on this core, then answer success.
    Suspend,
    /// Turn this core off.
    Off,
    /// Turn the machine off, or (true) reset it.
    End(bool),
}

#[derive(Clone, Copy)]
enum Power {
    Off,
    /// Somebody turned it on: where the normal world starts, and its argument.
    Pending(u64, u64),
    On,
}

/// All cores; N at most, numbered by affinity 0.
pub struct Cores<const N: usize> {
    power: [Power; N],
    count: usize,
}

impl<const N: usize> Cores<N> {
    /// None yet.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self { power: [Power::Off; N], count: 0 }
    }

    /// Whether the machine is up.
    pub fn is_booted(&self) -> bool {
        self.count != 0
    }

    /// The machine has `count` cores, and core `index` of them boots it.
    pub fn boot(&mut self, count: usize, index: usize) {
        self.count = count.min(N);
        self.set(index, Power::On);
    }

    /// If somebody turned core `index` on, it is on now: where the normal world starts, and its argument.
    pub fn take_start(&mut self, index: usize) -> Option<(u64, u64)> {
        let Some(Power::Pending(entry, argument)) = self.power.get(index).copied() else { return None };
        self.set(index, Power::On);
        Some((entry, argument))
    }

    /// Core `index` runs nothing: off now, if it was not turned on already.
    pub fn stop(&mut self, index: usize) {
        if let Some(power @ Power::On) = self.power.get_mut(index) {
            *power = Power::Off;
        }
    }

    fn set(&mut self, index: usize, power: Power) {
        if let Some(old) = self.power.get_mut(index) {
            *old = power;
        }
    }

    /// Answers a call of the normal world's. `is_ram` says which addresses it may start at.
    pub fn call(&mut self, function: u32, mut x: [u64; 3], is_ram: fn(u64) -> bool) -> Outcome {
        if function & SMC_64 == 0 {
            x = x.map(|value| value & 0xffff_ffff);
        }
        let core = usize::try_from(x[0] & AFFINITIES).ok().filter(|core| *core < self.count);
        let power = core.and_then(|core| self.power.get(core));
        Outcome::Return(match function {
            PSCI_VERSION => 0x1_0001, // 1.1
            PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 if x[0] & POWER_DOWN != 0 => INVALID_PARAMETERS,
            PSCI_CPU_SUSPEND_32 | PSCI_CPU_SUSPEND_64 => return Outcome::Suspend,
            PSCI_CPU_OFF => return Outcome::Off,
            PSCI_CPU_ON_32 | PSCI_CPU_ON_64 => match (core, power) {
                (Some(_), Some(_)) if !is_ram(x[1]) || x[1] & 3 != 0 => INVALID_ADDRESS,
                (Some(core), Some(Power::Off)) => {
                    self.set(core, Power::Pending(x[1], x[2]));
                    return Outcome::Wake(core);
                }
                (_, Some(Power::Pending(..))) => ON_PENDING,
                (_, Some(_)) => ALREADY_ON,
                _ => INVALID_PARAMETERS,
            },
            PSCI_AFFINITY_INFO_32 | PSCI_AFFINITY_INFO_64 => match power {
                Some(Power::On) if x[1] == 0 => 0,
                Some(Power::Off) if x[1] == 0 => 1,
                Some(Power::Pending(..)) if x[1] == 0 => 2,
                _ => INVALID_PARAMETERS,
            },
            PSCI_SYSTEM_OFF => return Outcome::End(false),
            PSCI_SYSTEM_RESET => return Outcome::End(true),
            PSCI_FEATURES => match x[0] as u32 {
                PSCI_FEATURES | SMCCC_VERSION => SUCCESS,
                // A call about no core changes nothing.
                other if self.call(other, [u64::MAX; 3], is_ram) == Outcome::Return(NOT_SUPPORTED) => {
                    NOT_SUPPORTED
                }
                _ => SUCCESS,
            },
            _ => NOT_SUPPORTED,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ram(address: u64) -> bool {
        address >= 0x4000_0000
    }

    fn call(cores: &mut Cores<4>, function: u32, x: [u64; 3]) -> Outcome {
        cores.call(function, x, is_ram)
    }

    #[test]
    fn a_core_goes_on_once_and_off_by_itself() {
        let mut cores = Cores::<4>::new();
        assert!(!cores.is_booted());
        cores.boot(2, 0);
        assert!(cores.is_booted());
        let info = |cores: &mut _, core| call(cores, PSCI_AFFINITY_INFO_64, [core, 0, 0]);
        assert_eq!(info(&mut cores, 0), Outcome::Return(0));
        assert_eq!(info(&mut cores, 1), Outcome::Return(1));
        assert_eq!(info(&mut cores, 2), Outcome::Return(INVALID_PARAMETERS));
        assert_eq!(call(&mut cores, PSCI_AFFINITY_INFO_64, [0, 1, 0]), Outcome::Return(INVALID_PARAMETERS));
        assert_eq!(cores.take_start(1), None);
        let on = |cores: &mut _, core, entry| call(cores, PSCI_CPU_ON_64, [core, entry, 7]);
        assert_eq!(on(&mut cores, 1, 0xe10_0000), Outcome::Return(INVALID_ADDRESS));
        assert_eq!(on(&mut cores, 1, 0x4000_0002), Outcome::Return(INVALID_ADDRESS));
        for absent in [2, 4, 0x100, 1 << 32, u64::MAX] {
            assert_eq!(
                on(&mut cores, absent, 0x4000_0000),
                Outcome::Return(INVALID_PARAMETERS),
                "{absent:#x}"
            );
        }
        assert_eq!(on(&mut cores, 0, 0x4000_0000), Outcome::Return(ALREADY_ON));
        assert_eq!(on(&mut cores, 1, 0x4000_0000), Outcome::Wake(1));
        assert_eq!(on(&mut cores, 1, 0x5000_0000), Outcome::Return(ON_PENDING));
        assert_eq!(info(&mut cores, 1), Outcome::Return(2));
        assert_eq!(cores.take_start(1), Some((0x4000_0000, 7)));
        assert_eq!(cores.take_start(1), None);
        assert_eq!(on(&mut cores, 1, 0x4000_0000), Outcome::Return(ALREADY_ON));
        assert_eq!(info(&mut cores, 1), Outcome::Return(0));
        cores.stop(1);
        assert_eq!(info(&mut cores, 1), Outcome::Return(1));
        // MPIDR_EL1's other bits are not part of a core's name.
        assert_eq!(on(&mut cores, 0x8000_0001, 0x4000_0000), Outcome::Wake(1));
        cores.stop(1);
        assert_eq!(cores.take_start(1), Some((0x4000_0000, 7)), "stopping does not lose a start");
    }

    #[test]
    fn arguments_of_32_bit_calls_are_cut() {
        let mut cores = Cores::<4>::new();
        cores.boot(2, 0);
        let high = 0xffff_ffff_0000_0000;
        let arguments = [high | 1, high | 0x4000_0000, high | 9];
        assert_eq!(call(&mut cores, PSCI_CPU_ON_32, arguments), Outcome::Wake(1));
        assert_eq!(cores.take_start(1), Some((0x4000_0000, 9)));
    }

    #[test]
    fn features_tell_what_is_answered_and_change_nothing() {
        let mut cores = Cores::<4>::new();
        cores.boot(2, 1);
        let mut known = Vec::new();
        for function in (0x8400_0000..0x8400_0020_u32).chain(0xc400_0000..0xc400_0020) {
            if call(&mut cores, PSCI_FEATURES, [function.into(), 0, 0]) == Outcome::Return(SUCCESS) {
                known.push(function);
            }
        }
        let expected = [0, 1, 2, 3, 4, 8, 9, 0xa].map(|number| 0x8400_0000 + number);
        assert_eq!(known[..8], expected);
        assert_eq!(known[8..], [0xc400_0001, 0xc400_0003, 0xc400_0004]);
        assert_eq!(call(&mut cores, PSCI_FEATURES, [SMCCC_VERSION.into(), 0, 0]), Outcome::Return(SUCCESS));
        assert_eq!(call(&mut cores, PSCI_AFFINITY_INFO_64, [0; 3]), Outcome::Return(1));
        assert_eq!(call(&mut cores, PSCI_SYSTEM_RESET2_64, [0; 3]), Outcome::Return(NOT_SUPPORTED));
        let suspend = call(&mut cores, PSCI_CPU_SUSPEND_64, [POWER_DOWN, 0, 0]);
        assert_eq!(suspend, Outcome::Return(INVALID_PARAMETERS));
        assert_eq!(call(&mut cores, PSCI_CPU_SUSPEND_64, [0; 3]), Outcome::Suspend);
    }
}
