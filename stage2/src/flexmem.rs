//! The ownership record: boot, look-ups, pins, and the edits that transitions are made of.

use crate::counters::{Meter, Part};
use crate::desc::Desc;
use crate::loans::Loan;
use crate::pool::Pool;
use crate::walk::{self, ADDRESS_END, ENTRIES, LAST_LEVEL, PARTITION_END, Place, Tree};
use crate::{
    Census, Counters, Error, HOST_VMID, HostMemory, Ipa, MAX_LOANS, MAX_PARTITIONS, MAX_PINS, Machine,
    NO_VMID, PAGE_SIZE, Pa, PageRange, PageState, PartitionPage, Party, STEP_PAGES, Slot, Window,
};

/// Life of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// No partition; its VMID is in no TLB.
    Free,
    /// Pages may be given.
    Live,
    /// Being destroyed: pages only leave.
    Dying,
}

/// One slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Partition {
    pub tree: Tree,
    pub state: State,
    pub page_count: u64,
    pub shared_count: u64,
}

/// Ownership of all memory, and the stage-2 tables that enforce it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlexMem {
    pub(crate) host: Tree,
    pub(crate) partitions: [Partition; MAX_PARTITIONS],
    pub(crate) pool: Pool,
    pins: [Option<Pa>; MAX_PINS],
    pub(crate) loans: [Option<Loan>; MAX_LOANS],
    /// Valid leaves of the host's tree at levels 1 to 3.
    leaves: [u64; LAST_LEVEL as usize],
    /// A bit for each GiB of the host's with devices: no stream reaches it.
    device_gibibytes: [u64; 2 * ENTRIES / 64],
    /// Whether CPUs and SMMUs let a valid entry change size in place.
    in_place: bool,
    pub(crate) window: Option<Window>,
    pub(crate) counters: Counters,
    pub(crate) meter: Meter,
    #[cfg(any(test, feature = "fault-knobs"))]
    pub(crate) knobs: u32,
}

/// Boot.
impl FlexMem {
    /// Starts with nothing mapped. `host_root` and `partition_roots` are 16 KiB each, 8 KiB aligned, in hypervisor memory: the
    /// root for CPUs, then the one for SMMU streams; the host's must be zero. `reserve` table pages are kept for [`Self::host_give_tables`] alone, which then cannot
    /// fail for lack of tables: the GiB of host RAM, plus 2.
    pub const fn new(host_root: Pa, partition_roots: [Pa; MAX_PARTITIONS], reserve: u64) -> Self {
        let host = Tree { root: host_root, vmid: HOST_VMID };
        let mut partitions =
            [Partition { tree: host, state: State::Free, page_count: 0, shared_count: 0 }; _];
        let mut i = 0;
        while i < MAX_PARTITIONS {
            partitions[i].tree = Tree { root: partition_roots[i], vmid: HOST_VMID + 1 + i as u16 };
            i += 1;
        }
        Self {
            host,
            partitions,
            pool: Pool::new(reserve),
            pins: [None; _],
            loans: [None; _],
            leaves: [0; _],
            device_gibibytes: [0; _],
            in_place: false,
            window: None,
            counters: Counters::NONE,
            meter: Meter::IDLE,
            #[cfg(any(test, feature = "fault-knobs"))]
            knobs: 0,
        }
    }

    /// Boot: adds a page of hypervisor memory to the table pool, zeroed.
    pub fn boot_donate_table<M: Machine>(&mut self, m: &mut M, page: Pa) -> Result<(), Error> {
        let page = PageRange::new(page, 1)?.base();
        m.zero(page);
        self.pool.add(m, page, false);
        Ok(())
    }

    /// Boot: maps `[base, base + size)` for the host, identity, by largest blocks. Must be absent before.
    pub fn boot_map_host<M: Machine>(
        &mut self,
        m: &mut M,
        base: Pa,
        size: u64,
        kind: HostMemory,
    ) -> Result<(), Error> {
        if kind == HostMemory::Device {
            self.boot_hide_from_streams(m, base, size)?;
        }
        self.boot_fill(m, base, size, |address, level| Desc::host(address, level, kind))
    }

    /// Takes the GiB that a range of devices touches away from the host's streams: an interrupt controller or another
    /// device's registers are not to be reached by DMA. RAM in the same GiB is out of their reach too.
    pub(crate) fn boot_hide_from_streams<M: Machine>(
        &mut self,
        m: &mut M,
        base: Pa,
        size: u64,
    ) -> Result<(), Error> {
        let range = PageRange::new(base, size.div_ceil(PAGE_SIZE))?;
        for index in walk::index(range.base().0, 1)..=walk::index(range.end().0 - 1, 1) {
            if let Some(word) = self.device_gibibytes.get_mut(index / 64) {
                *word |= 1 << (index % 64);
            }
            m.store(self.host.stream_root(), index, Desc::ABSENT.0);
        }
        m.tlbi_vmid(self.host.vmid);
        Ok(())
    }

    /// Boot: says that every CPU has FEAT_BBM level 2 and every SMMU IDR3.BBML 2 (Arm ARM D8.16.1): entries change between
    /// table and block in place, so that neither CPU nor DMA meets a hole.
    pub fn boot_change_in_place(&mut self) {
        self.in_place = true;
    }

    /// Boot: says that no host runs on the host's tree. It tells which pages are free, for [`Self::host_page`].
    pub fn boot_unwalked(&mut self) {
        self.host.vmid = NO_VMID;
    }

    /// Boot: records `[base, base + size)` as the hypervisor's. Optional: what is absent is refused all the same.
    pub fn boot_reserve<M: Machine>(&mut self, m: &mut M, base: Pa, size: u64) -> Result<(), Error> {
        self.boot_fill(m, base, size, |_, _| Desc::HYPERVISOR)
    }

    fn boot_fill<M: Machine>(
        &mut self,
        m: &mut M,
        base: Pa,
        size: u64,
        desc: impl Fn(u64, u8) -> Desc,
    ) -> Result<(), Error> {
        if !size.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Unaligned);
        }
        let range = PageRange::new(base, size / PAGE_SIZE)?;
        let (start, end) = (range.base().0, range.end().0);
        if let Some((pa, _)) = walk::next(m, self.host.root, start, end, |d| d != Desc::ABSENT) {
            return Err(Error::Overlap { pa: Pa(pa) });
        }
        let mut at = start;
        while at < end {
            let fits = |level: &u8| walk::align(at, *level) == at && at + walk::size(*level) <= end;
            let level = (1..LAST_LEVEL).find(fits).unwrap_or(LAST_LEVEL);
            let mut place = self.split_to(m, self.host, at, level)?;
            let leaf = desc(at, place.level);
            self.set(m, self.host, &mut place, leaf);
            at += walk::size(place.level);
        }
        self.coalesce(m, self.host, start);
        self.coalesce(m, self.host, end - PAGE_SIZE);
        Ok(())
    }
}

/// Look-ups. None of them changes anything or takes longer than a walk, unless it says so.
impl FlexMem {
    /// The page that a partition has at `ipa` (rounded down to a page). On a fault, look here before blaming the
    /// partition: another CPU may have been replacing a block.
    pub fn partition_page<M: Machine>(&self, m: &M, slot: Slot, ipa: Ipa) -> Option<PartitionPage> {
        let at = walk::align(ipa.0, LAST_LEVEL);
        self.next_partition_page_below(m, slot, at, at.checked_add(PAGE_SIZE)?)
    }

    /// The first page that a partition has at or above `from`. At most 2048 entries are looked at.
    pub fn next_partition_page<M: Machine>(&self, m: &M, slot: Slot, from: Ipa) -> Option<PartitionPage> {
        self.next_partition_page_below(m, slot, walk::align(from.0, LAST_LEVEL), PARTITION_END)
    }

    fn next_partition_page_below<M: Machine>(
        &self,
        m: &M,
        slot: Slot,
        from: u64,
        end: u64,
    ) -> Option<PartitionPage> {
        let partition = self.partition(slot).ok()?;
        let (at, place) = walk::next(m, partition.tree.root, from, end.min(PARTITION_END), Desc::is_valid)?;
        let offset = at - walk::align(at, place.level);
        let desc = place.desc;
        Some(PartitionPage {
            ipa: Ipa(at),
            pa: Pa(desc.address() + offset),
            access: desc.access(),
            shared: desc.is_shared(),
            loaned: desc.is_loaned(),
            borrowed: desc.is_borrowed(),
        })
    }

    /// VMID and root of a party's tree for SMMU stream table entries.
    pub fn stream_root(&self, party: Party) -> Result<(u16, Pa), Error> {
        let tree = self.tree_of(party)?;
        Ok((tree.vmid, tree.stream_root()))
    }

    pub(crate) fn tree_of(&self, party: Party) -> Result<Tree, Error> {
        match party {
            Party::Host => Ok(self.host),
            Party::Partition(slot) => Ok(self.partition(slot)?.tree),
        }
    }

    /// Pages that a partition owns now.
    pub fn partition_page_count(&self, slot: Slot) -> u64 {
        self.partition(slot).map_or(0, |partition| partition.page_count)
    }

    /// Pages that a partition shares with the host now.
    pub fn partition_shared_count(&self, slot: Slot) -> u64 {
        self.partition(slot).map_or(0, |partition| partition.shared_count)
    }

    /// Who owns the page that holds `pa`. On a fault of the host, look here before blaming it: another CPU may have been
    /// replacing a block.
    pub fn host_state<M: Machine>(&self, m: &M, pa: Pa) -> PageState {
        if pa.0 >= ADDRESS_END {
            return PageState::Absent;
        }
        let page = walk::align(pa.0, LAST_LEVEL);
        let place = walk::find(m, self.host.root, page);
        let desc = place.desc;
        match desc.as_owner() {
            Some((slot, Ipa(base))) => {
                PageState::Partition { slot, ipa: Ipa(base + (page - walk::align(page, place.level))) }
            }
            None if desc.is_shared() => PageState::Shared,
            None if desc.is_valid() && desc.is_loaned() => PageState::HostShared,
            None if desc == Desc::LENT => PageState::HostLent,
            None if desc.is_host_ram() && self.is_pinned(Pa(page)) => PageState::HostPinned,
            None if desc.is_host_ram() => PageState::HostOwned,
            None if desc.is_valid() => PageState::HostDevice,
            None if desc == Desc::TABLE_PAGE => PageState::Table,
            None if desc == Desc::ABSENT => PageState::Absent,
            None => PageState::Hypervisor,
        }
    }

    /// Whether every byte of `[base, base + len)` is RAM of the host's alone, pinned or not. False for no bytes, and beyond
    /// 512 pages.
    pub fn host_owns<M: Machine>(&self, m: &M, base: Pa, len: u64) -> bool {
        let start = walk::align(base.0, LAST_LEVEL);
        let Some(end) = base.0.checked_add(len).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE))
        else {
            return false;
        };
        let range = PageRange::new(Pa(start), (end - start) / PAGE_SIZE);
        range.is_ok_and(|range| range.page_count() <= STEP_PAGES && self.check_ram(m, range).is_ok())
    }

    /// The first page at or above `from` that is the host's alone, pinned or not. Looks at every entry up to it.
    pub fn host_page<M: Machine>(&self, m: &M, from: Pa) -> Option<Pa> {
        let found = walk::next(m, self.host.root, from.0, ADDRESS_END, Desc::is_host_ram);
        found.map(|(at, _)| Pa(at))
    }

    /// How memory is mapped now.
    pub fn census(&self) -> Census {
        let [leaves_1g, leaves_2m, leaves_4k] = self.leaves;
        Census {
            leaves_1g,
            leaves_2m,
            leaves_4k,
            tables_used: self.pool.total.saturating_sub(self.pool.free()),
            tables_free: self.pool.free(),
            tables_promised: self.pool.promised,
            tables_from_host: self.pool.total_from_host,
        }
    }

    /// What happened since boot.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Zeroes every page that a partition owns, shares, or may have borrowed alone, before a reset or on panic. Looks only at the host's tree, which
    /// names them all at any instant, also in the middle of a transition, and leaves it as it is. Takes one pass over the
    /// entries of that tree, and the time to zero.
    pub fn scrub_all<M: Machine>(&self, m: &mut M) {
        if skips!(self, SkipScrubAll) {
            return;
        }
        let mut from = 0;
        let is_partitions = |d: Desc| d.as_owner().is_some() || d.is_shared() || d == Desc::LENT;
        while let Some((at, place)) = walk::next(m, self.host.root, from, ADDRESS_END, is_partitions) {
            from = walk::align(at, place.level) + walk::size(place.level);
            for page in (at..from).step_by(PAGE_SIZE as usize) {
                m.zero(Pa(page));
                m.clean(Pa(page));
            }
        }
    }
}

/// Pins.
impl FlexMem {
    /// Keeps a page of the host's alone from being given away (a mailbox).
    pub fn host_pin<M: Machine>(&mut self, m: &M, page: Pa) -> Result<(), Error> {
        let range = PageRange::new(page, 1)?;
        self.check_ram(m, range)?;
        self.check_pins(range)?;
        let free = self.pins.iter_mut().find(|pin| pin.is_none()).ok_or(Error::TooManyPins)?;
        *free = Some(page);
        Ok(())
    }

    /// Ends [`Self::host_pin`].
    pub fn host_unpin(&mut self, page: Pa) -> Result<(), Error> {
        let pin =
            self.pins.iter_mut().find(|pin| **pin == Some(page)).ok_or(Error::NotPinned { pa: page })?;
        *pin = None;
        Ok(())
    }

    fn is_pinned(&self, page: Pa) -> bool {
        self.pins.contains(&Some(page))
    }

    pub(crate) fn check_pins(&self, range: PageRange) -> Result<(), Error> {
        match self.pins.iter().flatten().find(|pin| (range.base()..range.end()).contains(pin)) {
            Some(&pa) => Err(Error::Pinned { pa }),
            None => Ok(()),
        }
    }
}

/// Edits. Everything that changes a tree goes through here.
impl FlexMem {
    /// The partition in a slot, dying or not.
    pub(crate) fn partition(&self, slot: Slot) -> Result<&Partition, Error> {
        let partition = self.partitions.get(slot.index()).filter(|partition| partition.state != State::Free);
        partition.ok_or(Error::NoSuchPartition)
    }

    pub(crate) fn partition_mut(&mut self, slot: Slot) -> Result<&mut Partition, Error> {
        self.partitions.get_mut(slot.index()).ok_or(Error::NoSuchPartition)
    }

    /// The tree of a partition that accepts transitions.
    pub(crate) fn live(&self, slot: Slot) -> Result<Tree, Error> {
        let partition = self.partition(slot)?;
        if partition.state == State::Live { Ok(partition.tree) } else { Err(Error::Busy) }
    }

    /// Checks that a range is RAM of the host's alone.
    pub(crate) fn check_ram<M: Machine>(&self, m: &M, range: PageRange) -> Result<(), Error> {
        match walk::next(m, self.host.root, range.base().0, range.end().0, |desc| !desc.is_host_ram()) {
            None => Ok(()),
            Some((pa, place)) if place.desc.is_device() => Err(Error::NotRam { pa: Pa(pa) }),
            Some((pa, _)) => Err(Error::NotHostOwned { pa: Pa(pa) }),
        }
    }

    pub(crate) fn phase<M: Machine>(&mut self, m: &M, part: Part) -> Part {
        self.meter.switch(m.ticks(), part)
    }

    /// Invalidates pages from an address on, or everything, for all cores.
    pub(crate) fn tlbi<M: Machine>(&mut self, m: &mut M, tree: Tree, pages: Option<(u64, u64)>) {
        let part = self.phase(m, Part::Tlbi);
        match pages {
            _ if tree.vmid == NO_VMID => {}
            Some((address, page_count)) => m.tlbi_pages(tree.vmid, Ipa(address), page_count),
            None => m.tlbi_vmid(tree.vmid),
        }
        self.counters.tlbi_count += 1;
        self.phase(m, part);
    }

    /// Writes one entry. From one valid mapping to another, go through an invalid entry and `tlbi`, unless only rights
    /// or the mark change.
    pub(crate) fn set<M: Machine>(&mut self, m: &mut M, tree: Tree, place: &mut Place, desc: Desc) {
        m.store(place.table, place.index, desc.0);
        if place.level == 1 && !self.is_hidden_from_streams(tree, place.index) {
            m.store(tree.stream_root(), place.index, desc.0);
        }
        if tree == self.host
            && let Some(count) = self.leaves.get_mut(usize::from(place.level) - 1)
        {
            *count += u64::from(desc.is_leaf(place.level));
            *count = count.saturating_sub(u64::from(place.desc.is_leaf(place.level)));
        }
        place.desc = desc;
    }

    pub(crate) fn is_hidden_from_streams(&self, tree: Tree, index: usize) -> bool {
        if tree == self.host {
            self.device_gibibytes.get(index / 64).is_none_or(|word| word >> (index % 64) & 1 == 1)
        } else {
            index >= walk::index(PARTITION_END, 1)
        }
    }

    /// Replaces an entry by one of another size: break before make, unless the machine does without.
    fn replace<M: Machine>(&mut self, m: &mut M, tree: Tree, address: u64, place: &mut Place, desc: Desc) {
        let (base, page_count) = (walk::align(address, place.level), walk::size(place.level) / PAGE_SIZE);
        if place.desc.is_valid() && desc.is_valid() && !self.in_place && !skips!(self, SkipBreak) {
            self.set(m, tree, place, Desc::ABSENT);
            self.tlbi(m, tree, Some((base, page_count)));
            self.set(m, tree, place, desc);
        } else {
            let was_valid = place.desc.is_valid();
            self.set(m, tree, place, desc);
            if was_valid {
                self.tlbi(m, tree, Some((base, page_count)));
            }
        }
    }

    /// Whether a recall may have to split this entry, a partition's block or the record of one, so that a table is set
    /// aside for it.
    fn is_promised(&self, tree: Tree, desc: Desc) -> bool {
        if tree == self.host { desc.as_owner().is_some() } else { desc.is_valid() }
    }

    /// Splits entries until `address` has one of `level` (or below); returns it. Needs at most two tables.
    pub(crate) fn split_to<M: Machine>(
        &mut self,
        m: &mut M,
        tree: Tree,
        address: u64,
        level: u8,
    ) -> Result<Place, Error> {
        let mut place = walk::find(m, tree.root, address);
        while place.level < level {
            let table = self.pool.take(m).ok_or(Error::Corrupted)?;
            let whole = place.desc;
            if whole != Desc::ABSENT {
                let children = whole.children(place.level);
                for index in 0..ENTRIES {
                    m.store(table, index, children.at(index).0);
                }
            }
            if self.is_promised(tree, whole) {
                self.pool.promised = self.pool.promised.saturating_sub(1);
            }
            self.replace(m, tree, address, &mut place, Desc::table(table));
            self.count_children(tree, place.level, whole, true);
            self.counters.splits += u64::from(whole.is_valid());
            place = walk::find(m, tree.root, address);
        }
        Ok(place)
    }

    /// Replaces the table below the entry of `level` that covers `address` by one entry, if that entry's split would
    /// make just this table, and frees it.
    pub(crate) fn merge<M: Machine>(&mut self, m: &mut M, tree: Tree, address: u64, level: u8) -> bool {
        let mut place = walk::find_at(m, tree.root, address, level);
        if place.level != level || !place.desc.is_table(level) {
            return false;
        }
        let table = Pa(place.desc.address());
        let Some(whole) = Desc(m.load(table, 0)).whole(level) else {
            return false;
        };
        let children = whole.children(level);
        let fits = |index: usize| Desc(m.load(table, index)) == children.at(index);
        // A table that cannot be merged mostly shows it beside the entry that has changed.
        let near = walk::index(address, level + 1);
        if !fits((near + 1).min(ENTRIES - 1)) || !fits(near.saturating_sub(1)) || !(0..ENTRIES).all(fits) {
            return false;
        }
        self.replace(m, tree, address, &mut place, whole);
        self.count_children(tree, level, whole, false);
        self.counters.coalesces += u64::from(whole.is_valid());
        self.pool.promised += u64::from(self.is_promised(tree, whole));
        if whole != Desc::ABSENT {
            m.zero(table);
        }
        self.free_table(m, table);
        true
    }

    /// Puts a zeroed page back into the pool.
    pub(crate) fn free_table<M: Machine>(&mut self, m: &mut M, table: Pa) {
        let from_host = walk::find(m, self.host.root, table.0).desc == Desc::TABLE_PAGE;
        self.pool.put(m, table, from_host);
    }

    /// Merges upwards from the entry that covers `address`.
    pub(crate) fn coalesce<M: Machine>(&mut self, m: &mut M, tree: Tree, address: u64) {
        let place = walk::find(m, tree.root, address);
        // Mostly the next entry shows at once that nothing merges: it is of another kind.
        let next = m.load(place.table, (place.index + 1) & (ENTRIES - 1));
        if place.level == LAST_LEVEL && (next ^ place.desc.0) & (PAGE_SIZE - 1) != 0 {
            return;
        }
        let mut level = place.level;
        while level > 1 && self.merge(m, tree, address, level - 1) {
            level -= 1;
        }
    }

    /// Counts the 512 leaves that a split made of a leaf of `level`, or a merge took away.
    fn count_children(&mut self, tree: Tree, level: u8, whole: Desc, made: bool) {
        if tree == self.host
            && whole.is_valid()
            && let Some(count) = self.leaves.get_mut(usize::from(level))
        {
            *count = if made { *count + ENTRIES as u64 } else { count.saturating_sub(ENTRIES as u64) };
        }
    }
}
