//! A lease whose broker takes the NPU away whenever it hurts.

mod machine;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use flexserve_npu_abi::{JOBS_MAX, Job, Matrix, Rows, Status};
use flexserve_npu_driver::{
    Broker, Error, Lease, List, NotLent, Ownership, PciTransport, Refusal, Transport, Wait,
};
use flexserve_npu_model::Options;
use flexserve_npu_model::throttle::Throttle;
use machine::{Bounce, IOVA, Machine, TENSORS, Window};

const COLUMNS: usize = 64;
const ROWS: usize = 8;
const INPUT: usize = TENSORS + 0x10_0000;
const OUTPUT: usize = TENSORS + 0x20_0000;

/// A broker that lends as it is told, and punishes what no client may do.
struct Fake {
    machine: Rc<Machine>,
    held: Cell<bool>,
    wanted: Cell<bool>,
    generation: Cell<u64>,
    /// Calls until the NPU is taken by force, if ever.
    countdown: Cell<Option<u32>>,
    /// Times that it is not lent.
    busy: Cell<u32>,
    broken: Cell<bool>,
    calls: Cell<u32>,
}

impl Fake {
    fn new(options: Options) -> Rc<Self> {
        let machine = Machine::start(options);
        machine.taken.set(true);
        Rc::new(Fake {
            machine,
            held: Cell::new(false),
            wanted: Cell::new(false),
            generation: Cell::new(1),
            countdown: Cell::new(None),
            busy: Cell::new(0),
            broken: Cell::new(false),
            calls: Cell::new(0),
        })
    }

    /// Another takes it by force.
    fn take(&self) {
        self.machine.take();
        self.held.set(false);
        self.wanted.set(false);
        self.generation.set(self.generation.get() + 1);
    }

    fn call(&self) {
        self.calls.set(self.calls.get() + 1);
        match self.countdown.get() {
            Some(0) => {
                self.countdown.set(None);
                self.take();
            }
            left => self.countdown.set(left.map(|left| left - 1)),
        }
        // Registers may have been taken between two calls.
        if self.machine.taken.get() && self.held.get() {
            self.take();
        }
    }
}

#[derive(Clone)]
struct Client(Rc<Fake>);

impl Broker for Client {
    type Transport = PciTransport<Window>;

    fn state(&mut self) -> Option<Ownership> {
        self.0.call();
        let held = self.0.held.get();
        Some(Ownership { held, wanted: held && self.0.wanted.get(), generation: self.0.generation.get() })
    }

    fn acquire(&mut self) -> Result<Ownership, NotLent> {
        self.0.call();
        let fake = &self.0;
        if fake.busy.get() > 0 {
            fake.busy.set(fake.busy.get() - 1);
            return Err(NotLent::Busy);
        }
        if fake.broken.get() {
            return Err(NotLent::Broken);
        }
        if fake.machine.taken.get() {
            fake.machine.taken.set(false);
            fake.generation.set(fake.generation.get() + 1);
        }
        fake.held.set(true);
        Ok(Ownership { held: true, wanted: false, generation: fake.generation.get() })
    }

    fn release(&mut self) {
        self.0.call();
        self.0.held.set(false);
        self.0.wanted.set(false);
    }

    fn transport(&mut self) -> Self::Transport {
        self.0.machine.transport()
    }
}

type Rented = Lease<Bounce, Client>;

fn lease(fake: &Rc<Fake>) -> Rented {
    Lease::new(Client(fake.clone()))
}

/// Products whose results are easy to know: row `r` of the matrix is all `r`, and the input of job `j` all `j`.
fn products(machine: &Machine, count: usize) -> Vec<Job> {
    let floats = |at: usize, value: usize, count: usize| {
        (0..count).for_each(|i| machine.front_end.write(at + 4 * i, &(value as f32).to_le_bytes()));
    };
    (0..ROWS).for_each(|row| floats(TENSORS + row * COLUMNS * 4, row, COLUMNS));
    floats(OUTPUT, 12345, count * ROWS);
    let at = |offset: usize| IOVA + offset as u64;
    let stride = 4 * COLUMNS as u64;
    let matrix = Matrix { format: 0, rows: ROWS as u32, columns: COLUMNS as u32, iova: at(TENSORS), stride };
    let job = |job: usize| {
        floats(INPUT + job * COLUMNS * 4, job, COLUMNS);
        let input = Rows { iova: at(INPUT + job * COLUMNS * 4), stride };
        Job::multiply(
            matrix,
            1,
            0,
            input,
            Rows { iova: at(OUTPUT + job * ROWS * 4), stride: 4 * ROWS as u64 },
        )
    };
    (0..count).map(job).collect()
}

fn are_right(machine: &Machine, count: usize) -> bool {
    let mut bytes = [0; 4];
    (0..count * ROWS).all(|i| {
        machine.front_end.read(OUTPUT + 4 * i, &mut bytes);
        f32::from_le_bytes(bytes) == (i / ROWS * (i % ROWS) * COLUMNS) as f32
    })
}

/// Waits a long, but not an endless time for a list; takes its turn at once or not at all.
fn patience() -> impl FnMut(Wait) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    move |wait| {
        std::thread::yield_now();
        wait == Wait::List && Instant::now() < end
    }
}

/// Does jobs as lists of so many.
fn run(
    lease: &mut Rented,
    jobs: &[Job],
    length: usize,
    pause: &mut dyn FnMut(Wait) -> bool,
) -> (usize, Result<(), Refusal>) {
    lease.run(&mut |index| jobs.chunks(length).nth(index).map(|list| list.iter().copied().collect()), pause)
}

fn run_all(lease: &mut Rented, jobs: &[Job], pause: &mut dyn FnMut(Wait) -> bool) -> Result<(), Refusal> {
    run(lease, jobs, JOBS_MAX, pause).1
}

#[test]
fn it_is_acquired_once_and_kept() {
    let fake = Fake::new(Options::default());
    let jobs = products(&fake.machine, 150);
    let mut lease = lease(&fake);
    for list in [&jobs[..], &jobs[..0], &jobs[..1]] {
        run_all(&mut lease, list, &mut patience()).unwrap();
    }
    assert!(are_right(&fake.machine, jobs.len()) && jobs.len() > 2 * JOBS_MAX);
    assert_eq!((fake.generation.get(), fake.held.get()), (2, true));
    assert_eq!(lease.stats().jobs, 151);
    lease.give_back();
    assert!(!fake.held.get());
    run_all(&mut lease, &jobs, &mut patience()).unwrap();
    drop(lease);
    assert_eq!((fake.held.get(), fake.machine.pages_in_use()), (false, 0));
    assert_eq!(fake.generation.get(), 2, "nobody else had it");
}

#[test]
fn wherever_it_is_lost_no_job_is() {
    let mut losses = 0;
    for registers in [false, true] {
        // Until there are fewer steps than that.
        for step in 0.. {
            let fake = Fake::new(Options::default());
            let jobs = products(&fake.machine, 3);
            let mut lease = lease(&fake);
            let countdown = if registers { &fake.machine.countdown } else { &fake.countdown };
            countdown.set(Some(step));
            let mut attempts = 0;
            let done = loop {
                match run_all(&mut lease, &jobs, &mut patience()) {
                    Err(Refusal::NotNow) if attempts < 3 => attempts += 1,
                    done => break done,
                }
            };
            assert_eq!(done, Ok(()), "taken at {step}, registers: {registers}");
            assert!(are_right(&fake.machine, 3), "taken at {step}, registers: {registers}");
            losses += lease.stats().losses;
            drop(lease);
            if countdown.get().is_some() {
                assert!(step > if registers { 30 } else { 2 });
                break;
            }
        }
    }
    assert!(losses > 0);
}

#[test]
fn a_list_in_flight_is_repeated_but_not_for_ever() {
    let slow = Throttle { tops: None, gbps: Some(1e-7) };
    let fake = Fake::new(Options { throttle: slow, ..Options::default() });
    let jobs = products(&fake.machine, 1);
    let mut lease = lease(&fake);
    let taker = fake.clone();
    let mut turns = 0;
    let done = run_all(&mut lease, &jobs, &mut |_| {
        turns += 1;
        if turns % 10 == 0 {
            taker.take();
        }
        true
    });
    assert_eq!(done, Err(Refusal::NotNow));
    assert!(lease.stats().losses > 1);
    assert_eq!(lease.stats().refusals, 1);
}

#[test]
fn it_is_given_back_between_lists_and_asked_for_again() {
    let fake = Fake::new(Options::default());
    let jobs = products(&fake.machine, 6);
    let mut lease = lease(&fake);
    assert_eq!(run(&mut lease, &jobs, 1, &mut patience()), (6, Ok(())));
    // Another wants it when the third list is made, and has it for some turns.
    let (mut turns, mut made) = (0, Vec::new());
    let other = fake.clone();
    let mut make = |index: usize| {
        made.push(index);
        if made.len() == 3 {
            other.wanted.set(true);
            other.busy.set(5);
        }
        jobs.get(index).map(|job| List::from_iter([*job]))
    };
    let done = lease.run(&mut make, &mut |wait| {
        turns += u32::from(wait == Wait::Turn);
        std::thread::yield_now();
        true
    });
    assert_eq!((done, turns), ((6, Ok(())), 5));
    assert_eq!(made, [0, 1, 2, 3, 4, 5, 6], "no list was made twice");
    assert!(are_right(&fake.machine, 6));
    assert_eq!(lease.stats().losses, 0);
    // Who does not want to wait is told.
    fake.wanted.set(true);
    fake.busy.set(5);
    assert_eq!(run(&mut lease, &jobs, 1, &mut patience()), (0, Err(Refusal::NotNow)));
    assert!(!fake.held.get());
    // Of one that is out of order nothing is expected, but it may be asked again.
    fake.busy.set(0);
    fake.broken.set(true);
    assert_eq!(run(&mut lease, &jobs, 1, &mut |_| panic!("waits")), (0, Err(Refusal::NotNow)));
    fake.broken.set(false);
    assert_eq!(run(&mut lease, &jobs, 1, &mut patience()), (6, Ok(())));
}

#[test]
fn what_was_done_before_a_loss_is_not_repeated() {
    let fake = Fake::new(Options::default());
    let jobs = products(&fake.machine, 12);
    let mut lease = lease(&fake);
    let mut made = Vec::new();
    let taker = fake.clone();
    let done = lease.run(
        &mut |index| {
            made.push(index);
            if made.len() % 5 == 0 {
                taker.take();
            }
            jobs.get(index).map(|job| List::from_iter([*job]))
        },
        &mut patience(),
    );
    assert_eq!(done, (12, Ok(())));
    assert!(lease.stats().losses > 0 && are_right(&fake.machine, 12));
    // Whatever is made again was in flight: nothing goes back by more than two.
    let mut last = 0;
    for index in made {
        assert!(index + 2 > last, "{index} after {last}");
        last = last.max(index);
    }
}

#[test]
fn a_list_that_fails_ends_those_behind_it() {
    let fake = Fake::new(Options::default());
    let mut jobs = products(&fake.machine, 5);
    jobs[2] = Job { weights: 0x9000_0000, ..jobs[2] };
    let mut lease = lease(&fake);
    assert_eq!(run(&mut lease, &jobs, 1, &mut patience()), (2, Err(Refusal::Failed(Status::ReadFault))));
    assert!(are_right(&fake.machine, 2));
}

#[test]
fn what_is_no_npu_is_asked_no_more() {
    let fake = Fake::new(Options::default());
    let jobs = products(&fake.machine, 1);
    fake.machine.magic.set(7);
    let mut lease = lease(&fake);
    assert_eq!(run_all(&mut lease, &jobs, &mut patience()), Err(Refusal::Useless(Error::Absent)));
    assert!(!fake.held.get());
    let calls = fake.calls.get();
    assert_eq!(run_all(&mut lease, &jobs, &mut patience()), Err(Refusal::Useless(Error::Absent)));
    assert_eq!(fake.calls.get(), calls);
}

#[test]
fn one_that_is_too_slow_is_stopped() {
    let slow = Throttle { tops: None, gbps: Some(1e-7) };
    let fake = Fake::new(Options { throttle: slow, ..Options::default() });
    let jobs = products(&fake.machine, 1);
    let mut lease = lease(&fake);
    assert_eq!(run_all(&mut lease, &jobs, &mut |_| false), Err(Refusal::Useless(Error::Impatient)));
    assert!(!fake.held.get());
    // Its registers are as after a reset.
    assert_eq!(fake.machine.transport().get_status().bits(), 0);
}

#[test]
fn a_job_that_fails_leaves_the_npu_usable() {
    let fake = Fake::new(Options::default());
    let jobs = products(&fake.machine, 1);
    let mut lease = lease(&fake);
    let far = Job { weights: 0x9000_0000, ..jobs[0] };
    assert_eq!(run_all(&mut lease, &[far], &mut patience()), Err(Refusal::Failed(Status::ReadFault)));
    run_all(&mut lease, &jobs, &mut patience()).unwrap();
    assert!(are_right(&fake.machine, 1));
}
