//! FFA_FEATURES and who sees whom.

use super::*;
use hyp_abi::ffa::error::*;
use hyp_abi::ffa::*;

const SUCCESS: u64 = SUCCESS_32 as u64;

fn error(code: i32) -> [u64; 8] {
    [u64::from(ERROR), 0, w(code), 0, 0, 0, 0, 0]
}

/// Who has what, and since which version; a number with another convention is nobody's.
const FUNCTIONS: [(u32, bool, bool, u32); 52] = [
    (ERROR, true, true, 1),
    (SUCCESS_32, true, true, 1),
    (SUCCESS_64, true, true, 1),
    (INTERRUPT, true, false, 1),
    (VERSION, true, true, 1),
    (FEATURES, true, true, 1),
    (RX_ACQUIRE, true, false, 1),
    (RX_RELEASE, true, true, 1),
    (RXTX_MAP_32, true, true, 1),
    (RXTX_MAP_64, true, true, 1),
    (RXTX_UNMAP, true, true, 1),
    (PARTITION_INFO_GET, true, true, 1),
    (PARTITION_INFO_GET_REGS, true, true, 2),
    (ID_GET, true, true, 1),
    (SPM_ID_GET, true, true, 1),
    (MSG_WAIT, true, true, 1),
    (YIELD, true, true, 1),
    (RUN, true, false, 1),
    (MSG_SEND2, true, true, 1),
    (MSG_SEND_DIRECT_REQ_32, true, true, 1),
    (MSG_SEND_DIRECT_REQ_64, true, true, 1),
    (MSG_SEND_DIRECT_REQ2, true, true, 2),
    (MSG_SEND_DIRECT_RESP_32, true, true, 1),
    (MSG_SEND_DIRECT_RESP_64, true, true, 1),
    (MSG_SEND_DIRECT_RESP2, true, true, 2),
    (NOTIFICATION_BITMAP_CREATE, true, false, 1),
    (NOTIFICATION_BITMAP_DESTROY, true, false, 1),
    (NOTIFICATION_BIND, true, true, 1),
    (NOTIFICATION_UNBIND, true, true, 1),
    (NOTIFICATION_SET, true, true, 1),
    (NOTIFICATION_GET, true, true, 1),
    (NOTIFICATION_INFO_GET_32, true, false, 1),
    (NOTIFICATION_INFO_GET_64, true, false, 1),
    (MEM_DONATE_32, true, true, 1),
    (MEM_DONATE_64, true, true, 1),
    (MEM_LEND_32, true, true, 1),
    (MEM_LEND_64, true, true, 1),
    (MEM_SHARE_32, true, true, 1),
    (MEM_SHARE_64, true, true, 1),
    (MEM_RETRIEVE_REQ_32, true, true, 1),
    (MEM_RETRIEVE_REQ_64, true, true, 1),
    (MEM_RETRIEVE_RESP, true, true, 1),
    (MEM_RELINQUISH, true, true, 1),
    (MEM_RECLAIM, true, true, 1),
    (MEM_FRAG_RX, true, true, 1),
    (MEM_FRAG_TX, true, true, 1),
    (CONSOLE_LOG_32, false, true, 2),
    (CONSOLE_LOG_64, false, true, 2),
    // Features: notification pending, schedule receiver, managed exit, and one that does not exist.
    (FEATURE_NPI, false, true, 1),
    (FEATURE_SRI, true, false, 1),
    (FEATURE_ME, false, false, 1),
    (4, false, false, 1),
];

#[test]
fn features_name_exactly_what_each_side_has() {
    for minor in [1, 2] {
        let mut world = World::new();
        // The host's version is fixed by the harness's first call, so its other one has a machine of its own.
        if minor == 1 {
            world = World::bare(120);
            world.ffa(&[VERSION.into(), 0x1_0001]);
            world.ffa(&[RXTX_MAP_64.into(), TX, RX, 1]);
        }
        let id = world.running();
        world.enter(id, 0, 1);
        world.guest_call(id, &[VERSION.into(), 0x1_0000 | u64::from(minor)]);
        let numbers = (0x50..0x100u32).flat_map(|number| [0x8400_0000 | number, 0xC400_0000 | number]);
        for function in (0..5).chain(numbers) {
            let known = FUNCTIONS.iter().find(|(known, ..)| *known == function);
            let &(_, host, partition, since) = known.unwrap_or(&(0, false, false, 1));
            let value = match function {
                RXTX_MAP_32 | RXTX_MAP_64 => 1 << 16,
                FEATURE_NPI | FEATURE_SRI => 8,
                _ => 0,
            };
            let expected = |has: bool| match has && since <= minor {
                true => [SUCCESS, 0, value, 0, 0, 0, 0, 0],
                false => error(NOT_SUPPORTED),
            };
            let ask = [FEATURES.into(), function.into()];
            assert_eq!(world.ffa(&ask), expected(host), "{function:x} for the host at 1.{minor}");
            assert_eq!(world.guest_call(id, &ask), expected(partition), "{function:x} at 1.{minor}");
        }
        // What is not there is refused when called, too.
        for (function, host, partition, since) in FUNCTIONS {
            let call = [function.into(), 0, u64::MAX, u64::MAX];
            if function > 4 && (!host || since > minor) {
                assert_eq!(world.ffa(&call), error(NOT_SUPPORTED), "{function:x}");
            }
            if function > 4 && (!partition || since > minor) {
                assert_eq!(world.guest_call(id, &call), error(NOT_SUPPORTED), "{function:x}");
            }
        }
    }
}

/// Four registers of a UUID, written out by hand.
const SERVICE_WORDS: [u64; 4] = [0xF7CE_DCAD, 0x584D_B855, 0xB567_04A0, 0xDF91_6E4C];
const SERVICE_BYTES: [u8; 8] = [0x01, 0x80, 1, 0, 0x01, 0x03, 0, 0];

fn partition_words() -> Vec<u64> {
    let words = PARTITION_UUID.chunks(4);
    words.map(|bytes| u64::from(u32::from_le_bytes(bytes.try_into().unwrap()))).collect()
}

#[test]
fn the_host_sees_the_service_and_the_partitions() {
    let mut world = World::new();
    let get = u64::from(PARTITION_INFO_GET);
    let words = partition_words();
    let partitions = [get, words[0], words[1], words[2], words[3], 1];
    assert_eq!(world.ffa(&partitions), error(INVALID_PARAMETERS), "nobody has this UUID yet");
    let ids = [world.create(&manifest()).1[0], world.create(&manifest()).1[0]];
    assert_eq!(ids, [0x8002, 0x8003]);

    // All, with their UUIDs.
    let count = [SUCCESS, 0, 3, 0, 0, 0, 0, 0];
    assert_eq!(world.ffa(&[get, 0, 0, 0, 0, 1]), count, "count only leaves RX alone");
    assert_eq!(world.ffa(&[get]), [SUCCESS, 0, 3, 24, 0, 0, 0, 0]);
    let bytes = world.rx(72);
    assert_eq!(bytes[..8], SERVICE_BYTES);
    assert_eq!(bytes[8..24], SERVICE_UUID);
    assert_eq!(bytes[24..32], [0x02, 0x80, 2, 0, 0x0F, 0x07, 0, 0]);
    assert_eq!(bytes[32..48], PARTITION_UUID);
    assert_eq!(bytes[48..56], [0x03, 0x80, 2, 0, 0x0F, 0x07, 0, 0]);

    // By UUID, which is then not repeated.
    let [a, b, c, d] = SERVICE_WORDS;
    assert_eq!(world.ffa(&[get, a, b, c, d, 0]), [SUCCESS, 0, 1, 24, 0, 0, 0, 0]);
    let bytes = world.rx(24);
    assert_eq!(bytes[..8], SERVICE_BYTES);
    assert_eq!(bytes[8..], [0; 16]);
    assert_eq!(world.ffa(&partitions)[2], 2);
    assert_eq!(world.ffa(&[get, a, b, c, d + 1, 0]), error(INVALID_PARAMETERS));
    assert_eq!(world.ffa(&[get, 0, 0, 0, 0, 2]), error(INVALID_PARAMETERS));
    assert_eq!(world.ffa(&[get, 0, 0, 0, 0, 3]), error(INVALID_PARAMETERS));
}

#[test]
fn a_partition_sees_the_service_and_itself() {
    let mut world = World::new();
    let _other = world.populated_at(RAM + 0x1000_0000);
    let id = world.inside_at(PAGES, 1);
    let get = u64::from(PARTITION_INFO_GET);
    assert_eq!(world.guest_call(id, &[get]), error(DENIED), "no buffers");
    assert_eq!(world.guest_call(id, &[get, 0, 0, 0, 0, 1]), [SUCCESS, 0, 2, 0, 0, 0, 0, 0]);
    world.map_buffers(id);
    assert_eq!(world.guest_call(id, &[get]), [SUCCESS, 0, 2, 24, 0, 0, 0, 0]);
    let page = world.platform.machine.read_page(world.page_of(id, HEAP + PAGE));
    assert_eq!(page[..8], SERVICE_BYTES);
    assert_eq!(page[24..26], (id as u16).to_le_bytes());
    assert_eq!(page[48..], [0; 4048]);
    assert_eq!(world.guest_call(id, &[get]), error(BUSY));
    assert_eq!(world.guest_call(id, &[RX_RELEASE.into()])[0], SUCCESS);
    assert_eq!(world.guest_call(id, &[get])[0], SUCCESS);
    let words = partition_words();
    let by_uuid = [get, words[0], words[1], words[2], words[3], 1];
    assert_eq!(world.guest_call(id, &by_uuid)[2], 1, "not the other one");
    let start = [PARTITION_INFO_GET_REGS.into(), 0, 0, 0];
    let (_, regs, _) = world.exit(id, 0, Exit::Call, &start);
    assert_eq!((regs[0], regs[2] & 0xFFFF_FFFF), (SUCCESS_64.into(), 1 << 16 | 1));
    assert_eq!((regs[3] & 0xFFFF, regs[6] & 0xFFFF, regs[9..].to_vec()), (0x8001, id, vec![0; 9]));
}

#[test]
fn version_1_1_does_not_show_properties_of_1_2() {
    let mut world = World::bare(120);
    world.ffa(&[VERSION.into(), 0x1_0001]);
    world.ffa(&[RXTX_MAP_64.into(), TX, RX, 1]);
    world.create(&manifest());
    world.ffa(&[PARTITION_INFO_GET.into()]);
    let bytes = world.rx(48);
    assert_eq!((bytes[4..8].to_vec(), bytes[28..32].to_vec()), (vec![1, 1, 0, 0], vec![0x0F, 1, 0, 0]));
}

/// x0-x17 of PARTITION_INFO_GET_REGS.
fn registers_of(world: &mut World, uuid: [u64; 2], first: u64, tag: u64) -> [u64; 18] {
    world.smc(&[PARTITION_INFO_GET_REGS.into(), uuid[0], uuid[1], tag << 16 | first]).0
}

#[test]
fn descriptors_in_registers_come_in_parts_of_one_set() {
    let mut world = World::new();
    let ids: Vec<u64> = (0..6).map(|_| world.create(&manifest()).1[0]).collect();
    let regs = registers_of(&mut world, [0; 2], 0, 0);
    let tag = regs[2] >> 32 & 0xFFFF;
    assert_eq!(regs[..3], [SUCCESS_64.into(), 0, 24 << 48 | tag << 32 | 4 << 16 | 6]);
    assert_eq!(regs[3], 0x0000_0301_0001_8001);
    assert_eq!(regs[4..6], words_of(SERVICE_UUID));
    for (place, id) in (6..18).step_by(3).zip(&ids) {
        assert_eq!(regs[place], 0x0000_070F_0002_0000 | id);
        assert_eq!(regs[place + 1..place + 3], words_of(PARTITION_UUID));
    }
    let regs = registers_of(&mut world, [0; 2], 5, tag);
    assert_eq!(regs[2], 24 << 48 | tag << 32 | 6 << 16 | 6);
    assert_eq!((regs[3] & 0xFFFF, regs[6] & 0xFFFF, regs[9..].to_vec()), (ids[4], ids[5], vec![0; 9]));
    // One UUID, not repeated.
    let regs = registers_of(&mut world, words_of(PARTITION_UUID), 4, tag);
    assert_eq!((regs[2] & 0xFFFF_FFFF, regs[3] & 0xFFFF, regs[4]), (5 << 16 | 5, ids[4], 0));

    let mut refused = |uuid, first, tag| {
        let regs = registers_of(&mut world, uuid, first, tag);
        assert_eq!(regs[0], u64::from(ERROR));
        regs[2] as i32
    };
    assert_eq!(refused([0; 2], 7, tag), INVALID_PARAMETERS, "past the last");
    assert_eq!(refused([0; 2], 0, tag), INVALID_PARAMETERS, "a tag at the start");
    assert_eq!(refused([0; 2], 0, 1 << 16), INVALID_PARAMETERS);
    assert_eq!(refused([1, 0], 0, 0), INVALID_PARAMETERS, "nobody's UUID");
    assert_eq!(refused([0; 2], 1, tag ^ 1), RETRY);
    // The set changes: who goes on from before has to begin anew.
    world.destroy(ids[0]);
    assert_eq!(registers_of(&mut world, [0; 2], 1, tag)[2], w(RETRY));
    let later = registers_of(&mut world, [0; 2], 0, 0)[2] >> 32 & 0xFFFF;
    world.create(&manifest());
    assert_eq!(registers_of(&mut world, [0; 2], 1, later)[2], w(RETRY));
    world.hyp.generation = u16::MAX;
    world.create(&manifest());
    assert_eq!(registers_of(&mut world, [0; 2], 0, 0)[2] >> 32 & 0xFFFF, 1, "0 means none");
}

fn words_of(uuid: [u8; 16]) -> [u64; 2] {
    [0, 8].map(|at| u64::from_le_bytes(uuid[at..at + 8].try_into().unwrap()))
}
