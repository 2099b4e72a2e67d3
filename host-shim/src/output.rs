//! What `flexserve run` prints, in its three modes.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::error::Error;
use crate::events::Event;
use crate::interactive::PROMPT;
use crate::report::Report;

/// How a run is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The answer on standard output, the rest on standard error.
    Text,
    /// One JSON object on standard output.
    Json,
    /// An event per line on standard output.
    Events,
}

/// Where a run is reported.
#[derive(Debug)]
pub struct Output {
    mode: Mode,
    /// Whether thoughts were written last, so that their line is still open.
    in_thoughts: AtomicBool,
    /// Standard output, and standard error, is a terminal.
    terminal: [bool; 2],
}

impl Output {
    /// Reports in this mode.
    pub fn new(mode: Mode) -> Self {
        let terminal = [std::io::stdout().is_terminal(), std::io::stderr().is_terminal()];
        Output { mode, in_thoughts: AtomicBool::new(false), terminal }
    }

    /// Reports an event. False: nobody reads the answer any more.
    pub fn event(&self, event: &Event<'_>) -> bool {
        match (self.mode, event) {
            (Mode::Events, event) => event.emit().is_ok(),
            // Not on standard output: that is the answer.
            (Mode::Text, Event::Thought { text }) => {
                self.in_thoughts.store(true, Ordering::Relaxed);
                eprint!("{}", printable(text));
                true
            }
            (Mode::Text, Event::Token { text }) => {
                self.end_thoughts();
                let mut out = std::io::stdout().lock();
                let text = if self.terminal[0] { &printable(text) } else { *text };
                out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
            }
            (Mode::Text, Event::Prompt { .. }) if self.terminal[0] && std::io::stdin().is_terminal() => {
                let mut out = std::io::stdout().lock();
                out.write_all(PROMPT.as_bytes()).and_then(|()| out.flush()).is_ok()
            }
            (Mode::Text, Event::Answer { .. }) => {
                self.end_thoughts();
                writeln!(std::io::stdout()).is_ok()
            }
            (Mode::Text, Event::Refusal { message, .. }) => {
                eprintln!("flexserve: {message}");
                true
            }
            (Mode::Text, Event::Progress { what, done, total }) if self.terminal[1] => {
                let percent = done.saturating_mul(100).checked_div(*total).unwrap_or(100);
                let end = if done == total { "\n" } else { "" };
                eprint!("\r{what}: {percent} %{end}");
                true
            }
            (Mode::Text | Mode::Json, Event::Status { text }) => {
                eprintln!("{text}");
                true
            }
            _ => true,
        }
    }

    fn end_thoughts(&self) {
        if self.in_thoughts.swap(false, Ordering::Relaxed) {
            eprintln!();
        }
    }

    /// Reports the end of a run.
    pub fn result(&self, report: &Report) {
        match self.mode {
            Mode::Text => {
                self.end_thoughts();
                // The answers of a session ended their lines themselves.
                if !report.answer.is_empty() {
                    println!();
                }
                eprint!("{}", summary(report, emulated()));
            }
            Mode::Json => println!("{}", object(Ok(report))),
            Mode::Events => {
                self.event(&Event::Result(report));
            }
        }
    }

    /// Reports a failure.
    pub fn error(&self, error: &Error) {
        let message = error.to_string();
        match self.mode {
            Mode::Text => {}
            Mode::Json => println!("{}", object(Err(error))),
            Mode::Events => {
                let code = error.code as u8;
                self.event(&Event::Error { code, kind: error.code.kind(), message: &message });
            }
        }
        eprintln!("flexserve: {message}");
    }

    /// What the handler of bus errors is to write, and where: to standard output for a program that reads events.
    pub fn on_bus_error(&self) -> (i32, Vec<u8>) {
        let message = "the partition or the model file took back a page in use; the partition's or the file owner's fault; \
                       do not trust its answer";
        match self.mode {
            Mode::Events => (1, Event::Error { code: 5, kind: "partition", message }.line()),
            Mode::Text | Mode::Json => (2, format!("flexserve: {message}\n").into_bytes()),
        }
    }
}

/// The object of `--json`.
#[derive(Serialize)]
struct Object<'a> {
    schema: u32,
    ok: bool,
    error: Option<Failure>,
    #[serde(flatten)]
    report: Option<&'a Report>,
}

#[derive(Serialize)]
struct Failure {
    code: u8,
    message: String,
}

fn object(result: Result<&Report, &Error>) -> String {
    let error = result.err().map(|error| Failure { code: error.code as u8, message: error.to_string() });
    let object = Object { schema: 1, ok: error.is_none(), error, report: result.ok() };
    // Strings and numbers serialise without fail.
    serde_json::to_string(&object).unwrap_or_default()
}

/// Figures for people.
fn summary(report: &Report, emulated: bool) -> String {
    let times = if emulated { " (emulated)" } else { "" };
    format!(
        "\n{} request(s): {} prompt tokens in {:.0} ms, {:.1}/s{times}; {} tokens in {:.0} ms, {:.1}/s{times}\n\
         loaded {} KiB in {:.0} ms, first token after {:.0} ms{times}\n\
         pages given {}, back {}; world switches {}; blocked accesses {}\n\
         measurement {}\n",
        report.requests,
        report.prompt_tokens,
        report.prefill_ms,
        report.prefill_tokens_per_s,
        report.tokens,
        report.decode_ms,
        report.tokens_per_s,
        report.bytes_loaded >> 10,
        report.load_ms,
        report.ttft_ms,
        report.pages_given,
        report.pages_recalled,
        report.world_switches,
        report.blocked_accesses,
        report.measurement,
    )
}

/// Whether this machine is QEMU's.
pub fn emulated() -> bool {
    std::fs::read("/proc/device-tree/compatible").is_ok_and(|text| text.starts_with(b"linux,dummy-virt"))
}

/// Text of the partition for a terminal: control characters could make it do things.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{FFFD}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use serde_json::{Value, json};

    #[test]
    fn the_terminal_obeys_nothing() {
        assert_eq!(printable("a\n\tb\u{1b}[2J\r\u{9b}c"), "a\n\tb\u{FFFD}[2J\u{FFFD}\u{FFFD}c");
    }

    #[test]
    fn the_object_has_schema_verdict_and_figures() {
        let report = Report { answer: "x\n\"".into(), tokens: 3, ..Report::default() };
        let text = object(Ok(&report));
        assert!(text.starts_with(r#"{"schema":1,"ok":true,"error":null,"answer":"#), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["schema"], &value["ok"], &value["error"]),
            (&json!(1), &json!(true), &Value::Null)
        );
        assert_eq!(
            (&value["answer"], &value["tokens"], &value["npu_jobs"]),
            (&json!("x\n\""), &json!(3), &json!(0))
        );
        let text = object(Err(&Error::new(Code::Integrity, "what", "whose", "then")));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["ok"], json!(false));
        assert_eq!(value["error"], json!({"code": 7, "message": "what; whose fault; then"}));
    }

    #[test]
    fn times_of_an_emulator_are_called_so() {
        let summary = summary(&Report::default(), true);
        assert_eq!(summary.matches("(emulated)").count(), 3);
        assert!(!self::summary(&Report::default(), false).contains("emulated"));
    }

    #[test]
    fn the_bus_error_is_an_event_too() {
        let output = Output::new(Mode::Events);
        let (descriptor, line) = output.on_bus_error();
        assert_eq!(descriptor, 1);
        let value: Value = serde_json::from_slice(&line[1..]).unwrap();
        assert_eq!((&value["event"], &value["code"]), (&json!("error"), &json!(5)));
    }
}
