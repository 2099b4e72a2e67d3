//! Text to tokens and back, as the file's vocabulary defines; the same tokens as llama.cpp.
//!
//! Encoding is in two steps: special tokens are cut out of the text, then `spm` (SentencePiece with scores and byte
//! fallback) or `bpe` (byte-level byte-pair encoding) encodes what is between them. Time is O(n log n) in the text for
//! the latter; finding special tokens costs their number times the text.

mod bpe;
mod byte_level;
mod classes;
mod detokenizer;
mod pretokenizer;
mod spm;
mod symbols;
mod template;
mod vocabulary;

pub use detokenizer::Detokenizer;
pub use template::{ChatTemplate, Thinking, Turn};
pub use vocabulary::TokenKind;

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use crate::budget::Budget;
use crate::error::{KeyFault, Name};
use crate::gguf::Gguf;
use crate::{Error, Limits, Result};
use bpe::Bpe;
use spm::Spm;
use template::Chat;
use vocabulary::Vocabulary;

/// A token's number in the vocabulary.
pub type TokenId = u32;

const MODEL: &str = "tokenizer.ggml.model";

/// The file's tokenizer.
#[derive(Debug)]
pub struct Tokenizer<'a> {
    vocabulary: Vocabulary<'a>,
    algorithm: Algorithm<'a>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
    request_prefix: &'a str,
    request_suffix: &'a str,
    chat: Option<Chat<'a>>,
    text_bytes_max: usize,
}

#[derive(Debug)]
enum Algorithm<'a> {
    Spm(Spm),
    Bpe(Bpe<'a>),
}

/// Part of a text to be encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fragment {
    Text(Range<usize>),
    Token(TokenId),
}

impl<'a> Tokenizer<'a> {
    /// Reads and indexes the vocabulary of a file, which needs no tensors for that.
    ///
    /// # Errors
    /// Any [`Error`] about tokens, keys under `tokenizer.ggml` or `limits`.
    pub fn load(gguf: &Gguf<'a>, limits: &Limits) -> Result<Self> {
        Self::load_within(gguf, limits, &mut Budget::new(limits.memory_bytes))
    }

    pub(crate) fn load_within(gguf: &Gguf<'a>, limits: &Limits, budget: &mut Budget) -> Result<Self> {
        let model = gguf.str(MODEL)?.ok_or(Error::Key { key: MODEL.into(), fault: KeyFault::Missing })?;
        let is_spm = match model {
            "llama" => true,
            "gpt2" => false,
            other => return Err(Error::Unsupported { what: "tokenizer", name: other.into() }),
        };
        let mut vocabulary = Vocabulary::load(gguf, limits, budget)?;
        // Of SentencePiece models without these keys, the tokens were always the same.
        let known = |id: TokenId| (is_spm && vocabulary.text(id).is_some()).then_some(id);
        let bos = special(gguf, "bos", &vocabulary)?.or(known(1));
        let eos = special(gguf, "eos", &vocabulary)?.or(known(2));
        let unknown = special(gguf, "unknown", &vocabulary)?.or(known(0));
        let others = [special(gguf, "eot", &vocabulary)?, special(gguf, "eom", &vocabulary)?];
        vocabulary.set_end_of_generation([eos].iter().chain(&others).flatten());
        vocabulary.index_special_tokens(limits, budget)?;

        let algorithm = if is_spm {
            Algorithm::Spm(Spm::load(&vocabulary, unknown, budget)?)
        } else {
            Algorithm::Bpe(Bpe::load(gguf, limits, budget)?)
        };
        let adds_bos = match &algorithm {
            Algorithm::Spm(_) => true,
            Algorithm::Bpe(bpe) => bpe.adds_bos(),
        };
        let chat = gguf.str("tokenizer.chat_template")?.and_then(|text| Chat::recognise(text, &vocabulary));
        let tokenizer = Tokenizer {
            vocabulary,
            algorithm,
            bos,
            eos,
            add_bos: gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos),
            add_eos: gguf.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            add_space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(is_spm),
            request_prefix: gguf.str("flexserve.request.prefix")?.unwrap_or_default(),
            request_suffix: gguf.str("flexserve.request.suffix")?.unwrap_or_default(),
            chat,
            text_bytes_max: limits.text_bytes,
        };
        for (wanted, token, name) in [(tokenizer.add_bos, bos, "bos"), (tokenizer.add_eos, eos, "eos")] {
            if wanted && token.is_none() {
                return Err(Error::Key { key: special_key(name), fault: KeyFault::Missing });
            }
        }
        Ok(tokenizer)
    }

    /// Tokens in the vocabulary.
    pub fn token_count(&self) -> usize {
        self.vocabulary.len()
    }

    /// The token that begins a text, if the file names one.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// The token that ends a text, if the file names one.
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// Whether texts begin with [`Tokenizer::bos`].
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// The text of `token` as it is written in the file.
    pub fn token_text(&self, token: TokenId) -> Option<&'a [u8]> {
        self.vocabulary.text(token)
    }

    /// Tells whether `token` ends an answer.
    pub fn is_end_of_generation(&self, token: TokenId) -> bool {
        self.vocabulary.is_end_of_generation(token)
    }

    /// What kind of token it is, if it is in the vocabulary.
    pub fn kind(&self, token: TokenId) -> Option<TokenKind> {
        self.vocabulary.kind(token)
    }

    /// Encodes `text`. `add_special` adds the begin and end tokens that the file asks for; `parse_special` recognises
    /// control tokens spelled out in the text. (User-defined tokens always are.)
    ///
    /// # Errors
    /// [`Error::TooMany`] when the text exceeds [`Limits::text_bytes`]; [`Error::OutOfMemory`].
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>> {
        let trusted = if parse_special { 0..text.len() } else { 0..0 };
        self.encode_parts(text, add_special, &[trusted])
    }

    /// Encodes a user's prompt: `raw` as it is, control tokens recognised; otherwise between the file's
    /// `flexserve.request.prefix` and `.suffix`, where only those two may contain control tokens.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`] when no token results; as [`Tokenizer::encode`].
    pub fn encode_request(&self, prompt: &str, raw: bool) -> Result<Vec<TokenId>> {
        let tokens = if raw {
            self.encode(prompt, true, true)?
        } else {
            let (prefix, suffix) = (self.request_prefix, self.request_suffix);
            self.encode_marked(&[(prefix, true), (prompt, false), (suffix, true)], true)?
        };
        if tokens.is_empty() { Err(Error::EmptyPrompt) } else { Ok(tokens) }
    }

    /// Tells whether the file has a `flexserve.request.prefix` or `.suffix`.
    pub fn has_request_template(&self) -> bool {
        !self.request_prefix.is_empty() || !self.request_suffix.is_empty()
    }

    /// The file's chat template, if it has one that is known.
    pub fn chat_template(&self) -> Option<ChatTemplate> {
        self.chat.as_ref().map(Chat::template)
    }

    /// Encodes a user's turn of a conversation, up to where the answer begins, in the file's chat template; from the second
    /// turn on what ends the answer before comes first. Control tokens spelled out in prompt and system text stay text. Returns
    /// the tokens, and how many of them come before a thought that the template writes itself.
    ///
    /// # Errors
    /// [`Error::Parameter`] when there is no template that is known, or it has no thoughts, or no choice about them;
    /// [`Error::EmptyPrompt`]; as [`Tokenizer::encode`].
    pub fn encode_turn(&self, turn: &Turn<'_>) -> Result<(Vec<TokenId>, usize)> {
        let fault = "the model has no chat template that is known";
        let chat = self.chat.as_ref().ok_or(Error::Parameter { name: "chat", fault })?;
        let (parts, thought) = chat.parts(turn)?;
        let begin = self.bos.filter(|_| self.add_bos && turn.is_first);
        let before = self.encode_marked(&parts, false)?;
        let thought = self.encode_marked(&[(thought, true)], false)?;
        let before_thought = before.len() + usize::from(begin.is_some());
        let mut tokens = Budget::new(usize::MAX).reserve(before_thought + thought.len())?;
        tokens.extend(begin);
        tokens.extend(before);
        tokens.extend(thought);
        Ok((tokens, before_thought))
    }

    /// Longest text that a token stands for, in bytes.
    pub(crate) fn longest_text(&self) -> usize {
        self.vocabulary.longest_text()
    }

    /// Encodes `parts` as one text; control tokens are recognised in those that are marked so, borders between two of them
    /// included.
    fn encode_marked(&self, parts: &[(&str, bool)], add_special: bool) -> Result<Vec<TokenId>> {
        let length = parts.iter().fold(0usize, |sum, (part, _)| sum.saturating_add(part.len()));
        self.check_length(length)?;
        let mut budget = Budget::new(usize::MAX);
        let mut text = String::new();
        text.try_reserve_exact(length).map_err(|_| Error::OutOfMemory { bytes: length })?;
        let mut trusted: Vec<Range<usize>> = budget.reserve(parts.len())?;
        for (part, is_trusted) in parts {
            let start = text.len();
            text.push_str(part);
            if !is_trusted || part.is_empty() {
                continue;
            }
            match trusted.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = text.len(),
                None => trusted.push(start..text.len()),
            }
        }
        self.encode_parts(&text, add_special, &trusted)
    }

    /// Encodes `text`, where control tokens are recognised inside the ranges `trusted` only.
    fn encode_parts(&self, text: &str, add_special: bool, trusted: &[Range<usize>]) -> Result<Vec<TokenId>> {
        self.check_length(text.len())?;
        let mut budget = Budget::new(usize::MAX);
        let fragments = self.cut_special_tokens(text.as_bytes(), trusted, &mut budget)?;
        // No token is shorter than a byte; a space may be put before every fragment, and takes three.
        let room = text.len().saturating_add(fragments.len().saturating_mul(3)).saturating_add(2);
        let mut tokens: Vec<TokenId> = budget.reserve(room)?;
        if add_special && self.add_bos {
            tokens.extend(self.bos);
        }
        let mut after_special = true;
        for fragment in fragments {
            match fragment {
                Fragment::Token(token) => {
                    tokens.push(token);
                    after_special = true;
                }
                Fragment::Text(range) => {
                    let text = text.get(range).unwrap_or_default();
                    match &self.algorithm {
                        Algorithm::Spm(spm) => {
                            let space = self.add_space_prefix && after_special;
                            spm.encode(&self.vocabulary, text, space, &mut tokens)?;
                        }
                        Algorithm::Bpe(bpe) => bpe.encode(&self.vocabulary, text, &mut tokens)?,
                    }
                    after_special = false;
                }
            }
        }
        if add_special && self.add_eos {
            tokens.extend(self.eos);
        }
        Ok(tokens)
    }

    /// Cuts special tokens out of `text`: the longest first, each from left to right.
    fn cut_special_tokens(
        &self,
        text: &[u8],
        trusted: &[Range<usize>],
        budget: &mut Budget,
    ) -> Result<Vec<Fragment>> {
        let mut fragments = budget.reserve(1)?;
        if !text.is_empty() {
            fragments.push(Fragment::Text(0..text.len()));
        }
        for &token in self.vocabulary.special_tokens() {
            let (Some(needle), Some(kind)) = (self.vocabulary.text(token), self.vocabulary.kind(token))
            else {
                continue;
            };
            let anywhere = kind == TokenKind::UserDefined;
            if !anywhere && trusted.iter().all(|range| range.len() < needle.len()) {
                continue;
            }
            let find = |range: &Range<usize>| {
                let mut from = range.start;
                loop {
                    let start = from + position(text.get(from..range.end)?, needle)?;
                    let end = start + needle.len();
                    if anywhere || trusted.iter().any(|range| range.start <= start && end <= range.end) {
                        return Some(start..end);
                    }
                    from = start + 1;
                }
            };
            let is_found = |f: &Fragment| matches!(f, Fragment::Text(range) if find(range).is_some());
            if !fragments.iter().any(is_found) {
                continue;
            }
            let mut cut = Vec::new();
            let mut push = |fragment| {
                cut.try_reserve(1).map_err(|_| Error::OutOfMemory { bytes: size_of::<Fragment>() })?;
                cut.push(fragment);
                Ok(())
            };
            for fragment in fragments {
                let Fragment::Text(mut rest) = fragment else {
                    push(fragment)?;
                    continue;
                };
                while let Some(found) = find(&rest) {
                    if found.start > rest.start {
                        push(Fragment::Text(rest.start..found.start))?;
                    }
                    push(Fragment::Token(token))?;
                    rest.start = found.end;
                }
                if !rest.is_empty() {
                    push(Fragment::Text(rest))?;
                }
            }
            fragments = cut;
        }
        Ok(fragments)
    }

    /// Reads the bytes that `token` stands for into `bytes`, in place of what was there. They may be part of a character; control
    /// and unknown tokens stand for none.
    ///
    /// # Errors
    /// [`Error::UnknownToken`]; [`Error::OutOfMemory`].
    pub fn token_bytes(&self, token: TokenId, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.clear();
        self.append_bytes(token, bytes)
    }

    fn check_length(&self, bytes: usize) -> Result<()> {
        if bytes > self.text_bytes_max {
            let (count, limit) = (bytes as u64, self.text_bytes_max as u64);
            return Err(Error::TooMany { what: "bytes of text", count, limit });
        }
        Ok(())
    }

    /// Appends the bytes that `token` stands for; control and unknown tokens stand for none.
    fn append_bytes(&self, token: TokenId, bytes: &mut Vec<u8>) -> Result<()> {
        let text = self.vocabulary.text(token).ok_or(Error::UnknownToken(token))?;
        bytes.try_reserve(text.len()).map_err(|_| Error::OutOfMemory { bytes: text.len() })?;
        match self.vocabulary.kind(token) {
            Some(TokenKind::Normal) => match &self.algorithm {
                Algorithm::Spm(_) => spm::append_unescaped(text, bytes),
                Algorithm::Bpe(_) => byte_level::append_decoded(text, bytes),
            },
            Some(TokenKind::UserDefined) => bytes.extend_from_slice(text),
            Some(TokenKind::Byte) => bytes.extend(vocabulary::parse_byte(text)),
            _ => {}
        }
        Ok(())
    }
}

fn special_key(name: &str) -> Name {
    Name::format(format_args!("tokenizer.ggml.{name}_token_id"))
}

/// Reads the id of a special token.
fn special(gguf: &Gguf<'_>, name: &str, vocabulary: &Vocabulary<'_>) -> Result<Option<TokenId>> {
    let key = special_key(name);
    match gguf.unsigned(key.as_str())? {
        Some(id) if id >= vocabulary.len() as u64 => Err(Error::Key { key, fault: KeyFault::OutOfRange(id) }),
        id => Ok(id.map(|id| id as TokenId)),
    }
}

/// Finds the first occurrence of `needle`, which is not empty, in `text`.
fn position(text: &[u8], needle: &[u8]) -> Option<usize> {
    let first = needle.first()?;
    let last = text.len().checked_sub(needle.len())?;
    let mut from = 0;
    loop {
        from += text.get(from..=last)?.iter().position(|byte| byte == first)?;
        if text.get(from..)?.starts_with(needle) {
            return Some(from);
        }
        from += 1;
    }
}
