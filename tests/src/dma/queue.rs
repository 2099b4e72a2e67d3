//! A virtqueue by hand, from either side: registers (Virtio 1.2, 4.1.4.3) and one page of memory, at whatever address the
//! device is told.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use guest_abi::session::probe;
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::error;
use hyp_abi::service::op;

use super::pci::Function;
use crate::host::Host;
use crate::partition::Partition;
use crate::sys::{Registers, Window};

/// Who drives a device: how it gets at registers and at the page.
pub trait Side {
    /// Reads a register.
    fn read(&mut self, offset: u64, width: u32) -> Result<u64>;
    /// Writes a register.
    fn write(&mut self, offset: u64, width: u32, value: u64) -> Result<()>;
    /// Reads a word of the page.
    fn load(&mut self, offset: u64) -> Result<u64>;
    /// Writes a word of the page.
    fn store(&mut self, offset: u64, value: u64) -> Result<()>;
}

/// The host.
pub struct HostSide {
    /// Registers of the device.
    pub registers: Registers,
    /// The page.
    pub page: Window,
}

impl Side for HostSide {
    fn read(&mut self, offset: u64, width: u32) -> Result<u64> {
        Ok(self.registers.read(offset as usize, width))
    }

    fn write(&mut self, offset: u64, width: u32, value: u64) -> Result<()> {
        self.registers.write(offset as usize, width, value);
        Ok(())
    }

    fn load(&mut self, offset: u64) -> Result<u64> {
        Ok(self.page.word(offset as usize))
    }

    fn store(&mut self, offset: u64, value: u64) -> Result<()> {
        self.page.write(offset as usize, &value.to_le_bytes());
        Ok(())
    }
}

/// A partition, that does what the host tells its probe.
pub struct PartitionSide<'p, 'h> {
    /// It.
    pub partition: &'p mut Partition<'h>,
    /// Where it sees the registers.
    pub registers: u64,
    /// Where it sees the page.
    pub page: u64,
}

impl PartitionSide<'_, '_> {
    fn access(&mut self, ipa: u64, width: u64, write: Option<u64>) -> Result<u64> {
        let args = [ipa, width, write.is_some().into(), write.unwrap_or(0)];
        Ok(self.partition.act(probe::ACCESS, args)?.values()?[0])
    }
}

impl Side for PartitionSide<'_, '_> {
    fn read(&mut self, offset: u64, width: u32) -> Result<u64> {
        self.access(self.registers + offset, width.into(), None)
    }

    fn write(&mut self, offset: u64, width: u32, value: u64) -> Result<()> {
        self.access(self.registers + offset, width.into(), Some(value)).map(drop)
    }

    fn load(&mut self, offset: u64) -> Result<u64> {
        self.access(self.page + offset, 8, None)
    }

    fn store(&mut self, offset: u64, value: u64) -> Result<()> {
        self.access(self.page + offset, 8, Some(value)).map(drop)
    }
}

/// Where the structures of a virtio-pci device are among its registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Common configuration.
    pub common: u64,
    /// Device configuration.
    pub device: u64,
    /// Notifications.
    pub notify: u64,
    /// Distance of two queues' notifications.
    pub multiplier: u64,
}

impl Layout {
    /// From what the hypervisor says of the NPU.
    pub fn of_npu(state: [u64; 4]) -> Self {
        let [_, _, offsets, shape] = state;
        let offset = |index: u32| offsets >> (16 * index) & 0xFFFF;
        Self { common: offset(0), device: offset(2), notify: offset(3), multiplier: shape & 0xFFFF_FFFF }
    }

    /// From a function's capabilities (Virtio 1.2, 4.1.4); the number of its BAR, too.
    pub fn of_function(function: &Function) -> Result<(Self, u32)> {
        let (mut layout, mut bar) = (Self::default(), 0);
        for at in function.capabilities(9)? {
            let offset = u64::from(function.read(at + 8, 4)?);
            match function.read(at + 3, 1)? {
                1 => (layout.common, bar) = (offset, function.read(at + 4, 1)?),
                2 => (layout.notify, layout.multiplier) = (offset, function.read(at + 16, 4)?.into()),
                4 => layout.device = offset,
                _ => {}
            }
        }
        ensure!(bar != 0, "no virtio structures in {function:?}");
        Ok((layout, bar))
    }
}

/// A page of the host's for a queue: its address, and the page.
pub fn page_of(host: &Host) -> Result<(u64, Window)> {
    let address = host.allocate(1)?;
    Ok((address, host.module.map(address, 1)?))
}

/// Offsets in the common configuration.
mod common {
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0C;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_ENABLE: u64 = 0x1C;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1E;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
}

/// VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM, of the upper half.
const FEATURES_HIGH: u64 = 3;
const ACKNOWLEDGE_DRIVER: u64 = 1 | 2;
const FEATURES_OK: u64 = 8;
const DRIVER_OK: u64 = 4;
/// DEVICE_NEEDS_RESET: the device met what it does not understand, or may not reach.
const NEEDS_RESET: u64 = 64;
/// Descriptors.
const SIZE: u64 = 8;
// Places in the page.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x180;
/// Where the page is free.
pub const FREE: u64 = 0x200;
/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u64 = 1;
const DESC_NEXT: u64 = 1;
const DESC_WRITE: u64 = 2;

/// The first queue of a device, and the device.
pub struct Queue<S> {
    /// Who drives it.
    pub side: S,
    /// Its registers.
    pub layout: Layout,
    /// Where the device is told that the page is.
    iova: u64,
    posted: u64,
    /// Whether it is to interrupt.
    pub interrupts: bool,
}

impl<S: Side> Queue<S> {
    /// Resets a device and sets all its `queues` up in the page, the first for use.
    pub fn start(side: S, layout: Layout, iova: u64, queues: u64) -> Result<Self> {
        let mut queue = Self { side, layout, iova, posted: 0, interrupts: false };
        for offset in (0..FREE).step_by(8) {
            queue.side.store(offset, 0)?;
        }
        queue.set(common::DEVICE_STATUS, 1, 0)?;
        ensure!(queue.get(common::DEVICE_STATUS, 1)? == 0, "the device does not reset");
        let mut status = ACKNOWLEDGE_DRIVER;
        queue.set(common::DEVICE_STATUS, 1, status)?;
        for (half, features) in [(0, 0), (1, FEATURES_HIGH)] {
            queue.set(common::DRIVER_FEATURE_SELECT, 4, half)?;
            queue.set(common::DRIVER_FEATURE, 4, features)?;
        }
        status |= FEATURES_OK;
        queue.set(common::DEVICE_STATUS, 1, status)?;
        ensure!(queue.get(common::DEVICE_STATUS, 1)? == status, "the device does not accept the features");
        for number in (0..queues).rev() {
            queue.set(common::QUEUE_SELECT, 2, number)?;
            queue.set(common::QUEUE_SIZE, 2, SIZE)?;
            for (register, offset) in [
                (common::QUEUE_DESC, DESCRIPTORS),
                (common::QUEUE_DRIVER, AVAILABLE),
                (common::QUEUE_DEVICE, USED),
            ] {
                queue.set(register, 4, (iova + offset) & 0xFFFF_FFFF)?;
                queue.set(register + 4, 4, (iova + offset) >> 32)?;
            }
            queue.set(common::QUEUE_ENABLE, 2, 1)?;
        }
        queue.set(common::DEVICE_STATUS, 1, status | DRIVER_OK)?;
        Ok(queue)
    }

    fn get(&mut self, register: u64, width: u32) -> Result<u64> {
        self.side.read(self.layout.common + register, width)
    }

    fn set(&mut self, register: u64, width: u32, value: u64) -> Result<()> {
        self.side.write(self.layout.common + register, width, value)
    }

    /// Makes a chain available, of parts with address, length and whether the device writes, and notifies the device.
    pub fn post(&mut self, parts: &[(u64, u64, bool)]) -> Result<()> {
        for (index, &(address, length, writes)) in (0..).zip(parts) {
            let more = index + 1 < parts.len() as u64;
            let flags = if more { DESC_NEXT } else { 0 } | if writes { DESC_WRITE } else { 0 };
            let descriptor = DESCRIPTORS + 16 * index;
            self.side.store(descriptor, address)?;
            self.side.store(descriptor + 8, length | flags << 32 | (index + 1) << 48)?;
        }
        self.posted += 1;
        let flags = if self.interrupts { 0 } else { NO_INTERRUPT };
        // Flags, index, and ring entries, which are all 0: the chain begins at descriptor 0.
        self.side.store(AVAILABLE, flags | (self.posted & 0xFFFF) << 16)?;
        self.set(common::QUEUE_SELECT, 2, 0)?;
        let offset = self.get(common::QUEUE_NOTIFY_OFF, 2)?;
        self.side.write(self.layout.notify + offset * self.layout.multiplier, 2, 0)
    }

    /// Whether the device is done with everything.
    pub fn is_done(&mut self) -> Result<bool> {
        Ok(self.side.load(USED)? >> 16 & 0xFFFF == self.posted & 0xFFFF)
    }

    /// Whether the device gave up.
    pub fn is_broken(&mut self) -> Result<bool> {
        Ok(self.get(common::DEVICE_STATUS, 1)? & NEEDS_RESET != 0)
    }

    /// Whether the device is as [`Self::start`] left it.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.get(common::DEVICE_STATUS, 1)? == ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK)
    }

    /// Resets the device.
    pub fn stop(&mut self) -> Result<()> {
        self.set(common::DEVICE_STATUS, 1, 0)
    }

    /// Where the device sees a place in the page.
    pub fn iova(&self, offset: u64) -> u64 {
        self.iova + offset
    }

    /// Addresses of the first queue, as the registers show them, and the upper half of the driver's features.
    pub fn residue(side: &mut S, layout: Layout) -> Result<Vec<u64>> {
        let common = layout.common;
        side.write(common + common::QUEUE_SELECT, 2, 0)?;
        side.write(common + common::DRIVER_FEATURE_SELECT, 4, 1)?;
        let registers = [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE];
        let halves = registers.into_iter().flat_map(|register| [register, register + 4]);
        halves.chain([common::DRIVER_FEATURE]).map(|register| side.read(common + register, 4)).collect()
    }
}

/// Takes the NPU for the host, whoever has it, and does not hold it: it is the host's until somebody asks. Returns what the
/// hypervisor says of it.
pub fn host_takes(host: &Host) -> Result<[u64; 4]> {
    for _ in 0..10_000 {
        let reply = host.service(op::NPU_ACQUIRE, [0; 4])?;
        if reply.status != error::BUSY {
            reply.ok("NPU_ACQUIRE")?;
            return host.service(op::NPU_RELEASE, [0; 4])?.ok("NPU_RELEASE");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("the NPU does not come")
}

/// Takes the NPU for a partition; nobody holds it.
pub fn partition_acquires(partition: &mut Partition<'_>) -> Result<[u64; 4]> {
    let answer = partition.act(probe::SERVICE, [op::NPU_ACQUIRE, 0, 0, 0])?;
    answer.values().context("NPU_ACQUIRE of the partition")
}

const _: () = assert!(FREE < PAGE_SIZE);
