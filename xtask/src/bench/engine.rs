//! Speed of the engine and of llama.cpp: the same file, machine and threads, in turn. On this machine, and as AArch64
//! programs in the same emulator. Speeds of a shared machine vary much more than their ratio within a pair does.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::spread;
use crate::build::cargo;
use crate::paths::Paths;
use crate::process;
use crate::setup::Setup;
use crate::setup::llama::{self, EMULATED_CPU, Llama, Place};

/// What is measured.
struct Case {
    place: Place,
    /// A format of `flexserve-engine random`.
    format: &'static str,
    /// Size of the file; the state's width; tokens in the vocabulary.
    model: [&'static str; 3],
    /// Tokens of prefill and of decoding.
    tokens: [&'static str; 2],
    /// Whether all CPUs compute.
    is_parallel: bool,
    /// Left out of a quick run.
    is_slow: bool,
}

const LARGE: [&str; 3] = ["150M", "1024", "32000"];
const SMALL: [&str; 3] = ["16M", "512", "8192"];

const CASES: [Case; 7] = [
    native("Q4_K_M", false),
    // Where other programs have a share of the machine, this is fairer: llama.cpp's threads wait for each other busily.
    Case { is_parallel: false, ..native("Q4_K_M", false) },
    native("Q8_0", true),
    native("Q4_0", true),
    emulated("Q4_K_M", false),
    emulated("Q8_0", true),
    emulated("Q4_0", true),
];

const fn native(format: &'static str, is_slow: bool) -> Case {
    Case { place: Place::Native, format, model: LARGE, tokens: ["128", "64"], is_parallel: true, is_slow }
}

const fn emulated(format: &'static str, is_slow: bool) -> Case {
    // The emulator's threads wait for each other longer than they work.
    Case { place: Place::Emulated, format, model: SMALL, tokens: ["64", "16"], is_parallel: false, is_slow }
}

/// The engine's programs.
struct Programs {
    native: PathBuf,
    emulated: PathBuf,
}

/// Tokens per second.
#[derive(Clone, Copy, Debug)]
struct Speeds {
    prefill: f64,
    decode: f64,
}

impl std::fmt::Display for Speeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "prefill {:.1}, decode {:.1} tokens/s", self.prefill, self.decode)
    }
}

/// Runs it; `print` takes lines for people. Returns the report's object.
pub fn run(paths: &Paths, setup: &Setup, quick: bool, print: &dyn Fn(&str)) -> Result<Value> {
    let llama = Llama::ensure(paths)?;
    let programs = Programs {
        native: cargo::engine(paths)?,
        emulated: cargo::build(paths, &setup.toolchain, &cargo::ENGINE)?.join("flexserve-engine"),
    };
    let pairs = if quick { 5 } else { 10 };
    let mut rows = Vec::new();
    for case in CASES.iter().filter(|case| !quick || !case.is_slow) {
        let row = measure(paths, &llama, &programs, case, pairs)?;
        print(&described(&row));
        rows.push(row);
    }
    Ok(json!({"llama_cpp": llama.version, "pairs": pairs, "rows": rows}))
}

fn measure(paths: &Paths, llama: &Llama, programs: &Programs, case: &Case, pairs: usize) -> Result<Value> {
    let model = model(paths, &programs.native, case)?;
    let threads = match std::thread::available_parallelism() {
        Ok(count) if case.is_parallel => count.get().min(64),
        _ => 1,
    };
    let place = if case.place == Place::Native { "native" } else { "emulated" };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for pair in 1..=pairs {
        let our = speeds(&engine(paths, programs, case, &model, threads, false)?)?;
        let their = peer(llama.bench(paths, case.place)?, case, &model, threads)?;
        eprintln!("bench: engine: {place} {}: pair {pair}/{pairs}: {our}; llama.cpp {their}", case.format);
        ours.push(our);
        theirs.push(their);
    }
    // Once more, with a clock around every operation.
    let profiled = engine(paths, programs, case, &model, threads, true)?;
    let side = |part: fn(&Speeds) -> f64| {
        let (ours, theirs): (Vec<f64>, Vec<f64>) =
            (ours.iter().map(part).collect(), theirs.iter().map(part).collect());
        let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
        let (ratio, p10, p90) = spread(&ratios);
        json!({"engine": spread(&ours).0, "llama_cpp": spread(&theirs).0, "ratio": ratio, "p10": p10, "p90": p90})
    };
    let cpu = if case.place == Place::Native { std::env::consts::ARCH } else { EMULATED_CPU };
    Ok(json!({
        "place": place,
        "cpu": cpu,
        "threads": threads,
        "format": case.format,
        "bytes": std::fs::metadata(&model)?.len(),
        "unit": "tokens/s",
        "n": pairs,
        "prefill_tokens": case.tokens[0].parse::<u32>()?,
        "decode_tokens": case.tokens[1].parse::<u32>()?,
        "prefill": side(|speeds| speeds.prefill),
        "decode": side(|speeds| speeds.decode),
        "memory": profiled["memory"],
        "profile": {"prefill": profiled["prefill"]["profile"], "decode": profiled["decode"]["profile"]},
    }))
}

/// A large model of random weights.
pub fn large(paths: &Paths, format: &'static str) -> Result<PathBuf> {
    model(paths, &cargo::engine(paths)?, &native(format, false))
}

/// A model of random weights.
fn model(paths: &Paths, program: &Path, case: &Case) -> Result<PathBuf> {
    let dir = paths.target("bench/models");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let [size, width, vocabulary] = case.model;
    let path = dir.join(format!("{}-{size}.gguf", case.format));
    let mut command = process::command(program);
    command.arg("random").arg(&path).args(["--format", case.format, "--size", size]);
    process::output(command.args(["--width", width, "--vocabulary", vocabulary]))?;
    Ok(path)
}

/// The engine's own report.
fn engine(
    paths: &Paths,
    programs: &Programs,
    case: &Case,
    model: &Path,
    threads: usize,
    profile: bool,
) -> Result<Value> {
    let program = if case.place == Place::Native { &programs.native } else { &programs.emulated };
    let mut command = llama::run(paths, case.place, program);
    let [prefill, decode] = case.tokens;
    command.arg("bench").arg(model).args(["-p", prefill, "-n", decode, "-r", "1", "--json"]);
    command.args(["--threads", &threads.to_string()]);
    if profile {
        command.arg("--profile");
    }
    serde_json::from_str(&process::output(&mut command)?).context("the engine's report is no JSON")
}

fn speeds(report: &Value) -> Result<Speeds> {
    let speed = |part: &str| {
        report[part]["tokens_per_second"].as_f64().with_context(|| format!("the report lacks {part}"))
    };
    Ok(Speeds { prefill: speed("prefill")?, decode: speed("decode")? })
}

/// llama-bench's speeds.
fn peer(mut command: Command, case: &Case, model: &Path, threads: usize) -> Result<Speeds> {
    let [prefill, decode] = case.tokens;
    command.arg("-m").arg(model).args(["-p", prefill, "-n", decode, "-r", "1", "-o", "json"]);
    command.args(["-t", &threads.to_string()]);
    peer_speeds(&process::output(&mut command)?)
}

fn peer_speeds(text: &str) -> Result<Speeds> {
    let tests: Vec<Value> = serde_json::from_str(text).context("llama-bench's report is no JSON")?;
    let speed = |count: &str| {
        let test = tests.iter().find(|test| test[count].as_u64() > Some(0));
        test.and_then(|test| test["avg_ts"].as_f64()).with_context(|| format!("llama-bench lacks {count}"))
    };
    let speeds = Speeds { prefill: speed("n_prompt")?, decode: speed("n_gen")? };
    ensure!(speeds.prefill > 0.0 && speeds.decode > 0.0, "llama-bench measured nothing");
    Ok(speeds)
}

/// A row in words; where llama.cpp is faster, where the time goes.
fn described(row: &Value) -> String {
    let mut text = format!(
        "engine: {} ({}), {} of {} MB, {} threads, {} pairs:",
        row["place"].as_str().unwrap_or("?"),
        row["cpu"].as_str().unwrap_or("?"),
        row["format"].as_str().unwrap_or("?"),
        row["bytes"].as_u64().unwrap_or(0) / 1_000_000,
        row["threads"],
        row["n"]
    );
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    for part in ["prefill", "decode"] {
        let side = &row[part];
        text.push_str(&format!(
            " {part} {:.1} tokens/s, llama.cpp {:.1}, ratio {:.2} [{:.2}..{:.2}];",
            number(&side["engine"]),
            number(&side["llama_cpp"]),
            number(&side["ratio"]),
            number(&side["p10"]),
            number(&side["p90"])
        ));
    }
    let memory = &row["memory"];
    text.push_str(&format!(
        " memory beyond the weights {} KiB, {:.2} of keys and values and a batch of activations",
        memory["session"].as_u64().unwrap_or(0) / 1024,
        number(&memory["ratio"])
    ));
    for part in ["prefill", "decode"].into_iter().filter(|part| number(&row[*part]["ratio"]) < 1.0) {
        text.push_str(&format!("\n  slower than llama.cpp in {part}; the time goes to"));
        for operation in row["profile"][part].as_array().into_iter().flatten().take(5) {
            let name = operation["operation"].as_str().unwrap_or("?");
            text.push_str(&format!(" {name} {:.0} %,", number(&operation["share"]) * 100.0));
        }
        text.pop();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_bench_is_read() {
        let text = r#"[{"n_prompt": 128, "n_gen": 0, "avg_ts": 44.5}, {"n_prompt": 0, "n_gen": 64, "avg_ts": 3.25}]"#;
        let speeds = peer_speeds(text).unwrap();
        assert_eq!((speeds.prefill, speeds.decode), (44.5, 3.25));
        assert!(peer_speeds(r#"[{"n_prompt": 128, "n_gen": 0, "avg_ts": 44.5}]"#).is_err());
        assert!(peer_speeds("error: no model").is_err());
    }

    #[test]
    fn what_is_slower_says_where_the_time_goes() {
        let side =
            |ratio: f64| json!({"engine": 1.0, "llama_cpp": 1.0, "ratio": ratio, "p10": 0.1, "p90": 2.0});
        let row = |ratio| {
            json!({"place": "native", "cpu": "x86_64", "format": "Q4_0", "bytes": 2_000_000, "threads": 2, "n": 5,
                   "prefill": side(1.5), "decode": side(ratio), "memory": {"session": 2048, "ratio": 1.05},
                   "profile": {"prefill": [], "decode": [{"operation": "attention", "share": 0.75}]}})
        };
        let slower = described(&row(0.5));
        assert!(slower.contains("ratio 0.50 [0.10..2.00]") && slower.contains("attention 75 %"), "{slower}");
        assert!(!slower.contains("llama.cpp in prefill"), "{slower}");
        assert!(!described(&row(1.0)).contains("slower"));
    }
}
