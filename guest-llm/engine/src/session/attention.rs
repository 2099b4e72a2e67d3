//! Attention of one token over a context, chunk by chunk.
//!
//! Scores of a chunk's tokens are used as soon as they are known, with a running softmax (Milakov and Gimelshein:
//! "Online normalizer calculation for softmax", 2018), so that no row of scores over the context ever exists.

use crate::kernels::{scale, softmax_step};
use crate::kv::{CHUNK_TOKENS, KvCache};

/// Computes, for each query head, the mean of the first `length` tokens' values weighted by softmax of their keys'
/// products with the query. `query` and `output` hold the heads one after another.
pub fn attend(kv: &KvCache, layer: usize, length: usize, query: &[f32], output: &mut [f32]) {
    let shape = kv.shape();
    let group = query.len() / (shape.heads * shape.key_length).max(1);
    let factor = 1.0 / libm::sqrtf(shape.key_length as f32);
    let queries = query.chunks_exact(shape.key_length.max(1));
    let outputs = output.chunks_exact_mut(shape.value_length.max(1));
    for (head, (query, output)) in queries.zip(outputs).enumerate() {
        attend_head(kv, (layer, head / group.max(1)), length, query, factor, output);
    }
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
