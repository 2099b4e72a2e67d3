//! `cargo xtask parity`: whether the engine computes what llama.cpp computes, by the fixtures of `tests/models/parity`. The
//! engine's command compares; here it is built, run, and, with `--regenerate`, given new fixtures.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::build::cargo;
use crate::cli::ParityArgs;
use crate::failure::{Code, Failure};
use crate::paths::Paths;
use crate::process;
use crate::test::verdict::{Outcome, Verdicts};

/// The name of the suite within `cargo xtask test`.
pub const SUITE: &str = "parity";
/// Rough cost for `--list`, the build included.
pub const SECONDS: u32 = 90;
/// Fixtures and what makes them.
const FOLDER: &str = "tests/models/parity";

/// Compares, and prints a table or one JSON object.
pub fn main(paths: &Paths, args: &ParityArgs) -> Result<ExitCode> {
    if args.regenerate {
        regenerate(paths, args)?;
    }
    let mut commands = vec![comparison(paths, &paths.at(FOLDER), args.filter.as_deref())?];
    if args.regenerate && args.vocabularies.is_some() {
        commands.push(comparison(paths, &real(paths), args.filter.as_deref())?);
    }
    let mut passed = true;
    for mut command in commands {
        if args.json {
            command.arg("--json");
        }
        let status = command
            .stdout(Stdio::inherit())
            .status()
            .with_context(|| format!("cannot start `{}`", process::shown(&command)))?;
        passed &= match status.code() {
            Some(0) => true,
            Some(1) => false,
            _ => anyhow::bail!("`{}` failed ({status})", process::shown(&command)),
        };
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Names of the fixtures whose full name contains `filter`.
pub fn selected(paths: &Paths, filter: &str) -> Result<Vec<String>> {
    let folder = paths.at(FOLDER);
    let listed = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<String> = listed
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".bin") || (name.starts_with("tokens-") && name.ends_with(".txt")))
        .filter_map(|name| Some(name.rsplit_once('.')?.0.to_owned()))
        .filter(|name| format!("{SUITE}::{name}").contains(filter))
        .collect();
    names.sort();
    Ok(names)
}

/// Runs the selected comparisons as tests.
pub fn run(paths: &Paths, filter: &str, verdicts: &mut Verdicts) -> Result<()> {
    let names = selected(paths, filter)?;
    if names.is_empty() {
        return Ok(());
    }
    eprintln!("test: {SUITE}");
    let start = Instant::now();
    // A filter that is not within a fixture's name has selected them all.
    let inner = filter.strip_prefix(&format!("{SUITE}::")).filter(|inner| !inner.is_empty());
    let mut command = comparison(paths, &paths.at(FOLDER), inner)?;
    let output = command.arg("--json").output().context("cannot start the engine's command")?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no report: {}", String::from_utf8_lossy(&output.stderr)))?;
    let seconds = start.elapsed().as_secs_f64() / names.len() as f64;
    for name in names {
        let fixture = report["fixtures"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|fixture| fixture["name"] == name.as_str());
        let outcome = match fixture {
            Some(fixture) if fixture["ok"] == true => Outcome::Passed,
            Some(fixture) => Outcome::Failed(fixture["failure"].as_str().unwrap_or("no reason").to_owned()),
            None => Outcome::Failed("it was not compared".into()),
        };
        verdicts.add(SUITE, &name, outcome, seconds);
    }
    Ok(())
}

/// The engine's command line that compares.
fn comparison(paths: &Paths, folder: &Path, filter: Option<&str>) -> Result<Command> {
    let mut command = process::command(cargo::engine(paths)?);
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(64));
    command.arg("parity").arg(folder).args(["--threads", &threads.to_string()]);
    if let Some(filter) = filter {
        command.args(["--filter", filter]);
    }
    Ok(command)
}

/// Where fixtures of vocabularies go that are too large to commit.
fn real(paths: &Paths) -> PathBuf {
    paths.target("parity")
}

/// Asks llama.cpp anew.
fn regenerate(paths: &Paths, args: &ParityArgs) -> Result<()> {
    let python = args.python.clone().unwrap_or_else(|| "python3".into());
    let missing = |error: anyhow::Error| {
        Failure::setup(
            format!("llama.cpp cannot be asked: {error:#}"),
            format!("see {FOLDER}/README.md; --python names the interpreter that has its packages"),
        )
    };
    process::output(process::command(&python).args(["-c", "import gguf, llama_cpp"])).map_err(missing)?;
    eprintln!("parity: asking llama.cpp; this takes minutes");
    for script in ["formats.py", "make.py"] {
        let mut command = process::command(&python);
        command.arg(paths.at(FOLDER).join(script));
        if let Some(vocabularies) = args.vocabularies.as_ref().filter(|_| script == "make.py") {
            command.arg("--vocabularies").arg(vocabularies).arg("--real").arg(real(paths));
        }
        process::output(&mut command).map_err(|error| {
            Failure::new(
                Code::Failed,
                format!("fixtures could not be made: {error:#}"),
                "the script, or its packages' version",
                format!("see {FOLDER}/README.md"),
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_has_a_fixture_in_every_format() {
        let names = selected(&Paths::discover().unwrap(), "").unwrap();
        for architecture in ["llama", "qwen2", "qwen3"] {
            for format in [
                "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K",
                "Q4_K_M",
            ] {
                assert!(names.contains(&format!("{architecture}-{format}")), "{architecture} {format}");
            }
        }
        for vocabulary in ["gpt-2", "llama-bpe", "qwen2", "spm"] {
            assert!(names.contains(&format!("tokens-{vocabulary}")), "{vocabulary}");
        }
        assert_eq!(selected(&Paths::discover().unwrap(), "parity::qwen3-Q4_K").unwrap().len(), 2);
    }
}
