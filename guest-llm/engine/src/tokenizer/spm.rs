//! SentencePiece encoding with scores and byte fallback, as llama.cpp does it.

use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::{Ordering, Reverse};

use super::TokenId;
use super::symbols::Merger;
use super::vocabulary::Vocabulary;
use crate::budget::Budget;
use crate::error::KeyFault;
use crate::{Error, Result};

/// Stands for a space in a token's text (U+2581).
const SPACE: &str = "\u{2581}";

/// What encoding needs beside the vocabulary.
#[derive(Debug)]
pub struct Spm {
    /// For each byte, the token that stands for it where no other does.
    bytes: Vec<TokenId>,
}

/// A score as rank: the highest first. Never NaN.
#[derive(Debug, PartialEq)]
struct Score(f32);

impl Eq for Score {}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.partial_cmp(&other.0).unwrap_or(Ordering::Equal)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Spm {
    /// Finds the byte tokens: `<0xXX>`, else the byte itself, else the unknown token.
    pub fn load(vocabulary: &Vocabulary<'_>, unknown: Option<TokenId>, budget: &mut Budget) -> Result<Self> {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let mut bytes = budget.reserve(256)?;
        for byte in 0u8..=255 {
            let digit = |value: u8| DIGITS.get(usize::from(value)).copied().unwrap_or_default();
            let text = [b'<', b'0', b'x', digit(byte >> 4), digit(byte & 15), b'>'];
            let token = vocabulary
                .find(&text)
                .or_else(|| vocabulary.find(&[byte]))
                .or(unknown)
                .ok_or(Error::Key { key: super::special_key("unknown"), fault: KeyFault::Missing })?;
            bytes.push(token);
        }
        Ok(Spm { bytes })
    }

    /// Appends the tokens of `text`, before which a space is put if `space`.
    pub fn encode(
        &self,
        vocabulary: &Vocabulary<'_>,
        text: &str,
        space: bool,
        tokens: &mut Vec<TokenId>,
    ) -> Result<()> {
        let text = escape(text, space)?;
        let find = |range| text.as_bytes().get(range).and_then(|text| vocabulary.find(text));
        let mut merger = Merger::new();
        let pieces = merger.merge(&text, |left, right| {
            find(left.start..right.end).map(|token| Reverse(Score(vocabulary.score(token))))
        })?;
        for piece in pieces {
            let text = text.as_bytes().get(piece.clone()).unwrap_or_default();
            let count = if find(piece.clone()).is_some() { 1 } else { text.len() };
            tokens
                .try_reserve(count)
                .map_err(|_| Error::OutOfMemory { bytes: count * size_of::<TokenId>() })?;
            match find(piece) {
                Some(token) => tokens.push(token),
                None => tokens.extend(text.iter().filter_map(|byte| self.bytes.get(usize::from(*byte)))),
            }
        }
        Ok(())
    }
}

/// Puts a space before `text` if asked to, and writes spaces as in token texts.
fn escape(text: &str, space: bool) -> Result<String> {
    let spaces = text.bytes().filter(|byte| *byte == b' ').count() + usize::from(space);
    let length = text.len().saturating_add(spaces.saturating_mul(SPACE.len()));
    let mut escaped = String::new();
    escaped.try_reserve_exact(length).map_err(|_| Error::OutOfMemory { bytes: length })?;
    if space {
        escaped.push_str(SPACE);
    }
    for (index, part) in text.split(' ').enumerate() {
        if index > 0 {
            escaped.push_str(SPACE);
        }
        escaped.push_str(part);
    }
    Ok(escaped)
}

/// Appends a token's text, with spaces as spaces.
pub fn append_unescaped(text: &[u8], bytes: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(first) = rest.first() {
        if let Some(after) = rest.strip_prefix(SPACE.as_bytes()) {
            bytes.push(b' ');
            rest = after;
        } else {
            bytes.push(*first);
            rest = rest.get(1..).unwrap_or_default();
        }
    }
}
