//! Every dot product, by its definition: the twin that all instruction sets are compared with.
//!
//! A product of floats has sixteen partial sums, element `i` going to sum `i % 16` by a fused multiply-add; they are added as
//! [`sum`] does; then come the elements after the last multiple of sixteen, in order. A product of quants is an exact
//! integer sum per block, which then goes to the sum of floats by one fused multiply-add (two where the format has a
//! minimum), block by block. Both are independent of how many rows, tokens and threads there are.

use super::activations::{Input, Quantised, SuperQuantised};
use super::blocks::{
    BLOCK, Bf16, Block, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, SuperBlock, view,
};
use super::half::{bf16_to_f32, f16_to_f32};
use crate::gguf::TensorType;

/// Partial sums of a product of floats.
pub const LANES: usize = 16;

/// `a * b + c`, rounded once.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    libm::fmaf(a, b, c)
}

/// Adds partial sums: each to the one half their number further on, until one is left.
#[inline(always)]
pub fn sum(sums: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = sums;
    let [a, b, c, d, e, f, g, h] = [a + i, b + j, c + k, d + l, e + m, f + n, g + o, h + p];
    let [a, b, c, d] = [a + e, b + f, c + g, d + h];
    (a + c) + (b + d)
}

/// Dot product of little-endian F32 with `x`, over the shorter of both.
pub fn dot_f32(row: &[u8], x: &[f32]) -> f32 {
    dot(view::<F32>(row), x, |w| f32::from_le_bytes(w.value))
}

/// Dot product of F16 with `x`, over the shorter of both.
pub fn dot_f16(row: &[u8], x: &[f32]) -> f32 {
    dot(view::<F16>(row), x, |w| f16_to_f32(u16::from_le_bytes(w.value)))
}

/// Dot product of BF16 with `x`, over the shorter of both.
pub fn dot_bf16(row: &[u8], x: &[f32]) -> f32 {
    dot(view::<Bf16>(row), x, |w| bf16_to_f32(u16::from_le_bytes(w.value)))
}

/// Dot product of two slices, over the shorter of both.
pub fn dot_slices(a: &[f32], b: &[f32]) -> f32 {
    dot(a, b, |value| value)
}

#[inline(always)]
fn dot<T: Copy>(row: &[T], x: &[f32], decode: impl Fn(T) -> f32) -> f32 {
    let count = row.len().min(x.len());
    let (row, row_rest) = row.get(..count).unwrap_or_default().as_chunks::<LANES>();
    let (x, x_rest) = x.get(..count).unwrap_or_default().as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (row, x) in row.iter().zip(x) {
        for ((sum, w), x) in sums.iter_mut().zip(row).zip(x) {
            *sum = fma(decode(*w), *x, *sum);
        }
    }
    let mut sum = sum(sums);
    for (w, x) in row_rest.iter().zip(x_rest) {
        sum = fma(decode(*w), *x, sum);
    }
    sum
}

/// Dot product of a row in blocks of 32 with quantised activations, over the shorter of both.
pub fn dot_blocks<B: Block>(row: &[u8], x: &[Quantised]) -> f32 {
    let mut sum = 0.0;
    for (w, x) in view::<B>(row).iter().zip(x) {
        let dot = dot_quants::<BLOCK>(&w.quants(), &x.quants, B::SIGNED)
            .wrapping_sub(B::OFFSET.wrapping_mul(x.sum));
        sum = fma(dot as f32, w.scale() * x.scale, sum);
        if B::HAS_MIN {
            sum = fma(w.min(), x.total, sum);
        }
    }
    sum
}

/// Dot product of a row in blocks of 256 with quantised activations, over the shorter of both.
pub fn dot_supers<B: SuperBlock>(row: &[u8], x: &[SuperQuantised]) -> f32 {
    let mut sum = 0.0;
    for (w, x) in view::<B>(row).iter().zip(x) {
        let (quants, scales, mins) = (w.quants(), w.scales(), w.mins());
        let (mut dot, mut least) = (0i32, 0i32);
        let subs = quants.chunks_exact(B::SUB).zip(x.quants.chunks_exact(B::SUB));
        for (((w, x), scale), min) in subs.zip(scales).zip(mins) {
            let x_sum = x.iter().fold(0i32, |sum, x| sum.wrapping_add((*x).into()));
            let part = dot_quants_slices(w, x).wrapping_sub(B::OFFSET.wrapping_mul(x_sum));
            dot = dot.wrapping_add(i32::from(scale).wrapping_mul(part));
            least = least.wrapping_add(i32::from(min).wrapping_mul(x_sum));
        }
        sum = fma(dot as f32, w.scale() * x.scale, sum);
        if B::HAS_MIN {
            sum = fma(-(least as f32), w.min_scale() * x.scale, sum);
        }
    }
    sum
}

/// Exact, as all sums of integers here: at most 256 * 127 * 128 * 128 in magnitude. (Wrapping only spares the overflow
/// checks, which would keep the loops from vectorising.)
#[inline(always)]
fn dot_quants<const N: usize>(w: &[u8; N], x: &[i8; N], signed: bool) -> i32 {
    if !signed {
        return dot_quants_slices(w, x);
    }
    w.iter().zip(x).fold(0i32, |sum, (w, x)| {
        sum.wrapping_add(i32::from(i16::from(*w as i8).wrapping_mul(i16::from(*x))))
    })
}

#[inline(always)]
fn dot_quants_slices(w: &[u8], x: &[i8]) -> i32 {
    w.iter()
        .zip(x)
        .fold(0i32, |sum, (w, x)| sum.wrapping_add(i32::from(i16::from(*w).wrapping_mul(i16::from(*x)))))
}

/// Dot product of a row in format `ty` with row `token` of `input`, which was prepared for it.
pub fn dot_row(ty: TensorType, row: &[u8], input: &Input<'_>, token: usize) -> f32 {
    let (floats, blocks, supers) =
        (|| input.rows().get(token), || input.blocks().get(token), || input.supers().get(token));
    match ty {
        TensorType::F32 => dot_f32(row, floats()),
        TensorType::F16 => dot_f16(row, floats()),
        TensorType::Bf16 => dot_bf16(row, floats()),
        TensorType::Q4_0 => dot_blocks::<Q4_0>(row, blocks()),
        TensorType::Q4_1 => dot_blocks::<Q4_1>(row, blocks()),
        TensorType::Q5_0 => dot_blocks::<Q5_0>(row, blocks()),
        TensorType::Q5_1 => dot_blocks::<Q5_1>(row, blocks()),
        TensorType::Q8_0 => dot_blocks::<Q8_0>(row, blocks()),
        TensorType::Q4K => dot_supers::<Q4K>(row, supers()),
        TensorType::Q5K => dot_supers::<Q5K>(row, supers()),
        TensorType::Q6K => dot_supers::<Q6K>(row, supers()),
    }
}
