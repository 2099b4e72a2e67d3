//! Stage-2 tables, page ownership and Flex-Mem transitions.
//!
//! The host manages memory page by page, but cannot reach what it has given away. [`FlexMem`] is the ownership record and
//! the only writer of stage-2 tables: every transition is checked completely, then committed, and a commit cannot fail.
//! There is one lock around it in the hypervisor; `&mut FlexMem` is its witness.
//!
//! The host's stage-2 tree *is* the ownership record: an invalid entry holds the owner, its slot and the page's IPA in
//! that partition (as in pKVM), so that no array beside it can disagree with it, and an owner change is one store.
//!
//! | state | host tree | partition tree | who may access |
//! |---|---|---|---|
//! | host-owned | valid, RAM | - | host |
//! | pinned | as host-owned, and in a list of [`MAX_PINS`] | - | host, hypervisor |
//! | device | valid, device | - | host |
//! | partition's | invalid, owner = slot and IPA | valid | that partition |
//! | shared | valid, marked | valid, marked | that partition and the host |
//! | shared by the host | valid, loaned | borrowed | host, partitions that retrieved it |
//! | lent by the host | invalid, owner = lent | borrowed | partitions that retrieved it |
//! | shared by a partition | as partition's, or as shared | valid, loaned; borrowed | it, and those who retrieved it |
//! | lent by a partition | as partition's | invalid, loaned; borrowed | partitions that retrieved it |
//! | table | invalid, owner = hypervisor, from the host | - | hypervisor |
//! | hypervisor | invalid, owner = hypervisor | - | hypervisor |
//! | absent | 0 | - | nobody |
//!
//! On its way between two states a page is reachable only by those who may reach it in both; and the tables can be read at
//! any instant, also by a panic handler ([`FlexMem::scrub_all`]).
//!
//! A **loan** (FF-A memory sharing) is a list of a lender's pages in a page of the table pool, and who borrows them. Its pages
//! stay 4 KiB entries, so that relinquish, reclaim and destroy need no memory; a donation ends as pages of the partition.
//!
//! Format: 4 KiB granule, 40-bit IPA, T0SZ 24, SL0 1, two concatenated level-1 tables (Arm ARM D8), the same for the host,
//! for partitions and for the SMMU streams that will walk them. All costs are O(pages of the call) plus at most one scan
//! of a 512-entry table per page.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]
#![forbid(unsafe_code)]

#[macro_use]
mod knobs;

mod counters;
mod desc;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod flexmem;
mod loan_ends;
mod loans;
mod machine;
mod pool;
#[cfg(test)]
mod tests;
mod transitions;
mod types;
mod walk;
mod window;

pub use counters::{Census, Cost, Counters};
pub use flexmem::FlexMem;
#[cfg(any(test, feature = "fault-knobs"))]
pub use knobs::Knob;
pub use loans::Loan;
pub use machine::Machine;
pub use types::{
    Access, Error, Fill, HostMemory, Ipa, LoanId, LoanKind, Pa, PageRange, PageState, PartitionPage, Party,
    Slot,
};
pub use window::Window;

/// Bytes of a page (the stage-2 granule).
pub const PAGE_SIZE: u64 = 4096;
/// Addresses, physical and intermediate, are below 2 to this power (VTCR_EL2.T0SZ = 24).
pub const ADDRESS_BITS: u32 = 40;
/// Partitions' memory lies below 2 to this power, their devices above.
pub const PARTITION_BITS: u32 = 39;
/// The most partitions at a time.
pub const MAX_PARTITIONS: usize = 16;
/// The most pages that one call moves; longer work is the caller's loop.
pub const STEP_PAGES: u64 = 512;
/// The most pages that the host can have pinned at a time.
pub const MAX_PINS: usize = 8;
/// The most loans at a time.
pub const MAX_LOANS: usize = 64;
/// The most borrowers of a loan.
pub const MAX_BORROWERS: usize = 4;
/// Bytes from a tree's root to the one that its owner's streams walk.
pub const STREAM_ROOT: u64 = 2 * PAGE_SIZE;
/// VMID of the host; partition slot `n` has VMID `n + 2`.
pub const HOST_VMID: u16 = 1;
/// VMID of a tree that nothing walks ([`FlexMem::boot_unwalked`]).
pub(crate) const NO_VMID: u16 = 0;
