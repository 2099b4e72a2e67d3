//! One virtqueue, twice: the driver's in private memory, the device's in shared memory (split virtqueues, Virtio 1.2, 2.7).
//!
//! What the driver makes available is copied to the shared queue, and never read back from there. Of what the device makes
//! used, each word is read once and checked (a chain that was posted and not yet used, no more bytes than it has) before the
//! driver sees it, in its own ring. So the driver may trust its ring, which virtio-drivers does.

use core::sync::atomic::Ordering;

use guest_abi::virtio::Page;

use super::Fault;
use super::pool::{Pool, Twin};

/// Most descriptors of a queue.
pub const MAX_SIZE: usize = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A chain that the device has.
#[derive(Clone, Copy, Debug)]
struct Posted {
    /// Bytes that it may write.
    writable: u32,
}

/// A queue in use.
#[derive(Debug)]
pub struct Shadow {
    size: u16,
    /// Descriptors, then the available ring.
    driver: Twin,
    /// The used ring.
    device: Twin,
    available: u16,
    used: u16,
    posted: [Option<Posted>; MAX_SIZE],
    last_length: u32,
}

fn word(page: &Page, index: usize) -> u64 {
    page.0.get(index).map_or(0, |word| word.load(Ordering::Relaxed))
}

/// A little-endian 16-bit value in a page that only this CPU writes.
fn half(page: &Page, offset: usize) -> u16 {
    (word(page, offset / 8) >> (offset % 8 * 8)) as u16
}

/// Writes `size` bytes (2 or 4) of a page that only this CPU writes, inside one word.
fn put(page: &Page, offset: usize, value: u64, size: usize) {
    if let Some(word) = page.0.get(offset / 8) {
        let shift = offset % 8 * 8;
        let mask = (u64::MAX >> (64 - 8 * size)) << shift;
        let old = word.load(Ordering::Relaxed);
        word.store(old & !mask | value << shift & mask, Ordering::Relaxed);
    }
}

impl Shadow {
    /// Shadows the queue that the driver put at these places of the pool.
    pub fn new(pool: &Pool, size: u32, descriptors: u64, available: u64, used: u64) -> Option<Self> {
        let size = u16::try_from(size).ok().filter(|size| size.is_power_of_two())?;
        // As virtio-drivers lays a queue out: the available ring behind the descriptors, the used ring on a page of its own.
        let sound =
            usize::from(size) <= MAX_SIZE && available == descriptors.checked_add(16 * u64::from(size))?;
        let (driver, device) = (pool.twin(descriptors)?, pool.twin(used)?);
        sound.then_some(Shadow {
            size,
            driver,
            device,
            available: 0,
            used: 0,
            posted: [None; MAX_SIZE],
            last_length: 0,
        })
    }

    fn available_ring(&self) -> usize {
        16 * usize::from(self.size)
    }

    /// Whether the device has chains.
    pub fn is_pending(&self) -> bool {
        self.posted.iter().any(Option::is_some)
    }

    /// Bytes that the device says it wrote to the chain that it used last.
    pub fn last_length(&self) -> u32 {
        self.last_length
    }

    /// Hands what the driver made available to the device.
    ///
    /// # Errors
    /// [`Fault::Memory`] if a buffer found no place in the pool; the device gets none of the new chains then.
    pub fn publish(&mut self, pool: &Pool) -> Result<(), Fault> {
        let ring = self.available_ring();
        let page = self.driver.private;
        let end = half(page, ring + 2);
        let mut next = self.available;
        while next != end {
            let slot = usize::from(next % self.size);
            let head = half(page, ring + 4 + 2 * slot);
            let writable = self.chain(pool, head).ok_or(Fault::Memory)?;
            *self.posted.get_mut(usize::from(head)).ok_or(Fault::Memory)? = Some(Posted { writable });
            next = next.wrapping_add(1);
        }
        self.available = end;
        // Descriptors and ring first, the word with the index last.
        let index = ring / 8;
        let words = index + (4 + 2 * usize::from(self.size)).div_ceil(8);
        for place in (0..words).filter(|place| *place != index) {
            if let Some(shared) = self.driver.shared.0.get(place) {
                shared.store(word(page, place), Ordering::Relaxed);
            }
        }
        if let Some(shared) = self.driver.shared.0.get(index) {
            shared.store(word(page, index), Ordering::Release);
        }
        Ok(())
    }

    /// Follows a chain of the driver's; returns how many bytes the device may write.
    fn chain(&self, pool: &Pool, head: u16) -> Option<u32> {
        let (mut index, mut writable) = (head, 0_u32);
        for _ in 0..self.size {
            if index >= self.size {
                return None;
            }
            let at = 2 * usize::from(index);
            let (ipa, rest) = (word(self.driver.private, at), word(self.driver.private, at + 1));
            let (length, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
            if flags & INDIRECT != 0 || !pool.holds(ipa, length) {
                return None;
            }
            if flags & WRITE != 0 {
                writable = writable.checked_add(length)?;
            }
            if flags & NEXT == 0 {
                return Some(writable);
            }
            index = next;
        }
        None
    }

    /// Gives the pages of buffers that are still posted back to the pool. virtio-drivers' socket driver forgets its own.
    pub fn release(self, pool: &mut Pool) {
        for index in 0..usize::from(self.size) {
            let (ipa, rest) =
                (word(self.driver.private, 2 * index), word(self.driver.private, 2 * index + 1));
            if pool.holds(ipa, rest as u32) {
                pool.take_back(ipa, rest as u32 as usize, None);
            }
        }
    }

    /// Takes what the device has used, and shows it to the driver. Returns whether there was anything.
    ///
    /// # Errors
    /// What the device did wrong; the driver sees nothing of it.
    pub fn collect(&mut self) -> Result<bool, Fault> {
        let index = self.device.shared.0.first().map_or(0, |word| word.load(Ordering::Acquire));
        let end = (index >> 16) as u16;
        let fresh = end.wrapping_sub(self.used);
        if usize::from(fresh) > self.posted.iter().flatten().count() {
            return Err(Fault::Index);
        }
        for _ in 0..fresh {
            // An element is 4 bytes off words: its id is in one, its length in the next.
            let slot = usize::from(self.used % self.size);
            let id = (word(self.device.shared, slot) >> 32) as u32;
            let length = word(self.device.shared, slot + 1) as u32;
            let place =
                usize::try_from(id).ok().and_then(|id| self.posted.get_mut(id)).ok_or(Fault::Token)?;
            if length > place.ok_or(Fault::Token)?.writable {
                // It stays posted: its driver waits for it until the device is given up.
                return Err(Fault::Length);
            }
            *place = None;
            self.last_length = length;
            self.show(slot, id, length);
        }
        Ok(fresh > 0)
    }

    /// Shows the driver a used chain.
    fn show(&mut self, slot: usize, id: u32, length: u32) {
        let page = self.device.private;
        put(page, 8 * slot + 4, id.into(), 4);
        put(page, 8 * slot + 8, length.into(), 4);
        self.used = self.used.wrapping_add(1);
        put(page, 2, self.used.into(), 2);
    }

    /// Shows the driver every chain as used, with nothing written, because the device is given up: a driver that waits for
    /// one waits in a loop without end.
    pub fn abandon(&mut self) {
        // Those that were not even published.
        let ring = self.available_ring();
        let end = half(self.driver.private, ring + 2);
        while self.available != end {
            let slot = usize::from(self.available % self.size);
            let head = usize::from(half(self.driver.private, ring + 4 + 2 * slot));
            if let Some(posted) = self.posted.get_mut(head) {
                *posted = Some(Posted { writable: 0 });
            }
            self.available = self.available.wrapping_add(1);
        }
        for id in 0..MAX_SIZE {
            if self.posted.get_mut(id).and_then(Option::take).is_some() {
                self.show(usize::from(self.used % self.size), id as u32, 0);
            }
        }
    }
}
