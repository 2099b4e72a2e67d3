//! A partition driven by raw calls, page by page, with the probe inside.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use flexserve::error::status_name;
use flexserve::image::Image;
use flexserve::machine::Line;
use flexserve::virtio::Devices;
use flexserve::virtio::wire::Wire;
use guest_abi::session::probe::{self, Command, Report};
use guest_abi::session::{Channel, MAX_FRAME, Request, SESSION_PAGES, frame};
use guest_abi::virtio::VIRTIO_PAGES;
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::{self, error};
use hyp_abi::manifest::layout;
use hyp_abi::service::{PageRange, STEP_PAGES, op, run_exit};
use zerocopy::{FromBytes, IntoBytes};

use crate::host::{Host, Reply};
use crate::secret::Secret;
use crate::sys::Window;

/// The probe's image.
pub const PROBE_PATH: &str = "/usr/lib/flexserve/guest-probe.elf";
/// Pages of heap that [`Partition::load`] gives.
pub const HEAP_PAGES: u64 = 64;
/// What the model region's only page holds.
pub const MODEL: &[u8; 8] = b"a model.";
/// XORed with both words of a pattern: the host never has the pattern in clear.
const COMPLEMENT: u64 = u64::MAX;
/// Entries that a partition may come out of without having said what it owes.
const PATIENCE: u32 = 100_000;

/// Why a vCPU came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An interrupt of the host.
    Interrupt,
    /// Look at the session.
    Kick,
    /// It sleeps.
    Timer,
    /// It waits for a message.
    Waiting,
    /// It ended itself.
    Finished(u64),
    /// It crashed: cause and details.
    Crashed(u64, [u64; 2]),
    /// The host stopped it.
    Stopped,
}

/// What came of an act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The probe's report.
    Report(Report),
    /// The partition ended.
    Ended(Exit),
}

impl Answer {
    /// The report of an act that succeeded.
    pub fn values(self) -> Result<[u64; 4]> {
        match self {
            Self::Report(report) if report.status == 0 => Ok(report.values),
            other => bail!("the probe answers {other:x?}"),
        }
    }
}

/// A partition. Dropping it leaves it as it is; [`Host::destroy_all`] ends it.
pub struct Partition<'h> {
    host: &'h Host,
    id: u16,
    given: BTreeMap<u64, u64>,
    session: Option<Window>,
    /// The product's session.
    wire: Option<Wire>,
    shared: bool,
}

impl<'h> Partition<'h> {
    /// Creates an empty one.
    pub fn create(host: &'h Host, image: &Image) -> Result<Self> {
        Self::create_from(host, image.manifest_bytes())
    }

    /// Creates an empty one from a manifest.
    pub fn create_from(host: &'h Host, bytes: &[u8]) -> Result<Self> {
        let reply = host.service_with_bytes(op::CREATE, [bytes.len() as u64, 0, 0, 0], bytes)?;
        let id = reply.ok("CREATE")?[0] as u16;
        Ok(Self { host, id, given: BTreeMap::new(), session: None, wire: None, shared: false })
    }

    /// Makes a running probe; with a secret, its heap is full of it.
    pub fn load(host: &'h Host, image: &Image, secret: Option<&Secret>) -> Result<Self> {
        let mut partition = Self::create(host, image)?;
        partition.give_all(image)?;
        host.measure(partition.id)?;
        partition.start()?;
        if let Some(secret) = secret {
            partition.fill(secret)?;
        }
        Ok(partition)
    }

    /// As [`Self::load`], with these contiguous pages for its heap.
    pub fn load_with_heap(host: &'h Host, image: &Image, secret: &Secret, heap: u64) -> Result<Self> {
        let mut partition = Self::create(host, image)?;
        partition.give_all_but_heap(image)?;
        partition.give_pages(layout::HEAP, heap, HEAP_PAGES)?;
        host.measure(partition.id)?;
        partition.start()?;
        partition.fill(secret)?;
        Ok(partition)
    }

    /// Makes the product's partition with a model in it, and waits until it is ready. `heap` is in pages.
    pub fn load_product(host: &'h Host, image: &Image, model: &[u8], heap: u64) -> Result<Self> {
        /// Pages of one allocation.
        const BLOCK: u64 = 1024;
        let mut partition = Self::create(host, image)?;
        for pages in image.pages() {
            partition.give_contents(pages.ipa, &pages.bytes)?;
        }
        partition.give_contents(layout::MODEL, model)?;
        for first in (0..heap).step_by(BLOCK as usize) {
            partition.give_zero(layout::HEAP + first * PAGE_SIZE, BLOCK.min(heap - first))?;
        }
        let pages = partition.give_zero(layout::VIRTIO, VIRTIO_PAGES)?;
        partition.wire = Some(Wire::new(Devices::new(host.module.map_virtio(pages)?)));
        host.measure(partition.id)?;
        host.service(op::START, [partition.id.into(), 0, 0, 0])?.ok("START")?;
        match partition.await_frame(&mut Self::enter)? {
            Frame::Payload(frame::READY, _) => Ok(partition),
            other => bail!("the model does not load: {other:x?}"),
        }
    }

    /// Has the product answer a prompt, entering its first vCPU as the caller says; returns the text.
    pub fn answer(
        &mut self,
        prompt: &str,
        max_tokens: u32,
        enter: &mut dyn FnMut(&Self) -> Result<Exit>,
    ) -> Result<String> {
        let request = Request { max_tokens, ..Request::default() };
        let wire = self.wire.as_mut().filter(|_| self.shared).context("there is no session")?;
        let sent = wire.send(frame::REQUEST, request.as_bytes(), prompt.as_bytes());
        ensure!(sent == Ok(true), "the stream is full or broken");
        wire.service()?;
        let mut text = Vec::new();
        loop {
            match self.await_frame(enter)? {
                Frame::Payload(frame::PREFILLED, _) => {}
                Frame::Payload(frame::TOKEN, piece) => text.extend(piece),
                Frame::Payload(frame::DONE, _) => return Ok(String::from_utf8(text)?),
                other => bail!("it does not answer: {other:x?}"),
            }
        }
    }

    /// Gives what the probe needs: image, a page of model, heap, session.
    pub fn give_all(&mut self, image: &Image) -> Result<()> {
        self.give_all_but_heap(image)?;
        self.give_zero(layout::HEAP, HEAP_PAGES).map(drop)
    }

    fn give_all_but_heap(&mut self, image: &Image) -> Result<()> {
        for pages in image.pages() {
            self.give_contents(pages.ipa, &pages.bytes)?;
        }
        self.give_contents(layout::MODEL, MODEL)?;
        let session = self.give_zero(layout::SESSION, SESSION_PAGES)?;
        self.session = Some(self.host.module.map(session, SESSION_PAGES)?);
        Ok(())
    }

    /// Id.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Physical address of the page at an IPA.
    pub fn page(&self, ipa: u64) -> Result<u64> {
        self.given.get(&ipa).copied().with_context(|| format!("nothing was given at {ipa:#x}"))
    }

    /// Physical address of a page of heap in the middle.
    pub fn heap_page(&self) -> Result<u64> {
        self.page(layout::HEAP + HEAP_PAGES / 2 * PAGE_SIZE)
    }

    /// Gives ranges as they are; nothing is recorded.
    pub fn give(&self, ipa: u64, ranges: &[PageRange]) -> Result<Reply> {
        self.host.service_with_list(op::GIVE, [self.id.into(), ipa, ranges.len() as u64, 0], ranges)
    }

    /// Gives contiguous pages.
    pub fn give_pages(&mut self, ipa: u64, address: u64, count: u64) -> Result<()> {
        for first in (0..count).step_by(STEP_PAGES as usize) {
            let page_count = (count - first).min(STEP_PAGES);
            let range = PageRange { base: address + first * PAGE_SIZE, page_count };
            self.give(ipa + first * PAGE_SIZE, &[range])?.ok("GIVE")?;
            self.host.note_given(&range)?;
        }
        self.given.extend((0..count).map(|page| (ipa + page * PAGE_SIZE, address + page * PAGE_SIZE)));
        Ok(())
    }

    /// Gives new pages with contents.
    pub fn give_contents(&mut self, ipa: u64, bytes: &[u8]) -> Result<u64> {
        let count = (bytes.len() as u64).div_ceil(PAGE_SIZE);
        let address = self.host.allocate(count)?;
        self.host.module.map(address, count)?.write(0, bytes);
        self.give_pages(ipa, address, count)?;
        Ok(address)
    }

    /// Gives new zero pages.
    pub fn give_zero(&mut self, ipa: u64, count: u64) -> Result<u64> {
        let address = self.host.allocate(count)?;
        self.give_pages(ipa, address, count)?;
        Ok(address)
    }

    /// Starts the measured partition and waits until the probe listens.
    pub fn start(&mut self) -> Result<()> {
        self.start_by(&mut Self::enter)
    }

    /// As [`Self::start`], entering it as the caller says.
    pub fn start_by(&mut self, enter: &mut dyn FnMut(&Self) -> Result<Exit>) -> Result<()> {
        self.host.service(op::START, [self.id.into(), 0, 0, 0])?.ok("START")?;
        match self.await_frame(enter)? {
            Frame::Payload(probe::LISTENING, _) => Ok(()),
            other => bail!("the probe does not listen: {other:x?}"),
        }
    }

    /// Fills the heap with a secret.
    pub fn fill(&mut self, secret: &Secret) -> Result<()> {
        let values = self.act_on(probe::FILL_HEAP, secret)?.values()?;
        ensure!(values[0] == HEAP_PAGES, "the probe filled {} pages", values[0]);
        Ok(())
    }

    /// How many copies of the secret in the heap are not what they were.
    pub fn damage(&mut self, secret: &Secret) -> Result<u64> {
        let [compared, differing, ..] = self.act_on(probe::CHECK_HEAP, secret)?.values()?;
        ensure!(compared == HEAP_PAGES * 256, "the probe compared {compared}");
        Ok(differing)
    }

    /// Has the secret kept in the image's data; returns its IPA.
    pub fn keep(&mut self, secret: &Secret) -> Result<u64> {
        Ok(self.act_on(probe::KEEP, secret)?.values()?[0])
    }

    fn act_on(&mut self, kind: u32, secret: &Secret) -> Result<Answer> {
        self.command(kind, [COMPLEMENT, 0, 0, 0], secret.complement(), &mut Self::enter)
    }

    /// Has the probe commit an act.
    pub fn act(&mut self, kind: u32, args: [u64; 4]) -> Result<Answer> {
        self.command(kind, args, &[], &mut Self::enter)
    }

    /// As [`Self::act`], with the 16 bytes behind the command.
    pub fn act_with(&mut self, kind: u32, args: [u64; 4], pattern: &[u8]) -> Result<Answer> {
        self.command(kind, args, pattern, &mut Self::enter)
    }

    /// As [`Self::act`], entering it as the caller says.
    pub fn act_by(
        &mut self,
        kind: u32,
        args: [u64; 4],
        enter: &mut dyn FnMut(&Self) -> Result<Exit>,
    ) -> Result<Answer> {
        self.command(kind, args, &[], enter)
    }

    fn command(
        &mut self,
        kind: u32,
        args: [u64; 4],
        pattern: &[u8],
        enter: &mut dyn FnMut(&Self) -> Result<Exit>,
    ) -> Result<Answer> {
        self.send(kind, args, pattern)?;
        match self.await_frame(enter)? {
            Frame::Ended(exit) => Ok(Answer::Ended(exit)),
            Frame::Payload(probe::RESULT, payload) => {
                let report = Report::read_from_bytes(&payload).ok();
                let report = report.filter(|report| report.act == kind).context("a foreign report")?;
                Ok(Answer::Report(report))
            }
            Frame::Payload(kind, _) => bail!("the probe says {kind:#x}"),
        }
    }

    /// Leaves a command for the probe, without running it.
    pub fn send(&self, kind: u32, args: [u64; 4], pattern: &[u8]) -> Result<()> {
        let session = self.session.as_ref().filter(|_| self.shared).context("there is no session")?.session();
        let sent = session.to_partition.send(kind, Command { args }.as_bytes(), pattern);
        ensure!(sent == Ok(true), "the probe's ring is full or broken");
        Ok(())
    }

    /// Enters its first vCPU once.
    pub fn enter(&self) -> Result<Exit> {
        self.runner().enter(0)?.context("its first vCPU is off")
    }

    /// What enters it from another thread.
    pub fn runner(&self) -> Runner<'h> {
        Runner { host: self.host, id: self.id }
    }

    fn await_frame(&mut self, enter: &mut dyn FnMut(&Self) -> Result<Exit>) -> Result<Frame> {
        let mut buffer = vec![0; MAX_FRAME];
        let mut idle = 0;
        loop {
            match enter(self)? {
                Exit::Interrupt => continue,
                ended @ (Exit::Finished(_) | Exit::Crashed(..) | Exit::Stopped) => {
                    return Ok(Frame::Ended(ended));
                }
                Exit::Kick | Exit::Timer | Exit::Waiting => {}
            }
            if !self.shared {
                let needed = if self.wire.is_some() { VIRTIO_PAGES } else { SESSION_PAGES };
                self.shared = self.host.partition_stats(self.id)?.pages_shared >= needed;
            }
            if let Some(wire) = self.wire.as_mut().filter(|_| self.shared) {
                wire.service()?;
                if let Some((kind, length)) =
                    wire.receive(&mut buffer).ok().context("the stream is broken")?
                {
                    return Ok(Frame::Payload(kind, buffer[..length].to_vec()));
                }
            }
            if let Some(session) = self.session.as_ref().filter(|_| self.shared) {
                let frame = session.session().to_host.receive(&mut buffer);
                if let Some((kind, length)) = frame.ok().context("the probe's ring is broken")? {
                    return Ok(Frame::Payload(kind, buffer[..length].to_vec()));
                }
            }
            idle += 1;
            ensure!(idle < PATIENCE, "the probe does not answer");
        }
    }

    /// Ends it, also while another thread is inside.
    pub fn stop(&self) -> Result<()> {
        loop {
            let reply = self.host.service(op::STOP, [self.id.into(), 0, 0, 0])?;
            match reply.status {
                0 => return Ok(()),
                error::BUSY => std::thread::yield_now(),
                status => bail!("STOP: {}", status_name(status)),
            }
        }
    }

    /// Takes pages back.
    pub fn recall(&self, ipa: u64, count: u64) -> Result<Reply> {
        self.host.service(op::RECALL, [self.id.into(), ipa, count, 0])
    }
}

/// The right to enter a partition's vCPUs.
#[derive(Clone, Copy)]
pub struct Runner<'h> {
    host: &'h Host,
    id: u16,
}

impl Runner<'_> {
    /// Enters a vCPU once; none if it is off.
    pub fn enter(&self, vcpu: usize) -> Result<Option<Exit>> {
        let regs = self.host.ffa(ffa::RUN, [u64::from(self.id) << 16 | vcpu as u64, 0, 0])?;
        if regs[0] as u32 == ffa::ERROR && regs[2] as i32 == error::DENIED {
            return Ok(None);
        }
        exit(&regs).map(Some)
    }
}

#[derive(Debug)]
enum Frame {
    Payload(u32, Vec<u8>),
    Ended(Exit),
}

/// What FFA_RUN answered.
pub fn exit(regs: &[u64; 18]) -> Result<Exit> {
    let ended = regs[0] as u32 == ffa::ERROR && regs[2] as i32 == error::ABORTED;
    Ok(match (regs[0] as u32, regs[4]) {
        (ffa::INTERRUPT, _) => Exit::Interrupt,
        (ffa::YIELD, run_exit::KICK) => Exit::Kick,
        (ffa::YIELD, run_exit::TIMER) => Exit::Timer,
        (ffa::MSG_WAIT, _) => Exit::Waiting,
        (_, run_exit::FINISHED) if ended => Exit::Finished(regs[5]),
        (_, run_exit::CRASHED) if ended => Exit::Crashed(regs[5], [regs[6], regs[7]]),
        (_, run_exit::STOPPED) if ended => Exit::Stopped,
        (ffa::ERROR, _) => bail!("FFA_RUN: {}", status_name(regs[2] as i32)),
        (function, reason) => bail!("FFA_RUN answers {function:#x}, {reason}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_ffa_run_are_understood() {
        let with = |values: &[u64]| {
            let mut regs = [0; 18];
            regs[..values.len()].copy_from_slice(values);
            exit(&regs)
        };
        assert_eq!(with(&[0x8400_0062]).unwrap(), Exit::Interrupt);
        assert_eq!(with(&[0x8400_006C, 0, 0, 0, 1]).unwrap(), Exit::Kick);
        assert_eq!(with(&[0x8400_006C, 0, 0, 0, 2, 77]).unwrap(), Exit::Timer);
        assert_eq!(with(&[0x8400_006B, 0, 0, 0, 3]).unwrap(), Exit::Waiting);
        let aborted = error::ABORTED as u32 as u64;
        assert_eq!(with(&[0x8400_0060, 0, aborted, 0, 5, 2, 3, 4]).unwrap(), Exit::Crashed(2, [3, 4]));
        assert_eq!(with(&[0x8400_0060, 0, aborted, 0, 4, 9]).unwrap(), Exit::Finished(9));
        assert!(with(&[0x8400_0060, 0, error::DENIED as u32 as u64]).is_err());
    }
}
