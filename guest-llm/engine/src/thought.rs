//! Telling a model's thoughts from its answer.

use alloc::string::String;

use crate::{Error, Result};

const BEGIN: &str = "<think>";
const END: &str = "</think>";
/// White space held back at most, in bytes.
const SPACE_MAX: usize = 256;

/// A piece of what a model says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Of its thoughts, without the marks around them.
    Thought,
    /// Of its answer.
    Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Thoughts may begin.
    Before,
    /// In them; whether there was text yet.
    Inside(bool),
    /// Thoughts are over, and space is skipped.
    After,
    /// In the answer.
    Answer,
}

/// Splits text that comes in pieces. Space around thoughts is left out, as templates put it there.
#[derive(Debug)]
pub(crate) struct Thoughts {
    state: State,
    held: String,
    passed: usize,
    template_has_them: bool,
}

impl Thoughts {
    /// Starts before the first piece. `template_has_them`: answers of the model have thoughts, though maybe none now;
    /// `expected`: it may think now; `inside`: the prompt has begun a thought already. Allocates for pieces of at most
    /// `piece_bytes`.
    pub fn new(template_has_them: bool, expected: bool, inside: bool, piece_bytes: usize) -> Result<Self> {
        let state = match (expected, inside) {
            (_, true) => State::Inside(false),
            (true, false) => State::Before,
            (false, false) => State::Answer,
        };
        let mut held = String::new();
        let bytes = piece_bytes.saturating_add(SPACE_MAX + END.len());
        held.try_reserve_exact(bytes).map_err(|_| Error::OutOfMemory { bytes })?;
        Ok(Thoughts { state, held, passed: 0, template_has_them })
    }

    /// Whether the template has thoughts, which are no part of the history.
    pub fn template_has_them(&self) -> bool {
        self.template_has_them
    }

    /// Whether all text so far belongs to thoughts.
    pub fn is_before_answer(&self) -> bool {
        matches!(self.state, State::Inside(_) | State::After)
    }

    /// Takes the next piece; afterwards [`Thoughts::next`] gives what it completes.
    pub fn push(&mut self, piece: &str) -> Result<()> {
        self.drop_passed();
        self.held.try_reserve(piece.len()).map_err(|_| Error::OutOfMemory { bytes: piece.len() })?;
        self.held.push_str(piece);
        Ok(())
    }

    fn drop_passed(&mut self) {
        self.held.drain(..self.passed);
        self.passed = 0;
    }

    /// Drops `count` bytes, then the space that follows.
    fn skip(&mut self, count: usize) {
        self.held.drain(..count);
        let space = self.held.len() - self.held.trim_start().len();
        self.held.drain(..space);
    }

    /// The next text to pass on, of one part; none until the next piece. At the end (`is_last`) nothing is held back.
    pub fn next(&mut self, is_last: bool) -> Option<(Part, &str)> {
        self.drop_passed();
        loop {
            match self.state {
                State::Before => {
                    let text = self.held.trim_start();
                    if text.starts_with(BEGIN) {
                        let space = self.held.len() - text.len();
                        self.skip(space + BEGIN.len());
                        self.state = State::Inside(false);
                    } else if BEGIN.starts_with(text) && !is_last && self.held.len() <= SPACE_MAX {
                        return None;
                    } else {
                        self.state = State::Answer;
                    }
                }
                State::Inside(has_text) => {
                    if !has_text {
                        self.skip(0);
                        self.state = State::Inside(!self.held.is_empty());
                    }
                    let (length, end) = match self.held.find(END) {
                        Some(at) => (at, Some(at + END.len())),
                        None if is_last => (self.held.len(), None),
                        None => (self.held.len() - beginning(&self.held), None),
                    };
                    let thought = self.held.get(..length).unwrap_or_default();
                    let trimmed = thought.trim_end();
                    let kept = thought.len() - trimmed.len();
                    // Space before more thoughts is passed on with them.
                    let passes_space = end.is_none() && !is_last && kept > SPACE_MAX;
                    let length = if passes_space { thought.len() } else { trimmed.len() };
                    if length > 0 {
                        self.passed = length;
                        return self.held.get(..length).map(|text| (Part::Thought, text));
                    }
                    let Some(end) = end else {
                        if is_last {
                            self.held.clear();
                        }
                        return None;
                    };
                    self.skip(end);
                    self.state = State::After;
                }
                State::After => {
                    self.skip(0);
                    if self.held.is_empty() {
                        return None;
                    }
                    self.state = State::Answer;
                }
                State::Answer => {
                    if self.held.is_empty() {
                        return None;
                    }
                    self.passed = self.held.len();
                    return Some((Part::Answer, &self.held));
                }
            }
        }
    }
}

/// Bytes at the end of `text` that may be the beginning of the mark that ends thoughts.
fn beginning(text: &str) -> usize {
    (1..END.len())
        .rev()
        .find(|length| END.get(..*length).is_some_and(|part| text.ends_with(part)))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Thoughts and answer of a text that comes in these pieces; neither comes after the other has begun again.
    fn split(expected: bool, inside: bool, pieces: &[&str]) -> (String, String) {
        let mut thoughts = Thoughts::new(true, expected, inside, 8).unwrap();
        let (mut thought, mut answer) = (String::new(), String::new());
        for (index, piece) in pieces.iter().enumerate() {
            thoughts.push(piece).unwrap();
            while let Some((part, text)) = thoughts.next(index + 1 == pieces.len()) {
                assert!(!text.is_empty());
                if part == Part::Thought {
                    assert!(answer.is_empty());
                    thought.push_str(text);
                } else {
                    answer.push_str(text);
                }
            }
        }
        (thought, answer)
    }

    fn both(thought: &str, answer: &str) -> (String, String) {
        (thought.into(), answer.into())
    }

    #[test]
    fn thoughts_and_answer_are_told_apart() {
        assert_eq!(
            split(true, false, &["<think>\nhm, so\n</think>\n\nyes </think>"]),
            both("hm, so", "yes </think>")
        );
        assert_eq!(
            split(
                true,
                false,
                &["\n", "<thi", "nk>", "\n", "a <b", "\n\n", "c", "\n", "</thi", "nk>", "\n", "\nyes"]
            ),
            both("a <b\n\nc", "yes")
        );
        assert_eq!(split(true, false, &["<think>\n\n</think>\n\n", "yes"]), both("", "yes"));
        assert_eq!(split(true, false, &["yes ", "<think>"]), both("", "yes <think>"));
        assert_eq!(split(true, false, &[" <thin", "g>"]), both("", " <thing>"));
        assert_eq!(split(true, false, &["<think> never", " ending </th"]), both("never ending </th", ""));
        assert_eq!(split(true, true, &["hm\n", "</think>\n", "\nyes"]), both("hm", "yes"));
        assert_eq!(split(false, false, &["<think>x</think>"]), both("", "<think>x</think>"));
        assert_eq!(split(true, false, &["<thi"]), both("", "<thi"));
    }

    #[test]
    fn cuts_change_nothing() {
        let text = "\n<think> é\n\n<b </thin </think>\n é<think>x</think>";
        let whole = split(true, false, &[text]);
        assert_eq!(whole, both("é\n\n<b </thin", "é<think>x</think>"));
        let cuts: Vec<usize> = (0..=text.len()).filter(|at| text.is_char_boundary(*at)).collect();
        for first in &cuts {
            for second in cuts.iter().filter(|cut| *cut >= first) {
                let pieces = [&text[..*first], &text[*first..*second], &text[*second..]];
                assert_eq!(split(true, false, &pieces), whole, "{pieces:?}");
            }
        }
    }

    #[test]
    fn little_is_held_back() {
        let mut thoughts = Thoughts::new(true, true, false, 8).unwrap();
        for _ in 0..100 {
            thoughts.push("        ").unwrap();
            while thoughts.next(false).is_some() {}
            assert!(thoughts.held.len() <= SPACE_MAX + 8);
        }
        let mut thoughts = Thoughts::new(true, true, true, 8).unwrap();
        thoughts.push("a").unwrap();
        for _ in 0..100 {
            thoughts.push("        ").unwrap();
            while thoughts.next(false).is_some() {}
            assert!(thoughts.held.len() <= SPACE_MAX + 16);
        }
    }
}
