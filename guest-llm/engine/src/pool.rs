//! Threads or vCPUs that share the engine's work. The caller brings them, and says how they sleep and are woken.
//!
//! One job at a time, of numbered pieces that whoever is there claims, so nothing waits for a vCPU that the host does not
//! run; one that it stops in the middle of a piece delays the job, and that is all. Claims go through one word, which holds
//! the job's number too: a claim that succeeds is one of the present job, however long the host kept the claimant before.
//!
//! Idle vCPUs spin for a moment, since the next job mostly comes at once, then sleep until they are woken.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};

use crate::Parallel;

/// What a vCPU does when it has nothing to do.
pub trait Park: Sync {
    /// Waits until this vCPU is woken; may return early. A wake that came before counts.
    fn wait(&self);
    /// Wakes the vCPUs in `targets`, a bit each.
    fn wake(&self, targets: u64);
    /// Whether `spun` turns without work are enough.
    fn is_idle(&self, spun: u32) -> bool;
}

type Work<'w> = &'w (dyn Fn(usize) + Sync);

/// Bits of the ticket for the next piece, and for the number of pieces; the job's number takes the rest.
const PIECE_BITS: u32 = 8;
const PIECE_MASK: u64 = (1 << PIECE_BITS) - 1;
/// Most pieces of a job.
const MAX_PIECES: usize = PIECE_MASK as usize;
/// The vCPU that gives jobs.
const FIRST: u64 = 1;

/// Shared state; one per partition. Jobs come from the first vCPU only.
pub struct Pool<P> {
    /// Job number, pieces, next piece. Claiming is adding one, as long as that is below the pieces.
    ticket: AtomicU64,
    /// The job's work: a reference on the stack of [`Parallel::run`].
    work: AtomicPtr<()>,
    /// Pieces done.
    done: AtomicUsize,
    /// Whether a job is under way.
    busy: AtomicBool,
    /// vCPUs that sleep or are about to, a bit each.
    asleep: AtomicU64,
    /// vCPUs that help.
    helpers: AtomicUsize,
    park: P,
}

impl<P> core::fmt::Debug for Pool<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Pool").field("helpers", &self.helpers).finish_non_exhaustive()
    }
}

impl<P: Park> Pool<P> {
    /// Without helpers.
    pub const fn new(park: P) -> Self {
        Pool {
            ticket: AtomicU64::new(0),
            work: AtomicPtr::new(core::ptr::null_mut()),
            done: AtomicUsize::new(0),
            busy: AtomicBool::new(false),
            asleep: AtomicU64::new(0),
            helpers: AtomicUsize::new(0),
            park,
        }
    }

    fn pieces_of(ticket: u64) -> u64 {
        ticket >> PIECE_BITS & PIECE_MASK
    }

    fn has_work(&self) -> bool {
        let ticket = self.ticket.load(Ordering::SeqCst);
        ticket & PIECE_MASK < Self::pieces_of(ticket)
    }

    /// Does one piece of the present job; false if none is left.
    fn help(&self) -> bool {
        let ticket = self.ticket.load(Ordering::Acquire);
        let (piece, pieces) = (ticket & PIECE_MASK, Self::pieces_of(ticket));
        if piece >= pieces {
            return false;
        }
        let work = self.work.load(Ordering::Relaxed).cast::<Work<'_>>();
        // A job's number never comes again, so success means that the job whose work was just read is the present one: a
        // later one is published only when no piece of this is left to claim.
        let claim = self.ticket.compare_exchange(ticket, ticket + 1, Ordering::AcqRel, Ordering::Relaxed);
        if claim.is_ok() {
            // SAFETY: the piece is ours and not done, so `run`, which owns what this points to, has not returned.
            let work = unsafe { *work };
            work(piece as usize);
            // From here on `run` may return.
            let done = self.done.fetch_add(1, Ordering::SeqCst) + 1;
            if done as u64 == pieces && self.asleep.load(Ordering::SeqCst) & FIRST != 0 {
                self.park.wake(FIRST);
            }
        }
        true
    }

    /// Helps for ever, as vCPU `index`.
    pub fn serve(&self, index: usize) -> ! {
        self.helpers.fetch_add(1, Ordering::Relaxed);
        loop {
            self.serve_until_idle(1 << index);
        }
    }

    /// Helps until there is nothing to do, then sleeps once.
    fn serve_until_idle(&self, bit: u64) {
        let mut spun = 0;
        while !self.park.is_idle(spun) {
            spun = if self.help() { 0 } else { spun + 1 };
            core::hint::spin_loop();
        }
        self.sleep_unless(bit, || self.has_work());
    }

    fn sleep_unless(&self, bit: u64, ready: impl Fn() -> bool) {
        self.asleep.fetch_or(bit, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if !ready() {
            self.park.wait();
        }
        self.asleep.fetch_and(!bit, Ordering::SeqCst);
    }
}

impl<P: Park> Parallel for Pool<P> {
    fn width(&self) -> usize {
        1 + self.helpers.load(Ordering::Relaxed)
    }

    fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        // A job within a job, or more pieces than a ticket counts, is nobody else's.
        if pieces > MAX_PIECES || self.busy.swap(true, Ordering::Acquire) {
            return (0..pieces).for_each(work);
        }
        let work: Work<'_> = work;
        self.work.store((&raw const work).cast_mut().cast(), Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        let number = (self.ticket.load(Ordering::Relaxed) >> (2 * PIECE_BITS)).wrapping_add(1);
        self.ticket.store(number << (2 * PIECE_BITS) | (pieces as u64) << PIECE_BITS, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // Each is woken once: whoever sleeps again says so again.
        match self.asleep.fetch_and(FIRST, Ordering::SeqCst) & !FIRST {
            0 => {}
            asleep => self.park.wake(asleep),
        }
        while self.help() {}
        let is_done = || self.done.load(Ordering::SeqCst) >= pieces;
        let mut spun = 0;
        while !is_done() {
            if self.park.is_idle(spun) {
                self.sleep_unless(FIRST, is_done);
                spun = 0;
            }
            spun += 1;
            core::hint::spin_loop();
        }
        self.busy.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::sync::{Condvar, Mutex};
    use std::time::Duration;

    /// vCPUs that are threads; a wake is a bit that stays until it is taken.
    struct Threads {
        woken: Mutex<u64>,
        changed: Condvar,
        spins: u32,
    }

    std::thread_local! {
        static BIT: core::cell::Cell<u64> = const { core::cell::Cell::new(FIRST) };
    }

    impl Park for Threads {
        fn wait(&self) {
            let woken = self.woken.lock().unwrap();
            // Only a lost wake takes this long; the test then fails by its duration.
            let (mut woken, _) = self
                .changed
                .wait_timeout_while(woken, Duration::from_secs(5), |woken| *woken & BIT.get() == 0)
                .unwrap();
            *woken &= !BIT.get();
        }

        fn wake(&self, targets: u64) {
            *self.woken.lock().unwrap() |= targets;
            self.changed.notify_all();
        }

        fn is_idle(&self, spun: u32) -> bool {
            spun >= self.spins
        }
    }

    fn pool(spins: u32) -> &'static Pool<Threads> {
        let park = Threads { woken: Mutex::new(0), changed: Condvar::new(), spins };
        std::boxed::Box::leak(std::boxed::Box::new(Pool::new(park)))
    }

    fn help(pool: &'static Pool<Threads>, threads: usize) {
        for index in 1..=threads {
            std::thread::spawn(move || {
                BIT.set(1 << index);
                pool.serve(index)
            });
        }
        while pool.width() <= threads {
            std::thread::yield_now();
        }
    }

    fn every_piece_once(pool: &Pool<Threads>, pieces: usize) {
        let done: std::vec::Vec<AtomicU32> = (0..pieces).map(|_| AtomicU32::new(0)).collect();
        pool.run(pieces, &|piece| {
            done[piece].fetch_add(1, Ordering::Relaxed);
        });
        assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{pieces}");
    }

    #[test]
    fn every_piece_is_done_once_with_any_number_of_helpers() {
        let begin = std::time::Instant::now();
        for (threads, spins) in [(0, 10), (1, 0), (3, 0), (3, 1000)] {
            let pool = pool(spins);
            help(pool, threads);
            for job in 0..2000 {
                every_piece_once(pool, [1, 2, 5, 16, 255, 256, 0][job % 7]);
                if job % 500 == 0 {
                    // Everybody sleeps by now.
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "wakes are lost: {:?}", begin.elapsed());
    }

    #[test]
    fn a_helper_that_never_comes_is_not_waited_for() {
        let pool = pool(0);
        // As if a vCPU were on and asleep, and the host did not run it.
        pool.helpers.fetch_add(1, Ordering::Relaxed);
        pool.asleep.fetch_or(2, Ordering::Relaxed);
        every_piece_once(pool, 16);
        assert_eq!((*pool.park.woken.lock().unwrap(), pool.asleep.load(Ordering::Relaxed)), (2, 0));
        every_piece_once(pool, 16);
    }

    #[test]
    fn a_helper_that_is_stopped_in_a_piece_delays_and_no_more() {
        let pool = pool(5);
        help(pool, 1);
        let begin = std::time::Instant::now();
        let done = AtomicU32::new(0);
        pool.run(4, &|_| {
            if BIT.get() != FIRST {
                std::thread::sleep(Duration::from_millis(100));
            }
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 4);
        assert!(begin.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn a_job_in_a_job_is_done_by_whoever_has_it() {
        let pool = pool(5);
        help(pool, 2);
        let done = AtomicU32::new(0);
        pool.run(8, &|_| {
            pool.run(8, &|_| {
                done.fetch_add(1, Ordering::Relaxed);
            })
        });
        assert_eq!(done.load(Ordering::Relaxed), 64);
    }
}
