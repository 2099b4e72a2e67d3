//! A set of tokens, as bits.

use alloc::vec::Vec;

use crate::budget::Budget;
use crate::{Result, TokenId};

/// A set of tokens of one vocabulary.
#[derive(Debug)]
pub struct TokenSet {
    words: Vec<u64>,
}

impl TokenSet {
    /// Makes an empty set for a vocabulary of `token_count`.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(token_count: usize) -> Result<Self> {
        Self::within(token_count, &mut Budget::new(usize::MAX))
    }

    pub(super) fn within(token_count: usize, budget: &mut Budget) -> Result<Self> {
        Ok(TokenSet { words: budget.filled(0, token_count.div_ceil(64))? })
    }

    /// Tells whether `token` is in the set.
    pub fn contains(&self, token: TokenId) -> bool {
        let (word, bit) = Self::place(token);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Adds `token`, if the vocabulary has it.
    pub fn insert(&mut self, token: TokenId) {
        let (word, bit) = Self::place(token);
        if let Some(word) = self.words.get_mut(word) {
            *word |= bit;
        }
    }

    /// Adds all tokens of `other`.
    pub fn extend(&mut self, other: &TokenSet) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    /// Removes all tokens.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Tells whether there is no token in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    fn place(token: TokenId) -> (usize, u64) {
        (token as usize / 64, 1 << (token % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_put_in() {
        let mut set = TokenSet::new(130).unwrap();
        assert!(set.is_empty());
        [0, 63, 64, 129, 192, TokenId::MAX].into_iter().for_each(|token| set.insert(token));
        let held = |set: &TokenSet| (0..200).filter(|token| set.contains(*token)).collect::<Vec<_>>();
        assert_eq!(held(&set), [0, 63, 64, 129], "what is no token cannot be put in");
        let mut other = TokenSet::new(130).unwrap();
        other.insert(7);
        other.extend(&set);
        assert_eq!(held(&other), [0, 7, 63, 64, 129]);
        set.clear();
        assert!(set.is_empty() && !set.contains(63));
    }
}
