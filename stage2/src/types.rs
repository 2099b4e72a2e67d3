//! Addresses, ranges, states and errors.

use crate::{ADDRESS_BITS, HOST_VMID, MAX_PARTITIONS, PAGE_SIZE};

/// A physical address; the host's IPA is equal to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pa(pub u64);

/// An intermediate physical address of a partition, or of the host where it is equal to the physical address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipa(pub u64);

/// A checked run of physically contiguous pages: aligned, not wrapping, below 2^40.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PageRange {
    base: Pa,
    page_count: u64,
}

impl PageRange {
    /// No pages: fills a buffer before it is written. Transitions refuse it.
    pub const EMPTY: Self = Self { base: Pa(0), page_count: 0 };

    /// Checks a range that somebody else claims. `page_count` is at least 1.
    pub fn new(base: Pa, page_count: u64) -> Result<Self, Error> {
        if !base.0.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Unaligned);
        }
        let end = page_count.checked_mul(PAGE_SIZE).and_then(|size| base.0.checked_add(size));
        match end {
            Some(end) if page_count > 0 && end <= 1 << ADDRESS_BITS => Ok(Self { base, page_count }),
            _ => Err(Error::InvalidRange),
        }
    }

    /// Address of the first page.
    pub fn base(&self) -> Pa {
        self.base
    }

    /// Pages.
    pub fn page_count(&self) -> u64 {
        self.page_count
    }

    /// Address past the last page.
    pub fn end(&self) -> Pa {
        Pa(self.base.0 + self.page_count * PAGE_SIZE)
    }

    /// The pages' addresses, ascending.
    pub fn pages(&self) -> impl Iterator<Item = Pa> + use<> {
        let base = self.base.0;
        (0..self.page_count).map(move |i| Pa(base + i * PAGE_SIZE))
    }

    /// Adds a page at either end, if it is adjacent.
    pub(crate) fn extend(&mut self, page: Pa) -> bool {
        let above = page == self.end();
        let below = page.0 + PAGE_SIZE == self.base.0;
        if below {
            self.base = page;
        }
        self.page_count += u64::from(above || below);
        above || below
    }
}

/// Index of a partition, below [`MAX_PARTITIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

impl Slot {
    /// Checks an index.
    pub fn new(index: usize) -> Option<Self> {
        if index < MAX_PARTITIONS { Some(Self(index as u8)) } else { None }
    }

    /// All slots, ascending.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..MAX_PARTITIONS).filter_map(Self::new)
    }

    /// The index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// VMID of the partition in this slot.
    pub fn vmid(self) -> u16 {
        HOST_VMID + 1 + u16::from(self.0)
    }
}

/// What a partition may do with a page (W^X: never write and execute).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
    /// Read and execute.
    ReadExecute,
}

/// What happens to a page's contents on give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fill {
    /// The partition finds zeroes.
    Zero,
    /// The partition finds the host's bytes, which the host can no longer change: to be measured before use.
    Keep,
}

/// Kinds of memory in the host's identity map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostMemory {
    /// RAM: write-back, inner shareable, read, write, execute.
    Ram,
    /// Device registers: Device-nGnRE, never executed, never given away.
    Device,
}

/// Who owns a page now (the crate's documentation says what each state means).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageState {
    /// The host's alone.
    HostOwned,
    /// The host's, and in use by the hypervisor (a mailbox): cannot be given away.
    HostPinned,
    /// A device that the host drives.
    HostDevice,
    /// The host's, which shares it with partitions.
    HostShared,
    /// The host's, which lends or donates it: nobody's, or a partition's that borrows it.
    HostLent,
    /// A partition's that it shares with the host.
    Shared,
    /// A partition's alone.
    Partition {
        /// The partition.
        slot: Slot,
        /// Where the partition sees the page.
        ipa: Ipa,
    },
    /// A table page that the host gave.
    Table,
    /// The hypervisor's.
    Hypervisor,
    /// Nobody's: not in the host's map.
    Absent,
}

/// A page of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PartitionPage {
    /// Where the partition sees it.
    pub ipa: Ipa,
    /// Where it lies.
    pub pa: Pa,
    /// What the partition may do with it.
    pub access: Access,
    /// Whether the partition shares it with the host.
    pub shared: bool,
    /// Whether it is in a loan of the partition's.
    pub loaned: bool,
    /// Whether it is not the partition's but in somebody else's loan.
    pub borrowed: bool,
}

/// Who lends or borrows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// The host.
    Host,
    /// A partition.
    Partition(Slot),
}

/// What a lender keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoanKind {
    /// Ownership and access.
    Share,
    /// Ownership.
    Lend,
    /// Nothing, once it is retrieved. Only the host donates.
    Donate,
}

/// Index of a loan, below [`crate::MAX_LOANS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoanId(pub(crate) u8);

impl LoanId {
    /// Checks an index.
    pub fn new(index: usize) -> Option<Self> {
        if index < crate::MAX_LOANS { Some(Self(index as u8)) } else { None }
    }

    /// The index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Why a call was refused. Unless said otherwise the caller is at fault, and nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Error {
    /// A range is empty, wraps, or reaches 2^40.
    InvalidRange,
    /// An address is not a multiple of the page size.
    Unaligned,
    /// More than [`crate::STEP_PAGES`] pages in one call.
    TooMany,
    /// The same page twice in one call.
    Overlap {
        /// The page.
        pa: Pa,
    },
    /// The page is not the host's alone: absent, the hypervisor's, or a partition's.
    NotHostOwned {
        /// The page.
        pa: Pa,
    },
    /// The page is a device's registers.
    NotRam {
        /// The page.
        pa: Pa,
    },
    /// The page is pinned (a mailbox).
    Pinned {
        /// The page.
        pa: Pa,
    },
    /// The page is not pinned.
    NotPinned {
        /// The page.
        pa: Pa,
    },
    /// [`crate::MAX_PINS`] pages are pinned already.
    TooManyPins,
    /// The partition has a page there already.
    IpaTaken {
        /// Where.
        ipa: Ipa,
    },
    /// The pages would reach 2^40 in the partition.
    IpaOutOfRange,
    /// The partition has no page there.
    NotGiven {
        /// Where.
        ipa: Ipa,
    },
    /// Only pages with [`Access::ReadWrite`] can be shared: the host must not write what the partition executes or trusts.
    NotShareable {
        /// Where.
        ipa: Ipa,
    },
    /// The page is shared already.
    AlreadyShared {
        /// Where.
        ipa: Ipa,
    },
    /// The page is not shared.
    NotShared {
        /// Where.
        ipa: Ipa,
    },
    /// The page is in a loan already, or borrowed.
    Loaned {
        /// Where.
        ipa: Ipa,
    },
    /// [`crate::MAX_LOANS`] loans exist already.
    TooManyLoans,
    /// No such loan, or not in a state for this.
    NoSuchLoan,
    /// The borrower has it already, or its lender is the borrower, or nobody else can borrow it.
    NotRetrievable,
    /// The borrower does not have it.
    NotBorrowed,
    /// Somebody still has it.
    Borrowed,
    /// Too few table pages, nobody's fault. The call succeeds when repeated after `host_give_tables` with `needed` pages
    /// in physically contiguous runs of up to 512 (scattered pages cost a table each to take out of the host's blocks).
    NoTables {
        /// Pages to bring.
        needed: u64,
    },
    /// No partition in this slot.
    NoSuchPartition,
    /// A partition is in this slot already.
    SlotTaken,
    /// The partition is being destroyed.
    Busy,
    /// The hypervisor's own records disagree: our bug. Nothing was exposed; pages may stay out of the host's reach.
    Corrupted,
}
