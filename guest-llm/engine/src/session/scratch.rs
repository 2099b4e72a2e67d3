//! Memory for the activations of one batch.

use alloc::vec::Vec;

use spin::mutex::SpinMutex;

use crate::budget::Budget;
use crate::kernels::{InputBuffer, RowScratch};
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

impl Scratch {
    /// Bytes that [`Scratch::new`] allocates.
    pub fn required_bytes(model: &Model<'_>, batch: usize, threads: usize) -> Option<usize> {
        let (per_token, longest) = lengths(model);
        let floats = per_token.iter().sum::<usize>().checked_mul(batch)?;
        floats
            .checked_add(model.tokenizer().token_count())?
            .checked_mul(size_of::<f32>())?
            .checked_add(InputBuffer::required_bytes(longest.checked_mul(batch)?))?
            .checked_add(
                RowScratch::required_bytes(longest, batch)
                    .checked_add(size_of::<SpinMutex<RowScratch>>())?
                    .checked_mul(threads)?,
            )
    }

    /// Allocates for batches of `batch` tokens and so many threads.
    pub fn new(model: &Model<'_>, batch: usize, threads: usize, budget: &mut Budget) -> Result<Self> {
        let (per_token, longest) = lengths(model);
        let [state, normed, queries, keys, values, attended, gate, up] = per_token;
        let mut scratch = budget.reserve(threads)?;
        for _ in 0..threads {
            scratch.push(SpinMutex::new(RowScratch::new(longest, batch, budget)?));
        }
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
            input: InputBuffer::new(longest * batch, budget)?,
            rows: scratch,
            logits: budget.filled(0.0, model.tokenizer().token_count())?,
        })
    }
}
