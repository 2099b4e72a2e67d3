//! The command line; its names are stable.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

/// Builds, runs and tests the whole system.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install what is missing, or print the commands that do.
    Setup,
    /// Build every part.
    Build,
    /// Check formatting and lints, and run the tests that need no emulator.
    Check,
    /// Remove everything that was built; what set-up fetched stays.
    Clean,
    /// Run, stopped before the first instruction, and print the debugger's command line.
    Gdb(RunArgs),
    /// Boot the system and answer one prompt in a confidential partition.
    Run(RunArgs),
    /// Run every test that CI runs.
    Test(TestArgs),
    /// Attack the partition from the host; every attack must be blocked.
    Attack(AttackArgs),
    /// Run benchmarks and write target/bench/report.{json,md,html}.
    Bench(BenchArgs),
    /// Compare the engine with llama.cpp, by fixtures.
    Parity(ParityArgs),
    /// Count how many requests of a file the model answers exactly, with the engine on this machine.
    Eval(EvalArgs),
    /// Fuzz everything that reads what somebody else wrote.
    Fuzz(FuzzArgs),
    /// Count the lines of code that must be trusted.
    Tcb(TcbArgs),
}

/// Where the hypervisor runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DeploymentName {
    /// At EL2.
    #[default]
    El2,
    /// At S-EL2, as an FF-A SPMC.
    SEl2,
}

impl DeploymentName {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::El2 => "el2",
            Self::SEl2 => "s-el2",
        }
    }
}

/// Firmware below the hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirmwareName {
    /// The project's own, or none where none is needed.
    #[default]
    Own,
    /// Trusted Firmware-A.
    TfA,
}

impl FirmwareName {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::TfA => "tf-a",
        }
    }
}

/// Arguments of `run` and `gdb`.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// The prompt.
    #[arg(long, value_name = "S")]
    pub prompt: Option<String>,
    /// Model file (default: the project's demo model).
    #[arg(long, value_name = "PATH.gguf")]
    pub model: Option<PathBuf>,
    /// Where the hypervisor runs.
    #[arg(long, value_enum, default_value_t)]
    pub deployment: DeploymentName,
    /// Firmware below the hypervisor.
    #[arg(long, value_enum, default_value_t)]
    pub firmware: FirmwareName,
    /// CPU model, as QEMU names it.
    #[arg(long, value_name = "C")]
    pub cpu: Option<String>,
    /// Number of CPUs.
    #[arg(long, value_name = "N")]
    pub smp: Option<u32>,
    /// RAM, for example 2G.
    #[arg(long, value_name = "SIZE")]
    pub mem: Option<String>,
    /// The most tokens to generate.
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Context length in tokens (default: the model's own, at most 4096).
    #[arg(long, value_name = "N")]
    pub ctx_size: Option<u32>,
    /// How keys and values are stored: f32, f16 or q8_0.
    #[arg(long, visible_alias = "kv", value_name = "TYPE")]
    pub cache_type: Option<String>,
    /// When the context is full, forget the oldest half of it and go on.
    #[arg(long)]
    pub context_shift: bool,
    /// First tokens that --context-shift never forgets.
    #[arg(long, value_name = "N")]
    pub keep: Option<u32>,
    /// Temperature; 0 is greedy.
    #[arg(long, value_name = "T")]
    pub temp: Option<f32>,
    /// Seed of the sampler.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How the answer is made.
    #[command(flatten)]
    pub answer: AnswerArgs,
    /// Compute without the NPU.
    #[arg(long)]
    pub no_npu: bool,
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
    /// Boot this kernel as the host: an arm64 Image, or a raw binary entered 0x80000 past the start of host RAM, with the
    /// device tree in x0. The run ends when the machine does.
    #[arg(long, value_name = "FILE")]
    pub host_kernel: Option<PathBuf>,
    /// Initrd of that kernel.
    #[arg(long, value_name = "FILE")]
    pub host_initrd: Option<PathBuf>,
    /// Appended to the host kernel's command line.
    #[arg(long, value_name = "S")]
    pub append: Option<String>,
}

/// Arguments of `run` that `flexserve run` inside the host has too, and explains.
#[derive(Clone, Debug, Default, Args)]
pub struct AnswerArgs {
    /// Keep the likeliest tokens only.
    #[arg(long, value_name = "N")]
    pub top_k: Option<u32>,
    /// Keep the likeliest tokens until their probabilities add up to P.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Keep tokens that are at least P times as probable as the likeliest.
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Penalty for tokens that occurred lately.
    #[arg(long, value_name = "R")]
    pub repeat_penalty: Option<f32>,
    /// Tokens back that the penalty looks.
    #[arg(long, value_name = "N")]
    pub repeat_last_n: Option<u32>,
    /// Text that ends the answer; may be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// JSON schema that the answer follows, or @FILE.
    #[arg(long, value_name = "SCHEMA")]
    pub json_schema: Option<String>,
    /// System text, for models with a chat template.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Whether the model thinks before it answers.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub think: Option<bool>,
}

/// Arguments of `test`.
#[derive(Clone, Debug, Default, Args)]
pub struct TestArgs {
    /// Only list the tests, the boots they share and what they cost.
    #[arg(long)]
    pub list: bool,
    /// Only tests whose name contains S.
    #[arg(long, value_name = "S")]
    pub filter: Option<String>,
    /// Also long soaks and boot comparisons.
    #[arg(long)]
    pub slow: bool,
    /// Make a bare Debian 12 root and repeat the README's commands in it (as root).
    #[arg(long)]
    pub bare: bool,
    /// Only suites of this deployment.
    #[arg(long, value_enum)]
    pub deployment: Option<DeploymentName>,
}

/// Arguments of `attack`.
#[derive(Clone, Debug, Default, Args)]
pub struct AttackArgs {
    /// Only this attack.
    pub name: Option<String>,
    /// With this defence off; the attack should succeed.
    #[arg(long, value_name = "DEFENCE")]
    pub without: Option<String>,
    /// Where the hypervisor runs.
    #[arg(long, value_enum, default_value_t)]
    pub deployment: DeploymentName,
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench`.
#[derive(Clone, Debug, Default, Args)]
pub struct BenchArgs {
    /// Only these benchmarks.
    pub names: Vec<String>,
    /// A reduced matrix.
    #[arg(long)]
    pub quick: bool,
    /// Print which exact counts moved against the committed baseline.
    #[arg(long)]
    pub check: bool,
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `parity`.
#[derive(Clone, Debug, Default, Args)]
pub struct ParityArgs {
    /// Only fixtures whose name contains S.
    #[arg(long, value_name = "S")]
    pub filter: Option<String>,
    /// Ask llama.cpp first and write new fixtures.
    #[arg(long)]
    pub regenerate: bool,
    /// Python with llama.cpp's packages (default: python3).
    #[arg(long, value_name = "PATH", requires = "regenerate")]
    pub python: Option<PathBuf>,
    /// The folder `models` of llama.cpp's sources: compare tokens of the vocabularies there, too.
    #[arg(long, value_name = "DIR", requires = "regenerate")]
    pub vocabularies: Option<PathBuf>,
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long, conflicts_with = "vocabularies")]
    pub json: bool,
}

/// Arguments of `eval`.
#[derive(Clone, Debug, Default, Args)]
pub struct EvalArgs {
    /// Model file (default: the project's demo model).
    #[arg(long, value_name = "PATH.gguf")]
    pub model: Option<PathBuf>,
    /// Requests and answers, one JSON object on each line (default: the demo model's held-out set).
    #[arg(long, value_name = "PATH.jsonl")]
    pub data: Option<PathBuf>,
    /// Print the first N wrong answers of each tool on standard error.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub show: usize,
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `fuzz`.
#[derive(Clone, Debug, Default, Args)]
pub struct FuzzArgs {
    /// Only these targets.
    pub targets: Vec<String>,
    /// CPU minutes for each target.
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub minutes: f64,
}

/// Arguments of `tcb`.
#[derive(Clone, Debug, Default, Args)]
pub struct TcbArgs {
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_stable() {
        Cli::command().debug_assert();
        let line = "x run --prompt hi --model m.gguf --deployment s-el2 --firmware tf-a --cpu max --smp 2 --mem 2G \
                    --max-tokens 9 --temp 0.5 --seed 1 --top-k 1 --top-p 1 --min-p 0 --repeat-penalty 1 --repeat-last-n 0 \
                    --stop a --stop b --json-schema {} --system s --think=false --no-npu --json --host-kernel k --host-initrd i --append a";
        assert!(matches!(Cli::try_parse_from(line.split_whitespace()).unwrap().command, Command::Run(_)));
        for line in [
            "x test --list --filter s --slow --bare --deployment el2",
            "x attack name --without defence --deployment el2 --json",
            "x bench a b --quick --check --json",
            "x tcb --json",
            "x parity --filter s --json",
            "x parity --regenerate --python p --vocabularies d",
            "x eval --model m.gguf --data d.jsonl --show 3 --json",
            "x fuzz a b --minutes 0.5",
            "x gdb --prompt hi",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_ok(), "{line}");
        }
        assert_eq!(Cli::try_parse_from(["x", "run", "--smp", "many"]).unwrap_err().exit_code(), 2);
    }
}
