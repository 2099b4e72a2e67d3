//! The NPU's registers, as far as the hypervisor touches them: it finds them, and makes the NPU forget its last owner.
//!
//! The NPU is a virtio-pci function (Virtual I/O Device 1.2, section 4.1). Its jobs are of no concern here. What it
//! says about itself is not trusted: capability lists are followed for a bounded number of steps and nothing outside
//! its BAR is ever touched.

#[cfg(test)]
mod tests;

use crate::pci::{Config, Function, Window};

/// The most virtqueues of an NPU.
pub const MAX_QUEUES: u16 = 8;

/// Registers of the NPU: `offset` is from the start of [`Layout::window`], inside it and aligned.
pub trait Mmio {
    /// Reads `width` bytes: 1, 2 or 4.
    fn read(&self, offset: u64, width: u8) -> u32;
    /// Writes `width` bytes.
    fn write(&mut self, offset: u64, width: u8, value: u32);
}

/// Why a function is no NPU that can be lent, or did not become one that can be lent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A virtio structure is missing.
    Missing,
    /// A structure is not in a memory BAR, or not all of it.
    OutsideBar,
    /// The structures are in several BARs: then there is no one window to lend.
    SeveralBars,
    /// A structure is misaligned.
    Unaligned,
    /// More than [`MAX_QUEUES`] queues.
    TooManyQueues,
    /// The device status did not become 0.
    NotReset,
    /// The device was reset and shows what its last owner wrote.
    NotPristine,
}

/// Where the virtio structures are, as offsets from the start of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The BAR's pages: all that an owner may reach.
    pub window: Window,
    /// Common configuration.
    pub common: u64,
    /// Notifications.
    pub notify: u64,
    /// A queue's notification is at its `queue_notify_off` times this.
    pub notify_off_multiplier: u32,
    /// Interrupt status.
    pub isr: u64,
    /// Device-specific configuration.
    pub device: u64,
}

/// A virtio structure in a BAR.
#[derive(Clone, Copy)]
struct Structure {
    bar: usize,
    offset: u64,
    /// Where its capability is.
    capability: u16,
}

/// The NPU.
#[derive(Clone, Copy, Debug)]
pub struct Npu {
    layout: Layout,
}

/// Steps of a capability list: as many as there is room for in 256 bytes.
const MAX_CAPABILITIES: u32 = 48;
const STATUS_CAPABILITIES: u32 = 1 << 4;
const VENDOR_SPECIFIC: u32 = 0x9;
/// cfg_type of the four structures.
const COMMON: u32 = 1;
const NOTIFY: u32 = 2;
const ISR: u32 = 3;
const DEVICE: u32 = 4;

/// Reads until the hardware is given up on.
const PATIENCE: u32 = 1_000_000;
const NO_VECTOR: u32 = 0xffff;

/// The common configuration (section 4.1.4.3).
mod common {
    pub const SIZE: u64 = 0x38;
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    /// queue_desc, queue_driver, queue_device: six halves.
    pub const QUEUE_ADDRESSES: core::ops::Range<u64> = 0x20..0x38;
}

/// The first virtio structure of that type (section 4.1.4).
fn find(config: &impl Config, function: &Function, cfg_type: u32) -> Result<Structure, Error> {
    let read = |offset: u32, width| config.read(function.id, offset as u16, width);
    if read(0x06, 2) & STATUS_CAPABILITIES == 0 {
        return Err(Error::Missing);
    }
    let mut at = read(0x34, 1) & 0xfc;
    for _ in 0..MAX_CAPABILITIES {
        // The last byte read of a capability is 0x13 past its start.
        if !(0x40..=0xec).contains(&at) {
            break;
        }
        if read(at, 1) == VENDOR_SPECIFIC && read(at + 3, 1) == cfg_type {
            let (bar, offset) = (read(at + 4, 1) as usize, u64::from(read(at + 8, 4)));
            let (length, needed, alignment) = match cfg_type {
                COMMON => (read(at + 12, 4), common::SIZE, 4),
                NOTIFY => (read(at + 12, 4), 2, 2),
                ISR => (read(at + 12, 4), 1, 1),
                _ => (read(at + 12, 4), 1, 4),
            };
            let size = function.bars.get(bar).copied().flatten().ok_or(Error::OutsideBar)?.size;
            let length = u64::from(length);
            if length < needed || offset + length > size {
                return Err(Error::OutsideBar);
            }
            if !offset.is_multiple_of(alignment) {
                return Err(Error::Unaligned);
            }
            return Ok(Structure { bar, offset, capability: at as u16 });
        }
        at = read(at + 1, 1) & 0xfc;
    }
    Err(Error::Missing)
}

impl Npu {
    /// Finds the registers of the function that enumeration took for the NPU.
    pub fn find(config: &impl Config, function: &Function) -> Result<Self, Error> {
        let structures = [COMMON, NOTIFY, ISR, DEVICE].map(|cfg_type| find(config, function, cfg_type));
        let [common, notify, isr, device] = structures;
        let (common, notify, isr, device) = (common?, notify?, isr?, device?);
        if [notify, isr, device].iter().any(|other| other.bar != common.bar) {
            return Err(Error::SeveralBars);
        }
        let bar = function.bars.get(common.bar).copied().flatten().ok_or(Error::OutsideBar)?;
        let layout = Layout {
            window: Window { base: bar.base, size: bar.size.next_multiple_of(4096) },
            common: common.offset,
            notify: notify.offset,
            notify_off_multiplier: config.read(function.id, notify.capability + 16, 4),
            isr: isr.offset,
            device: device.offset,
        };
        Ok(Self { layout })
    }

    /// Where the registers are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn queue_count(&self, registers: &impl Mmio) -> Result<u16, Error> {
        let count = registers.read(self.layout.common + common::NUM_QUEUES, 2) as u16;
        if count <= MAX_QUEUES { Ok(count) } else { Err(Error::TooManyQueues) }
    }

    /// Ends the owner's use of the device: resets it, waits until it has stopped (section 2.4), and clears what a reset
    /// may leave: selectors, and features under QEMU. On `Ok` it reads as after power-on. The old owner's DMA should
    /// still be allowed, so that the device stops without faults; it must have ended before a new owner comes.
    pub fn reset(&self, registers: &mut impl Mmio) -> Result<(), Error> {
        let at = |register: u64| self.layout.common + register;
        registers.write(at(common::DEVICE_STATUS), 1, 0);
        if !(0..PATIENCE).any(|_| registers.read(at(common::DEVICE_STATUS), 1) == 0) {
            return Err(Error::NotReset);
        }
        registers.read(self.layout.isr, 1); // reading lowers the interrupt
        for select in [1, 0] {
            registers.write(at(common::DRIVER_FEATURE_SELECT), 4, select);
            registers.write(at(common::DRIVER_FEATURE), 4, 0);
        }
        registers.write(at(common::DEVICE_FEATURE_SELECT), 4, 0);
        if self.is_pristine(registers)? { Ok(()) } else { Err(Error::NotPristine) }
    }

    /// Whether the registers read as after power-on. Moves the selectors, and leaves them at 0.
    pub fn is_pristine(&self, registers: &mut impl Mmio) -> Result<bool, Error> {
        let at = |register: u64| self.layout.common + register;
        let mut is_pristine = registers.read(at(common::DEVICE_STATUS), 1) == 0
            && registers.read(at(common::DEVICE_FEATURE_SELECT), 4) == 0
            && registers.read(at(common::CONFIG_MSIX_VECTOR), 2) == NO_VECTOR
            && registers.read(self.layout.isr, 1) == 0;
        for select in [1, 0] {
            registers.write(at(common::DRIVER_FEATURE_SELECT), 4, select);
            is_pristine &= registers.read(at(common::DRIVER_FEATURE), 4) == 0;
        }
        for queue in (0..self.queue_count(registers)?).rev() {
            registers.write(at(common::QUEUE_SELECT), 2, queue.into());
            is_pristine &= registers.read(at(common::QUEUE_ENABLE), 2) == 0
                && registers.read(at(common::QUEUE_MSIX_VECTOR), 2) == NO_VECTOR
                && common::QUEUE_ADDRESSES.step_by(4).all(|address| registers.read(at(address), 4) == 0);
        }
        Ok(is_pristine)
    }
}
