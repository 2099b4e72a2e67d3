//! `cargo xtask`: the only entry point for set-up, builds, runs, tests and benchmarks.
//!
//! Runs on the development machine; depends on `firmware` for packing and on the engine for `eval`, on nothing else of the
//! project. Contains no unsafe code.
#![forbid(unsafe_code)]

mod attack;
mod bench;
mod build;
mod clean;
mod cli;
mod eval;
mod failure;
mod fuzz;
mod gdb;
mod machine;
mod parity;
mod paths;
mod process;
mod run;
mod setup;
mod tcb;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use cli::{Cli, Command};
use failure::Failure;
use paths::Paths;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli.command) {
        Ok(code) => code,
        Err(error) => {
            let failure = Failure::of(&error);
            eprintln!("error: {failure}");
            ExitCode::from(failure.code as u8)
        }
    }
}

fn dispatch(command: &Command) -> Result<ExitCode> {
    let paths = Paths::discover()?;
    match command {
        Command::Setup => setup::main(&paths)?,
        Command::Build => {
            let setup = setup::ensure(&paths)?;
            build::main(&paths, &setup)?;
        }
        Command::Check => return test::check(&paths),
        Command::Clean => clean::main(&paths)?,
        Command::Gdb(args) => gdb::main(&paths, args)?,
        Command::Run(args) => run::main(&paths, args, None)?,
        Command::Test(args) => return test::main(&paths, args),
        Command::Attack(args) => attack::main(&paths, args)?,
        Command::Bench(args) => bench::main(&paths, args)?,
        Command::Eval(args) => eval::main(&paths, args)?,
        Command::Fuzz(args) => fuzz::main(&paths, args)?,
        Command::Parity(args) => return parity::main(&paths, args),
        Command::Tcb(args) => tcb::main(&paths, args)?,
    }
    Ok(ExitCode::SUCCESS)
}
