//! Secure RAM at S-EL2: who finds a partition's private memory, and the SPMC's, and what happens when there is no more of it.

use anyhow::{Context, Result, bail, ensure};
use guest_abi::session::probe;
use hyp_abi::PAGE_SIZE;
use hyp_abi::bundle;
use hyp_abi::ffa::error;
use hyp_abi::manifest::{PRIVATE_END, access, kind, layout};
use hyp_abi::service::{PageRange, STEP_PAGES, crash};
use nix::sys::signal::Signal::SIGSEGV;
use zerocopy::IntoBytes;

use super::give::{self, FREE_MODEL, finish, one};
use super::guest::ends;
use super::{Outcome, Scene};
use crate::child::{self, Access, End};
use crate::dma::Edu;
use crate::knob::{Knob, allow_device};
use crate::partition::{Answer, Exit, Partition};
use crate::sys::{Act, Mapping};

/// Where the SPMC is loaded (`firmware/src/flash.rs`).
const SPMC: u64 = 0x0E10_0000;
/// Secure RAM of QEMU's `virt` machine: its start, the SPMC, a place for private memory, its last page.
pub(super) const SECURE_RAM: [u64; 4] = [0x0E00_0000, SPMC, 0x0E80_0000, 0x0EFF_F000];
/// Firmware's flash, which is secure too.
pub(super) const FLASH: u64 = 0;

/// What a partition writes to its image's data is looked for in all of the normal world's memory, as by a device that no SMMU
/// stops, and by the partition itself at the non-secure address.
pub(super) fn private_memory(scene: &Scene<'_>) -> Result<Outcome> {
    let mut partition = scene.plain_partition()?;
    let ipa = partition.keep(&scene.secret)?;
    let given = partition.page(ipa & !(PAGE_SIZE - 1))? + ipa % PAGE_SIZE;
    let hits = scene.secret.search()?;
    if hits.contains(&given) {
        return Ok(Outcome::Succeeded("private data are in the page that the host gave".into()));
    }
    ensure!(hits.is_empty(), "the secret is at {hits:x?}");
    let word = partition.act(probe::READ, [ipa, 1, 0, 0])?.values()?[0];
    ensure!(!scene.secret.has_word(word), "private data have a non-secure address");
    let word = partition.act(probe::READ, [ipa, 0, 0, 0])?.values()?[0];
    ensure!(scene.secret.has_word(word), "the data read {word:#x}");
    for ipa in [layout::HEAP, layout::MODEL, layout::SESSION] {
        let read = ends(scene, probe::READ, [ipa, 1, 0, 0], &[crash::ABORT])?;
        ensure!(read.is_none(), "{ipa:#x} has a secure address: {read:x?}");
    }
    Ok(Outcome::Blocked("no page of the normal world holds them, and no address leads across".into()))
}

/// A page of secure RAM is given to a partition, whose non-secure addresses lead to the normal world's memory only (VTCR_EL2.NSA
/// and NSW). Where its tables are read (NSW) emulation does not tell: they lie in RAM that both worlds have. The SPMC checks
/// those bits as it starts on a CPU.
pub(super) fn partition_in_secure_space(scene: &Scene<'_>) -> Result<Outcome> {
    let place = FREE_MODEL + bundle::OFFSET as u64;
    let give = || -> Result<Option<Partition<'_>>> {
        let partition = Partition::create(scene.host, scene.image)?;
        Ok(give::was_accepted(partition.give(FREE_MODEL, &one(SPMC))?, error::DENIED)?.then_some(partition))
    };
    let Some(partition) = give()? else {
        return Ok(Outcome::Blocked("the SPMC's page is refused".into()));
    };
    // With the page in its tree, it still does not get there.
    let turn = |leave_out| Knob::NormalSpace.turn(&scene.host.module, leave_out);
    turn(false)?;
    let mut partition = finish(scene, partition)?;
    let refused = partition.act(probe::READ, [place, 0, 0, 0])?;
    ensure!(matches!(refused, Answer::Ended(Exit::Crashed(..))), "with the defence it reads: {refused:x?}");
    scene.host.destroy(partition.id())?;
    turn(true)?;
    let partition = give()?.context("the page is refused now")?;
    let mut partition = finish(scene, partition)?;
    let word = partition.act(probe::READ, [place, 0, 0, 0])?.values()?[0];
    ensure!(word.to_le_bytes() == bundle::MAGIC, "the partition reads {word:#x}");
    Ok(Outcome::Succeeded("a partition reads the SPMC's image in secure RAM".into()))
}

/// The host's CPU and a device of the host's at secure RAM and at firmware's flash.
pub(super) fn secure_ram(scene: &Scene<'_>) -> Result<String> {
    let mut partition = scene.partition()?;
    let edu = Edu::first(scene.host)?;
    let mut tried = 0;
    for address in SECURE_RAM.into_iter().chain([FLASH]) {
        for mapping in [Mapping::Cached, Mapping::Device] {
            for act in [Act::Read(8), Act::Write(8, 0xBAD)] {
                let access = Access { address, mapping, act };
                let end = scene.aborts(SIGSEGV, || child::access(&[access]))?;
                ensure!(end.is_none(), "{access:x?} is carried out: {end:x?}");
                tried += 1;
            }
        }
        let word = edu.read(address)?;
        ensure!(word == 0, "a device reads {word:#x} at {address:#x}");
        edu.write(address, 8, 0xBAD)?;
    }
    // The SPMC works, with its memory as it was.
    ensure!(partition.damage(&scene.secret)? == 0, "the partition's memory changed");
    Ok(format!("{tried} accesses abort, DMA finds nothing"))
}

/// The same with the page in the host's stage 2: what refuses it then is the memory system.
pub(super) fn secure_ram_behind_stage_2(scene: &Scene<'_>) -> Result<String> {
    let mut partition = scene.partition()?;
    let mut tried = 0;
    for address in SECURE_RAM.map(|page| page + PAGE_SIZE * u64::from(page == SPMC)) {
        allow_device(&scene.host.module, address)?;
        let before = scene.host.stats()?.blocked_accesses;
        for act in [Act::Read(8), Act::Write(8, 0xBAD)] {
            let end = child::access(&[Access { address, mapping: Mapping::Device, act }])?;
            ensure!(end == End::Killed(SIGSEGV), "{address:#x}, {act:x?}: {end:x?}");
            tried += 1;
        }
        let blocked = scene.host.stats()?.blocked_accesses - before;
        ensure!(blocked == 0, "stage 2 refuses {address:#x}: nothing is shown");
    }
    ensure!(partition.damage(&scene.secret)? == 0, "the partition's memory changed");
    Ok(format!("{tried} accesses abort that stage 2 lets pass"))
}

/// An image larger than all secure RAM is given until there is no more: what was refused is the host's again, others run on, and
/// what one leaves the next one gets.
pub(super) fn secure_ram_full(scene: &Scene<'_>) -> Result<String> {
    /// More than there is.
    const PAGES: u64 = 4096;
    let mut bystander = scene.partition()?;
    let mut manifest = *scene.image.manifest();
    let is_data = |kind, bits| kind == kind::IMAGE && bits & access::WRITE != 0;
    let data = manifest.regions.iter_mut().find(|region| is_data(region.kind, region.access));
    let data = data.context("an image without data")?;
    (data.ipa, data.page_count) = (1 << 30, PAGES);
    let ipa = data.ipa;
    let large = Partition::create_from(scene.host, manifest.as_bytes())?;
    let mut given = 0;
    // As many as fit at once, then one by one.
    for step in [STEP_PAGES, 1] {
        loop {
            let base = scene.host.allocate(step)?;
            let reply = large.give(ipa + given * PAGE_SIZE, &[PageRange { base, page_count: step }])?;
            let full = reply.status == error::DENIED && (ipa..PRIVATE_END).contains(&reply.out[0]);
            if full {
                let pages: Vec<u64> = (0..step).map(|page| base + page * PAGE_SIZE).collect();
                let End::Values(other) = child::not_zero(&pages)? else {
                    bail!("refused pages are not the host's")
                };
                ensure!(other.is_empty(), "refused pages hold something");
                break;
            }
            reply.ok("GIVE")?;
            given += step;
            ensure!(given < PAGES, "all of it fits");
        }
    }
    let Err(refused) = scene.plain_partition() else { bail!("an image is loaded where there is no room") };
    ensure!(bystander.damage(&scene.secret)? == 0, "the secret is not what it was");
    scene.host.destroy(large.id())?;
    let word = scene.plain_partition()?.act(probe::READ, [layout::HEAP, 0, 0, 0])?.values()?[0];
    ensure!(word == 0, "a page of heap reads {word:#x}");
    Ok(format!("{given} pages fit, then {refused:#}; all the same again after its end"))
}
