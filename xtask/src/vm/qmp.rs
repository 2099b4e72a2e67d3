//! A client of QEMU's machine protocol (QMP), as far as tests need it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A connection.
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to `qmp.sock` in a machine's folder. QEMU creates it before it runs the machine.
    pub fn connect(dir: &Path) -> Result<Self> {
        // Socket paths are limited to about 100 bytes; through the folder's file descriptor any checkout will do.
        let folder = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
        let path = format!("/proc/self/fd/{}/qmp.sock", folder.as_raw_fd());
        let stream = UnixStream::connect(path).context("cannot connect to QEMU's control socket")?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.message()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns its result.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.stream.get_mut(), "{request}").context("cannot write to QEMU's control socket")?;
        loop {
            let mut message = self.message()?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self.stream.read_line(&mut line).context("cannot read from QEMU's control socket")?;
        anyhow::ensure!(count > 0, "QEMU closed its control socket");
        serde_json::from_str(&line).context("QEMU's control socket spoke no JSON")
    }
}
