//! Threads of the development machine for the engine.

use std::sync::atomic::{AtomicUsize, Ordering};

use flexserve_engine::Parallel;

/// So many threads, started anew for each job: enough to compare results, and faster than one for large models.
#[derive(Clone, Copy, Debug)]
pub struct Threads(pub usize);

impl Parallel for Threads {
    fn width(&self) -> usize {
        self.0.max(1)
    }

    fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let help = || {
            while let Some(piece) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|piece| *piece < pieces)
            {
                work(piece);
            }
        };
        std::thread::scope(|scope| {
            (1..self.width().min(pieces)).for_each(|_| drop(scope.spawn(help)));
            help();
        });
    }
}
