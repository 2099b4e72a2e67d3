//! What give and recall cost, in instructions per page, split by part. The hypervisor counts ticks of the system counter;
//! under `-icount shift=0` one instruction takes one nanosecond of it.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Bench, spread};
use crate::machine::Machine;

/// One size, as `flexserve flexmem-bench` reports it.
#[derive(Debug, Deserialize)]
struct Row {
    pages: u64,
    resident: u64,
    give: Vec<Parts>,
    recall: Vec<Parts>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Parts {
    calls: u64,
    validate: u64,
    tables: u64,
    tlbi: u64,
    scrub: u64,
}

impl Parts {
    fn total(&self) -> u64 {
        self.validate + self.tables + self.tlbi + self.scrub
    }
}

/// Runs it, prints a table, returns the report's object.
pub fn run(bench: &Bench) -> Result<Value> {
    let mut machine = Machine::load(bench.paths, "el2")?;
    machine.smp = 1;
    machine.icount = true;
    let mut argv = vec!["/bin/flexserve", "flexmem-bench"];
    if bench.quick {
        argv.push("--quick");
    }
    eprintln!("bench: flexmem: one boot of {} on {} under -icount shift=0", machine.name, machine.cpu);
    let done = bench.boot("flexmem", &machine, false, json!({"action": "exec", "argv": argv}))?;
    let rate = done.counters.get("ticks_per_second").and_then(Value::as_u64).context("no tick rate")?;
    let rows = done.counters.get("flexmem").cloned().context("flexmem-bench reported nothing")?;
    let rows: Vec<Row> = serde_json::from_value(rows).context("flexmem-bench reported something else")?;
    // A tick is this many instructions.
    let scale = 1e9 / rate as f64;
    println!(
        "flexmem: instructions per page (emulated {}, one CPU, n = rounds; median [p10..p90])",
        machine.cpu
    );
    println!(
        "{:<8}{:>7}{:>10}{:>4}{:>22}{:>10}{:>9}{:>8}{:>9}{:>7}",
        "", "pages", "resident", "n", "per page", "validate", "tables", "tlbi", "scrub", "calls"
    );
    let mut objects = Vec::new();
    for row in &rows {
        for (name, samples) in [("give", &row.give), ("recall", &row.recall)] {
            let per_page = |f: &dyn Fn(&Parts) -> u64| -> Vec<f64> {
                samples.iter().map(|parts| f(parts) as f64 * scale / row.pages.max(1) as f64).collect()
            };
            let (median, p10, p90) = spread(&per_page(&Parts::total));
            let [validate, tables, tlbi, scrub] = [
                spread(&per_page(&|p| p.validate)).0,
                spread(&per_page(&|p| p.tables)).0,
                spread(&per_page(&|p| p.tlbi)).0,
                spread(&per_page(&|p| p.scrub)).0,
            ];
            let calls = samples.iter().map(|p| p.calls).max().unwrap_or(0);
            println!(
                "{name:<8}{:>7}{:>10}{:>4}{:>22}{validate:>10.0}{tables:>9.0}{tlbi:>8.0}{scrub:>9.0}{calls:>7}",
                row.pages,
                row.resident,
                samples.len(),
                format!("{median:.0} [{p10:.0}..{p90:.0}]"),
            );
            objects.push(json!({
                "operation": name, "pages": row.pages, "resident": row.resident, "n": samples.len(), "calls": calls,
                "instructions_per_page": median, "p10": p10, "p90": p90,
                "parts": {"validate": validate, "tables": tables, "tlbi": tlbi, "scrub": scrub},
            }));
        }
    }
    Ok(json!({"unit": "instructions per page, emulated", "cpu": machine.cpu, "rows": objects}))
}
