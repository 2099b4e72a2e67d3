//! The hypervisor's own translation (EL2 stage 1): an identity map with W^X, nothing below the stacks, and only
//! the devices that it drives itself.

use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El23Attributes as Attributes, PhysicalAddress};
use aarch64_paging::paging::{Constraints, El2, MemoryRegion, PageTable, Translation};
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::platform::Range;

const TABLE_COUNT: usize = 64;

/// Attribute 0: device nGnRE; attribute 1: normal, write-back.
const MAIR: u64 = 0xff04;
/// 40-bit addresses (T0SZ 24), 4 KiB granule, walks inner-shareable write-back, 40-bit physical addresses; RES1 31, 23.
const TCR: u64 = 24 | 1 << 8 | 1 << 10 | 3 << 12 | 2 << 16 | 1 << 23 | 1 << 31;
/// MMU, caches, stack alignment check, writable implies execute-never, and RES1.
const SCTLR: u64 = 0x30c5_0830 | 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;
/// Bytes of address space: what [`TCR`] translates.
pub const ADDRESS_LIMIT: u64 = 1 << 40;

/// Memory with code.
pub const CODE: Attributes = NORMAL.union(Attributes::READ_ONLY);
/// Memory with constants.
pub const CONSTANTS: Attributes = NORMAL.union(Attributes::READ_ONLY).union(Attributes::XN);
/// Memory with data.
pub const DATA: Attributes = NORMAL.union(Attributes::XN);
/// Device registers.
pub const DEVICE: Attributes = Attributes::VALID
    .union(Attributes::ACCESSED)
    .union(Attributes::USER_RES1)
    .union(Attributes::ATTRIBUTE_INDEX_0)
    .union(Attributes::XN);
const NORMAL: Attributes = Attributes::VALID
    .union(Attributes::ACCESSED)
    .union(Attributes::USER_RES1)
    .union(Attributes::ATTRIBUTE_INDEX_1)
    .union(Attributes::INNER_SHAREABLE);

struct Pool(UnsafeCell<[PageTable<Attributes>; TABLE_COUNT]>);

// SAFETY: tables are handed out once each, by an atomic counter, and only while the boot CPU runs alone.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new([PageTable::EMPTY; TABLE_COUNT]));
static USED: AtomicUsize = AtomicUsize::new(0);

/// Identity translation whose tables come from [`POOL`].
struct Identity;

impl Translation<Attributes> for Identity {
    fn allocate_table(&mut self) -> (NonNull<PageTable<Attributes>>, PhysicalAddress) {
        let index = USED.fetch_add(1, Ordering::Relaxed);
        assert!(index < TABLE_COUNT, "the platform has too many memory ranges for the hypervisor's own map");
        // SAFETY: index is inside the pool and was handed to nobody else.
        let table =
            unsafe { NonNull::new_unchecked(POOL.0.get().cast::<PageTable<Attributes>>().add(index)) };
        (table, PhysicalAddress(table.as_ptr() as usize))
    }

    unsafe fn deallocate_table(&mut self, _table: NonNull<PageTable<Attributes>>) {
        // The map is made once; a table that becomes free while it is made stays unused.
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<Attributes>> {
        NonNull::new(pa.0 as *mut PageTable<Attributes>).unwrap_or(NonNull::dangling())
    }
}

/// Values for `enable_stage1` in boot.s: root, MAIR, TCR, SCTLR.
#[unsafe(no_mangle)]
static mut STAGE1: [u64; 4] = [0, MAIR, TCR, SCTLR];

unsafe extern "C" {
    fn enable_stage1();
}

/// Builds the map from `parts` and turns it on for this CPU; the others follow as they start.
///
/// # Safety
/// Runs once, on the boot CPU, MMU off. The parts must cover the code, data and stack in use with fitting attributes.
pub unsafe fn build_and_enable(parts: &[(Range, Attributes)]) {
    let mut map = Mapping::new(Identity, 0, El2);
    for (range, attributes) in parts {
        let region = MemoryRegion::new(range.base as usize, range.end() as usize);
        let result =
            map.map_range(&region, PhysicalAddress(range.base as usize), *attributes, Constraints::empty());
        if let Err(error) = result {
            panic!("stage 1: {range:x?}: {error:?}");
        }
    }
    let root = map.root_address().0 as u64;
    // The map is in use from here on, for ever.
    core::mem::forget(map);
    // SAFETY: nobody else runs; enable_stage1 reads STAGE1 only after this. The caller vouches for the map.
    unsafe {
        (&raw mut STAGE1).cast::<u64>().write_volatile(root);
        enable_stage1();
    }
}
