//! Using an NPU that is lent: acquired when there is work, given back when another wants it, and lost at any time.

use core::fmt;

use arrayvec::ArrayVec;
use flexserve_npu_abi::{Capabilities, JOBS_MAX, Job, Status};
use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;

use crate::{Error, Npu, Priority, Ticket};

/// Times that a list is repeated because the NPU was lost, until the caller is told to do without.
const ATTEMPTS: u32 = 4;
/// Lists in flight: while one is computed the next is there, and whoever wants the NPU waits for no more than that.
const IN_FLIGHT: usize = 2;

/// A list of jobs.
pub type List = ArrayVec<Job, JOBS_MAX>;

/// Why there is nothing to do but wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A list is in flight.
    List,
    /// Another has the NPU.
    Turn,
}

/// Waits a little, and says whether to go on waiting.
pub type Pause<'p> = &'p mut dyn FnMut(Wait) -> bool;

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

/// Why the NPU is not lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLent {
    /// Another has it, who has been told.
    Busy,
    /// It is out of order.
    Broken,
}

/// Who lends the NPU: the hypervisor.
pub trait Broker {
    /// How its registers are reached.
    type Transport: Transport;

    /// Asks about the NPU; none if there is none.
    fn state(&mut self) -> Option<Ownership>;

    /// Asks for it. The last owner's work has ended then, and the NPU reaches the memory of the caller and of nobody else.
    ///
    /// # Errors
    /// [`NotLent`].
    fn acquire(&mut self) -> Result<Ownership, NotLent>;

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
        Lease { broker, npu: None, held: false, useless: None, stats: LeaseStats::default() }
    }

    /// Does the lists that `make` makes by number, from 0 on until it makes none, each after the one before it. While there is
    /// nothing to do `pause` is called; when that does not wait for a list any longer, the NPU is given up for good.
    ///
    /// The NPU is acquired if need be, and kept; when somebody wants it, it is given back between two lists, and asked for
    /// again. Lists that were lost with it are made again; so a list may be begun anew although the next has begun, but
    /// none behind that. Returns how many lists were done, all others before which it failed; what the next two write is
    /// anything then.
    ///
    /// # Errors
    /// [`Refusal`]. No access of the NPU's is under way.
    pub fn run(
        &mut self,
        make: &mut dyn FnMut(usize) -> Option<List>,
        pause: Pause<'_>,
    ) -> (usize, Result<(), Refusal>) {
        let (mut done, mut losses) = (0, 0);
        loop {
            let before = done;
            match self.run_on(&mut done, make, pause) {
                Ok(()) => return (done, Ok(())),
                Err(None) => {
                    losses = if done > before { 1 } else { losses + 1 };
                    self.stats.losses += 1;
                    if losses >= ATTEMPTS {
                        self.stats.refusals += 1;
                        return (done, Err(Refusal::NotNow));
                    }
                }
                Err(Some(refusal)) => {
                    self.stats.refusals += u64::from(refusal == Refusal::NotNow);
                    return (done, Err(refusal));
                }
            }
        }
    }

    /// Goes on behind `done` lists until all are done; [`None`]: the NPU was lost.
    fn run_on(
        &mut self,
        done: &mut usize,
        make: &mut dyn FnMut(usize) -> Option<List>,
        pause: Pause<'_>,
    ) -> Result<(), Option<Refusal>> {
        let mut in_flight: ArrayVec<(Ticket, usize), IN_FLIGHT> = ArrayVec::new();
        let mut is_last = false;
        loop {
            while !is_last && !in_flight.is_full() {
                if !in_flight.is_empty() && self.is_wanted() {
                    break;
                }
                let Some(list) = make(*done + in_flight.len()) else {
                    is_last = true;
                    break;
                };
                let npu = if in_flight.is_empty() { self.ready(pause)? } else { self.running()? };
                match npu.submit(Priority::Normal, &list) {
                    Ok(ticket) => in_flight.push((ticket, list.len())),
                    Err(error) => return Err(self.failed(error)),
                }
            }
            let Some((ticket, jobs)) = in_flight.pop_at(0) else { return Ok(()) };
            let ended = self.running()?.wait(ticket, &mut [], || pause(Wait::List));
            match ended {
                Ok(Status::Ok) => {
                    *done += 1;
                    self.stats.jobs += jobs as u64;
                }
                Ok(status) => {
                    // Nothing may be under way.
                    for (ticket, _) in in_flight {
                        if let Err(error) = self.running()?.wait(ticket, &mut [], || pause(Wait::List)) {
                            return Err(self.failed(error));
                        }
                    }
                    return Err(Some(Refusal::Failed(status)));
                }
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    /// Stops a device that was lost; gives up one that fails otherwise.
    fn failed(&mut self, error: Error) -> Option<Refusal> {
        // Of a device that is being taken away even an answer may be cut off.
        let generation = self.npu.as_ref().map(|(generation, _)| *generation);
        if error == Error::Lost || generation.is_some_and(|generation| self.is_lost(generation)) {
            self.stop().err()
        } else {
            Some(self.give_up(error))
        }
    }

    fn running(&mut self) -> Result<&mut Npu<H, B::Transport>, Option<Refusal>> {
        self.npu.as_mut().map(|(_, npu)| npu).ok_or(None)
    }

    fn is_wanted(&mut self) -> bool {
        self.broker.state().is_some_and(|state| state.wanted)
    }

    /// Asks what the NPU can do.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn capabilities(&mut self, pause: Pause<'_>) -> Result<Capabilities, Refusal> {
        match self.ready(pause)?.capabilities(|| pause(Wait::List)) {
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

    /// The NPU, held and started. Gives it back before, if somebody wants it and nothing is in flight.
    fn ready(&mut self, pause: Pause<'_>) -> Result<&mut Npu<H, B::Transport>, Refusal> {
        if let Some(error) = self.useless {
            return Err(Refusal::Useless(error));
        }
        let Some(state) = self.broker.state() else { return Err(self.give_up(Error::Absent)) };
        self.held = state.held;
        if state.wanted {
            self.give_back();
        }
        let generation = if self.held { state.generation } else { self.acquire(pause)? };
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

    /// Asks for it until it is lent; returns the generation.
    fn acquire(&mut self, pause: Pause<'_>) -> Result<u64, Refusal> {
        loop {
            match self.broker.acquire() {
                Ok(state) => {
                    self.held = true;
                    return Ok(state.generation);
                }
                Err(NotLent::Busy) if pause(Wait::Turn) => {}
                Err(_) => return Err(Refusal::NotNow),
            }
        }
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
