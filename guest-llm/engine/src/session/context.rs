//! What a session's context holds: which tokens, what of them is used again, and what is forgotten when it is full.

use super::Session;
use crate::kv::CHUNK_TOKENS;
use crate::{Error, Result, TokenId};

impl Session<'_> {
    /// Tokens processed so far.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// Most tokens that fit.
    pub fn context(&self) -> usize {
        self.config.context
    }

    /// The tokens that the context holds.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Most tokens that can be appended; with [`super::SessionConfig::context_shift`] that may cost older ones.
    pub fn room(&self) -> usize {
        self.room_after(self.position())
    }

    /// The same after the first `tokens` tokens.
    pub(crate) fn room_after(&self, tokens: usize) -> usize {
        let left = self.config.context.saturating_sub(tokens);
        match self.kept() {
            Some(kept) => left + tokens.saturating_sub(kept) / CHUNK_TOKENS * CHUNK_TOKENS,
            None => left,
        }
    }

    /// Forgets all tokens; frees nothing.
    pub fn reset(&mut self) {
        self.truncate(0);
    }

    /// Forgets all but the first `tokens` tokens; frees nothing. [`Session::logits`] mean nothing until more are appended.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens.truncate(tokens);
        self.exact = self.exact.min(tokens);
        self.kv.truncate(self.tokens.len());
    }

    /// Forgets all tokens but those that `prompt` begins with too, at most all of `prompt` but its last token; returns how
    /// many are left. What is to be appended is the rest of `prompt`, and the results are those of the whole prompt in an
    /// empty context, to the bit.
    pub fn keep_prefix(&mut self, prompt: &[TokenId]) -> usize {
        // The last token is computed again, for its logits.
        let usable = self.exact.min(prompt.len().saturating_sub(1));
        let pairs = self.tokens.iter().zip(prompt).take(usable);
        let count = pairs.take_while(|(held, wanted)| held == wanted).count();
        self.truncate(count);
        count
    }

    /// Forgets the oldest half of the tokens after the first `keep`, and moves those behind it to where they were; returns
    /// how many. Whole chunks are forgotten: `keep`, at least 1 since models lean on the first token, is rounded up to
    /// a multiple of [`CHUNK_TOKENS`]. 0 if there is no whole chunk to forget.
    ///
    /// The keys that move are rotated from their old positions to the new, as llama.cpp does, and stored again, which
    /// rounds them again. They were computed while the forgotten tokens were in sight, and keep what they saw.
    pub fn shift(&mut self, keep: usize) -> usize {
        let count = half_of_the_chunks(self.position(), round_up(keep));
        self.forget(round_up(keep), count);
        count
    }

    /// Where `position` has come to be, since so many tokens were forgotten: at the first of those behind them if it was among them.
    pub(crate) fn moved_to(&self, position: usize, forgotten: usize) -> usize {
        let kept = self.kept().unwrap_or(0).min(position);
        position.saturating_sub(forgotten).max(kept)
    }

    /// Tokens at the beginning that are never forgotten, if any ever are.
    fn kept(&self) -> Option<usize> {
        self.config.context_shift.map(round_up)
    }

    /// Tokens that were forgotten to make room, since the session began.
    pub(crate) fn forgotten(&self) -> usize {
        self.forgotten
    }

    /// Makes room for `count` more tokens, if they do not fit and the configuration allows it.
    pub(super) fn make_room(&mut self, count: usize) -> Result<()> {
        let (position, context) = (self.position(), self.config.context);
        let left = context - position;
        if count <= left {
            return Ok(());
        }
        if count > self.room() {
            return Err(Error::ContextFull { tokens: count, left: self.room() });
        }
        let Some(kept) = self.kept() else { return Ok(()) };
        // As often as it takes, but in one step, since each rounds keys.
        let mut forgotten = 0;
        while position - forgotten + count > context {
            forgotten += half_of_the_chunks(position - forgotten, kept).max(CHUNK_TOKENS);
        }
        self.forget(kept, forgotten);
        Ok(())
    }

    /// Forgets `count` tokens from position `first` on, both multiples of [`CHUNK_TOKENS`].
    fn forget(&mut self, first: usize, count: usize) {
        if count == 0 {
            return;
        }
        self.tokens.drain(first..first + count);
        self.kv.remove(first / CHUNK_TOKENS..(first + count) / CHUNK_TOKENS);
        self.exact = self.exact.min(first);
        self.forgotten += count;
        let key_length = self.model.hyperparameters().key_length;
        self.rope.set_distance_back(count);
        let (rope, keys) = (&self.rope, &mut self.scratch.keys);
        let (Some(key), Some(rotation)) = (keys.get_mut(..key_length), rope.rotations().next()) else {
            return;
        };
        self.kv.rewrite_keys(first, self.tokens.len(), key, |key| rope.rotate(key, rotation));
    }
}

fn round_up(keep: usize) -> usize {
    keep.max(1).checked_next_multiple_of(CHUNK_TOKENS).unwrap_or(usize::MAX)
}

/// Half of the tokens in whole chunks after the first `kept`, rounded up to chunks.
fn half_of_the_chunks(position: usize, kept: usize) -> usize {
    (position.saturating_sub(kept) / CHUNK_TOKENS).div_ceil(2) * CHUNK_TOKENS
}
