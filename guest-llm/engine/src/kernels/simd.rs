//! What an instruction set must offer: the few primitives that all kernels are written with.
//!
//! The kernels (`gemv`, `gemm`) are generic over these traits, so that there is one text for every instruction set and
//! unsafe code is in the primitives only. A value of a type that implements them is a proof that the CPU has the
//! instructions: it is made by detection only.

use super::blocks::SUBS;
use super::portable::LANES;

/// Rows that [`Simd`] multiplies at once.
pub const ROWS: usize = 8;

/// Vectors with one 32-bit lane for each of [`Lanes::ROWS`] rows of a matrix.
pub trait Lanes: Copy {
    /// Lanes.
    const ROWS: usize;
    /// Whether [`Lanes::dot`] takes the bytes of its first operand as signed.
    const SIGNED: bool;
    /// Whether there are registers for eight tokens at once, rather than four.
    const MANY: bool;
    /// Integers.
    type Ints: Copy;
    /// Floats.
    type Floats: Copy;

    /// Loads the first [`Lanes::ROWS`] words.
    fn ints(self, words: &[u32]) -> Self::Ints;

    /// Loads the first [`Lanes::ROWS`] words as the bits of floats.
    fn floats(self, words: &[u32]) -> Self::Floats;

    /// The same integer in all lanes.
    fn splat(self, value: i32) -> Self::Ints;

    /// The same float in all lanes.
    fn splat_float(self, value: f32) -> Self::Floats;

    /// In each lane adds the dot product of four bytes of `w` with four signed bytes of `x`. `WIDE`: bytes of `w` may be
    /// above 63.
    fn dot<const WIDE: bool>(self, sum: Self::Ints, w: Self::Ints, x: Self::Ints) -> Self::Ints;

    /// In each lane adds the dot product of two signed 16-bit integers.
    fn dot_pairs(self, sum: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    /// In each lane `sum + a * b`.
    fn multiply_add(self, sum: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    /// In each lane `a - b`.
    fn subtract(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    /// Rounds to floats.
    fn convert(self, ints: Self::Ints) -> Self::Floats;

    /// In each lane `a * b`.
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// In each lane `a * b + c`, rounded once.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// In each lane `c - a * b`, rounded once.
    fn fnma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// Loads the first [`Lanes::ROWS`] elements.
    fn load(self, floats: &[f32]) -> Self::Floats;

    /// Stores to the first [`Lanes::ROWS`] elements.
    fn store(self, floats: Self::Floats, out: &mut [f32]);
}

/// An instruction set.
pub trait Simd: Copy {
    /// Lanes for [`ROWS`] rows.
    type Eight: Lanes;
    /// Lanes for the widest panel of rows.
    type Wide: Lanes;
    /// 32 bytes of a row.
    type Bytes: Copy;
    /// The scales of a super-block's sub-blocks.
    type Scales: Copy;
    /// Partial sums of a product of a row's quants.
    type Sums: Copy;
    /// Sixteen floats, as the partial sums of a product of floats.
    type Sixteen: Copy;

    /// The lanes of [`Simd::Eight`].
    fn eight(self) -> Self::Eight;

    /// The lanes of [`Simd::Wide`].
    fn wide(self) -> Self::Wide;

    /// Loads 32 bytes.
    fn bytes(self, bytes: &[u8; 32]) -> Self::Bytes;

    /// The low half-bytes of 16 bytes, then the high ones.
    fn nibbles(self, bytes: &[u8; 16]) -> Self::Bytes;

    /// `value` where the bit of `bits` is set, else 0.
    fn spread(self, bits: u32, value: u8) -> Self::Bytes;

    /// `value` where a bit of `mask` is set in the byte, else 0.
    fn test(self, bytes: Self::Bytes, mask: u8, value: u8) -> Self::Bytes;

    /// And with the same byte everywhere.
    fn and(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes;

    /// Or.
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;

    /// The high half of each byte.
    fn high(self, bytes: Self::Bytes) -> Self::Bytes;

    /// Shifts each byte left; no bit that is set may leave it.
    fn left<const N: i32>(self, bytes: Self::Bytes) -> Self::Bytes;

    /// Shifts each byte right; no bit that is set may leave it.
    fn right<const N: i32>(self, bytes: Self::Bytes) -> Self::Bytes;

    /// No sums yet.
    fn nothing(self) -> Self::Sums;

    /// Products of `w`, whose bytes are signed if `SIGNED` and else at most 63, with `x`.
    fn dot<const SIGNED: bool>(self, w: Self::Bytes, x: &[i8; 32]) -> Self::Sums;

    /// Sixteen small integers.
    fn scales(self, scales: &[u8; SUBS]) -> Self::Scales;

    /// The bytes of a word and eight zeros.
    fn eight_scales(self, scales: u64) -> Self::Scales;

    /// Adds the products of `w`, whose bytes are at most 63, with `x`, times scale `PART`.
    fn dot_scaled<const PART: i32>(
        self,
        sums: Self::Sums,
        w: Self::Bytes,
        x: &[i8; 32],
        scales: Self::Scales,
    ) -> Self::Sums;

    /// As [`Simd::dot_scaled`], the first sixteen times scale `2 * PART`, the others times the one after.
    fn dot_scaled_halves<const PART: i32>(
        self,
        sums: Self::Sums,
        w: Self::Bytes,
        x: &[i8; 32],
        scales: Self::Scales,
    ) -> Self::Sums;

    /// Products of small integers.
    fn dot_small(self, a: Self::Scales, b: &[i16; SUBS]) -> Self::Sums;

    /// The sum of each row's partial sums.
    fn rows(self, sums: [Self::Sums; ROWS]) -> <Self::Eight as Lanes>::Ints;

    /// Halves to floats, one for each row.
    fn halves(self, halves: [u16; ROWS]) -> <Self::Eight as Lanes>::Floats;

    /// The same float sixteen times.
    fn sixteen(self, value: f32) -> Self::Sixteen;

    /// Loads floats.
    fn load_sixteen(self, floats: &[f32; LANES]) -> Self::Sixteen;

    /// Loads little-endian floats.
    fn load_f32(self, bytes: &[u8; 4 * LANES]) -> Self::Sixteen;

    /// Loads halves.
    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> Self::Sixteen;

    /// Loads BF16.
    fn load_bf16(self, bytes: &[u8; 2 * LANES]) -> Self::Sixteen;

    /// Stores floats.
    fn store_sixteen(self, floats: Self::Sixteen, out: &mut [f32; LANES]);

    /// `a * b + c`, rounded once.
    fn fma_sixteen(self, a: Self::Sixteen, b: Self::Sixteen, c: Self::Sixteen) -> Self::Sixteen;

    /// The sum, added as [`super::portable::sum`] does.
    fn sum_sixteen(self, floats: Self::Sixteen) -> f32;
}
