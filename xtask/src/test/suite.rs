//! Suites: each boots one machine and gets many verdicts out of it. They are described in `tests/suites/*.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

use super::verdict::{Outcome, Verdicts};
use crate::build::{self, Contents, Products, Variant, cargo};
use crate::machine::{Deployment, Machine, Overrides};
use crate::paths::Paths;
use crate::setup::Setup;
use crate::vm::event::Event;
use crate::vm::outside::{Outside, Request};
use crate::vm::qmp::Qmp;
use crate::vm::{Boot, Launch, Output, Vm};

/// One suite.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Suite {
    /// The file's name without `.toml`.
    #[serde(skip)]
    pub name: String,
    /// Why it needs a boot of its own.
    pub description: String,
    /// The machine, from `qemu-configs/`.
    pub machine: String,
    /// CPU models: with `smp`, the suite runs once on each with each number of CPUs, as `NAME-CPU-SMP`.
    #[serde(default)]
    pub cpus: Vec<String>,
    /// Numbers of CPUs.
    #[serde(default)]
    pub smp: Vec<u32>,
    /// `CPU-SMP` of what runs without `--slow`; the rest is slow.
    #[serde(default)]
    pub quick: Vec<String>,
    /// Further machine options for some CPU models.
    #[serde(default)]
    pub options: BTreeMap<String, Vec<String>>,
    /// Run on the machine without the hypervisor.
    #[serde(default)]
    pub bare: bool,
    /// Needs the hypervisor with fault knobs.
    #[serde(default)]
    pub fault_knobs: bool,
    /// Runs only with `--slow`.
    #[serde(default)]
    pub slow: bool,
    /// Rough cost for `--list`.
    pub seconds: u32,
    /// The program of `tests/` that init runs in the host, and its arguments.
    pub command: Vec<String>,
    /// Model files, relative to the checkout.
    #[serde(default)]
    pub models: Vec<String>,
    /// A test may reset the machine.
    #[serde(default)]
    pub resets: bool,
    /// Appended to the host's command line.
    #[serde(default)]
    pub append: String,
    /// Every test; one that does not report fails.
    pub tests: Vec<String>,
    /// The same suite in the S-EL2 deployment, as `s-el2-NAME`.
    #[serde(default)]
    pub s_el2: Option<Secure>,
}

/// What is different for a suite in the S-EL2 deployment.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Secure {
    /// The machine.
    pub machine: String,
    /// `CPU-SMP` that it runs on, if the suite has several; the first without `--slow`.
    #[serde(default)]
    pub on: Vec<String>,
    /// Runs only with `--slow`.
    #[serde(default)]
    pub slow: bool,
    /// Tests that cannot pass there.
    #[serde(default)]
    pub leave_out: Vec<String>,
}

impl Suite {
    /// Reads every suite, sorted by name. There may be none.
    pub fn load_all(paths: &Paths) -> Result<Vec<Self>> {
        let dir = paths.at("tests/suites");
        let mut files: Vec<PathBuf> = match fs::read_dir(&dir) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(_) => return Ok(Vec::new()),
        };
        files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
        files.sort();
        files
            .iter()
            .map(|file| {
                let text =
                    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
                let mut suite: Self =
                    toml::from_str(&text).with_context(|| format!("in {}", file.display()))?;
                suite.name =
                    file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
                anyhow::ensure!(!suite.command.is_empty(), "{} has no command", file.display());
                suite.expanded()
            })
            .collect::<Result<Vec<_>>>()
            .map(|suites| suites.concat())
    }

    /// The suite in each deployment, on each of its CPUs.
    fn expanded(mut self) -> Result<Vec<Self>> {
        let Some(secure) = self.s_el2.take() else { return self.on_its_cpus() };
        let mut same = Self {
            name: format!("s-el2-{}", self.name),
            machine: secure.machine,
            slow: self.slow || secure.slow,
            ..self.clone()
        };
        for test in &secure.leave_out {
            anyhow::ensure!(
                self.tests.contains(test),
                "{}: leaves out {test}, which it does not have",
                same.name
            );
        }
        same.tests.retain(|test| !secure.leave_out.contains(test));
        let mut suites = same.on_its_cpus()?;
        if !secure.on.is_empty() {
            let pair = |suite: &Self| secure.on.iter().position(|on| suite.name.ends_with(&format!("-{on}")));
            suites.retain(|suite| pair(suite).is_some());
            anyhow::ensure!(suites.len() == secure.on.len(), "{}: a CPU that it does not have", self.name);
            for suite in &mut suites {
                suite.slow = secure.slow || pair(suite) != Some(0);
            }
        }
        suites.extend(self.on_its_cpus()?);
        Ok(suites)
    }

    /// The suite on each of its CPUs.
    fn on_its_cpus(self) -> Result<Vec<Self>> {
        anyhow::ensure!(self.cpus.is_empty() == self.smp.is_empty(), "{}: cpus without smp", self.name);
        if self.cpus.is_empty() {
            return Ok(vec![self]);
        }
        let pairs = self.cpus.iter().flat_map(|cpu| self.smp.iter().map(move |smp| (cpu, smp)));
        let suites: Vec<Self> = pairs
            .map(|(cpu, smp)| {
                let pair = format!("{cpu}-{smp}");
                Self {
                    name: format!("{}-{pair}", self.name),
                    cpus: vec![cpu.clone()],
                    smp: vec![*smp],
                    slow: self.slow || !self.quick.contains(&pair),
                    ..self.clone()
                }
            })
            .collect();
        let known = |pair: &String| suites.iter().any(|suite| suite.name == format!("{}-{pair}", self.name));
        anyhow::ensure!(self.quick.iter().all(known), "{}: quick names a pair that is none", self.name);
        Ok(suites)
    }

    /// A suite of the S-EL2 deployment under the name that it has at EL2; none if it is not of that deployment.
    pub fn secure_as_el2(mut self) -> Option<Self> {
        self.name = self.name.strip_prefix("s-el2-")?.to_owned();
        Some(self)
    }

    /// The CPUs that it runs on, if not the machine's own.
    fn overrides(&self) -> Overrides {
        Overrides { cpu: self.cpus.first().cloned(), smp: self.smp.first().copied(), ..Overrides::default() }
    }

    /// The tests whose full name contains `filter`.
    pub fn selected(&self, filter: &str) -> Vec<String> {
        self.tests.iter().filter(|test| format!("{}::{test}", self.name).contains(filter)).cloned().collect()
    }

    /// The hypervisor image that it needs.
    pub fn variant(&self) -> Variant {
        if self.fault_knobs { Variant::FaultKnobs } else { Variant::Shipped }
    }
}

/// Builds what a suite needs, runs it and records a verdict for each of its tests.
pub fn run(paths: &Paths, setup: &Setup, suite: &Suite, filter: &str, verdicts: &mut Verdicts) -> Result<()> {
    let tests = suite.selected(filter);
    if tests.is_empty() {
        return Ok(());
    }
    eprintln!(
        "test: {} ({} tests, about {} s): {}",
        suite.name,
        tests.len(),
        suite.seconds,
        suite.description
    );
    if let Err(error) = run_machine(paths, setup, suite, &tests, verdicts) {
        verdicts.add(&suite.name, "(the suite)", Outcome::Failed(format!("{error:#}")), 0.0);
    }
    for test in &tests {
        if !verdicts.contains(&suite.name, test) {
            verdicts.add(
                &suite.name,
                test,
                Outcome::Failed("the machine ended without a verdict".into()),
                0.0,
            );
        }
    }
    Ok(())
}

fn run_machine(
    paths: &Paths,
    setup: &Setup,
    suite: &Suite,
    tests: &[String],
    verdicts: &mut Verdicts,
) -> Result<()> {
    let mut machine = Machine::load(paths, &suite.machine)?;
    machine.apply(&suite.overrides())?;
    machine.machine.extend(suite.options.get(&machine.cpu).into_iter().flatten().cloned());
    if !suite.append.is_empty() {
        machine.command_line = format!("{} {}", machine.command_line, suite.append);
    }
    if suite.bare {
        machine = machine.bare();
    }
    let products = build::machine(paths, setup, suite.variant(), &machine, false)?;
    let (dir, _lock) = paths.state("test", &suite.name)?;
    let initrd = initrd(paths, setup, &products, suite, tests)?;
    let kernel = paths.at(&setup.kernel.image);
    let boot = match machine.deployment {
        Deployment::BareEl1 => {
            let path = dir.join("initrd.img");
            fs::write(&path, initrd).with_context(|| format!("cannot write {}", path.display()))?;
            Boot::Bare { kernel, initrd: path }
        }
        Deployment::El2 | Deployment::SEl2 => {
            let kernel = fs::read(&kernel).with_context(|| format!("cannot read {}", kernel.display()))?;
            let bundle = crate::run::bundle(&products, &kernel, &initrd, &machine, &dir)?;
            crate::run::boot(&products, bundle)
        }
    };
    let npu = build::npu(paths, &machine)?;
    let launch =
        Launch { machine: &machine, boot, dir: &dir, gdb_port: None, npu, reset_ends: !suite.resets };
    let mut vm = Vm::start(&launch)?;
    let loaded = vm.loaded();
    for large in ["bundle.img", "initrd.img"] {
        // Only one of them exists.
        let _ = fs::remove_file(dir.join(large));
    }
    loaded
        .and_then(|qmp| collect(&mut vm, qmp, suite, tests, verdicts))
        .with_context(|| format!("logs are in {}", dir.display()))
}

fn initrd(
    paths: &Paths,
    setup: &Setup,
    products: &Products,
    suite: &Suite,
    tests: &[String],
) -> Result<Vec<u8>> {
    let mut files = Vec::new();
    let program = &suite.command[0];
    if let Some(name) = program.strip_prefix("/bin/").filter(|name| *name != "flexserve") {
        let built = build::stripped(&cargo::build(paths, &setup.toolchain, &cargo::TESTS)?.join(name))?;
        let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
        files.push((program.clone(), bytes, true));
    }
    for (name, part) in
        [("guest-probe.elf", &products.probe), ("flexserve_attack.ko", &products.attack_module)]
    {
        let Some(path) = part else { continue };
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        files.push((format!("/usr/lib/flexserve/{name}"), bytes, false));
    }
    let job = json!({"action": "exec", "argv": suite.command, "tests": tests});
    let models = suite.models.iter().map(|model| paths.at(model)).collect();
    build::initramfs(products, &Contents { models, files, job })
}

/// Takes verdicts until the machine ends.
fn collect(vm: &mut Vm, qmp: Qmp, suite: &Suite, tests: &[String], verdicts: &mut Verdicts) -> Result<()> {
    let mut outside = Outside::open(vm, qmp)?;
    let mut last = Instant::now();
    let mut done = false;
    let mut boots = 0;
    loop {
        match vm.output()? {
            Output::Event(Event::Ready { .. }) => boots += 1,
            Output::Event(Event::Test { name, ok, skipped, detail }) => {
                let seconds = std::mem::replace(&mut last, Instant::now()).elapsed().as_secs_f64();
                let outcome = match (ok, skipped) {
                    (_, true) => Outcome::Skipped(detail),
                    (true, false) => Outcome::Passed,
                    (false, false) => Outcome::Failed(detail),
                };
                let outcome = if verdicts.contains(&suite.name, &name) {
                    Outcome::Failed("it reported twice".into())
                } else if !tests.contains(&name) {
                    Outcome::Failed("it is not listed in the suite's file".into())
                } else {
                    outcome
                };
                verdicts.add(&suite.name, &name, outcome, seconds);
            }
            Output::Event(Event::Ask { id, request: Request::Boot }) => {
                vm.send_line(&json!({"id": id, "ok": true, "answer": {"boot": boots}}).to_string())?;
            }
            Output::Event(Event::Ask { id, request: Request::Outlive { how, test, bytes, found } }) => {
                let hits = outside.outlive(how, &bytes, || {
                    vm.send_line(&json!({"id": id, "ok": true, "answer": {}}).to_string())
                })?;
                let seconds = std::mem::replace(&mut last, Instant::now()).elapsed().as_secs_f64();
                let outcome = match hits.first() {
                    _ if hits.is_empty() != found => Outcome::Passed,
                    Some(first) => Outcome::Failed(format!("the secret is left in RAM, first at {first:#x}")),
                    None => Outcome::Failed("the secret is gone although nothing removes it".into()),
                };
                verdicts.add(&suite.name, &test, outcome, seconds);
                if tests.iter().all(|test| verdicts.contains(&suite.name, test)) {
                    vm.stop();
                    return Ok(());
                }
                outside.restart(how)?;
            }
            Output::Event(Event::Ask { id, request }) => {
                let answer = match outside.answer(&request) {
                    Ok(answer) => json!({"id": id, "ok": true, "answer": answer}),
                    Err(error) => json!({"id": id, "ok": false, "error": format!("{error:#}")}),
                };
                vm.send_line(&answer.to_string())?;
            }
            Output::Event(Event::Error { code, kind, message }) => {
                anyhow::bail!("the host reports error {code} {kind}: {message}")
            }
            Output::Event(Event::Done) => done = true,
            Output::Event(_) | Output::Line(_) => {}
            Output::Ended(true) if done => return Ok(()),
            Output::Ended(_) => anyhow::bail!("the machine ended before the suite did"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_committed_suite_names_an_existing_machine_and_models() {
        let paths = Paths::discover().unwrap();
        for suite in Suite::load_all(&paths).unwrap() {
            assert!(Machine::load(&paths, &suite.machine).is_ok(), "{}", suite.name);
            assert!(suite.models.iter().all(|model| paths.at(model).exists()), "{}", suite.name);
            let mut names = suite.tests.clone();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), suite.tests.len(), "{} names a test twice", suite.name);
        }
    }

    #[test]
    fn suites_of_several_cpus_are_computed() {
        let suites = Suite::load_all(&Paths::discover().unwrap()).unwrap();
        let matrix: Vec<&Suite> = suites
            .iter()
            .filter(|suite| suite.name.starts_with("matrix-") && !suite.cpus.is_empty())
            .collect();
        assert_eq!(matrix.len(), 9);
        assert_eq!(matrix.iter().filter(|suite| !suite.slow).count(), 5);
        let one = matrix.iter().find(|suite| suite.name == "matrix-cortex-a710-4").unwrap();
        assert_eq!((one.overrides().cpu.as_deref(), one.overrides().smp), (Some("cortex-a710"), Some(4)));
        let mut wrong = (*one).clone();
        wrong.quick = vec!["other-1".into()];
        assert!(wrong.expanded().is_err());
        let secure = suites.iter().find(|suite| suite.name == "s-el2-matrix-max-4").unwrap();
        assert_eq!((secure.machine.as_str(), secure.slow), ("s-el2", false));
        assert!(!suites.iter().any(|suite| suite.name.starts_with("s-el2-matrix-neoverse")));
        let mut wrong = (*one).clone();
        let leave_out = vec!["none".to_owned()];
        wrong.s_el2 = Some(Secure { machine: "s-el2".into(), on: Vec::new(), slow: false, leave_out });
        assert!(wrong.expanded().is_err());
    }

    #[test]
    fn filters_match_the_full_name() {
        let suite: Suite = toml::from_str(
            "description = 'd'\nmachine = 'el2'\nseconds = 1\ncommand = ['/bin/x']\ntests = ['give', 'recall']",
        )
        .unwrap();
        let suite = Suite { name: "flexmem".into(), ..suite };
        assert_eq!(suite.selected("mem::give"), ["give"]);
        assert_eq!(suite.selected("").len(), 2);
        assert!(suite.selected("other").is_empty());
    }
}
