//! `cargo xtask fuzz`: runs the fuzz targets of `tests/fuzz` for a number of CPU minutes and keeps account of them.
//!
//! cargo-fuzz builds the targets (it is installed below `target/` when it is missing), libFuzzer runs them. What it learns
//! stays in `target/fuzz/corpus`, an input that breaks a rule in `target/fuzz/artifacts`, and the sums in
//! `target/fuzz/ledger.json`, over all runs until `cargo xtask clean`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

use crate::cli::FuzzArgs;
use crate::failure::{Code, Failure};
use crate::paths::Paths;
use crate::process;

/// The targets, which `tests/fuzz/src/lib.rs` describes.
pub const TARGETS: &[&str] =
    &["hypervisor", "image", "model", "npu", "schema", "session", "template", "tokenizer"];
/// Sanitizers need an unstable compiler, and the harnesses are safe code but for a few lines.
const BUILD: &[&str] =
    &["fuzz", "build", "--fuzz-dir", "tests/fuzz/targets", "--sanitizer", "none", "--release"];
/// The longest stretch between two lines of progress, in seconds.
const STRETCH: u64 = 60;
/// Where the sums are kept, below `target/`.
const LEDGER: &str = "fuzz/ledger.json";
/// Longest input in bytes.
const MAX_INPUT: &str = "-max_len=4096";

/// What one target has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Account {
    cpu_seconds: f64,
    executions: u64,
    /// Edges covered.
    coverage: u64,
    /// Inputs that broke a rule.
    failures: u64,
}

/// Runs the wanted targets.
pub fn main(paths: &Paths, args: &FuzzArgs) -> Result<()> {
    if let Some(unknown) = args.targets.iter().find(|name| !TARGETS.contains(&name.as_str())) {
        return Err(Failure::usage(
            format!("there is no fuzz target {unknown}"),
            format!("use some of {}", TARGETS.join(", ")),
        ));
    }
    let programs = build(paths)?;
    let wanted = |name: &&&str| args.targets.is_empty() || args.targets.iter().any(|wanted| wanted == **name);
    let mut failed = Vec::new();
    for name in TARGETS.iter().filter(wanted) {
        // Different targets may run side by side.
        let _lock = paths.lock(&format!("fuzz-{name}"))?;
        let target = Target { paths, name, program: programs.join(name) };
        let (mut spent, goal) = (0.0, args.minutes * 60.0);
        while spent < goal {
            let part = target.run(goal - spent)?;
            spent += part.cpu_seconds.max(0.1);
            book(paths, name, &part)?;
            eprintln!("fuzz: {name}: {spent:.0} of {goal:.0} CPU seconds, {} edges", part.coverage);
            if part.failures > 0 {
                failed.push((*name).to_owned());
                break;
            }
        }
    }
    print(&ledger(paths));
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Code::Failed,
        format!("an input broke a rule in {}", failed.join(", ")),
        "the code that read it",
        format!("see {}", paths.target("fuzz/artifacts").display()),
    ))
}

/// The sums so far.
fn ledger(paths: &Paths) -> BTreeMap<String, Account> {
    let bytes = fs::read(paths.target(LEDGER)).ok();
    bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Adds what a stretch of the target `name` came to.
fn book(paths: &Paths, name: &str, part: &Account) -> Result<()> {
    let _lock = paths.lock("fuzz-ledger")?;
    let mut ledger = ledger(paths);
    let account = ledger.entry(name.to_owned()).or_default();
    account.cpu_seconds += part.cpu_seconds;
    account.executions += part.executions;
    account.failures += part.failures;
    account.coverage = account.coverage.max(part.coverage);
    fs::write(paths.target(LEDGER), serde_json::to_string_pretty(&ledger)?).context("cannot write the ledger")
}

/// Builds all targets; returns the folder with the programs.
fn build(paths: &Paths) -> Result<PathBuf> {
    let _lock = paths.lock("fuzz-build")?;
    let tools = paths.target("tools");
    if !tools.join("bin/cargo-fuzz").exists() {
        eprintln!("fuzz: installing cargo-fuzz");
        let mut install = process::command("cargo");
        install.args(["install", "cargo-fuzz", "--locked", "--root"]).arg(&tools);
        process::output(&mut install)
            .map_err(|error| Failure::setup(format!("no cargo-fuzz: {error:#}"), "check the network"))?;
    }
    eprintln!("fuzz: building the targets");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(tools.join("bin")).chain(std::env::split_paths(&path)))?;
    let mut build = process::command("cargo");
    build
        .current_dir(&paths.root)
        .env("PATH", path)
        .args(BUILD)
        .arg("--target-dir")
        .arg(paths.target("fuzz"));
    process::output(&mut build)?;
    Ok(paths.target(format!("fuzz/{}-unknown-linux-gnu/release", std::env::consts::ARCH)))
}

/// One target.
struct Target<'a> {
    paths: &'a Paths,
    name: &'a str,
    program: PathBuf,
}

impl Target<'_> {
    /// Runs it for a stretch, at most about `seconds` of CPU time.
    fn run(&self, seconds: f64) -> Result<Account> {
        let corpus = self.folder("corpus")?;
        let artifacts = self.folder("artifacts")?;
        let before = children_seconds()?;
        let mut command = process::command(&self.program);
        command.arg(&corpus);
        let inputs = self.paths.at("tests/fuzz/inputs").join(self.name);
        if inputs.exists() {
            command.arg(inputs);
        }
        command.args([
            MAX_INPUT,
            "-len_control=0",
            "-print_final_stats=1",
            "-rss_limit_mb=4096",
            // In wall time, so that a busy machine must not make a slow input of a good one.
            "-timeout=600",
        ]);
        command.arg(format!("-max_total_time={}", (seconds.ceil() as u64).clamp(1, STRETCH)));
        command.arg(format!("-artifact_prefix={}/", artifacts.display()));
        // No watchdog here: libFuzzer has its own, for one input and for the whole stretch.
        let result = command.stdout(Stdio::null()).output().context("cannot start the fuzz target")?;
        let log = String::from_utf8_lossy(&result.stderr).into_owned();
        fs::write(self.paths.target("fuzz").join(format!("{}.log", self.name)), &log)?;
        if !result.status.success() {
            log.lines()
                .filter(|line| line.contains("panicked") || line.contains("ERROR"))
                .for_each(|line| eprintln!("fuzz: {line}"));
        }
        Ok(Account {
            cpu_seconds: children_seconds()? - before,
            executions: last_number(&log, "stat::number_of_executed_units:"),
            coverage: last_number(&log, "cov:"),
            failures: u64::from(!result.status.success()),
        })
    }

    fn folder(&self, kind: &str) -> Result<PathBuf> {
        let path = self.paths.target(Path::new("fuzz").join(kind).join(self.name));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }
}

/// CPU time of all children that ended.
fn children_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("cannot tell CPU times")?;
    let seconds = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000).as_secs_f64()
    };
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// The number behind the last occurrence of `label`; 0 if there is none.
fn last_number(log: &str, label: &str) -> u64 {
    let rest = log.rfind(label).and_then(|at| log.get(at + label.len()..)).unwrap_or_default();
    rest.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn print(ledger: &BTreeMap<String, Account>) {
    println!("{:<14}{:>14}{:>16}{:>10}{:>10}", "TARGET", "CPU MINUTES", "EXECUTIONS", "EDGES", "FAILURES");
    for (name, account) in ledger {
        println!(
            "{name:<14}{:>14.1}{:>16}{:>10}{:>10}",
            account.cpu_seconds / 60.0,
            account.executions,
            account.coverage,
            account.failures
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_libfuzzers_log() {
        let log = "#9 NEW cov: 8 ft: 9\n#12 DONE cov: 17 ft: 20\nstat::number_of_executed_units: 1498\n";
        assert_eq!(last_number(log, "cov:"), 17);
        assert_eq!(last_number(log, "stat::number_of_executed_units:"), 1498);
        assert_eq!(last_number(log, "nothing:"), 0);
    }

    #[test]
    fn the_list_names_the_programs_that_are_built() {
        let paths = Paths::discover().unwrap();
        let manifest = fs::read_to_string(paths.at("tests/fuzz/targets/Cargo.toml")).unwrap();
        let built: Vec<&str> = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("path = \"")?.strip_suffix(".rs\""))
            .collect();
        assert_eq!(built, TARGETS);
    }
}
