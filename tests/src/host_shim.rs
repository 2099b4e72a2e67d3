//! The host's side as a user has it: the kernel module, and the `flexserve` command.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use flexserve::device::Device;
use flexserve::error::Error;
use flexserve::image::Image;
use flexserve::machine::{Contents, Machine, Measured};
use flexserve::{DEVICE_PATH, IMAGE_PATH};
use guest_abi::virtio::VIRTIO_PAGES;
use hyp_abi::manifest::layout;
use serde_json::Value;

use crate::host::{load_product_module, unload_product_module};
use crate::report;

type Test = fn() -> Result<()>;

/// Every test, in the order in which they run.
const TESTS: &[(&str, Test)] = &[
    ("three-models-answer-at-once", three_models),
    ("several-vcpus-say-the-same", several_vcpus),
    ("a-session-over-a-pipe", session),
    ("each-error-has-its-line-and-code", errors),
    ("a-full-host-is-exit-code-6-and-lives-on", full_host),
    ("a-crash-is-exit-code-5", crash),
    ("an-interrupted-load-is-exit-code-130", interrupted),
    ("rounds-of-create-and-destroy-leave-nothing", rounds),
    ("the-module-is-replaced-without-a-reboot", reload),
];

const FLEXSERVE: &str = "/bin/flexserve";
const PROMPT: &str = "wake me at half past six tomorrow";
const ANSWER: &str = r#"{"tool":"set_alarm","args":{"time":"06:30","day":"tomorrow"}}"#;
/// Rounds of the default run; `--slow` makes the issue's ten thousand.
const ROUNDS: u32 = 500;
const MANY_ROUNDS: u32 = 10_000;

/// Runs the wanted tests.
pub fn run() -> Result<()> {
    let wanted = report::wanted_tests()?;
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted.iter().any(|wanted| wanted == name)) {
        let result = test().and_then(|()| nothing_left());
        report::verdict(name, result.is_ok(), &result.err().map(|e| format!("{e:#}")).unwrap_or_default())?;
    }
    Ok(())
}

/// Runs ten thousand rounds.
pub fn run_slow() -> Result<()> {
    let start = Instant::now();
    let result = rounds_of(MANY_ROUNDS).and_then(|()| nothing_left());
    let detail = match &result {
        Ok(()) => format!("{MANY_ROUNDS} rounds in {:.0} s", start.elapsed().as_secs_f64()),
        Err(error) => format!("{error:#}"),
    };
    report::verdict("ten-thousand-rounds-leave-nothing", result.is_ok(), &detail)
}

fn flexserve(args: &[&str]) -> Command {
    let mut command = Command::new(FLEXSERVE);
    command.args(args);
    // One vCPU unless a test says otherwise: on a busy computer, emulated CPUs that wait for each other are slow.
    if args.first() == Some(&"run") && !args.contains(&"-t") {
        command.args(["-t", "1"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(args: &[&str]) -> Result<Output> {
    flexserve(args).output().context(FLEXSERVE)
}

/// The object that a command with `--json` printed, which must be all.
fn object(output: &Output) -> Result<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.lines().count() == 1, "standard output is not one line: {text}");
    serde_json::from_str(&text).context("standard output is no JSON")
}

/// Nothing of any partition is left: not with the hypervisor, not with the module.
fn nothing_left() -> Result<()> {
    let stats = object(&output(&["stats", "--json"])?)?;
    for pointer in
        ["/module/partitions", "/module/pages_held", "/module/pages_leaked", "/system/partition_count"]
    {
        ensure!(stats.pointer(pointer).and_then(Value::as_u64) == Some(0), "{pointer} is not 0: {stats}");
    }
    let pages = |name: &str| stats["system"][name].as_u64();
    ensure!(pages("pages_given") == pages("pages_recalled"), "not every page came back: {stats}");
    Ok(())
}

fn three_models() -> Result<()> {
    let models = ["demo", "tiny-f16", "tiny-chat"];
    let args = |model| ["run", model, "-p", PROMPT, "-n", "40", "--json"];
    let answer = |output: &Output| -> Result<String> {
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let object = object(output)?;
        ensure!(object["ok"] == true && object["pages_given"].as_u64() > Some(100), "{object}");
        Ok(object["answer"].as_str().unwrap_or_default().to_owned())
    };
    let mut alone = Vec::new();
    for model in models {
        alone.push(answer(&output(&args(model))?)?);
    }
    ensure!(alone[0] == ANSWER, "the demo model answers {:?}", alone[0]);
    ensure!(alone[1] != alone[2] && !alone[1].is_empty(), "the models do not differ: {alone:?}");

    let children: Vec<_> = models
        .iter()
        .map(|model| flexserve(&args(model)).spawn().context(FLEXSERVE))
        .collect::<Result<_>>()?;
    // Their memory is theirs at the same time.
    let mut most = 0;
    let device = Device::open(DEVICE_PATH.as_ref())?;
    let mut ended = 0;
    let mut children = children;
    while ended < children.len() {
        most = most.max(device.system_stats().map_err(Error::from)?.partition_count);
        ended = 0;
        for child in &mut children {
            ended += usize::from(child.try_wait()?.is_some());
        }
    }
    drop(device);
    for (child, alone) in children.into_iter().zip(&alone) {
        let together = answer(&child.wait_with_output()?)?;
        ensure!(together == *alone, "together {together:?}, alone {alone:?}");
    }
    ensure!(most >= 3, "at most {most} partitions were there at once");
    Ok(())
}

/// Work that is shared changes no bit of the answer.
fn several_vcpus() -> Result<()> {
    let answer = |threads| -> Result<Value> {
        let output = output(&["run", "demo", "-p", PROMPT, "-n", "5", "-t", threads, "--json"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        object(&output)
    };
    let (one, three) = (answer("1")?, answer("3")?);
    ensure!(one["answer"] == three["answer"], "{one} against {three}");
    Ok(())
}

/// Runs a session with these lines on its standard input.
fn session_of(args: &[&str], input: &str) -> Result<Output> {
    let mut child = flexserve(args).stdin(Stdio::piped()).spawn().context(FLEXSERVE)?;
    child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
    Ok(child.wait_with_output()?)
}

fn session() -> Result<()> {
    let lines = format!("{PROMPT}\n\n/help\n{PROMPT}\n");
    let demo = session_of(&["run", "demo"], &lines)?;
    let errors = String::from_utf8_lossy(&demo.stderr);
    ensure!(demo.status.success(), "{errors}");
    let text = String::from_utf8_lossy(&demo.stdout);
    ensure!(text == format!("{ANSWER}\n{ANSWER}\n"), "the answers are {text:?}");
    ensure!(errors.contains("2 request(s)") && errors.contains("/clear"), "{errors}");

    // A conversation: the same words mean something else after others, and the same after /clear.
    let lines = "wake me\nat six\n/clear\nat six\nwake me\n/bye\nnever\n";
    let chat = session_of(&["run", "tiny-chat", "-n", "8"], lines)?;
    let text = String::from_utf8_lossy(&chat.stdout);
    let errors = String::from_utf8_lossy(&chat.stderr);
    ensure!(chat.status.success() && errors.contains("4 request(s)"), "{errors}");
    let first = session_of(&["run", "tiny-chat", "-n", "8"], "at six\n")?;
    let fresh = String::from_utf8_lossy(&first.stdout);
    ensure!(!fresh.trim().is_empty() && text.contains(fresh.as_ref()), "{text:?} lacks {fresh:?}");
    ensure!(text.matches(fresh.as_ref()).count() == 1, "the conversation is not remembered: {text:?}");
    Ok(())
}

/// A command that must fail with this code, and one line that names the guilty.
fn fails(args: &[&str], code: i32, words: &str) -> Result<()> {
    let output = output(args)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{args:?}: {} instead of {code}: {errors}", output.status);
    let line = errors.lines().find(|line| line.starts_with("flexserve: ")).context("no line of ours")?;
    ensure!(line.contains(words) && line.contains(" fault; "), "{args:?} says {line:?}");
    if args.contains(&"--json") {
        let object = object(&output)?;
        ensure!(object["ok"] == false && object["error"]["code"] == code, "{object}");
    }
    Ok(())
}

fn errors() -> Result<()> {
    let demo = fs::read("/usr/lib/flexserve/models/demo.gguf")?;
    // Truncated in its weights, in its vocabulary; counts that no file has.
    fs::write("/tmp/short.gguf", &demo[..demo.len() - 4096])?;
    fs::write("/tmp/shorter.gguf", &demo[..5000])?;
    let mut hostile = demo.clone();
    hostile[8..16].fill(0xFF);
    fs::write("/tmp/hostile.gguf", hostile)?;
    fs::write("/tmp/text.gguf", "this is a text, and no model")?;
    fs::write("/tmp/image.elf", "this is a text, and no image")?;
    for (file, words) in [
        ("/tmp/short.gguf", "past the end of the file"),
        ("/tmp/shorter.gguf", "the model is refused: "),
        ("/tmp/hostile.gguf", "the model is refused: "),
        ("/tmp/text.gguf", "not a GGUF file"),
    ] {
        fails(&["run", file, "-p", "x", "--json"], 5, words)?;
    }
    fails(&["run", "none", "-p", "x"], 2, "no model none")?;
    fails(&["run", "demo", "-p", "x", "--image", "/nonexistent"], 2, "partition image /nonexistent")?;
    fails(&["run", "demo", "-p", "x", "--image", "/tmp/image.elf", "--json"], 5, "image is refused")?;
    fails(&["run", "demo", "-p", "x", "-c", "100000"], 2, "context")?;
    fails(&["run", "demo", "-p", "x", "--mem-heap", "9G"], 2, "heap")?;
    fails(&["run", "demo", "-p", "x", "--mem-heap", "64K", "--json"], 5, "memory does not suffice")?;
    let long = "word ".repeat(400);
    fails(&["run", "demo", "-p", &long, "--json"], 2, "left of the context")?;
    let unsuitable = output(&["run", "demo", "--json"])?;
    ensure!(unsuitable.status.code() == Some(2), "--json without a prompt: {unsuitable:?}");
    for file in ["short.gguf", "shorter.gguf", "hostile.gguf", "text.gguf", "image.elf"] {
        fs::remove_file(Path::new("/tmp").join(file))?;
    }
    Ok(())
}

fn full_host() -> Result<()> {
    // More than there is, and less than the image allows.
    fails(&["run", "demo", "-p", "x", "--mem-heap", "3G", "--json"], 6, "no memory left")?;
    let after = output(&["run", "demo", "-p", PROMPT, "--json"])?;
    ensure!(object(&after)?["answer"] == ANSWER, "the host does not go on: {after:?}");
    Ok(())
}

/// The product's image with no code left.
fn crash() -> Result<()> {
    let mut image = fs::read(IMAGE_PATH)?;
    let manifest = Image::parse(&image)?.manifest().entry;
    // The first loaded segment holds the entry; its file offset is where its program header says.
    let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap_or_default());
    let headers = word(32) as usize;
    let count = usize::from(u16::from_le_bytes([image[56], image[57]]));
    let header = (0..count)
        .map(|i| headers + 56 * i)
        .find(|at| (word(at + 24)..word(at + 24) + word(at + 32)).contains(&manifest))
        .context("no segment holds the entry")?;
    let entry = (word(header + 8) + manifest - word(header + 24)) as usize;
    // UDF: it faults, and so does the vector that is not there yet.
    image[entry..entry + 64].fill(0);
    fs::write("/tmp/crash.elf", &image)?;
    fails(&["run", "demo", "-p", "x", "--image", "/tmp/crash.elf", "--json"], 5, "crashed")?;
    fs::remove_file("/tmp/crash.elf")?;
    // An image that runs, but speaks no session.
    fails(&["run", "demo", "-p", "x", "--image", crate::partition::PROBE_PATH, "--json"], 5, "the partition")
}

fn interrupted() -> Result<()> {
    let output = session_of(&["run", "demo", "--json-events"], "\"cancel\"\n")?;
    let events = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(130), "{}: {events}", output.status);
    ensure!(events.contains(r#""code":130"#) && events.contains("interrupted"), "{events}");
    Ok(())
}

fn rounds() -> Result<()> {
    rounds_of(ROUNDS)
}

/// Counters that must be the same before and after, with no file open: the last one that closes takes table memory back, too.
fn balance() -> Result<[u64; 8]> {
    let device = Device::open(DEVICE_PATH.as_ref())?;
    let system = device.system_stats().map_err(Error::from)?;
    let info = device.info().map_err(Error::from)?;
    let out = system.pages_given - system.pages_recalled;
    let leaves = system.leaves_1g * (1 << 18) + system.leaves_2m * 512 + system.leaves_4k;
    Ok([
        out,
        leaves,
        system.tables_used,
        system.partition_count,
        info.pages_held,
        info.tables_held,
        info.pages_leaked,
        info.partitions,
    ])
}

/// Creates, loads, measures, starts, recalls from and destroys partitions; the host owns the same pages afterwards.
fn rounds_of(count: u32) -> Result<()> {
    let image = Image::load(IMAGE_PATH.as_ref())?;
    let round = |number: u32| -> std::result::Result<(), Error> {
        let device = Device::open(DEVICE_PATH.as_ref())?;
        device.create(image.manifest_bytes())?;
        // A part of it is enough: it does not run.
        if let Some(pages) = image.pages().first() {
            device.give(pages.ipa, Contents::Bytes(&pages.bytes[..4096 * 4]), false)?;
        }
        device.give(layout::HEAP, Contents::Zero(u64::from(1 + number % 600)), false)?;
        device.give(layout::VIRTIO, Contents::Zero(VIRTIO_PAGES), true)?;
        if !number.is_multiple_of(3) {
            while let Measured::Left(_) = device.measure()? {}
            device.start()?;
        }
        match number % 4 {
            0 => device.stop().or_else(|error| if number.is_multiple_of(3) { Ok(()) } else { Err(error) })?,
            1 => drop(device.destroy()?),
            // Closing the file does it.
            _ => {}
        }
        Ok(())
    };
    let before = balance()?;
    for number in 0..count {
        // A machine that says nothing for a minute is taken for one that hangs.
        if number.is_multiple_of(500) && number > 0 {
            eprintln!("{number} rounds of {count}");
        }
        round(number).with_context(|| format!("round {number}"))?;
    }
    let after = balance()?;
    ensure!(before == after, "before {before:?}, after {after:?}");
    Ok(())
}

fn reload() -> Result<()> {
    let device = Device::open(DEVICE_PATH.as_ref())?;
    ensure!(unload_product_module().is_err(), "the module is unloaded under an open file");
    drop(device);
    for _ in 0..3 {
        unload_product_module()?;
        ensure!(!Path::new(DEVICE_PATH).exists(), "the device outlives its module");
        let without = output(&["run", "demo", "-p", "x", "--json"])?;
        ensure!(without.status.code() == Some(4), "without the module: {without:?}");
        load_product_module()?;
        let info = Device::open(DEVICE_PATH.as_ref())?.info().map_err(Error::from)?;
        ensure!(info.tables_held == 0 && info.pages_held == 0, "the new module starts with pages: {info:?}");
        let answered = output(&["run", "demo", "-p", PROMPT, "--json"])?;
        ensure!(object(&answered)?["answer"] == ANSWER, "{answered:?}");
    }
    Ok(())
}
