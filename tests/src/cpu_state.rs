//! The CPU's state around an entry of a partition, as the host's kernel sees it.

use anyhow::{Context, Result, ensure};
use hyp_abi::ffa;

use crate::host::Host;
use crate::partition::{Exit, Partition, exit};
use crate::sys::{STATE_REGISTERS, State};

/// Registers of a [`State`], in the order of `kmod/cpu_state.c`.
pub const NAMES: [&str; STATE_REGISTERS] = [
    "SCTLR_EL1",
    "CPACR_EL1",
    "TTBR0_EL1",
    "TTBR1_EL1",
    "TCR_EL1",
    "MAIR_EL1",
    "AMAIR_EL1",
    "VBAR_EL1",
    "CONTEXTIDR_EL1",
    "ESR_EL1",
    "AFSR0_EL1",
    "AFSR1_EL1",
    "FAR_EL1",
    "ELR_EL1",
    "SPSR_EL1",
    "SP_EL0",
    "TPIDR_EL0",
    "TPIDRRO_EL0",
    "TPIDR_EL1",
    "PAR_EL1",
    "CSSELR_EL1",
    "CNTKCTL_EL1",
    "MDSCR_EL1",
    "CNTV_CTL_EL0",
    "CNTV_CVAL_EL0",
    "DAIF",
    "OSLSR_EL1",
    "DBGBVR0_EL1",
    "DBGBCR0_EL1",
    "DBGWVR0_EL1",
    "DBGWCR0_EL1",
    "ICC_PMR_EL1",
    "ICC_IGRPEN1_EL1",
    "FPCR",
    "FPSR",
    "PMCR_EL0",
    "PMCNTENSET_EL0",
    "PMINTENSET_EL1",
    "PMSELR_EL0",
    "PMUSERENR_EL0",
    "PMCCFILTR_EL0",
    "PMEVTYPER0_EL0",
    "APIAKeyLo_EL1",
    "APIAKeyHi_EL1",
    "APIBKeyLo_EL1",
    "APIBKeyHi_EL1",
    "APDAKeyLo_EL1",
    "APDAKeyHi_EL1",
    "APDBKeyLo_EL1",
    "APDBKeyHi_EL1",
    "APGAKeyLo_EL1",
    "APGAKeyHi_EL1",
    "ZCR_EL1",
    "TCR2_EL1",
    "SCTLR2_EL1",
    "SCXTNUM_EL0",
    "SCXTNUM_EL1",
];

/// Features of a CPU as the host sees them (`kmod/cpu_state.c`).
pub mod feature {
    /// Pointer authentication.
    pub const PAUTH: u64 = 1 << 0;
    /// Performance monitors.
    pub const PMU: u64 = 1 << 1;
    /// SVE.
    pub const SVE: u64 = 1 << 2;
}

/// Registers that `kmod/cpu_state.c` reads and writes by number.
pub const NUMBERED: [&str; 33] = [
    "ID_AA64PFR0_EL1",
    "ID_AA64PFR1_EL1",
    "ID_AA64PFR2_EL1",
    "ID_AA64ZFR0_EL1",
    "ID_AA64SMFR0_EL1",
    "ID_AA64DFR0_EL1",
    "ID_AA64DFR1_EL1",
    "ID_AA64ISAR0_EL1",
    "ID_AA64ISAR1_EL1",
    "ID_AA64ISAR2_EL1",
    "ID_AA64MMFR0_EL1",
    "ID_AA64MMFR1_EL1",
    "ID_AA64MMFR2_EL1",
    "ID_AA64MMFR3_EL1",
    "PMSCR_EL1",
    "TRBLIMITR_EL1",
    "BRBCR_EL1",
    "GCR_EL1",
    "TFSR_EL1",
    "SMCR_EL1",
    "SVCR",
    "TPIDR2_EL0",
    "AMCR_EL0",
    "MPAM1_EL1",
    "LORC_EL1",
    "HCR_EL2",
    "VBAR_EL2",
    "PIR_EL1",
    "GCSCR_EL1",
    "TRFCR_EL1",
    "ICC_SGI1R_EL1",
    "ICC_ASGI1R_EL1",
    "ICC_SGI0R_EL1",
];

/// Number of a register for the attack module.
pub fn number(name: &str) -> Result<u32> {
    let found = NUMBERED.iter().position(|known| *known == name);
    found.map(|at| at as u32).with_context(|| format!("the module does not know {name}"))
}

/// ISTATUS of CNTV_CTL_EL0: time goes on.
const TIMER_STATUS: u64 = 1 << 2;

/// Value of a register in one half of a state.
pub fn value(values: &[u64; STATE_REGISTERS], name: &str) -> Result<u64> {
    NAMES
        .iter()
        .zip(values)
        .find_map(|(known, value)| (*known == name).then_some(*value))
        .context("an unknown register")
}

/// Names of the registers that changed over the call.
pub fn changed(state: &State) -> Vec<&'static str> {
    let differ = |name: &str, before: u64, after: u64| {
        let ignored = if name == "CNTV_CTL_EL0" { TIMER_STATUS } else { 0 };
        (before ^ after) & !ignored != 0
    };
    let all = NAMES.iter().zip(state.before.iter().zip(&state.after));
    all.filter(|(name, (before, after))| differ(name, **before, **after)).map(|(name, _)| *name).collect()
}

/// What was seen over all entries so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How often it was entered.
    pub entries: u64,
    /// Registers that changed in any of them.
    pub changed: Vec<&'static str>,
    /// Bytes of vectors that changed.
    pub vector_changes: u64,
    /// Length of a vector.
    pub vector_bytes: u64,
    /// What the CPU has.
    pub features: u64,
    /// Ticks, cycles and events of all entries.
    pub counts: [u64; 3],
    /// Low halves of the host's keys IA, DA, GA at the last entry.
    pub keys: [u64; 3],
}

/// What the entries look for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setting {
    /// Address of an instruction at EL1 where the host breaks, or 0.
    pub breakpoint: u64,
    /// Address of a doubleword that the host watches, or 0.
    pub watchpoint: u64,
}

/// What registers are XORed with: every byte differs.
const PLANT: u64 = 0x1234_5678_9abc_def1;

/// Enters a partition with the host's state planted, and compares.
pub fn enter(host: &Host, partition: &Partition<'_>, setting: Setting, seen: &mut Seen) -> Result<Exit> {
    let mut regs = [0; 18];
    regs[..2].copy_from_slice(&[ffa::RUN.into(), u64::from(partition.id()) << 16]);
    let mut state = State { plant: PLANT, ..State::new(regs) };
    (state.breakpoint, state.watchpoint) = (setting.breakpoint, setting.watchpoint);
    host.module.call_with_state(&mut state).context("the attack module")?;
    ensure!(state.vector_bits > 32, "the vectors held nothing");
    seen.entries += 1;
    for name in changed(&state) {
        if !seen.changed.contains(&name) {
            seen.changed.push(name);
        }
    }
    seen.vector_changes += state.vector_changes;
    (seen.vector_bytes, seen.features) = (state.vector_bytes, state.features);
    for (sum, count) in seen.counts.iter_mut().zip([state.ticks, state.cycles, state.events]) {
        *sum += count;
    }
    for (key, name) in seen.keys.iter_mut().zip(["APIAKeyLo_EL1", "APDAKeyLo_EL1", "APGAKeyLo_EL1"]) {
        *key = value(&state.before, name)?;
    }
    exit(&state.regs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_in_the_order_of_the_module() {
        let source = include_str!("../kmod/cpu_state.c");
        let names = |start: &str, end: &str| -> Vec<String> {
            let from = source.find(start).unwrap();
            let part = &source[from..from + source[from..].find(end).unwrap()];
            let comments =
                part.lines().filter(|line| line.contains('(')).filter_map(|line| line.split("/* ").nth(1));
            comments.map(|text| text.split([' ', ':']).next().unwrap().to_owned()).collect()
        };
        assert_eq!(names("#define STATE_REGISTERS", "static u64 state_field"), NAMES);
        assert_eq!(names("\tREGISTER(0,", "#undef REGISTER"), NUMBERED);
    }

    #[test]
    fn the_timers_status_may_change_and_nothing_else() {
        let mut state = State::new([0; 18]);
        let at = NAMES.iter().position(|name| *name == "CNTV_CTL_EL0").unwrap();
        state.after[at] = TIMER_STATUS;
        assert!(changed(&state).is_empty());
        state.after[at] = 1;
        assert_eq!(changed(&state), ["CNTV_CTL_EL0"]);
    }
}
