//! The vendor service's operations: arguments, lists, and the map of errors.

use super::*;
use crate::service::Refusal;
use hyp_abi::ffa::error::*;
use stage2::{Error, Ipa};

#[test]
fn info_says_what_this_is() {
    let mut world = World::new();
    let flags = u64::from(cfg!(feature = "fault-knobs"));
    assert_eq!(world.ok(op::INFO, &[]), [0x1_0000, flags, 16, 1_000_000]);
}

#[test]
fn unknown_operations_and_those_of_partitions_are_refused() {
    let mut world = World::new();
    for operation in op::REGION..=op::PANIC {
        assert_eq!(world.request(operation, &[IMAGE]), (DENIED, [0; 4]));
    }
    let mut unknown = vec64(&[0x03, 0x0f, 0x18, 0x25, 0x100, u64::MAX, 1 << 32]);
    if cfg!(not(feature = "fault-knobs")) {
        unknown.push(op::KNOB);
    }
    let before = world.hyp.counters.refused_calls;
    for operation in &unknown {
        assert_eq!(world.request(*operation, &[1, 1]), (NOT_SUPPORTED, [0; 4]));
    }
    assert_eq!(world.hyp.counters.refused_calls, before + unknown.len() as u64);
}

#[test]
fn operations_on_partitions_that_do_not_exist() {
    let mut world = World::new();
    for id in [0x8002, 0x8011, 0x8012, 0x8001, 0, 1, u64::MAX, 1 << 32 | 0x8002] {
        for operation in [op::GIVE, op::MEASURE, op::START, op::STOP, op::RECALL, op::DESTROY, op::STATS] {
            if (operation, id) != (op::STATS, 0) {
                let refused = (INVALID_PARAMETERS, [id, 0, 0, 0]);
                assert_eq!(world.request(operation, &[id, HEAP, 1]), refused, "{operation:x} {id:x}");
            }
        }
    }
}

#[test]
fn lists_need_a_mailbox() {
    let mut world = World::bare(30);
    for operation in [op::TABLES_GIVE, op::TABLES_RECALL] {
        assert_eq!(world.request(operation, &[1]), (DENIED, [0; 4]));
    }
    assert_eq!(world.request(op::CREATE, &[432]), (DENIED, [0; 4]));
}

#[test]
fn lists_are_validated_before_anything_moves() {
    let mut world = World::new();
    let id = world.populated();
    let free = RAM + 0x800_0000;
    let at = HEAP + 100 * PAGE;
    let census = world.census();
    type Case<'a> = (&'a str, &'a [(u64, u64)], i32, u64);
    let cases: &[Case] = &[
        ("unaligned", &[(free + 8, 1)], INVALID_PARAMETERS, free + 8),
        ("second unaligned", &[(free, 1), (free + 0x1004, 1)], INVALID_PARAMETERS, free + 0x1004),
        ("empty", &[(free, 0)], INVALID_PARAMETERS, free),
        ("wraps", &[(u64::MAX << 12, 2)], INVALID_PARAMETERS, u64::MAX << 12),
        ("wraps by its count", &[(free, u64::MAX)], INVALID_PARAMETERS, free),
        ("wraps exactly to zero", &[(free, 1 << 52)], INVALID_PARAMETERS, free),
        ("beyond 2^40", &[(1 << 40, 1)], INVALID_PARAMETERS, 1 << 40),
        ("across 2^40", &[((1 << 40) - PAGE, 2)], INVALID_PARAMETERS, (1 << 40) - PAGE),
        ("too many pages", &[(free, 513)], INVALID_PARAMETERS, free),
        (
            "too many pages together",
            &[(free, 512), (free + 0x40_0000, 1)],
            INVALID_PARAMETERS,
            free + 0x40_0000,
        ),
        ("overlap", &[(free, 4), (free + 3 * PAGE, 2)], INVALID_PARAMETERS, free + 3 * PAGE),
        ("the same twice", &[(free, 1), (free, 1)], INVALID_PARAMETERS, free),
        ("given already", &[(PAGES, 1)], DENIED, PAGES),
        ("given already, in a run", &[(PAGES - PAGE, 3)], DENIED, PAGES),
        ("the hypervisor's", &[(HYPERVISOR, 1)], DENIED, HYPERVISOR),
        ("the hypervisor's, in a run", &[(HYPERVISOR - PAGE, 2)], DENIED, HYPERVISOR),
        ("a device's", &[(DEVICE, 1)], DENIED, DEVICE),
        ("nobody's", &[(ABSENT, 1)], DENIED, ABSENT),
        ("a mailbox", &[(TX, 1)], DENIED, TX),
    ];
    for (name, list, code, offence) in cases {
        let refused = (*code, [*offence, 0, 0, 0]);
        assert_eq!(world.with_list(op::GIVE, &[id, at], list), refused, "give: {name}");
        assert_eq!(world.with_list(op::TABLES_GIVE, &[], list), refused, "tables: {name}");
        assert_eq!(world.census(), census, "{name}");
    }
    for count in [0, 257, 1 << 32, u64::MAX] {
        assert_eq!(world.request(op::GIVE, &[id, at, count]), (INVALID_PARAMETERS, [0; 4]));
        assert_eq!(world.request(op::TABLES_GIVE, &[count]), (INVALID_PARAMETERS, [0; 4]));
    }
    // The most that a list holds.
    let list: Vec<_> = (0..256).map(|i| (free + i * 3 * PAGE, 2)).collect();
    assert_eq!(world.with_list(op::GIVE, &[id, at], &list), (0, [512, 0, 0, 0]));
}

#[test]
fn pages_land_inside_one_region() {
    let mut world = World::new();
    let id = world.populated();
    let free = RAM + 0x800_0000;
    for (ipa, pages, code) in [
        (IMAGE - PAGE, 1, INVALID_PARAMETERS),
        (IMAGE + 64 * PAGE, 1, INVALID_PARAMETERS),
        (IMAGE + 60 * PAGE, 5, INVALID_PARAMETERS),
        (IMAGE + 50 * PAGE + 8, 1, INVALID_PARAMETERS),
        (HEAP + 2047 * PAGE, 2, INVALID_PARAMETERS),
        (0, 1, INVALID_PARAMETERS),
        (1 << 40, 1, INVALID_PARAMETERS),
        (u64::MAX << 12, 1, INVALID_PARAMETERS),
        (u64::MAX, 1, INVALID_PARAMETERS),
        (IMAGE + 39 * PAGE, 1, DENIED),
    ] {
        assert_eq!(world.give(id, ipa, free, pages), (code, [ipa, 0, 0, 0]), "{ipa:x} {pages}");
    }
    assert_eq!(world.give(id, IMAGE + 60 * PAGE, free, 4).0, 0);
    assert_eq!(world.give(id, HEAP + 2047 * PAGE, free + 4 * PAGE, 1).0, 0);
}

#[test]
fn access_and_contents_follow_the_region() {
    let mut world = World::new();
    let id = world.populated();
    let pages = RAM + 0x800_0000;
    for (i, ipa) in
        [IMAGE + 63 * PAGE, DATA, MODEL, HEAP + 100 * PAGE, SESSION + 3 * PAGE].into_iter().enumerate()
    {
        let page = pages + i as u64 * PAGE;
        world.platform.machine.write_page(Pa(page), &[0x5a; 4096]);
        assert_eq!(world.give(id, ipa, page, 1).0, 0);
    }
    use stage2::Access::*;
    for (i, (ipa, access, word)) in [
        (IMAGE + 63 * PAGE, ReadExecute, 0x5a5a_5a5a_5a5a_5a5a),
        (DATA, ReadWrite, 0x5a5a_5a5a_5a5a_5a5a),
        (MODEL, Read, 0x5a5a_5a5a_5a5a_5a5a),
        (HEAP + 100 * PAGE, ReadWrite, 0u64),
        (SESSION + 3 * PAGE, ReadWrite, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let pa = pages + i as u64 * PAGE;
        let page = world.hyp.memory().partition_page(&world.platform, slot(id), Ipa(ipa)).unwrap();
        assert_eq!((page.pa, page.access, page.shared), (Pa(pa), access, false));
        assert_eq!(world.platform.machine.memory_word(Pa(pa)), word);
        assert_eq!(world.host_reads(pa), None);
    }
}

#[test]
fn missing_tables_are_asked_for_by_number() {
    let mut world = World::bare(12);
    world.ffa(&[abi::RXTX_MAP_64.into(), TX, RX, 1]);
    let id = world.create(&manifest()).1[0];
    // Scattered pages cost a table each.
    let place = |n: u64| (HEAP + n * PAGE, PAGES + n * 0x20_0000);
    let mut pages = 0;
    let needed = loop {
        let (ipa, base) = place(pages);
        match world.give(id, ipa, base, 1) {
            (0, _) => pages += 1,
            (status, [needed, ..]) => {
                assert_eq!(status, NO_MEMORY);
                break needed;
            }
        }
    };
    assert!((1..=16).contains(&needed) && pages > 0, "{needed} {pages}");
    let refused = world.hyp.counters.refused_calls;
    let (status, [taken, free, ..]) = world.with_list(op::TABLES_GIVE, &[], &[(RAM + 0x2000_0000, needed)]);
    assert_eq!((status, taken, free), (0, needed, world.hyp.memory().census().tables_free));
    assert_eq!(world.host_reads(RAM + 0x2000_0000), None);
    let (ipa, base) = place(pages);
    assert_eq!(world.give(id, ipa, base, 1), (0, [1, 0, 0, 0]), "the number was right");
    assert_eq!(world.hyp.counters.refused_calls, refused, "asking for memory is no refusal");

    // They go back when they are free.
    world.destroy(id);
    let [ranges, recalled, ..] = world.ok(op::TABLES_RECALL, &[u64::MAX]);
    assert_eq!(recalled, needed);
    let list = world.rx(16 * ranges as usize);
    let entries: Vec<_> =
        list.chunks_exact(16).map(|bytes| AbiRange::read_from_bytes(bytes).unwrap()).collect();
    assert_eq!(entries.iter().map(|range| range.page_count).sum::<u64>(), needed);
    for page in entries.iter().flat_map(|range| (0..range.page_count).map(|i| range.base + i * PAGE)) {
        assert_eq!(world.host_reads(page), Some(0));
    }
    // Nothing more: RX stays free.
    assert_eq!(world.ok(op::TABLES_RECALL, &[u64::MAX]), [0; 4]);
    world.system_stats();
}

#[test]
fn sixteen_partitions_and_no_more() {
    let mut world = World::new();
    for n in 0..16 {
        assert_eq!(world.create(&manifest()), (0, [0x8002 + n, 0, 0, 0]));
    }
    assert_eq!(world.create(&manifest()), (BUSY, [0; 4]));
    assert_eq!(world.system_stats().partition_count, 16);
    world.destroy(0x8007);
    assert_eq!(world.create(&manifest()), (0, [0x8007, 0, 0, 0]));
}

#[test]
fn recall_takes_what_is_there_and_only_that() {
    let mut world = World::new();
    let id = world.populated();
    for (ipa, pages, code, offence) in [
        (HEAP, 0, INVALID_PARAMETERS, 0),
        (HEAP, 513, INVALID_PARAMETERS, 0),
        (HEAP, u64::MAX, INVALID_PARAMETERS, 0),
        (HEAP + 8, 1, INVALID_PARAMETERS, 0),
        (HEAP, 5, INVALID_PARAMETERS, HEAP + 4 * PAGE),
        (1 << 40, 1, INVALID_PARAMETERS, 0),
        (u64::MAX << 12, 2, INVALID_PARAMETERS, 0),
    ] {
        assert_eq!(
            world.request(op::RECALL, &[id, ipa, pages]),
            (code, [offence, 0, 0, 0]),
            "{ipa:x} {pages}"
        );
    }
    // Four of the image's pages, and one of the heap's.
    assert_eq!(world.request(op::RECALL, &[id, IMAGE + 36 * PAGE, 4]), (0, [4, 0, 0, 0]));
    assert_eq!(world.request(op::RECALL, &[id, HEAP, 1]), (0, [1, 0, 0, 0]));
    for page in (36..40).chain([64]) {
        assert_eq!(world.host_reads(PAGES + page * PAGE), Some(0), "scrubbed");
    }
    let stats = world.partition_stats(id);
    assert_eq!((stats.pages_given, stats.pages_recalled), (IMAGE_PAGES + 6, 5));
    // What is left is what is measured, and what the partition hears of.
    assert_eq!(world.ok(op::MEASURE, &[id])[0], IMAGE_PAGES - 4 - 32);
    world.measure(id);
    world.ok(op::START, &[id]);
    world.enter(id, 0, 0);
    assert_eq!(world.guest_request(id, op::REGION, &[1]).1[1], IMAGE_PAGES - 4);
    assert_eq!(world.guest_request(id, op::REGION, &[3]).1[1], 3);
}

#[test]
fn a_list_is_read_once() {
    let mut world = World::new();
    let id = world.populated();
    let free = RAM + 0x800_0000;
    // The host swaps the list after the first read: for hypervisor memory, and for more than the region holds.
    for evil in [(HYPERVISOR, 1), (free, 512)] {
        let before = *world.platform.fetches.borrow();
        world.platform.fetches.replace(0);
        world.platform.races.replace(VecDeque::from([page(&list_bytes(&[evil]))]));
        assert_eq!(world.give(id, IMAGE + 63 * PAGE, free, 1).0, 0);
        assert_eq!(*world.platform.fetches.borrow(), 1, "after {before} others");
        assert_eq!(world.platform.races.borrow().len(), 1, "the second version was never seen");
        assert_eq!(world.request(op::RECALL, &[id, IMAGE + 63 * PAGE, 1]).0, 0);
    }
    // So is a manifest.
    world.platform.fetches.replace(0);
    assert_eq!(world.create(&manifest()).0, 0);
    assert_eq!(*world.platform.fetches.borrow(), 1);
}

#[test]
fn every_error_of_stage2_has_its_code() {
    let (pa, ipa) = (Pa(0x1000), Ipa(0x2000));
    for (error, code, value) in [
        (Error::InvalidRange, INVALID_PARAMETERS, 0),
        (Error::Unaligned, INVALID_PARAMETERS, 0),
        (Error::TooMany, INVALID_PARAMETERS, 0),
        (Error::Overlap { pa }, INVALID_PARAMETERS, pa.0),
        (Error::NotHostOwned { pa }, DENIED, pa.0),
        (Error::NotRam { pa }, DENIED, pa.0),
        (Error::Pinned { pa }, DENIED, pa.0),
        (Error::NotPinned { pa }, INVALID_PARAMETERS, pa.0),
        (Error::TooManyPins, DENIED, 0),
        (Error::IpaTaken { ipa }, DENIED, ipa.0),
        (Error::IpaOutOfRange, INVALID_PARAMETERS, 0),
        (Error::NotGiven { ipa }, INVALID_PARAMETERS, ipa.0),
        (Error::NotShareable { ipa }, DENIED, ipa.0),
        (Error::AlreadyShared { ipa }, DENIED, ipa.0),
        (Error::NotShared { ipa }, DENIED, ipa.0),
        (Error::Loaned { ipa }, DENIED, ipa.0),
        (Error::NoSuchLoan, INVALID_PARAMETERS, 0),
        (Error::NotRetrievable, DENIED, 0),
        (Error::NotBorrowed, DENIED, 0),
        (Error::Borrowed, DENIED, 0),
        (Error::TooManyLoans, NO_MEMORY, 0),
        (Error::NoTables { needed: 3 }, NO_MEMORY, 3),
        (Error::NoSuchPartition, INVALID_PARAMETERS, 0),
        (Error::SlotTaken, BUSY, 0),
        (Error::Busy, BUSY, 0),
        (Error::Corrupted, ABORTED, 0),
    ] {
        assert_eq!(Refusal::from(error), Refusal { code, value }, "{error:?}");
    }
}

#[test]
fn what_the_host_may_not_touch_is_aborted_and_counted() {
    let mut world = World::new();
    let id = world.running();
    let table = RAM + 0x1000_0000;
    assert_eq!(world.with_list(op::TABLES_GIVE, &[], &[(table, 1)]).0, 0);
    world.enter(id, 0, 0);
    assert_eq!(world.guest_request(id, op::SHARE, &[SESSION]).0, 0);
    let shared = PAGES + 80 * PAGE;
    let abort = |world: &mut World, pa, fetch| world.hyp.host_abort(&world.platform, pa, fetch);
    for pa in [PAGES, PAGES + 0xfff, PAGES + 64 * PAGE, table, HYPERVISOR, ABSENT, 1 << 40, u64::MAX] {
        for fetch in [false, true] {
            assert_eq!(abort(&mut world, pa, fetch), HostAbort::Inject, "{pa:x}");
        }
    }
    assert_eq!(world.hyp.counters.blocked_accesses, 16);
    for (pa, fetch) in [(RAM, false), (RAM + 0x2000_0000, true), (DEVICE, false), (shared + 8, false)] {
        assert_eq!(abort(&mut world, pa, fetch), HostAbort::Retry, "{pa:x}");
    }
    // Neither is ever executable: repeating the fetch would never end.
    assert_eq!(abort(&mut world, shared, true), HostAbort::Inject);
    assert_eq!(abort(&mut world, DEVICE, true), HostAbort::Inject);
    let exits = world.hyp.counters.host_exits;
    let stats = world.system_stats();
    assert_eq!((stats.blocked_accesses, stats.host_exits), (18, exits + 1));
}
