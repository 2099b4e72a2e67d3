//! Partitions' buffers, indirect messages, and direct requests of the host to a partition.

use super::*;
use hyp_abi::ffa::error::*;
use hyp_abi::ffa::*;
use hyp_abi::service::run_exit;

const SUCCESS: u64 = SUCCESS_32 as u64;
const MAP: u64 = RXTX_MAP_64 as u64;
const WAIT: u64 = MSG_WAIT as u64;
/// Where the second partition's pages lie.
const ELSEWHERE: u64 = RAM + 0x1000_0000;

fn error(code: i32) -> [u64; 8] {
    [u64::from(ERROR), 0, w(code), 0, 0, 0, 0, 0]
}

/// A running partition whose vCPU 0 is inside on CPU 1.
fn inside() -> (World, u64) {
    let mut world = World::new();
    let id = world.inside_at(PAGES, 1);
    (world, id)
}

/// Two of them, on CPUs 1 and 2, with buffers.
fn two() -> (World, u64, u64) {
    let (mut world, id) = inside();
    let other = world.inside_at(ELSEWHERE, 2);
    world.map_buffers(id);
    world.map_buffers(other);
    world.ffa(&[NOTIFICATION_BITMAP_CREATE.into(), 0, 1]);
    (world, id, other)
}

fn header(sender: u64, receiver: u64, offset: u32, size: u32) -> MessageHeader {
    MessageHeader { offset, size, route: (sender << 16 | receiver) as u32, ..MessageHeader::default() }
}

/// A TX buffer: header, and `payload` at its offset.
fn message(header: MessageHeader, payload: &[u8]) -> [u8; 4096] {
    let mut bytes = page(header.as_bytes());
    bytes[header.offset as usize..header.offset as usize + payload.len()].copy_from_slice(payload);
    bytes
}

impl World {
    /// A message by the host.
    fn host_sends(&mut self, tx: &[u8; 4096]) -> [u64; 8] {
        self.tx(tx);
        self.ffa(&[MSG_SEND2.into()])
    }

    /// A message by a partition.
    fn sends(&mut self, id: u64, tx: &[u8; 4096]) -> [u64; 8] {
        let page = self.page_of(id, HEAP);
        self.platform.machine.write_page(page, tx);
        self.guest_call(id, &[MSG_SEND2.into()])
    }

    /// What lies in a partition's RX.
    fn rx_of(&self, id: u64) -> [u8; 4096] {
        self.platform.machine.read_page(self.page_of(id, HEAP + PAGE))
    }

    /// vCPU 0 comes out and waits.
    fn waits(&mut self, id: u64) {
        let (next, _, host) = self.exit(id, 0, Exit::Call, &[WAIT]);
        assert_eq!((next, host[0]), (Next::Host, WAIT));
    }
}

#[test]
fn buffers_are_two_writable_pages_of_the_partition_alone() {
    let (mut world, id) = inside();
    assert_eq!(world.guest_request(id, op::SHARE, &[SESSION]), (0, [0; 4]));
    for (tx, rx, page_count, code) in [
        (HEAP, HEAP, 1, INVALID_PARAMETERS),
        (HEAP + 8, HEAP + PAGE, 1, INVALID_PARAMETERS),
        (HEAP, HEAP + PAGE + 1, 1, INVALID_PARAMETERS),
        (HEAP, HEAP + PAGE, 0, INVALID_PARAMETERS),
        (HEAP, HEAP + PAGE, 2, INVALID_PARAMETERS),
        (HEAP, HEAP + PAGE, 1 << 32 | 1, INVALID_PARAMETERS),
        // Not given, of the host, the hypervisor's, a device, beyond all addresses.
        (HEAP, HEAP + 4 * PAGE, 1, DENIED),
        (HEAP + 4 * PAGE, HEAP, 1, DENIED),
        (PAGES, HEAP, 1, DENIED),
        (HEAP, HYPERVISOR, 1, DENIED),
        (HEAP, DEVICE, 1, DENIED),
        (HEAP, 1 << 40, 1, DENIED),
        (HEAP, u64::MAX << 12, 1, DENIED),
        // Code, and what the host shares.
        (HEAP, IMAGE, 1, DENIED),
        (IMAGE, HEAP, 1, DENIED),
        (HEAP, SESSION, 1, DENIED),
        (SESSION, HEAP, 1, DENIED),
    ] {
        assert_eq!(world.guest_call(id, &[MAP, tx, rx, page_count]), error(code), "{tx:x} {rx:x}");
    }
    assert_eq!(world.guest_call(id, &[RXTX_UNMAP.into()]), error(INVALID_PARAMETERS));
    assert_eq!(world.guest_call(id, &[MAP, SESSION + PAGE, HEAP, 1])[0], SUCCESS);
    assert_eq!(world.guest_call(id, &[MAP, HEAP + PAGE, HEAP + 2 * PAGE, 1]), error(DENIED), "one pair only");
    // They stay its own.
    assert_eq!(world.guest_request(id, op::SHARE, &[SESSION + PAGE]).0, DENIED);
    assert_eq!(world.guest_request(id, op::SHARE, &[SESSION + PAGE + 8]).0, DENIED);
    for (function, first, code) in [
        (RXTX_UNMAP, id << 16, INVALID_PARAMETERS),
        (RX_RELEASE, id, INVALID_PARAMETERS),
        (RX_RELEASE, 0, DENIED),
    ] {
        assert_eq!(world.guest_call(id, &[function.into(), first]), error(code), "{function:x}");
    }
    assert_eq!(world.guest_call(id, &[RXTX_UNMAP.into()])[0], SUCCESS);
    assert_eq!(world.guest_request(id, op::SHARE, &[SESSION + PAGE]).0, 0);
    // 32-bit: the low words only, and no page of this one lies there.
    assert_eq!(world.guest_call(id, &[RXTX_MAP_32.into(), HEAP, HEAP + PAGE, 1]), error(DENIED));
}

#[test]
fn indirect_messages_go_both_ways_and_between_partitions() {
    let (mut world, id, other) = two();
    let sent = message(header(0, id, 64, 5), b"hello");
    assert_eq!(world.host_sends(&sent), [SUCCESS, 0, 0, 0, 0, 0, 0, 0]);
    // Delivered right behind the header, whatever lay between.
    assert_eq!(world.rx_of(id)[..], message(header(0, id, 40, 5), b"hello")[..]);
    assert_eq!(world.hyp.buffer, [0; 4096], "nothing is left on the way");
    assert_eq!(world.platform.kicks, [1], "it is told");
    assert_eq!(world.hyp.take_pending(slot(id), 0), 1 << NPI);
    assert_eq!(world.host_sends(&sent), error(BUSY));
    let another = message(header(other, id, 40, 1), b"x");
    assert_eq!(world.sends(other, &another), error(BUSY));
    assert_eq!(world.rx_of(id)[40..45], *b"hello", "what it reads does not change");
    assert_eq!(world.guest_call(id, &[RX_RELEASE.into()])[0], SUCCESS);
    assert_eq!(world.guest_call(id, &[RX_RELEASE.into()]), error(DENIED));
    let named = MessageHeader { uuid: PARTITION_UUID, ..header(other, id, 48, 2) };
    assert_eq!(world.sends(other, &message(named, b"yo"))[0], SUCCESS);
    let delivered = MessageHeader { offset: 40, ..named };
    assert_eq!(world.rx_of(id)[..42], message(delivered, b"yo")[..42]);

    // To the host.
    let signals = world.platform.signals;
    assert_eq!(world.sends(id, &message(header(id, 0, 40, 3), b"abc"))[0], SUCCESS);
    assert_eq!(world.platform.signals, signals + 1);
    assert_eq!(world.sends(id, &message(header(id, 0, 40, 3), b"abc")), error(BUSY));
    assert_eq!(world.request(op::STATS, &[0]).0, BUSY, "RX is one");
    assert_eq!(world.rx(43), message(header(id, 0, 40, 3), b"abc")[..43]);
    // The largest, and one byte more.
    let big = message(header(id, 0, 40, 4056), &[7; 4056]);
    assert_eq!(world.sends(id, &big)[0], SUCCESS);
    assert_eq!(world.rx(4096), big);
    assert_eq!(world.sends(id, &message(header(id, 0, 40, 4057), &[7; 4056])), error(INVALID_PARAMETERS));
    // Who does not listen keeps RX for the service.
    world.ffa(&[NOTIFICATION_GET.into(), 0, 7]);
    assert_eq!(world.ffa(&[NOTIFICATION_BITMAP_DESTROY.into(), 0])[0], SUCCESS);
    assert_eq!(world.sends(id, &message(header(id, 0, 40, 3), b"abc")), error(DENIED));
    world.system_stats();
    // Not at once: nobody is told but by what is pending.
    let signals = world.platform.signals;
    world.waits(other);
    world.tx(&message(header(0, other, 40, 1), b"z"));
    assert_eq!(world.ffa(&[MSG_SEND2.into(), 0, u64::from(SEND2_DELAY_SRI)])[0], SUCCESS);
    assert_eq!((world.platform.signals, world.hyp.take_pending(slot(other), 0)), (signals, 1 << NPI));
    assert_eq!(world.hyp.take_pending(slot(other), 0), 0, "taken");
}

#[test]
fn every_fault_of_a_message_is_refused() {
    let (mut world, id, other) = two();
    let good = header(0, id, 40, 4);
    let with = |change: fn(&mut MessageHeader)| {
        let mut header = header(0, 0x8002, 40, 4);
        change(&mut header);
        header
    };
    for (what, header) in [
        ("flags", with(|h| h.flags = 1)),
        ("reserved", with(|h| h.reserved = 1)),
        ("reserved 2", with(|h| h.reserved_2 = 1)),
        ("in the header", with(|h| h.offset = 39)),
        ("empty", with(|h| h.size = 0)),
        ("too long", with(|h| h.size = 4057)),
        ("past the page", with(|h| (h.offset, h.size) = (4095, 2))),
        ("offset past the page", with(|h| h.offset = 4097)),
        ("wraps", with(|h| (h.offset, h.size) = (u32::MAX, u32::MAX))),
        ("another sender", with(|h| h.route |= 1 << 16)),
        ("a partition as sender", with(|h| h.route |= 0x8003 << 16)),
        ("to itself", with(|h| h.route = 0)),
        ("to the service", with(|h| h.route = 0x8001)),
        ("to the SPMC", with(|h| h.route = 0x8000)),
        ("to nobody", with(|h| h.route = 0x8010)),
        ("another's UUID", with(|h| h.uuid = SERVICE_UUID)),
    ] {
        let before = world.hyp.counters.refused_calls;
        assert_eq!(world.host_sends(&page(header.as_bytes())), error(INVALID_PARAMETERS), "{what}");
        assert_eq!(world.hyp.counters.refused_calls, before + 1);
    }
    world.tx(good.as_bytes());
    assert_eq!(world.ffa(&[MSG_SEND2.into(), 1 << 16]), error(INVALID_PARAMETERS), "on somebody's behalf");
    assert_eq!(world.ffa(&[MSG_SEND2.into(), 0, 1]), error(INVALID_PARAMETERS), "an unknown flag");
    assert_eq!(world.ffa(&[MSG_SEND2.into(), 0, 6]), error(INVALID_PARAMETERS));
    // The host has no UUID.
    let named = MessageHeader { uuid: PARTITION_UUID, ..header(id, 0, 40, 1) };
    assert_eq!(world.sends(id, &message(named, b"x")), error(INVALID_PARAMETERS));
    // A partition as somebody else.
    for sender in [0, other] {
        let forged = message(header(sender, 0, 40, 1), b"x");
        assert_eq!(world.sends(id, &forged), error(INVALID_PARAMETERS), "{sender:x}");
    }
    // Without buffers on either side.
    world.guest_call(id, &[RXTX_UNMAP.into()]);
    assert_eq!(world.guest_call(id, &[MSG_SEND2.into()]), error(DENIED));
    assert_eq!(world.host_sends(&page(good.as_bytes())), error(DENIED));
    world.ffa(&[RXTX_UNMAP.into()]);
    assert_eq!(world.ffa(&[MSG_SEND2.into()]), error(DENIED));
    assert_eq!(world.sends(other, &message(header(other, 0, 40, 1), b"x")), error(DENIED));
    world.ffa(&[MAP, TX, RX, 1]);
    // One that ended; one that does not run yet has no buffers.
    world.exit(other, 0, Exit::SError, &[]);
    assert_eq!(world.host_sends(&page(header(0, other, 40, 4).as_bytes())), error(ABORTED));
    let created = world.create(&manifest()).1[0];
    assert_eq!(world.host_sends(&page(header(0, created, 40, 4).as_bytes())), error(DENIED));
    // Nothing was left anywhere.
    assert_eq!(world.rx_of(id), [0; 4096]);
    assert_eq!(world.ffa(&[RX_RELEASE.into()]), error(DENIED));
}

#[test]
fn a_message_is_fetched_once() {
    let (mut world, id, _) = two();
    world.platform.fetches.replace(0);
    world.platform.races.replace(VecDeque::from([message(header(0, id, 40, 4056), &[0xEE; 4056])]));
    assert_eq!(world.host_sends(&message(header(0, id, 40, 1), b"1"))[0], SUCCESS);
    assert_eq!(world.platform.fetches.take(), 1);
    assert_eq!(world.rx_of(id)[40..42], [b'1', 0]);
}

#[test]
fn headers_are_those_of_each_sides_version() {
    let (mut world, id) = inside();
    let old = world.inside_at(ELSEWHERE, 2);
    world.guest_call(old, &[VERSION.into(), 0x1_0001]);
    world.map_buffers(id);
    world.map_buffers(old);
    // From 1.1 to 1.2: what follows the short header is payload, not a UUID.
    let mut short = page(&header(old, id, 20, 30).as_bytes()[..20]);
    short[20..50].fill(0xAB);
    assert_eq!(world.sends(old, &short)[0], SUCCESS);
    let mut expected = message(header(old, id, 40, 30), &[0xAB; 30]);
    assert_eq!(world.rx_of(id), expected);
    // From 1.2 to 1.1.
    let named = MessageHeader { uuid: PARTITION_UUID, ..header(id, old, 40, 3) };
    assert_eq!(world.sends(id, &message(named, b"new"))[0], SUCCESS);
    expected = page(&header(id, old, 20, 3).as_bytes()[..20]);
    expected[20..23].copy_from_slice(b"new");
    assert_eq!(world.rx_of(old), expected);
    // What fits 1.1 only does not go to 1.2.
    world.guest_call(id, &[RX_RELEASE.into()]);
    let long = page(&header(old, id, 20, 4076).as_bytes()[..20]);
    assert_eq!(world.sends(old, &long), error(INVALID_PARAMETERS));
}

#[test]
fn waiting_releases_rx_unless_it_is_kept() {
    let (mut world, id, _) = two();
    let sent = message(header(0, id, 40, 1), b"x");
    assert_eq!(world.host_sends(&sent)[0], SUCCESS);
    let (next, regs, _) = world.exit(id, 0, Exit::Call, &[WAIT]);
    assert_eq!((next, regs[0]), (Next::Resume, INTERRUPT.into()), "it would sleep over the message");
    world.hyp.take_pending(slot(id), 0);
    for (first, flags) in [(1, 0), (0, 2), (0, 1 << 31), (0, 3)] {
        assert_eq!(world.guest_call(id, &[WAIT, first, flags]), error(INVALID_PARAMETERS));
    }
    let (next, ..) = world.exit(id, 0, Exit::Call, &[WAIT, 0, u64::from(MSG_WAIT_RETAIN_RX)]);
    assert_eq!(next, Next::Host);
    assert_eq!(world.host_sends(&sent), error(BUSY));
    world.enter(id, 0, 1);
    world.waits(id);
    assert_eq!(world.host_sends(&sent)[0], SUCCESS, "waiting released it");
    // 1.1 has no such flag.
    let old = world.inside_at(RAM + 0x1800_0000, 3);
    world.guest_call(old, &[VERSION.into(), 0x1_0001]);
    assert_eq!(world.guest_call(old, &[WAIT, 0, 1]), error(INVALID_PARAMETERS));
}

#[test]
fn the_host_acquires_and_releases_its_rx() {
    let mut world = World::new();
    assert_eq!(world.ffa(&[RX_ACQUIRE.into(), 1]), error(INVALID_PARAMETERS));
    assert_eq!(world.ffa(&[RX_ACQUIRE.into(), 0])[0], SUCCESS);
    assert_eq!(world.ffa(&[RX_ACQUIRE.into(), 0]), error(DENIED));
    assert_eq!(world.request(op::STATS, &[0]).0, BUSY);
    assert_eq!(world.ffa(&[RX_RELEASE.into()])[0], SUCCESS);
    world.ffa(&[RXTX_UNMAP.into()]);
    assert_eq!(world.ffa(&[RX_ACQUIRE.into(), 0]), error(DENIED));
}

#[test]
fn a_buffer_that_is_gone_is_not_written() {
    let (mut world, id, _) = two();
    // Cannot happen while it runs; were it otherwise, the page would be somebody's else.
    world.hyp.partition_in(slot(id)).unwrap().messages = crate::message::Messages::NONE;
    assert_eq!(world.guest_call(id, &[MAP, SESSION, SESSION + PAGE, 1])[0], SUCCESS);
    let memory = &mut world.hyp.memory;
    memory.partition_share_host(&mut world.platform, slot(id), stage2::Ipa(SESSION + PAGE)).unwrap();
    assert_eq!(world.host_sends(&message(header(0, id, 40, 1), b"x")), error(DENIED));
}

const REQUESTS: [(u32, u32); 3] = [
    (MSG_SEND_DIRECT_REQ_32, MSG_SEND_DIRECT_RESP_32),
    (MSG_SEND_DIRECT_REQ_64, MSG_SEND_DIRECT_RESP_64),
    (MSG_SEND_DIRECT_REQ2, MSG_SEND_DIRECT_RESP2),
];

/// x0-x17 with values in all that a kind carries.
fn direct(function: u32, route: u64) -> Vec<u64> {
    let mut regs: Vec<u64> = (0..18).map(|n| 0xABCD_0000_0000 + n).collect();
    regs[..3].copy_from_slice(&[function.into(), route, 0]);
    if function == MSG_SEND_DIRECT_REQ2 || function == MSG_SEND_DIRECT_RESP2 {
        regs[3] = 0;
    }
    regs
}

/// What arrives of it.
fn carried(function: u32, regs: &[u64]) -> [u64; 18] {
    std::array::from_fn(|n| match function {
        MSG_SEND_DIRECT_REQ2 | MSG_SEND_DIRECT_RESP2 => regs[n],
        MSG_SEND_DIRECT_REQ_64 | MSG_SEND_DIRECT_RESP_64 if n < 8 => regs[n],
        _ if n < 8 => regs[n] & 0xFFFF_FFFF,
        _ => 0,
    })
}

#[test]
fn a_direct_request_enters_the_waiting_vcpu_and_comes_back_with_its_response() {
    for (request, response) in REQUESTS {
        let (mut world, id) = inside();
        world.waits(id);
        let switches = world.partition_stats(id).world_switches;
        let words = direct(request, id);
        let (_, outcome) = world.smc_on(3, &words);
        assert_eq!(outcome, Outcome::Enter { slot: slot(id), vcpu: 0 });
        assert_eq!(world.partition_stats(id).world_switches, switches + 1);
        let (at, vcpu, seen) = world.platform.set.pop().unwrap();
        assert_eq!((at, vcpu, seen), (slot(id).index(), 0, carried(request, &words)), "{request:x}");
        assert_eq!(world.smc(&words).0[..8], error(BUSY), "one at a time");

        // Preempted, asleep, yielding: FFA_RUN goes on, on any CPU, and another request has to wait.
        let pauses = [
            (Exit::Interrupt, vec![], INTERRUPT),
            (Exit::WaitForInterrupt { deadline: None }, vec![], YIELD),
            (Exit::Call, vec![YIELD.into()], YIELD),
        ];
        for (exit, call, answer) in pauses {
            let (next, _, host) = world.exit(id, 0, exit, &call);
            assert_eq!((next, host[0], host[1]), (Next::Host, answer.into(), id << 16));
            assert_eq!(world.smc(&words).0[..8], error(BUSY));
            world.enter(id, 0, 2);
        }
        // What it may not do meanwhile.
        assert_eq!(world.guest_call(id, &[WAIT]), error(DENIED));
        let (next, regs, _) = world.exit(id, 0, Exit::Call, &[0x8400_0002]);
        assert_eq!((next, regs[0]), (Next::Resume, -3i64 as u64), "PSCI DENIED");
        let mine = id << 16;
        for (route, second) in [(0, 0), (id, 0), (mine | 1, 0), (mine | id, 0), (mine | 0x8001, 0), (mine, 1)]
        {
            let mut words = direct(response, route);
            words[2] = second;
            let (next, regs, _) = world.exit(id, 0, Exit::Call, &words);
            assert_eq!((next, regs[..8].to_vec()), (Next::Resume, error(INVALID_PARAMETERS).to_vec()));
        }
        for (_, other) in REQUESTS {
            if (other == MSG_SEND_DIRECT_RESP2) != (response == MSG_SEND_DIRECT_RESP2) {
                let (_, regs, _) = world.exit(id, 0, Exit::Call, &direct(other, mine));
                assert_eq!(regs[..8], error(DENIED), "of another kind");
            }
        }
        // The response, and what the partition sees when it is run for nothing.
        let words = direct(response, mine);
        let mut guest: [u64; 18] = words[..].try_into().unwrap();
        let mut host = registers(&[RUN.into(), id << 16]);
        let next = world.hyp.vcpu_exit(&mut world.platform, slot(id), 0, Exit::Call, &mut guest, &mut host);
        let mut expected = carried(response, &words);
        if response != MSG_SEND_DIRECT_RESP2 {
            expected[8..].copy_from_slice(&registers(&[])[8..]);
        }
        assert_eq!((next, host), (Next::Host, expected), "{response:x}");
        assert_eq!(guest[..8], [RUN.into(), id << 16, 0, 0, 0, 0, 0, 0]);
        // It waits again, for another request or for FFA_RUN; it owes nothing.
        world.smc_on(3, &direct(request, id));
        world.exit(id, 0, Exit::Call, &direct(response, mine));
        world.enter(id, 0, 1);
        let (_, regs, _) = world.exit(id, 0, Exit::Call, &direct(response, mine));
        assert_eq!(regs[..8], error(DENIED), "nobody asked");
    }
}

#[test]
fn direct_requests_that_are_refused() {
    let (mut world, id) = inside();
    for (request, _) in REQUESTS {
        let ask = |world: &mut World, route| world.smc(&direct(request, route)).0[..8].to_vec();
        assert_eq!(ask(&mut world, id), error(BUSY), "inside");
        for route in [1 << 16 | id, id << 16 | id, 0x8012, 0x9000, 0, id + 1] {
            assert_eq!(ask(&mut world, route), error(INVALID_PARAMETERS), "{route:x}");
        }
        world.exit(id, 0, Exit::Interrupt, &[]);
        assert_eq!(ask(&mut world, id), error(BUSY), "preempted, not waiting");
        world.enter(id, 0, 1);
        world.waits(id);
        let mut words = direct(request, id);
        words[2] = 1;
        assert_eq!(world.smc(&words).0[..8], error(INVALID_PARAMETERS), "a flag, or another's UUID");
        words[2] = 1 << 31;
        assert_eq!(world.smc(&words).0[..8], error(INVALID_PARAMETERS), "a framework message");
        world.enter(id, 0, 1);
        assert_eq!(ask(&mut world, id), error(BUSY), "run without a message");
    }
    assert_eq!(world.platform.set, [], "nothing reached it");
    // By UUID.
    world.waits(id);
    let mut words = direct(MSG_SEND_DIRECT_REQ2, id);
    words[2..4].copy_from_slice(
        &[0, 8].map(|at| u64::from_le_bytes(PARTITION_UUID[at..at + 8].try_into().unwrap())),
    );
    assert_eq!(world.smc(&words).1, Outcome::Enter { slot: slot(id), vcpu: 0 });
    // One that ends with the host waiting for it.
    let (next, _, host) = world.exit(id, 0, Exit::SError, &[]);
    assert_eq!((next, host[..3].to_vec()), (Next::Host, vec![ERROR.into(), id << 16, w(ABORTED)]));
    assert_eq!(world.smc(&words).0[..5], [ERROR.into(), id << 16, w(ABORTED), 0, run_exit::CRASHED]);
    // Not started; turned off; of version 1.1.
    let created = world.create(&manifest()).1[0];
    assert_eq!(world.smc(&direct(MSG_SEND_DIRECT_REQ_64, created)).0[..8], error(DENIED));
    let off = world.inside_at(ELSEWHERE, 2);
    world.exit(off, 0, Exit::Call, &[0x8400_0002]);
    assert_eq!(world.smc(&direct(MSG_SEND_DIRECT_REQ_64, off)).0[..8], error(DENIED));
    let old = world.inside_at(RAM + 0x1800_0000, 3);
    world.guest_call(old, &[VERSION.into(), 0x1_0001]);
    world.waits(old);
    assert_eq!(world.smc(&direct(MSG_SEND_DIRECT_REQ2, old)).0[..8], error(DENIED));
    assert_eq!(
        world.smc(&direct(MSG_SEND_DIRECT_REQ_32, old)).1,
        Outcome::Enter { slot: slot(old), vcpu: 0 }
    );
}

#[test]
fn only_vcpu_zero_has_direct_requests() {
    let (mut world, id) = inside();
    let on = [0xC400_0003, 1, IMAGE, 0];
    world.exit(id, 0, Exit::Call, &on);
    world.waits(id);
    world.smc(&direct(MSG_SEND_DIRECT_REQ_64, id));
    world.enter(id, 1, 2);
    let answer = direct(MSG_SEND_DIRECT_RESP_64, id << 16);
    let (_, regs, _) = world.exit(id, 1, Exit::Call, &answer);
    assert_eq!(regs[..8], error(DENIED), "the other one was asked");
    let (next, _, host) = world.exit(id, 1, Exit::Call, &[WAIT]);
    assert_eq!((next, host[1]), (Next::Host, id << 16 | 1));
    let (next, _, host) = world.exit(id, 0, Exit::Call, &answer);
    assert_eq!((next, host[0]), (Next::Host, MSG_SEND_DIRECT_RESP_64.into()));
}

#[test]
fn the_service_answers_requests_of_the_second_kind() {
    let (mut world, id) = inside();
    let words = |uuid: &[u8; 16]| [0, 8].map(|at| u64::from_le_bytes(uuid[at..at + 8].try_into().unwrap()));
    for [low, high] in [[0; 2], words(&SERVICE_UUID)] {
        let (regs, _) = world.smc(&[MSG_SEND_DIRECT_REQ2.into(), 0x8001, low, high, op::INFO]);
        let mut expected = [0; 18];
        expected[..9].copy_from_slice(&[
            MSG_SEND_DIRECT_RESP2.into(),
            0x8001 << 16,
            0,
            0,
            0,
            0x1_0000,
            0,
            16,
            1_000_000,
        ]);
        expected[6] = u64::from(cfg!(feature = "fault-knobs"));
        assert_eq!(regs, expected);
    }
    let [low, high] = words(&PARTITION_UUID);
    let (regs, _) = world.smc(&[MSG_SEND_DIRECT_REQ2.into(), 0x8001, low, high, op::INFO]);
    assert_eq!(regs[..3], error(INVALID_PARAMETERS)[..3]);
    // Arguments are x5-x8, also of a partition.
    let (regs, _) = world.smc(&[MSG_SEND_DIRECT_REQ2.into(), 0x8001, 0, 0, op::START, 0x1234, 0, 0, 0]);
    assert_eq!(regs[4..6], [x(INVALID_PARAMETERS), 0x1234]);
    let route = id << 16 | 0x8001;
    let (_, regs, _) =
        world.exit(id, 0, Exit::Call, &[MSG_SEND_DIRECT_REQ2.into(), route, 0, 0, op::REGION, 3]);
    assert_eq!(regs[..9], [MSG_SEND_DIRECT_RESP2.into(), 0x8001 << 16 | id, 0, 0, 0, HEAP, 4, 2, 3]);
    assert_eq!(regs[9..], [0; 9]);
}
