//! Walks: level 1 (1 GiB, 1024 entries in two concatenated tables), level 2 (2 MiB), level 3 (4 KiB).

use crate::desc::Desc;
use crate::{ADDRESS_BITS, Machine, PAGE_SIZE, PARTITION_BITS, Pa, PageRange, STREAM_ROOT};

/// Level of pages.
pub(crate) const LAST_LEVEL: u8 = 3;
/// Entries of a table below the root.
pub(crate) const ENTRIES: usize = 512;
/// End of the address space.
pub(crate) const ADDRESS_END: u64 = 1 << ADDRESS_BITS;
/// End of a partition's memory; above it lie devices ([`crate::PARTITION_BITS`]).
pub(crate) const PARTITION_END: u64 = 1 << PARTITION_BITS;

/// A stage-2 tree. Its owner's SMMU streams walk another root, right behind `root`, that holds the same entries but those
/// with devices below them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tree {
    pub root: Pa,
    pub vmid: u16,
}

impl Tree {
    /// The root that streams walk.
    pub fn stream_root(self) -> Pa {
        Pa(self.root.0 + STREAM_ROOT)
    }
}

/// An entry, where it stands and what it was when it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub table: Pa,
    pub index: usize,
    pub level: u8,
    pub desc: Desc,
}

/// Address bits below the index of `level` (1 to 3).
pub(crate) const fn shift(level: u8) -> u32 {
    39 - 9 * level as u32
}

/// Bytes that an entry of `level` covers.
pub(crate) const fn size(level: u8) -> u64 {
    1 << shift(level)
}

/// `address` rounded down to the start of its entry of `level`.
pub(crate) const fn align(address: u64, level: u8) -> u64 {
    address & !(size(level) - 1)
}

/// Index of the entry of `level` that covers `address`.
pub(crate) const fn index(address: u64, level: u8) -> usize {
    let mask = if level == 1 { 2 * ENTRIES - 1 } else { ENTRIES - 1 };
    (address >> shift(level)) as usize & mask
}

/// The entry of `level` that covers `address`, or the one above it where the walk ends earlier.
pub(crate) fn find_at<M: Machine>(m: &M, root: Pa, address: u64, level: u8) -> Place {
    let (mut table, mut at) = (root, 1);
    loop {
        let index = index(address, at);
        let desc = Desc(m.load(table, index));
        if at >= level || !desc.is_table(at) {
            return Place { table, index, level: at, desc };
        }
        table = Pa(desc.address());
        at += 1;
    }
}

/// The entry where the walk for `address` ends.
pub(crate) fn find<M: Machine>(m: &M, root: Pa, address: u64) -> Place {
    find_at(m, root, address, LAST_LEVEL)
}

/// The first address in `[from, end)` whose entry is wanted, and the entry. At most 3 loads per entry skipped.
pub(crate) fn next<M: Machine>(
    m: &M,
    root: Pa,
    from: u64,
    end: u64,
    wanted: impl Fn(Desc) -> bool,
) -> Option<(u64, Place)> {
    let mut at = from;
    while at < end {
        let place = find(m, root, at);
        if wanted(place.desc) {
            return Some((at, place));
        }
        at = align(at, place.level) + size(place.level);
    }
    None
}

/// The parts of a range that lie in different 2 MiB, ascending: address and pages.
pub(crate) fn chunks(range: PageRange) -> impl Iterator<Item = (u64, u64)> {
    let (mut at, end) = (range.base().0, range.end().0);
    core::iter::from_fn(move || {
        let base = at;
        at = end.min(align(at, 2) + size(2));
        (base < end).then_some((base, (at - base) / PAGE_SIZE))
    })
}

/// Tables missing for 4 KiB entries around `address`, when those around `last`, not above it, have been made.
pub(crate) fn tables_missing<M: Machine>(m: &M, root: Pa, address: u64, last: Option<u64>) -> u64 {
    let missing = u64::from(LAST_LEVEL - find(m, root, address).level);
    match last {
        Some(last) if align(last, 2) == align(address, 2) => 0,
        Some(last) if align(last, 1) == align(address, 1) => missing.min(1),
        _ => missing,
    }
}
