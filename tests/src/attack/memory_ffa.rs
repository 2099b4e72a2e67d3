//! FF-A memory management: transactions that name what is not the sender's, and uses of them out of order.

use anyhow::{Context, Result, bail, ensure};
use flexserve::error::status_name;
use guest_abi::session::probe;
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::{self, error};
use hyp_abi::manifest::layout;
use hyp_abi::memory::{
    ATTRIBUTES, CompositeRegion, Constituent, EndpointAccess, FLAG_ANY_RECEIVERS, MemoryRegion, READ_WRITE,
    Relinquish,
};
use hyp_abi::service::{PageRange, crash, op};
use nix::sys::signal::Signal::SIGSEGV;
use zerocopy::IntoBytes;

use super::{Outcome, Scene};
use crate::child::{self, Access, End};
use crate::host::Host;
use crate::partition::{Answer, Exit, HEAP_PAGES, Partition};
use crate::sys::Conduit;

/// What a partition writes into memory that it borrows.
const WRITTEN: u64 = 0x2174_6E65_6C20_7369;
const TAG: u64 = 0x7A6;
/// Heap for the probe's buffers, beyond what it takes itself.
const TX: u64 = layout::HEAP + HEAP_PAGES * PAGE_SIZE;
const RX: u64 = TX + PAGE_SIZE;
/// Heap that is not given.
const FREE_HEAP: u64 = RX + PAGE_SIZE;

/// A transaction's descriptor, or the request to retrieve it.
fn descriptor(sender: u16, receiver: u16, attributes: u16, handle: u64, ranges: &[(u64, u64)]) -> Vec<u8> {
    let flags = if handle == 0 { 0 } else { FLAG_ANY_RECEIVERS };
    let header = MemoryRegion {
        sender,
        attributes,
        flags,
        handle,
        tag: TAG,
        access_size: 32,
        access_count: 1,
        access_offset: 48,
        ..MemoryRegion::default()
    };
    let composite_offset = 80;
    let access =
        EndpointAccess { receiver, permissions: READ_WRITE, composite_offset, ..EndpointAccess::default() };
    let page_count = ranges.iter().map(|range| range.1 as u32).sum();
    let composite = CompositeRegion { page_count, range_count: ranges.len() as u32, reserved: 0 };
    let mut bytes = [header.as_bytes(), access.as_bytes(), composite.as_bytes()].concat();
    for &(address, page_count) in ranges {
        let constituent = Constituent { address, page_count: page_count as u32, reserved: 0 };
        bytes.extend(constituent.as_bytes());
    }
    bytes
}

/// What the host lends or shares, by its receiver.
pub(super) fn lend(receiver: u16, ranges: &[(u64, u64)]) -> Vec<u8> {
    descriptor(ffa::HOST_ID, receiver, 0, 0, ranges)
}

pub(super) fn share(receiver: u16, ranges: &[(u64, u64)]) -> Vec<u8> {
    descriptor(ffa::HOST_ID, receiver, ATTRIBUTES, 0, ranges)
}

/// A call of the host with `sent` of `total` bytes of its descriptor; it gives the table pages that it is asked for.
fn call(host: &Host, function: u32, bytes: &[u8], total: usize, sent: usize) -> Result<[u64; 18]> {
    for _ in 0..8 {
        let mut regs = [0; 18];
        regs[..3].copy_from_slice(&[function.into(), total as u64, sent as u64]);
        let answer = host.call_with_list(Conduit::Smc, regs, bytes)?;
        if status(&answer) != error::NO_MEMORY || answer[3] == 0 {
            return Ok(answer);
        }
        give_tables(host, answer[3])?;
    }
    bail!("the hypervisor asks for table pages without end")
}

fn give_tables(host: &Host, needed: u64) -> Result<()> {
    let page_count = needed.next_power_of_two();
    let base = host.module.allocate(page_count).context("memory for page tables")?;
    host.service_with_list(op::TABLES_GIVE, [1, 0, 0, 0], &[PageRange { base, page_count }])?
        .ok("TABLES_GIVE")?;
    Ok(())
}

pub(super) fn send(host: &Host, function: u32, bytes: &[u8]) -> Result<[u64; 18]> {
    call(host, function, bytes, bytes.len(), bytes.len())
}

/// 0 or the error of an answer.
pub(super) fn status(regs: &[u64]) -> i32 {
    if regs[0] as u32 == ffa::ERROR { regs[2] as i32 } else { 0 }
}

/// Whether it was carried out; if not, it must have been refused for this reason.
pub(super) fn was_accepted(regs: &[u64], reason: i32) -> Result<bool> {
    match status(regs) {
        0 => Ok(true),
        code if code == reason => Ok(false),
        code => bail!("refused for the wrong reason: {}", status_name(code)),
    }
}

pub(super) fn handle(regs: &[u64]) -> Result<u64> {
    ensure!(regs[0] as u32 == ffa::SUCCESS_32, "refused: {}", status_name(status(regs)));
    Ok(regs[2] | regs[3] << 32)
}

pub(super) fn reclaim(host: &Host, handle: u64) -> Result<[u64; 18]> {
    host.ffa(ffa::MEM_RECLAIM, [handle & 0xFFFF_FFFF, handle >> 32, 0])
}

/// The host's kernel reads; none: it aborts.
pub(super) fn host_reads(scene: &Scene<'_>, page: u64) -> Result<Option<u64>> {
    let values = scene.aborts(SIGSEGV, || child::access(&[Access::read(page)]))?;
    values.map(|values| values.first().copied().context("nothing was read")).transpose()
}

/// A partition that can speak for itself.
struct Borrower<'h> {
    partition: Partition<'h>,
}

impl<'h> Borrower<'h> {
    fn new(mut partition: Partition<'h>) -> Result<Self> {
        partition.give_zero(TX, 2)?;
        let mut borrower = Self { partition };
        let answer = borrower.ffa(ffa::RXTX_MAP_64, [TX, RX, 1])?;
        ensure!(status(&answer) == 0, "RXTX_MAP: {}", status_name(status(&answer)));
        Ok(borrower)
    }

    fn id(&self) -> u16 {
        self.partition.id()
    }

    fn ffa(&mut self, function: u32, [a, b, c]: [u64; 3]) -> Result<[u64; 4]> {
        self.partition.act(probe::FFA, [function.into(), a, b, c])?.values()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        for (index, word) in bytes.chunks(8).enumerate() {
            let mut value = [0; 8];
            value[..word.len()].copy_from_slice(word);
            self.write(TX + 8 * index as u64, u64::from_le_bytes(value))?;
        }
        Ok(())
    }

    fn read(&mut self, ipa: u64) -> Result<u64> {
        Ok(self.partition.act(probe::READ, [ipa, 0, 0, 0])?.values()?[0])
    }

    fn write(&mut self, ipa: u64, word: u64) -> Result<()> {
        self.partition.act(probe::WRITE, [ipa, word, 0, 0])?.values().map(drop)
    }

    /// Retrieves what the host sent at the start of its BORROWED region. The hypervisor may ask the host for tables.
    fn retrieve(&mut self, host: &Host, handle: u64, page_count: u64) -> Result<[u64; 4]> {
        let request = descriptor(ffa::HOST_ID, self.id(), 0, handle, &[(layout::BORROWED, page_count)]);
        self.put(&request)?;
        for _ in 0..8 {
            let size = request.len() as u64;
            let answer = self.ffa(ffa::MEM_RETRIEVE_REQ_64, [size, size, 0])?;
            match (status(&answer), answer[3]) {
                (error::NO_MEMORY, needed @ 1..) => give_tables(host, needed)?,
                (0, _) => {
                    self.ffa(ffa::RX_RELEASE, [0; 3])?;
                    return Ok(answer);
                }
                _ => return Ok(answer),
            }
        }
        bail!("the hypervisor asks for table pages without end")
    }

    fn relinquish(&mut self, handle: u64) -> Result<[u64; 4]> {
        let request = Relinquish { handle, flags: 0, endpoint_count: 1, endpoint: self.id() };
        self.put(request.as_bytes())?;
        self.ffa(ffa::MEM_RELINQUISH, [0; 3])
    }
}

/// A borrower that has retrieved a page of the host's and written into it: the page and the handle.
fn lent<'h>(scene: &Scene<'h>) -> Result<(Borrower<'h>, u64, u64)> {
    let mut borrower = Borrower::new(scene.plain_partition()?)?;
    let page = scene.host.allocate(1)?;
    let handle = handle(&send(scene.host, ffa::MEM_LEND_64, &lend(borrower.id(), &[(page, 1)]))?)?;
    let answer = borrower.retrieve(scene.host, handle, 1)?;
    ensure!(status(&answer) == 0, "RETRIEVE: {}", status_name(status(&answer)));
    borrower.write(layout::BORROWED, WRITTEN)?;
    Ok((borrower, page, handle))
}

/// Everything back, so that the page can be freed.
fn take_back(host: &Host, borrower: &Borrower<'_>, handle: u64) -> Result<()> {
    host.destroy(borrower.id())?;
    let answer = reclaim(host, handle)?;
    ensure!(status(&answer) == 0, "RECLAIM: {}", status_name(status(&answer)));
    Ok(())
}

/// The host shares a partition's page, and one of the hypervisor.
pub fn share_foreign(scene: &Scene<'_>) -> Result<Outcome> {
    let mut victim = scene.partition()?;
    let other = scene.plain_partition()?;
    let page = victim.heap_page()?;
    let answer = send(scene.host, ffa::MEM_SHARE_64, &share(other.id(), &[(page, 1)]))?;
    if was_accepted(&answer, error::DENIED)? {
        let word = host_reads(scene, page)?.context("it was shared, and reads abort")?;
        ensure!(scene.secret.has_word(word), "the host reads {word:#x}");
        reclaim(scene.host, handle(&answer)?)?;
        return Ok(Outcome::Succeeded("the host shares the page, and reads the secret in it".into()));
    }
    let own = scene.host.allocate(1)?;
    for foreign in [0x4020_0000, 0x0904_0000, 0, (1 << 40) - PAGE_SIZE, page] {
        for (function, bytes) in [
            (ffa::MEM_SHARE_32, share(other.id(), &[(own, 1), (foreign, 1)])),
            (ffa::MEM_LEND_64, lend(other.id(), &[(foreign, 1), (own, 1)])),
        ] {
            ensure!(
                !was_accepted(&send(scene.host, function, &bytes)?, error::DENIED)?,
                "{foreign:#x} was sent"
            );
        }
    }
    ensure!(host_reads(scene, own)? == Some(0), "the host's own page is gone");
    ensure!(victim.damage(&scene.secret)? == 0, "the partition's memory changed");
    Ok(Outcome::Blocked("refused, alone and beside a page of the host's; the secret is intact".into()))
}

/// A page goes to a partition between the first and the last fragment of the list that names it.
pub fn fragment_foreign(scene: &Scene<'_>) -> Result<Outcome> {
    let mut victim = scene.plain_partition()?;
    let other = scene.plain_partition()?;
    let pages = scene.host.allocate(2)?;
    let bytes = share(other.id(), &[(pages, 1), (pages + PAGE_SIZE, 1)]);
    let first = call(scene.host, ffa::MEM_SHARE_64, &bytes, bytes.len(), bytes.len() - 16)?;
    ensure!(first[0] as u32 == ffa::MEM_FRAG_RX, "no fragment is awaited: {}", status_name(status(&first)));
    victim.give_pages(FREE_HEAP, pages, 1)?;
    victim.act(probe::WRITE, [FREE_HEAP, WRITTEN, 0, 0])?.values()?;
    let mut regs = [0; 18];
    regs[..4].copy_from_slice(&[ffa::MEM_FRAG_TX.into(), first[1], first[2], 16]);
    let last = scene.host.call_with_list(Conduit::Smc, regs, &bytes[bytes.len() - 16..])?;
    let accepted = was_accepted(&last, error::DENIED)?;
    match (accepted, host_reads(scene, pages)?) {
        (false, None) => Ok(Outcome::Blocked("the whole list is checked when it is complete".into())),
        (true, Some(WRITTEN)) => {
            reclaim(scene.host, handle(&last)?)?;
            Ok(Outcome::Succeeded("the host reads what the partition wrote".into()))
        }
        other => bail!("{other:x?}"),
    }
}

/// The host's message buffer is lent and given.
pub fn lend_mailbox(scene: &Scene<'_>) -> Result<Outcome> {
    let mut borrower = Borrower::new(scene.plain_partition()?)?;
    let [tx, rx] = [scene.host.allocate(1)?, scene.host.allocate(1)?];
    scene.host.ffa(ffa::RXTX_UNMAP, [0; 3])?;
    let mapped = scene.host.rxtx_map(tx, rx)?;
    ensure!(mapped == 0, "RXTX_MAP: {}", status_name(mapped));
    let window = scene.host.module.map(tx, 1)?;
    let attempt = |bytes: &[u8]| -> Result<[u64; 18]> {
        window.write(0, bytes);
        let size = bytes.len() as u64;
        scene.host.ffa(ffa::MEM_LEND_64, [size, size, 0])
    };
    let answer = attempt(&lend(borrower.id(), &[(rx, 1)]))?;
    if was_accepted(&answer, error::DENIED)? {
        let handle = handle(&answer)?;
        borrower.retrieve(scene.host, handle, 1)?;
        // An answer that fills RX.
        crate::host::call_service(&scene.host.module, op::STATS, [0; 4])?.ok("STATS")?;
        let word = borrower.read(layout::BORROWED)?;
        ensure!(word != 0, "nothing arrived");
        scene.host.restore_mailbox()?;
        take_back(scene.host, &borrower, handle)?;
        return Ok(Outcome::Succeeded("the hypervisor answers into a page of a partition's".into()));
    }
    ensure!(!was_accepted(&attempt(&lend(borrower.id(), &[(tx, 1)]))?, error::DENIED)?, "TX is lent");
    for buffer in [tx, rx] {
        window.write(0, PageRange { base: buffer, page_count: 1 }.as_bytes());
        let arguments = [borrower.id().into(), FREE_HEAP, 1, 0];
        let given = crate::host::call_service(&scene.host.module, op::GIVE, arguments)?;
        ensure!(given.status == error::DENIED, "a buffer is given: {}", given.shown());
    }
    scene.host.restore_mailbox()?;
    Ok(Outcome::Blocked("refused as a loan and as a gift".into()))
}

/// The host takes a page back that a partition still has.
pub fn reclaim_borrowed(scene: &Scene<'_>) -> Result<Outcome> {
    let (mut borrower, page, handle) = lent(scene)?;
    let accepted = was_accepted(&reclaim(scene.host, handle)?, error::DENIED)?;
    // Whatever the reclaim did, the partition goes on.
    borrower.write(layout::BORROWED, WRITTEN)?;
    match (accepted, host_reads(scene, page)?) {
        (true, Some(WRITTEN)) => Ok(Outcome::Succeeded("the host reads what the borrower writes".into())),
        (false, None) => {
            ensure!(borrower.read(layout::BORROWED)? == WRITTEN, "the page changed");
            take_back(scene.host, &borrower, handle)?;
            Ok(Outcome::Blocked("refused until the borrower is gone".into()))
        }
        other => bail!("{other:x?}"),
    }
}

/// What a lent page holds that comes back.
pub fn secret_after_reclaim(scene: &Scene<'_>) -> Result<Outcome> {
    let (mut borrower, page, handle) = lent(scene)?;
    ensure!(host_reads(scene, page)?.is_none(), "the host reads a page that it lends");
    let given_back = borrower.relinquish(handle)?;
    ensure!(status(&given_back) == 0, "RELINQUISH: {}", status_name(status(&given_back)));
    ensure!(host_reads(scene, page)?.is_none(), "the host reads a page before it is reclaimed");
    ensure!(status(&reclaim(scene.host, handle)?) == 0, "RECLAIM fails");
    match host_reads(scene, page)? {
        Some(0) => Ok(Outcome::Blocked("it comes back zeroed".into())),
        Some(WRITTEN) => Ok(Outcome::Succeeded("the host reads what the borrower wrote".into())),
        other => bail!("the host reads {other:x?}"),
    }
}

/// The host reads a page that it lends.
pub fn lender_reads(scene: &Scene<'_>) -> Result<Outcome> {
    let (mut borrower, page, handle) = lent(scene)?;
    let outcome = match host_reads(scene, page)? {
        None => Outcome::Blocked("a kernel read aborts".into()),
        Some(WRITTEN) => Outcome::Succeeded("the host reads what the borrower wrote".into()),
        Some(word) => bail!("the host reads {word:#x}"),
    };
    ensure!(borrower.read(layout::BORROWED)? == WRITTEN, "the page changed");
    take_back(scene.host, &borrower, handle)?;
    Ok(outcome)
}

/// A borrower goes on using a page that it gave back.
pub fn use_after_relinquish(scene: &Scene<'_>) -> Result<Outcome> {
    let (mut borrower, page, handle) = lent(scene)?;
    let given_back = borrower.relinquish(handle)?;
    ensure!(status(&given_back) == 0, "RELINQUISH: {}", status_name(status(&given_back)));
    ensure!(status(&reclaim(scene.host, handle)?) == 0, "RECLAIM fails");
    match borrower.partition.act(probe::WRITE, [layout::BORROWED, WRITTEN, 0, 0])? {
        Answer::Ended(Exit::Crashed(crash::ABORT, _)) => {
            ensure!(host_reads(scene, page)? == Some(0), "the page changed");
            Ok(Outcome::Blocked("the access ends the partition".into()))
        }
        Answer::Report(_) if host_reads(scene, page)? == Some(WRITTEN) => {
            Ok(Outcome::Succeeded("a partition writes the host's memory".into()))
        }
        other => bail!("{other:x?}"),
    }
}

/// Another partition names the handle of a loan that is not for it.
pub fn handle_guessing(scene: &Scene<'_>) -> Result<Outcome> {
    let (mut borrower, _, handle) = lent(scene)?;
    let mut thief = Borrower::new(scene.plain_partition()?)?;
    let answer = thief.retrieve(scene.host, handle, 1)?;
    if was_accepted(&answer, error::INVALID_PARAMETERS)? {
        let word = thief.read(layout::BORROWED)?;
        ensure!(word == WRITTEN, "it reads {word:#x}");
        return Ok(Outcome::Succeeded("another partition reads what the borrower wrote".into()));
    }
    for guess in (handle ^ 0xFF..handle + 0x400).step_by(0x55).take(32).chain([0, u64::MAX, handle | 1 << 63])
    {
        ensure!(
            guess == handle || status(&reclaim(scene.host, guess)?) == error::INVALID_PARAMETERS,
            "{guess:#x}"
        );
    }
    let foreign = thief.relinquish(handle)?;
    ensure!(status(&foreign) == error::INVALID_PARAMETERS, "it relinquishes for another");
    let taken = thief.ffa(ffa::MEM_RECLAIM, [handle & 0xFFFF_FFFF, handle >> 32, 0])?;
    ensure!(status(&taken) == error::INVALID_PARAMETERS, "it reclaims for another");
    ensure!(borrower.read(layout::BORROWED)? == WRITTEN, "the page changed");
    take_back(scene.host, &borrower, handle)?;
    Ok(Outcome::Blocked(
        "neither retrieved, relinquished nor reclaimed by others; forged handles are unknown".into(),
    ))
}

/// Descriptors whose offsets and counts point out of what was sent.
pub fn descriptor_overflow(scene: &Scene<'_>) -> Result<Outcome> {
    let partition = scene.plain_partition()?;
    let page = scene.host.allocate(2)?;
    let sound = share(partition.id(), &[(page, 1), (page + PAGE_SIZE, 1)]);
    // The second range lies in TX, but it was not sent.
    let answer = call(scene.host, ffa::MEM_SHARE_64, &sound, sound.len() - 16, sound.len() - 16)?;
    if was_accepted(&answer, error::INVALID_PARAMETERS)? {
        let handle = handle(&answer)?;
        ensure!(status(&reclaim(scene.host, handle)?) == 0, "RECLAIM fails");
        return Ok(Outcome::Succeeded("a list is read beyond what was sent".into()));
    }
    // Field by field: size, count and offset of access descriptors; offset of the list; pages and ranges in it.
    let mut refused = 0;
    for field in [24, 28, 32, 48 + 4, 80, 84] {
        for value in [0, 3, 1 << 12, 0x0FFF_FFF0, 0x7FFF_FFF0, 0xFFFF_FFF0, u32::MAX] {
            let mut bytes = sound.clone();
            bytes[field..field + 4].copy_from_slice(&u32::to_le_bytes(value));
            let answer = send(scene.host, ffa::MEM_SHARE_64, &bytes)?;
            ensure!(!was_accepted(&answer, error::INVALID_PARAMETERS)?, "{value:#x} at {field} is accepted");
            refused += 1;
        }
    }
    let End::Values(_) = child::not_zero(&[page, page + PAGE_SIZE])? else { bail!("the pages are gone") };
    Ok(Outcome::Blocked(format!("{refused} offsets and counts are refused")))
}
