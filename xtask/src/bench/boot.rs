//! What the hypervisor adds to the host's boot: the same kernel and initrd with it and without it.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Bench, spread};
use crate::machine::Machine;

/// Runs it, prints both ratios, returns the report's object.
pub fn run(bench: &Bench) -> Result<Value> {
    let job = json!({"action": "exec", "argv": ["/bin/flexserve", "--version"]});
    let mut counted = Machine::load(bench.paths, "el2")?;
    counted.smp = 1;
    counted.icount = true;
    eprintln!("bench: boot: two boots under -icount shift=0");
    let bare = bench.boot("boot", &counted, true, job.clone())?.ticks;
    let protected = bench.boot("boot", &counted, false, job.clone())?;
    let (with, scrub) = (protected.ticks, protected.scrub);
    let virtual_ratio = with as f64 / bare as f64;
    let ratio_without_scrub = (with - scrub.min(with)) as f64 / bare as f64;
    println!(
        "boot: virtual time to user space (1 CPU, one instruction a ns, idle time included, emulated): \
         bare EL1 {bare} ticks, with the hypervisor {with} ticks, ratio {virtual_ratio:.3}; of these {scrub} ticks are the \
         zeroing of all {} of RAM, without which the ratio is {ratio_without_scrub:.3}",
        counted.memory
    );

    let pairs = if bench.quick { 3 } else { 10 };
    let mut machine = Machine::load(bench.paths, "el2")?;
    machine.smp = 1;
    let (mut bare_ms, mut with_ms, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 1..=pairs {
        let a = bench.boot("boot", &machine, true, job.clone())?.boot_ms;
        let b = bench.boot("boot", &machine, false, job.clone())?.boot_ms;
        eprintln!("bench: boot: pair {pair}/{pairs}: {a:.0} ms, {b:.0} ms (emulated)");
        bare_ms.push(a);
        with_ms.push(b);
        ratios.push(b / a);
    }
    let (median, p10, p90) = spread(&ratios);
    println!(
        "boot: wall time, {pairs} alternating pairs (emulated): bare EL1 {:.0} ms, with the hypervisor {:.0} ms, \
         ratio {median:.3} [{p10:.3}..{p90:.3}]",
        spread(&bare_ms).0,
        spread(&with_ms).0
    );
    Ok(json!({
        "cpu": machine.cpu,
        "virtual_ticks": {"bare": bare, "hypervisor": with, "ratio": virtual_ratio, "scrub": scrub,
                          "ratio_without_scrub": ratio_without_scrub},
        "wall": {"unit": "ms, emulated", "n": pairs, "bare": spread(&bare_ms).0, "hypervisor": spread(&with_ms).0,
                 "ratio": median, "p10": p10, "p90": p90},
    }))
}
