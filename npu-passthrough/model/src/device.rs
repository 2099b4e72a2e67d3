//! The device: two queues with a thread each, and what they share.
//!
//! A queue's thread holds its core and is `busy` while it serves chains; everything else about a queue is in its
//! [`State`], under its lock. Whoever changes that first stops the thread ([`Device::change`]): the thread ends its job at
//! the next tile, or its wait for a grant. Lock order: a queue's core, then its state; the other locks are leaves.

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flexserve_npu_abi::{QUEUE_HIGH, QUEUES};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::dma::{Access, Dma, Fault};
use crate::grants::Grants;
use crate::iotlb::{Iotlb, Memory};
use crate::jobs::{Context, Core};
use crate::list::serve_chain;
use crate::queue::{Problem, Ring};
use crate::throttle::Throttle;

/// Times that a grant is asked for anew because it was taken back before it was used.
const GRANTS_MAX: u32 = 100_000;
/// List ids that are remembered as cancelled: as many as can be waiting.
const CANCELLED_MAX: usize = QUEUES * flexserve_npu_abi::QUEUE_SIZE_MAX as usize;
/// How long the normal queue waits before it looks again whether the other is done.
const TURN: Duration = Duration::from_micros(100);

/// How the device is to be.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Computes by the definition, without vector instructions.
    pub portable: bool,
    /// Takes the time of a slower device.
    pub throttle: Throttle,
    /// Tells what happens.
    pub verbose: bool,
}

/// What is known of a queue.
#[derive(Debug, Default)]
pub struct State {
    /// Where it is.
    pub ring: Ring,
    /// Chains given back.
    pub served: u16,
    /// Rings when chains are available; none: the queue is stopped.
    pub kick: Option<Arc<OwnedFd>>,
    /// Is rung when chains were given back.
    pub call: Option<Arc<OwnedFd>>,
    /// Whether it is to be served.
    pub enabled: bool,
    /// Whether to look without having been rung.
    look: bool,
    broken: bool,
    busy: bool,
}

impl State {
    fn is_running(&self) -> bool {
        self.kick.is_some() && self.enabled
    }

    /// Forgets what was wrong; chains that are available already are looked for.
    pub fn renew(&mut self) {
        (self.look, self.broken) = (true, false);
    }
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
    /// Interrupts any wait of the thread's.
    wake: OwnedFd,
    core: Mutex<Core>,
}

/// The device.
#[derive(Debug)]
pub struct Device {
    options: Options,
    queues: [Queue; QUEUES],
    iotlb: Iotlb,
    /// Asks the front end for what the IOTLB lacks.
    pub grants: Grants,
    memory: Mutex<Memory>,
    /// Whether the front end translates; nothing works without.
    translated: AtomicBool,
    cancelled: Mutex<VecDeque<u32>>,
    high_is_busy: AtomicBool,
    ended: AtomicBool,
    /// Jobs that are done since power-on.
    jobs: AtomicU32,
    /// Grants that were asked for, and the time that took, in nanoseconds.
    asked: [AtomicU64; 2],
    /// When the last list ended.
    idle_since: Mutex<Option<Instant>>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds one to an eventfd. It can only be full, which is as good.
pub(crate) fn ring(fd: impl AsFd) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

/// Makes an eventfd zero.
pub(crate) fn quiet(fd: impl AsFd) {
    let _ = rustix::io::read(fd, &mut [0u8; 8]);
}

/// Waits until one of two is readable, or for some time.
pub(crate) fn wait_for(first: impl AsFd, second: Option<&OwnedFd>, time: Option<Duration>) -> [bool; 2] {
    let first = PollFd::from_borrowed_fd(first.as_fd(), PollFlags::IN);
    let time = time.and_then(|time| Timespec::try_from(time).ok());
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    match second {
        None => {
            let mut fds = [first];
            let _ = poll(&mut fds, time.as_ref());
            [is_ready(&fds[0]), false]
        }
        Some(second) => {
            let mut fds = [first, PollFd::from_borrowed_fd(second.as_fd(), PollFlags::IN)];
            let _ = poll(&mut fds, time.as_ref());
            [is_ready(&fds[0]), is_ready(&fds[1])]
        }
    }
}

impl Device {
    /// A device at power-on.
    ///
    /// # Errors
    /// The host has no memory or no file descriptor left.
    pub fn new(options: Options) -> std::io::Result<Self> {
        let queue = || -> std::io::Result<Queue> {
            let core = Core::new(options.portable, options.throttle)
                .map_err(|error| std::io::Error::other(error.to_string()))?;
            Ok(Queue {
                state: Mutex::default(),
                changed: Condvar::new(),
                stopping: AtomicBool::new(false),
                wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
                core: Mutex::new(core),
            })
        };
        Ok(Device {
            queues: [queue()?, queue()?],
            options,
            iotlb: Iotlb::default(),
            grants: Grants::default(),
            memory: Mutex::default(),
            translated: AtomicBool::new(false),
            cancelled: Mutex::default(),
            high_is_busy: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            jobs: AtomicU32::new(0),
            asked: Default::default(),
            idle_since: Mutex::default(),
        })
    }

    /// Tells what happens, if somebody wants to know.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.options.verbose {
            eprintln!("npu: {}", what());
        }
    }

    fn asked(&self) -> [u64; 2] {
        self.asked.each_ref().map(|sum| sum.load(Ordering::Relaxed))
    }

    /// Jobs that are done since power-on.
    pub fn jobs(&self) -> u32 {
        self.jobs.load(Ordering::SeqCst)
    }

    /// Says whether the front end translates.
    pub fn set_translated(&self, translated: bool) {
        self.translated.store(translated, Ordering::SeqCst);
    }

    /// Replaces the memory; what was granted of the old one is taken back.
    pub fn set_memory(&self, memory: Memory) {
        *lock(&self.memory) = memory;
        self.iotlb.clear();
    }

    /// Takes a grant; false if it is of no memory. What nobody waits for is not granted.
    pub fn grant(&self, iova: u64, size: u64, address: u64, (read, write): (bool, bool)) -> bool {
        let Some((wanted, access)) = self.grants.wanted() else { return true };
        let may = if access == Access::Read { read } else { write };
        if !may || wanted.checked_sub(iova).is_none_or(|offset| offset >= size) {
            return true;
        }
        self.iotlb.insert(access, iova, size, &lock(&self.memory), address)
    }

    /// Takes grants back, as [`Iotlb::invalidate`].
    pub fn invalidate(&self, iova: u64, size: u64) {
        self.iotlb.invalidate(iova, size);
    }

    /// Stops the thread of a queue, and lets it go on, if it may, after a change. When that leaves no queue running, the
    /// device is reset.
    pub fn change<R>(&self, queue: usize, change: impl FnOnce(&mut State) -> R) -> Option<R> {
        let slot = self.queues.get(queue)?;
        slot.stopping.store(true, Ordering::SeqCst);
        ring(&slot.wake);
        let mut state = lock(&slot.state);
        while state.busy {
            state = slot.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let was_running = state.is_running();
        let result = change(&mut state);
        let stopped = was_running && !state.is_running();
        slot.stopping.store(false, Ordering::SeqCst);
        slot.changed.notify_all();
        drop(state);
        if stopped && !self.queues.iter().any(|slot| lock(&slot.state).is_running()) {
            self.power_on();
        }
        Some(result)
    }

    /// Stops all queues.
    pub fn reset(&self) {
        for queue in 0..QUEUES {
            self.change(queue, |state| *state = State::default());
        }
    }

    /// Makes memory, list ids and IOTLB what they are at power-on.
    fn power_on(&self) {
        self.iotlb.clear();
        lock(&self.cancelled).clear();
        self.jobs.store(0, Ordering::SeqCst);
        self.queues.iter().for_each(|slot| lock(&slot.core).scrub());
        self.tell(|| "scrubbed".into());
    }

    /// Whether memory, list ids and IOTLB are what they are at power-on.
    pub fn is_at_power_on(&self) -> bool {
        self.iotlb.lengths() == [0, 0]
            && lock(&self.cancelled).is_empty()
            && self.jobs() == 0
            && self.queues.iter().all(|slot| lock(&slot.core).is_scrubbed())
    }

    /// Ends the threads, and lets go of the front end.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.reset();
        self.grants.close();
    }

    /// Serves a queue until [`Device::end`].
    pub fn serve(&self, queue: usize) {
        let Some(slot) = self.queues.get(queue) else { return };
        loop {
            let (kick, look) = {
                let mut state = lock(&slot.state);
                loop {
                    if self.ended.load(Ordering::SeqCst) {
                        return;
                    }
                    match &state.kick {
                        Some(kick) if self.may_run(slot, &state) => break (kick.clone(), state.look),
                        _ => state = slot.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                    }
                }
            };
            if !look {
                let [kicked, woken] = wait_for(&*kick, Some(&slot.wake), None);
                if woken {
                    quiet(&slot.wake);
                }
                if !kicked {
                    continue;
                }
                quiet(&*kick);
            }
            let (ring, served) = {
                let mut state = lock(&slot.state);
                if !self.may_run(slot, &state) {
                    // The kick is not to be lost.
                    state.look = true;
                    continue;
                }
                (state.busy, state.look) = (true, false);
                (state.ring, state.served)
            };
            let (served, problem) = self.serve_chains(queue, slot, ring, served);
            let mut state = lock(&slot.state);
            (state.served, state.busy) = (served, false);
            match problem {
                Some(Problem::Broken) => state.broken = true,
                // Interrupted by a change of something: what is available is to be looked at again.
                Some(Problem::Fault(Fault::Stopped)) => state.look = true,
                _ => {}
            }
            slot.changed.notify_all();
        }
    }

    fn may_run(&self, slot: &Queue, state: &State) -> bool {
        let is_set_up = state.ring.is_valid() && self.translated.load(Ordering::SeqCst);
        state.is_running() && is_set_up && !state.broken && !slot.stopping.load(Ordering::SeqCst)
    }

    /// Serves what is available; returns how many were served in all, and why no more.
    fn serve_chains(
        &self,
        queue: usize,
        slot: &Queue,
        ring: Ring,
        mut served: u16,
    ) -> (u16, Option<Problem>) {
        let is_high = queue == usize::from(QUEUE_HIGH);
        let mut core = lock(&slot.core);
        loop {
            let port = Port::new(self, slot, is_high);
            let outcome = serve_chain(&ring, served, &mut core, &port);
            if is_high {
                self.high_is_busy.store(false, Ordering::SeqCst);
            }
            match outcome {
                Ok(Some(notify)) => {
                    served = served.wrapping_add(1);
                    if notify {
                        lock(&slot.state).call.iter().for_each(|call| self::ring(&**call));
                    }
                }
                Ok(None) => return (served, None),
                Err(problem) => {
                    self.tell(|| format!("queue {queue} is not served further: {problem:x?}"));
                    return (served, Some(problem));
                }
            }
        }
    }
}

/// A queue's view of memory and of the other queue.
struct Port<'d> {
    device: &'d Device,
    slot: &'d Queue,
    is_high: bool,
    list_id: Cell<Option<u32>>,
    /// When the list began, and what was asked for before.
    begin: Cell<(Instant, [u64; 2])>,
}

impl<'d> Port<'d> {
    fn new(device: &'d Device, slot: &'d Queue, is_high: bool) -> Self {
        let begin = Cell::new((Instant::now(), device.asked()));
        Port { device, slot, is_high, list_id: Cell::new(None), begin }
    }

    fn is_stopping(&self) -> bool {
        self.slot.stopping.load(Ordering::SeqCst)
    }

    fn transfer(
        &self,
        access: Access,
        iova: u64,
        size: usize,
        mut copy: impl FnMut(vm_memory::VolatileSlice<'_>, usize),
    ) -> Result<(), Fault> {
        let (mut done, mut asked) = (0, 0);
        while done < size {
            if self.is_stopping() {
                return Err(Fault::Stopped);
            }
            let at = iova.checked_add(done as u64).ok_or(Fault::Refused(access, iova))?;
            match self.device.iotlb.access(access, at, size - done, |slice| copy(slice, done)) {
                0 => {
                    asked += 1;
                    let start = Instant::now();
                    let granted = asked <= GRANTS_MAX
                        && self.device.grants.ask(at, access, &self.slot.wake, &|| self.is_stopping())?;
                    let counts = [1, start.elapsed().as_nanos() as u64];
                    self.device.asked.iter().zip(counts).for_each(|(sum, count)| {
                        sum.fetch_add(count, Ordering::Relaxed);
                    });
                    if !granted {
                        return Err(Fault::Refused(access, at));
                    }
                }
                count => done += count,
            }
        }
        Ok(())
    }
}

impl Dma for Port<'_> {
    fn read(&self, iova: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.transfer(Access::Read, iova, buffer.len(), |slice, done| {
            slice.copy_to(buffer.get_mut(done..).unwrap_or_default());
        })
    }

    fn write(&self, iova: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.transfer(Access::Write, iova, bytes.len(), |slice, done| {
            slice.copy_from(bytes.get(done..).unwrap_or_default());
        })
    }
}

impl Context for Port<'_> {
    fn checkpoint(&self) -> Result<(), Fault> {
        loop {
            if self.is_stopping() {
                return Err(Fault::Stopped);
            }
            if self.list_id.get().is_some_and(|id| lock(&self.device.cancelled).contains(&id)) {
                return Err(Fault::Cancelled);
            }
            if self.is_high || !self.device.high_is_busy.load(Ordering::SeqCst) {
                return Ok(());
            }
            std::thread::sleep(TURN);
        }
    }

    fn sleep(&self, time: Duration) -> Result<(), Fault> {
        let end = Instant::now().checked_add(time);
        loop {
            self.checkpoint()?;
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(());
            }
            // Short enough to notice a cancellation soon.
            let [woken, _] = wait_for(&self.slot.wake, None, Some(left.min(Duration::from_millis(1))));
            if woken && !self.is_stopping() {
                quiet(&self.slot.wake);
            }
        }
    }

    fn done(&self) {
        self.device.jobs.fetch_add(1, Ordering::SeqCst);
    }

    fn cancel(&self, list_id: u32) {
        let mut cancelled = lock(&self.device.cancelled);
        if cancelled.len() >= CANCELLED_MAX {
            cancelled.pop_front();
        }
        cancelled.push_back(list_id);
    }

    fn begin(&self, list_id: u32) {
        self.list_id.set(Some(list_id));
        let (now, idle_since) = (Instant::now(), lock(&self.device.idle_since).take());
        let idle = idle_since.map_or(Duration::ZERO, |since| now - since).as_secs_f64() * 1e3;
        self.device.tell(|| format!("list {list_id} begins after {idle:.2} ms without any"));
        self.begin.set((now, self.device.asked()));
        if self.is_high {
            self.device.high_is_busy.store(true, Ordering::SeqCst);
        }
    }

    fn end(&self, list_id: u32) {
        lock(&self.device.cancelled).retain(|id| *id != list_id);
        self.device.tell(|| {
            *lock(&self.device.idle_since) = Some(Instant::now());
            let (start, [count, ns]) = self.begin.get();
            let [count, ns] = {
                let now = self.device.asked();
                [now[0] - count, now[1] - ns]
            };
            let ms = start.elapsed().as_secs_f64() * 1e3;
            format!(
                "list {list_id} ended after {ms:.2} ms, of which {count} grants took {:.2} ms",
                ns as f64 / 1e6
            )
        });
    }
}
