//! Fallible allocation within a limit that the caller sets.

use alloc::vec::Vec;

use crate::{Error, Result};

/// Bounds on what a model file may ask for. The file itself (`bytes` of [`crate::Model::load`]) is not counted.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most bytes that [`crate::Model::load`] may allocate (tensor table, vocabulary index).
    pub memory_bytes: usize,
    /// Most metadata key-value pairs.
    pub key_count: usize,
    /// Most tensors.
    pub tensor_count: usize,
    /// Most tokens in the vocabulary.
    pub token_count: usize,
    /// Longest text that may be encoded, in bytes.
    pub text_bytes: usize,
    /// Most special tokens; encoding costs prompt length times this in the worst case.
    pub special_token_count: usize,
}

impl Default for Limits {
    /// 64 MiB, and counts above every model in circulation.
    fn default() -> Self {
        Limits {
            memory_bytes: 64 << 20,
            key_count: 4096,
            tensor_count: 65536,
            token_count: 1 << 20,
            text_bytes: 1 << 20,
            special_token_count: 16384,
        }
    }
}

/// Counts allocated bytes against a limit.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: usize,
}

impl Budget {
    /// Starts at zero bytes used of `limit`.
    pub fn new(limit: usize) -> Self {
        Budget { limit, used: 0 }
    }

    /// Bytes allocated so far.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Returns an empty vector with room for exactly `count` elements.
    pub fn reserve<T>(&mut self, count: usize) -> Result<Vec<T>> {
        let bytes = count.checked_mul(size_of::<T>());
        let used = bytes.and_then(|bytes| self.used.checked_add(bytes)).filter(|used| *used <= self.limit);
        let (Some(bytes), Some(used)) = (bytes, used) else {
            return Err(Error::MemoryLimit { bytes: bytes.unwrap_or(usize::MAX), limit: self.limit });
        };
        let mut vec = Vec::new();
        vec.try_reserve_exact(count).map_err(|_| Error::OutOfMemory { bytes })?;
        self.used = used;
        Ok(vec)
    }

    /// Returns a vector of `count` copies of `value`.
    pub fn filled<T: Clone>(&mut self, value: T, count: usize) -> Result<Vec<T>> {
        let mut vec = self.reserve(count)?;
        vec.resize(count, value);
        Ok(vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_exceeds_the_limit_and_counts_what_does_not() {
        let mut budget = Budget::new(100);
        assert_eq!(budget.filled(7u32, 10).unwrap(), [7; 10]);
        assert_eq!(budget.used(), 40);
        assert_eq!(budget.reserve::<u32>(16).unwrap_err(), Error::MemoryLimit { bytes: 64, limit: 100 });
        assert!(matches!(budget.reserve::<u64>(usize::MAX), Err(Error::MemoryLimit { .. })));
        assert_eq!(budget.used(), 40);
        assert_eq!(budget.reserve::<u32>(15).unwrap().capacity(), 15);
    }
}
