//! What the machine does for this crate.

use crate::{Ipa, Pa};

/// Memory, TLBs and caches as seen by the hypervisor. Implemented by its arch layer, and by [`crate::fake::FakeMachine`].
///
/// The pages passed in are tables of this crate or pages that it took from their owner; all lie below 2^40, and the
/// implementation maps them as normal write-back memory, inner shareable.
pub trait Machine {
    /// Reads entry `index` of the table at `table` (below 1024 in a root, 512 elsewhere). One 64-bit load.
    fn load(&self, table: Pa, index: usize) -> u64;

    /// Writes one entry: a single 64-bit store, observed by table walkers after all earlier ones (STLR, or DMB ISHST before
    /// it) and before any later `tlbi_*` takes effect (which therefore starts with DSB ISHST). A walker that sees a new
    /// valid entry late takes a fault, and the handler finds the page in the records and retries.
    fn store(&mut self, table: Pa, index: usize, descriptor: u64);

    /// In the SMMU, for streams of that VMID (CMD_TLBI_S2_IPA or CMD_TLBI_S12_VMALL, CMD_SYNC); and on all cores:
    /// forgets `page_count` pages from `ipa` on in stage 2 of `vmid`, walk caches of every level included (IPAS2E1IS or
    /// RIPAS2E1IS, not the last-level forms), on all cores; DSB; then the stage-1 entries of that VMID that were combined
    /// with them (VMALLE1IS under it); DSB ISH, ISB. Complete on return. A large range may be done as [`Self::tlbi_vmid`].
    fn tlbi_pages(&mut self, vmid: u16, ipa: Ipa, page_count: u64);

    /// Forgets all of `vmid`, both stages, in the SMMU and on all cores (VMALLS12E1IS under it). Complete on return.
    fn tlbi_vmid(&mut self, vmid: u16);

    /// Zeroes one page through the cacheable mapping; the zeroes need not have reached memory on return.
    fn zero(&mut self, page: Pa);

    /// Cleans and invalidates one page to the point of coherency (DC CIVAC, DSB): no attribute or alias shows older bytes.
    fn clean(&mut self, page: Pa);

    /// Makes instruction fetch see the page's bytes (after `clean`: IC IALLUIS or IC IVAU, DSB, ISB).
    fn sync_icache(&mut self, page: Pa);

    /// Reads a counter for cost accounting (the system counter; instructions under QEMU's `-icount`).
    fn ticks(&self) -> u64;
}
