//! Memory that others walk: the roots and tables of stage 2, which CPUs and streams walk, and the SMMU's structures. The
//! SMMU reaches the normal world's memory only, and so does the host's CPU. At S-EL2 all of it therefore lies in the guard's
//! memory, which no stage 2 maps; at EL2 in the hypervisor's own.

use core::cell::UnsafeCell;
use core::sync::atomic::AtomicU64;
#[cfg(feature = "fault-knobs")]
use core::sync::atomic::Ordering;

use npu_passthrough::smmu::MAX_BUSES;
use stage2::MAX_PARTITIONS;

/// Table pages for the host's stage 2 at boot and for the first split.
const TABLES: usize = 128;
/// Bytes of secure RAM for private memory: what QEMU's `virt` machine has, less firmware's and ours.
pub const SECURE_SIZE: usize = 11 << 20;
/// Table pages for it: 8 of a partition with the project's image, and what says which pages are free.
const SECURE_TABLES: usize = 8 * MAX_PARTITIONS + SECURE_SIZE / (2 << 20) + 4;

/// Memory used by address only.
#[repr(C, align(4096))]
pub struct Pages<const N: usize>(UnsafeCell<[u8; N]>);

impl<const N: usize> Pages<N> {
    pub const fn zeroed() -> Self {
        Self(UnsafeCell::new([0; N]))
    }

    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// Addresses of runs of `page_count` pages.
    pub fn pages(&self, page_count: usize) -> impl Iterator<Item = u64> + use<N> {
        let base = self.address();
        (0..N / (4096 * page_count)).map(move |run| base + (run * 4096 * page_count) as u64)
    }
}

// SAFETY: used by address only: stacks by their own CPU, table pages by `stage2` under the global lock.
unsafe impl<const N: usize> Sync for Pages<N> {}

/// Roots of a stage-2 tree, for CPUs and for streams: each two concatenated level-1 tables.
#[repr(C, align(8192))]
pub struct Root(pub [AtomicU64; 2048]);

impl Root {
    const fn empty() -> Self {
        Self([const { AtomicU64::new(0) }; 2048])
    }

    pub fn address(&self) -> u64 {
        self as *const Self as u64
    }
}

/// The arena. One of it lies in the BSS of `hyp` and of `guard`.
#[repr(C, align(16384))]
pub struct Arena {
    /// Level-2 stream tables.
    pub(crate) bus_tables: Pages<{ MAX_BUSES * 16384 }>,
    pub(crate) host_root: Root,
    pub(crate) partition_roots: [Root; MAX_PARTITIONS],
    pub(crate) tables: Pages<{ 4096 * TABLES }>,
    /// Tables of the window of the NPU's registers.
    pub(crate) window_tables: Pages<8192>,
    pub(crate) stream_table: Pages<4096>,
    /// Commands and events of the SMMU.
    pub(crate) queues: Pages<8192>,
    /// The fault knobs that are on, by [`hyp_core::knob::bit`]: for the guard, too.
    #[cfg(feature = "fault-knobs")]
    pub(crate) knobs: AtomicU64,
}

/// RAM of the secure world for partitions' private memory, and what the CPU alone walks to it. It lies in the BSS of `spmc`.
#[repr(C, align(16384))]
pub struct SecureRam {
    /// Of partitions, by slot; [`SecureRam::NOBODY`]; [`SecureRam::FREE`].
    pub(crate) roots: [Root; MAX_PARTITIONS + 2],
    pub(crate) tables: Pages<{ 4096 * SECURE_TABLES }>,
    pub(crate) pages: Pages<SECURE_SIZE>,
}

impl SecureRam {
    /// The root that maps nothing: for the host's VMID, under which nobody runs in this world.
    pub(crate) const NOBODY: usize = MAX_PARTITIONS;
    /// The root of the tree that says what is free.
    pub(crate) const FREE: usize = MAX_PARTITIONS + 1;

    /// All zero: no table maps anything.
    pub const fn zeroed() -> Self {
        Self { roots: [const { Root::empty() }; _], tables: Pages::zeroed(), pages: Pages::zeroed() }
    }

    pub(crate) fn root(&self, index: usize) -> u64 {
        self.roots.get(index).map_or(0, Root::address)
    }
}

impl Arena {
    /// All zero: no table maps anything.
    pub const fn zeroed() -> Self {
        Self {
            bus_tables: Pages::zeroed(),
            host_root: Root::empty(),
            partition_roots: [const { Root::empty() }; MAX_PARTITIONS],
            tables: Pages::zeroed(),
            window_tables: Pages::zeroed(),
            stream_table: Pages::zeroed(),
            queues: Pages::zeroed(),
            #[cfg(feature = "fault-knobs")]
            knobs: AtomicU64::new(0),
        }
    }

    /// Whether a fault knob ([`hyp_core::knob`]) leaves a defence out: never in a shipped image.
    pub(crate) fn skips(&self, knob: u64) -> bool {
        #[cfg(feature = "fault-knobs")]
        return self.knobs.load(Ordering::Relaxed) & hyp_core::knob::bit(knob) != 0;
        #[cfg(not(feature = "fault-knobs"))]
        {
            let _ = knob;
            false
        }
    }
}
