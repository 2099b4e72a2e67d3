//! The primitives with Advanced SIMD. With the target feature `dotprod`, products of bytes use SDOT.

use core::arch::aarch64::*;

use zerocopy::IntoBytes;

use super::activations::Input;
use super::attention::{self, Step};
use super::blocks::{F32, SUBS, view};
use super::matrix::{Part, RowScratch};
use super::portable::LANES;
use super::simd::{Lanes, ROWS, Simd};
use super::{floats, multiply};

/// Advanced SIMD, which is enabled for the whole build, or this module would not be in it.
#[derive(Clone, Copy, Debug)]
pub struct Neon;

/// Multiplies.
pub fn multiply(part: &Part<'_, '_>, input: &Input<'_>, scratch: &mut RowScratch) -> bool {
    multiply::multiply(Neon, part.ty(), part.rows(), input, scratch, &mut |token, row, product| {
        part.set(token, row, product);
    });
    true
}

/// Attention over a chunk.
pub fn attend(step: &mut Step<'_, '_>) {
    attention::attend(Neon, step);
}

/// Dot product of two slices, over the shorter of both.
pub fn dot_slices(a: &[f32], b: &[f32]) -> f32 {
    floats::dot::<Neon, F32>(Neon, view(a.as_bytes()), b)
}

/// Runs an intrinsic.
macro_rules! n {
    ($($body:tt)*) => {
        // SAFETY: Advanced SIMD is enabled for the whole build; loads and stores are of as many bytes as the references
        // say or the slices were checked for, and need no more alignment than their types have.
        unsafe { $($body)* }
    };
}

/// The first `N` elements.
#[inline(always)]
fn first<const N: usize, T>(slice: &[T]) -> &[T; N] {
    match slice.first_chunk() {
        Some(chunk) => chunk,
        None => short(),
    }
}

#[cold]
#[inline(never)]
fn short() -> ! {
    panic!("a panel's part is shorter than its vectors")
}

/// In each lane adds the dot product of four signed bytes.
#[cfg(target_feature = "dotprod")]
#[inline(always)]
fn sdot(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // The intrinsic is not stable yet.
    // SAFETY: the instruction only computes on the registers given, and `dotprod` is enabled for the whole build.
    unsafe {
        core::arch::asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// In each lane adds the dot product of four signed bytes.
#[cfg(not(target_feature = "dotprod"))]
#[inline(always)]
fn sdot(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    n! {
        let low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
        let high = vpaddlq_s16(vmull_high_s8(a, b));
        vaddq_s32(sums, vpaddq_s32(low, high))
    }
}

/// `sums + a * b[lane]`; the lane is known when the caller is compiled.
#[inline(always)]
fn multiply_add_lane(sums: int32x4_t, a: int32x4_t, b: int32x4_t, lane: i32) -> int32x4_t {
    n! {
        match lane {
            0 => vmlaq_laneq_s32::<0>(sums, a, b),
            1 => vmlaq_laneq_s32::<1>(sums, a, b),
            2 => vmlaq_laneq_s32::<2>(sums, a, b),
            _ => vmlaq_laneq_s32::<3>(sums, a, b),
        }
    }
}

impl Lanes for Neon {
    const ROWS: usize = 8;
    const SIGNED: bool = true;
    const MANY: bool = false;
    type Ints = [int32x4_t; 2];
    type Floats = [float32x4_t; 2];

    #[inline(always)]
    fn ints(self, words: &[u32]) -> Self::Ints {
        let words = first::<8, u32>(words).as_ptr().cast::<i32>();
        n!([vld1q_s32(words), vld1q_s32(words.add(4))])
    }

    #[inline(always)]
    fn floats(self, words: &[u32]) -> Self::Floats {
        let words = first::<8, u32>(words).as_ptr().cast::<f32>();
        n!([vld1q_f32(words), vld1q_f32(words.add(4))])
    }

    #[inline(always)]
    fn splat(self, value: i32) -> Self::Ints {
        n!([vdupq_n_s32(value); 2])
    }

    #[inline(always)]
    fn splat_float(self, value: f32) -> Self::Floats {
        n!([vdupq_n_f32(value); 2])
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, sum: Self::Ints, w: Self::Ints, x: Self::Ints) -> Self::Ints {
        n! {
            let x = vreinterpretq_s8_s32(x[0]);
            [
                sdot(sum[0], vreinterpretq_s8_s32(w[0]), x),
                sdot(sum[1], vreinterpretq_s8_s32(w[1]), x),
            ]
        }
    }

    #[inline(always)]
    fn dot_pairs(self, sum: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        n! {
            let pairs = |sum, a, b| {
                let (a, b) = (vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
                let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
                vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(a, b)))
            };
            [pairs(sum[0], a[0], b[0]), pairs(sum[1], a[1], b[1])]
        }
    }

    #[inline(always)]
    fn multiply_add(self, sum: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        n!([vmlaq_s32(sum[0], a[0], b[0]), vmlaq_s32(sum[1], a[1], b[1])])
    }

    #[inline(always)]
    fn subtract(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        n!([vsubq_s32(a[0], b[0]), vsubq_s32(a[1], b[1])])
    }

    #[inline(always)]
    fn convert(self, ints: Self::Ints) -> Self::Floats {
        n!([vcvtq_f32_s32(ints[0]), vcvtq_f32_s32(ints[1])])
    }

    #[inline(always)]
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        n!([vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])])
    }

    #[inline(always)]
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        n!([vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])])
    }

    #[inline(always)]
    fn fnma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        n!([vfmsq_f32(c[0], a[0], b[0]), vfmsq_f32(c[1], a[1], b[1])])
    }

    #[inline(always)]
    fn load(self, floats: &[f32]) -> Self::Floats {
        let floats = first::<8, f32>(floats).as_ptr();
        n!([vld1q_f32(floats), vld1q_f32(floats.add(4))])
    }

    #[inline(always)]
    fn store(self, floats: Self::Floats, out: &mut [f32]) {
        let Some(out) = out.first_chunk_mut::<8>() else { return };
        n! {
            vst1q_f32(out.as_mut_ptr(), floats[0]);
            vst1q_f32(out.as_mut_ptr().add(4), floats[1]);
        }
    }
}

impl Simd for Neon {
    type Eight = Neon;
    type Wide = Neon;
    type Bytes = [uint8x16_t; 2];
    type Scales = [int16x8_t; 2];
    type Sums = int32x4_t;
    type Sixteen = [float32x4_t; 4];

    #[inline(always)]
    fn eight(self) -> Neon {
        self
    }

    #[inline(always)]
    fn wide(self) -> Neon {
        self
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; 32]) -> Self::Bytes {
        n!([vld1q_u8(bytes.as_ptr()), vld1q_u8(bytes.as_ptr().add(16))])
    }

    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 16]) -> Self::Bytes {
        n! {
            let bytes = vld1q_u8(bytes.as_ptr());
            [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)]
        }
    }

    #[inline(always)]
    fn spread(self, bits: u32, value: u8) -> Self::Bytes {
        const MASK: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
        let [a, b, c, d] = bits.to_le_bytes();
        n! {
            let (mask, value) = (vld1q_u8(MASK.as_ptr()), vdupq_n_u8(value));
            let low = vcombine_u8(vdup_n_u8(a), vdup_n_u8(b));
            let high = vcombine_u8(vdup_n_u8(c), vdup_n_u8(d));
            [vandq_u8(vtstq_u8(low, mask), value), vandq_u8(vtstq_u8(high, mask), value)]
        }
    }

    #[inline(always)]
    fn test(self, bytes: Self::Bytes, mask: u8, value: u8) -> Self::Bytes {
        n! {
            let (mask, value) = (vdupq_n_u8(mask), vdupq_n_u8(value));
            [vandq_u8(vtstq_u8(bytes[0], mask), value), vandq_u8(vtstq_u8(bytes[1], mask), value)]
        }
    }

    #[inline(always)]
    fn and(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        n!([vandq_u8(bytes[0], vdupq_n_u8(mask)), vandq_u8(bytes[1], vdupq_n_u8(mask))])
    }

    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        n!([vorrq_u8(a[0], b[0]), vorrq_u8(a[1], b[1])])
    }

    #[inline(always)]
    fn high(self, bytes: Self::Bytes) -> Self::Bytes {
        n!([vshrq_n_u8::<4>(bytes[0]), vshrq_n_u8::<4>(bytes[1])])
    }

    #[inline(always)]
    fn left<const N: i32>(self, bytes: Self::Bytes) -> Self::Bytes {
        n!([vshlq_n_u8::<N>(bytes[0]), vshlq_n_u8::<N>(bytes[1])])
    }

    #[inline(always)]
    fn right<const N: i32>(self, bytes: Self::Bytes) -> Self::Bytes {
        n!([vshrq_n_u8::<N>(bytes[0]), vshrq_n_u8::<N>(bytes[1])])
    }

    #[inline(always)]
    fn nothing(self) -> int32x4_t {
        n!(vdupq_n_s32(0))
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, w: Self::Bytes, x: &[i8; 32]) -> int32x4_t {
        n! {
            let low = sdot(vdupq_n_s32(0), vreinterpretq_s8_u8(w[0]), vld1q_s8(x.as_ptr()));
            sdot(low, vreinterpretq_s8_u8(w[1]), vld1q_s8(x.as_ptr().add(16)))
        }
    }

    #[inline(always)]
    fn scales(self, scales: &[u8; SUBS]) -> [int16x8_t; 2] {
        n! {
            let scales = vreinterpretq_s8_u8(vld1q_u8(scales.as_ptr()));
            [vmovl_s8(vget_low_s8(scales)), vmovl_high_s8(scales)]
        }
    }

    #[inline(always)]
    fn eight_scales(self, scales: u64) -> [int16x8_t; 2] {
        n!([vmovl_s8(vcreate_s8(scales)), vdupq_n_s16(0)])
    }

    #[inline(always)]
    fn dot_scaled<const PART: i32>(
        self,
        sums: int32x4_t,
        w: Self::Bytes,
        x: &[i8; 32],
        scales: [int16x8_t; 2],
    ) -> int32x4_t {
        n! {
            let products = Simd::dot::<false>(self, w, x);
            let four = if PART < 4 { vget_low_s16(scales[0]) } else { vget_high_s16(scales[0]) };
            multiply_add_lane(sums, products, vmovl_s16(four), PART % 4)
        }
    }

    #[inline(always)]
    fn dot_scaled_halves<const PART: i32>(
        self,
        sums: int32x4_t,
        w: Self::Bytes,
        x: &[i8; 32],
        scales: [int16x8_t; 2],
    ) -> int32x4_t {
        n! {
            let zero = vdupq_n_s32(0);
            let low = sdot(zero, vreinterpretq_s8_u8(w[0]), vld1q_s8(x.as_ptr()));
            let high = sdot(zero, vreinterpretq_s8_u8(w[1]), vld1q_s8(x.as_ptr().add(16)));
            let eight = scales[PART as usize / 4];
            let four = if PART % 4 < 2 { vget_low_s16(eight) } else { vget_high_s16(eight) };
            let four = vmovl_s16(four);
            let sums = multiply_add_lane(sums, low, four, 2 * PART % 4);
            multiply_add_lane(sums, high, four, 2 * PART % 4 + 1)
        }
    }

    #[inline(always)]
    fn dot_small(self, a: [int16x8_t; 2], b: &[i16; SUBS]) -> int32x4_t {
        n! {
            let (b_low, b_high) = (vld1q_s16(b.as_ptr()), vld1q_s16(b.as_ptr().add(8)));
            let sums = vmull_s16(vget_low_s16(a[0]), vget_low_s16(b_low));
            let sums = vmlal_high_s16(sums, a[0], b_low);
            let sums = vmlal_s16(sums, vget_low_s16(a[1]), vget_low_s16(b_high));
            vmlal_high_s16(sums, a[1], b_high)
        }
    }

    #[inline(always)]
    fn rows(self, sums: [int32x4_t; ROWS]) -> [int32x4_t; 2] {
        let [a, b, c, d, e, f, g, h] = sums;
        n! {
            [
                vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)),
                vpaddq_s32(vpaddq_s32(e, f), vpaddq_s32(g, h)),
            ]
        }
    }

    #[inline(always)]
    fn halves(self, halves: [u16; ROWS]) -> [float32x4_t; 2] {
        n! {
            let halves = vreinterpretq_f16_u16(vld1q_u16(halves.as_ptr()));
            [vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)]
        }
    }

    #[inline(always)]
    fn sixteen(self, value: f32) -> Self::Sixteen {
        n!([vdupq_n_f32(value); 4])
    }

    #[inline(always)]
    fn load_sixteen(self, floats: &[f32; LANES]) -> Self::Sixteen {
        let at = floats.as_ptr();
        n!([vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))])
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 4 * LANES]) -> Self::Sixteen {
        let at = bytes.as_ptr();
        n! {
            [
                vreinterpretq_f32_u8(vld1q_u8(at)),
                vreinterpretq_f32_u8(vld1q_u8(at.add(16))),
                vreinterpretq_f32_u8(vld1q_u8(at.add(32))),
                vreinterpretq_f32_u8(vld1q_u8(at.add(48))),
            ]
        }
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> Self::Sixteen {
        let at = bytes.as_ptr();
        n! {
            let low = vreinterpretq_f16_u8(vld1q_u8(at));
            let high = vreinterpretq_f16_u8(vld1q_u8(at.add(16)));
            [
                vcvt_f32_f16(vget_low_f16(low)),
                vcvt_high_f32_f16(low),
                vcvt_f32_f16(vget_low_f16(high)),
                vcvt_high_f32_f16(high),
            ]
        }
    }

    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 2 * LANES]) -> Self::Sixteen {
        let at = bytes.as_ptr();
        n! {
            let zero = vdupq_n_u16(0);
            let low = vreinterpretq_u16_u8(vld1q_u8(at));
            let high = vreinterpretq_u16_u8(vld1q_u8(at.add(16)));
            [
                vreinterpretq_f32_u16(vzip1q_u16(zero, low)),
                vreinterpretq_f32_u16(vzip2q_u16(zero, low)),
                vreinterpretq_f32_u16(vzip1q_u16(zero, high)),
                vreinterpretq_f32_u16(vzip2q_u16(zero, high)),
            ]
        }
    }

    #[inline(always)]
    fn store_sixteen(self, floats: Self::Sixteen, out: &mut [f32; LANES]) {
        let at = out.as_mut_ptr();
        n! {
            vst1q_f32(at, floats[0]);
            vst1q_f32(at.add(4), floats[1]);
            vst1q_f32(at.add(8), floats[2]);
            vst1q_f32(at.add(12), floats[3]);
        }
    }

    #[inline(always)]
    fn fma_sixteen(self, a: Self::Sixteen, b: Self::Sixteen, c: Self::Sixteen) -> Self::Sixteen {
        n! {
            [
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ]
        }
    }

    #[inline(always)]
    fn sum_sixteen(self, floats: Self::Sixteen) -> f32 {
        n! {
            let four = vaddq_f32(vaddq_f32(floats[0], floats[2]), vaddq_f32(floats[1], floats[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
}
