//! The partition's instance: its exits and its calls.

use super::*;
use crate::psci::id as psci_id;
use hyp_abi::ffa::error::*;
use hyp_abi::service::{crash, run_exit};
use stage2::Ipa;

/// A running partition whose vCPU 0 is inside on CPU 1.
fn inside() -> (World, u64) {
    let mut world = World::new();
    let id = world.running();
    world.enter(id, 0, 1);
    (world, id)
}

fn error(code: i32) -> [u64; 8] {
    [u64::from(abi::ERROR), 0, w(code), 0, 0, 0, 0, 0]
}

fn success(second: u64) -> [u64; 8] {
    [u64::from(abi::SUCCESS_32), 0, second, 0, 0, 0, 0, 0]
}

#[test]
fn start_makes_vcpu_zero_fresh() {
    let (world, id) = inside();
    assert_eq!(world.platform.resets, [(slot(id).index(), 0, IMAGE + 0x40, 0)]);
}

#[test]
fn interrupts_come_out_and_go_on() {
    let (mut world, id) = inside();
    for n in 1..4 {
        let guest = registers(&[1, 2, 3]);
        let (next, regs, host) = world.exit(id, 0, Exit::Interrupt, &[1, 2, 3]);
        assert_eq!((next, regs), (Next::Host, guest), "the partition does not notice");
        assert_eq!(host, [abi::INTERRUPT.into(), id << 16, 0, 0, run_exit::INTERRUPT, 0, 0, 0]);
        let stats = world.partition_stats(id);
        assert_eq!((stats.interrupts, stats.world_switches), (n, n));
        world.enter(id, 0, n as usize);
    }
    assert_eq!(world.platform.resets.len(), 1, "only START resets");
    let before = world.partition_stats(id).run_ticks;
    world.platform.machine.now += 1000;
    world.exit(id, 0, Exit::Interrupt, &[]);
    let after = world.partition_stats(id).run_ticks;
    assert!((1000..1100).contains(&(after - before)), "{before} {after}");
}

#[test]
fn waiting_for_the_timer_says_until_when() {
    let (mut world, id) = inside();
    let yields = |low, high, until| [abi::YIELD.into(), id << 16, low, high, run_exit::TIMER, until, 0, 0];
    // One tick is a microsecond.
    let now = world.platform.ticks();
    for (deadline, low, high, until) in [
        (None, 0, 0, u64::MAX),
        (Some(now + 3), 3000, 0, now + 3),
        (Some(now + 5_000_000), 5_000_000_000 & 0xffff_ffff, 1, now + 5_000_000),
        (Some(now), 1, 0, now),
        (Some(0), 1, 0, 0),
        (Some(u64::MAX), 0xffff_ffff, 0xffff_ffff, u64::MAX),
    ] {
        let (next, _, host) = world.exit(id, 0, Exit::WaitForInterrupt { deadline }, &[]);
        assert_eq!((next, host), (Next::Host, yields(low, high, until)));
        world.enter(id, 0, 1);
        assert_eq!(world.platform.ticks(), now, "FFA_RUN and exits cost no machine operation");
    }
}

#[test]
fn waiting_and_yielding_come_out() {
    let (mut world, id) = inside();
    let (next, regs, host) = world.exit(id, 0, Exit::Call, &[abi::MSG_WAIT.into()]);
    assert_eq!(
        (next, host),
        (Next::Host, [abi::MSG_WAIT.into(), id << 16, 0, 0, run_exit::WAITING, 0, 0, 0])
    );
    assert_eq!(regs[..8], [abi::RUN.into(), id << 16, 0, 0, 0, 0, 0, 0], "what it sees when it is run again");
    world.enter(id, 0, 1);
    let (next, regs, host) = world.exit(id, 0, Exit::Call, &[abi::YIELD.into(), 9, 1 << 32 | 7, 8]);
    assert_eq!((next, host), (Next::Host, [abi::YIELD.into(), id << 16, 7, 8, run_exit::KICK, 0, 0, 0]));
    assert_eq!(regs[..8], success(0));
    world.enter(id, 0, 1);
}

#[test]
fn its_ffa_calls() {
    let (mut world, id) = inside();
    assert_eq!(world.guest_call(id, &[abi::VERSION.into(), 0x1_0001])[0], 0x1_0002);
    assert_eq!(world.guest_call(id, &[abi::VERSION.into(), 0x2_0000])[0], w(NOT_SUPPORTED));
    assert_eq!(world.guest_call(id, &[abi::ID_GET.into()]), success(id));
    assert_eq!(world.guest_call(id, &[abi::VERSION.into(), 0x1_0002])[0], w(NOT_SUPPORTED), "fixed at 1.1");
    assert_eq!(world.guest_call(id, &[abi::SPM_ID_GET.into()]), success(0x8000));
    // The host's calls and those of nobody; FF-A 1.2's are not there at 1.1.
    for function in [
        0x62u64, 0x6A, 0x6D, 0x6E, 0x75, 0x78, 0x79, 0x7C, 0x7D, 0x7E, 0x83, 0x84, 0x8A, 0x8B, 0x8D, 0x8E,
        0xEF,
    ] {
        for base in [0x8400_0000, 0xC400_0000] {
            let answer = world.guest_call(id, &[base | function, TX, RX, 1]);
            assert_eq!(answer, error(NOT_SUPPORTED), "{function:x}");
        }
    }
    assert_eq!(world.hyp.counters.refused_calls, 0, "those count the host's");
}

#[test]
fn it_can_speak_for_itself_to_the_service_only() {
    let (mut world, id) = inside();
    let other = world.populated_at(RAM + 0x1000_0000);
    let service = u64::from(abi::SERVICE_ID);
    for (route, code) in [
        (service, INVALID_PARAMETERS),
        (other << 16 | service, INVALID_PARAMETERS),
        (other << 16 | id, INVALID_PARAMETERS),
        (id << 16 | 0x8000, INVALID_PARAMETERS),
        (id << 16 | id, INVALID_PARAMETERS),
        (id << 16 | 0x9000, INVALID_PARAMETERS),
        // One would run on the other's time.
        (id << 16 | other, DENIED),
        (id << 16, DENIED),
    ] {
        for function in [abi::MSG_SEND_DIRECT_REQ_32, abi::MSG_SEND_DIRECT_REQ_64, abi::MSG_SEND_DIRECT_REQ2]
        {
            let call = [function.into(), route, 0, op::INFO];
            assert_eq!(world.guest_call(id, &call), error(code), "{function:x} {route:x}");
        }
    }
    let framework = [abi::MSG_SEND_DIRECT_REQ_64.into(), id << 16 | service, 1 << 31, op::INFO];
    assert_eq!(world.guest_call(id, &framework), error(INVALID_PARAMETERS));
    assert_eq!(world.guest_request(id, op::INFO, &[]).1[2], 16);
    for operation in
        [op::TABLES_GIVE, op::TABLES_RECALL].into_iter().chain(op::CREATE..=op::STATS).chain([op::LOG])
    {
        assert_eq!(world.guest_request(id, operation, &[other, 1, 1]), (DENIED, [0; 4]), "{operation:x}");
    }
    for operation in [3, 0x18, 0x25, op::KNOB, u64::MAX] {
        assert_eq!(world.guest_request(id, operation, &[1, 1]), (NOT_SUPPORTED, [0; 4]));
    }
    // 32-bit: the low words of what does not fit.
    let call = [abi::MSG_SEND_DIRECT_REQ_32.into(), id << 16 | service, 0, op::REGION, 3];
    let answer = world.guest_call(id, &call);
    let expected = [abi::MSG_SEND_DIRECT_RESP_32.into(), service << 16 | id, 0, 0, 0, 4, 2, 3];
    assert_eq!(answer, expected);
}

#[test]
fn regions_describe_its_memory() {
    let (mut world, id) = inside();
    assert_eq!(world.guest_request(id, op::REGION, &[0]), (0, [MODEL, 0, 3, 1]));
    assert_eq!(world.guest_request(id, op::REGION, &[1]), (0, [IMAGE, IMAGE_PAGES, 1, 5]));
    assert_eq!(world.guest_request(id, op::REGION, &[3]), (0, [HEAP, 4, 2, 3]));
    assert_eq!(world.give(id, HEAP + 4 * PAGE, RAM + 0x800_0000, 12).0, 0);
    assert_eq!(world.guest_request(id, op::REGION, &[3]), (0, [HEAP, 16, 2, 3]));
    assert_eq!(world.guest_request(id, op::REGION, &[4]), (0, [SESSION, 2, 4, 3]));
    for index in [5, 16, u64::MAX, 1 << 32] {
        assert_eq!(world.guest_request(id, op::REGION, &[index]), (INVALID_PARAMETERS, [index, 0, 0, 0]));
    }
}

#[test]
fn sharing_is_explicit_per_page_and_only_in_its_region() {
    let (mut world, id) = inside();
    let page = PAGES + 80 * PAGE;
    assert_eq!(world.host_reads(page), None);
    assert_eq!(world.guest_request(id, op::SHARE, &[SESSION]), (0, [0; 4]));
    assert_eq!(world.host_reads(page), Some(0));
    assert_eq!(world.host_reads(page + PAGE), None, "this page only");
    assert_eq!(world.partition_stats(id).pages_shared, 1);
    for (operation, ipa, code) in [
        (op::SHARE, SESSION, DENIED),
        (op::SHARE, SESSION + 2 * PAGE, INVALID_PARAMETERS),
        (op::SHARE, HEAP, DENIED),
        (op::SHARE, IMAGE, DENIED),
        (op::SHARE, DATA, DENIED),
        (op::SHARE, 0, INVALID_PARAMETERS),
        (op::SHARE, u64::MAX, INVALID_PARAMETERS),
        (op::UNSHARE, SESSION + PAGE, DENIED),
        (op::UNSHARE, SESSION + 2 * PAGE, INVALID_PARAMETERS),
        (op::UNSHARE, HEAP, DENIED),
    ] {
        assert_eq!(
            world.guest_request(id, operation, &[ipa]),
            (code, [ipa, 0, 0, 0]),
            "{operation:x} {ipa:x}"
        );
    }
    assert_eq!(world.guest_request(id, op::SHARE, &[SESSION + PAGE + 8]), (INVALID_PARAMETERS, [0; 4]));
    // A shared page is not the host's to give or to use as a mailbox or entry.
    assert_eq!(world.give(id, HEAP + 100 * PAGE, page, 1), (DENIED, [page, 0, 0, 0]));
    let (regs, _) = world.smc(&[psci_id::CPU_ON_64.into(), 1, page, 0]);
    assert_eq!(regs[0], -9i64 as u64);
    assert_eq!(world.guest_request(id, op::UNSHARE, &[SESSION]), (0, [0; 4]));
    assert_eq!(world.host_reads(page), None);
    assert_eq!(world.partition_stats(id).pages_shared, 0);
}

/// An exit that ends the partition: what FFA_RUN answers then and ever after.
fn ends(exit: Exit, guest: &[u64], reason: [u64; 4]) {
    let (mut world, id) = inside();
    let mut call = guest.to_vec();
    if let [_, route, ..] = &mut call[..] {
        *route = id << 16 | u64::from(abi::SERVICE_ID);
    }
    let [a, b, c, d] = reason;
    let expected = [u64::from(abi::ERROR), id << 16, w(ABORTED), 0, a, b, c, d];
    let (next, _, host) = world.exit(id, 0, exit, &call);
    assert_eq!((next, host), (Next::Host, expected), "{exit:?}");
    for _ in 0..2 {
        assert_eq!(world.ffa(&[abi::RUN.into(), id << 16]), expected, "again");
    }
    assert_eq!(world.partition_stats(id).end[..], reason[1..]);
    // That partition alone: another one lives on, and the pages come back clean.
    let other = world.populated_at(RAM + 0x1000_0000);
    world.measure(other);
    world.ok(op::START, &[other]);
    world.enter(other, 0, 1);
    world.destroy(id);
    assert_eq!(world.host_reads(PAGES), Some(0));
}

#[test]
fn ends_by_itself() {
    let call = |operation, a, b| [abi::MSG_SEND_DIRECT_REQ_64.into(), 0, 0, operation, a, b];
    ends(Exit::Call, &call(op::EXIT, 0, 0), [run_exit::FINISHED, 0, 0, 0]);
    ends(Exit::Call, &call(op::EXIT, u64::MAX, 0), [run_exit::FINISHED, u64::MAX, 0, 0]);
    ends(Exit::Call, &call(op::PANIC, 0x1234, 77), [run_exit::CRASHED, crash::PANIC, 0x1234, 77]);
}

#[test]
fn ends_by_its_fault() {
    ends(Exit::SError, &[], [run_exit::CRASHED, crash::SERROR, 0, 0]);
    ends(Exit::Undefined { class: 0x18 }, &[], [run_exit::CRASHED, crash::UNDEFINED, 0x18, 0]);
    for (ipa, write, fetch) in [
        (IMAGE + 0x80, true, false),
        (HEAP, false, true),
        (HEAP + 4 * PAGE, false, false),
        (HEAP + 4 * PAGE, true, false),
        (MODEL, false, false),
        (PAGES, false, false),
        (DEVICE, true, false),
        (HYPERVISOR, true, false),
        (0, false, true),
        (1 << 40, false, false),
        (u64::MAX, false, false),
        // Its image is there and stays as it is: no give or recall can have been in the way.
        (IMAGE + 0x80, false, true),
        (IMAGE + 0x80, false, false),
    ] {
        ends(Exit::Abort { ipa, write, fetch }, &[], [run_exit::CRASHED, crash::ABORT, ipa, 0]);
    }
}

#[test]
fn an_abort_on_what_it_may_do_by_now_is_retried() {
    let (mut world, id) = inside();
    for (ipa, write, fetch) in [(HEAP + 0xfff, true, false), (HEAP, false, false), (SESSION, true, false)] {
        let before = registers(&[5, 6]);
        let (next, regs, _) = world.exit(id, 0, Exit::Abort { ipa, write, fetch }, &[5, 6]);
        assert_eq!((next, regs), (Next::Resume, before), "{ipa:x}");
    }
    let page = world.hyp.memory().partition_page(&world.platform, slot(id), Ipa(HEAP)).unwrap();
    assert!(!page.shared);
}

#[test]
fn an_abort_is_not_retried_for_ever() {
    let (mut world, id) = inside();
    let abort = |ipa| Exit::Abort { ipa, write: true, fetch: false };
    let next = |world: &mut World, exit| world.exit(id, 0, exit, &[5, 6]).0;
    // Each time stage 2 changed in between, by whomever: the access met the change, and succeeded after it.
    for round in 0..50 {
        assert_eq!(next(&mut world, abort(HEAP)), Next::Resume);
        assert_eq!(world.give(id, HEAP + (16 + round) * PAGE, PAGES + (100 + round) * PAGE, 1).0, 0);
    }
    // Somewhere else is another matter, and what comes between changes nothing.
    for _ in 0..3 {
        assert_eq!(next(&mut world, abort(HEAP + 8)), Next::Resume);
        assert_eq!(next(&mut world, Exit::Kick), Next::Resume);
    }
    for _ in 0..3 {
        assert_eq!(next(&mut world, abort(HEAP)), Next::Resume);
    }
    assert_eq!(next(&mut world, abort(HEAP)), Next::Host);
    assert_eq!(world.partition_stats(id).end[..2], [crash::ABORT, HEAP]);
}

#[test]
fn its_psci_turns_its_own_vcpus_on_and_off() {
    let (mut world, id) = inside();
    let smc = |world: &mut World, words: &[u64]| {
        let (next, regs, _) = world.exit(id, 0, Exit::Call, words);
        assert_eq!((next, &regs[1..]), (Next::Resume, &registers(words)[1..]));
        regs[0]
    };
    assert_eq!(smc(&mut world, &[0x8400_0000]), 0x1_0001);
    assert_eq!(smc(&mut world, &[0x8000_0000]), 0x1_0002);
    for function in 0x8400_0000..0x8400_0060u64 {
        let here = [0x8400_0000, 0x8400_0001, 0x8400_0002, 0x8400_0004, 0x8400_0008, 0x8400_000A]
            .contains(&function);
        assert_eq!(
            smc(&mut world, &[0x8400_000A, function]),
            if here { 0 } else { u64::MAX },
            "{function:x}"
        );
    }
    for function in [0xC400_0001u64, 0xC400_0003, 0xC400_0004, 0x8000_0000] {
        assert_eq!(smc(&mut world, &[0x8400_000A, function]), 0);
    }
    // Nothing of it reaches the machine.
    for function in
        [0x8400_0009u64, 0x8400_0003, 0x8400_0012, 0x8400_0050, 0xC400_0053, 0x8600_0000, 0, u64::MAX]
    {
        assert_eq!(smc(&mut world, &[function, 1, IMAGE, 2]), u64::MAX, "{function:x}");
    }
    let on = u64::from(psci_id::CPU_ON_64);
    for (target, entry, code) in [
        (2, IMAGE, -2i64),
        (1 << 31 | 1, IMAGE, -2),
        (1, HEAP, -9),
        (1, IMAGE + 1, -9),
        (1, 0, -9),
        (0, IMAGE, -4),
    ] {
        assert_eq!(smc(&mut world, &[on, target, entry, 0]), code as u64, "{target:x} {entry:x}");
    }
    assert_eq!(smc(&mut world, &[on, 1, IMAGE + 8, 99]), 0);
    assert_eq!(smc(&mut world, &[on, 1, IMAGE + 8, 99]), -4i64 as u64);
    assert_eq!(world.platform.resets[1..], [(slot(id).index(), 1, IMAGE + 8, 99)]);
    // Both run; the second leaves for good, and comes back.
    world.enter(id, 1, 2);
    let (next, _, host) = world.exit(id, 1, Exit::Call, &[0x8400_0002]);
    assert_eq!(
        (next, host[..5].to_vec()),
        (Next::Host, vec64(&[abi::MSG_WAIT.into(), id << 16 | 1, 0, 0, 3]))
    );
    assert_eq!(world.ffa(&[abi::RUN.into(), id << 16 | 1]), error(DENIED));
    assert_eq!(smc(&mut world, &[on, 1, IMAGE, 0]), 0);
    world.enter(id, 1, 2);
    // A crash of one ends both; the other is kicked out and cannot report anything else.
    world.platform.kicks.clear();
    world.exit(id, 0, Exit::SError, &[]);
    assert_eq!(world.platform.kicks, [2]);
    assert_eq!(world.request(op::RECALL, &[id, HEAP, 1]), (BUSY, [id, 0, 0, 0]));
    let (next, _, host) = world.exit(id, 1, Exit::Call, &[abi::MSG_WAIT.into()]);
    let expected = [u64::from(abi::ERROR), id << 16 | 1, w(ABORTED), 0, 5, crash::SERROR, 0, 0];
    assert_eq!((next, host), (Next::Host, expected));
    assert_eq!(world.request(op::RECALL, &[id, HEAP, 1]).0, 0);
}

#[test]
fn an_exit_of_a_vcpu_that_nobody_entered_goes_to_the_host() {
    let (mut world, id) = inside();
    for vcpu in [1, 2, 8, 1 << 20] {
        let (next, _, host) = world.exit(id, vcpu, Exit::Interrupt, &[]);
        assert_eq!((next, host), (Next::Host, error(DENIED)));
        assert_eq!(world.partition_stats(id).interrupts, 0);
    }
    assert_eq!(world.ffa(&[abi::RUN.into(), id << 16 | 1]), error(DENIED), "still off");
    world.exit(id, 0, Exit::Interrupt, &[]);
    world.destroy(id);
    let (next, _, host) = world.exit(id, 0, Exit::Interrupt, &[]);
    assert_eq!((next, host), (Next::Host, error(DENIED)));
}
