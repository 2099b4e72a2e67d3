//! Where things lie in the partition, and the manifest that says so.

use guest_abi::session::SESSION_PAGES;
use guest_abi::virtio::VIRTIO_PAGES;
use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::{self, MAX_REGIONS, Manifest, Region, access, kind, layout};

/// Bytes of each of the three windows of the image: code, read-only data, data with the stack. `link.ld` says the same.
pub const WINDOW_SIZE: u64 = 4 << 20;
/// vCPUs of an image. Only the first is started by the hypervisor, and all work is done if the host runs no other.
pub const VCPU_COUNT: usize = 4;
/// IPA of the code.
pub const TEXT: u64 = layout::IMAGE;
/// IPA of the read-only data.
pub const RODATA: u64 = TEXT + WINDOW_SIZE;
/// IPA of the stack and the data.
pub const DATA: u64 = RODATA + WINDOW_SIZE;
/// Most bytes of the heap: what lies below the session.
pub const HEAP_MAX: u64 = layout::SESSION - layout::HEAP;
/// Most bytes of the model file.
pub const MODEL_MAX: u64 = 64 << 30;

/// Most bytes that are borrowed at a time.
pub const BORROWED_MAX: u64 = 64 << 20;

/// Where the GiB is mapped in which the NPU's registers are.
pub const NPU: u64 = 0x40_0000_0000;
/// IPA of that GiB: the first behind all memory.
pub const NPU_IPA: u64 = manifest::IPA_LIMIT;
/// Bytes of it.
pub const NPU_SIZE: u64 = 1 << 30;

/// Positions of the regions in the manifest, for the REGION operation.
pub mod region {
    /// Heap.
    pub const HEAP: u64 = 3;
    /// Session pages.
    pub const SESSION: u64 = 4;
    /// Virtio pages.
    pub const VIRTIO: u64 = 5;
    /// Model file.
    pub const MODEL: u64 = 6;
    /// What is borrowed.
    pub const BORROWED: u64 = 7;
}

const fn of(ipa: u64, size: u64, kind: u32, access: u32) -> Region {
    Region { ipa, page_count: size / PAGE_SIZE, kind, access }
}

/// The manifest of an image called `name` (zero-padded ASCII). It is the same for all models: sizes are upper bounds.
pub const fn manifest(name: [u8; 16]) -> Manifest {
    let mut regions = [of(0, 0, kind::NONE, 0); MAX_REGIONS];
    regions[0] = of(TEXT, WINDOW_SIZE, kind::IMAGE, access::READ | access::EXECUTE);
    regions[1] = of(RODATA, WINDOW_SIZE, kind::IMAGE, access::READ);
    regions[2] = of(DATA, WINDOW_SIZE, kind::IMAGE, access::READ | access::WRITE);
    regions[region::HEAP as usize] = of(layout::HEAP, HEAP_MAX, kind::ZERO, access::READ | access::WRITE);
    regions[region::SESSION as usize] =
        of(layout::SESSION, SESSION_PAGES * PAGE_SIZE, kind::SHARED, access::READ | access::WRITE);
    regions[region::VIRTIO as usize] =
        of(layout::VIRTIO, VIRTIO_PAGES * PAGE_SIZE, kind::SHARED, access::READ | access::WRITE);
    regions[region::MODEL as usize] = of(layout::MODEL, MODEL_MAX, kind::MODEL, access::READ);
    regions[region::BORROWED as usize] =
        of(layout::BORROWED, BORROWED_MAX, kind::BORROWED, access::READ | access::WRITE);
    Manifest {
        magic: manifest::MAGIC,
        version: manifest::VERSION,
        vcpu_count: VCPU_COUNT as u32,
        entry: TEXT,
        region_count: 8,
        reserved: 0,
        name,
        regions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_keep_the_rules_of_the_manifest() {
        let manifest = manifest(*b"test\0\0\0\0\0\0\0\0\0\0\0\0");
        let (used, unused) = manifest.regions.split_at(manifest.region_count as usize);
        assert!(unused.iter().all(|region| *region == Region::default()));
        for region in used {
            assert_eq!(region.ipa % PAGE_SIZE, 0);
            assert!(
                region.page_count > 0 && region.ipa + region.page_count * PAGE_SIZE <= manifest::IPA_LIMIT
            );
            assert_ne!(region.access & (access::WRITE | access::EXECUTE), access::WRITE | access::EXECUTE);
        }
        for pair in used.windows(2) {
            assert!(pair[0].ipa + pair[0].page_count * PAGE_SIZE <= pair[1].ipa);
        }
        assert!(used.iter().any(|region| {
            region.access & access::EXECUTE != 0
                && (region.ipa..region.ipa + region.page_count * PAGE_SIZE).contains(&manifest.entry)
        }));
        assert_eq!(used[region::HEAP as usize].ipa, layout::HEAP);
        assert_eq!(used[region::SESSION as usize].kind, kind::SHARED);
        assert_eq!(used[region::VIRTIO as usize].ipa, layout::VIRTIO);
        assert_eq!(used[region::MODEL as usize].kind, kind::MODEL);
        assert_eq!(used[region::BORROWED as usize].kind, kind::BORROWED);
    }
}
