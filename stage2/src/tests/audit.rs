//! An independent reading of all tables: the invariants that hold between any two calls.

use std::collections::{BTreeMap, BTreeSet};

use crate::desc::Desc;
use crate::fake::FakeMachine;
use crate::flexmem::State;
use crate::{FlexMem, LoanId, LoanKind, MAX_LOANS, PAGE_SIZE, Pa, Party, Slot};

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

/// What the loans say: borrowed leaves (slot, IPA) with their pages, pages in loans of the host with whether they are shared,
/// and places in loans of partitions with whether the page is lent, and whether the host has it.
#[derive(Default)]
struct Loans {
    borrowed: BTreeMap<(Slot, u64), u64>,
    of_host: BTreeMap<u64, bool>,
    of_partition: BTreeMap<(Slot, u64), (bool, bool)>,
    lists: Vec<u64>,
}

fn loans(fm: &FlexMem, m: &FakeMachine) -> Result<Loans, String> {
    let mut out = Loans::default();
    for id in (0..MAX_LOANS).filter_map(LoanId::new) {
        let Some(loan) = fm.loan(id) else { continue };
        out.lists.push(loan.list.0);
        let mut pages = Vec::new();
        fm.clone()
            .each_page(&mut m.clone(), loan, |_, _, page| {
                pages.push(page);
                Ok(())
            })
            .unwrap();
        ensure!(pages.len() as u64 == loan.page_count, "{id:?}: pages");
        let Some(kind) = loan.kind else {
            ensure!(!loan.is_borrowed(), "{id:?}: a list is borrowed");
            continue;
        };
        let host_has = loan.place_of(Party::Host).is_some();
        for page in pages {
            let twice = match loan.lender {
                Party::Host => out.of_host.insert(page.pa, kind == LoanKind::Share).is_some(),
                Party::Partition(slot) => {
                    out.of_partition.insert((slot, page.at), (kind != LoanKind::Share, host_has)).is_some()
                }
            };
            ensure!(!twice, "{:x} is in two loans", page.at);
            for (party, ipa) in loan.borrowers.iter().flatten() {
                if let Party::Partition(slot) = party {
                    out.borrowed.insert((*slot, ipa.0 + page.index * PAGE_SIZE), page.pa);
                }
            }
        }
    }
    Ok(out)
}

/// Checks I1 over all trees, the records, the counts, the pool and the TLBs.
pub fn audit(fm: &FlexMem, m: &FakeMachine) -> Result<(), String> {
    let live = fm.partitions.iter().filter(|partition| partition.state != State::Free);
    for tree in live.map(|partition| partition.tree).chain([fm.host]) {
        for page in 0..2 {
            let at = |root: Pa| m.words(Pa(root.0 + page * PAGE_SIZE));
            let (entries, streamed) = (at(tree.root), at(tree.stream_root()));
            for (index, (entry, found)) in entries.iter().zip(streamed.iter()).enumerate() {
                let gibibyte = page as usize * 512 + index;
                // Mostly both are 0.
                let expected =
                    if *entry == 0 || fm.is_hidden_from_streams(tree, gibibyte) { 0 } else { *entry };
                ensure!(*found == expected, "VMID {}: streams see {found:x} at GiB {gibibyte}", tree.vmid);
            }
        }
    }
    let host = reading(m, fm.host.root);
    let host_at = |pa: u64| {
        let (&base, &(level, desc)) = host.entries.range(..=pa).next_back()?;
        let size = 1 << (39 - 9 * u32::from(level));
        (pa < base + size).then_some((level, desc, pa - base))
    };
    let loans = loans(fm, m)?;
    let mut tables = host.tables.clone();
    tables.extend(&loans.lists);
    let (mut borrowed_count, mut loaned_count) = (0, 0);
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
            ensure!((desc.is_valid() || desc.is_loaned()) && level > 1, "{slot:?} {ipa:x}: {desc:x?}");
            if desc.is_borrowed() {
                let expected = loans.borrowed.get(&(slot, ipa));
                ensure!(level == 3 && expected == Some(&desc.address()), "{slot:?} {ipa:x}: not lent to it");
                borrowed_count += 1;
                continue;
            }
            if desc.is_loaned() {
                let state = Some((!desc.is_valid(), desc.is_shared()));
                ensure!(
                    level == 3 && loans.of_partition.get(&(slot, ipa)).copied() == state,
                    "{slot:?} {ipa:x}: not in a loan like this"
                );
                loaned_count += 1;
            }
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

    let (mut leaves, mut records, mut from_host, mut host_loaned) = ([0; 3], 0, BTreeSet::new(), 0);
    for (&address, &(level, desc)) in &host.entries {
        if desc.is_valid() {
            leaves[usize::from(level) - 1] += 1;
            ensure!(desc.address() == address, "{address:x}: not identity, {desc:x?}");
        }
        if desc.as_owner().is_some() || desc.is_shared() {
            records += if level == 2 { 512 } else { 1 };
            promised += u64::from(level == 2);
        }
        if desc == Desc::LENT || desc.is_valid() && desc.is_loaned() {
            let shared = loans.of_host.get(&address).copied();
            ensure!(level == 3 && shared == Some(desc.is_valid()), "{address:x}: not in a loan like this");
            host_loaned += 1;
        }
        if desc == Desc::TABLE_PAGE {
            from_host.insert(address);
        }
    }
    ensure!(
        (borrowed_count, loaned_count, host_loaned)
            == (loans.borrowed.len(), loans.of_partition.len(), loans.of_host.len()),
        "pages of loans are missing"
    );
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
