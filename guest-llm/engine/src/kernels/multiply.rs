//! Some rows of a matrix times a batch of activations, for any instruction set.

use zerocopy::IntoBytes;

use super::activations::Input;
use super::blocks::{Bf16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, expand, view};
use super::floats::Element;
use super::gemv::{Quants, SuperQuants};
use super::matrix::RowScratch;
use super::simd::{Lanes, ROWS, Simd};
use super::{floats, gemm, gemv};
use crate::gguf::TensorType;

/// From how many tokens on unpacking rows pays.
const MANY: usize = 4;
/// Rows of the widest panel.
pub const PANEL: usize = 16;
/// Rows and tokens of a tile of floats.
pub const FLOAT_ROWS: usize = 4;
const FLOAT_TOKENS: usize = 2;

/// Multiplies `rows`, the bytes of whole rows of type `ty`, with all tokens of `input`; `set` gets token, row and product.
/// The scratch must be large enough for `input`.
#[inline(always)]
pub fn multiply<S: Simd>(
    s: S,
    ty: TensorType,
    rows: &[u8],
    input: &Input<'_>,
    scratch: &mut RowScratch,
    set: &mut impl FnMut(usize, usize, f32),
) {
    match ty {
        TensorType::F32 => multiply_floats::<S, F32>(s, ty, rows, input, scratch, set),
        TensorType::F16 => multiply_floats::<S, F16>(s, ty, rows, input, scratch, set),
        TensorType::Bf16 => multiply_floats::<S, Bf16>(s, ty, rows, input, scratch, set),
        TensorType::Q4_0 => multiply_blocks::<S, Q4_0>(s, rows, input, scratch, set),
        TensorType::Q4_1 => multiply_blocks::<S, Q4_1>(s, rows, input, scratch, set),
        TensorType::Q5_0 => multiply_blocks::<S, Q5_0>(s, rows, input, scratch, set),
        TensorType::Q5_1 => multiply_blocks::<S, Q5_1>(s, rows, input, scratch, set),
        TensorType::Q8_0 => multiply_blocks::<S, Q8_0>(s, rows, input, scratch, set),
        TensorType::Q4K => multiply_supers::<S, Q4K>(s, rows, input, scratch, set),
        TensorType::Q5K => multiply_supers::<S, Q5K>(s, rows, input, scratch, set),
        TensorType::Q6K => multiply_supers::<S, Q6K>(s, rows, input, scratch, set),
    }
}

#[inline(always)]
fn multiply_blocks<S: Simd, B: Quants>(
    s: S,
    rows: &[u8],
    input: &Input<'_>,
    scratch: &mut RowScratch,
    set: &mut impl FnMut(usize, usize, f32),
) {
    let row_bytes = (input.columns() / B::LENGTH * size_of::<B>()).max(1);
    let tokens = input.blocks();
    if tokens.count() >= MANY {
        for (group, bytes) in rows.chunks(S::Wide::ROWS * row_bytes).enumerate() {
            let (rows, count) = gemm::split_rows::<PANEL>(bytes, row_bytes);
            let first = group * S::Wide::ROWS;
            let scratch = (&mut *scratch.panel, &mut *scratch.totals);
            gemm::blocks::<S::Wide, B>(s.wide(), &rows[..count], tokens, scratch, &mut |token, products| {
                for (r, product) in products.iter().enumerate().take(count) {
                    set(token, first + r, *product);
                }
            });
        }
        return;
    }
    for (group, bytes) in rows.chunks(ROWS * row_bytes).enumerate() {
        let (bytes, count) = gemm::split_rows::<ROWS>(bytes, row_bytes);
        let mut rows = [&[][..]; ROWS];
        for (r, row) in rows.iter_mut().enumerate().take(ROWS) {
            *row = view::<B>(bytes[r.min(count.saturating_sub(1))]);
        }
        for token in 0..tokens.count() {
            let mut products = [0.0; ROWS];
            gemv::blocks(s, rows, tokens.get(token), &mut products);
            for (r, product) in products.iter().enumerate().take(count) {
                set(token, group * ROWS + r, *product);
            }
        }
    }
}

#[inline(always)]
fn multiply_supers<S: Simd, B: SuperQuants>(
    s: S,
    rows: &[u8],
    input: &Input<'_>,
    scratch: &mut RowScratch,
    set: &mut impl FnMut(usize, usize, f32),
) {
    let row_bytes = (input.columns() / B::LENGTH * size_of::<B>()).max(1);
    let tokens = input.supers();
    if tokens.count() >= MANY {
        for (group, bytes) in rows.chunks(S::Wide::ROWS * row_bytes).enumerate() {
            let (rows, count) = gemm::split_rows::<PANEL>(bytes, row_bytes);
            let first = group * S::Wide::ROWS;
            let scratch = (&mut *scratch.panel, &mut *scratch.totals);
            gemm::supers::<S::Wide, B>(s.wide(), &rows[..count], tokens, scratch, &mut |token, products| {
                for (r, product) in products.iter().enumerate().take(count) {
                    set(token, first + r, *product);
                }
            });
        }
        return;
    }
    for (group, bytes) in rows.chunks(ROWS * row_bytes).enumerate() {
        let (bytes, count) = gemm::split_rows::<ROWS>(bytes, row_bytes);
        let mut rows = [&[][..]; ROWS];
        for (r, row) in rows.iter_mut().enumerate().take(ROWS) {
            *row = view::<B>(bytes[r.min(count.saturating_sub(1))]);
        }
        for token in 0..tokens.count() {
            let mut products = [0.0; ROWS];
            gemv::supers(s, rows, tokens.get(token), &mut products);
            for (r, product) in products.iter().enumerate().take(count) {
                set(token, group * ROWS + r, *product);
            }
        }
    }
}

#[inline(always)]
fn multiply_floats<S: Simd, E: Element>(
    s: S,
    ty: TensorType,
    rows: &[u8],
    input: &Input<'_>,
    scratch: &mut RowScratch,
    set: &mut impl FnMut(usize, usize, f32),
) {
    let columns = input.columns();
    let row_bytes = (columns * size_of::<E>()).max(1);
    let tokens = input.rows();
    for (group, bytes) in rows.chunks(FLOAT_ROWS * row_bytes).enumerate() {
        let (rows, count) = gemm::split_rows::<FLOAT_ROWS>(bytes, row_bytes);
        let first = group * FLOAT_ROWS;
        let mut out = |token: usize, products: &[f32]| {
            for (r, product) in products.iter().enumerate().take(count) {
                set(token, first + r, *product);
            }
        };
        let at = |r: usize| r.min(count.saturating_sub(1));
        if tokens.count() >= MANY && ty != TensorType::F32 {
            // Converted once for all tokens; exact, so that it makes no difference but to speed.
            let floats = &mut scratch.floats;
            for (row, out) in rows.iter().take(count).zip(floats.chunks_exact_mut(columns.max(1))) {
                expand(ty, row, out);
            }
            let mut expanded = [&[][..]; FLOAT_ROWS];
            for (r, row) in expanded.iter_mut().enumerate() {
                let floats = floats.chunks_exact(columns.max(1)).nth(at(r)).unwrap_or_default();
                *row = view::<F32>(floats.as_bytes());
            }
            floats::rows::<S, F32, FLOAT_ROWS, FLOAT_TOKENS>(s, expanded, tokens, &mut out);
        } else {
            let mut elements = [&[][..]; FLOAT_ROWS];
            for (r, row) in elements.iter_mut().enumerate() {
                *row = view::<E>(rows[at(r)]);
            }
            floats::rows::<S, E, FLOAT_ROWS, FLOAT_TOKENS>(s, elements, tokens, &mut out);
        }
    }
}
