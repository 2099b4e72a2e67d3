//! The primitives with AVX2 and AVX-512; which of them a CPU has.

#[macro_use]
mod shared;
mod avx2;
mod avx512;

use core::arch::x86_64::*;
use core::sync::atomic::{AtomicU8, Ordering};

use zerocopy::IntoBytes;

use crate::kernels::activations::Input;
use crate::kernels::attention::{self, Step};
use crate::kernels::blocks::{F32, view};
use crate::kernels::matrix::{Part, RowScratch};
use crate::kernels::{floats, multiply};

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
    pub(in crate::kernels) const ALL: [Level; 3] = [Level::None, Level::Avx2, Level::Avx512];

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
pub(in crate::kernels) fn multiply_at(
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
pub(in crate::kernels) fn attend_at(level: Level, step: &mut Step<'_, '_>) -> bool {
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
