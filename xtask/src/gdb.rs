//! `cargo xtask gdb`: a run that waits for a debugger.

use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cli::RunArgs;
use crate::paths::Paths;

/// Runs with the machine stopped.
pub fn main(paths: &Paths, args: &RunArgs) -> Result<()> {
    // Any free port, so that several can be debugged side by side.
    let port = TcpListener::bind(("127.0.0.1", 0))
        .and_then(|socket| socket.local_addr())
        .context("no free port")?
        .port();
    crate::run::main(paths, args, Some(port))
}

/// Prints the debugger's command line, with ELF files and where each is loaded: all are linked at 0 and relocate themselves.
pub fn print_command(symbols: &[(PathBuf, u64)], port: u16) {
    let files =
        symbols.iter().map(|(elf, base)| format!("-ex 'add-symbol-file {} -o {base:#x}' ", elf.display()));
    eprintln!("gdb: the machine waits; in another terminal run (package gdb-multiarch):");
    eprintln!(
        "  gdb-multiarch -ex 'set architecture aarch64' {}-ex 'target remote 127.0.0.1:{port}'",
        files.collect::<String>()
    );
}
