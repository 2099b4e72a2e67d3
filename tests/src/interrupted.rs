//! Resets by a watchdog while an operation is in progress, at moments that a seed chooses. As in `reset`, one suite boots
//! several times, and the verdict comes from outside, which searches all of RAM.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use flexserve::image::Image;
use hyp_abi::manifest::layout;
use serde_json::json;

use crate::host::Host;
use crate::partition::{HEAP_PAGES, PROBE_PATH, Partition};
use crate::report::{self, ask};
use crate::secret::Secret;

/// What is in progress. A test is `during-NAME-SEED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Give,
    Recall,
    Measure,
    Run,
    Destroy,
}

const OPERATIONS: [(&str, Operation); 5] = [
    ("give", Operation::Give),
    ("recall", Operation::Recall),
    ("measure", Operation::Measure),
    ("run", Operation::Run),
    ("destroy", Operation::Destroy),
];
/// The latest moment of a reset after the operation's first round.
const LATEST: u64 = 1000;

fn parse(test: &str) -> Option<(Operation, u64)> {
    let (name, seed) = test.strip_prefix("during-")?.rsplit_once('-')?;
    let (_, operation) = OPERATIONS.iter().find(|(known, _)| *known == name)?;
    Some((*operation, seed.parse().ok()?))
}

/// SplitMix64's finisher: a moment in milliseconds.
fn moment(operation: Operation, seed: u64) -> Duration {
    let z = (seed << 8 | operation as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    Duration::from_millis((z ^ z >> 27) % LATEST)
}

/// Runs the test of this boot; the machine is reset in it.
pub fn run() -> Result<()> {
    let tests = report::wanted_tests()?;
    let boot = ask(json!({"ask": "boot"}))?["boot"].as_u64().context("which boot is this?")?;
    let test = tests.get((boot as usize).wrapping_sub(1)).context("one boot too many")?;
    let (operation, seed) = parse(test).with_context(|| format!("there is no test {test}"))?;
    // Returns only after a failure.
    let result = interrupt(operation, seed, test);
    report::verdict(test, false, &format!("{:#}", result.err().context("the machine was not reset")?))
}

fn interrupt(operation: Operation, seed: u64, test: &str) -> Result<()> {
    let (host, image, secret) = (Host::new()?, Image::load(PROBE_PATH.as_ref())?, Secret::new()?);
    // The secret is there at any time, whatever becomes of others.
    let mut keeper = Partition::load(&host, &image, Some(&secret))?;
    ensure!(!secret.search()?.is_empty(), "the secret is not in RAM");
    let (rounds, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let worker = scope.spawn(|| -> Result<()> {
            loop {
                let done = round(operation, &host, &image, &secret, &mut keeper);
                if done.is_err() {
                    failed.store(true, Ordering::Release);
                }
                done?;
                rounds.fetch_add(1, Ordering::Release);
            }
        });
        while rounds.load(Ordering::Acquire) == 0 && !failed.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(5));
        }
        if !failed.load(Ordering::Acquire) {
            thread::sleep(moment(operation, seed));
            ask(
                json!({"ask": "outlive", "how": "watchdog", "test": test, "bytes": secret.hex(), "found": false}),
            )?;
        }
        // The outside resets the machine.
        worker.join().map_err(|_| anyhow!("the operation's thread panicked"))?
    })?;
    bail!("the operation ended")
}

/// One round of an operation: most of its time is spent in what it is named after.
fn round(
    operation: Operation,
    host: &Host,
    image: &Image,
    secret: &Secret,
    keeper: &mut Partition<'_>,
) -> Result<()> {
    match operation {
        Operation::Give => {
            let mut partition = Partition::create(host, image)?;
            for block in 0..8 {
                partition.give_zero(layout::HEAP + block * (128 << 12), 128)?;
            }
            host.destroy(partition.id())
        }
        Operation::Recall => {
            let partition = Partition::load(host, image, Some(secret))?;
            partition.stop()?;
            for page in 0..HEAP_PAGES {
                partition.recall(layout::HEAP + (page << 12), 1)?.ok("RECALL")?;
            }
            host.destroy(partition.id())
        }
        Operation::Measure => {
            let mut partition = Partition::create(host, image)?;
            partition.give_all(image)?;
            host.measure(partition.id())?;
            host.destroy(partition.id())
        }
        Operation::Run => {
            keeper.fill(secret)?;
            let damaged = keeper.damage(secret)?;
            ensure!(damaged == 0, "{damaged} copies of the secret are damaged");
            Ok(())
        }
        Operation::Destroy => {
            let partition = Partition::load(host, image, Some(secret))?;
            host.destroy(partition.id())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_test_is_one_and_moments_differ() {
        for text in
            [include_str!("../suites/reset-during.toml"), include_str!("../suites/reset-during-often.toml")]
        {
            let suite: toml::Value = toml::from_str(text).unwrap();
            let tests = suite["tests"].as_array().unwrap();
            let parsed: Vec<_> = tests.iter().map(|test| parse(test.as_str().unwrap()).unwrap()).collect();
            for (_, operation) in OPERATIONS {
                assert!(parsed.iter().any(|(known, _)| *known == operation), "{operation:?}");
            }
        }
        assert!(parse("during-give").is_none() && parse("during-other-1").is_none());
        assert_ne!(moment(Operation::Give, 1), moment(Operation::Give, 2));
        assert!(moment(Operation::Run, 9) < Duration::from_millis(LATEST));
    }
}
