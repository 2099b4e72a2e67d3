//! Byte-level byte-pair encoding, as llama.cpp does it.

use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::ops::Range;

use super::TokenId;
use super::byte_level;
use super::pretokenizer::Pretokenizer;
use super::symbols::Merger;
use super::vocabulary::Vocabulary;
use crate::budget::Budget;
use crate::error::KeyFault;
use crate::gguf::{Gguf, StringArray};
use crate::{Error, Limits, Result};

const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";
/// Merges allowed per token of the caller's limit: each makes a token.
const MERGES_PER_TOKEN: usize = 2;

/// What encoding needs beside the vocabulary.
#[derive(Debug)]
pub struct Bpe<'a> {
    pretokenizer: Pretokenizer,
    /// Both sides with a space between, in order of rank.
    merges: StringArray<'a>,
    /// Ranks, by text.
    by_text: Vec<u32>,
}

impl<'a> Bpe<'a> {
    /// Reads and indexes the merges.
    pub fn load(gguf: &Gguf<'a>, limits: &Limits, budget: &mut Budget) -> Result<Self> {
        let error = |key: &str, fault| Error::Key { key: key.into(), fault };
        let name = gguf.str(PRE)?.ok_or(error(PRE, KeyFault::Missing))?;
        let pretokenizer = Pretokenizer::from_name(name)
            .ok_or(Error::Unsupported { what: "pre-tokenizer", name: name.into() })?;
        let array = gguf.array(MERGES)?.ok_or(error(MERGES, KeyFault::Missing))?;
        let limit = limits.token_count.saturating_mul(MERGES_PER_TOKEN);
        if array.count > limit {
            return Err(Error::TooMany { what: "merges", count: array.count as u64, limit: limit as u64 });
        }
        let merges = array.index_strings(budget)?.ok_or(error(MERGES, KeyFault::WrongType))?;
        let mut by_text: Vec<u32> = budget.reserve(merges.len())?;
        by_text.extend(0..merges.len() as u32);
        // Of equal merges the first counts.
        by_text.sort_unstable_by_key(|rank| (merges.get(*rank as usize), *rank));
        Ok(Bpe { pretokenizer, merges, by_text })
    }

    /// Tells whether texts begin with a special token unless the file says otherwise.
    pub fn adds_bos(&self) -> bool {
        self.pretokenizer == Pretokenizer::Llama3
    }

    /// Appends the tokens of `text`.
    pub fn encode(&self, vocabulary: &Vocabulary<'_>, text: &str, tokens: &mut Vec<TokenId>) -> Result<()> {
        let mut merger = Merger::new();
        let mut encoded = String::new();
        for word in self.pretokenizer.words(text) {
            let room = word.len().saturating_mul(2);
            encoded.clear();
            encoded.try_reserve(room).map_err(|_| Error::OutOfMemory { bytes: room })?;
            tokens
                .try_reserve(room)
                .map_err(|_| Error::OutOfMemory { bytes: room * size_of::<TokenId>() })?;
            byte_level::append_encoded(word.as_bytes(), &mut encoded);
            let bytes = encoded.as_bytes();
            if self.pretokenizer.keeps_known_words()
                && let Some(token) = vocabulary.find(bytes)
            {
                tokens.push(token);
                continue;
            }
            let part = |range: Range<usize>| bytes.get(range).unwrap_or_default();
            for piece in merger.merge(&encoded, |left, right| self.rank(part(left), part(right)))? {
                match vocabulary.find(part(piece.clone())) {
                    Some(token) => tokens.push(token),
                    // Merges without a token of their own: the bytes' tokens, as far as there are any.
                    None => tokens.extend(part(piece).iter().filter_map(|byte| vocabulary.find(&[*byte]))),
                }
            }
        }
        Ok(())
    }

    /// Finds the rank of the merge of `left` and `right`. O(log n).
    fn rank(&self, left: &[u8], right: &[u8]) -> Option<u32> {
        let wanted = || left.iter().chain(b" ").chain(right);
        let is_before = |rank: &u32| {
            let merge = self.merges.get(*rank as usize).unwrap_or_default();
            merge.iter().cmp(wanted()) == Ordering::Less
        };
        let rank = *self.by_text.get(self.by_text.partition_point(is_before))?;
        self.merges.get(rank as usize)?.iter().eq(wanted()).then_some(rank)
    }
}
