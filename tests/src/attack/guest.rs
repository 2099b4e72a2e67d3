//! A hostile partition: against memory, registers and CPU time that are not its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_abi::session::probe::{self, REGISTERS};
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa;
use hyp_abi::manifest::layout;
use hyp_abi::service::crash;
use serde_json::json;

use super::{Outcome, Scene};
use crate::knob::Knob;
use crate::partition::{Answer, Exit, HEAP_PAGES, MODEL, Partition, exit};
use crate::report::ask;
use crate::sys;

/// Has a fresh probe commit an act that must end it for one of these causes; none if it did, else what it got.
pub fn ends(scene: &Scene<'_>, kind: u32, args: [u64; 4], causes: &[u64]) -> Result<Option<[u64; 4]>> {
    let mut partition = scene.plain_partition()?;
    let answer = partition.act(kind, args)?;
    scene.host.destroy(partition.id())?;
    match answer {
        Answer::Ended(Exit::Crashed(cause, _)) if causes.contains(&cause) => Ok(None),
        Answer::Report(report) if report.status == 0 => Ok(Some(report.values)),
        other => bail!("act {kind:#x} {args:x?}: {other:x?}"),
    }
}

/// It reads memory of the host, of the hypervisor, of devices, and beyond what it was given.
pub fn strays(scene: &Scene<'_>) -> Result<Outcome> {
    const OF_THE_HOST: u64 = 0x7365_6372_6574_2121;
    let page = scene.host.allocate(1)?;
    scene.host.module.map(page, 1)?.write(0, &OF_THE_HOST.to_le_bytes());
    // At S-EL1: by the address space that leads to the normal world's memory.
    match ends(scene, probe::READ, [page, 1, 0, 0], &[crash::ABORT])? {
        None => {}
        Some([OF_THE_HOST, ..]) => {
            return Ok(Outcome::Succeeded("a partition reads the host's memory".into()));
        }
        Some(values) => bail!("a partition reads {:#x}", values[0]),
    }
    let victim = scene.partition()?;
    let places = [
        ("another partition's page", victim.heap_page()?),
        ("memory of the hypervisor", 0x4020_0000),
        ("the host's serial port", 0x0900_0000),
        ("the trusted serial port", 0x0904_0000),
        ("the interrupt controller", 0x0800_0000),
        ("behind its heap", layout::HEAP + HEAP_PAGES * PAGE_SIZE),
        ("no memory at all", (1 << 40) - PAGE_SIZE),
        ("beyond all addresses", 1 << 45),
    ];
    for ((what, ipa), other_space) in places.into_iter().flat_map(|place| [(place, 0), (place, 1)]) {
        let read = ends(scene, probe::READ, [ipa, other_space, 0, 0], &[crash::ABORT]);
        ensure!(read.with_context(|| what.to_owned())?.is_none(), "it reads {what}");
    }
    let reported = ask(json!({"ask": "log", "text": "access to memory it was not given"}))?;
    ensure!(reported["found"] == true, "the trusted log does not say so");
    Ok(Outcome::Blocked(format!(
        "{} stray reads each end the partition, and are logged",
        2 * places.len() + 1
    )))
}

/// It writes its model and its code, and runs its data.
pub fn writes_read_only(scene: &Scene<'_>) -> Result<Outcome> {
    match ends(scene, probe::WRITE, [layout::MODEL, 0x5EED, 0, 0], &[crash::ABORT])? {
        None => {}
        Some([0x5EED, ..]) => return Ok(Outcome::Succeeded("it changes its measured model".into())),
        Some(values) => bail!("it finds {:#x} after the write", values[0]),
    }
    let code = scene.image.manifest().entry;
    ensure!(
        ends(scene, probe::WRITE, [code, 0x5EED, 0, 0], &[crash::ABORT])?.is_none(),
        "it writes its code"
    );
    for ipa in [layout::HEAP, layout::SESSION + PAGE_SIZE] {
        let ran = ends(scene, probe::EXECUTE, [ipa, 1, 0, 0], &[crash::ABORT])?;
        ensure!(ran.is_none(), "it runs code that it wrote at {ipa:#x}");
    }
    let mut partition = scene.plain_partition()?;
    let model = partition.act(probe::READ, [layout::MODEL, 0, 0, 0])?.values()?[0];
    ensure!(model.to_le_bytes() == *MODEL, "the model reads {model:#x}");
    Ok(Outcome::Blocked("model and code cannot be written, heap and session cannot be run".into()))
}

/// Registers of [`REGISTERS`] that a partition may read, with the bits that must be zero in what it reads: identification
/// hides what is not switched (fields: Arm ARM D24.2), and CNTKCTL_EL1 and MDSCR_EL1 are not on this list but trap or are
/// its own.
const READABLE: [(&str, u64); 10] = [
    // EL2, EL3; RAS, SVE; MPAM, AMU.
    ("ID_AA64PFR0_EL1", 0xFF00 | 0xFF << 28 | 0xFF << 40),
    // MTE, RAS_frac, MPAM_frac, SME, and all above CSV2_frac.
    ("ID_AA64PFR1_EL1", 0xFF_FF00 | 0xFF << 24 | !0 << 36),
    // Trace, PMU, and all above the numbers of breakpoints.
    ("ID_AA64DFR0_EL1", 0xFF0 | !0 << 32),
    // Nothing: instructions without state.
    ("ID_AA64ISAR1_EL1", 0),
    ("ID_AA64MMFR0_EL1", 0),
    // VH, LO.
    ("ID_AA64MMFR1_EL1", 0xF00 | 0xF << 16),
    // NV.
    ("ID_AA64MMFR2_EL1", 0xF << 24),
    ("ID_AA64MMFR3_EL1", !0),
    ("MIDR_EL1", 0),
    ("MPIDR_EL1", 0),
];
/// Registers that are the partition's own: they are switched, or virtual.
const OWN: [&str; 7] = [
    "CNTKCTL_EL1",
    "ICC_IAR1_EL1",
    "ICC_EOIR1_EL1",
    "ICC_PMR_EL1",
    "ICC_IGRPEN1_EL1",
    "ICC_SRE_EL1",
    "ICC_SGI1R_EL1",
];
/// How a forbidden register ends it: by a trap, or, where the CPU itself has none for EL1, by its own exception handler.
const REFUSED: &[u64] = &[crash::UNDEFINED, crash::PANIC];
/// Registers that cannot be read at all.
const WRITE_ONLY: [&str; 1] = ["OSLAR_EL1"];

/// It reads and writes registers of the hypervisor, of the host, and of features that it does not have.
pub fn hidden_registers(scene: &Scene<'_>) -> Result<Outcome> {
    let number =
        |name: &str| REGISTERS.iter().position(|known| *known == name).context("an unknown register");
    let counter = [number("PMCR_EL0")? as u64, 0, 0, 0];
    if let Some([value, ..]) = ends(scene, probe::REGISTER_READ, counter, REFUSED)? {
        return Ok(Outcome::Succeeded(format!("it has the host's performance counters ({value:#x})")));
    }
    let mut partition = scene.plain_partition()?;
    for (name, zero) in READABLE {
        let value = partition.act(probe::REGISTER_READ, [number(name)? as u64, 0, 0, 0])?.values()?[0];
        ensure!(value & zero == 0, "{name} is {value:#x}");
    }
    partition.stop()?;
    let mut hidden = 0;
    for (index, name) in REGISTERS.into_iter().enumerate() {
        if OWN.contains(&name) || READABLE.iter().any(|(readable, _)| *readable == name) {
            continue;
        }
        let act = if WRITE_ONLY.contains(&name) { probe::REGISTER_WRITE } else { probe::REGISTER_READ };
        let ended =
            ends(scene, act, [index as u64, 1, 0, 0], REFUSED).with_context(|| format!("register {name}"))?;
        ensure!(ended.is_none(), "it has {name}");
        hidden += 1;
    }
    Ok(Outcome::Blocked(format!(
        "{hidden} registers end the partition, {} hide what is not its own",
        READABLE.len()
    )))
}

/// Contents of SIMD registers leak between the host and a partition.
pub fn simd_leak(scene: &Scene<'_>) -> Result<Outcome> {
    /// Entries while both sides hold values in all registers.
    const ROUNDS: u64 = 20;
    let host_values: [[u64; 2]; 32] = core::array::from_fn(|n| [!(n as u64) << 8, n as u64 | 0x4855_0000]);
    let mut partition = Partition::create(scene.host, scene.image)?;
    partition.give_all(scene.image)?;
    scene.host.measure(partition.id())?;
    // Every entry is made with the host's values in the registers; so is the first.
    let mut changed_for_host = 0;
    let mut enter = |partition: &Partition<'_>| -> Result<Exit> {
        let mut regs = [0; 18];
        regs[..2].copy_from_slice(&[ffa::RUN.into(), u64::from(partition.id()) << 16]);
        let mut simd = host_values;
        let answer = scene.host.module.call_with_simd(regs, &mut simd)?;
        changed_for_host += simd.iter().zip(&host_values).filter(|(after, before)| after != before).count();
        exit(&answer)
    };
    partition.start_by(&mut enter)?;
    let [_, not_zero, ..] = partition.act_by(probe::BOOT_STATE, [0; 4], &mut enter)?.values()?;
    let yields = partition.act_by(probe::SIMD, [7, 0, ROUNDS, 0], &mut enter)?.values()?[0];
    let ticks = scene.host.stats()?.ticks_per_second / 100;
    let preempted = partition.act_by(probe::SIMD, [8, ticks, ROUNDS, 0], &mut enter)?.values()?[0];
    let found = format!(
        "{changed_for_host} changed for the host, {yields} and {preempted} for the partition; {} not zero at its start",
        not_zero.count_ones()
    );
    Ok(match (changed_for_host, yields + preempted, not_zero) {
        (0, 0, 0) => Outcome::Blocked(found),
        (1.., 1.., 1..) => Outcome::Succeeded(found),
        _ => bail!("{found}"),
    })
}

/// A partition that never gives the CPU away.
pub fn spins(scene: &Scene<'_>) -> Result<Outcome> {
    keeps_cpu(scene, probe::SPIN)
}

/// A partition that does nothing but call the hypervisor.
pub fn smc_storm(scene: &Scene<'_>) -> Result<Outcome> {
    keeps_cpu(scene, probe::STORM)
}

/// A partition keeps the CPU by an act that never ends.
fn keeps_cpu(scene: &Scene<'_>, act: u32) -> Result<Outcome> {
    /// Turns after which it is clear that the host gets its CPU back.
    const TURNS: u64 = 20;
    /// Without the defence the CPU does not come back; for so long a look is taken. Never the reason for "blocked".
    const LOOK: Duration = Duration::from_secs(4);
    let partition = scene.plain_partition()?;
    partition.send(act, [0; 4], &[])?;
    let (turns, inside) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| -> Result<Exit> {
            sys::pin_to_cpu(1)?;
            inside.store(true, Ordering::Release);
            loop {
                match partition.enter()? {
                    Exit::Interrupt => turns.fetch_add(1, Ordering::Relaxed),
                    other => return Ok(other),
                };
            }
        });
        sys::pin_to_cpu(0)?;
        let start = Instant::now();
        let stuck = loop {
            let count = turns.load(Ordering::Relaxed);
            if count >= TURNS || vcpu.is_finished() {
                break false;
            }
            if scene.is_without && inside.load(Ordering::Acquire) && count == 0 && start.elapsed() > LOOK {
                break true;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if stuck {
            // The CPU is rescued by taking the code away from under the partition.
            Knob::RecallState.turn(&scene.host.module, true)?;
            let code = scene.image.pages().first().context("the probe has no code")?;
            let code = partition.recall(code.ipa, code.bytes.len() as u64 / PAGE_SIZE);
            Knob::RecallState.turn(&scene.host.module, false)?;
            code?.ok("RECALL")?;
        } else {
            partition.stop()?;
        }
        sys::unpin()?;
        let end = vcpu.join().map_err(|_| anyhow::anyhow!("the vCPU's thread panicked"))??;
        match (stuck, end) {
            (false, Exit::Stopped) => {
                Ok(Outcome::Blocked(format!("{TURNS} turns ended by interrupts, then it was stopped")))
            }
            (true, Exit::Crashed(crash::ABORT, _)) => {
                Ok(Outcome::Succeeded("the host's CPU did not come back".into()))
            }
            (stuck, end) => bail!("stuck: {stuck}; the vCPU ended by {end:?}"),
        }
    })
}
