//! Rows of keys and values as they are stored.

use core::fmt;
use core::str::FromStr;

use super::blocks::{BLOCK, Q8_0, expand};
use super::half::{f16_to_f32, f32_to_f16};
use crate::gguf::TensorType;

/// Bytes of a block of Q8_0.
const BLOCK_BYTES: usize = size_of::<Q8_0>();

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvFormat {
    /// 4 bytes per element: exact, and the cheapest to read where floats are emulated.
    F32,
    /// 2 bytes per element.
    F16,
    /// 34 bytes per 32 elements, as in GGUF: an F16 scale and integers of 8 bits. The length of the model's heads must be a
    /// multiple of 32. Products of keys and queries are those of integers; the queries are rounded to 8 bits too.
    Q8_0,
}

impl KvFormat {
    /// All formats.
    pub const ALL: [KvFormat; 3] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0];

    /// Returns the format's name, as llama.cpp's option `--cache-type-k` takes it.
    pub fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::Q8_0 => "q8_0",
        }
    }

    /// Elements that are stored together.
    pub(crate) fn block_length(self) -> usize {
        match self {
            KvFormat::F32 | KvFormat::F16 => 1,
            KvFormat::Q8_0 => BLOCK,
        }
    }

    /// Bytes of a row of `length` elements, a multiple of the block's.
    pub(crate) fn row_bytes(self, length: usize) -> usize {
        match self {
            KvFormat::F32 => length * 4,
            KvFormat::F16 => length * 2,
            KvFormat::Q8_0 => length / BLOCK * BLOCK_BYTES,
        }
    }

    /// Stores `values`.
    pub(crate) fn store(self, values: &[f32], row: &mut [u8]) {
        match self {
            KvFormat::F32 => {
                for (bytes, value) in row.as_chunks_mut().0.iter_mut().zip(values) {
                    *bytes = value.to_le_bytes();
                }
            }
            KvFormat::F16 => {
                for (bytes, value) in row.as_chunks_mut().0.iter_mut().zip(values) {
                    *bytes = f32_to_f16(*value).to_le_bytes();
                }
            }
            KvFormat::Q8_0 => {
                let blocks = row.as_chunks_mut::<BLOCK_BYTES>().0;
                for (block, values) in blocks.iter_mut().zip(values.as_chunks::<BLOCK>().0) {
                    store_block(values, block);
                }
            }
        }
    }

    /// Reads stored rows, one after another, to `out`; exact.
    pub(crate) fn load(self, rows: &[u8], out: &mut [f32]) {
        let ty = match self {
            KvFormat::F32 => TensorType::F32,
            KvFormat::F16 => TensorType::F16,
            KvFormat::Q8_0 => TensorType::Q8_0,
        };
        expand(ty, rows, out);
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvFormat {
    type Err = UnknownKvFormat;

    fn from_str(name: &str) -> Result<Self, UnknownKvFormat> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or(UnknownKvFormat)
    }
}

/// No format of keys and values has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownKvFormat;

impl fmt::Display for UnknownKvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keys and values are stored as f32, f16 or q8_0")
    }
}

impl core::error::Error for UnknownKvFormat {}

/// Rounds a block to multiples of a scale, to nearest even. What is not finite, or too large for an F16 scale, is read
/// back as NaN or infinite, never as a number.
fn store_block(values: &[f32; BLOCK], block: &mut [u8; BLOCK_BYTES]) {
    // 1.5 * 2^23: adding it rounds to an integer, found in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // Magnitudes compare as their bits do, which keeps NaN: it is greater than all numbers.
    let magnitude = |value: &f32| (value.to_bits() & 0x7fff_ffff) as i32;
    let greatest = f32::from_bits(values.iter().fold(0, |max, value| max.max(magnitude(value))) as u32);
    let bits = f32_to_f16(greatest * (1.0 / 127.0));
    // The scale as it will be read, so that its own rounding does not add to that of the elements.
    let scale = f16_to_f32(bits);
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let [low, high, elements @ ..] = block;
    [*low, *high] = bits.to_le_bytes();
    for (element, value) in elements.iter_mut().zip(values) {
        // A subnormal scale may have been rounded down so far that the quotient leaves the range.
        let quotient = (value * inverse).clamp(-127.0, 127.0);
        *element = (quotient + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as u8;
    }
    // An infinite scale times zero would be NaN by luck only; a NaN one is always.
    if !scale.is_finite() {
        elements.fill(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    fn round_trip(format: KvFormat, values: &[f32]) -> Vec<f32> {
        let mut row = vec![0xA5; format.row_bytes(values.len())];
        format.store(values, &mut row);
        let mut out = vec![f32::NAN; values.len()];
        format.load(&row, &mut out);
        out
    }

    #[test]
    fn names_are_read_back() {
        for format in KvFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!("q4_0".parse::<KvFormat>(), Err(UnknownKvFormat));
        assert!(UnknownKvFormat.to_string().contains("q8_0"));
    }

    #[test]
    fn rows_come_back_within_half_a_step() {
        let values: Vec<f32> = (0..96).map(|i| ((i * 53 + 7) % 101) as f32 / 50.0 - 1.0).collect();
        assert_eq!(round_trip(KvFormat::F32, &values), values);
        for (value, found) in values.iter().zip(round_trip(KvFormat::F16, &values)) {
            assert!((value - found).abs() <= value.abs() / 2048.0);
        }
        for magnitude in [1e-6, 1e-3, 1.0, 1e6] {
            let values: Vec<f32> = values.iter().map(|value| value * magnitude).collect();
            for (values, found) in values.chunks(32).zip(round_trip(KvFormat::Q8_0, &values).chunks(32)) {
                let greatest = values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
                // Half a step of a 127th, and what the rounding of a scale of few bits loses at the ends of the range.
                let most = 0.502 * greatest / 127.0 + 127.0 * 3e-8;
                for (value, found) in values.iter().zip(found) {
                    assert!((value - found).abs() <= most, "{value} {found}");
                }
            }
        }
    }

    #[test]
    fn the_scale_of_a_block_is_that_of_its_greatest() {
        let mut values = [0.0; 64];
        values[3] = -127.0;
        values[4] = 0.5;
        values[5] = 1.5;
        values[40] = 1.0;
        let found = round_trip(KvFormat::Q8_0, &values);
        // Halves round to even.
        assert_eq!((found[3], found[4], found[5], found[0]), (-127.0, 0.0, 2.0, 0.0));
        assert!((found[40] - 1.0).abs() < 1e-3);
        assert_eq!(round_trip(KvFormat::Q8_0, &[0.0; 32]), [0.0; 32]);
        // Nothing that the scale could hold.
        assert_eq!(round_trip(KvFormat::Q8_0, &[1e-30; 32]), [0.0; 32]);
    }

    #[test]
    fn what_is_no_number_is_none_afterwards() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e9] {
            let mut values = [1.0; 32];
            values[9] = broken;
            assert!(round_trip(KvFormat::Q8_0, &values).iter().all(|value| !value.is_finite()), "{broken}");
        }
        assert!(round_trip(KvFormat::F16, &[f32::NAN])[0].is_nan());
    }
}
