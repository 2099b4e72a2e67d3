//! The `flexserve` command.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use clap::Parser;
use flexserve::cli::{Cli, Command, RunArgs, Seed, random_seed};
use flexserve::device::Device;
use flexserve::error::{Code, Error, Result};
use flexserve::events::Event;
use flexserve::image::Image;
use flexserve::interactive::{
    HOW_TO_END, Interrupts, PROMPT, RawInput, converse, lines_of_json, lines_of_text,
};
use flexserve::load::Load;
use flexserve::machine::Machine;
use flexserve::output::{Mode, Output};
use flexserve::report::{Report, hex};
use flexserve::template::{HostTemplate, WARNING, render_limited};
use flexserve::virtio::block::scratch;
use flexserve::vmm::{Live, Options, run, with_partition};
use flexserve::{DEVICE_PATH, MODELS_PATH, bench, heap, model, sys};
use flexserve::{npu, npu_bench, switch_bench};
use guest_abi::virtio::{SLOT_MODEL, SLOT_SCRATCH};
use hyp_abi::ffa;
use hyp_abi::service::INFO_FAULT_KNOBS;
use hyp_abi::stats::{Cost, PartitionStats, SwitchCost, state};
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

/// What the user's Ctrl-C means.
static INTERRUPTS: Interrupts = Interrupts::new();

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => return answer(&args),
        Command::FlexmemBench { quick } => flexmem_bench(quick),
        Command::SwitchBench { quick } => switch_bench(quick),
        Command::NpuBench { seconds, rounds, run } => npu_bench(seconds, rounds, &run),
        Command::Ps => ps(),
        Command::RenderTemplate => render_limited(),
        Command::Logs { id } => logs(id),
        Command::Stats { json } => stats(json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flexserve: {error}");
            ExitCode::from(error.code as u8)
        }
    }
}

fn answer(args: &RunArgs) -> ExitCode {
    let mode = match (args.json, args.json_events) {
        (true, _) => Mode::Json,
        (_, true) => Mode::Events,
        _ => Mode::Text,
    };
    let output = Output::new(mode);
    let (descriptor, message) = output.on_bus_error();
    sys::on_bus_error(descriptor, message);
    cancel_on_interrupt();
    match answer_with(args, &output) {
        Ok(report) => {
            output.result(&report);
            let interrupted = report.stop == "cancelled";
            ExitCode::from(if interrupted { Code::Interrupted as u8 } else { 0 })
        }
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.code as u8)
        }
    }
}

fn answer_with(args: &RunArgs, output: &Output) -> Result<Report> {
    let path = model::find(args.model(), Path::new(MODELS_PATH))?;
    let seed = match args.seed {
        Seed::Fixed(seed) => seed,
        Seed::Random => random_seed()?,
    };
    let mut request = args.request(seed)?;
    // What is wrong on this side is said before the hypervisor is asked.
    request.to_bytes()?;
    let mut device = Device::open(Path::new(DEVICE_PATH))?;
    let info = device.info()?;
    if info.service_flags & INFO_FAULT_KNOBS != 0 {
        eprintln!(
            "flexserve: this hypervisor was built with fault knobs: it is for tests and protects nothing"
        );
    }
    let image = Image::load(&args.image)?;
    let (model_file, model) = model::open(&path)?;
    let mut template = None;
    if args.host_template {
        output.event(&Event::Status { text: WARNING });
        let chat = template.insert(HostTemplate::new(model.bytes(), args.system.as_deref(), args.think)?);
        if let Some(prompt) = &args.prompt {
            request = chat.request(prompt, &request)?;
            request.to_bytes()?;
        }
    }
    device.add_disk(SLOT_MODEL, model_file, true);
    let scratch = scratch(args.scratch).map_err(|error| {
        Error::usage(format!("the scratch file: {error}"), "make room for it, or use a smaller --scratch")
    })?;
    device.add_disk(SLOT_SCRATCH, scratch, false);
    let vcpus = image.manifest().vcpu_count;
    let needed = heap::needed(model.bytes(), args.context, args.cache, vcpus, npu::is_there());
    let heap_bytes = match (args.mem_heap, &needed) {
        (Some(bytes), _) => bytes,
        (None, Ok(needed)) => needed.heap(),
        (None, Err(error)) => return Err(error.clone()),
    };
    if let Ok(needed) = &needed {
        output.event(&Event::Status { text: &needed.describe(model.bytes().len(), heap_bytes) });
    }
    let load = Load { image: &image, model: model.bytes(), heap_bytes };
    let options = Options {
        ticks_per_second: info.ticks_per_second,
        threads: args.threads.unwrap_or_else(online_cpus),
        heap_grows: args.mem_heap.is_none(),
        cancel: &INTERRUPTS.cancel,
    };
    let mut tell = |event: &Event<'_>| {
        if !output.event(event) {
            INTERRUPTS.cancel.store(true, Ordering::Relaxed);
            INTERRUPTS.is_deaf.store(true, Ordering::Relaxed);
        }
    };
    if args.prompt.is_some() {
        return run(&device, &load, &request, &options, &mut tell);
    }
    let _raw = args.json_events.then(RawInput::new);
    let lines = if args.json_events { lines_of_json(&INTERRUPTS) } else { lines_of_text() };
    let session =
        |live: &mut Live<'_, Device>| converse(live, &request, template.as_mut(), &lines, &INTERRUPTS);
    with_partition(&device, &load, &options, &mut tell, session).map(|((), report)| report)
}

fn online_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// Ctrl-C ends the answer, a second one before that is done the process; the module cleans up after either. At the prompt of
/// a session it says how to end that.
fn cancel_on_interrupt() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    // Threads made from here on inherit the mask, so that only the one below sees the signal. Without it Ctrl-C just kills.
    if signals.thread_block().is_ok() {
        std::thread::spawn(move || {
            while signals.wait().is_ok() {
                if INTERRUPTS.is_waiting.load(Ordering::Relaxed) {
                    eprint!("\n{HOW_TO_END}\n{PROMPT}");
                } else if INTERRUPTS.cancel.swap(true, Ordering::Relaxed) {
                    std::process::exit(i32::from(Code::Interrupted as u8));
                }
            }
        });
    }
}

/// Partitions that exist. One that ends meanwhile is left out.
fn partitions(device: &Device) -> Result<Vec<PartitionStats>> {
    let limit = device.info()?.partition_limit.min(u64::from(u16::MAX - ffa::PARTITION_ID_BASE)) as u16;
    let count = device.system_stats()?.partition_count as usize;
    let ids = (0..limit).map(|slot| ffa::PARTITION_ID_BASE + slot);
    // No further than needed: the hypervisor counts questions about ids that do not exist as refused calls.
    Ok(ids.filter_map(|id| device.partition_stats(id).ok()).take(count).collect())
}

fn name(stats: &PartitionStats) -> String {
    let bytes = stats.name.split(|byte| *byte == 0).next().unwrap_or_default();
    bytes.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' }).collect()
}

fn state_name(number: u32) -> &'static str {
    match number {
        state::CREATED => "created",
        state::MEASURED => "measured",
        state::RUNNING => "running",
        state::FINISHED => "finished",
        state::CRASHED => "crashed",
        state::STOPPED => "stopped",
        state::DYING => "dying",
        _ => "unknown",
    }
}

fn flexmem_bench(quick: bool) -> Result<()> {
    let ticks_per_second = Device::open(Path::new(DEVICE_PATH))?.info()?.ticks_per_second;
    let (counts, residents, rounds): (&[u64], &[u64], u32) =
        if quick { (&[1, 64, 512], &[0], 3) } else { (&[1, 8, 64, 512, 4096], &[0, 16_384], 9) };
    let mut rows = Vec::new();
    for &resident in residents {
        // One partition, and so one open file, for each.
        rows.extend(bench::flexmem(&Device::open(Path::new(DEVICE_PATH))?, counts, resident, rounds)?);
    }
    let object = json!({"event": "result", "ticks_per_second": ticks_per_second, "flexmem": rows});
    println!("{}{object}", char::from(flexserve::events::RECORD_SEPARATOR));
    Ok(())
}

fn npu_bench(seconds: u64, rounds: usize, run: &[String]) -> Result<()> {
    let mut client = npu_bench::Client::open()?;
    let result = match run {
        [] => json!({"host": npu_bench::alone(&mut client, seconds)?}),
        run => json!(npu_bench::shared(&mut client, run, rounds)?),
    };
    let object = json!({"event": "result", "npu": result});
    println!("{}{object}", char::from(flexserve::events::RECORD_SEPARATOR));
    Ok(())
}

fn switch_bench(quick: bool) -> Result<()> {
    let (sizes, rounds): (&[u64], usize) = if quick { (&[16, 256], 5) } else { (&[16, 64, 256, 1024], 25) };
    let ticks_per_second = Device::open(Path::new(DEVICE_PATH))?.info()?.ticks_per_second;
    let mut rows = Vec::new();
    for &mebibytes in sizes {
        // One partition, and so one open file, for each.
        rows.push(switch_bench::npu(&Device::open(Path::new(DEVICE_PATH))?, mebibytes, rounds)?);
    }
    let world = switch_bench::world(&Device::open(Path::new(DEVICE_PATH))?, 40 * rounds)?;
    let host = switch_bench::host(&Device::open(Path::new(DEVICE_PATH))?, 64)?;
    let object = json!({"event": "result", "ticks_per_second": ticks_per_second, "npu": rows, "world": world,
                        "host": host});
    println!("{}{object}", char::from(flexserve::events::RECORD_SEPARATOR));
    Ok(())
}

fn ps() -> Result<()> {
    let device = Device::open(Path::new(DEVICE_PATH))?;
    println!("{:<8}{:<18}{:<10}{:>10}{:>8}{:>12}", "ID", "NAME", "STATE", "PAGES", "SHARED", "ENTRIES");
    for stats in partitions(&device)? {
        println!(
            "{:<8}{:<18}{:<10}{:>10}{:>8}{:>12}",
            format!("{:#06x}", stats.id),
            name(&stats),
            state_name(stats.state),
            stats.pages_given.saturating_sub(stats.pages_recalled),
            stats.pages_shared,
            stats.world_switches,
        );
    }
    Ok(())
}

/// Prints what a partition logged. It wrote it, so nothing but text gets to the terminal.
fn logs(id: u16) -> Result<()> {
    let (bytes, first) = Device::open(Path::new(DEVICE_PATH))?.log(id, 0)?;
    if first > 0 {
        eprintln!("flexserve: the first {first} bytes are lost");
    }
    let shown =
        |byte: &u8| if byte.is_ascii_graphic() || b" \n".contains(byte) { char::from(*byte) } else { '?' };
    print!("{}", bytes.iter().map(shown).collect::<String>());
    Ok(())
}

fn stats(json: bool) -> Result<()> {
    let device = Device::open(Path::new(DEVICE_PATH))?;
    let info = device.info()?;
    let system = device.system_stats()?;
    let cost = |cost: Cost| {
        json!({"calls": cost.calls, "pages": cost.pages, "validate": cost.validate, "tables": cost.tables,
               "tlbi": cost.tlbi, "scrub": cost.scrub})
    };
    let switch = |cost: SwitchCost| {
        json!({"close": cost.close, "reset": cost.reset, "detach": cost.detach, "attach": cost.attach,
               "open": cost.open})
    };
    let object = json!({
        "schema": 1,
        "system": {
            "ticks_per_second": system.ticks_per_second,
            "partition_count": system.partition_count,
            "blocked_accesses": system.blocked_accesses,
            "refused_calls": system.refused_calls,
            "host_exits": system.host_exits,
            "world_switches": system.world_switches,
            "pages_given": system.pages_given,
            "pages_recalled": system.pages_recalled,
            "tables_used": system.tables_used,
            "tables_free": system.tables_free,
            "tables_from_host": system.tables_from_host,
            "leaves_1g": system.leaves_1g,
            "leaves_2m": system.leaves_2m,
            "leaves_4k": system.leaves_4k,
            "splits": system.splits,
            "coalesces": system.coalesces,
            "give": cost(system.give),
            "npu": {
                "jobs": system.npu.jobs,
                "switches": system.npu.switches,
                "forced": system.npu.forced,
                "dma_blocked": system.npu.blocked,
                "last_switch": switch(system.npu.last),
                "all_switches": switch(system.npu.total),
            },
            "recall": cost(system.recall),
            "last_give": cost(system.last_give),
            "last_recall": cost(system.last_recall),
        },
        "module": {
            "partitions": info.partitions,
            "pages_held": info.pages_held,
            "tables_held": info.tables_held,
            "pages_leaked": info.pages_leaked,
        },
        "partitions": partitions(&device)?.iter().map(|stats| json!({
            "id": stats.id,
            "name": name(stats),
            "state": state_name(stats.state),
            "vcpu_count": stats.vcpu_count,
            "pages_given": stats.pages_given,
            "pages_recalled": stats.pages_recalled,
            "pages_shared": stats.pages_shared,
            "world_switches": stats.world_switches,
            "interrupts": stats.interrupts,
            "run_ticks": stats.run_ticks,
            "end": stats.end,
            "measurement": hex(&stats.measurement),
        })).collect::<Vec<_>>(),
    });
    if json {
        println!("{object}");
    } else {
        print_tree(&object, 0);
    }
    Ok(())
}

/// Prints an object as indented lines.
fn print_tree(value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(i, value)| (i.to_string(), value)).collect(),
        _ => return,
    };
    for (key, value) in entries {
        match value {
            Value::Object(_) | Value::Array(_) => {
                println!("{indent}{key}:");
                print_tree(value, depth + 1);
            }
            Value::String(text) => println!("{indent}{key}: {text}"),
            value => println!("{indent}{key}: {value}"),
        }
    }
}
