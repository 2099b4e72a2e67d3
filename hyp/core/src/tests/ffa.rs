//! FF-A at the host's instance.

use super::*;
use hyp_abi::ffa::error::*;

const SUCCESS: u64 = abi::SUCCESS_32 as u64;

fn error(code: i32) -> [u64; 8] {
    [u64::from(abi::ERROR), 0, w(code), 0, 0, 0, 0, 0]
}

fn refused(world: &World) -> u64 {
    world.hyp.counters.refused_calls
}

#[test]
fn version_is_negotiated_within_the_major_and_then_fixed() {
    let version = |world: &mut World, v: u64| world.ffa(&[abi::VERSION.into(), v])[0];
    let refused = w(NOT_SUPPORTED);
    let ours = u64::from(abi::VERSION_1_2);
    for (asked, answer) in [
        (0x1_0002, ours),
        (0x1_0001, ours),
        (0x1_0003, ours),
        (0x1_ffff, ours),
        (0x1_0000, refused),
        (0x2_0000, refused),
        (0x7fff_ffff, refused),
        (0x0_0009, refused),
        (0x8001_0002, refused),
        // A 32-bit call: the upper half is not there.
        (0xdead_0000_0001_0001, ours),
    ] {
        assert_eq!(version(&mut World::bare(30), asked), answer, "{asked:x}");
    }
    // Until another call is made, the caller may change its mind; then not.
    let mut world = World::bare(30);
    assert_eq!(version(&mut world, 0x1_0002), ours);
    assert_eq!(version(&mut world, 0x1_0001), ours);
    world.ffa(&[abi::ID_GET.into()]);
    assert_eq!(version(&mut world, 0x1_0001), ours);
    assert_eq!(version(&mut world, 0x1_0002), refused);
    assert_eq!(version(&mut world, 0x1_0003), refused);
    assert_eq!(world.hyp.counters.refused_calls, 2);
}

#[test]
fn features_name_exactly_what_the_host_can_call() {
    let mut world = World::bare(30);
    let present = [
        abi::ERROR,
        abi::SUCCESS_32,
        abi::SUCCESS_64,
        abi::INTERRUPT,
        abi::VERSION,
        abi::FEATURES,
        abi::RX_RELEASE,
        abi::RXTX_MAP_32,
        abi::RXTX_MAP_64,
        abi::RXTX_UNMAP,
        abi::PARTITION_INFO_GET,
        abi::ID_GET,
        abi::MSG_WAIT,
        abi::YIELD,
        abi::RUN,
        abi::MSG_SEND_DIRECT_REQ_32,
        abi::MSG_SEND_DIRECT_REQ_64,
        abi::SPM_ID_GET,
    ];
    for number in 0x50..0x100u32 {
        for function in [0x8400_0000 | number, 0xC400_0000 | number] {
            let answer = world.ffa(&[abi::FEATURES.into(), function.into()]);
            let size = if matches!(function, abi::RXTX_MAP_32 | abi::RXTX_MAP_64) { 1 << 16 } else { 0 };
            let expected = if present.contains(&function) {
                [SUCCESS, 0, size, 0, 0, 0, 0, 0]
            } else {
                error(NOT_SUPPORTED)
            };
            assert_eq!(answer, expected, "{function:x}");
        }
    }
    // Feature ids (notification and schedule receiver interrupts, managed exit).
    for feature in 0..4 {
        assert_eq!(world.ffa(&[abi::FEATURES.into(), feature]), error(NOT_SUPPORTED));
    }
}

#[test]
fn ids_are_fixed() {
    let mut world = World::bare(30);
    assert_eq!(world.ffa(&[abi::ID_GET.into()]), [SUCCESS, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(world.ffa(&[abi::SPM_ID_GET.into()]), [SUCCESS, 0, 0x8000, 0, 0, 0, 0, 0]);
}

#[test]
fn every_other_ffa_function_is_refused_with_an_error_and_counted() {
    let mut world = World::new();
    let known = [
        0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6D, 0x6F, 0x85, // The list of issue 2, point 4.
    ];
    for number in 0x60..0xF0u64 {
        for base in [0x8400_0000, 0xC400_0000] {
            if known.contains(&number) && (base == 0x8400_0000 || matches!(number, 0x66 | 0x6F)) {
                continue;
            }
            let before = refused(&world);
            assert_eq!(world.ffa(&[base + number, 1, 2, 3, 4, 5, 6, 7]), error(NOT_SUPPORTED), "{number:x}");
            assert_eq!(refused(&world), before + 1);
        }
    }
}

#[test]
fn mailboxes_are_distinct_aligned_pages_of_the_host() {
    let mut world = World::bare(60);
    let map = u64::from(abi::RXTX_MAP_64);
    for (tx, rx, page_count, code) in [
        (TX, TX, 1, INVALID_PARAMETERS),
        (TX + 8, RX, 1, INVALID_PARAMETERS),
        (TX, RX + 0x800, 1, INVALID_PARAMETERS),
        (TX, RX, 0, INVALID_PARAMETERS),
        (TX, RX, 2, INVALID_PARAMETERS),
        (TX, RX, 1 << 32 | 1, INVALID_PARAMETERS),
        (DEVICE, RX, 1, DENIED),
        (TX, DEVICE, 1, DENIED),
        (HYPERVISOR, RX, 1, DENIED),
        (TX, HYPERVISOR, 1, DENIED),
        (ABSENT, RX, 1, DENIED),
        (TX, ABSENT, 1, DENIED),
        (TX, 1 << 40, 1, DENIED),
        (TX, u64::MAX << 12, 1, DENIED),
    ] {
        let before = refused(&world);
        assert_eq!(world.ffa(&[map, tx, rx, page_count]), error(code), "{tx:x} {rx:x} {page_count:x}");
        assert_eq!(refused(&world), before + 1);
        // Nothing stays pinned after a refusal.
        for page in [TX, RX] {
            assert_eq!(world.hyp.memory().host_state(&world.platform, Pa(page)), PageState::HostOwned);
        }
    }
    // A 32-bit call has the low words only.
    assert_eq!(world.ffa(&[abi::RXTX_MAP_32.into(), TX | 7 << 32, RX | 9 << 40, 1 | 1 << 63])[0], SUCCESS);
    assert_eq!(world.ffa(&[map, TX + 0x4000, RX + 0x4000, 1]), error(DENIED), "one pair only");
    for page in [TX, RX] {
        assert_eq!(world.hyp.memory().host_state(&world.platform, Pa(page)), PageState::HostPinned);
    }
    let unmap = u64::from(abi::RXTX_UNMAP);
    assert_eq!(world.ffa(&[unmap, 1 << 16]), error(INVALID_PARAMETERS));
    assert_eq!(world.ffa(&[unmap, 0])[0], SUCCESS);
    assert_eq!(world.ffa(&[unmap, 0]), error(INVALID_PARAMETERS), "there is none any more");
    assert_eq!(world.hyp.memory().host_state(&world.platform, Pa(TX)), PageState::HostOwned);
    assert_eq!(world.ffa(&[map, TX, RX, 1])[0], SUCCESS);
}

#[test]
fn a_mailbox_cannot_be_given_away_and_a_given_page_is_no_mailbox() {
    let mut world = World::new();
    let id = world.populated();
    for page in [TX, RX] {
        assert_eq!(world.give(id, HEAP + 64 * PAGE, page, 1), (DENIED, [page, 0, 0, 0]));
    }
    assert_eq!(world.ffa(&[abi::RXTX_UNMAP.into(), 0])[0], SUCCESS);
    assert_eq!(world.ffa(&[abi::RXTX_MAP_64.into(), PAGES, RX, 1]), error(DENIED));
    assert_eq!(world.ffa(&[abi::RXTX_MAP_64.into(), TX, PAGES, 1]), error(DENIED));
}

#[test]
fn rx_belongs_to_the_host_until_it_is_released() {
    let mut world = World::new();
    let release = u64::from(abi::RX_RELEASE);
    assert_eq!(world.ffa(&[release, 0]), error(DENIED), "nothing in it");
    world.ok(op::STATS, &[0]);
    assert_eq!(world.request(op::STATS, &[0]), (BUSY, [0; 4]));
    assert_eq!(world.request(op::TABLES_RECALL, &[4]), (BUSY, [0; 4]));
    assert_eq!(world.ffa(&[abi::PARTITION_INFO_GET.into()]), error(BUSY));
    assert_eq!(world.ffa(&[release, 7]), error(INVALID_PARAMETERS), "somebody else's");
    assert_eq!(world.ffa(&[release, 0])[0], SUCCESS);
    assert_eq!(world.ffa(&[release, 0]), error(DENIED));
    // Mapping anew starts with a free RX.
    world.ok(op::STATS, &[0]);
    world.ffa(&[abi::RXTX_UNMAP.into(), 0]);
    assert_eq!(world.ffa(&[release, 0]), error(DENIED), "no mailbox");
    assert_eq!(world.request(op::STATS, &[0]), (DENIED, [0; 4]));
    assert_eq!(world.ffa(&[abi::PARTITION_INFO_GET.into()]), error(DENIED));
    world.ffa(&[abi::RXTX_MAP_64.into(), TX, RX, 1]);
    world.ok(op::STATS, &[0]);
}

/// Four registers of a UUID, written out by hand.
const SERVICE_WORDS: [u64; 4] = [0xF7CE_DCAD, 0x584D_B855, 0xB567_04A0, 0xDF91_6E4C];

#[test]
fn partition_info_describes_the_service_and_the_partitions() {
    let mut world = World::new();
    let get = u64::from(abi::PARTITION_INFO_GET);
    let ids = [world.create(&manifest()).1[0], world.create(&manifest()).1[0]];
    assert_eq!(ids, [0x8002, 0x8003]);

    // All, with their UUIDs.
    assert_eq!(
        world.ffa(&[get, 0, 0, 0, 0, 1]),
        [SUCCESS, 0, 3, 0, 0, 0, 0, 0],
        "count only leaves RX alone"
    );
    assert_eq!(world.ffa(&[get]), [SUCCESS, 0, 3, 24, 0, 0, 0, 0]);
    let bytes = world.rx(72);
    assert_eq!(bytes[..8], [0x01, 0x80, 1, 0, 0x01, 0x01, 0, 0]);
    assert_eq!(bytes[8..24], abi::SERVICE_UUID);
    assert_eq!(bytes[24..32], [0x02, 0x80, 2, 0, 0x00, 0x01, 0, 0]);
    assert_eq!(bytes[32..48], abi::PARTITION_UUID);
    assert_eq!(bytes[48..56], [0x03, 0x80, 2, 0, 0x00, 0x01, 0, 0]);

    // By UUID, which is then not repeated.
    let [a, b, c, d] = SERVICE_WORDS;
    assert_eq!(world.ffa(&[get, a, b, c, d, 0]), [SUCCESS, 0, 1, 24, 0, 0, 0, 0]);
    let bytes = world.rx(24);
    assert_eq!(bytes[..8], [0x01, 0x80, 1, 0, 0x01, 0x01, 0, 0]);
    assert_eq!(bytes[8..], [0; 16]);
    let words: Vec<u64> = abi::PARTITION_UUID
        .chunks(4)
        .map(|bytes| u64::from(u32::from_le_bytes(bytes.try_into().unwrap())))
        .collect();
    assert_eq!(world.ffa(&[get, words[0], words[1], words[2], words[3], 1])[2], 2);
    assert_eq!(world.ffa(&[get, a, b, c, d + 1, 0]), error(INVALID_PARAMETERS));
    assert_eq!(world.ffa(&[get, 0, 0, 0, 0, 2]), error(INVALID_PARAMETERS));
    assert_eq!(world.ffa(&[get, 0, 0, 0, 0, 3]), error(INVALID_PARAMETERS));
}

#[test]
fn direct_requests_reach_the_service_only_from_the_host_itself() {
    let mut world = World::new();
    let id = world.populated();
    let service = u64::from(abi::SERVICE_ID);
    for (route, flags) in [
        (u64::from(abi::SPMC_ID), 0),
        (id, 0),
        (0x9000, 0),
        (0, 0),
        (1 << 16 | service, 0),
        (id << 16 | service, 0),
        (1 << 40 | service, 0),
        (service, 1 << 31),
        (service, 1),
    ] {
        let call = [abi::MSG_SEND_DIRECT_REQ_64.into(), route, flags, op::INFO];
        assert_eq!(world.ffa(&call), error(INVALID_PARAMETERS), "{route:x} {flags:x}");
    }
    // 32-bit: low words in and out, status included.
    let call = [u64::from(abi::MSG_SEND_DIRECT_REQ_32), service, 0, op::INFO | 1 << 32];
    let answer = world.ffa(&call);
    assert_eq!(answer[..5], [abi::MSG_SEND_DIRECT_RESP_32.into(), service << 16, 0, 0, 0x1_0000]);
    let answer = world.ffa(&[call[0], service, 0, op::START, 0xffff_ffff_0000_1234]);
    assert_eq!(answer[3..5], [w(INVALID_PARAMETERS), 0x1234]);
}

#[test]
fn run_needs_a_vcpu_that_is_ready() {
    let mut world = World::new();
    let run = u64::from(abi::RUN);
    for target in [0, 1 << 16, 0x8000 << 16, 0x8001 << 16, 0x8002 << 16, 0x8012 << 16, 0xffff << 16] {
        assert_eq!(world.ffa(&[run, target]), error(INVALID_PARAMETERS), "{target:x}");
    }
    let id = world.running();
    assert_eq!(world.ffa(&[run, id << 16 | 2]), error(INVALID_PARAMETERS), "the manifest has two vCPUs");
    assert_eq!(world.ffa(&[run, id << 16 | 0xffff]), error(INVALID_PARAMETERS));
    assert_eq!(world.ffa(&[run, id << 16 | 1]), error(DENIED), "not turned on");
    let before = registers(&[run, id << 16]);
    let (after, outcome) = world.smc(&[run, id << 16]);
    assert_eq!((outcome, after), (Outcome::Enter { slot: slot(id), vcpu: 0 }, before));
    assert_eq!(world.smc_on(1, &[run, id << 16]).0[..8], error(BUSY), "it is inside on another CPU");
    assert!(world.hyp.vcpus_inside());
    let stats = world.partition_stats(id);
    assert_eq!(stats.world_switches, 1);
    assert_eq!(world.system_stats().world_switches, 1);
}
