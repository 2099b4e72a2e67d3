//! For accelerators: what the engine computes between products, with its own kernels, so that the bits are the same.

use crate::Result;
use crate::budget::Budget;
use crate::gguf::TensorType;
use crate::kernels;
use crate::kv::{CHUNK_TOKENS, KvFormat, KvShape};
use crate::parallel::Output;
use crate::session::AttentionScratch;

pub use crate::kernels::{add_assign, rms_norm, silu_mul};

/// Queries that are worth handing over together.
pub const TILE: usize = kernels::TILE;

/// Rotates, in place, every head of `x` by the cosines and sines of pairs: `halves`, or else neighbours.
pub fn rotate(x: &mut [f32], head_length: usize, halves: bool, rotation: &[[f32; 2]]) {
    match halves {
        true => kernels::rope_rotate_halves(x, head_length, rotation),
        false => kernels::rope_rotate_neighbours(x, head_length, rotation),
    }
}

/// The format of keys and values that is stored as tensors of this type.
pub fn kv_format(ty: TensorType) -> Option<KvFormat> {
    match ty {
        TensorType::F32 => Some(KvFormat::F32),
        TensorType::F16 => Some(KvFormat::F16),
        TensorType::Q8_0 => Some(KvFormat::Q8_0),
        _ => None,
    }
}

/// Stores a key or value, in whole blocks of the format.
pub fn store(format: KvFormat, values: &[f32], row: &mut [u8]) {
    format.store(values, row);
}

/// Keys and values of one head, token by token, up to the end of a chunk of [`CHUNK_TOKENS`].
#[derive(Clone, Copy, Debug)]
pub struct Cache<'c> {
    /// How they are stored.
    pub format: KvFormat,
    /// Elements of a key.
    pub key_length: usize,
    /// Elements of a value.
    pub value_length: usize,
    /// All keys.
    pub keys: &'c [u8],
    /// All values.
    pub values: &'c [u8],
}

/// Attention, with all its memory.
#[derive(Debug)]
pub struct Attention {
    longest: usize,
    scratch: AttentionScratch,
}

impl Attention {
    /// Allocates for keys and values of at most `longest` elements, a multiple of 32.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(longest: usize) -> Result<Self> {
        let format = KvFormat::Q8_0;
        let shape = KvShape { format, layers: 1, heads: 1, key_length: longest, value_length: longest };
        let scratch = AttentionScratch::new(&shape, TILE, &mut Budget::new(usize::MAX))?;
        Ok(Attention { longest, scratch })
    }

    /// Attention of some queries, at most [`TILE`] of which are looked at: of each its row in `vectors`, and in `out`, and how many
    /// tokens it sees. False if there are fewer.
    pub fn attend(
        &mut self,
        cache: &Cache<'_>,
        queries: impl Iterator<Item = (usize, usize)>,
        vectors: &[f32],
        out: &mut [f32],
    ) -> bool {
        let Cache { format, key_length, value_length, keys, values } = *cache;
        if key_length > self.longest || value_length > self.longest {
            return false;
        }
        let shape = KvShape { format, layers: 1, heads: 1, key_length, value_length };
        let chunk = |rows: &'_ [u8], length: usize, index: usize| -> core::ops::Range<usize> {
            let bytes = CHUNK_TOKENS * format.row_bytes(length);
            let start = index.saturating_mul(bytes).min(rows.len());
            start..start.saturating_add(bytes).min(rows.len())
        };
        let rows = |index: usize| {
            let keys = keys.get(chunk(keys, key_length, index)).unwrap_or_default();
            (keys, values.get(chunk(values, value_length, index)).unwrap_or_default())
        };
        self.scratch.attend(&shape, &rows, queries, vectors, Output::new(out));
        true
    }

    /// Makes all its memory zero.
    pub fn scrub(&mut self) {
        self.scratch.scrub();
    }

    /// Whether all its memory is zero.
    pub fn is_scrubbed(&self) -> bool {
        self.scratch.is_scrubbed()
    }
}
