//! Tokens to text, piece by piece.

use alloc::string::String;
use alloc::vec::Vec;

use super::{TokenId, Tokenizer};
use crate::{Error, Result};

/// Turns a stream of tokens into text, holding back bytes until they make whole characters.
#[derive(Debug)]
pub struct Detokenizer<'t> {
    tokenizer: &'t Tokenizer<'t>,
    /// Bytes that may be the start of a character, at most three between calls.
    pending: Vec<u8>,
    text: String,
}

/// Longest encoding of a character, in bytes.
const CHARACTER_MAX: usize = 4;

impl<'t> Detokenizer<'t> {
    /// Starts with nothing held back, and with room for the longest token, if memory allows.
    pub fn new(tokenizer: &'t Tokenizer<'_>) -> Self {
        let (mut pending, mut text) = (Vec::new(), String::new());
        let room = tokenizer.longest_text() + CHARACTER_MAX;
        // Where there is none now, `push` asks again.
        let _ = pending.try_reserve_exact(room);
        let _ = text.try_reserve_exact(room * char::REPLACEMENT_CHARACTER.len_utf8());
        Detokenizer { tokenizer, pending, text }
    }

    /// Returns the text that `token` completes, maybe none. Bytes that are not UTF-8 become U+FFFD. Control tokens give
    /// no text.
    ///
    /// # Errors
    /// [`Error::UnknownToken`]; [`Error::OutOfMemory`] when there was no room for the longest token at the start, nor is
    /// now.
    pub fn push(&mut self, token: TokenId) -> Result<&str> {
        self.tokenizer.append_bytes(token, &mut self.pending)?;
        // Every byte may become a replacement character.
        let room = self.pending.len() * char::REPLACEMENT_CHARACTER.len_utf8();
        self.text.clear();
        self.text.try_reserve(room).map_err(|_| Error::OutOfMemory { bytes: room })?;
        let mut rest = self.pending.as_slice();
        loop {
            match core::str::from_utf8(rest) {
                Ok(text) => {
                    self.text.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, invalid) = rest.split_at_checked(error.valid_up_to()).unwrap_or_default();
                    self.text.push_str(core::str::from_utf8(valid).unwrap_or_default());
                    rest = invalid;
                    let Some(length) = error.error_len() else { break };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(length..).unwrap_or_default();
                }
            }
        }
        debug_assert!(rest.len() < CHARACTER_MAX);
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
        Ok(&self.text)
    }

    /// Whether no bytes are held back.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns what is left: U+FFFD if bytes were held back.
    pub fn finish(&mut self) -> &str {
        let is_cut = !self.pending.is_empty();
        self.pending.clear();
        if is_cut { "\u{fffd}" } else { "" }
    }
}
