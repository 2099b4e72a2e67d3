//! Memory that the NPU reaches, for a program of the host's: one run of pages of `/dev/flexserve-npu`, and the [`Hal`] through
//! which virtio-drivers allocates from it. Buffers that lie elsewhere are copied to and fro.

use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flexserve_npu_driver::{BufferDirection, Hal, PhysAddr};
use hyp_abi::PAGE_SIZE;

use crate::sys::Mapping;

const PAGE: usize = PAGE_SIZE as usize;

/// Memory at one address for the NPU.
pub struct Memory {
    mapping: Mapping,
    address: u64,
}

impl Memory {
    /// What is mapped, and where the NPU sees it.
    pub fn new(mapping: Mapping, address: u64) -> Self {
        Memory { mapping, address }
    }

    /// Where the NPU sees it.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn size(&self) -> usize {
        self.mapping.size()
    }

    /// Copies bytes in at an offset; what does not fit is left out. The NPU is given no job that writes there meanwhile.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let count = bytes.len().min(self.size().saturating_sub(offset));
        // SAFETY: inside the mapping; nobody has references into it, and whoever else writes it is a device.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(offset), count) };
    }

    /// Copies bytes out from an offset; what is beyond the end stays what it was.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let count = bytes.len().min(self.size().saturating_sub(offset));
        // SAFETY: as above.
        unsafe { core::ptr::copy_nonoverlapping(self.at(offset), bytes.as_mut_ptr(), count) };
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.mapping.start().wrapping_add(offset)
    }
}

/// Pages of a [`Memory`], and which are in use.
struct Pool {
    memory: Memory,
    used: Vec<bool>,
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

fn pool() -> MutexGuard<'static, Option<Pool>> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the driver's queues live from now on; the process keeps it until it ends.
pub fn use_for_queues(memory: Memory) {
    let used = vec![false; memory.size() / PAGE];
    *pool() = Some(Pool { memory, used });
}

/// Frees all pages, when no queue is left. Buffers that were in flight on a device that was taken away are never given back
/// by the driver, and would fill the pool.
pub fn forget_queues() {
    if let Some(pool) = pool().as_mut() {
        pool.used.fill(false);
    }
}

impl Pool {
    fn take(&mut self, pages: usize) -> Option<(PhysAddr, NonNull<u8>)> {
        let first = (0..=self.used.len().checked_sub(pages)?)
            .find(|&first| self.used.iter().skip(first).take(pages).all(|used| !used))?;
        self.used.iter_mut().skip(first).take(pages).for_each(|used| *used = true);
        self.memory.write(first * PAGE, &vec![0; pages * PAGE]);
        let address = self.memory.address + (first * PAGE) as u64;
        Some((address as PhysAddr, NonNull::new(self.memory.at(first * PAGE))?))
    }

    fn offset(&self, address: PhysAddr) -> usize {
        usize::try_from(address.wrapping_sub(self.memory.address)).unwrap_or(usize::MAX)
    }

    fn put(&mut self, address: PhysAddr, pages: usize) {
        let first = self.offset(address) / PAGE;
        self.used.iter_mut().skip(first).take(pages).for_each(|used| *used = false);
    }
}

/// The host's memory for its NPU driver.
pub struct HostHal;

// SAFETY: `dma_alloc` returns whole zeroed pages of the pool's mapping, which are nobody else's until `dma_dealloc`, at the
// address at which the device sees them. `share` returns such pages too, with a copy of the buffer.
unsafe impl Hal for HostHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // 0 tells the driver that there is no memory.
        pool().as_mut().and_then(|pool| pool.take(pages)).unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(address: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        if let Some(pool) = pool().as_mut() {
            pool.put(address, pages);
        }
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::dangling() // only for transports that this program does not use
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let mut guard = pool();
        let Some(pool) = guard.as_mut() else { return 0 };
        let Some((address, _)) = pool.take(buffer.len().div_ceil(PAGE).max(1)) else { return 0 };
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the caller passes a valid buffer, which it does not touch until `unshare`.
            let bytes = unsafe { buffer.as_ref() };
            pool.memory.write(pool.offset(address), bytes);
        }
        address
    }

    unsafe fn unshare(address: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        let mut guard = pool();
        let Some(pool) = guard.as_mut() else { return };
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: as in `share`; the buffer is writable in this direction.
            let bytes = unsafe { buffer.as_mut() };
            pool.memory.read(pool.offset(address), bytes);
        }
        pool.put(address, buffer.len().div_ceil(PAGE).max(1));
    }
}
