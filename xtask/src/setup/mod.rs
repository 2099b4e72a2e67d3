//! Set-up: finds what is missing, says so, installs it (as root) or prints the commands, and records the result in
//! `target/setup.json`. Once all is there, a run only looks at a few files and needs no network.

pub mod apt;
pub mod kernel;
pub mod llama;
pub mod tfa;
pub mod toolchain;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::paths::{Paths, write_whole};
use crate::process;
use kernel::Kernel;
use toolchain::{Route, Toolchain};

/// Version of `setup.json`; raise it when a recorded set-up no longer does.
const SCHEMA: u32 = 1;
/// The oldest QEMU whose `virt` machine has stage-2 SMMUv3 translation.
const QEMU_MINIMUM: (u32, u32) = (9, 2);
/// The emulator.
pub const QEMU: &str = "qemu-system-aarch64";

/// Packages from the machine's own suites, each with a file that tells whether it is there, and why.
const PACKAGES: &[(&str, &str, &str)] = &[
    ("lld", "/usr/bin/ld.lld", "linker of the bare-metal images"),
    ("gcc-aarch64-linux-gnu", "/usr/bin/aarch64-linux-gnu-gcc", "compiler of the kernel module"),
    ("libc6-dev-arm64-cross", "/usr/aarch64-linux-gnu/lib/libc.a", "C library of the programs in the host"),
    ("make", "/usr/bin/make", "build of the kernel module"),
];

/// What set-up found or made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    schema: u32,
    /// Host kernel.
    pub kernel: Kernel,
    /// Rust for AArch64.
    pub toolchain: Toolchain,
}

/// Returns a complete set-up; makes it first if needed.
pub fn ensure(paths: &Paths) -> Result<Setup> {
    if let Some(setup) = recorded(paths) {
        return Ok(setup);
    }
    let _lock = paths.lock("setup")?;
    if let Some(setup) = recorded(paths) {
        return Ok(setup);
    }
    make(paths)
}

/// `cargo xtask setup`.
pub fn main(paths: &Paths) -> Result<()> {
    if recorded(paths).is_some() {
        eprintln!("setup: everything is there, nothing to do");
        return Ok(());
    }
    let setup = ensure(paths)?;
    eprintln!(
        "setup: done; host kernel {}, Rust for AArch64 from {}",
        setup.kernel.release,
        match setup.toolchain.route {
            Route::Rustup => "the present toolchain",
            Route::Debian => "Debian's packages",
        }
    );
    Ok(())
}

/// The recorded set-up, if all that it names is still there.
pub fn recorded(paths: &Paths) -> Option<Setup> {
    let setup: Setup = serde_json::from_slice(&fs::read(paths.target("setup.json")).ok()?).ok()?;
    let complete = setup.schema == SCHEMA
        && missing_packages().is_empty()
        && qemu_version().is_some_and(|version| version >= QEMU_MINIMUM)
        && setup.toolchain.is_present()
        && paths.at(&setup.kernel.image).exists()
        && paths.at(&setup.kernel.headers).join("Makefile").exists();
    complete.then_some(setup)
}

fn missing_packages() -> Vec<(&'static str, &'static str)> {
    PACKAGES
        .iter()
        .filter(|(_, file, _)| !Path::new(file).exists())
        .map(|(package, _, reason)| (*package, *reason))
        .collect()
}

/// Major and minor version of the installed QEMU.
fn qemu_version() -> Option<(u32, u32)> {
    let text = process::output(process::command(QEMU).arg("--version")).ok()?;
    parse_version(&text)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split("version ").nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn is_root() -> Result<bool> {
    Ok(process::output(process::command("id").arg("-u"))?.trim() == "0")
}

fn make(paths: &Paths) -> Result<Setup> {
    if process::find("apt-get").is_none() || process::find("dpkg").is_none() {
        return Err(Failure::setup("this machine has no apt-get and dpkg", "use Debian 12"));
    }
    let mut missing = missing_packages();
    let toolchain = toolchain::rustup();
    let rust = if toolchain.is_none() { toolchain::debian_missing() } else { Vec::new() };
    missing.extend(
        rust.iter().map(|package| (*package, "Rust for AArch64 (the present toolchain lacks the targets)")),
    );
    let qemu_missing = qemu_version().is_none_or(|version| version < QEMU_MINIMUM);
    for (package, reason) in &missing {
        eprintln!("setup: {package} is missing: {reason}");
    }
    if qemu_missing {
        eprintln!(
            "setup: qemu-system-arm {}.{} or newer is missing: the emulator (from {}-backports)",
            QEMU_MINIMUM.0,
            QEMU_MINIMUM.1,
            apt::CODENAME
        );
    }
    let known = recorded_kernel(paths);
    if known.is_none() {
        eprintln!(
            "setup: an arm64 Linux from {}-backports will be unpacked under target/kernel",
            apt::CODENAME
        );
    }
    if !missing.is_empty() || qemu_missing || known.is_none() {
        let apt = apt::Apt::prepare(paths)?;
        if !rust.is_empty() {
            toolchain::check_candidate(&apt.cache(&["policy", "rustc-web"])?)?;
        }
        let names: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
        install(&apt, &names, qemu_missing)?;
        let kernel = known.map_or_else(|| kernel::fetch(paths, &apt), Ok)?;
        record(paths, kernel, toolchain)
    } else if let Some(kernel) = known {
        record(paths, kernel, toolchain)
    } else {
        anyhow::bail!("set-up found nothing to do, yet no kernel")
    }
}

/// The kernel of an earlier set-up, if it is still unpacked.
fn recorded_kernel(paths: &Paths) -> Option<Kernel> {
    let setup: Setup = serde_json::from_slice(&fs::read(paths.target("setup.json")).ok()?).ok()?;
    let present =
        paths.at(&setup.kernel.image).exists() && paths.at(&setup.kernel.headers).join("Makefile").exists();
    (setup.schema == SCHEMA && present).then_some(setup.kernel)
}

fn install(apt: &apt::Apt, packages: &[&str], qemu: bool) -> Result<()> {
    if packages.is_empty() && !qemu {
        return Ok(());
    }
    if !is_root()? {
        eprintln!("setup: run these commands, then repeat:");
        if !packages.is_empty() {
            eprintln!("  {}", apt.shown_install(packages, false));
        }
        if qemu {
            eprintln!("  {}", apt.shown_install(&["qemu-system-arm"], true));
        }
        return Err(Failure::setup(
            "packages are missing and only root can install them",
            "run the commands printed above",
        ));
    }
    if !packages.is_empty() {
        eprintln!("setup: installing {}", packages.join(" "));
        apt.install(packages, false)?;
    }
    if qemu {
        eprintln!("setup: installing qemu-system-arm from {}-backports", apt::CODENAME);
        apt.install(&["qemu-system-arm"], true)?;
    }
    Ok(())
}

fn record(paths: &Paths, kernel: Kernel, toolchain: Option<Toolchain>) -> Result<Setup> {
    let toolchain = toolchain.unwrap_or_else(toolchain::debian);
    let setup = Setup { schema: SCHEMA, kernel, toolchain };
    let text = serde_json::to_string_pretty(&setup).context("set-up record")?;
    write_whole(&paths.target("setup.json"), text.as_bytes())?;
    recorded(paths).ok_or_else(|| {
        Failure::setup(
            "packages were installed, yet something is still missing",
            "see the files that `cargo xtask setup` lists; another program may come first on PATH",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_versions_are_read_and_compared() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)\nCopyright";
        assert_eq!(parse_version(text), Some((10, 0)));
        assert!(parse_version(text).unwrap() >= QEMU_MINIMUM);
        assert!(parse_version("QEMU emulator version 7.2.15").unwrap() < QEMU_MINIMUM);
        assert_eq!(parse_version("no version here"), None);
    }
}
