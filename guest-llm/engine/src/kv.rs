//! Keys and values of a context, in chunks of 16 tokens from a block pool.
//!
//! A chunk holds the keys and values of all layers for [`CHUNK_TOKENS`] consecutive tokens in one contiguous block, so
//! that it can be compressed, sealed or written out as a unit; within it, each layer is contiguous too. Layout of a
//! chunk: `[layer][kv head][token][element]` keys, then the same of values, per layer. A context is a table of blocks in
//! token order. Finding a row is O(1).

use alloc::vec::Vec;
use core::ops::Range;

use crate::budget::Budget;
use crate::{Error, Result};

pub use crate::kernels::{KvFormat, UnknownKvFormat};

/// Tokens per chunk.
pub const CHUNK_TOKENS: usize = 16;

/// Shape of a token's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub format: KvFormat,
    pub layers: usize,
    pub heads: usize,
    /// Elements of a key.
    pub key_length: usize,
    /// Elements of a value.
    pub value_length: usize,
}

impl KvShape {
    fn key_bytes(&self) -> usize {
        self.format.row_bytes(self.key_length)
    }

    fn value_bytes(&self) -> usize {
        self.format.row_bytes(self.value_length)
    }

    /// Bytes of a layer's part of a chunk.
    fn layer_bytes(&self) -> usize {
        CHUNK_TOKENS * self.heads * (self.key_bytes() + self.value_bytes())
    }

    /// Bytes of a chunk, if that is a number at all.
    fn chunk_bytes(&self) -> Option<usize> {
        self.layer_bytes().checked_mul(self.layers)
    }
}

/// A fixed number of equal blocks of memory.
#[derive(Debug)]
struct BlockPool {
    memory: Vec<u8>,
    block_bytes: usize,
    free: Vec<u32>,
}

impl BlockPool {
    fn new(block_bytes: usize, count: usize, budget: &mut Budget) -> Result<Self> {
        let bytes = block_bytes.saturating_mul(count);
        let memory = budget.filled(0, bytes)?;
        let mut free = budget.reserve(count)?;
        free.extend((0..count as u32).rev());
        Ok(BlockPool { memory, block_bytes, free })
    }

    fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    fn give_back(&mut self, block: u32) {
        self.free.push(block);
    }

    fn start(&self, block: u32) -> usize {
        block as usize * self.block_bytes
    }
}

/// The keys and values of one context.
#[derive(Debug)]
pub(crate) struct KvCache {
    shape: KvShape,
    pool: BlockPool,
    table: Vec<u32>,
}

impl KvCache {
    /// Bytes that [`KvCache::new`] allocates.
    pub fn required_bytes(shape: &KvShape, context: usize) -> Option<usize> {
        let chunks = context.div_ceil(CHUNK_TOKENS);
        shape.chunk_bytes()?.checked_add(2 * size_of::<u32>())?.checked_mul(chunks)
    }

    /// Allocates for `context` tokens.
    pub fn new(shape: KvShape, context: usize, budget: &mut Budget) -> Result<Self> {
        let chunks = context.div_ceil(CHUNK_TOKENS);
        let block_bytes = shape.chunk_bytes().unwrap_or(usize::MAX);
        let pool = BlockPool::new(block_bytes, chunks, budget)?;
        Ok(KvCache { shape, pool, table: budget.reserve(chunks)? })
    }

    /// Gives back all blocks but those that the first `tokens` tokens need.
    pub fn truncate(&mut self, tokens: usize) {
        while self.table.len() > tokens.div_ceil(CHUNK_TOKENS)
            && let Some(block) = self.table.pop()
        {
            self.pool.give_back(block);
        }
    }

    /// Gives back the blocks of some chunks; those behind them move up.
    pub fn remove(&mut self, chunks: Range<usize>) {
        let end = chunks.end.min(self.table.len());
        for block in self.table.drain(chunks.start.min(end)..end) {
            self.pool.give_back(block);
        }
    }

    /// Has `change` rewrite every key, of all layers and heads, of the tokens from `first`, the first of a chunk, to `end`.
    /// `key` is room for one.
    pub fn rewrite_keys(&mut self, first: usize, end: usize, key: &mut [f32], change: impl Fn(&mut [f32])) {
        let KvShape { format, layers, heads, .. } = self.shape;
        let row_bytes = self.shape.key_bytes();
        for chunk in first / CHUNK_TOKENS..end.div_ceil(CHUNK_TOKENS) {
            let count = (end - chunk * CHUNK_TOKENS).min(CHUNK_TOKENS);
            for layer in 0..layers {
                let range = self.layer_range(chunk, layer).unwrap_or_default();
                let part = self.pool.memory.get_mut(range).unwrap_or_default();
                let rows = part.chunks_exact_mut(row_bytes.max(1)).take(CHUNK_TOKENS * heads);
                for (_, row) in rows.enumerate().filter(|(index, _)| index % CHUNK_TOKENS < count) {
                    format.load(row, key);
                    change(key);
                    format.store(key, row);
                }
            }
        }
    }

    /// Takes the blocks that the first `tokens` tokens need.
    pub fn extend_to(&mut self, tokens: usize) -> Result<()> {
        while self.table.len() * CHUNK_TOKENS < tokens {
            let left = self.table.len() * CHUNK_TOKENS;
            self.table.push(self.pool.take().ok_or(Error::ContextFull { tokens, left })?);
        }
        Ok(())
    }

    /// Stores the keys and values (all heads, one after another) of the token at `position` in `layer`.
    pub fn store(&mut self, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        let KvShape { format, heads, key_length, value_length, .. } = self.shape;
        let token = position % CHUNK_TOKENS;
        let (key_bytes, value_bytes) = (self.shape.key_bytes(), self.shape.value_bytes());
        let Some(range) = self.layer_range(position / CHUNK_TOKENS, layer) else { return };
        let part = self.pool.memory.get_mut(range).unwrap_or_default();
        let (key_part, value_part) = part.split_at_mut(CHUNK_TOKENS * heads * key_bytes);
        let rows = |part| <[u8]>::chunks_exact_mut(part, key_bytes.max(1)).skip(token).step_by(CHUNK_TOKENS);
        for (row, key) in rows(key_part).zip(keys.chunks_exact(key_length.max(1))) {
            format.store(key, row);
        }
        let rows = value_part.chunks_exact_mut(value_bytes.max(1)).skip(token).step_by(CHUNK_TOKENS);
        for (row, value) in rows.zip(values.chunks_exact(value_length.max(1))) {
            format.store(value, row);
        }
    }

    /// The stored keys and values of `head` in one chunk of `layer`: [`CHUNK_TOKENS`] rows each.
    pub fn rows(&self, chunk: usize, layer: usize, head: usize) -> (&[u8], &[u8]) {
        let (key_bytes, value_bytes) = (self.shape.key_bytes(), self.shape.value_bytes());
        let range = self.layer_range(chunk, layer).unwrap_or_default();
        let part = self.pool.memory.get(range).unwrap_or_default();
        let (keys, values) =
            part.split_at_checked(CHUNK_TOKENS * self.shape.heads * key_bytes).unwrap_or_default();
        let keys = keys.chunks_exact((CHUNK_TOKENS * key_bytes).max(1)).nth(head);
        let values = values.chunks_exact((CHUNK_TOKENS * value_bytes).max(1)).nth(head);
        (keys.unwrap_or_default(), values.unwrap_or_default())
    }

    /// How the rows are stored.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Bytes from one block to the next.
    pub fn block_bytes(&self) -> usize {
        self.pool.block_bytes
    }

    /// Where in [`KvCache::memory`] the first heads' key and value of the token at `position` are, and the bytes from head to head.
    pub fn places(&self, layer: usize, position: usize) -> Option<[(usize, usize); 2]> {
        let (key_bytes, value_bytes) = (self.shape.key_bytes(), self.shape.value_bytes());
        let range = self.layer_range(position / CHUNK_TOKENS, layer)?;
        let token = position % CHUNK_TOKENS;
        let values = range.start + CHUNK_TOKENS * self.shape.heads * key_bytes;
        Some([
            (range.start + token * key_bytes, CHUNK_TOKENS * key_bytes),
            (values + token * value_bytes, CHUNK_TOKENS * value_bytes),
        ])
    }

    /// Bytes from the start of a block to a layer's part.
    pub fn layer_offset(&self, layer: usize) -> usize {
        layer * self.shape.layer_bytes()
    }

    /// All blocks, and the numbers of those that hold the context's chunks.
    pub fn memory(&mut self) -> (&mut [u8], &mut [u32]) {
        (&mut self.pool.memory, &mut self.table)
    }

    fn layer_range(&self, chunk: usize, layer: usize) -> Option<Range<usize>> {
        let start = self.pool.start(*self.table.get(chunk)?) + layer * self.shape.layer_bytes();
        Some(start..start + self.shape.layer_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const SHAPE: KvShape =
        KvShape { format: KvFormat::F32, layers: 2, heads: 3, key_length: 4, value_length: 2 };

    fn row(bytes: &[u8], token: usize, length: usize) -> Vec<f32> {
        bytes.as_chunks().0[token * length..][..length].iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    #[test]
    fn every_row_comes_back_from_where_it_was_stored() {
        let mut budget = Budget::new(usize::MAX);
        let mut kv = KvCache::new(SHAPE, 40, &mut budget).unwrap();
        assert_eq!(Some(budget.used()), KvCache::required_bytes(&SHAPE, 40));
        let value =
            |layer, position, head, element| (((layer * 100 + position) * 10 + head) * 10 + element) as f32;
        for round in 0..2 {
            kv.extend_to(40).unwrap();
            for layer in 0..2 {
                for position in 0..40 {
                    let keys: Vec<f32> =
                        (0..12).map(|i| value(layer, position + round, i / 4, i % 4)).collect();
                    let values: Vec<f32> =
                        (0..6).map(|i| -value(layer, position + round, i / 2, i % 2)).collect();
                    kv.store(layer, position, &keys, &values);
                }
            }
            for layer in 0..2 {
                for position in 0..40 {
                    for head in 0..3 {
                        let (keys, values) = kv.rows(position / 16, layer, head);
                        let key: Vec<f32> = (0..4).map(|i| value(layer, position + round, head, i)).collect();
                        assert_eq!(row(keys, position % 16, 4), key);
                        let expected: Vec<f32> =
                            (0..2).map(|i| -value(layer, position + round, head, i)).collect();
                        assert_eq!(row(values, position % 16, 2), expected);
                    }
                }
            }
            kv.truncate(0);
        }
    }

    #[test]
    fn chunks_that_are_removed_come_back_to_the_pool_and_keys_are_rewritten_where_they_move() {
        let mut kv = KvCache::new(SHAPE, 64, &mut Budget::new(usize::MAX)).unwrap();
        kv.extend_to(55).unwrap();
        for layer in 0..2 {
            for position in 0..55 {
                let keys: Vec<f32> =
                    (0..12).map(|i| (position * 100 + layer * 50 + i / 4 * 10) as f32).collect();
                kv.store(layer, position, &keys, &[position as f32; 6]);
            }
        }
        kv.remove(1..3);
        kv.rewrite_keys(16, 23, &mut [0.0; 4], |key| key.iter_mut().for_each(|k| *k += 0.5));
        for position in 0..23 {
            let (old, change) = if position < 16 { (position, 0.0) } else { (position + 32, 0.5) };
            for (layer, head) in [(0, 0), (0, 2), (1, 1)] {
                let (keys, values) = kv.rows(position / 16, layer, head);
                let expected = (old * 100 + layer * 50 + head * 10) as f32 + change;
                assert_eq!(row(keys, position % 16, 4), [expected; 4], "{position} {layer} {head}");
                assert_eq!(row(values, position % 16, 2), [old as f32; 2]);
            }
        }
        // Both blocks are free again.
        kv.extend_to(64).unwrap();
        kv.remove(2..9);
        assert_eq!(kv.table.len(), 2);
        kv.extend_to(64).unwrap();
        assert!(kv.extend_to(65).is_err());
    }

    #[test]
    fn the_pool_is_as_large_as_asked_for() {
        let mut kv = KvCache::new(SHAPE, 33, &mut Budget::new(usize::MAX)).unwrap();
        kv.extend_to(48).unwrap();
        assert_eq!(kv.extend_to(49), Err(Error::ContextFull { tokens: 49, left: 48 }));
        assert_eq!(kv.rows(3, 0, 0), (&[][..], &[][..]));
        for (tokens, chunks) in [(33, 3), (32, 2), (50, 2), (1, 1), (0, 0)] {
            kv.truncate(tokens);
            assert_eq!(kv.table.len(), chunks, "{tokens}");
        }
        kv.extend_to(48).unwrap();
    }
}
