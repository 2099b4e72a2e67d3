//! A block device.

use alloc::rc::Rc;

use guest_abi::virtio::DevicePage;
use virtio_drivers::Error;
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::DeviceType;

use super::pool::{Access, Bounce};
use super::transport::{Device, SlotTransport};
use super::{Doorbell, Fault};

/// Bytes of a block.
pub const BLOCK: usize = SECTOR_SIZE;
/// Most bytes of one request to the device; longer ones are split.
pub const REQUEST_MAX: usize = 64 * 4096;

/// A block device. Its contents are the host's word.
pub struct Block<A: Access, D: Doorbell> {
    driver: VirtIOBlk<Bounce<A>, SlotTransport<A, D>>,
    device: Rc<Device<A, D>>,
    blocks: u64,
}

impl<A: Access, D: Doorbell> Block<A, D> {
    /// Starts the block device of a slot.
    ///
    /// # Errors
    /// As [`Device::find`]; [`Fault::Config`] for a capacity that is not addressable.
    pub fn new(page: &'static DevicePage, doorbell: D) -> Result<Self, Fault> {
        let device = Device::find(page, DeviceType::Block, doorbell)?;
        let blocks = device.config_u64(0);
        if blocks.checked_mul(BLOCK as u64).is_none() || usize::try_from(blocks).is_err() {
            return Err(device.give_up(Fault::Config));
        }
        let driver = VirtIOBlk::new(SlotTransport(device.clone()));
        device.health()?;
        match driver {
            Ok(driver) => Ok(Block { driver, device, blocks }),
            Err(error) => Err(device.give_up(blame(error))),
        }
    }

    /// Blocks, as the device said at the start.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether it can only be read.
    pub fn is_read_only(&self) -> bool {
        self.driver.readonly()
    }

    /// Whether blocks `first..` of `size` bytes are whole and exist.
    fn check(&self, first: u64, size: usize) -> Result<(), Fault> {
        let count = (size / BLOCK) as u64;
        let inside = first.checked_add(count).is_some_and(|end| end <= self.blocks);
        if size.is_multiple_of(BLOCK) && inside { Ok(()) } else { Err(Fault::Range) }
    }

    /// Reads whole blocks from block `first` on.
    ///
    /// # Errors
    /// [`Fault::Range`], [`Fault::Refused`]; others end the device. `buffer` is undefined then.
    pub fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.check(first, buffer.len())?;
        for (part, chunk) in (0..).zip(buffer.chunks_mut(REQUEST_MAX)) {
            let at = first + part * (REQUEST_MAX / BLOCK) as u64;
            self.device.health()?;
            let result = self.driver.read_blocks(at as usize, chunk);
            self.finish(result, chunk.len() as u32 + 1)?;
        }
        Ok(())
    }

    /// Writes whole blocks from block `first` on.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&mut self, first: u64, buffer: &[u8]) -> Result<(), Fault> {
        self.check(first, buffer.len())?;
        for (part, chunk) in (0..).zip(buffer.chunks(REQUEST_MAX)) {
            let at = first + part * (REQUEST_MAX / BLOCK) as u64;
            self.device.health()?;
            let result = self.driver.write_blocks(at as usize, chunk);
            self.finish(result, 1)?;
        }
        Ok(())
    }

    /// Makes what was written last.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn flush(&mut self) -> Result<(), Fault> {
        self.device.health()?;
        // VIRTIO_BLK_F_FLUSH: without it there is nothing to do, and no answer to look at.
        let asks = self.device.features() & 1 << 9 != 0;
        let result = self.driver.flush();
        if asks { self.finish(result, 1) } else { Ok(()) }
    }

    /// A success counts only if the device says that it wrote as much as it had to.
    fn finish(&self, result: virtio_drivers::Result<()>, length: u32) -> Result<(), Fault> {
        self.device.health()?;
        match result {
            Ok(()) if self.device.last_length(0) == length => Ok(()),
            Ok(()) => Err(self.device.give_up(Fault::Length)),
            Err(Error::IoError | Error::Unsupported | Error::NotReady) => Err(Fault::Refused),
            Err(error) => Err(self.device.give_up(blame(error))),
        }
    }
}

/// What an error of virtio-drivers means, other than a refused request.
pub(super) fn blame(error: Error) -> Fault {
    match error {
        Error::DmaError | Error::QueueFull => Fault::Memory,
        Error::InvalidParam | Error::ConfigSpaceTooSmall | Error::ConfigSpaceMissing => Fault::Config,
        Error::WrongToken | Error::AlreadyUsed => Fault::Token,
        Error::SocketDeviceError(_) => Fault::Protocol,
        Error::IoError | Error::Unsupported | Error::NotReady => Fault::Refused,
    }
}
