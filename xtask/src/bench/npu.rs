//! What the NPU is worth to the partition's engine, and what host and partition lose by sharing it: one machine, in which a
//! partition answers on its CPUs, with the NPU, and with the NPU while a program of the host's uses it too, in turn. Under
//! emulation the NPU computes natively and the CPUs are interpreted, so the ratios compare parts of QEMU, not designs.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Bench, engine, spread};
use crate::build;
use crate::machine::Machine;

#[derive(Debug, Deserialize)]
struct Answer {
    prompt_tokens: u64,
    prefill_tokens_per_s: f64,
    tokens_per_s: f64,
    npu_jobs: u64,
}

#[derive(Debug, Deserialize)]
struct Work {
    gops: f64,
    losses: u64,
}

#[derive(Debug, Deserialize)]
struct Shared {
    cpu: Vec<Answer>,
    npu: Vec<Answer>,
    host: Vec<Work>,
    npu_shared: Vec<Answer>,
    host_shared: Vec<Work>,
}

/// A token each for a model of random weights, and one that begins the text.
const WORDS: usize = 127;

/// Runs it, prints what came of it, returns the report's object.
pub fn run(bench: &Bench) -> Result<Value> {
    let model = engine::large(bench.paths, "Q4_K_M")?;
    let mut machine = Machine::load(bench.paths, "el2")?;
    machine.memory = "2G".into();
    let rounds = if bench.quick { 1 } else { 10 };
    let inside = build::model_path(&model)?;
    let prompt = vec!["so"; WORDS].join(" ");
    let rounds_text = rounds.to_string();
    let argv = [
        "/bin/flexserve",
        "npu-bench",
        "--rounds",
        &rounds_text,
        "--",
        "-m",
        &inside,
        "--raw",
        "-n",
        "16",
        "--temp",
        "0",
        "-p",
        &prompt,
    ];
    eprintln!("bench: npu: {rounds} rounds in one boot of {} on {}", machine.name, machine.cpu);
    let job = json!({"action": "exec", "argv": argv});
    let done = bench.boot_with("npu", &machine, false, job, vec![model])?;
    let shared = done.counters.get("npu").cloned().context("npu-bench reported nothing")?;
    let shared: Shared = serde_json::from_value(shared).context("npu-bench reported something else")?;
    let ratio = |ours: Vec<f64>, theirs: Vec<f64>| {
        let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
        let (median, p10, p90) = spread(&ratios);
        json!({"median": spread(&ours).0, "baseline": spread(&theirs).0, "ratio": median, "p10": p10, "p90": p90})
    };
    let prefill = |answers: &[Answer]| answers.iter().map(|answer| answer.prefill_tokens_per_s).collect();
    let decode = |answers: &[Answer]| answers.iter().map(|answer| answer.tokens_per_s).collect();
    let gops = |work: &[Work]| work.iter().map(|work| work.gops).collect();
    let rows = [
        ("prefill: NPU against CPUs", ratio(prefill(&shared.npu), prefill(&shared.cpu))),
        ("decode: NPU against CPUs", ratio(decode(&shared.npu), decode(&shared.cpu))),
        (
            "prefill: shared with the host against alone",
            ratio(prefill(&shared.npu_shared), prefill(&shared.npu)),
        ),
        (
            "decode: shared with the host against alone",
            ratio(decode(&shared.npu_shared), decode(&shared.npu)),
        ),
        (
            "host's GOP/s: shared with the partition against alone",
            ratio(gops(&shared.host_shared), gops(&shared.host)),
        ),
    ];
    let tokens = shared.npu.first().map_or(0, |answer| answer.prompt_tokens);
    println!(
        "npu: {tokens} tokens of prefill, 16 of decode, n = {rounds}, wall time, emulated {}",
        machine.cpu
    );
    for (name, row) in &rows {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "{name:<56}{:>9.1}{:>9.1}   ratio {:.2} [{:.2}..{:.2}]",
            number("median"),
            number("baseline"),
            number("ratio"),
            number("p10"),
            number("p90")
        );
    }
    let jobs = shared.npu.first().map_or(0, |answer| answer.npu_jobs);
    let losses: u64 = shared.host_shared.iter().map(|work| work.losses).sum();
    println!(
        "npu: {jobs} jobs for an answer; the host lost {losses} lists to the partition, and repeated them"
    );
    let rows: serde_json::Map<_, _> = rows.into_iter().map(|(name, row)| (name.to_owned(), row)).collect();
    Ok(json!({"unit": "tokens/s and GOP/s of wall time, emulated", "cpu": machine.cpu, "n": rounds,
              "prefill_tokens": tokens, "npu_jobs": jobs, "rows": rows}))
}
