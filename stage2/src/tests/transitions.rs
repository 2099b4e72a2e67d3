//! Give, recall, share, destroy and table memory, one property a test.

use super::*;

const IPA: u64 = 0x1_0000_0000;

fn states(w: &World, base: u64, count: u64, state: PageState) -> bool {
    (0..count).all(|i| w.state(base + i * PAGE_SIZE) == state)
}

/// The world as the host sees it: its map's shape and its tables.
fn shape(w: &World) -> Census {
    w.fm.census()
}

#[test]
fn give_takes_the_page_from_the_host_and_zeroes_it() {
    let mut w = World::booted(64);
    let page = RAM + 5 * PAGE_SIZE;
    for core in 0..2 {
        assert!(w.m.write(core, HOST_VMID, Ipa(page), 77));
    }
    assert_eq!(w.give(0, &[range(page, 1)], IPA), Ok(1));
    w.check();
    for core in 0..2 {
        assert_eq!(w.m.read(core, HOST_VMID, Ipa(page), true), None);
        assert!(!w.m.write(core, HOST_VMID, Ipa(page), 1));
        assert!(!w.m.can_execute(core, HOST_VMID, Ipa(page)));
        assert_eq!(w.m.read(core, slot(0).vmid(), Ipa(IPA), true), Some(0));
        assert_eq!(
            w.m.read(core, slot(0).vmid(), Ipa(IPA), false),
            Some(0),
            "the partition's caches are off at first"
        );
        assert_eq!(w.m.read(core, slot(1).vmid(), Ipa(IPA), true), None);
    }
    assert_eq!(w.state(page), PageState::Partition { slot: slot(0), ipa: Ipa(IPA) });
    assert!(w.m.read(0, HOST_VMID, Ipa(page - PAGE_SIZE), true).is_some());
    assert!(w.m.read(0, HOST_VMID, Ipa(page + PAGE_SIZE), true).is_some());
}

#[test]
fn give_keeps_contents_in_memory_too() {
    let mut w = World::booted(64);
    w.m.write_page(Pa(RAM), &[7; 4096]);
    w.give_with(0, &[range(RAM, 1)], IPA, Access::Read, Fill::Keep).unwrap();
    w.check();
    let bytes = u64::from_le_bytes([7; 8]);
    assert_eq!(w.m.read(0, slot(0).vmid(), Ipa(IPA), true), Some(bytes));
    assert_eq!(w.m.read(0, slot(0).vmid(), Ipa(IPA), false), Some(bytes));
    assert!(!w.m.write(0, slot(0).vmid(), Ipa(IPA), 1));
}

#[test]
fn rights_are_exclusive_of_write_and_execute() {
    let mut w = World::booted(64);
    for (i, access) in [Access::Read, Access::ReadWrite, Access::ReadExecute].into_iter().enumerate() {
        let ipa = IPA + i as u64 * PAGE_SIZE;
        w.give_with(0, &[range(RAM + i as u64 * PAGE_SIZE, 1)], ipa, access, Fill::Zero).unwrap();
        let page = w.fm.partition_page(&w.m, slot(0), Ipa(ipa + 5)).unwrap();
        assert_eq!((page.access, page.ipa), (access, Ipa(ipa)));
        assert_eq!(w.m.write(0, slot(0).vmid(), Ipa(ipa), 1), access == Access::ReadWrite);
        assert_eq!(w.m.can_execute(0, slot(0).vmid(), Ipa(ipa)), access == Access::ReadExecute);
    }
    assert_eq!(w.m.icache_synced, [Pa(RAM + 2 * PAGE_SIZE)]);
    w.check();
}

#[test]
fn recall_scrubs_and_restores_the_block() {
    for pages in [1, 2, 64, 511, 512] {
        let mut w = World::booted(64);
        let boot = shape(&w);
        w.give(0, &[range(RAM + 3 * MIB2, pages)], IPA).unwrap();
        w.write_secrets();
        w.check();
        assert_eq!(w.recall(0, IPA, pages), Ok(pages));
        w.check();
        assert!(!w.host_reads_secret((0..pages).map(|i| RAM + 3 * MIB2 + i * PAGE_SIZE)));
        assert!(states(&w, RAM + 3 * MIB2, pages, PageState::HostOwned));
        assert_eq!(shape(&w), boot);
        let counters = w.fm.counters();
        assert_eq!((counters.give.pages, counters.recall.pages), (pages, pages));
        assert_eq!(counters.splits, counters.coalesces);
    }
}

#[test]
fn contiguous_two_mib_become_a_block_on_both_sides() {
    let mut w = World::booted(64);
    let used = shape(&w).tables_used;
    w.give(0, &[range(RAM, 512)], IPA).unwrap();
    w.check();
    // One level-2 table on each side; the level-3 tables came back, and are promised.
    let census = shape(&w);
    assert_eq!((census.tables_used - used, census.tables_promised), (2, 2));
    assert_eq!(w.state(RAM + 0x1234), PageState::Partition { slot: slot(0), ipa: Ipa(IPA + 0x1000) });
    let page = w.fm.partition_page(&w.m, slot(0), Ipa(IPA + 0x1234)).unwrap();
    assert_eq!((page.ipa, page.pa), (Ipa(IPA + 0x1000), Pa(RAM + 0x1000)));
    assert_eq!(w.pages_of(0).len(), 512);

    // Piece by piece, in two calls and two ranges, works the same; not aligned with each other, it does not.
    w.give(0, &[range(RAM + MIB2, 1), range(RAM + MIB2 + PAGE_SIZE, 99)], IPA + MIB2).unwrap();
    w.give(0, &[range(RAM + MIB2 + 100 * PAGE_SIZE, 412)], IPA + MIB2 + 100 * PAGE_SIZE).unwrap();
    assert_eq!(shape(&w).tables_promised, 4);
    w.give(0, &[range(RAM + 3 * MIB2, 512)], IPA + 4 * MIB2 + PAGE_SIZE).unwrap();
    w.give(0, &[range(RAM + 5 * MIB2 + PAGE_SIZE, 512)], IPA + 8 * MIB2).unwrap();
    assert_eq!(shape(&w).tables_promised, 4);
    w.check();
}

/// Uses up every table page that gives can have.
fn exhaust(w: &mut World, s: usize) {
    let mut at = 0;
    while w.give(s, &[range(RAM + (1 << 29) + at * MIB2, 1)], IPA * 2 + at * PAGE_SIZE).is_ok() {
        at += 1;
    }
    assert!(at > 0);
    // And the reserve, as if tables had been given from scattered places.
    while w.fm.pool.spare() > 0 {
        w.fm.pool.take(&mut w.m).unwrap();
        w.fm.pool.total -= 1;
    }
}

#[test]
fn recall_share_and_destroy_need_no_tables() {
    let mut w = World::booted(24);
    w.give(0, &[range(RAM, 512)], IPA).unwrap();
    w.give(1, &[range(RAM + MIB2, 512)], IPA).unwrap();
    w.give(0, &[range(RAM + 2 * MIB2, 512)], IPA + MIB2).unwrap();
    exhaust(&mut w, 1);
    assert_eq!(w.fm.pool.spare(), 0);
    w.write_secrets();
    // The middle of a block, twice; a share in another; then everything.
    assert_eq!(w.recall(0, IPA + 100 * PAGE_SIZE, 1), Ok(1));
    w.check();
    assert_eq!(w.recall(0, IPA + 200 * PAGE_SIZE, 100), Ok(100));
    w.check();
    assert_eq!(w.share(0, IPA + MIB2 + PAGE_SIZE), Ok(()));
    w.check();
    for (s, step) in [(0, 7), (1, 512)] {
        let mut remaining = w.fm.partition_page_count(slot(s));
        while remaining > 0 {
            let now = w.destroy(s, step).unwrap();
            assert_eq!(now, remaining.saturating_sub(step));
            remaining = now;
            w.check();
        }
        assert_eq!(w.fm.partition_page_count(slot(s)), 0);
    }
    assert_eq!((shape(&w).leaves_1g, shape(&w).tables_promised), (1, 0));
    assert!(!w.host_reads_secret((0..3 * 512).map(|i| RAM + i * PAGE_SIZE)));
}

#[test]
fn tables_asked_for_are_enough() {
    for (count, stride) in [(1, 1), (5, 1), (30, 3), (200, 2), (256, 1)] {
        let mut w = World::booted(6);
        let ranges: Vec<_> = (0..count).map(|i| range(RAM + (1 << 28) + i * stride * MIB2 / 2, 1)).collect();
        let mut from = RAM;
        let error = w.give(0, &ranges, IPA).unwrap_err();
        let Error::NoTables { needed } = error else { panic!("{error:?}") };
        let mut left = needed;
        while left > 0 {
            let part = left.min(512);
            assert_eq!(w.fm.host_give_tables(&mut w.m, &[range(from, part)]), Ok(part));
            w.check();
            (from, left) = (from + part * PAGE_SIZE, left - part);
        }
        assert_eq!(w.give(0, &ranges, IPA), Ok(count), "{needed} tables were not enough");
        w.check();
        // At most what taking them out costs is left over.
        let spare = w.fm.pool.spare() - RESERVE;
        assert!(spare <= 4 * (needed / 500 + 1), "{spare} too many of {needed}");
    }
}

#[test]
fn tables_come_back_to_the_last_page() {
    let mut w = World::booted(12);
    let boot = shape(&w);
    // Runs and scattered pages, so that table pages hold the tables of blocks that table pages came from.
    let scattered: Vec<_> = (0..8).map(|i| range(RAM + (100 + i) * MIB2 + PAGE_SIZE, 1)).collect();
    for page in range(RAM + (1 << 29) - PAGE_SIZE, 40).pages() {
        w.m.write_page(page, &[0xb5; 4096]);
        assert!(w.m.write(0, HOST_VMID, Ipa(page.0), 0xb05));
    }
    assert_eq!(w.fm.host_give_tables(&mut w.m, &[range(RAM + (1 << 29) - PAGE_SIZE, 40)]), Ok(40));
    assert_eq!(w.fm.host_give_tables(&mut w.m, &scattered), Ok(8));
    w.check();
    let ranges: Vec<_> = (0..30).map(|i| range(RAM + (200 + i) * MIB2, 2)).collect();
    assert_eq!(w.give(0, &ranges, IPA), Ok(60));
    w.check();
    let mut out = [PageRange::EMPTY; 3];
    let mut total = 0;
    for destroyed in [false, true] {
        if destroyed {
            assert_eq!(w.destroy(0, 512), Ok(0));
        }
        loop {
            let (ranges, pages) = w.fm.host_recall_tables(&mut w.m, &mut out, 7).unwrap();
            w.check();
            assert!(pages <= 7);
            assert_eq!(out[..ranges].iter().map(PageRange::page_count).sum::<u64>(), pages);
            for page in out[..ranges].iter().flat_map(PageRange::pages) {
                assert_eq!(w.state(page.0), PageState::HostOwned);
                assert_eq!((w.m.read_page(page), w.m.memory_word(page)), ([0; 4096], 0));
            }
            total += pages;
            if pages == 0 {
                break;
            }
        }
    }
    assert_eq!((total, shape(&w)), (48, boot));
}

#[test]
fn table_pages_never_use_up_the_reserve() {
    // One page from each of many blocks: each costs the table that it brings, and only the first a level-2 table.
    let mut w = World::booted(8);
    let spare = w.fm.pool.spare();
    for i in 0..300 {
        assert_eq!(w.fm.host_give_tables(&mut w.m, &[range(RAM + i * MIB2, 1)]), Ok(1));
    }
    w.check();
    assert_eq!(w.fm.pool.spare(), spare - 1);
}

#[test]
fn the_reserve_does_not_go_back() {
    let mut w = World::booted(6);
    assert!(w.fm.pool.spare() < RESERVE);
    w.fm.host_give_tables(&mut w.m, &[range(RAM, 20)]).unwrap();
    let mut out = [PageRange::EMPTY; 512];
    let (_, pages) = w.fm.host_recall_tables(&mut w.m, &mut out, 512).unwrap();
    assert!(pages > 0 && pages < 20);
    assert_eq!(w.fm.pool.spare(), RESERVE);
    w.check();
}

#[test]
fn own_table_pages_are_used_first() {
    let mut w = World::booted(64);
    w.fm.host_give_tables(&mut w.m, &[range(RAM, 20)]).unwrap();
    w.give(0, &(10..20).map(|i| range(RAM + i * MIB2, 1)).collect::<Vec<_>>(), IPA).unwrap();
    let mut out = [PageRange::EMPTY; 512];
    assert_eq!(w.fm.host_recall_tables(&mut w.m, &mut out, 512), Ok((1, 20)));
    assert_eq!(out[0], range(RAM, 20));
    w.check();
}

#[test]
fn sharing_is_explicit_and_per_page() {
    let mut w = World::booted(64);
    w.give(0, &[range(RAM, 512)], IPA).unwrap();
    let ipa = IPA + 9 * PAGE_SIZE;
    let pa = RAM + 9 * PAGE_SIZE;
    // Zeroed by the partition, but an old secret is still in memory.
    w.m.write(0, slot(0).vmid(), Ipa(ipa), secret(slot(0)));
    w.m.write_back(0, slot(0).vmid(), Ipa(ipa), 0);
    w.share(0, ipa).unwrap();
    w.check();
    assert!(!w.host_reads_secret([pa]));
    assert_eq!(w.state(pa), PageState::Shared);
    assert!(w.m.write(1, HOST_VMID, Ipa(pa), 42));
    assert_eq!(w.m.read(0, slot(0).vmid(), Ipa(ipa), true), Some(42));
    assert!(!w.m.can_execute(0, HOST_VMID, Ipa(pa)));
    assert_eq!(w.m.read(0, HOST_VMID, Ipa(pa + PAGE_SIZE), true), None);
    assert!(!w.fm.host_owns(&w.m, Pa(pa), 1));
    w.unshare(0, ipa).unwrap();
    w.check();
    assert_eq!(w.m.read(1, HOST_VMID, Ipa(pa), true), None);
    assert_eq!(w.m.read(0, slot(0).vmid(), Ipa(ipa), true), Some(0));
    assert_eq!(w.m.memory_word(Pa(pa)), 0);
    // The block is whole again.
    assert_eq!(shape(&w).tables_promised, 2);
    assert_eq!(w.fm.counters().pages_shared, 0);
}

#[test]
fn shared_pages_are_recalled_scrubbed() {
    let mut w = World::booted(64);
    let boot = shape(&w);
    w.give(0, &[range(RAM, 20)], IPA).unwrap();
    for i in (0..20).step_by(2) {
        w.share(0, IPA + i * PAGE_SIZE).unwrap();
        w.m.write(0, slot(0).vmid(), Ipa(IPA + i * PAGE_SIZE), secret(slot(0)));
        w.m.read(1, HOST_VMID, Ipa(RAM + i * PAGE_SIZE), true);
    }
    w.check();
    assert_eq!(w.recall(0, IPA, 1), Ok(1));
    w.check();
    assert_eq!(w.destroy(0, 512), Ok(0));
    w.check();
    assert!(!w.host_reads_secret((0..20).map(|i| RAM + i * PAGE_SIZE)));
    assert_eq!(shape(&w), boot);
}

#[test]
fn refused_gives() {
    let mut w = World::booted(64);
    w.give(0, &[range(RAM, 1)], IPA).unwrap();
    w.fm.host_pin(&w.m, Pa(RAM + 2 * PAGE_SIZE)).unwrap();
    let give = |ranges: Vec<PageRange>, ipa: u64| move |w: &mut World| w.give(0, &ranges, ipa);
    let free = range(RAM + 0x10_0000, 2);
    w.refused(Error::InvalidRange, give(vec![], IPA * 2));
    w.refused(Error::InvalidRange, give(vec![free, PageRange::EMPTY], IPA * 2));
    w.refused(Error::TooMany, give(vec![range(RAM + MIB2, 513)], IPA * 2));
    w.refused(Error::TooMany, give(vec![range(RAM + MIB2, 1 << 27); 3], IPA * 2));
    w.refused(
        Error::TooMany,
        give((0..513).map(|i| range(RAM + MIB2 + i * PAGE_SIZE, 1)).collect(), IPA * 2),
    );
    w.refused(Error::Overlap { pa: free.base() }, give(vec![free, free], IPA * 2));
    let overlap = Pa(free.base().0 + PAGE_SIZE);
    w.refused(Error::Overlap { pa: overlap }, give(vec![range(overlap.0, 4), free], IPA * 2));
    w.refused(Error::NotHostOwned { pa: Pa(RAM) }, give(vec![free, range(RAM, 1)], IPA * 2));
    w.refused(Error::NotHostOwned { pa: Pa(HYP) }, give(vec![range(HYP, 1)], IPA * 2));
    w.refused(Error::NotHostOwned { pa: Pa(ABSENT) }, give(vec![range(ABSENT, 1)], IPA * 2));
    let end = RAM_SMALL + RAM_SMALL_SIZE;
    w.refused(Error::NotHostOwned { pa: Pa(end) }, give(vec![range(end - PAGE_SIZE, 2)], IPA * 2));
    w.refused(Error::NotRam { pa: Pa(DEVICE) }, give(vec![range(DEVICE, 1)], IPA * 2));
    w.refused(Error::Pinned { pa: Pa(RAM + 2 * PAGE_SIZE) }, give(vec![range(RAM + PAGE_SIZE, 9)], IPA * 2));
    w.refused(Error::Unaligned, give(vec![free], IPA * 2 + 1));
    w.refused(Error::IpaTaken { ipa: Ipa(IPA) }, give(vec![free], IPA - PAGE_SIZE));
    w.refused(Error::IpaOutOfRange, give(vec![free], (1 << 39) - PAGE_SIZE));
    w.refused(Error::IpaOutOfRange, give(vec![free], 1 << 39));
    w.refused(Error::IpaOutOfRange, give(vec![free], 0u64.wrapping_sub(PAGE_SIZE)));
    w.refused(Error::NoSuchPartition, |w| w.give(2, &[free], IPA));
    // The last page of the partition's space is as good as any.
    assert_eq!(w.give(0, &[free], (1 << 39) - 2 * PAGE_SIZE), Ok(2));
    w.check();
}

#[test]
fn refused_recalls() {
    let mut w = World::booted(64);
    w.give(0, &[range(RAM, 4)], IPA).unwrap();
    let recall = |ipa: u64, count: u64| move |w: &mut World| w.recall(0, ipa, count);
    w.refused(Error::NotGiven { ipa: Ipa(IPA + 4 * PAGE_SIZE) }, recall(IPA, 5));
    w.refused(Error::NotGiven { ipa: Ipa(IPA - PAGE_SIZE) }, recall(IPA - PAGE_SIZE, 1));
    w.refused(Error::Unaligned, recall(IPA + 1, 1));
    w.refused(Error::InvalidRange, recall(IPA, 0));
    w.refused(Error::IpaOutOfRange, recall(1 << 39, 1));
    w.refused(Error::IpaOutOfRange, recall(u64::MAX - PAGE_SIZE + 1, 1));
    w.refused(Error::TooMany, recall(IPA, 513));
    w.refused(Error::TooMany, recall(IPA, u64::MAX));
    w.refused(Error::NotGiven { ipa: Ipa(IPA) }, |w| w.recall(1, IPA, 1));
    w.refused(Error::NoSuchPartition, |w| w.recall(2, IPA, 1));
    w.refused(Error::NoSuchPartition, |w| w.destroy(2, 1));
    w.refused(Error::SlotTaken, |w| w.fm.partition_create(&mut w.m, slot(0)));
    // A dying partition only loses pages.
    assert_eq!(w.destroy(0, 0), Ok(4));
    w.refused(Error::Busy, recall(IPA, 1));
    w.refused(Error::Busy, |w| w.give(0, &[range(RAM + MIB2, 1)], IPA * 2));
    w.refused(Error::Busy, |w| w.share(0, IPA));
    w.refused(Error::SlotTaken, |w| w.fm.partition_create(&mut w.m, slot(0)));
    assert_eq!(w.destroy(0, u64::MAX), Ok(0));
    assert_eq!(w.fm.stream_root(Party::Partition(slot(0))), Err(Error::NoSuchPartition));
    assert_eq!(w.fm.partition_create(&mut w.m, slot(0)), Ok(()));
    assert_eq!(w.pages_of(0), []);
    w.check();
}

#[test]
fn refused_shares() {
    let mut w = World::booted(64);
    w.give(0, &[range(RAM, 1)], IPA).unwrap();
    w.give_with(0, &[range(RAM + PAGE_SIZE, 1)], IPA + PAGE_SIZE, Access::Read, Fill::Keep).unwrap();
    w.give_with(0, &[range(RAM + 2 * PAGE_SIZE, 1)], IPA + 2 * PAGE_SIZE, Access::ReadExecute, Fill::Keep)
        .unwrap();
    for i in 1..3 {
        let ipa = Ipa(IPA + i * PAGE_SIZE);
        w.refused(Error::NotShareable { ipa }, |w| w.share(0, ipa.0));
    }
    w.refused(Error::NotGiven { ipa: Ipa(0) }, |w| w.share(0, 0));
    w.refused(Error::NotGiven { ipa: Ipa(IPA) }, |w| w.share(1, IPA));
    w.refused(Error::NotShared { ipa: Ipa(IPA) }, |w| w.unshare(0, IPA));
    w.refused(Error::Unaligned, |w| w.share(0, IPA + 8));
    w.refused(Error::IpaOutOfRange, |w| w.share(0, 1 << 39));
    w.refused(Error::IpaOutOfRange, |w| w.unshare(0, u64::MAX - PAGE_SIZE + 1));
    w.refused(Error::NoSuchPartition, |w| w.share(9, IPA));
    w.share(0, IPA).unwrap();
    w.refused(Error::AlreadyShared { ipa: Ipa(IPA) }, |w| w.share(0, IPA));
    w.check();
}

#[test]
fn refused_table_gifts() {
    let mut w = World::booted(64);
    w.fm.host_pin(&w.m, Pa(RAM)).unwrap();
    let tables = |ranges: Vec<PageRange>| move |w: &mut World| w.fm.host_give_tables(&mut w.m, &ranges);
    w.refused(Error::InvalidRange, tables(vec![]));
    w.refused(Error::TooMany, tables(vec![range(RAM, 513)]));
    w.refused(Error::Pinned { pa: Pa(RAM) }, tables(vec![range(RAM, 4)]));
    w.refused(Error::NotHostOwned { pa: Pa(HYP) }, tables(vec![range(RAM + MIB2, 1), range(HYP, 1)]));
    w.refused(Error::NotRam { pa: Pa(DEVICE) }, tables(vec![range(DEVICE, 1)]));
    w.refused(
        Error::Overlap { pa: Pa(RAM + MIB2) },
        tables(vec![range(RAM + MIB2, 1), range(RAM + MIB2, 1)]),
    );
    assert_eq!(w.fm.host_recall_tables(&mut w.m, &mut [], 9), Ok((0, 0)));
    assert_eq!(w.fm.host_recall_tables(&mut w.m, &mut [PageRange::EMPTY], u64::MAX), Ok((0, 0)));
    // With nothing at all to split with, it says so.
    while w.fm.pool.take(&mut w.m).is_some() {
        w.fm.pool.total -= 1;
    }
    w.refused(Error::NoTables { needed: 2 }, tables(vec![range(RAM + MIB2, 1)]));
}

#[test]
fn pins() {
    let mut w = World::booted(64);
    for i in 0..MAX_PINS as u64 {
        assert_eq!(w.fm.host_pin(&w.m, Pa(RAM + i * PAGE_SIZE)), Ok(()));
    }
    assert_eq!(w.fm.host_pin(&w.m, Pa(RAM)), Err(Error::Pinned { pa: Pa(RAM) }));
    assert_eq!(w.fm.host_pin(&w.m, Pa(RAM + MIB2)), Err(Error::TooManyPins));
    assert_eq!(w.fm.host_unpin(Pa(RAM + MIB2)), Err(Error::NotPinned { pa: Pa(RAM + MIB2) }));
    assert_eq!(w.fm.host_unpin(Pa(RAM)), Ok(()));
    assert_eq!(w.fm.host_pin(&w.m, Pa(RAM + 1)), Err(Error::Unaligned));
    assert_eq!(w.fm.host_pin(&w.m, Pa(HYP)), Err(Error::NotHostOwned { pa: Pa(HYP) }));
    assert_eq!(w.give(0, &[range(RAM, 1)], IPA), Ok(1));
    assert_eq!(w.fm.host_pin(&w.m, Pa(RAM)), Err(Error::NotHostOwned { pa: Pa(RAM) }));
    w.check();
}

#[test]
fn host_owns_exactly_its_ram() {
    let mut w = World::booted(64);
    w.give(0, &[range(RAM + 8 * PAGE_SIZE, 1)], IPA).unwrap();
    let owns = |base: u64, len: u64| w.fm.host_owns(&w.m, Pa(base), len);
    assert!(owns(RAM, 1) && owns(RAM + 7, 8 * PAGE_SIZE - 7) && owns(RAM + MIB2, MIB2));
    assert!(!owns(RAM + 7, 8 * PAGE_SIZE - 6) && !owns(RAM, 0) && !owns(RAM + MIB2, MIB2 + 1));
    assert!(!owns(RAM - 1, 2) && !owns(DEVICE, 1) && !owns(HYP, 1) && !owns(ABSENT, 1));
    assert!(!owns(u64::MAX, 2) && !owns(u64::MAX, 1) && !owns(RAM, u64::MAX) && !owns(1 << 39, 1));
}

#[test]
fn scrub_all_reaches_every_page_of_every_partition() {
    let mut w = World::booted(64);
    w.give(0, &[range(RAM, 512)], IPA).unwrap();
    w.give(1, &[range(RAM_SMALL, 3), range(RAM + MIB2 + PAGE_SIZE, 2)], 0).unwrap();
    w.share(1, PAGE_SIZE).unwrap();
    w.write_secrets();
    w.m.write(0, slot(1).vmid(), Ipa(PAGE_SIZE), secret(slot(1)));
    w.m.write(0, HOST_VMID, Ipa(RAM + MIB2), 99);
    let mut scrubbed = w.clone();
    scrubbed.fm.scrub_all(&mut scrubbed.m);
    scrubbed.check();
    for s in 0..2 {
        for page in scrubbed.pages_of(s) {
            assert_eq!(w.m.memory_word(page.pa), secret(slot(s)));
            assert_eq!((scrubbed.m.memory_word(page.pa), scrubbed.m.read_page(page.pa)), (0, [0; 4096]));
        }
    }
    assert_eq!(scrubbed.m.read(0, HOST_VMID, Ipa(RAM + MIB2), true), Some(99));
}

#[test]
fn costs_add_up() {
    let mut w = World::booted(64);
    let before = w.m.now;
    w.give(0, &[range(RAM, 64)], IPA).unwrap();
    let give = w.fm.counters().last_give;
    assert_eq!((give.calls, give.pages), (1, 64));
    assert_eq!(give.validate + give.tables + give.tlbi + give.scrub, w.m.now - before);
    assert_eq!(give.scrub, 2 * 64);
    assert_eq!(give.tlbi, w.fm.counters().tlbi_count);
    // 2 splits and 1 for the call.
    assert_eq!(give.tlbi, 3);
    let before = w.m.now;
    w.recall(0, IPA, 64).unwrap();
    let recall = w.fm.counters().recall;
    assert_eq!(recall.validate + recall.tables + recall.tlbi + recall.scrub, w.m.now - before);
    assert_eq!((recall, recall.pages), (w.fm.counters().last_recall, 64));
}

#[test]
fn many_runs_are_invalidated_at_once() {
    let mut w = World::booted(64);
    let ranges: Vec<_> = (0..256).rev().map(|i| range(RAM + 2 * i * PAGE_SIZE, 1)).collect();
    let before = w.fm.counters().tlbi_count;
    w.give(0, &ranges, IPA).unwrap();
    w.check();
    // 2 splits and 1 for the call.
    assert_eq!(w.fm.counters().tlbi_count - before, 3);
    // An empty partition's VMID is invalidated too, before it is used again.
    let before = w.fm.counters().tlbi_count;
    assert_eq!(w.destroy(1, 1), Ok(0));
    assert_eq!(w.fm.counters().tlbi_count - before, 1);
    // In ascending order of IPA the pages descend.
    assert_eq!(w.pages_of(0)[0].pa, Pa(RAM + 510 * PAGE_SIZE));
}
