//! PSCI (Arm DEN0022F) and the other standard firmware calls of the host: a closed list. What passes is answered
//! here or forwarded; nothing else reaches EL3.

use crate::{Hypervisor, Outcome, Platform, knob};

/// PSCI 1.1.
pub(crate) const PSCI_VERSION_1_1: u64 = 0x0001_0001;
/// SMCCC 1.2.
pub(crate) const SMCCC_VERSION_1_2: u64 = 0x0001_0002;
/// MIGRATE_INFO_TYPE: no trusted OS, or one that needs no migration.
const MIGRATION_NOT_REQUIRED: u64 = 2;
/// Bits of CPU_SUSPEND's power_state that a standby state has (original format): power level and state id. Bit 16 asks for
/// power-down; in the extended format bit 30 does.
const STANDBY_BITS: u64 = 0x0300_FFFF;

/// Return codes, sign-extended as they travel in x0.
pub(crate) mod code {
    pub(crate) const SUCCESS: u64 = 0;
    pub(crate) const NOT_SUPPORTED: u64 = -1i64 as u64;
    pub(crate) const INVALID_PARAMETERS: u64 = -2i64 as u64;
    pub(crate) const DENIED: u64 = -3i64 as u64;
    pub(crate) const ALREADY_ON: u64 = -4i64 as u64;
    pub(crate) const INVALID_ADDRESS: u64 = -9i64 as u64;
}

/// Function identifiers of SMCCC (DEN0028), PSCI (DEN0022) and TRNG (DEN0098).
pub(crate) mod id {
    pub(crate) const SMCCC_VERSION: u32 = 0x8000_0000;
    pub(crate) const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
    pub(crate) const VERSION: u32 = 0x8400_0000;
    pub(crate) const CPU_SUSPEND_32: u32 = 0x8400_0001;
    pub(crate) const CPU_SUSPEND_64: u32 = 0xC400_0001;
    pub(crate) const CPU_OFF: u32 = 0x8400_0002;
    pub(crate) const CPU_ON_32: u32 = 0x8400_0003;
    pub(crate) const CPU_ON_64: u32 = 0xC400_0003;
    pub(crate) const AFFINITY_INFO_32: u32 = 0x8400_0004;
    pub(crate) const AFFINITY_INFO_64: u32 = 0xC400_0004;
    pub(crate) const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    pub(crate) const SYSTEM_OFF: u32 = 0x8400_0008;
    pub(crate) const SYSTEM_RESET: u32 = 0x8400_0009;
    pub(crate) const FEATURES: u32 = 0x8400_000A;
    pub(crate) const SYSTEM_RESET2_32: u32 = 0x8400_0012;
    pub(crate) const SYSTEM_RESET2_64: u32 = 0xC400_0012;
    pub(crate) const TRNG_VERSION: u32 = 0x8400_0050;
    pub(crate) const TRNG_FEATURES: u32 = 0x8400_0051;
    pub(crate) const TRNG_GET_UUID: u32 = 0x8400_0052;
    pub(crate) const TRNG_RND_32: u32 = 0x8400_0053;
    pub(crate) const TRNG_RND_64: u32 = 0xC400_0053;
}

/// Whether PSCI_FEATURES of the host names this function as present (SMCCC_VERSION included, as DEN0028 asks).
fn is_feature(function: u32) -> bool {
    matches!(
        function,
        id::SMCCC_VERSION
            | id::VERSION
            | id::CPU_SUSPEND_32
            | id::CPU_SUSPEND_64
            | id::CPU_OFF
            | id::CPU_ON_32
            | id::CPU_ON_64
            | id::AFFINITY_INFO_32
            | id::AFFINITY_INFO_64
            | id::MIGRATE_INFO_TYPE
            | id::SYSTEM_OFF
            | id::SYSTEM_RESET
            | id::FEATURES
            | id::SYSTEM_RESET2_32
            | id::SYSTEM_RESET2_64
    )
}

/// Whether PSCI_FEATURES of a partition names this function as present.
pub(crate) fn is_partition_feature(function: u32) -> bool {
    matches!(
        function,
        id::SMCCC_VERSION
            | id::VERSION
            | id::CPU_SUSPEND_32
            | id::CPU_SUSPEND_64
            | id::CPU_OFF
            | id::CPU_ON_64
            | id::AFFINITY_INFO_32
            | id::AFFINITY_INFO_64
            | id::SYSTEM_OFF
            | id::FEATURES
    )
}

/// Whether a power_state of CPU_SUSPEND asks for standby, which has no entry point.
pub(crate) fn is_standby(power_state: u64) -> bool {
    power_state & !STANDBY_BITS == 0
}

/// 0 when the function is there, else NOT_SUPPORTED.
pub(crate) fn present(yes: bool) -> u64 {
    if yes { code::SUCCESS } else { code::NOT_SUPPORTED }
}

/// SMCCC_ARCH_FEATURES: the two functions themselves and no workaround, since none is mediated.
pub(crate) fn is_arch_feature(function: u32) -> bool {
    matches!(function, id::SMCCC_VERSION | id::SMCCC_ARCH_FEATURES)
}

impl Hypervisor {
    /// Answers a call of the host that is not FF-A. `regs[0]` holds the result unless firmware gives it.
    pub(crate) fn host_firmware_call(
        &mut self,
        platform: &mut impl Platform,
        function: u32,
        regs: &mut [u64; 18],
    ) -> Outcome {
        // Firmware sees, and the checks below see, the same words.
        if function & 1 << 30 == 0 {
            for register in regs.iter_mut().take(4) {
                *register &= u64::from(u32::MAX);
            }
        }
        regs[0] = u64::from(function);
        let [_, first, second, third, ..] = *regs;
        let result = match function {
            id::SMCCC_VERSION => SMCCC_VERSION_1_2,
            id::SMCCC_ARCH_FEATURES => present(is_arch_feature(first as u32)),
            id::VERSION => PSCI_VERSION_1_1,
            id::FEATURES => present(is_feature(first as u32)),
            id::MIGRATE_INFO_TYPE => MIGRATION_NOT_REQUIRED,
            id::CPU_SUSPEND_32 | id::CPU_SUSPEND_64 => {
                // A power-down state would resume at the host's own address, at EL2. Standby has no entry point.
                if is_standby(first) {
                    (regs[2], regs[3]) = (0, 0);
                    return Outcome::Firmware;
                }
                code::INVALID_PARAMETERS
            }
            id::CPU_ON_32 | id::CPU_ON_64 => {
                let checked = !self.knobs.skips(knob::CPU_ON_ENTRY);
                if self.shutting_down {
                    code::DENIED
                } else if !second.is_multiple_of(4) || checked && !self.host_owns_page(platform, second) {
                    code::INVALID_ADDRESS
                } else {
                    return Outcome::CpuOn { target: first, entry: second, context: third };
                }
            }
            id::CPU_OFF
            | id::AFFINITY_INFO_32
            | id::AFFINITY_INFO_64
            | id::TRNG_VERSION
            | id::TRNG_FEATURES
            | id::TRNG_GET_UUID
            | id::TRNG_RND_32
            | id::TRNG_RND_64 => return Outcome::Firmware,
            id::SYSTEM_OFF | id::SYSTEM_RESET => {
                self.begin_shutdown(platform);
                return Outcome::Shutdown;
            }
            id::SYSTEM_RESET2_32 | id::SYSTEM_RESET2_64 => {
                // Only the architectural warm reset; vendor resets could do anything.
                if first == 0 {
                    self.begin_shutdown(platform);
                    return Outcome::Shutdown;
                }
                code::INVALID_PARAMETERS
            }
            _ if self.knobs.skips(knob::SMC_ALLOW_LIST) => return Outcome::Firmware,
            _ => code::NOT_SUPPORTED,
        };
        if (result as i64) < 0 {
            self.counters.refused_calls += 1;
        }
        regs[0] = result;
        Outcome::Return
    }
}
