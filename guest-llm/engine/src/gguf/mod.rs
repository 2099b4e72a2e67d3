//! Parser of GGUF files, versions 2 and 3, little-endian.
//!
//! Source: the GGUF specification in the ggml repository (`docs/gguf.md`). [`Gguf::parse`] walks the file once and
//! borrows from it: keys, strings, arrays and tensor data stay where they are. It accepts tensors in any order of
//! data, and refuses what cannot be computed with: see [`crate::Error`]. Work and memory are linear in the file's size,
//! but for two sorts.

mod reader;
mod tensor;
mod value;

pub use tensor::{TensorInfo, TensorType};
pub use value::{Array, StringArray, Value, ValueType};

use alloc::vec::Vec;

use crate::budget::Budget;
use crate::error::{KeyFault, Name, TensorFault};
use crate::{Error, Limits, Result};
use reader::Reader;

const MAGIC: &[u8] = b"GGUF";
/// Keys have at most this many bytes.
const KEY_LENGTH_MAX: u64 = 65535;
/// Alignment of tensor data when `general.alignment` is absent, in bytes.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Bytes that a key-value pair takes at least: key length, a byte of key, value type, a byte of value.
const KEY_BYTES_MIN: u64 = 8 + 1 + 4 + 1;
/// Bytes that a tensor's description takes at least: name length, a byte of name, dimension count, one dimension, type,
/// offset.
const TENSOR_BYTES_MIN: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// A file's metadata and tensors.
#[derive(Debug)]
pub struct Gguf<'a> {
    version: u32,
    /// Sorted by key.
    keys: Vec<(&'a str, Value<'a>)>,
    /// Sorted by name.
    tensors: Vec<TensorInfo<'a>>,
}

impl<'a> Gguf<'a> {
    /// Parses `bytes`, allocating two tables within `limits.memory_bytes`.
    ///
    /// # Errors
    /// Everything under [`Error`] that concerns the container, keys or tensors.
    pub fn parse(bytes: &'a [u8], limits: &Limits) -> Result<Self> {
        Self::parse_within(bytes, limits, &mut Budget::new(limits.memory_bytes))
    }

    pub(crate) fn parse_within(bytes: &'a [u8], limits: &Limits, budget: &mut Budget) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        if reader.bytes("the header", MAGIC.len() as u64)? != MAGIC {
            return Err(Error::Magic);
        }
        let version = reader.u32("the header")?;
        if !matches!(version, 2 | 3) {
            return Err(Error::Version(version));
        }
        let tensor_count = reader.u64("the header")?;
        let key_count = reader.u64("the header")?;
        let key_count = within("keys", key_count, limits.key_count, reader.left() / KEY_BYTES_MIN)?;
        let tensor_count =
            within("tensors", tensor_count, limits.tensor_count, reader.left() / TENSOR_BYTES_MIN)?;

        let mut keys = budget.reserve(key_count)?;
        for _ in 0..key_count {
            keys.push(parse_key(&mut reader)?);
        }
        keys.sort_unstable_by_key(|(key, _)| *key);
        if let Some(key) = first_repeated(keys.iter().map(|(key, _)| *key)) {
            return Err(Error::Key { key: key.into(), fault: KeyFault::Duplicate });
        }
        let mut gguf = Gguf { version, keys, tensors: Vec::new() };

        let alignment = gguf.alignment()?;
        let mut tensors = budget.reserve(tensor_count)?;
        for _ in 0..tensor_count {
            tensors.push(TensorInfo::parse(&mut reader, alignment)?);
        }
        if tensor_count > 0 {
            let data = reader.aligned_rest(alignment).ok_or(Error::Truncated {
                part: "the padding before the tensor data",
                offset: reader.position(),
            })?;
            for tensor in &mut tensors {
                tensor.attach(data)?;
            }
        }
        refuse_overlaps(&mut tensors)?;
        tensors.sort_unstable_by_key(|tensor| tensor.name);
        if let Some(name) = first_repeated(tensors.iter().map(|tensor| tensor.name)) {
            return Err(Error::Tensor { name: name.into(), fault: TensorFault::Duplicate });
        }
        gguf.tensors = tensors;
        Ok(gguf)
    }

    /// The container's version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All key-value pairs, sorted by key.
    pub fn keys(&self) -> &[(&'a str, Value<'a>)] {
        &self.keys
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> &[TensorInfo<'a>] {
        &self.tensors
    }

    /// Finds the value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        let index = self.keys.binary_search_by_key(&key, |(key, _)| key).ok()?;
        self.keys.get(index).map(|(_, value)| value)
    }

    /// Finds a tensor and its place in [`Gguf::tensors`].
    pub fn tensor(&self, name: &str) -> Option<(usize, &TensorInfo<'a>)> {
        let index = self.tensors.binary_search_by_key(&name, |tensor| tensor.name).ok()?;
        Some((index, self.tensors.get(index)?))
    }

    /// Reads an unsigned number of any width; a negative one is refused.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.convert(key, Value::as_unsigned)
    }

    /// Reads a floating-point number.
    pub fn float(&self, key: &str) -> Result<Option<f32>> {
        self.convert(key, Value::as_float)
    }

    /// Reads a truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.convert(key, Value::as_bool)
    }

    /// Reads a string, which GGUF defines to be UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(bytes) = self.convert(key, Value::as_string)? else { return Ok(None) };
        let text = core::str::from_utf8(bytes)
            .map_err(|_| Error::Key { key: key.into(), fault: KeyFault::NotUtf8 })?;
        Ok(Some(text))
    }

    /// Reads an array.
    pub fn array(&self, key: &str) -> Result<Option<Array<'a>>> {
        self.convert(key, Value::as_array)
    }

    fn convert<T>(&self, key: &str, f: impl Fn(&Value<'a>) -> Option<T>) -> Result<Option<T>> {
        let wrong = || Error::Key { key: key.into(), fault: KeyFault::WrongType };
        self.get(key).map(|value| f(value).ok_or_else(wrong)).transpose()
    }

    fn alignment(&self) -> Result<u64> {
        const KEY: &str = "general.alignment";
        let alignment = self.unsigned(KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() || !(8..=1 << 20).contains(&alignment) {
            return Err(Error::Key { key: KEY.into(), fault: KeyFault::OutOfRange(alignment) });
        }
        Ok(alignment)
    }
}

/// Checks a count against the caller's limit and against what the rest of the file could hold.
fn within(what: &'static str, count: u64, limit: usize, possible: u64) -> Result<usize> {
    let limit = (limit as u64).min(possible);
    if count > limit {
        return Err(Error::TooMany { what, count, limit });
    }
    Ok(count as usize)
}

fn parse_key<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, Value<'a>)> {
    let bytes = reader.string("a key", KEY_LENGTH_MAX)?;
    let name = Name::new(bytes);
    let key = core::str::from_utf8(bytes).map_err(|_| Error::Key { key: name, fault: KeyFault::NotUtf8 })?;
    let value = Value::parse(reader, name)?;
    Ok((key, value))
}

fn first_repeated<'k>(sorted: impl Iterator<Item = &'k str> + Clone) -> Option<&'k str> {
    sorted.clone().zip(sorted.skip(1)).find(|(a, b)| a == b).map(|(a, _)| a)
}

/// Refuses tensors that share bytes; sorts by offset to find them.
fn refuse_overlaps(tensors: &mut [TensorInfo<'_>]) -> Result<()> {
    tensors.sort_unstable_by_key(|tensor| tensor.offset());
    for pair in tensors.windows(2) {
        if let [a, b] = pair
            && a.offset().saturating_add(a.data.len() as u64) > b.offset()
        {
            return Err(Error::Tensor { name: b.name.into(), fault: TensorFault::Overlaps(b.offset()) });
        }
    }
    Ok(())
}
