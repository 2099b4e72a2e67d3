//! Resets and a panic of the hypervisor, while a partition runs with a secret in it. The verdict comes from outside: it
//! searches all of RAM when the machine is where nothing of a partition may be left.
//!
//! One suite boots several times: the outside says which boot this is.

use std::thread;

use anyhow::{Context, Result, bail, ensure};
use flexserve::image::Image;
use guest_abi::session::probe;
use serde_json::json;

use crate::attack::without_name;
use crate::host::Host;
use crate::knob::{self, Knob};
use crate::partition::{Exit, PROBE_PATH, Partition};
use crate::report::{self, ask};
use crate::secret::Secret;
use crate::sys::Conduit;

const SYSTEM_RESET: u64 = 0x8400_0009;

/// Names of these attacks.
pub const NAMES: [&str; 3] = ["watchdog-reset", "psci-reset", "hypervisor-panic"];

/// How the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Watchdog,
    Psci,
    Panic,
}

impl End {
    fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    /// The knob that leaves its defence out; a boot's own cannot be turned at run time.
    fn knob(self) -> Option<Knob> {
        match self {
            Self::Watchdog => None,
            Self::Psci | Self::Panic => Some(Knob::SkipScrubAll),
        }
    }
}

/// The tests of a suite in the order of its boots: how the machine ends, and whether without its defence.
fn plan(suite: &str) -> Result<&'static [(End, bool)]> {
    match suite {
        "reset" => Ok(&[(End::Watchdog, false), (End::Psci, false)]),
        "reset-knobs" => {
            Ok(&[(End::Panic, false), (End::Panic, true), (End::Psci, true), (End::Watchdog, true)])
        }
        other => bail!("no suite {other}"),
    }
}

/// Runs the test of this boot; the machine ends in it.
pub fn run(suite: &str) -> Result<()> {
    let wanted = report::wanted_tests()?;
    let boot = ask(json!({"ask": "boot"}))?["boot"].as_u64().context("which boot is this?")?;
    let name =
        |(end, without): &(End, bool)| if *without { without_name(end.name()) } else { end.name().into() };
    // Only tests that are wanted take a boot.
    let tests: Vec<_> = plan(suite)?.iter().filter(|test| wanted.contains(&name(test))).collect();
    let test = tests.get((boot as usize).wrapping_sub(1)).context("one boot too many")?;
    let (end, without) = **test;
    // Returns only after a failure.
    let result = end_machine(end, without, &name(test));
    report::verdict(&name(test), false, &format!("{:#}", result.err().context("the machine did not end")?))
}

fn end_machine(end: End, without: bool, name: &str) -> Result<()> {
    let host = Host::new()?;
    let image = Image::load(PROBE_PATH.as_ref())?;
    let secret = Secret::new()?;
    let partition = Partition::load(&host, &image, Some(&secret))?;
    ensure!(!secret.search()?.is_empty(), "the secret is not in RAM");
    if without && let Some(knob) = end.knob() {
        knob.turn(&host.module, true)?;
    }
    partition.send(probe::SPIN, [0; 4], &[])?;
    thread::scope(|scope| {
        // The partition is inside on another CPU when the machine ends.
        let vcpu = scope.spawn(|| -> Result<Exit> {
            loop {
                match partition.enter()? {
                    Exit::Interrupt => {}
                    other => return Ok(other),
                }
            }
        });
        while host.partition_stats(partition.id())?.interrupts < 3 {
            thread::yield_now();
        }
        let how = match end {
            End::Watchdog => "watchdog",
            End::Psci => "psci",
            End::Panic => "panic",
        };
        ask(json!({"ask": "outlive", "how": how, "test": name, "bytes": secret.hex(), "found": without}))?;
        match end {
            // The outside resets the machine.
            End::Watchdog => {}
            End::Psci => {
                let mut regs = [0; 18];
                regs[0] = SYSTEM_RESET;
                host.module.call(Conduit::Smc, regs)?;
            }
            End::Panic => knob::panic(&host.module)?,
        }
        match vcpu.join() {
            Ok(end) => bail!("the vCPU came out: {end:?}"),
            Err(_) => bail!("the vCPU's thread panicked"),
        }
    })
}
