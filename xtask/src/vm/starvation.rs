//! How long a process wanted to run but was not let: on a busy computer a silent machine has not hung.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Observes one process.
pub struct Starvation {
    process: u32,
    delays: BTreeMap<String, u64>,
    waited: Duration,
}

impl Starvation {
    /// Starts observing.
    pub fn new(process: u32) -> Self {
        Self { process, delays: run_delays(process), waited: Duration::ZERO }
    }

    /// Forgets what was observed.
    pub fn reset(&mut self) {
        self.waited = Duration::ZERO;
    }

    /// Looks again, and returns the time since the last reset in which the thread that waited most was kept waiting.
    pub fn waited(&mut self) -> Duration {
        let now = run_delays(self.process);
        self.waited += Duration::from_nanos(most_waited(&self.delays, &now));
        self.delays = now;
        self.waited
    }
}

/// Nanoseconds that the thread which waited most was kept waiting between two looks. Threads that are new do not count.
fn most_waited(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> u64 {
    now.iter()
        .filter_map(|(thread, delay)| Some(delay.saturating_sub(*before.get(thread)?)))
        .max()
        .unwrap_or(0)
}

/// Nanoseconds that each thread has spent on a run queue (Linux Documentation/scheduler/sched-stats.rst); empty where the
/// kernel does not count them.
fn run_delays(process: u32) -> BTreeMap<String, u64> {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return BTreeMap::new() };
    threads
        .flatten()
        .filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            let delay = parse(&text)?;
            Some((thread.file_name().to_string_lossy().into_owned(), delay))
        })
        .collect()
}

fn parse(text: &str) -> Option<u64> {
    text.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_figure_is_the_delay() {
        assert_eq!(parse("1000 2500 3\n"), Some(2500));
        assert_eq!(parse(""), None);
        assert_eq!(parse("1 x 2"), None);
    }

    #[test]
    fn a_process_that_does_not_exist_was_never_kept_waiting() {
        let mut starvation = Starvation::new(u32::MAX);
        assert_eq!(starvation.waited(), Duration::ZERO);
    }

    #[test]
    fn the_thread_that_waited_most_counts() {
        let look = |delays: &[(&str, u64)]| {
            delays.iter().map(|(name, delay)| ((*name).to_owned(), *delay)).collect()
        };
        assert_eq!(
            most_waited(&look(&[("a", 5), ("b", 5), ("c", 9)]), &look(&[("a", 7), ("b", 15), ("new", 99)])),
            10
        );
        assert_eq!(most_waited(&look(&[]), &look(&[("a", 7)])), 0);
        assert_eq!(most_waited(&look(&[("a", 7)]), &look(&[("a", 3)])), 0);
    }
}
