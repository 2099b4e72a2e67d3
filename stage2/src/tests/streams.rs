//! DMA streams see their owner's RAM as its CPUs do, nothing else; and the window moves between trees.

use super::*;
use crate::fake::STREAM;
use crate::{PARTITION_BITS, Party};

const HOST: u16 = HOST_VMID;
const CPU: usize = 0;
const SMMU: usize = 1;

/// A window of two pages in a GiB of its own.
const WINDOW: u64 = 200 << 30 | 0x60_3000;
const WINDOW_TABLES: [Pa; 2] = [Pa(HYP + 0xf_0000), Pa(HYP + 0xf_1000)];

fn reaches(w: &mut World, core: usize, vmid: u16, ipa: u64) -> bool {
    w.m.read(core, vmid, Ipa(ipa), true).is_some()
}

fn with_window() -> World {
    let mut w = World::booted(40);
    w.fm.boot_window(&mut w.m, range(WINDOW, 2), WINDOW_TABLES).unwrap();
    w
}

#[test]
fn host_streams_reach_ram_and_no_device() {
    let mut w = World::booted(40);
    for (ipa, cpu, stream) in [
        (RAM, true, true),
        (RAM_SMALL, true, true),
        (DEVICE, true, false),
        (HYP, false, false),
        (ABSENT, false, false),
    ] {
        assert_eq!(reaches(&mut w, CPU, HOST, ipa), cpu, "{ipa:x}");
        assert_eq!(reaches(&mut w, SMMU, HOST | STREAM, ipa), stream, "{ipa:x}");
    }
}

#[test]
fn ram_beside_devices_is_out_of_reach_of_dma() {
    let mut w = World::bare(40);
    let gibibyte = 0x4000_0000;
    w.fm.boot_map_host(&mut w.m, Pa(gibibyte), MIB2, HostMemory::Ram).unwrap();
    w.fm.boot_map_host(&mut w.m, Pa(gibibyte + 8 * MIB2), PAGE_SIZE, HostMemory::Device).unwrap();
    assert!(reaches(&mut w, CPU, HOST, gibibyte));
    assert!(!reaches(&mut w, SMMU, HOST | STREAM, gibibyte));
    w.fm.boot_map_host(&mut w.m, Pa(gibibyte + MIB2), MIB2, HostMemory::Ram).unwrap();
    assert!(!reaches(&mut w, SMMU, HOST | STREAM, gibibyte + MIB2));
    w.check();
}

#[test]
fn a_given_page_leaves_the_hosts_streams_and_joins_the_partitions() {
    let mut w = World::booted(40);
    let page = RAM + 5 * PAGE_SIZE;
    let (ipa, vmid) = (0x8_0000, slot(0).vmid());
    assert!(reaches(&mut w, SMMU, HOST | STREAM, page), "cached from now on");
    w.give(0, &[range(page, 1)], ipa).unwrap();
    w.check();
    assert!(!reaches(&mut w, SMMU, HOST | STREAM, page));
    assert!(reaches(&mut w, SMMU, vmid | STREAM, ipa));
    w.recall(0, ipa, 1).unwrap();
    w.check();
    assert!(reaches(&mut w, SMMU, HOST | STREAM, page));
    assert!(!reaches(&mut w, SMMU, vmid | STREAM, ipa));
}

#[test]
fn a_skipped_invalidation_leaves_dma_behind() {
    let mut w = World::booted(40);
    w.fm.set_knob(Knob::SkipTlbi, true);
    let page = RAM + 5 * PAGE_SIZE;
    w.give(0, &[range(page + PAGE_SIZE, 1)], 0x8_0000).unwrap(); // splits the block, with a break
    assert!(reaches(&mut w, SMMU, HOST | STREAM, page));
    w.give(0, &[range(page, 1)], 0x9_0000).unwrap();
    assert!(reaches(&mut w, SMMU, HOST | STREAM, page));
}

#[test]
fn with_bbm_level_2_nobody_meets_a_hole() {
    let mut w = World::booted(40);
    w.fm.boot_change_in_place();
    w.m.bbm_level_2 = true;
    let neighbour = RAM + 7 * PAGE_SIZE;
    // Core 1 is asked at every single step: it must translate the neighbour all the time.
    w.m.must_reach(vec![(HOST, Ipa(neighbour)), (HOST | STREAM, Ipa(neighbour))]);
    w.give(0, &[range(RAM, 1)], 0x8_0000).unwrap();
    w.give(0, &[range(RAM + PAGE_SIZE, 3)], 0x9_0000).unwrap();
    w.recall(0, 0x8_0000, 1).unwrap();
    w.recall(0, 0x9_0000, 3).unwrap();
    assert_eq!(w.fm.census().leaves_1g, 1, "coalesced again");
    w.check();
}

#[test]
fn without_it_there_is_a_hole() {
    let mut w = World::booted(40);
    let neighbour = RAM + 7 * PAGE_SIZE;
    w.m.must_reach(vec![(HOST | STREAM, Ipa(neighbour))]);
    w.give(0, &[range(RAM, 1)], 0x8_0000).unwrap();
    assert!(w.m.violations.iter().any(|v| v.contains("met a hole")), "{:?}", w.m.violations);
}

#[test]
fn the_window_is_where_it_was_opened_and_nowhere_else() {
    let mut w = with_window();
    let window = w.fm.window().unwrap();
    let partition = |index| Party::Partition(slot(index));
    let inside = window.ipa(partition(0)).0;
    assert_eq!(inside, (1 << PARTITION_BITS) + 0x60_3000);
    assert_eq!(window.ipa(Party::Host).0, WINDOW);
    let vmids = [slot(0).vmid(), slot(1).vmid()];
    let reach = |w: &mut World| {
        [(HOST, WINDOW), (vmids[0], inside), (vmids[1], inside)].map(|(vmid, ipa)| {
            let both = [0, PAGE_SIZE].map(|page| reaches(w, CPU, vmid, ipa + page));
            assert_eq!(both[0], both[1]);
            assert!(!reaches(w, SMMU, vmid | STREAM, ipa), "a stream reaches registers");
            assert!(!reaches(w, CPU, vmid, ipa + 2 * PAGE_SIZE));
            both[0]
        })
    };
    assert_eq!(reach(&mut w), [false, false, false]);
    w.fm.window_open(&mut w.m, Party::Host).unwrap();
    assert_eq!(reach(&mut w), [true, false, false]);
    assert_eq!(w.state(WINDOW), PageState::HostDevice);
    w.fm.window_close(&mut w.m, Party::Host).unwrap();
    w.fm.window_open(&mut w.m, partition(1)).unwrap();
    assert_eq!(reach(&mut w), [false, false, true]);
    assert_eq!(w.state(WINDOW), PageState::Absent);
    // What a partition may do with its memory it may not do with registers.
    w.refused(Error::IpaOutOfRange, |w| w.share(1, inside));
    w.refused(Error::IpaOutOfRange, |w| w.recall(1, inside, 1));
    w.refused(Error::IpaOutOfRange, |w| w.give(1, &[range(RAM, 1)], inside));
    assert_eq!(w.fm.next_partition_page(&w.m, slot(1), Ipa(0)), None);
    w.fm.window_close(&mut w.m, partition(1)).unwrap();
    assert_eq!(reach(&mut w), [false, false, false]);
    w.check();
}

#[test]
fn a_window_left_open_stays_open() {
    let mut w = with_window();
    w.fm.window_open(&mut w.m, Party::Host).unwrap();
    w.fm.set_knob(Knob::SkipWindowUnmap, true);
    w.fm.window_close(&mut w.m, Party::Host).unwrap();
    assert!(reaches(&mut w, CPU, HOST, WINDOW));
}

#[test]
fn a_window_has_a_gibibyte_of_its_own() {
    let mut w = World::booted(40);
    for (base, pages, error) in [
        (DEVICE + 8 * MIB2, 2, Error::Overlap { pa: Pa(0) }),
        (RAM, 1, Error::Overlap { pa: Pa(RAM) }),
        (WINDOW - 0x4000, 2 * 512, Error::InvalidRange),
    ] {
        assert_eq!(w.fm.boot_window(&mut w.m, range(base, pages), WINDOW_TABLES), Err(error));
    }
    w.fm.boot_window(&mut w.m, range(WINDOW, 2), WINDOW_TABLES).unwrap();
    assert!(w.fm.boot_window(&mut w.m, range(WINDOW + (1 << 30), 2), WINDOW_TABLES).is_err(), "one only");
    assert_eq!(w.fm.window_open(&mut w.m, Party::Partition(slot(5))), Err(Error::NoSuchPartition));
}

#[test]
fn memory_of_a_partition_ends_where_devices_begin() {
    let mut w = World::booted(40);
    let end = 1 << PARTITION_BITS;
    w.give(0, &[range(RAM, 1)], end - PAGE_SIZE).unwrap();
    w.refused(Error::IpaOutOfRange, |w| w.give(0, &[range(RAM + MIB2, 2)], end - PAGE_SIZE));
    w.refused(Error::IpaOutOfRange, |w| w.give(0, &[range(RAM + MIB2, 1)], end));
    w.check();
}
