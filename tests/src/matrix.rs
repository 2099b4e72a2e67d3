//! Hidden and switched features (I12), one by one, on whatever CPU this is. xtask boots the suite on several.

use std::sync::Barrier;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use flexserve::image::Image;
use guest_abi::session::probe::{self, REGISTERS};
use hyp_abi::service::crash;
use nix::sys::signal::Signal;

use crate::attack::{self, Outcome, Scene};
use crate::child::{self, End};
use crate::cpu_state::{self, Seen, Setting, feature, number};
use crate::host::Host;
use crate::knob::Knob;
use crate::partition::{Answer, Exit, PROBE_PATH, Partition};
use crate::report;
use crate::secret::Secret;
use crate::sys;

/// A feature that is hidden: where it would be named (register and the field's lowest bit), and a register of its own.
struct Hidden {
    name: &'static str,
    fields: &'static [(&'static str, u32)],
    register: &'static str,
}

/// Fields: Arm ARM D24.2.
const HIDDEN: [Hidden; 10] = [
    Hidden { name: "spe", fields: &[("ID_AA64DFR0_EL1", 32)], register: "PMSCR_EL1" },
    Hidden { name: "trbe", fields: &[("ID_AA64DFR0_EL1", 44)], register: "TRBLIMITR_EL1" },
    Hidden { name: "brbe", fields: &[("ID_AA64DFR0_EL1", 52)], register: "BRBCR_EL1" },
    Hidden { name: "mte", fields: &[("ID_AA64PFR1_EL1", 8), ("ID_AA64PFR1_EL1", 40)], register: "GCR_EL1" },
    Hidden { name: "sme", fields: &[("ID_AA64PFR1_EL1", 24)], register: "SMCR_EL1" },
    Hidden { name: "amu", fields: &[("ID_AA64PFR0_EL1", 44)], register: "AMCR_EL0" },
    Hidden {
        name: "mpam",
        fields: &[("ID_AA64PFR0_EL1", 40), ("ID_AA64PFR1_EL1", 16)],
        register: "MPAM1_EL1",
    },
    Hidden { name: "loregions", fields: &[("ID_AA64MMFR1_EL1", 16)], register: "LORC_EL1" },
    Hidden { name: "nv", fields: &[("ID_AA64MMFR2_EL1", 24)], register: "HCR_EL2" },
    Hidden { name: "pie", fields: &[("ID_AA64MMFR3_EL1", 8), ("ID_AA64MMFR3_EL1", 16)], register: "PIR_EL1" },
];

/// Further registers of hidden features that end the host's task.
const HIDDEN_REGISTERS: [&str; 6] = ["TFSR_EL1", "SVCR", "TPIDR2_EL0", "VBAR_EL2", "GCSCR_EL1", "TRFCR_EL1"];

/// Groups of switched registers: what their names begin with.
const SWITCHED: [(&str, &[&str]); 6] = [
    ("switched-pauth-keys", &["AP"]),
    ("switched-debug", &["MDSCR", "DBG", "OSLSR"]),
    ("switched-pmu", &["PM"]),
    ("switched-timer", &["CNT"]),
    ("switched-tcr2-sctlr2", &["TCR2", "SCTLR2"]),
    ("switched-fp-control", &["FPCR", "FPSR"]),
];
/// All that is in no group.
const SWITCHED_REST: &str = "switched-el1-registers";

type Test = fn(&Scene<'_>) -> Result<String>;

/// Tests that are more than an entry of a table.
const TESTS: [(&str, Test); 7] = [
    ("hidden-others", hidden_others),
    ("hidden-from-processes", hidden_from_processes),
    ("vectors-on-every-cpu", vectors_on_every_cpu),
    ("pauth-keys-differ", |scene| blocked(attack::state::pauth_leak(scene))),
    ("breakpoints-are-off", |scene| blocked(attack::state::debug_leak(scene))),
    ("counters-stop", |scene| blocked(attack::state::counter_leak(scene))),
    ("partition-simd", |scene| blocked(attack::guest::simd_leak(scene))),
];

fn blocked(outcome: Result<Outcome>) -> Result<String> {
    match outcome? {
        Outcome::Blocked(how) => Ok(how),
        Outcome::Succeeded(how) => bail!("NOT BLOCKED: {how}"),
    }
}

/// Runs the wanted tests.
pub fn run() -> Result<()> {
    let wanted = report::wanted_tests()?;
    let host = Host::new()?;
    let image = Image::load(PROBE_PATH.as_ref())?;
    let scene = Scene { host: &host, image: &image, secret: Secret::new()?, is_without: false };
    let judge = |name: &str, result: Result<String>| {
        if !wanted.iter().any(|wanted| wanted == name) {
            return Ok(());
        }
        let (ok, detail) = match result {
            Ok(detail) => (true, detail),
            Err(error) => (false, format!("{error:#}")),
        };
        report::verdict(name, ok, &detail)
    };
    for feature in &HIDDEN {
        judge(&format!("hidden-{}", feature.name), hidden(&scene, feature))?;
        attack::clear_up(&host, true)?;
    }
    let seen = entries(&scene).map_err(|error| format!("{error:#}"));
    attack::clear_up(&host, true)?;
    let changed = |belongs: &dyn Fn(&str) -> bool| -> Result<String> {
        let seen = seen.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        let changed: Vec<_> = seen.changed.iter().filter(|name| belongs(name)).collect();
        ensure!(changed.is_empty(), "for the host changed {changed:?}");
        let count = cpu_state::NAMES.iter().filter(|name| belongs(name)).count();
        Ok(format!("{count} registers are as before over {} entries", seen.entries))
    };
    let is_in = |name: &str, starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
    for (name, starts) in SWITCHED {
        judge(name, changed(&|register| is_in(register, starts)))?;
    }
    let is_rest = |register: &str| !SWITCHED.iter().any(|(_, starts)| is_in(register, starts));
    judge(SWITCHED_REST, changed(&is_rest))?;
    judge("switched-vectors", vectors(&seen))?;
    for (name, test) in TESTS {
        judge(name, test(&scene))?;
        attack::clear_up(&host, true)?;
    }
    Ok(())
}

fn field(value: u64, shift: u32) -> u64 {
    value >> shift & 0xf
}

/// Neither the host nor a partition sees the feature, and its register ends who uses it.
fn hidden(scene: &Scene<'_>, feature: &Hidden) -> Result<String> {
    let of_partition =
        |name: &str| REGISTERS.iter().position(|known| *known == name).context("an unknown register");
    for (register, shift) in feature.fields {
        let value = scene.host.module.read_register(number(register)?).context("the attack module")?;
        ensure!(field(value, *shift) == 0, "the host's {register} is {value:#x}");
        let mut partition = scene.plain_partition()?;
        let read = [of_partition(register)? as u64, 0, 0, 0];
        let value = partition.act(probe::REGISTER_READ, read)?.values()?[0];
        ensure!(field(value, *shift) == 0, "the partition's {register} is {value:#x}");
    }
    ends_the_task(feature.register)?;
    let read = [of_partition(feature.register)? as u64, 0, 0, 0];
    let refused = &[crash::UNDEFINED, crash::PANIC];
    ensure!(
        attack::guest::ends(scene, probe::REGISTER_READ, read, refused)?.is_none(),
        "a partition reads {}",
        feature.register
    );
    Ok(format!("not named, and {} ends task and partition", feature.register))
}

/// Reading the register ends the task whose kernel tries.
fn ends_the_task(register: &str) -> Result<()> {
    match child::read_register(number(register)?)? {
        End::Killed(_) => Ok(()),
        other => bail!("{register} in the host: {other:x?}"),
    }
}

/// Identification registers that name nothing but hidden features.
const ALL_HIDDEN: [&str; 3] = ["ID_AA64PFR2_EL1", "ID_AA64SMFR0_EL1", "ID_AA64DFR1_EL1"];

fn hidden_others(scene: &Scene<'_>) -> Result<String> {
    for register in ALL_HIDDEN {
        let value = scene.host.module.read_register(number(register)?).context("the attack module")?;
        ensure!(value == 0, "the host's {register} is {value:#x}");
    }
    HIDDEN_REGISTERS.iter().try_for_each(|register| ends_the_task(register))?;
    Ok(format!("{HIDDEN_REGISTERS:?} end the task"))
}

/// What the host's kernel offers its processes, and what an instruction does that it does not offer.
fn hidden_from_processes(_: &Scene<'_>) -> Result<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("Features")).context("no features")?;
    let hidden: Vec<_> = line
        .split_ascii_whitespace()
        .filter(|name| ["sme", "mte", "poe", "gcs"].iter().any(|start| name.starts_with(start)))
        .collect();
    ensure!(hidden.is_empty() && line.contains("asimd"), "processes have {hidden:?}");
    match child::start_streaming()? {
        End::Killed(Signal::SIGILL) => Ok("SMSTART is an illegal instruction".into()),
        other => bail!("SMSTART: {other:?}"),
    }
}

/// Enters a partition that uses all it has, with the host's state planted.
fn entries(scene: &Scene<'_>) -> Result<Seen> {
    let (mut partition, mut seen) = (scene.plain_partition()?, Seen::default());
    use_all(scene.host, &mut partition, &mut seen)?;
    Ok(seen)
}

/// Has a partition change its registers, sleep, and be interrupted.
fn use_all(host: &Host, partition: &mut Partition<'_>, seen: &mut Seen) -> Result<()> {
    let ticks = host.stats()?.ticks_per_second / 100;
    let mut act = |kind, args| -> Result<[u64; 4]> {
        let enter =
            &mut |partition: &Partition<'_>| cpu_state::enter(host, partition, Setting::default(), seen);
        partition.act_by(kind, args, enter)?.values()
    };
    for own in ["CNTKCTL_EL1", "ICC_PMR_EL1"] {
        let at = REGISTERS.iter().position(|known| *known == own).context("an unknown register")?;
        act(probe::REGISTER_WRITE, [at as u64, 0xF0, 0, 0])?;
    }
    for (seed, ticks, rounds) in [(1, 0, 20), (2, ticks, 5)] {
        let lost = act(probe::SIMD, [seed, ticks, rounds, 0])?[0];
        ensure!(lost == 0, "{lost} registers changed for the partition");
    }
    act(probe::SLEEP, [ticks, 0, 0, 0])?;
    if seen.features & feature::PAUTH != 0 {
        let enter =
            &mut |partition: &Partition<'_>| cpu_state::enter(host, partition, Setting::default(), seen);
        partition.act_by(probe::PAUTH, [1, 2, 0x1111, 0], enter)?.values()?;
    }
    Ok(())
}

fn vectors(seen: &Result<Seen, String>) -> Result<String> {
    let seen = seen.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(seen.vector_changes == 0, "{} bytes changed", seen.vector_changes);
    let sve = seen.features & feature::SVE != 0;
    ensure!(sve || seen.vector_bytes == 16, "vectors of {} bytes without SVE", seen.vector_bytes);
    let what = if sve { "Z, P and FFR" } else { "V" };
    Ok(format!("{what} of {} bytes are as before over {} entries", seen.vector_bytes, seen.entries))
}

/// Each CPU runs a partition of its own at the same time (one CPU: two in turn), the host's vectors in the registers.
fn vectors_on_every_cpu(scene: &Scene<'_>) -> Result<String> {
    let cpus = thread::available_parallelism()?.get().min(4);
    let mut partitions = Vec::new();
    for _ in 0..cpus.max(2) {
        partitions.push(scene.plain_partition()?);
    }
    let barrier = Barrier::new(partitions.len());
    let host = scene.host;
    let all: Vec<Result<Seen>> = thread::scope(|scope| {
        let threads: Vec<_> = partitions
            .iter_mut()
            .enumerate()
            .map(|(at, partition)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let pinned = sys::pin_to_cpu((at % cpus) as u32);
                    barrier.wait();
                    pinned?;
                    let mut seen = Seen::default();
                    use_all(host, partition, &mut seen)?;
                    Ok(seen)
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<Seen>>| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread panicked"),
        };
        threads.into_iter().map(join).collect()
    });
    let mut entries = 0;
    for seen in all {
        let seen = seen?;
        ensure!(seen.vector_changes == 0, "{} bytes changed", seen.vector_changes);
        ensure!(seen.changed.is_empty(), "for the host changed {:?}", seen.changed);
        entries += seen.entries;
    }
    Ok(format!("{} partitions on {cpus} CPUs, {entries} entries", partitions.len()))
}

/// A pending SError, which emulation does not have: the knob takes the vector that one would take. The hypervisor and
/// everybody else go on.
pub fn run_knobs() -> Result<()> {
    ensure!(attack::has_knobs()?, "this hypervisor has no fault knobs");
    let name = "pending-serror";
    if !report::wanted_tests()?.iter().any(|wanted| wanted == name) {
        return Ok(());
    }
    let host = Host::new()?;
    let image = Image::load(PROBE_PATH.as_ref())?;
    let (ok, detail) = match serror(&host, &image) {
        Ok(detail) => (true, detail),
        Err(error) => (false, format!("{error:#}")),
    };
    report::verdict(name, ok, &detail)
}

fn serror(host: &Host, image: &Image) -> Result<String> {
    let mut other = Partition::load(host, image, None)?;
    for _ in 0..3 {
        let mut partition = Partition::load(host, image, None)?;
        Knob::Serror.turn(&host.module, true)?;
        let answer = partition.act(probe::BOOT_STATE, [0; 4]);
        Knob::Serror.turn(&host.module, false)?;
        let end = Answer::Ended(Exit::Crashed(crash::SERROR, [0; 2]));
        ensure!(answer.as_ref().is_ok_and(|answer| *answer == end), "{answer:x?}");
        host.destroy(partition.id())?;
        other.act(probe::BOOT_STATE, [0; 4])?.values()?;
    }
    host.destroy(other.id())?;
    ensure!(host.stats()?.partition_count == 0, "a partition is left");
    Ok("each ends the partition that it met, and nobody else".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suites_list_every_test() {
        let mut names: Vec<String> =
            HIDDEN.iter().map(|feature| format!("hidden-{}", feature.name)).collect();
        names.extend(SWITCHED.iter().map(|(name, _)| (*name).to_owned()));
        names.extend([SWITCHED_REST.to_owned(), "switched-vectors".into()]);
        names.extend(TESTS.iter().map(|(name, _)| (*name).to_owned()));
        let suite: toml::Value = toml::from_str(include_str!("../suites/matrix.toml")).unwrap();
        let listed: Vec<&str> =
            suite["tests"].as_array().unwrap().iter().filter_map(|test| test.as_str()).collect();
        assert_eq!(listed, names);
    }

    #[test]
    fn every_register_is_known_to_module_and_probe() {
        for feature in &HIDDEN {
            for name in feature.fields.iter().map(|(name, _)| *name).chain([feature.register]) {
                assert!(number(name).is_ok() && REGISTERS.contains(&name), "{name}");
            }
        }
        assert!(HIDDEN_REGISTERS.iter().chain(&ALL_HIDDEN).all(|name| number(name).is_ok()));
    }
}
