//! The block formats of ggml: how the elements of a row lie in its bytes, and what they stand for.
//!
//! All formats come down to two shapes. A [`Block`] is 32 elements with a scale, `w = scale * (q - OFFSET) + min`. A
//! [`SuperBlock`] is 256 elements in sub-blocks, each with a small integer scale of its own, `w = scale * s[j] * (q -
//! OFFSET) - min_scale * m[j]`. The quants `q` are integers from 0 to 63, but for Q8_0, whose are signed. Kernels for
//! these two shapes serve all formats.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::half::{bf16_to_f32, f16_to_f32};
use crate::gguf::TensorType;

/// Elements of a [`Block`].
pub const BLOCK: usize = 32;
/// Elements of a [`SuperBlock`].
pub const SUPER: usize = 256;
/// Most sub-blocks of a [`SuperBlock`]: 16 elements each.
pub const SUBS: usize = SUPER / 16;

/// What every block is: bytes in a row, at any address.
pub trait Stored: FromBytes + Immutable + KnownLayout + Unaligned + Copy + 'static {
    /// Elements of a block.
    const LENGTH: usize;

    /// Writes the elements.
    fn expand(&self, out: &mut [f32]);
}

/// 32 elements: `w = scale * (q - OFFSET) + min`.
pub trait Block: Stored {
    /// What is taken off a quant.
    const OFFSET: i32;
    /// Whether [`Block::min`] is anything but zero.
    const HAS_MIN: bool;
    /// Whether quants are two's complement bytes (with an offset of zero) instead of integers from 0 to 63.
    const SIGNED: bool = false;

    /// The quants in order.
    fn quants(&self) -> [u8; BLOCK];

    /// The scale as it is stored, in half precision.
    fn stored_scale(&self) -> u16;

    /// The least element as it is stored.
    fn stored_min(&self) -> u16 {
        0
    }

    /// The scale.
    fn scale(&self) -> f32 {
        f16_to_f32(self.stored_scale())
    }

    /// The least element.
    fn min(&self) -> f32 {
        f16_to_f32(self.stored_min())
    }
}

/// 256 elements in sub-blocks: `w = scale * s[j] * (q - OFFSET) - min_scale * m[j]`, `q` from 0 to 63.
pub trait SuperBlock: Stored {
    /// Elements of a sub-block, 16 or 32.
    const SUB: usize;
    /// What is taken off a quant.
    const OFFSET: i32;
    /// Whether [`SuperBlock::mins`] are anything but zero.
    const HAS_MIN: bool;

    /// The quants in order.
    fn quants(&self) -> [u8; SUPER];

    /// The scales of the sub-blocks, the first `256 / SUB` being meant.
    fn scales(&self) -> [i8; SUBS];

    /// The least elements of the sub-blocks, in negative.
    fn mins(&self) -> [i8; SUBS] {
        [0; SUBS]
    }

    /// The scale as it is stored, in half precision.
    fn stored_scale(&self) -> u16;

    /// The scale of the mins as it is stored.
    fn stored_min_scale(&self) -> u16 {
        0
    }

    /// The scale.
    fn scale(&self) -> f32 {
        f16_to_f32(self.stored_scale())
    }

    /// The scale of the mins.
    fn min_scale(&self) -> f32 {
        f16_to_f32(self.stored_min_scale())
    }
}

/// Half precision in the file.
type Half = [u8; 2];

fn half(bytes: Half) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}

/// The low half-bytes, then the high ones.
fn nibbles(bytes: &[u8; 16]) -> [u8; BLOCK] {
    let mut quants = [0; BLOCK];
    for (i, byte) in bytes.iter().enumerate() {
        quants[i] = byte & 15;
        quants[i + 16] = byte >> 4;
    }
    quants
}

/// As [`nibbles`], with a fifth bit each from `high`.
fn five_bits(bytes: &[u8; 16], high: [u8; 4]) -> [u8; BLOCK] {
    let (mut quants, high) = (nibbles(bytes), u32::from_le_bytes(high));
    for (i, quant) in quants.iter_mut().enumerate() {
        *quant |= ((high >> i & 1) << 4) as u8;
    }
    quants
}

macro_rules! blocks {
    ($($(#[$doc:meta])* $name:ident($length:expr, $expand:ident) { $($field:ident: $ty:ty),* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $(pub $field: $ty),* }

        impl Stored for $name {
            const LENGTH: usize = $length;

            fn expand(&self, out: &mut [f32]) {
                $expand(self, out);
            }
        }
    )*};
}

blocks! {
    /// IEEE 754 single precision.
    F32(1, expand_f32) { value: [u8; 4] }
    /// IEEE 754 half precision.
    F16(1, expand_f16) { value: Half }
    /// The upper half of single precision.
    Bf16(1, expand_bf16) { value: [u8; 2] }
    /// Scale; 4-bit quants less 8.
    Q4_0(BLOCK, expand_block) { d: Half, qs: [u8; 16] }
    /// Scale, min; 4-bit quants.
    Q4_1(BLOCK, expand_block) { d: Half, m: Half, qs: [u8; 16] }
    /// Scale; 5-bit quants less 16.
    Q5_0(BLOCK, expand_block) { d: Half, qh: [u8; 4], qs: [u8; 16] }
    /// Scale, min; 5-bit quants.
    Q5_1(BLOCK, expand_block) { d: Half, m: Half, qh: [u8; 4], qs: [u8; 16] }
    /// Scale; signed bytes.
    Q8_0(BLOCK, expand_block) { d: Half, qs: [u8; 32] }
    /// Two scales; eight 6-bit scales and mins; 4-bit quants.
    Q4K(SUPER, expand_super) { d: Half, dmin: Half, scales: [u8; 12], qs: [u8; 128] }
    /// Two scales; eight 6-bit scales and mins; 5-bit quants.
    Q5K(SUPER, expand_super) { d: Half, dmin: Half, scales: [u8; 12], qh: [u8; 32], qs: [u8; 128] }
    /// Sixteen 8-bit scales; 6-bit quants less 32; scale.
    Q6K(SUPER, expand_super) { ql: [u8; 128], qh: [u8; 64], scales: [u8; 16], d: Half }
}

fn expand_f32(block: &F32, out: &mut [f32]) {
    out.fill(f32::from_le_bytes(block.value));
}

fn expand_f16(block: &F16, out: &mut [f32]) {
    out.fill(half(block.value));
}

fn expand_bf16(block: &Bf16, out: &mut [f32]) {
    out.fill(bf16_to_f32(u16::from_le_bytes(block.value)));
}

fn expand_block<B: Block>(block: &B, out: &mut [f32]) {
    let (scale, min) = (block.scale(), block.min());
    for (out, quant) in out.iter_mut().zip(block.quants()) {
        let quant = if B::SIGNED { i32::from(quant as i8) } else { i32::from(quant) - B::OFFSET };
        *out = scale * quant as f32 + min;
    }
}

fn expand_super<B: SuperBlock>(block: &B, out: &mut [f32]) {
    let quants = block.quants();
    let subs = out.chunks_mut(B::SUB).zip(quants.chunks(B::SUB));
    for (((out, quants), scale), min) in subs.zip(block.scales()).zip(block.mins()) {
        let (scale, min) = (block.scale() * f32::from(scale), block.min_scale() * f32::from(min));
        for (out, quant) in out.iter_mut().zip(quants) {
            *out = scale * (i32::from(*quant) - B::OFFSET) as f32 - min;
        }
    }
}

/// Offset, whether there are minimums, whether quants are signed; the quants; where the minimum is.
macro_rules! block {
    ($($name:ident: $offset:literal, $has_min:literal, $signed:literal, |$block:ident| $quants:expr $(, $min:ident)?;)*) => {$(
        impl Block for $name {
            const OFFSET: i32 = $offset;
            const HAS_MIN: bool = $has_min;
            const SIGNED: bool = $signed;

            #[inline(always)]
            fn quants(&self) -> [u8; BLOCK] {
                let $block = self;
                $quants
            }

            #[inline(always)]
            fn stored_scale(&self) -> u16 {
                u16::from_le_bytes(self.d)
            }

            $(#[inline(always)]
            fn stored_min(&self) -> u16 {
                u16::from_le_bytes(self.$min)
            })?
        }
    )*};
}

block! {
    Q4_0: 8, false, false, |block| nibbles(&block.qs);
    Q4_1: 0, true, false, |block| nibbles(&block.qs), m;
    Q5_0: 16, false, false, |block| five_bits(&block.qs, block.qh);
    Q5_1: 0, true, false, |block| five_bits(&block.qs, block.qh), m;
    Q8_0: 0, false, true, |block| block.qs;
}

/// The eight 6-bit scales and mins of Q4_K and Q5_K, each in a byte of a word: four of each are in the low six bits of the
/// first eight bytes; of the others the low four bits are in the last four bytes, the high two above those of the first
/// eight.
#[inline(always)]
pub fn scales_and_mins(bytes: &[u8; 12]) -> (u64, u64) {
    let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    let (first, second, third) = (word(0), word(4), word(8));
    let both = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let upper = |word: u32| (word >> 6 & 0x0303_0303) << 4;
    (
        both(first & 0x3f3f_3f3f, third & 0x0f0f_0f0f | upper(first)),
        both(second & 0x3f3f_3f3f, third >> 4 & 0x0f0f_0f0f | upper(second)),
    )
}

fn bytes(word: u64) -> [i8; SUBS] {
    let mut bytes = [0; SUBS];
    for (out, byte) in bytes.iter_mut().zip(word.to_le_bytes()) {
        *out = byte as i8;
    }
    bytes
}

impl SuperBlock for Q4K {
    const SUB: usize = 32;
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;

    #[inline(always)]
    fn quants(&self) -> [u8; SUPER] {
        let mut quants = [0; SUPER];
        for (out, bytes) in quants.as_chunks_mut::<64>().0.iter_mut().zip(self.qs.as_chunks::<32>().0) {
            for (i, byte) in bytes.iter().enumerate() {
                out[i] = byte & 15;
                out[i + 32] = byte >> 4;
            }
        }
        quants
    }

    #[inline(always)]
    fn scales(&self) -> [i8; SUBS] {
        bytes(scales_and_mins(&self.scales).0)
    }

    #[inline(always)]
    fn mins(&self) -> [i8; SUBS] {
        bytes(scales_and_mins(&self.scales).1)
    }

    #[inline(always)]
    fn stored_scale(&self) -> u16 {
        u16::from_le_bytes(self.d)
    }

    #[inline(always)]
    fn stored_min_scale(&self) -> u16 {
        u16::from_le_bytes(self.dmin)
    }
}

impl SuperBlock for Q5K {
    const SUB: usize = 32;
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;

    #[inline(always)]
    fn quants(&self) -> [u8; SUPER] {
        let mut quants = [0; SUPER];
        let parts = quants.as_chunks_mut::<64>().0.iter_mut().zip(self.qs.as_chunks::<32>().0);
        for (part, (out, bytes)) in parts.enumerate() {
            for (i, (byte, high)) in bytes.iter().zip(&self.qh).enumerate() {
                out[i] = byte & 15 | (high >> (2 * part) & 1) << 4;
                out[i + 32] = byte >> 4 | (high >> (2 * part + 1) & 1) << 4;
            }
        }
        quants
    }

    #[inline(always)]
    fn scales(&self) -> [i8; SUBS] {
        bytes(scales_and_mins(&self.scales).0)
    }

    #[inline(always)]
    fn mins(&self) -> [i8; SUBS] {
        bytes(scales_and_mins(&self.scales).1)
    }

    #[inline(always)]
    fn stored_scale(&self) -> u16 {
        u16::from_le_bytes(self.d)
    }

    #[inline(always)]
    fn stored_min_scale(&self) -> u16 {
        u16::from_le_bytes(self.dmin)
    }
}

impl SuperBlock for Q6K {
    const SUB: usize = 16;
    const OFFSET: i32 = 32;
    const HAS_MIN: bool = false;

    #[inline(always)]
    fn quants(&self) -> [u8; SUPER] {
        let mut quants = [0; SUPER];
        let low = self.ql.as_chunks::<64>().0.iter().zip(self.qh.as_chunks::<32>().0);
        for (out, (low, high)) in quants.as_chunks_mut::<128>().0.iter_mut().zip(low) {
            for (i, high) in high.iter().enumerate() {
                out[i] = low[i] & 15 | (high & 3) << 4;
                out[i + 32] = low[i + 32] & 15 | (high >> 2 & 3) << 4;
                out[i + 64] = low[i] >> 4 | (high >> 4 & 3) << 4;
                out[i + 96] = low[i + 32] >> 4 | (high >> 6) << 4;
            }
        }
        quants
    }

    #[inline(always)]
    fn scales(&self) -> [i8; SUBS] {
        self.scales.map(|scale| scale as i8)
    }

    #[inline(always)]
    fn stored_scale(&self) -> u16 {
        u16::from_le_bytes(self.d)
    }
}

/// Views a row; what is no whole block at its end is left out.
#[inline(always)]
pub fn view<B: Stored>(row: &[u8]) -> &[B] {
    let whole = row.len() - row.len() % size_of::<B>();
    row.get(..whole).and_then(|row| <[B]>::ref_from_bytes(row).ok()).unwrap_or_default()
}

/// Writes a row as F32.
pub fn expand(ty: TensorType, row: &[u8], out: &mut [f32]) {
    fn all<B: Stored>(row: &[u8], out: &mut [f32]) {
        for (block, out) in view::<B>(row).iter().zip(out.chunks_exact_mut(B::LENGTH)) {
            block.expand(out);
        }
    }
    match ty {
        TensorType::F32 => all::<F32>(row, out),
        TensorType::F16 => all::<F16>(row, out),
        TensorType::Bf16 => all::<Bf16>(row, out),
        TensorType::Q4_0 => all::<Q4_0>(row, out),
        TensorType::Q4_1 => all::<Q4_1>(row, out),
        TensorType::Q5_0 => all::<Q5_0>(row, out),
        TensorType::Q5_1 => all::<Q5_1>(row, out),
        TensorType::Q8_0 => all::<Q8_0>(row, out),
        TensorType::Q4K => all::<Q4K>(row, out),
        TensorType::Q5K => all::<Q5K>(row, out),
        TensorType::Q6K => all::<Q6K>(row, out),
    }
}
