//! A driver that does whatever a test wants, on a front end with shuffled pages.

use std::time::{Duration, Instant};

use flexserve_npu_abi::{Job, JobResult, ListHeader, ListResult, Status, VERSION};
use flexserve_npu_model::Options;
use flexserve_npu_model::front_end::{FrontEnd, PAGE};
use flexserve_npu_model::queue::Ring;
use zerocopy::{FromBytes, IntoBytes};

/// Pages of memory.
pub const PAGES: u64 = 4096;
/// IOVA of the first page; the pages that follow lie anywhere in memory.
pub const BASE: u64 = 0x1_0000_0000;
/// From here on memory is free for tensors.
pub const TENSORS: u64 = BASE + 0x10_0000;
pub const SIZE: u16 = 16;

const QUEUE_BYTES: u64 = 0x4_0000;
const SLOT_BYTES: u64 = 0x2000;

pub struct Guest {
    pub front_end: FrontEnd,
    available: [u16; 2],
    seen: [u16; 2],
}

/// Where in memory a page is: each in another place than its neighbours.
fn place(page: u64) -> u64 {
    (page * 1021 + 77) % PAGES * PAGE
}

pub fn ring(queue: usize) -> Ring {
    let base = BASE + queue as u64 * QUEUE_BYTES;
    Ring { size: SIZE, descriptors: base, available: base + 0x1000, used: base + 0x2000 }
}

/// The part of the rings' pages that a slot's list is in.
fn slot(queue: usize, index: u16) -> u64 {
    ring(queue).descriptors + 0x4000 + u64::from(index % (SIZE / 2)) * SLOT_BYTES * 2
}

pub struct Outcome {
    pub length: u32,
    pub head: ListResult,
    pub results: Vec<JobResult>,
}

impl Outcome {
    pub fn status(&self) -> Option<Status> {
        Status::from_number(self.head.status)
    }
}

impl Guest {
    pub fn new(options: Options) -> Self {
        let mut guest = Guest::unstarted(options);
        (0..2).for_each(|queue| guest.start(queue));
        guest
    }

    pub fn unstarted(options: Options) -> Self {
        let front_end = FrontEnd::new((PAGES * PAGE) as usize, options).unwrap();
        for page in 0..PAGES {
            front_end.map(BASE + page * PAGE, place(page), 1, true);
        }
        Guest { front_end, available: [0; 2], seen: [0; 2] }
    }

    /// Starts a queue with empty rings.
    pub fn start(&mut self, queue: usize) {
        let ring = ring(queue);
        for at in [ring.descriptors, ring.available, ring.used] {
            self.write(at, &[0; PAGE as usize]);
        }
        (self.available[queue], self.seen[queue]) = (0, 0);
        self.front_end.start(queue, ring, 0).unwrap();
    }

    /// Where in memory an IOVA is, whether it is mapped or not.
    pub fn place(iova: u64) -> usize {
        (place((iova - BASE) / PAGE) + iova % PAGE) as usize
    }

    pub fn write(&self, iova: u64, bytes: &[u8]) {
        for (at, byte) in (iova..).zip(bytes) {
            self.front_end.write(Self::place(at), &[*byte]);
        }
    }

    pub fn read(&self, iova: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        for (at, byte) in (iova..).zip(bytes.chunks_mut(1)) {
            self.front_end.read(Self::place(at), byte);
        }
        bytes
    }

    pub fn floats(&self, iova: u64, count: usize) -> Vec<u32> {
        self.read(iova, 4 * count).chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn descriptor(&self, queue: usize, index: u16, iova: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = iova.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(ring(queue).descriptors + u64::from(index) * 16, &bytes);
    }

    /// Makes a chain available, whatever it is.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let index = self.available[queue];
        self.write(ring(queue).available + 4 + u64::from(index % SIZE) * 2, &head.to_le_bytes());
        self.available[queue] = index.wrapping_add(1);
        self.write(ring(queue).available + 2, &self.available[queue].to_le_bytes());
        self.front_end.kick(queue);
    }

    /// Posts a request of any bytes, with so much room for an answer.
    pub fn post_bytes(&mut self, queue: usize, request: &[u8], room: u32) -> u16 {
        let index = self.available[queue];
        let (at, head) = (slot(queue, index), index % (SIZE / 2) * 2);
        self.write(at, request);
        self.write(at + SLOT_BYTES, &[0; SLOT_BYTES as usize]);
        self.descriptor(queue, head, at, request.len() as u32, 1, head + 1);
        self.descriptor(queue, head + 1, at + SLOT_BYTES, room, 2, 0);
        self.offer(queue, head);
        index
    }

    /// Posts a list, named by its number in the queue, from 1.
    pub fn post(&mut self, queue: usize, jobs: &[Job]) -> u16 {
        let list_id = u32::from(self.available[queue]) + 1 + 1000 * queue as u32;
        let header = ListHeader { version: VERSION, job_count: jobs.len() as u32, list_id, flags: 0 };
        let room = size_of::<ListResult>() + size_of_val(jobs) / size_of::<Job>() * size_of::<JobResult>();
        self.post_bytes(queue, &[header.as_bytes(), jobs.as_bytes()].concat(), room as u32)
    }

    pub fn used(&self, queue: usize) -> u16 {
        let bytes = self.read(ring(queue).used + 2, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// Waits for the next answer.
    pub fn wait(&mut self, queue: usize) -> Outcome {
        self.wait_for(queue, Duration::from_secs(20)).expect("no answer")
    }

    pub fn wait_for(&mut self, queue: usize, time: Duration) -> Option<Outcome> {
        let index = self.seen[queue];
        let begin = Instant::now();
        while self.used(queue) == index {
            if begin.elapsed() > time {
                return None;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        self.seen[queue] = index.wrapping_add(1);
        let entry = self.read(ring(queue).used + 4 + u64::from(index % SIZE) * 8, 8);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        assert_eq!(word(0), u32::from(index % (SIZE / 2) * 2), "chains come back in order");
        let answer = self.read(slot(queue, index) + SLOT_BYTES, SLOT_BYTES as usize);
        let (head, rest) = ListResult::read_from_prefix(&answer).unwrap();
        let results = rest.chunks_exact(size_of::<JobResult>()).take(head.job_count as usize);
        let results = results.map(|result| JobResult::read_from_bytes(result).unwrap()).collect();
        Some(Outcome { length: word(4), head, results })
    }

    pub fn run(&mut self, queue: usize, jobs: &[Job]) -> Outcome {
        self.post(queue, jobs);
        self.wait(queue)
    }
}
