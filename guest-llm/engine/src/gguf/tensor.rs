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
    /// Blocks of 32: an F16 scale, then 32 signed bytes.
    Q8_0,
}

impl TensorType {
    /// Returns the type that ggml numbers so, if the engine computes with it.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(TensorType::F32),
            1 => Some(TensorType::F16),
            8 => Some(TensorType::Q8_0),
            _ => None,
        }
    }

    /// Elements per block.
    pub const fn block_length(self) -> usize {
        match self {
            TensorType::F32 | TensorType::F16 => 1,
            TensorType::Q8_0 => 32,
        }
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        match self {
            TensorType::F32 => 4,
            TensorType::F16 => 2,
            TensorType::Q8_0 => 2 + 32,
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
