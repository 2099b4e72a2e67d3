//! Threads of the development machine for the engine.

use std::cell::Cell;
use std::sync::{Condvar, Mutex};

use flexserve_engine::Parallel;
use flexserve_engine::pool::{Park, Pool};

/// How threads of this process sleep and are woken: a wake is a bit that stays until it is taken.
#[derive(Debug)]
pub struct Sleep {
    woken: Mutex<u64>,
    changed: Condvar,
}

thread_local! {
    /// The thread's bit; the first thread gives the jobs.
    static BIT: Cell<u64> = const { Cell::new(1) };
}

impl Park for Sleep {
    fn wait(&self) {
        let Ok(woken) = self.woken.lock() else { return };
        let Ok(mut woken) = self.changed.wait_while(woken, |woken| *woken & BIT.get() == 0) else { return };
        *woken &= !BIT.get();
    }

    fn wake(&self, targets: u64) {
        if let Ok(mut woken) = self.woken.lock() {
            *woken |= targets;
        }
        self.changed.notify_all();
    }

    fn is_idle(&self, spun: u32) -> bool {
        // Some tens of microseconds: longer than the gap between two jobs of a batch, shorter than anybody minds.
        spun > 2000
    }
}

/// A pool of so many threads, the caller's among them, that stays until the process ends.
pub fn pool(threads: usize) -> &'static Pool<Sleep> {
    let sleep = Sleep { woken: Mutex::new(0), changed: Condvar::new() };
    let pool: &'static Pool<Sleep> = Box::leak(Box::new(Pool::new(sleep)));
    for index in 1..threads {
        std::thread::spawn(move || {
            BIT.set(1 << index);
            pool.serve(index)
        });
    }
    while pool.width() < threads {
        std::thread::yield_now();
    }
    pool
}

/// Most threads of a pool.
#[allow(dead_code, reason = "for the command line alone")]
pub const MAX_THREADS: usize = 64;
