//! Queues, lists and messages that make no sense.

use std::time::Duration;

use flexserve_npu_abi::{JOBS_MAX, Job, ListHeader, ListResult, Rows, Status, VERSION};
use flexserve_npu_model::Options;
use flexserve_npu_model::front_end::PAGE;
use flexserve_npu_model::queue::Ring;
use zerocopy::IntoBytes;

use crate::guest::{BASE, Guest, SIZE, TENSORS, ring};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const SOON: Duration = Duration::from_millis(150);

fn header(job_count: u32) -> ListHeader {
    ListHeader { version: VERSION, job_count, list_id: 1, flags: 0 }
}

/// Breaks a queue; it must be silent until it is set up again, and then work.
fn breaks(guest: &mut Guest, how: &str, act: impl FnOnce(&mut Guest)) {
    act(guest);
    assert!(guest.wait_for(0, SOON).is_none(), "{how}");
    assert_eq!(guest.run(1, &[]).status(), Some(Status::Ok), "{how}: the other queue");
    guest.front_end.stop(0).unwrap();
    guest.start(0);
    assert_eq!(guest.run(0, &[]).status(), Some(Status::Ok), "{how}: afterwards");
}

#[test]
fn queues_that_make_no_sense_are_left_alone() {
    let mut guest = Guest::new(Options::default());
    let at = TENSORS;
    breaks(&mut guest, "no such descriptor", |guest| guest.offer(0, SIZE));
    breaks(&mut guest, "no such next", |guest| {
        guest.descriptor(0, 0, at, 16, NEXT, 0xffff);
        guest.offer(0, 0);
    });
    breaks(&mut guest, "a loop", |guest| {
        guest.descriptor(0, 0, at, 16, NEXT, 1);
        guest.descriptor(0, 1, at, 16, NEXT, 0);
        guest.offer(0, 0);
    });
    breaks(&mut guest, "indirect", |guest| {
        guest.descriptor(0, 0, at, 16, INDIRECT, 0);
        guest.offer(0, 0);
    });
    breaks(&mut guest, "readable after writable", |guest| {
        guest.descriptor(0, 0, at, 64, WRITE | NEXT, 1);
        guest.descriptor(0, 1, at, 16, 0, 0);
        guest.offer(0, 0);
    });
    breaks(&mut guest, "too many chains", |guest| {
        guest.write(ring(0).available + 2, &(SIZE + 2).to_le_bytes());
        guest.front_end.kick(0);
    });
    for ring in [
        Ring { size: 3, ..ring(0) },
        Ring { size: 0, ..ring(0) },
        Ring { size: 128, ..ring(0) },
        Ring { descriptors: u64::MAX - 3, ..ring(0) },
        Ring { available: u64::MAX - 3, ..ring(0) },
        Ring { used: u64::MAX, ..ring(0) },
        Ring { used: BASE - PAGE, ..ring(0) },
    ] {
        breaks(&mut guest, "rings nowhere", |guest| {
            guest.front_end.stop(0).unwrap();
            let _ = guest.front_end.start(0, ring, 0);
            guest.post(0, &[]);
        });
    }
}

#[test]
fn a_queue_whose_memory_comes_back_is_served_at_the_next_notification() {
    let mut guest = Guest::new(Options::default());
    let page = ring(0).available;
    guest.front_end.unmap(page, 1).unwrap();
    guest.post(0, &[]);
    assert!(guest.wait_for(0, SOON).is_none());
    guest.front_end.map(page, Guest::place(page) as u64, 1, true);
    guest.front_end.kick(0);
    assert_eq!(guest.wait(0).status(), Some(Status::Ok));
}

#[test]
fn lists_that_make_no_sense_are_refused() {
    let mut guest = Guest::new(Options::default());
    let from = Rows { iova: TENSORS, stride: 0 };
    let job = Job::copy(16, 1, from, Rows { iova: TENSORS + PAGE, stride: 0 });
    let bytes = |header: ListHeader, jobs: usize| [header.as_bytes(), vec![job; jobs].as_bytes()].concat();
    let mut refused = |request: &[u8], room: u32, status: Status, why: &str| {
        guest.post_bytes(0, request, room);
        let outcome = guest.wait(0);
        assert_eq!(outcome.length, size_of::<ListResult>().min(room as usize) as u32, "{why}");
        if room as usize >= size_of::<ListResult>() {
            assert_eq!((outcome.status(), outcome.head.job_count), (Some(status), 0), "{why}");
        }
        assert_eq!(guest.read(TENSORS + PAGE, 16), [0; 16], "{why}: nothing is done");
    };
    guest_fill(&mut refused, &bytes);
    assert_eq!(guest.run(0, &[job]).status(), Some(Status::Ok));
}

/// All ways to make no sense.
fn guest_fill(
    refused: &mut impl FnMut(&[u8], u32, Status, &str),
    bytes: &impl Fn(ListHeader, usize) -> Vec<u8>,
) {
    let room = 4096;
    refused(&[0], room, Status::BadList, "too short");
    refused(&bytes(header(1), 1)[..50], room, Status::BadList, "half a job");
    refused(&bytes(header(2), 1), room, Status::BadList, "fewer jobs than announced");
    refused(&bytes(header(0), 1), room, Status::BadList, "more jobs than announced");
    refused(&bytes(header(u32::MAX), 1), room, Status::BadList, "very many jobs");
    refused(&bytes(header(65), JOBS_MAX + 1), room, Status::BadList, "too many jobs");
    refused(&bytes(ListHeader { version: 2, ..header(1) }, 1), room, Status::BadVersion, "another version");
    refused(&bytes(ListHeader { flags: 1, ..header(1) }, 1), room, Status::BadList, "unknown flags");
    refused(&bytes(header(1), 1), 60, Status::BadList, "no room for all results");
    refused(&bytes(header(1), 1), 8, Status::BadList, "no room for any result");
}

#[test]
fn requests_may_be_in_pieces_and_answers_too() {
    let mut guest = Guest::new(Options::default());
    let request = header(0);
    guest.write(TENSORS, request.as_bytes());
    // 5 + 0 + 11 bytes, then 1 + 55.
    for (index, (at, length, flags)) in
        [(0, 5, 0), (5, 0, 0), (5, 11, 0), (4095, 1, WRITE), (8191, 55, WRITE)].into_iter().enumerate()
    {
        let index = index as u16;
        let next = if index < 4 { NEXT } else { 0 };
        guest.descriptor(0, index, TENSORS + at, length, flags | next, index + 1);
    }
    guest.offer(0, 0);
    let outcome = guest.wait(0);
    assert_eq!(outcome.length, 56);
    let answer = [guest.read(TENSORS + 4095, 1), guest.read(TENSORS + 8191, 55)].concat();
    assert_eq!(answer[..12], [VERSION, Status::Ok as u32, 1].map(u32::to_le_bytes).concat());
}

#[test]
fn requests_and_answers_that_are_out_of_reach_are_given_back() {
    let mut guest = Guest::new(Options::default());
    guest.front_end.unmap(TENSORS, 1).unwrap();
    guest.descriptor(0, 0, TENSORS, 16, NEXT, 1);
    guest.descriptor(0, 1, TENSORS + PAGE, 64, WRITE, 0);
    guest.offer(0, 0);
    guest.wait(0);
    let answer = guest.read(TENSORS + PAGE, 8);
    assert_eq!(answer[4..], (Status::ReadFault as u32).to_le_bytes());
    guest.descriptor(0, 2, u64::MAX - 7, 64, WRITE, 0);
    guest.offer(0, 2);
    assert_eq!(guest.wait(0).length, 0);
    guest.descriptor(0, 4, TENSORS + PAGE, u32::MAX, NEXT, 5);
    guest.descriptor(0, 5, TENSORS + PAGE, u32::MAX, NEXT | WRITE, 6);
    guest.descriptor(0, 6, TENSORS + PAGE, u32::MAX, WRITE, 6);
    guest.offer(0, 4);
    assert_eq!(guest.wait(0).length, 56);
}

#[test]
fn notifications_come_unless_they_are_not_wanted() {
    let mut guest = Guest::new(Options::default());
    guest.run(0, &[]);
    std::thread::sleep(SOON);
    assert!(guest.front_end.was_called(0) && !guest.front_end.was_called(1));
    guest.write(ring(0).available, &1u16.to_le_bytes());
    guest.run(0, &[]);
    std::thread::sleep(SOON);
    assert!(!guest.front_end.was_called(0));
}

#[test]
fn nothing_works_without_translation() {
    let features = [1u64 << 32, 1 << 33, 1 << 32 | 1 << 33 | 1 << 35, 0];
    for features in features {
        let mut guest = Guest::unstarted(Options::default());
        guest.front_end.request(2, &features.to_le_bytes(), &[]).unwrap();
        guest.start(0);
        guest.post(0, &[]);
        assert!(guest.wait_for(0, SOON).is_none(), "{features:#x}");
    }
}

#[test]
fn messages_that_make_no_sense_are_refused_and_change_nothing() {
    let mut guest = Guest::new(Options::default());
    for number in 0..50 {
        for size in [0usize, 1, 7, 8, 20, 300] {
            // Those that stop queues on purpose, or answer by something else than a number.
            if !matches!(number, 1 | 2 | 5 | 8..=11 | 15 | 17 | 18 | 24 | 34 | 39 | 40) {
                guest.front_end.request(number, &vec![0xff; size], &[]).unwrap();
            }
        }
    }
    assert_eq!(guest.run(0, &[]).status(), Some(Status::Ok));
    // No such queue, no such regions.
    for number in [8, 9, 10, 11, 12, 13, 18] {
        let answer = guest.front_end.request(number, &[2; 64], &[]).unwrap();
        assert_eq!(answer, 1u64.to_le_bytes(), "{number}");
    }
    assert_eq!(guest.front_end.request(5, &[1, 0, 0, 0, 0, 0, 0, 0], &[]).unwrap(), 1u64.to_le_bytes());
    assert_eq!(guest.run(1, &[]).status(), Some(Status::Ok));
}

#[test]
fn jobs_are_counted_until_a_reset() {
    let mut guest = Guest::new(Options::default());
    let jobs = |guest: &Guest| {
        let request = [4u32.to_le_bytes(), 4u32.to_le_bytes(), [0; 4]].concat();
        guest.front_end.request(24, &request, &[]).unwrap()[12..].to_vec()
    };
    assert_eq!(jobs(&guest), [0; 4]);
    guest.run(1, &[Job::cancel(500), Job::cancel(501)]);
    guest.run(0, &[Job::cancel(502), Job { operation: 99, ..Job::default() }, Job::cancel(503)]);
    assert_eq!(jobs(&guest), [3, 0, 0, 0]);
    for queue in 0..2 {
        guest.front_end.stop(queue).unwrap();
    }
    assert_eq!(jobs(&guest), [0; 4]);
}

#[test]
fn the_configuration_says_what_the_device_is() {
    let guest = Guest::unstarted(Options::default());
    let ask = |offset: u32, size: u32| {
        let request = [offset.to_le_bytes(), size.to_le_bytes(), [0; 4]].concat();
        guest.front_end.request(24, &request, &[]).unwrap()
    };
    assert_eq!(ask(0, 8)[12..], *b"NP\x01\0\0\0\0\0");
    assert_eq!(ask(2, 8)[12..], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(ask(0, 8).len(), 20);
    assert_eq!(ask(0, 1 << 20), 1u64.to_le_bytes());
}
