//! Text to tokens and back, as the file's vocabulary defines.

use alloc::vec::Vec;
use core::marker::PhantomData;

use crate::Result;

/// A token's number in the vocabulary.
pub type TokenId = u32;

/// The file's tokenizer.
#[derive(Debug)]
pub struct Tokenizer<'a>(PhantomData<&'a [u8]>);

impl Tokenizer<'_> {
    /// Tokens in the vocabulary.
    pub fn token_count(&self) -> usize {
        todo!()
    }

    /// Encodes `text`. `add_special` adds the begin and end tokens that the file asks for; `parse_special` recognises
    /// control tokens spelled out in the text.
    pub fn encode(&self, _text: &str, _add_special: bool, _parse_special: bool) -> Result<Vec<TokenId>> {
        todo!()
    }

    /// Encodes a user's prompt: `raw` as it is, control tokens recognised; otherwise between the file's
    /// `flexserve.request.prefix` and `.suffix`, where only those two may contain control tokens.
    pub fn encode_request(&self, _prompt: &str, _raw: bool) -> Result<Vec<TokenId>> {
        todo!()
    }

    /// Tells whether `token` ends an answer.
    pub fn is_end_of_generation(&self, _token: TokenId) -> bool {
        todo!()
    }
}

/// Turns a stream of tokens into text, holding back bytes until they make whole characters.
#[derive(Debug)]
pub struct Detokenizer<'t>(PhantomData<&'t u8>);

impl<'t> Detokenizer<'t> {
    /// Starts with nothing held back.
    pub fn new(_tokenizer: &'t Tokenizer<'_>) -> Self {
        todo!()
    }

    /// Returns the text that `token` completes, maybe none. Bytes that are not UTF-8 become U+FFFD. Control tokens give
    /// no text.
    pub fn push(&mut self, _token: TokenId) -> Result<&str> {
        todo!()
    }

    /// Returns what is left: U+FFFD if bytes were held back.
    pub fn finish(&mut self) -> &str {
        todo!()
    }
}
