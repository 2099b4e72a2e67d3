//! Which tokens may come next.

use alloc::vec::Vec;

use super::index::{List, TOKEN_BYTES_MAX, TokenIndex};
use super::machine::{DONE, Machine, Set};
use super::rule::Grammar;
use super::token_set::TokenSet;
use crate::budget::Budget;
use crate::{Error, Result, TokenId, Tokenizer};

/// Follows a text token by token, and tells which tokens may come next.
#[derive(Debug)]
pub struct Matcher<'g> {
    machine: Machine<'g>,
    index: &'g TokenIndex,
    /// The ways after the text so far.
    set: Set,
    allowed: TokenSet,
    /// The ways after each byte of the token that is looked at, and where the lists stood then.
    path: Vec<(Set, (usize, usize))>,
    text: Vec<u8>,
}

impl<'g> Matcher<'g> {
    /// Starts with the empty text. Allocates all that following takes: about half a mebibyte.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(grammar: &'g Grammar, index: &'g TokenIndex) -> Result<Self> {
        let mut budget = Budget::new(usize::MAX);
        let (machine, set) = Machine::new(grammar, &mut budget)?;
        let allowed = TokenSet::within(index.token_count(), &mut budget)?;
        let path = budget.reserve(TOKEN_BYTES_MAX + 1)?;
        Ok(Matcher { machine, index, set, allowed, path, text: budget.reserve(TOKEN_BYTES_MAX)? })
    }

    /// Tells whether the text so far is valid.
    pub fn is_complete(&self) -> bool {
        self.machine.ways(&self.set).iter().any(|way| way.rule == DONE)
    }

    /// Tells whether nothing can come after the text so far.
    pub fn is_closed(&self) -> bool {
        self.machine.ways(&self.set).iter().all(|way| way.rule == DONE)
    }

    /// Finds the tokens after which the text is still the beginning of a valid one; those that end an answer if it is valid.
    /// Allocates nothing.
    pub fn allowed(&mut self) -> &TokenSet {
        self.allowed.clear();
        if self.is_complete() {
            self.allowed.extend(&self.index.ends);
        }
        let index = self.index;
        if self.machine.is_in_string(&self.set, index.plain_characters) {
            self.allowed.extend(&index.plain_set);
        } else {
            self.walk(&index.plain);
        }
        self.walk(&index.others);
        &self.allowed
    }

    /// Adds the tokens of a list. Those that begin with the same bytes go the same way that far.
    fn walk(&mut self, list: &List) {
        let start = self.machine.mark();
        let mut at = 0;
        self.path.clear();
        self.path.push((self.set.clone(), start));
        while let Some(entry) = list.entries.get(at) {
            let bytes = self.index.bytes(entry);
            // Entries that share a byte that was refused were passed over.
            let depth = usize::from(entry.shared).min(self.path.len() - 1);
            self.path.truncate(depth + 1);
            let mut refused = None;
            for (position, byte) in bytes.iter().enumerate().skip(depth) {
                let Some((set, mark)) = self.path.last().cloned() else { break };
                if position == depth {
                    self.machine.truncate(mark);
                }
                let next = self.machine.step(&set, *byte);
                if next.is_empty() {
                    refused = Some(position);
                    break;
                }
                self.path.push((next, self.machine.mark()));
            }
            at = match refused {
                None => {
                    self.allowed.insert(entry.token);
                    at + 1
                }
                Some(0) => {
                    let next = usize::from(bytes.first().copied().unwrap_or_default()) + 1;
                    list.first.get(next).map_or(usize::MAX, |first| *first as usize)
                }
                Some(position) => {
                    let rest = list.entries.get(at + 1..).unwrap_or_default();
                    let same = rest.iter().take_while(|entry| usize::from(entry.shared) > position).count();
                    at + 1 + same
                }
            };
        }
        self.machine.truncate(start);
    }

    /// Appends a token to the text.
    ///
    /// # Errors
    /// [`Error::Parameter`] when no valid text begins so; the text is then as it was.
    pub fn accept(&mut self, tokenizer: &Tokenizer<'_>, token: TokenId) -> Result<()> {
        let refused = Error::Parameter { name: "grammar", fault: "the token is not one that it allows" };
        let start = self.machine.mark();
        tokenizer.token_bytes(token, &mut self.text)?;
        let mut set = self.set.clone();
        for byte in &self.text {
            let next = self.machine.step(&set, *byte);
            if next.is_empty() {
                self.machine.truncate(start);
                return Err(refused);
            }
            set = next;
        }
        if self.text.is_empty() {
            return Err(refused);
        }
        self.set = self.machine.keep(set);
        Ok(())
    }
}
