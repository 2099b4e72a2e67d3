//! Work shared by threads. The engine makes none: the caller brings them, and they change no result.

use core::sync::atomic::{AtomicU32, Ordering};

use spin::mutex::{SpinMutex, SpinMutexGuard};
use zerocopy::{FromBytes, IntoBytes};

/// Threads that share work.
pub trait Parallel: Sync + core::fmt::Debug {
    /// Threads that may take part, the caller's included; at least 1.
    fn width(&self) -> usize;

    /// Calls `work` with each number below `pieces` once, in any order and on any of at most [`Parallel::width`] threads,
    /// and returns when all calls have returned. Allocates nothing if decoding is to allocate nothing.
    fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync));
}

/// The caller's thread alone.
#[derive(Clone, Copy, Debug)]
pub struct Serial;

impl Parallel for Serial {
    fn width(&self) -> usize {
        1
    }

    fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..pieces).for_each(work);
    }
}

/// Multiplications below which a piece is not worth handing out.
const LEAST_WORK: usize = 1 << 15;
/// Most pieces that a job is split into.
pub const MAX_PIECES: usize = 32;

/// A job of equal units, in parts of as many each.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    units: usize,
    /// Units of a part; the last may have fewer.
    pub each: usize,
}

impl Split {
    /// Splits a job of `units` of `cost` multiplications each for these threads; parts begin at multiples of `grain`.
    pub fn new(parallel: &dyn Parallel, units: usize, grain: usize, cost: usize) -> Self {
        let pieces = pieces(parallel, units, cost);
        Split { units, each: units.div_ceil(pieces).next_multiple_of(grain.max(1)).max(1) }
    }

    /// Calls `work` with the number and the units of each part; there are at most [`MAX_PIECES`].
    pub fn run(self, parallel: &dyn Parallel, work: &(dyn Fn(usize, core::ops::Range<usize>) + Sync)) {
        let Self { units, each } = self;
        match units.div_ceil(each) {
            0 => {}
            1 => work(0, 0..units),
            count => parallel.run(count, &|piece| {
                work(piece, piece * each..piece.saturating_add(1).saturating_mul(each).min(units))
            }),
        }
    }
}

/// Into how many parts a job is split: one for a single thread; else several for each, so that one that is late, since
/// another program has its CPU, holds up the others little.
fn pieces(parallel: &dyn Parallel, units: usize, cost: usize) -> usize {
    const PER_THREAD: usize = 4;
    let width = parallel.width();
    if width <= 1 {
        return 1;
    }
    let worth = units.saturating_mul(cost) / LEAST_WORK;
    worth.min(width.saturating_mul(PER_THREAD)).clamp(1, MAX_PIECES)
}

/// Floats that several threads write, each its own.
#[derive(Clone, Copy)]
pub struct Output<'o>(&'o [AtomicU32]);

impl<'o> Output<'o> {
    /// Views `out`.
    pub fn new(out: &'o mut [f32]) -> Self {
        // Size and alignment are the same, so this does not fail.
        Output(<[AtomicU32]>::mut_from_bytes(out.as_mut_bytes()).map_or(&[], |words| words))
    }

    /// Writes element `index`, if there is one.
    #[inline]
    pub fn set(&self, index: usize, value: f32) {
        if let Some(word) = self.0.get(index) {
            word.store(value.to_bits(), Ordering::Relaxed);
        }
    }
}

/// Takes one of several places that no other thread uses. There are as many as threads, so one is free.
pub fn take_free<T>(places: &[SpinMutex<T>]) -> Option<SpinMutexGuard<'_, T>> {
    while !places.is_empty() {
        if let Some(free) = places.iter().find_map(SpinMutex::try_lock) {
            return Some(free);
        }
        core::hint::spin_loop();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[derive(Debug)]
    struct Wide(usize);

    impl Parallel for Wide {
        fn width(&self) -> usize {
            self.0
        }

        fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
            std::thread::scope(|scope| {
                for first in 0..self.0 {
                    scope.spawn(move || (first..pieces).step_by(self.0).for_each(work));
                }
            });
        }
    }

    #[test]
    fn every_unit_is_done_once() {
        for units in [0, 1, 3, 4, 5, 63, 64, 1000, 4097] {
            for (width, grain, cost) in
                [(1, 4, 1 << 20), (2, 1, 1 << 16), (3, 4, 1 << 20), (8, 4, 1 << 30), (8, 4, 1)]
            {
                let done: Vec<AtomicU32> = (0..units).map(|_| AtomicU32::new(0)).collect();
                Split::new(&Wide(width), units, grain, cost).run(&Wide(width), &|piece, range| {
                    assert!(piece < MAX_PIECES && range.start % grain == 0);
                    for unit in range {
                        done[unit].fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{units} {width}");
            }
        }
    }

    #[test]
    fn small_jobs_and_single_threads_are_one_piece() {
        assert_eq!(pieces(&Serial, 1 << 20, 1 << 20), 1);
        assert_eq!(pieces(&Wide(4), 16, 16), 1);
        assert_eq!(pieces(&Wide(4), 1 << 10, 1 << 10), 16);
        assert_eq!(pieces(&Wide(400), usize::MAX, usize::MAX), MAX_PIECES);
    }

    #[test]
    fn outputs_are_the_floats_themselves() {
        let mut floats = [1.0, 2.0, 3.0];
        let output = Output::new(&mut floats);
        output.set(1, -0.5);
        output.set(3, 9.0);
        assert_eq!(floats, [1.0, -0.5, 3.0]);
    }
}
