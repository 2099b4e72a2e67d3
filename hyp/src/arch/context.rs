//! The state that is switched between the host and a partition (I12): EL1 registers, pointer authentication keys,
//! SIMD and SVE, the host's timer; [`super::interrupts`] has the partition's. Debug is off and counting is stopped while
//! a partition runs.

use super::features::Features;
use super::interrupts::{TIMER_ENABLE, TIMER_IMASK};
use super::sysreg::{mrs, msr, register};

/// Makes a structure of registers, and how they are read and written.
macro_rules! registers {
    ($(#[$doc:meta])* $state:ident { $($field:ident: $register:expr),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        struct $state { $($field: u64,)* }

        impl $state {
            const ZERO: Self = Self { $($field: 0,)* };

            fn save() -> Self {
                Self { $($field: mrs!($register),)* }
            }

            fn restore(&self) {
                $(msr!($register, self.$field);)*
            }
        }
    };
}

registers! {
    /// EL1 and EL0 registers that every CPU has.
    Base {
        sctlr: "sctlr_el1", cpacr: "cpacr_el1", actlr: "actlr_el1", ttbr0: "ttbr0_el1", ttbr1: "ttbr1_el1",
        tcr: "tcr_el1", mair: "mair_el1", amair: "amair_el1", vbar: "vbar_el1", contextidr: "contextidr_el1",
        esr: "esr_el1", afsr0: "afsr0_el1", afsr1: "afsr1_el1", far: "far_el1", elr: "elr_el1", spsr: "spsr_el1",
        sp_el0: "sp_el0", sp_el1: "sp_el1", tpidr_el0: "tpidr_el0", tpidrro_el0: "tpidrro_el0",
        tpidr_el1: "tpidr_el1", par: "par_el1", csselr: "csselr_el1", cntkctl: "cntkctl_el1", mdscr: "mdscr_el1",
    }
}

registers! {
    /// Keys of FEAT_PAuth.
    Keys {
        ia_low: register!(apiakeylo_el1), ia_high: register!(apiakeyhi_el1), ib_low: register!(apibkeylo_el1),
        ib_high: register!(apibkeyhi_el1), da_low: register!(apdakeylo_el1), da_high: register!(apdakeyhi_el1),
        db_low: register!(apdbkeylo_el1), db_high: register!(apdbkeyhi_el1), ga_low: register!(apgakeylo_el1),
        ga_high: register!(apgakeyhi_el1),
    }
}

/// Registers of EL1 and EL0.
#[derive(Clone, Copy)]
pub struct El1 {
    base: Base,
    keys: Keys,
    tcr2: u64,
}

impl El1 {
    /// What a fresh vCPU starts with: all zero but SCTLR_EL1 (MMU and caches off).
    pub const RESET: Self =
        Self { base: Base { sctlr: super::host::SCTLR_EL1_RESET, ..Base::ZERO }, keys: Keys::ZERO, tcr2: 0 };

    /// Reads this CPU's registers.
    pub fn save(features: &Features) -> Self {
        let keys = if features.pauth { Keys::save() } else { Keys::ZERO };
        let tcr2 = if features.tcr2 { mrs!(register!(tcr2_el1)) } else { 0 };
        Self { base: Base::save(), keys, tcr2 }
    }

    /// Writes this CPU's registers.
    pub fn restore(&self, features: &Features) {
        self.base.restore();
        self.restore_keys(features);
        if features.tcr2 {
            msr!(register!(tcr2_el1), self.tcr2);
        }
    }

    /// Writes this CPU's keys.
    pub fn restore_keys(&self, features: &Features) {
        if features.pauth {
            self.keys.restore();
        }
    }

    /// Fault knob: leaves debugging enabled as the host has it.
    #[cfg(feature = "fault-knobs")]
    pub fn restore_debug(&self) {
        msr!("mdscr_el1", self.base.mdscr);
    }
}

unsafe extern "C" {
    fn simd_save(state: *mut u8);
    fn simd_restore(state: *const u8);
    fn sve_save(state: *mut u8);
    fn sve_restore(state: *const u8);
}

/// SIMD registers of a partition, in the layout of simd.s.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct Simd([u8; 16 + 512]);

impl Simd {
    /// All zero.
    pub const RESET: Self = Self([0; 528]);

    /// Reads this CPU's registers.
    pub fn save(&mut self) {
        // SAFETY: simd.s writes 528 bytes; SIMD is not trapped at EL2 and this code does not use it.
        unsafe { simd_save(self.0.as_mut_ptr()) };
    }

    /// Writes this CPU's registers.
    pub fn restore(&self) {
        // SAFETY: simd.s reads 528 bytes.
        unsafe { simd_restore(self.0.as_ptr()) };
    }
}

/// SIMD and SVE registers of the host, for vectors of up to 2048 bits, in the layout of simd.s.
#[repr(C, align(16))]
pub struct HostSimd {
    state: [u8; 272 + 512 + 8192],
    zcr: u64,
}

impl HostSimd {
    /// All zero.
    pub const RESET: Self = Self { state: [0; 272 + 512 + 8192], zcr: 0 };

    /// Reads this CPU's registers. SVE must not be trapped (CPTR_EL2 as for the host).
    pub fn save(&mut self, features: &Features) {
        let state = self.state.as_mut_ptr();
        if features.sve {
            self.zcr = mrs!(register!(zcr_el1));
            // SAFETY: the state has room for the longest vectors; EL2 sees them whole (ZCR_EL2 at its maximum).
            unsafe { sve_save(state) };
        } else {
            // SAFETY: as above, for SIMD registers.
            unsafe { simd_save(state) };
        }
    }

    /// Writes this CPU's registers.
    pub fn restore(&self, features: &Features) {
        let state = self.state.as_ptr();
        if features.sve {
            msr!(register!(zcr_el1), self.zcr);
            // SAFETY: as for save.
            unsafe { sve_restore(state) };
        } else {
            // SAFETY: as for save.
            unsafe { simd_restore(state) };
        }
    }
}

/// The host's virtual timer and counting, set aside while a partition runs.
pub struct HostTimer {
    ctl: u64,
    cval: u64,
    pmcr: u64,
}

const PMCR_E: u64 = 1;

impl HostTimer {
    /// Sets the host's timer aside, arms our own for its deadline, so that the host is not kept waiting, and with
    /// `stop_counters` the host's event counters.
    pub fn save(features: &Features, stop_counters: bool) -> Self {
        let timer = Self {
            ctl: mrs!("cntv_ctl_el0"),
            cval: mrs!("cntv_cval_el0"),
            pmcr: if features.pmu { mrs!("pmcr_el0") } else { 0 },
        };
        if timer.ctl & (TIMER_ENABLE | TIMER_IMASK) == TIMER_ENABLE {
            msr!("cnthp_cval_el2", timer.cval); // CNTVOFF_EL2 is 0: both count alike
            msr!("cnthp_ctl_el2", TIMER_ENABLE);
        }
        if features.pmu && stop_counters {
            msr!("pmcr_el0", timer.pmcr & !PMCR_E & 0xff); // the upper fields are read-only
        }
        timer
    }

    /// Gives the host its timer and counters back. Bits that reset counters (P, C) read as zero and stay so.
    pub fn restore(&self, features: &Features) {
        msr!("cnthp_ctl_el2", 0);
        msr!("cntv_cval_el0", self.cval);
        msr!("cntv_ctl_el0", self.ctl & (TIMER_ENABLE | TIMER_IMASK));
        if features.pmu {
            msr!("pmcr_el0", self.pmcr & 0xff);
        }
    }
}
