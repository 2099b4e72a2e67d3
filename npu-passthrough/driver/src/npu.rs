//! The device as its user sees it.

use core::fmt;

use flexserve_npu_abi::{
    Capabilities, Config, JOBS_MAX, Job, JobResult, ListHeader, ListResult, QUEUE_HIGH, QUEUE_NORMAL, QUEUES,
    Status, VERSION,
};
use virtio_drivers::Hal;
use virtio_drivers::transport::{DeviceStatus, Transport};
use zerocopy::FromBytes;

use crate::ring::Ring;

/// VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM: no more, no less.
const FEATURES: u64 = 1 << 32 | 1 << 33;
/// Reads of the status until a reset must be done.
const RESET_PATIENCE: u32 = 1 << 20;
/// Polls without news between two looks at whether the device is still there: looking may be expensive.
const LOOK_EVERY: u32 = 64;
/// Status of a device that was taken away.
const GONE: u32 = 0xff;

/// Why something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no NPU behind these registers.
    Absent,
    /// It is an NPU of another version.
    Version,
    /// It lacks a feature that is needed, or did not accept those chosen.
    Features,
    /// It does not finish a reset.
    Silent,
    /// There is no memory for virtqueues.
    Memory,
    /// More jobs than a list has.
    TooManyJobs,
    /// As many lists as there is room for are in flight.
    Busy,
    /// There is no such list, or its answer was taken.
    Ticket,
    /// Whoever waits does not want to wait longer. The list is still in flight.
    Impatient,
    /// The device was taken away or reset; all that was in flight is to be repeated.
    Lost,
    /// The device broke the rules. Nothing that it said counts.
    Protocol,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Absent => "there is no NPU",
            Error::Version => "the NPU is of another version",
            Error::Features => "the NPU lacks a needed feature",
            Error::Silent => "the NPU does not finish its reset",
            Error::Memory => "there is no memory for the NPU's queues",
            Error::TooManyJobs => "too many jobs in a list",
            Error::Busy => "too many lists in flight",
            Error::Ticket => "there is no such list",
            Error::Impatient => "the NPU is not done yet",
            Error::Lost => "the NPU was taken away",
            Error::Protocol => "the NPU answers nonsense",
        })
    }
}

impl core::error::Error for Error {}

/// Which of the two queues a list goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// It can wait.
    Normal,
    /// It goes before whatever can wait.
    High,
}

/// A list in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    queue: u16,
    place: usize,
    list_id: u32,
    jobs: usize,
}

/// The device, started. Dropping it stops it.
pub struct Npu<H: Hal, T: Transport> {
    transport: T,
    /// None once the device is stopped.
    rings: Option<[Ring<H>; QUEUES]>,
    /// Why nothing is possible any more.
    fault: Option<Error>,
    last_list_id: u32,
    polls: u32,
}

impl<H: Hal, T: Transport> fmt::Debug for Npu<H, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Npu")
            .field("fault", &self.fault)
            .field("last_list_id", &self.last_list_id)
            .finish_non_exhaustive()
    }
}

impl<H: Hal, T: Transport> Npu<H, T> {
    /// Resets the device and starts it (Virtio 1.2, 3.1.1).
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::Version`], [`Error::Features`], [`Error::Silent`], [`Error::Memory`].
    pub fn start(mut transport: T) -> Result<Self, Error> {
        reset(&mut transport)?;
        let mut status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(status);
        if transport.read_device_features() & FEATURES != FEATURES {
            return Err(Error::Features);
        }
        transport.write_driver_features(FEATURES);
        status |= DeviceStatus::FEATURES_OK;
        transport.set_status(status);
        if transport.get_status() != status {
            return Err(Error::Features);
        }
        match transport.read_config_space::<Config>(0) {
            Ok(Config { magic: Config::MAGIC, version, .. }) if u32::from(version) == VERSION => {}
            Ok(Config { magic: Config::MAGIC, .. }) => return Err(Error::Version),
            _ => return Err(Error::Absent),
        }
        let mut npu = Npu { transport, rings: None, fault: None, last_list_id: 0, polls: 0 };
        let normal = Ring::new(&mut npu.transport, QUEUE_NORMAL).map_err(|_| Error::Memory)?;
        let high = Ring::new(&mut npu.transport, QUEUE_HIGH).map_err(|_| Error::Memory)?;
        // From here on the rings are let go only after a reset.
        npu.rings = Some([normal, high]);
        status |= DeviceStatus::DRIVER_OK;
        npu.transport.set_status(status);
        if npu.transport.get_status() == status { Ok(npu) } else { Err(Error::Features) }
    }

    /// Asks what the device can do.
    ///
    /// # Errors
    /// As [`Npu::wait`].
    pub fn capabilities(&mut self, pause: impl FnMut() -> bool) -> Result<Capabilities, Error> {
        let ticket = self.submit(Priority::High, &[])?;
        self.wait_for(ticket, &mut [], pause).map(|answer| answer.capabilities)
    }

    /// Gives the device a list of jobs.
    ///
    /// # Errors
    /// [`Error::TooManyJobs`], [`Error::Busy`], [`Error::Lost`], [`Error::Protocol`].
    pub fn submit(&mut self, priority: Priority, jobs: &[Job]) -> Result<Ticket, Error> {
        self.post(priority, jobs, false)
    }

    /// Asks the device to end a list early; the list's answer says whether it did.
    ///
    /// # Errors
    /// As [`Npu::submit`].
    pub fn cancel(&mut self, ticket: Ticket) -> Result<(), Error> {
        self.collect()?;
        self.post(Priority::High, &[Job::cancel(ticket.list_id)], true).map(|_| ())
    }

    fn post(&mut self, priority: Priority, jobs: &[Job], forgotten: bool) -> Result<Ticket, Error> {
        self.health()?;
        if jobs.len() > JOBS_MAX {
            return Err(Error::TooManyJobs);
        }
        let queue = match priority {
            Priority::Normal => QUEUE_NORMAL,
            Priority::High => QUEUE_HIGH,
        };
        // 0 is no list's.
        let list_id = self.last_list_id.checked_add(1).unwrap_or(1);
        let header = ListHeader { version: VERSION, job_count: jobs.len() as u32, list_id, flags: 0 };
        let ring = self.ring(queue)?;
        let place = ring.post(header, jobs, forgotten).ok_or(Error::Busy)?.map_err(|_| Error::Busy)?;
        let notify = ring.wants_notification();
        self.last_list_id = list_id;
        if notify {
            self.transport.notify(queue);
        }
        Ok(Ticket { queue, place, list_id, jobs: jobs.len() })
    }

    /// Looks whether a list is done; if it is, copies what became of its jobs to `results`, and returns how it ended.
    ///
    /// # Errors
    /// [`Error::Ticket`], [`Error::Lost`], [`Error::Protocol`].
    pub fn poll(&mut self, ticket: Ticket, results: &mut [JobResult]) -> Result<Option<Status>, Error> {
        Ok(self.poll_for(ticket, results)?.map(|answer| answer.status))
    }

    /// Waits until a list is done, calling `pause` in between, as long as that returns true.
    ///
    /// # Errors
    /// [`Error::Impatient`], or as [`Npu::poll`].
    pub fn wait(
        &mut self,
        ticket: Ticket,
        results: &mut [JobResult],
        pause: impl FnMut() -> bool,
    ) -> Result<Status, Error> {
        self.wait_for(ticket, results, pause).map(|answer| answer.status)
    }

    fn wait_for(
        &mut self,
        ticket: Ticket,
        results: &mut [JobResult],
        mut pause: impl FnMut() -> bool,
    ) -> Result<Answer, Error> {
        loop {
            if let Some(answer) = self.poll_for(ticket, results)? {
                return Ok(answer);
            }
            if !pause() {
                return Err(Error::Impatient);
            }
        }
    }

    fn poll_for(&mut self, ticket: Ticket, results: &mut [JobResult]) -> Result<Option<Answer>, Error> {
        self.collect()?;
        let mut bytes = [0; size_of::<ListResult>() + JOBS_MAX * size_of::<JobResult>()];
        let ring = self.ring(ticket.queue)?;
        match ring.take(ticket.place, ticket.list_id, &mut bytes).ok_or(Error::Ticket)? {
            Some(length) => match Answer::parse(bytes.get(..length), ticket, results) {
                Some(answer) => Ok(Some(answer)),
                None => Err(self.give_up(Error::Protocol)),
            },
            None => {
                self.polls = self.polls.wrapping_add(1);
                if self.polls.is_multiple_of(LOOK_EVERY) {
                    self.look()?;
                }
                Ok(None)
            }
        }
    }

    /// Looks whether the device is still there.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::Protocol`].
    pub fn look(&mut self) -> Result<(), Error> {
        self.health()?;
        let status = self.transport.get_status();
        let lost = DeviceStatus::DEVICE_NEEDS_RESET | DeviceStatus::FAILED;
        if status.intersects(lost) || !status.contains(DeviceStatus::DRIVER_OK) {
            return Err(self.give_up(Error::Lost));
        }
        Ok(())
    }

    /// Stops the device by a reset. Whatever is in flight is lost.
    ///
    /// # Errors
    /// [`Error::Silent`]: it does not stop. Its memory is never given back then.
    pub fn stop(&mut self) -> Result<(), Error> {
        let Some(rings) = self.rings.take() else { return Ok(()) };
        self.give_up(Error::Lost);
        let stopped = reset(&mut self.transport);
        match stopped {
            // Whoever took it away has reset it.
            Ok(()) | Err(Error::Absent) => Ok(()),
            Err(error) => {
                core::mem::forget(rings);
                Err(error)
            }
        }
    }

    fn ring(&mut self, queue: u16) -> Result<&mut Ring<H>, Error> {
        self.rings.as_mut().and_then(|rings| rings.get_mut(usize::from(queue))).ok_or(Error::Lost)
    }

    fn health(&self) -> Result<(), Error> {
        self.fault.map_or(Ok(()), Err)
    }

    /// Remembers the first fault.
    fn give_up(&mut self, fault: Error) -> Error {
        *self.fault.get_or_insert(fault)
    }

    fn collect(&mut self) -> Result<(), Error> {
        self.health()?;
        let collected = self.rings.iter_mut().flatten().try_for_each(Ring::collect);
        collected.map_err(|_| self.give_up(Error::Protocol))
    }
}

impl<H: Hal, T: Transport> Drop for Npu<H, T> {
    fn drop(&mut self) {
        // Of a device that does not stop, `stop` keeps the memory.
        let _ = self.stop();
    }
}

/// Resets a device and waits until that is done.
fn reset(transport: &mut impl Transport) -> Result<(), Error> {
    transport.set_status(DeviceStatus::empty());
    for _ in 0..RESET_PATIENCE {
        match transport.get_status().bits() {
            0 => return Ok(()),
            GONE => return Err(Error::Absent),
            _ => core::hint::spin_loop(),
        }
    }
    Err(Error::Silent)
}

/// An answer that makes sense.
struct Answer {
    status: Status,
    capabilities: Capabilities,
}

impl Answer {
    /// Checks an answer and copies the results out; none if it makes no sense.
    fn parse(bytes: Option<&[u8]>, ticket: Ticket, results: &mut [JobResult]) -> Option<Self> {
        let (head, rest) = ListResult::read_from_prefix(bytes?).ok()?;
        let status = Status::from_number(head.status)?;
        // Of a list that was not understood there is no more than that.
        let is_refused = head.job_count == 0 && status != Status::Ok;
        let jobs = if is_refused { 0 } else { ticket.jobs };
        let is_named = head.list_id == ticket.list_id || is_refused && head.list_id == 0;
        if head.version != VERSION
            || !is_named
            || head.job_count as usize != jobs
            || rest.len() != size_of::<JobResult>() * jobs
        {
            return None;
        }
        let mut failed = None;
        let mut results = results.iter_mut();
        for job in rest.chunks_exact(size_of::<JobResult>()) {
            let job = JobResult::read_from_bytes(job).ok()?;
            let ended = Status::from_number(job.status)?;
            if ended != Status::Ok && failed.is_none() {
                failed = Some(ended);
            }
            if let Some(result) = results.next() {
                *result = job;
            }
        }
        // The list ends as the first job that failed.
        let is_consistent = is_refused || failed.unwrap_or(Status::Ok) == status;
        is_consistent.then_some(Answer { status, capabilities: head.capabilities })
    }
}
