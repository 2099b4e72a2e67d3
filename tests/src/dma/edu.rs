//! QEMU's `edu` device (docs/specs/edu.rst): it copies between memory and a buffer of its own, wherever it is told to.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hyp_abi::PAGE_SIZE;

use super::pci::Function;
use crate::host::Host;
use crate::sys::{Registers, Window};

const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const COMMAND: usize = 0x98;
const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;
/// Its buffer, of 4096 bytes.
const BUFFER: u64 = 0x4_0000;
/// A transfer takes 100 ms of the machine's time.
const PATIENCE: Duration = Duration::from_secs(30);

/// The device, and a page of the host's that it may use.
pub struct Edu {
    /// Its configuration space.
    pub function: Function,
    /// Its registers.
    pub registers: Registers,
    address: u64,
    page: Window,
}

impl Edu {
    /// The one on the root bus.
    pub fn first(host: &Host) -> Result<Self> {
        Self::open(host, "0000:00:02.0")
    }

    /// The one behind the second port.
    pub fn second(host: &Host) -> Result<Self> {
        Self::open(host, "0000:02:00.0")
    }

    fn open(host: &Host, place: &str) -> Result<Self> {
        let function = Function::open(place)?;
        function.master()?;
        let address = host.allocate(1)?;
        let (registers, page) = (function.registers(0)?, host.module.map(address, 1)?);
        Ok(Self { function, registers, address, page })
    }

    fn transfer(&self, source: u64, destination: u64, count: u64, direction: u64) -> Result<()> {
        ensure!(count <= PAGE_SIZE, "its buffer is a page");
        for (register, value) in [(SOURCE, source), (DESTINATION, destination), (COUNT, count)] {
            self.registers.write(register, 8, value);
        }
        self.registers.write(COMMAND, 8, RUN | direction);
        let start = Instant::now();
        while self.registers.read(COMMAND, 8) & RUN != 0 {
            ensure!(start.elapsed() < PATIENCE, "the device does not finish");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Reads up to 4096 bytes into its buffer.
    pub fn fetch(&self, from: u64, count: u64) -> Result<()> {
        self.transfer(from, BUFFER, count, 0)
    }

    /// Writes its buffer.
    pub fn put(&self, to: u64, count: u64) -> Result<()> {
        self.transfer(BUFFER, to, count, TO_MEMORY)
    }

    /// Reads 8 bytes; zero where it may not.
    pub fn read(&self, from: u64) -> Result<u64> {
        self.fetch(from, 8)?;
        self.buffered()
    }

    /// The first 8 bytes of its buffer.
    pub fn buffered(&self) -> Result<u64> {
        self.page.write(0, &[0xA5; 8]);
        self.put(self.address, 8)?;
        let word = self.page.word(0);
        ensure!(word != u64::from_le_bytes([0xA5; 8]), "the device does not reach the host's own memory");
        Ok(word)
    }

    /// Writes up to 8 bytes of a value.
    pub fn write(&self, to: u64, count: u64, value: u64) -> Result<()> {
        self.page.write(0, &value.to_le_bytes());
        self.fetch(self.address, 8)?;
        self.put(to, count)
    }
}
