//! The NPU's job interface: lists of matrix products, and of what is between them in a transformer, over tensors that stay
//! where they are.
//!
//! A leaf crate: `no_std`, no unsafe code, imported by the driver and the device model. Everything is little-endian.
//!
//! # Carrier
//! A virtio device with two split virtqueues, [`QUEUE_NORMAL`] and [`QUEUE_HIGH`], of at most 64 descriptors, without
//! indirect descriptors or event indices, and 8 bytes of configuration, [`Config`]. Notifications of used buffers are
//! optional; a driver may poll.
//!
//! A request is one descriptor chain. Its readable part is a [`ListHeader`] and [`ListHeader::job_count`] [`Job`]s, its
//! writable part a [`ListResult`] and as many [`JobResult`]s, each part split over descriptors in any way. A list of no jobs
//! asks for [`Capabilities`] only, which every [`ListResult`] has.
//!
//! # Order
//! The lists of a queue run one after the other. The jobs of a list begin in order; one with [`Job::FENCE`] begins when those
//! before it have ended and sees what they wrote, others may overlap. Lists of [`QUEUE_HIGH`] go before those of
//! [`QUEUE_NORMAL`], which wait in the middle of a job if need be. The first job that fails ends its list: jobs after it
//! are [`Status::Aborted`].
//!
//! # Properties of a job
//! - **In place.** Addresses are IOVAs; only [`Operation::Attend`] reads a table, of blocks within a region that the job names. Weights are read in the blocks of ggml, as a GGUF file holds them.
//! - **Idempotent.** Output overlaps no input, so a job that was cut off anywhere, and in doubt any job, may be run again.
//! - **Bounded** in pages, elements and jobs per list: [`Capabilities`].
//! - **Exact.** Results are defined to the bit: those of the engine (`flexserve_engine::kernels`), whose quantisation of
//!   activations is part of the job if they come as F32.
//!
//! # Reset
//! Whatever stops both queues (a reset of the device, or of the machine) ends the running jobs without results and returns
//! registers, memory and the known list ids of the device to what they are at power-on. When the reset is done, no
//! access of the device's is under way.
#![no_std]
#![forbid(unsafe_code)]

mod format;
mod job;
mod list;
mod vector;

pub use format::{FORMATS, Format, INPUT_FORMATS};
pub use job::{Error, Extent, Extents, Job, Matrix, Operation, Rows};
pub use list::{Capabilities, Config, JobResult, ListHeader, ListResult, Status};
pub use vector::{CHUNK_TOKENS, Cache, HEAD_MAX};

/// The version of this interface, in [`Config`] and [`ListHeader`].
pub const VERSION: u32 = 1;
/// The queue for what can wait.
pub const QUEUE_NORMAL: u16 = 0;
/// The queue for what cannot, and for [`Operation::Cancel`].
pub const QUEUE_HIGH: u16 = 1;
/// Queues.
pub const QUEUES: usize = 2;
/// Most descriptors of a queue.
pub const QUEUE_SIZE_MAX: u16 = 64;
/// Most jobs of a list.
pub const JOBS_MAX: usize = 64;
/// Bytes of a page, for [`Capabilities::pages_max`].
pub const PAGE_SIZE: u64 = 4096;

const _: () = assert!(cfg!(target_endian = "little"), "structures are used as they lie in memory");
