//! A model of the NPU beside QEMU: a vhost-user device in a process of its own.
//!
//! To the machine it is a PCI function of `vhost-user-gpio-pci` behind the emulated SMMU, whose identity is only a carrier for
//! the queues of [`flexserve_npu_abi`]. It computes with the engine's kernels at the speed of the host's CPU, so with the
//! same bits.
//!
//! # Properties
//! - **Translated.** It reaches no memory but by IOVA, through its own IOTLB ([`iotlb`]), whose entries are what the front
//!   end granted for that very kind of access. Invalidation is answered when no access by an invalidated entry is under way,
//!   and none can begin.
//! - **Copies.** Guest memory changes while it is looked at, so all of it is copied first, then checked, then used. There is
//!   no reference into it.
//! - **Total.** Whatever queues ([`queue`]), lists ([`list`]), jobs ([`jobs`]) and messages ([`protocol`]) contain, the model
//!   neither panics nor loops, and its memory is bounded. The front end can end it: it truncates the memory it shares, or
//!   closes the socket.
//! - **Stops at once.** Stopping a queue ends its job at the next tile, within milliseconds, without a result and with
//!   the list still available: it is idempotent and runs again if the queue does.
//! - **Scrubbed.** When both queues are stopped, all memory of the device is as it was at power-on.
//!
//! Dependencies point from right to left: [`protocol`], [`server`] over [`device`] over [`list`] over [`jobs`], [`queue`] over
//! [`dma`]. No unsafe code: `vm-memory` maps and copies, `rustix` receives file descriptors.
#![forbid(unsafe_code)]

pub mod device;
pub mod dma;
pub mod front_end;
pub mod fuzz;
pub mod grants;
pub mod iotlb;
pub mod jobs;
pub mod list;
pub mod protocol;
pub mod queue;
pub mod server;
pub mod throttle;
pub mod vectors;

pub use device::Options;
pub use server::serve;
