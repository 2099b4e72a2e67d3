//! The command line of `flexserve`. Options that llama.cpp has too mean what they mean there.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use flexserve_engine::KvFormat;

use flexserve_engine::Sampling;

use crate::error::{Error, Result};
use crate::request::{Form, Request};

/// As in llama.cpp, but for the temperature.
const DEFAULTS: Sampling = Sampling::DEFAULT;

/// Runs large language models in confidential partitions.
#[derive(Clone, Debug, Parser)]
#[command(name = "flexserve", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Clone, Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum Command {
    /// Answers a prompt in a new partition, or without one every line of standard input, as a conversation if the model has a
    /// chat template
    Run(Box<RunArgs>),
    /// Measures what giving pages to a partition and recalling them costs; prints one event line
    FlexmemBench {
        /// Fewer sizes and rounds
        #[arg(long)]
        quick: bool,
    },
    /// Multiplies matrices on the NPU as a program of the host; with arguments of `flexserve run`, also beside a partition that
    /// uses it; prints one event line
    NpuBench {
        /// How long, without a partition
        #[arg(long, value_name = "N", default_value_t = 5)]
        seconds: u64,
        /// Rounds with a partition
        #[arg(long, value_name = "N", default_value_t = 3)]
        rounds: usize,
        /// What the partition is to do
        #[arg(last = true, value_name = "ARGUMENTS")]
        run: Vec<String>,
    },
    /// Measures what changes of the NPU's owner cost, for partitions of several sizes, and what entering a partition or the
    /// hypervisor costs; prints one event line
    SwitchBench {
        /// Fewer sizes and rounds
        #[arg(long)]
        quick: bool,
    },
    /// Lists partitions
    Ps,
    /// Shows what a partition logged
    Logs {
        /// Id, as `flexserve ps` shows it
        #[arg(value_name = "ID", value_parser = parse_id)]
        id: u16,
    },
    /// Renders one chat template, with limits; used by --host-template
    #[command(hide = true)]
    RenderTemplate,
    /// Shows what the hypervisor counted since boot
    Stats {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Options of `flexserve run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// GGUF file: a path, or the name of a file in /usr/lib/flexserve/models
    #[arg(value_name = "MODEL", required_unless_present = "model_option", conflicts_with = "model_option")]
    model_argument: Option<String>,
    /// GGUF file, as MODEL
    #[arg(short = 'm', long = "model", value_name = "MODEL")]
    model_option: Option<String>,
    /// Prompt [default: a session, whose requests are the lines of standard input]
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Most tokens of the answer; -1: until the model ends it or the context is full
    #[arg(short = 'n', long = "predict", visible_alias = "n-predict", value_name = "N", default_value = "-1",
          value_parser = parse_count, allow_negative_numbers = true)]
    pub max_tokens: u32,
    /// Context length in tokens, of prompt and answer together; 0: the model's own, at most 4096
    #[arg(short, long = "ctx-size", value_name = "N", default_value_t = 0)]
    pub context: u32,
    /// How keys and values are stored: f32, f16 or q8_0 (for heads of a multiple of 32) [default: f16]
    #[arg(long = "cache-type", visible_alias = "kv", value_name = "TYPE")]
    pub cache: Option<KvFormat>,
    /// When the context is full, forget the oldest half of it and go on [default: the answer ends there]
    #[arg(long)]
    pub context_shift: bool,
    /// First tokens that --context-shift never forgets
    #[arg(long, value_name = "N", default_value_t = 0, requires = "context_shift")]
    pub keep: u32,
    /// Temperature; 0 always takes the likeliest token (llama.cpp's default is 0.8)
    #[arg(long = "temp", visible_alias = "temperature", value_name = "T", default_value = "0", value_parser = parse_temperature)]
    pub temperature: f32,
    /// Keep the likeliest tokens only; 0: all
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.top_k as u32)]
    pub top_k: u32,
    /// Keep the likeliest tokens until their probabilities add up to P; 1: all
    #[arg(long, value_name = "P", default_value_t = DEFAULTS.top_p)]
    pub top_p: f32,
    /// Keep tokens that are at least P times as probable as the likeliest; 0: all
    #[arg(long, value_name = "P", default_value_t = DEFAULTS.min_p)]
    pub min_p: f32,
    /// Penalty for tokens that occurred lately; 1: none
    #[arg(long, value_name = "R", default_value_t = DEFAULTS.repeat_penalty)]
    pub repeat_penalty: f32,
    /// Tokens back that the penalty looks; 0: none
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.repeat_last_n as u32)]
    pub repeat_last_n: u32,
    /// Text that ends the answer and is no part of it; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// JSON schema that the answer follows, or @FILE; {} is any object
    #[arg(
        short = 'j',
        long,
        value_name = "SCHEMA",
        conflicts_with = "json_object",
        allow_hyphen_values = true
    )]
    pub json_schema: Option<String>,
    /// Answer with a JSON object, of any members
    #[arg(long)]
    pub json_object: bool,
    /// System text, for models with a chat template [default: the template's own]
    #[arg(long, visible_alias = "system-prompt", value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Whether the model thinks before it answers [default: as its template does by itself]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub think: Option<bool>,
    /// Sampler seed; -1: a random one
    #[arg(short, long, value_name = "N", default_value = "-1", value_parser = parse_seed, allow_negative_numbers = true)]
    pub seed: Seed,
    /// Have the host write the conversation in the model's chat template, whatever that is. The host sees prompts and answers
    /// then: only for models and hosts where that may be
    #[arg(long, conflicts_with = "raw")]
    pub host_template: bool,
    /// vCPUs to compute on, at most those of the image [default: the host's CPUs]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: Option<u32>,
    /// Complete the prompt as it is, without the model's request template
    #[arg(long)]
    pub raw: bool,
    /// Heap of the partition in bytes, or with suffix K, M, G [default: what model and context need, and more while it runs
    /// if a request needs more]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub mem_heap: Option<u64>,
    /// Size of the scratch disk, which the partition may write and the host reads: gone when the partition is
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_size)]
    pub scratch: u64,
    /// Partition image
    #[arg(long, value_name = "FILE", default_value = crate::IMAGE_PATH)]
    pub image: PathBuf,
    /// Compute without the NPU
    #[arg(long)]
    pub no_npu: bool,
    /// Print one JSON object at the end; needs a prompt
    #[arg(long, requires = "prompt")]
    pub json: bool,
    /// Print an event per line: byte 0x1e and one JSON object; a session's lines are JSON too: {"line":TEXT}, "cancel", "end"
    #[arg(long, conflicts_with = "json")]
    pub json_events: bool,
}

/// Where the sampler starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    /// Chosen at random, each time.
    Random,
    /// This one.
    Fixed(u64),
}

impl RunArgs {
    /// What to ask, with this seed.
    ///
    /// # Errors
    /// Code 2 if a file cannot be read.
    pub fn request(&self, seed: u64) -> Result<Request> {
        let schema = match self.json_schema.as_deref() {
            Some(schema) => match schema.strip_prefix('@') {
                Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                    Error::usage(format!("the schema {path}: {error}"), "name a file that can be read")
                })?),
                None => Some(schema.to_owned()),
            },
            None => self.json_object.then(|| "{}".to_owned()),
        };
        Ok(Request {
            system: self.system.clone(),
            think: self.think,
            max_tokens: self.max_tokens,
            context: self.context,
            cache: self.cache,
            shift: self.context_shift.then_some(self.keep),
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k as usize,
                top_p: self.top_p,
                min_p: self.min_p,
                repeat_penalty: self.repeat_penalty,
                repeat_last_n: self.repeat_last_n as usize,
                seed,
            },
            stop: self.stop.clone(),
            schema,
            no_npu: self.no_npu,
            ..Request::new(
                self.prompt.clone().unwrap_or_default(),
                if self.raw { Form::Raw } else { Form::Independent },
            )
        })
    }

    /// The model that was named.
    pub fn model(&self) -> &str {
        self.model_argument.as_deref().or(self.model_option.as_deref()).unwrap_or_default()
    }
}

fn parse_count(text: &str) -> std::result::Result<u32, String> {
    match text {
        "-1" => Ok(u32::MAX),
        _ => text
            .parse()
            .ok()
            .filter(|count| *count > 0)
            .ok_or_else(|| "neither -1 nor a count from 1 up".into()),
    }
}

fn parse_seed(text: &str) -> std::result::Result<Seed, String> {
    match text {
        "-1" => Ok(Seed::Random),
        _ => text.parse().map(Seed::Fixed).map_err(|_| "neither -1 nor a 64-bit number from 0 up".into()),
    }
}

fn parse_id(text: &str) -> std::result::Result<u16, String> {
    let id =
        text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u16::from_str_radix(hex, 16).ok());
    id.ok_or_else(|| "not an id such as 0x8002".into())
}

fn parse_temperature(text: &str) -> std::result::Result<f32, String> {
    let value: Option<f32> = text.parse().ok();
    value.filter(|value| value.is_finite() && *value >= 0.0).ok_or_else(|| "not a number from 0 up".into())
}

fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (text.get(..text.len() - 1), 10),
        Some(b'M' | b'm') => (text.get(..text.len() - 1), 20),
        Some(b'G' | b'g') => (text.get(..text.len() - 1), 30),
        _ => (Some(text), 0),
    };
    let value: Option<u64> = digits.and_then(|digits| digits.parse().ok());
    value
        .and_then(|value| value.checked_mul(1 << shift))
        .filter(|value| *value > 0)
        .ok_or_else(|| "not a size such as 64M".into())
}

/// A seed that nobody chose.
///
/// # Errors
/// Code 2 if the operating system has no randomness to give.
pub fn random_seed() -> Result<u64> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .map_err(|error| Error::usage(format!("/dev/urandom: {error}"), "name a seed with --seed"))?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn run(arguments: &[&str]) -> std::result::Result<RunArgs, clap::Error> {
        let command = Cli::try_parse_from(["flexserve", "run"].iter().chain(arguments))?.command;
        match command {
            Command::Run(run) => Ok(*run),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let run = run(&["demo"]).unwrap();
        assert_eq!((run.model(), run.prompt.as_deref(), run.max_tokens), ("demo", None, u32::MAX));
        assert_eq!((run.context, run.temperature, run.seed, run.mem_heap), (0, 0.0, Seed::Random, None));
        assert_eq!(run.scratch, 1 << 20);
        assert_eq!((run.cache, run.context_shift, run.keep), (None, false, 0));
        assert!(!run.raw && !run.json && !run.json_events && !run.no_npu);
        let request = run.request(7).unwrap();
        assert_eq!(
            request,
            Request {
                sampling: Sampling { seed: 7, ..Sampling::default() },
                ..Request::new("", Form::Independent)
            }
        );
        assert_eq!(run.image.to_str(), Some(crate::IMAGE_PATH));
    }

    #[test]
    fn options_are_those_of_llama_cpp() {
        let all = "-m m.gguf -p hello -n 12 -c 256 --temp 0.7 --seed 42 --raw --mem-heap 3G --image i --json -t 3 --scratch 64K";
        let run = run(&all.split(' ').collect::<Vec<_>>()).unwrap();
        assert_eq!((run.model(), run.prompt.as_deref(), run.max_tokens), ("m.gguf", Some("hello"), 12));
        assert_eq!(
            (run.context, run.temperature, run.seed, run.mem_heap),
            (256, 0.7, Seed::Fixed(42), Some(3 << 30))
        );
        assert!(run.raw && run.json && run.threads == Some(3) && run.scratch == 64 << 10);
        let run = self::run(&["m", "--cache-type", "q8_0", "--context-shift", "--keep", "4"]).unwrap();
        assert_eq!((run.cache, run.context_shift, run.keep), (Some(KvFormat::Q8_0), true, 4));
        let run = self::run(&["m", "-p", "-5 degrees", "-n", "-1", "-s", "-1"]).unwrap();
        assert_eq!(
            (run.prompt.as_deref(), run.max_tokens, run.seed),
            (Some("-5 degrees"), u32::MAX, Seed::Random)
        );
    }

    #[test]
    fn options_of_a_request_reach_it() {
        let all = "m -p hi --top-k 5 --top-p 0.5 --min-p 0.25 --repeat-penalty 1.5 --repeat-last-n 9 --stop a --stop -b --system s \
                   --think=false -j {} --raw";
        let request = run(&all.split_whitespace().collect::<Vec<_>>()).unwrap().request(1).unwrap();
        let sampling = Sampling {
            top_k: 5,
            top_p: 0.5,
            min_p: 0.25,
            repeat_penalty: 1.5,
            repeat_last_n: 9,
            seed: 1,
            ..Sampling::default()
        };
        let expected = Request {
            sampling,
            stop: vec!["a".into(), "-b".into()],
            system: Some("s".into()),
            think: Some(false),
            schema: Some("{}".into()),
            ..Request::new("hi", Form::Raw)
        };
        assert_eq!(request, expected);
        let request = |arguments: &[&str]| run(arguments).unwrap().request(1);
        assert_eq!(request(&["m", "--think", "--json-object"]).unwrap().think, Some(true));
        assert_eq!(request(&["m", "--json-object"]).unwrap().schema.as_deref(), Some("{}"));
        let file = std::env::temp_dir().join(format!("flexserve-schema-{}", std::process::id()));
        std::fs::write(&file, "{\"type\":\"null\"}").unwrap();
        let read = request(&["m", "--json-schema", &format!("@{}", file.display())]).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read.schema.as_deref(), Some("{\"type\":\"null\"}"));
        let gone = request(&["m", "-j", &format!("@{}", file.display())]);
        assert_eq!(gone.unwrap_err().code, crate::error::Code::Usage);
    }

    #[test]
    fn wrong_usage_is_refused() {
        for arguments in [
            &[][..],
            &["a", "-m", "b"],
            &["a", "b"],
            &["a", "-n", "0"],
            &["a", "-n", "-2"],
            &["a", "--seed", "x"],
            &["a", "--temp", "-1"],
            &["a", "--temp", "nan"],
            &["a", "--temp", "inf"],
            &["a", "--mem-heap", "0"],
            &["a", "--mem-heap", "99999999999G"],
            &["a", "--mem-heap", "é"],
            &["a", "--scratch", "0"],
            &["a", "-p", "x", "--json", "--json-events"],
            // An object at the end, or a session.
            &["a", "--json"],
            &["a", "-t", "0"],
            &["a", "--top-k", "-1"],
            &["a", "--raw", "--host-template"],
            &["a", "--top-p", "x"],
            &["a", "--think=maybe"],
            &["a", "--json-object", "-j", "{}"],
            &["a", "--unknown"],
            &["a", "--cache-type", "q3"],
            &["a", "--keep", "4"],
        ] {
            let error = run(arguments).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
        let help = Cli::try_parse_from(["flexserve", "--help"]).unwrap_err();
        assert_eq!((help.kind(), help.exit_code()), (ErrorKind::DisplayHelp, 0));
    }

    #[test]
    fn other_commands() {
        let parse = |text: &str| Cli::try_parse_from(text.split(' ')).map(|cli| cli.command);
        assert!(matches!(parse("flexserve ps"), Ok(Command::Ps)));
        assert!(matches!(parse("flexserve stats --json"), Ok(Command::Stats { json: true })));
        assert!(matches!(parse("flexserve logs 0x8002"), Ok(Command::Logs { id: 0x8002 })));
        assert!(matches!(parse("flexserve logs 32770"), Ok(Command::Logs { id: 0x8002 })));
        assert!(matches!(
            parse(&format!("flexserve {}", crate::template::COMMAND)),
            Ok(Command::RenderTemplate)
        ));
        assert!(parse("flexserve logs").is_err() && parse("flexserve logs x").is_err());
        assert!(parse("flexserve top").is_err());
    }
}
