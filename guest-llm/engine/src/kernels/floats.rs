//! Products of rows of floats, as they lie in the file.

use zerocopy::IntoBytes;

use super::activations::Rows;
use super::blocks::{Bf16, F16, F32, Stored};
use super::half::{bf16_to_f32, f16_to_f32};
use super::portable::{LANES, fma};
use super::simd::Simd;

/// A float format.
pub trait Element: Stored + IntoBytes {
    /// Loads sixteen.
    fn load<S: Simd>(s: S, elements: &[Self; LANES]) -> S::Sixteen;

    /// Converts one.
    fn one(self) -> f32;
}

macro_rules! elements {
    ($($name:ident: $load:ident, $one:expr;)*) => {$(
        impl Element for $name {
            #[inline(always)]
            fn load<S: Simd>(s: S, elements: &[Self; LANES]) -> S::Sixteen {
                // As long as sixteen elements are.
                elements.as_bytes().first_chunk().map_or(s.sixteen(0.0), |bytes| s.$load(bytes))
            }

            #[inline(always)]
            fn one(self) -> f32 {
                $one(self.value)
            }
        }
    )*};
}

elements! {
    F32: load_f32, f32::from_le_bytes;
    F16: load_f16, |value| f16_to_f32(u16::from_le_bytes(value));
    Bf16: load_bf16, |value| bf16_to_f32(u16::from_le_bytes(value));
}

/// Products of `R` rows with `T` tokens, all of at least `count` elements, which is the number of columns.
#[inline(always)]
pub fn tile<S: Simd, E: Element, const R: usize, const T: usize>(
    s: S,
    rows: [&[E]; R],
    tokens: [&[f32]; T],
) -> [[f32; R]; T] {
    let mut sums = [[s.sixteen(0.0); R]; T];
    let count = tokens.iter().fold(usize::MAX, |count, x| count.min(x.len()));
    let count = rows.iter().fold(count, |count, row| count.min(row.len()));
    let mut row_parts = [&[][..]; R];
    for (part, row) in row_parts.iter_mut().zip(rows) {
        *part = row[..count].as_chunks::<LANES>().0;
    }
    let mut token_parts = [&[][..]; T];
    for (part, x) in token_parts.iter_mut().zip(tokens) {
        *part = x[..count].as_chunks::<LANES>().0;
    }
    for i in 0..count / LANES {
        let mut w = [s.sixteen(0.0); R];
        for r in 0..R {
            w[r] = E::load(s, &row_parts[r][i]);
        }
        for t in 0..T {
            let x = s.load_sixteen(&token_parts[t][i]);
            for r in 0..R {
                sums[t][r] = s.fma_sixteen(w[r], x, sums[t][r]);
            }
        }
    }
    let mut products = [[0.0; R]; T];
    for t in 0..T {
        for r in 0..R {
            let mut sum = s.sum_sixteen(sums[t][r]);
            for i in count / LANES * LANES..count {
                sum = fma(rows[r][i].one(), tokens[t][i], sum);
            }
            products[t][r] = sum;
        }
    }
    products
}

/// Dot product, over the shorter of both.
#[inline(always)]
pub fn dot<S: Simd, E: Element>(s: S, row: &[E], x: &[f32]) -> f32 {
    let [[product]] = tile::<S, E, 1, 1>(s, [row], [x]);
    product
}

/// Products of `R` rows with all tokens.
#[inline(always)]
pub fn rows<S: Simd, E: Element, const R: usize, const T: usize>(
    s: S,
    rows: [&[E]; R],
    tokens: Rows<'_, f32>,
    out: &mut impl FnMut(usize, &[f32]),
) {
    let mut first = 0;
    while first + T <= tokens.count() {
        let mut xs = [&[][..]; T];
        for (t, x) in xs.iter_mut().enumerate() {
            *x = tokens.get(first + t);
        }
        for (t, products) in tile::<S, E, R, T>(s, rows, xs).iter().enumerate() {
            out(first + t, products);
        }
        first += T;
    }
    while first < tokens.count() {
        for products in tile::<S, E, R, 1>(s, rows, [tokens.get(first)]) {
            out(first, &products);
        }
        first += 1;
    }
}
