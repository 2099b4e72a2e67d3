//! The vocabulary in the order of the tokens' bytes, so that tokens that begin alike are looked at together.

use alloc::vec::Vec;

use super::scalar::string;
use super::token_set::TokenSet;
use crate::budget::Budget;
use crate::{Error, Result, TokenId, Tokenizer};

/// Longest token that a grammar allows, in bytes; what it says can be said with shorter ones.
pub const TOKEN_BYTES_MAX: usize = 128;

/// A token.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub token: TokenId,
    /// Where its bytes begin.
    start: u32,
    length: u8,
    /// Bytes at its start that are those of the token before it in the list.
    pub shared: u8,
}

/// Tokens in the order of their bytes.
#[derive(Debug)]
pub struct List {
    pub entries: Vec<Entry>,
    /// For each byte the first entry that begins with it or a greater one; then the number of entries.
    pub first: [u32; 257],
}

/// What choosing tokens by a [`crate::Grammar`] needs to know of a vocabulary. Made once for a model.
#[derive(Debug)]
pub struct TokenIndex {
    bytes: Vec<u8>,
    /// Tokens that are whole characters which stand for themselves in a string.
    pub(super) plain: List,
    /// All others that are text.
    pub(super) others: List,
    /// The tokens of `plain`.
    pub(super) plain_set: TokenSet,
    /// Most characters of a token of `plain`.
    pub(super) plain_characters: u32,
    /// Tokens that end an answer.
    pub(super) ends: TokenSet,
    token_count: usize,
    memory_bytes: usize,
}

impl TokenIndex {
    /// Reads and sorts the vocabulary, within `memory_limit` bytes: about 20 for each token. Takes O(n log n).
    ///
    /// # Errors
    /// [`crate::Error::MemoryLimit`] and [`crate::Error::OutOfMemory`].
    pub fn new(tokenizer: &Tokenizer<'_>, memory_limit: usize) -> Result<Self> {
        let mut budget = Budget::new(memory_limit);
        let token_count = tokenizer.token_count();
        let tokens = 0..token_count as TokenId;
        let mut ends = TokenSet::within(token_count, &mut budget)?;
        let mut plain_set = TokenSet::within(token_count, &mut budget)?;
        let mut text = Vec::new();
        let (mut total, mut plain_count, mut other_count) = (0, 0, 0);
        let mut plain_characters = 0;
        for token in tokens.clone() {
            if tokenizer.is_end_of_generation(token) {
                ends.insert(token);
                continue;
            }
            tokenizer.token_bytes(token, &mut text)?;
            if text.is_empty() || text.len() > TOKEN_BYTES_MAX {
                continue;
            }
            total += text.len();
            match plain_length(&text) {
                Some(characters) => {
                    plain_set.insert(token);
                    plain_count += 1;
                    plain_characters = plain_characters.max(characters);
                }
                None => other_count += 1,
            }
        }
        // All at once, so that a caller who can have more memory knows how much.
        let needed = total + (plain_count + other_count) * size_of::<Entry>();
        if needed > memory_limit.saturating_sub(budget.used()) {
            return Err(Error::MemoryLimit { bytes: needed + budget.used(), limit: memory_limit });
        }
        let mut bytes = budget.reserve(total)?;
        let mut plain = budget.reserve(plain_count)?;
        let mut others = budget.reserve(other_count)?;
        for token in tokens.filter(|token| !ends.contains(*token)) {
            tokenizer.token_bytes(token, &mut text)?;
            if text.is_empty() || text.len() > TOKEN_BYTES_MAX {
                continue;
            }
            let entry = Entry { token, start: bytes.len() as u32, length: text.len() as u8, shared: 0 };
            bytes.extend_from_slice(&text);
            if plain_set.contains(token) { plain.push(entry) } else { others.push(entry) }
        }
        let (plain, others) = (List::sort(plain, &bytes), List::sort(others, &bytes));
        let memory_bytes = budget.used();
        Ok(TokenIndex { bytes, plain, others, plain_set, plain_characters, ends, token_count, memory_bytes })
    }

    /// Bytes allocated.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Tokens in the vocabulary.
    pub fn token_count(&self) -> usize {
        self.token_count
    }

    /// The bytes that a token of the lists stands for.
    pub(super) fn bytes(&self, entry: &Entry) -> &[u8] {
        bytes_of(entry, &self.bytes)
    }
}

impl List {
    fn sort(mut entries: Vec<Entry>, bytes: &[u8]) -> Self {
        entries
            .sort_unstable_by(|a, b| bytes_of(a, bytes).cmp(bytes_of(b, bytes)).then(a.token.cmp(&b.token)));
        let mut previous: &[u8] = &[];
        for entry in &mut entries {
            let current = bytes_of(entry, bytes);
            entry.shared = current.iter().zip(previous).take_while(|(a, b)| a == b).count() as u8;
            previous = current;
        }
        let mut first = [entries.len() as u32; 257];
        for (place, byte) in first.iter_mut().zip(0..=u8::MAX) {
            let is_less = |entry: &Entry| bytes_of(entry, bytes).first().is_some_and(|first| *first < byte);
            *place = entries.partition_point(is_less) as u32;
        }
        List { entries, first }
    }
}

fn bytes_of<'b>(entry: &Entry, bytes: &'b [u8]) -> &'b [u8] {
    let start = entry.start as usize;
    bytes.get(start..start + usize::from(entry.length)).unwrap_or_default()
}

/// Counts the characters of a text that may stand in a string as it is.
fn plain_length(text: &[u8]) -> Option<u32> {
    let (mut state, mut count) = (string::BODY, 0);
    for byte in text {
        state = match string::step(state, *byte)? {
            string::Step::Inside(_) if *byte == b'\\' => return None,
            string::Step::Inside(state) => state,
            string::Step::Character => {
                count += 1;
                string::BODY
            }
            string::Step::Closed => return None,
        };
    }
    (state == string::BODY).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_whole_characters_without_escapes() {
        assert_eq!(plain_length("aé水🦙".as_bytes()), Some(4));
        for text in [&b"\""[..], b"a\"", b"\\", b"\\n", b"\n", b"\xc3", b"\xa9", b"a\xe6\xb0", b"\xff"] {
            assert_eq!(plain_length(text), None, "{text:?}");
        }
    }
}
