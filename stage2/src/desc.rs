//! Stage-2 descriptors (Arm ARM D8.3, VMSAv8-64, 4 KiB granule) and the owner records that invalid entries hold.
//!
//! Invalid entries of the host's tree: bits 3:1 kind of owner, bits 7:4 slot, bits 39:12 the page's IPA in that
//! partition; all zero is "absent". Invalid entries of a partition's tree: 0, or the old leaf without its valid bit:
//! during a recall, or with the mark "loaned" while the partition lends the page. Valid leaves: software bits, also IGNORED
//! by SMMUv3, mark pages shared by a partition with the host (55), in a loan of their owner's (56), borrowed (57).

use crate::walk::{self, ENTRIES, LAST_LEVEL};
use crate::{Access, HostMemory, Ipa, Pa, Slot};

const VALID: u64 = 1;
/// With VALID: a table at levels 1 and 2, a page at level 3. Without it: a block.
const TABLE_OR_PAGE: u64 = 2;
const ADDRESS: u64 = ((1 << crate::ADDRESS_BITS) - 1) & !(crate::PAGE_SIZE - 1);
const NORMAL_WRITE_BACK: u64 = 0xf << 2;
const DEVICE_NGNRE: u64 = 0x1 << 2;
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
/// XN[1:0] = 0b10: neither EL1 nor EL0 executes.
const EXECUTE_NEVER: u64 = 1 << 54;
const SHARED: u64 = 1 << 55;
const LOANED: u64 = 1 << 56;
const BORROWED: u64 = 1 << 57;

const OWNER_KIND: u64 = 7 << 1;
const OWNER_HYPERVISOR: u64 = 1 << 1;
const OWNER_TABLE: u64 = 2 << 1;
const OWNER_PARTITION: u64 = 3 << 1;
const OWNER_LENT: u64 = 4 << 1;
const SLOT_SHIFT: u32 = 4;

/// One entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Desc(pub u64);

impl Desc {
    /// Nobody's.
    pub const ABSENT: Self = Self(0);
    /// The hypervisor's own memory (host tree).
    pub const HYPERVISOR: Self = Self(OWNER_HYPERVISOR);
    /// A table page that the host gave (host tree).
    pub const TABLE_PAGE: Self = Self(OWNER_TABLE);
    /// A page that the host lends or donates (host tree).
    pub const LENT: Self = Self(OWNER_LENT);

    /// A leaf of the host's identity map.
    pub fn host(address: u64, level: u8, kind: HostMemory) -> Self {
        let attributes = match kind {
            HostMemory::Ram => NORMAL_WRITE_BACK | INNER_SHAREABLE | READ | WRITE | ACCESSED,
            HostMemory::Device => DEVICE_NGNRE | READ | WRITE | ACCESSED | EXECUTE_NEVER,
        };
        Self::leaf(address, level, attributes)
    }

    /// A page of a partition that it shares, in the host's tree.
    pub fn host_shared(address: u64) -> Self {
        Self(Self::host(address, LAST_LEVEL, HostMemory::Ram).0 | EXECUTE_NEVER | SHARED)
    }

    /// A page that the host shares, in the host's tree.
    pub fn host_loaned(address: u64) -> Self {
        Self::host(address, LAST_LEVEL, HostMemory::Ram).with_loaned(true)
    }

    /// A page that a partition borrows, in its tree.
    pub fn borrowed(address: u64, access: Access) -> Self {
        Self(Self::partition(address, access).0 | BORROWED)
    }

    /// A page in a partition's tree.
    pub fn partition(address: u64, access: Access) -> Self {
        let rights = match access {
            Access::Read => READ | EXECUTE_NEVER,
            Access::ReadWrite => READ | WRITE | EXECUTE_NEVER,
            Access::ReadExecute => READ,
        };
        Self::leaf(address, LAST_LEVEL, NORMAL_WRITE_BACK | INNER_SHAREABLE | ACCESSED | rights)
    }

    fn leaf(address: u64, level: u8, attributes: u64) -> Self {
        let kind = if level == LAST_LEVEL { TABLE_OR_PAGE } else { 0 };
        Self((address & ADDRESS) | attributes | kind | VALID)
    }

    /// A pointer to the next table.
    pub fn table(table: Pa) -> Self {
        Self((table.0 & ADDRESS) | TABLE_OR_PAGE | VALID)
    }

    /// The record that a page is a partition's (host tree).
    pub fn owner(slot: Slot, ipa: u64) -> Self {
        Self((ipa & ADDRESS) | (slot.index() as u64) << SLOT_SHIFT | OWNER_PARTITION)
    }

    /// The same leaf, with or without the mark that it is shared.
    pub fn with_shared(self, shared: bool) -> Self {
        Self(if shared { self.0 | SHARED } else { self.0 & !SHARED })
    }

    /// The same leaf, with or without the mark that it is in a loan.
    pub fn with_loaned(self, loaned: bool) -> Self {
        Self(if loaned { self.0 | LOANED } else { self.0 & !LOANED })
    }

    /// A detached leaf, valid again.
    pub fn attached(self) -> Self {
        Self(self.0 | VALID)
    }

    /// A leaf on its way out of a partition's tree: no longer valid, its address kept.
    pub fn detached(self) -> Self {
        Self(self.0 & !VALID)
    }

    pub fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    pub fn is_table(self, level: u8) -> bool {
        level < LAST_LEVEL && self.0 & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE
    }

    pub fn is_leaf(self, level: u8) -> bool {
        self.is_valid() && !self.is_table(level)
    }

    pub fn is_shared(self) -> bool {
        self.is_valid() && self.0 & SHARED != 0
    }

    /// Partition tree: see [`Self::detached`]; not a page that the partition lends.
    pub fn is_detached(self) -> bool {
        !self.is_valid() && self != Self::ABSENT && !self.is_loaned()
    }

    /// In a loan of its owner's: shared by the host (its tree), shared or lent by the partition (that one's tree).
    pub fn is_loaned(self) -> bool {
        self.0 & LOANED != 0
    }

    /// Partition tree: somebody else's.
    pub fn is_borrowed(self) -> bool {
        self.is_valid() && self.0 & BORROWED != 0
    }

    /// Partition tree: a page of the partition's own that it can reach.
    pub fn is_own(self) -> bool {
        self.is_valid() && !self.is_borrowed()
    }

    /// Host tree: plain RAM of the host's alone.
    pub fn is_host_ram(self) -> bool {
        self.is_valid() && self.0 & (SHARED | LOANED) == 0 && self.0 & NORMAL_WRITE_BACK == NORMAL_WRITE_BACK
    }

    /// Host tree: device registers.
    pub fn is_device(self) -> bool {
        self.is_valid() && self.0 & NORMAL_WRITE_BACK != NORMAL_WRITE_BACK
    }

    /// Host tree: the partition's slot and IPA.
    pub fn as_owner(self) -> Option<(Slot, Ipa)> {
        let slot = Slot::new((self.0 >> SLOT_SHIFT) as usize & 0xf)?;
        let is_owner = !self.is_valid() && self.0 & OWNER_KIND == OWNER_PARTITION;
        is_owner.then_some((slot, Ipa(self.0 & ADDRESS)))
    }

    /// Output address of a leaf (detached ones too), next table of a table, IPA of an owner record.
    pub fn address(self) -> u64 {
        self.0 & ADDRESS
    }

    /// Partition tree: what a leaf allows.
    pub fn access(self) -> Access {
        match (self.0 & WRITE != 0, self.0 & EXECUTE_NEVER != 0) {
            (true, _) => Access::ReadWrite,
            (false, true) => Access::Read,
            (false, false) => Access::ReadExecute,
        }
    }

    /// The table that a split of this entry of `level` makes: its first entry, and what each next one adds.
    pub fn children(self, level: u8) -> Children {
        let kind = if self.is_valid() && level + 1 == LAST_LEVEL { TABLE_OR_PAGE } else { 0 };
        let has_address = self.is_valid() || self.as_owner().is_some();
        Children { first: self.0 | kind, step: if has_address { walk::size(level + 1) } else { 0 } }
    }

    /// The entry of `level` whose split makes a table that starts with this entry, if there may be one.
    pub fn whole(self, level: u8) -> Option<Self> {
        // Shared, loaned and table pages leave one by one, without table memory: they stay pages.
        let marked = self.0 & (SHARED | LOANED | BORROWED) != 0;
        let stays_page = self.is_table(level + 1) || marked || self == Self::TABLE_PAGE || self == Self::LENT;
        let aligned = self.address().is_multiple_of(walk::size(level));
        let whole = if self.is_valid() { Self(self.0 & !TABLE_OR_PAGE) } else { self };
        (!stays_page && aligned).then_some(whole)
    }
}

/// A table whose entries make one.
#[derive(Clone, Copy)]
pub(crate) struct Children {
    first: u64,
    step: u64,
}

impl Children {
    /// Entry `index`, below [`ENTRIES`].
    pub fn at(self, index: usize) -> Desc {
        Desc(self.first.wrapping_add(self.step.wrapping_mul(index as u64)))
    }
}

const _: () = assert!(ENTRIES == 512 && crate::MAX_PARTITIONS == 16);
