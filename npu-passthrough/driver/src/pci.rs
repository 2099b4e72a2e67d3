//! The virtio-pci transport over a window of registers (Virtio 1.2, 4.1.4), without configuration space: whoever hands out the
//! window has read the capabilities.

use flexserve_npu_abi::QUEUES;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Registers, by their offset in the window. Accesses are volatile, of exactly that size, and in order. Those beyond the
/// window's end do not happen; their reads are all ones.
pub trait Mmio {
    /// Reads a byte.
    fn read_u8(&self, offset: usize) -> u8;
    /// Reads 16 bits.
    fn read_u16(&self, offset: usize) -> u16;
    /// Reads 32 bits.
    fn read_u32(&self, offset: usize) -> u32;
    /// Writes a byte.
    fn write_u8(&self, offset: usize, value: u8);
    /// Writes 16 bits.
    fn write_u16(&self, offset: usize, value: u16);
    /// Writes 32 bits.
    fn write_u32(&self, offset: usize, value: u32);
}

/// Where the structures of virtio-pci are in the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The common configuration.
    pub common: usize,
    /// Interrupt status.
    pub isr: usize,
    /// Configuration of the device.
    pub device: usize,
    /// Notifications.
    pub notify: usize,
    /// Bytes between notification registers (`notify_off_multiplier`).
    pub notify_multiplier: usize,
}

/// Registers of the common configuration (Virtio 1.2, 4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURE: usize = 0x0c;
    pub const DEVICE_STATUS: usize = 0x14;
    pub const CONFIG_GENERATION: usize = 0x15;
    pub const QUEUE_SELECT: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_MSIX_VECTOR: usize = 0x1a;
    pub const QUEUE_ENABLE: usize = 0x1c;
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub const QUEUE_DESC: usize = 0x20;
    pub const QUEUE_DRIVER: usize = 0x28;
    pub const QUEUE_DEVICE: usize = 0x30;
    /// VIRTIO_MSI_NO_VECTOR.
    pub const NO_VECTOR: u16 = 0xffff;
}

/// The transport.
#[derive(Debug)]
pub struct PciTransport<M> {
    registers: M,
    layout: Layout,
    /// Where each queue is notified.
    notify: [usize; QUEUES],
}

impl<M: Mmio> PciTransport<M> {
    /// Uses registers at these places.
    pub fn new(registers: M, layout: Layout) -> Self {
        PciTransport { registers, layout, notify: [layout.notify; QUEUES] }
    }

    fn at(&self, register: usize) -> usize {
        self.layout.common.saturating_add(register)
    }

    fn write_pair(&self, register: usize, value: u64) {
        self.registers.write_u32(self.at(register), value as u32);
        self.registers.write_u32(self.at(register + 4), (value >> 32) as u32);
    }

    fn select(&self, queue: u16) {
        self.registers.write_u16(self.at(common::QUEUE_SELECT), queue);
    }
}

impl<M: Mmio> Transport for PciTransport<M> {
    /// Not asked by anybody: the identity is only a carrier.
    fn device_type(&self) -> DeviceType {
        DeviceType::SignalDistributionModule
    }

    fn read_device_features(&mut self) -> u64 {
        [0, 1].into_iter().fold(0, |features, half| {
            self.registers.write_u32(self.at(common::DEVICE_FEATURE_SELECT), half);
            features | u64::from(self.registers.read_u32(self.at(common::DEVICE_FEATURE))) << (32 * half)
        })
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        for half in [0, 1] {
            self.registers.write_u32(self.at(common::DRIVER_FEATURE_SELECT), half);
            let features = (driver_features >> (32 * half)) as u32;
            self.registers.write_u32(self.at(common::DRIVER_FEATURE), features);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.select(queue);
        self.registers.read_u16(self.at(common::QUEUE_SIZE)).into()
    }

    fn notify(&mut self, queue: u16) {
        if let Some(register) = self.notify.get(usize::from(queue)) {
            self.registers.write_u16(*register, queue);
        }
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.registers.read_u8(self.at(common::DEVICE_STATUS)).into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.registers.write_u8(self.at(common::DEVICE_STATUS), status.bits() as u8);
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        self.select(queue);
        self.registers.write_u16(self.at(common::QUEUE_SIZE), size as u16);
        self.registers.write_u16(self.at(common::QUEUE_MSIX_VECTOR), common::NO_VECTOR);
        self.write_pair(common::QUEUE_DESC, descriptors);
        self.write_pair(common::QUEUE_DRIVER, driver);
        self.write_pair(common::QUEUE_DEVICE, device);
        let offset = usize::from(self.registers.read_u16(self.at(common::QUEUE_NOTIFY_OFF)));
        if let Some(register) = self.notify.get_mut(usize::from(queue)) {
            *register =
                self.layout.notify.saturating_add(offset.saturating_mul(self.layout.notify_multiplier));
        }
        self.registers.write_u16(self.at(common::QUEUE_ENABLE), 1);
    }

    /// Only a reset of the device disables a queue.
    fn queue_unset(&mut self, _: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.select(queue);
        self.registers.read_u16(self.at(common::QUEUE_ENABLE)) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_retain(self.registers.read_u8(self.layout.isr).into())
    }

    fn read_config_generation(&self) -> u32 {
        self.registers.read_u8(self.at(common::CONFIG_GENERATION)).into()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let mut value = T::new_zeroed();
        for (at, byte) in (offset..).zip(value.as_mut_bytes()) {
            *byte = self.registers.read_u8(self.layout.device.saturating_add(at));
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> virtio_drivers::Result<()> {
        Err(Error::Unsupported)
    }
}
