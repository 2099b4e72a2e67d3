//! The NPU, by hand.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flexserve_npu_abi::{Config, Job, JobResult, ListHeader, ListResult, Rows, Status, VERSION};
use hyp_abi::PAGE_SIZE;
use hyp_abi::service::op;
use zerocopy::{FromBytes, IntoBytes};

use super::pci::Function;
use super::queue::{self, HostSide, Layout, PartitionSide, Queue, Side, page_of};
use crate::host::Host;
use crate::partition::Partition;

/// Where it is.
const PLACE: &str = "0000:01:00.0";
/// The BAR with its registers.
const BAR: u32 = 4;
/// Magic number and version, where its configuration begins.
pub const MAGIC: u64 = Config::MAGIC as u64 | (VERSION as u64) << 16;
/// How long a short job may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Places in the page.
const REQUEST: u64 = queue::FREE;
const ANSWER: u64 = 0x800;
/// Jobs of a list for which there is room.
const JOBS_MAX: usize = 8;

/// How a list ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// As its first job that failed, if one did.
    pub status: Option<Status>,
    /// The address that was refused to that job.
    pub fault: u64,
}

impl Ended {
    /// Whether everything was done.
    pub fn is_ok(&self) -> bool {
        self.status == Some(Status::Ok)
    }
}

/// The NPU, started.
pub struct Npu<S> {
    /// Its queue.
    pub queue: Queue<S>,
    lists: u32,
    jobs: usize,
}

impl Npu<HostSide> {
    /// Its function.
    pub fn function() -> Result<Function> {
        Function::open(PLACE)
    }

    /// Takes and starts it for the host, which then does not hold it: the next who asks gets it.
    pub fn of_host(host: &Host) -> Result<Self> {
        let (address, page) = page_of(host)?;
        Self::of_host_at(host, page, address)
    }

    /// As [`Self::of_host`], with a page that the device is told is at `iova`.
    pub fn of_host_at(host: &Host, page: crate::sys::Window, iova: u64) -> Result<Self> {
        let function = Self::function()?;
        let layout = Layout::of_npu(queue::host_takes(host)?);
        Self::start(HostSide { registers: function.registers(BAR)?, page }, layout, iova)
    }

    /// Its registers as the host sees them, whoever has it, and where they are what.
    pub fn peek(host: &Host) -> Result<(HostSide, Layout)> {
        let layout = Layout::of_npu(host.service(op::NPU_STATE, [0; 4])?.ok("NPU_STATE")?);
        Ok((HostSide { registers: Self::function()?.registers(BAR)?, page: page_of(host)?.1 }, layout))
    }
}

impl<'p, 'h> Npu<PartitionSide<'p, 'h>> {
    /// Takes and starts it for a partition, with a page at an IPA.
    pub fn of_partition(partition: &'p mut Partition<'h>, page: u64) -> Result<Self> {
        Self::of_partition_at(partition, page, page)
    }

    /// As [`Self::of_partition`], with a page that the device is told is at `iova`.
    pub fn of_partition_at(partition: &'p mut Partition<'h>, page: u64, iova: u64) -> Result<Self> {
        let state = queue::partition_acquires(partition)?;
        Self::start(PartitionSide { partition, registers: state[1], page }, Layout::of_npu(state), iova)
    }
}

impl<S: Side> Npu<S> {
    fn start(side: S, layout: Layout, iova: u64) -> Result<Self> {
        Ok(Self { queue: Queue::start(side, layout, iova, 2)?, lists: 0, jobs: 0 })
    }

    /// The first word of its configuration.
    pub fn magic(&mut self) -> Result<u64> {
        let device = self.queue.layout.device;
        self.queue.side.read(device, 4)
    }

    /// Gives it a list.
    pub fn submit(&mut self, jobs: &[Job]) -> Result<()> {
        ensure!(jobs.len() <= JOBS_MAX, "too many jobs");
        (self.lists, self.jobs) = (self.lists + 1, jobs.len());
        let header =
            ListHeader { version: VERSION, job_count: jobs.len() as u32, list_id: self.lists, flags: 0 };
        let request = [header.as_bytes(), jobs.as_bytes()].concat();
        let answer =
            (size_of::<ListResult>() + size_of_val(jobs) / size_of::<Job>() * size_of::<JobResult>()) as u64;
        for (at, word) in (REQUEST..).step_by(8).zip(request.chunks(8)) {
            self.queue.side.store(at, u64::read_from_bytes(word).ok().context("a word")?)?;
        }
        let (from, to) = (self.queue.iova(REQUEST), self.queue.iova(ANSWER));
        self.queue.post(&[(from, request.len() as u64, false), (to, answer, true)])
    }

    /// Submits a copy of `count` rows of `bytes`, one after the other in memory.
    pub fn submit_copy(&mut self, from: u64, to: u64, bytes: u32, count: u32) -> Result<()> {
        let rows = |iova| Rows { iova, stride: bytes.into() };
        self.submit(&[Job::copy(bytes, count, rows(from), rows(to))])
    }

    /// How the last list ended; none: it did not, in that time.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<Ended>> {
        let start = Instant::now();
        while !self.queue.is_done()? {
            if start.elapsed() > patience {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = Status::from_number((self.queue.side.load(ANSWER)? >> 32) as u32);
        let mut fault = 0;
        for job in 0..self.jobs {
            let at = ANSWER + (size_of::<ListResult>() + job * size_of::<JobResult>()) as u64;
            fault = self.queue.side.load(at + 8)?;
            if fault != 0 {
                break;
            }
        }
        Ok(Some(Ended { status, fault }))
    }

    /// Copies `bytes`.
    pub fn copy(&mut self, from: u64, to: u64, bytes: u32) -> Result<Ended> {
        self.submit_copy(from, to, bytes, 1)?;
        self.wait(PATIENCE)?.context("the NPU does not answer")
    }
}

const _: () = assert!(
    REQUEST as usize + size_of::<ListHeader>() + JOBS_MAX * size_of::<Job>() <= ANSWER as usize
        && ANSWER as usize + size_of::<ListResult>() + JOBS_MAX * size_of::<JobResult>()
            <= PAGE_SIZE as usize
);
