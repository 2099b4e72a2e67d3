//! Attention of one token over a context, chunk by chunk.
//!
//! Scores of a chunk's tokens are used as soon as they are known, with a running softmax (Milakov and Gimelshein:
//! "Online normalizer calculation for softmax", 2018), so that no row of scores over the context ever exists.

use spin::mutex::SpinMutex;

use crate::kernels::{scale, softmax_step};
use crate::kv::{CHUNK_TOKENS, KvCache};
use crate::parallel::{MAX_PIECES, Parallel, Split};

/// Computes, for each query head of each token of a batch, the mean of the values so far weighted by softmax of their keys'
/// products with the query. `queries` and `outputs` hold the heads one after another, token by token; the first token sees
/// `length` tokens, each other one more. The heads are shared out to threads.
pub fn attend(
    kv: &KvCache,
    layer: usize,
    length: usize,
    queries: &[f32],
    outputs: &mut [f32],
    heads: usize,
    parallel: &dyn Parallel,
) {
    let shape = kv.shape();
    let (key_length, value_length) = (shape.key_length.max(1), shape.value_length.max(1));
    let group = (heads / shape.heads.max(1)).max(1);
    let factor = 1.0 / libm::sqrtf(shape.key_length as f32);
    let units = queries.len() / key_length;
    let cost = length.saturating_mul(key_length + value_length);
    let split = Split::new(parallel, units, 1, cost);
    let mut chunks = outputs.chunks_mut(split.each.saturating_mul(value_length));
    let parts: [SpinMutex<&mut [f32]>; MAX_PIECES] =
        core::array::from_fn(|_| SpinMutex::new(chunks.next().unwrap_or_default()));
    split.run(parallel, &|piece, range| {
        let Some(mut part) = parts.get(piece).map(SpinMutex::lock) else { return };
        let queries = queries.chunks_exact(key_length).skip(range.start);
        let outputs = part.chunks_exact_mut(value_length);
        for ((unit, query), output) in range.zip(queries).zip(outputs) {
            let (token, head) = (unit / heads.max(1), unit % heads.max(1));
            attend_head(kv, (layer, head / group), length + token, query, factor, output);
        }
    });
}

fn attend_head(
    kv: &KvCache,
    (layer, head): (usize, usize),
    length: usize,
    query: &[f32],
    factor: f32,
    output: &mut [f32],
) {
    let shape = kv.shape();
    let (key_bytes, value_bytes) =
        (shape.format.row_bytes(shape.key_length), shape.format.row_bytes(shape.value_length));
    let mut greatest = f32::NEG_INFINITY;
    let mut total = 0.0;
    output.fill(0.0);
    for chunk in 0..length.div_ceil(CHUNK_TOKENS) {
        let (keys, values) = kv.rows(chunk, layer, head);
        let mut scores = [0.0; CHUNK_TOKENS];
        let count = (length - chunk * CHUNK_TOKENS).min(CHUNK_TOKENS);
        let scores = scores.get_mut(..count).unwrap_or_default();
        for (score, key) in scores.iter_mut().zip(keys.chunks_exact(key_bytes.max(1))) {
            *score = shape.format.dot(key, query) * factor;
        }
        let (new, correction, sum) = softmax_step(greatest, scores);
        greatest = new;
        total = total * correction + sum;
        scale(output, correction);
        for (weight, value) in scores.iter().zip(values.chunks_exact(value_bytes.max(1))) {
            shape.format.add_scaled(*weight, value, output);
        }
    }
    scale(output, 1.0 / total);
}
