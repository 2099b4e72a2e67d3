//! From CREATE to the last page's return; the measurement.

use super::*;
use hyp_abi::manifest::MEASURE_LABEL;
use sha2::{Digest, Sha384};

#[test]
fn memory_is_conserved_and_clean_after_a_whole_life() {
    let mut world = World::new();
    let start = world.census();
    let before = world.system_stats();
    for round in 0..3 {
        let id = world.running();
        world.enter(id, 0, 0);
        world.guest_request(id, op::SHARE, &[SESSION]);
        // It computes: a secret in its heap.
        let vmid = slot(id).vmid();
        assert!(world.platform.machine.write(0, vmid, stage2::Ipa(HEAP), stage2::fake::secret(slot(id))));
        assert_eq!(world.host_reads(PAGES + 64 * PAGE), None);
        let service = id << 16 | u64::from(abi::SERVICE_ID);
        world.exit(id, 0, Exit::Call, &[abi::MSG_SEND_DIRECT_REQ_64.into(), service, 0, op::EXIT, 0]);
        if round > 0 {
            assert_eq!(world.ok(op::RECALL, &[id, IMAGE, IMAGE_PAGES])[0], IMAGE_PAGES);
        }
        world.platform.resets.clear();
        world.destroy(id);
        let slot = slot(id).index();
        assert_eq!(world.platform.resets, [(slot, 0, 0, 0), (slot, 1, 0, 0)], "no register keeps a secret");
        assert_eq!(world.census(), start, "round {round}");
        for i in (0..IMAGE_PAGES).chain(64..68).chain(80..82) {
            let page = Pa(PAGES + i * PAGE);
            assert_eq!(world.host_reads(page.0), Some(0));
            assert_eq!(world.platform.machine.read_page(page), [0; 4096]);
            assert_eq!(world.platform.machine.memory_word(page), 0);
        }
    }
    let after = world.system_stats();
    assert_eq!(after.partition_count, 0);
    assert_eq!((after.pages_given, after.pages_recalled), (3 * (IMAGE_PAGES + 6), 3 * (IMAGE_PAGES + 6)));
    assert_eq!(
        (after.leaves_1g, after.leaves_2m, after.leaves_4k),
        (before.leaves_1g, before.leaves_2m, before.leaves_4k)
    );
    assert_eq!(after.world_switches, 3);
    assert_eq!((after.give.calls, after.give.pages), (9, 3 * (IMAGE_PAGES + 6)));
    assert_eq!(after.refused_calls, 0);
}

/// The definition in `hyp_abi::manifest`, written anew: label, manifest, then IPA and contents, ascending.
fn expected(manifest: &Manifest, pages: &[(u64, [u8; 4096])]) -> [u8; 48] {
    let mut input = MEASURE_LABEL.to_vec();
    input.extend(manifest.as_bytes());
    let mut pages = pages.to_vec();
    pages.sort();
    for (ipa, bytes) in pages {
        input.extend(ipa.to_le_bytes());
        input.extend(bytes);
    }
    Sha384::digest(input).into()
}

#[test]
fn the_measurement_is_what_the_format_says() {
    let mut world = World::new();
    let id = world.create(&manifest()).1[0];
    let mut contents = Vec::new();
    // Given in descending order, interleaved with zeroed pages, from scattered frames.
    let places =
        [(MODEL, 50), (MODEL + 60 * PAGE, 1), (DATA + 3 * PAGE, 2), (IMAGE, 33), (IMAGE + 50 * PAGE, 1)];
    let mut frame = PAGES;
    for (first, count) in places {
        for i in 0..count {
            let bytes: [u8; 4096] = std::array::from_fn(|n| (n as u64 + (first >> 12) + i * 7) as u8);
            world.platform.machine.write_page(Pa(frame), &bytes);
            let ipa = first + (count - 1 - i) * PAGE;
            assert_eq!(world.give(id, ipa, frame, 1).0, 0);
            contents.push((ipa, bytes));
            frame += 2 * PAGE;
        }
    }
    for (n, ipa) in [HEAP, HEAP + 9 * PAGE, SESSION].into_iter().enumerate() {
        assert_eq!(world.give(id, ipa, RAM + 0x800_0000 + n as u64 * PAGE, 1).0, 0);
    }
    // 87 pages are three steps; each says what is left.
    assert_eq!(world.ok(op::MEASURE, &[id]), [55, 0, 0, 0]);
    // Zeroed pages may still come and change nothing.
    assert_eq!(world.give(id, HEAP + PAGE, RAM + 0x900_0000, 1).0, 0);
    assert_eq!(world.ok(op::MEASURE, &[id]), [23, 0, 0, 0]);
    assert_eq!(world.ok(op::MEASURE, &[id]), [0; 4]);
    let measured: [u8; 48] = world.rx(48).try_into().unwrap();
    assert_eq!(measured, expected(&manifest(), &contents));
    // Again, if the first answer was lost; and it is what statistics show.
    assert_eq!(world.measure(id), measured);
    assert_eq!(world.partition_stats(id).measurement, measured);
    world.ok(op::START, &[id]);
    assert_eq!(world.partition_stats(id).measurement, measured);
}

/// A constant from outside: `sha384sum` of the 40 IMAGE pages of [`World::populated`] behind label and manifest, computed by
/// the Python in the comment below.
///
/// ```python
/// import hashlib, struct
/// region = lambda *r: struct.pack("<QQII", *r)
/// m = b"FLEXPART" + struct.pack("<IIQII", 1, 2, 0x400040, 5, 0) + b"phone-assistant\0"
/// m += region(0x8_0000_0000, 64, 3, 1) + region(0x400000, 64, 1, 5) + region(0x600000, 16, 1, 3)
/// m += region(0x2_0000_0000, 2048, 2, 3) + region(0x4_0000_0000, 8, 4, 3) + bytes(24 * 11)
/// p = b"".join(struct.pack("<Q", 0x400000 + i * 4096) + bytes([i + 1]) * 4096 for i in range(40))
/// print(hashlib.sha384(b"flexserve-meas-1" + m + p).hexdigest())
/// ```
const KNOWN: &str =
    "59cfd78c03251cdb97f9d9103180e744d7fd79b3bd7e7dd4df39164041ed8524c4a0b19da32d79b5f90a0a309466cae4";

#[test]
fn the_measurement_of_a_known_image_is_known() {
    let mut world = World::new();
    let id = world.populated();
    let hex: std::string::String = world.measure(id).iter().map(|byte| std::format!("{byte:02x}")).collect();
    assert_eq!(hex, KNOWN);
}

#[test]
fn every_input_of_the_measurement_matters() {
    let measure = |change: fn(&mut World), manifest: Manifest, ipa: u64| {
        let mut world = World::new();
        let id = world.create(&manifest).1[0];
        change(&mut world);
        assert_eq!(world.give(id, ipa, PAGES, 2).0, 0);
        world.measure(id)
    };
    let base = measure(|_| (), manifest(), IMAGE);
    let mut renamed = manifest();
    renamed.name[0] = b'P';
    let last_byte = |world: &mut World| {
        let mut bytes = [0; 4096];
        bytes[4095] = 1;
        world.platform.machine.write_page(Pa(PAGES + PAGE), &bytes);
    };
    for other in [
        measure(|_| (), renamed, IMAGE),
        measure(|_| (), manifest(), IMAGE + PAGE),
        measure(last_byte, manifest(), IMAGE),
    ] {
        assert_ne!(base, other);
    }
}

#[test]
fn nothing_that_was_measured_can_change_before_it_runs() {
    let mut world = World::new();
    let id = world.populated();
    let measurement = world.measure(id);
    let denied = abi::error::DENIED;
    for page in [PAGES, PAGES + 39 * PAGE] {
        // By the host's own hand, by exchange of the page, by another page beside it, by another partition.
        assert!(!world.platform.machine.write(0, stage2::HOST_VMID, stage2::Ipa(page), 7));
        assert_eq!(world.request(op::RECALL, &[id, IMAGE + (page - PAGES), 1]).0, denied);
        assert_eq!(world.give(id, IMAGE + (page - PAGES), RAM + 0x800_0000, 1).0, denied);
        assert_eq!(world.give(id, IMAGE + 50 * PAGE, RAM + 0x800_0000, 1), (denied, [1, 0, 0, 0]));
        assert_eq!(world.give(id, MODEL, RAM + 0x800_0000, 1), (denied, [0; 4]));
        let other = world.create(&manifest()).1[0];
        assert_eq!(world.give(other, DATA, page, 1), (denied, [page, 0, 0, 0]));
        world.destroy(other);
    }
    world.ok(op::START, &[id]);
    assert_eq!(world.partition_stats(id).measurement, measurement);
    for i in 0..IMAGE_PAGES {
        assert_eq!(world.platform.machine.read_page(Pa(PAGES + i * PAGE)), [i as u8 + 1; 4096]);
    }
}

#[test]
fn measuring_needs_rx_and_waits_for_it() {
    let mut world = World::new();
    let id = world.populated();
    assert_eq!(world.ok(op::MEASURE, &[id])[0], 8);
    world.ok(op::STATS, &[0]);
    assert_eq!(world.request(op::MEASURE, &[id]), (abi::error::BUSY, [0; 4]));
    world.rx(8);
    assert_eq!(world.ok(op::MEASURE, &[id])[0], 0);
    let measurement = world.rx(48);
    assert_eq!(measurement, world.partition_stats(id).measurement);
    world.ffa(&[abi::RXTX_UNMAP.into(), 0]);
    assert_eq!(world.request(op::MEASURE, &[id]), (abi::error::DENIED, [0; 4]));
}
