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
fn ids_are_fixed() {
    let mut world = World::bare(30);
    assert_eq!(world.ffa(&[abi::ID_GET.into()]), [SUCCESS, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(world.ffa(&[abi::SPM_ID_GET.into()]), [SUCCESS, 0, 0x8000, 0, 0, 0, 0, 0]);
}

#[test]
fn every_other_ffa_function_is_refused_with_an_error_and_counted() {
    let mut world = World::new();
    let known = [
        0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6D, 0x6F, // The list of issue 2, point 4.
        0x71, 0x72, 0x73, 0x74, 0x76, 0x77, 0x7A, 0x7B, // Memory management.
        0x7D, 0x7E, 0x7F, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86,
    ];
    for number in 0x60..0xF0u64 {
        for base in [0x8400_0000, 0xC400_0000] {
            let known = match base {
                0x8400_0000 => known.contains(&number),
                _ => matches!(number, 0x66 | 0x6F | 0x71..=0x74 | 0x83 | 0x8B | 0x8D),
            };
            if known {
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

#[test]
fn direct_requests_reach_the_service_only_from_the_host_itself() {
    let mut world = World::new();
    let id = world.populated();
    let service = u64::from(abi::SERVICE_ID);
    let call = [abi::MSG_SEND_DIRECT_REQ_64.into(), id, 0, op::INFO];
    assert_eq!(world.ffa(&call), error(DENIED), "it does not run");
    for (route, flags) in [
        (u64::from(abi::SPMC_ID), 0),
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
