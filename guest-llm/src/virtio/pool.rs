//! The memory of all virtio devices: shared pages, which pages of them are in use, and the private twins of virtqueues.
//!
//! A buffer that a driver posts is copied into shared pages of its own, and what a device wrote is copied out once; shared
//! pages stay shared for ever, so that a late write of a device hits nothing. Virtqueues are kept twice: the driver works
//! on a private twin, [`super::shadow`] copies to the shared one and checks what comes back.

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use guest_abi::virtio::{DMA_PAGES, Page, Region, dma_ipa};
use hyp_abi::PAGE_SIZE;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

/// Private pages: a driver's and a device's half for each queue of two block devices and a socket device.
pub const PRIVATE_PAGES: usize = 12;
const PAGE: usize = PAGE_SIZE as usize;

/// The pool. There is one for all devices.
#[derive(Debug)]
pub struct Pool {
    region: &'static Region,
    ipa: u64,
    private: &'static [Page; PRIVATE_PAGES],
    used: [bool; DMA_PAGES],
    /// The shared page whose twin each private page is.
    twins: [Option<usize>; PRIVATE_PAGES],
}

/// Both sides of a virtqueue's page.
#[derive(Clone, Copy, Debug)]
pub struct Twin {
    /// The driver's.
    pub private: &'static Page,
    /// The device's.
    pub shared: &'static Page,
}

impl Pool {
    /// Makes a pool of the region that lies at IPA `region_ipa`, which is shared already. `private` is nobody else's.
    pub fn new(region: &'static Region, region_ipa: u64, private: &'static [Page; PRIVATE_PAGES]) -> Self {
        Pool {
            region,
            ipa: dma_ipa(region_ipa),
            private,
            used: [false; DMA_PAGES],
            twins: [None; PRIVATE_PAGES],
        }
    }

    /// Shared pages that hold a virtqueue or a buffer now.
    pub fn pages_in_use(&self) -> usize {
        self.used.iter().filter(|used| **used).count()
    }

    /// Finds the shared page at an IPA.
    fn index(&self, ipa: u64) -> Option<usize> {
        let offset = ipa.checked_sub(self.ipa)?;
        let index = usize::try_from(offset / PAGE_SIZE).ok()?;
        (offset.is_multiple_of(PAGE_SIZE) && index < DMA_PAGES).then_some(index)
    }

    fn ipa_of(&self, index: usize) -> u64 {
        self.ipa + index as u64 * PAGE_SIZE
    }

    /// Takes contiguous shared pages; returns the index of the first.
    fn take(&mut self, count: usize) -> Option<usize> {
        let first = self.used.windows(count.max(1)).position(|run| run.iter().all(|used| !used))?;
        self.mark(first, count, true);
        Some(first)
    }

    fn mark(&mut self, first: usize, count: usize, used: bool) {
        self.used.iter_mut().skip(first).take(count).for_each(|page| *page = used);
    }

    /// Whether so many bytes from an IPA lie in pages that are in use.
    pub fn holds(&self, ipa: u64, size: u32) -> bool {
        let pages = (size as usize).div_ceil(PAGE);
        self.index(ipa).is_some_and(|first| {
            pages > 0
                && self
                    .used
                    .get(first..)
                    .and_then(|used| used.get(..pages))
                    .is_some_and(|used| used.iter().all(|used| *used))
        })
    }

    /// Finds both sides of the virtqueue page at an IPA. `offset` bytes into the page are allowed.
    pub fn twin(&self, ipa: u64) -> Option<Twin> {
        let shared = self.index(ipa - ipa % PAGE_SIZE)?;
        let private = self.twins.iter().position(|twin| *twin == Some(shared))?;
        Some(Twin { private: self.private.get(private)?, shared: self.region.pages.get(shared)? })
    }

    /// Takes a page for half a virtqueue; returns its IPA and its private twin.
    fn take_twin(&mut self) -> Option<(u64, &'static Page)> {
        let place = self.twins.iter().position(Option::is_none)?;
        let private: &'static Page = self.private.get(place)?;
        let shared = self.take(1)?;
        *self.twins.get_mut(place)? = Some(shared);
        for page in [Some(private), self.region.pages.get(shared)].into_iter().flatten() {
            page.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        Some((self.ipa_of(shared), private))
    }

    fn give_twin(&mut self, ipa: u64) {
        if let Some(shared) = self.index(ipa) {
            self.twins.iter_mut().filter(|twin| **twin == Some(shared)).for_each(|twin| *twin = None);
            self.mark(shared, 1, false);
        }
    }

    fn words(&self, first: usize) -> impl Iterator<Item = &'static core::sync::atomic::AtomicU64> + use<> {
        let region = self.region;
        region.pages.iter().skip(first).flat_map(|page| page.0.iter())
    }

    /// Takes pages for a buffer of `size` bytes and fills them with `contents`, then zeros.
    fn lend(&mut self, size: usize, contents: &[u8]) -> Option<u64> {
        let pages = size.div_ceil(PAGE);
        let first = self.take(pages)?;
        let mut chunks = contents.chunks(8);
        // The whole of the pages, so that no device finds what an earlier buffer held.
        for word in self.words(first).take(pages * (PAGE / 8)) {
            let mut bytes = [0; 8];
            if let Some(chunk) = chunks.next() {
                bytes.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            }
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        Some(self.ipa_of(first))
    }

    /// Gives the pages of a buffer back, after copying them out once.
    pub(super) fn take_back(&mut self, ipa: u64, size: usize, contents: Option<&mut [u8]>) {
        let Some(first) = self.index(ipa) else { return };
        if let Some(contents) = contents {
            for (chunk, word) in contents.chunks_mut(8).zip(self.words(first)) {
                let bytes = word.load(Ordering::Relaxed).to_le_bytes();
                chunk.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
            }
        }
        self.mark(first, size.div_ceil(PAGE), false);
    }
}

/// Where the pool is.
pub trait Access: 'static {
    /// Lends the pool; none before there is one.
    fn with<R>(act: impl FnOnce(&mut Pool) -> R) -> Option<R>;
}

/// The drivers' view of the pool. An exhausted pool gives IPA 0, which no driver can have posted: see
/// [`super::shadow`].
#[derive(Debug)]
pub struct Bounce<A>(PhantomData<A>);

// SAFETY: `dma_alloc` gives a page of the pool's private pages, which is aligned, zeroed, and nobody else's until it is
// given back; it consists of atomics, so that the shadow may read it between the driver's accesses.
unsafe impl<A: Access> Hal for Bounce<A> {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let page = if pages == 1 { A::with(Pool::take_twin).flatten() } else { None };
        page.map_or((0, NonNull::dangling()), |(ipa, page)| (ipa, NonNull::from(page).cast()))
    }

    unsafe fn dma_dealloc(ipa: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        A::with(|pool| pool.give_twin(ipa));
        0
    }

    /// Never called: this transport has no BARs.
    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::dangling()
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let contents = match direction {
            // What the driver wants written must not tell the device what it held.
            BufferDirection::DeviceToDriver => &[],
            // SAFETY: the caller says that the buffer is valid and not accessed meanwhile.
            BufferDirection::DriverToDevice | BufferDirection::Both => unsafe { buffer.as_ref() },
        };
        A::with(|pool| pool.lend(buffer.len(), contents)).flatten().unwrap_or(0)
    }

    unsafe fn unshare(ipa: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        let size = buffer.len();
        let contents = match direction {
            BufferDirection::DriverToDevice => None,
            // SAFETY: as in `share`.
            BufferDirection::DeviceToDriver | BufferDirection::Both => Some(unsafe { buffer.as_mut() }),
        };
        A::with(|pool| pool.take_back(ipa, size, contents));
    }
}
