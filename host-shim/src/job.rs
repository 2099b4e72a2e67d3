//! What init does: the job in `/etc/flexserve/job.json`.

use std::ffi::OsString;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};

/// Where the job lies.
pub const JOB_PATH: &str = "/etc/flexserve/job.json";

/// A job. Fields that this version does not know are ignored.
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum Job {
    /// One prompt, or a session, through `flexserve run`.
    Run(Box<Run>),
    /// The system tests, which read the job themselves.
    Test,
    /// Any program.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
    },
}

/// Options of [`Job::Run`], as those of `flexserve run`; absent or null: its default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Run {
    /// Path or name.
    pub model: String,
    /// The prompt; none: a session over the console.
    pub prompt: Option<String>,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// Context length.
    pub context: Option<u32>,
    /// Format of keys and values.
    pub cache_type: Option<String>,
    /// Whether a full context forgets and goes on.
    pub context_shift: Option<bool>,
    /// Tokens that it then keeps.
    pub keep: Option<u32>,
    /// Temperature.
    pub temp: Option<f32>,
    /// Sampler seed.
    pub seed: Option<u64>,
    /// Most vCPUs.
    pub threads: Option<u32>,
    /// Sampling, each as the option of its name.
    pub top_k: Option<u32>,
    /// As `--top-p`.
    pub top_p: Option<f32>,
    /// As `--min-p`.
    pub min_p: Option<f32>,
    /// As `--repeat-penalty`.
    pub repeat_penalty: Option<f32>,
    /// As `--repeat-last-n`.
    pub repeat_last_n: Option<u32>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// JSON schema that the answer follows.
    pub json_schema: Option<String>,
    /// System text.
    pub system: Option<String>,
    /// Whether the model thinks before it answers.
    pub think: Option<bool>,
    /// Raw completion.
    pub raw: Option<bool>,
    /// Without the NPU.
    pub no_npu: Option<bool>,
    /// Heap of the partition, as `--mem-heap` takes it.
    pub mem_heap: Option<String>,
}

impl Job {
    /// Parses a job.
    ///
    /// # Errors
    /// Code 2.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let refuse = |what: String| {
            Error::usage(format!("{JOB_PATH}: {what}"), "correct the job that boots with the host")
        };
        let job: Job = serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
        match &job {
            Job::Exec { argv } if argv.is_empty() => Err(refuse("argv is empty".into())),
            Job::Run(run) if run.model.is_empty() => Err(refuse("there is no model".into())),
            _ => Ok(job),
        }
    }

    /// The command line that does the job.
    pub fn command(&self, path: &Path) -> Vec<OsString> {
        match self {
            Job::Exec { argv } => argv.iter().map(OsString::from).collect(),
            Job::Test => vec!["/bin/system-tests".into(), path.into()],
            Job::Run(run) => run.command().into_iter().map(OsString::from).collect(),
        }
    }
}

impl Run {
    fn command(&self) -> Vec<String> {
        let mut command = vec!["/bin/flexserve".into(), "run".into(), "--json-events".into()];
        let mut option = |name: &str, value: Option<String>| {
            // In one word, so that a prompt may begin with a dash.
            command.extend(value.map(|value| format!("{name}={value}")));
        };
        option("--prompt", self.prompt.clone());
        option("--predict", self.max_tokens.map(|value| value.to_string()));
        option("--ctx-size", self.context.map(|value| value.to_string()));
        option("--cache-type", self.cache_type.clone());
        option("--keep", self.keep.map(|value| value.to_string()));
        option("--temp", self.temp.map(|value| value.to_string()));
        option("--seed", self.seed.map(|value| value.to_string()));
        option("--top-k", self.top_k.map(|value| value.to_string()));
        option("--top-p", self.top_p.map(|value| value.to_string()));
        option("--min-p", self.min_p.map(|value| value.to_string()));
        option("--repeat-penalty", self.repeat_penalty.map(|value| value.to_string()));
        option("--repeat-last-n", self.repeat_last_n.map(|value| value.to_string()));
        self.stop.iter().for_each(|text| option("--stop", Some(text.clone())));
        option("--json-schema", self.json_schema.clone());
        option("--system", self.system.clone());
        option("--think", self.think.map(|value| value.to_string()));
        option("--threads", self.threads.map(|value| value.to_string()));
        option("--mem-heap", self.mem_heap.clone());
        for (name, value) in
            [("--raw", self.raw), ("--no-npu", self.no_npu), ("--context-shift", self.context_shift)]
        {
            command.extend(value.filter(|set| *set).map(|_| name.to_owned()));
        }
        command.extend(["--".into(), self.model.clone()]);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, Seed};
    use clap::Parser;
    use flexserve_engine::KvFormat;

    #[test]
    fn a_run_becomes_a_command_line_that_flexserve_understands() {
        let job = Job::parse(
            br#"{"action":"run","model":"/m/-x.gguf","prompt":"--help me\n","max_tokens":7,"temp":0.25,"seed":9,"raw":true,
                "no_npu":false,"context":512,"cache_type":"q8_0","context_shift":true,"keep":5,"mem_heap":"64M","top_k":3,"top_p":0.5,"min_p":0.25,"repeat_penalty":1.5,"repeat_last_n":7,
                "stop":["-x","\n"],"json_schema":"{}","system":"--s","think":false,"later":1}"#,
        )
        .unwrap();
        let Command::Run(run) = Cli::try_parse_from(job.command(Path::new(JOB_PATH))).unwrap().command else {
            panic!("not a run");
        };
        assert_eq!((run.prompt.as_deref(), run.model()), (Some("--help me\n"), "/m/-x.gguf"));
        assert_eq!((run.max_tokens, run.context, run.temperature, run.seed), (7, 512, 0.25, Seed::Fixed(9)));
        assert!(run.raw && run.json_events && !run.no_npu);
        assert_eq!((run.cache, run.context_shift, run.keep), (Some(KvFormat::Q8_0), true, 5));
        assert_eq!(run.mem_heap, Some(64 << 20));
        assert_eq!(
            (run.top_k, run.top_p, run.min_p, run.repeat_penalty, run.repeat_last_n),
            (3, 0.5, 0.25, 1.5, 7)
        );
        assert_eq!(
            (run.stop, run.json_schema.as_deref()),
            (vec!["-x".to_owned(), "\n".to_owned()], Some("{}"))
        );
        assert_eq!((run.system.as_deref(), run.think), (Some("--s"), Some(false)));
    }

    #[test]
    fn absent_and_null_options_are_left_to_flexserve() {
        let job = Job::parse(
            br#"{"action":"run","model":"m","prompt":null,"max_tokens":null,"temp":null,"seed":null,"no_npu":true}"#,
        )
        .unwrap();
        let command = job.command(Path::new(JOB_PATH));
        assert_eq!(
            command,
            ["/bin/flexserve", "run", "--json-events", "--no-npu", "--", "m"].map(OsString::from)
        );
        assert!(Cli::try_parse_from(command).is_ok());
    }

    #[test]
    fn other_jobs() {
        let path = Path::new(JOB_PATH);
        let exec = Job::parse(br#"{"action":"exec","argv":["/bin/x","-y"],"tests":["a"]}"#).unwrap();
        assert_eq!(exec.command(path), ["/bin/x", "-y"].map(OsString::from));
        let test = Job::parse(br#"{"action":"test","suite":"flexmem"}"#).unwrap();
        assert_eq!(test.command(path), ["/bin/system-tests", JOB_PATH].map(OsString::from));
    }

    #[test]
    fn malformed_jobs_are_refused() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"action":"no"}"#,
            r#"{"action":"exec"}"#,
            r#"{"action":"exec","argv":[]}"#,
            r#"{"action":"run","prompt":"p"}"#,
            r#"{"action":"run","model":"m","max_tokens":-1}"#,
        ] {
            assert_eq!(Job::parse(text.as_bytes()).unwrap_err().code, crate::error::Code::Usage, "{text}");
        }
    }
}
