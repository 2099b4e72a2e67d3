//! Revocation, stopping, cancelling, priorities.

use std::time::{Duration, Instant};

use flexserve_npu_abi::{Job, Rows, Status};
use flexserve_npu_model::Options;
use flexserve_npu_model::dma::Access;
use flexserve_npu_model::front_end::PAGE;
use flexserve_npu_model::throttle::Throttle;

use crate::guest::{Guest, TENSORS};

const FROM: u64 = TENSORS;
const TO: u64 = TENSORS + 0x40_0000;

/// So many rows of a page; a slow device takes 10 ms for each.
fn copy(rows: u32) -> Job {
    Job::copy(PAGE as u32, rows, Rows { iova: FROM, stride: PAGE }, Rows { iova: TO, stride: PAGE })
}

fn slow() -> Options {
    Options { throttle: Throttle { tops: None, gbps: Some(2.0 * PAGE as f64 / 10e6) }, ..Options::default() }
}

/// Waits until a copy has come to a page of its output.
fn wait_for_page(guest: &Guest, page: u64) {
    let begin = Instant::now();
    while guest.read(TO + page * PAGE, 1) != [7] {
        assert!(begin.elapsed() < Duration::from_secs(10), "the copy does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn fill(guest: &Guest, rows: u64) {
    guest.write(FROM, &vec![7; (rows * PAGE) as usize]);
    guest.write(TO, &vec![0; (rows * PAGE) as usize]);
}

#[test]
fn a_grant_to_read_is_none_to_write() {
    let mut guest = Guest::new(Options::default());
    let page = TO + 2 * PAGE;
    let back = Job::copy(PAGE as u32, 1, Rows { iova: page, stride: 0 }, Rows { iova: FROM, stride: 0 });
    guest.front_end.map(page, Guest::place(page) as u64, 1, false);
    assert_eq!(guest.run(0, &[back]).status(), Some(Status::Ok));
    let outcome = guest.run(0, &[copy(4)]);
    assert_eq!(outcome.status(), Some(Status::WriteFault));
    assert_eq!(outcome.results[0].fault, page);
    let asked = guest.front_end.iommu.lock().unwrap().asked.clone();
    assert!(asked.contains(&(page, Access::Read)) && asked.contains(&(page, Access::Write)));
}

#[test]
fn what_is_revoked_is_not_touched_afterwards() {
    for all in [false, true] {
        let mut guest = Guest::new(slow());
        fill(&guest, 200);
        guest.post(0, &[copy(200)]);
        wait_for_page(&guest, 2);
        if all {
            let pages = guest.front_end.iommu.lock().unwrap().pages.clone();
            guest.front_end.unmap_all().unwrap();
            // The queues' own pages come back, the tensors' do not.
            let queues = pages.into_iter().filter(|(iova, _)| *iova < TENSORS);
            guest.front_end.iommu.lock().unwrap().pages.extend(queues);
        } else {
            guest.front_end.unmap(TO, 200).unwrap();
        }
        guest.write(TO, &vec![9; 200 * PAGE as usize]);
        let outcome = guest.wait(0);
        let expected = if all { Status::ReadFault } else { Status::WriteFault };
        assert_eq!(outcome.status(), Some(expected));
        let fault = outcome.results[0].fault;
        let range = if all { FROM..FROM + 200 * PAGE } else { TO..TO + 200 * PAGE };
        assert!(range.contains(&fault), "{fault:#x}");
        assert!(guest.read(TO, 200 * PAGE as usize).iter().all(|byte| *byte == 9), "a late write");
    }
}

#[test]
fn a_grant_that_is_taken_back_at_once_is_asked_for_again() {
    let mut guest = Guest::new(Options::default());
    fill(&guest, 200);
    guest.post(0, &[copy(200); 20]);
    let mut revoked = 0;
    while guest.used(0) == 0 {
        guest.front_end.invalidate(0, 0).unwrap();
        revoked += 1;
    }
    assert!(revoked > 0);
    assert_eq!(guest.wait(0).status(), Some(Status::Ok));
    assert!(guest.read(TO, 200 * PAGE as usize).iter().all(|byte| *byte == 7));
}

#[test]
fn a_stopped_queue_ends_its_job_and_does_it_again_when_it_goes_on() {
    let mut guest = Guest::new(slow());
    fill(&guest, 20);
    guest.post(0, &[]);
    assert_eq!(guest.wait(0).status(), Some(Status::Ok));
    guest.post(0, &[copy(20)]);
    wait_for_page(&guest, 1);
    let begin = Instant::now();
    assert_eq!(guest.front_end.stop(0).unwrap(), 1, "the list is still available");
    assert!(begin.elapsed() < Duration::from_millis(150), "{:?}", begin.elapsed());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.used(0), 1, "an answer after the stop");
    guest.write(TO, &vec![0; 20 * PAGE as usize]);
    guest.front_end.start(0, crate::guest::ring(0), 1).unwrap();
    assert_eq!(guest.wait(0).status(), Some(Status::Ok));
    assert!(guest.read(TO, 20 * PAGE as usize).iter().all(|byte| *byte == 7));
}

#[test]
fn nothing_is_left_when_both_queues_have_stopped() {
    let mut guest = Guest::new(slow());
    fill(&guest, 20);
    let multiply = flexserve_npu_abi::Matrix { format: 8, rows: 64, columns: 64, iova: FROM, stride: 68 };
    let input = Rows { iova: FROM, stride: 256 };
    let job = Job::multiply(multiply, 9, 0, input, Rows { iova: TO, stride: 256 });
    assert_eq!(guest.run(1, &[job]).status(), Some(Status::Ok));
    // A name that is never used, and a job in its middle.
    assert_eq!(guest.run(1, &[Job::cancel(12345)]).status(), Some(Status::Ok));
    guest.post(0, &[copy(20)]);
    wait_for_page(&guest, 1);
    guest.front_end.stop(1).unwrap();
    assert!(!guest.front_end.device.is_at_power_on(), "there is something to scrub");
    guest.front_end.stop(0).unwrap();
    assert!(guest.front_end.device.is_at_power_on());
    // And it works again.
    (0..2).for_each(|queue| guest.start(queue));
    assert_eq!(guest.run(0, &[copy(2)]).status(), Some(Status::Ok));
}

#[test]
fn a_stop_does_not_wait_for_a_late_iommu() {
    let mut guest = Guest::new(Options::default());
    assert_eq!(guest.run(0, &[]).status(), Some(Status::Ok));
    for _ in 0..3 {
        guest.front_end.iommu.lock().unwrap().delay = Duration::from_millis(400);
        guest.post(0, &[copy(1)]);
        guest.post(1, &[copy(1)]);
        std::thread::sleep(Duration::from_millis(50));
        let begin = Instant::now();
        for queue in 0..2 {
            guest.front_end.stop(queue).unwrap();
        }
        assert!(begin.elapsed() < Duration::from_millis(200), "{:?}", begin.elapsed());
        // The late answers grant nothing, and do not confuse the next questions.
        guest.front_end.iommu.lock().unwrap().delay = Duration::ZERO;
        (0..2).for_each(|queue| guest.start(queue));
        let outcome = guest.run(0, &[copy(1)]);
        assert_eq!(outcome.status(), Some(Status::Ok), "{:?}", outcome.results);
    }
}

#[test]
fn a_late_grant_to_read_is_none_to_write() {
    let mut guest = Guest::new(Options::default());
    assert_eq!(guest.run(0, &[]).status(), Some(Status::Ok));
    guest.front_end.map(FROM, Guest::place(FROM) as u64, 1, false);
    guest.front_end.iommu.lock().unwrap().delay = Duration::from_millis(300);
    guest.post(0, &[copy(1)]);
    std::thread::sleep(Duration::from_millis(50));
    for queue in 0..2 {
        guest.front_end.stop(queue).unwrap();
    }
    (0..2).for_each(|queue| guest.start(queue));
    let back = Job::copy(PAGE as u32, 1, Rows { iova: TO, stride: 0 }, Rows { iova: FROM, stride: 0 });
    guest.front_end.iommu.lock().unwrap().delay = Duration::ZERO;
    let outcome = guest.run(0, &[back]);
    assert_eq!(outcome.status(), Some(Status::WriteFault));
    assert_eq!(outcome.results[0].fault, FROM);
}

#[test]
fn cancelled_lists_end() {
    let mut guest = Guest::new(slow());
    fill(&guest, 200);
    guest.post(0, &[copy(200), copy(1)]);
    guest.post(0, &[copy(200)]);
    wait_for_page(&guest, 1);
    let begin = Instant::now();
    // By their names: the second before it begins.
    assert_eq!(guest.run(1, &[Job::cancel(2), Job::cancel(1)]).status(), Some(Status::Ok));
    let outcome = guest.wait(0);
    assert_eq!(outcome.status(), Some(Status::Cancelled));
    assert_eq!(outcome.results[1].status, Status::Aborted as u32);
    assert_eq!(guest.wait(0).status(), Some(Status::Cancelled));
    assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    assert_eq!(guest.run(0, &[copy(1)]).status(), Some(Status::Ok));
}

#[test]
fn the_high_queue_does_not_wait_for_the_other() {
    let mut guest = Guest::new(slow());
    fill(&guest, 200);
    guest.post(0, &[copy(200)]);
    wait_for_page(&guest, 1);
    let begin = Instant::now();
    assert_eq!(guest.run(1, &[copy(5)]).status(), Some(Status::Ok));
    assert!(begin.elapsed() < Duration::from_millis(1000) && guest.used(0) == 0);
    assert_eq!(guest.wait(0).status(), Some(Status::Ok));
}

#[test]
fn the_device_ends_with_its_front_end() {
    let mut guest = Guest::new(slow());
    fill(&guest, 200);
    guest.post(0, &[copy(200)]);
    wait_for_page(&guest, 1);
    let begin = Instant::now();
    let device = guest.front_end.device.clone();
    guest.front_end.disconnect().unwrap();
    assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    assert!(device.is_at_power_on());
}
