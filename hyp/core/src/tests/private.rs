//! Private memory in secure RAM, and that nobody else notices where it is.

use super::*;
use hyp_abi::ffa::error::DENIED;
use stage2::fake::SECURE;
use stage2::{HOST_VMID, Ipa, Party};

/// Pages of the secure RAM of most tests.
const POOL: u64 = 128;

/// First word of what the partition finds at a secure address; none: it faults.
fn private_word(world: &mut World, id: u64, ipa: u64) -> Option<u64> {
    world.platform.machine.read(0, slot(id).vmid() | SECURE, Ipa(ipa), true)
}

/// Where that lies.
fn private_page(world: &World, id: u64, ipa: u64) -> Pa {
    let secure = world.hyp.secure.as_ref().unwrap();
    secure.partition_page(&world.platform, slot(id), Ipa(ipa)).unwrap().pa
}

fn free_pages(world: &World) -> u64 {
    let census = world.hyp.secure.as_ref().unwrap().census();
    (census.leaves_1g << 18) + (census.leaves_2m << 9) + census.leaves_4k
}

#[test]
fn the_image_is_in_secure_ram_and_the_rest_is_not() {
    let mut world = World::secure(POOL);
    let id = world.populated();
    for page in 0..IMAGE_PAGES {
        let ipa = IMAGE + page * PAGE;
        let copy = private_page(&world, id, ipa);
        assert!((SECURE_RAM..SECURE_RAM + 0x100_0000).contains(&copy.0), "{copy:x?}");
        assert_eq!(private_word(&mut world, id, ipa), Some(0x0101_0101_0101_0101 * (page + 1)));
        // What was given is gone from the host as ever.
        assert_eq!(world.host_reads(PAGES + page * PAGE), None);
        assert_eq!(world.host_reads(copy.0), None);
    }
    assert_eq!(free_pages(&world), POOL - IMAGE_PAGES);
    assert_eq!(private_word(&mut world, id, HEAP), None, "Flex-Mem by a secure address");
    assert_eq!(world.platform.machine.read(0, slot(id).vmid(), Ipa(HEAP), true), Some(0));
}

#[test]
fn the_copy_is_measured_and_is_as_the_original_was() {
    let mut plain = World::new();
    let expected = plain.populated();
    let expected = plain.measure(expected);
    let mut world = World::secure(POOL);
    let id = world.populated();
    // A device that no SMMU stops writes to normal memory.
    world.platform.machine.write_page(Pa(PAGES + 3 * PAGE), &[0xEE; 4096]);
    assert_eq!(world.measure(id), expected);
    assert_eq!(private_word(&mut world, id, IMAGE + 3 * PAGE), Some(0x0404_0404_0404_0404));
    // A copy that changed is what is run, and is measured.
    let mut world = World::secure(POOL);
    let id = world.populated();
    let copy = private_page(&world, id, IMAGE + 3 * PAGE);
    world.platform.machine.write_page(copy, &[0xEE; 4096]);
    assert_ne!(world.measure(id), expected);
}

#[test]
fn recall_and_destroy_free_it_scrubbed() {
    let mut world = World::secure(POOL);
    let before = world.census();
    let id = world.populated();
    let copies: Vec<_> = (0..IMAGE_PAGES).map(|page| private_page(&world, id, IMAGE + page * PAGE)).collect();
    assert_eq!(world.request(op::RECALL, &[id, IMAGE, 8]), (0, [8, 0, 0, 0]));
    assert_eq!(free_pages(&world), POOL - IMAGE_PAGES + 8);
    assert_eq!(private_word(&mut world, id, IMAGE + 7 * PAGE), None);
    assert!(private_word(&mut world, id, IMAGE + 8 * PAGE).is_some());
    // A recall of what is no more changes nothing.
    assert_ne!(world.request(op::RECALL, &[id, IMAGE + 7 * PAGE, 2]).0, 0);
    assert!(private_word(&mut world, id, IMAGE + 8 * PAGE).is_some());
    world.destroy(id);
    assert_eq!(world.census(), before);
    for page in copies {
        assert_eq!(
            (world.platform.machine.memory_word(page), world.platform.machine.read_page(page)),
            (0, [0; 4096])
        );
    }
    // The VMID's next owner finds nothing.
    let next = world.create(&manifest()).1[0];
    assert_eq!(private_word(&mut world, next, IMAGE + 8 * PAGE), None);
}

#[test]
fn a_large_image_goes_in_steps() {
    let mut world = World::secure(1500);
    let mut large = manifest();
    (large.regions[1].page_count, large.regions[2].ipa) = (1400, IMAGE + 1400 * PAGE);
    let (_, [id, ..]) = world.create(&large);
    for (ipa, pages) in [(0, 512), (512, 512), (1024, 376)] {
        assert_eq!(world.give(id, IMAGE + ipa * PAGE, PAGES + ipa * PAGE, pages).0, 0);
    }
    let mut steps = Vec::new();
    loop {
        let left = world.ok(op::DESTROY, &[id])[0];
        if left == 0 {
            break;
        }
        steps.push((left, free_pages(&world)));
    }
    let copies = [(1400, 612), (1400, 1124)];
    let given = [(888, 1500), (376, 1500)];
    assert_eq!(steps, [copies, given].concat());
}

#[test]
fn full_secure_ram_refuses_and_takes_nothing() {
    let mut world = World::secure(IMAGE_PAGES + 10);
    let first = world.populated();
    let (_, [second, ..]) = world.create(&manifest());
    let before = world.census();
    let place = PAGES + 100 * PAGE;
    world.platform.machine.write_page(Pa(place), &[7; 4096]);
    assert_eq!(world.give(second, IMAGE, place, 11), (DENIED, [IMAGE + 10 * PAGE, 0, 0, 0]));
    assert_eq!(world.census(), before);
    assert_eq!(world.host_reads(place), Some(0), "scrubbed, as it was the partition's for a moment");
    assert_eq!(world.partition_stats(second).pages_given, 0);
    assert_eq!(private_word(&mut world, second, IMAGE), None);
    // Other memory is not concerned, and room is room.
    assert_eq!(world.give(second, HEAP, place, 11).0, 0);
    assert_eq!(world.give(second, IMAGE, place + 11 * PAGE, 10).0, 0);
    world.destroy(first);
    assert_eq!(world.give(second, IMAGE + 10 * PAGE, place + 21 * PAGE, 30).0, 0);
}

#[test]
fn buffers_in_private_memory_are_the_copies() {
    let mut world = World::secure(POOL);
    let (_, [id, ..]) = world.create(&manifest());
    assert_eq!(world.give(id, IMAGE, PAGES, 1).0, 0);
    assert_eq!(world.give(id, DATA, PAGES + PAGE, 2).0, 0);
    world.measure(id);
    world.ok(op::START, &[id]);
    world.enter(id, 0, 1);
    let map = [abi::RXTX_MAP_64.into(), DATA, DATA + PAGE, 1];
    assert_eq!(world.guest_call(id, &map)[0], abi::SUCCESS_32.into());
    assert_eq!(world.guest_call(id, &[abi::PARTITION_INFO_GET.into()])[0], abi::SUCCESS_32.into());
    let rx = private_page(&world, id, DATA + PAGE);
    assert_ne!(world.platform.machine.read_page(rx), [0; 4096]);
    assert_eq!(world.platform.machine.read_page(Pa(PAGES + 2 * PAGE)), [0; 4096]);
}

#[test]
fn private_memory_is_not_lent() {
    for mut world in [World::new(), World::secure(POOL)] {
        let (_, [id, ..]) = world.create(&manifest());
        assert_eq!(world.give(id, IMAGE, PAGES, 1).0, 0);
        assert_eq!(world.give(id, DATA, PAGES + PAGE, 2).0, 0);
        assert_eq!(world.give(id, HEAP, PAGES + 8 * PAGE, 4).0, 0);
        world.measure(id);
        world.ok(op::START, &[id]);
        world.enter(id, 0, 1);
        world.map_buffers(id);
        for (ipa, expected) in [(DATA, abi::ERROR), (HEAP + 2 * PAGE, abi::SUCCESS_32)] {
            let bytes = super::memory::Sent::new(id, stage2::LoanKind::Share, &[0], &[(ipa, 1)]).bytes();
            let tx = world.page_of(id, HEAP);
            world.platform.machine.write_page(tx, &page(&bytes));
            let length = bytes.len() as u64;
            let answer = world.guest_call(id, &[abi::MEM_SHARE_64.into(), length, length]);
            assert_eq!(answer[0], expected.into(), "{ipa:x}");
            assert!(expected == abi::SUCCESS_32 || answer[2] == w(DENIED), "{answer:x?}");
        }
    }
}

#[test]
fn a_reset_scrubs_it() {
    let mut world = World::secure(POOL);
    let id = world.populated();
    let copy = private_page(&world, id, IMAGE);
    world.hyp.scrub_for_reset(&mut world.platform);
    assert_eq!(
        (world.platform.machine.memory_word(copy), world.platform.machine.read_page(copy)),
        (0, [0; 4096])
    );
}

#[test]
fn streams_do_not_reach_it() {
    let mut world = World::secure(POOL);
    let id = world.populated();
    let copy = private_page(&world, id, IMAGE);
    let (vmid, root) = world.hyp.memory().stream_root(Party::Partition(slot(id))).unwrap();
    assert!(root.0 >= HYPERVISOR, "a stream's tables lie in memory that it reaches");
    for vmid in [vmid, HOST_VMID] {
        let vmid = vmid | stage2::fake::STREAM;
        assert_eq!(world.platform.machine.read(0, vmid, Ipa(copy.0), true), None);
    }
}
