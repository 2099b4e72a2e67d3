//! What the instruction sets share: 256-bit lanes, and the bytes of a row.

use core::arch::x86_64::*;

/// Runs an intrinsic.
macro_rules! x {
    ($($body:tt)*) => {
        // SAFETY: a value of the type whose method this is exists only where the CPU has the instructions; loads and
        // stores are of as many bytes as the references say or the slices were checked for, and need no alignment.
        unsafe { $($body)* }
    };
}

/// The first `N` elements.
#[inline(always)]
pub fn first<const N: usize, T>(slice: &[T]) -> &[T; N] {
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

/// What 256-bit lanes share.
macro_rules! lanes_256 {
    ($isa:ty, $dot:item) => {
        impl Lanes for $isa {
            const ROWS: usize = 8;
            const SIGNED: bool = false;
            const MANY: bool = false;
            type Ints = __m256i;
            type Floats = __m256;

            #[inline(always)]
            fn ints(self, words: &[u32]) -> __m256i {
                x!(_mm256_loadu_si256(first::<8, u32>(words).as_ptr().cast()))
            }

            #[inline(always)]
            fn floats(self, words: &[u32]) -> __m256 {
                x!(_mm256_loadu_ps(first::<8, u32>(words).as_ptr().cast()))
            }

            #[inline(always)]
            fn splat(self, value: i32) -> __m256i {
                x!(_mm256_set1_epi32(value))
            }

            #[inline(always)]
            fn splat_float(self, value: f32) -> __m256 {
                x!(_mm256_set1_ps(value))
            }

            #[inline(always)]
            $dot

            #[inline(always)]
            fn dot_pairs(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
                x!(_mm256_add_epi32(sum, _mm256_madd_epi16(a, b)))
            }

            #[inline(always)]
            fn multiply_add(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
                x!(_mm256_add_epi32(sum, _mm256_mullo_epi32(a, b)))
            }

            #[inline(always)]
            fn subtract(self, a: __m256i, b: __m256i) -> __m256i {
                x!(_mm256_sub_epi32(a, b))
            }

            #[inline(always)]
            fn convert(self, ints: __m256i) -> __m256 {
                x!(_mm256_cvtepi32_ps(ints))
            }

            #[inline(always)]
            fn multiply(self, a: __m256, b: __m256) -> __m256 {
                x!(_mm256_mul_ps(a, b))
            }

            #[inline(always)]
            fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
                x!(_mm256_fmadd_ps(a, b, c))
            }

            #[inline(always)]
            fn fnma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
                x!(_mm256_fnmadd_ps(a, b, c))
            }

            #[inline(always)]
            fn load(self, floats: &[f32]) -> __m256 {
                x!(_mm256_loadu_ps(first::<8, f32>(floats).as_ptr()))
            }

            #[inline(always)]
            fn store(self, floats: __m256, out: &mut [f32]) {
                let Some(out) = out.first_chunk_mut::<8>() else { return };
                x!(_mm256_storeu_ps(out.as_mut_ptr(), floats));
            }
        }
    };
}

/// What a row's primitives share: all but the product and the sixteen floats.
macro_rules! bytes_256 {
    () => {
        type Bytes = __m256i;
        type Scales = __m128i;
        type Sums = __m256i;

        #[inline(always)]
        fn bytes(self, bytes: &[u8; 32]) -> __m256i {
            x!(_mm256_loadu_si256(bytes.as_ptr().cast()))
        }

        #[inline(always)]
        fn nibbles(self, bytes: &[u8; 16]) -> __m256i {
            x! {
                let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
                let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
                _mm256_and_si256(both, _mm256_set1_epi8(15))
            }
        }

        #[inline(always)]
        fn spread(self, bits: u32, value: u8) -> __m256i {
            x! {
                // Each byte of bits eight times, then one bit of it in each place.
                let order = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
                let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), order);
                let mask = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask);
                _mm256_and_si256(set, _mm256_set1_epi8(value as i8))
            }
        }

        #[inline(always)]
        fn test(self, bytes: __m256i, mask: u8, value: u8) -> __m256i {
            x! {
                let mask = _mm256_set1_epi8(mask as i8);
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask);
                _mm256_and_si256(set, _mm256_set1_epi8(value as i8))
            }
        }

        #[inline(always)]
        fn and(self, bytes: __m256i, mask: u8) -> __m256i {
            x!(_mm256_and_si256(bytes, _mm256_set1_epi8(mask as i8)))
        }

        #[inline(always)]
        fn or(self, a: __m256i, b: __m256i) -> __m256i {
            x!(_mm256_or_si256(a, b))
        }

        #[inline(always)]
        fn high(self, bytes: __m256i) -> __m256i {
            x!(_mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15)))
        }

        #[inline(always)]
        fn left<const N: i32>(self, bytes: __m256i) -> __m256i {
            x!(_mm256_slli_epi16::<N>(bytes))
        }

        #[inline(always)]
        fn right<const N: i32>(self, bytes: __m256i) -> __m256i {
            x!(_mm256_srli_epi16::<N>(bytes))
        }

        #[inline(always)]
        fn nothing(self) -> __m256i {
            x!(_mm256_setzero_si256())
        }

        #[inline(always)]
        fn scales(self, scales: &[u8; SUBS]) -> __m128i {
            x!(_mm_loadu_si128(scales.as_ptr().cast()))
        }

        #[inline(always)]
        fn eight_scales(self, scales: u64) -> __m128i {
            x!(_mm_cvtsi64_si128(scales as i64))
        }

        #[inline(always)]
        fn dot_scaled<const PART: i32>(
            self,
            sums: __m256i,
            w: __m256i,
            x: &[i8; 32],
            scales: __m128i,
        ) -> __m256i {
            x! {
                let products = _mm256_maddubs_epi16(w, _mm256_loadu_si256(x.as_ptr().cast()));
                let scale = _mm_shuffle_epi8(scales, _mm_set1_epi8(PART as i8));
                _mm256_add_epi32(sums, _mm256_madd_epi16(products, _mm256_cvtepi8_epi16(scale)))
            }
        }

        #[inline(always)]
        fn dot_scaled_halves<const PART: i32>(
            self,
            sums: __m256i,
            w: __m256i,
            x: &[i8; 32],
            scales: __m128i,
        ) -> __m256i {
            x! {
                let products = _mm256_maddubs_epi16(w, _mm256_loadu_si256(x.as_ptr().cast()));
                let order = _mm_set_epi64x(
                    0x0101_0101_0101_0101 * (2 * PART as i64 + 1),
                    0x0202_0202_0202_0202 * PART as i64,
                );
                let scale = _mm_shuffle_epi8(scales, order);
                _mm256_add_epi32(sums, _mm256_madd_epi16(products, _mm256_cvtepi8_epi16(scale)))
            }
        }

        #[inline(always)]
        fn dot_small(self, a: __m128i, b: &[i16; SUBS]) -> __m256i {
            x!(_mm256_madd_epi16(_mm256_cvtepi8_epi16(a), _mm256_loadu_si256(b.as_ptr().cast())))
        }

        #[inline(always)]
        fn rows(self, sums: [__m256i; ROWS]) -> __m256i {
            let [a, b, c, d, e, f, g, h] = sums;
            x! {
                let first = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
                let second = _mm256_hadd_epi32(_mm256_hadd_epi32(e, f), _mm256_hadd_epi32(g, h));
                _mm256_add_epi32(
                    _mm256_permute2x128_si256::<0x20>(first, second),
                    _mm256_permute2x128_si256::<0x31>(first, second),
                )
            }
        }

        #[inline(always)]
        fn halves(self, halves: [u16; ROWS]) -> __m256 {
            x!(_mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast())))
        }
    };
}

/// Adds eight partial sums as `portable::sum` does.
///
/// # Safety
/// The CPU must have AVX.
#[inline(always)]
pub unsafe fn sum_eight(sums: __m256) -> f32 {
    x! {
        let four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}
