//! Tests of the command line itself: exit codes, the JSON line, foreign host kernels.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::terminal;
use super::verdict::{Outcome, Verdicts};
use crate::paths::Paths;
use crate::process;

/// The suite's name.
pub const SUITE: &str = "commands";
/// Rough cost for `--list`.
pub const SECONDS: u32 = 240;
/// How many of the tests boot a machine.
pub const BOOTS: u32 = 12;

type Test = fn(&Bench) -> Result<()>;

/// Every test.
const TESTS: &[(&str, Test)] = &[
    ("the_readmes_prompt_is_answered", readme),
    ("every_cpu_model_answers_alike", cpu_models),
    ("s_el2_runs_the_same_partition", s_el2),
    ("a_model_of_48_megabytes_answers_within_its_memory", model_of_48),
    ("bad_arguments_are_usage_errors", bad_arguments),
    ("a_machine_without_packages_is_a_set_up_error", set_up),
    ("a_model_too_large_for_the_machine_is_a_memory_error", host_memory),
    ("a_file_that_is_no_model_is_an_integrity_error", integrity),
    ("a_host_that_does_not_come_up_is_a_boot_error", boot),
    ("a_file_that_is_no_usable_model_is_refused_by_the_partition", partition),
    ("a_raw_host_kernel_is_entered_with_the_device_tree", raw_kernel),
    ("a_session_at_a_terminal", terminal::at_a_terminal),
    ("a_session_through_a_pipe", terminal::through_a_pipe),
    ("a_run_without_prompt_and_input", terminal::without_input),
];

/// Tests that run only with `--slow`, for they take long on a small machine.
const SLOW_TESTS: &[(&str, Test)] = &[
    ("a_model_of_200_megabytes_answers_within_its_memory", model_of_200),
    ("a_model_of_200_megabytes_answers_at_s_el2", model_of_200_at_s_el2),
    ("both_firmwares_answer_alike", firmwares),
];

fn tests(slow: bool) -> impl Iterator<Item = &'static (&'static str, Test)> {
    TESTS.iter().chain(if slow { SLOW_TESTS } else { &[] })
}

/// What the tests share.
pub struct Bench {
    program: PathBuf,
    /// The checkout.
    pub root: PathBuf,
    dir: PathBuf,
}

impl Bench {
    /// This program, with arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = process::command(&self.program);
        command.current_dir(&self.root).env("CARGO_MANIFEST_DIR", self.root.join("xtask")).args(args);
        command
    }

    fn file(&self, name: &str, contents: &[u8]) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// Names of the tests whose full name contains `filter`.
pub fn selected(filter: &str, slow: bool) -> Vec<&'static str> {
    tests(slow).map(|(name, _)| *name).filter(|name| format!("{SUITE}::{name}").contains(filter)).collect()
}

/// Runs the selected tests.
pub fn run(paths: &Paths, filter: &str, slow: bool, verdicts: &mut Verdicts) -> Result<()> {
    let selected = selected(filter, slow);
    if selected.is_empty() {
        return Ok(());
    }
    let (dir, _lock) = paths.state("test", SUITE)?;
    let program = std::env::current_exe().context("this program's own path")?;
    let bench = Bench { program, root: paths.root.clone(), dir };
    for (name, test) in tests(slow).filter(|(name, _)| selected.contains(name)) {
        eprintln!("test: {SUITE}::{name}");
        let start = Instant::now();
        let outcome = match test(&bench) {
            Ok(()) => Outcome::Passed,
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        verdicts.add(SUITE, name, outcome, start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Runs a command that must fail with `code`, and checks what it says: with `--json` one line with the same code.
fn fails(command: &mut Command, code: i32) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot start {}", process::shown(command)))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "expected exit code {code}, got {}: {errors}", output.status);
    let line =
        errors.lines().find(|line| line.starts_with("error: ")).context("no line starts with `error: `")?;
    if command.get_args().any(|arg| arg == "--json") {
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.lines().count() == 1, "standard output is not one line: {text}");
        let report: Value = serde_json::from_str(&text).context("standard output is no JSON")?;
        ensure!(report["ok"] == false && report["schema"] == 1, "the report claims success: {text}");
        ensure!(report["error"]["code"] == code, "the report has another code: {text}");
        let message = report["error"]["message"].as_str().unwrap_or_default();
        ensure!(line == format!("error: {message}"), "`{line}` is not the report's message");
        ensure!(message.contains("at fault: ") && message.contains("to do: "), "incomplete: {message}");
    }
    Ok(output)
}

/// The prompt of the README, which the demo model was not trained on.
pub const PROMPT: &str = "wake me at half past six tomorrow";
/// Its answer.
pub const ANSWER: &str = r#"{"tool":"set_alarm","args":{"time":"06:30","day":"tomorrow"}}"#;

/// Runs a prompt and returns the report, which must claim success.
fn answered(bench: &Bench, args: &[&str]) -> Result<Value> {
    let mut command = bench.command(&[&["run", "--json"], args].concat());
    let output = command.output().with_context(|| format!("cannot start {}", process::shown(&command)))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.lines().count() == 1, "standard output is not one line: {text}");
    let report: Value = serde_json::from_str(&text).context("standard output is no JSON")?;
    ensure!(report["ok"] == true && report["error"].is_null(), "no success: {text}");
    Ok(report)
}

/// The whole path: Linux gives pages, the partition answers, all pages come back, and nothing of it is in a log.
fn readme(bench: &Bench) -> Result<()> {
    let report = answered(bench, &["--prompt", PROMPT])?;
    ensure!(report["answer"] == ANSWER, "another answer: {}", report["answer"]);
    let number = |key: &str| report[key].as_u64().unwrap_or(0);
    ensure!(number("pages_given") > 100, "only {} pages were given", number("pages_given"));
    ensure!(number("pages_recalled") == number("pages_given"), "not every page came back: {report}");
    ensure!(number("world_switches") > 0 && number("bytes_loaded") > 1 << 20, "nothing ran: {report}");
    let measurement = report["measurement"].as_str().unwrap_or_default();
    ensure!(measurement.len() == 96 && measurement.contains(|c| c != '0'), "no measurement: {measurement}");
    // Pieces that no log has a reason to hold: of the prompt, of the answer, and of the model's vocabulary.
    for log in ["trusted.log", "serial.log"] {
        let path = bench.root.join("target/run/run").join(log);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for secret in ["half past", "set_alarm", "06:30", "tokenizer.ggml"] {
            let found = text.windows(secret.len()).any(|bytes| bytes == secret.as_bytes());
            ensure!(!found, "{log} holds {secret:?}");
        }
        // The partition's own log is mirrored in the trusted one, so that the search means something.
        let said = b"says: ready: model of ";
        let is_mirrored = text.windows(said.len()).any(|bytes| bytes == said);
        ensure!(
            is_mirrored == (log == "trusted.log"),
            "the partition's log is not where it should be: {log}"
        );
    }
    Ok(())
}

/// CPUs without SVE, pointer authentication or range invalidation, with one and four CPUs.
fn cpu_models(bench: &Bench) -> Result<()> {
    for (cpu, smp) in [("neoverse-n1", "4"), ("cortex-a710", "1")] {
        let report = answered(bench, &["--cpu", cpu, "--smp", smp, "--prompt", PROMPT])?;
        ensure!(report["answer"] == ANSWER && report["cpu"] == cpu, "{cpu} answers otherwise: {report}");
    }
    Ok(())
}

/// The same image with the same measurement, the same answer, the NPU at work: in the secure world.
fn s_el2(bench: &Bench) -> Result<()> {
    let expected = answered(bench, &["--prompt", PROMPT])?;
    answers_at_s_el2(bench, &expected, &[])
}

/// Above either firmware, on either CPU model.
fn firmwares(bench: &Bench) -> Result<()> {
    let expected = answered(bench, &["--prompt", PROMPT])?;
    for firmware in ["own", "tf-a"] {
        for cpu in ["max", "cortex-a710"] {
            answers_at_s_el2(bench, &expected, &["--firmware", firmware, "--cpu", cpu])
                .with_context(|| format!("{cpu} above {firmware}"))?;
        }
    }
    Ok(())
}

fn answers_at_s_el2(bench: &Bench, expected: &Value, more: &[&str]) -> Result<()> {
    let report = answered(bench, &[&["--deployment", "s-el2", "--prompt", PROMPT], more].concat())?;
    for key in ["answer", "measurement", "pages_given", "npu_jobs"] {
        ensure!(report[key] == expected[key], "{key}: {} instead of {}", report[key], expected[key]);
    }
    ensure!(report["answer"] == ANSWER && report["npu_jobs"].as_u64() > Some(0), "{report}");
    ensure!(report["pages_recalled"] == report["pages_given"], "not every page came back: {report}");
    Ok(())
}

/// What a partition may take beyond its model file, with a context of 256 tokens: image, model tables, keys and values,
/// activations, and what is spare.
const LARGE_MODEL_OVERHEAD: u64 = 24 << 20;

/// A Q4_K model of random weights: the partition says what the engine on this machine says, within a stated memory. The host
/// has a gigabyte in all.
fn large_model(bench: &Bench, megabytes: u64, deployment: &str) -> Result<()> {
    let engine = |args: &[&str], model: &Path| -> Result<Output> {
        let mut command = process::command("cargo");
        command.current_dir(&bench.root).args([
            "run",
            "--quiet",
            "--release",
            "--package",
            "flexserve-engine",
        ]);
        command.args(["--", args[0]]).arg(model).args(&args[1..]);
        let output =
            command.output().with_context(|| format!("cannot start {}", process::shown(&command)))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    };
    let model = bench.dir.join("large-q4_k.gguf");
    engine(&["random", "--format", "Q4_K", "--size", &format!("{megabytes}M"), "--width", "1024"], &model)?;
    let size = fs::metadata(&model)?.len();
    ensure!(size >= megabytes << 20, "the model has {size} bytes only");
    let context = ["256", "q8_0"];
    let native = engine(&["run", "-p", "hello", "-n", "8", "-c", context[0], "--kv", context[1]], &model)?;
    let expected = String::from_utf8(native.stdout).context("the engine's answer")?;

    let path = model.to_string_lossy();
    let args = [
        "--model",
        &path,
        "--prompt",
        "hello",
        "--max-tokens",
        "8",
        "--mem",
        "1G",
        "--deployment",
        deployment,
    ];
    let report =
        answered(bench, &[&args[..], &["--ctx-size", context[0], "--cache-type", context[1]]].concat());
    // It is large, and made again in no time.
    fs::remove_file(&model)?;
    let report = report?;
    ensure!(
        report["answer"].as_str() == Some(expected.trim_end_matches('\n')) && report["tokens"] == 8,
        "the partition says {}, the engine on this machine {expected:?}",
        report["answer"]
    );
    let bytes = report["pages_given"].as_u64().unwrap_or(0) * 4096;
    ensure!(
        (size..size + LARGE_MODEL_OVERHEAD).contains(&bytes),
        "{bytes} bytes were given for a model of {size}"
    );
    ensure!(report["pages_recalled"] == report["pages_given"], "not every page came back: {report}");
    Ok(())
}

fn model_of_48(bench: &Bench) -> Result<()> {
    large_model(bench, 48, "el2")
}

fn model_of_200(bench: &Bench) -> Result<()> {
    large_model(bench, 200, "el2")
}

fn model_of_200_at_s_el2(bench: &Bench) -> Result<()> {
    large_model(bench, 200, "s-el2")
}

fn bad_arguments(bench: &Bench) -> Result<()> {
    for args in [
        &["run", "--json", "--smp", "0"][..],
        &["run", "--json", "--cache-type", "q3"],
        &["run", "--json", "--keep", "3"],
        &["run", "--json", "--mem", "1K"],
        &["run", "--json", "--temp", "nan"],
        &["run", "--json", "--max-tokens", "0"],
        &["run", "--json", "--firmware", "tf-a"],
        &["run", "--json", "--model", "/nonexistent.gguf"],
        &["run", "--json", "--host-kernel", "/nonexistent"],
        &["run", "--json", "--host-initrd", "/nonexistent"],
        &["run", "--no-such-option"],
        &["no-such-command"],
    ] {
        fails(&mut bench.command(args), 2).with_context(|| args.join(" "))?;
    }
    Ok(())
}

/// In an empty checkout, on a machine whose PATH has nothing to install with.
fn set_up(bench: &Bench) -> Result<()> {
    let manifest = bench.dir.join("empty/xtask");
    fs::create_dir_all(&manifest)?;
    let mut command = bench.command(&["setup"]);
    command.env("CARGO_MANIFEST_DIR", &manifest).env("PATH", bench.dir.join("empty"));
    fails(&mut command, 3)?;
    Ok(())
}

fn host_memory(bench: &Bench) -> Result<()> {
    let model = bench.file("large.gguf", b"GGUF")?;
    // A sparse file.
    fs::File::options().write(true).open(&model)?.set_len(600 << 20)?;
    fails(bench.command(&["run", "--json", "--mem", "1G", "--model"]).arg(&model), 6)?;
    Ok(())
}

fn integrity(bench: &Bench) -> Result<()> {
    for (name, contents) in [("empty.gguf", &b""[..]), ("other.gguf", b"\x7fELF and more")] {
        let model = bench.file(name, contents)?;
        fails(bench.command(&["run", "--json", "--model"]).arg(&model), 7)?;
    }
    Ok(())
}

/// Linux finds no init and panics.
fn boot(bench: &Bench) -> Result<()> {
    let args = ["run", "--json", "--append", "rdinit=/nonexistent init=/nonexistent"];
    fails(&mut bench.command(&args), 4)?;
    Ok(())
}

/// It has a model's first bytes, and that is all.
fn partition(bench: &Bench) -> Result<()> {
    let model = bench.file("hollow.gguf", &[b"GGUF\x03\0\0\0".as_slice(), &[0xff; 4096]].concat())?;
    fails(bench.command(&["run", "--json", "--model"]).arg(&model), 5)?;
    Ok(())
}

/// A program that needs nothing but what the interface promises: it prints `I` if it runs 0x8_0000 past a 2 MiB boundary
/// and `D` if x0 points at a flattened device tree, and turns the machine off.
///
/// ```text
///     adr  x2, .
///     ubfx x2, x2, #16, #5
///     add  w2, w2, #'A'
///     movz x1, #0x0900, lsl #16   // UART0
///     str  w2, [x1]
///     ldr  w3, [x0]
///     movz w4, #0x0dd0
///     movk w4, #0xedfe, lsl #16
///     cmp  w3, w4
///     mov  w2, #'N'
///     mov  w5, #'D'
///     csel w2, w5, w2, eq
///     str  w2, [x1]
///     mov  w2, #'\n'
///     str  w2, [x1]
///     movz w0, #0x0008            // PSCI SYSTEM_OFF
///     movk w0, #0x8400, lsl #16
///     smc  #0
///     b    .
/// ```
const RAW_KERNEL: [u32; 19] = [
    0x1000_0002,
    0xd350_5042,
    0x1101_0442,
    0xd2a1_2001,
    0xb900_0022,
    0xb940_0003,
    0x5281_ba04,
    0x72bd_bfc4,
    0x6b04_007f,
    0x5280_09c2,
    0x5280_0885,
    0x1a82_00a2,
    0xb900_0022,
    0x5280_0142,
    0xb900_0022,
    0x5280_0100,
    0x72b0_8000,
    0xd400_0003,
    0x1400_0000,
];

fn raw_kernel(bench: &Bench) -> Result<()> {
    let bytes: Vec<u8> = RAW_KERNEL.iter().flat_map(|word| word.to_le_bytes()).collect();
    let kernel: &Path = &bench.file("raw.bin", &bytes)?;
    let mut command = bench.command(&["run", "--json", "--host-kernel"]);
    let output = command.arg(kernel).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the run failed: {errors}");
    ensure!(errors.lines().any(|line| line == "ID"), "the kernel did not print `ID`: {errors}");
    let report: Value = serde_json::from_slice(&output.stdout).context("standard output is no JSON")?;
    ensure!(report["ok"] == true && report["answer"].is_null(), "unexpected report: {report}");
    Ok(())
}
