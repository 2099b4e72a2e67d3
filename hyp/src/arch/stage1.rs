//! The hypervisor's own translation (EL2 stage 1): an identity map with W^X, nothing below the stacks, and only
//! the devices that it drives itself.

use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El23Attributes as Attributes, PhysicalAddress};
use aarch64_paging::paging::{Constraints, El2, MemoryRegion, PageTable, Translation};
use core::cell::UnsafeCell;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use hyp_abi::PAGE_SIZE;

use super::{STACK_STRIDE, secure};
use crate::platform::{MAX_CPUS, Range};

const TABLE_COUNT: usize = 64;

/// Attribute 0: device nGnRE; attribute 1: normal, write-back.
const MAIR: u64 = 0xff04;
/// 40-bit addresses (T0SZ 24), 4 KiB granule, walks inner-shareable write-back, 40-bit physical addresses; RES1 31, 23.
const TCR: u64 = 24 | 1 << 8 | 1 << 10 | 3 << 12 | 2 << 16 | 1 << 23 | 1 << 31;
/// MMU, caches, stack alignment check, writable implies execute-never, and RES1.
const SCTLR: u64 = 0x30c5_0830 | 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;
/// Bytes of address space: what [`TCR`] translates.
const ADDRESS_LIMIT: u64 = 1 << 40;

/// Memory with code.
const CODE: Attributes = NORMAL.union(Attributes::READ_ONLY);
/// Memory with constants.
const CONSTANTS: Attributes = NORMAL.union(Attributes::READ_ONLY).union(Attributes::XN);
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

/// Attributes of memory and devices of the normal world, which at S-EL2 is another than ours.
pub fn normal_world(attributes: Attributes) -> Attributes {
    if secure() { attributes | Attributes::NS } else { attributes }
}

macro_rules! symbol {
    ($name:ident) => {{
        unsafe extern "C" {
            static $name: u8;
        }
        &raw const $name as u64 // an address set by the linker; nothing is read
    }};
}

/// The image and what it occupies once it runs, from where it was loaded.
pub fn image(load_base: u64) -> Range {
    Range { base: load_base, size: symbol!(image_end) - load_base }
}

/// Our map, in use; it only grows. Further CPUs use it as they start.
pub struct Map(ManuallyDrop<Mapping<Identity, El2>>);

impl Map {
    /// Maps our image, and turns the map on for this CPU.
    ///
    /// # Safety
    /// Runs once, on the boot CPU, MMU off. The image lies at `load_base`.
    pub unsafe fn start(load_base: u64) -> Self {
        let mut map = Self(ManuallyDrop::new(Mapping::new(Identity, 0, El2)));
        let mut add = |from, to, attributes| map.add(Range { base: from, size: to - from }, attributes);
        add(load_base, symbol!(rodata_start), CODE);
        add(symbol!(rodata_start), symbol!(data_start), CONSTANTS);
        add(symbol!(data_start), symbol!(stacks_start), DATA);
        for cpu in 0..MAX_CPUS as u64 {
            let stack = symbol!(stacks_start) + cpu * STACK_STRIDE as u64;
            add(stack + PAGE_SIZE, stack + STACK_STRIDE as u64, DATA);
        }
        add(symbol!(stacks_end), symbol!(image_end), DATA);
        let root = map.0.root_address().0 as u64;
        // SAFETY: nobody else runs; enable_stage1 reads STAGE1 only after this. The map covers the code, data and stack in
        // use with fitting attributes.
        unsafe {
            (&raw mut STAGE1).cast::<u64>().write_volatile(root);
            enable_stage1();
        }
        map
    }

    /// Adds a range that is not mapped, or mapped with the same attributes.
    pub fn add(&mut self, range: Range, attributes: Attributes) {
        if range.size == 0 {
            return;
        }
        assert!(range.end() <= ADDRESS_LIMIT, "RAM or devices above {:#x}", range.end());
        let region = MemoryRegion::new(range.base as usize, range.end() as usize);
        let start = PhysicalAddress(range.base as usize);
        if let Err(error) = self.0.map_range(&region, start, attributes, Constraints::empty()) {
            panic!("stage 1: {range:x?}: {error:?}");
        }
        // SAFETY: barriers: the walker sees the new entries.
        unsafe { core::arch::asm!("dsb ish", "isb", options(nostack)) };
    }
}
