//! Verdicts, how they are printed, and the JUnit file.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use crate::paths::write_whole;

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed; what was observed.
    Failed(String),
    /// It did not run; why.
    Skipped(String),
}

/// One verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The suite.
    pub suite: String,
    /// The test.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Seconds, where known.
    pub seconds: f64,
}

/// All verdicts of a run, printed as they come.
#[derive(Debug, Default)]
pub struct Verdicts {
    all: Vec<Verdict>,
    /// Printed on standard error, since standard output is for something else.
    on_stderr: bool,
}

impl Verdicts {
    /// None yet; they will be printed on standard output or on standard error.
    pub fn printed(on_stderr: bool) -> Self {
        Self { all: Vec::new(), on_stderr }
    }

    /// Records and prints one verdict.
    pub fn add(&mut self, suite: &str, name: &str, outcome: Outcome, seconds: f64) {
        let (word, detail) = match &outcome {
            Outcome::Passed => ("ok     ", ""),
            Outcome::Failed(detail) => ("FAILED ", detail.as_str()),
            Outcome::Skipped(detail) => ("skipped", detail.as_str()),
        };
        let mut text = format!("{word} {suite}::{name}\n");
        for line in detail.lines() {
            text.push_str(&format!("        {line}\n"));
        }
        if self.on_stderr {
            eprint!("{text}")
        } else {
            print!("{text}")
        }
        self.all.push(Verdict { suite: suite.into(), name: name.into(), outcome, seconds });
    }

    /// Whether a test passed; none if there is no verdict.
    pub fn passed(&self, suite: &str, name: &str) -> Option<bool> {
        let verdict = self.all.iter().find(|verdict| verdict.suite == suite && verdict.name == name)?;
        Some(verdict.outcome == Outcome::Passed)
    }

    /// Whether the suite has a verdict of that name.
    pub fn contains(&self, suite: &str, name: &str) -> bool {
        self.all.iter().any(|verdict| verdict.suite == suite && verdict.name == name)
    }

    /// Numbers of passed, failed and skipped tests.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count =
            |wanted: fn(&Outcome) -> bool| self.all.iter().filter(|verdict| wanted(&verdict.outcome)).count();
        (
            count(|outcome| *outcome == Outcome::Passed),
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| matches!(outcome, Outcome::Skipped(_))),
        )
    }

    /// The last line of a test run; scripts read it.
    pub fn last_line(&self) -> String {
        let (passed, failed, skipped) = self.counts();
        let tail = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
        format!("{passed} passed, {failed} failed{tail}")
    }

    /// Writes the JUnit file.
    pub fn write_junit(&self, path: &Path) -> Result<()> {
        write_whole(path, self.junit().as_bytes())
    }

    fn junit(&self) -> String {
        let (passed, failed, skipped) = self.counts();
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let mut line = |content: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{content}");
        };
        line(format!(
            "<testsuites tests=\"{}\" failures=\"{failed}\" skipped=\"{skipped}\">",
            passed + failed + skipped
        ));
        let mut suites: Vec<&str> = Vec::new();
        for verdict in &self.all {
            if !suites.contains(&verdict.suite.as_str()) {
                suites.push(&verdict.suite);
            }
        }
        for suite in suites {
            line(format!("  <testsuite name=\"{}\">", escaped(suite)));
            for verdict in self.all.iter().filter(|verdict| verdict.suite == suite) {
                let head = format!(
                    "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
                    escaped(suite),
                    escaped(&verdict.name),
                    verdict.seconds
                );
                match &verdict.outcome {
                    Outcome::Passed => line(format!("{head}/>")),
                    Outcome::Failed(detail) => {
                        line(format!("{head}><failure>{}</failure></testcase>", escaped(detail)));
                    }
                    Outcome::Skipped(detail) => {
                        line(format!("{head}><skipped message=\"{}\"/></testcase>", escaped(detail)));
                    }
                }
            }
            line("  </testsuite>".into());
        }
        line("</testsuites>".into());
        text
    }
}

/// Text as XML allows it: markup escaped, characters that XML forbids replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_last_line_and_junit() {
        let mut verdicts = Verdicts::default();
        verdicts.add("a", "one", Outcome::Passed, 0.5);
        verdicts.add("b", "two", Outcome::Failed("x < y & \"z\"\u{1}".into()), 0.0);
        assert_eq!(verdicts.last_line(), "1 passed, 1 failed");
        verdicts.add("a", "three", Outcome::Skipped("why".into()), 0.0);
        assert_eq!(verdicts.last_line(), "1 passed, 1 failed, 1 skipped");
        let text = verdicts.junit();
        assert!(text.contains("<testsuites tests=\"3\" failures=\"1\" skipped=\"1\">"));
        assert!(text.contains("<failure>x &lt; y &amp; &quot;z&quot;\u{fffd}</failure>"));
        assert_eq!(text.matches("<testsuite name=").count(), 2);
        assert!(verdicts.contains("b", "two") && !verdicts.contains("b", "one"));
    }
}
