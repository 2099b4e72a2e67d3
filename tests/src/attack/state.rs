//! State of the CPU that host and partitions do not share: keys, debug, counters, registers of hidden features.

use anyhow::{Context, Result, bail, ensure};
use guest_abi::session::probe::{self, REGISTERS};
use hyp_abi::service::crash;

use super::guest::ends;
use super::{Outcome, Scene};
use crate::child::{self, End};
use crate::cpu_state::{self, Seen, Setting, feature};
use crate::partition::{Answer, Exit, Partition};
use crate::sys;

/// Exception classes of a breakpoint and a watchpoint at the same level.
const BREAKPOINT: u64 = 0x31;
const WATCHPOINT: u64 = 0x35;
/// How a forbidden register ends the partition.
const REFUSED: &[u64] = &[crash::UNDEFINED, crash::PANIC];

/// Has a running probe commit an act, entering it with the host's state planted.
fn act(
    scene: &Scene<'_>,
    partition: &mut Partition<'_>,
    kind: u32,
    args: [u64; 4],
    setting: Setting,
    seen: &mut Seen,
) -> Result<Answer> {
    partition.act_by(kind, args, &mut |partition| cpu_state::enter(scene.host, partition, setting, seen))
}

/// What the host has in whole vectors, predicates and FFR gets lost to a partition that uses SIMD.
pub fn vectors_leak(scene: &Scene<'_>) -> Result<Outcome> {
    let (mut partition, mut seen, none) = (scene.plain_partition()?, Seen::default(), Setting::default());
    act(scene, &mut partition, probe::SIMD, [9, 0, 20, 0], none, &mut seen)?.values()?;
    let found = format!(
        "{} bytes of vectors of {} bytes changed over {} entries",
        seen.vector_changes, seen.vector_bytes, seen.entries
    );
    Ok(if seen.vector_changes == 0 { Outcome::Blocked(found) } else { Outcome::Succeeded(found) })
}

/// A partition has the host's pointer authentication keys, and could sign for it.
pub fn pauth_leak(scene: &Scene<'_>) -> Result<Outcome> {
    let (mut partition, mut seen, none) = (scene.plain_partition()?, Seen::default(), Setting::default());
    // Any act tells what the CPU has.
    act(scene, &mut partition, probe::BOOT_STATE, [0; 4], none, &mut seen)?.values()?;
    if seen.features & feature::PAUTH == 0 {
        return Ok(Outcome::Blocked("this CPU has no pointer authentication".into()));
    }
    let sign = [0x5349_474E, 0x4D4F_4449, 0, 0];
    let [unset, keys @ ..] = act(scene, &mut partition, probe::PAUTH, sign, none, &mut seen)?.values()?;
    let same = keys.iter().zip(&seen.keys).filter(|(its, hosts)| its == hosts).count();
    ensure!(seen.keys.iter().all(|key| *key != 0), "the host has no keys");
    match same {
        0 => {}
        3 => {
            return Ok(Outcome::Succeeded("the partition reads the host's keys, and signs with them".into()));
        }
        same => bail!("{same} of 3 keys are the host's"),
    }
    // Its own keys stay its own, and do not become the host's.
    const OWN: u64 = 0x4B45_5953_0000_0001;
    let own = [sign[0], sign[1], OWN, 0];
    let [signature, ..] = act(scene, &mut partition, probe::PAUTH, own, none, &mut seen)?.values()?;
    let [again, keys @ ..] = act(scene, &mut partition, probe::PAUTH, sign, none, &mut seen)?.values()?;
    ensure!(keys == [OWN; 3] && again == signature && signature != unset, "its keys became {keys:x?}");
    ensure!(seen.changed.is_empty(), "for the host changed {:?}", seen.changed);
    Ok(Outcome::Blocked(format!("other keys on both sides over {} entries", seen.entries)))
}

/// The host's breakpoint and watchpoint stop a partition at a place of the host's choice.
pub fn debug_leak(scene: &Scene<'_>) -> Result<Outcome> {
    const ROUNDS: u64 = 50;
    let (mut hits, mut entries) = (Vec::new(), 0);
    for class in [BREAKPOINT, WATCHPOINT] {
        let (mut partition, mut seen) = (scene.plain_partition()?, Seen::default());
        let [word, function, ..] = partition.act(probe::DEBUG, [0; 4])?.values()?;
        let setting = match class {
            BREAKPOINT => Setting { breakpoint: function, watchpoint: 0 },
            _ => Setting { breakpoint: 0, watchpoint: word },
        };
        match act(scene, &mut partition, probe::DEBUG, [ROUNDS, 1000, 0, 0], setting, &mut seen)? {
            Answer::Report(report) => ensure!(report.status == 0, "{report:?}"),
            Answer::Ended(Exit::Crashed(crash::PANIC, [_, line])) if line >> 56 == class => hits.push(class),
            other => bail!("{other:x?}"),
        }
        ensure!(seen.changed.is_empty(), "for the host changed {:?}", seen.changed);
        entries += seen.entries;
        scene.host.destroy(partition.id())?;
    }
    match hits.len() {
        0 => Ok(Outcome::Blocked(format!(
            "neither hits the partition over {entries} entries, both are there after them"
        ))),
        2 => Ok(Outcome::Succeeded("both stop the partition".into())),
        _ => bail!("only {hits:x?} hit"),
    }
}

/// Nanoseconds in a second: QEMU's cycle counter runs at 1 GHz.
const CYCLES_PER_SECOND: u64 = 1_000_000_000;

/// The host's performance counters count what a partition does.
pub fn counter_leak(scene: &Scene<'_>) -> Result<Outcome> {
    let (mut partition, mut seen, none) = (scene.plain_partition()?, Seen::default(), Setting::default());
    let per_second = scene.host.stats()?.ticks_per_second;
    act(scene, &mut partition, probe::SPIN, [per_second / 10, 0, 0, 0], none, &mut seen)?.values()?;
    let [ticks, cycles, events] = seen.counts;
    if seen.features & feature::PMU == 0 {
        return Ok(Outcome::Blocked("this CPU has no performance monitors".into()));
    }
    let expected = ticks.saturating_mul(CYCLES_PER_SECOND) / per_second.max(1);
    let found = format!("{cycles} cycles and {events} events are counted in time for {expected}");
    ensure!(seen.changed.is_empty(), "for the host changed {:?}", seen.changed);
    match (cycles > expected / 2, events > expected / 2) {
        (false, false) => Ok(Outcome::Blocked(found)),
        (true, true) => Ok(Outcome::Succeeded(found)),
        _ => bail!("{found}"),
    }
}

/// A register of a hidden feature, which nobody switches, carries a word from the host to a partition.
pub fn hidden_feature(scene: &Scene<'_>) -> Result<Outcome> {
    const WORD: u64 = 0x7365_6372_6574_2121;
    sys::pin_to_cpu(0)?;
    let result = carry(scene, WORD);
    sys::unpin()?;
    let (host_writes, partition_reads) = result?;
    match (host_writes, partition_reads) {
        (false, None) => Ok(Outcome::Blocked("TPIDR2_EL0 ends the host's task, and the partition".into())),
        (true, Some(WORD)) => Ok(Outcome::Succeeded("TPIDR2_EL0 carries a word to the partition".into())),
        other => bail!("written and read: {other:x?}"),
    }
}

fn carry(scene: &Scene<'_>, word: u64) -> Result<(bool, Option<u64>)> {
    // A call on this CPU.
    scene.host.stats()?;
    let written = match child::write_register(cpu_state::number("TPIDR2_EL0")?, word)? {
        End::Values(_) => true,
        End::Killed(_) => false,
        other => bail!("the writer ended by {other:?}"),
    };
    let number = REGISTERS.iter().position(|name| *name == "TPIDR2_EL0").context("an unknown register")?;
    let read = ends(scene, probe::REGISTER_READ, [number as u64, 0, 0, 0], REFUSED)?;
    Ok((written, read.map(|values| values[0])))
}
