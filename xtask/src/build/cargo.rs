//! Builds Rust programs for AArch64 by either toolchain route.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::failure::{Code, Failure};
use crate::paths::Paths;
use crate::process;
use crate::setup::toolchain::{GUEST_TARGET, HYP_TARGET, LINUX_TARGET, Route, Toolchain};

/// A package for AArch64.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// Package name.
    pub name: &'static str,
    /// Target triple.
    pub target: &'static str,
    /// Cargo features.
    pub features: &'static [&'static str],
}

/// The hypervisor as shipped: at EL2 `hyp`, at S-EL2 `spmc` with its `guard`.
pub const HYP: Package = Package { name: "hyp", target: HYP_TARGET, features: &[] };
/// The hypervisor with operations that a test may skip; never shipped.
pub const HYP_KNOBS: Package = Package { name: "hyp", target: HYP_TARGET, features: &["fault-knobs"] };
/// The firmware at EL3.
pub const MONITOR: Package = Package { name: "monitor", target: HYP_TARGET, features: &[] };
/// The partition.
pub const GUEST: Package = Package { name: "guest-llm", target: GUEST_TARGET, features: &[] };
/// The programs in the host.
pub const HOST: Package = Package { name: "flexserve", target: LINUX_TARGET, features: &[] };
/// The test programs in the host.
pub const TESTS: Package = Package { name: "system-tests", target: LINUX_TARGET, features: &[] };

/// The engine's command, for measurements in an emulator of user programs.
pub const ENGINE: Package = Package { name: "flexserve-engine", target: LINUX_TARGET, features: &[] };

/// Cargo with the right toolchain, target and flags; `verb` is `build` or `clippy`.
pub fn command(paths: &Paths, toolchain: &Toolchain, package: &Package, verb: &str) -> Command {
    let mut command = match toolchain.route {
        Route::Rustup => process::command("cargo"),
        Route::Debian => {
            let mut command = process::command("/usr/bin/cargo");
            command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
            // Debian's cargo looks for its own clippy-driver, not for the one that rustup puts on PATH first.
            command.env("PATH", debian_first());
            command
        }
    };
    command.current_dir(&paths.root);
    command.args([verb, "--quiet", "--release", "--package", package.name, "--target", package.target]);
    // Different features and verbs in folders of their own, so that they do not undo each other's work.
    command.arg("--target-dir").arg(paths.target(target_dir(package)));
    if !package.features.is_empty() {
        command.arg("--features").arg(package.features.join(","));
    }
    let variable =
        |suffix: &str| format!("CARGO_TARGET_{}_{suffix}", package.target.to_uppercase().replace('-', "_"));
    let linux = package.target == LINUX_TARGET;
    command.env(variable("LINKER"), if linux { "aarch64-linux-gnu-gcc" } else { "ld.lld" });
    let flags = match package.target {
        // As the partition has it.
        LINUX_TARGET if package.name == ENGINE.name => "-Ctarget-feature=+crt-static,+dotprod",
        LINUX_TARGET => "-Ctarget-feature=+crt-static",
        // The hypervisor relocates itself to where firmware loads it; with rustup's `core`, which is not
        // position-independent, also its constants.
        HYP_TARGET if toolchain.route == Route::Rustup => "-Crelocation-model=pie -Clink-arg=-znotext",
        HYP_TARGET => "-Crelocation-model=pie",
        // What every CPU of the test matrix has; the engine chooses its kernels at compile time. Unaligned access is
        // fine: no Rust code of the partition runs with the MMU off, and it maps no device.
        _ => "-Ctarget-feature=+dotprod,-strict-align",
    };
    command.env(variable("RUSTFLAGS"), flags);
    if toolchain.route == Route::Debian {
        if linux {
            command.arg("-Zbuild-std=std,panic_abort");
        } else {
            command.args([
                "-Zbuild-std=core,alloc,compiler_builtins",
                "-Zbuild-std-features=compiler-builtins-mem",
            ]);
        }
    }
    command
}

/// Builds a package and returns the folder of its programs. Says nothing unless it fails: warnings are for `check`.
pub fn build(paths: &Paths, toolchain: &Toolchain, package: &Package) -> Result<PathBuf> {
    let mut command = command(paths, toolchain, package, "build");
    let result = command.output().with_context(|| format!("cannot start `{}`", process::shown(&command)))?;
    if !result.status.success() {
        eprint!("{}", String::from_utf8_lossy(&result.stderr));
        return Err(Failure::new(
            Code::Failed,
            format!("{} does not build for {} ({})", package.name, package.target, result.status),
            "the sources, or a dependency that cannot be fetched",
            "see the compiler's messages above",
        ));
    }
    Ok(paths.target(target_dir(package)).join(package.target).join("release"))
}

/// Builds the engine's command for the development machine; returns the program.
pub fn engine(paths: &Paths) -> Result<PathBuf> {
    native(paths, "flexserve-engine", "flexserve-engine")
}

/// Builds the model of the NPU; returns the program.
pub fn npu(paths: &Paths) -> Result<PathBuf> {
    native(paths, "flexserve-npu-model", "flexserve-npu")
}

/// Builds a package for the development machine; returns its program.
fn native(paths: &Paths, package: &str, program: &str) -> Result<PathBuf> {
    let mut command = process::command("cargo");
    command.current_dir(&paths.root).args(["build", "--quiet", "--release", "--package", package]);
    let result = command.output().with_context(|| format!("cannot start `{}`", process::shown(&command)))?;
    if !result.status.success() {
        eprint!("{}", String::from_utf8_lossy(&result.stderr));
        return Err(Failure::new(
            Code::Failed,
            format!("{package} does not build ({})", result.status),
            "the sources, or a dependency that cannot be fetched",
            "see the compiler's messages above",
        ));
    }
    Ok(paths.target("release").join(program))
}

fn target_dir(package: &Package) -> String {
    // Different flags in a folder of their own, too.
    if package.name == ENGINE.name {
        return "aarch64-engine".into();
    }
    format!("aarch64{}", package.features.iter().map(|feature| format!("-{feature}")).collect::<String>())
}

fn debian_first() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let rest = std::env::split_paths(&path).filter(|dir| dir != Path::new("/usr/bin"));
    std::env::join_paths(std::iter::once(PathBuf::from("/usr/bin")).chain(rest)).unwrap_or(path)
}
