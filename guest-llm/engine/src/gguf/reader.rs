//! A cursor over the file's bytes.

use crate::{Error, Result};

/// Reads little-endian values; every read is bounded by the file's end.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, position: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes left.
    pub fn left(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    /// Reads `count` bytes; `part` names what they are in the error.
    pub fn bytes(&mut self, part: &'static str, count: u64) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let taken = usize::try_from(count)
            .ok()
            .and_then(|count| rest.get(..count))
            .ok_or(Error::Truncated { part, offset: self.position })?;
        self.position += taken.len();
        Ok(taken)
    }

    /// Reads a fixed number of bytes.
    pub fn array<const N: usize>(&mut self, part: &'static str) -> Result<[u8; N]> {
        let offset = self.position;
        self.bytes(part, N as u64)?.try_into().map_err(|_| Error::Truncated { part, offset })
    }

    /// Reads a `u32`.
    pub fn u32(&mut self, part: &'static str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(part)?))
    }

    /// Reads a `u64`.
    pub fn u64(&mut self, part: &'static str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(part)?))
    }

    /// Reads a string: its length in bytes as `u64`, at most `max`, then the bytes.
    pub fn string(&mut self, part: &'static str, max: u64) -> Result<&'a [u8]> {
        let length = self.u64(part)?;
        if length > max {
            return Err(Error::TooMany { what: "bytes in a name", count: length, limit: max });
        }
        self.bytes(part, length)
    }

    /// Returns what follows the next multiple of `alignment` (a power of two), if the file reaches it.
    pub fn aligned_rest(&self, alignment: u64) -> Option<&'a [u8]> {
        let start = (self.position as u64).checked_next_multiple_of(alignment)?;
        self.bytes.get(usize::try_from(start).ok()?..)
    }
}
