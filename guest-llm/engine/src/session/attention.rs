//! Attention of a batch over a context, chunk by chunk.
//!
//! Queries that share keys and values (the query heads of a group, and neighbouring tokens) go over the chunks together, so
//! that a chunk is read and converted once for all of them. Scores of a chunk's tokens are used as soon as they are known, with a running softmax
//! (Milakov and Gimelshein: "Online normalizer calculation for softmax", 2018), so that nothing of the context's length
//! ever exists. What is computed for a query, and in which order, does not depend on the queries beside it.

use alloc::vec::Vec;

use spin::mutex::SpinMutex;

use crate::Result;
use crate::budget::Budget;
use crate::kernels;
use crate::kernels::{BLOCK, Quantised, Query, Step, TILE};
use crate::kv::{CHUNK_TOKENS, KvCache, KvFormat, KvShape};
use crate::parallel::{Output, Parallel, Split, take_free};

/// Queries of a batch, and where their results go. Heads lie one after another, token by token.
pub struct Batch<'b> {
    /// Query heads of a token.
    pub heads: usize,
    /// Tokens that the first token of the batch sees, itself included; each other one sees one more.
    pub length: usize,
    /// Rotated queries.
    pub queries: &'b [f32],
    /// For each query the weighted mean of the values that it sees.
    pub outputs: &'b mut [f32],
}

/// Computes, for each query head of each token of a batch, the mean of the values so far weighted by softmax of their keys'
/// products with the query. The queries are shared out to threads, of which each takes a place of `scratch`.
pub fn attend(
    kv: &KvCache,
    layer: usize,
    batch: Batch<'_>,
    scratch: &[SpinMutex<AttentionScratch>],
    parallel: &dyn Parallel,
) {
    let shape = kv.shape();
    let key_length = shape.key_length.max(1);
    let heads = batch.heads.max(1);
    let group = (heads / shape.heads.max(1)).max(1);
    let tokens = batch.queries.len() / key_length / heads;
    // Queries are numbered by key head, then token, then place in the group.
    let per_head = (tokens * group).max(1);
    let count = per_head * shape.heads;
    let cost = batch.length.saturating_mul(key_length + shape.value_length);
    // Parts of whole tiles, unless that leaves threads without work.
    let grain = [TILE, group].into_iter().find(|grain| count / grain >= parallel.width()).unwrap_or(1);
    let output = Output::new(batch.outputs);
    Split::new(parallel, count, grain, cost).run(parallel, &|_, part| {
        let Some(mut scratch) = take_free(scratch) else { return };
        let mut next = part.start;
        while next < part.end {
            let head = next / per_head;
            let end = part.end.min(next + TILE).min((head + 1) * per_head);
            let queries = (next..end).map(|query| {
                let (token, place) = (query % per_head / group, query % group);
                (token * heads + head * group + place, batch.length + token)
            });
            scratch.attend(shape, &|chunk| kv.rows(chunk, layer, head), queries, batch.queries, output);
            next = end;
        }
    });
}

/// Scratch of one thread.
#[derive(Debug)]
pub struct AttentionScratch {
    /// Keys or values of a chunk as floats.
    rows: Vec<f32>,
    /// Weighted sums of values so far, a row per query.
    sums: Vec<f32>,
    /// Quantised queries, if keys are.
    quants: Vec<Quantised>,
}

/// Elements of each of the scratch's buffers, in order, for batches that have `queries` for each key head.
fn lengths(shape: &KvShape, queries: usize) -> Option<[usize; 3]> {
    let queries = queries.min(TILE);
    let longest = shape.key_length.max(shape.value_length);
    let (rows, quants) = match shape.format {
        KvFormat::F32 => (0, 0),
        KvFormat::F16 => (CHUNK_TOKENS.checked_mul(longest)?, 0),
        KvFormat::Q8_0 => {
            (CHUNK_TOKENS.checked_mul(longest)?, queries.checked_mul(shape.key_length.div_ceil(BLOCK))?)
        }
    };
    Some([rows, queries.checked_mul(shape.value_length)?, quants])
}

impl AttentionScratch {
    /// Bytes that [`AttentionScratch::new`] allocates.
    pub fn required_bytes(shape: &KvShape, queries: usize) -> Option<usize> {
        let [rows, sums, quants] = lengths(shape, queries)?;
        let floats = rows.checked_add(sums)?.checked_mul(size_of::<f32>())?;
        floats.checked_add(quants.checked_mul(size_of::<Quantised>())?)
    }

    /// Allocates for batches that have at most `queries` for each key head.
    pub fn new(shape: &KvShape, queries: usize, budget: &mut Budget) -> Result<Self> {
        let [rows, sums, quants] = lengths(shape, queries).unwrap_or([usize::MAX; 3]);
        Ok(AttentionScratch {
            rows: budget.filled(0.0, rows)?,
            sums: budget.filled(0.0, sums)?,
            quants: budget.filled(Quantised::ZERO, quants)?,
        })
    }

    /// Attention of at most [`TILE`] queries over keys and values of a layer's head, of which `rows` gives a chunk's. A query is its
    /// row in `vectors` and the tokens that it sees.
    pub fn attend<'c>(
        &mut self,
        shape: &KvShape,
        rows: &dyn Fn(usize) -> (&'c [u8], &'c [u8]),
        queries: impl Iterator<Item = (usize, usize)>,
        vectors: &[f32],
        output: Output<'_>,
    ) {
        let (key_length, value_length) = (shape.key_length.max(1), shape.value_length.max(1));
        let mut tile = [Query::default(); TILE];
        let mut places = [(0, 0); TILE];
        let mut count = 0;
        for ((query, place), (row, length)) in tile.iter_mut().zip(&mut places).zip(queries) {
            let vector = vectors.get(row * key_length..(row + 1) * key_length).unwrap_or_default();
            *query = Query { vector, greatest: f32::NEG_INFINITY, ..*query };
            *place = (row, length);
            count += 1;
        }
        let queries = tile.get_mut(..count).unwrap_or_default();
        let places = places.get(..count).unwrap_or_default();
        if shape.format == KvFormat::Q8_0 {
            let blocks = queries.iter().flat_map(|query| query.vector.as_chunks::<BLOCK>().0);
            blocks.zip(&mut self.quants).for_each(|(block, quants)| quants.set(block));
        }
        self.sums.fill(0.0);
        let longest = places.iter().map(|(_, length)| *length).max().unwrap_or(0);
        for chunk in 0..longest.div_ceil(CHUNK_TOKENS) {
            let (keys, values) = rows(chunk);
            // Queries of earlier tokens may see fewer tokens of a chunk, or none.
            for (query, (_, length)) in queries.iter_mut().zip(places) {
                query.visible = length.saturating_sub(chunk * CHUNK_TOKENS).min(CHUNK_TOKENS);
            }
            kernels::attend(&mut Step {
                format: shape.format,
                key_length,
                value_length,
                factor: 1.0 / libm::sqrtf(key_length as f32),
                keys,
                values,
                queries,
                quants: &self.quants,
                sums: &mut self.sums,
                rows: &mut self.rows,
            });
        }
        let sums = self.sums.chunks_exact(value_length);
        for ((query, (row, _)), sums) in queries.iter().zip(places).zip(sums) {
            let inverse = 1.0 / query.total;
            for (i, sum) in sums.iter().enumerate() {
                output.set(row * value_length + i, sum * inverse);
            }
        }
    }

    /// Makes it all zero.
    pub fn scrub(&mut self) {
        self.rows.fill(0.0);
        self.sums.fill(0.0);
        self.quants.fill(Quantised::ZERO);
    }

    /// Whether it is all zero.
    pub fn is_scrubbed(&self) -> bool {
        let quants = self.quants.iter().all(|block| {
            block.quants == [0; BLOCK] && block.sum == 0 && [block.scale, block.total] == [0.0; 2]
        });
        quants && self.rows.iter().chain(&self.sums).all(|value| *value == 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::Serial;
    use std::vec;
    use std::vec::Vec;

    /// A reproducible sequence of numbers in [-1, 1).
    struct Numbers(u64);

    impl Numbers {
        fn floats(&mut self, count: usize) -> Vec<f32> {
            let mut next = || {
                self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..count).map(|_| next()).collect()
        }
    }

    /// A context of random keys and values, and random queries.
    struct Case {
        kv: KvCache,
        heads: usize,
        context: usize,
        queries: Vec<f32>,
    }

    impl Case {
        /// The queries are those of the last `tokens` of `context` tokens.
        fn new(shape: KvShape, heads: usize, context: usize, tokens: usize) -> Self {
            let mut numbers = Numbers(context as u64);
            let mut kv = KvCache::new(shape, context, &mut Budget::new(usize::MAX)).unwrap();
            kv.extend_to(context).unwrap();
            for position in 0..context {
                let keys = numbers.floats(shape.heads * shape.key_length);
                kv.store(0, position, &keys, &numbers.floats(shape.heads * shape.value_length));
            }
            let queries = numbers.floats(tokens * heads * shape.key_length);
            let queries = queries.iter().map(|query| 4.0 * query).collect();
            Case { kv, heads, context, queries }
        }

        fn tokens(&self) -> usize {
            self.queries.len() / self.heads / self.kv.shape().key_length
        }

        /// In batches of `batch` tokens.
        fn attend(&self, batch: usize, parallel: &dyn Parallel) -> Vec<f32> {
            let shape = self.kv.shape();
            let (query_length, value_length) =
                (self.heads * shape.key_length, self.heads * shape.value_length);
            let mut budget = Budget::new(usize::MAX);
            let scratch: Vec<_> = (0..parallel.width())
                .map(|_| AttentionScratch::new(shape, batch * self.heads / shape.heads, &mut budget).unwrap())
                .map(SpinMutex::new)
                .collect();
            let required = AttentionScratch::required_bytes(shape, batch * self.heads / shape.heads).unwrap();
            assert_eq!(budget.used(), required * scratch.len());
            let mut outputs = vec![f32::NAN; self.tokens() * value_length];
            let first = self.context - self.tokens() + 1;
            let queries = self.queries.chunks(batch * query_length);
            for (i, (queries, outputs)) in queries.zip(outputs.chunks_mut(batch * value_length)).enumerate() {
                let batch = Batch { heads: self.heads, length: first + i * batch, queries, outputs };
                attend(&self.kv, 0, batch, &scratch, parallel);
            }
            outputs
        }

        /// The definition, in double precision, of what is stored.
        fn expected(&self) -> Vec<f64> {
            let shape = self.kv.shape();
            let mut all = Vec::new();
            for (row, query) in self.queries.chunks(shape.key_length).enumerate() {
                let (token, head) = (row / self.heads, row % self.heads / (self.heads / shape.heads));
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                for chunk in 0..self.context.div_ceil(CHUNK_TOKENS) {
                    let (key_rows, value_rows) = self.kv.rows(chunk, 0, head);
                    let load = |rows: &[u8], length: usize, to: &mut Vec<f32>| {
                        let mut floats = vec![0.0; CHUNK_TOKENS * length];
                        shape.format.load(rows, &mut floats);
                        to.extend(floats);
                    };
                    load(key_rows, shape.key_length, &mut keys);
                    load(value_rows, shape.value_length, &mut values);
                }
                let length = self.context - self.tokens() + 1 + token;
                let scores = keys.chunks(shape.key_length).take(length).map(|key| {
                    let dot: f64 = key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum();
                    (dot / (shape.key_length as f64).sqrt()).exp()
                });
                let scores: Vec<f64> = scores.collect();
                let total: f64 = scores.iter().sum();
                all.extend((0..shape.value_length).map(|i| {
                    let values = values.chunks(shape.value_length).map(|value| f64::from(value[i]));
                    scores.iter().zip(values).map(|(score, value)| score * value).sum::<f64>() / total
                }));
            }
            all
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[derive(Debug)]
    struct Threads(usize);

    impl Parallel for Threads {
        fn width(&self) -> usize {
            self.0
        }

        fn run(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
            std::thread::scope(|scope| {
                for first in 0..self.0 {
                    scope.spawn(move || (first..pieces).step_by(self.0).for_each(work));
                }
            });
        }
    }

    /// Formats, lengths of keys and values, key heads, query heads.
    const SHAPES: [(KvFormat, usize, usize, usize, usize); 8] = [
        (KvFormat::F32, 16, 16, 2, 4),
        (KvFormat::F32, 10, 7, 1, 3),
        (KvFormat::F16, 64, 64, 2, 14),
        (KvFormat::F16, 3, 1, 5, 5),
        (KvFormat::F16, 128, 64, 1, 1),
        (KvFormat::Q8_0, 64, 64, 2, 8),
        (KvFormat::Q8_0, 32, 96, 3, 3),
        (KvFormat::Q8_0, 128, 32, 1, 40),
    ];

    fn cases(mut check: impl FnMut(Case)) {
        for (format, key_length, value_length, kv_heads, heads) in SHAPES {
            let shape = KvShape { format, layers: 1, heads: kv_heads, key_length, value_length };
            for (context, tokens) in [(1, 1), (16, 16), (17, 1), (33, 33), (77, 30), (64, 3)] {
                check(Case::new(shape, heads, context, tokens));
            }
        }
    }

    #[test]
    fn it_follows_its_definition() {
        cases(|case| {
            // Scores of quantised keys come of queries rounded to 8 bits.
            let tolerance = if case.kv.shape().format == KvFormat::Q8_0 { 3e-2 } else { 2e-6 };
            let (found, expected) = (case.attend(case.tokens(), &Serial), case.expected());
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                let difference = (f64::from(*found) - expected).abs();
                assert!(difference < tolerance, "{difference} with {:?}", case.kv.shape());
            }
        });
    }

    #[test]
    fn neither_batches_nor_threads_change_a_bit() {
        cases(|case| {
            let expected = bits(&case.attend(1, &Serial));
            for batch in [2, 5, 32, 33] {
                assert_eq!(bits(&case.attend(batch, &Serial)), expected, "{batch} {:?}", case.kv.shape());
            }
            for threads in [2, 3, 8] {
                assert_eq!(bits(&case.attend(33, &Threads(threads))), expected, "{threads}");
            }
        });
    }

    #[test]
    fn a_context_that_does_not_fit_a_cache_is_split_over_threads_alike() {
        let shape = KvShape { format: KvFormat::F16, layers: 1, heads: 2, key_length: 64, value_length: 64 };
        let case = Case::new(shape, 6, 1500, 40);
        let expected = bits(&case.attend(1, &Serial));
        for threads in [1, 2, 5] {
            assert_eq!(bits(&case.attend(40, &Threads(threads))), expected, "{threads}");
        }
    }
}
