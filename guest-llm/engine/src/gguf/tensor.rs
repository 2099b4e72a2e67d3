//! Tensor descriptions.

use super::reader::Reader;
use crate::error::{Name, TensorFault};
use crate::{Error, Result};

/// Storage format of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// Blocks of 32: an F16 scale, 4-bit quants.
    Q4_0,
    /// Blocks of 32: an F16 scale and minimum, 4-bit quants.
    Q4_1,
    /// Blocks of 32: an F16 scale, 5-bit quants.
    Q5_0,
    /// Blocks of 32: an F16 scale and minimum, 5-bit quants.
    Q5_1,
    /// Blocks of 32: an F16 scale, then 32 signed bytes.
    Q8_0,
    /// Blocks of 256 in eight parts with 6-bit scales and minimums: 4-bit quants.
    Q4K,
    /// Blocks of 256 in eight parts with 6-bit scales and minimums: 5-bit quants.
    Q5K,
    /// Blocks of 256 in sixteen parts with 8-bit scales: 6-bit quants.
    Q6K,
}

impl TensorType {
    /// All types, in the order of ggml's numbers.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Bf16,
    ];

    /// Returns the type that ggml numbers so, if the engine computes with it.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.number() == number)
    }

    /// The number that ggml gives it (`enum ggml_type`).
    pub const fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// The name that ggml gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Whether products with it take a sum of the activations that only some quantised forms have.
    pub(crate) const fn has_minimum(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1)
    }

    /// Elements per block.
    pub const fn block_length(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 4 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4K => 4 + 12 + 128,
            Self::Q5K => 4 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }
}

/// A tensor: its shape and, in place, its data.
#[derive(Clone, Copy, Debug)]
pub struct TensorInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// How its elements are stored.
    pub ty: TensorType,
    /// Elements per row (the innermost dimension).
    pub row_length: usize,
    /// Rows: the product of the other dimensions.
    pub row_count: usize,
    /// Number of dimensions in the file, 1 to 4.
    pub dimension_count: u32,
    /// The data, of exactly the size that shape and type imply.
    pub data: &'a [u8],
    offset: u64,
    size: u64,
}

/// Most dimensions.
const DIMENSIONS_MAX: u32 = 4;

impl<'a> TensorInfo<'a> {
    pub(super) fn parse(reader: &mut Reader<'a>, alignment: u64) -> Result<Self> {
        const PART: &str = "a tensor description";
        let bytes = reader.string(PART, u64::MAX)?;
        let fail = |fault| Error::Tensor { name: Name::new(bytes), fault };
        let name = core::str::from_utf8(bytes).map_err(|_| fail(TensorFault::BadName))?;
        if !(1..=Name::MAX).contains(&name.len()) {
            return Err(fail(TensorFault::BadName));
        }
        let dimension_count = reader.u32(PART)?;
        if !(1..=DIMENSIONS_MAX).contains(&dimension_count) {
            return Err(fail(TensorFault::DimensionCount(dimension_count)));
        }
        let row = reader.u64(PART)?;
        let mut rows = 1u64;
        let mut valid = row != 0;
        for _ in 1..dimension_count {
            let dimension = reader.u64(PART)?;
            valid &= dimension != 0;
            rows = rows.checked_mul(dimension).unwrap_or(0);
        }
        valid &= rows != 0;
        let number = reader.u32(PART)?;
        let offset = reader.u64(PART)?;
        if !valid {
            return Err(fail(TensorFault::Dimensions));
        }
        let ty = TensorType::from_number(number).ok_or_else(|| fail(TensorFault::UnsupportedType(number)))?;
        let block = ty.block_length() as u64;
        if row % block != 0 {
            return Err(fail(TensorFault::RowLength { row, block }));
        }
        let size = (row / block)
            .checked_mul(ty.block_bytes() as u64)
            .and_then(|bytes| bytes.checked_mul(rows))
            .ok_or_else(|| fail(TensorFault::Dimensions))?;
        if offset % alignment != 0 {
            return Err(fail(TensorFault::Misaligned(offset)));
        }
        let (Ok(row_length), Ok(row_count)) = (row.try_into(), rows.try_into()) else {
            return Err(fail(TensorFault::Dimensions));
        };
        Ok(TensorInfo { name, ty, row_length, row_count, dimension_count, data: &[], offset, size })
    }

    /// Finds the tensor's bytes in the file's tensor data.
    pub(super) fn attach(&mut self, data: &'a [u8]) -> Result<()> {
        let range = self
            .offset
            .checked_add(self.size)
            .and_then(|end| Some(usize::try_from(self.offset).ok()?..usize::try_from(end).ok()?));
        let fault = TensorFault::OutOfFile { offset: self.offset, size: self.size };
        self.data =
            range.and_then(|range| data.get(range)).ok_or(Error::Tensor { name: self.name.into(), fault })?;
        Ok(())
    }

    /// A tensor without a file.
    #[cfg(test)]
    pub(crate) fn for_test(ty: TensorType, row_length: usize, row_count: usize, data: &'a [u8]) -> Self {
        let size = data.len() as u64;
        TensorInfo { name: "", ty, row_length, row_count, dimension_count: 2, data, offset: 0, size }
    }

    /// Where the data starts, in bytes from the start of the file's tensor data.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}
