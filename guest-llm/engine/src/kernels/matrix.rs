//! Matrices in the file's formats, and products with batches of activations.

use alloc::vec::Vec;

use spin::mutex::SpinMutex;

use super::half::f16_to_f32;
use super::portable::{self, Q8_BLOCK, Q8_BYTES, ROWS, q8_scale};
use super::simd;
use crate::Result;
use crate::budget::Budget;
use crate::gguf::{TensorInfo, TensorType};
use crate::parallel::{Output, Parallel, Split, take_free};

/// A matrix in place.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    ty: TensorType,
    columns: usize,
    rows: usize,
    data: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Views a tensor as rows of its innermost dimension.
    pub fn new(tensor: &TensorInfo<'a>) -> Self {
        Matrix { ty: tensor.ty, columns: tensor.row_length, rows: tensor.row_count, data: tensor.data }
    }

    /// Tells whether it is multiplied with quantised activations.
    fn wants_quantised(&self) -> bool {
        matches!(self.ty, TensorType::Q8_0)
    }

    /// Bytes per row; never zero, for the parser refuses empty rows.
    fn row_bytes(&self) -> usize {
        row_bytes(self.ty, self.columns).max(1)
    }

    /// The bytes of some rows.
    fn part(&self, rows: core::ops::Range<usize>) -> &'a [u8] {
        let at = |row: usize| row.saturating_mul(self.row_bytes()).min(self.data.len());
        self.data.get(at(rows.start)..at(rows.end)).unwrap_or_default()
    }

    /// Writes row `index` to `out` as F32; zeros if there is no such row.
    pub fn expand_row(&self, index: usize, out: &mut [f32]) {
        let row = index.checked_mul(self.row_bytes()).and_then(|start| self.data.get(start..));
        out.fill(0.0);
        expand(self.ty, row.unwrap_or_default(), out);
    }
}

/// Bytes of a row of `length` elements, a multiple of the type's block.
pub fn row_bytes(ty: TensorType, length: usize) -> usize {
    length / ty.block_length() * ty.block_bytes()
}

fn expand(ty: TensorType, row: &[u8], out: &mut [f32]) {
    match ty {
        TensorType::F32 => {
            for (out, bytes) in out.iter_mut().zip(row.as_chunks().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        TensorType::F16 => {
            for (out, bytes) in out.iter_mut().zip(row.as_chunks().0) {
                *out = f16_to_f32(u16::from_le_bytes(*bytes));
            }
        }
        TensorType::Q8_0 => {
            let blocks = row.as_chunks::<Q8_BYTES>().0;
            for (out, block) in out.as_chunks_mut::<Q8_BLOCK>().0.iter_mut().zip(blocks) {
                let scale = q8_scale(block);
                for (out, element) in out.iter_mut().zip(block.iter().skip(2)) {
                    *out = f32::from(*element as i8) * scale;
                }
            }
        }
    }
}

/// Room for a batch of activations in the forms that matrices are multiplied with.
#[derive(Debug)]
pub struct InputBuffer {
    quants: Vec<[i8; Q8_BLOCK]>,
    scales: Vec<f32>,
}

/// A batch of activations: `tokens` rows of `columns` elements.
#[derive(Clone, Copy, Debug)]
pub struct Input<'i> {
    columns: usize,
    values: &'i [f32],
    quants: &'i [[i8; Q8_BLOCK]],
    scales: &'i [f32],
}

impl InputBuffer {
    /// Bytes that [`InputBuffer::new`] allocates for at most `elements` activations.
    pub fn required_bytes(elements: usize) -> usize {
        elements.div_ceil(Q8_BLOCK).saturating_mul(Q8_BLOCK + size_of::<f32>())
    }

    /// Allocates for at most `elements` activations.
    pub fn new(elements: usize, budget: &mut Budget) -> Result<Self> {
        let blocks = elements.div_ceil(Q8_BLOCK);
        Ok(InputBuffer { quants: budget.filled([0; Q8_BLOCK], blocks)?, scales: budget.filled(0.0, blocks)? })
    }

    /// Prepares `values`, rows of `columns`, for products with `matrices`.
    pub fn prepare<'i>(
        &'i mut self,
        values: &'i [f32],
        columns: usize,
        matrices: &[&Matrix<'_>],
    ) -> Input<'i> {
        if matrices.iter().any(|matrix| matrix.wants_quantised()) {
            let blocks = values.as_chunks::<Q8_BLOCK>().0;
            for ((block, quants), scale) in blocks.iter().zip(&mut self.quants).zip(&mut self.scales) {
                *scale = quantise(block, quants);
            }
        }
        Input { columns, values, quants: &self.quants, scales: &self.scales }
    }
}

impl<'i> Input<'i> {
    /// The batch without its first `count` rows.
    pub fn skip(&self, count: usize) -> Self {
        let blocks = count * (self.columns / Q8_BLOCK);
        Input {
            columns: self.columns,
            values: self.values.get(count * self.columns..).unwrap_or_default(),
            quants: self.quants.get(blocks..).unwrap_or_default(),
            scales: self.scales.get(blocks..).unwrap_or_default(),
        }
    }

    fn rows(&self) -> impl Iterator<Item = &'i [f32]> {
        self.values.chunks_exact(self.columns.max(1))
    }

    pub(super) fn quantised_rows(&self) -> impl Iterator<Item = (&'i [[i8; Q8_BLOCK]], &'i [f32])> {
        let blocks = (self.columns / Q8_BLOCK).max(1);
        let rows = self.quants.chunks_exact(blocks).zip(self.scales.chunks_exact(blocks));
        // The buffer has room for the largest batch.
        rows.take(self.values.len() / self.columns.max(1))
    }
}

/// Quantises a block to -127..=127, rounding to nearest even; returns the scale, which is NaN or infinite if an element is.
fn quantise(block: &[f32; Q8_BLOCK], quants: &mut [i8; Q8_BLOCK]) -> f32 {
    // 1.5 * 2^23: adding it rounds to an integer, found in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // Magnitudes compare as their bits do, which keeps NaN: it is greater than all numbers.
    let mut lanes = [0i32; 8];
    for values in block.as_chunks::<8>().0 {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = (*lane).max((value.to_bits() & 0x7fff_ffff) as i32);
        }
    }
    let greatest = f32::from_bits(lanes.into_iter().fold(0, i32::max) as u32);
    // Smaller ones have no finite inverse; they do not matter beside anything else.
    let inverse = if greatest < 1e-30 { 0.0 } else { 127.0 / greatest };
    for (quant, value) in quants.iter_mut().zip(block) {
        *quant = (value * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i8;
    }
    greatest * (1.0 / 127.0)
}

/// Scratch of one thread for [`matmul`]: one row as F32, and the scales of four rows.
#[derive(Debug)]
pub struct RowScratch {
    row: Vec<f32>,
    scales: Vec<[f32; ROWS]>,
}

impl RowScratch {
    /// Bytes that [`RowScratch::new`] allocates for matrices of at most `columns`.
    pub fn required_bytes(columns: usize) -> usize {
        let scales = columns.div_ceil(Q8_BLOCK).saturating_mul(size_of::<[f32; ROWS]>());
        columns.saturating_mul(size_of::<f32>()).saturating_add(scales)
    }

    /// Allocates for matrices of at most `columns`.
    pub fn new(columns: usize, budget: &mut Budget) -> Result<Self> {
        let row = budget.filled(0.0, columns)?;
        Ok(RowScratch { row, scales: budget.filled([0.0; ROWS], columns.div_ceil(Q8_BLOCK))? })
    }
}

/// Multiplies: `out[t][r] = sum over c of matrix[r][c] * input[t][c]`, `out` being as many rows as `input`, each as
/// long as the matrix has rows. Reads the matrix once, whatever the batch. `input` must have been prepared for this matrix.
/// The matrix' rows are shared out to the threads of `workers`.
pub fn matmul(matrix: &Matrix<'_>, input: &Input<'_>, workers: &Workers<'_>, out: &mut [f32]) {
    let out = Output::new(out);
    let cost = input.values.len();
    let split = Split::new(workers.parallel, matrix.rows, ROWS, cost);
    split.run(workers.parallel, &|_, rows| {
        let Some(mut scratch) = take_free(workers.scratch) else { return };
        let part = Part { matrix, first: rows.start, data: matrix.part(rows), out };
        match matrix.ty {
            TensorType::F32 => part.matmul_f32(input),
            TensorType::F16 => part.matmul_f16(input, &mut scratch),
            TensorType::Q8_0 => part.matmul_q8_0(input, &mut scratch),
        }
    });
}

/// Threads, and scratch for each.
#[derive(Clone, Copy)]
pub struct Workers<'w> {
    /// The threads.
    pub parallel: &'w dyn Parallel,
    /// As many as threads.
    pub scratch: &'w [SpinMutex<RowScratch>],
}

/// Some rows of a matrix and where their products go.
struct Part<'a, 'o> {
    matrix: &'a Matrix<'a>,
    first: usize,
    data: &'a [u8],
    out: Output<'o>,
}

impl Part<'_, '_> {
    /// Stores the product of row `row` of the part with row `token` of the input.
    #[inline]
    fn set(&self, token: usize, row: usize, value: f32) {
        self.out.set(token * self.matrix.rows + self.first + row, value);
    }

    fn matmul_f32(&self, input: &Input<'_>) {
        for (r, row) in self.data.chunks_exact(self.matrix.row_bytes()).enumerate() {
            for (token, x) in input.rows().enumerate() {
                self.set(token, r, portable::dot_f32(row, x));
            }
        }
    }

    fn matmul_f16(&self, input: &Input<'_>, scratch: &mut RowScratch) {
        let single = input.values.len() <= self.matrix.columns;
        for (r, row) in self.data.chunks_exact(self.matrix.row_bytes()).enumerate() {
            let expanded = scratch.row.get_mut(..self.matrix.columns).unwrap_or_default();
            if !single {
                // Exact, so that it makes no difference but to speed.
                expand(TensorType::F16, row, expanded);
            }
            for (token, x) in input.rows().enumerate() {
                let dot = if single { simd::dot_f16(row, x) } else { portable::dot_slices(expanded, x) };
                self.set(token, r, dot);
            }
        }
    }

    fn matmul_q8_0(&self, input: &Input<'_>, scratch: &mut RowScratch) {
        let row_bytes = self.matrix.row_bytes();
        for (group, rows) in self.data.chunks(ROWS * row_bytes).enumerate() {
            let first = group * ROWS;
            let inputs = input.quantised_rows().enumerate();
            if let Some(rows) = split_rows(rows, row_bytes) {
                gather_scales(rows, &mut scratch.scales);
                for (token, (quants, x_scales)) in inputs {
                    let dots = simd::dot4_q8_0(rows, &scratch.scales, quants, x_scales);
                    for (r, dot) in dots.into_iter().enumerate() {
                        self.set(token, first + r, dot);
                    }
                }
            } else {
                for (token, (quants, x_scales)) in inputs {
                    for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
                        self.set(token, first + r, portable::dot_q8_0(row, quants, x_scales));
                    }
                }
            }
        }
    }
}

fn split_rows(rows: &[u8], row_bytes: usize) -> Option<[&[u8]; ROWS]> {
    let (r0, rest) = rows.split_at_checked(row_bytes)?;
    let (r1, rest) = rest.split_at_checked(row_bytes)?;
    let (r2, rest) = rest.split_at_checked(row_bytes)?;
    (rest.len() == row_bytes).then_some([r0, r1, r2, rest])
}

/// Converts the scales of four rows, block by block.
pub(super) fn gather_scales(rows: [&[u8]; ROWS], scales: &mut [[f32; ROWS]]) {
    let [r0, r1, r2, r3] = rows.map(|row| row.as_chunks::<Q8_BYTES>().0);
    for ((((s, b0), b1), b2), b3) in scales.iter_mut().zip(r0).zip(r1).zip(r2).zip(r3) {
        *s = [q8_scale(b0), q8_scale(b1), q8_scale(b2), q8_scale(b3)];
    }
}
