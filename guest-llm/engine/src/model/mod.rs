//! What a file's metadata and tensors mean: hyperparameters, weights, tokenizer.

mod hyperparameters;
mod weights;

pub use hyperparameters::{Architecture, Hyperparameters, RopePairs, RopeScaling};
pub(crate) use weights::{Layer, Linear, Weights};

use crate::budget::Budget;
use crate::gguf::Gguf;
use crate::{Limits, Result, Tokenizer};

/// A model file, checked and ready to run; borrows the file's bytes.
#[derive(Debug)]
pub struct Model<'a> {
    gguf: Gguf<'a>,
    hyperparameters: Hyperparameters,
    weights: Weights<'a>,
    tokenizer: Tokenizer<'a>,
    memory_bytes: usize,
}

impl<'a> Model<'a> {
    /// Checks a GGUF file and indexes its tensors and vocabulary; reads no weight.
    ///
    /// # Errors
    /// Any [`crate::Error`] about the file or `limits`.
    pub fn load(bytes: &'a [u8], limits: &Limits) -> Result<Self> {
        let mut budget = Budget::new(limits.memory_bytes);
        let gguf = Gguf::parse_within(bytes, limits, &mut budget)?;
        let tokenizer = Tokenizer::load_within(&gguf, limits, &mut budget)?;
        let hyperparameters = Hyperparameters::load(&gguf)?;
        let weights = Weights::load(&gguf, &hyperparameters, tokenizer.token_count(), &mut budget)?;
        Ok(Model { gguf, hyperparameters, weights, tokenizer, memory_bytes: budget.used() })
    }

    /// The file's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer<'a> {
        &self.tokenizer
    }

    /// Sizes and constants of the architecture.
    pub fn hyperparameters(&self) -> &Hyperparameters {
        &self.hyperparameters
    }

    /// The file's metadata and tensors.
    pub fn gguf(&self) -> &Gguf<'a> {
        &self.gguf
    }

    /// The longest context it was trained for, in tokens.
    pub fn context_length(&self) -> usize {
        self.hyperparameters.context_length
    }

    /// Bytes allocated by [`Model::load`]; the file is not among them.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    pub(crate) fn weights(&self) -> &Weights<'a> {
        &self.weights
    }
}
