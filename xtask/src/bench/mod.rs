//! `cargo xtask bench`: measurements, and the report under `target/bench`. Each result is a count, a number of instructions
//! (QEMU's `-icount shift=0`, one CPU: repeatable), or a ratio of wall times of alternating runs (informative).

mod boot;
mod engine;
mod flexmem;
mod npu;
mod report;
mod switches;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::build::{self, Contents, Products, Variant};
use crate::cli::BenchArgs;
use crate::failure::{Code, Failure};
use crate::machine::{Deployment, Machine};
use crate::paths::Paths;
use crate::setup::{self, Setup};
use crate::vm::event::Event;
use crate::vm::{Boot, Launch, Output, Vm};

/// What every benchmark needs.
pub struct Bench<'a> {
    paths: &'a Paths,
    setup: Setup,
    products: Products,
    /// Of the S-EL2 deployment, where a benchmark needs it.
    secure: Option<Products>,
    quick: bool,
}

/// The machine was up, and did its job.
struct Finished {
    /// Wall time from start to user space, in ms.
    boot_ms: f64,
    /// System counter when user space was up.
    ticks: u64,
    /// Ticks that the hypervisor spent zeroing RAM before the host started; 0 without it.
    scrub: u64,
    /// What the job reported.
    counters: Map<String, Value>,
}

/// Runs the benchmarks that are named, or all.
pub fn main(paths: &Paths, args: &BenchArgs) -> Result<()> {
    const NAMES: [&str; 6] = ["flexmem", "boot", "engine", "npu", "npu-switch", "world-switch"];
    if let Some(unknown) = args.names.iter().find(|name| !NAMES.contains(&name.as_str())) {
        return Err(Failure::usage(
            format!("there is no benchmark {unknown:?}"),
            format!("choose among {}", NAMES.join(", ")),
        ));
    }
    let setup = setup::ensure(paths)?;
    let chosen = |name: &str| args.names.is_empty() || args.names.iter().any(|n| n == name);
    let mut report = Map::new();
    if chosen("engine") {
        let print = |line: &str| if args.json { eprintln!("{line}") } else { println!("{line}") };
        report.insert("engine".into(), engine::run(paths, &setup, args.quick, &print)?);
    }
    // Part of the engine's, but without llama.cpp.
    let npu = chosen("engine") || chosen("npu");
    let switches = chosen("npu-switch") || chosen("world-switch");
    if chosen("flexmem") || chosen("boot") || npu || switches {
        let products = build::all(paths, &setup, Variant::Shipped)?;
        let secure = switches.then(|| {
            let machine = Machine::load(paths, "s-el2")?;
            build::machine(paths, &setup, Variant::Shipped, &machine, false)
        });
        let bench = Bench { paths, setup, products, secure: secure.transpose()?, quick: args.quick };
        if chosen("flexmem") {
            report.insert("flexmem".into(), flexmem::run(&bench)?);
        }
        if chosen("boot") {
            report.insert("boot".into(), boot::run(&bench)?);
        }
        if npu {
            report.insert("npu".into(), npu::run(&bench)?);
        }
        if switches {
            report.extend(switches::run(&bench)?);
        }
    }
    let dir = paths.target("bench");
    report::write(&dir, &report)?;
    let baseline = paths.at("docs/bench-baseline.json");
    if args.check {
        report::compare(&baseline, &report)?;
    }
    if args.json {
        let mut object = Map::from_iter([("schema".to_owned(), json!(1))]);
        object.extend(report);
        println!("{}", Value::Object(object));
    }
    eprintln!("bench: {}", dir.join("report.html").display());
    Ok(())
}

impl Bench<'_> {
    /// Boots `machine` with `job`; `name` is that of its folder.
    fn boot(&self, name: &str, machine: &Machine, bare: bool, job: Value) -> Result<Finished> {
        self.boot_with(name, machine, bare, job, Vec::new())
    }

    /// The same, with models in the host's file system.
    fn boot_with(
        &self,
        name: &str,
        machine: &Machine,
        bare: bool,
        job: Value,
        models: Vec<PathBuf>,
    ) -> Result<Finished> {
        let (dir, _lock) = self.paths.state("bench", name)?;
        let products = match machine.deployment {
            Deployment::SEl2 => self.secure.as_ref().context("the S-EL2 deployment is not built")?,
            _ => &self.products,
        };
        let initrd = build::initramfs(products, &Contents { job, models, ..Contents::default() })?;
        let kernel = self.paths.at(&self.setup.kernel.image);
        let bare_machine = machine.bare();
        let (machine, boot) = if bare {
            let path = dir.join("initrd.img");
            std::fs::write(&path, initrd).with_context(|| format!("cannot write {}", path.display()))?;
            (&bare_machine, Boot::Bare { kernel, initrd: path })
        } else {
            let image =
                std::fs::read(&kernel).with_context(|| format!("cannot read {}", kernel.display()))?;
            let bundle = crate::run::bundle(products, &image, &initrd, machine, &dir)?;
            (machine, crate::run::boot(products, bundle))
        };
        let npu = build::npu(self.paths, machine)?;
        let launch = Launch { machine, boot, dir: &dir, gdb_port: None, npu, reset_ends: true };
        follow(Vm::start(&launch)?, &dir)
    }
}

fn follow(mut vm: Vm, dir: &Path) -> Result<Finished> {
    let mut up = None;
    let mut result = Map::new();
    loop {
        match vm.output()? {
            Output::Event(Event::Ready { ticks }) => {
                up = Some((vm.elapsed().as_secs_f64() * 1000.0, ticks));
            }
            Output::Event(Event::Result { counters }) => result = counters,
            Output::Event(Event::Error { message, .. }) => {
                return Err(Failure::new(
                    Code::Partition,
                    message,
                    "the benchmark's program",
                    format!("read {}", dir.join("serial.log").display()),
                ));
            }
            Output::Ended(_) => break,
            _ => {}
        }
    }
    let (boot_ms, ticks) = up.ok_or_else(|| {
        Failure::new(
            Code::Boot,
            "the host did not come up",
            "the hypervisor or the host kernel",
            format!("read {}", dir.join("serial.log").display()),
        )
    })?;
    let log = std::fs::read_to_string(dir.join("trusted.log")).unwrap_or_default();
    let scrub = log.split("RAM scrubbed in ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    Ok(Finished { boot_ms, ticks, scrub: scrub.unwrap_or(0), counters: result })
}

/// Median, tenth and ninetieth percentile.
fn spread(samples: &[f64]) -> (f64, f64, f64) {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |fraction: f64| {
        let index = ((sorted.len().saturating_sub(1)) as f64 * fraction).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    };
    (at(0.5), at(0.1), at(0.9))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_spread_of_samples() {
        assert_eq!(super::spread(&[5.0, 1.0, 3.0, 2.0, 4.0]), (3.0, 1.0, 5.0));
        assert_eq!(super::spread(&[7.0]), (7.0, 7.0, 7.0));
        assert!(super::spread(&[]).0.is_nan());
    }
}
