//! Which Rust toolchain builds for AArch64: rustup's where it has the targets, else Debian's, which builds `core` and
//! `std` from their sources.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::process;

/// Every AArch64 target of the project.
pub const TARGETS: &[&str] = &[HYP_TARGET, GUEST_TARGET, LINUX_TARGET];
/// The hypervisor: no FP registers, since they are the host's and the partitions'.
pub const HYP_TARGET: &str = "aarch64-unknown-none-softfloat";
/// The partition.
pub const GUEST_TARGET: &str = "aarch64-unknown-none";
/// Programs in the host.
pub const LINUX_TARGET: &str = "aarch64-unknown-linux-gnu";

/// The oldest compiler that the workspace's `rust-version` allows.
const RUST_MINIMUM: (u32, u32) = (1, 95);
/// Debian's compiler and what its packages bring.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_STD: &str = "/usr/lib/rustlib/src/rust/library/std/Cargo.toml";
/// Debian's packages, each with a file that tells whether it is there.
pub const DEBIAN_PACKAGES: &[(&str, &str)] = &[
    ("rustc-web", DEBIAN_RUSTC),
    ("cargo-web", "/usr/bin/cargo"),
    ("rust-web-src", DEBIAN_STD),
    ("rust-web-clippy", "/usr/bin/cargo-clippy"),
];

/// The route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// The user's toolchain has the targets' libraries.
    Rustup,
    /// Debian's rustc-web and cargo-web, with `-Zbuild-std`.
    Debian,
}

/// The toolchain as recorded by set-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toolchain {
    /// Route.
    pub route: Route,
    /// Sysroot of the compiler.
    pub sysroot: PathBuf,
}

impl Toolchain {
    /// Whether what was recorded is still there; touches only a few files.
    pub fn is_present(&self) -> bool {
        match self.route {
            Route::Rustup => has_targets(&self.sysroot),
            Route::Debian => DEBIAN_PACKAGES.iter().all(|(_, file)| Path::new(file).exists()),
        }
    }
}

fn has_targets(sysroot: &Path) -> bool {
    TARGETS.iter().all(|target| {
        let dir = sysroot.join("lib/rustlib").join(target).join("lib");
        std::fs::read_dir(dir).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
        })
    })
}

/// Looks for a toolchain that has the targets; adds them through rustup where that is allowed and quick.
pub fn rustup() -> Option<Toolchain> {
    let sysroot = || -> Option<PathBuf> {
        let text = process::output(process::command("rustc").args(["--print", "sysroot"])).ok()?;
        Some(PathBuf::from(text.trim()))
    };
    let found = sysroot()?;
    if !has_targets(&found) && process::find("rustup").is_some() && may_download() {
        eprintln!("setup: asking rustup for {} (gives up after 60 s)", TARGETS.join(", "));
        let added = process::output(
            process::command("timeout").args(["60", "rustup", "target", "add"]).args(TARGETS),
        );
        if added.is_err() {
            eprintln!("setup: rustup has no targets to offer; Debian's toolchain will do");
        }
    }
    let found = sysroot()?;
    has_targets(&found).then_some(Toolchain { route: Route::Rustup, sysroot: found })
}

fn may_download() -> bool {
    std::env::var("RUSTUP_AUTO_INSTALL").map_or(true, |value| value != "0")
}

/// Debian's packages that are missing or too old.
pub fn debian_missing() -> Vec<&'static str> {
    let version = process::output(process::command(DEBIAN_RUSTC).arg("--version")).ok();
    let too_old = version.and_then(|text| parse_version(&text)).is_none_or(|version| version < RUST_MINIMUM);
    DEBIAN_PACKAGES
        .iter()
        .filter(|(_, file)| too_old || !Path::new(file).exists())
        .map(|(package, _)| *package)
        .collect()
}

/// Fails if the compiler that apt would install is too old.
pub fn check_candidate(policy: &str) -> Result<()> {
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: ")).unwrap_or("none");
    if parse_numbers(candidate).is_some_and(|version| version >= RUST_MINIMUM) {
        return Ok(());
    }
    Err(Failure::setup(
        format!(
            "this machine's package sources offer rustc-web {candidate}, and {}.{} is needed",
            RUST_MINIMUM.0, RUST_MINIMUM.1
        ),
        "enable Debian's security suite in /etc/apt, or add the AArch64 targets with rustup",
    ))
}

/// Reads `rustc 1.96.0 (...)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    parse_numbers(text.strip_prefix("rustc ")?)
}

fn parse_numbers(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Debian's toolchain, once its packages are installed.
pub fn debian() -> Toolchain {
    Toolchain { route: Route::Debian, sysroot: PathBuf::from("/usr") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_candidates_are_refused() {
        let policy = |version: &str| {
            format!("rustc-web:\n  Installed: (none)\n  Candidate: {version}\n  Version table:\n")
        };
        assert!(check_candidate(&policy("1.96.0+dfsg1-1~deb12u2")).is_ok());
        assert!(check_candidate(&policy("1.85.0+dfsg3-1~deb12u3")).is_err());
        assert!(check_candidate(&policy("(none)")).is_err());
        assert!(check_candidate("").is_err());
        assert_eq!(parse_version("rustc 1.95.0 (59807616e 2026-04-14)"), Some((1, 95)));
    }
}
