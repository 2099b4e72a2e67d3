//! The tokens' texts, kinds and scores.

use alloc::vec::Vec;
use core::cmp::Reverse;

use super::TokenId;
use crate::budget::Budget;
use crate::error::KeyFault;
use crate::gguf::{Array, Gguf, StringArray};
use crate::{Error, Limits, Result};

/// What a token is for, numbered as in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenKind {
    /// No kind that is known.
    Undefined = 0,
    /// A piece of text.
    Normal = 1,
    /// Stands for text without a token.
    Unknown = 2,
    /// Steers the model; never part of text.
    Control = 3,
    /// A piece of text that is never split.
    UserDefined = 4,
    /// Not used.
    Unused = 5,
    /// A single byte, written `<0xXX>`.
    Byte = 6,
}

const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const KINDS: &str = "tokenizer.ggml.token_type";
/// Longest text of a token, in bytes.
const TEXT_MAX: usize = 1 << 16;

/// Texts that end an answer, whatever the file's keys say: the list of llama.cpp.
const END_OF_GENERATION: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// All tokens. Texts and scores stay in the file; each token takes nine bytes beside.
#[derive(Debug)]
pub struct Vocabulary<'a> {
    texts: StringArray<'a>,
    scores: Option<Array<'a>>,
    kinds: Vec<TokenKind>,
    /// All ids, by text.
    by_text: Vec<TokenId>,
    /// Tokens that are looked for in text before it is encoded: the longest first.
    special: Vec<TokenId>,
    /// Sorted.
    end_of_generation: Vec<TokenId>,
    longest_text: usize,
}

impl<'a> Vocabulary<'a> {
    /// Reads and checks the vocabulary.
    pub fn load(gguf: &Gguf<'a>, limits: &Limits, budget: &mut Budget) -> Result<Self> {
        let error = |key: &str, fault| Error::Key { key: key.into(), fault };
        let tokens = gguf.array(TOKENS)?.ok_or(error(TOKENS, KeyFault::Missing))?;
        let count = tokens.count;
        if count > limits.token_count {
            let (count, limit) = (count as u64, limits.token_count as u64);
            return Err(Error::TooMany { what: "tokens", count, limit });
        }
        if count == 0 {
            return Err(error(TOKENS, KeyFault::Length { found: 0, expected: 1 }));
        }
        let texts = tokens.index_strings(budget)?.ok_or(error(TOKENS, KeyFault::WrongType))?;

        let same_length = |key: &str, array: &Array<'a>| {
            let fault = KeyFault::Length { found: array.count as u64, expected: count as u64 };
            if array.count == count { Ok(()) } else { Err(error(key, fault)) }
        };
        let scores = gguf.array(SCORES)?;
        if let Some(array) = &scores {
            same_length(SCORES, array)?;
            let mut values = array.as_f32().ok_or(error(SCORES, KeyFault::WrongType))?;
            if let Some(id) = values.position(f32::is_nan) {
                return Err(Error::Token { id: id as TokenId, fault: "its score is not a number" });
            }
        }
        let mut kinds = budget.reserve(count)?;
        match gguf.array(KINDS)? {
            Some(array) => {
                same_length(KINDS, &array)?;
                kinds.extend(array.as_i32().ok_or(error(KINDS, KeyFault::WrongType))?.map(kind_from_number));
            }
            None => kinds.resize(count, TokenKind::Normal),
        }

        let mut by_text: Vec<TokenId> = budget.reserve(count)?;
        by_text.extend(0..count as TokenId);
        by_text.sort_unstable_by_key(|id| texts.get(*id as usize));
        let longest_text = (0..count).filter_map(|id| texts.get(id)).map(<[u8]>::len).max().unwrap_or(0);
        let (special, end_of_generation) = (Vec::new(), Vec::new());
        let vocabulary =
            Vocabulary { texts, scores, kinds, by_text, special, end_of_generation, longest_text };
        vocabulary.check()?;
        Ok(vocabulary)
    }

    fn check(&self) -> Result<()> {
        for pair in self.by_text.windows(2) {
            // Empty texts stand for unused numbers, and are never looked up.
            if let [a, b] = *pair
                && self.text(a) == self.text(b)
                && self.text(a) != Some(b"")
            {
                return Err(Error::Token { id: a.max(b), fault: "its text occurs twice" });
            }
        }
        for (id, kind) in (0..).zip(&self.kinds) {
            let text = self.text(id).unwrap_or_default();
            if text.len() > TEXT_MAX {
                return Err(Error::Token { id, fault: "its text is too long" });
            }
            if *kind == TokenKind::Byte && parse_byte(text).is_none() {
                return Err(Error::Token { id, fault: "a byte token not written <0xXX>" });
            }
        }
        Ok(())
    }

    /// Marks the tokens that end an answer: those given, and those whose text says so.
    pub fn set_end_of_generation<'t>(&mut self, tokens: impl Iterator<Item = &'t TokenId>) {
        let by_text = END_OF_GENERATION.iter().filter_map(|text| self.find(text.as_bytes()));
        let by_text: Vec<TokenId> = by_text.collect();
        for id in &by_text {
            if let Some(kind) = self.kinds.get_mut(*id as usize) {
                *kind = TokenKind::Control;
            }
        }
        self.end_of_generation = tokens.copied().chain(by_text).collect();
        self.end_of_generation.sort_unstable();
    }

    /// Collects the special tokens.
    pub fn index_special_tokens(&mut self, limits: &Limits, budget: &mut Budget) -> Result<()> {
        use TokenKind::*;
        let is_special = |id: TokenId| {
            matches!(self.kind(id), Some(Control | UserDefined | Unknown)) && self.text(id) != Some(b"")
        };
        let ids = 0..self.len() as TokenId;
        let count = ids.clone().filter(|id| is_special(*id)).count();
        if count > limits.special_token_count {
            let (count, limit) = (count as u64, limits.special_token_count as u64);
            return Err(Error::TooMany { what: "special tokens", count, limit });
        }
        let mut special = budget.reserve(count)?;
        special.extend(ids.filter(|id| is_special(*id)));
        special.sort_unstable_by_key(|id| (Reverse(self.text(*id).map(<[u8]>::len)), *id));
        self.special = special;
        Ok(())
    }

    /// Longest text of a token, in bytes.
    pub fn longest_text(&self) -> usize {
        self.longest_text
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// The text of `token`.
    pub fn text(&self, token: TokenId) -> Option<&'a [u8]> {
        self.texts.get(token as usize)
    }

    /// The kind of `token`.
    pub fn kind(&self, token: TokenId) -> Option<TokenKind> {
        self.kinds.get(token as usize).copied()
    }

    /// The score of `token`; 0 where the file has none. Never NaN.
    pub fn score(&self, token: TokenId) -> f32 {
        self.scores.as_ref().and_then(|scores| scores.f32_at(token as usize)).unwrap_or(0.0)
    }

    /// Finds the token with this text, which is not empty. O(log n).
    pub fn find(&self, text: &[u8]) -> Option<TokenId> {
        if text.is_empty() {
            return None;
        }
        let index = self.by_text.binary_search_by(|id| self.text(*id).unwrap_or_default().cmp(text)).ok()?;
        self.by_text.get(index).copied()
    }

    /// Control, unknown and user-defined tokens, the longest first.
    pub fn special_tokens(&self) -> &[TokenId] {
        &self.special
    }

    /// Tells whether `token` ends an answer.
    pub fn is_end_of_generation(&self, token: TokenId) -> bool {
        self.end_of_generation.binary_search(&token).is_ok()
    }
}

fn kind_from_number(number: i32) -> TokenKind {
    use TokenKind::*;
    match number {
        1 => Normal,
        2 => Unknown,
        3 => Control,
        4 => UserDefined,
        5 => Unused,
        6 => Byte,
        _ => Undefined,
    }
}

/// Returns the byte that `<0xXX>` stands for.
pub fn parse_byte(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let [high, low] = digits else { return None };
    let digit = |digit: u8| char::from(digit).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}
