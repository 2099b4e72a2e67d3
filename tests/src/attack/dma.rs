//! Devices of the host's behind the SMMU, told to reach what is not the host's.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use hyp_abi::PAGE_SIZE;
use serde_json::json;

use super::{Outcome, Scene};
use crate::child::{self, Access, End};
use crate::dma::{Edu, Function, HostSide, Layout, Queue, page_of};
use crate::partition::{HEAP_PAGES, Partition};
use crate::report::ask;

/// The middle of the heap, where the device aims.
const AIM: u64 = HEAP_PAGES / 2 * PAGE_SIZE;

/// What came of a device's read of the secret's page.
pub(super) fn judge_word(scene: &Scene<'_>, word: u64) -> Result<Outcome> {
    match word {
        0 => Ok(Outcome::Blocked("the device reads nothing".into())),
        word if scene.secret.has_word(word) => Ok(Outcome::Succeeded("the device reads the secret".into())),
        word => bail!("the device reads {word:#x}, which is not the secret"),
    }
}

/// What came of a device's write there.
fn judge_damage(damage: u64) -> Result<Outcome> {
    match damage {
        0 => Ok(Outcome::Blocked("the partition finds nothing changed".into())),
        1 => Ok(Outcome::Succeeded("the device writes into the partition".into())),
        damage => bail!("{damage} copies of the secret changed"),
    }
}

/// `edu` reads a partition's page.
pub fn edu_reads(scene: &Scene<'_>) -> Result<Outcome> {
    let edu = Edu::first(scene.host)?;
    let partition = scene.partition()?;
    judge_word(scene, edu.read(partition.heap_page()?)?)
}

/// `edu` writes one.
pub fn edu_writes(scene: &Scene<'_>) -> Result<Outcome> {
    let edu = Edu::first(scene.host)?;
    let mut partition = scene.partition()?;
    edu.write(partition.heap_page()?, 8, 0xBAD)?;
    judge_damage(partition.damage(&scene.secret)?)
}

/// A partition in pages that the device used while they were the host's, so that the SMMU knows them.
fn warmed<'h>(scene: &Scene<'h>, edu: &Edu) -> Result<(Partition<'h>, u64)> {
    let heap = scene.host.allocate(HEAP_PAGES)?;
    edu.write(heap + AIM, 8, 0x3A53)?;
    ensure!(edu.read(heap + AIM)? == 0x3A53, "the device does not reach the host's own memory");
    let partition = Partition::load_with_heap(scene.host, scene.image, &scene.secret, heap)?;
    ensure!(scene.secret.is_at(heap + AIM)?, "the secret is not where it should be");
    Ok((partition, heap + AIM))
}

/// `edu` reads a page that the SMMU knew as the host's.
pub fn edu_reads_stale(scene: &Scene<'_>) -> Result<Outcome> {
    let edu = Edu::first(scene.host)?;
    let (_partition, page) = warmed(scene, &edu)?;
    judge_word(scene, edu.read(page)?)
}

/// `edu` writes one.
pub fn edu_writes_stale(scene: &Scene<'_>) -> Result<Outcome> {
    let edu = Edu::first(scene.host)?;
    let (mut partition, page) = warmed(scene, &edu)?;
    edu.write(page, 8, 0xBAD)?;
    judge_damage(partition.damage(&scene.secret)?)
}

/// A virtio device is given a partition's page as its buffer.
pub fn entropy_writes(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.partition()?;
    let function = Function::open("0000:00:03.0")?;
    function.master()?;
    let (layout, bar) = Layout::of_function(&function)?;
    let (iova, page) = page_of(scene.host)?;
    let side = HostSide { registers: function.registers(bar)?, page };
    let mut queue = Queue::start(side, layout, iova, 1)?;
    // First a page of the host's: the device works.
    let (own, window) = page_of(scene.host)?;
    for (target, must_work) in [(own, true), (partition.heap_page()?, false)] {
        queue.post(&[(target, 16, true)])?;
        let start = Instant::now();
        while !queue.is_done()? && !queue.is_broken()? {
            ensure!(start.elapsed() < Duration::from_secs(20), "the device ignores the request");
            std::thread::sleep(Duration::from_millis(5));
        }
        ensure!(!must_work || window.word(0) != 0, "the device does not reach the host's own memory");
    }
    queue.stop()?;
    judge_damage(partition.damage(&scene.secret)?)
}

/// Devices whose registers are read: where, and what is there.
const RTC: u64 = 0x0901_0000;
const RTC_ID: (u64, u64) = (RTC + 0xFE0, 0x31);
/// GICD_PIDR2: the architecture's version.
const GIC_ID: (u64, u64) = (0x0800_0000 + 0xFFE8, 0x3B);
/// The match register of the clock, which does nothing.
const RTC_MATCH: u64 = RTC + 4;
/// edu's identification, and the register that inverts what is written.
const EDU_ID: u64 = 0x0100_00ED;
const EDU_LIVENESS: usize = 4;

/// Where the registers of the other `edu` are.
fn bar_of(edu: &Edu) -> Result<u64> {
    Ok((edu.function.read(0x10, 4)? & !0xF).into())
}

/// `edu` reads registers of other devices.
pub fn edu_reads_devices(scene: &Scene<'_>) -> Result<Outcome> {
    let (edu, other) = (Edu::first(scene.host)?, Edu::second(scene.host)?);
    ensure!(other.registers.read(0, 4) == EDU_ID, "the second edu is not there");
    let mut read = Vec::new();
    for (what, address, expected) in [
        ("the clock", RTC_ID.0, RTC_ID.1),
        ("the interrupt controller", GIC_ID.0, GIC_ID.1),
        ("another device", bar_of(&other)?, EDU_ID),
    ] {
        edu.fetch(address, 4)?;
        match edu.buffered()? & u64::from(u32::MAX) {
            0 => {}
            word if word == expected => read.push(what),
            word => bail!("the device reads {word:#x} of {what}"),
        }
    }
    Ok(match read.is_empty() {
        true => Outcome::Blocked("the device reads no registers".into()),
        false => Outcome::Succeeded(format!("the device reads registers of {}", read.join(", "))),
    })
}

/// `edu` writes registers of other devices.
pub fn edu_writes_devices(scene: &Scene<'_>) -> Result<Outcome> {
    const VALUE: u64 = 0x1234_5678;
    let (edu, other) = (Edu::first(scene.host)?, Edu::second(scene.host)?);
    edu.write(RTC_MATCH, 4, VALUE)?;
    edu.write(bar_of(&other)? + EDU_LIVENESS as u64, 4, VALUE)?;
    let End::Values(clock) = child::access(&[Access::device_read(RTC_MATCH)])? else {
        bail!("the host does not reach its clock")
    };
    let inverted = other.registers.read(EDU_LIVENESS, 4);
    match (clock.first() == Some(&VALUE), inverted == !VALUE & u64::from(u32::MAX)) {
        (false, false) => Ok(Outcome::Blocked("the device writes no registers".into())),
        (clock, edu) => Ok(Outcome::Succeeded(format!("it writes the clock: {clock}, another: {edu}"))),
    }
}

/// Thousands of refused accesses: the hypervisor goes on answering, and does not fill its log.
pub fn event_flood(scene: &Scene<'_>) -> Result<Outcome> {
    /// Each is a thousand accesses of 4 bytes.
    const TRANSFERS: u64 = 12;
    /// Lines in ten seconds.
    const BURST: u64 = 8;
    let edu = Edu::first(scene.host)?;
    let mut partition = scene.partition()?;
    let page = partition.heap_page()?;
    let lines = || -> Result<u64> {
        Ok(ask(json!({"ask": "log", "text": "DMA blocked"}))?["count"].as_u64().unwrap_or(u64::MAX))
    };
    let (before, blocked) = (lines()?, scene.host.stats()?.npu.blocked);
    let start = Instant::now();
    for transfer in 0..TRANSFERS {
        if transfer % 2 == 0 {
            edu.fetch(page, PAGE_SIZE)?
        } else {
            edu.put(page, PAGE_SIZE)?
        }
        // Each answer takes the events out.
        scene.host.stats()?;
    }
    let counted = scene.host.stats()?.npu.blocked - blocked;
    ensure!(counted >= TRANSFERS, "only {counted} refusals were counted");
    ensure!(partition.damage(&scene.secret)? == 0, "the partition's memory changed");
    // Pages still change hands, with the SMMU's leave.
    scene.plain_partition()?.stop()?;
    ensure!(edu.read(page)? == 0, "the device reads the partition");
    let logged = lines()? - before;
    // The machine's clock and this may differ on a busy computer.
    let bound = BURST * (start.elapsed().as_secs() / 5 + 2);
    Ok(match logged <= bound {
        true => Outcome::Blocked(format!("{counted} refusals were counted, {logged} logged")),
        false => Outcome::Succeeded(format!("the log has {logged} lines of {counted} refusals")),
    })
}
