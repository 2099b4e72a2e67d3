//! Descriptors: bytes in, checked numbers out. Every offset and count is somebody's claim until it has passed here.

use hyp_abi::memory::{CompositeRegion, Constituent, EndpointAccess, EndpointAccess11, MemoryRegion};
use stage2::{MAX_BORROWERS, Pa, PageRange, STEP_PAGES};
use zerocopy::FromBytes;

/// Bytes of a constituent.
pub(crate) const CONSTITUENT: usize = size_of::<Constituent>();

/// The fixed part of a transaction and its access descriptors, of either size.
#[derive(Debug)]
pub(crate) struct Descriptor {
    pub(crate) header: MemoryRegion,
    accesses: [EndpointAccess; MAX_BORROWERS],
    count: usize,
    /// Offset past the access descriptors.
    end: usize,
}

impl Descriptor {
    /// Reads one from the bytes that were sent. None: malformed, or not all of it is there.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (header, _) = MemoryRegion::read_from_prefix(bytes).ok()?;
        let (size, count) = (header.access_size as usize, header.access_count as usize);
        let offset = header.access_offset as usize;
        let sizes = [size_of::<EndpointAccess>(), size_of::<EndpointAccess11>()];
        let is_sound = sizes.contains(&size)
            && (1..=MAX_BORROWERS).contains(&count)
            && offset >= size_of::<MemoryRegion>()
            && offset.is_multiple_of(16)
            && header.reserved == [0; 3];
        if !is_sound {
            return None;
        }
        // At most 4 of 32 bytes.
        let end = offset.checked_add(size * count)?;
        let mut accesses = [EndpointAccess::default(); MAX_BORROWERS];
        for (bytes, access) in bytes.get(offset..end)?.chunks_exact(size).zip(&mut accesses) {
            *access = match EndpointAccess::read_from_bytes(bytes) {
                Ok(access) => access,
                Err(_) => EndpointAccess11::read_from_bytes(bytes).ok()?.into(),
            };
            if access.reserved != 0 || access.flags != 0 || access.permissions >> 4 != 0 {
                return None;
            }
        }
        Some(Self { header, accesses, count, end })
    }

    /// The access descriptors, in their order.
    pub(crate) fn accesses(&self) -> &[EndpointAccess] {
        self.accesses.get(..self.count).unwrap_or_default()
    }

    /// The list of pages at an offset that access descriptors name.
    pub(crate) fn composite(&self, bytes: &[u8], offset: u32) -> Option<Composite> {
        let offset = offset as usize;
        if offset < self.end || !offset.is_multiple_of(8) {
            return None;
        }
        let start = offset.checked_add(size_of::<CompositeRegion>())?;
        let region = CompositeRegion::read_from_bytes(bytes.get(offset..start)?).ok()?;
        let (page_count, range_count) = (u64::from(region.page_count), u64::from(region.range_count));
        let is_sound = region.reserved == 0
            && (1..=STEP_PAGES).contains(&page_count)
            && (1..=page_count).contains(&range_count);
        let end = start as u64 + range_count.checked_mul(CONSTITUENT as u64)?;
        is_sound.then_some(Composite { page_count, start, end })
    }
}

/// A list of pages.
#[derive(Debug)]
pub(crate) struct Composite {
    /// Pages in all, at most 512: a claim until the list is complete.
    pub(crate) page_count: u64,
    /// Offset of the first constituent.
    pub(crate) start: usize,
    /// Offset past the last one: bytes of the whole descriptor.
    pub(crate) end: u64,
}

/// Reads constituents.
pub(crate) fn constituents(bytes: &[u8]) -> impl Iterator<Item = Option<PageRange>> {
    bytes.chunks_exact(CONSTITUENT).map(|bytes| {
        let constituent = Constituent::read_from_bytes(bytes).ok()?;
        let range = PageRange::new(Pa(constituent.address), constituent.page_count.into()).ok()?;
        (constituent.reserved == 0).then_some(range)
    })
}
