//! `cargo xtask eval`: how many of a file's requests a model answers exactly as expected, through the project's own
//! engine, on this machine. Greedy; the whole answer counts, character by character.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};
use flexserve_engine::{Event, Flow, Limits, Model, Request, Session, SessionConfig, generate};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::build::DEFAULT_MODEL;
use crate::cli::EvalArgs;
use crate::failure::{Code, Failure};
use crate::paths::Paths;

/// The demo model's held-out requests.
pub const HELD_OUT: &str = "tests/models/demo/heldout.jsonl";

/// No expected answer is longer; a model that does not end is wrong anyway.
const MAX_TOKENS: usize = 128;

/// One line of the file.
#[derive(Debug, Deserialize)]
struct Sample {
    prompt: String,
    answer: String,
}

impl Sample {
    /// The tool that the expected answer calls; samples are counted by it.
    fn tool(&self) -> String {
        let answer: Option<Value> = serde_json::from_str(&self.answer).ok();
        answer.as_ref().and_then(|answer| answer["tool"].as_str()).unwrap_or("(no tool)").to_owned()
    }
}

/// Right answers among those given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Score {
    right: usize,
    n: usize,
}

impl Score {
    fn share(self) -> f64 {
        self.right as f64 / self.n.max(1) as f64
    }

    fn json(self) -> Value {
        json!({"exact_match": rounded(self.share()), "right": self.right, "n": self.n})
    }
}

/// A wrong answer.
#[derive(Clone, Debug)]
struct Miss {
    tool: String,
    prompt: String,
    expected: String,
    answer: String,
}

/// What an evaluation found.
#[derive(Debug, Default)]
struct Evaluation {
    all: Score,
    tools: BTreeMap<String, Score>,
    /// In the file's order.
    misses: Vec<Miss>,
}

/// `cargo xtask eval`.
pub fn main(paths: &Paths, args: &EvalArgs) -> Result<()> {
    let file = |given: &Option<_>, default: &str| given.clone().unwrap_or_else(|| paths.at(default));
    let (model_path, data_path) = (file(&args.model, DEFAULT_MODEL), file(&args.data, HELD_OUT));
    let bytes = read(&model_path)?;
    let model = Model::load(&bytes, &Limits::default()).map_err(|error| {
        Failure::new(
            Code::Failed,
            format!("{}: {error}", model_path.display()),
            "the model file",
            "choose another file",
        )
    })?;
    let samples = samples(&data_path)?;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let found = evaluate(&model, &samples, threads, &|done, score| {
        if done % 50 == 0 || done == samples.len() {
            let mut out = std::io::stderr().lock();
            // Nobody may be listening; the result goes to standard output.
            let _ = writeln!(
                out,
                "eval: {done} of {}, {:.1} % exact so far",
                samples.len(),
                100.0 * score.share()
            );
        }
    })?;
    show(&found, args.show);
    if args.json {
        println!("{}", report(&found));
    } else {
        print!("{}", table(&found));
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| {
        Failure::usage(format!("{}: {error}", path.display()), "name a file that can be read")
    })
}

/// Reads lines of `{"prompt": …, "answer": …}`.
fn samples(path: &Path) -> Result<Vec<Sample>> {
    let bytes = read(path)?;
    let bad = |line: usize, why: &dyn std::fmt::Display| {
        let remedy = r#"write one {"prompt": "…", "answer": "…"} on each line"#;
        Failure::new(Code::Failed, format!("{}, line {line}: {why}", path.display()), "the data file", remedy)
    };
    let text = String::from_utf8(bytes).map_err(|error| bad(1, &error))?;
    let mut samples = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        samples.push(serde_json::from_str(line).map_err(|error| bad(number + 1, &error))?);
    }
    if samples.is_empty() {
        return Err(bad(1, &"no request"));
    }
    Ok(samples)
}

/// Answers all `samples`, each on one of `threads` threads; calls `progress` after each, in any order.
fn evaluate(
    model: &Model<'_>,
    samples: &[Sample],
    threads: usize,
    progress: &(dyn Fn(usize, Score) + Sync),
) -> Result<Evaluation> {
    let next = AtomicUsize::new(0);
    let answers: Mutex<(Score, Vec<Option<String>>)> =
        Mutex::new((Score::default(), vec![None; samples.len()]));
    let work = || -> Result<()> {
        let mut session = Session::new(model, &SessionConfig::for_model(model))
            .map_err(|error| anyhow!("starting a session: {error}"))?;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(sample) = samples.get(index) else { return Ok(()) };
            let answer = answer(&mut session, &sample.prompt)
                .with_context(|| format!("request {} ({:?})", index + 1, sample.prompt))
                .inspect_err(|_| next.store(samples.len(), Ordering::Relaxed))?;
            let mut answers = answers.lock().map_err(|_| anyhow!("another thread failed"))?;
            answers.0.n += 1;
            answers.0.right += usize::from(answer == sample.answer);
            answers.1[index] = Some(answer);
            progress(answers.0.n, answers.0);
        }
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads.clamp(1, samples.len())).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a thread ended early"))?)
    })?;
    let (_, answers) = answers.into_inner().map_err(|_| anyhow!("a thread failed"))?;
    let mut found = Evaluation::default();
    for (sample, answer) in samples.iter().zip(answers) {
        let answer = answer.context("a request has no answer")?;
        let tool = sample.tool();
        let right = answer == sample.answer;
        for score in [&mut found.all, found.tools.entry(tool.clone()).or_default()] {
            score.n += 1;
            score.right += usize::from(right);
        }
        if !right {
            let (prompt, expected) = (sample.prompt.clone(), sample.answer.clone());
            found.misses.push(Miss { tool, prompt, expected, answer });
        }
    }
    Ok(found)
}

/// The greedy answer to one request.
fn answer(session: &mut Session<'_>, prompt: &str) -> Result<String> {
    let request = Request { max_tokens: MAX_TOKENS, ..Request::new(prompt) };
    let mut text = String::new();
    generate(session, &request, &mut |event| {
        if let Event::Text(piece) = event {
            text.push_str(piece);
        }
        Flow::Continue
    })
    .map_err(|error| anyhow!("{error}"))?;
    Ok(text)
}

/// Prints the first `count` wrong answers of each tool on standard error.
fn show(found: &Evaluation, count: usize) {
    let mut shown: BTreeMap<&str, usize> = BTreeMap::new();
    for miss in &found.misses {
        let already = shown.entry(&miss.tool).or_default();
        if *already < count {
            *already += 1;
            eprintln!("{}\n  expected {}\n  answered {}", miss.prompt, miss.expected, miss.answer);
        }
    }
}

fn rounded(share: f64) -> f64 {
    (share * 10_000.0).round() / 10_000.0
}

/// The line of `--json`.
fn report(found: &Evaluation) -> Value {
    let tools: serde_json::Map<_, _> =
        found.tools.iter().map(|(tool, score)| (tool.clone(), score.json())).collect();
    json!({
        "schema": 1,
        "exact_match": rounded(found.all.share()),
        "right": found.all.right,
        "n": found.all.n,
        "tools": tools,
    })
}

/// The table for people.
fn table(found: &Evaluation) -> String {
    let mut lines = format!("{:<24} {:>5} {:>5}\n", "tool", "right", "of");
    let rows = found.tools.iter().map(|(tool, score)| (tool.as_str(), score));
    for (tool, score) in rows.chain([("all", &found.all)]) {
        lines += &format!("{tool:<24} {:>5} {:>5}  {:>5.1} %\n", score.right, score.n, 100.0 * score.share());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The issue's floor for the demo model.
    const FLOOR: f64 = 0.95;

    fn run(data: &str, threads: usize, every: usize) -> Evaluation {
        let paths = Paths::discover().unwrap();
        let bytes = fs::read(paths.at(DEFAULT_MODEL)).unwrap();
        let model = Model::load(&bytes, &Limits::default()).unwrap();
        let samples: Vec<Sample> = samples(&paths.at(data)).unwrap().into_iter().step_by(every).collect();
        evaluate(&model, &samples, threads, &|_, _| {}).unwrap()
    }

    #[test]
    fn the_demo_model_answers_held_out_requests() {
        let found = run(HELD_OUT, 2, 1);
        assert!(found.all.n >= 1000, "{} requests", found.all.n);
        assert!(found.tools.len() >= 12, "{} tools", found.tools.len());
        show(&found, 3);
        assert!(found.all.share() >= FLOOR, "{}", table(&found));
    }

    #[test]
    fn held_out_requests_differ_from_each_other_and_from_the_readmes() {
        let paths = Paths::discover().unwrap();
        let words = |text: &str| {
            let lower = text.to_lowercase();
            lower
                .split(|c: char| !c.is_alphanumeric())
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let readme = "wake me at half past six tomorrow";
        assert!(fs::read_to_string(paths.at("README.md")).unwrap().contains(readme));
        let mut seen = std::collections::BTreeSet::from([readme.to_owned()]);
        for sample in samples(&paths.at(HELD_OUT)).unwrap() {
            assert!(seen.insert(words(&sample.prompt)), "{}", sample.prompt);
        }
    }

    #[test]
    fn the_demo_model_answers_requests_written_by_hand() {
        let found = run("tests/models/demo/probe.jsonl", 1, 1);
        show(&found, 3);
        assert!(found.all.share() >= FLOOR, "{}", table(&found));
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let (one, three) = (run(HELD_OUT, 1, 40), run(HELD_OUT, 3, 40));
        assert_eq!(report(&one), report(&three));
    }

    #[test]
    fn wrong_answers_are_counted_by_tool() {
        let paths = Paths::discover().unwrap();
        let bytes = fs::read(paths.at(DEFAULT_MODEL)).unwrap();
        let model = Model::load(&bytes, &Limits::default()).unwrap();
        let timer = |amount: u32| Sample {
            prompt: "set a timer for 10 minutes".into(),
            answer: format!(r#"{{"tool":"set_timer","args":{{"amount":{amount},"unit":"minutes"}}}}"#),
        };
        let other = Sample { prompt: "set a timer for 10 minutes".into(), answer: "ten".into() };
        let found = evaluate(&model, &[timer(10), timer(11), other], 2, &|_, _| {}).unwrap();
        assert_eq!(found.all, Score { right: 1, n: 3 });
        assert_eq!(found.tools["set_timer"], Score { right: 1, n: 2 });
        assert_eq!(found.tools["(no tool)"], Score { right: 0, n: 1 });
        assert_eq!(found.misses.len(), 2);
        assert_eq!(report(&found)["exact_match"], json!(0.3333));
        assert!(
            table(&found).ends_with("all                          1     3   33.3 %\n"),
            "{}",
            table(&found)
        );
    }

    #[test]
    fn a_bad_line_is_named() {
        let path = std::env::temp_dir().join(format!("flexserve-eval-{}.jsonl", std::process::id()));
        fs::write(&path, "{\"prompt\":\"a\",\"answer\":\"b\"}\n{\"prompt\":\"a\"}\n").unwrap();
        let error = samples(&path).unwrap_err();
        fs::write(&path, "\n").unwrap();
        let empty = samples(&path).unwrap_err();
        fs::remove_file(&path).unwrap();
        let failure = Failure::of(&error);
        assert_eq!((failure.code, failure.fault), (Code::Failed, "the data file"));
        assert!(failure.what.contains("line 2: missing field `answer`"), "{failure}");
        assert!(Failure::of(&empty).what.contains("no request"));
    }
}
