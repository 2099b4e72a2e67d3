//! The partition's memory: heap, model file and pages to share, as far as the host gave them.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use guest_abi::session::{SESSION_PAGES, Session};
use guest_abi::virtio::{Page, Region, VIRTIO_PAGES};
use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::error;
use hyp_abi::manifest::{kind, layout};

use crate::ffa::{self, Status};
use crate::layout::{HEAP_MAX, MODEL_MAX, region};
use crate::virtio::Doorbell;
use crate::virtio::pool::{Access, PRIVATE_PAGES, Pool};

/// Every vCPU may allocate, though those that help with a job do not. The lock is held for short, without interrupts; the
/// host may stop its holder, and then delays the others.
type Heap = talc::TalcLock<spin::Mutex<()>, talc::source::Manual>;

/// Where the allocator's heap ends; null before it starts. Changes under its lock.
static END: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

#[global_allocator]
static HEAP: Heap = Heap::new(talc::source::Manual);

/// What was given.
pub struct Memory {
    /// The heap region, unused so far.
    pub heap: HeapRegion,
    /// The model region: the file, then zeros up to the end of its last page.
    pub model: &'static [u8],
}

/// Asks what was given of heap and model. Works once.
///
/// # Errors
/// What the hypervisor answered; DENIED the second time; INVALID_PARAMETERS if a region is not the manifest's.
pub fn take() -> Result<Memory, Status> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(Status(error::DENIED));
    }
    let heap = given(region::HEAP, layout::HEAP, HEAP_MAX, kind::ZERO)?;
    let model = given(region::MODEL, layout::MODEL, MODEL_MAX, kind::MODEL)?;
    Ok(Memory {
        heap: HeapRegion { bytes: heap },
        // SAFETY: nothing else refers to the region, and nobody can write it: it is read-only in both stages. A page
        // that the host left out ends the partition when it is touched.
        model: unsafe { core::slice::from_raw_parts(layout::MODEL as *const u8, model) },
    })
}

/// Shares the session pages with the rings, for an image that uses them: the inference runtime does not. Works once.
///
/// # Errors
/// As [`take`]; NO_MEMORY if pages are missing.
pub fn take_session() -> Result<&'static Session, Status> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(Status(error::DENIED));
    }
    let session = given(region::SESSION, layout::SESSION, SESSION_PAGES * PAGE_SIZE, kind::SHARED)?;
    if session < (SESSION_PAGES * PAGE_SIZE) as usize {
        return Err(Status(error::NO_MEMORY));
    }
    for page in 0..SESSION_PAGES {
        // SAFETY: no reference to the session exists yet; the one made below is to atomics only.
        unsafe { ffa::share(layout::SESSION + page * PAGE_SIZE)? };
    }
    // SAFETY: the pages were given, zeroed, and are mapped for good; zeros are a valid `Session`; it consists of atomics
    // and padding, so that the host may change it meanwhile.
    Ok(unsafe { &*(layout::SESSION as *const Session) })
}

fn given(index: u64, ipa: u64, max: u64, kind: u32) -> Result<usize, Status> {
    let region = ffa::region(index)?;
    let size = region.page_count.checked_mul(PAGE_SIZE).filter(|size| *size <= max);
    match size {
        Some(size) if region.ipa == ipa && region.kind == u64::from(kind) => Ok(size as usize),
        _ => Err(Status(error::INVALID_PARAMETERS)),
    }
}

/// The right to use the heap region; there is one.
pub struct HeapRegion {
    bytes: usize,
}

impl HeapRegion {
    /// Hands the region to the allocator. If it is too small for that, every allocation fails.
    pub fn start_allocator(self) {
        // SAFETY: `self` is the only right to use the region.
        let end = unsafe { HEAP.lock().claim(layout::HEAP as *mut u8, self.bytes) };
        END.store(end.map_or(core::ptr::null_mut(), NonNull::as_ptr), Ordering::Release);
    }

    /// Hands the region to the caller as it is.
    pub fn into_words(self) -> &'static mut [u64] {
        // SAFETY: `self` is the only right to use the region, which was given zeroed and is aligned to pages. A page that
        // the host left out ends the partition when it is touched.
        unsafe { core::slice::from_raw_parts_mut(layout::HEAP as *mut u64, self.bytes / size_of::<u64>()) }
    }
}

/// Takes the pages of the heap region that the host gave since the last look. It may leave holes: touching one ends the
/// partition.
pub fn grow() {
    let Ok(bytes) = given(region::HEAP, layout::HEAP, HEAP_MAX, kind::ZERO) else { return };
    let mut heap = HEAP.lock();
    let Some(end) = NonNull::new(END.load(Ordering::Acquire)) else { return };
    let new_end = (layout::HEAP as *mut u8).wrapping_add(bytes);
    if new_end > end.as_ptr() {
        // SAFETY: `end` is the heap's, kept under the lock; the pages behind it were given since, and nobody else uses the
        // region.
        END.store(unsafe { heap.extend(end, new_end) }.as_ptr(), Ordering::Release);
    }
}

/// The pool of all virtio devices, once [`take_virtio`] made it.
pub struct SharedPool;

static POOL: spin::Mutex<Option<Pool>> = spin::Mutex::new(None);

impl Access for SharedPool {
    fn with<R>(act: impl FnOnce(&mut Pool) -> R) -> Option<R> {
        POOL.lock().as_mut().map(act)
    }
}

/// The host, which looks at its devices when it is given the CPU.
#[derive(Clone, Copy, Debug)]
pub struct Host;

impl Doorbell for Host {
    fn ring(&self) {
        ffa::give_way();
    }
}

/// Shares the virtio pages and makes the pool; none if the host gave no such pages. Works once.
///
/// # Errors
/// As [`take`].
pub fn take_virtio() -> Result<Option<&'static Region>, Status> {
    static PRIVATE: [Page; PRIVATE_PAGES] = [const { Page::new() }; PRIVATE_PAGES];
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(Status(error::DENIED));
    }
    match given(region::VIRTIO, layout::VIRTIO, VIRTIO_PAGES * PAGE_SIZE, kind::SHARED)? {
        0 => return Ok(None),
        size if size < size_of::<Region>() => return Err(Status(error::NO_MEMORY)),
        _ => {}
    }
    for page in 0..VIRTIO_PAGES {
        // SAFETY: no reference to the region exists yet; the one made below is to atomics only.
        unsafe { ffa::share(layout::VIRTIO + page * PAGE_SIZE)? };
    }
    // SAFETY: as in `take_session`.
    let region = unsafe { &*(layout::VIRTIO as *const Region) };
    *POOL.lock() = Some(Pool::new(region, layout::VIRTIO, &PRIVATE));
    Ok(Some(region))
}

/// Starts the allocator on pages of the image, for an image that uses the heap region itself. Works once.
pub fn start_allocator_on(pages: &'static [Page]) {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if !TAKEN.swap(true, Ordering::Relaxed) {
        // SAFETY: pages of atomics may be written through a shared reference; the caller's has no other use, as this takes
        // them for good.
        let _ = unsafe { HEAP.lock().claim(pages.as_ptr().cast_mut().cast(), size_of_val(pages)) };
    }
}

/// Bytes of the heap in use.
pub fn heap_used() -> usize {
    HEAP.lock().counters().allocated_bytes
}

/// Bytes that the allocator still has, in one or several pieces.
pub fn heap_free() -> usize {
    HEAP.lock().counters().available_bytes
}
