//! The NPU: jobs that reach too far, and what passes from one owner to the next.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flexserve_npu_abi::{Job, Rows, Status};
use guest_abi::session::probe;
use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::{Manifest, Region, access, kind, layout};
use zerocopy::{FromBytes, IntoBytes};

use super::dma::judge_word;
use super::pci::{QUEUE, while_owned, work};
use super::{Outcome, Scene};
use crate::child::{self, Access, End};
use crate::dma::{Ended, HostSide, MAGIC, Npu, Queue, Side, host_takes, page_of};
use crate::knob::Knob;
use crate::partition::{HEAP_PAGES, Partition};

/// What the NPU of this machine takes for a page that it copies.
const PAGE_TIME: Duration = Duration::from_millis(41);
/// As long as nothing may happen.
const CALM: Duration = Duration::from_millis(600);
/// Registers that nobody answers.
const NOBODY: u64 = u32::MAX as u64;

/// The middle of the heap.
const AIM: u64 = layout::HEAP + HEAP_PAGES / 2 * PAGE_SIZE;

/// A job of the host's reads a partition's page.
pub fn host_job_reads(scene: &Scene<'_>) -> Result<Outcome> {
    let partition = scene.partition()?;
    let page = partition.heap_page()?;
    let mut npu = Npu::of_host(scene.host)?;
    let (own, window) = page_of(scene.host)?;
    let ended = npu.copy(page, own, 64)?;
    npu.queue.stop()?;
    match (ended, judge_word(scene, window.word(0))?) {
        (Ended { status: Some(Status::ReadFault), fault }, Outcome::Blocked(_)) if fault == page => {
            Ok(Outcome::Blocked("the job is refused the page".into()))
        }
        (ended, succeeded @ Outcome::Succeeded(_)) if ended.is_ok() => Ok(succeeded),
        (ended, outcome) => bail!("{ended:x?}, {outcome:?}"),
    }
}

/// A job of the host's writes one.
pub fn host_job_writes(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.partition()?;
    let page = partition.heap_page()?;
    let mut npu = Npu::of_host(scene.host)?;
    let own = scene.host.allocate(1)?;
    let ended = npu.copy(own, page, 16)?;
    npu.queue.stop()?;
    match (ended, partition.damage(&scene.secret)?) {
        (Ended { status: Some(Status::WriteFault), fault }, 0) if fault == page => {
            Ok(Outcome::Blocked("the job is refused the page".into()))
        }
        (ended, 1) if ended.is_ok() => Ok(Outcome::Succeeded("the job writes into the partition".into())),
        (ended, damage) => bail!("{ended:x?}, {damage} copies of the secret changed"),
    }
}

/// Jobs of the host's go on in the same 2 MiB as pages that are given and come back, and at last in one that is given:
/// none of their writes is lost, and none lands in what is the partition's.
pub fn job_across_give(scene: &Scene<'_>) -> Result<Outcome> {
    const BLOCK: u64 = 512;
    /// Pages that are copied, in rows that are short, so that there are many accesses.
    const PAGES: u64 = 32;
    const ROW: u32 = 64;
    const FROM: u64 = 0;
    const TO: u64 = 64;
    const VICTIM: u64 = 300;
    let base = scene.host.allocate(BLOCK)?;
    let at = |page: u64| base + page * PAGE_SIZE;
    let window = scene.host.module.map(base, BLOCK)?;
    let pattern: Vec<u8> = (0..PAGES * PAGE_SIZE).map(|i| (i / 7 + i) as u8 | 1).collect();
    window.write(0, &pattern);
    let mut npu = Npu::of_host(scene.host)?;
    npu.submit_copy(at(FROM), at(TO), ROW, (PAGES * PAGE_SIZE) as u32 / ROW)?;
    let mut partition = Partition::create(scene.host, scene.image)?;
    let mut rounds = 0;
    while !npu.queue.is_done()? {
        partition.give_pages(layout::HEAP, at(VICTIM), 1)?;
        partition.recall(layout::HEAP, 1)?.ok("RECALL")?;
        rounds += 1;
    }
    let ended = npu.wait(CALM)?.context("the job does not end")?;
    let mut copied = vec![0; pattern.len()];
    window.read((TO * PAGE_SIZE) as usize, &mut copied);
    ensure!(ended.is_ok() && rounds > 10, "{ended:x?} in {rounds} rounds of give and recall");
    ensure!(copied == pattern, "writes of the job are lost");
    // Into the page itself, byte by byte, so that it goes on for long.
    let rows = |page| Rows { iova: at(page), stride: 1 };
    npu.submit(&[Job::copy(1, PAGE_SIZE as u32, rows(FROM), rows(VICTIM)); 8])?;
    while window.word((VICTIM * PAGE_SIZE) as usize) == 0 {
        std::thread::yield_now();
    }
    partition.give_pages(layout::HEAP, at(VICTIM), 1)?;
    let ended = npu.wait(CALM)?;
    npu.queue.stop()?;
    // The page came zeroed; RAM itself says what is there now.
    let answer = crate::report::ask(serde_json::json!({"ask": "read", "address": at(VICTIM), "size": 1024}))?;
    let bytes = crate::secret::complement_of_hex(answer["bytes"].as_str().unwrap_or_default(), 0)?;
    let landed = bytes.iter().filter(|byte| **byte != 0).count();
    match (ended, landed) {
        (Some(Ended { status: Some(Status::WriteFault), .. }), 0) => {
            Ok(Outcome::Blocked(format!("no write was lost in {rounds} rounds, and none landed")))
        }
        (_, 1..) => Ok(Outcome::Succeeded(format!("{landed} bytes landed in the partition's page"))),
        (ended, landed) => bail!("{ended:x?}, {landed} bytes landed"),
    }
}

/// A probe with one more region, of these contents, at IPAs that are addresses of the host's. They are low, so it is of its image.
fn twin<'h>(scene: &Scene<'h>, base: u64, contents: &[u8]) -> Result<Partition<'h>> {
    let mut manifest = Manifest::read_from_bytes(scene.image.manifest_bytes()).ok().context("a manifest")?;
    let index = manifest.region_count as usize;
    let region = Region {
        ipa: base,
        page_count: contents.len() as u64 / PAGE_SIZE,
        kind: kind::IMAGE,
        access: access::READ | access::WRITE,
    };
    *manifest.regions.get_mut(index).context("no room for a region")? = region;
    manifest.region_count += 1;
    let mut partition = Partition::create_from(scene.host, manifest.as_bytes())?;
    partition.give_all(scene.image)?;
    partition.give_contents(base, contents)?;
    scene.host.measure(partition.id())?;
    partition.start()?;
    Ok(partition)
}

/// How many pages have anything in their first word.
fn written(window: &crate::sys::Window, from: u64, pages: u64) -> usize {
    (from..from + pages).filter(|page| window.word((page * PAGE_SIZE) as usize) != 0).count()
}

/// A job of the host's runs when a partition takes the NPU: nothing lands afterwards, neither where it wrote, nor at the same
/// addresses in the partition.
pub fn job_survives(scene: &Scene<'_>) -> Result<Outcome> {
    const PAGES: u64 = 32;
    /// What lies where the job copies from: of the host's, of the partition's at the same addresses.
    const SOURCES: [[u8; 8]; 2] = [[0x5A; 8], [0xA5; 8]];
    // Sources, then what they are copied to.
    let base = scene.host.allocate(2 * PAGES)?;
    let window = scene.host.module.map(base, 2 * PAGES)?;
    for page in 0..PAGES {
        window.write((page * PAGE_SIZE) as usize, &SOURCES[0]);
    }
    let mut contents = vec![SOURCES[1][0]; (PAGES * PAGE_SIZE) as usize];
    contents.resize((2 * PAGES * PAGE_SIZE) as usize, 0);
    let mut partition = twin(scene, base, &contents)?;
    let mut npu = Npu::of_host(scene.host)?;
    npu.submit_copy(base, base + PAGES * PAGE_SIZE, PAGE_SIZE as u32, PAGES as u32)?;
    while written(&window, PAGES, PAGES) < 3 {
        std::thread::yield_now();
    }
    crate::dma::partition_acquires(&mut partition)?;
    let at_switch = written(&window, PAGES, PAGES);
    std::thread::sleep(PAGE_TIME * PAGES as u32 / 2);
    let later = written(&window, PAGES, PAGES);
    let mut landed = 0;
    for page in PAGES..2 * PAGES {
        // At S-EL1 its stream finds another page there than itself.
        for other_space in [0, 1] {
            let read = [base + page * PAGE_SIZE, other_space, 0, 0];
            let word = partition.act(probe::READ, read)?.values()?[0];
            landed += usize::from(SOURCES.contains(&word.to_le_bytes()));
        }
    }
    Ok(match (later - at_switch, landed) {
        (0, 0) => Outcome::Blocked(format!("the job ended after {at_switch} pages, and nothing landed")),
        (more, landed) => {
            Outcome::Succeeded(format!("{more} pages of the host's, {landed} of the partition's"))
        }
    })
}

/// The host takes the NPU from a partition in the middle of a job: what the device and the SMMU know of the partition's pages
/// is forgotten.
pub fn stale_translations(scene: &Scene<'_>) -> Result<Outcome> {
    const PAGES: u64 = 24;
    let mut partition = scene.partition()?;
    let to = layout::HEAP + PAGES * PAGE_SIZE;
    let second_words = (0..PAGES).map(|page| to + page * PAGE_SIZE + 8).collect::<Vec<_>>();
    for word in &second_words {
        partition.act(probe::WRITE, [*word, 0, 0, 0])?.values()?;
    }
    let changed = |partition: &mut Partition<'_>| -> Result<usize> {
        let mut changed = 0;
        for word in &second_words {
            changed += usize::from(partition.act(probe::READ, [*word, 0, 0, 0])?.values()?[0] != 0);
        }
        Ok(changed)
    };
    // First a word of each page, so that all translations are known; then the pages, slowly.
    let rows = |iova| Rows { iova, stride: PAGE_SIZE };
    let copy = |bytes| Job::copy(bytes, PAGES as u32, rows(layout::HEAP), rows(to));
    Npu::of_partition(&mut partition, QUEUE)?.submit(&[copy(8), copy(PAGE_SIZE as u32)])?;
    while changed(&mut partition)? < 2 {}
    host_takes(scene.host)?;
    let at_switch = changed(&mut partition)?;
    std::thread::sleep(PAGE_TIME * PAGES as u32 / 2);
    let later = changed(&mut partition)?;
    ensure!(at_switch < PAGES as usize, "the job ended before the switch");
    Ok(match later - at_switch {
        0 => Outcome::Blocked(format!("nothing is written after the switch, at page {at_switch}")),
        more => Outcome::Succeeded(format!("{more} pages of the partition's are written by the host's NPU")),
    })
}

/// A page that a partition shares with the host: where the partition sees it, and where the host does.
fn shared<'h>(partition: &mut Partition<'h>) -> Result<(u64, u64)> {
    let address = partition.give_zero(layout::VIRTIO, 1)?;
    partition.act(probe::SHARE, [layout::VIRTIO, 0, 0, 0])?.values()?;
    Ok((layout::VIRTIO, address))
}

/// The host takes the NPU back, and names addresses of the partition's that had it.
pub fn stream_stays(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.partition()?;
    let (ipa, address) = shared(&mut partition)?;
    let module = &scene.host.module;
    let turn = |leave_out| if scene.is_without { Knob::NpuStream.turn(module, leave_out) } else { Ok(()) };
    turn(false)?;
    crate::dma::partition_acquires(&mut partition)?;
    partition.act(probe::SERVICE, [hyp_abi::service::op::NPU_RELEASE, 0, 0, 0])?.values()?;
    turn(true)?;
    // The queue is in the shared page, which only the partition's tables have at that address.
    let window = module.map(address, 1)?;
    let mut npu = Npu::of_host_at(scene.host, module.map(address, 1)?, ipa)?;
    npu.submit_copy(AIM, ipa + 0xE00, 64, 1)?;
    let ended = npu.wait(CALM)?;
    npu.queue.stop()?;
    // Back to the partition, so that owner and stream agree again when it ends.
    crate::dma::partition_acquires(&mut partition)?;
    turn(false)?;
    match (ended, judge_word(scene, window.word(0xE00))?) {
        (None, blocked @ Outcome::Blocked(_)) => Ok(blocked),
        (Some(ended), succeeded @ Outcome::Succeeded(_)) if ended.is_ok() => Ok(succeeded),
        (ended, outcome) => bail!("{ended:x?}, {outcome:?}"),
    }
}

/// A partition names physical addresses of the host's.
pub fn guesses_addresses(scene: &Scene<'_>) -> Result<Outcome> {
    const MARK: u64 = 0x7365_6372_6574_2148;
    let mut partition = scene.plain_partition()?;
    // The host helps: it says where the shared page is, in which the queue lies.
    let (ipa, address) = shared(&mut partition)?;
    let (from, source) = page_of(scene.host)?;
    let (to, target) = page_of(scene.host)?;
    source.write(0, &MARK.to_le_bytes());
    let mut npu = Npu::of_partition_at(&mut partition, ipa, address)?;
    npu.submit_copy(from, to, 64, 1)?;
    let ended = npu.wait(CALM)?;
    npu.queue.stop()?;
    // The host has it again before its stream is looked after again.
    host_takes(scene.host)?;
    match (ended, target.word(0)) {
        (None, 0) => Ok(Outcome::Blocked("the partition's NPU reaches nothing of the host's".into())),
        (Some(ended), MARK) if ended.is_ok() => {
            Ok(Outcome::Succeeded("the partition's NPU reads and writes the host's memory".into()))
        }
        (ended, word) => bail!("{ended:x?}, the host finds {word:#x}"),
    }
}

/// The host looks at what registers say of the partition that had the NPU.
pub fn residue(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.partition()?;
    let ended = work(&mut Npu::of_partition(&mut partition, QUEUE)?)?;
    ensure!(ended.is_some_and(|ended| ended.is_ok()), "the partition's job does not work: {ended:?}");
    partition.act(probe::SERVICE, [hyp_abi::service::op::NPU_RELEASE, 0, 0, 0])?.values()?;
    host_takes(scene.host)?;
    let (mut side, layout) = Npu::<HostSide>::peek(scene.host)?;
    let found = Queue::residue(&mut side, layout)?;
    Ok(match found.iter().all(|word| *word == 0) {
        true => Outcome::Blocked("the registers are as after power-on".into()),
        false => Outcome::Succeeded(format!("the registers say {found:x?}")),
    })
}

/// The host reads registers of the NPU that a partition has.
pub fn registers_read(scene: &Scene<'_>) -> Result<Outcome> {
    let (mut side, layout) = Npu::<HostSide>::peek(scene.host)?;
    ensure!(side.read(layout.device, 4)? == MAGIC, "the host does not find its own NPU");
    let (_partition, found, works) =
        while_owned(scene, || Ok([side.read(layout.device, 4)?, side.read(layout.common, 4)?]))?;
    ensure!(works, "the partition's NPU does not work any more");
    match found {
        [NOBODY, NOBODY] => Ok(Outcome::Blocked("the host reads ones".into())),
        [MAGIC, _] => Ok(Outcome::Succeeded("the host reads the partition's NPU".into())),
        other => bail!("the host reads {other:x?}"),
    }
}

/// The host writes them.
pub fn registers_written(scene: &Scene<'_>) -> Result<Outcome> {
    /// DEVICE_STATUS: 0 resets.
    const STATUS: u64 = 0x14;
    let (mut side, layout) = Npu::<HostSide>::peek(scene.host)?;
    let (_partition, (), works) = while_owned(scene, || side.write(layout.common + STATUS, 1, 0))?;
    Ok(match works {
        true => Outcome::Blocked("the partition's NPU works as before".into()),
        false => Outcome::Succeeded("the host resets the partition's NPU".into()),
    })
}

/// The interrupts of PCI devices, INTA to INTD, on the `virt` machine: SPIs 3 to 6, in the second word of pending bits.
const PENDING: u64 = 0x0800_0000 + 0x204;
const PENDING_PCI: u64 = 0xF << 3;

/// Those that are pending at the host's interrupt controller.
fn interrupts() -> Result<u64> {
    let End::Values(values) = child::access(&[Access::device_read(PENDING)])? else {
        bail!("the host does not reach its interrupt controller")
    };
    Ok(values.first().context("no value")? & PENDING_PCI)
}

/// The host's interrupt controller tells of jobs of a partition's.
pub fn interrupt_leaks(scene: &Scene<'_>) -> Result<Outcome> {
    /// A job that ends when the partition has left the CPU: the interrupt, which nobody handles, would keep it out.
    const PAGES: u32 = 8;
    let mut partition = scene.partition()?;
    let mut npu = Npu::of_partition(&mut partition, QUEUE)?;
    npu.queue.interrupts = true;
    let before = interrupts()?;
    npu.submit_copy(layout::HEAP, AIM, PAGE_SIZE as u32, PAGES)?;
    let start = Instant::now();
    let mut pending = 0;
    while pending == 0 && start.elapsed() < PAGE_TIME * PAGES + 2 * CALM {
        pending = before ^ interrupts()?;
    }
    let is_done = pending != 0 || npu.wait(CALM)?.is_some();
    // Once more: an interrupt that nobody handles may have kept this process from looking.
    pending |= before ^ interrupts()?;
    host_takes(scene.host)?;
    match (pending, is_done) {
        (0, true) => Ok(Outcome::Blocked("no interrupt is pending when the job has ended".into())),
        (0, false) => bail!("the job does not end"),
        _ => Ok(Outcome::Succeeded(format!("the partition's job shows as interrupt {pending:#x}"))),
    }
}
