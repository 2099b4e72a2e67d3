//! `cargo xtask test` and `check`: static checks, host tests, then suites that boot QEMU.

mod bare;
pub mod cargo_tests;
mod commands;
pub mod suite;
mod terminal;
pub mod verdict;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::cli::{DeploymentName, TestArgs};
use crate::machine::{Deployment, Machine};
use crate::parity;
use crate::paths::Paths;
use crate::setup;
use suite::Suite;
use verdict::Verdicts;

/// `cargo xtask check`.
pub fn check(paths: &Paths) -> Result<ExitCode> {
    let setup = setup::recorded(paths);
    if setup.is_none() {
        eprintln!("check: without `cargo xtask setup`, packages that only build for AArch64 are not linted");
    }
    let mut verdicts = Verdicts::default();
    cargo_tests::run_static(paths, setup.as_ref(), "", &mut verdicts);
    cargo_tests::run_unit(paths, "", &mut verdicts)?;
    finish(paths, &verdicts)
}

/// `cargo xtask test`.
pub fn main(paths: &Paths, args: &TestArgs) -> Result<ExitCode> {
    let suites = suites(paths, args)?;
    if args.list {
        list(paths, &suites, args);
        return Ok(ExitCode::SUCCESS);
    }
    if args.bare {
        bare::main(paths)?;
        return Ok(ExitCode::SUCCESS);
    }
    let start = Instant::now();
    let setup = setup::ensure(paths)?;
    let filter = args.filter.as_deref().unwrap_or("");
    let mut verdicts = Verdicts::default();
    cargo_tests::run_static(paths, Some(&setup), filter, &mut verdicts);
    // A filter that begins with the name of a suite means that suite alone; the host tests need not be built for it.
    let named = filter.split_once("::").map(|(suite, _)| suite);
    let is_suite = |name: &str| {
        [commands::SUITE, cargo_tests::STATIC, parity::SUITE].contains(&name)
            || suites.iter().any(|suite| suite.name == name)
    };
    if !named.is_some_and(is_suite) {
        cargo_tests::run_unit(paths, filter, &mut verdicts)?;
    }
    if args.deployment != Some(DeploymentName::SEl2) {
        parity::run(paths, filter, &mut verdicts)?;
    }
    for suite in &suites {
        suite::run(paths, &setup, suite, filter, &mut verdicts)?;
    }
    if args.deployment != Some(DeploymentName::SEl2) {
        commands::run(paths, filter, args.slow, &mut verdicts)?;
    }
    eprintln!("test: took {:.0} s", start.elapsed().as_secs_f64());
    finish(paths, &verdicts)
}

fn suites(paths: &Paths, args: &TestArgs) -> Result<Vec<Suite>> {
    let mut suites = Suite::load_all(paths)?;
    suites.retain(|suite| args.slow || !suite.slow);
    if let Some(name) = args.deployment {
        let is_secure =
            |suite: &Suite| Machine::load(paths, &suite.machine).map(|m| m.deployment == Deployment::SEl2);
        let secure = suites.iter().map(is_secure).collect::<Result<Vec<_>>>()?;
        let mut secure = secure.into_iter();
        suites.retain(|_| secure.next() == Some(name == DeploymentName::SEl2));
    }
    Ok(suites)
}

fn list(paths: &Paths, suites: &[Suite], args: &TestArgs) {
    let filter = args.filter.as_deref().unwrap_or("");
    let setup = setup::recorded(paths);
    println!("no boot:");
    for name in cargo_tests::static_names(paths, setup.as_ref()) {
        if format!("{}::{name}", cargo_tests::STATIC).contains(filter) {
            println!("  {}::{name}", cargo_tests::STATIC);
        }
    }
    println!("  unit tests of the host crates (cargo test -- --list)");
    let is_secure = args.deployment == Some(DeploymentName::SEl2);
    let fixtures =
        if is_secure { Default::default() } else { parity::selected(paths, filter).unwrap_or_default() };
    if !fixtures.is_empty() {
        println!("  {}::*, {} fixtures, about {} s", parity::SUITE, fixtures.len(), parity::SECONDS);
    }
    let (mut boots, mut seconds) = (0, 0);
    let commands = if is_secure { Default::default() } else { commands::selected(filter, args.slow) };
    if !commands.is_empty() {
        (boots, seconds) = (commands::BOOTS, commands::SECONDS);
        println!("{boots} boots of el2, about {seconds} s: the command line itself");
        for test in commands {
            println!("  {}::{test}", commands::SUITE);
        }
    }
    for suite in suites {
        let tests = suite.selected(filter);
        if tests.is_empty() {
            continue;
        }
        // Where tests end the machine, each takes a boot.
        let count = if suite.resets { tests.len() as u32 } else { 1 };
        boots += count;
        seconds += suite.seconds;
        let what = if count == 1 { "1 boot".to_owned() } else { format!("{count} boots") };
        println!("{what} of {}, about {} s: {}", suite.machine, suite.seconds, suite.description);
        for test in tests {
            println!("  {}::{test}", suite.name);
        }
    }
    println!("{boots} boots, about {seconds} s emulated");
}

fn finish(paths: &Paths, verdicts: &Verdicts) -> Result<ExitCode> {
    verdicts.write_junit(&paths.target("test/junit.xml"))?;
    println!("{}", verdicts.last_line());
    let (passed, failed, _) = verdicts.counts();
    // A run without any test is a mistake in the filter, not a success.
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
