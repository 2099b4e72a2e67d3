//! Each fault knob: the attack is blocked while the defence is on and succeeds when it is off.

use super::*;
use crate::knob;
use hyp_abi::ffa::error::*;
use stage2::Ipa;

fn turn(world: &mut World, number: u64, on: u64) {
    assert_eq!(world.request(op::KNOB, &[number, on]), (0, [0; 4]), "{number:#x}");
}

/// The attack's success, with the defence on, off, and on again.
fn blocked_unless_skipped(number: u64, attack: fn(&mut World) -> bool) {
    assert!(!attack(&mut World::new()), "blocked");
    let mut world = World::new();
    turn(&mut world, number, 1);
    assert!(attack(&mut world), "succeeds without its defence");
    let mut world = World::new();
    turn(&mut world, number, 1);
    turn(&mut world, number, 0);
    assert!(!attack(&mut world), "blocked again");
}

#[test]
fn the_numbers_are_stable_and_closed() {
    let mut world = World::new();
    assert_eq!(world.ok(op::INFO, &[])[1], hyp_abi::service::INFO_FAULT_KNOBS);
    for number in 0..0x200u64 {
        let known = number < 20 || knob::NAMES.iter().any(|(_, known)| *known == number);
        if number != knob::PANIC {
            let expected = if known { (0, [0; 4]) } else { (INVALID_PARAMETERS, [number, 0, 0, 0]) };
            assert_eq!(world.request(op::KNOB, &[number, 0]), expected, "{number:#x}");
        }
    }
    assert_eq!(world.request(op::KNOB, &[knob::RECALL_STATE, 2]), (INVALID_PARAMETERS, [2, 0, 0, 0]));
    assert_eq!(world.request(op::KNOB, &[u64::MAX, 1]).0, INVALID_PARAMETERS);
    assert_eq!(stage2::Knob::SkipWindowUnmap as u64, 19);
    assert_eq!(stage2::Knob::ALL[10], stage2::Knob::SkipScrubAll);
}

#[test]
#[should_panic(expected = "fault knob PANIC")]
fn panics_on_demand() {
    World::new().request(op::KNOB, &[knob::PANIC, 1]);
}

#[test]
fn mailbox_in_hypervisor_memory() {
    blocked_unless_skipped(knob::RXTX_OWNERSHIP, |world| {
        world.ffa(&[abi::RXTX_UNMAP.into(), 0]);
        let mapped = world.ffa(&[abi::RXTX_MAP_64.into(), TX, HYPERVISOR + 0x1F_F000, 1])[0];
        mapped == u64::from(abi::SUCCESS_32)
    });
}

#[test]
fn cpu_on_into_a_partition() {
    blocked_unless_skipped(knob::CPU_ON_ENTRY, |world| {
        world.populated();
        let (_, outcome) = world.smc(&[0xC400_0003, 1, PAGES, 0]);
        matches!(outcome, Outcome::CpuOn { .. })
    });
}

#[test]
fn contents_after_measurement() {
    blocked_unless_skipped(knob::CONTENTS_AFTER_MEASURE, |world| {
        let id = world.populated();
        let measured = world.measure(id);
        world.platform.machine.write_page(Pa(RAM + 0x800_0000), &[0xEE; 4096]);
        let given = world.give(id, DATA, RAM + 0x800_0000, 1).0 == 0;
        assert_eq!(world.measure(id), measured, "which does not know of it");
        given
    });
}

#[test]
fn recall_of_what_is_in_use() {
    blocked_unless_skipped(knob::RECALL_STATE, |world| {
        let id = world.running();
        world.enter(id, 0, 1);
        world.request(op::RECALL, &[id, IMAGE, 1]).0 == 0
    });
}

#[test]
fn list_that_changes_between_check_and_use() {
    blocked_unless_skipped(knob::TX_SINGLE_FETCH, |world| {
        let id = world.populated();
        // One page is announced for the last place of the region; then four come.
        world.platform.fetches.replace(0);
        world.platform.races.replace(VecDeque::from([page(&list_bytes(&[(RAM + 0x800_0000, 4)]))]));
        assert_eq!(world.give(id, IMAGE + 63 * PAGE, RAM + 0x800_0000, 1).0, 0);
        let beyond = Ipa(IMAGE + 66 * PAGE);
        world.hyp.memory().partition_page(&world.platform, slot(id), beyond).is_some()
    });
}

#[test]
fn reset_without_scrub() {
    blocked_unless_skipped(stage2::Knob::SkipScrubAll as u64, |world| {
        world.running();
        world.smc(&[0x8400_0009]);
        world.hyp.scrub_for_reset(&mut world.platform);
        world.platform.machine.read_page(Pa(PAGES)) == [1; 4096]
    });
}

#[test]
fn recall_without_scrub() {
    blocked_unless_skipped(stage2::Knob::SkipScrubOnRecall as u64, |world| {
        let id = world.populated();
        world.destroy(id);
        world.platform.machine.read_page(Pa(PAGES)) == [1; 4096]
    });
}

#[test]
fn partition_writes_its_read_only_data() {
    blocked_unless_skipped(knob::REGION_ACCESS, |world| {
        let id = world.populated();
        assert_eq!(world.give(id, MODEL, RAM + 0x800_0000, 1).0, 0);
        let page = world.hyp.memory().partition_page(&world.platform, slot(id), Ipa(MODEL)).unwrap();
        page.access == stage2::Access::ReadWrite
    });
}

#[test]
fn partition_touches_what_it_was_not_given() {
    blocked_unless_skipped(knob::PARTITION_ABORT, |world| {
        let id = world.running();
        world.enter(id, 0, 1);
        let touched = Exit::Abort { ipa: RAM + 0x800_0008, write: true, fetch: false };
        world.exit(id, 0, touched, &[]).0 == Next::Resume
    });
}

#[test]
fn list_that_exceeds_a_table_entry() {
    blocked_unless_skipped(knob::RANGE_FORM, |world| {
        let id = world.populated();
        world.give(id, HEAP + 64 * PAGE, 1 << 40 | RAM | 0x800_0008, 1).0 == 0
    });
}

#[test]
fn firmware_call_that_is_not_on_the_list() {
    blocked_unless_skipped(knob::SMC_ALLOW_LIST, |world| {
        world.smc(&[0x8200_0000, 1, 2, 3]).1 == Outcome::Firmware
    });
}

#[test]
fn device_that_is_not_on_the_list() {
    let mut world = World::new();
    assert_eq!(world.host_reads(ABSENT), None);
    assert_eq!(world.request(op::KNOB, &[knob::DEVICE_ALLOW_LIST, 1, ABSENT]), (0, [0; 4]));
    assert_eq!(world.hyp.memory().host_state(&world.platform, Pa(ABSENT)), PageState::HostDevice);
    assert!(world.host_reads(ABSENT).is_some());
}

/// Two running partitions, the second with buffers; a message to it by the host.
fn two(world: &mut World) -> (u64, u64) {
    let id = world.inside_at(PAGES, 1);
    let other = world.inside_at(RAM + 0x1000_0000, 2);
    world.map_buffers(other);
    (id, other)
}

fn message(sender: u64, receiver: u64, byte: u8) -> [u8; 4096] {
    let header = abi::MessageHeader {
        offset: 40,
        size: 1,
        route: (sender << 16 | receiver) as u32,
        ..Default::default()
    };
    let mut bytes = page(header.as_bytes());
    bytes[40] = byte;
    bytes
}

fn host_sends(world: &mut World, message: &[u8; 4096]) -> bool {
    world.tx(message);
    world.ffa(&[abi::MSG_SEND2.into()])[0] == u64::from(abi::SUCCESS_32)
}

#[test]
fn partition_names_anothers_page_as_its_buffer() {
    blocked_unless_skipped(knob::GUEST_MAILBOX, |world| {
        let (id, other) = two(world);
        let victim = world.page_of(other, IMAGE);
        world.guest_call(id, &[abi::RXTX_MAP_64.into(), HEAP, victim.0, 1]);
        let sent = host_sends(world, &message(0, id, 7));
        assert_eq!(world.platform.machine.read_page(victim)[40] == 7, sent);
        sent
    });
}

#[test]
fn notification_that_nobody_asked_for() {
    blocked_unless_skipped(knob::NOTIFICATION_BINDING, |world| {
        let (id, other) = two(world);
        world.guest_call(id, &[abi::NOTIFICATION_SET.into(), id << 16 | other, 0, 5, 0]);
        world.guest_call(other, &[abi::NOTIFICATION_GET.into(), other, 1])[2] == 5
    });
}

#[test]
fn sender_that_is_somebody_else() {
    blocked_unless_skipped(knob::SENDER_ID, |world| {
        let (id, other) = two(world);
        host_sends(world, &message(id, other, 7));
        let rx = world.platform.machine.read_page(world.page_of(other, HEAP + PAGE));
        rx[14..16] == (id as u16).to_le_bytes()
    });
}

#[test]
fn message_that_changes_while_it_is_read() {
    blocked_unless_skipped(knob::RX_OWNERSHIP, |world| {
        let (_, other) = two(world);
        assert!(host_sends(world, &message(0, other, 1)));
        host_sends(world, &message(0, other, 2));
        world.platform.machine.read_page(world.page_of(other, HEAP + PAGE))[40] == 2
    });
}

#[test]
fn control_characters_in_a_log() {
    blocked_unless_skipped(knob::LOG_CHARACTERS, |world| {
        let id = world.inside_at(PAGES, 1);
        world.guest_call(id, &[abi::CONSOLE_LOG_64.into(), 1, 0x1B]);
        world.ok(op::LOG, &[id, 0]);
        world.rx(1) == [0x1B]
    });
}

#[test]
fn transactions_of_others() {
    use super::memory::{HOST_PAGES, Scene, Sent};
    use stage2::LoanKind;
    // (a foreigner retrieves, a foreigner reclaims, a descriptor that was not sent is believed)
    let attempt = |number: u64| {
        let mut scene = Scene::new();
        if number != 0 {
            turn(&mut scene.world, number, 1);
        }
        let [first, second] = scene.ids;
        let sent = Sent::new(0, LoanKind::Lend, &[first], &[(HOST_PAGES, 1)]);
        let answer = scene.send(LoanKind::Lend, &sent);
        let handle = answer[2] | answer[3] << 32;
        let request = Sent::request(handle, 0, second, Some((BORROWED, 1)));
        let retrieved = scene.retrieve(second, &request)[0] == abi::MEM_RETRIEVE_RESP.into();
        let reclaimed = !retrieved && scene.reclaim(second, handle, 0)[0] == abi::SUCCESS_32.into();
        let bytes =
            Sent::new(0, LoanKind::Share, &[first], &[(HOST_PAGES + PAGE, 1), (HOST_PAGES, 1)]).bytes();
        scene.put(0, &bytes);
        let size = bytes.len() as u64 - 32;
        let answer = scene.call(0, &[abi::MEM_SHARE_64.into(), size, size]);
        // Only the one that is behind the list's end is refused for another reason.
        let believed = answer[0] == abi::SUCCESS_32.into() || answer[2] == w(DENIED);
        (retrieved, reclaimed, believed)
    };
    assert_eq!(attempt(0), (false, false, false));
    assert_eq!(attempt(knob::HANDLE_RECEIVER), (true, false, false));
    assert_eq!(attempt(knob::HANDLE_SENDER), (false, true, false));
    assert_eq!(attempt(knob::DESCRIPTOR_BOUNDS), (false, false, true));
}
