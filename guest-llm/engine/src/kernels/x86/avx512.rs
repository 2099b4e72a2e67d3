//! AVX-512.

use core::arch::x86_64::*;

use super::shared::{first, sum_eight};
use super::{Avx2, Avx512};
use crate::kernels::blocks::SUBS;
use crate::kernels::portable::LANES;
use crate::kernels::simd::{Lanes, ROWS, Simd};

/// Eight lanes beside AVX-512's sixteen.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Eight(Avx2);

lanes_256!(
    Avx512Eight,
    fn dot<const WIDE: bool>(self, sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        x!(_mm256_dpbusd_epi32(sum, w, x))
    }
);

impl Lanes for Avx512 {
    const ROWS: usize = 16;
    const SIGNED: bool = false;
    const MANY: bool = true;
    type Ints = __m512i;
    type Floats = __m512;

    #[inline(always)]
    fn ints(self, words: &[u32]) -> __m512i {
        x!(_mm512_loadu_si512(first::<16, u32>(words).as_ptr().cast()))
    }

    #[inline(always)]
    fn floats(self, words: &[u32]) -> __m512 {
        x!(_mm512_loadu_ps(first::<16, u32>(words).as_ptr().cast()))
    }

    #[inline(always)]
    fn splat(self, value: i32) -> __m512i {
        x!(_mm512_set1_epi32(value))
    }

    #[inline(always)]
    fn splat_float(self, value: f32) -> __m512 {
        x!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        x!(_mm512_dpbusd_epi32(sum, w, x))
    }

    #[inline(always)]
    fn dot_pairs(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        x!(_mm512_dpwssd_epi32(sum, a, b))
    }

    #[inline(always)]
    fn multiply_add(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        x!(_mm512_add_epi32(sum, _mm512_mullo_epi32(a, b)))
    }

    #[inline(always)]
    fn subtract(self, a: __m512i, b: __m512i) -> __m512i {
        x!(_mm512_sub_epi32(a, b))
    }

    #[inline(always)]
    fn convert(self, ints: __m512i) -> __m512 {
        x!(_mm512_cvtepi32_ps(ints))
    }

    #[inline(always)]
    fn multiply(self, a: __m512, b: __m512) -> __m512 {
        x!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        x!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn fnma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        x!(_mm512_fnmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn load(self, floats: &[f32]) -> __m512 {
        x!(_mm512_loadu_ps(first::<16, f32>(floats).as_ptr()))
    }

    #[inline(always)]
    fn store(self, floats: __m512, out: &mut [f32]) {
        let Some(out) = out.first_chunk_mut::<16>() else { return };
        x!(_mm512_storeu_ps(out.as_mut_ptr(), floats));
    }
}

impl Simd for Avx512 {
    type Eight = Avx512Eight;
    type Wide = Avx512;

    #[inline(always)]
    fn eight(self) -> Avx512Eight {
        Avx512Eight(self.0)
    }

    #[inline(always)]
    fn wide(self) -> Avx512 {
        self
    }

    bytes_256!();

    #[inline(always)]
    fn dot<const SIGNED: bool>(self, w: __m256i, x: &[i8; 32]) -> __m256i {
        x! {
            let (zero, x) = (_mm256_setzero_si256(), _mm256_loadu_si256(x.as_ptr().cast()));
            if SIGNED {
                _mm256_dpbusd_epi32(zero, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
            } else {
                _mm256_dpbusd_epi32(zero, w, x)
            }
        }
    }

    type Sixteen = __m512;

    #[inline(always)]
    fn sixteen(self, value: f32) -> __m512 {
        x!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn load_sixteen(self, floats: &[f32; LANES]) -> __m512 {
        x!(_mm512_loadu_ps(floats.as_ptr()))
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 4 * LANES]) -> __m512 {
        x!(_mm512_loadu_ps(bytes.as_ptr().cast()))
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> __m512 {
        x!(_mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 2 * LANES]) -> __m512 {
        x! {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    fn store_sixteen(self, floats: __m512, out: &mut [f32; LANES]) {
        x!(_mm512_storeu_ps(out.as_mut_ptr(), floats))
    }

    #[inline(always)]
    fn fma_sixteen(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        x!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn sum_sixteen(self, floats: __m512) -> f32 {
        x! {
            let low = _mm512_castps512_ps256(floats);
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(floats)));
            sum_eight(_mm256_add_ps(low, high))
        }
    }
}
