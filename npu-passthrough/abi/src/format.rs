//! The block formats of ggml, by their numbers (`enum ggml_type`): all that the engine computes with.

/// Weight formats, a bit for each number.
pub const FORMATS: u64 = Format::mask(&Format::WEIGHTS);
/// Formats of activations, a bit for each number.
pub const INPUT_FORMATS: u64 = Format::mask(&[Format::F32, Format::Q8_0, Format::Q8_1, Format::Q8_K]);

/// A block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// ggml's number.
    pub number: u32,
    /// Elements of a block.
    pub block_length: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
}

impl Format {
    /// Single precision.
    pub const F32: Self = Self::new(0, 1, 4);
    /// 32 signed bytes after a scale in half precision. As activations: for weights of 32 without a minimum.
    pub const Q8_0: Self = Self::new(8, 32, 34);
    /// Scale and scaled sum in half precision, 32 signed bytes. Activations only, for weights of 32.
    pub const Q8_1: Self = Self::new(9, 32, 36);
    /// Scale in single precision, 256 signed bytes, their 16 sums. Activations only, for weights of 256.
    pub const Q8_K: Self = Self::new(15, 256, 292);
    /// All formats of weights.
    pub const WEIGHTS: [Self; 11] = [
        Self::F32,
        Self::new(1, 1, 2),      // F16
        Self::new(2, 32, 18),    // Q4_0
        Self::new(3, 32, 20),    // Q4_1
        Self::new(6, 32, 22),    // Q5_0
        Self::new(7, 32, 24),    // Q5_1
        Self::Q8_0,              //
        Self::new(12, 256, 144), // Q4_K
        Self::new(13, 256, 176), // Q5_K
        Self::new(14, 256, 210), // Q6_K
        Self::new(30, 1, 2),     // BF16
    ];

    const fn new(number: u32, block_length: u64, block_bytes: u64) -> Self {
        Format { number, block_length, block_bytes }
    }

    const fn mask(formats: &[Self]) -> u64 {
        let (mut mask, mut rest) = (0, formats);
        while let [first, others @ ..] = rest {
            mask |= 1 << first.number;
            rest = others;
        }
        mask
    }

    /// Finds a format of weights.
    pub fn of_weights(number: u32) -> Option<Self> {
        Self::WEIGHTS.into_iter().find(|format| format.number == number)
    }

    /// Finds the format of activations for weights in `weights`: F32 goes with all, quants with weights in blocks as long.
    pub fn of_input(number: u32, weights: Self) -> Option<Self> {
        // Q4_1 and Q5_1 have minimums, which want the sum that only Q8_1 has.
        let has_minimum = matches!(weights.number, 3 | 7);
        [Self::F32, Self::Q8_0, Self::Q8_1, Self::Q8_K].into_iter().find(|format| {
            format.number == number
                && match *format {
                    Self::F32 => true,
                    Self::Q8_0 => weights.block_length == 32 && !has_minimum,
                    _ => weights.block_length == format.block_length,
                }
        })
    }

    /// Bytes of a row of `columns`; none if that is not a positive number of whole blocks, or too many.
    pub fn row_bytes(self, columns: u32) -> Option<u64> {
        let (columns, length) = (u64::from(columns), self.block_length);
        let is_whole = columns > 0 && columns.is_multiple_of(length);
        is_whole.then(|| (columns / length).checked_mul(self.block_bytes)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_whole_blocks() {
        let q4_k = Format::of_weights(12).unwrap();
        assert_eq!(q4_k.row_bytes(512), Some(288));
        assert_eq!(q4_k.row_bytes(0), None);
        assert_eq!(q4_k.row_bytes(511), None);
        assert_eq!(Format::F32.row_bytes(u32::MAX), Some(u64::from(u32::MAX) * 4));
    }

    #[test]
    fn quantised_activations_go_with_weights_of_their_kind() {
        for weights in Format::WEIGHTS {
            let goes = |number| Format::of_input(number, weights).is_some();
            let expected = match weights.number {
                0 | 1 | 30 => [true, false, false, false],
                3 | 7 => [true, false, true, false],
                12..=14 => [true, false, false, true],
                _ => [true, true, true, false],
            };
            assert_eq!([0, 8, 9, 15].map(goes), expected, "{weights:?}");
            assert!(!goes(1) && !goes(99));
        }
        assert_eq!(Format::of_weights(9), None);
        assert_eq!((FORMATS, INPUT_FORMATS), (0x4000_71cf, 0x8301));
    }
}
