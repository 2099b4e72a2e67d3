//! Split virtqueues of a driver that may be hostile (Virtio 1.2, 2.7), without indirect descriptors and event indices.

use std::sync::atomic::{Ordering, fence};

use flexserve_npu_abi::QUEUE_SIZE_MAX;

use crate::dma::{Dma, Fault, read_array};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;

/// Where a virtqueue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// Descriptors, a power of two of at most [`QUEUE_SIZE_MAX`].
    pub size: u16,
    /// IOVA of the descriptors.
    pub descriptors: u64,
    /// IOVA of the available ring.
    pub available: u64,
    /// IOVA of the used ring.
    pub used: u64,
}

/// Why a queue is not served further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Its memory is not reachable now.
    Fault(Fault),
    /// It makes no sense, and is not looked at until it is set up again.
    Broken,
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Problem::Fault(fault)
    }
}

/// A part of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its IOVA.
    pub iova: u64,
    /// Its bytes.
    pub length: u32,
}

/// A chain of descriptors, copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The first descriptor.
    pub head: u16,
    /// Parts that the device reads.
    pub readable: Vec<Segment>,
    /// Parts that it writes.
    pub writable: Vec<Segment>,
}

impl Ring {
    /// Whether there can be such a queue.
    pub fn is_valid(&self) -> bool {
        self.size.is_power_of_two() && self.size <= QUEUE_SIZE_MAX
    }

    fn slot(&self, index: u16, bytes: u64) -> u64 {
        u64::from(index % self.size.max(1)).wrapping_mul(bytes)
    }

    /// Finds the chain after `served` others, if it is available.
    ///
    /// # Errors
    /// [`Problem`].
    pub fn next(&self, dma: &dyn Dma, served: u16) -> Result<Option<Chain>, Problem> {
        if !self.is_valid() {
            return Err(Problem::Broken);
        }
        let available = u16::from_le_bytes(read_array(dma, self.available.wrapping_add(2))?);
        // Whoever sees the index sees the entries before it.
        fence(Ordering::Acquire);
        match available.wrapping_sub(served) {
            0 => return Ok(None),
            waiting if waiting > self.size => return Err(Problem::Broken),
            _ => {}
        }
        let entry = self.available.wrapping_add(4).wrapping_add(self.slot(served, 2));
        let mut chain = Chain { head: u16::from_le_bytes(read_array(dma, entry)?), ..Chain::default() };
        let mut index = chain.head;
        // A chain without a loop has no more descriptors than there are.
        for _ in 0..self.size {
            if index >= self.size {
                return Err(Problem::Broken);
            }
            let bytes: [u8; 16] = read_array(dma, self.descriptors.wrapping_add(self.slot(index, 16)))?;
            let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
            let segment = Segment {
                iova: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                length: u32::from_le_bytes([l0, l1, l2, l3]),
            };
            let flags = u16::from_le_bytes([f0, f1]);
            match flags & (WRITE | INDIRECT) {
                0 if chain.writable.is_empty() => chain.readable.push(segment),
                WRITE => chain.writable.push(segment),
                _ => return Err(Problem::Broken),
            }
            if flags & NEXT == 0 {
                return Ok(Some(chain));
            }
            index = u16::from_le_bytes([n0, n1]);
        }
        Err(Problem::Broken)
    }

    /// Gives back the chain after `served` others, with `length` bytes written; returns whether the driver wants to be told.
    ///
    /// # Errors
    /// As [`Dma::write`].
    pub fn give_back(&self, dma: &dyn Dma, served: u16, head: u16, length: u32) -> Result<bool, Fault> {
        let mut entry = [0; 8];
        let (id, written) = entry.split_at_mut(4);
        id.copy_from_slice(&u32::from(head).to_le_bytes());
        written.copy_from_slice(&length.to_le_bytes());
        dma.write(self.used.wrapping_add(4).wrapping_add(self.slot(served, 8)), &entry)?;
        // The entry, and all results, before the index.
        fence(Ordering::Release);
        dma.write(self.used.wrapping_add(2), &served.wrapping_add(1).to_le_bytes())?;
        // The index before the flag: a driver that sets the flag and then looks misses nothing.
        fence(Ordering::SeqCst);
        Ok(u16::from_le_bytes(read_array(dma, self.available)?) & NO_INTERRUPT == 0)
    }
}
