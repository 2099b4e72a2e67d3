//! The partition's virtio drivers against the host's devices, both in this process over the same memory, and against
//! devices that lie.

mod honest;
mod hostile;
mod session;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use flexserve::virtio::{Devices, Memory, anonymous};
use guest_abi::virtio::{Page, Region};
use guest_llm::virtio::pool::{Access, PRIVATE_PAGES, Pool};
use guest_llm::virtio::{Doorbell, block, stream};
use hyp_abi::manifest::layout;
use vm_memory::{GuestAddress, GuestMemoryBackend};

thread_local! {
    static POOL: RefCell<Option<Pool>> = const { RefCell::new(None) };
}

/// The pool of this thread.
pub struct Local;

impl Access for Local {
    fn with<R>(act: impl FnOnce(&mut Pool) -> R) -> Option<R> {
        POOL.with_borrow_mut(|pool| pool.as_mut().map(act))
    }
}

/// A block device of this process.
pub type Block = block::Block<Local, Bell>;
/// A stream of this process.
pub type Stream = stream::Stream<Local, Bell>;

/// What private memory is full of, and no payload holds.
pub const SECRET: u8 = 0xA7;

/// A region that both sides see.
pub struct World {
    /// As the devices see it.
    pub memory: Memory,
    /// As the partition sees it.
    pub region: &'static Region,
    private: &'static [Page; PRIVATE_PAGES],
}

impl World {
    /// A region of zeros and a new pool. The memory is never freed: the driver's side has it for good.
    pub fn zeroed() -> Self {
        let memory = anonymous().unwrap();
        let start = memory.get_host_address(GuestAddress(layout::VIRTIO)).unwrap();
        std::mem::forget(memory.clone());
        // SAFETY: the mapping has the region's size, is aligned to pages, zeroed, and never unmapped; a `Region` is made of
        // atomics.
        let region: &'static Region = unsafe { &*start.cast() };
        let private = Box::leak(Box::new([const { Page::new() }; PRIVATE_PAGES]));
        let world = World { memory, region, private };
        world.restart();
        world
    }

    /// Zeros the region and makes a new pool.
    pub fn restart(&self) {
        // SAFETY: a `DevicePage` is made of atomics and padding, and nobody else accesses it now.
        let words: &[Page] =
            unsafe { std::slice::from_raw_parts(std::ptr::from_ref(&self.region.devices).cast(), 4) };
        let pages = words.iter().chain(&self.region.pages).chain(self.private);
        pages.flat_map(|page| &page.0).for_each(|word| word.store(0, Ordering::Relaxed));
        POOL.set(Some(Pool::new(self.region, layout::VIRTIO, self.private)));
    }

    /// Pages that hold a queue or a buffer.
    pub fn pages_in_use(&self) -> usize {
        Local::with(|pool| pool.pages_in_use()).unwrap()
    }

    /// Panics if four bytes of private memory are in the shared pages.
    pub fn assert_no_secret(&self) {
        let secret = u32::from_ne_bytes([SECRET; 4]);
        for (page, words) in self.region.pages.iter().enumerate() {
            for (index, word) in words.0.iter().enumerate() {
                let word = word.load(Ordering::Relaxed);
                assert!(
                    word as u32 != secret && (word >> 32) as u32 != secret,
                    "private bytes in page {page}, word {index}"
                );
            }
        }
    }
}

type Act = Rc<RefCell<dyn FnMut()>>;

/// Has somebody act as the host each time the partition gives way.
#[derive(Clone)]
pub struct Bell(Act);

impl Bell {
    /// Somebody.
    pub fn new(act: impl FnMut() + 'static) -> Self {
        Bell(Rc::new(RefCell::new(act)))
    }

    /// Honest devices.
    pub fn serving(devices: Devices) -> Self {
        let mut devices = devices;
        Bell::new(move || while devices.service().unwrap() {})
    }
}

impl Doorbell for Bell {
    fn ring(&self) {
        (self.0.borrow_mut())();
    }
}

/// A temporary file with contents; deleted at once, open as long as it is used.
pub fn file(contents: &[u8]) -> std::fs::File {
    use std::io::Write;
    use std::sync::atomic::AtomicU32;
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // In memory where there is such a folder: a flush on a disk takes long.
    let memory = std::path::PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let path = folder.join(format!("flexserve-virtio-{}-{number}", std::process::id()));
    let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file.write_all(contents).unwrap();
    file
}
