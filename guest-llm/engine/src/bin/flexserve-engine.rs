//! The engine as a command on the development machine.

#[path = "flexserve-engine/bench.rs"]
mod bench;
#[path = "flexserve-engine/parity.rs"]
mod parity;
#[path = "flexserve-engine/random.rs"]
mod random;
#[path = "flexserve-engine/threads.rs"]
mod threads;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use flexserve_engine::{
    Constraint, Event, Flow, Grammar, KvFormat, Limits, Model, Request, Sampling, Session, SessionConfig,
    TokenIndex, generate,
};

const USAGE: &str =
    "usage: flexserve-engine run MODEL [-p PROMPT] [-n TOKENS] [-c CONTEXT] [--batch TOKENS] [--kv f32|f16|q8_0]
                            [--context-shift] [--keep TOKENS] [--threads N] [--raw] [--system TEXT] [--think true|false] [--temp T] [--top-k K]
                            [--top-p P] [--min-p P] [--repeat-penalty R] [--repeat-last-n N] [--seed N]
                            [--stop TEXT]... [-j SCHEMA|@FILE]
       flexserve-engine info MODEL [--tensors]
       flexserve-engine tokens MODEL [-p PROMPT] [--raw]
       flexserve-engine bench MODEL [-p TOKENS] [-n TOKENS] [-r REPETITIONS] [-c CONTEXT] [--batch TOKENS] [--kv f32|f16|q8_0]
                              [--threads N] [--profile] [--json]
       flexserve-engine random MODEL [--architecture llama|qwen2|qwen3] [--format FORMAT] [--size BYTES] [--width N]
                               [--vocabulary N] [--seed N]
       flexserve-engine parity FOLDER [--filter S] [--threads N] [--json]

run answers PROMPT (default: standard input), greedily unless --temp is above 0; --raw completes it as it is. Thoughts go
to standard error. -j (--json-schema) makes the answer follow a JSON schema; {} is any object.
With --context-shift an answer goes on when the context is full: the oldest half of it is forgotten, but for --keep tokens.
info prints what the file says of itself. tokens prints the prompt's token ids.
bench measures prefill (default: of 128 tokens) and decoding (of 64), each from an empty context; --profile also tells
where the time goes. random writes a model of random weights: FORMAT is F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1,
Q4_K, Q5_K, Q6_K, Q4_K_M or Q5_K_M; --size takes 200M and the like.
parity compares with what llama.cpp made of the fixtures in FOLDER whose name contains S.
Exit codes: 0 done, 1 no parity, 2 usage, 5 the file or request was refused.";

/// Command line, taken apart.
struct Arguments {
    command: String,
    model: String,
    prompt: Option<String>,
    max_tokens: usize,
    context: Option<usize>,
    batch: Option<usize>,
    kv: Option<KvFormat>,
    context_shift: bool,
    keep: usize,
    threads: usize,
    sampling: Sampling,
    stop: Vec<String>,
    schema: Option<String>,
    system: Option<String>,
    think: Option<bool>,
    raw: bool,
    tensors: bool,
    repetitions: usize,
    profile: bool,
    json: bool,
    filter: String,
    random: random::Request,
}

/// What went wrong, and the exit code that says so.
struct Failure(u8, String);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, message)) => {
            eprintln!("flexserve-engine: {message}");
            ExitCode::from(code)
        }
    }
}

fn run() -> Result<(), Failure> {
    let arguments = parse(std::env::args().skip(1))?;
    if arguments.command == "random" {
        let (layers, bytes) = random::write(&arguments.model, &arguments.random).map_err(usage)?;
        eprintln!("{}: {layers} layers, {bytes} bytes", arguments.model);
        return Ok(());
    }
    if arguments.command == "parity" {
        return compare(&arguments);
    }
    let bytes = std::fs::read(&arguments.model).map_err(|e| refused(&arguments.model, e))?;
    let started = Instant::now();
    let limits = Limits { memory_bytes: 1 << 30, ..Limits::default() };
    let model = Model::load(&bytes, &limits).map_err(|e| refused(&arguments.model, e))?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    match arguments.command.as_str() {
        "info" => print!("{}", describe(&model, arguments.tensors)),
        "tokens" => {
            let tokens = model.tokenizer().encode_request(&prompt(&arguments)?, arguments.raw);
            println!("{:?}", tokens.map_err(|e| refused("prompt", e))?);
        }
        "run" => answer(&model, &arguments, load_ms)?,
        "bench" => measure(&model, &arguments)?,
        other => return Err(usage(format!("no command {other}"))),
    }
    Ok(())
}

/// Streams the answer to standard output, and figures to standard error.
fn answer(model: &Model<'_>, arguments: &Arguments, load_ms: f64) -> Result<(), Failure> {
    let config = configuration(model, arguments);
    let failed = |e| refused("request", e);
    let mut session = Session::new(model, &config).map_err(failed)?;
    session.share_work(threads::pool(arguments.threads));
    let prompt = prompt(arguments)?;
    let stop: Vec<&str> = arguments.stop.iter().map(String::as_str).collect();
    let constraint = match &arguments.schema {
        None => None,
        Some(schema) => {
            let grammar =
                Grammar::from_schema(schema, usize::MAX).map_err(|e| refused("--json-schema", e))?;
            Some((grammar, TokenIndex::new(model.tokenizer(), usize::MAX).map_err(failed)?))
        }
    };
    let request = Request {
        prompt: &prompt,
        raw: arguments.raw,
        system: arguments.system.as_deref(),
        think: arguments.think,
        max_tokens: arguments.max_tokens,
        sampling: arguments.sampling.clone(),
        stop: &stop,
        constraint: constraint.as_ref().map(|(grammar, index)| Constraint { grammar, index }),
    };
    let started = Instant::now();
    let mut prefilled = started;
    let mut is_thinking = false;
    let mut output = std::io::stdout().lock();
    let report = generate(&mut session, &request, &mut |event| {
        let written = match event {
            Event::Prefilled { .. } => {
                prefilled = Instant::now();
                Ok(())
            }
            Event::Thought(text) => {
                is_thinking = true;
                std::io::stderr().write_all(text.as_bytes())
            }
            Event::Text(text) => {
                if std::mem::take(&mut is_thinking) {
                    eprintln!();
                }
                output.write_all(text.as_bytes()).and_then(|()| output.flush())
            }
            _ => Ok(()),
        };
        if written.is_ok() { Flow::Continue } else { Flow::Stop }
    })
    .map_err(failed)?;
    let decoding = prefilled.elapsed().as_secs_f64();
    // Nobody may be reading any more; that is no failure of ours.
    let _ = writeln!(output);
    let prefill = (prefilled - started).as_secs_f64();
    eprintln!(
        "{:?}; load {load_ms:.1} ms; prefill {} tokens, {:.1} tokens/s; decode {} tokens, {:.1} tokens/s; memory {}",
        report.stop,
        report.prompt_tokens,
        report.prompt_tokens as f64 / prefill,
        report.tokens,
        report.tokens as f64 / decoding,
        memory(model, &config).map_err(failed)?,
    );
    Ok(())
}

fn configuration(model: &Model<'_>, arguments: &Arguments) -> SessionConfig {
    let defaults = SessionConfig::for_model(model);
    SessionConfig {
        context: arguments.context.unwrap_or(defaults.context),
        batch: arguments.batch.unwrap_or(defaults.batch),
        kv: arguments.kv.unwrap_or(defaults.kv),
        context_shift: arguments.context_shift.then_some(arguments.keep),
        threads: arguments.threads,
        ..defaults
    }
}

/// Prints how results compare with llama.cpp's.
fn compare(arguments: &Arguments) -> Result<(), Failure> {
    let verdicts = parity::run(&arguments.model, &arguments.filter, arguments.threads)
        .map_err(|error| refused("fixtures", error))?;
    if arguments.json {
        println!("{}", parity::json(&verdicts))
    } else {
        print!("{}", parity::table(&verdicts))
    }
    if parity::passed(&verdicts) { Ok(()) } else { Err(Failure(1, "no parity".into())) }
}

/// Prints figures of speed and memory.
fn measure(model: &Model<'_>, arguments: &Arguments) -> Result<(), Failure> {
    let request = bench::Request {
        prompt: arguments.prompt.clone().map_or(Ok(128), |count| number("-p", count))?,
        decode: if arguments.max_tokens == usize::MAX { 64 } else { arguments.max_tokens },
        repetitions: arguments.repetitions,
        profile: arguments.profile,
    };
    let config = configuration(model, arguments);
    let pool = threads::pool(arguments.threads);
    let figures = bench::run(model, &config, pool, request).map_err(|e| refused("request", e))?;
    if arguments.json {
        println!("{}", figures.json())
    } else {
        print!("{}", figures.text())
    }
    Ok(())
}

/// What is allocated beyond the file, by purpose, and how much more that is than keys, values and activations.
fn memory(model: &Model<'_>, config: &SessionConfig) -> Result<String, flexserve_engine::Error> {
    let memory = Session::memory(model, config)?;
    let tables = model.memory_bytes();
    let kib = |bytes: usize| bytes.div_ceil(1024);
    let floor = (memory.kv + memory.activations) as f64;
    Ok(format!(
        "{} KiB: keys and values ({}) {}, activations {}, scratch {} (in all {:.2} times keys, values and activations), \
         model tables {}",
        kib(memory.total() + tables),
        config.kv,
        kib(memory.kv),
        kib(memory.activations),
        kib(memory.scratch),
        memory.total() as f64 / floor,
        kib(tables),
    ))
}

fn describe(model: &Model<'_>, tensors: bool) -> String {
    let mut text = String::new();
    let gguf = model.gguf();
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        text.push_str(&arguments.to_string());
        text.push('\n');
    };
    line(format_args!("GGUF version {}, {} tensors", gguf.version(), gguf.tensors().len()));
    for (key, value) in gguf.keys() {
        use flexserve_engine::gguf::Value;
        match value {
            Value::String(string) => {
                let shown = String::from_utf8_lossy(string);
                let cut: String = shown.chars().take(80).flat_map(char::escape_debug).collect();
                line(format_args!("{} = \"{cut}\"", key.escape_debug()));
            }
            Value::Array(array) => {
                line(format_args!("{} = [{:?}; {}]", key.escape_debug(), array.element, array.count));
            }
            Value::Unsigned(value) => line(format_args!("{} = {value}", key.escape_debug())),
            Value::Signed(value) => line(format_args!("{} = {value}", key.escape_debug())),
            Value::Float(value) => line(format_args!("{} = {value}", key.escape_debug())),
            Value::Bool(value) => line(format_args!("{} = {value}", key.escape_debug())),
        }
    }
    if tensors {
        for tensor in gguf.tensors() {
            let (columns, rows) = (tensor.row_length, tensor.row_count);
            line(format_args!("{} {:?} {columns} x {rows}", tensor.name.escape_debug(), tensor.ty));
        }
    }
    text
}

fn prompt(arguments: &Arguments) -> Result<String, Failure> {
    match &arguments.prompt {
        Some(prompt) => Ok(prompt.clone()),
        None => std::io::read_to_string(std::io::stdin()).map_err(|e| refused("standard input", e)),
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, Failure> {
    let mut arguments = Arguments {
        command: words.next().ok_or(usage("no command".into()))?,
        model: String::new(),
        prompt: None,
        max_tokens: usize::MAX,
        context: None,
        batch: None,
        kv: None,
        context_shift: false,
        keep: 0,
        threads: 1,
        sampling: Sampling::default(),
        stop: Vec::new(),
        schema: None,
        system: None,
        think: None,
        raw: false,
        tensors: false,
        repetitions: 3,
        profile: false,
        json: false,
        filter: String::new(),
        random: random::Request::default(),
    };
    if matches!(arguments.command.as_str(), "-h" | "--help" | "help") {
        println!("{USAGE}");
        std::process::exit(0);
    }
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(usage(format!("{word} needs a value")));
        match word.as_str() {
            "-p" => arguments.prompt = Some(value()?),
            "-n" => arguments.max_tokens = number(&word, value()?)?,
            "-c" => arguments.context = Some(number(&word, value()?)?),
            "--batch" => arguments.batch = Some(number(&word, value()?)?),
            "--kv" | "--cache-type" => {
                let format: KvFormat = value()?.parse().map_err(|e| usage(format!("{word}: {e}")))?;
                arguments.kv = Some(format);
            }
            "--context-shift" => arguments.context_shift = true,
            "--keep" => arguments.keep = number(&word, value()?)?,
            "--threads" => {
                arguments.threads = number(&word, value()?)?;
                if !(1..=threads::MAX_THREADS).contains(&arguments.threads) {
                    return Err(usage(format!("--threads {} is not between 1 and 64", arguments.threads)));
                }
            }
            "--temp" => arguments.sampling.temperature = number(&word, value()?)?,
            "--top-k" => arguments.sampling.top_k = number(&word, value()?)?,
            "--top-p" => arguments.sampling.top_p = number(&word, value()?)?,
            "--min-p" => arguments.sampling.min_p = number(&word, value()?)?,
            "--repeat-penalty" => arguments.sampling.repeat_penalty = number(&word, value()?)?,
            "--repeat-last-n" => arguments.sampling.repeat_last_n = number(&word, value()?)?,
            "--stop" => arguments.stop.push(value()?),
            "--system" => arguments.system = Some(value()?),
            "--think" => arguments.think = Some(number(&word, value()?)?),
            "-j" | "--json-schema" => {
                let schema = value()?;
                arguments.schema = Some(match schema.strip_prefix('@') {
                    Some(path) => std::fs::read_to_string(path).map_err(|e| refused(path, e))?,
                    None => schema,
                });
            }
            "--seed" => {
                let seed = number(&word, value()?)?;
                arguments.sampling.seed = seed;
                arguments.random.seed = seed;
            }
            "--raw" => arguments.raw = true,
            "--tensors" => arguments.tensors = true,
            "-r" => arguments.repetitions = number::<usize>(&word, value()?)?.max(1),
            "--profile" => arguments.profile = true,
            "--json" => arguments.json = true,
            "--filter" => arguments.filter = value()?,
            "--architecture" => arguments.random.architecture = value()?,
            "--format" => arguments.random.format = value()?,
            "--width" => arguments.random.width = number(&word, value()?)?,
            "--vocabulary" => arguments.random.vocabulary = number(&word, value()?)?,
            "--size" => {
                let text = value()?;
                arguments.random.size =
                    random::size(&text).ok_or(usage(format!("--size {text} is not a size")))?;
            }
            _ if arguments.model.is_empty() && !word.starts_with('-') => arguments.model = word,
            _ => return Err(usage(format!("unexpected {word}"))),
        }
    }
    if arguments.model.is_empty() { Err(usage("no model".into())) } else { Ok(arguments) }
}

fn number<T: std::str::FromStr>(option: &str, value: String) -> Result<T, Failure> {
    value.parse().map_err(|_| usage(format!("{option} {value} is not a value in range")))
}

fn usage(message: String) -> Failure {
    Failure(2, format!("{message}\n{USAGE}"))
}

fn refused(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure(5, format!("{what}: {error}"))
}
