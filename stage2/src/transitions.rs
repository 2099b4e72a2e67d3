//! Transitions. Each checks everything, then commits; a commit has all it needs and cannot fail (an error in it says that
//! the records were corrupt).
//!
//! Give: out of the host's tree (its entry becomes the owner record), invalidate, scrub, into the partition's tree.
//! Recall: out of the partition's tree (and of the host's, if shared), invalidate, scrub, into the host's tree. The scrub
//! comes after the invalidation, so that nobody can write behind it.

use crate::counters::{Meter, Part};
use crate::desc::Desc;
use crate::flexmem::State;
use crate::walk::{self, LAST_LEVEL, PARTITION_END, Place, Tree};
use crate::{
    Access, Error, Fill, FlexMem, HostMemory, Ipa, Machine, PAGE_SIZE, Pa, PageRange, STEP_PAGES, Slot,
};

/// Ranges of a call in ascending order, at most 512 pages, none twice.
struct Sorted<'a> {
    ranges: &'a [PageRange],
    order: [u16; STEP_PAGES as usize],
    page_count: u64,
}

impl<'a> Sorted<'a> {
    fn new(ranges: &'a [PageRange], overlap_allowed: bool) -> Result<Self, Error> {
        let mut page_count = 0;
        for range in ranges {
            page_count += range.page_count();
            if range.page_count() == 0 {
                return Err(Error::InvalidRange);
            }
            // At most 512 rounds: each range has a page.
            if page_count > STEP_PAGES {
                return Err(Error::TooMany);
            }
        }
        if page_count == 0 {
            return Err(Error::InvalidRange);
        }
        let mut sorted = Self { ranges, order: core::array::from_fn(|i| i as u16), page_count };
        if let Some(order) = sorted.order.get_mut(..ranges.len()) {
            order.sort_unstable_by_key(|&i| ranges.get(usize::from(i)).map(PageRange::base));
        }
        let mut end = Pa(0);
        for range in sorted.iter() {
            if range.base() < end && !overlap_allowed {
                return Err(Error::Overlap { pa: range.base() });
            }
            end = range.end();
        }
        Ok(sorted)
    }

    fn iter(&self) -> impl Iterator<Item = PageRange> + '_ {
        let order = self.order.iter().take(self.ranges.len());
        order.filter_map(|&i| self.ranges.get(usize::from(i)).copied())
    }

    /// The pages in the caller's order, with consecutive IPAs.
    fn pages(&self, ipa: Ipa) -> impl Iterator<Item = (Pa, u64)> + use<'a> {
        let ipas = (ipa.0..PARTITION_END).step_by(PAGE_SIZE as usize);
        self.ranges.iter().flat_map(PageRange::pages).zip(ipas)
    }
}

/// Checks a range of a partition's memory.
pub(crate) fn partition_range(ipa: Ipa, page_count: u64) -> Result<PageRange, Error> {
    match PageRange::new(Pa(ipa.0), page_count) {
        Ok(range) if range.end().0 <= PARTITION_END => Ok(range),
        Err(Error::Unaligned) => Err(Error::Unaligned),
        Err(_) if page_count == 0 => Err(Error::InvalidRange),
        _ => Err(Error::IpaOutOfRange),
    }
}

/// What to invalidate at the end of a pass: a few runs of pages, else everything.
pub(crate) struct Flush {
    runs: [PageRange; 8],
    count: usize,
}

impl Flush {
    pub(crate) const NONE: Self = Self { runs: [PageRange::EMPTY; _], count: 0 };

    pub(crate) fn add(&mut self, address: u64) {
        if let Some(last) = self.count.checked_sub(1).and_then(|last| self.runs.get_mut(last))
            && last.extend(Pa(address))
        {
            return;
        }
        if let (Some(run), Ok(range)) = (self.runs.get_mut(self.count), PageRange::new(Pa(address), 1)) {
            *run = range;
        }
        self.count = self.count.saturating_add(1);
    }

    pub(crate) fn run<M: Machine>(&self, flexmem: &mut FlexMem, m: &mut M, tree: Tree) {
        if skips!(flexmem, SkipTlbi) {
            return;
        }
        match self.runs.get(..self.count) {
            Some(runs) => {
                runs.iter().for_each(|run| flexmem.tlbi(m, tree, Some((run.base().0, run.page_count()))))
            }
            None => flexmem.tlbi(m, tree, None),
        }
    }
}

/// Host and table memory.
impl FlexMem {
    /// Host: donates pages for tables. All or nothing, at most 512. Returns the pages taken. May itself need up to two
    /// tables for each 2 MiB that the pages come from; it takes them from the reserve.
    pub fn host_give_tables<M: Machine>(&mut self, m: &mut M, ranges: &[PageRange]) -> Result<u64, Error> {
        let sorted = Sorted::new(ranges, false)?;
        let (mut spare, mut last) = (self.pool.spare(), None);
        for range in sorted.iter() {
            self.check_ram(m, range)?;
            self.check_pins(range)?;
            for (base, page_count) in walk::chunks(range) {
                let missing = walk::tables_missing(m, self.host.root, base, last);
                spare = spare.checked_sub(missing).ok_or(Error::NoTables { needed: missing })? + page_count;
                last = Some(base);
            }
        }

        for range in sorted.iter() {
            for (base, page_count) in walk::chunks(range) {
                let pages = || (base..base + page_count * PAGE_SIZE).step_by(PAGE_SIZE as usize);
                for page in pages() {
                    let mut place = self.split_to(m, self.host, page, LAST_LEVEL)?;
                    self.set(m, self.host, &mut place, Desc::TABLE_PAGE);
                }
                self.tlbi(m, self.host, Some((base, page_count)));
                for page in pages() {
                    m.zero(Pa(page));
                    self.pool.add(m, Pa(page), true);
                }
            }
        }
        Ok(sorted.page_count)
    }

    /// Host: takes back free table pages that it gave, zeroed, at most `max_pages` (and 512) and as many as `out` holds.
    /// Returns (ranges written, pages). 0 pages: nothing more to take now.
    pub fn host_recall_tables<M: Machine>(
        &mut self,
        m: &mut M,
        out: &mut [PageRange],
        max_pages: u64,
    ) -> Result<(usize, u64), Error> {
        let (mut ranges, mut pages) = (0, 0);
        // Ends with the last free range, so that a page once taken out always finds room.
        while pages < max_pages.min(STEP_PAGES) && ranges < out.len() {
            let Some(page) = self.pool.remove(m) else { break };
            m.clean(page);
            let mut place = self.split_to(m, self.host, page.0, LAST_LEVEL)?;
            self.set(m, self.host, &mut place, Desc::host(page.0, LAST_LEVEL, HostMemory::Ram));
            self.coalesce(m, self.host, page.0);
            pages += 1;
            let last = ranges.checked_sub(1).and_then(|last: usize| out.get_mut(last));
            if !last.is_some_and(|last| last.extend(page))
                && let Some(range) = out.get_mut(ranges)
            {
                *range = PageRange::new(page, 1)?;
                ranges += 1;
            }
        }
        Ok((ranges, pages))
    }
}

/// Partitions.
impl FlexMem {
    /// Makes an empty partition.
    pub fn partition_create<M: Machine>(&mut self, m: &mut M, slot: Slot) -> Result<(), Error> {
        let partition = self.partition_mut(slot)?;
        if partition.state != State::Free {
            return Err(Error::SlotTaken);
        }
        partition.state = State::Live;
        let tree = partition.tree;
        for root in [tree.root, tree.stream_root()] {
            m.zero(root);
            m.zero(Pa(root.0 + PAGE_SIZE));
        }
        Ok(())
    }

    /// Host: gives pages to a partition at ascending IPAs from `ipa` on, in the order of `ranges`. All or nothing, at most
    /// 512 pages. Aligned 2 MiB that are contiguous on both sides become blocks.
    pub fn host_give_partition<M: Machine>(
        &mut self,
        m: &mut M,
        slot: Slot,
        ranges: &[PageRange],
        ipa: Ipa,
        access: Access,
        fill: Fill,
    ) -> Result<u64, Error> {
        self.meter = Meter::start(m.ticks());
        let tree = self.live(slot)?;
        let sorted = Sorted::new(ranges, skips!(self, SkipOverlapCheck))?;
        let (mut tables, mut last) = (0, None);
        for range in sorted.iter() {
            if !skips!(self, SkipOwnershipCheck) {
                self.check_ram(m, range)?;
            }
            if !skips!(self, SkipPinCheck) {
                self.check_pins(range)?;
            }
            for (base, _) in walk::chunks(range) {
                tables += walk::tables_missing(m, self.host.root, base, last);
                last = Some(base);
            }
        }
        if !ipa.0.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Unaligned);
        }
        let target = partition_range(ipa, sorted.page_count)?;
        let end = target.end().0;
        if let Some((at, _)) = walk::next(m, tree.root, ipa.0, end, |desc| desc != Desc::ABSENT)
            && !skips!(self, SkipIpaCheck)
        {
            return Err(Error::IpaTaken { ipa: Ipa(at) });
        }
        last = None;
        for (base, _) in walk::chunks(target) {
            tables += walk::tables_missing(m, tree.root, base, last);
            last = Some(base);
        }
        self.pool.check(tables)?;

        self.phase(m, Part::Tables);
        let mut flush = Flush::NONE;
        for (page, at) in sorted.pages(ipa) {
            let mut place = self.split_to(m, self.host, page.0, LAST_LEVEL)?;
            let record = if skips!(self, SkipHostUnmap) {
                Desc::host(page.0, LAST_LEVEL, HostMemory::Ram).with_shared(true)
            } else {
                Desc::owner(slot, at)
            };
            self.set(m, self.host, &mut place, record);
            flush.add(page.0);
        }
        flush.run(self, m, self.host);
        self.phase(m, Part::Scrub);
        for (page, _) in sorted.pages(ipa) {
            if fill == Fill::Zero && !skips!(self, SkipScrubOnGive) {
                m.zero(page);
            }
            if !skips!(self, SkipClean) {
                m.clean(page);
            }
            if access == Access::ReadExecute {
                m.sync_icache(page);
            }
        }
        self.phase(m, Part::Tables);
        for (page, at) in sorted.pages(ipa) {
            let mut place = self.split_to(m, tree, at, LAST_LEVEL)?;
            self.set(m, tree, &mut place, Desc::partition(page.0, access));
        }
        for (base, _) in walk::chunks(target) {
            self.make_block(m, tree, base);
        }
        let partition = self.partition_mut(slot)?;
        partition.page_count += sorted.page_count;
        let cost = self.meter.end(m.ticks(), sorted.page_count);
        self.counters.last_give = cost;
        self.counters.give.add(cost);
        Ok(sorted.page_count)
    }

    /// Makes one block of the 2 MiB of a partition around `ipa`, and of their owner records, if they are contiguous. Both
    /// tables that this frees stay promised to the recall that may have to split again.
    pub(crate) fn make_block<M: Machine>(&mut self, m: &mut M, tree: Tree, ipa: u64) {
        if self.merge(m, tree, ipa, LAST_LEVEL - 1) {
            let block = walk::find(m, tree.root, ipa).desc;
            self.merge(m, self.host, block.address(), LAST_LEVEL - 1);
        }
    }

    /// Partition: shares one of its read-write pages with the host, which can read and write but not execute it. The bytes
    /// in it become the host's to read: zero-filled pages only is the caller's duty. Never needs table memory.
    pub fn partition_share_host<M: Machine>(&mut self, m: &mut M, slot: Slot, ipa: Ipa) -> Result<(), Error> {
        let (tree, place) = self.shareable(m, slot, ipa)?;
        if place.desc.is_shared() {
            return Err(Error::AlreadyShared { ipa });
        }

        self.meter = Meter::start(m.ticks());
        let mut place = self.split_to(m, tree, ipa.0, LAST_LEVEL)?;
        let page = place.desc.address();
        let mut record = self.record(m, slot, ipa.0, page)?.ok_or(Error::Corrupted)?;
        m.clean(Pa(page));
        let shared = place.desc.with_shared(true);
        self.set(m, tree, &mut place, shared);
        self.set(m, self.host, &mut record, Desc::host_shared(page));
        self.partition_mut(slot)?.shared_count += 1;
        self.counters.pages_shared += 1;
        Ok(())
    }

    /// Partition: takes a shared page back; it is zeroed.
    pub fn partition_unshare_host<M: Machine>(
        &mut self,
        m: &mut M,
        slot: Slot,
        ipa: Ipa,
    ) -> Result<(), Error> {
        let (tree, mut place) = self.shareable(m, slot, ipa)?;
        if !place.desc.is_shared() {
            return Err(Error::NotShared { ipa });
        }
        let page = place.desc.address();
        let mut record = self.record(m, slot, ipa.0, page)?.ok_or(Error::Corrupted)?;

        self.meter = Meter::start(m.ticks());
        if !skips!(self, SkipUnshareUnmap) {
            self.set(m, self.host, &mut record, Desc::owner(slot, ipa.0));
        }
        let mut flush = Flush::NONE;
        flush.add(page);
        flush.run(self, m, self.host);
        m.zero(Pa(page));
        m.clean(Pa(page));
        let private = place.desc.with_shared(false);
        self.set(m, tree, &mut place, private);
        self.make_block(m, tree, ipa.0);
        self.count_unshared(slot)
    }

    fn shareable<M: Machine>(&self, m: &M, slot: Slot, ipa: Ipa) -> Result<(Tree, Place), Error> {
        let tree = self.live(slot)?;
        if !ipa.0.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Unaligned);
        }
        if ipa.0 >= PARTITION_END {
            return Err(Error::IpaOutOfRange);
        }
        let place = walk::find(m, tree.root, ipa.0);
        match place.desc {
            desc if desc.is_loaned() || desc.is_borrowed() => Err(Error::Loaned { ipa }),
            desc if !desc.is_valid() => Err(Error::NotGiven { ipa }),
            desc if desc.access() != Access::ReadWrite => Err(Error::NotShareable { ipa }),
            _ => Ok((tree, place)),
        }
    }

    pub(crate) fn count_unshared(&mut self, slot: Slot) -> Result<(), Error> {
        self.counters.pages_shared = self.counters.pages_shared.saturating_sub(1);
        let partition = self.partition_mut(slot)?;
        partition.shared_count = partition.shared_count.saturating_sub(1);
        Ok(())
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
        self.meter = Meter::start(m.ticks());
        let tree = self.live(slot)?;
        if page_count > STEP_PAGES {
            return Err(Error::TooMany);
        }
        let range = partition_range(ipa, page_count)?;
        let is_kept = |desc: Desc| !desc.is_valid() || desc.is_loaned() || desc.is_borrowed();
        if let Some((at, place)) = walk::next(m, tree.root, ipa.0, range.end().0, is_kept) {
            let absent = place.desc == Desc::ABSENT;
            return Err(if absent {
                Error::NotGiven { ipa: Ipa(at) }
            } else {
                Error::Loaned { ipa: Ipa(at) }
            });
        }
        self.take_back(m, slot, tree, range.base().0, range.end().0, page_count)
    }

    /// Ends a partition a step at a time: returns up to `max_pages` (at most 512) pages to the host, scrubbed. Returns the
    /// pages that remain; at 0 the slot is free. First ends what it lends, for every borrower, and gives back what it borrows, a
    /// loan a step; then at least 1 remains. From the first step on the partition accepts nothing else. The caller
    /// makes sure that no vCPU of the partition runs. Never needs table memory.
    pub fn partition_destroy<M: Machine>(
        &mut self,
        m: &mut M,
        slot: Slot,
        max_pages: u64,
    ) -> Result<u64, Error> {
        self.meter = Meter::start(m.ticks());
        let tree = self.partition(slot)?.tree;
        self.partition_mut(slot)?.state = State::Dying;
        if self.end_loan_of(m, slot)? {
            return Ok(self.partition_page_count(slot).max(1));
        }
        self.take_back(m, slot, tree, 0, PARTITION_END, max_pages.min(STEP_PAGES))?;
        let remaining = self.partition_page_count(slot);
        if remaining == 0 {
            // The VMID is used again only after this.
            self.tlbi(m, tree, None);
            self.partition_mut(slot)?.state = State::Free;
        }
        Ok(remaining)
    }

    /// Takes back the first `max_pages` pages in `[start, end)`. While they are on their way, the partition's tree keeps
    /// their addresses in invalid entries and the host's tree keeps the owner, so that every pass finds them, and so does
    /// [`Self::scrub_all`].
    fn take_back<M: Machine>(
        &mut self,
        m: &mut M,
        slot: Slot,
        tree: Tree,
        start: u64,
        end: u64,
        max_pages: u64,
    ) -> Result<u64, Error> {
        self.phase(m, Part::Tables);
        let (mut flush, mut flush_host) = (Flush::NONE, Flush::NONE);
        let (mut at, mut page_count) = (start, 0);
        while page_count < max_pages {
            let Some((ipa, mut place)) = walk::next(m, tree.root, at, end, Desc::is_own) else { break };
            if place.level < LAST_LEVEL {
                place = self.split_to(m, tree, ipa, LAST_LEVEL)?;
            }
            let page = place.desc.address();
            if place.desc.is_shared() {
                self.count_unshared(slot)?;
            }
            let left_over = match self.record(m, slot, ipa, page)? {
                Some(mut record) => {
                    if record.desc.is_shared() {
                        self.set(m, self.host, &mut record, Desc::owner(slot, ipa));
                        flush_host.add(page);
                    }
                    place.desc.detached()
                }
                None => Desc::ABSENT,
            };
            self.set(m, tree, &mut place, left_over);
            flush.add(ipa);
            page_count += 1;
            at = ipa + PAGE_SIZE;
        }
        flush.run(self, m, tree);
        flush_host.run(self, m, self.host);

        self.phase(m, Part::Scrub);
        let mut from = start;
        while let Some((ipa, place)) = walk::next(m, tree.root, from, at, Desc::is_detached) {
            from = ipa + PAGE_SIZE;
            let page = Pa(place.desc.address());
            if !skips!(self, SkipScrubOnRecall) {
                m.zero(page);
            }
            if !skips!(self, SkipClean) {
                m.clean(page);
            }
        }

        self.phase(m, Part::Tables);
        from = start;
        while let Some((ipa, mut place)) = walk::next(m, tree.root, from, at, Desc::is_detached) {
            from = ipa + PAGE_SIZE;
            let page = place.desc.address();
            let mut record = walk::find(m, self.host.root, page);
            self.set(m, self.host, &mut record, Desc::host(page, LAST_LEVEL, HostMemory::Ram));
            self.coalesce(m, self.host, page);
            self.set(m, tree, &mut place, Desc::ABSENT);
            self.coalesce(m, tree, ipa);
        }
        let partition = self.partition_mut(slot)?;
        partition.page_count = partition.page_count.saturating_sub(page_count);
        let cost = self.meter.end(m.ticks(), page_count);
        self.counters.last_recall = cost;
        self.counters.recall.add(cost);
        Ok(page_count)
    }

    /// The host tree's page entry for a page of a partition. `None` if it names another owner, so that the page must not
    /// become the host's (cannot be, but for fault knobs).
    pub(crate) fn record<M: Machine>(
        &mut self,
        m: &mut M,
        slot: Slot,
        ipa: u64,
        page: u64,
    ) -> Result<Option<Place>, Error> {
        let mut place = walk::find(m, self.host.root, page);
        if place.desc.as_owner().is_some() {
            place = self.split_to(m, self.host, page, LAST_LEVEL)?;
        }
        let agrees =
            place.level == LAST_LEVEL && (place.desc.is_shared() || place.desc == Desc::owner(slot, ipa));
        Ok(agrees.then_some(place))
    }
}
