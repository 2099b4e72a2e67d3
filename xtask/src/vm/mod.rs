//! Starts QEMU, reads its consoles, and makes sure that it ends.

pub mod console;
pub mod event;
mod npu;
pub mod outside;
pub mod qmp;
mod starvation;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::failure::{Code, Failure};
use crate::machine::Machine;
use crate::process;
use crate::setup::QEMU;
use console::{Console, Item};
use starvation::Starvation;

/// A machine that prints nothing for this long has hung; time in which this computer did not let it run is not counted.
/// Emulated machines are slow, so there is no limit on the whole run.
pub const SILENCE: Duration = Duration::from_secs(60);

/// Where the bundle lies in RAM, with firmware or without.
pub const BUNDLE_BASE: u64 = 0x4020_0000;

/// What the machine boots.
#[derive(Clone, Debug)]
pub enum Boot {
    /// A boot bundle, entered at EL2.
    Bundle(PathBuf),
    /// Flash, entered at EL3, and the bundle that it enters at EL2.
    Firmware {
        /// Firmware and SPMC.
        flash: PathBuf,
        /// Boot bundle.
        bundle: PathBuf,
    },
    /// A kernel and initrd, loaded by QEMU.
    Bare {
        /// arm64 Image.
        kernel: PathBuf,
        /// Initramfs.
        initrd: PathBuf,
    },
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// What it boots.
    pub boot: Boot,
    /// Folder for logs and sockets.
    pub dir: &'a Path,
    /// Wait for a debugger on this TCP port.
    pub gdb_port: Option<u16>,
    /// The program of the NPU's model, if the machine has an NPU.
    pub npu: Option<PathBuf>,
    /// Whether a reset ends the run; a test of resets says no.
    pub reset_ends: bool,
}

/// What a machine says next.
#[derive(Debug)]
pub enum Output {
    /// One structured event.
    Event(event::Event),
    /// One line of the host's console; already in the log.
    Line(String),
    /// QEMU ended; true if it ended in good order.
    Ended(bool),
}

/// How long [`Vm::output`] waits before it looks at the trusted log.
const PATIENCE: Duration = Duration::from_millis(500);

/// Watches for silence.
pub struct Watch {
    last_output: Instant,
    trusted_size: u64,
    starvation: Starvation,
}

impl Watch {
    /// There was output.
    pub fn reset(&mut self) {
        self.last_output = Instant::now();
        self.starvation.reset();
    }

    /// There was none on the host's console, and the trusted log has this size.
    fn is_over(&mut self, trusted_size: u64) -> bool {
        if trusted_size != self.trusted_size {
            self.trusted_size = trusted_size;
            self.reset();
        }
        self.last_output.elapsed().saturating_sub(self.starvation.waited()) >= SILENCE
    }
}

/// A running machine. Dropping it ends QEMU.
pub struct Vm {
    child: Child,
    /// Ends with the machine.
    _npu: Option<npu::Model>,
    stdin: Option<ChildStdin>,
    chunks: Receiver<Vec<u8>>,
    console: Console,
    log: File,
    waiting: std::collections::VecDeque<Item>,
    dir: PathBuf,
    started: Instant,
    debugged: bool,
}

/// QEMU's arguments for a launch; sockets and logs are relative to its folder.
pub fn arguments(launch: &Launch<'_>) -> Vec<String> {
    let machine = launch.machine;
    let mut options = machine.machine.join(",");
    options.push_str(",memory-backend=ram");
    let mut args: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none"].iter().map(|arg| (*arg).to_owned()).collect();
    let mut add = |name: &str, value: String| args.extend([name.to_owned(), value]);
    add("-machine", options);
    add("-cpu", machine.cpu.clone());
    add("-smp", machine.smp.to_string());
    add("-m", machine.memory.clone());
    // Shared memory that other processes can open, so that a test reads RAM from outside the machine.
    add("-object", format!("memory-backend-memfd,id=ram,size={},share=on", machine.memory));
    add("-chardev", "stdio,id=uart0,signal=off".into());
    add("-serial", "chardev:uart0".into());
    add("-chardev", "file,id=uart1,path=trusted.log".into());
    add("-serial", "chardev:uart1".into());
    add("-qmp", "unix:qmp.sock,server=on,wait=off".into());
    match &launch.boot {
        Boot::Bundle(path) => add("-kernel", path.display().to_string()),
        Boot::Firmware { flash, bundle } => {
            add("-bios", flash.display().to_string());
            let place = format!("addr={BUNDLE_BASE:#x},force-raw=on");
            add("-device", format!("loader,file={},{place}", bundle.display()));
        }
        Boot::Bare { kernel, initrd } => {
            add("-kernel", kernel.display().to_string());
            add("-initrd", initrd.display().to_string());
            add("-append", machine.command_line.clone());
        }
    }
    if machine.icount {
        add("-icount", "shift=0,sleep=off".into());
    }
    if let Some(port) = launch.gdb_port {
        add("-gdb", format!("tcp:127.0.0.1:{port}"));
        args.push("-S".into());
    }
    if launch.reset_ends {
        args.push("-no-reboot".into());
    }
    args.extend(machine.arguments.iter().cloned());
    // Behind a bridge of the machine's, maybe.
    if launch.npu.is_some() {
        args.extend(npu::arguments(machine));
    }
    args
}

impl Vm {
    /// Starts QEMU.
    pub fn start(launch: &Launch<'_>) -> Result<Self> {
        let log_path = launch.dir.join("serial.log");
        let log = File::create(&log_path).with_context(|| format!("cannot create {}", log_path.display()))?;
        let errors = File::create(launch.dir.join("qemu.log"))?;
        let start = |program: &Path| npu::Model::start(program, launch.machine, launch.dir);
        let npu = launch.npu.as_deref().map(start).transpose()?;
        // setpriv: QEMU must not outlive this program, however that ends.
        let mut command = process::command("setpriv");
        command.args(["--pdeathsig", "KILL", "--", QEMU]).args(arguments(launch));
        fs::write(launch.dir.join("qemu.sh"), format!("{}\n", process::shown(&command)))?;
        command.current_dir(launch.dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        // Ctrl-C is for this program, which decides what becomes of the machine.
        command.process_group(0);
        let started = Instant::now();
        let mut child = command.spawn().map_err(|error| {
            Failure::setup(format!("{QEMU} does not start: {error}"), "run `cargo xtask setup`")
        })?;
        let stdin = child.stdin.take();
        let mut stdout = child.stdout.take().context("QEMU has no standard output")?;
        // Bounded: a machine that floods its console waits for us.
        let (sender, chunks) = sync_channel(64);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            _npu: npu,
            stdin,
            chunks,
            console: Console::default(),
            log,
            waiting: Default::default(),
            dir: launch.dir.to_path_buf(),
            started,
            debugged: launch.gdb_port.is_some(),
        })
    }

    /// Waits until QEMU has read its files and returns its control socket. Fails if QEMU refuses its arguments.
    pub fn loaded(&mut self) -> Result<qmp::Qmp> {
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for QEMU")? {
                let reason = Self::log_tail(&self.dir, "qemu.log", 1).join(" ");
                return Err(Failure::usage(
                    format!("QEMU does not run this machine ({status}): {reason}"),
                    "check --cpu, --smp and --mem, and the definition in qemu-configs/",
                ));
            }
            match qmp::Qmp::connect(&self.dir) {
                Ok(qmp) => return Ok(qmp),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The folder with its logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// QEMU's process id.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next output. Fails when the machine has been silent on both serial ports for too long.
    pub fn output(&mut self) -> Result<Output> {
        let mut watch = self.watch();
        loop {
            if let Some(output) = self.output_within(PATIENCE, Some(&mut watch))? {
                return Ok(output);
            }
        }
    }

    /// Starts to watch for silence.
    pub fn watch(&self) -> Watch {
        Watch {
            last_output: Instant::now(),
            trusted_size: self.trusted_size(),
            starvation: Starvation::new(self.child.id()),
        }
    }

    /// Waits that long for the next output. Without a `watch`, the machine may be silent for ever.
    pub fn output_within(&mut self, time: Duration, watch: Option<&mut Watch>) -> Result<Option<Output>> {
        if self.waiting.is_empty() {
            match self.chunks.recv_timeout(time) {
                Ok(chunk) => {
                    self.waiting.extend(self.console.feed(&chunk));
                    if let Some(watch) = watch {
                        watch.reset();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let size = self.trusted_size();
                    if watch.is_some_and(|watch| watch.is_over(size)) && !self.debugged {
                        return Err(self.silent());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.waiting.extend(self.console.finish());
                    if self.waiting.is_empty() {
                        let status = self.child.wait().context("waiting for QEMU")?;
                        return Ok(Some(Output::Ended(status.success())));
                    }
                }
            }
        }
        self.waiting.pop_front().map(|item| self.deliver(item)).transpose()
    }

    fn deliver(&mut self, item: Item) -> Result<Output> {
        match item {
            Item::Line(line) => {
                writeln!(self.log, "{line}").context("cannot write the serial log")?;
                Ok(Output::Line(line))
            }
            Item::Record(value) => Ok(Output::Event(event::Event::from_json(value))),
        }
    }

    fn trusted_size(&self) -> u64 {
        fs::metadata(self.dir.join("trusted.log")).map(|data| data.len()).unwrap_or(0)
    }

    fn silent(&mut self) -> anyhow::Error {
        self.stop();
        Failure::new(
            Code::Boot,
            format!("the machine was silent for {} s", SILENCE.as_secs()),
            "the hypervisor or the host kernel",
            format!("read {}", self.dir.join("serial.log").display()),
        )
    }

    /// Types a line on the host's console.
    pub fn send_line(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the machine's console is closed")?;
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).context("cannot type on the machine's console")
    }

    /// Ends QEMU now.
    pub fn stop(&mut self) {
        // Both fail only when QEMU has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The last lines of a log file of this machine, for an error report.
    pub fn log_tail(dir: &Path, name: &str, count: usize) -> Vec<String> {
        let text = fs::read(dir.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop();
    }
}
