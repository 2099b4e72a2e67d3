//! Lists of jobs: out of a chain, one after the other, and the results back into it.

use std::time::Instant;

use flexserve_npu_abi::{Capabilities, JOBS_MAX, Job, JobResult, ListHeader, ListResult, Status, VERSION};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::dma::{Access, Dma, Fault};
use crate::jobs::{Context, Core, Failure};
use crate::queue::{Chain, Problem, Ring, Segment};

const HEADER: usize = size_of::<ListHeader>();
/// Most bytes of a request.
const REQUEST_MAX: usize = HEADER + JOBS_MAX * size_of::<Job>();

/// A request, copied and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// Its name; 0 if it could not be read.
    pub id: u32,
    /// Its jobs.
    pub jobs: Vec<Job>,
    /// What is wrong with it.
    pub status: Status,
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.length)).sum()
}

impl List {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Fault::Stopped`]. Other faults are a status.
    pub fn read(dma: &dyn Dma, chain: &Chain) -> Result<Self, Fault> {
        let refused = |id, status| Ok(List { id, jobs: Vec::new(), status });
        let length = total(&chain.readable);
        if length < HEADER as u64 || length > REQUEST_MAX as u64 {
            return refused(0, Status::BadList);
        }
        let mut bytes = vec![0; length as usize];
        let mut rest = &mut *bytes;
        for segment in &chain.readable {
            let (part, others) = rest.split_at_mut(segment.length as usize);
            match dma.read(segment.iova, part) {
                Ok(()) => rest = others,
                Err(Fault::Refused(..)) => return refused(0, Status::ReadFault),
                Err(fault) => return Err(fault),
            }
        }
        let Ok((header, jobs)) = ListHeader::read_from_prefix(&bytes) else {
            return refused(0, Status::BadList);
        };
        if header.version != VERSION {
            return refused(header.list_id, Status::BadVersion);
        }
        let jobs: Vec<Job> =
            jobs.chunks(size_of::<Job>()).filter_map(|job| Job::read_from_bytes(job).ok()).collect();
        let size = HEADER + size_of_val(&*jobs);
        let answer = size_of::<ListResult>() + jobs.len() * size_of::<JobResult>();
        let is_valid = header.flags == 0
            && header.job_count as usize == jobs.len()
            && size == bytes.len()
            && total(&chain.writable) >= answer as u64;
        if !is_valid {
            return refused(header.list_id, Status::BadList);
        }
        Ok(List { id: header.list_id, jobs, status: Status::Ok })
    }

    /// Does the jobs; returns the answer.
    ///
    /// # Errors
    /// [`Fault::Stopped`]: there is no answer.
    pub fn run(&self, core: &mut Core, context: &dyn Context) -> Result<Vec<u8>, Fault> {
        let mut status = self.status;
        let mut results = Vec::with_capacity(self.jobs.len());
        for job in &self.jobs {
            let mut result = JobResult::new_zeroed();
            if status != Status::Ok {
                result.status = Status::Aborted as u32;
                results.push(result);
                continue;
            }
            let begin = Instant::now();
            match core.run(job, context) {
                Ok(bytes) => {
                    result.bytes = bytes;
                    context.done();
                }
                Err(Failure::Invalid(error)) => status = error.into(),
                Err(Failure::Fault(Fault::Refused(access, iova))) => {
                    result.fault = iova;
                    status = match access {
                        Access::Read => Status::ReadFault,
                        Access::Write => Status::WriteFault,
                    };
                }
                Err(Failure::Fault(Fault::Cancelled)) => status = Status::Cancelled,
                Err(Failure::Fault(Fault::Stopped)) => return Err(Fault::Stopped),
            }
            result.status = status as u32;
            result.ns = begin.elapsed().as_nanos().try_into().unwrap_or(u64::MAX);
            results.push(result);
        }
        let head = ListResult {
            version: VERSION,
            status: status as u32,
            list_id: self.id,
            job_count: results.len() as u32,
            capabilities: Capabilities::MOST,
        };
        Ok([head.as_bytes(), results.as_bytes()].concat())
    }
}

/// Serves the chain after `served` others, if it is available; returns whether the driver wants to be told.
///
/// # Errors
/// [`Problem`]. The chain is still available then.
pub fn serve_chain(
    ring: &Ring,
    served: u16,
    core: &mut Core,
    context: &dyn Context,
) -> Result<Option<bool>, Problem> {
    let Some(chain) = ring.next(context, served)? else { return Ok(None) };
    let list = List::read(context, &chain)?;
    context.begin(list.id);
    let answer = list.run(core, context)?;
    let length = write_answer(context, &chain, &answer)?;
    context.end(list.id);
    Ok(Some(ring.give_back(context, served, chain.head, length)?))
}

/// Writes the answer into the chain; returns how many bytes fitted and could be written.
fn write_answer(dma: &dyn Dma, chain: &Chain, answer: &[u8]) -> Result<u32, Fault> {
    let mut rest = answer;
    for segment in &chain.writable {
        let (part, others) = rest.split_at(rest.len().min(segment.length as usize));
        match dma.write(segment.iova, part) {
            Ok(()) => rest = others,
            Err(Fault::Refused(..)) => break,
            Err(fault) => return Err(fault),
        }
    }
    Ok((answer.len() - rest.len()) as u32)
}
