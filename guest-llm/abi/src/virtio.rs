//! Virtio devices over pages that a partition shares with the host: the transport's registers and its memory.
//!
//! The region ([`Region`], at [`hyp_abi::manifest::layout::VIRTIO`]) is shared by the partition page by page: first a page
//! of registers for each device slot, then pages for virtqueues and buffers. Nothing else is ever reachable for a device:
//! the partition copies what it sends into these pages and what it gets out of them (VIRTIO_F_ACCESS_PLATFORM: addresses
//! in descriptors are IPAs inside the region).
//!
//! Registers are those of virtio-mmio (Virtio 1.2, 4.2.2), without selectors, since nobody traps an access: each queue has
//! its own. A register has one writer. Instead of trapping, the driver writes its registers, adds 1 to
//! [`DevicePage::sequence`] and gives way (FFA_YIELD); the device acts on the registers, answers in its own, and sets
//! [`DevicePage::served`] to the sequence that it saw. After DRIVER_OK every FFA_YIELD is a notification of all queues, and
//! being run again is an interrupt; both are hints. An empty slot has device id 0.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use hyp_abi::PAGE_SIZE;

/// Pages of the region.
pub const VIRTIO_PAGES: u64 = 128;
/// Device slots.
pub const SLOTS: usize = 4;
/// Pages for virtqueues and buffers.
pub const DMA_PAGES: usize = VIRTIO_PAGES as usize - SLOTS;
/// Most queues of a device.
pub const MAX_QUEUES: usize = 4;
/// Bytes of the configuration space.
pub const CONFIG_SIZE: usize = 64;

/// Slot of the model's block device, read-only.
pub const SLOT_MODEL: usize = 0;
/// Slot of the scratch block device.
pub const SLOT_SCRATCH: usize = 1;
/// Slot of the socket device with the session's stream.
pub const SLOT_STREAM: usize = 2;
/// Port of the session's stream, at the host's end.
pub const STREAM_PORT: u32 = 1;

/// [`DevicePage::magic`]: `virt`, as of virtio-mmio.
pub const MAGIC: u32 = 0x7472_6976;
/// [`DevicePage::version`]: this transport.
pub const VERSION: u32 = 0x100;
/// Block device.
pub const ID_BLOCK: u32 = 2;
/// Socket device.
pub const ID_SOCKET: u32 = 19;

/// VIRTIO_F_VERSION_1.
pub const F_VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_ACCESS_PLATFORM.
pub const F_ACCESS_PLATFORM: u64 = 1 << 33;

/// Device status bits (Virtio 1.2, 2.1).
pub mod status {
    /// The driver has found the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u32 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u32 = 4;
    /// The driver has chosen features; the device takes the bit back if it does not agree.
    pub const FEATURES_OK: u32 = 8;
    /// The device gave up.
    pub const NEEDS_RESET: u32 = 64;
}

/// Registers of a queue, written by the driver.
#[derive(Debug)]
#[repr(C)]
pub struct QueueRegisters {
    /// 1: in use.
    pub ready: AtomicU32,
    /// Descriptors.
    pub size: AtomicU32,
    /// IPA of the descriptor table, low and high.
    pub descriptors: [AtomicU32; 2],
    /// IPA of the available ring.
    pub available: [AtomicU32; 2],
    /// IPA of the used ring.
    pub used: [AtomicU32; 2],
}

/// The registers of a device slot. Valid when zeroed.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct DevicePage {
    // Written by the device.
    /// [`MAGIC`].
    pub magic: AtomicU32,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// Device id; 0: the slot is empty.
    pub device_id: AtomicU32,
    /// Changes whenever `config` does.
    pub config_generation: AtomicU32,
    /// Features offered, low and high.
    pub device_features: [AtomicU32; 2],
    /// Status as the device sees it.
    pub device_status: AtomicU32,
    /// The last sequence that was acted on.
    pub served: AtomicU32,
    /// Most descriptors of each queue; 0: there is no such queue.
    pub queue_size_max: [AtomicU32; MAX_QUEUES],
    _pad0: [u32; 4],
    /// Configuration space.
    pub config: [AtomicU8; CONFIG_SIZE],
    _pad1: [u32; 96],
    // Written by the driver.
    /// Counts what the driver wants acted on.
    pub sequence: AtomicU32,
    /// Status as the driver wants it; 0: reset.
    pub status: AtomicU32,
    /// Features accepted, low and high.
    pub driver_features: [AtomicU32; 2],
    _pad2: [u32; 4],
    /// Queues.
    pub queues: [QueueRegisters; MAX_QUEUES],
}
const _: () = assert!(core::mem::offset_of!(DevicePage, config) == 0x40);
const _: () = assert!(core::mem::offset_of!(DevicePage, sequence) == 0x200);
const _: () = assert!(size_of::<DevicePage>() == PAGE_SIZE as usize);

/// A page of memory that another party may change at any time: words are loaded and stored, never referred to.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Page(pub [AtomicU64; PAGE_SIZE as usize / 8]);

impl Page {
    /// A page of zeros.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; PAGE_SIZE as usize / 8])
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

/// The region. Valid when zeroed.
#[derive(Debug)]
#[repr(C)]
pub struct Region {
    /// Registers of each slot.
    pub devices: [DevicePage; SLOTS],
    /// Virtqueues and buffers, as the driver likes.
    pub pages: [Page; DMA_PAGES],
}
const _: () = assert!(size_of::<Region>() as u64 == VIRTIO_PAGES * PAGE_SIZE);

/// IPA of the first page for virtqueues and buffers, when the region lies at `region`.
pub const fn dma_ipa(region: u64) -> u64 {
    region + SLOTS as u64 * PAGE_SIZE
}
