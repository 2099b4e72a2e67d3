//! Products for devices that take matrices off the engine: the same kernels, so the same bits.

use alloc::vec::Vec;

use super::activations::{Forms, InputBuffer, Quantised, SuperQuantised};
use super::blocks::{BLOCK, SUPER};
use super::matrix::{RowScratch, matmul_rows};
use crate::Result;
use crate::budget::Budget;
use crate::gguf::TensorType;

/// How the activations of a token are stored, and their bytes.
#[derive(Clone, Copy, Debug)]
pub enum Activations<'a> {
    /// F32. They are quantised as the engine does it.
    F32(&'a [u8]),
    /// ggml's Q8_0, for weights of 32 without minimums.
    Q8_0(&'a [u8]),
    /// ggml's Q8_1, for weights of 32.
    Q8_1(&'a [u8]),
    /// ggml's Q8_K, for weights of 256. Its sums are not looked at.
    Q8K(&'a [u8]),
}

/// Multiplies rows of matrices with a batch of activations. All its memory is allocated at the start.
#[derive(Debug)]
pub struct Multiplier {
    ty: TensorType,
    columns: usize,
    tokens: usize,
    values: Vec<f32>,
    input: InputBuffer,
    scratch: RowScratch,
    portable: bool,
    /// Most elements, columns and tokens of a batch since all was zero.
    dirty: [usize; 3],
}

impl Multiplier {
    /// Allocates for batches of at most `elements` activations, `columns` and `tokens`. `portable`: computes by the
    /// definition.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(elements: usize, columns: usize, tokens: usize, portable: bool) -> Result<Self> {
        let mut budget = Budget::new(usize::MAX);
        Ok(Multiplier {
            ty: TensorType::F32,
            columns: 0,
            tokens: 0,
            values: budget.filled(0.0, elements)?,
            input: InputBuffer::new(elements, Forms::ALL, &mut budget)?,
            scratch: RowScratch::new(columns, tokens, &mut budget)?,
            portable,
            dirty: [0; 3],
        })
    }

    /// Begins a batch for matrices of type `ty`; false if it is empty, too large, or no whole number of blocks.
    pub fn begin(&mut self, ty: TensorType, columns: usize, tokens: usize) -> bool {
        let fits = columns > 0
            && tokens > 0
            && columns.is_multiple_of(ty.block_length())
            && columns.checked_mul(tokens).is_some_and(|count| count <= self.values.len())
            && columns <= self.scratch.columns()
            && tokens <= self.scratch.tokens();
        (self.ty, self.columns, self.tokens) = if fits { (ty, columns, tokens) } else { (ty, 0, 0) };
        for (dirty, used) in
            self.dirty.iter_mut().zip([self.columns * self.tokens, self.columns, self.tokens])
        {
            *dirty = used.max(*dirty);
        }
        fits
    }

    /// Sets the activations of a token; false if there is no such token, or they do not go with the matrices.
    pub fn set(&mut self, token: usize, activations: Activations<'_>) -> bool {
        if token >= self.tokens {
            return false;
        }
        let (ty, first) = (self.ty, token * self.columns);
        let length = ty.block_length();
        let blocks = self.input.blocks.iter_mut().skip(first / BLOCK).take(self.columns / BLOCK);
        let supers = self.input.supers.iter_mut().skip(first / SUPER).take(self.columns / SUPER);
        match activations {
            Activations::F32(bytes) if bytes.len() == self.columns * 4 => {
                let Some(values) = self.values.get_mut(first..first + self.columns) else { return false };
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
                match length {
                    BLOCK => blocks.zip(values.as_chunks().0).for_each(|(block, values)| block.set(values)),
                    SUPER => supers.zip(values.as_chunks().0).for_each(|(block, values)| block.set(values)),
                    _ => {}
                }
                true
            }
            Activations::Q8_0(bytes) if length == BLOCK && !ty.has_minimum() => {
                load_blocks::<2, 34>(blocks, bytes, |[a, b]| (u16::from_le_bytes([a, b]), 0))
            }
            Activations::Q8_1(bytes) if length == BLOCK => {
                load_blocks::<4, 36>(blocks, bytes, |[a, b, c, d]| {
                    (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
                })
            }
            Activations::Q8K(bytes) if length == SUPER => load_supers(supers, bytes),
            _ => false,
        }
    }

    /// Multiplies `rows`, the bytes of whole rows, with all tokens: `out[t][r]` is the product of token and row. Products
    /// beyond the end of `out` are dropped.
    pub fn multiply(&mut self, rows: &[u8], out: &mut [f32]) {
        let values = self.values.get(..self.columns * self.tokens).unwrap_or_default();
        if !values.is_empty() {
            let input = self.input.view(values, self.columns);
            matmul_rows(self.ty, rows, &input, &mut self.scratch, self.portable, out);
        }
    }

    /// Makes all its memory zero, in time proportional to the largest batch since.
    pub fn scrub(&mut self) {
        let [elements, columns, tokens] = core::mem::take(&mut self.dirty);
        (self.ty, self.columns, self.tokens) = (TensorType::F32, 0, 0);
        self.values.iter_mut().take(elements).for_each(|value| *value = 0.0);
        let blocks = self.input.blocks.iter_mut().take(elements.div_ceil(BLOCK));
        blocks.for_each(|block| *block = Quantised::ZERO);
        let supers = self.input.supers.iter_mut().take(elements.div_ceil(SUPER));
        supers.for_each(|block| *block = SuperQuantised::ZERO);
        self.scratch.scrub(columns, tokens);
    }

    /// Whether all its memory is zero.
    pub fn is_scrubbed(&self) -> bool {
        let blocks = self.input.blocks.iter().all(|block| {
            block.quants == [0; BLOCK] && block.sum == 0 && [block.scale, block.total] == [0.0; 2]
        });
        let supers = self.input.supers.iter().all(|block| block.quants == [0; SUPER] && block.scale == 0.0);
        blocks && supers && self.values.iter().all(|value| *value == 0.0) && self.scratch.is_scrubbed()
    }
}

/// Loads blocks of `N` bytes whose first `H` say what scale and total are.
fn load_blocks<'b, const H: usize, const N: usize>(
    blocks: impl ExactSizeIterator<Item = &'b mut Quantised>,
    bytes: &[u8],
    scale_and_total: impl Fn([u8; H]) -> (u16, u16),
) -> bool {
    let (stored, rest) = bytes.as_chunks::<N>();
    let fits = stored.len() == blocks.len() && rest.is_empty();
    if fits {
        for (block, stored) in blocks.zip(stored) {
            if let (Some(head), Some(quants)) = (stored.first_chunk(), stored.last_chunk()) {
                let (scale, total) = scale_and_total(*head);
                block.load(quants, scale, total);
            }
        }
    }
    fits
}

/// Loads blocks of Q8_K.
fn load_supers<'b>(supers: impl ExactSizeIterator<Item = &'b mut SuperQuantised>, bytes: &[u8]) -> bool {
    let (stored, rest) = bytes.as_chunks::<292>();
    let fits = stored.len() == supers.len() && rest.is_empty();
    if fits {
        for (block, stored) in supers.zip(stored) {
            let quants = stored.get(4..4 + SUPER).and_then(|quants| quants.first_chunk());
            if let (Some(scale), Some(quants)) = (stored.first_chunk(), quants) {
                block.load(quants, f32::from_le_bytes(*scale));
            }
        }
    }
    fits
}
