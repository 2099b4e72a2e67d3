//! AVX2, FMA and F16C.

use core::arch::x86_64::*;

use super::Avx2;
use super::shared::{first, sum_eight};
use crate::kernels::blocks::SUBS;
use crate::kernels::portable::LANES;
use crate::kernels::simd::{Lanes, ROWS, Simd};

lanes_256!(
    Avx2,
    fn dot<const WIDE: bool>(self, sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        x! {
            let ones = _mm256_set1_epi16(1);
            if !WIDE {
                // No pair of products passes 2 * 63 * 127.
                return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones));
            }
            // A pair of products could pass 2^15: the highest bit goes by itself.
            let top = _mm256_set1_epi8(-128);
            let low = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_andnot_si256(top, w), x), ones);
            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_and_si256(top, w), x), ones);
            _mm256_add_epi32(sum, _mm256_add_epi32(low, high))
        }
    }
);

impl Simd for Avx2 {
    type Eight = Avx2;
    type Wide = Avx2;

    #[inline(always)]
    fn eight(self) -> Avx2 {
        self
    }

    #[inline(always)]
    fn wide(self) -> Avx2 {
        self
    }

    bytes_256!();
    type Sixteen = [__m256; 2];

    #[inline(always)]
    fn sixteen(self, value: f32) -> Self::Sixteen {
        x!([_mm256_set1_ps(value); 2])
    }

    #[inline(always)]
    fn load_sixteen(self, floats: &[f32; LANES]) -> Self::Sixteen {
        x!([_mm256_loadu_ps(floats.as_ptr()), _mm256_loadu_ps(floats.as_ptr().add(8))])
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 4 * LANES]) -> Self::Sixteen {
        let floats = bytes.as_ptr().cast::<f32>();
        x!([_mm256_loadu_ps(floats), _mm256_loadu_ps(floats.add(8))])
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> Self::Sixteen {
        let halves = bytes.as_ptr().cast::<__m128i>();
        x!([_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves.add(1)))])
    }

    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 2 * LANES]) -> Self::Sixteen {
        let words = bytes.as_ptr().cast::<__m128i>();
        x! {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(words));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(words.add(1)));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }

    #[inline(always)]
    fn store_sixteen(self, floats: Self::Sixteen, out: &mut [f32; LANES]) {
        let at = out.as_mut_ptr();
        x! {
            _mm256_storeu_ps(at, floats[0]);
            _mm256_storeu_ps(at.add(8), floats[1]);
        }
    }

    #[inline(always)]
    fn fma_sixteen(self, a: Self::Sixteen, b: Self::Sixteen, c: Self::Sixteen) -> Self::Sixteen {
        x!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }

    #[inline(always)]
    fn sum_sixteen(self, floats: Self::Sixteen) -> f32 {
        x!(sum_eight(_mm256_add_ps(floats[0], floats[1])))
    }

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, w: __m256i, x: &[i8; 32]) -> __m256i {
        x! {
            let (ones, x) = (_mm256_set1_epi16(1), _mm256_loadu_si256(x.as_ptr().cast()));
            let products = if SIGNED {
                // The sign goes to the other side; 2 * 128 * 127 < 2^15.
                _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
            } else {
                _mm256_maddubs_epi16(w, x)
            };
            _mm256_madd_epi16(products, ones)
        }
    }
}
