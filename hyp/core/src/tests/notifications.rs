//! Notifications.

use super::*;
use hyp_abi::ffa::error::*;
use hyp_abi::ffa::*;

const SUCCESS: u64 = SUCCESS_32 as u64;
const CREATE: u64 = NOTIFICATION_BITMAP_CREATE as u64;
const DESTROY: u64 = NOTIFICATION_BITMAP_DESTROY as u64;
const BIND: u64 = NOTIFICATION_BIND as u64;
const UNBIND: u64 = NOTIFICATION_UNBIND as u64;
const SET: u64 = NOTIFICATION_SET as u64;
const GET: u64 = NOTIFICATION_GET as u64;
const ALL: u64 = 7;
const DONE: [u64; 8] = [SUCCESS, 0, 0, 0, 0, 0, 0, 0];

fn error(code: i32) -> [u64; 8] {
    [u64::from(ERROR), 0, w(code), 0, 0, 0, 0, 0]
}

/// What GET answers.
fn got(partitions: u64, host: u64, framework: u64) -> [u64; 8] {
    let (low, high) = (|word: u64| word & 0xFFFF_FFFF, |word: u64| word >> 32);
    [SUCCESS, 0, low(partitions), high(partitions), low(host), high(host), framework, 0]
}

/// Two running partitions on CPUs 1 and 2; the host has its bitmap.
fn three() -> (World, u64, u64) {
    let mut world = World::new();
    let (first, second) = (world.inside_at(PAGES, 1), world.inside_at(RAM + 0x1000_0000, 2));
    assert_eq!(world.ffa(&[CREATE, 0, 4]), DONE);
    (world, first, second)
}

#[test]
fn the_host_has_one_bitmap_and_partitions_make_none() {
    let mut world = World::new();
    let id = world.inside_at(PAGES, 1);
    // Without it nothing can be bound, set or got.
    assert_eq!(world.ffa(&[BIND, id << 16, 0, 1, 0]), error(DENIED));
    assert_eq!(world.ffa(&[UNBIND, id << 16, 0, 1, 0]), error(DENIED));
    assert_eq!(world.ffa(&[GET, 0, ALL]), error(DENIED));
    assert_eq!(world.guest_call(id, &[SET, id << 16, 0, 1, 0]), error(DENIED));
    assert_eq!(world.ffa(&[DESTROY, 0]), error(DENIED));
    for (vm, vcpus) in [(1, 1), (id, 1), (0, 0), (0, 0x1_0001), (1 << 16, 1)] {
        assert_eq!(world.ffa(&[CREATE, vm, vcpus]), error(INVALID_PARAMETERS), "{vm:x} {vcpus}");
    }
    assert_eq!(world.ffa(&[DESTROY, 1]), error(INVALID_PARAMETERS));
    assert_eq!(world.ffa(&[CREATE, 0, 2]), DONE);
    assert_eq!(world.ffa(&[CREATE, 0, 2]), error(DENIED));
    assert_eq!(world.ffa(&[BIND, id << 16, 0, 1, 0]), DONE);
    assert_eq!(world.guest_call(id, &[SET, id << 16, 0, 1, 0]), DONE);
    assert_eq!(world.ffa(&[DESTROY, 0]), error(DENIED), "one is pending");
    assert_eq!(world.ffa(&[GET, 0, ALL]), got(1, 0, 0));
    assert_eq!(world.ffa(&[DESTROY, 0]), DONE);
    assert_eq!(world.ffa(&[CREATE, 0, 2]), DONE);
    assert_eq!(world.guest_call(id, &[SET, id << 16, 0, 1, 0]), error(DENIED), "bindings went with it");
    assert_eq!(world.guest_call(id, &[CREATE, id, 1]), error(NOT_SUPPORTED));
    assert_eq!(world.guest_call(id, &[DESTROY, id]), error(NOT_SUPPORTED));
}

#[test]
fn the_receiver_lets_each_sender_set_bits() {
    let (mut world, first, second) = three();
    let both = 1 << 63 | 1;
    let (low, high) = (1, 1 << 31);
    // Nobody sets what was not bound, whoever he says he is.
    for sender in [first, second, 0] {
        let code = if sender == first { DENIED } else { INVALID_PARAMETERS };
        assert_eq!(world.guest_call(first, &[SET, sender << 16 | second, 0, 1, 0]), error(code));
        let code = if sender == 0 { DENIED } else { INVALID_PARAMETERS };
        assert_eq!(world.ffa(&[SET, sender << 16 | second, 0, 1, 0]), error(code));
    }
    assert_eq!(world.guest_call(second, &[BIND, first << 16 | second, 0, low, high]), DONE);
    assert_eq!(world.ffa(&[SET, second, 0, low, high]), error(DENIED), "for the first, not for the host");
    assert_eq!(
        world.guest_call(first, &[SET, first << 16 | second, 0, 3, 0]),
        error(DENIED),
        "one bit of two"
    );
    assert_eq!(world.guest_call(second, &[GET, second, ALL]), got(0, 0, 0), "all or nothing");
    world.platform.kicks.clear();
    assert_eq!(world.guest_call(first, &[SET, first << 16 | second, 0, low, high]), DONE);
    assert_eq!(world.platform.kicks, [2], "it is inside there");
    assert_eq!(world.hyp.take_pending(slot(second), 0), 1 << NPI);
    assert_eq!(world.hyp.take_pending(slot(second), 1), 0);
    // The host's are separate: the same bit may be its own.
    assert_eq!(world.guest_call(second, &[BIND, second, 0, 1, 0]), DONE);
    assert_eq!(world.ffa(&[SET, second, 0, 1, 0]), DONE);
    assert_eq!(world.guest_call(second, &[GET, second, 8]), got(0, 0, 0), "none of a hypervisor");
    assert_eq!(world.guest_call(second, &[GET, 1 << 16 | second, 1]), got(both, 0, 0), "for any vCPU");
    assert_eq!(world.guest_call(second, &[GET, second, ALL]), got(0, 1, 0));
    assert_eq!(world.guest_call(second, &[GET, second, ALL]), got(0, 0, 0), "taken");
    assert_eq!(world.guest_call(first, &[GET, first, ALL]), got(0, 0, 0));
}

#[test]
fn a_bit_is_one_senders_until_it_is_free_and_not_pending() {
    let (mut world, first, second) = three();
    let third = world.inside_at(RAM + 0x1800_0000, 3);
    assert_eq!(world.guest_call(third, &[BIND, first << 16 | third, 0, 6, 0]), DONE);
    for bits in [2, 6, 3, 0xFFFF_FFFF] {
        for sender in [first, second] {
            let bind = [BIND, sender << 16 | third, 0, bits, 0];
            assert_eq!(world.guest_call(third, &bind), error(DENIED), "{bits:x}");
        }
    }
    assert_eq!(world.guest_call(third, &[BIND, second << 16 | third, 0, 1, 0]), DONE);
    assert_eq!(world.guest_call(third, &[UNBIND, second << 16 | third, 0, 2, 0]), error(DENIED), "not his");
    assert_eq!(world.guest_call(first, &[SET, first << 16 | third, 0, 2, 0]), DONE);
    assert_eq!(world.guest_call(third, &[UNBIND, first << 16 | third, 0, 2, 0]), error(DENIED), "pending");
    assert_eq!(world.guest_call(third, &[UNBIND, first << 16 | third, 0, 4, 0]), DONE);
    assert_eq!(world.guest_call(third, &[GET, third, ALL]), got(2, 0, 0));
    assert_eq!(world.guest_call(third, &[UNBIND, first << 16 | third, 0, 2, 0]), DONE);
    assert_eq!(world.guest_call(first, &[SET, first << 16 | third, 0, 2, 0]), error(DENIED));
    assert_eq!(world.guest_call(third, &[BIND, second << 16 | third, 0, 2, 0]), DONE);
}

#[test]
fn malformed_calls_are_refused() {
    let (mut world, first, second) = three();
    let bad = error(INVALID_PARAMETERS);
    for function in [BIND, UNBIND] {
        for (route, flags, low) in [
            (first << 16 | second, 0, 1), // not the caller
            (second << 16, 0, 1),
            (first << 16 | first, 0, 1), // itself
            (0x8001 << 16 | first, 0, 1),
            (0x8000 << 16 | first, 0, 1),
            (0x8010 << 16 | first, 0, 1), // nobody
            (second << 16 | first, 1, 1), // for one vCPU
            (second << 16 | first, 2, 1),
            (second << 16 | first, 0, 0), // no bit
        ] {
            let call = [function, route, flags, low, 0];
            assert_eq!(world.guest_call(first, &call), bad, "{function:x} {route:x} {flags:x}");
        }
    }
    for (route, flags, low) in [
        (second << 16 | first, 0, 1),
        (first, 0, 1),
        (first << 16 | first, 0, 1),
        (first << 16 | 0x8001, 0, 1),
        (first << 16 | 0x8010, 0, 1),
        (first << 16 | second, 1, 1),
        (first << 16 | second, 1 << 16, 1),
        (first << 16 | second, 4, 1),
        (first << 16 | second, 0, 0),
    ] {
        assert_eq!(world.guest_call(first, &[SET, route, flags, low, 0]), bad, "{route:x} {flags:x}");
    }
    for (target, flags) in [(second, ALL), (0, ALL), (2 << 16 | first, ALL), (first, 16), (first, 1 << 31)] {
        assert_eq!(world.guest_call(first, &[GET, target, flags]), bad, "{target:x} {flags:x}");
    }
    for (target, flags) in [(first, ALL), (4 << 16, ALL), (0, 16)] {
        assert_eq!(world.ffa(&[GET, target, flags]), bad, "{target:x} {flags:x}");
    }
    assert_eq!(world.ffa(&[BIND, 0, 0, 1, 0]), bad, "the host from itself");
    assert_eq!(world.ffa(&[SET, 0, 0, 1, 0]), bad);
}

#[test]
fn the_host_is_told_whom_to_run() {
    let (mut world, first, second) = three();
    let info = |world: &mut World| world.ffa(&[NOTIFICATION_INFO_GET_64.into()]);
    assert_eq!(info(&mut world), error(NO_DATA));
    world.guest_call(second, &[BIND, first << 16 | second, 0, 3, 0]);
    world.ffa(&[BIND, first << 16, 0, 1, 0]);
    let (_, _, host) = world.exit(second, 0, Exit::Call, &[MSG_WAIT.into()]);
    assert_eq!(host[0], MSG_WAIT.into());
    let signals = world.platform.signals;
    assert_eq!(world.guest_call(first, &[SET, first << 16 | second, 0, 1, 0]), DONE);
    assert_eq!(world.platform.signals, signals + 1);
    assert_eq!(info(&mut world), [SUCCESS_64.into(), 0, 1 << 7, second, 0, 0, 0, 0]);
    assert_eq!(info(&mut world), error(NO_DATA), "once");
    assert_eq!(world.guest_call(first, &[SET, first << 16 | second, 0, 1, 0]), DONE);
    assert_eq!(
        (world.platform.signals, info(&mut world)),
        (signals + 1, error(NO_DATA)),
        "it is pending already"
    );
    // One more counts again; not at once means no interrupt.
    assert_eq!(world.guest_call(first, &[SET, first << 16 | second, 2, 2, 0]), DONE);
    assert_eq!(world.guest_call(first, &[SET, first << 16, 2, 1, 0]), DONE);
    assert_eq!(world.platform.signals, signals + 1);
    let two = [SUCCESS, 0, 2 << 7, second << 16, 0, 0, 0, 0];
    assert_eq!(world.ffa(&[NOTIFICATION_INFO_GET_32.into()]), two, "the host first");
    assert_eq!(world.ffa(&[GET, 0, ALL]), got(1, 0, 0));
    assert_eq!(world.guest_call(first, &[SET, first << 16, 0, 1, 0]), DONE);
    assert_eq!(world.guest_call(first, &[SET, first << 16, 0, 1, 0]), DONE);
    assert_eq!(world.platform.signals, signals + 2);
    assert_eq!(info(&mut world)[3], 0);
    // It comes when it is run.
    world.enter(second, 0, 2);
    assert_eq!(world.hyp.take_pending(slot(second), 0), 1 << NPI);
    assert_eq!(world.guest_call(second, &[GET, second, ALL]), got(3, 0, 0));
    assert_eq!(world.guest_call(first, &[NOTIFICATION_INFO_GET_64.into()]), error(NOT_SUPPORTED));
}

#[test]
fn more_receivers_than_fit_come_in_parts() {
    let (mut world, ..) = three();
    for place in 0..12u64 {
        world.inside_at(RAM + 0x1800_0000 + place * 0x20_0000, 3);
    }
    let ids: Vec<u64> = world.hyp.partitions.iter().flatten().map(|p| u64::from(p.id())).collect();
    assert_eq!(ids.len(), 14);
    for id in &ids {
        world.guest_call(*id, &[BIND, *id, 0, 1, 0]);
        assert_eq!(world.ffa(&[SET, *id, 0, 1, 0]), DONE);
    }
    let read = |answer: [u64; 8], places: usize| -> Vec<u64> {
        let all = answer[3..].iter().flat_map(|word| (0..places).map(move |n| word >> (16 * n) & 0xFFFF));
        all.filter(|id| *id != 0).collect()
    };
    let first = world.ffa(&[NOTIFICATION_INFO_GET_32.into()]);
    assert_eq!((first[0], first[2]), (SUCCESS, 10 << 7 | 1));
    assert_eq!(read(first, 2), ids[..10]);
    let rest = world.ffa(&[NOTIFICATION_INFO_GET_64.into()]);
    assert_eq!((rest[0], rest[2]), (SUCCESS_64.into(), 4 << 7));
    assert_eq!(read(rest, 4), ids[10..]);
}

#[test]
fn messages_notify_by_the_framework() {
    let (mut world, first, second) = three();
    world.map_buffers(second);
    let header =
        |route: u64| MessageHeader { offset: 40, size: 1, route: route as u32, ..Default::default() };
    world.tx(header(second).as_bytes());
    assert_eq!(world.ffa(&[MSG_SEND2.into()]), DONE);
    assert_eq!(world.ffa(&[NOTIFICATION_INFO_GET_64.into()])[3], second);
    assert_eq!(world.guest_call(second, &[GET, second, 4]), got(0, 0, u64::from(RX_BUFFER_FULL)));
    let page = world.page_of(second, HEAP);
    world.platform.machine.write_page(page, &super::page(header(second << 16).as_bytes()));
    assert_eq!(world.guest_call(second, &[MSG_SEND2.into()]), DONE);
    assert_eq!(world.ffa(&[GET, 0, ALL]), got(0, 0, u64::from(RX_BUFFER_FULL)));
    assert_eq!(world.guest_call(first, &[GET, first, ALL]), got(0, 0, 0));
}

#[test]
fn the_end_of_a_partition_ends_its_notifications() {
    let (mut world, first, second) = three();
    world.guest_call(first, &[BIND, second << 16 | first, 0, 1, 0]);
    world.ffa(&[BIND, second << 16, 0, 1, 0]);
    world.guest_call(second, &[BIND, first << 16 | second, 0, 1, 0]);
    world.guest_call(second, &[BIND, second, 0, 1, 0]);
    world.guest_call(first, &[SET, first << 16 | second, 0, 1, 0]);
    world.exit(second, 0, Exit::SError, &[]);
    assert_eq!(world.ffa(&[NOTIFICATION_INFO_GET_64.into()]), error(NO_DATA), "nobody to run");
    assert_eq!(world.guest_call(first, &[SET, first << 16 | second, 0, 1, 0]), error(ABORTED));
    assert_eq!(world.ffa(&[SET, second, 0, 1, 0]), error(ABORTED));
    world.destroy(second);
    assert_eq!(world.ffa(&[SET, second, 0, 1, 0]), error(INVALID_PARAMETERS));
    // The next one with its id has no rights of it, and nothing of what it was sent.
    let heir = world.inside_at(RAM + 0x1000_0000, 2);
    assert_eq!(heir, second);
    assert_eq!(world.guest_call(heir, &[SET, heir << 16 | first, 0, 1, 0]), error(DENIED));
    assert_eq!(world.guest_call(heir, &[SET, heir << 16, 0, 1, 0]), error(DENIED));
    assert_eq!(world.guest_call(first, &[SET, first << 16 | heir, 0, 1, 0]), error(DENIED));
    assert_eq!(world.guest_call(heir, &[GET, heir, ALL]), got(0, 0, 0));
    assert_eq!(world.hyp.take_pending(slot(heir), 0), 0);
}
