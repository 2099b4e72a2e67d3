//! The driver against the device model, in one process.

mod machine;

use std::time::{Duration, Instant};

use flexserve_npu_abi::{Capabilities, JOBS_MAX, Job, JobResult, Matrix, Rows, Status};
use flexserve_npu_driver::{Error, Npu, PciTransport, Priority};
use flexserve_npu_model::Options;
use flexserve_npu_model::throttle::Throttle;
use machine::{Bounce, IOVA, Machine, TENSORS, Window};

type Device = Npu<Bounce, PciTransport<Window>>;

const COLUMNS: usize = 64;
const ROWS: usize = 48;
const TOKENS: usize = 5;
const INPUT: usize = TENSORS + 0x10_0000;
const OUTPUT: usize = TENSORS + 0x20_0000;

/// Waits a long, but not an endless time.
fn patience() -> impl FnMut() -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    move || {
        std::thread::yield_now();
        Instant::now() < end
    }
}

/// A product whose result is easy to know: row `r` is all `r`, token `t` is all `t`.
fn product(machine: &Machine) -> Job {
    for row in 0..ROWS {
        for column in 0..COLUMNS {
            machine.front_end.write(TENSORS + (row * COLUMNS + column) * 4, &(row as f32).to_le_bytes());
        }
    }
    for token in 0..TOKENS {
        for column in 0..COLUMNS {
            machine.front_end.write(INPUT + (token * COLUMNS + column) * 4, &(token as f32).to_le_bytes());
        }
    }
    let at = |offset: usize| IOVA + offset as u64;
    let matrix = Matrix {
        format: 0,
        rows: ROWS as u32,
        columns: COLUMNS as u32,
        iova: at(TENSORS),
        stride: 4 * COLUMNS as u64,
    };
    let input = Rows { iova: at(INPUT), stride: 4 * COLUMNS as u64 };
    Job::multiply(matrix, TOKENS as u32, 0, input, Rows { iova: at(OUTPUT), stride: 4 * ROWS as u64 })
}

fn is_right(machine: &Machine) -> bool {
    let mut bytes = [0; 4];
    (0..TOKENS * ROWS).all(|i| {
        machine.front_end.read(OUTPUT + 4 * i, &mut bytes);
        f32::from_le_bytes(bytes) == (i / ROWS * (i % ROWS) * COLUMNS) as f32
    })
}

#[test]
fn a_product_is_computed() {
    let machine = Machine::start(Options::default());
    let job = product(&machine);
    let mut npu = Device::start(machine.transport()).unwrap();
    assert_eq!(npu.capabilities(patience()), Ok(Capabilities::MOST));
    let mut results = [JobResult::default()];
    let ticket = npu.submit(Priority::Normal, &[job]).unwrap();
    assert_eq!(npu.wait(ticket, &mut results, patience()), Ok(Status::Ok));
    assert!(is_right(&machine));
    assert_eq!(results[0].bytes as usize, 4 * (ROWS * COLUMNS + TOKENS * COLUMNS + TOKENS * ROWS));
    assert_eq!(npu.poll(ticket, &mut results), Err(Error::Ticket), "its answer was taken");
}

#[test]
fn many_lists_in_flight_end_in_their_order() {
    let machine = Machine::start(Options::default());
    let job = product(&machine);
    let mut npu = Device::start(machine.transport()).unwrap();
    let mut results = [JobResult::default(); JOBS_MAX];
    for _ in 0..20 {
        let tickets: Vec<_> =
            (1..9).map(|n| npu.submit(Priority::Normal, &vec![job; n * 8]).unwrap()).collect();
        assert_eq!(npu.submit(Priority::Normal, &[job]), Err(Error::Busy));
        let high = npu.submit(Priority::High, &[job]).unwrap();
        for (n, ticket) in (1..9).zip(tickets) {
            assert_eq!(npu.wait(ticket, &mut results, patience()), Ok(Status::Ok));
            assert!(results[..n * 8].iter().all(|result| result.status == Status::Ok as u32));
        }
        assert_eq!(npu.wait(high, &mut [], patience()), Ok(Status::Ok));
    }
    assert_eq!(npu.submit(Priority::Normal, &vec![job; JOBS_MAX + 1]), Err(Error::TooManyJobs));
}

#[test]
fn a_failure_names_the_address_and_ends_the_list() {
    let machine = Machine::start(Options::default());
    let good = product(&machine);
    let mut npu = Device::start(machine.transport()).unwrap();
    let mut results = [JobResult::default(); 3];
    let far = Job { weights: 0x9000_0000, ..good };
    let ticket = npu.submit(Priority::Normal, &[good, far, good]).unwrap();
    assert_eq!(npu.wait(ticket, &mut results, patience()), Ok(Status::ReadFault));
    assert_eq!(results.map(|result| result.status), [1, Status::ReadFault as u32, Status::Aborted as u32]);
    assert_eq!(results[1].fault, 0x9000_0000);
    let bad = Job { weights_stride: 3, ..good };
    let ticket = npu.submit(Priority::Normal, &[bad]).unwrap();
    assert_eq!(npu.wait(ticket, &mut results, patience()), Ok(Status::BadJob));
}

/// A device so slow that a product takes minutes.
fn slow() -> Options {
    Options { throttle: Throttle { tops: None, gbps: Some(1e-7) }, ..Options::default() }
}

#[test]
fn cancelled_lists_end_and_the_next_goes_on() {
    let machine = Machine::start(slow());
    let job = product(&machine);
    let mut npu = Device::start(machine.transport()).unwrap();
    let mut results = [JobResult::default(); 2];
    let tickets = [0, 1].map(|_| npu.submit(Priority::Normal, &[job, job]).unwrap());
    assert_eq!(npu.wait(tickets[0], &mut results, || false), Err(Error::Impatient));
    // The second before it began, the first when it has.
    npu.cancel(tickets[1]).unwrap();
    npu.cancel(tickets[0]).unwrap();
    let begin = Instant::now();
    for ticket in tickets {
        assert_eq!(npu.wait(ticket, &mut results, patience()), Ok(Status::Cancelled));
        assert_eq!(results.map(|result| result.status), [Status::Cancelled as u32, Status::Aborted as u32]);
    }
    assert!(begin.elapsed() < Duration::from_secs(2));
    // What cancelling took is free again.
    for _ in 0..20 {
        let ticket = npu.submit(Priority::High, &[]).unwrap();
        assert_eq!(npu.wait(ticket, &mut [], patience()), Ok(Status::Ok));
    }
}

#[test]
fn a_device_that_was_taken_loses_what_was_in_flight_and_can_be_started_again() {
    let machine = Machine::start(slow());
    let job = product(&machine);
    for how in 0..3 {
        let mut npu = Device::start(machine.transport()).unwrap();
        let ticket = npu.submit(Priority::Normal, &[job]).unwrap();
        assert_eq!(npu.poll(ticket, &mut []), Ok(None));
        match how {
            0 => machine.take(),
            // Taken and given back in between: a reset is all that is to be seen.
            1 => {
                machine.take();
                machine.taken.set(false);
            }
            _ => npu.stop().unwrap(),
        }
        assert_eq!(npu.wait(ticket, &mut [], patience()), Err(Error::Lost), "{how}");
        assert_eq!(npu.submit(Priority::Normal, &[job]), Err(Error::Lost));
        if how == 0 {
            assert_eq!(Device::start(machine.transport()).map(|_| ()), Err(Error::Absent));
        }
        drop(npu);
        machine.taken.set(false);
    }
}

#[test]
fn registers_of_another_device_are_no_npu() {
    let machine = Machine::start(Options::default());
    machine.magic.set(0);
    assert_eq!(Device::start(machine.transport()).map(|_| ()), Err(Error::Absent));
}

#[test]
fn stopping_gives_back_all_memory_of_queues() {
    let machine = Machine::start(Options::default());
    for _ in 0..5 {
        let mut npu = Device::start(machine.transport()).unwrap();
        let ticket = npu.submit(Priority::Normal, &[]).unwrap();
        assert_eq!(npu.wait(ticket, &mut [], patience()), Ok(Status::Ok));
        drop(npu);
        assert_eq!(machine.pages_in_use(), 0);
    }
}
