//! Telling a caller what the session spends its time on. The engine knows no clock, so the caller measures.

use crate::gguf::TensorType;

/// A part of the work of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Reading the tokens' rows of the embedding.
    Embedding,
    /// Root mean square normalisation.
    Norm,
    /// Rounding activations for products with quantised matrices.
    Quantise,
    /// Multiplying by a matrix of this format.
    Multiply(TensorType),
    /// Waiting for the accelerator.
    Offload,
    /// Rotary position embedding.
    Rope,
    /// Storing keys and values.
    Store,
    /// Attention proper.
    Attention,
    /// The gated linear unit.
    Activation,
    /// Biases and residuals.
    Add,
}

impl Operation {
    /// A short name; that of all products is the same.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Embedding => "embedding",
            Operation::Norm => "norm",
            Operation::Quantise => "quantise",
            Operation::Multiply(_) => "multiply",
            Operation::Offload => "offload",
            Operation::Rope => "rope",
            Operation::Store => "store",
            Operation::Attention => "attention",
            Operation::Activation => "activation",
            Operation::Add => "add",
        }
    }
}

/// Is told of operations as they end. Calls come from the session's own thread.
pub trait Profile: core::fmt::Debug {
    /// A batch begins: what came before is not the session's time.
    fn begin(&self);

    /// `operation` has ended; it took the time since the last call.
    fn end(&self, operation: Operation);
}

/// A [`Profile`] if there is one; else all this costs is a branch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Profiler<'p>(Option<&'p dyn Profile>);

impl<'p> Profiler<'p> {
    pub fn new(profile: &'p dyn Profile) -> Self {
        Profiler(Some(profile))
    }

    #[inline]
    pub fn begin(self) {
        if let Some(profile) = self.0 {
            profile.begin();
        }
    }

    #[inline]
    pub fn end(self, operation: Operation) {
        if let Some(profile) = self.0 {
            profile.end(operation);
        }
    }
}
