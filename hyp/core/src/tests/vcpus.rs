//! Several vCPUs: interrupts between them, PSCI, and every exit in every state of a vCPU.

use super::*;
use crate::interrupt::{ALL, NOTIFICATION};
use crate::partition::Vcpu;
use crate::psci::id as psci_id;
use hyp_abi::ffa::error::{BUSY, DENIED};
use hyp_abi::service::{crash, run_exit};

const NOT_SUPPORTED: u64 = -1i64 as u64;
const INVALID_PARAMETERS: u64 = -2i64 as u64;
const ALREADY_ON: u64 = -4i64 as u64;
const INVALID_ADDRESS: u64 = -9i64 as u64;

/// A running partition of `count` vCPUs, of which 0 is inside on CPU 0 and the others on the CPUs of their numbers.
fn world(count: u32) -> (World, u64) {
    let mut world = World::new();
    let mut with_more = manifest();
    with_more.vcpu_count = count;
    let id = world.create(&with_more).1[0];
    assert_eq!(world.give(id, IMAGE, PAGES, IMAGE_PAGES).0, 0);
    assert_eq!(world.give(id, HEAP, PAGES + 64 * PAGE, 1).0, 0);
    world.measure(id);
    world.ok(op::START, &[id]);
    world.enter(id, 0, 0);
    for vcpu in 1..u64::from(count) {
        assert_eq!(smc(&mut world, id, 0, &[psci_id::CPU_ON_64.into(), vcpu, IMAGE, vcpu]), 0);
        world.enter(id, vcpu, vcpu as usize);
    }
    world.platform.signals = 0;
    (world, id)
}

/// A PSCI call of a vCPU that stays inside.
fn smc(world: &mut World, id: u64, vcpu: u64, words: &[u64]) -> u64 {
    let (next, regs, _) = world.exit(id, vcpu, Exit::Call, words);
    assert_eq!((next, &regs[1..]), (Next::Resume, &registers(words)[1..]), "{words:x?}");
    regs[0]
}

fn sgi(world: &mut World, id: u64, vcpu: u64, value: u64) {
    let (next, regs, _) = world.exit(id, vcpu, Exit::Sgi { value }, &[1, 2]);
    assert_eq!((next, regs), (Next::Resume, registers(&[1, 2])));
}

fn state(world: &World, id: u64, vcpu: usize) -> Vcpu {
    world.hyp.partitions[slot(id).index()].as_ref().unwrap().vcpus[vcpu]
}

fn pending(world: &World, id: u64) -> [u32; 8] {
    world.hyp.partitions[slot(id).index()].as_ref().unwrap().pending
}

#[test]
fn an_ipi_reaches_whom_it_names() {
    let (mut world, id) = world(4);
    let other = world.populated_at(RAM + 0x1000_0000);
    for (value, kicked, bits) in [
        (1 << 1, vec64(&[1]), [0, 1, 0, 0]),
        (7 << 24 | 0b1101, vec64(&[0, 2, 3]), [128, 0, 128, 128]),
        // All but itself.
        (3 << 24 | 1 << 40, vec64(&[1, 2, 3]), [0, 8, 8, 8]),
        // The list does not count then, nor does the affinity.
        (3 << 24 | 1 << 40 | 0xFF_0001, vec64(&[1, 2, 3]), [0, 8, 8, 8]),
        // Itself.
        (2 << 24 | 1, vec64(&[0]), [4, 0, 0, 0]),
        // vCPUs that it does not have.
        (0xFFF0, vec64(&[]), [0; 4]),
        (2 << 24 | 0xFFFF, vec64(&[0, 1, 2, 3]), [4; 4]),
        // Affinities and ranges that it does not have.
        (0xF | 1 << 16, vec64(&[]), [0; 4]),
        (0xF | 1 << 32, vec64(&[]), [0; 4]),
        (0xF | 1 << 48, vec64(&[]), [0; 4]),
        (0xF | 1 << 44, vec64(&[]), [0; 4]),
        (!(1 << 40), vec64(&[]), [0; 4]),
        // Numbers that are not theirs to send: the notification's, and the host's.
        (8 << 24 | 0xF, vec64(&[]), [0; 4]),
        (15 << 24 | 1 << 40, vec64(&[]), [0; 4]),
    ] {
        world.platform.kicks.clear();
        sgi(&mut world, id, 0, value);
        let kicks: Vec<u64> = world.platform.kicks.iter().map(|cpu| *cpu as u64).collect();
        assert_eq!(kicks, kicked, "{value:x}");
        for (vcpu, bits) in bits.into_iter().enumerate() {
            assert_eq!(world.hyp.take_pending(slot(id), vcpu), bits, "{value:x} {vcpu}");
            assert_eq!(world.hyp.take_pending(slot(id), vcpu), 0, "once");
        }
        assert_eq!((pending(&world, id), pending(&world, other)), ([0; 8], [0; 8]));
        assert_eq!(world.platform.signals, 0);
    }
}

#[test]
fn interrupts_to_vcpus_outside_are_signalled_to_the_host_once() {
    let (mut world, id) = world(3);
    // vCPU 1 waits, vCPU 2 is off.
    world.exit(id, 1, Exit::WaitForInterrupt { deadline: None }, &[]);
    world.exit(id, 2, Exit::Call, &[psci_id::CPU_OFF.into()]);
    for _ in 0..5 {
        sgi(&mut world, id, 0, 1 << 40);
    }
    assert_eq!((world.platform.signals, pending(&world, id)[..3].to_vec()), (1, std::vec![0, 1, 0]));
    world.enter(id, 1, 3);
    assert_eq!(world.hyp.take_pending(slot(id), 1), 1);
    // Inside now: a kick, once until it is taken.
    world.platform.kicks.clear();
    sgi(&mut world, id, 0, 0b10);
    sgi(&mut world, id, 0, 0b10);
    assert_eq!((&world.platform.kicks[..], world.platform.signals), (&[3][..], 1));
}

#[test]
fn nobody_sleeps_over_an_interrupt() {
    let (mut world, id) = world(2);
    let wait: [(Exit, Vec<u64>); 3] = [
        (Exit::WaitForInterrupt { deadline: Some(9) }, vec64(&[])),
        (Exit::Call, vec64(&[psci_id::CPU_SUSPEND_64.into(), 0])),
        (Exit::Call, vec64(&[abi::MSG_WAIT.into()])),
    ];
    for (exit, words) in &wait {
        // It came between the last look and the wait.
        sgi(&mut world, id, 0, 1 << 1);
        assert_eq!(world.exit(id, 1, *exit, words).0, Next::Resume, "{exit:?}");
        assert_eq!(world.hyp.take_pending(slot(id), 1), 1);
        // It was offered, not taken, and is given back.
        world.hyp.return_pending(slot(id), 1, 1 << NOTIFICATION);
        let (next, regs, _) = world.exit(id, 1, *exit, words);
        assert_eq!(next, Next::Resume, "{exit:?}");
        if words.first() == Some(&abi::MSG_WAIT.into()) {
            assert_eq!(regs[..3], [abi::INTERRUPT.into(), id << 16 | 1, 0]);
        }
        assert_eq!(world.hyp.take_pending(slot(id), 1), 1 << NOTIFICATION);
        // Nothing: it sleeps, and FFA_RUN is always allowed.
        assert_eq!(world.exit(id, 1, *exit, words).0, Next::Host);
        world.enter(id, 1, 1);
    }
    world.hyp.return_pending(slot(id), 1, u32::MAX);
    assert_eq!(world.hyp.take_pending(slot(id), 1), ALL, "no numbers but the known");
    world.hyp.return_pending(slot(id), 8, 1);
    assert_eq!(world.hyp.take_pending(slot(id), 8), 0);
    assert_eq!(world.hyp.take_pending(Slot::new(9).unwrap(), 0), 0);
}

#[test]
fn a_kick_for_an_interrupt_does_not_concern_the_host() {
    let (mut world, id) = world(2);
    let before = world.partition_stats(id).interrupts;
    assert_eq!(world.exit(id, 1, Exit::Kick, &[1, 2]).0, Next::Resume);
    assert_eq!(world.partition_stats(id).interrupts, before);
    // One that ends the partition does.
    assert_eq!(world.request(op::STOP, &[id]), (BUSY, [id, 0, 0, 0]));
    let (next, _, host) = world.exit(id, 1, Exit::Kick, &[]);
    assert_eq!((next, host[4]), (Next::Host, run_exit::STOPPED));
}

#[test]
fn suspend_waits_until_the_timer_fires() {
    let (mut world, id) = world(2);
    let now = world.platform.ticks();
    for function in [psci_id::CPU_SUSPEND_32, psci_id::CPU_SUSPEND_64] {
        for (deadline, low, until) in [(None, 0, u64::MAX), (Some(now + 3), 3000, now + 3)] {
            world.platform.deadline = deadline;
            let (next, regs, host) = world.exit(id, 1, Exit::Call, &[function.into(), 0x0100_0007, 1, 2]);
            assert_eq!((next, regs[0]), (Next::Host, 0));
            let yields = [abi::YIELD.into(), id << 16 | 1, low, 0, run_exit::TIMER, until, 0, 0];
            assert_eq!(host, yields);
            world.enter(id, 1, 1);
        }
        // Power-down, reserved bits.
        for state in [1 << 16, 1 << 30, 1 << 31, 1 << 28] {
            let call = [function.into(), state, IMAGE, 0];
            assert_eq!(smc(&mut world, id, 1, &call), INVALID_PARAMETERS, "{state:x}");
        }
    }
}

#[test]
fn cpu_on_and_affinity_info_know_its_vcpus_only() {
    let (mut world, id) = world(3);
    world.exit(id, 2, Exit::Call, &[psci_id::CPU_OFF.into()]);
    let on = u64::from(psci_id::CPU_ON_64);
    let nobody = [3, 8, 16, 1 << 8, 1 << 16, 1 << 31, 1 << 31 | 1, 1 << 32, 1 << 32 | 1, u64::MAX];
    for target in nobody {
        assert_eq!(smc(&mut world, id, 0, &[on, target, IMAGE, 0]), INVALID_PARAMETERS, "{target:x}");
        let info = [psci_id::AFFINITY_INFO_64.into(), target, 0];
        assert_eq!(smc(&mut world, id, 0, &info), INVALID_PARAMETERS, "{target:x}");
    }
    for function in [psci_id::AFFINITY_INFO_32, psci_id::AFFINITY_INFO_64] {
        for (target, level, answer) in
            [(0, 0, 0), (1, 0, 0), (2, 0, 1), (0, 1, INVALID_PARAMETERS), (2, 3, INVALID_PARAMETERS)]
        {
            assert_eq!(smc(&mut world, id, 1, &[function.into(), target, level]), answer, "{target} {level}");
        }
    }
    assert_eq!(smc(&mut world, id, 0, &[on, 2, HEAP, 0]), INVALID_ADDRESS);
    assert_eq!(smc(&mut world, id, 0, &[on, 1, IMAGE, 0]), ALREADY_ON);
    assert_eq!(world.platform.signals, 0);
    assert_eq!(smc(&mut world, id, 0, &[on, 2, IMAGE, 7]), 0);
    assert_eq!(world.platform.signals, 1, "the host hears of it");
    assert_eq!(world.platform.resets.last(), Some(&(slot(id).index(), 2, IMAGE, 7)));
    // What is not there.
    for function in [psci_id::SYSTEM_RESET, psci_id::CPU_ON_32, psci_id::MIGRATE_INFO_TYPE, 0x8400_0012] {
        assert_eq!(smc(&mut world, id, 0, &[function.into(), 0]), NOT_SUPPORTED, "{function:x}");
    }
    for (function, answer) in
        [(0x8000_0000, 0), (0x8000_0001, 0), (0x8000_8000, NOT_SUPPORTED), (0x8400_0000, NOT_SUPPORTED)]
    {
        let call = [psci_id::SMCCC_ARCH_FEATURES.into(), function];
        assert_eq!(smc(&mut world, id, 0, &call), answer, "{function:x}");
    }
}

#[test]
fn off_and_on_again_forgets_the_interrupts_of_siblings() {
    let (mut world, id) = world(2);
    for round in 0..4 {
        sgi(&mut world, id, 0, 5 << 24 | 1 << 1);
        world.hyp.return_pending(slot(id), 1, 1 << NOTIFICATION);
        let (next, _, host) = world.exit(id, 1, Exit::Call, &[psci_id::CPU_OFF.into()]);
        let waits = [abi::MSG_WAIT.into(), id << 16 | 1, 0, 0, run_exit::WAITING, 0, 0, 0];
        assert_eq!((next, host), (Next::Host, waits));
        assert_eq!(state(&world, id, 1), Vcpu::Off);
        assert_eq!(world.ffa(&[abi::RUN.into(), id << 16 | 1])[2], w(DENIED));
        sgi(&mut world, id, 0, 5 << 24 | 1 << 1);
        assert_eq!(smc(&mut world, id, 0, &[psci_id::CPU_ON_64.into(), 1, IMAGE, round]), 0);
        assert_eq!(world.hyp.take_pending(slot(id), 1), 1 << NOTIFICATION, "which is the partition's");
        world.enter(id, 1, 1);
    }
}

#[test]
fn system_off_ends_it_as_exit_does() {
    let (mut world, id) = world(2);
    world.platform.kicks.clear();
    let (next, _, host) = world.exit(id, 1, Exit::Call, &[psci_id::SYSTEM_OFF.into()]);
    assert_eq!((next, host[4], host[5]), (Next::Host, run_exit::FINISHED, 0));
    assert_eq!(world.platform.kicks, [0]);
    let (_, _, host) = world.exit(id, 0, Exit::Call, &[psci_id::SYSTEM_RESET.into()]);
    assert_eq!((host[4], host[5]), (run_exit::FINISHED, 0), "whatever it wanted");
}

#[test]
fn one_cpu_at_a_time_and_any_cpu() {
    let (mut world, id) = world(4);
    for vcpu in 0..4u64 {
        for cpu in 0..8 {
            let (regs, outcome) = world.smc_on(cpu, &[abi::RUN.into(), id << 16 | vcpu]);
            assert_eq!((outcome, regs[2]), (Outcome::Return, w(BUSY)));
        }
        for cpu in 0..8 {
            world.exit(id, vcpu, Exit::Interrupt, &[]);
            world.enter(id, vcpu, cpu);
            assert!(
                matches!(state(&world, id, vcpu as usize), Vcpu::Inside { cpu: inside, .. } if inside == cpu)
            );
        }
    }
    for vcpu in [4, 7, 8, 0xFFFF] {
        let answer = world.ffa(&[abi::RUN.into(), id << 16 | vcpu]);
        assert_eq!(answer[2], w(abi::error::INVALID_PARAMETERS));
    }
}

/// An exit, the call that goes with it, and unless the vCPU goes on, the state that it is left in and the reason that the
/// host reads.
type Case = (Exit, Vec<u64>, Option<(Vcpu, u64)>);

/// Every exit of a vCPU in every state that it can be found in.
#[test]
fn matrix_of_exits_and_states() {
    let service = |operation| vec64(&[abi::MSG_SEND_DIRECT_REQ_64.into(), 0, 0, operation, 5]);
    let exits: [Case; 14] = [
        (Exit::Kick, vec64(&[]), None),
        (Exit::Sgi { value: 1 << 40 }, vec64(&[]), None),
        (Exit::Interrupt, vec64(&[]), Some((Vcpu::Ready, run_exit::INTERRUPT))),
        (Exit::WaitForInterrupt { deadline: None }, vec64(&[]), Some((Vcpu::Ready, run_exit::TIMER))),
        (Exit::Call, vec64(&[abi::MSG_WAIT.into()]), Some((Vcpu::Ready, run_exit::WAITING))),
        (Exit::Call, vec64(&[abi::YIELD.into()]), Some((Vcpu::Ready, run_exit::KICK))),
        (Exit::Call, vec64(&[abi::ID_GET.into()]), None),
        (Exit::Call, vec64(&[psci_id::VERSION.into()]), None),
        (Exit::Call, vec64(&[psci_id::CPU_OFF.into()]), Some((Vcpu::Off, run_exit::WAITING))),
        (Exit::Call, service(op::EXIT), Some((Vcpu::Off, run_exit::FINISHED))),
        (Exit::SError, vec64(&[]), Some((Vcpu::Off, run_exit::CRASHED))),
        (Exit::Undefined { class: 1 }, vec64(&[]), Some((Vcpu::Off, run_exit::CRASHED))),
        (
            Exit::Abort { ipa: 8, write: false, fetch: false },
            vec64(&[]),
            Some((Vcpu::Off, run_exit::CRASHED)),
        ),
        (Exit::Abort { ipa: HEAP, write: true, fetch: false }, vec64(&[]), None),
    ];
    for (exit, mut call, expected) in exits {
        let (mut world, id) = world(3);
        if let [_, route, ..] = &mut call[..] {
            *route = id << 16 | u64::from(abi::SERVICE_ID);
        }
        // Inside.
        let (next, _, host) = world.exit(id, 1, exit, &call);
        match expected {
            None => {
                assert_eq!(next, Next::Resume, "{exit:?} {call:x?}");
                assert!(matches!(state(&world, id, 1), Vcpu::Inside { cpu: 1, .. }));
            }
            Some((left_in, reason)) => {
                assert_eq!((next, host[4]), (Next::Host, reason), "{exit:?} {call:x?}");
                assert_eq!(state(&world, id, 1), left_in, "{exit:?}");
            }
        }
        // Its siblings go on, or are told that it ended.
        let ended = matches!(expected, Some((_, run_exit::FINISHED | run_exit::CRASHED)));
        assert_eq!(world.platform.kicks.contains(&2), ended || exit == Exit::Sgi { value: 1 << 40 });
        let (next, _, host) = world.exit(id, 2, Exit::Interrupt, &[]);
        let reason = if ended { expected.unwrap().1 } else { run_exit::INTERRUPT };
        assert_eq!((next, host[4]), (Next::Host, reason));
        // Ready, off: nobody is there to come out, and nothing changes.
        for vcpu in [1, 2] {
            if matches!(state(&world, id, vcpu as usize), Vcpu::Inside { .. }) {
                continue;
            }
            let before = (state(&world, id, vcpu as usize), pending(&world, id));
            let (next, _, host) = world.exit(id, vcpu, exit, &call);
            assert_eq!((next, host[2]), (Next::Host, w(DENIED)), "{exit:?}");
            assert_eq!((state(&world, id, vcpu as usize), pending(&world, id)), before);
        }
    }
}

#[test]
fn a_crash_is_the_partitions_and_reported_to_every_cpu() {
    let (mut world, id) = world(4);
    world.platform.kicks.clear();
    world.exit(id, 2, Exit::Abort { ipa: 64, write: true, fetch: false }, &[]);
    assert_eq!(world.platform.kicks, [0, 1, 3]);
    for vcpu in [0, 1, 3] {
        let (_, _, host) = world.exit(id, vcpu, Exit::Kick, &[]);
        let expected =
            [abi::ERROR.into(), id << 16 | vcpu, w(abi::error::ABORTED), 0, 5, crash::ABORT, 64, 0];
        assert_eq!(host, expected);
    }
    world.destroy(id);
}

/// What vCPUs are by the rules, kept apart from the policy.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Model {
    /// None: off; some(none): ready; else the CPU.
    on: Option<Option<usize>>,
    pending: u32,
}

/// Random calls, exits and interrupts of two partitions of four vCPUs on eight CPUs, against a model of the rules.
#[test]
fn random_vcpus_follow_the_rules() {
    let mut random = super::fuzz::Random(0x1234_5678_9ABC_DEF1);
    let (mut world, first) = world(4);
    let second = {
        let mut with_more = manifest();
        with_more.vcpu_count = 4;
        let id = world.create(&with_more).1[0];
        assert_eq!(world.give(id, IMAGE, RAM + 0x1000_0000, 1).0, 0);
        world.measure(id);
        world.ok(op::START, &[id]);
        id
    };
    let mut models = [[Model { on: None, pending: 0 }; 4]; 2];
    for (vcpu, model) in models[0].iter_mut().enumerate() {
        model.on = Some(Some(vcpu));
    }
    models[1][0].on = Some(None);
    let mut reached = [0u64; 8];
    for step in 0..200_000 {
        let which = random.below(2) as usize;
        let id = [first, second][which];
        let vcpu = random.below(4) as usize;
        let model = models[which][vcpu];
        let Some(Some(_)) = model.on else {
            // The host runs it, or tries to.
            let cpu = random.below(8) as usize;
            let (regs, outcome) = world.smc_on(cpu, &[abi::RUN.into(), id << 16 | vcpu as u64]);
            if model.on.is_none() {
                assert_eq!((outcome, regs[2]), (Outcome::Return, w(DENIED)));
            } else {
                assert_eq!(outcome, Outcome::Enter { slot: slot(id), vcpu });
                models[which][vcpu].on = Some(Some(cpu));
                if random.below(4) != 0 {
                    assert_eq!(world.hyp.take_pending(slot(id), vcpu), model.pending, "step {step}");
                    models[which][vcpu].pending = 0;
                }
                reached[0] += 1;
            }
            continue;
        };
        world.platform.kicks.clear();
        let signals = world.platform.signals;
        match random.below(8) {
            0 => {
                assert_eq!(world.exit(id, vcpu as u64, Exit::Interrupt, &[]).0, Next::Host);
                models[which][vcpu].on = Some(None);
            }
            1 | 2 => {
                let (exit, words) = match random.below(2) {
                    0 => (Exit::WaitForInterrupt { deadline: None }, vec64(&[])),
                    _ => (Exit::Call, vec64(&[abi::MSG_WAIT.into()])),
                };
                let next = world.exit(id, vcpu as u64, exit, &words).0;
                if model.pending == 0 {
                    assert_eq!(next, Next::Host);
                    models[which][vcpu].on = Some(None);
                    reached[1] += 1;
                } else {
                    assert_eq!(next, Next::Resume, "step {step}");
                    reached[2] += 1;
                }
            }
            3 => {
                let (number, targets) = (random.below(10), random.below(256));
                sgi(&mut world, id, vcpu as u64, number << 24 | targets);
                let (mut kicks, mut signalled) = (Vec::new(), 0);
                for (target, model) in models[which].iter_mut().enumerate() {
                    let new = number < 8 && targets >> target & 1 == 1 && model.pending >> number & 1 == 0;
                    match model.on {
                        Some(place) if new => {
                            model.pending |= 1 << number;
                            kicks.extend(place);
                            signalled += u64::from(place.is_none());
                        }
                        _ => {}
                    }
                }
                assert_eq!((&world.platform.kicks, world.platform.signals - signals), (&kicks, signalled));
                reached[3] += 1;
            }
            4 => {
                // The last one on stays on, or the partition would sleep for ever.
                if models[which].iter().filter(|model| model.on.is_some()).count() > 1 {
                    world.exit(id, vcpu as u64, Exit::Call, &[psci_id::CPU_OFF.into()]);
                    models[which][vcpu] = Model { on: None, pending: 0 };
                    reached[4] += 1;
                }
            }
            5 | 6 => {
                let target = random.below(5) as usize;
                let answer =
                    smc(&mut world, id, vcpu as u64, &[psci_id::CPU_ON_64.into(), target as u64, IMAGE]);
                match models[which].get_mut(target) {
                    None => assert_eq!(answer, INVALID_PARAMETERS),
                    Some(model) if model.on.is_none() => {
                        assert_eq!((answer, world.platform.signals), (0, signals + 1));
                        *model = Model { on: Some(None), pending: 0 };
                        reached[5] += 1;
                    }
                    Some(_) => assert_eq!(answer, ALREADY_ON),
                }
            }
            _ => {
                let bit = 1 << random.below(9);
                world.hyp.return_pending(slot(id), vcpu, bit);
                models[which][vcpu].pending |= bit;
                assert_eq!(world.hyp.take_pending(slot(id), vcpu), models[which][vcpu].pending);
                models[which][vcpu].pending = 0;
                reached[6] += 1;
            }
        }
        for (id, models) in [first, second].into_iter().zip(&models) {
            let expected: Vec<u32> = models.iter().map(|model| model.pending).collect();
            assert_eq!(pending(&world, id)[..4], expected, "step {step}");
        }
    }
    assert!(reached[..7].iter().all(|count| *count > 1000), "{reached:?}");
}
