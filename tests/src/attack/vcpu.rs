//! vCPUs: entered where they must not be, turned on where there are none, and interrupting who is not their partition.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use guest_abi::session::probe::{self, task};
use hyp_abi::ffa::{self, error};

use super::{Outcome, Scene};
use crate::partition::Exit;
use crate::sys;

/// vCPUs of the probe's manifest.
const VCPUS: u64 = 4;
const INVALID_PARAMETERS: u64 = -2i64 as u64;

/// Two CPUs enter one vCPU.
pub fn entered_twice(scene: &Scene<'_>) -> Result<Outcome> {
    /// Refusals after which it is clear.
    const REFUSALS: u64 = 30;
    let partition = scene.plain_partition()?;
    partition.send(probe::SPIN, [0; 4], &[])?;
    let target = u64::from(partition.id()) << 16;
    let (over, refused, lost) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let contend = |cpu| -> Result<()> {
        sys::pin_to_cpu(cpu)?;
        while !over.load(Ordering::Relaxed) {
            let regs = scene.host.ffa(ffa::RUN, [target, 0, 0])?;
            match (regs[0] as u32, regs[2] as i32) {
                (ffa::ERROR, error::BUSY) => {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                (ffa::INTERRUPT, _) => {}
                // It spins all the time. Any other answer (it is off, it crashed, it waits) is what two CPUs inside made
                // of one context.
                _ => {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            if refused.load(Ordering::Relaxed) >= REFUSALS || lost.load(Ordering::Relaxed) > 0 {
                over.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    };
    let ended = std::thread::scope(|scope| {
        let other = scope.spawn(|| contend(1));
        let one = contend(0);
        over.store(true, Ordering::Relaxed);
        other.join().map_err(|_| anyhow!("a thread panicked"))?.and(one)
    });
    sys::unpin()?;
    partition.stop()?;
    ended?;
    Ok(match (refused.into_inner(), lost.into_inner()) {
        (refusals, 0) => {
            Outcome::Blocked(format!("{refusals} entries are refused while another CPU is inside"))
        }
        _ => Outcome::Succeeded("two CPUs ran the same vCPU".into()),
    })
}

/// A partition turns on, and the host runs, vCPUs that the measured manifest does not have.
pub fn not_in_manifest(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.plain_partition()?;
    let runner = partition.runner();
    let mut answers = Vec::new();
    for target in [VCPUS + 1, 7, 1 << 8, 1 << 16 | 1, 1 << 31 | 1, 1 << 32 | 1, u64::MAX] {
        answers.push(partition.act(probe::CREW_START, [target, task::SPIN, 0, 0])?.values()?[0]);
    }
    if answers[0] == 0 {
        // There is no stack for it: what matters is that it ran.
        return match runner.enter(VCPUS as usize + 1)? {
            Some(Exit::Crashed(..) | Exit::Interrupt) => {
                Ok(Outcome::Succeeded(format!("vCPU {} of {VCPUS} runs", VCPUS + 1)))
            }
            other => bail!("it is on, and ends by {other:?}"),
        };
    }
    ensure!(answers.iter().all(|answer| *answer == INVALID_PARAMETERS), "CPU_ON answers {answers:x?}");
    for vcpu in [VCPUS, VCPUS + 1, 7, 8, 0xFFFF] {
        let regs = scene.host.ffa(ffa::RUN, [u64::from(partition.id()) << 16 | vcpu, 0, 0])?;
        let code = regs[2] as i32;
        ensure!(code == error::INVALID_PARAMETERS, "FFA_RUN of vCPU {vcpu} answers {code}");
    }
    Ok(Outcome::Blocked("refused to the partition and to the host".into()))
}

/// The IRQ work interrupts that Linux took on its first CPU: one that it rarely sends itself.
const IRQ_WORK: u64 = 5;

fn irq_work_count() -> Result<u64> {
    let table = fs::read_to_string("/proc/interrupts")?;
    let name = format!("IPI{IRQ_WORK}:");
    let line =
        table.lines().find_map(|line| line.trim_start().strip_prefix(&name)).context("no such line")?;
    line.split_whitespace().next().and_then(|count| count.parse().ok()).context("no count")
}

/// A partition interrupts the host, and another partition.
pub fn sends_sgis(scene: &Scene<'_>) -> Result<Outcome> {
    const TIMES: u64 = 20_000;
    /// More than Linux sends itself meanwhile, and fewer than arrive if any do.
    const CLEAR: u64 = 30;
    let ticks = scene.host.stats()?.ticks_per_second;
    let mut partition = scene.plain_partition()?;
    sys::pin_to_cpu(1)?;
    let before = irq_work_count()?;
    // To the CPU of affinity 0, which is the host's first.
    partition.act(probe::SEND_SGI, [IRQ_WORK << 24 | 1, TIMES, 0, 0])?.values()?;
    let came = irq_work_count()? - before;
    sys::unpin()?;
    if came >= CLEAR {
        return Ok(Outcome::Succeeded(format!("{came} interrupts of a partition reach the host's CPU")));
    }
    let mut other = scene.plain_partition()?;
    for value in
        [0xFFFF, IRQ_WORK << 24 | 1, 1 << 40, 8 << 24 | 1 << 40, 15 << 24 | 0xFFFF, 1 << 16 | 1, u64::MAX]
    {
        partition.act(probe::SEND_SGI, [value, 4, 0, 0])?.values()?;
    }
    let [taken, numbers, ..] = other.act(probe::RECEIVE, [1, ticks / 20, 0, 0])?.values()?;
    ensure!(taken == 0, "another partition took {numbers:#x}");
    let [taken, numbers, ..] = partition.act(probe::RECEIVE, [1, 5 * ticks, 0, 0])?.values()?;
    ensure!(taken > 0 && numbers & 1 << IRQ_WORK != 0, "its own do not reach it: {taken}, {numbers:#x}");
    Ok(Outcome::Blocked(format!(
        "{came} interrupts at the host's CPU, none at another partition's, its own reach it"
    )))
}
