//! Rows of keys and values as they are stored.

use super::cpu;
use super::half::{f16_to_f32, f32_to_f16};

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvFormat {
    /// 4 bytes per element: exact, and the cheapest to read where floats are emulated.
    F32,
    /// 2 bytes per element.
    F16,
}

impl KvFormat {
    /// Bytes of a row of `length` elements.
    pub(crate) fn row_bytes(self, length: usize) -> usize {
        match self {
            KvFormat::F32 => length * 4,
            KvFormat::F16 => length * 2,
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
        }
    }

    /// Dot product of a stored row with `x`.
    pub(crate) fn dot(self, row: &[u8], x: &[f32]) -> f32 {
        match self {
            KvFormat::F32 => cpu::dot_f32(row, x),
            KvFormat::F16 => cpu::dot_f16(row, x),
        }
    }

    /// Adds `factor` times a stored row to `out`.
    pub(crate) fn add_scaled(self, factor: f32, row: &[u8], out: &mut [f32]) {
        match self {
            KvFormat::F32 => {
                for (out, bytes) in out.iter_mut().zip(row.as_chunks().0) {
                    *out += factor * f32::from_le_bytes(*bytes);
                }
            }
            KvFormat::F16 => {
                for (out, bytes) in out.iter_mut().zip(row.as_chunks().0) {
                    *out += factor * f16_to_f32(u16::from_le_bytes(*bytes));
                }
            }
        }
    }
}
