//! The primitives with AVX2 and AVX-512.

use core::arch::x86_64::*;
use core::sync::atomic::{AtomicU8, Ordering};

use zerocopy::IntoBytes;

use super::activations::Input;
use super::attention::{self, Step};
use super::blocks::{F32, SUBS, view};
use super::matrix::{Part, RowScratch};
use super::portable::LANES;
use super::simd::{Lanes, ROWS, Simd};
use super::{floats, multiply};

/// AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

/// [`Avx2`] and the F, BW, VL and VNNI parts of AVX-512.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(Avx2);

/// What a CPU has; the greatest that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Nothing that helps.
    None = 1,
    /// [`Avx2`]
    Avx2,
    /// [`Avx512`]
    Avx512,
}

impl Level {
    pub(super) const ALL: [Level; 3] = [Level::None, Level::Avx2, Level::Avx512];

    /// Asks the CPU, once.
    pub fn detect() -> Self {
        static KNOWN: AtomicU8 = AtomicU8::new(0);
        let known = KNOWN.load(Ordering::Relaxed);
        if let Some(level) = Self::ALL.into_iter().find(|level| *level as u8 == known) {
            return level;
        }
        let level = Self::ask();
        KNOWN.store(level as u8, Ordering::Relaxed);
        level
    }

    /// Intel's manual, volume 1, chapters 14 and 15: the CPU must have the instructions and the system must save the registers.
    fn ask() -> Self {
        let has = |word: u32, bits: &[u32]| bits.iter().all(|bit| word >> bit & 1 == 1);
        if __cpuid(0).eax < 7 {
            return Level::None;
        }
        let (first, seventh) = (__cpuid(1), __cpuid_count(7, 0));
        // FMA, XSAVE in use, AVX, F16C; AVX2.
        if !has(first.ecx, &[12, 27, 28, 29]) || !has(seventh.ebx, &[5]) {
            return Level::None;
        }
        // SAFETY: the CPU says that XGETBV may be used.
        let saved = unsafe { saved() };
        if saved & 0x6 != 0x6 {
            return Level::None;
        }
        // F, BW, VL; VNNI.
        if saved & 0xe6 == 0xe6 && has(seventh.ebx, &[16, 30, 31]) && has(seventh.ecx, &[11]) {
            Level::Avx512
        } else {
            Level::Avx2
        }
    }
}

/// Which registers the system saves.
///
/// # Safety
/// The CPU must have XGETBV.
#[target_feature(enable = "xsave")]
unsafe fn saved() -> u64 {
    // SAFETY: as for this function; register 0 always exists.
    unsafe { _xgetbv(0) }
}

/// Multiplies, if there are instructions that help.
pub fn multiply(part: &Part<'_, '_>, input: &Input<'_>, scratch: &mut RowScratch) -> bool {
    multiply_at(Level::detect(), part, input, scratch)
}

/// Multiplies with the instructions of `level`, of which the CPU must have told at least that.
pub(super) fn multiply_at(
    level: Level,
    part: &Part<'_, '_>,
    input: &Input<'_>,
    scratch: &mut RowScratch,
) -> bool {
    if level > Level::detect() {
        return false;
    }
    match level {
        Level::None => return false,
        // SAFETY: the CPU has been asked.
        Level::Avx2 => unsafe { multiply_avx2(Avx2(()), part, input, scratch) },
        // SAFETY: as above.
        Level::Avx512 => unsafe { multiply_avx512(Avx512(Avx2(())), part, input, scratch) },
    }
    true
}

/// Attention over a chunk, if there are instructions that help.
pub fn attend(step: &mut Step<'_, '_>) -> bool {
    attend_at(Level::detect(), step)
}

/// Attention over a chunk with the instructions of `level`, of which the CPU must have told at least that.
pub(super) fn attend_at(level: Level, step: &mut Step<'_, '_>) -> bool {
    if level > Level::detect() {
        return false;
    }
    match level {
        Level::None => return false,
        // SAFETY: the CPU has been asked.
        Level::Avx2 => unsafe { attend_avx2(Avx2(()), step) },
        // SAFETY: as above.
        Level::Avx512 => unsafe { attend_avx512(Avx512(Avx2(())), step) },
    }
    true
}

macro_rules! entry {
    ($name:ident, $attend:ident, $isa:ty, $features:literal) => {
        /// # Safety
        /// The CPU must have the features.
        #[target_feature(enable = $features)]
        unsafe fn $attend(s: $isa, step: &mut Step<'_, '_>) {
            attention::attend(s, step);
        }

        /// # Safety
        /// The CPU must have the features.
        #[target_feature(enable = $features)]
        unsafe fn $name(s: $isa, part: &Part<'_, '_>, input: &Input<'_>, scratch: &mut RowScratch) {
            multiply::multiply(s, part.ty(), part.rows(), input, scratch, &mut |token, row, product| {
                part.set(token, row, product);
            });
        }
    };
}

entry!(multiply_avx2, attend_avx2, Avx2, "avx2,fma,f16c");
entry!(multiply_avx512, attend_avx512, Avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni");

macro_rules! dots {
    ($($name:ident($row:ty), $avx2:ident, $avx512:ident, $element:ty;)*) => {$(
        /// A dot product of floats, if there are instructions that help.
        pub fn $name(row: &[$row], x: &[f32]) -> Option<f32> {
            match Level::detect() {
                Level::None => None,
                // SAFETY: the CPU has been asked.
                Level::Avx2 => Some(unsafe { $avx2(Avx2(()), row, x) }),
                // SAFETY: as above.
                Level::Avx512 => Some(unsafe { $avx512(Avx512(Avx2(())), row, x) }),
            }
        }

        /// # Safety
        /// The CPU must have the features.
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $avx2(s: Avx2, row: &[$row], x: &[f32]) -> f32 {
            floats::dot::<Avx2, $element>(s, view(row.as_bytes()), x)
        }

        /// # Safety
        /// The CPU must have the features.
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
        unsafe fn $avx512(s: Avx512, row: &[$row], x: &[f32]) -> f32 {
            floats::dot::<Avx512, $element>(s, view(row.as_bytes()), x)
        }
    )*};
}

dots! {
    dot_slices(f32), dot_slices_avx2, dot_slices_avx512, F32;
}

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

/// Sixteen floats in two registers.
macro_rules! sixteen_256 {
    () => {
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
    };
}

/// Adds eight partial sums as `portable::sum` does.
///
/// # Safety
/// The CPU must have AVX.
#[inline(always)]
unsafe fn sum_eight(sums: __m256) -> f32 {
    x! {
        let four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

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
    sixteen_256!();

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
