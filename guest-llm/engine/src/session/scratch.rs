//! Memory for the activations of one batch.

use alloc::vec::Vec;

use spin::mutex::SpinMutex;

use super::SessionConfig;
use super::attention::AttentionScratch;
use crate::budget::Budget;
use crate::kernels::{Forms, InputBuffer, RowScratch};
use crate::kv::KvShape;
use crate::{Model, Result};

/// One buffer per role; rows of the batch one after another.
#[derive(Debug)]
pub struct Scratch {
    /// The tokens' states between layers.
    pub state: Vec<f32>,
    /// Normalised states, and outputs on their way to the states.
    pub normed: Vec<f32>,
    pub queries: Vec<f32>,
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
    pub attended: Vec<f32>,
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
    pub input: InputBuffer,
    /// For an accelerator, which writes nothing that it reads: rotated or normalised queries and keys, or what is activated.
    pub spare: Vec<f32>,
    /// For an accelerator: states after attention.
    pub middle: Vec<f32>,
    /// For an accelerator: states after a layer.
    pub next: Vec<f32>,
    /// For an accelerator: states after the next.
    pub after: Vec<f32>,
    /// One for each thread.
    pub attention: Vec<SpinMutex<AttentionScratch>>,
    /// One for each thread.
    pub rows: Vec<SpinMutex<RowScratch>>,
    /// Of the last token only.
    pub logits: Vec<f32>,
}

/// Elements per token of each buffer in the order of their fields, and of the longest input of a matrix.
fn lengths(model: &Model<'_>) -> ([usize; 8], usize) {
    let h = model.hyperparameters();
    let (width, hidden) = (h.embedding_length, h.feed_forward_length);
    let (attention, query) = (h.attention_length(), h.query_length());
    let per_token = [width, width, query, h.keys_length(), h.values_length(), attention, hidden, hidden];
    (per_token, width.max(hidden).max(attention))
}

/// Elements per token of the buffers for an accelerator, in order.
fn spare_lengths(model: &Model<'_>, config: &SessionConfig) -> [usize; 4] {
    if config.offload == 0 {
        return [0; 4];
    }
    let h = model.hyperparameters();
    let spare = h.feed_forward_length.max(h.query_length() + h.keys_length());
    [spare, h.embedding_length, h.embedding_length, h.embedding_length]
}

/// The forms of activations that the model's matrices want.
fn forms(model: &Model<'_>) -> Forms {
    Forms::of(model.gguf().tensors().iter().map(|tensor| tensor.ty))
}

/// Queries of a batch for each head of keys.
fn group_queries(model: &Model<'_>, batch: usize) -> usize {
    let h = model.hyperparameters();
    batch.saturating_mul(h.head_count / h.head_count_kv.max(1))
}

impl Scratch {
    /// Bytes of one batch's activations and of the logits, among those of [`Scratch::required_bytes`].
    pub fn activation_bytes(model: &Model<'_>, batch: usize) -> Option<usize> {
        let floats = lengths(model).0.iter().sum::<usize>().checked_mul(batch)?;
        let floats = floats.checked_add(model.tokenizer().token_count())?;
        let quantised = InputBuffer::required_bytes(lengths(model).1.checked_mul(batch)?, forms(model));
        floats.checked_mul(size_of::<f32>())?.checked_add(quantised)
    }

    /// Bytes that [`Scratch::new`] allocates.
    pub fn required_bytes(model: &Model<'_>, kv: &KvShape, config: &SessionConfig) -> Option<usize> {
        let (batch, threads) = (config.rows(), config.threads);
        let longest = lengths(model).1;
        let rows =
            RowScratch::required_bytes(longest, batch).checked_add(size_of::<SpinMutex<RowScratch>>())?;
        let attention = AttentionScratch::required_bytes(kv, group_queries(model, batch))?
            .checked_add(size_of::<SpinMutex<AttentionScratch>>())?;
        let spare = spare_lengths(model, config)
            .iter()
            .sum::<usize>()
            .checked_mul(batch)?
            .checked_mul(size_of::<f32>())?;
        Self::activation_bytes(model, batch)?
            .checked_add(spare)?
            .checked_add(rows.checked_add(attention)?.checked_mul(threads)?)
    }

    /// Allocates for batches and threads of the configuration.
    pub fn new(model: &Model<'_>, kv: &KvShape, config: &SessionConfig, budget: &mut Budget) -> Result<Self> {
        let (batch, threads) = (config.rows(), config.threads);
        let (per_token, longest) = lengths(model);
        let [state, normed, queries, keys, values, attended, gate, up] = per_token;
        let (mut scratch, mut attention) = (budget.reserve(threads)?, budget.reserve(threads)?);
        for _ in 0..threads {
            scratch.push(SpinMutex::new(RowScratch::new(longest, batch, budget)?));
            let queries = group_queries(model, batch);
            attention.push(SpinMutex::new(AttentionScratch::new(kv, queries, budget)?));
        }
        let [spare, middle, next, after] = spare_lengths(model, config);
        let mut rows = |length: usize| budget.filled(0.0, length * batch);
        Ok(Scratch {
            state: rows(state)?,
            normed: rows(normed)?,
            queries: rows(queries)?,
            keys: rows(keys)?,
            values: rows(values)?,
            attended: rows(attended)?,
            gate: rows(gate)?,
            up: rows(up)?,
            spare: rows(spare)?,
            middle: rows(middle)?,
            next: rows(next)?,
            after: rows(after)?,
            input: InputBuffer::new(longest * batch, forms(model), budget)?,
            attention,
            rows: scratch,
            logits: budget.filled(0.0, model.tokenizer().token_count())?,
        })
    }
}
