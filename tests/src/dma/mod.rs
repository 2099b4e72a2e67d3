//! Devices that master the bus, driven by hand: as rudely as a hostile host, or a hostile partition, would.
//!
//! The machine is `qemu-configs/el2-dma.toml`. The host reaches configuration space and registers through sysfs; a partition
//! its registers through the probe.

mod edu;
mod npu;
mod pci;
mod queue;

pub use edu::Edu;
pub use npu::{Ended, MAGIC, Npu};
pub use pci::Function;
pub use queue::{HostSide, Layout, PartitionSide, Queue, Side, host_takes, page_of, partition_acquires};
