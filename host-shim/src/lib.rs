//! The host's side of confidential partitions: loads an image and a model into a partition through `/dev/flexserve`,
//! runs its vCPUs, emulates its virtio devices, and speaks to it over the stream of one of them.
//!
//! The host is not trusted by the partition, and a partition is not trusted by the host: whatever comes out of the
//! shared pages is bounds-checked by [`virtio`] and [`guest_abi::session`], must be UTF-8, and is shown as text only.
//!
//! Dependencies point downwards: programs (`src/bin`) -> [`cli`], [`job`], [`output`], [`interactive`] -> [`vmm`] -> [`session`], [`load`],
//! [`image`], [`measure`], [`heap`] -> [`machine`]. [`device`] is the machine of the kernel module, with [`virtio`] below it; tests use a fake one.
//! Unsafe code lives in [`sys`] and, for memory that the NPU reaches, in [`dma`].
#![deny(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod device;
#[allow(unsafe_code)]
pub mod dma;
pub mod error;
pub mod events;
pub mod heap;
pub mod image;
pub mod interactive;
pub mod job;
pub mod load;
pub mod machine;
pub mod measure;
pub mod model;
pub mod npu;
pub mod npu_bench;
pub mod output;
pub mod report;
pub mod request;
pub mod session;
pub mod switch_bench;
#[allow(unsafe_code)]
pub mod sys;
pub mod template;
pub mod virtio;
pub mod vmm;

#[cfg(test)]
mod fake;

/// The partition's image in the host's file system.
pub const IMAGE_PATH: &str = "/usr/lib/flexserve/guest.elf";
/// Where models lie that are called by name.
pub const MODELS_PATH: &str = "/usr/lib/flexserve/models";
/// The module's device.
pub const DEVICE_PATH: &str = "/dev/flexserve";
