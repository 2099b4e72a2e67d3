//! PSCI and the rest of the allow-list.

use super::*;
use crate::psci::id;

const NOT_SUPPORTED: u64 = u64::MAX;
const INVALID_PARAMETERS: u64 = -2i64 as u64;
const DENIED: u64 = -3i64 as u64;
const INVALID_ADDRESS: u64 = -9i64 as u64;

/// A call whose answer is in x0; x1-x17 are kept.
fn answered(world: &mut World, words: &[u64]) -> u64 {
    let before = registers(words);
    let (regs, outcome) = world.smc(words);
    assert_eq!(outcome, Outcome::Return, "{words:x?}");
    for i in 1..18 {
        assert_eq!(regs[i] as u32, before[i] as u32, "x{i}");
    }
    regs[0]
}

#[test]
fn answers_given_here() {
    let mut world = World::bare(30);
    for (call, answer) in [
        (vec64(&[0x8000_0000]), 0x1_0002),
        (vec64(&[0x8000_0001, 0x8000_0000]), 0),
        (vec64(&[0x8000_0001, 0x8000_0001]), 0),
        // SOC_ID, ARCH_WORKAROUND_1 to 3: not here, so not promised.
        (vec64(&[0x8000_0001, 0x8000_0002]), NOT_SUPPORTED),
        (vec64(&[0x8000_0001, 0x8000_8000]), NOT_SUPPORTED),
        (vec64(&[0x8000_0001, 0x8000_7fff]), NOT_SUPPORTED),
        (vec64(&[0x8000_0001, 0x8000_3fff]), NOT_SUPPORTED),
        (vec64(&[0x8000_8000]), NOT_SUPPORTED),
        (vec64(&[0x8000_7fff]), NOT_SUPPORTED),
        (vec64(&[0x8400_0000]), 0x1_0001),
        (vec64(&[0x8400_0006]), 2),
        // MIGRATE, MIGRATE_INFO_UP_CPU, CPU_FREEZE, SYSTEM_SUSPEND, STAT_RESIDENCY, MEM_PROTECT.
        (vec64(&[0x8400_0005]), NOT_SUPPORTED),
        (vec64(&[0x8400_0007]), NOT_SUPPORTED),
        (vec64(&[0x8400_000B]), NOT_SUPPORTED),
        (vec64(&[0x8400_000E, RAM]), NOT_SUPPORTED),
        (vec64(&[0xC400_000E, RAM]), NOT_SUPPORTED),
        (vec64(&[0x8400_0010]), NOT_SUPPORTED),
        (vec64(&[0x8400_0013, 1]), NOT_SUPPORTED),
        (vec64(&[0xC400_0014, 1]), NOT_SUPPORTED),
    ] {
        assert_eq!(answered(&mut world, &call), answer, "{call:x?}");
    }
}

#[test]
fn features_agree_with_what_is_answered() {
    let mut world = World::bare(30);
    let supported = [
        0x8000_0000u64,
        0x8400_0000,
        0x8400_0001,
        0xC400_0001,
        0x8400_0002,
        0x8400_0003,
        0xC400_0003,
        0x8400_0004,
        0xC400_0004,
        0x8400_0006,
        0x8400_0008,
        0x8400_0009,
        0x8400_000A,
        0x8400_0012,
        0xC400_0012,
    ];
    for base in [0x8000_0000u64, 0x8400_0000, 0xC400_0000] {
        for number in 0..0x60 {
            let answer = answered(&mut world, &[0x8400_000A, base + number]);
            let expected = if supported.contains(&(base + number)) { 0 } else { NOT_SUPPORTED };
            assert_eq!(answer, expected, "{:x}", base + number);
        }
    }
}

#[test]
fn everything_off_the_list_is_refused_and_counted() {
    let mut world = World::bare(30);
    // Yielding calls, SiP, OEM, trusted applications and OS, vendor hypervisor, PSCI leftovers, 64-bit twins.
    for function in [
        0u64,
        1,
        0x0400_0063,
        0x0200_0000,
        0x8200_0000,
        0xC200_0001,
        0x8300_0000,
        0x8500_0000,
        0x8600_0000,
        0xC600_FF01,
        0xB200_0000,
        0xBF00_FF01,
        0xFFFF_FFFF,
        0xC400_0000,
        0xC400_0002,
        0xC400_0008,
        0x8400_000C,
        0x8400_0054,
        0x8400_005F,
        0x8400_00F0,
        0x8001_0000,
        0x8000_0002,
    ] {
        let before = world.hyp.counters.refused_calls;
        assert_eq!(answered(&mut world, &[function]), NOT_SUPPORTED, "{function:x}");
        assert_eq!(world.hyp.counters.refused_calls, before + 1);
    }
    let mut regs = registers(&[0x8400_0000]);
    world.hyp.host_refuse(&mut regs);
    assert_eq!(regs[0], NOT_SUPPORTED);
    assert_eq!(regs[1..], registers(&[0])[1..]);
}

#[test]
fn what_firmware_may_see_is_forwarded() {
    let mut world = World::bare(30);
    for call in [
        [0x8400_0002u64, 1, 2, 3],
        [0xC400_0004, 0x1_0000_0001, 0, 3],
        [0x8400_0050, 1, 2, 3],
        [0x8400_0051, 0x8400_0053, 2, 3],
        [0x8400_0052, 1, 2, 3],
        [0x8400_0053, 32, 2, 3],
        [0xC400_0053, 192, 2, 3],
    ] {
        let (regs, outcome) = world.smc(&call);
        assert_eq!((outcome, &regs[..4]), (Outcome::Firmware, &call[..]), "{call:x?}");
    }
    // 32-bit calls carry low words only.
    let (regs, outcome) = world.smc(&[0xdead_0000_8400_0004, 0xffff_ffff_0000_0001, 1 << 32, 1 << 63]);
    assert_eq!((outcome, &regs[..4]), (Outcome::Firmware, &[0x8400_0004, 1, 0, 0][..]));
}

#[test]
fn suspend_is_standby_only() {
    let mut world = World::bare(30);
    for function in [id::CPU_SUSPEND_32, id::CPU_SUSPEND_64].map(u64::from) {
        let (regs, outcome) = world.smc(&[function, 0x0100_0001, RAM, 77]);
        assert_eq!((outcome, &regs[..4]), (Outcome::Firmware, &[function, 0x0100_0001, 0, 0][..]));
        // Power-down in both formats, and reserved bits.
        for state in [1 << 16, 0x0301_0000, 1 << 30, 1 << 26, 1 << 31] {
            assert_eq!(answered(&mut world, &[function, state, RAM, 0]), INVALID_PARAMETERS, "{state:x}");
        }
    }
    assert_eq!(answered(&mut world, &[id::CPU_SUSPEND_64.into(), 1 << 32, RAM, 0]), INVALID_PARAMETERS);
}

#[test]
fn cpu_on_enters_memory_of_the_host_only() {
    let mut world = World::new();
    world.populated();
    let on = u64::from(id::CPU_ON_64);
    let (_, outcome) = world.smc(&[on, 3, RAM + 0x80_0000, 9]);
    assert_eq!(outcome, Outcome::CpuOn { target: 3, entry: RAM + 0x80_0000, context: 9 });
    for entry in [PAGES, PAGES + 0x44, HYPERVISOR, DEVICE, ABSENT, 1 << 40, !3, RAM + 2, 0] {
        assert_eq!(answered(&mut world, &[on, 3, entry, 9]), INVALID_ADDRESS, "{entry:x}");
    }
    let low = u64::from(id::CPU_ON_32);
    let (_, outcome) = world.smc(&[low, 1 << 32 | 3, RAM | 1 << 33, 1 << 40 | 9]);
    assert_eq!(outcome, Outcome::CpuOn { target: 3, entry: RAM, context: 9 });
}

#[test]
fn a_reset_scrubs_first_and_kicks_everybody_out() {
    for call in [[0x8400_0008u64, 0], [0x8400_0009, 0], [0x8400_0012, 0], [0xC400_0012, 0]] {
        let mut world = World::new();
        let id = world.running();
        world.enter(id, 0, 3);
        let (_, outcome) = world.smc(&call);
        assert_eq!((outcome, &world.platform.kicks[..]), (Outcome::Shutdown, &[3][..]), "{call:x?}");
        assert!(world.hyp.vcpus_inside());
        let (next, _, host) = world.exit(id, 0, Exit::Interrupt, &[]);
        assert_eq!((next, host[2], host[4]), (Next::Host, w(abi::error::ABORTED), 6));
        assert!(!world.hyp.vcpus_inside());

        // Meanwhile nobody gets in, and no page moves.
        assert_eq!(world.ffa(&[abi::RUN.into(), id << 16])[2], w(abi::error::ABORTED));
        assert_eq!(world.request(op::DESTROY, &[id]), (abi::error::DENIED, [0; 4]));
        assert_eq!(world.create(&manifest()).0, abi::error::DENIED);
        assert_eq!(answered(&mut world, &[id::CPU_ON_64.into(), 1, RAM, 0]), DENIED);

        assert_eq!(world.platform.machine.read_page(Pa(PAGES))[0], 1, "still there");
        world.hyp.scrub_for_reset(&mut world.platform);
        for i in (0..IMAGE_PAGES).chain(64..68).chain(80..82) {
            assert_eq!(world.platform.machine.read_page(Pa(PAGES + i * PAGE)), [0; 4096]);
            assert_eq!(world.platform.machine.memory_word(Pa(PAGES + i * PAGE)), 0, "and in memory");
        }
    }
    let mut world = World::new();
    assert_eq!(answered(&mut world, &[0xC400_0012, 1 << 31]), INVALID_PARAMETERS, "vendor resets");
}
