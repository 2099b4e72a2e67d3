//! Work for an accelerator. The engine knows none: the caller brings it, and it changes no result.

use crate::KvFormat;
use crate::gguf::TensorType;

/// Rows in one of the buffers that go with some steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which buffer.
    pub buffer: usize,
    /// Bytes from its start to the first row.
    pub offset: usize,
    /// Bytes from one row to the next.
    pub stride: usize,
}

/// A step, defined to the bit by what the engine itself computes.
#[derive(Clone, Copy, Debug)]
pub enum Step<'s> {
    /// `output[t][r] = sum over c of matrix[r][c] * input[t][c]`, the input being quantised if the matrix is.
    Multiply {
        /// How the matrix is stored.
        ty: TensorType,
        /// Its rows, one after another.
        matrix: &'s [u8],
        /// How many.
        rows: usize,
        /// Elements of a row.
        columns: usize,
        /// Rows of input and output.
        tokens: usize,
        /// Added to each row of the output, F32.
        bias: Option<&'s [u8]>,
        /// F32.
        input: Place,
        /// F32.
        output: Place,
    },
    /// Root mean square normalisation of rows of F32, with weights in F32.
    Normalise {
        /// As long as a row.
        weight: &'s [u8],
        /// Is added to the mean.
        epsilon: f32,
        /// Elements of a row.
        columns: usize,
        /// How many.
        rows: usize,
        /// What is normalised.
        input: Place,
        /// Where to.
        output: Place,
    },
    /// `output = input + second`, F32.
    Add {
        /// Elements of a row.
        columns: usize,
        /// How many.
        rows: usize,
        /// One addend.
        input: Place,
        /// The other.
        second: Place,
        /// The sum.
        output: Place,
    },
    /// `output = silu(gate) * up`, F32.
    Activate {
        /// Elements of a row.
        columns: usize,
        /// How many.
        rows: usize,
        /// What is activated.
        gate: Place,
        /// What it is multiplied with.
        up: Place,
        /// The product.
        output: Place,
    },
    /// Rotates pairs of elements of each head of rows of F32.
    Rotate {
        /// Pairs that are rotated, the first of a head.
        pairs: usize,
        /// An element and that `pairs` behind it are a pair; else neighbours are.
        halves: bool,
        /// Heads of a row.
        heads: usize,
        /// Elements of a head.
        columns: usize,
        /// Rows.
        tokens: usize,
        /// What is rotated.
        input: Place,
        /// For each row the cosines and sines of its pairs.
        rotations: Place,
        /// Where to.
        output: Place,
    },
    /// Stores keys or values of tokens in one chunk.
    Store {
        /// How.
        format: KvFormat,
        /// Heads of a token.
        heads: usize,
        /// Elements of a head.
        columns: usize,
        /// Tokens.
        tokens: usize,
        /// F32.
        input: Place,
        /// The first head's, token by token; a stride on, the next head's.
        output: Place,
    },
    /// Attention over what is stored.
    Attend {
        /// How keys and values are stored.
        format: KvFormat,
        /// Heads of keys and values.
        kv_heads: usize,
        /// Heads of queries.
        heads: usize,
        /// Elements of a key.
        key_length: usize,
        /// Elements of a value.
        value_length: usize,
        /// Rows of queries.
        tokens: usize,
        /// Tokens that the first of them sees; each other one sees one more.
        visible: usize,
        /// The layer's part of each block.
        cache: Place,
        /// Which blocks hold the chunks, u32.
        table: Place,
        /// F32.
        input: Place,
        /// F32.
        output: Place,
    },
}

/// An accelerator. Calls come from the session's own thread.
pub trait Offload: core::fmt::Debug {
    /// Whether there is any use in asking it.
    fn is_ready(&self) -> bool {
        true
    }

    /// Does `steps` in order on `buffers`, in parts that end before those that `ends` names in ascending order, and returns when
    /// nothing accesses the buffers any more. A part may be begun anew although the next has begun, but none behind that.
    /// Returns how many parts were done; if not all, what the next two write is anything, and the engine goes on itself.
    fn run(&self, buffers: &mut [&mut [u8]], steps: &[Step<'_>], ends: &[usize]) -> usize;
}

/// No accelerator.
#[derive(Clone, Copy, Debug)]
pub struct NoOffload;

impl Offload for NoOffload {
    fn is_ready(&self) -> bool {
        false
    }

    fn run(&self, _: &mut [&mut [u8]], _: &[Step<'_>], _: &[usize]) -> usize {
        0
    }
}
