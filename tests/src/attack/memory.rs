//! Pages of a partition, attacked by the CPUs of the host.

use anyhow::{Result, bail, ensure};
use guest_abi::session::probe;
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::error;
use hyp_abi::manifest::layout;
use nix::sys::signal::Signal::{SIGBUS, SIGSEGV};

use super::{Outcome, Scene};
use crate::child::{self, Access, End, Owner};
use crate::partition::{HEAP_PAGES, Partition};
use crate::sys::{Act, CODE_RETURNS, Mapping};

/// A function that returns 0xC0DE: BTI c; MOVZ x0, #0xC0DE; RET.
pub const CODE: [u8; 12] = [0x5F, 0x24, 0x03, 0xD5, 0xC0, 0x1B, 0x98, 0xD2, 0xC0, 0x03, 0x5F, 0xD6];

/// Judges what a read of the secret's page gave.
pub fn judge_read(scene: &Scene<'_>, values: Option<Vec<u64>>, how: &str) -> Result<Outcome> {
    match values.as_deref() {
        None => Ok(Outcome::Blocked(format!("{how} aborts"))),
        Some([word]) if scene.secret.has_word(*word) => {
            Ok(Outcome::Succeeded(format!("{how} returns the secret")))
        }
        Some(other) => bail!("{how} returns {other:x?}, which is not the secret"),
    }
}

/// The host's kernel reads through its linear map.
pub fn host_reads(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.partition()?;
    let page = partition.heap_page()?;
    let values = scene.aborts(SIGSEGV, || child::access(&[Access::read(page)]))?;
    ensure!(partition.damage(&scene.secret)? == 0, "the partition's memory changed");
    judge_read(scene, values, "a kernel read")
}

/// The host's kernel writes.
pub fn host_writes(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.partition()?;
    let address = partition.heap_page()?;
    let write = Access { address, mapping: Mapping::Linear, act: Act::Write(8, 0xBAD) };
    let values = scene.aborts(SIGSEGV, || child::access(&[write]))?;
    match (values, partition.damage(&scene.secret)?) {
        (None, 0) => Ok(Outcome::Blocked("a kernel write aborts, and nothing changed".into())),
        (Some(_), 1) => Ok(Outcome::Succeeded("the partition finds its memory changed".into())),
        (values, damage) => bail!("{values:?}, {damage} copies of the secret changed"),
    }
}

/// The host's kernel gives a page of its own code to a partition, and calls it.
pub fn host_executes(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = Partition::create(scene.host, scene.image)?;
    partition.give_all(scene.image)?;
    partition.give_pages(scene.free_code_ipa()?, scene.host.module.code_page()?, 1)?;
    scene.host.measure(partition.id())?;
    partition.start()?;
    match scene.aborts(SIGSEGV, child::call_code_page)?.as_deref() {
        None => Ok(Outcome::Blocked("a kernel call aborts".into())),
        Some([CODE_RETURNS]) => Ok(Outcome::Succeeded("the kernel runs the partition's code".into())),
        Some(other) => bail!("the call returns {other:x?}"),
    }
}

/// A process of the host maps the page and reads.
pub fn process_maps(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.partition()?;
    let page = partition.heap_page()?;
    let values = scene.aborts(SIGBUS, || child::map(page))?;
    ensure!(partition.damage(&scene.secret)? == 0, "the partition's memory changed");
    judge_read(scene, values, "a process's read")
}

/// The process that runs the partition dies; then kernel and process read.
pub fn owner_died(scene: &Scene<'_>) -> Result<Outcome> {
    let owner = Owner::start(scene.host, &scene.secret)?;
    let [first, second] = owner.pages;
    owner.kill()?;
    ensure!(
        scene.secret.is_at(first)? && scene.secret.is_at(second)?,
        "the secret is not where it should be"
    );
    let by_kernel = scene.aborts(SIGSEGV, || child::access(&[Access::read(first)]))?;
    let by_process = scene.aborts(SIGBUS, || child::map(second))?;
    match judge_read(scene, by_kernel, "a kernel read")? {
        Outcome::Blocked(kernel) => match judge_read(scene, by_process, "a process's read")? {
            Outcome::Blocked(process) => Ok(Outcome::Blocked(format!("{kernel}, {process}"))),
            succeeded => Ok(succeeded),
        },
        succeeded => Ok(succeeded),
    }
}

/// What a page holds that comes back.
pub fn secret_after_recall(scene: &Scene<'_>) -> Result<Outcome> {
    let partition = scene.partition()?;
    let page = partition.heap_page()?;
    let before = partition.recall(layout::HEAP, HEAP_PAGES)?;
    ensure!(before.status == error::DENIED, "a recall before the end: {}", before.shown());
    partition.stop()?;
    let recalled = partition.recall(layout::HEAP, HEAP_PAGES)?.ok("RECALL")?;
    ensure!(recalled[0] == HEAP_PAGES, "{} pages came back", recalled[0]);
    let heap: Vec<u64> = (0..HEAP_PAGES)
        .map(|number| partition.page(layout::HEAP + number * PAGE_SIZE))
        .collect::<Result<_>>()?;
    let End::Values(not_zero) = child::not_zero(&heap)? else { bail!("pages that came back cannot be read") };
    match (not_zero.is_empty(), scene.secret.is_at(page)?) {
        (true, false) => Ok(Outcome::Blocked(format!("{HEAP_PAGES} pages came back, all zero"))),
        (false, true) => Ok(Outcome::Succeeded("the secret is in a page that came back".into())),
        (zero, found) => bail!("pages zero: {zero}, the secret found: {found}"),
    }
}

/// The host puts something into a page that the partition expects to be zero.
pub fn planted_contents(scene: &Scene<'_>) -> Result<Outcome> {
    const PLANTED: u64 = 0x6465_746E_616C_7021;
    let mut partition = scene.plain_partition()?;
    let ipa = layout::HEAP + HEAP_PAGES * PAGE_SIZE;
    let page = scene.host.allocate(1)?;
    scene.host.module.map(page, 1)?.write(0, &PLANTED.to_le_bytes());
    partition.give_pages(ipa, page, 1)?;
    match partition.act(probe::READ, [ipa, 0, 0, 0])?.values()?[0] {
        0 => Ok(Outcome::Blocked("the partition finds zeros".into())),
        PLANTED => Ok(Outcome::Succeeded("the partition finds what the host planted".into())),
        other => bail!("the partition finds {other:#x}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_code_is_what_it_says() {
        let words: Vec<u32> =
            super::CODE.chunks(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect();
        assert_eq!(words, [0xD503_245F, 0xD280_0000 | 0xC0DE << 5, 0xD65F_03C0]);
    }
}
