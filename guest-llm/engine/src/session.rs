//! Running the transformer: prefill in batches, decode token by token.

use crate::{Flow, KvFormat, Model, Result, TokenId};

/// Size and format of a session's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Most tokens, of prompt and answer together; at most the model's own context length.
    pub context: usize,
    /// Prompt tokens processed at once; each batch reads every weight once.
    pub batch: usize,
    /// How keys and values are stored.
    pub kv: KvFormat,
    /// Most bytes that the session may allocate.
    pub memory_limit: usize,
}

impl SessionConfig {
    /// Returns defaults for `model`: its context length, at most 4096; batches of 32; F16; no memory limit.
    pub fn for_model(model: &Model<'_>) -> Self {
        SessionConfig {
            context: model.context_length().min(4096),
            batch: 32,
            kv: KvFormat::F16,
            memory_limit: usize::MAX,
        }
    }
}

/// A context of tokens with its keys and values, and the scratch memory to extend it.
#[derive(Debug)]
pub struct Session<'m> {
    model: &'m Model<'m>,
}

impl<'m> Session<'m> {
    /// Returns the bytes that [`Session::new`] allocates, allocating nothing.
    pub fn required_bytes(_model: &Model<'_>, _config: &SessionConfig) -> Result<usize> {
        todo!()
    }

    /// Allocates keys, values and scratch.
    pub fn new(model: &'m Model<'_>, _config: &SessionConfig) -> Result<Self> {
        Ok(Session { model })
    }

    /// The model it runs.
    pub fn model(&self) -> &'m Model<'m> {
        self.model
    }

    /// Tokens processed so far.
    pub fn position(&self) -> usize {
        todo!()
    }

    /// Most tokens that fit.
    pub fn context(&self) -> usize {
        todo!()
    }

    /// Forgets all tokens; frees nothing.
    pub fn reset(&mut self) {
        todo!()
    }

    /// Appends `tokens` to the context, batch by batch; `progress` gets the tokens done and in all after each batch.
    /// Afterwards [`Session::logits`] are those that follow the last one. When `progress` returns [`Flow::Stop`] the
    /// rest is left out, and that is returned.
    pub fn prefill(
        &mut self,
        _tokens: &[TokenId],
        _progress: &mut dyn FnMut(usize, usize) -> Flow,
    ) -> Result<Flow> {
        todo!()
    }

    /// Appends one token. Afterwards [`Session::logits`] are those that follow it. Allocates nothing.
    pub fn decode(&mut self, _token: TokenId) -> Result<()> {
        todo!()
    }

    /// Logits of the token that follows the context, one per vocabulary entry; empty before the first token.
    pub fn logits(&self) -> &[f32] {
        todo!()
    }
}
