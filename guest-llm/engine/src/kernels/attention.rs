//! Attention of a few queries over the keys and values of a chunk.
//!
//! What is computed for a query does not depend on the queries beside it, nor on the instruction set:
//! - scores: products of floats, or of quants, as [`super::portable`] has them, times a factor;
//! - weights: one step of a running softmax ([`super::softmax_step`]);
//! - sums of values: each element is scaled, by a fused multiply-add of zero, then the values go to it in the order of
//!   their tokens, each by a fused multiply-add.

use zerocopy::IntoBytes;

use super::activations::Quantised;
use super::blocks::{BLOCK, Block, F16, F32, Q8_0, view};
use super::floats::{self, Element};
use super::gemv;
use super::kv_row::KvFormat;
use super::portable::{self, LANES, fma};
use super::simd::{ROWS, Simd};
use super::softmax_step;

/// Tokens of a chunk.
pub const TOKENS: usize = 16;
/// Most queries of a step: their sums and a chunk's values fit a first-level cache.
pub const TILE: usize = 16;
/// From how many queries on it pays to convert a chunk's halves first.
const MANY: usize = 4;
/// Keys and queries whose products are computed together.
const KEYS: usize = 4;
const QUERIES: usize = 2;
/// Queries that values are added to together.
const SUMS: usize = 4;

/// One query on its way over the chunks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query<'q> {
    /// The rotated query.
    pub vector: &'q [f32],
    /// Tokens of this chunk that it sees: the first ones.
    pub visible: usize,
    /// The greatest score so far; at first negative infinity.
    pub greatest: f32,
    /// Sum of the weights so far.
    pub total: f32,
}

/// A chunk and the queries that go over it.
#[derive(Debug)]
pub struct Step<'s, 'q> {
    /// How keys and values are stored.
    pub format: KvFormat,
    /// Elements of a key.
    pub key_length: usize,
    /// Elements of a value.
    pub value_length: usize,
    /// Factor of scores.
    pub factor: f32,
    /// Keys of a chunk's tokens.
    pub keys: &'s [u8],
    /// Values of a chunk's tokens.
    pub values: &'s [u8],
    /// At most [`TILE`].
    pub queries: &'s mut [Query<'q>],
    /// The queries quantised, one after another, if the keys are.
    pub quants: &'s [Quantised],
    /// Weighted sums of values, a row per query.
    pub sums: &'s mut [f32],
    /// Scratch for keys or values as floats; not needed for F32.
    pub rows: &'s mut [f32],
}

/// A weight for each token, for each query.
type Weights = [[f32; TOKENS]; TILE];

impl Step<'_, '_> {
    /// Turns scores into weights; returns what the sums so far are to be multiplied with.
    #[inline(always)]
    fn weigh(&mut self, weights: &mut Weights) -> [f32; TILE] {
        let mut corrections = [1.0; TILE];
        for ((query, scores), out) in self.queries.iter_mut().zip(weights).zip(&mut corrections) {
            let scores = scores.get_mut(..query.visible).unwrap_or_default();
            if scores.is_empty() {
                continue;
            }
            scores.iter_mut().for_each(|score| *score *= self.factor);
            let (greatest, correction, sum) = softmax_step(query.greatest, scores);
            query.greatest = greatest;
            query.total = query.total * correction + sum;
            *out = correction;
        }
        corrections
    }
}

/// The step by its definition.
pub fn attend_portable(step: &mut Step<'_, '_>) {
    let mut weights: Weights = [[0.0; TOKENS]; TILE];
    let format = step.format;
    let (key_bytes, value_bytes) = (format.row_bytes(step.key_length), format.row_bytes(step.value_length));
    let blocks = step.quants.chunks((step.key_length / BLOCK).max(1));
    let mut blocks = blocks.chain(core::iter::repeat(&[][..]));
    for (query, scores) in step.queries.iter().zip(&mut weights) {
        let quants = blocks.next().unwrap_or_default();
        for (score, key) in scores.iter_mut().zip(step.keys.chunks_exact(key_bytes.max(1))) {
            *score = match format {
                KvFormat::F32 => portable::dot_f32(key, query.vector),
                KvFormat::F16 => portable::dot_f16(key, query.vector),
                KvFormat::Q8_0 => portable::dot_blocks::<Q8_0>(key, quants),
            };
        }
    }
    let corrections = step.weigh(&mut weights);
    let sums = step.sums.chunks_exact_mut(step.value_length.max(1));
    for (((query, weights), correction), sums) in step.queries.iter().zip(&weights).zip(corrections).zip(sums)
    {
        if query.visible == 0 {
            continue;
        }
        sums.iter_mut().for_each(|sum| *sum = fma(*sum, correction, 0.0));
        let values = step.values.chunks_exact(value_bytes.max(1));
        for (weight, value) in weights.iter().zip(values).take(query.visible) {
            let parts = value.chunks(format.row_bytes(BLOCK));
            for (sums, part) in sums.chunks_mut(BLOCK).zip(parts) {
                let mut floats = [0.0; BLOCK];
                format.load(part, &mut floats);
                sums.iter_mut().zip(floats).for_each(|(sum, value)| *sum = fma(*weight, value, *sum));
            }
        }
    }
}

/// The step with the primitives of an instruction set.
#[inline(always)]
pub fn attend<S: Simd>(s: S, step: &mut Step<'_, '_>) {
    let mut weights: Weights = [[0.0; TOKENS]; TILE];
    let (keys, values) = (step.keys, step.values);
    let convert = step.format == KvFormat::F16 && step.queries.len() >= MANY;
    match step.format {
        KvFormat::F32 => scores::<S, F32>(s, step, view(keys), &mut weights),
        KvFormat::F16 if convert => {
            let rows = core::mem::take(&mut step.rows);
            let floats = expand(s, view(keys), rows);
            scores::<S, F32>(s, step, view(floats.as_bytes()), &mut weights);
            step.rows = rows;
        }
        KvFormat::F16 => scores::<S, F16>(s, step, view(keys), &mut weights),
        KvFormat::Q8_0 => score_quants(s, step, view(keys), &mut weights),
    }
    let corrections = step.weigh(&mut weights);
    match step.format {
        KvFormat::F32 => add_values::<S, F32>(s, step, view(values), &weights, &corrections),
        KvFormat::F16 if !convert => add_values::<S, F16>(s, step, view(values), &weights, &corrections),
        format => {
            let rows = core::mem::take(&mut step.rows);
            let floats = if format == KvFormat::F16 {
                expand(s, view(values), rows)
            } else {
                let length = (TOKENS * step.value_length).min(rows.len());
                let floats = rows.get_mut(..length).unwrap_or_default();
                let blocks = view::<Q8_0>(values).iter();
                for (block, out) in blocks.zip(floats.as_chunks_mut::<BLOCK>().0) {
                    // Without the sum of `Stored::expand`, so that it vectorises; only signs of zeros differ, of which none
                    // reaches a sum.
                    let scale = block.scale();
                    for (out, quant) in out.iter_mut().zip(&block.qs) {
                        *out = scale * f32::from(*quant as i8);
                    }
                }
                floats
            };
            add_values::<S, F32>(s, step, view(floats.as_bytes()), &weights, &corrections);
            step.rows = rows;
        }
    }
}

/// Converts halves.
#[inline(always)]
fn expand<'r, S: Simd>(s: S, halves: &[F16], rows: &'r mut [f32]) -> &'r mut [f32] {
    let count = halves.len().min(rows.len());
    let floats = rows.get_mut(..count).unwrap_or_default();
    let (halves, rest) = halves.get(..count).unwrap_or_default().as_chunks::<LANES>();
    let (out, out_rest) = floats.as_chunks_mut::<LANES>();
    for (out, halves) in out.iter_mut().zip(halves) {
        s.store_sixteen(F16::load(s, halves), out);
    }
    for (out, half) in out_rest.iter_mut().zip(rest) {
        *out = half.one();
    }
    floats
}

/// The first `N` rows from row `first` on.
#[inline(always)]
fn rows<const N: usize, T>(all: &[T], first: usize, length: usize) -> [&[T]; N] {
    let mut rows = [&[][..]; N];
    for (row, part) in rows.iter_mut().zip(all.chunks_exact(length.max(1)).skip(first)) {
        *row = part;
    }
    rows
}

/// Products of all keys with all queries; those of keys that a query does not see mean nothing.
#[inline(always)]
fn scores<S: Simd, E: Element>(s: S, step: &Step<'_, '_>, keys: &[E], weights: &mut Weights) {
    for first in (0..TOKENS).step_by(KEYS) {
        let keys = rows::<KEYS, E>(keys, first, step.key_length);
        let mut set = |query: usize, scores: [f32; KEYS]| {
            let places = weights.get_mut(query).and_then(|row| row.get_mut(first..first + KEYS));
            places.unwrap_or_default().copy_from_slice(&scores);
        };
        let (pairs, rest) = step.queries.as_chunks::<QUERIES>();
        for (i, pair) in pairs.iter().enumerate() {
            let products = floats::tile::<S, E, KEYS, QUERIES>(s, keys, [pair[0].vector, pair[1].vector]);
            set(i * QUERIES, products[0]);
            set(i * QUERIES + 1, products[1]);
        }
        for (i, query) in rest.iter().enumerate() {
            let [products] = floats::tile::<S, E, KEYS, 1>(s, keys, [query.vector]);
            set(pairs.len() * QUERIES + i, products);
        }
    }
}

/// The same for quants.
#[inline(always)]
fn score_quants<S: Simd>(s: S, step: &Step<'_, '_>, keys: &[Q8_0], weights: &mut Weights) {
    let length = step.key_length / BLOCK;
    let queries = step.quants.chunks_exact(length.max(1)).take(step.queries.len());
    for first in (0..TOKENS).step_by(ROWS) {
        let keys = rows::<ROWS, Q8_0>(keys, first, length);
        for (query, weights) in queries.clone().zip(&mut *weights) {
            let mut products = [0.0; ROWS];
            gemv::blocks(s, keys, query, &mut products);
            weights.get_mut(first..first + ROWS).unwrap_or_default().copy_from_slice(&products);
        }
    }
}

/// Adds values to the queries' sums, a few queries of the same sight together.
#[inline(always)]
fn add_values<S: Simd, E: Element>(
    s: S,
    step: &mut Step<'_, '_>,
    values: &[E],
    weights: &Weights,
    corrections: &[f32; TILE],
) {
    let values = rows::<TOKENS, E>(values, 0, step.value_length);
    let mut first = 0;
    while let Some(query) = step.queries.get(first) {
        let visible = query.visible;
        let alike = step.queries.iter().skip(first).take_while(|query| query.visible == visible).count();
        let count = if alike >= SUMS { SUMS } else { 1 };
        if visible > 0 {
            let range = first * step.value_length..(first + count) * step.value_length;
            let sums = step.sums.get_mut(range).unwrap_or_default();
            let weights = weights.get(first..first + count).unwrap_or_default();
            let corrections = corrections.get(first..first + count).unwrap_or_default();
            if count == SUMS {
                add_to::<S, E, SUMS>(s, values, visible, weights, corrections, sums);
            } else {
                add_to::<S, E, 1>(s, values, visible, weights, corrections, sums);
            }
        }
        first += count;
    }
}

/// Adds the first `visible` values to `Q` sums.
#[inline(always)]
fn add_to<S: Simd, E: Element, const Q: usize>(
    s: S,
    values: [&[E]; TOKENS],
    visible: usize,
    weights: &[[f32; TOKENS]],
    corrections: &[f32],
    sums: &mut [f32],
) {
    let (Some(weights), Some(corrections)) = (weights.first_chunk::<Q>(), corrections.first_chunk::<Q>())
    else {
        return;
    };
    let length = sums.len() / Q;
    let whole = length / LANES;
    let mut parts = [&[][..]; TOKENS];
    for (part, value) in parts.iter_mut().zip(values) {
        *part = value.as_chunks::<LANES>().0;
    }
    let parts = parts.get(..visible).unwrap_or_default();
    for i in 0..whole {
        let zero = s.sixteen(0.0);
        let mut totals = [zero; Q];
        for (q, total) in totals.iter_mut().enumerate() {
            let sum = sums.get(q * length + i * LANES..).and_then(|sums| sums.first_chunk());
            let sum = sum.map_or(zero, |sum| s.load_sixteen(sum));
            *total = s.fma_sixteen(sum, s.sixteen(corrections[q]), zero);
        }
        for (t, part) in parts.iter().enumerate() {
            let Some(value) = part.get(i) else { continue };
            let value = E::load(s, value);
            for (total, weights) in totals.iter_mut().zip(weights) {
                *total = s.fma_sixteen(s.sixteen(weights[t]), value, *total);
            }
        }
        for (q, total) in totals.iter().enumerate() {
            if let Some(sum) = sums.get_mut(q * length + i * LANES..).and_then(|sums| sums.first_chunk_mut())
            {
                s.store_sixteen(*total, sum);
            }
        }
    }
    for (q, sums) in sums.chunks_exact_mut(length.max(1)).enumerate().take(Q) {
        for (i, sum) in sums.iter_mut().enumerate().skip(whole * LANES) {
            *sum = fma(*sum, corrections[q], 0.0);
            for (weight, value) in weights[q].iter().zip(values).take(visible) {
                *sum = fma(*weight, value.get(i).map_or(0.0, |value| value.one()), *sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// A chunk of random rows; what is stored beyond the tokens that any query sees is no number.
    struct Case {
        format: KvFormat,
        key_length: usize,
        value_length: usize,
        keys: Vec<u8>,
        values: Vec<u8>,
        vectors: Vec<Vec<f32>>,
        visible: Vec<usize>,
        sums: Vec<f32>,
    }

    impl Case {
        fn new(format: KvFormat, key_length: usize, value_length: usize, visible: &[usize]) -> Self {
            let mut numbers = Numbers((key_length * 100 + visible.len()) as u64);
            let seen = visible.iter().max().copied().unwrap_or(0);
            let mut rows = |length: usize| {
                let mut rows = vec![0xff; TOKENS * format.row_bytes(length)];
                for row in rows.chunks_exact_mut(format.row_bytes(length)).take(seen) {
                    format.store(&numbers.floats(length), row);
                }
                rows
            };
            let (keys, values) = (rows(key_length), rows(value_length));
            let vectors = visible.iter().map(|_| numbers.floats(key_length)).collect();
            let sums = numbers.floats(visible.len() * value_length);
            Case { format, key_length, value_length, keys, values, vectors, visible: visible.to_vec(), sums }
        }

        /// The bits of each query's greatest score and total, and of all sums, after `attend`; none if that does nothing.
        fn run(&self, attend: impl FnOnce(&mut Step<'_, '_>) -> bool) -> Option<Vec<u32>> {
            let query = |(vector, visible): (&'_ Vec<f32>, &usize)| (vector.clone(), *visible);
            let owned: Vec<_> = self.vectors.iter().zip(&self.visible).map(query).collect();
            let mut queries: Vec<Query<'_>> = owned
                .iter()
                .map(|(vector, visible)| Query { vector, visible: *visible, greatest: 0.25, total: 1.5 })
                .collect();
            let blocks = self.vectors.iter().flat_map(|vector| vector.as_chunks::<BLOCK>().0);
            let quants: Vec<Quantised> = blocks
                .map(|values| {
                    let mut block = Quantised::ZERO;
                    block.set(values);
                    block
                })
                .collect();
            let mut sums = self.sums.clone();
            let mut rows = vec![f32::NAN; TOKENS * self.key_length.max(self.value_length)];
            let done = attend(&mut Step {
                format: self.format,
                key_length: self.key_length,
                value_length: self.value_length,
                factor: 0.7,
                keys: &self.keys,
                values: &self.values,
                queries: &mut queries,
                quants: &quants,
                sums: &mut sums,
                rows: &mut rows,
            });
            let states = queries.iter().flat_map(|query| [query.greatest, query.total]);
            done.then(|| states.chain(sums).map(f32::to_bits).collect())
        }
    }

    fn cases(mut check: impl FnMut(&Case)) {
        let sights: [&[usize]; 7] = [
            &[16],
            &[1],
            &[16, 16],
            &[0, 3, 16],
            &[5, 5, 5, 5, 6, 6, 6, 6, 6],
            &[16; 16],
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        ];
        for visible in sights {
            for format in KvFormat::ALL {
                for (key_length, value_length) in [(32, 64), (96, 32), (128, 128)] {
                    check(&Case::new(format, key_length, value_length, visible));
                }
            }
            for (key_length, value_length) in [(16, 16), (5, 3), (40, 24), (1, 1)] {
                check(&Case::new(KvFormat::F32, key_length, value_length, visible));
                check(&Case::new(KvFormat::F16, key_length, value_length, visible));
            }
        }
    }

    #[test]
    fn every_instruction_set_agrees_with_the_definition() {
        cases(|case| {
            let expected = case.run(|step| {
                attend_portable(step);
                true
            });
            let best = case.run(|step| {
                super::super::cpu::attend(step);
                true
            });
            let what = || std::format!("{} {} {:?}", case.format, case.key_length, case.visible);
            assert_eq!(best, expected, "{}", what());
            #[cfg(target_arch = "x86_64")]
            for level in super::super::x86::Level::ALL {
                if let Some(found) = case.run(|step| super::super::x86::attend_at(level, step)) {
                    assert_eq!(Some(found), expected, "{level:?} {}", what());
                }
            }
        });
    }

    #[test]
    fn a_query_does_not_depend_on_those_beside_it() {
        cases(|case| {
            let together = case.run(|step| {
                super::super::cpu::attend(step);
                true
            });
            let together = together.unwrap();
            for (i, visible) in case.visible.iter().enumerate() {
                let length = case.value_length;
                let alone = Case {
                    keys: case.keys.clone(),
                    values: case.values.clone(),
                    vectors: vec![case.vectors[i].clone()],
                    visible: vec![*visible],
                    sums: case.sums[i * length..][..length].to_vec(),
                    ..*case
                };
                let alone = alone.run(|step| {
                    super::super::cpu::attend(step);
                    true
                });
                let sums = 2 * case.visible.len() + i * length;
                let expected = [&together[2 * i..][..2], &together[sums..][..length]].concat();
                assert_eq!(alone, Some(expected), "{} {:?}", case.format, case.visible);
            }
        });
    }

    #[test]
    fn the_definition_is_a_softmax_and_a_weighted_sum() {
        cases(|case| {
            let found = case.run(|step| {
                attend_portable(step);
                true
            });
            let found: Vec<f64> =
                found.unwrap().iter().map(|bits| f64::from(f32::from_bits(*bits))).collect();
            let load = |rows: &[u8], length: usize| {
                let mut floats = vec![0.0; TOKENS * length];
                case.format.load(rows, &mut floats);
                floats.iter().map(|value| f64::from(*value)).collect::<Vec<_>>()
            };
            let (keys, values) = (load(&case.keys, case.key_length), load(&case.values, case.value_length));
            // Scores of quantised keys come of queries rounded to 8 bits.
            let tolerance = if case.format == KvFormat::Q8_0 { 0.1 } else { 1e-5 };
            for (i, (query, visible)) in case.vectors.iter().zip(&case.visible).enumerate() {
                let scores: Vec<f64> = keys
                    .chunks(case.key_length)
                    .take(*visible)
                    .map(|key| 0.7 * key.iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum::<f64>())
                    .collect();
                let greatest = scores.iter().copied().fold(0.25, f64::max);
                let factor = (0.25 - greatest).exp();
                let weights: Vec<f64> = scores.iter().map(|score| (score - greatest).exp()).collect();
                let total = 1.5 * factor + weights.iter().sum::<f64>();
                assert!((found[2 * i] - greatest).abs() < tolerance, "{} {greatest}", found[2 * i]);
                assert!((found[2 * i + 1] - total).abs() < 20.0 * tolerance, "{} {total}", found[2 * i + 1]);
                for j in 0..case.value_length {
                    let before = f64::from(case.sums[i * case.value_length + j]) * factor;
                    let added =
                        weights.iter().enumerate().map(|(t, w)| w * values[t * case.value_length + j]);
                    let expected = before + added.sum::<f64>();
                    let sum = found[2 * case.visible.len() + i * case.value_length + j];
                    assert!((sum - expected).abs() < 20.0 * tolerance, "{sum} {expected} {}", case.format);
                }
            }
        });
    }
}
