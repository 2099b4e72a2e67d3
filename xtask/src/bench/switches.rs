//! What it costs to move the NPU from owner to owner, in instructions, by part and for partitions of several sizes; and the
//! round trips into the hypervisor and into a partition; and how the host is mapped. One boot under `-icount shift=0` for each
//! deployment.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Bench, spread};
use crate::machine::Machine;

#[derive(Debug, Deserialize)]
struct Row {
    mebibytes: u64,
    to_partition: Vec<Parts>,
    to_host: Vec<Parts>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Parts {
    close: u64,
    reset: u64,
    detach: u64,
    attach: u64,
    open: u64,
}

impl Parts {
    fn each(&self) -> [u64; 5] {
        [self.close, self.reset, self.detach, self.attach, self.open]
    }
}

const PARTS: [&str; 5] = ["close", "reset", "detach", "attach", "open"];

/// Runs it in both deployments, prints tables, returns the report's objects. Those of the S-EL2 deployment are inside the EL2
/// deployment's, under its name.
pub fn run(bench: &Bench) -> Result<Map<String, Value>> {
    let mut objects = deployment(bench, "el2")?;
    for (name, object) in deployment(bench, "s-el2")? {
        objects[&name]["s-el2"] = object;
    }
    Ok(objects)
}

fn deployment(bench: &Bench, name: &str) -> Result<Map<String, Value>> {
    let mut machine = Machine::load(bench.paths, name)?;
    machine.smp = 1;
    machine.icount = true;
    if !bench.quick {
        machine.memory = "3G".into();
    }
    let mut argv = vec!["/bin/flexserve", "switch-bench"];
    if bench.quick {
        argv.push("--quick");
    }
    eprintln!(
        "bench: npu-switch, world-switch: one boot of {} on {} under -icount shift=0",
        machine.name, machine.cpu
    );
    let done = bench.boot("switches", &machine, false, json!({"action": "exec", "argv": argv}))?;
    let rate = done.counters.get("ticks_per_second").and_then(Value::as_u64).context("no tick rate")?;
    // A tick is this many instructions.
    let scale = 1e9 / rate as f64;
    let part = |name: &str| done.counters.get(name).cloned().context("switch-bench reported nothing");
    let rows: Vec<Row> =
        serde_json::from_value(part("npu")?).context("switch-bench reported something else")?;
    let world: Map<String, Value> = serde_json::from_value(part("world")?)?;
    let host: Map<String, Value> = serde_json::from_value(part("host")?)?;
    Ok(Map::from_iter([
        ("npu-switch".to_owned(), switch(&machine, &rows, scale)),
        ("world-switch".to_owned(), round_trips(&machine, &world, scale)),
        ("host".to_owned(), census(&machine, host)),
    ]))
}

/// How the host is mapped, and its exits.
fn census(machine: &Machine, host: Map<String, Value>) -> Value {
    const COLUMNS: [(&str, &str); 5] = [
        ("leaves_1g", "1 GiB"),
        ("leaves_2m", "2 MiB"),
        ("leaves_4k", "4 KiB"),
        ("tables", "tables"),
        ("exits", "exits/s"),
    ];
    println!(
        "host: leaves and tables of its stage 2 and its exits in a second, without a partition, with one that is entered all the time, and after it ({})",
        machine.name
    );
    println!("{:<8}{}", "", COLUMNS.map(|(_, title)| format!("{title:>9}")).concat());
    for (name, census) in &host {
        let cells = COLUMNS.map(|(key, _)| format!("{:>9}", census[key].as_u64().unwrap_or(0)));
        println!("{name:<8}{}", cells.concat());
    }
    let mut object = json!({"unit": "count, emulated", "cpu": machine.cpu});
    host.into_iter().for_each(|(name, census)| object[name] = census);
    object
}

fn switch(machine: &Machine, rows: &[Row], scale: f64) -> Value {
    println!(
        "npu-switch: instructions per change of owner ({} on emulated {}, one CPU, n = rounds; median [p10..p90])",
        machine.name, machine.cpu
    );
    println!(
        "{:<14}{:>9}{:>5}{:>26}{}",
        "to",
        "MiB",
        "n",
        "all",
        PARTS.map(|part| format!("{part:>9}")).concat()
    );
    let mut objects = Vec::new();
    for row in rows {
        for (to, samples) in [("partition", &row.to_partition), ("host", &row.to_host)] {
            let of = |f: &dyn Fn(&Parts) -> u64| {
                spread(&samples.iter().map(|parts| f(parts) as f64 * scale).collect::<Vec<_>>())
            };
            let (median, p10, p90) = of(&|parts| parts.each().iter().sum());
            let parts: Vec<f64> = (0..PARTS.len()).map(|part| of(&|parts| parts.each()[part]).0).collect();
            println!(
                "{to:<14}{:>9}{:>5}{:>26}{}",
                row.mebibytes,
                samples.len(),
                format!("{median:.0} [{p10:.0}..{p90:.0}]"),
                parts.iter().map(|part| format!("{part:>9.0}")).collect::<String>()
            );
            let parts: Map<_, _> =
                PARTS.iter().zip(parts).map(|(name, part)| ((*name).to_owned(), part.into())).collect();
            objects.push(json!({
                "to": to, "mebibytes": row.mebibytes, "n": samples.len(), "instructions": median, "p10": p10,
                "p90": p90, "parts": parts,
            }));
        }
    }
    json!({"unit": "instructions, emulated", "cpu": machine.cpu, "rows": objects})
}

fn round_trips(machine: &Machine, world: &Map<String, Value>, scale: f64) -> Value {
    println!(
        "world-switch: instructions per round trip, seen from the host's user space ({} on emulated {})",
        machine.name, machine.cpu
    );
    let mut object = json!({"unit": "instructions, emulated", "cpu": machine.cpu});
    for (name, samples) in world {
        let samples: Vec<f64> = samples
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .map(|ticks| ticks * scale)
            .collect();
        let (median, p10, p90) = spread(&samples);
        println!("{name:<20}n={:<6}{median:.0} [{p10:.0}..{p90:.0}]", samples.len());
        object[name] = json!({"n": samples.len(), "instructions": median, "p10": p10, "p90": p90});
    }
    object
}
