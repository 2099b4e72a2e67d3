//! The process that runs a partition through the product's module is killed at random moments.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use flexserve::device::Device;
use flexserve::machine::Machine;

use super::Outcome;
use crate::child::{self, End, Vmm};
use crate::secret::Secret;

/// Kills, of which each third waits until the secret is in the heap; the others come wherever they come.
const KILLS: u64 = 12;
/// The latest kill after the start of the process.
const LATEST_MS: u64 = 900;
/// Memory that a process of the host uses afterwards, in MiB.
const USE: u64 = 256;

/// All pages are back, zero, and Linux is healthy.
pub fn killed(secret: &Secret) -> Result<Outcome> {
    let mut moments = Vec::new();
    let mut found = Vec::new();
    for kill in 0..KILLS {
        let mut vmm = Vmm::start(secret)?;
        if kill % 3 == 0 {
            vmm.wait_until_filled()?;
            ensure!(!secret.search()?.is_empty(), "the partition's secret is not in RAM");
        } else {
            let [low, high, ..] = *Secret::new()?.complement();
            let moment = u64::from(u16::from_le_bytes([low, high])) % LATEST_MS;
            moments.push(moment);
            sleep(Duration::from_millis(moment));
        }
        vmm.kill()?;
        let device = Device::open(flexserve::DEVICE_PATH.as_ref())?;
        let info = device.info().map_err(flexserve::error::Error::from)?;
        let held = [info.partitions, info.pages_held, info.pages_leaked];
        ensure!(held == [0; 3], "after kill {kill} the module has {held:?} partitions, pages, leaks");
        let stats = device.system_stats().map_err(flexserve::error::Error::from)?;
        ensure!(stats.partition_count == 0, "the hypervisor has {} partitions", stats.partition_count);
        ensure!(
            stats.pages_given == stats.pages_recalled,
            "{} pages were given, {} came back",
            stats.pages_given,
            stats.pages_recalled
        );
        if kill % 3 == 0 || kill == KILLS - 1 {
            found = secret.search()?;
            if !found.is_empty() {
                break;
            }
        }
    }
    match child::use_memory(USE)? {
        End::Values(_) => {}
        other => bail!("a process of the host ended by {other:?}"),
    }
    Ok(match found.as_slice() {
        [] => Outcome::Blocked(format!(
            "{KILLS} kills, at random after {moments:?} ms: all pages back, the secret gone"
        )),
        [first, ..] => Outcome::Succeeded(format!("the secret is left in RAM, first at {first:#x}")),
    })
}
