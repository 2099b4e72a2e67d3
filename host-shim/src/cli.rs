//! The command line of `flexserve`. Options that llama.cpp has too mean what they mean there.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::error::{Error, Result};

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
pub enum Command {
    /// Answers a prompt in a new partition, or without one every line of standard input, as a conversation if the model has a
    /// chat template
    Run(RunArgs),
    /// Measures what giving pages to a partition and recalling them costs; prints one event line
    FlexmemBench {
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
    /// Temperature; 0 always takes the likeliest token (llama.cpp's default is 0.8)
    #[arg(long = "temp", visible_alias = "temperature", value_name = "T", default_value = "0", value_parser = parse_temperature)]
    pub temperature: f32,
    /// Sampler seed; -1: a random one
    #[arg(short, long, value_name = "N", default_value = "-1", value_parser = parse_seed, allow_negative_numbers = true)]
    pub seed: Seed,
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
    /// Compute without the NPU (this version always does)
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
            Command::Run(run) => Ok(run),
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
        assert!(!run.raw && !run.json && !run.json_events && !run.no_npu);
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
        let run = self::run(&["m", "-p", "-5 degrees", "-n", "-1", "-s", "-1"]).unwrap();
        assert_eq!(
            (run.prompt.as_deref(), run.max_tokens, run.seed),
            (Some("-5 degrees"), u32::MAX, Seed::Random)
        );
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
            &["a", "--unknown"],
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
        assert!(parse("flexserve logs").is_err() && parse("flexserve logs x").is_err());
        assert!(parse("flexserve top").is_err());
    }
}
