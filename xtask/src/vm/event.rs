//! What programs in the host report, one JSON object each.

use serde::Deserialize;
use serde_json::{Map, Value};

/// One event. The host is not trusted: everything is checked here, and nothing it says makes xtask fail in an unordered way.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// `/init` runs: the host has booted.
    Ready {
        /// The system counter, which starts with the machine; 0 if unknown.
        #[serde(default)]
        ticks: u64,
    },
    /// A line for the user.
    Status {
        /// The line.
        text: String,
    },
    /// Progress of long work.
    Progress {
        /// What is going on.
        what: String,
        /// How much is done.
        done: u64,
        /// Of how much; 0 if unknown.
        total: u64,
    },
    /// A piece of the model's answer.
    Token {
        /// The piece.
        text: String,
    },
    /// A piece of what the model thinks before it answers.
    Thought {
        /// The piece.
        text: String,
    },
    /// A session wants a line.
    Prompt {
        /// Lines are turns of a conversation.
        #[serde(default)]
        chat: bool,
    },
    /// The answer to a line is whole.
    Answer {
        /// Why it ended.
        #[serde(default)]
        stop: String,
    },
    /// A line was refused; the session goes on.
    Refusal {
        /// What failed, whose fault, what to do.
        message: String,
    },
    /// The end of a run: all its counters.
    Result {
        /// Counters by name.
        #[serde(flatten)]
        counters: Map<String, Value>,
    },
    /// The work failed.
    Error {
        /// Stable exit code.
        code: i64,
        /// Short name of the kind.
        #[serde(default)]
        kind: String,
        /// What failed, whose fault, what to do.
        message: String,
    },
    /// A suite announces its tests, so that one that never reports counts as failed.
    Plan {
        /// Names.
        tests: Vec<String>,
    },
    /// A test's verdict.
    Test {
        /// Name.
        name: String,
        /// Passed or failed.
        ok: bool,
        /// Skipped, with the reason in `detail`.
        #[serde(default)]
        skipped: bool,
        /// What was observed.
        #[serde(default)]
        detail: String,
    },
    /// A suite asks for something that only the outside can do; answered on the console by one line of JSON.
    Ask {
        /// Copied to the answer.
        id: u64,
        /// The request.
        #[serde(flatten)]
        request: super::outside::Request,
    },
    /// The work is done; the machine turns itself off.
    Done,
    /// None of the above.
    #[serde(skip)]
    Unknown(String),
}

impl Event {
    /// Reads an event; what is none becomes [`Event::Unknown`], with its name only.
    pub fn from_json(value: Value) -> Self {
        let name = value.get("event").and_then(Value::as_str).unwrap_or("without a name").to_owned();
        serde_json::from_value(value).unwrap_or(Self::Unknown(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_read() {
        assert_eq!(Event::from_json(json!({"event": "ready", "kernel": "x"})), Event::Ready { ticks: 0 });
        assert_eq!(
            Event::from_json(json!({"event": "token", "text": "a"})),
            Event::Token { text: "a".into() }
        );
        let Event::Result { counters } = Event::from_json(json!({"event": "result", "tokens": 3})) else {
            panic!("not a result");
        };
        assert_eq!(counters["tokens"], 3);
        let ask = Event::from_json(json!({"event": "ask", "id": 1, "ask": "search", "bytes": "00ff"}));
        assert!(matches!(ask, Event::Ask { id: 1, .. }), "{ask:?}");
    }

    #[test]
    fn malformed_events_are_unknown() {
        for value in [
            json!(1),
            json!({"event": "token"}),
            json!({"event": "token", "text": 1}),
            json!({"event": "no"}),
        ] {
            assert!(matches!(Event::from_json(value), Event::Unknown(_)));
        }
    }
}
