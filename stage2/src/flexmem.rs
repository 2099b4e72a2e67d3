//! The ownership record: boot, look-ups, pins. Transitions are in `transitions.rs`.

use crate::{
    Access, Census, Counters, Error, Fill, HostMemory, Ipa, MAX_PARTITIONS, Machine, Pa, PageRange,
    PageState, PartitionPage, Slot,
};

/// Ownership of all memory, and the stage-2 tables that enforce it.
pub struct FlexMem {}

#[allow(unused_variables)]
impl FlexMem {
    /// Starts with nothing mapped. `host_root` and `partition_roots` are 8 KiB each, 8 KiB aligned, in hypervisor memory;
    /// the host's must be zero. `reserve` table pages are kept for [`Self::host_give_tables`] alone, which then cannot
    /// fail for lack of tables: GiB of host RAM, plus 2.
    pub const fn new(host_root: Pa, partition_roots: [Pa; MAX_PARTITIONS], reserve: u64) -> Self {
        Self {}
    }
    /// Boot: adds a page of hypervisor memory to the table pool. Zeroes it.
    pub fn boot_donate_table<M: Machine>(&mut self, m: &mut M, page: Pa) -> Result<(), Error> {
        Err(Error::Corrupted)
    }
    /// Boot: maps `[base, base + size)` for the host, identity, by largest blocks. Must be absent before.
    pub fn boot_map_host<M: Machine>(
        &mut self,
        m: &mut M,
        base: Pa,
        size: u64,
        kind: HostMemory,
    ) -> Result<(), Error> {
        Err(Error::Corrupted)
    }
    /// Boot: records `[base, base + size)` as the hypervisor's. Optional (absent is refused all the same).
    pub fn boot_reserve<M: Machine>(&mut self, m: &mut M, base: Pa, size: u64) -> Result<(), Error> {
        Err(Error::Corrupted)
    }
    /// Host: donates pages for tables. All or nothing, at most 512. Returns the pages taken.
    pub fn host_give_tables<M: Machine>(&mut self, m: &mut M, ranges: &[PageRange]) -> Result<u64, Error> {
        Err(Error::Corrupted)
    }
    /// Host: takes back free table pages that it gave, zeroed, at most `max_pages` and as many as `out` holds.
    /// Returns (ranges written, pages). 0 pages: nothing more to take now.
    pub fn host_recall_tables<M: Machine>(
        &mut self,
        m: &mut M,
        out: &mut [PageRange],
        max_pages: u64,
    ) -> Result<(usize, u64), Error> {
        Err(Error::Corrupted)
    }
    /// Makes an empty partition.
    pub fn partition_create<M: Machine>(&mut self, m: &mut M, slot: Slot) -> Result<(), Error> {
        Err(Error::Corrupted)
    }
    /// Gives pages of the host to a partition at ascending IPAs from `ipa` on. All or nothing, at most 512 pages.
    pub fn host_give_partition<M: Machine>(
        &mut self,
        m: &mut M,
        slot: Slot,
        ranges: &[PageRange],
        ipa: Ipa,
        access: Access,
        fill: Fill,
    ) -> Result<u64, Error> {
        Err(Error::Corrupted)
    }
    /// Partition: shares one of its read-write pages with the host.
    pub fn partition_share_host<M: Machine>(&mut self, m: &mut M, slot: Slot, ipa: Ipa) -> Result<(), Error> {
        Err(Error::Corrupted)
    }
    /// Partition: takes a shared page back; it is zeroed.
    pub fn partition_unshare_host<M: Machine>(
        &mut self,
        m: &mut M,
        slot: Slot,
        ipa: Ipa,
    ) -> Result<(), Error> {
        Err(Error::Corrupted)
    }
    /// Host: takes pages of a partition back, scrubbed. All or nothing, at most 512; every page must be there. The caller
    /// makes sure that no vCPU of the partition runs. Never needs table memory.
    pub fn host_recall_partition<M: Machine>(
        &mut self,
        m: &mut M,
        slot: Slot,
        ipa: Ipa,
        page_count: u64,
    ) -> Result<u64, Error> {
        Err(Error::Corrupted)
    }
    /// Ends a partition a step at a time: returns up to `max_pages` (at most 512) pages to the host, scrubbed. Returns the
    /// pages that remain; at 0 the slot is free. From the first step on the partition accepts nothing else. Never needs
    /// table memory.
    pub fn partition_destroy<M: Machine>(
        &mut self,
        m: &mut M,
        slot: Slot,
        max_pages: u64,
    ) -> Result<u64, Error> {
        Err(Error::Corrupted)
    }
    /// The page that a partition has at `ipa` (rounded down to a page).
    pub fn partition_page<M: Machine>(&self, m: &M, slot: Slot, ipa: Ipa) -> Option<PartitionPage> {
        None
    }
    /// The first page that a partition has at or above `from`.
    pub fn next_partition_page<M: Machine>(&self, m: &M, slot: Slot, from: Ipa) -> Option<PartitionPage> {
        None
    }
    /// Root of a partition's tree, for VTTBR_EL2 and the SMMU.
    pub fn partition_root(&self, slot: Slot) -> Result<Pa, Error> {
        Err(Error::NoSuchPartition)
    }
    /// Pages that a partition owns now.
    pub fn partition_page_count(&self, slot: Slot) -> u64 {
        0
    }
    /// Pages that a partition shares with the host now.
    pub fn partition_shared_count(&self, slot: Slot) -> u64 {
        0
    }
    /// Who owns the page that holds `pa`.
    pub fn host_state<M: Machine>(&self, m: &M, pa: Pa) -> PageState {
        PageState::Absent
    }
    /// Whether every byte of `[base, base + len)` is RAM of the host's alone (pinned or not). False beyond 512 pages.
    pub fn host_owns<M: Machine>(&self, m: &M, base: Pa, len: u64) -> bool {
        false
    }
    /// Keeps a page of the host's alone from being given away (a mailbox).
    pub fn host_pin<M: Machine>(&mut self, m: &M, page: Pa) -> Result<(), Error> {
        Err(Error::Corrupted)
    }
    /// Ends [`Self::host_pin`].
    pub fn host_unpin(&mut self, page: Pa) -> Result<(), Error> {
        Err(Error::Corrupted)
    }
    /// Zeroes every page that a partition owns or shares, before a reset or on panic. Tables stay as they are.
    pub fn scrub_all<M: Machine>(&self, m: &mut M) {}
    /// How memory is mapped now.
    pub fn census(&self) -> Census {
        Census::default()
    }
    /// What happened since boot.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
}
