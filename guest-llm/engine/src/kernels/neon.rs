//! Dot products with Advanced SIMD. With the target feature `dotprod`, Q8_0 uses SDOT.
//!
//! All functions compute what their twins in [`super::portable`] do, bit by bit; unit tests compare them. F32 needs no
//! variant here: the compiler vectorises the portable one.

use core::arch::aarch64::*;

use super::half::f16_to_f32;
use super::portable::{Q8_BLOCK, Q8_BYTES, ROWS};

/// Dot product of F16 with `x`, over the shorter of both.
#[inline]
pub fn dot_f16(row: &[u8], x: &[f32]) -> f32 {
    let row = row.as_chunks::<2>().0;
    let count = row.len().min(x.len());
    let (row, row_rest) = row.get(..count).unwrap_or_default().as_chunks::<8>();
    let (x, x_rest) = x.get(..count).unwrap_or_default().as_chunks::<8>();
    let mut low = vdupq(0.0);
    let mut high = low;
    for (row, x) in row.iter().zip(x) {
        // SAFETY: `row` has 16 readable bytes and `x` 32; these loads need no more alignment than their types have.
        let (w, x_low, x_high) = unsafe {
            (
                vreinterpretq_f16_u8(vld1q_u8(row.as_ptr().cast())),
                vld1q_f32(x.as_ptr()),
                vld1q_f32(x.as_ptr().add(4)),
            )
        };
        // SAFETY: NEON is enabled for the whole build, or this module would not be in it.
        unsafe {
            low = vaddq_f32(low, vmulq_f32(vcvt_f32_f16(vget_low_f16(w)), x_low));
            high = vaddq_f32(high, vmulq_f32(vcvt_high_f32_f16(w), x_high));
        }
    }
    // SAFETY: as above.
    let mut sum = unsafe {
        let sums = vaddq_f32(low, high);
        vpadds_f32(vget_low_f32(vpaddq_f32(sums, sums)))
    };
    for (w, x) in row_rest.iter().zip(x_rest) {
        sum += f16_to_f32(u16::from_le_bytes(*w)) * x;
    }
    sum
}

/// Dot products of four Q8_0 rows with one row of quantised activations; see the portable twin.
#[inline]
pub fn dot4_q8_0(
    rows: [&[u8]; ROWS],
    scales: &[[f32; ROWS]],
    quants: &[[i8; Q8_BLOCK]],
    x_scales: &[f32],
) -> [f32; ROWS] {
    let [r0, r1, r2, r3] = rows.map(|row| row.as_chunks::<Q8_BYTES>().0);
    let mut sums = vdupq(0.0);
    let blocks = r0.iter().zip(r1).zip(r2).zip(r3);
    for ((((((w0, w1), w2), w3), scales), x), x_scale) in blocks.zip(scales).zip(quants).zip(x_scales) {
        // SAFETY: `x` has 32 readable bytes and `scales` four floats, at their types' alignment; NEON is enabled.
        unsafe {
            let x = (vld1q_s8(x.as_ptr()), vld1q_s8(x.as_ptr().add(16)));
            let s01 = vpaddq_s32(dot_block(w0, x), dot_block(w1, x));
            let s23 = vpaddq_s32(dot_block(w2, x), dot_block(w3, x));
            let dots = vcvtq_f32_s32(vpaddq_s32(s01, s23));
            let scale = vmulq_n_f32(vld1q_f32(scales.as_ptr()), *x_scale);
            sums = vaddq_f32(sums, vmulq_f32(dots, scale));
        }
    }
    let mut result = [0.0; ROWS];
    // SAFETY: `result` has room for four floats.
    unsafe { vst1q_f32(result.as_mut_ptr(), sums) };
    result
}

#[inline]
fn vdupq(value: f32) -> float32x4_t {
    // SAFETY: NEON is enabled for the whole build.
    unsafe { vdupq_n_f32(value) }
}

/// Exact dot product of a block's 32 elements with `x`, spread over four sums.
#[inline]
fn dot_block(w: &[u8; Q8_BYTES], x: (int8x16_t, int8x16_t)) -> int32x4_t {
    // SAFETY: after the scale's two bytes `w` has 32 readable bytes; byte loads need no alignment.
    let (low, high) = unsafe {
        let elements = w.as_ptr().add(2).cast::<i8>();
        (vld1q_s8(elements), vld1q_s8(elements.add(16)))
    };
    dot_32(low, high, x)
}

#[cfg(target_feature = "dotprod")]
#[inline]
fn dot_32(low: int8x16_t, high: int8x16_t, x: (int8x16_t, int8x16_t)) -> int32x4_t {
    // The intrinsic is not stable yet.
    let mut sums: int32x4_t;
    // SAFETY: the instructions only compute on the registers given, and `dotprod` is enabled for the whole build.
    unsafe {
        sums = vdupq_n_s32(0);
        core::arch::asm!(
            "sdot {sums:v}.4s, {low:v}.16b, {x0:v}.16b",
            "sdot {sums:v}.4s, {high:v}.16b, {x1:v}.16b",
            sums = inout(vreg) sums,
            low = in(vreg) low,
            high = in(vreg) high,
            x0 = in(vreg) x.0,
            x1 = in(vreg) x.1,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

#[cfg(not(target_feature = "dotprod"))]
#[inline]
fn dot_32(low: int8x16_t, high: int8x16_t, x: (int8x16_t, int8x16_t)) -> int32x4_t {
    // SAFETY: NEON is enabled for the whole build. No 16-bit lane overflows: activations are within -127..=127 (or
    // their scale is NaN), and 2 * 128 * 127 < 2^15.
    unsafe {
        let first =
            vmlal_s8(vmull_s8(vget_low_s8(low), vget_low_s8(x.0)), vget_low_s8(high), vget_low_s8(x.1));
        let second = vmlal_high_s8(vmull_high_s8(low, x.0), high, x.1);
        vpadalq_s16(vpaddlq_s16(first), second)
    }
}
