//! `cargo xtask run`: boots the system, answers one prompt or opens a session, says where time and pages went.

pub mod report;
mod session;
mod summary;

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::build::{self, Contents, DEFAULT_MODEL, Products, Variant};
use crate::cli::{AnswerArgs, DeploymentName, FirmwareName, RunArgs};
use crate::failure::{Code, Failure};
use crate::machine::{Machine, Overrides};
use crate::paths::Paths;
use crate::setup;
use crate::vm::event::Event;
use crate::vm::{Boot, Launch, Output, Vm};
use report::Report;

/// The prompt when none is given.
const DEFAULT_PROMPT: &str = "wake me at half past six tomorrow";
/// The longest prompt: it travels in one request.
const MAX_PROMPT: usize = 16 << 10;

/// Runs; with `gdb_port` the machine waits for a debugger.
pub fn main(paths: &Paths, args: &RunArgs, gdb_port: Option<u16>) -> Result<()> {
    let mut report = Report {
        schema: 1,
        deployment: args.deployment.as_str().into(),
        firmware: args.firmware.as_str().into(),
        ..Report::default()
    };
    let result = prepare_and_run(paths, args, gdb_port, &mut report);
    if let Err(error) = &result {
        report.fail(&Failure::of(error));
    }
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    result
}

fn prepare_and_run(paths: &Paths, args: &RunArgs, gdb_port: Option<u16>, report: &mut Report) -> Result<()> {
    let machine = machine(paths, args)?;
    report.cpu.clone_from(&machine.cpu);
    let model = model(paths, args, &machine)?;
    report.model = model.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    check(args)?;
    let setup = setup::ensure(paths)?;
    let custom = args.host_kernel.is_some();
    let products = build::machine(paths, &setup, Variant::Shipped, &machine, custom)?;
    let (dir, _lock) = paths.state("run", "run")?;
    let (kernel, initrd) = match &args.host_kernel {
        Some(kernel) => {
            let initrd = args.host_initrd.as_deref().map(read_argument).transpose()?;
            (read_argument(kernel)?, initrd.unwrap_or_default())
        }
        None => (read_file(&paths.at(&setup.kernel.image))?, initrd(args, &products, &model)?),
    };
    let bundle = bundle(&products, &kernel, &initrd, &machine, &dir)?;
    let launch = Launch {
        machine: &machine,
        boot: boot(&products, bundle.clone()),
        dir: &dir,
        gdb_port,
        npu: build::npu(paths, &machine)?,
        reset_ends: !custom,
    };
    if let Some(port) = gdb_port {
        crate::gdb::print_command(&products.symbols, port);
    }
    eprintln!("run: booting {} ({} CPUs, {}), emulated", machine.name, machine.smp, machine.memory);
    // Before the machine's threads exist, which must not see Ctrl-C.
    let mut user = (is_session(args) && !custom).then(session::User::new).transpose()?;
    let mut vm = Vm::start(&launch)?;
    let loaded = vm.loaded();
    // It holds the prompt, which must not stay behind.
    fs::remove_file(&bundle).context("cannot remove the bundle")?;
    loaded?;
    if custom {
        watch(&mut vm)?;
        report.ok = true;
        return Ok(());
    }
    converse(&mut vm, args, report, user.as_mut())?;
    if !args.json {
        summary::print(report, &dir.join("trusted.log"));
    }
    Ok(())
}

/// The machine definition with the command line's changes.
pub fn machine(paths: &Paths, args: &RunArgs) -> Result<Machine> {
    if args.deployment == DeploymentName::El2 && args.firmware == FirmwareName::TfA {
        return Err(Failure::usage(
            "--deployment el2 has no firmware below the hypervisor",
            "add --deployment s-el2, or leave --firmware out",
        ));
    }
    let mut machine = Machine::load(paths, args.deployment.as_str())?;
    machine.firmware = args.firmware;
    machine.apply(&Overrides {
        cpu: args.cpu.clone(),
        smp: args.smp,
        memory: args.mem.clone(),
        append: args.append.clone(),
    })?;
    machine.npu &= !args.no_npu;
    Ok(machine)
}

fn model(paths: &Paths, args: &RunArgs, machine: &Machine) -> Result<PathBuf> {
    let path = args.model.clone().unwrap_or_else(|| paths.at(DEFAULT_MODEL));
    if args.host_kernel.is_none() {
        build::check_model(&path)?;
        fits(machine, fs::metadata(&path).map_or(0, |data| data.len()))?;
    }
    Ok(path)
}

/// Refuses what takes more than half of RAM, so that the host has room to work in.
fn fits(machine: &Machine, size: u64) -> Result<()> {
    if size <= machine.memory_bytes()? / 2 {
        return Ok(());
    }
    Err(Failure::new(
        Code::HostMemory,
        format!("{} MiB to load do not fit a machine of {}", size >> 20, machine.memory),
        "the machine's size",
        "use more --mem or a smaller model",
    ))
}

/// How keys and values can be stored.
const CACHE_TYPES: &[&str] = &["f32", "f16", "q8_0"];

fn check(args: &RunArgs) -> Result<()> {
    if args.host_initrd.is_some() && args.host_kernel.is_none() {
        return Err(Failure::usage("--host-initrd needs --host-kernel", "name the kernel too"));
    }
    if args.prompt.as_ref().is_some_and(|prompt| prompt.len() > MAX_PROMPT) {
        return Err(Failure::usage(format!("the prompt is longer than {MAX_PROMPT} bytes"), "shorten it"));
    }
    if args.temp.is_some_and(|temp| !temp.is_finite() || temp < 0.0) {
        return Err(Failure::usage("--temp must be a number from 0 up", "use for example --temp 0.8"));
    }
    if args.max_tokens == Some(0) {
        return Err(Failure::usage("--max-tokens 0 generates nothing", "use 1 or more"));
    }
    if let Some(other) = args.cache_type.as_deref().filter(|ty| !CACHE_TYPES.contains(ty)) {
        return Err(Failure::usage(
            format!("there is no --cache-type {other}"),
            format!("use one of {}", CACHE_TYPES.join(", ")),
        ));
    }
    if args.keep.is_some() && !args.context_shift {
        return Err(Failure::usage("--keep means nothing without --context-shift", "give both"));
    }
    Ok(())
}

/// Whether the user's lines are the requests. A program that wants one object gets one answer.
fn is_session(args: &RunArgs) -> bool {
    args.prompt.is_none() && !args.json
}

fn initrd(args: &RunArgs, products: &Products, model: &Path) -> Result<Vec<u8>> {
    Products::need(&products.flexserve, "flexserve command")?;
    Products::need(&products.guest, "partition image")?;
    let AnswerArgs { top_k, top_p, min_p, repeat_penalty, repeat_last_n, stop, system, think, .. } =
        &args.answer;
    let job = json!({
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "repeat_last_n": repeat_last_n,
        "stop": stop,
        "json_schema": json_schema(args)?,
        "system": system,
        "think": think,
        "action": "run",
        "prompt": (!is_session(args)).then(|| args.prompt.as_deref().unwrap_or(DEFAULT_PROMPT)),
        "model": build::model_path(model)?,
        "max_tokens": args.max_tokens,
        "context": args.ctx_size,
        "cache_type": args.cache_type,
        "context_shift": args.context_shift,
        "keep": args.keep,
        "temp": args.temp,
        "seed": args.seed,
        "no_npu": args.no_npu,
    });
    build::initramfs(products, &Contents { models: vec![model.to_path_buf()], files: Vec::new(), job })
}

/// The schema that the answer follows, read if it is a file's.
fn json_schema(args: &RunArgs) -> Result<Option<String>> {
    let Some(schema) = &args.answer.json_schema else { return Ok(None) };
    let text = match schema.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!("cannot read the schema {path}: {error}"), "name a file that can be read")
        })?,
        None => schema.clone(),
    };
    // The host would say so too, after a boot.
    if serde_json::from_str::<serde_json::Value>(&text).is_err() {
        return Err(Failure::usage("--json-schema is not JSON", "name a file as @FILE"));
    }
    Ok(Some(text))
}

/// Packs the bundle into `dir`.
pub fn bundle(
    products: &Products,
    kernel: &[u8],
    initrd: &[u8],
    machine: &Machine,
    dir: &Path,
) -> Result<PathBuf> {
    let hypervisor = read_file(Products::need(&products.hypervisor, "hypervisor")?)?;
    let parts = firmware::bundle::Parts {
        hypervisor: &hypervisor,
        kernel,
        initrd,
        command_line: &machine.command_line,
    };
    let bytes = firmware::bundle::pack(&parts)
        .map_err(|error| Failure::usage(format!("no bundle: {error}"), "check --host-kernel and --append"))?;
    fits(machine, bytes.len() as u64)?;
    let path = dir.join("bundle.img");
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// What boots a bundle: it alone, or the flash below it.
pub fn boot(products: &Products, bundle: PathBuf) -> Boot {
    match &products.flash {
        Some(flash) => Boot::Firmware { flash: flash.clone(), bundle },
        None => Boot::Bundle(bundle),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read_argument(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| {
        Failure::usage(format!("{} cannot be read: {error}", path.display()), "name an existing file")
    })
}

/// Shows the console of a host kernel that is not ours, until the machine ends.
fn watch(vm: &mut Vm) -> Result<()> {
    loop {
        match vm.output()? {
            Output::Line(line) => eprintln!("{line}"),
            Output::Event(event) => eprintln!("{event:?}"),
            Output::Ended(true) => return Ok(()),
            Output::Ended(false) => return Err(died(vm.dir())),
        }
    }
}

/// Follows our host through one request, or the user's session.
fn converse(
    vm: &mut Vm,
    args: &RunArgs,
    report: &mut Report,
    mut user: Option<&mut session::User>,
) -> Result<()> {
    let mut answer = String::new();
    let mut finished = false;
    let mut progress = Progress::default();
    loop {
        let output = match &mut user {
            Some(user) => user.output(vm)?,
            None => vm.output()?,
        };
        match output {
            Output::Line(_) => {}
            Output::Event(Event::Ready { .. }) => {
                let elapsed = vm.elapsed().as_millis() as u64;
                report.boot_ms = Some(elapsed);
                eprintln!("run: the host is up after {elapsed} ms (emulated)");
            }
            Output::Event(Event::Status { text }) => {
                progress.end();
                eprintln!("run: {}", printable(&text));
            }
            Output::Event(Event::Progress { what, done, total }) => {
                progress.show(&what, done, total);
            }
            Output::Event(Event::Token { text }) => {
                progress.end();
                if !args.json {
                    show(&text);
                }
                if user.is_none() {
                    answer.push_str(&text);
                }
            }
            Output::Event(Event::Thought { text }) => {
                progress.end();
                eprint!("{}", printable(&text));
            }
            Output::Event(Event::Prompt { chat }) => {
                progress.end();
                if let Some(user) = &mut user {
                    user.wanted(chat, vm)?;
                }
            }
            Output::Event(Event::Answer { stop }) => {
                show(if stop == "cancelled" { " (stopped)\n" } else { "\n" });
            }
            Output::Event(Event::Refusal { message }) => eprintln!("run: {}", printable(&message)),
            Output::Event(Event::Result { counters }) => {
                finished = true;
                report.take_counters(&counters);
                if let Some(whole) = counters.get("answer").and_then(serde_json::Value::as_str) {
                    whole.clone_into(&mut answer);
                }
                if !args.json && user.is_none() {
                    println!();
                }
            }
            Output::Event(Event::Error { code, kind, message }) => {
                return Err(host_error(code, &kind, &message, vm.dir()));
            }
            Output::Event(Event::Done) => {}
            Output::Event(_) => {}
            Output::Ended(_) if finished => break,
            Output::Ended(_) => {
                return Err(if report.boot_ms.is_none() { died(vm.dir()) } else { unanswered(vm.dir()) });
            }
        }
    }
    report.answer = Some(answer);
    report.ok = true;
    Ok(())
}

/// Text of the model on standard output. A terminal must not obey it.
fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    let clean;
    let text = if out.is_terminal() {
        clean = text
            .chars()
            .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
            .collect::<String>();
        &clean
    } else {
        text
    };
    // The reader may have gone; the run is still worth finishing.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Progress on standard error: one line that is rewritten on a terminal, else one line when the work is done.
#[derive(Default)]
struct Progress {
    open: bool,
}

impl Progress {
    fn show(&mut self, what: &str, done: u64, total: u64) {
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
        if std::io::stderr().is_terminal() {
            self.open = true;
            eprint!("\rrun: {} {percent:>3} %", printable(what));
        } else if done == total {
            eprintln!("run: {} {percent} %", printable(what));
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            eprintln!();
        }
    }
}

/// Text of the host on the user's terminal, without control characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The failure that the host reported.
fn host_error(code: i64, kind: &str, message: &str, dir: &Path) -> anyhow::Error {
    let code = Code::from_number(code).unwrap_or(Code::Partition);
    let fault = match code {
        Code::Usage => "the command line",
        Code::HostMemory => "the machine's size",
        Code::Integrity => "the file named",
        Code::Boot | Code::Setup => "the host",
        Code::Interrupted => "nobody",
        Code::Partition | Code::Failed => "the partition or what it was given",
    };
    let remedy = match code {
        Code::HostMemory => "use more --mem or a smaller model".to_owned(),
        _ => format!("see the message, and {}", dir.join("trusted.log").display()),
    };
    let kind = if kind.is_empty() { String::new() } else { format!("{kind}: ") };
    Failure::new(code, printable(&format!("{kind}{message}")), fault, remedy)
}

fn died(dir: &Path) -> anyhow::Error {
    for name in ["qemu.log", "trusted.log", "serial.log"] {
        for line in Vm::log_tail(dir, name, 8) {
            eprintln!("{name}: {}", printable(&line));
        }
    }
    Failure::new(
        Code::Boot,
        "the machine ended before the host was up",
        "the hypervisor, the host kernel or its command line",
        format!("read the logs in {}", dir.display()),
    )
}

fn unanswered(dir: &Path) -> anyhow::Error {
    Failure::new(
        Code::Partition,
        "the machine ended before the prompt was answered",
        "the host or the hypervisor",
        format!("read the logs in {}", dir.display()),
    )
}
