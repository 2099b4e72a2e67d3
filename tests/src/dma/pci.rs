//! Configuration space and registers of PCI functions, as root gets at them through sysfs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::sys::Registers;

const DEVICES: &str = "/sys/bus/pci/devices";
/// The command register (PCI Local Bus 3.0, 6.2.2).
const COMMAND: u64 = 0x04;
const BUS_MASTER: u32 = 1 << 2;
/// Where the list of capabilities begins.
const CAPABILITIES: u64 = 0x34;
/// Most capabilities that there is room for.
const CAPABILITIES_MAX: usize = 48;

/// A function.
#[derive(Debug)]
pub struct Function {
    path: PathBuf,
    config: File,
}

impl Function {
    /// The one at a place such as `0000:00:02.0`, without a driver.
    pub fn open(place: &str) -> Result<Self> {
        let path = PathBuf::from(DEVICES).join(place);
        let unbind = path.join("driver/unbind");
        if unbind.exists() {
            fs::write(&unbind, place).with_context(|| format!("{place} keeps its driver"))?;
        }
        let config = File::options().read(true).write(true).open(path.join("config"));
        Ok(Self { config: config.with_context(|| format!("there is no {place}"))?, path })
    }

    /// Reads 1, 2 or 4 bytes of configuration space.
    pub fn read(&self, offset: u64, width: usize) -> Result<u32> {
        let mut bytes = [0; 4];
        self.config.read_exact_at(&mut bytes[..width], offset).context("configuration space")?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Writes 1, 2 or 4 bytes of configuration space.
    pub fn write(&self, offset: u64, width: usize, value: u32) -> Result<()> {
        self.config.write_all_at(&value.to_le_bytes()[..width], offset).context("configuration space")
    }

    /// Lets it master the bus.
    pub fn master(&self) -> Result<()> {
        let command = self.read(COMMAND, 2)?;
        self.write(COMMAND, 2, command | BUS_MASTER)
    }

    /// Maps the registers of a BAR.
    pub fn registers(&self, bar: u32) -> Result<Registers> {
        let path = self.path.join(format!("resource{bar}"));
        let file = File::options().read(true).write(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        Registers::map(&file, file.metadata()?.len() as usize)
    }

    /// Offsets of its capabilities with this id.
    pub fn capabilities(&self, id: u32) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        let mut at = self.read(CAPABILITIES, 1)? & 0xFC;
        for _ in 0..CAPABILITIES_MAX {
            if at < 0x40 {
                break;
            }
            if self.read(at.into(), 1)? == id {
                found.push(at.into());
            }
            at = self.read(u64::from(at) + 1, 1)? & 0xFC;
        }
        Ok(found)
    }
}
