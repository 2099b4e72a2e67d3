//! Driver of the NPU: job lists over virtqueues, polled.
//!
//! `no_std` + `alloc`; used by partitions and by programs of the host. The caller brings the registers ([`Mmio`]) and the
//! memory ([`Hal`]: what the device sees of it), and names tensors by their IOVAs in jobs.
//!
//! # Properties
//! - **Polled.** There are no interrupts; whoever waits says how.
//! - **Lost is not fatal.** The hypervisor may take the device away at any time: registers read as all ones, or as
//!   after a reset. All lists in flight are then [`Error::Lost`], and so is everything later; the jobs are idempotent, so the
//!   caller starts the device again ([`Npu::start`]), when it has it back, and repeats them. [`Lease`] does that.
//! - **Distrust.** What the device writes is copied once, then checked. A device that uses what it was not given, or answers
//!   nonsense, is [`Error::Protocol`] and stays so.
//! - **No allocation** after [`Npu::start`].
//! - **Unsafe** is in `ring`: lending buffers to a virtqueue, and taking them back.
//!
//! ```no_run
//! use flexserve_npu_abi::{Job, JobResult, Status};
//! use flexserve_npu_driver::{Error, Hal, Npu, Priority, Transport};
//!
//! fn multiply<H: Hal, T: Transport>(npu: &mut Npu<H, T>, job: Job) -> Result<bool, Error> {
//!     let ticket = npu.submit(Priority::Normal, &[job])?;
//!     let mut results = [JobResult::default()];
//!     Ok(npu.wait(ticket, &mut results, || true)? == Status::Ok)
//! }
//! ```
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

mod lease;
mod npu;
mod pci;
#[allow(unsafe_code)]
mod ring;

pub use lease::{Broker, Lease, LeaseStats, List, NotLent, Ownership, Pause, Refusal, Wait};
pub use npu::{Error, Npu, Priority, Ticket};
pub use pci::{Layout, Mmio, PciTransport};
pub use virtio_drivers::transport::Transport;
pub use virtio_drivers::{BufferDirection, Hal, PhysAddr};
