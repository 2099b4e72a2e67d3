//! A hostile virtio device: it has the partition's descriptors point at private pages.

use std::cell::RefCell;

use anyhow::{Context, Result, bail, ensure};
use flexserve::virtio::block::Block;
use flexserve::virtio::{Devices, Memory};
use guest_abi::session::probe;
use guest_abi::virtio::{QueueRegisters, SLOT_SCRATCH};
use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::layout;
use nix::sys::signal::Signal::{SIGBUS, SIGSEGV};
use vm_memory::{Bytes, GuestAddress};

use super::memory::judge_read;
use super::{Outcome, Scene};
use crate::child::{self, Access};
use crate::partition::HEAP_PAGES;
use crate::sys::{Act, Mapping};
use crate::virtio::{Equipped, queue_address, scratch, serve};

/// Has the partition read a block through a device that points the descriptor of the data at the middle of the heap, and
/// then does `act` to that page. The partition must get its block all the same.
fn redirected<'h, T>(scene: &Scene<'h>, act: &mut dyn FnMut(u64) -> Result<T>) -> Result<(Equipped<'h>, T)> {
    let mut probe = Equipped::load(scene.host, scene.image, Some(&scene.secret))?;
    let page = probe.partition.heap_page()?;
    let target = layout::HEAP + HEAP_PAGES / 2 * PAGE_SIZE;
    let memory = probe.memory.clone();
    let mut devices = Devices::new(memory.clone());
    devices.add(SLOT_SCRATCH, Block::new(scratch(8)?, false)?);
    let done = RefCell::new(None);
    let mut host_side = || {
        // Descriptors: the request, the data, the status.
        if done.borrow().is_none()
            && let Some(data) = posted(&memory)?
        {
            let honest: u64 = memory.read_obj(data)?;
            memory.write_obj(target, data)?;
            *done.borrow_mut() = Some(act(page)?);
            memory.write_obj(honest, data)?;
        }
        serve(&mut devices)
    };
    let args = [SLOT_SCRATCH as u64, 1, 1, 0];
    let read = probe.act(probe::VIRTIO_READ, args, &mut host_side)?.values()?;
    ensure!(read == crate::virtio::hash(&[0; 512]), "the partition reads something else");
    let done = done.into_inner().context("no request came")?;
    Ok((probe, done))
}

/// The descriptor of the data, once a request is available.
fn posted(memory: &Memory) -> Result<Option<GuestAddress>> {
    let register = |offset| queue_address(memory, SLOT_SCRATCH, 0, offset);
    let available = register(std::mem::offset_of!(QueueRegisters, available))?;
    if available.0 == 0 || memory.read_obj::<u16>(GuestAddress(available.0 + 2))? == 0 {
        return Ok(None);
    }
    let descriptors = register(std::mem::offset_of!(QueueRegisters, descriptors))?;
    Ok(Some(GuestAddress(descriptors.0 + 16)))
}

/// The device reads what its descriptor says.
pub fn reads_private(scene: &Scene<'_>) -> Result<Outcome> {
    let (mut probe, values) = redirected(scene, &mut |page| scene.aborts(SIGBUS, || child::map(page)))?;
    ensure!(probe.partition.damage(&scene.secret)? == 0, "the partition's memory changed");
    judge_read(scene, values, "a device's read at a private page")
}

/// The device writes where its descriptor says.
pub fn writes_private(scene: &Scene<'_>) -> Result<Outcome> {
    let write = |address| Access { address, mapping: Mapping::Linear, act: Act::Write(8, 0xBAD) };
    let (mut probe, values) =
        redirected(scene, &mut |page| scene.aborts(SIGSEGV, || child::access(&[write(page)])))?;
    match (values, probe.partition.damage(&scene.secret)?) {
        (None, 0) => Ok(Outcome::Blocked("a device's write at a private page aborts".into())),
        (Some(_), 1) => Ok(Outcome::Succeeded("the partition finds its memory changed".into())),
        (values, damage) => bail!("{values:?}, {damage} copies of the secret changed"),
    }
}
