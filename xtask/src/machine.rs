//! Machine definitions: TOML files in `qemu-configs/`.

use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::cli::FirmwareName;
use crate::failure::Failure;
use crate::paths::Paths;

/// Who runs the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deployment {
    /// The hypervisor at EL2, in the bundle.
    El2,
    /// The hypervisor at S-EL2 above firmware at EL3, its guard at EL2, in the bundle.
    #[serde(rename = "s-el2")]
    SEl2,
    /// Nobody: the same machine without the virtualization extensions, the baseline.
    BareEl1,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Machine {
    /// The file's name without `.toml`.
    #[serde(skip)]
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Who runs the host.
    pub deployment: Deployment,
    /// What runs at EL3, if anything does.
    #[serde(default)]
    pub firmware: FirmwareName,
    /// QEMU's `-machine`: type and options.
    pub machine: Vec<String>,
    /// QEMU's `-cpu`.
    pub cpu: String,
    /// Number of CPUs.
    pub smp: u32,
    /// RAM, as QEMU writes sizes.
    pub memory: String,
    /// The host kernel's command line.
    pub command_line: String,
    /// Further QEMU arguments.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// It has an NPU: the device model runs beside it.
    #[serde(default)]
    pub npu: bool,
    /// Where the NPU is, as QEMU says it.
    #[serde(default = "npu_place")]
    pub npu_place: String,
    /// Options of the NPU's model.
    #[serde(default)]
    pub npu_options: Vec<String>,
    /// Count instructions instead of time (`-icount shift=0`): repeatable to the digit with one CPU.
    #[serde(default)]
    pub icount: bool,
}

/// Slot 3 of the root bus: its StreamID is 0x18.
fn npu_place() -> String {
    "addr=03.0".into()
}

/// Changes from the command line.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// CPU model.
    pub cpu: Option<String>,
    /// Number of CPUs.
    pub smp: Option<u32>,
    /// RAM.
    pub memory: Option<String>,
    /// Appended to the host's command line.
    pub append: Option<String>,
}

impl Machine {
    /// Reads `qemu-configs/NAME.toml`.
    pub fn load(paths: &Paths, name: &str) -> Result<Self> {
        let path = paths.at("qemu-configs").join(format!("{name}.toml"));
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut machine: Self = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        machine.name = name.to_owned();
        Ok(machine)
    }

    /// Applies changes from the command line; refuses values that QEMU would misread as further options.
    pub fn apply(&mut self, overrides: &Overrides) -> Result<()> {
        if let Some(cpu) = &overrides.cpu {
            if cpu.is_empty() || cpu.starts_with('-') {
                return Err(Failure::usage(format!("`{cpu}` is no CPU model"), "use for example --cpu max"));
            }
            self.cpu.clone_from(cpu);
        }
        if let Some(smp) = overrides.smp {
            if !(1..=MAX_SMP).contains(&smp) {
                return Err(Failure::usage(
                    format!("{smp} CPUs are not possible"),
                    format!("use 1 to {MAX_SMP}"),
                ));
            }
            self.smp = smp;
        }
        if let Some(memory) = &overrides.memory {
            memory_bytes(memory)?;
            self.memory.clone_from(memory);
        }
        if let Some(append) = &overrides.append {
            self.command_line = format!("{} {append}", self.command_line);
        }
        Ok(())
    }

    /// RAM in bytes.
    pub fn memory_bytes(&self) -> Result<u64> {
        memory_bytes(&self.memory)
    }

    /// The same machine without the virtualization extensions: the host runs on its own.
    pub fn bare(&self) -> Self {
        let mut bare = self.clone();
        bare.deployment = Deployment::BareEl1;
        bare.name = format!("{}-bare", self.name);
        bare.npu = false;
        bare.machine
            .retain(|option| !option.starts_with("virtualization=") && !option.starts_with("secure="));
        bare
    }
}

/// GICv3 without clusters beyond the first; more is not tested.
const MAX_SMP: u32 = 8;
/// The least RAM that host, bundle and a partition fit in.
const MIN_MEMORY: u64 = 512 << 20;
/// The most RAM that the `virt` machine has below 256 GiB.
const MAX_MEMORY: u64 = 255 << 30;

/// Reads a size such as `2G`, `1536M` or (mebibytes) `2048`.
fn memory_bytes(text: &str) -> Result<u64> {
    let bad = || {
        Failure::usage(format!("`{text}` is no usable memory size"), "use 512M to 255G, for example --mem 2G")
    };
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        _ => (text, 20),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(bad)?;
    if (MIN_MEMORY..=MAX_MEMORY).contains(&bytes) { Ok(bytes) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_committed_machine_is_readable() {
        let paths = Paths::discover().unwrap();
        for entry in fs::read_dir(paths.at("qemu-configs")).unwrap() {
            let path = entry.unwrap().path();
            let machine = Machine::load(&paths, path.file_stem().unwrap().to_str().unwrap()).unwrap();
            assert!(machine.memory_bytes().is_ok(), "{}", machine.name);
            assert_eq!(machine.machine.first().map(String::as_str), Some("virt"), "{}", machine.name);
        }
    }

    #[test]
    fn sizes_are_read_and_bounded() {
        assert_eq!(memory_bytes("2G").unwrap(), 2 << 30);
        assert_eq!(memory_bytes("1536M").unwrap(), 1536 << 20);
        assert_eq!(memory_bytes("2048").unwrap(), 2 << 30);
        for bad in
            ["", "G", "1M", "-1G", "2G,maxmem=4G", "99999999999999999999G", "18446744073709551615G", "é"]
        {
            assert!(memory_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn overrides_apply_and_bad_ones_are_usage_errors() {
        let mut machine = Machine::load(&Paths::discover().unwrap(), "el2").unwrap();
        let overrides = Overrides {
            cpu: Some("cortex-a710".into()),
            smp: Some(1),
            memory: Some("1G".into()),
            append: Some("debug".into()),
        };
        machine.apply(&overrides).unwrap();
        assert_eq!((machine.cpu.as_str(), machine.smp, machine.memory.as_str()), ("cortex-a710", 1, "1G"));
        assert!(machine.command_line.ends_with(" debug"));
        assert!(machine.apply(&Overrides { smp: Some(0), ..Overrides::default() }).is_err());
        assert!(machine.apply(&Overrides { cpu: Some("-bios".into()), ..Overrides::default() }).is_err());
        assert!(!machine.bare().machine.iter().any(|option| option.contains("virtualization")));
        let secure = Machine::load(&Paths::discover().unwrap(), "s-el2").unwrap();
        assert_eq!((secure.deployment, secure.firmware), (Deployment::SEl2, FirmwareName::Own));
        assert!(!secure.bare().machine.iter().any(|option| option.contains("secure")));
    }
}
