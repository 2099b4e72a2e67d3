//! The kernel module's device.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use hyp_abi::PAGE_SIZE;
use hyp_abi::ffa::error::DENIED;
use hyp_abi::manifest::{PRIVATE_END, layout};
use hyp_abi::service::{LOG_SIZE, MEASUREMENT_SIZE, run_exit};
use hyp_abi::stats::{PartitionStats, SystemStats};
use nix::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::error::{Code, Error, GIVE_PRIVATE, Result};
use crate::machine::{CallError, Contents, Exit, Machine, Measured};
use crate::sys::{self, Command, SessionMap};
use crate::virtio::block::Block;
use crate::virtio::wire::Wire;
use crate::virtio::{self, Devices};

/// FLEXSERVE_API_VERSION that this program knows.
const API_VERSION: u64 = 1;
/// Steps of a measurement between two reports of progress: 8 MiB.
const MEASURE_STEPS: u64 = 64;
/// FLEXSERVE_EXIT_SLICE.
const EXIT_SLICE: u64 = 0x100;

/// Versions, limits and the module's counters.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// FF-A version, major << 16 | minor.
    pub ffa_version: u64,
    /// Version of the vendor service, major << 16 | minor.
    pub service_version: u64,
    /// [`hyp_abi::service::INFO_FAULT_KNOBS`].
    pub service_flags: u64,
    /// Most partitions at a time.
    pub partition_limit: u64,
    /// Ticks of the system counter per second.
    pub ticks_per_second: u64,
    /// Partitions of this host.
    pub partitions: u64,
    /// Pages that partitions hold.
    pub pages_held: u64,
    /// Pages that page tables hold.
    pub tables_held: u64,
    /// Pages that did not come back: a defect if not 0.
    pub pages_leaked: u64,
}

/// An open `/dev/flexserve`: the life of at most one partition.
#[derive(Debug)]
pub struct Device {
    file: File,
    disks: Vec<Disk>,
}

/// A file that the partition sees as a block device.
#[derive(Debug)]
struct Disk {
    slot: usize,
    file: File,
    read_only: bool,
}

impl Device {
    /// Opens the device.
    ///
    /// # Errors
    /// Code 4 when there is none, because this Linux does not run under the hypervisor; 2 without the right to open it.
    pub fn open(path: &Path) -> Result<Self> {
        let open = File::options().read(true).write(true).open(path);
        let file = open.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::new(
                Code::Boot,
                format!("no hypervisor: {} does not exist", path.display()),
                "the host's set-up is at",
                "boot with `cargo xtask run`; the kernel's log says why flexserve.ko was not loaded",
            ),
            io::ErrorKind::PermissionDenied => {
                Error::usage(format!("{}: {error}", path.display()), "run it as root")
            }
            _ => Error::new(
                Code::Boot,
                format!("{}: {error}", path.display()),
                "the host's",
                "see the kernel's log",
            ),
        })?;
        let device = Device { file, disks: Vec::new() };
        let version = device.call(Command::Info)?[0];
        if version != API_VERSION {
            return Err(Error::new(
                Code::Boot,
                format!("flexserve.ko has interface version {version}, this program needs {API_VERSION}"),
                "the host's set-up is at",
                "build both from the same checkout",
            ));
        }
        Ok(device)
    }

    /// Asks for versions, limits and the module's counters.
    ///
    /// # Errors
    /// EBUSY while another thread changes the partition of this file.
    pub fn info(&self) -> std::result::Result<Info, CallError> {
        let out = self.call(Command::Info)?;
        Ok(Info {
            ffa_version: out[1],
            service_version: out[2],
            service_flags: out[3],
            partition_limit: out[4],
            ticks_per_second: out[5],
            partitions: out[6],
            pages_held: out[7],
            tables_held: out[8],
            pages_leaked: out[9],
        })
    }

    /// Lets the partition have a file as a block device, in this slot. Its size stays what it is when the session begins.
    pub fn add_disk(&mut self, slot: usize, file: File, read_only: bool) {
        self.disks.push(Disk { slot, file, read_only });
    }

    /// Maps the session pages of a partition that has the probe's rings, at this IPA.
    ///
    /// # Errors
    /// The module's.
    pub fn map_session(&self, ipa: u64) -> std::result::Result<SessionMap, CallError> {
        SessionMap::new(self.file.as_fd(), ipa)
    }

    /// Maps the virtio pages of the partition, which were given mappable. It is not destroyed before they are unmapped.
    ///
    /// # Errors
    /// Code 5 if they were not given.
    pub fn map_virtio(&self) -> Result<virtio::Memory> {
        let file = self.file.try_clone();
        let file = file.map_err(|error| Error::protocol(format!("the virtio pages: {error}")))?;
        virtio::map(file, layout::VIRTIO)
    }

    fn call(&self, command: Command<'_>) -> std::result::Result<[u64; sys::OUTPUTS], CallError> {
        sys::call(self.file.as_fd(), command)
    }

    /// What a partition logged from a position on, and the position of the first byte of it.
    ///
    /// # Errors
    /// The hypervisor's: there is no such partition.
    pub fn log(&self, id: u16, position: u64) -> std::result::Result<(Vec<u8>, u64), CallError> {
        let mut bytes = vec![0; LOG_SIZE];
        let out = self.call(Command::Log { id, position, buffer: &mut bytes })?;
        bytes.truncate(usize::try_from(out[0]).unwrap_or(usize::MAX));
        Ok((bytes, out[1]))
    }

    fn stats<T: FromBytes + IntoBytes + Immutable>(&self, id: u16) -> std::result::Result<T, CallError> {
        let mut stats = T::new_zeroed();
        let written = self.call(Command::Stats { id, buffer: stats.as_mut_bytes() })?[0];
        if written != size_of::<T>() as u64 {
            return Err(CallError { call: "STATS", errno: Errno::EPROTO, status: 0, detail: written });
        }
        Ok(stats)
    }
}

impl Machine for Device {
    type Line = Wire;

    fn create(&self, manifest: &[u8]) -> std::result::Result<u16, CallError> {
        Ok(self.call(Command::Create { manifest })?[0] as u16)
    }

    fn give(&self, ipa: u64, contents: Contents<'_>, mappable: bool) -> std::result::Result<(), CallError> {
        let (command, size) = match contents {
            Contents::Zero(pages) => (Command::GiveZero { ipa, pages, mappable }, pages * PAGE_SIZE),
            Contents::Bytes(bytes) => (Command::GiveBytes { ipa, bytes, mappable }, bytes.len() as u64),
        };
        let end = PRIVATE_END.min(ipa.saturating_add(size));
        self.call(command).map(drop).map_err(|error| match error {
            // The hypervisor names one of the addresses below 4 GiB: there is no secure RAM for them.
            CallError { status: DENIED, detail, .. } if (ipa..end).contains(&detail) => {
                CallError { call: GIVE_PRIVATE, ..error }
            }
            error => error,
        })
    }

    fn measure(&self) -> std::result::Result<Measured, CallError> {
        let out = self.call(Command::Measure { steps: MEASURE_STEPS })?;
        if out[6] > 0 {
            return Ok(Measured::Left(out[6]));
        }
        let mut measurement = [0; MEASUREMENT_SIZE];
        measurement.copy_from_slice(&out.as_bytes()[..MEASUREMENT_SIZE]);
        Ok(Measured::Whole(measurement))
    }

    fn start(&self) -> std::result::Result<(), CallError> {
        self.call(Command::Start).map(drop)
    }

    fn run(&self, vcpu: u32, nanoseconds: u64) -> std::result::Result<Exit, CallError> {
        match self.call(Command::Run { vcpu, nanoseconds }) {
            Ok(out) => Ok(exit(&out)),
            // A signal that this thread handles; the caller's loop comes back.
            Err(CallError { errno: Errno::EINTR, .. }) => Ok(Exit::Slice),
            Err(error) => Err(error),
        }
    }

    fn stop(&self) -> std::result::Result<(), CallError> {
        self.call(Command::Stop).map(drop)
    }

    fn recall(&self, ipa: u64, pages: u64) -> std::result::Result<u64, CallError> {
        Ok(self.call(Command::Recall { ipa, pages })?[0])
    }

    fn destroy(&self) -> std::result::Result<u64, CallError> {
        Ok(self.call(Command::Destroy)?[0])
    }

    fn system_stats(&self) -> std::result::Result<SystemStats, CallError> {
        self.stats(0)
    }

    fn partition_stats(&self, id: u16) -> std::result::Result<PartitionStats, CallError> {
        self.stats(id)
    }

    fn connect(&self) -> Result<Wire> {
        let mut devices = Devices::new(self.map_virtio()?);
        for disk in &self.disks {
            let block = disk.file.try_clone().and_then(|file| Block::new(file, disk.read_only));
            let block = block.map_err(|error| {
                Error::usage(format!("a file of a block device: {error}"), "see to the host's files")
            })?;
            devices.add(disk.slot, block);
        }
        Ok(Wire::new(devices))
    }
}

fn exit(out: &[u64; sys::OUTPUTS]) -> Exit {
    match out[0] {
        run_exit::KICK => Exit::Kick,
        run_exit::TIMER => Exit::Sleep,
        run_exit::WAITING => Exit::Waiting,
        run_exit::FINISHED => Exit::Finished(out[1]),
        run_exit::CRASHED => Exit::Crashed(out[1], [out[2], out[3]]),
        run_exit::STOPPED => Exit::Stopped,
        EXIT_SLICE => Exit::Slice,
        other => Exit::Unknown(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_means_no_hypervisor() {
        let error = Device::open(Path::new("/nonexistent/flexserve")).unwrap_err();
        assert_eq!(error.code, Code::Boot);
        assert!(error.to_string().starts_with("no hypervisor: "), "{error}");
    }

    #[test]
    fn another_device_is_refused() {
        let error = Device::open(Path::new("/dev/null")).unwrap_err();
        assert_eq!(error.code, Code::Partition);
    }

    #[test]
    fn exits_carry_their_details() {
        let mut out = [0, 3, 0x1000, 9, 0, 0, 0, 0, 0, 0];
        let reasons = [
            (run_exit::KICK, Exit::Kick),
            (run_exit::TIMER, Exit::Sleep),
            (run_exit::WAITING, Exit::Waiting),
            (run_exit::FINISHED, Exit::Finished(3)),
            (run_exit::CRASHED, Exit::Crashed(3, [0x1000, 9])),
            (run_exit::STOPPED, Exit::Stopped),
            (EXIT_SLICE, Exit::Slice),
            (run_exit::INTERRUPT, Exit::Unknown(0)),
            (77, Exit::Unknown(77)),
        ];
        for (reason, expected) in reasons {
            out[0] = reason;
            assert_eq!(exit(&out), expected);
        }
    }
}
