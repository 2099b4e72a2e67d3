//! Boot: shapes of the host's map.

use super::*;

#[test]
fn largest_blocks() {
    let w = World::booted(64);
    let census = w.fm.census();
    assert_eq!((census.leaves_1g, census.leaves_2m, census.leaves_4k), (1, 3 + 1, 3 + 1));
    for (pa, state) in [
        (RAM, PageState::HostOwned),
        (RAM + (1 << 30) - 1, PageState::HostOwned),
        (RAM_SMALL + RAM_SMALL_SIZE - 1, PageState::HostOwned),
        (RAM_SMALL + RAM_SMALL_SIZE, PageState::Absent),
        (DEVICE, PageState::HostDevice),
        (DEVICE + MIB2 + PAGE_SIZE, PageState::Absent),
        (HYP, PageState::Hypervisor),
        (HYP + HYP_SIZE, PageState::Absent),
        (1 << 40, PageState::Absent),
        (u64::MAX, PageState::Absent),
    ] {
        assert_eq!(w.state(pa), state, "{pa:x}");
    }
}

#[test]
fn attributes() {
    let mut w = World::booted(64);
    assert!(w.m.can_execute(0, HOST_VMID, Ipa(RAM)));
    assert!(!w.m.can_execute(0, HOST_VMID, Ipa(DEVICE)));
    assert_eq!(w.m.read(0, HOST_VMID, Ipa(ABSENT), true), None);
    assert_eq!(w.m.read(0, HOST_VMID, Ipa(HYP), true), None);
    // Values of the platform notes: RAM block 0x7FC | valid, device nGnRE, execute-never.
    assert_eq!(w.m.load(Pa(HYP), (RAM >> 30) as usize), RAM | 0x7fd);
    let device = desc::Desc::host(DEVICE, 2, HostMemory::Device);
    assert_eq!(device.0, DEVICE | 1 | 1 << 2 | 3 << 6 | 1 << 10 | 1 << 54);
}

#[test]
fn pieces_that_adjoin_become_blocks() {
    let mut w = World::bare(8);
    w.fm.boot_map_host(&mut w.m, Pa(RAM), MIB2 - PAGE_SIZE, HostMemory::Ram).unwrap();
    w.fm.boot_map_host(&mut w.m, Pa(RAM + MIB2), (1 << 30) - MIB2, HostMemory::Ram).unwrap();
    w.fm.boot_map_host(&mut w.m, Pa(RAM + MIB2 - PAGE_SIZE), PAGE_SIZE, HostMemory::Ram).unwrap();
    w.check();
    let census = w.fm.census();
    assert_eq!((census.leaves_1g, census.leaves_2m, census.leaves_4k, census.tables_used), (1, 0, 0, 0));
}

#[test]
fn pieces_that_adjoin_above_become_blocks() {
    let mut w = World::bare(8);
    w.fm.boot_map_host(&mut w.m, Pa(RAM + MIB2 + PAGE_SIZE), MIB2 - PAGE_SIZE, HostMemory::Ram).unwrap();
    w.fm.boot_map_host(&mut w.m, Pa(RAM), MIB2 + PAGE_SIZE, HostMemory::Ram).unwrap();
    w.check();
    let census = w.fm.census();
    assert_eq!((census.leaves_1g, census.leaves_2m, census.leaves_4k, census.tables_used), (0, 2, 0, 1));
}

#[test]
fn descriptors_split_and_merge_inversely() {
    let block = desc::Desc::host(3 << 30, 1, HostMemory::Ram);
    let owner = desc::Desc::owner(slot(7), 5 << 30);
    for whole in [block, owner, desc::Desc::ABSENT, desc::Desc::HYPERVISOR] {
        let blocks: Vec<_> = (0..512).map(|i| whole.children(1).at(i)).collect();
        let pages: Vec<_> = (0..512).map(|i| blocks[9].children(2).at(i)).collect();
        assert_eq!((blocks[0].whole(1), pages[0].whole(2)), (Some(whole), Some(blocks[9])));
        assert!(blocks.iter().all(|desc| !desc.is_table(2) && desc.is_valid() == whole.is_valid()));
    }
    assert_eq!(
        block.children(1).at(9).children(2).at(8),
        desc::Desc::host((3 << 30) + 9 * MIB2 + 8 * PAGE_SIZE, 3, HostMemory::Ram)
    );
    assert_eq!(
        owner.children(1).at(9).children(2).at(8).as_owner(),
        Some((slot(7), Ipa((5 << 30) + 9 * MIB2 + 8 * PAGE_SIZE)))
    );
    // What never becomes a block: shared pages, table pages, tables, what is not aligned.
    for (entry, level) in [
        (desc::Desc::host_shared(RAM), 2),
        (desc::Desc::partition(RAM, Access::ReadWrite).with_shared(true), 2),
        (desc::Desc::TABLE_PAGE, 2),
        (desc::Desc::table(Pa(RAM)), 1),
        (desc::Desc::partition(RAM + PAGE_SIZE, Access::Read), 2),
        (desc::Desc::owner(slot(0), RAM + PAGE_SIZE), 2),
        (desc::Desc::host(RAM + MIB2, 2, HostMemory::Ram), 1),
    ] {
        assert_eq!(entry.whole(level), None, "{entry:x?}");
    }
}

#[test]
fn refused_ranges() {
    let mut w = World::booted(8);
    let map = |base: u64, size: u64| {
        move |w: &mut World| w.fm.boot_map_host(&mut w.m, Pa(base), size, HostMemory::Ram)
    };
    w.refused(Error::Unaligned, map(ABSENT + 1, PAGE_SIZE));
    w.refused(Error::Unaligned, map(ABSENT, PAGE_SIZE + 1));
    w.refused(Error::InvalidRange, map(ABSENT, 0));
    w.refused(Error::InvalidRange, map((1 << 40) - PAGE_SIZE, 2 * PAGE_SIZE));
    w.refused(Error::InvalidRange, map(0u64.wrapping_sub(PAGE_SIZE), 2 * PAGE_SIZE));
    w.refused(Error::Overlap { pa: Pa(RAM) }, map(RAM - PAGE_SIZE, 2 * PAGE_SIZE));
    w.refused(Error::Unaligned, |w| w.fm.boot_donate_table(&mut w.m, Pa(1)));
    // The end of the address space is mapped like the rest.
    w.fm.boot_map_host(&mut w.m, Pa((1 << 40) - PAGE_SIZE), PAGE_SIZE, HostMemory::Device).unwrap();
    w.check();
    assert_eq!(w.state((1 << 40) - 1), PageState::HostDevice);
}

#[test]
fn ranges_are_checked() {
    assert_eq!(PageRange::new(Pa(1), 1), Err(Error::Unaligned));
    assert_eq!(PageRange::new(Pa(0), 0), Err(Error::InvalidRange));
    assert_eq!(PageRange::new(Pa(PAGE_SIZE), 1 << 28), Err(Error::InvalidRange));
    assert_eq!(PageRange::new(Pa(0), u64::MAX), Err(Error::InvalidRange));
    assert_eq!(PageRange::new(Pa(u64::MAX - PAGE_SIZE + 1), 1), Err(Error::InvalidRange));
    assert_eq!(PageRange::new(Pa(0), 1 << 28).map(|r| r.end()), Ok(Pa(1 << 40)));
    assert_eq!(Slot::new(MAX_PARTITIONS), None);
    assert_eq!(Slot::all().map(Slot::vmid).collect::<Vec<_>>(), (2..18).collect::<Vec<_>>());
}
