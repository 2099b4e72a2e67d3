//! A machine for host tests whose TLBs and caches punish omissions.
//!
//! Memory is sparse and starts zero. Each core has a TLB, walk caches included, which forgets nothing until told to. Each
//! page has bytes in memory and perhaps newer ones in the cache; accesses with a non-cacheable attribute see the former.
//! Broken rules are collected in [`FakeMachine::violations`]:
//! - a valid entry changes in place (output address, size or memory type) without break-before-make;
//! - an entry is made again before the broken one is invalidated;
//! - a page is zeroed or cleaned while a removed mapping of it may still be cached (somebody could write behind it);
//! - a transition returns with such mappings left ([`FakeMachine::quiesce`]);
//! - with [`FakeMachine::race`], at any single step another core reads a [`secret`] that is not its own.

use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::sync::Arc;
use std::vec::Vec;

use crate::{HOST_VMID, Ipa, MAX_PARTITIONS, Machine, PAGE_SIZE, Pa, Slot};

type Bytes = Arc<[u64; 512]>;

/// Bits of a descriptor that no hardware looks at.
const SOFTWARE: u64 = 0xf << 55;
/// Bits that may change in place, but must be invalidated: XN, S2AP.
const RIGHTS: u64 = 3 << 53 | 3 << 6;
const ADDRESS: u64 = 0xff_ffff_f000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Page {
    memory: Option<Bytes>,
    cache: Option<Bytes>,
}

/// A leaf in a TLB, at page granularity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cached {
    pa: u64,
    desc: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Core {
    /// By VMID and page of IPA.
    leaves: BTreeMap<(u16, u64), Cached>,
    /// Tables, by VMID, level of the table and IPA of its first byte.
    tables: BTreeMap<(u16, u8, u64), u64>,
}

/// A mapping that was removed and not yet invalidated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    vmid: u16,
    ipa: u64,
    size: u64,
    desc: u64,
    level: u8,
    place: (u64, usize),
}

/// What a table translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Role {
    vmid: u16,
    ipa: u64,
    level: u8,
}

/// The fake machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FakeMachine {
    pages: BTreeMap<u64, Page>,
    roots: BTreeMap<u16, u64>,
    roles: BTreeMap<u64, Role>,
    cores: Vec<Core>,
    pending: Vec<Pending>,
    watched: Arc<[(u16, u64)]>,
    reached: Arc<[(u16, u64)]>,
    /// Blocks and tables may replace each other in place (FEAT_BBM level 2, SMMU_IDR3.BBML 2).
    pub bbm_level_2: bool,
    /// Rules that were broken, in words.
    pub violations: Vec<String>,
    /// The counter: one tick per operation.
    pub now: u64,
    /// Instruction caches were synchronised for these pages.
    pub icache_synced: Vec<Pa>,
}

/// First word of a page that holds a secret of the partition in a slot.
pub fn secret(slot: Slot) -> u64 {
    0x5ec2_e700_0000_0000 | slot.index() as u64
}

/// Whose secret a word is.
pub fn secret_owner(word: u64) -> Option<Slot> {
    if word >> 8 == secret(Slot::new(0)?) >> 8 { Slot::new(word as usize & 0xff) } else { None }
}

fn shift(level: u8) -> u32 {
    [0, 30, 21, 12][usize::from(level)]
}

fn is_table(desc: u64, level: u8) -> bool {
    level < 3 && desc & 3 == 3
}

/// Set in a VMID: an access by a DMA stream of that VMID, through its own root. Any core number does: the SMMU's TLB is
/// invalidated with the cores'.
pub const STREAM: u16 = 0x8000;
/// Set in a VMID: an access at S-EL1 by a secure address, through a root of its own ([`FakeMachine::add_secure`]). The same
/// invalidations concern it.
pub const SECURE: u16 = 0x4000;
/// The VMID without both.
const OWNER: u16 = !(STREAM | SECURE);

impl FakeMachine {
    /// A machine with `core_count` cores. The trees' roots are where [`crate::FlexMem::new`] is told they are.
    pub fn new(core_count: usize, host_root: Pa, partition_roots: [Pa; MAX_PARTITIONS]) -> Self {
        let mut m = Self { cores: std::vec![Core::default(); core_count], ..Self::default() };
        let partitions = Slot::all().map(|slot| (slot.vmid(), partition_roots[slot.index()].0));
        let roots = partitions.chain([(HOST_VMID, host_root.0)]);
        m.roots =
            roots.flat_map(|(vmid, root)| [(vmid, root), (vmid | STREAM, root + 2 * PAGE_SIZE)]).collect();
        for (&vmid, &root) in &m.roots {
            m.roles.insert(root, Role { vmid, ipa: 0, level: 1 });
        }
        m
    }

    /// Gives partitions trees for secure addresses.
    pub fn add_secure(&mut self, roots: [Pa; MAX_PARTITIONS]) {
        for slot in Slot::all() {
            let (vmid, root) = (slot.vmid() | SECURE, roots[slot.index()].0);
            self.roots.insert(vmid, root);
            self.roles.insert(root, Role { vmid, ipa: 0, level: 1 });
        }
    }

    /// Lets core 1 read `watched` (VMID, IPA) pages at every single step of the operations that follow.
    pub fn race(&mut self, watched: Vec<(u16, Ipa)>) {
        self.watched = watched.into_iter().map(|(vmid, ipa)| (vmid, ipa.0)).collect();
    }

    /// Lets core 1 translate `reached` (VMID, IPA) pages anew at every single step that follows: a fault is a violation.
    pub fn must_reach(&mut self, reached: Vec<(u16, Ipa)>) {
        self.reached = reached.into_iter().map(|(vmid, ipa)| (vmid, ipa.0)).collect();
    }

    /// Checks that a transition has left nothing to invalidate; and forgets it, so that tests can go on.
    pub fn quiesce(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            self.violations.push(format!("returned before invalidation: {pending:x?}"));
        }
    }

    /// The hypervisor's view of a page, coherent.
    pub fn read_page(&self, page: Pa) -> [u8; 4096] {
        let words = self.words(page);
        let mut out = [0; 4096];
        for (chunk, word) in out.chunks_exact_mut(8).zip(words.iter()) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// The same in words.
    pub fn words(&self, page: Pa) -> Arc<[u64; 512]> {
        self.bytes(page.0, true)
    }

    /// Writes a page as the hypervisor does (or a loader before it).
    pub fn write_page(&mut self, page: Pa, bytes: &[u8; 4096]) {
        let words = std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[8 * i + j])));
        self.pages.entry(page.0).or_default().cache = Some(Arc::new(words));
    }

    /// What memory holds in the first word of a page, below the caches.
    pub fn memory_word(&self, page: Pa) -> u64 {
        self.bytes(page.0, false)[0]
    }

    /// Reads the first word of a page as software under `vmid` on `core`; `None`: it faults.
    pub fn read(&mut self, core: usize, vmid: u16, ipa: Ipa, cacheable: bool) -> Option<u64> {
        let cached = self.translate(core, vmid, ipa.0)?;
        Some(self.bytes(cached.pa, cacheable)[0])
    }

    /// Writes the first word of a page as software under `vmid` on `core`. The line is evicted and stays in the cache
    /// as well, the worst case for whoever forgets either. False: it faults.
    pub fn write(&mut self, core: usize, vmid: u16, ipa: Ipa, word: u64) -> bool {
        let dirty = self.write_back(core, vmid, ipa, word);
        if let Some(page) = dirty.and_then(|page| self.pages.get_mut(&page)) {
            page.memory = page.cache.clone();
        }
        dirty.is_some()
    }

    /// The same, but the line stays dirty: memory keeps what it had. Returns the page; `None`: it faults.
    pub fn write_back(&mut self, core: usize, vmid: u16, ipa: Ipa, word: u64) -> Option<u64> {
        let cached = self.translate(core, vmid, ipa.0).filter(|cached| cached.desc & 1 << 7 != 0)?;
        *self.word_mut(Pa(cached.pa), 0) = word;
        Some(cached.pa)
    }

    /// Whether software under `vmid` on `core` could execute the page.
    pub fn can_execute(&mut self, core: usize, vmid: u16, ipa: Ipa) -> bool {
        self.translate(core, vmid, ipa.0).is_some_and(|cached| cached.desc & 3 << 53 == 0)
    }

    /// Whether some core may still use a mapping that the tables no longer hold.
    pub fn stale(&self) -> Option<String> {
        for (number, core) in self.cores.iter().enumerate() {
            for (&(vmid, ipa), cached) in &core.leaves {
                if self.walk(vmid, ipa, |_, _, _| ()) != Some(*cached) {
                    return Some(format!("core {number} VMID {vmid} IPA {ipa:x}: {cached:x?}"));
                }
            }
            for (&(vmid, level, ipa), &table) in &core.tables {
                let mut found = false;
                self.walk(vmid, ipa, |l, _, t| found |= l == level && t == table);
                if !found {
                    return Some(format!("core {number} VMID {vmid} IPA {ipa:x}: table {table:x}"));
                }
            }
        }
        None
    }

    /// All that cores have cached: core, VMID, IPA, and 0 for a page or the level of a table.
    pub fn cached(&self) -> Vec<(usize, u16, u64, u8)> {
        let each = |(number, core): (usize, &Core)| {
            let leaves = core.leaves.keys().map(move |&(vmid, ipa)| (number, vmid, ipa, 0));
            let tables = core.tables.keys().map(move |&(vmid, level, ipa)| (number, vmid, ipa, level));
            leaves.chain(tables).collect::<Vec<_>>()
        };
        self.cores.iter().enumerate().flat_map(each).collect()
    }

    fn bytes(&self, page: u64, cacheable: bool) -> Bytes {
        let page = self.pages.get(&page);
        let cache = page.filter(|_| cacheable).and_then(|page| page.cache.clone());
        cache.or_else(|| page?.memory.clone()).unwrap_or_else(|| Arc::new([0; 512]))
    }

    fn word_mut(&mut self, table: Pa, index: usize) -> &mut u64 {
        let page = self.pages.entry(table.0 + (index as u64 / 512) * PAGE_SIZE).or_default();
        let memory = page.memory.clone();
        let bytes = page.cache.get_or_insert_with(|| memory.unwrap_or_else(|| Arc::new([0; 512])));
        &mut Arc::make_mut(bytes)[index % 512]
    }

    /// Walks the tables as they are, showing each table on the way: its level, first IPA and address.
    fn walk(&self, vmid: u16, ipa: u64, mut see: impl FnMut(u8, u64, u64)) -> Option<Cached> {
        self.walk_from(*self.roots.get(&vmid)?, 1, ipa, &mut see)
    }

    fn walk_from(
        &self,
        table: u64,
        level: u8,
        ipa: u64,
        see: &mut impl FnMut(u8, u64, u64),
    ) -> Option<Cached> {
        let index = (ipa >> shift(level)) as usize & if level == 1 { 1023 } else { 511 };
        let desc = self.load(Pa(table), index);
        if is_table(desc, level) {
            see(level + 1, ipa >> shift(level) << shift(level), desc & ADDRESS);
            return self.walk_from(desc & ADDRESS, level + 1, ipa, see);
        }
        let offset = ipa & ((1 << shift(level)) - 1) & !(PAGE_SIZE - 1);
        (desc & 1 != 0).then_some(Cached { pa: (desc & ADDRESS) + offset, desc: desc & !SOFTWARE })
    }

    /// Translates with the TLB of a core, and fills it.
    fn translate(&mut self, core: usize, vmid: u16, ipa: u64) -> Option<Cached> {
        let ipa = ipa & !(PAGE_SIZE - 1);
        let tlb = self.cores.get(core)?;
        if let Some(cached) = tlb.leaves.get(&(vmid, ipa)) {
            return Some(*cached);
        }
        let mut tables = Vec::new();
        let mut see = |level, base, table| tables.push(((vmid, level, base), table));
        // The walk caches of the lowest level win.
        let start = [3, 2].into_iter().find_map(|level| {
            let base = ipa >> shift(level - 1) << shift(level - 1);
            Some((*tlb.tables.get(&(vmid, level, base))?, level))
        });
        let cached = match start {
            Some((table, level)) => self.walk_from(table, level, ipa, &mut see),
            None => self.walk(vmid, ipa, see),
        };
        let tlb = self.cores.get_mut(core)?;
        tlb.tables.extend(tables);
        tlb.leaves.extend(cached.map(|cached| ((vmid, ipa), cached)));
        cached
    }

    /// One step of whatever else the machine does meanwhile.
    fn step(&mut self) {
        self.now += 1;
        for &(vmid, ipa) in self.reached.clone().iter() {
            if self.walk(vmid, ipa, |_, _, _| ()).is_none() {
                self.violations.push(format!("VMID {vmid} met a hole at {ipa:x}"));
            }
        }
        for &(vmid, ipa) in self.watched.clone().iter() {
            for cacheable in [true, false] {
                if let Some(word) = self.read(1, vmid, Ipa(ipa), cacheable)
                    && let Some(owner) = secret_owner(word)
                    && owner.vmid() != vmid & OWNER
                {
                    self.violations.push(format!("VMID {vmid} read {word:x} at {ipa:x}"));
                }
            }
        }
    }

    /// A page's contents change hands: no removed mapping may reach it any more.
    fn check_private(&mut self, page: Pa) {
        for pending in &self.pending {
            let base = pending.desc & ADDRESS;
            let size = if is_table(pending.desc, pending.level) { PAGE_SIZE } else { pending.size };
            if (base..base + size).contains(&page.0) {
                self.violations.push(format!("scrub of {:x} before invalidation of {pending:x?}", page.0));
            }
        }
    }
}

impl Machine for FakeMachine {
    fn load(&self, table: Pa, index: usize) -> u64 {
        assert!(index < 1024 && table.0.is_multiple_of(PAGE_SIZE));
        let page = self.pages.get(&(table.0 + (index as u64 / 512) * PAGE_SIZE));
        let bytes = page.and_then(|page| page.cache.as_ref().or(page.memory.as_ref()));
        bytes.map_or(0, |bytes| bytes[index % 512])
    }

    fn store(&mut self, table: Pa, index: usize, descriptor: u64) {
        let old = std::mem::replace(self.word_mut(table, index), descriptor);
        if let Some(&Role { vmid, ipa, level }) = self.roles.get(&table.0) {
            let place = (table.0, index);
            let ipa = ipa + ((index as u64) << shift(level));
            let resized = |from: u64| is_table(from, level) != is_table(descriptor, level);
            let must_break = |from: u64| {
                from & 1 != 0
                    && (from ^ descriptor) & !(SOFTWARE | RIGHTS) != 0
                    && !(self.bbm_level_2 && resized(from))
            };
            if descriptor & 1 != 0 && must_break(old) {
                self.violations.push(format!("entry {place:x?} changed in place: {old:x} to {descriptor:x}"));
            }
            if descriptor & 1 != 0 && self.pending.iter().any(|p| p.place == place && must_break(p.desc)) {
                self.violations.push(format!("entry {place:x?} made before invalidation: {descriptor:x}"));
            }
            if old & 1 != 0 && (old ^ descriptor) & !SOFTWARE != 0 {
                self.pending.push(Pending { vmid, ipa, size: 1 << shift(level), desc: old, level, place });
            }
            if is_table(old, level) {
                self.roles.remove(&(old & ADDRESS));
            }
            if is_table(descriptor, level) {
                self.roles.insert(descriptor & ADDRESS, Role { vmid, ipa, level: level + 1 });
            }
        }
        self.step();
    }

    fn tlbi_pages(&mut self, vmid: u16, ipa: Ipa, page_count: u64) {
        let range = ipa.0..ipa.0 + page_count * PAGE_SIZE;
        let covers = |base: u64, size: u64| range.start <= base && base + size <= range.end;
        let touches = |base: u64, size: u64| base < range.end && range.start < base + size;
        for core in &mut self.cores {
            core.leaves.retain(|&(v, base), _| v & OWNER != vmid || !touches(base, PAGE_SIZE));
            core.tables
                .retain(|&(v, level, base), _| v & OWNER != vmid || !touches(base, 1 << shift(level - 1)));
        }
        self.pending.retain(|p| p.vmid & OWNER != vmid || !covers(p.ipa, p.size));
        self.step();
    }

    fn tlbi_vmid(&mut self, vmid: u16) {
        for core in &mut self.cores {
            core.leaves.retain(|&(v, _), _| v & OWNER != vmid);
            core.tables.retain(|&(v, _, _), _| v & OWNER != vmid);
        }
        self.pending.retain(|pending| pending.vmid & OWNER != vmid);
        self.step();
    }

    fn zero(&mut self, page: Pa) {
        self.check_private(page);
        self.pages.entry(page.0).or_default().cache = Some(Arc::new([0; 512]));
        self.step();
    }

    fn clean(&mut self, page: Pa) {
        self.check_private(page);
        if let Some(page) = self.pages.get_mut(&page.0)
            && let Some(cache) = page.cache.take()
        {
            page.memory = Some(cache);
        }
        self.step();
    }

    fn sync_icache(&mut self, page: Pa) {
        self.icache_synced.push(page);
        self.step();
    }

    fn ticks(&self) -> u64 {
        self.now
    }
}
