//! Using an NPU that is lent: acquired when there is work, given back when another wants it, and lost at any time.

use core::fmt;

use flexserve_npu_abi::{Capabilities, JOBS_MAX, Job, Status};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use crate::{Error, Npu, Priority};

/// Times that a list is repeated because the NPU was lost, until the caller is told to do without.
const ATTEMPTS: u32 = 4;
/// Lists that are left to the caller after the NPU was given back to somebody who wanted it, unless he takes it earlier.
const COURTESY: u32 = 16;

/// What its broker says of the NPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// It is lent to the caller.
    pub held: bool,
    /// And somebody else asks for it.
    pub wanted: bool,
    /// How often it changed hands.
    pub generation: u64,
}

/// Who lends the NPU: the hypervisor.
pub trait Broker {
    /// How its registers are reached.
    type Transport: Transport;

    /// Asks about the NPU; none if there is none.
    fn state(&mut self) -> Option<Ownership>;

    /// Asks for it; none if it is not to be had now. The last owner's work has ended then, and the NPU reaches the memory
    /// of the caller and of nobody else.
    fn acquire(&mut self) -> Option<Ownership>;

    /// Gives it back.
    fn release(&mut self);

    /// Its registers. While it is not held they read as all ones.
    fn transport(&mut self) -> Self::Transport;
}

/// Why a list was not done. No access of the NPU's is under way, so that what it was to write is the caller's again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The NPU is not to be had now; later it may be.
    NotNow,
    /// A job ended like this, and would again.
    Failed(Status),
    /// There is no NPU, or it broke the rules, and is not asked again.
    Useless(Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotNow => f.write_str("the NPU is not to be had now"),
            Refusal::Failed(status) => write!(f, "the NPU ended a job as {status:?}"),
            Refusal::Useless(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Refusal {}

/// What a [`Lease`] has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseStats {
    /// Jobs done.
    pub jobs: u64,
    /// Times that the NPU was lost with a list in flight.
    pub losses: u64,
    /// Lists that were refused as [`Refusal::NotNow`].
    pub refusals: u64,
}

/// The right to ask for the NPU, and the NPU while it is held.
pub struct Lease<H: Hal, B: Broker> {
    broker: B,
    /// With the generation in which it was started.
    npu: Option<(u64, Npu<H, B::Transport>)>,
    /// Whether it was lent and not given back since; it may be lost.
    held: bool,
    /// Why it is not asked any more.
    useless: Option<Error>,
    /// The generation in which it was given back to somebody who wanted it, and lists since.
    given_back: Option<(u64, u32)>,
    stats: LeaseStats,
}

impl<H: Hal, B: Broker> fmt::Debug for Lease<H, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lease { useless, stats, .. } = self;
        f.debug_struct("Lease").field("useless", useless).field("stats", stats).finish_non_exhaustive()
    }
}

impl<H: Hal, B: Broker> Lease<H, B> {
    /// Nothing is asked yet.
    pub fn new(broker: B) -> Self {
        Lease {
            broker,
            npu: None,
            held: false,
            useless: None,
            given_back: None,
            stats: LeaseStats::default(),
        }
    }

    /// Does jobs in order, as one list or several, of which each begins when the one before it has ended. While the NPU is
    /// busy `pause` is called; when that returns false it is given up for good.
    ///
    /// The NPU is acquired if need be, and kept; when somebody wants it, it is given back before the next list. A list that
    /// was lost with it is repeated. If this fails, some of the jobs may have been done.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn run(&mut self, jobs: &[Job], pause: &mut dyn FnMut() -> bool) -> Result<(), Refusal> {
        let done = jobs.chunks(JOBS_MAX).try_for_each(|list| self.run_list(list, pause));
        self.stats.refusals += u64::from(done == Err(Refusal::NotNow));
        done
    }

    fn run_list(&mut self, jobs: &[Job], pause: &mut dyn FnMut() -> bool) -> Result<(), Refusal> {
        for _ in 0..ATTEMPTS {
            let npu = self.ready()?;
            let ticket = npu.submit(Priority::Normal, jobs);
            let ended = ticket.and_then(|ticket| npu.wait(ticket, &mut [], &mut *pause));
            match ended {
                Ok(Status::Ok) => {
                    self.stats.jobs += jobs.len() as u64;
                    return Ok(());
                }
                Ok(status) => return Err(Refusal::Failed(status)),
                Err(Error::Lost) => {
                    self.stats.losses += 1;
                    self.stop()?;
                }
                // Of a device that is being taken away even an answer may be cut off.
                Err(error) => {
                    let generation = self.npu.as_ref().map(|(generation, _)| *generation);
                    match generation {
                        Some(generation) if self.is_lost(generation) => self.stop()?,
                        _ => return Err(self.give_up(error)),
                    }
                }
            }
        }
        Err(Refusal::NotNow)
    }

    /// Asks what the NPU can do.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn capabilities(&mut self, pause: &mut dyn FnMut() -> bool) -> Result<Capabilities, Refusal> {
        match self.ready()?.capabilities(pause) {
            Ok(capabilities) => Ok(capabilities),
            Err(Error::Lost) => self.stop().and(Err(Refusal::NotNow)),
            Err(error) => Err(self.give_up(error)),
        }
    }

    /// Gives the NPU back, if it is held. To be called when there is no work for a while. If nobody takes it meanwhile, the
    /// next list finds it as it is.
    pub fn give_back(&mut self) {
        if core::mem::take(&mut self.held) {
            self.broker.release();
        }
    }

    /// What happened so far.
    pub fn stats(&self) -> LeaseStats {
        self.stats
    }

    /// The NPU, held and started.
    fn ready(&mut self) -> Result<&mut Npu<H, B::Transport>, Refusal> {
        if let Some(error) = self.useless {
            return Err(Refusal::Useless(error));
        }
        let Some(state) = self.broker.state() else { return Err(self.give_up(Error::Absent)) };
        self.held = state.held;
        if state.wanted {
            self.give_back();
            self.given_back = Some((state.generation, 0));
        }
        let generation = if self.held { state.generation } else { self.acquire(state.generation)? };
        if self.npu.as_ref().is_some_and(|(then, _)| *then != generation) {
            // What is known of the device is of before.
            self.stop()?;
        }
        if self.npu.is_none() {
            match Npu::start(self.broker.transport()) {
                Ok(npu) => self.npu = Some((generation, npu)),
                // What was lost meanwhile may look like anything.
                Err(_) if self.is_lost(generation) => return Err(Refusal::NotNow),
                Err(error) => return Err(self.give_up(error)),
            }
        }
        self.npu.as_mut().map(|(_, npu)| npu).ok_or(Refusal::NotNow)
    }

    /// Whether it changed hands since.
    fn is_lost(&mut self, generation: u64) -> bool {
        self.broker.state().is_some_and(|state| !state.held || state.generation != generation)
    }

    /// Asks for it; returns the generation.
    fn acquire(&mut self, generation: u64) -> Result<u64, Refusal> {
        if let Some((then, lists)) = &mut self.given_back
            && *then == generation
            && *lists < COURTESY
        {
            *lists += 1;
            return Err(Refusal::NotNow);
        }
        self.given_back = None;
        let state = self.broker.acquire().ok_or(Refusal::NotNow)?;
        self.held = true;
        Ok(state.generation)
    }

    /// Stops the device, if it is running and still there.
    fn stop(&mut self) -> Result<(), Refusal> {
        match self.npu.take().map(|(_, mut npu)| npu.stop()) {
            Some(Err(error)) => Err(Refusal::Useless(*self.useless.insert(error))),
            _ => Ok(()),
        }
    }

    fn give_up(&mut self, error: Error) -> Refusal {
        self.useless = Some(error);
        // A device that does not stop is reset by whoever takes it.
        let _ = self.stop();
        self.give_back();
        Refusal::Useless(error)
    }
}

impl<H: Hal, B: Broker> Drop for Lease<H, B> {
    fn drop(&mut self) {
        let _ = self.stop();
        self.give_back();
    }
}
