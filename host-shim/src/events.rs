//! Events for the program that watches the host's console: byte 0x1e, one JSON object, line feed.

use std::io::{self, Write};

use serde::Serialize;

use crate::report::Report;

/// First byte of an event's line (ASCII record separator).
pub const RECORD_SEPARATOR: u8 = 0x1E;

/// One event.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event<'a> {
    /// User space of the host is up.
    Ready {
        /// Seconds since the kernel started.
        uptime_s: f64,
        /// The system counter, which starts with the machine; 0 where it cannot be read.
        ticks: u64,
    },
    /// A line for people.
    Status {
        /// The line.
        text: &'a str,
    },
    /// Progress of long work.
    Progress {
        /// What is going on: `load`, `measure`.
        what: &'a str,
        /// How much is done.
        done: u64,
        /// Of how much.
        total: u64,
    },
    /// A piece of the answer.
    Token {
        /// The piece.
        text: &'a str,
    },
    /// A piece of what the model thinks before it answers.
    Thought {
        /// The piece.
        text: &'a str,
    },
    /// A session wants a line.
    Prompt {
        /// Lines are turns of a conversation; else each is independent.
        chat: bool,
    },
    /// The answer to a line of a session is whole.
    Answer {
        /// Why it ended: `end`, `length`, `stop` (a stop string) or `cancelled`.
        stop: &'a str,
        /// Tokens of the prompt.
        prompt_tokens: u64,
        /// Of these, those that were not computed again.
        reused_tokens: u64,
        /// Tokens of the answer.
        tokens: u64,
        /// Milliseconds of the prompt phase (partition).
        prefill_ms: f64,
        /// Milliseconds of the answer phase (partition).
        decode_ms: f64,
    },
    /// A line of a session was refused; the session goes on.
    Refusal {
        /// The exit code that a single request would have had.
        code: u8,
        /// Its name.
        kind: &'a str,
        /// What failed, whose fault it is, what to do.
        message: &'a str,
    },
    /// The end of a run.
    Result(&'a Report),
    /// The work failed.
    Error {
        /// Exit code.
        code: u8,
        /// Its name.
        kind: &'a str,
        /// What failed, whose fault it is, what to do.
        message: &'a str,
    },
    /// The job's process ended.
    Exit {
        /// Its exit code; 128 + n: killed by signal n.
        code: i32,
    },
    /// The job is done; the machine turns itself off.
    Done,
}

impl Event<'_> {
    /// The event's line.
    pub fn line(&self) -> Vec<u8> {
        let mut line = vec![RECORD_SEPARATOR];
        // Serialising strings and numbers into memory cannot fail; an empty record would be dropped by the reader.
        let _ = serde_json::to_writer(&mut line, self);
        line.push(b'\n');
        line
    }

    /// Writes the event's line at once, so that nothing of this process comes in between.
    ///
    /// # Errors
    /// The output's.
    pub fn emit(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(&self.line())?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn value(event: Event<'_>) -> Value {
        let line = event.line();
        assert_eq!((line.first(), line.last()), (Some(&RECORD_SEPARATOR), Some(&b'\n')));
        assert_eq!(line.iter().filter(|byte| **byte < 0x20).count(), 2, "no other control byte");
        serde_json::from_slice(&line[1..]).unwrap()
    }

    #[test]
    fn events_are_lines_of_one_object() {
        assert_eq!(
            value(Event::Ready { uptime_s: 1.5, ticks: 7 }),
            json!({"event": "ready", "uptime_s": 1.5, "ticks": 7})
        );
        assert_eq!(
            value(Event::Token { text: "a\n\u{1e}\"" }),
            json!({"event": "token", "text": "a\n\u{1e}\""})
        );
        assert_eq!(value(Event::Thought { text: "hm" }), json!({"event": "thought", "text": "hm"}));
        assert_eq!(
            value(Event::Progress { what: "load", done: 1, total: 2 }),
            json!({"event": "progress", "what": "load", "done": 1, "total": 2})
        );
        assert_eq!(
            value(Event::Error { code: 5, kind: "partition", message: "m" }),
            json!({"event": "error", "code": 5, "kind": "partition", "message": "m"})
        );
        assert_eq!(value(Event::Exit { code: 0 }), json!({"event": "exit", "code": 0}));
        assert_eq!(value(Event::Done), json!({"event": "done"}));
        assert_eq!(value(Event::Prompt { chat: true }), json!({"event": "prompt", "chat": true}));
        assert_eq!(
            value(Event::Refusal { code: 2, kind: "usage", message: "m" }),
            json!({"event": "refusal", "code": 2, "kind": "usage", "message": "m"})
        );
        let answer = Event::Answer {
            stop: "end",
            prompt_tokens: 3,
            reused_tokens: 2,
            tokens: 2,
            prefill_ms: 0.5,
            decode_ms: 1.5,
        };
        assert_eq!(
            value(answer),
            json!({"event": "answer", "stop": "end", "prompt_tokens": 3, "reused_tokens": 2, "tokens": 2, "prefill_ms": 0.5, "decode_ms": 1.5})
        );
        assert_eq!(value(Event::Status { text: "s" }), json!({"event": "status", "text": "s"}));
    }

    #[test]
    fn a_result_is_flat() {
        let report = Report { answer: "yes".into(), tokens: 2, ..Report::default() };
        let value = value(Event::Result(&report));
        assert_eq!(
            (&value["event"], &value["answer"], &value["tokens"]),
            (&json!("result"), &json!("yes"), &json!(2))
        );
    }
}
