//! Metadata values.

use alloc::vec::Vec;

use super::reader::Reader;
use crate::budget::Budget;
use crate::error::{KeyFault, Name};
use crate::{Error, Result};

/// Type of a metadata value, numbered as in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// 0
    U8,
    /// 1
    I8,
    /// 2
    U16,
    /// 3
    I16,
    /// 4
    U32,
    /// 5
    I32,
    /// 6
    F32,
    /// 7
    Bool,
    /// 8
    String,
    /// 9
    Array,
    /// 10
    U64,
    /// 11
    I64,
    /// 12
    F64,
}

impl ValueType {
    fn from_number(number: u32) -> Option<Self> {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64].get(number as usize).copied()
    }

    /// Bytes of a value; `None` for strings and arrays.
    fn size(self) -> Option<u64> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }
}

/// A metadata value; numbers are widened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// A floating-point number of either width.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string; not checked to be UTF-8.
    String(&'a [u8]),
    /// An array.
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    pub(super) fn parse(reader: &mut Reader<'a>, key: Name) -> Result<Self> {
        const PART: &str = "a metadata value";
        let number = reader.u32(PART)?;
        let ty =
            ValueType::from_number(number).ok_or(Error::Key { key, fault: KeyFault::UnknownType(number) })?;
        Ok(match ty {
            ValueType::U8 => Value::Unsigned(u8::from_le_bytes(reader.array(PART)?).into()),
            ValueType::U16 => Value::Unsigned(u16::from_le_bytes(reader.array(PART)?).into()),
            ValueType::U32 => Value::Unsigned(u32::from_le_bytes(reader.array(PART)?).into()),
            ValueType::U64 => Value::Unsigned(u64::from_le_bytes(reader.array(PART)?)),
            ValueType::I8 => Value::Signed(i8::from_le_bytes(reader.array(PART)?).into()),
            ValueType::I16 => Value::Signed(i16::from_le_bytes(reader.array(PART)?).into()),
            ValueType::I32 => Value::Signed(i32::from_le_bytes(reader.array(PART)?).into()),
            ValueType::I64 => Value::Signed(i64::from_le_bytes(reader.array(PART)?)),
            ValueType::F32 => Value::Float(f32::from_le_bytes(reader.array(PART)?).into()),
            ValueType::F64 => Value::Float(f64::from_le_bytes(reader.array(PART)?)),
            ValueType::Bool => match reader.array(PART)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(Error::Key { key, fault: KeyFault::OutOfRange(other.into()) }),
            },
            ValueType::String => Value::String(reader.string(PART, u64::MAX)?),
            ValueType::Array => Value::Array(Array::parse(reader, key)?),
        })
    }

    /// The number, if it is a non-negative integer.
    pub fn as_unsigned(&self) -> Option<u64> {
        match *self {
            Value::Unsigned(value) => Some(value),
            Value::Signed(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The number, if it is a floating-point one.
    pub fn as_float(&self) -> Option<f32> {
        if let Value::Float(value) = *self { Some(value as f32) } else { None }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(value) = *self { Some(value) } else { None }
    }

    /// The string's bytes, if it is one.
    pub fn as_string(&self) -> Option<&'a [u8]> {
        if let Value::String(value) = *self { Some(value) } else { None }
    }

    /// The array, if it is one.
    pub fn as_array(&self) -> Option<Array<'a>> {
        if let Value::Array(value) = *self { Some(value) } else { None }
    }
}

/// An array of scalars or strings, in place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    /// Type of the elements.
    pub element: ValueType,
    /// Number of elements.
    pub count: usize,
    /// The elements as they are in the file.
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    fn parse(reader: &mut Reader<'a>, key: Name) -> Result<Self> {
        const PART: &str = "a metadata array";
        let number = reader.u32(PART)?;
        let element =
            ValueType::from_number(number).ok_or(Error::Key { key, fault: KeyFault::UnknownType(number) })?;
        let count = reader.u64(PART)?;
        let truncated = Error::Truncated { part: PART, offset: reader.position() };
        let bytes = match element {
            // llama.cpp writes none and reads none.
            ValueType::Array => return Err(Error::Key { key, fault: KeyFault::Nested }),
            ValueType::String => {
                let mut walk = reader.clone();
                for _ in 0..count {
                    walk.string(PART, u64::MAX).map_err(|_| truncated.clone())?;
                }
                reader.bytes(PART, (walk.position() - reader.position()) as u64)?
            }
            scalar => {
                let size = scalar.size().and_then(|size| size.checked_mul(count)).ok_or(truncated)?;
                reader.bytes(PART, size)?
            }
        };
        Ok(Array { element, count: count as usize, bytes })
    }

    /// The elements as `i32`, if that is their type.
    pub fn as_i32(&self) -> Option<impl Iterator<Item = i32> + 'a> {
        let words = self.bytes.as_chunks::<4>().0;
        (self.element == ValueType::I32).then(|| words.iter().map(|word| i32::from_le_bytes(*word)))
    }

    /// The elements as `f32`, if that is their type.
    pub fn as_f32(&self) -> Option<impl Iterator<Item = f32> + 'a> {
        let words = self.bytes.as_chunks::<4>().0;
        (self.element == ValueType::F32).then(|| words.iter().map(|word| f32::from_le_bytes(*word)))
    }

    /// Element `index` as `f32`, if that is the elements' type.
    pub fn f32_at(&self, index: usize) -> Option<f32> {
        let word = self.bytes.as_chunks().0.get(index)?;
        (self.element == ValueType::F32).then(|| f32::from_le_bytes(*word))
    }

    /// Indexes the strings for random access, at four bytes each.
    pub(crate) fn index_strings(&self, budget: &mut Budget) -> Result<Option<StringArray<'a>>> {
        if self.element != ValueType::String {
            return Ok(None);
        }
        let mut starts = budget.reserve(self.count)?;
        let mut reader = Reader::new(self.bytes);
        for _ in 0..self.count {
            let start = reader.position() as u64;
            starts.push(u32::try_from(start).map_err(|_| Error::TooMany {
                what: "bytes in an array of strings",
                count: self.bytes.len() as u64,
                limit: u32::MAX.into(),
            })?);
            reader.string("a metadata array", u64::MAX)?;
        }
        Ok(Some(StringArray { bytes: self.bytes, starts }))
    }
}

/// An array of strings with an index.
#[derive(Debug, Default)]
pub struct StringArray<'a> {
    bytes: &'a [u8],
    /// Where each string's length is, in `bytes`.
    starts: Vec<u32>,
}

impl<'a> StringArray<'a> {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Tells whether there is none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The bytes of string `index`; not checked to be UTF-8.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        let start = *self.starts.get(index)? as usize;
        Reader::new(self.bytes.get(start..)?).string("", u64::MAX).ok()
    }
}
