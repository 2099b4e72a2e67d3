//! An independent reading of all tables: the invariants that hold between any two calls.

use std::collections::{BTreeMap, BTreeSet};

use crate::desc::Desc;
use crate::fake::FakeMachine;
use crate::flexmem::State;
use crate::{FlexMem, PAGE_SIZE, Pa, Slot};

macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}

/// Entries that are neither 0 nor tables: address, level, entry. And the tables.
struct Reading {
    entries: BTreeMap<u64, (u8, Desc)>,
    tables: Vec<u64>,
}

fn read(m: &FakeMachine, table: Pa, level: u8, base: u64, out: &mut Reading) {
    for page in 0..if level == 1 { 2 } else { 1 } {
        let words = m.words(Pa(table.0 + page * PAGE_SIZE));
        let mut index = 0;
        while index < 512 {
            if words[index] != 0 {
                let desc = Desc(words[index]);
                let address = base + ((page * 512 + index as u64) << (39 - 9 * u32::from(level)));
                if desc.is_table(level) {
                    out.tables.push(desc.address());
                    read(m, Pa(desc.address()), level + 1, address, out);
                } else {
                    out.entries.insert(address, (level, desc));
                }
            }
            index += 1;
        }
    }
}

fn reading(m: &FakeMachine, root: Pa) -> Reading {
    let mut out = Reading { entries: BTreeMap::new(), tables: Vec::new() };
    read(m, root, 1, 0, &mut out);
    out
}

/// Checks I1 over all trees, the records, the counts, the pool and the TLBs.
pub fn audit(fm: &FlexMem, m: &FakeMachine) -> Result<(), String> {
    let host = reading(m, fm.host.root);
    let host_at = |pa: u64| {
        let (&base, &(level, desc)) = host.entries.range(..=pa).next_back()?;
        let size = 1 << (39 - 9 * u32::from(level));
        (pa < base + size).then_some((level, desc, pa - base))
    };
    let mut tables = host.tables.clone();
    let (mut promised, mut shared_total) = (0, 0);
    let mut owned = BTreeMap::new();
    for slot in Slot::all() {
        let partition = &fm.partitions[slot.index()];
        let tree = if partition.state == State::Free { None } else { Some(reading(m, partition.tree.root)) };
        let Some(tree) = tree else {
            ensure!(
                partition.page_count == 0 && partition.shared_count == 0,
                "{slot:?}: counts of a free slot"
            );
            continue;
        };
        tables.extend(&tree.tables);
        let (mut pages, mut shared) = (0, 0);
        for (&ipa, &(level, desc)) in &tree.entries {
            ensure!(desc.is_valid() && level > 1, "{slot:?} {ipa:x}: {desc:x?}");
            promised += u64::from(level == 2);
            shared += u64::from(desc.is_shared());
            for i in 0..if level == 2 { 512 } else { 1 } {
                let (pa, at) = (desc.address() + i * PAGE_SIZE, ipa + i * PAGE_SIZE);
                pages += 1;
                ensure!(owned.insert(pa, (slot, at)).is_none(), "{pa:x} has two owners");
                let Some((host_level, host_desc, offset)) = host_at(pa) else {
                    return Err(format!("{pa:x}: {slot:?}'s and absent from the record"));
                };
                if desc.is_shared() {
                    let exact = host_desc.is_shared() && host_desc.address() == pa && host_level == 3;
                    ensure!(exact, "{pa:x} shared: {host_desc:x?}");
                } else {
                    let owner = host_desc.as_owner().map(|(slot, ipa)| (slot, ipa.0 + offset));
                    ensure!(owner == Some((slot, at)), "{pa:x} is {slot:?}'s at {at:x}: {host_desc:x?}");
                    ensure!(
                        host_level == level,
                        "{pa:x}: record of level {host_level}, mapping of level {level}"
                    );
                }
            }
        }
        ensure!((pages, shared) == (partition.page_count, partition.shared_count), "{slot:?}: counts");
        shared_total += shared;
    }

    let (mut leaves, mut records, mut from_host) = ([0; 3], 0, BTreeSet::new());
    for (&address, &(level, desc)) in &host.entries {
        if desc.is_valid() {
            leaves[usize::from(level) - 1] += 1;
            ensure!(desc.address() == address, "{address:x}: not identity, {desc:x?}");
        }
        if desc.as_owner().is_some() || desc.is_shared() {
            records += if level == 2 { 512 } else { 1 };
            promised += u64::from(level == 2);
        }
        if desc == Desc::TABLE_PAGE {
            from_host.insert(address);
        }
    }
    ensure!(records == owned.len(), "{records} records for {} pages", owned.len());
    let census = fm.census();
    ensure!(
        leaves == [census.leaves_1g, census.leaves_2m, census.leaves_4k],
        "leaves {leaves:?}, {census:?}"
    );
    ensure!(fm.counters.pages_shared == shared_total, "pages shared");

    let free = fm.pool.free_pages(m);
    for &(page, is_from_host) in &free {
        ensure!(from_host.contains(&page) == is_from_host, "{page:x}: on the wrong chain");
        ensure!(m.words(Pa(page))[1..].iter().all(|&word| word == 0), "{page:x}: free and not zero");
    }
    let mut all: Vec<u64> = tables.iter().copied().chain(free.iter().map(|&(page, _)| page)).collect();
    all.sort_unstable();
    ensure!(all.windows(2).all(|pair| pair[0] != pair[1]), "a table is used twice");
    let reachable =
        |page: &u64| host_at(*page).is_some_and(|(_, desc, _)| desc.is_valid()) || owned.contains_key(page);
    ensure!(!all.iter().any(reachable), "a table can be reached");
    ensure!(from_host.iter().all(|page| all.binary_search(page).is_ok()), "a table page is lost");
    ensure!(from_host.len() as u64 == census.tables_from_host, "tables from the host");
    ensure!(free.len() as u64 == census.tables_free, "free tables");
    ensure!(tables.len() as u64 == census.tables_used, "used tables: {} of {census:?}", tables.len());
    ensure!(promised == census.tables_promised, "{promised} promised, {census:?}");
    ensure!(promised <= census.tables_free, "promised tables are gone");

    if let Some(stale) = m.stale() {
        return Err(format!("stale: {stale}"));
    }
    Ok(())
}
