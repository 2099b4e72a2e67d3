//! The transition matrix: every state of a partition times every operation of the host, each with its exact result.

use super::*;
use hyp_abi::ffa::error::{ABORTED, BUSY, DENIED};
use hyp_abi::stats::state;

/// Pages of HEAP that make DESTROY take two steps.
const MANY: u64 = 600;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Created,
    Measuring,
    Measured,
    Running,
    Inside,
    Finished,
    Crashed,
    Stopped,
    StoppedInside,
    Dying,
}
use Is::*;

impl World {
    fn partition_in(&mut self, is: Is) -> u64 {
        let id = self.populated();
        match is {
            Created => (),
            Measuring => assert_eq!(self.ok(op::MEASURE, &[id])[0], IMAGE_PAGES - 32),
            Measured => drop(self.measure(id)),
            Stopped => drop(self.ok(op::STOP, &[id])),
            Dying => {
                for first in [64, 364] {
                    assert_eq!(
                        self.give(id, HEAP + first * PAGE, PAGES + (64 + first) * PAGE, MANY / 2).0,
                        0
                    );
                }
                assert_eq!(self.ok(op::DESTROY, &[id])[0], IMAGE_PAGES + 6 + MANY - 512);
            }
            Running | Inside | Finished | Crashed | StoppedInside => {
                self.measure(id);
                self.ok(op::START, &[id]);
            }
        }
        if matches!(is, Inside | Finished | Crashed | StoppedInside) {
            self.enter(id, 0, 5);
        }
        let service = id << 16 | u64::from(abi::SERVICE_ID);
        match is {
            Finished => {
                let exit = [abi::MSG_SEND_DIRECT_REQ_64.into(), service, 0, op::EXIT, 42];
                assert_eq!(self.exit(id, 0, Exit::Call, &exit).0, Next::Host);
            }
            Crashed => assert_eq!(self.exit(id, 0, Exit::SError, &[]).0, Next::Host),
            StoppedInside => assert_eq!(self.request(op::STOP, &[id]), (BUSY, [id, 0, 0, 0])),
            _ => (),
        }
        id
    }
}

/// Status of an operation on a partition.
fn status(world: &mut World, id: u64, operation: &str) -> i32 {
    match operation {
        "give contents" => world.give(id, MODEL, RAM + 0x800_0000, 1).0,
        "give zero" => world.give(id, HEAP + 2000 * PAGE, RAM + 0x800_0000, 1).0,
        "give session" => world.give(id, SESSION + 4 * PAGE, RAM + 0x800_0000, 1).0,
        "measure" => world.request(op::MEASURE, &[id]).0,
        "start" => world.request(op::START, &[id]).0,
        "stop" => world.request(op::STOP, &[id]).0,
        "recall" => world.request(op::RECALL, &[id, HEAP, 1]).0,
        "destroy" => world.request(op::DESTROY, &[id]).0,
        "stats" => world.request(op::STATS, &[id]).0,
        "run" => {
            let (regs, outcome) = world.smc(&[abi::RUN.into(), id << 16]);
            if outcome == Outcome::Return { regs[2] as i32 } else { 0 }
        }
        other => panic!("{other}"),
    }
}

#[test]
fn matrix() {
    const STATES: [Is; 10] =
        [Created, Measuring, Measured, Running, Inside, Finished, Crashed, Stopped, StoppedInside, Dying];
    let (d, a, b) = (DENIED, ABORTED, BUSY);
    let rows: [(&str, [i32; 10]); 10] = [
        ("give contents", [0, d, d, d, d, a, a, a, a, a]),
        ("give zero", [0, 0, 0, 0, 0, a, a, a, a, a]),
        ("give session", [0, 0, 0, 0, 0, a, a, a, a, a]),
        ("measure", [0, 0, 0, d, d, a, a, a, a, a]),
        ("start", [d, d, 0, d, d, a, a, a, a, a]),
        ("stop", [0, 0, 0, 0, b, 0, 0, 0, b, 0]),
        ("recall", [0, d, d, d, d, 0, 0, 0, b, b]),
        ("destroy", [0, 0, 0, 0, b, 0, 0, 0, b, 0]),
        ("stats", [0; 10]),
        ("run", [d, d, d, 0, b, a, a, a, a, a]),
    ];
    for (operation, expected) in rows {
        for (is, expected) in STATES.into_iter().zip(expected) {
            let mut world = World::new();
            let id = world.partition_in(is);
            let before = world.hyp.memory().partition_page_count(slot(id));
            let kicks = world.platform.kicks.len();
            let got = status(&mut world, id, operation);
            assert_eq!(got, expected, "{operation} in {is:?}");
            let after = world.hyp.memory().partition_page_count(slot(id));
            match (got, operation) {
                (0, "give contents" | "give zero" | "give session") => assert_eq!(after, before + 1),
                (0, "recall") => assert_eq!(after, before - 1),
                (0, "destroy") => assert_eq!(after, 0),
                _ => assert_eq!(after, before, "{operation} in {is:?} moved pages"),
            }
            let wants_out = got == BUSY && matches!(operation, "stop" | "recall" | "destroy") && is != Dying;
            assert_eq!(world.platform.kicks[kicks..], [5][..usize::from(wants_out)], "{operation} in {is:?}");
        }
    }
}

#[test]
fn states_travel_as_statistics_say() {
    for (is, number, end) in [
        (Created, state::CREATED, [0, 0, 0]),
        (Measuring, state::MEASURED, [0, 0, 0]),
        (Measured, state::MEASURED, [0, 0, 0]),
        (Running, state::RUNNING, [0, 0, 0]),
        (Inside, state::RUNNING, [0, 0, 0]),
        (Finished, state::FINISHED, [42, 0, 0]),
        (Crashed, state::CRASHED, [4, 0, 0]),
        (Stopped, state::STOPPED, [0, 0, 0]),
        (StoppedInside, state::STOPPED, [0, 0, 0]),
        (Dying, state::DYING, [0, 0, 0]),
    ] {
        let mut world = World::new();
        let id = world.partition_in(is);
        let stats = world.partition_stats(id);
        assert_eq!((u64::from(stats.id), stats.state, stats.end), (id, number, end), "{is:?}");
        assert_eq!(stats.name, *b"phone-assistant\0");
        let given = IMAGE_PAGES + 6 + if is == Dying { MANY } else { 0 };
        assert_eq!((stats.vcpu_count, stats.pages_given), (2, given));
        let measured = !matches!(is, Created | Measuring | Stopped | Dying);
        assert_eq!(stats.measurement != [0; 48], measured, "{is:?}");
    }
}

#[test]
fn a_vcpu_that_comes_out_after_the_stop_brings_nothing_with_it() {
    let mut world = World::new();
    let id = world.partition_in(StoppedInside);
    // Even an EXIT or a crash: the partition was stopped first.
    let (next, _, host) = world.exit(id, 0, Exit::SError, &[]);
    let aborted = [u64::from(abi::ERROR), id << 16, w(ABORTED), 0, 6, 0, 0, 0];
    assert_eq!((next, host), (Next::Host, aborted));
    assert_eq!(world.request(op::STOP, &[id]).0, 0);
    assert_eq!(world.ffa(&[abi::RUN.into(), id << 16]), aborted);
    assert_eq!(world.partition_stats(id).state, state::STOPPED);
}

#[test]
fn a_partition_stays_dying_and_its_id_taken_until_its_last_page_is_back() {
    let mut world = World::new();
    let id = world.partition_in(Dying);
    let other = world.create(&manifest()).1[0];
    assert_ne!(other, id);
    world.destroy(id);
    assert_eq!(world.request(op::DESTROY, &[id]), (abi::error::INVALID_PARAMETERS, [id, 0, 0, 0]));
    assert_eq!(world.create(&manifest()).1[0], id, "free again");
}
