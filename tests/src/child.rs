//! Processes that may not survive what they do: each attempt at forbidden memory is one.
//!
//! The suite runs itself again with `child` and a task. A child prints values, one a line in hexadecimal, and ends with 0.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use flexserve::device::Device;
use flexserve::image::Image;
use flexserve::machine::{Contents, Exit, Machine, Measured};
use guest_abi::session::probe::{self, Command as Act, PATTERN_SIZE, Report};
use guest_abi::session::{MAX_FRAME, SESSION_PAGES};
use hyp_abi::PAGE_SIZE;
use hyp_abi::manifest::layout;
use nix::sys::signal::Signal;
use zerocopy::{FromBytes, IntoBytes};

use crate::host::{Host, open_attack_module};
use crate::partition::{PROBE_PATH, Partition};
use crate::secret::Secret;
use crate::sys::{self, Mapping};

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// In good order, with these values.
    Values(Vec<u64>),
    /// By this signal.
    Killed(Signal),
    /// With this exit code.
    Failed(i32),
}

/// One access of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Physical address.
    pub address: u64,
    /// How the kernel gets there.
    pub mapping: Mapping,
    /// What it does.
    pub act: sys::Act,
}

impl Access {
    /// Reads 8 bytes through the linear map.
    pub fn read(address: u64) -> Self {
        Self { address, mapping: Mapping::Linear, act: sys::Act::Read(8) }
    }

    /// Writes to a device.
    pub fn device_write(address: u64, width: u32, value: u64) -> Self {
        Self { address, mapping: Mapping::Device, act: sys::Act::Write(width, value) }
    }

    /// Reads 4 bytes of a device.
    pub fn device_read(address: u64) -> Self {
        Self { address, mapping: Mapping::Device, act: sys::Act::Read(4) }
    }

    fn to_argument(self) -> String {
        let mapping = self.mapping as u32;
        let (act, width, value) = match self.act {
            sys::Act::Read(width) => (0, width, 0),
            sys::Act::Write(width, value) => (1, width, value),
        };
        format!("{mapping}:{act}:{width}:{:x}:{value:x}", self.address)
    }

    fn from_argument(text: &str) -> Result<Self> {
        let fields: Vec<u64> = text
            .split(':')
            .map(|field| u64::from_str_radix(field, 16).context("a bad access"))
            .collect::<Result<_>>()?;
        let &[mapping, act, width, address, value] = fields.as_slice() else { bail!("a bad access") };
        let mapping = [Mapping::Linear, Mapping::Cached, Mapping::Device]
            .into_iter()
            .find(|known| *known as u64 == mapping)
            .context("a bad mapping")?;
        let act = match act {
            0 => sys::Act::Read(width as u32),
            1 => sys::Act::Write(width as u32, value),
            _ => bail!("a bad act"),
        };
        Ok(Self { address, mapping, act })
    }
}

fn command(task: &str, arguments: &[String]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("child").arg(task).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn run(task: &str, arguments: &[String]) -> Result<End> {
    let output = command(task, arguments).output().context("a child does not start")?;
    if let Some(signal) = output.status.signal() {
        return Ok(End::Killed(Signal::try_from(signal)?));
    }
    match output.status.code() {
        Some(0) => {
            let text = String::from_utf8(output.stdout)?;
            let values = text.lines().map(|line| u64::from_str_radix(line, 16).context("a child's output"));
            Ok(End::Values(values.collect::<Result<_>>()?))
        }
        code => Ok(End::Failed(code.unwrap_or(-1))),
    }
}

/// Has the kernel make accesses, in order; the values are those of the reads.
pub fn access(accesses: &[Access]) -> Result<End> {
    run("access", &accesses.iter().map(|access| access.to_argument()).collect::<Vec<_>>())
}

/// Has the kernel call its page of code; the value is what it returned.
pub fn call_code_page() -> Result<End> {
    run("call", &[])
}

/// Has a process map a page and read its first word.
pub fn map(address: u64) -> Result<End> {
    run("map", &[format!("{address:x}")])
}

/// Has a process look whether pages are the host's and zero. The values are the addresses of those that are not zero.
pub fn not_zero(pages: &[u64]) -> Result<End> {
    run("zero", &pages.iter().map(|page| format!("{page:x}")).collect::<Vec<_>>())
}

/// Has a process use so much memory; proof that Linux lives.
pub fn use_memory(mebibytes: u64) -> Result<End> {
    run("memory", &[format!("{mebibytes:x}")])
}

/// Has the kernel read a system register by its number in `kmod/cpu_state.c`; the value is what it reads.
pub fn read_register(number: u32) -> Result<End> {
    run("register", &[format!("{number:x}")])
}

/// Has the kernel write a system register.
pub fn write_register(number: u32, value: u64) -> Result<End> {
    run("register", &[format!("{number:x}"), format!("{value:x}")])
}

/// Has a process start streaming mode (SME).
pub fn start_streaming() -> Result<End> {
    run("streaming", &[])
}

/// A process that owns a running partition with a secret in it. It must be killed.
pub struct Owner {
    child: Child,
    /// Physical addresses of two of its pages of heap.
    pub pages: [u64; 2],
}

impl Owner {
    /// Starts it. It uses the suite's mailbox until this returns.
    pub fn start(host: &Host, secret: &Secret) -> Result<Self> {
        let arguments = [secret.hex(), format!("{:x}", host.mailbox_address())];
        let mut child = command("own", &arguments).spawn().context("a child does not start")?;
        let mut lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        let mut next = || -> Result<u64> {
            let line = lines.next().context("the owner ended early")??;
            u64::from_str_radix(&line, 16).context("the owner's output")
        };
        let pages = [next()?, next()?];
        Ok(Self { child, pages })
    }

    /// Kills it.
    pub fn kill(mut self) -> Result<()> {
        kill(&mut self.child)
    }
}

/// A process that runs a partition through the product's module until it is killed.
pub struct Vmm(Child);

impl Vmm {
    /// Starts it.
    pub fn start(secret: &Secret) -> Result<Self> {
        command("vmm", &[secret.hex()]).spawn().context("a child does not start").map(Self)
    }

    /// Kills it, wherever it is.
    pub fn kill(mut self) -> Result<()> {
        kill(&mut self.0)
    }

    /// Waits until the secret is in the partition's heap, which it keeps running.
    pub fn wait_until_filled(&mut self) -> Result<()> {
        let mut line = String::new();
        let pipe = self.0.stdout.as_mut().context("no pipe")?;
        BufReader::new(pipe).read_line(&mut line)?;
        ensure!(line == "0\n", "the VMM ended early");
        Ok(())
    }
}

fn kill(child: &mut Child) -> Result<()> {
    child.kill()?;
    let status = child.wait()?;
    ensure!(status.signal() == Some(Signal::SIGKILL as i32), "a child ended before it was killed: {status}");
    Ok(())
}

/// A child's main program.
pub fn main(arguments: &[String]) -> Result<()> {
    let (task, arguments) = arguments.split_first().context("no task")?;
    let number = |text: &String| u64::from_str_radix(text, 16).context("a bad number");
    match task.as_str() {
        "access" => {
            let module = open_attack_module()?;
            for argument in arguments {
                let Access { address, mapping, act } = Access::from_argument(argument)?;
                let value = module.access(address, mapping, act)?;
                if matches!(act, sys::Act::Read(_)) {
                    say(&[value])?;
                }
            }
            Ok(())
        }
        "call" => say(&[open_attack_module()?.call_code_page()?]),
        "map" => {
            let window = open_attack_module()?.map(number(arguments.first().context("no page")?)?, 1)?;
            say(&[window.word(0)])
        }
        "zero" => {
            let module = open_attack_module()?;
            for argument in arguments {
                let page = number(argument)?;
                let window = module.map(page, 1)?;
                if (0..PAGE_SIZE as usize).step_by(8).any(|at| window.word(at) != 0) {
                    say(&[page])?;
                }
            }
            Ok(())
        }
        "register" => {
            let module = open_attack_module()?;
            let which = number(arguments.first().context("no register")?)? as u32;
            match arguments.get(1) {
                Some(value) => Ok(module.write_register(which, number(value)?)?),
                None => say(&[module.read_register(which)?]),
            }
        }
        "streaming" => {
            crate::syscall::start_streaming();
            Ok(())
        }
        "memory" => {
            let bytes = (number(arguments.first().context("no size")?)? << 20) as usize;
            let mut memory = vec![0u8; bytes];
            for (page, chunk) in memory.chunks_mut(PAGE_SIZE as usize).enumerate() {
                chunk.fill(page as u8 | 1);
            }
            let sound = memory
                .chunks(PAGE_SIZE as usize)
                .enumerate()
                .all(|(page, chunk)| chunk.iter().all(|byte| *byte == page as u8 | 1));
            ensure!(sound, "memory changed under its owner");
            Ok(())
        }
        "own" => {
            let mailbox = number(arguments.get(1).context("no mailbox")?)?;
            own(&Secret::from_hex(&arguments[0])?, mailbox)
        }
        "vmm" => vmm(&Secret::from_hex(arguments.first().context("no secret")?)?),
        other => bail!("no task {other}"),
    }
}

fn say(values: &[u64]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for value in values {
        writeln!(out, "{value:x}")?;
    }
    Ok(out.flush()?)
}

fn own(secret: &Secret, mailbox: u64) -> Result<()> {
    let host = Host::with_shared_mailbox(mailbox)?;
    let image = Image::load(PROBE_PATH.as_ref())?;
    let partition = Partition::load(&host, &image, Some(secret))?;
    say(&[partition.page(layout::HEAP)?, partition.heap_page()?])?;
    loop {
        std::thread::park();
    }
}

/// Pages of heap of the VMM's partition: enough that a kill often hits the middle of something.
const VMM_HEAP_PAGES: u64 = 2048;
/// What the VMM's partition logs.
pub const VMM_LOGS: &[u8; PATTERN_SIZE] = b"run by a VMM ...";

fn vmm(secret: &Secret) -> Result<()> {
    let device = Device::open(flexserve::DEVICE_PATH.as_ref())?;
    let image = Image::load(PROBE_PATH.as_ref())?;
    let id = device.create(image.manifest_bytes()).map_err(flexserve::error::Error::from)?;
    let failed = flexserve::error::Error::from;
    for pages in image.pages() {
        device.give(pages.ipa, Contents::Bytes(&pages.bytes), false).map_err(failed)?;
    }
    device.give(layout::HEAP, Contents::Zero(VMM_HEAP_PAGES), false).map_err(failed)?;
    device.give(layout::SESSION, Contents::Zero(SESSION_PAGES), true).map_err(failed)?;
    while let Measured::Left(_) = device.measure().map_err(failed)? {}
    device.start().map_err(failed)?;
    let mut session = None;
    let mut buffer = vec![0; MAX_FRAME];
    let (mut logged, mut filled) = (false, false);
    loop {
        match device.run(0, 1_000_000_000).map_err(failed)? {
            Exit::Kick | Exit::Waiting | Exit::Sleep | Exit::Slice => {}
            other => bail!("the partition ended: {other:?}"),
        }
        if session.is_none() && device.partition_stats(id).map_err(failed)?.pages_shared >= SESSION_PAGES {
            session = Some(device.map_session(layout::SESSION).map_err(failed)?);
        }
        let Some(session) = &session else { continue };
        let Ok(Some((kind, length))) = session.to_host.receive(&mut buffer) else { continue };
        if kind == probe::RESULT {
            let report = Report::read_from_bytes(&buffer[..length]).ok().context("a foreign report")?;
            ensure!(
                report.status == 0 && (report.act != probe::CHECK_HEAP || report.values[1] == 0),
                "{report:?}"
            );
            logged = true;
            if !filled && report.act == probe::FILL_HEAP {
                filled = true;
                say(&[0])?;
            }
        }
        let (next, pattern) = match (logged, filled) {
            (false, _) => (probe::LOG, VMM_LOGS),
            (true, false) => (probe::FILL_HEAP, secret.complement()),
            (true, true) => (probe::CHECK_HEAP, secret.complement()),
        };
        let act = Act { args: [u64::MAX, 0, 0, 0] };
        ensure!(session.to_partition.send(next, act.as_bytes(), pattern) == Ok(true), "the ring is full");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_survive_the_command_line() {
        for access in [
            Access::read(0x4000_1000),
            Access::device_write(0x902_0010, 8, u64::MAX),
            Access::device_read(0),
            Access { address: 7, mapping: Mapping::Cached, act: sys::Act::Write(1, 9) },
        ] {
            let back = Access::from_argument(&access.to_argument()).unwrap();
            assert_eq!(back.to_argument(), access.to_argument());
        }
        assert!(Access::from_argument("0:0:8").is_err() && Access::from_argument("9:0:8:0:0").is_err());
    }
}
