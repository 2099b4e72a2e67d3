//! The device's IOTLB: what the front end granted, until it takes it back.
//!
//! There is a map for reads and one for writes. The front end's answers claim both rights, whatever the page allows, so an
//! answer grants only the kind of access that was asked for; what nobody asked for is not granted at all.
//!
//! A copy from or to memory holds the lock for reading, [`PIECE`] bytes at a time; [`Iotlb::invalidate`] takes it for
//! writing, so that when it returns no copy by an old entry is under way. Nothing else happens under the lock.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use crate::dma::Access;

/// Most bytes of a copy under the lock: some microseconds.
pub const PIECE: usize = 64 << 10;
/// Most entries of a map, after which it forgets all: it asks again.
const ENTRIES_MAX: usize = 1 << 16;

/// Memory that the front end shares.
#[derive(Debug, Default)]
pub struct Memory {
    regions: Vec<Region>,
}

/// One piece of it.
#[derive(Debug)]
struct Region {
    /// Its address in the front end, by which grants name memory.
    address: u64,
    mapping: Arc<MmapRegion>,
}

impl Memory {
    /// Maps another region of a file.
    ///
    /// # Errors
    /// The file is shorter, or cannot be mapped.
    pub fn add(&mut self, address: u64, size: u64, offset: u64, fd: OwnedFd) -> std::io::Result<()> {
        let size = usize::try_from(size).map_err(std::io::Error::other)?;
        let file = FileOffset::new(File::from(fd), offset);
        let mapping = MmapRegion::from_file(file, size).map_err(std::io::Error::other)?;
        self.regions.push(Region { address, mapping: Arc::new(mapping) });
        Ok(())
    }

    /// Finds `size` bytes at an address of the front end's.
    fn find(&self, address: u64, size: u64) -> Option<(Arc<MmapRegion>, usize)> {
        self.regions.iter().find_map(|region| {
            let offset = address.checked_sub(region.address)?;
            let end = offset.checked_add(size)?;
            let fits = size > 0 && end <= region.mapping.size() as u64;
            fits.then(|| (region.mapping.clone(), offset as usize))
        })
    }
}

#[derive(Debug)]
struct Entry {
    /// The last IOVA.
    last: u64,
    mapping: Arc<MmapRegion>,
    /// Where in the mapping the first one is.
    offset: usize,
}

/// Entries by their first IOVA; none overlap.
type Map = BTreeMap<u64, Entry>;

/// The IOTLB.
#[derive(Debug, Default)]
pub struct Iotlb {
    maps: RwLock<[Map; 2]>,
}

fn remove(map: &mut Map, first: u64, last: u64) {
    // None overlap: of those that begin before, only the last one can reach in.
    let before = map.range(..first).next_back().filter(|(_, entry)| entry.last >= first);
    let starts: Vec<u64> =
        before.into_iter().chain(map.range(first..=last)).map(|(start, _)| *start).collect();
    starts.iter().for_each(|start| {
        map.remove(start);
    });
}

impl Iotlb {
    /// Grants a kind of access to `size` bytes from `iova`, which lie at `address` in the front end; false if there is no such memory.
    pub fn insert(&self, access: Access, iova: u64, size: u64, memory: &Memory, address: u64) -> bool {
        let last = size.checked_sub(1).and_then(|length| iova.checked_add(length));
        let (Some(last), Some((mapping, offset))) = (last, memory.find(address, size)) else { return false };
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let [reads, writes] = &mut *maps;
        let map = if access == Access::Read { reads } else { writes };
        if map.len() >= ENTRIES_MAX {
            map.clear();
        }
        remove(map, iova, last);
        map.insert(iova, Entry { last, mapping, offset });
        true
    }

    /// Takes back what was granted of `size` bytes from `iova`; a size of 0 wraps, so that from 0 it means everything. When
    /// this returns, no access by what was granted is under way.
    pub fn invalidate(&self, iova: u64, size: u64) {
        let last = iova.wrapping_add(size.wrapping_sub(1));
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        // An end before the start can only be meant as more, never as less.
        let last = if last < iova { u64::MAX } else { last };
        maps.iter_mut().for_each(|map| remove(map, iova, last));
    }

    /// Takes back everything.
    pub fn clear(&self) {
        self.invalidate(0, 0);
    }

    /// Accesses up to `size` bytes from `iova`, as far as one entry goes; returns how many, 0 being a miss.
    pub fn access(
        &self,
        access: Access,
        iova: u64,
        size: usize,
        act: impl FnOnce(VolatileSlice<'_>),
    ) -> usize {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let [reads, writes] = &*maps;
        let map = if access == Access::Read { reads } else { writes };
        let Some((start, entry)) = map.range(..=iova).next_back().filter(|(_, entry)| entry.last >= iova)
        else {
            return 0;
        };
        let room = (entry.last - iova).saturating_add(1).min(PIECE as u64) as usize;
        let size = size.min(room);
        match entry.mapping.get_slice(entry.offset + (iova - start) as usize, size) {
            Ok(slice) => {
                act(slice);
                size
            }
            Err(_) => 0,
        }
    }

    /// Entries for reads and for writes.
    pub fn lengths(&self) -> [usize; 2] {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        [maps[0].len(), maps[1].len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        let fd = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 0x10000).unwrap();
        let mut memory = Memory::default();
        memory.add(0x7000_0000, 0x10000, 0, fd).unwrap();
        memory
    }

    fn reads(iotlb: &Iotlb, iova: u64, size: usize) -> usize {
        iotlb.access(Access::Read, iova, size, |slice| assert!(slice.len() <= size))
    }

    #[test]
    fn reads_and_writes_are_granted_apart() {
        let (iotlb, memory) = (Iotlb::default(), memory());
        assert!(iotlb.insert(Access::Write, 0x1000, 0x1000, &memory, 0x7000_0000));
        assert_eq!(reads(&iotlb, 0x1000, 4), 0);
        assert_eq!(iotlb.access(Access::Write, 0x1ffe, 4, |slice| slice.copy_from(&[1u8, 2])), 2);
        assert!(iotlb.insert(Access::Read, 0x1000, 0x1000, &memory, 0x7000_0000));
        let mut bytes = [0u8; 2];
        iotlb.access(Access::Read, 0x1ffe, 2, |slice| {
            slice.copy_to(&mut bytes);
        });
        assert_eq!(bytes, [1, 2]);
        assert_eq!((reads(&iotlb, 0xfff, 1), reads(&iotlb, 0x2000, 1)), (0, 0));
    }

    #[test]
    fn invalidation_takes_all_that_it_touches_and_nothing_else() {
        let (iotlb, memory) = (Iotlb::default(), memory());
        for page in 0..8 {
            assert!(iotlb.insert(Access::Read, page << 12, 0x1000, &memory, 0x7000_0000 + (page << 12)));
        }
        iotlb.invalidate(0x2fff, 2);
        assert_eq!(iotlb.lengths(), [6, 0]);
        assert_eq!([1, 2, 3, 4].map(|page| reads(&iotlb, page << 12, 1)), [1, 0, 0, 1]);
        // A block over pages replaces them.
        assert!(iotlb.insert(Access::Read, 0, 0x8000, &memory, 0x7000_0000));
        assert_eq!((iotlb.lengths(), reads(&iotlb, 0x2000, 0x10000)), ([1, 0], 0x6000));
        iotlb.invalidate(0, 0);
        assert_eq!(iotlb.lengths(), [0, 0]);
        assert!(iotlb.insert(Access::Read, 0x5000, 0x1000, &memory, 0x7000_0000));
        // An end that wraps.
        iotlb.invalidate(0x5800, u64::MAX);
        assert_eq!(iotlb.lengths(), [0, 0]);
    }

    #[test]
    fn grants_outside_the_memory_are_refused() {
        let (iotlb, memory) = (Iotlb::default(), memory());
        for (iova, size, address) in [
            (0, 0, 0x7000_0000),
            (0, 0x10001, 0x7000_0000),
            (0, 1, 0x6fff_ffff),
            (0, 2, 0x7000_ffff),
            (u64::MAX, 2, 0x7000_0000),
            (0, u64::MAX, 0x7000_0000),
        ] {
            assert!(!iotlb.insert(Access::Read, iova, size, &memory, address), "{iova:#x} {size:#x}");
        }
        assert!(iotlb.insert(Access::Read, u64::MAX, 1, &memory, 0x7000_0000));
        assert_eq!(reads(&iotlb, u64::MAX, 9), 1);
    }
}
