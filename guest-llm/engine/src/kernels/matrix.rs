//! Matrices in the file's formats, and products with batches of activations.

use alloc::vec::Vec;

use spin::mutex::SpinMutex;

use super::activations::Input;
use super::blocks::expand;
use super::multiply::{FLOAT_ROWS, PANEL};
use super::{cpu, gemm};
use crate::Result;
use crate::budget::Budget;
use crate::gguf::{TensorInfo, TensorType};
use crate::parallel::{Output, Parallel, Split, take_free};

/// Rows that are shared out to threads together.
const GRAIN: usize = PANEL;

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

    /// How its elements are stored.
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// Its rows, one after another.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// How many there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes per row; never zero, for the parser refuses empty rows.
    fn row_bytes(&self) -> usize {
        (self.columns / self.ty.block_length() * self.ty.block_bytes()).max(1)
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

/// Scratch of one thread for [`matmul`].
#[derive(Debug)]
pub struct RowScratch {
    /// Parts of some rows, unpacked.
    pub(super) panel: Vec<u32>,
    /// Sums so far, of each token with each row of the panel.
    pub(super) totals: Vec<f32>,
    /// Some rows as F32, for the formats that are converted.
    pub(super) floats: Vec<f32>,
}

impl RowScratch {
    /// Bytes that [`RowScratch::new`] allocates for matrices of at most `columns`, and so many tokens.
    pub fn required_bytes(columns: usize, tokens: usize) -> usize {
        let floats = columns.saturating_mul(FLOAT_ROWS).saturating_add(tokens.saturating_mul(PANEL));
        floats.saturating_mul(size_of::<f32>()).saturating_add(gemm::panel_words(PANEL) * size_of::<u32>())
    }

    /// Allocates for matrices of at most `columns`, and so many tokens.
    pub fn new(columns: usize, tokens: usize, budget: &mut Budget) -> Result<Self> {
        Ok(RowScratch {
            panel: budget.filled(0, gemm::panel_words(PANEL))?,
            totals: budget.filled(0.0, tokens.saturating_mul(PANEL))?,
            floats: budget.filled(0.0, columns.saturating_mul(FLOAT_ROWS))?,
        })
    }

    /// Most columns.
    pub(super) fn columns(&self) -> usize {
        self.floats.len() / FLOAT_ROWS
    }

    /// Most tokens.
    pub(super) fn tokens(&self) -> usize {
        self.totals.len() / PANEL
    }

    /// Makes zero what products of so many columns and tokens used.
    pub(super) fn scrub(&mut self, columns: usize, tokens: usize) {
        self.panel.fill(0);
        self.totals.iter_mut().take(tokens * PANEL).for_each(|total| *total = 0.0);
        self.floats.iter_mut().take(columns * FLOAT_ROWS).for_each(|value| *value = 0.0);
    }

    /// Whether it is all zero.
    pub(super) fn is_scrubbed(&self) -> bool {
        self.panel.iter().all(|word| *word == 0)
            && self.totals.iter().chain(&self.floats).all(|value| *value == 0.0)
    }
}

/// Multiplies: `out[t][r] = sum over c of matrix[r][c] * input[t][c]`, `out` being as many rows as `input`, each as
/// long as the matrix has rows. Reads the matrix once, whatever the batch. `input` must have been prepared for this matrix.
/// The matrix' rows are shared out to the threads of `workers`.
pub fn matmul(matrix: &Matrix<'_>, input: &Input<'_>, workers: &Workers<'_>, out: &mut [f32]) {
    let out = Output::new(out);
    let cost = input.tokens().saturating_mul(input.columns());
    let split = Split::new(workers.parallel, matrix.rows, GRAIN, cost);
    split.run(workers.parallel, &|_, rows| {
        let Some(mut scratch) = take_free(workers.scratch) else { return };
        let part = Part { matrix, first: rows.start, data: matrix.part(rows), out };
        cpu::multiply(&part, input, &mut scratch);
    });
}

/// As [`matmul`], of `rows`, the bytes of whole rows of type `ty`, on this thread alone; by the definition if `portable`.
pub fn matmul_rows(
    ty: TensorType,
    rows: &[u8],
    input: &Input<'_>,
    scratch: &mut RowScratch,
    portable: bool,
    out: &mut [f32],
) {
    let mut matrix = Matrix { ty, columns: input.columns(), rows: 0, data: rows };
    matrix.rows = rows.len() / matrix.row_bytes();
    let part = Part { matrix: &matrix, first: 0, data: rows, out: Output::new(out) };
    if portable { cpu::multiply_portable(&part, input) } else { cpu::multiply(&part, input, scratch) }
}

/// As [`matmul`], with the instructions of `level`; returns whether the CPU has them.
#[cfg(all(test, target_arch = "x86_64"))]
pub fn matmul_at(
    level: super::x86::Level,
    matrix: &Matrix<'_>,
    input: &Input<'_>,
    workers: &Workers<'_>,
    out: &mut [f32],
) -> bool {
    let Some(mut scratch) = take_free(workers.scratch) else { return false };
    let part = Part { matrix, first: 0, data: matrix.data, out: Output::new(out) };
    super::x86::multiply_at(level, &part, input, &mut scratch)
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
pub struct Part<'a, 'o> {
    matrix: &'a Matrix<'a>,
    first: usize,
    data: &'a [u8],
    out: Output<'o>,
}

impl Part<'_, '_> {
    /// How the rows are stored.
    pub fn ty(&self) -> TensorType {
        self.matrix.ty
    }

    /// The rows' bytes.
    pub fn rows(&self) -> &[u8] {
        self.data
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.matrix.row_bytes()
    }

    /// Stores the product of row `row` of the part with row `token` of the input.
    #[inline(always)]
    pub fn set(&self, token: usize, row: usize, value: f32) {
        self.out.set(token * self.matrix.rows + self.first + row, value);
    }
}
