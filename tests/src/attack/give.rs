//! Gives, recalls and the mailbox, with pages that are not the host's to name.

use std::fs;

use anyhow::{Context, Result, anyhow, bail, ensure};
use guest_abi::session::probe;
use hyp_abi::PAGE_SIZE;
use hyp_abi::bundle;
use hyp_abi::ffa::{self, error};
use hyp_abi::manifest::layout;
use hyp_abi::service::{PageRange, op};
use serde_json::json;

use super::memory::CODE;
use super::{Outcome, Scene};
use crate::child::{self, End};
use crate::host::{Reply, call_service};
use crate::partition::{Exit, HEAP_PAGES, Partition};
use crate::report::{ask, to_hex};
use crate::sys::{self, CODE_RETURNS};

/// Where heap may be given that is not yet.
const FREE_HEAP: u64 = layout::HEAP + HEAP_PAGES * PAGE_SIZE;
/// Where a page of model may be given that is not yet.
pub(super) const FREE_MODEL: u64 = layout::MODEL + PAGE_SIZE;

pub(super) fn one(base: u64) -> [PageRange; 1] {
    [PageRange { base, page_count: 1 }]
}

/// Whether a give was carried out; if not, it must have been refused for this reason.
pub(super) fn was_accepted(reply: Reply, reason: i32) -> Result<bool> {
    match reply.status {
        0 => Ok(true),
        status if status == reason => Ok(false),
        _ => bail!("refused for the wrong reason: {}", reply.shown()),
    }
}

/// Loads the rest of a partition that has already got some model, and returns it running.
pub(super) fn finish<'h>(scene: &Scene<'h>, mut partition: Partition<'h>) -> Result<Partition<'h>> {
    partition.give_all(scene.image)?;
    scene.host.measure(partition.id())?;
    partition.start()?;
    Ok(partition)
}

/// A page of one partition is given to another, and to itself.
pub fn twice(scene: &Scene<'_>) -> Result<Outcome> {
    let mut victim = scene.partition()?;
    let page = victim.heap_page()?;
    let thief = Partition::create(scene.host, scene.image)?;
    if was_accepted(thief.give(FREE_MODEL, &one(page))?, error::DENIED)? {
        let mut thief = finish(scene, thief)?;
        let word = thief.act(probe::READ, [FREE_MODEL, 0, 0, 0])?.values()?[0];
        ensure!(scene.secret.has_word(word), "the other partition reads {word:#x}");
        return Ok(Outcome::Succeeded("another partition reads the secret".into()));
    }
    let again = was_accepted(victim.give(FREE_HEAP, &one(page))?, error::DENIED)?;
    ensure!(
        !again && victim.damage(&scene.secret)? == 0,
        "the page was given to its owner again, or changed"
    );
    Ok(Outcome::Blocked("refused for another partition and for its owner; the secret is intact".into()))
}

/// One CPU recalls the pages of a stopped partition while another gives each to a thief as soon as that works, with what is
/// in it.
pub fn race(scene: &Scene<'_>) -> Result<Outcome> {
    let victim = scene.partition()?;
    let pages = (0..HEAP_PAGES).map(|page| victim.page(layout::HEAP + page * PAGE_SIZE));
    let pages = pages.collect::<Result<Vec<_>>>()?;
    victim.stop()?;
    let thief = Partition::create(scene.host, scene.image)?;
    let (id, place) = (victim.id(), |page: usize| FREE_MODEL + page as u64 * PAGE_SIZE);
    let refusals = std::thread::scope(|scope| -> Result<u64> {
        // Without a list, so that the calls of both really meet.
        let owner = scope.spawn(move || -> Result<()> {
            sys::pin_to_cpu(1)?;
            for page in 0..HEAP_PAGES {
                let arguments = [id.into(), layout::HEAP + page * PAGE_SIZE, 1, 0];
                call_service(&scene.host.module, op::RECALL, arguments)?.ok("RECALL")?;
            }
            Ok(())
        });
        sys::pin_to_cpu(0)?;
        let mut refusals = 0;
        let mut steal = || -> Result<()> {
            for (number, page) in pages.iter().enumerate() {
                while !was_accepted(thief.give(place(number), &one(*page))?, error::DENIED)? {
                    refusals += 1;
                    ensure!(refusals < 1_000_000, "the page does not come back");
                }
            }
            Ok(())
        };
        let stolen = steal();
        owner.join().map_err(|_| anyhow!("a thread panicked"))??;
        stolen.map(|()| refusals)
    });
    sys::unpin()?;
    let refusals = refusals?;
    let mut thief = finish(scene, thief)?;
    let mut found = 0;
    for page in 0..pages.len() {
        let word = thief.act(probe::READ, [place(page), 0, 0, 0])?.values()?[0];
        ensure!(word == 0 || scene.secret.has_word(word), "the thief reads {word:#x}");
        found += u64::from(word != 0);
    }
    Ok(match found {
        0 => {
            Outcome::Blocked(format!("{HEAP_PAGES} pages changed hands, all zero, after {refusals} refusals"))
        }
        _ => Outcome::Succeeded(format!("the secret is in {found} pages")),
    })
}

/// Where the hypervisor lies: the outside finds the header of its image in RAM.
fn hypervisor_page() -> Result<u64> {
    let inverted: Vec<u8> = bundle::MAGIC.iter().map(|byte| !byte).collect();
    let answer = ask(json!({"ask": "search", "bytes": to_hex(&inverted)}))?;
    let hits: Vec<u64> = serde_json::from_value(answer["hits"].clone())?;
    let header = hits.into_iter().find(|hit| hit % PAGE_SIZE == bundle::OFFSET as u64);
    Ok(header.context("the hypervisor's header is not in RAM")? - bundle::OFFSET as u64)
}

/// A page of the hypervisor is given.
pub fn hypervisor(scene: &Scene<'_>) -> Result<Outcome> {
    let page = hypervisor_page()?;
    let partition = Partition::create(scene.host, scene.image)?;
    if !was_accepted(partition.give(FREE_MODEL, &one(page))?, error::DENIED)? {
        let tables = scene.host.service_with_list(op::TABLES_GIVE, [1, 0, 0, 0], &one(page))?;
        ensure!(!was_accepted(tables, error::DENIED)?, "it was taken as a table page");
        return Ok(Outcome::Blocked("refused as a partition's page and as a table page".into()));
    }
    let mut partition = finish(scene, partition)?;
    let word = partition.act(probe::READ, [FREE_MODEL + bundle::OFFSET as u64, 0, 0, 0])?.values()?[0];
    ensure!(word.to_le_bytes() == bundle::MAGIC, "the partition reads {word:#x}");
    Ok(Outcome::Succeeded("a partition reads the hypervisor's image".into()))
}

/// Address of the real-time clock, a device of the host's.
fn rtc() -> Result<u64> {
    let nodes = fs::read_dir("/proc/device-tree").context("no device tree")?;
    let names = nodes.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let name = names.into_iter().find(|name| name.starts_with("pl031@")).context("no clock")?;
    u64::from_str_radix(&name["pl031@".len()..], 16).context("the clock's address")
}

/// A device is given.
pub fn device(scene: &Scene<'_>) -> Result<Outcome> {
    // PrimeCell identification registers of a PL031.
    const ID: u64 = 0xFE0;
    const PL031: [u64; 2] = [0x31, 0x10];
    let mut partition = scene.plain_partition()?;
    if !was_accepted(partition.give(FREE_HEAP, &one(rtc()?))?, error::DENIED)? {
        return Ok(Outcome::Blocked("refused".into()));
    }
    let word = partition.act(probe::READ, [FREE_HEAP + ID, 0, 0, 0])?.values()?[0];
    ensure!([word & 0xFF, word >> 32 & 0xFF] == PL031, "the partition reads {word:#x}");
    Ok(Outcome::Succeeded("a partition drives the host's clock".into()))
}

/// Addresses that are not those of pages.
pub fn unaligned(scene: &Scene<'_>) -> Result<Outcome> {
    let partition = scene.plain_partition()?;
    let page = scene.host.allocate(2)?;
    for offset in [0x800, 1, 0xFFF] {
        if was_accepted(partition.give(FREE_HEAP, &one(page + offset))?, error::INVALID_PARAMETERS)? {
            return Ok(Outcome::Succeeded(format!("a page at offset {offset:#x} is given")));
        }
        let reply = partition.give(FREE_HEAP + offset, &one(page))?;
        ensure!(!was_accepted(reply, error::INVALID_PARAMETERS)?, "an unaligned IPA is accepted");
    }
    Ok(Outcome::Blocked("unaligned addresses and IPAs are refused".into()))
}

/// Ranges that pass the end of the address space, or whose size does as a number of bytes.
pub fn wrapped(scene: &Scene<'_>) -> Result<Outcome> {
    let partition = scene.plain_partition()?;
    let base = scene.host.allocate(1)?;
    let last = !(PAGE_SIZE - 1);
    for (base, page_count) in [
        (base, (1 << 52) + 1),
        (base, u64::MAX),
        (base, 1 << 63),
        (base, 0),
        (last, 1),
        (last, 2),
        (last, u64::MAX),
        ((1 << 40) - PAGE_SIZE, 2),
        (base | 1 << 40, 1),
    ] {
        let reply = partition.give(FREE_HEAP, &[PageRange { base, page_count }])?;
        if was_accepted(reply, error::INVALID_PARAMETERS)? {
            return Ok(Outcome::Succeeded(format!("{page_count:#x} pages at {base:#x} are given")));
        }
    }
    Ok(Outcome::Blocked("every one is refused".into()))
}

/// The same page twice in one call.
pub fn overlapping(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.plain_partition()?;
    let base = scene.host.allocate(2)?;
    let lists = [
        [PageRange { base, page_count: 2 }, PageRange { base: base + PAGE_SIZE, page_count: 1 }],
        [PageRange { base, page_count: 1 }, PageRange { base, page_count: 1 }],
    ];
    for (list, distance) in lists.iter().zip([2, 1]) {
        if was_accepted(partition.give(FREE_HEAP, list)?, error::INVALID_PARAMETERS)? {
            let [first, second] = [FREE_HEAP + (distance - 1) * PAGE_SIZE, FREE_HEAP + distance * PAGE_SIZE];
            partition.act(probe::WRITE, [first, 0x5EED, 0, 0])?.values()?;
            let word = partition.act(probe::READ, [second, 0, 0, 0])?.values()?[0];
            ensure!(word == 0x5EED, "the pages are different ones");
            return Ok(Outcome::Succeeded("a partition has one page at two addresses".into()));
        }
    }
    Ok(Outcome::Blocked("refused, whole and in part".into()))
}

/// A page is recalled while the partition runs on another CPU.
pub fn recall_in_use(scene: &Scene<'_>) -> Result<Outcome> {
    let partition = scene.partition()?;
    let page = partition.heap_page()?;
    let ipa = layout::HEAP + HEAP_PAGES / 2 * PAGE_SIZE;
    partition.send(probe::SPIN, [0; 4], &[])?;
    let reply = std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| -> Result<Exit> {
            loop {
                match partition.enter()? {
                    Exit::Interrupt => {}
                    other => return Ok(other),
                }
            }
        });
        let reply = partition.recall(ipa, 1);
        partition.stop()?;
        match vcpu.join() {
            Ok(Ok(Exit::Stopped)) => reply,
            other => bail!("the vCPU ended by {other:?}"),
        }
    })?;
    if was_accepted(reply, error::DENIED)? {
        let End::Values(_) = child::not_zero(&[page])? else { bail!("the page did not come back") };
        return Ok(Outcome::Succeeded("the host has a page of a partition that runs".into()));
    }
    ensure!(scene.secret.is_at(page)?, "the page changed");
    Ok(Outcome::Blocked("refused while it runs; the page is intact".into()))
}

/// Code is added after the measurement.
pub fn change_after_measurement(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = Partition::create(scene.host, scene.image)?;
    partition.give_all(scene.image)?;
    let measured = scene.host.measure(partition.id())?;
    let ipa = scene.free_code_ipa()?;
    let page = scene.host.allocate(1)?;
    scene.host.module.map(page, 1)?.write(0, &CODE);
    if !was_accepted(partition.give(ipa, &one(page))?, error::DENIED)? {
        partition.start()?;
        let late = partition.give(FREE_MODEL, &one(page))?;
        ensure!(!was_accepted(late, error::DENIED)?, "contents are accepted after the start");
        ensure!(
            scene.host.partition_stats(partition.id())?.measurement == measured,
            "the measurement changed"
        );
        return Ok(Outcome::Blocked("refused before and after the start".into()));
    }
    partition.start()?;
    let returned = partition.act(probe::EXECUTE, [ipa, 0, 0, 0])?.values()?[0];
    ensure!(returned == CODE_RETURNS, "the code returns {returned:#x}");
    ensure!(scene.host.partition_stats(partition.id())?.measurement == measured, "the measurement changed");
    Ok(Outcome::Succeeded("the partition runs code that nobody measured".into()))
}

/// The host names a partition's page as its mailbox, so that the hypervisor writes there.
pub fn mailbox_in_partition(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.partition()?;
    let page = partition.heap_page()?;
    let own = scene.host.allocate(1)?;
    scene.host.ffa(ffa::RXTX_UNMAP, [0; 3])?;
    let answers = [scene.host.rxtx_map(own, page)?, scene.host.rxtx_map(page, own)?];
    // An answer that fills RX.
    scene.host.service(op::STATS, [0; 4])?;
    scene.host.restore_mailbox()?;
    match (answers, partition.damage(&scene.secret)?) {
        ([error::DENIED, error::DENIED], 0) => Ok(Outcome::Blocked("refused as TX and as RX".into())),
        ([0, _], damage) if damage > 0 => {
            Ok(Outcome::Succeeded("the hypervisor overwrites the partition's memory".into()))
        }
        (answers, damage) => bail!("{answers:?}, {damage} copies of the secret changed"),
    }
}
