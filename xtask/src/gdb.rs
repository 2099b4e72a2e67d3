//! `cargo xtask gdb`: a run that waits for a debugger.

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cli::RunArgs;
use crate::paths::Paths;
use crate::vm::BUNDLE_BASE;

/// Runs with the machine stopped.
pub fn main(paths: &Paths, args: &RunArgs) -> Result<()> {
    // Any free port, so that several can be debugged side by side.
    let port = TcpListener::bind(("127.0.0.1", 0))
        .and_then(|socket| socket.local_addr())
        .context("no free port")?
        .port();
    crate::run::main(paths, args, Some(port))
}

/// Prints the debugger's command line.
pub fn print_command(elf: &Path, port: u16) {
    eprintln!("gdb: the machine waits; in another terminal run (package gdb-multiarch):");
    // The image is linked at 0 and relocates itself to where QEMU loads it.
    eprintln!(
        "  gdb-multiarch -ex 'set architecture aarch64' -ex 'add-symbol-file {} -o {BUNDLE_BASE:#x}' \
         -ex 'target remote 127.0.0.1:{port}'",
        elf.display()
    );
}
