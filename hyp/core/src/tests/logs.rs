//! What partitions log.

use super::*;
use hyp_abi::ffa::error::*;
use hyp_abi::ffa::*;
use hyp_abi::service::LOG_SIZE;
use std::string::{String, ToString};

const SUCCESS: u64 = SUCCESS_32 as u64;

fn error(code: i32) -> [u64; 8] {
    [u64::from(ERROR), 0, w(code), 0, 0, 0, 0, 0]
}

fn inside() -> (World, u64) {
    let mut world = World::new();
    let id = world.inside_at(PAGES, 1);
    (world, id)
}

/// Registers of a call with that text.
fn call(function: u32, text: &[u8]) -> Vec<u64> {
    let width = if function == CONSOLE_LOG_32 { 4 } else { 8 };
    let mut regs = vec64(&[function.into(), text.len() as u64]);
    regs.extend(text.chunks(width).map(|chunk| {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(bytes)
    }));
    regs
}

impl World {
    fn says(&mut self, id: u64, text: &[u8]) {
        for part in text.chunks(CONSOLE_LOG_64_SIZE) {
            assert_eq!(self.guest_call(id, &call(CONSOLE_LOG_64, part))[0], SUCCESS);
        }
    }

    /// The log from a position on, and the position of its first byte.
    fn logged(&mut self, id: u64, from: u64) -> (std::string::String, u64) {
        let [length, first, ..] = self.ok(op::LOG, &[id, from]);
        let bytes = if length > 0 { self.rx(length as usize) } else { Vec::new() };
        (std::string::String::from_utf8(bytes).unwrap(), first)
    }
}

#[test]
fn characters_are_taken_from_the_registers_of_each_convention() {
    let (mut world, id) = inside();
    let text: Vec<u8> = (0..128).map(|n| b'!' + n % 90).collect();
    assert_eq!(world.guest_call(id, &call(CONSOLE_LOG_32, &text[..24]))[..2], [SUCCESS, 0]);
    assert_eq!(world.guest_call(id, &call(CONSOLE_LOG_64, &text))[..2], [SUCCESS, 0]);
    assert_eq!(world.guest_call(id, &call(CONSOLE_LOG_32, &text[..5]))[0], SUCCESS);
    let expected: Vec<u8> = [&text[..24], &text[..], &text[..5]].concat();
    assert_eq!(world.logged(id, 0).0.as_bytes(), expected);
    for (function, count) in [(CONSOLE_LOG_32, 25), (CONSOLE_LOG_64, 129)] {
        for count in [0, count, 0xFFFF_FFFF, 1 << 32] {
            let refused = world.guest_call(id, &[function.into(), count]);
            assert_eq!(refused, error(INVALID_PARAMETERS), "{function:x} {count:x}");
        }
        assert_eq!(
            world.ffa(&[function.into(), 1, 65]),
            error(NOT_SUPPORTED),
            "the host has its own console"
        );
    }
    assert_eq!(world.logged(id, 0).0.len(), expected.len());
}

#[test]
fn no_control_character_gets_into_a_log() {
    let (mut world, id) = inside();
    let all: Vec<u8> = (0..=255).collect();
    world.says(id, &all);
    let (text, _) = world.logged(id, 0);
    assert_eq!(text.len(), 256);
    for (byte, shown) in all.iter().zip(text.bytes()) {
        let expected = match byte {
            b'\n' | 32..=126 => *byte,
            b'\t' => b' ',
            _ => b'?',
        };
        assert_eq!(shown, expected, "{byte:#x}");
    }
}

#[test]
fn the_host_reads_on_from_a_position_and_misses_what_was_overwritten() {
    let (mut world, id) = inside();
    assert_eq!(world.ok(op::LOG, &[id, 0]), [0, 0, 0, 0]);
    assert_eq!(world.ffa(&[RX_RELEASE.into()]), error(DENIED), "RX stays free when there is nothing");
    world.says(id, b"one\n");
    assert_eq!(world.logged(id, 0), ("one\n".into(), 0));
    world.says(id, b"two\n");
    assert_eq!(world.logged(id, 4), ("two\n".into(), 4));
    assert_eq!(world.logged(id, 8), (String::new(), 8));
    assert_eq!(world.logged(id, u64::MAX), (String::new(), 8));
    for n in 0..100 {
        world.says(id, &[b'a' + n % 26; 128]);
    }
    let (text, first) = world.logged(id, 4);
    assert_eq!((text.len(), first), (LOG_SIZE, 8 + 100 * 128 - LOG_SIZE as u64));
    assert!(text.ends_with(&"v".repeat(128)) && text.starts_with('q'), "{}", &text[..4]);
    assert_eq!(world.request(op::LOG, &[0x9000, 0]), (INVALID_PARAMETERS, [0x9000, 0, 0, 0]));
    world.ok(op::STATS, &[0]);
    assert_eq!(world.request(op::LOG, &[id, 0]).0, BUSY);
    world.rx(1);
    world.ffa(&[RXTX_UNMAP.into()]);
    assert_eq!(world.request(op::LOG, &[id, 0]).0, DENIED);
}

#[test]
fn a_log_lives_as_long_as_its_partition() {
    let (mut world, id) = inside();
    world.says(id, b"mine\n");
    world.exit(id, 0, Exit::SError, &[]);
    assert_eq!(world.logged(id, 0).0, "mine\n", "why it ended may stand there");
    world.destroy(id);
    let heir = world.inside_at(PAGES, 1);
    assert_eq!(heir, id);
    assert_eq!(world.ok(op::LOG, &[id, 0]), [0; 4]);
    assert_eq!(world.hyp.logs[slot(id).index()].read(0, &mut [0; LOG_SIZE]), (0, 0));
}

/// Lines of the trusted log that this thread caused.
struct Capture;

std::thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

impl ::log::Log for Capture {
    fn enabled(&self, _: &::log::Metadata) -> bool {
        true
    }
    fn log(&self, record: &::log::Record) {
        LINES.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }
    fn flush(&self) {}
}

fn mirrored() -> Vec<String> {
    LINES.take()
}

#[test]
fn whole_lines_are_mirrored_with_the_id_and_not_too_many() {
    let _ = ::log::set_logger(&Capture).map(|()| ::log::set_max_level(::log::LevelFilter::Info));
    let (mut world, id) = inside();
    let other = world.inside_at(RAM + 0x1000_0000, 2);
    mirrored();
    world.says(id, b"a li");
    assert_eq!(mirrored(), Vec::<String>::new());
    world.says(id, b"ne\r\n\n\n");
    assert_eq!(mirrored(), ["partition 0x8002 says: a line?"], "empty lines are none");
    world.says(id, &[b'x'; 128]);
    assert_eq!(mirrored(), [format!("partition 0x8002 says: {}", "x".repeat(100))]);
    world.says(id, b"\n");
    assert_eq!(mirrored().len(), 1);
    // Four a second, each; what was too much is counted.
    for _ in 0..10 {
        world.says(id, b"flood\n");
    }
    assert_eq!(mirrored().len(), 1);
    world.says(other, b"heard\n");
    assert_eq!(mirrored(), ["partition 0x8003 says: heard"]);
    world.platform.machine.now += 1_000_000;
    world.says(id, b"later\n");
    assert_eq!(mirrored(), ["partition 0x8002 says: (9 lines dropped)", "partition 0x8002 says: later"]);
    // Twenty a second of all.
    world.platform.machine.now += 1_000_000;
    let ids: Vec<u64> = (0..5).map(|n| world.inside_at(RAM + 0x1800_0000 + n * 0x20_0000, 3)).collect();
    mirrored();
    world.platform.machine.now += 1_000_000;
    for id in [id, other].iter().chain(&ids) {
        for _ in 0..4 {
            world.says(*id, b"!\n");
        }
    }
    let lines = mirrored().into_iter().filter(|line| line.ends_with('!')).count();
    assert_eq!(lines, 20);
    assert!(world.logged(ids[4], 0).0.len() == 8, "the host has them all");
}
