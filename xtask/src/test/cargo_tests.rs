//! Formatting, lints and the tests that run on the development machine.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::verdict::{Outcome, Verdicts};
use crate::build::cargo::{self, GUEST, HOST, HYP, MONITOR, Package};
use crate::paths::Paths;
use crate::process;
use crate::setup::Setup;

/// The suite of static checks.
pub const STATIC: &str = "static";

/// The static checks: name and command. `setup` is needed for the packages that only build for AArch64.
fn checks(paths: &Paths, setup: Option<&Setup>) -> Vec<(String, Command)> {
    let cargo = |args: &[&str]| {
        let mut command = process::command("cargo");
        command.current_dir(&paths.root).args(args);
        command
    };
    let mut clippy = cargo(&["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"]);
    clippy.env("CARGO_TERM_COLOR", "never");
    let mut checks =
        vec![("format".to_owned(), cargo(&["fmt", "--all", "--check"])), ("clippy".to_owned(), clippy)];
    let Some(setup) = setup else { return checks };
    for package in [HYP, MONITOR, GUEST, HOST] {
        if !has_sources(paths, &package) {
            continue;
        }
        let mut command = cargo::command(paths, &setup.toolchain, &package, "clippy");
        command.args(["--", "-D", "warnings"]);
        checks.push((format!("clippy-{}", package.name), command));
    }
    checks
}

/// Whether a package has more than its first empty program.
fn has_sources(paths: &Paths, package: &Package) -> bool {
    let folder = match package.name {
        name if name == HOST.name => "host-shim",
        name if name == MONITOR.name => "firmware/monitor",
        name => name,
    };
    let main = std::fs::read_to_string(paths.at(folder).join("src/main.rs")).unwrap_or_default();
    !main.contains("fn main() {}")
}

/// Names of the static checks.
pub fn static_names(paths: &Paths, setup: Option<&Setup>) -> Vec<String> {
    checks(paths, setup).into_iter().map(|(name, _)| name).collect()
}

/// Runs the static checks whose name contains `filter`.
pub fn run_static(paths: &Paths, setup: Option<&Setup>, filter: &str, verdicts: &mut Verdicts) {
    for (name, mut command) in checks(paths, setup) {
        if !format!("{STATIC}::{name}").contains(filter) {
            continue;
        }
        eprintln!("test: {STATIC}::{name}");
        let start = Instant::now();
        let outcome = match process::output(&mut command) {
            Ok(_) => Outcome::Passed,
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        verdicts.add(STATIC, &name, outcome, start.elapsed().as_secs_f64());
    }
}

/// Packages with tests for the development machine: all but the hypervisor's image, which is nothing but its arch layer.
const TESTED: &[&str] = &["test", "--workspace", "--exclude", "hyp"];

/// Runs the host tests whose name contains `filter`.
pub fn run_unit(paths: &Paths, filter: &str, verdicts: &mut Verdicts) -> Result<()> {
    eprintln!("test: building the host tests");
    let mut build = process::command("cargo");
    build.current_dir(&paths.root).args(TESTED).args(["--quiet", "--no-run"]);
    if let Err(error) = process::output(&mut build) {
        verdicts.add("unit", "build", Outcome::Failed(format!("{error:#}")), 0.0);
        return Ok(());
    }
    eprintln!("test: running the host tests");
    let mut run = process::command("cargo");
    run.current_dir(&paths.root).env("CARGO_TERM_COLOR", "never").args(TESTED).arg("--no-fail-fast");
    if !filter.is_empty() {
        run.args(["--", filter]);
    }
    // Cargo names the test program on standard error, the program its verdicts on standard output; together they tell
    // whose verdict it is, so both must arrive in order.
    let shell = format!("exec {} 2>&1", process::shown(&run));
    let mut merged = process::command("sh");
    merged.current_dir(&paths.root).env("CARGO_TERM_COLOR", "never").args(["-c", "exec \"$@\" 2>&1", "sh"]);
    merged.arg(run.get_program()).args(run.get_args());
    let result = merged.output().with_context(|| format!("cannot start `{shell}`"))?;
    let text = String::from_utf8_lossy(&result.stdout);
    let parsed = parse(&text);
    let failed = parsed.iter().any(|(_, _, outcome)| matches!(outcome, Outcome::Failed(_)));
    for (suite, name, outcome) in parsed {
        verdicts.add(&suite, &name, outcome, 0.0);
    }
    if !result.status.success() && !failed {
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        verdicts.add("unit", "run", Outcome::Failed(tail), 0.0);
    }
    Ok(())
}

/// Reads the output of `cargo test`: (suite, test, outcome). The details of failures are looked up in the same text.
fn parse(text: &str) -> Vec<(String, String, Outcome)> {
    let mut suite = String::from("unit");
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("Running ") {
            suite = suite_name(rest).unwrap_or_else(|| "unit".into());
        } else if let Some(rest) = line.strip_prefix("Doc-tests ") {
            suite = format!("{rest}-doc");
        } else if let Some((name, verdict)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        {
            let name = name.trim_end_matches(" - should panic").to_owned();
            let outcome = match verdict {
                "ok" => Outcome::Passed,
                _ if verdict.starts_with("ignored") => Outcome::Skipped(
                    verdict.trim_start_matches("ignored").trim_start_matches(", ").to_owned(),
                ),
                _ => Outcome::Failed(detail(text, &name)),
            };
            found.push((suite.clone(), name, outcome));
        }
    }
    found
}

/// `unittests src/lib.rs (target/debug/deps/stage2-0123)` is suite `stage2`.
fn suite_name(rest: &str) -> Option<String> {
    let path = rest.rsplit_once('(')?.1.trim_end_matches(')');
    let file = path.rsplit('/').next()?;
    Some(file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned())
}

fn detail(text: &str, name: &str) -> String {
    let start = format!("---- {name} stdout ----");
    let Some((_, rest)) = text.split_once(&start) else { return "see the output of cargo test".into() };
    rest.lines()
        .skip(1)
        .take_while(|line| !line.starts_with("---- ") && *line != "failures:")
        .take(12)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_cargo_test_is_read() {
        let text = "     Running unittests src/lib.rs (target/debug/deps/stage2-0a1b2c3d)\n\nrunning 3 tests\n\
            test a::good ... ok\ntest a::bad ... FAILED\ntest a::later ... ignored, needs time\n\nfailures:\n\n\
            ---- a::bad stdout ----\nthread 'a::bad' panicked\nleft: 1\n\nfailures:\n    a::bad\n\n\
               Running tests/whole.rs (target/debug/deps/whole-00)\ntest t - should panic ... ok\n   Doc-tests hyp_abi\n\
            test src/lib.rs - item (line 3) ... ok\n";
        let found = parse(text);
        let names: Vec<String> = found.iter().map(|(suite, name, _)| format!("{suite}::{name}")).collect();
        assert_eq!(
            names,
            [
                "stage2::a::good",
                "stage2::a::bad",
                "stage2::a::later",
                "whole::t",
                "hyp_abi-doc::src/lib.rs - item (line 3)"
            ]
        );
        assert_eq!(found[0].2, Outcome::Passed);
        assert_eq!(found[1].2, Outcome::Failed("thread 'a::bad' panicked\nleft: 1\n".into()));
        assert_eq!(found[2].2, Outcome::Skipped("needs time".into()));
    }
}
