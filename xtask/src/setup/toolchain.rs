//! Which Rust toolchain builds for AArch64: rustup's where it has the targets, else Debian's, which builds `core` and
//! `std` from their sources.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::process;

/// Every AArch64 target of the project.
pub const TARGETS: &[&str] = &[HYP_TARGET, GUEST_TARGET, LINUX_TARGET];
/// The hypervisor: no FP registers, since they are the host's and the partitions'.
pub const HYP_TARGET: &str = "aarch64-unknown-none-softfloat";
/// The partition.
pub const GUEST_TARGET: &str = "aarch64-unknown-none";
/// Programs in the host.
pub const LINUX_TARGET: &str = "aarch64-unknown-linux-gnu";

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

/// Debian's toolchain, once its packages are installed.
pub fn debian() -> Toolchain {
    Toolchain { route: Route::Debian, sysroot: PathBuf::from("/usr") }
}
