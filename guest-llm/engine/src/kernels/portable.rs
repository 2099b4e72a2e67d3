//! Dot products in portable Rust: the definition that SIMD variants must match bit by bit.

use super::half::f16_to_f32;

/// Sums that a dot product of floats is split into.
const LANES: usize = 8;

/// Elements per Q8_0 block.
pub const Q8_BLOCK: usize = 32;
/// Bytes per Q8_0 block: an F16 scale and the elements.
pub const Q8_BYTES: usize = 2 + Q8_BLOCK;
/// Rows that [`dot4_q8_0`] computes at once.
pub const ROWS: usize = 4;

/// Dot product of little-endian F32 with `x`, over the shorter of both.
#[inline]
pub fn dot_f32(row: &[u8], x: &[f32]) -> f32 {
    dot(row.as_chunks().0, x, f32::from_le_bytes)
}

/// Dot product of F16 with `x`, over the shorter of both.
#[inline]
pub fn dot_f16(row: &[u8], x: &[f32]) -> f32 {
    dot(row.as_chunks().0, x, |bytes| f16_to_f32(u16::from_le_bytes(bytes)))
}

/// Dot product of two slices, over the shorter of both.
#[inline]
pub fn dot_slices(a: &[f32], b: &[f32]) -> f32 {
    dot(a, b, |value| value)
}

#[inline]
fn dot<T: Copy>(row: &[T], x: &[f32], decode: impl Fn(T) -> f32) -> f32 {
    let count = row.len().min(x.len());
    let (row, row_rest) = row.get(..count).unwrap_or_default().as_chunks::<LANES>();
    let (x, x_rest) = x.get(..count).unwrap_or_default().as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (row, x) in row.iter().zip(x) {
        for ((sum, w), x) in sums.iter_mut().zip(row).zip(x) {
            *sum += decode(*w) * x;
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    let mut sum = ((a + e) + (b + f)) + ((c + g) + (d + h));
    for (w, x) in row_rest.iter().zip(x_rest) {
        sum += decode(*w) * x;
    }
    sum
}

/// Dot products of four Q8_0 rows with one row of quantised activations.
///
/// `scales` holds the rows' scales, four per block; `quants` 32 activations per block, within -127..=127; `x_scales`
/// their scales. The shortest of all decides the number of blocks.
#[inline]
pub fn dot4_q8_0(
    rows: [&[u8]; ROWS],
    scales: &[[f32; ROWS]],
    quants: &[[i8; Q8_BLOCK]],
    x_scales: &[f32],
) -> [f32; ROWS] {
    let mut sums = [0.0; ROWS];
    let [r0, r1, r2, r3] = rows.map(|row| row.as_chunks::<Q8_BYTES>().0);
    let blocks = r0.iter().zip(r1).zip(r2).zip(r3);
    for ((((((w0, w1), w2), w3), scales), x), x_scale) in blocks.zip(scales).zip(quants).zip(x_scales) {
        for ((sum, w), scale) in sums.iter_mut().zip([w0, w1, w2, w3]).zip(scales) {
            *sum += dot_q8_block(w, x) as f32 * (scale * x_scale);
        }
    }
    sums
}

/// Dot product of one Q8_0 row with one row of quantised activations, as [`dot4_q8_0`].
#[inline]
pub fn dot_q8_0(row: &[u8], quants: &[[i8; Q8_BLOCK]], x_scales: &[f32]) -> f32 {
    let mut sum = 0.0;
    for ((w, x), x_scale) in row.as_chunks::<Q8_BYTES>().0.iter().zip(quants).zip(x_scales) {
        sum += dot_q8_block(w, x) as f32 * (q8_scale(w) * x_scale);
    }
    sum
}

/// The scale of a Q8_0 block.
#[inline]
pub fn q8_scale(block: &[u8; Q8_BYTES]) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[0], block[1]]))
}

/// The exact dot product of a block's elements; at most 32 * 128 * 128 in magnitude.
#[inline]
fn dot_q8_block(w: &[u8; Q8_BYTES], x: &[i8; Q8_BLOCK]) -> i32 {
    w.iter().skip(2).zip(x).fold(0i32, |sum, (w, x)| {
        // Wrapping only spares the overflow check, which would keep the loop from vectorising.
        sum.wrapping_add(i32::from(i16::from(*w as i8).wrapping_mul(i16::from(*x))))
    })
}
