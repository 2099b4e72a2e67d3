//! Places for lists in flight, and the virtqueue that carries them.
//!
//! A place's buffers belong to the device from [`Ring::post`] until [`Ring::collect`] finds them used; nothing touches them
//! in between. They live until the device has been reset: see [`Ring`].

use alloc::vec::Vec;

use flexserve_npu_abi::{JOBS_MAX, Job, JobResult, ListHeader, ListResult};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use virtio_drivers::{Error, Hal, Result};
use zerocopy::IntoBytes;

/// Descriptors: two for each list in flight.
const DESCRIPTORS: usize = 16;
/// Lists in flight.
const PLACES: usize = DESCRIPTORS / 2;
const REQUEST_MAX: usize = size_of::<ListHeader>() + JOBS_MAX * size_of::<Job>();
const ANSWER_MAX: usize = size_of::<ListResult>() + JOBS_MAX * size_of::<JobResult>();

/// Who has a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// The device has it, under this token.
    Posted {
        token: u16,
    },
    /// It is back, with so many bytes written.
    Used {
        length: usize,
    },
}

struct Place {
    state: State,
    list_id: u32,
    /// Whether nobody will ask for the answer.
    forgotten: bool,
    request: Vec<u8>,
    request_bytes: usize,
    answer: Vec<u8>,
    answer_bytes: usize,
}

fn zeros(count: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(count).map_err(|_| Error::DmaError)?;
    bytes.resize(count, 0);
    Ok(bytes)
}

/// A virtqueue and its places. Whoever owns it lets it go only when the device cannot reach the buffers any more.
pub struct Ring<H: Hal> {
    queue: VirtQueue<H, DESCRIPTORS>,
    places: Vec<Place>,
}

impl<H: Hal> Ring<H> {
    /// Sets up queue `index`.
    pub fn new(transport: &mut impl Transport, index: u16) -> Result<Self> {
        let mut queue = VirtQueue::new(transport, index, false, false)?;
        queue.set_dev_notify(false);
        let mut places = Vec::new();
        places.try_reserve_exact(PLACES).map_err(|_| Error::DmaError)?;
        for _ in 0..PLACES {
            places.push(Place {
                state: State::Free,
                list_id: 0,
                forgotten: false,
                request: zeros(REQUEST_MAX)?,
                request_bytes: 0,
                answer: zeros(ANSWER_MAX)?,
                answer_bytes: 0,
            });
        }
        Ok(Ring { queue, places })
    }

    /// Posts a list; its name says which place it has. None if all are taken.
    pub fn post(&mut self, header: ListHeader, jobs: &[Job], forgotten: bool) -> Option<Result<usize>> {
        let index = self.places.iter().position(|place| place.state == State::Free)?;
        let place = self.places.get_mut(index)?;
        let parts = [header.as_bytes(), jobs.as_bytes()];
        let mut rest = &mut place.request[..];
        for part in parts {
            let (to, others) = rest.split_at_mut_checked(part.len())?;
            to.copy_from_slice(part);
            rest = others;
        }
        place.request_bytes = parts.iter().map(|part| part.len()).sum();
        place.answer_bytes = size_of::<ListResult>() + size_of::<JobResult>() * jobs.len();
        (place.list_id, place.forgotten) = (header.list_id, forgotten);
        // What the device does not write is no answer.
        place.answer.fill(0);
        let (Some(request), Some(answer)) =
            (place.request.get(..place.request_bytes), place.answer.get_mut(..place.answer_bytes))
        else {
            return None;
        };
        // SAFETY: the buffers are the place's, which is marked as posted below: until `pop_used` has taken them back, nothing
        // here accesses them, and they are not freed, as whoever owns the ring promises.
        let token = unsafe { self.queue.add(&[request], &mut [answer]) };
        Some(token.map(|token| {
            place.state = State::Posted { token };
            index
        }))
    }

    /// Takes back what the device used.
    ///
    /// # Errors
    /// It used what it does not have: [`Error::WrongToken`].
    pub fn collect(&mut self) -> Result<()> {
        while let Some(token) = self.queue.peek_used() {
            let posted = State::Posted { token };
            let place =
                self.places.iter_mut().find(|place| place.state == posted).ok_or(Error::WrongToken)?;
            let (Some(request), Some(answer)) =
                (place.request.get(..place.request_bytes), place.answer.get_mut(..place.answer_bytes))
            else {
                return Err(Error::WrongToken);
            };
            // SAFETY: the place is posted with this token, so these are the buffers that `add` got.
            let length = unsafe { self.queue.pop_used(token, &[request], &mut [answer]) }?;
            place.state = if place.forgotten { State::Free } else { State::Used { length: length as usize } };
        }
        Ok(())
    }

    /// Copies an answer out, if it is there, and frees its place. None if the list has no place.
    pub fn take(&mut self, index: usize, list_id: u32, answer: &mut [u8]) -> Option<Option<usize>> {
        let place = self.places.get_mut(index)?;
        match place.state {
            State::Used { length } if place.list_id == list_id => {
                answer.iter_mut().zip(&place.answer[..]).for_each(|(to, from)| *to = *from);
                place.state = State::Free;
                Some(Some(length))
            }
            State::Posted { .. } if place.list_id == list_id => Some(None),
            _ => None,
        }
    }

    /// Whether the device wants to be told of what was posted.
    pub fn wants_notification(&self) -> bool {
        self.queue.should_notify()
    }
}
