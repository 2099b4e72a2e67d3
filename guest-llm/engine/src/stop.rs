//! Stop strings: texts that end an answer and are not part of it.

use alloc::string::String;

use crate::{Error, Result};

/// The most stop strings.
pub const STOP_COUNT_MAX: usize = 16;
/// Longest stop string in bytes.
pub const STOP_BYTES_MAX: usize = 256;

/// Looks for stop strings in text that comes in pieces, and holds back what may be the beginning of one.
#[derive(Debug)]
pub(crate) struct Stops<'s> {
    strings: &'s [&'s str],
    /// What was not passed on yet; before it, what the last call returned.
    held: String,
    passed: usize,
    is_found: bool,
}

/// Checks what a request asks for.
///
/// # Errors
/// [`Error::Parameter`].
pub(crate) fn check(strings: &[&str]) -> Result<()> {
    let refuse = |fault| Err(Error::Parameter { name: "stop", fault });
    if strings.len() > STOP_COUNT_MAX {
        return refuse("more than 16 stop strings");
    }
    if strings.iter().any(|string| string.is_empty() || string.len() > STOP_BYTES_MAX) {
        return refuse("a stop string that is empty or longer than 256 bytes");
    }
    Ok(())
}

impl<'s> Stops<'s> {
    /// Checks the strings, and allocates for pieces of at most `piece_bytes`.
    pub fn new(strings: &'s [&'s str], piece_bytes: usize) -> Result<Self> {
        check(strings)?;
        let mut held = String::new();
        let bytes = piece_bytes.saturating_add(STOP_BYTES_MAX);
        held.try_reserve_exact(bytes).map_err(|_| Error::OutOfMemory { bytes })?;
        Ok(Stops { strings, held, passed: 0, is_found: false })
    }

    /// Takes the next piece; returns the text that is surely part of the answer.
    pub fn push(&mut self, piece: &str) -> Result<&str> {
        self.held.drain(..self.passed);
        self.passed = 0;
        self.held.try_reserve(piece.len()).map_err(|_| Error::OutOfMemory { bytes: piece.len() })?;
        self.held.push_str(piece);
        let found = self.strings.iter().filter_map(|string| self.held.find(string)).min();
        self.is_found = found.is_some();
        self.passed = found.unwrap_or_else(|| self.held.len() - self.beginning());
        Ok(self.held.get(..self.passed).unwrap_or_default())
    }

    /// Bytes at the end that are the beginning of a stop string.
    fn beginning(&self) -> usize {
        let begins = |length: &usize| {
            let end = self.held.as_bytes().get(self.held.len() - length..).unwrap_or_default();
            self.strings.iter().any(|string| string.as_bytes().starts_with(end))
        };
        // Both are UTF-8, so that an end which begins a string begins with a whole character.
        (1..STOP_BYTES_MAX.min(self.held.len() + 1)).rev().find(begins).unwrap_or(0)
    }

    /// Whether nothing is held back.
    pub fn is_empty(&self) -> bool {
        self.passed == self.held.len()
    }

    /// Whether a stop string was found: the answer is over.
    pub fn is_found(&self) -> bool {
        self.is_found
    }

    /// Returns what was held back, at an end without stop string.
    pub fn finish(&mut self) -> &str {
        let rest = self.held.get(self.passed..).unwrap_or_default();
        if self.is_found { "" } else { rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// What is passed on, piece by piece, and whether a stop string ended it.
    fn pass(strings: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut stops = Stops::new(strings, 8).unwrap();
        let mut passed = vec![];
        for piece in pieces {
            passed.push(stops.push(piece).unwrap().into());
            if stops.is_found() {
                return (passed, true);
            }
        }
        passed.push(stops.finish().into());
        (passed, false)
    }

    #[test]
    fn what_may_begin_a_stop_string_is_held_back() {
        assert_eq!(
            pass(&["END"], &["abc", "E", "ND", "x"]),
            (vec!["abc".into(), "".into(), "".into()], true)
        );
        assert_eq!(pass(&["END"], &["aE", "Nx"]), (vec!["a".into(), "ENx".into(), "".into()], false));
        assert_eq!(pass(&["END"], &["EEN", "D"]), (vec!["E".into(), "".into()], true));
        assert_eq!(pass(&["END"], &["a EN"]), (vec!["a ".into(), "EN".into()], false));
        assert_eq!(pass(&[], &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], false));
        assert_eq!(pass(&["aab"], &["a", "a", "a", "b"]).0.concat(), "a");
        assert_eq!(pass(&["水水"], &["é水", "é", "水", "水é"]).0.concat(), "é水é");
    }

    #[test]
    fn the_first_of_several_ends_the_answer() {
        assert_eq!(pass(&["z", "y", "ab"], &["xab y z"]), (vec!["x".into()], true));
        assert_eq!(
            pass(&["bc", "abcd"], &["a", "bc"]).0.concat(),
            "a",
            "the shorter is whole before the longer"
        );
        assert_eq!(pass(&["\n\n"], &["a\n", "b\n", "\n"]).0.concat(), "a\nb");
    }

    /// However the text is cut, what is passed on is what comes before the first occurrence.
    #[test]
    fn cuts_change_nothing() {
        let text = "abaabéabaabxaab";
        for strings in [&["aabx"][..], &["ba", "x"], &["éab", "b"], &["nothing", "a"], &["xaab"]] {
            let first = strings.iter().filter_map(|string| text.find(string)).min();
            let boundaries: Vec<usize> = (0..=text.len()).filter(|at| text.is_char_boundary(*at)).collect();
            for first_cut in &boundaries {
                for second_cut in boundaries.iter().filter(|cut| *cut >= first_cut) {
                    let pieces = [&text[..*first_cut], &text[*first_cut..*second_cut], &text[*second_cut..]];
                    let (passed, found) = pass(strings, &pieces);
                    assert_eq!(found, first.is_some());
                    let expected = &text[..first.unwrap_or(text.len())];
                    let passed = passed.concat();
                    // A shorter string may be whole before a longer one that began earlier.
                    assert!(
                        passed == expected || strings.len() > 1 && passed.starts_with(expected),
                        "{passed} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn strings_are_bounded() {
        let refused =
            |strings: &[&str]| matches!(Stops::new(strings, 0), Err(Error::Parameter { name: "stop", .. }));
        let long = "x".repeat(STOP_BYTES_MAX + 1);
        assert!(refused(&[""]) && refused(&[&long]) && refused(&["a"; STOP_COUNT_MAX + 1]));
        assert!(!refused(&["a"; STOP_COUNT_MAX]) && !refused(&[&long[1..]]));
        // The longest is found, also in two pieces.
        let (passed, found) = pass(&[&long[1..]], &["y", &long[1..100], &long[100..]]);
        assert!(found && passed.concat() == "y");
    }
}
