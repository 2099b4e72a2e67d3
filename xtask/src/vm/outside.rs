//! What tests inside the machine ask of the outside: verdicts that no code in the machine can influence.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::qmp::Qmp;
use super::{SILENCE, Vm};

/// Where RAM starts on the `virt` machine.
pub const RAM_BASE: u64 = 0x4000_0000;
/// The most bytes that one request names.
const MAX_BYTES: usize = 4096;
/// The most bytes that one request reads: the answer is one line of the host's terminal, which holds 4095 characters.
const MAX_READ: usize = 1024;
/// The most places that one search reports.
const MAX_HITS: usize = 64;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum Request {
    /// Finds bytes anywhere in RAM. Answers `{"hits":[physical addresses]}`.
    Search {
        /// What to find, in hexadecimal. XORed with 0xff, so that the request itself, which passes through RAM, is no hit.
        bytes: String,
    },
    /// Reads RAM. Answers `{"bytes":hexadecimal}`.
    Read {
        /// Physical address.
        address: u64,
        /// Number of bytes; at most 1024 are read.
        size: usize,
    },
    /// Writes RAM behind the machine's back. Answers `{}`.
    Write {
        /// Physical address.
        address: u64,
        /// Hexadecimal.
        bytes: String,
    },
    /// Looks for text in the trusted log. Answers `{"found":boolean,"count":number of lines with it}`.
    Log {
        /// The text.
        text: String,
    },
    /// How often the host has booted. Answers `{"boot":number from 1}`.
    Boot,
    /// The machine is about to end in this way: what bytes are left in RAM then is the verdict of a test. Answers `{}`
    /// at once.
    Outlive {
        /// How it ends.
        how: Ending,
        /// The test.
        test: String,
        /// What to find, as for SEARCH.
        bytes: String,
        /// Whether the test passes when they are found, or when they are not.
        found: bool,
    },
    /// Resets the machine. There is no answer.
    Reset,
}

/// How a machine ends, and where RAM is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// The outside resets it, as a watchdog would; searched when the hypervisor has passed its scrub at boot.
    Watchdog,
    /// The host resets it by PSCI; searched when firmware got the call.
    Psci,
    /// The hypervisor panics; searched when it has stopped.
    Panic,
}

impl Ending {
    /// What the trusted log says then.
    fn marker(self) -> &'static str {
        match self {
            Self::Watchdog => "host stage 2:",
            Self::Psci => "partitions scrubbed for",
            Self::Panic => "partitions scrubbed; stopped",
        }
    }
}

/// The view from outside.
pub struct Outside {
    memory: File,
    size: u64,
    qmp: Qmp,
    trusted_log: PathBuf,
}

impl Outside {
    /// Opens the machine's RAM, which stays readable after the machine has ended.
    pub fn open(vm: &Vm, qmp: Qmp) -> Result<Self> {
        let memory = find_memory(vm.process_id())?;
        let size = memory.metadata()?.len();
        Ok(Self { memory, size, qmp, trusted_log: vm.dir().join("trusted.log") })
    }

    /// Does what a test asked and returns the answer.
    pub fn answer(&mut self, request: &Request) -> Result<Value> {
        match request {
            Request::Search { bytes } => {
                let pattern: Vec<u8> = from_hex(bytes)?.into_iter().map(|byte| byte ^ 0xff).collect();
                Ok(json!({"hits": self.search(&pattern)?}))
            }
            Request::Read { address, size } => {
                let mut bytes = vec![0; (*size).min(MAX_READ)];
                self.memory.read_exact_at(&mut bytes, self.offset(*address)?).context("cannot read RAM")?;
                Ok(json!({"bytes": to_hex(&bytes)}))
            }
            Request::Write { address, bytes } => {
                self.memory
                    .write_all_at(&from_hex(bytes)?, self.offset(*address)?)
                    .context("cannot write RAM")?;
                Ok(json!({}))
            }
            Request::Log { text } => {
                let count = self.log_after(0)?.lines().filter(|line| line.contains(text)).count();
                Ok(json!({"found": count > 0, "count": count}))
            }
            Request::Boot | Request::Outlive { .. } => bail!("this is no suite of several boots"),
            Request::Reset => {
                self.qmp.execute("system_reset", json!({}))?;
                Ok(json!({}))
            }
        }
    }

    /// What the trusted log says from a byte on.
    fn log_after(&self, start: usize) -> Result<String> {
        let log = fs::read(&self.trusted_log).context("cannot read the trusted log")?;
        Ok(String::from_utf8_lossy(log.get(start..).unwrap_or_default()).into_owned())
    }

    /// Ends the machine, or lets it end after `tell` told it that all is ready. Returns where `bytes` (as for SEARCH) are
    /// then. The machine is stopped.
    pub fn outlive(
        &mut self,
        how: Ending,
        bytes: &str,
        tell: impl FnOnce() -> Result<()>,
    ) -> Result<Vec<u64>> {
        let pattern: Vec<u8> = from_hex(bytes)?.into_iter().map(|byte| byte ^ 0xff).collect();
        let start = self.log_after(0)?.len();
        if how == Ending::Psci {
            // A reset would lead to the scrub at boot: what is left before that is what counts.
            self.qmp.execute("set-action", json!({"reboot": "shutdown", "shutdown": "pause"}))?;
        }
        tell()?;
        if how == Ending::Watchdog {
            self.qmp.execute("system_reset", json!({}))?;
        }
        let (mut size, mut last) = (0, Instant::now());
        loop {
            let log = self.log_after(start)?;
            let is_there = log.contains(how.marker());
            if is_there && (how != Ending::Psci || self.is_shut_down()?) {
                break;
            }
            if log.len() != size {
                (size, last) = (log.len(), Instant::now());
            }
            anyhow::ensure!(last.elapsed() < SILENCE, "the trusted log never said \"{}\"", how.marker());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.qmp.execute("stop", json!({}))?;
        self.search_memory(&pattern)
    }

    fn is_shut_down(&mut self) -> Result<bool> {
        Ok(self.qmp.execute("query-status", json!({}))?["status"] == "shutdown")
    }

    /// Lets a machine that ended in this way boot again.
    pub fn restart(&mut self, how: Ending) -> Result<()> {
        // After a watchdog's reset it is on its way already.
        if how != Ending::Watchdog {
            self.qmp.execute("set-action", json!({"reboot": "reset", "shutdown": "poweroff"}))?;
            self.qmp.execute("system_reset", json!({}))?;
        }
        self.qmp.execute("cont", json!({})).map(drop)
    }

    fn offset(&self, address: u64) -> Result<u64> {
        match address.checked_sub(RAM_BASE) {
            Some(offset) if offset < self.size => Ok(offset),
            _ => bail!("{address:#x} is no RAM"),
        }
    }

    /// Finds `pattern` in all of RAM; the machine is stopped meanwhile, so that nothing moves past the search.
    pub fn search(&mut self, pattern: &[u8]) -> Result<Vec<u64>> {
        anyhow::ensure!((8..=MAX_BYTES).contains(&pattern.len()), "a search needs 8 to {MAX_BYTES} bytes");
        // Fails once QEMU has ended; memory no longer changes then.
        let stopped = self.qmp.execute("stop", json!({})).is_ok();
        let result = self.search_memory(pattern);
        if stopped {
            self.qmp.execute("cont", json!({}))?;
        }
        result
    }

    fn search_memory(&self, pattern: &[u8]) -> Result<Vec<u64>> {
        const STEP: usize = 1 << 20;
        let mut hits = Vec::new();
        let mut buffer = vec![0; STEP + pattern.len()];
        let mut at = 0;
        while at < self.size {
            let count = self.memory.read_at(&mut buffer, at).context("cannot read RAM")?;
            let window = &buffer[..count];
            for start in occurrences(window, pattern) {
                if start < STEP && hits.len() < MAX_HITS {
                    hits.push(RAM_BASE + at + start as u64);
                }
            }
            at += STEP as u64;
        }
        Ok(hits)
    }
}

/// Where `pattern` begins in `bytes`.
fn occurrences(bytes: &[u8], pattern: &[u8]) -> Vec<usize> {
    let Some((first, rest)) = pattern.split_first() else { return Vec::new() };
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| byte == first) {
        let start = from + at;
        if bytes[start + 1..].starts_with(rest) {
            found.push(start);
        }
        from = start + 1;
    }
    found
}

/// Opens the memory file that QEMU made for RAM.
fn find_memory(process: u32) -> Result<File> {
    let dir = format!("/proc/{process}/fd");
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {dir}"))? {
        let path = entry?.path();
        let target =
            fs::read_link(&path).map(|target| target.to_string_lossy().into_owned()).unwrap_or_default();
        if target.starts_with("/memfd:memory-backend-memfd") {
            return File::options()
                .read(true)
                .write(true)
                .open(&path)
                .context("cannot open the machine's RAM");
        }
    }
    bail!("QEMU has no RAM file")
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    anyhow::ensure!(
        text.len().is_multiple_of(2) && text.len() <= 2 * MAX_BYTES && text.is_ascii(),
        "bad hexadecimal"
    );
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).context("bad hexadecimal"))
        .collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occurrences_overlap_and_touch_the_ends() {
        assert_eq!(occurrences(b"aaaa", b"aa"), [0, 1, 2]);
        assert_eq!(occurrences(b"xab", b"ab"), [1]);
        assert_eq!(occurrences(b"xa", b"ab"), [0; 0]);
        assert_eq!(occurrences(b"", b"a"), [0; 0]);
    }

    #[test]
    fn hexadecimal_round_trip_and_refusals() {
        assert_eq!(from_hex("00ffA1").unwrap(), [0, 255, 0xa1]);
        assert_eq!(to_hex(&[0, 255, 0xa1]), "00ffa1");
        for bad in ["0", "0g", "é0"] {
            assert!(from_hex(bad).is_err(), "{bad}");
        }
    }
}
