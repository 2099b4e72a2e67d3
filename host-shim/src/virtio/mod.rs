//! The device side of virtio over a partition's shared pages (`guest_abi::virtio`): block devices and a socket device with
//! the session's stream.
//!
//! The partition is not trusted: rings and descriptors are those of `virtio-queue` and `vm-memory`, which follow no address
//! outside the shared region; what a request says is checked by the device. A queue that breaks the rules ends its device
//! (NEEDS_RESET) and is an error of the partition.
//!
//! [`Devices::service`] is called whenever the partition came out to have its devices looked at.

pub mod block;
pub mod frames;
pub mod socket;
pub mod wire;

use std::fs::File;
use std::sync::atomic::Ordering;

use guest_abi::virtio::{
    CONFIG_SIZE, DevicePage, F_ACCESS_PLATFORM, F_VERSION_1, MAGIC, MAX_QUEUES, QueueRegisters, SLOTS,
    VERSION, VIRTIO_PAGES, status,
};
use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::layout;
use virtio_queue::{Queue, QueueT};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::error::{Error, Result};

/// The partition's shared region, at its IPAs.
pub type Memory = GuestMemoryMmap<()>;

/// Bytes of the region.
pub const REGION_SIZE: usize = (VIRTIO_PAGES * PAGE_SIZE) as usize;

/// Maps the region out of a device's file, which stays open as long as the memory is used. `offset` is where the region
/// starts: its IPA in `/dev/flexserve`. A touch before the partition has shared a page is a bus error.
///
/// # Errors
/// Code 5 if the pages were not given, or may not be mapped.
pub fn map(file: File, offset: u64) -> Result<Memory> {
    memory(MmapRegion::from_file(FileOffset::new(file, offset), REGION_SIZE))
}

fn memory(mapping: std::result::Result<MmapRegion<()>, MmapRegionError>) -> Result<Memory> {
    let mapping = mapping.map_err(|error| Error::protocol(format!("the virtio pages: {error}")))?;
    let region = GuestRegionMmap::new(mapping, GuestAddress(layout::VIRTIO));
    let memory = region.and_then(|region| Memory::from_regions(vec![region]).ok());
    memory.ok_or_else(|| Error::protocol("the virtio pages lie beyond all addresses"))
}

/// Makes a region of anonymous memory, for tests.
///
/// # Errors
/// Code 5 if there is no memory.
pub fn anonymous() -> Result<Memory> {
    memory(MmapRegion::new(REGION_SIZE))
}

/// A device behind a slot.
pub trait Device: Send + Sync {
    /// Device id of the specification.
    fn id(&self) -> u32;
    /// Device-specific features that it offers.
    fn features(&self) -> u64;
    /// Configuration space.
    fn config(&self) -> [u8; CONFIG_SIZE];
    /// Most descriptors of each queue.
    fn queue_sizes(&self) -> &'static [u16];
    /// Forgets everything about the driver.
    fn reset(&mut self);
    /// Serves what the driver made available; returns whether there was anything.
    ///
    /// # Errors
    /// Code 5 when the driver breaks the rules.
    fn serve(&mut self, queues: &mut [Queue], memory: &Memory) -> Result<bool>;
}

struct Slot {
    device: Box<dyn Device>,
    queues: Vec<Queue>,
    seen: u32,
    running: bool,
}

/// All devices of a partition.
pub struct Devices {
    memory: Memory,
    slots: [Option<Slot>; SLOTS],
}

fn broken(what: impl std::fmt::Display) -> Error {
    Error::protocol(format!("virtio: {what}"))
}

/// A register of a slot.
fn at(slot: usize, offset: usize) -> GuestAddress {
    GuestAddress(layout::VIRTIO + slot as u64 * PAGE_SIZE + offset as u64)
}

macro_rules! register {
    ($slot:expr, $($field:tt)+) => { at($slot, std::mem::offset_of!(DevicePage, $($field)+)) };
}

impl Devices {
    /// No device yet, over this region.
    pub fn new(memory: Memory) -> Self {
        Devices { memory, slots: [const { None }; SLOTS] }
    }

    /// Puts a device into a slot, before the partition looks at it.
    pub fn add(&mut self, slot: usize, device: impl Device + 'static) {
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(Slot { device: Box::new(device), queues: Vec::new(), seen: 0, running: false });
        }
    }

    /// Acts on registers and queues. Returns whether anything moved.
    ///
    /// # Errors
    /// Code 5 when the partition breaks the rules.
    pub fn service(&mut self) -> Result<bool> {
        let mut moved = false;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            moved |= service(&self.memory, index, slot.as_mut())?;
        }
        Ok(moved)
    }
}

fn load(memory: &Memory, address: GuestAddress) -> Result<u32> {
    memory.load(address, Ordering::Acquire).map_err(broken)
}

fn store(memory: &Memory, address: GuestAddress, value: u32) -> Result<()> {
    memory.store(value, address, Ordering::Release).map_err(broken)
}

fn service(memory: &Memory, index: usize, slot: Option<&mut Slot>) -> Result<bool> {
    let sequence = load(memory, register!(index, sequence))?;
    let Some(slot) = slot else {
        // An empty slot answers too, so that nobody waits for it.
        let fresh = load(memory, register!(index, served))? != sequence;
        if fresh {
            store(memory, register!(index, served), sequence)?;
        }
        return Ok(fresh);
    };
    let mut moved = false;
    if sequence != slot.seen {
        slot.seen = sequence;
        let wanted = load(memory, register!(index, status))?;
        let granted = slot.act(memory, index, wanted)?;
        store(memory, register!(index, device_status), granted)?;
        store(memory, register!(index, served), sequence)?;
        moved = true;
    }
    if slot.running {
        match slot.device.serve(&mut slot.queues, memory) {
            Ok(served) => moved |= served,
            Err(error) => {
                slot.running = false;
                store(memory, register!(index, device_status), status::NEEDS_RESET)?;
                return Err(error);
            }
        }
    }
    Ok(moved)
}

impl Slot {
    fn offered(&self) -> u64 {
        self.device.features() | F_VERSION_1 | F_ACCESS_PLATFORM
    }

    /// Does what the driver's status asks for; returns the status to show.
    fn act(&mut self, memory: &Memory, index: usize, wanted: u32) -> Result<u32> {
        if wanted == 0 {
            self.running = false;
            self.queues.clear();
            self.device.reset();
            self.identify(memory, index)?;
            return Ok(0);
        }
        if wanted & status::FEATURES_OK != 0 && !self.agrees(memory, index)? {
            return Ok(wanted & !(status::FEATURES_OK | status::DRIVER_OK));
        }
        let ready = status::FEATURES_OK | status::DRIVER_OK;
        if wanted & ready == ready && !self.running {
            match self.queues(memory, index)? {
                Some(queues) => (self.queues, self.running) = (queues, true),
                None => return Ok(wanted & !status::DRIVER_OK | status::NEEDS_RESET),
            }
        }
        Ok(wanted)
    }

    fn identify(&self, memory: &Memory, index: usize) -> Result<()> {
        store(memory, register!(index, magic), MAGIC)?;
        store(memory, register!(index, version), VERSION)?;
        store(memory, register!(index, device_id), self.device.id())?;
        let features = self.offered();
        let place = std::mem::offset_of!(DevicePage, device_features);
        store(memory, at(index, place), features as u32)?;
        store(memory, at(index, place + 4), (features >> 32) as u32)?;
        let sizes = self.device.queue_sizes().iter().take(MAX_QUEUES);
        for (queue, size) in sizes.enumerate() {
            let place = std::mem::offset_of!(DevicePage, queue_size_max) + 4 * queue;
            store(memory, at(index, place), u32::from(*size))?;
        }
        memory.write_slice(&self.device.config(), register!(index, config)).map_err(broken)?;
        store(memory, register!(index, config_generation), 1)
    }

    fn agrees(&self, memory: &Memory, index: usize) -> Result<bool> {
        let place = std::mem::offset_of!(DevicePage, driver_features);
        let low = load(memory, at(index, place))?;
        let high = load(memory, at(index, place + 4))?;
        let accepted = u64::from(low) | u64::from(high) << 32;
        let needed = F_VERSION_1 | F_ACCESS_PLATFORM;
        Ok(accepted & needed == needed && accepted & !self.offered() == 0)
    }

    /// Sets the queues up as the driver says; none if one cannot be.
    fn queues(&self, memory: &Memory, index: usize) -> Result<Option<Vec<Queue>>> {
        let mut queues = Vec::new();
        for (number, max) in self.device.queue_sizes().iter().take(MAX_QUEUES).enumerate() {
            let base = std::mem::offset_of!(DevicePage, queues) + number * size_of::<QueueRegisters>();
            let read = |offset: usize| load(memory, at(index, base + offset));
            let pair = |offset: usize| Ok::<_, Error>((Some(read(offset)?), Some(read(offset + 4)?)));
            let mut queue = Queue::new(*max).map_err(broken)?;
            let size = read(std::mem::offset_of!(QueueRegisters, size))?;
            let Some(size) = u16::try_from(size).ok().filter(|size| size.is_power_of_two() && size <= max)
            else {
                return Ok(None);
            };
            queue.set_size(size);
            let (low, high) = pair(std::mem::offset_of!(QueueRegisters, descriptors))?;
            queue.set_desc_table_address(low, high);
            let (low, high) = pair(std::mem::offset_of!(QueueRegisters, available))?;
            queue.set_avail_ring_address(low, high);
            let (low, high) = pair(std::mem::offset_of!(QueueRegisters, used))?;
            queue.set_used_ring_address(low, high);
            queue.set_ready(read(std::mem::offset_of!(QueueRegisters, ready))? == 1);
            if !queue.is_valid(memory) {
                return Ok(None);
            }
            queues.push(queue);
        }
        Ok(Some(queues))
    }
}
