//! The NPU as a program of the host's has it: `/dev/flexserve-npu`.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use hyp_abi::service::npu;

use crate::dma::Memory;
use crate::error::{Code, Error, Result};
use crate::machine::CallError;
use crate::sys::{self, Command, Mapping, Registers};

/// Where the module's device is.
pub const NPU_PATH: &str = "/dev/flexserve-npu";

/// Whether there is an NPU.
pub fn is_there() -> bool {
    Path::new(NPU_PATH).exists()
}

/// What the hypervisor says of the NPU (`NPU_STATE` in [`hyp_abi::service::op`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The host holds it.
    pub held: bool,
    /// Somebody else asks for it.
    pub wanted: bool,
    /// How often it changed hands.
    pub generation: u64,
    /// Byte offsets of virtio's structures: common configuration, interrupt status, device configuration, notifications.
    pub offsets: [usize; 4],
    /// Distance of two queues' notification registers.
    pub notify_multiplier: usize,
    /// Bytes of registers.
    pub window_size: usize,
}

impl State {
    fn from_words(words: &[u64]) -> Self {
        let [flags, _, offsets, shape] = *words.first_chunk().unwrap_or(&[0; 4]);
        Self {
            held: flags & npu::HELD != 0,
            wanted: flags & npu::WANTED != 0,
            generation: flags >> npu::GENERATION_SHIFT,
            offsets: [0, 16, 32, 48].map(|shift| (offsets >> shift) as usize & 0xffff),
            notify_multiplier: shape as u32 as usize,
            window_size: (shape >> 32) as usize * hyp_abi::PAGE_SIZE as usize,
        }
    }
}

/// The open device. Closing it resets the NPU, if the host has it, and frees its memory.
#[derive(Debug)]
pub struct HostNpu(File);

impl HostNpu {
    /// Opens it, for one program at a time.
    ///
    /// # Errors
    /// Code 4 where there is none.
    pub fn open() -> Result<Self> {
        let open = File::options().read(true).write(true).open(Path::new(NPU_PATH));
        open.map(Self).map_err(|error| {
            Error::new(
                Code::Boot,
                format!("no NPU: {NPU_PATH}: {error}"),
                "the machine's",
                "boot one with an NPU (`cargo xtask run` without --no-npu), and end other programs that use it",
            )
        })
    }

    fn call(&self, operation: u64) -> std::result::Result<State, CallError> {
        Ok(State::from_words(&sys::call(self.0.as_fd(), Command::Npu { operation })?))
    }

    /// Asks.
    ///
    /// # Errors
    /// The module's.
    pub fn state(&self) -> std::result::Result<State, CallError> {
        self.call(0)
    }

    /// Waits until the host has it.
    ///
    /// # Errors
    /// The module's; EINTR.
    pub fn acquire(&self) -> std::result::Result<State, CallError> {
        self.call(1)
    }

    /// Gives it up.
    ///
    /// # Errors
    /// EACCES: it was taken away before.
    pub fn release(&self) -> std::result::Result<State, CallError> {
        self.call(2)
    }

    /// Allocates memory that the NPU reaches, until the file is closed.
    ///
    /// # Errors
    /// The module's.
    pub fn memory(&self, bytes: u64) -> std::result::Result<Memory, CallError> {
        let [address, offset, ..] = sys::call(self.0.as_fd(), Command::NpuMemory { bytes })?;
        let map = Mapping::new(&self.0, offset, bytes.next_multiple_of(hyp_abi::PAGE_SIZE) as usize, true);
        let map = map.map_err(|errno| CallError { call: "mmap", errno, status: 0, detail: offset })?;
        Ok(Memory::new(map, address))
    }

    /// Maps its registers.
    ///
    /// # Errors
    /// The module's.
    pub fn registers(&self) -> std::result::Result<Registers, CallError> {
        Registers::new(self.0.as_fd(), self.state()?.window_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_apart() {
        let state = State::from_words(&[3 | 7 << 8, 1 << 39, 0x3000_2000_1000_0000, 4 << 32 | 4, 9]);
        let expected = State {
            held: true,
            wanted: true,
            generation: 7,
            offsets: [0, 0x1000, 0x2000, 0x3000],
            notify_multiplier: 4,
            window_size: 0x4000,
        };
        assert_eq!(state, expected);
        assert!(!State::from_words(&[]).held);
    }
}
