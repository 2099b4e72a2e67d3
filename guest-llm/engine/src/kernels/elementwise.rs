//! Kernels over vectors of floats. Plain loops: they vectorise, and give the same bits everywhere.

use super::cpu::dot_slices;

/// Adds `x` to `out`.
pub fn add_assign(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += x;
    }
}

/// Adds `bias`, in little-endian F32, to each row of `out`, rows being as long as it.
pub fn add_bias(out: &mut [f32], bias: &[u8]) {
    let bias = bias.as_chunks().0;
    for row in out.chunks_exact_mut(bias.len().max(1)) {
        for (out, bias) in row.iter_mut().zip(bias) {
            *out += f32::from_le_bytes(*bias);
        }
    }
}

/// Root mean square normalisation: `out = x / sqrt(mean(x^2) + epsilon) * weight`, the weight in little-endian F32.
pub fn rms_norm(x: &[f32], weight: &[u8], epsilon: f32, out: &mut [f32]) {
    let factor = rms_factor(x, epsilon);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight.as_chunks().0) {
        *out = x * factor * f32::from_le_bytes(*weight);
    }
}

/// [`rms_norm`] of each head of `x` by itself, in place; heads are as long as `weight`.
pub fn rms_norm_heads(x: &mut [f32], weight: &[u8], epsilon: f32) {
    let weight = weight.as_chunks().0;
    for head in x.chunks_exact_mut(weight.len().max(1)) {
        let factor = rms_factor(head, epsilon);
        for (x, weight) in head.iter_mut().zip(weight) {
            *x = *x * factor * f32::from_le_bytes(*weight);
        }
    }
}

fn rms_factor(x: &[f32], epsilon: f32) -> f32 {
    let mean = dot_slices(x, x) / x.len() as f32;
    1.0 / libm::sqrtf(mean + epsilon)
}

/// Gated linear unit with SiLU: `gate = gate / (1 + exp(-gate)) * up`.
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// Rotates the pairs (2i, 2i+1) of each head's first elements by the angles of `rotation` (cosine, sine).
pub fn rope_rotate_neighbours(x: &mut [f32], head_length: usize, rotation: &[[f32; 2]]) {
    for head in x.chunks_exact_mut(head_length.max(1)) {
        for ([a, b], [cos, sin]) in head.as_chunks_mut().0.iter_mut().zip(rotation) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

/// Rotates the pairs (i, i+n) of each head's first elements by the n angles of `rotation` (cosine, sine).
pub fn rope_rotate_halves(x: &mut [f32], head_length: usize, rotation: &[[f32; 2]]) {
    for head in x.chunks_exact_mut(head_length.max(1)) {
        let (low, high) = head.split_at_mut_checked(rotation.len()).unwrap_or_default();
        for ((a, b), [cos, sin]) in low.iter_mut().zip(high).zip(rotation) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

/// One step of a running softmax: given the greatest score so far and new `scores`, replaces these by
/// `exp(score - greatest)` and returns the new greatest, the factor for what was summed before, and the scores' sum.
#[inline(always)]
pub fn softmax_step(greatest: f32, scores: &mut [f32]) -> (f32, f32, f32) {
    let new = scores.iter().fold(greatest, |max, score| if *score > max { *score } else { max });
    for score in scores.iter_mut() {
        *score = exp(*score - new);
    }
    let sum = scores.iter().sum();
    (new, exp(greatest - new), sum)
}

/// The exponential function, within 2 units in the last place; 0 below -87.3, infinite above 88.7, NaN for NaN.
///
/// Branch-free, so that loops over it vectorise, which `libm`'s does not.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to an integer, found in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with few enough bits that its product with n is exact (Cody and Waite).
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < -88.0 { -88.0 } else { clamped };
    let shifted = clamped * core::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // exp(r) for |r| <= ln 2 / 2: Taylor polynomial of degree 7, error below 2^-26.
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    // 2^n in two factors, for n = 128 alone has no representation.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let value = p * power(n >> 1) * power(n.wrapping_sub(n >> 1));
    if x < -87.3 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0u32;
        for i in -873_000..=887_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp() as f32;
            if exact.is_normal() {
                worst = worst.max(exp(x).to_bits().abs_diff(exact.to_bits()));
            }
        }
        assert!(worst <= 2, "{worst} units in the last place");
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn exp_takes_every_float() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::from_bits(1)), 1.0);
        for bits in (0..=u32::MAX).step_by(65521) {
            let (x, value) = (f32::from_bits(bits), exp(f32::from_bits(bits)));
            assert!(value >= 0.0 || x.is_nan(), "exp({x}) = {value}");
        }
    }

    #[test]
    fn a_running_softmax_equals_the_definition() {
        let scores = [3.0f32, -1.0, 7.5, 2.0, 7.5, -30.0, 0.25];
        let (mut greatest, mut total, mut weighted) = (f32::NEG_INFINITY, 0.0, 0.0);
        for (i, chunk) in scores.chunks(3).enumerate() {
            let mut exps = [0.0; 3];
            let exps = &mut exps[..chunk.len()];
            exps.copy_from_slice(chunk);
            let (new, factor, sum) = softmax_step(greatest, exps);
            greatest = new;
            total = total * factor + sum;
            weighted *= factor;
            weighted += exps.iter().enumerate().map(|(j, e)| e * (3 * i + j) as f32).sum::<f32>();
        }
        let exps = scores.map(|s| f64::from(s).exp());
        let expected =
            exps.iter().enumerate().map(|(i, e)| e * i as f64).sum::<f64>() / exps.iter().sum::<f64>();
        assert!((f64::from(weighted / total) - expected).abs() < 1e-5);
    }

    #[test]
    fn rms_norm_and_silu_follow_their_definitions() {
        let x = [1.0f32, -2.0, 3.0, 0.5, 0.0, 4.0, -1.5, 2.5, 1.25];
        let weight: [f32; 9] = core::array::from_fn(|i| 0.5 + i as f32);
        let bytes = weight.map(f32::to_le_bytes);
        let mut out = [0.0; 9];
        rms_norm(&x, bytes.as_flattened(), 1e-5, &mut out);
        let rms = (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 9.0 + 1e-5).sqrt();
        for i in 0..9 {
            let expected = f64::from(x[i]) / rms * f64::from(weight[i]);
            assert!((f64::from(out[i]) - expected).abs() < 1e-5);
        }
        let mut gate = x;
        silu_mul(&mut gate, &weight);
        for i in 0..9 {
            let g = f64::from(x[i]);
            assert!((f64::from(gate[i]) - g / (1.0 + (-g).exp()) * f64::from(weight[i])).abs() < 1e-5);
        }
    }

    #[test]
    fn rope_rotates_each_head_alike_and_leaves_the_rest() {
        let mut x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
        rope_rotate_neighbours(&mut x, 5, &[[0.0, 1.0], [-1.0, 0.0]]);
        assert_eq!(x, [-2.0, 1.0, -3.0, -4.0, 5.0, -7.0, 6.0, -8.0, -9.0, 10.0]);
        let mut x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
        rope_rotate_halves(&mut x, 5, &[[0.0, 1.0], [-1.0, 0.0]]);
        assert_eq!(x, [-3.0, -2.0, 1.0, -4.0, 5.0, -8.0, -7.0, 6.0, -9.0, 10.0]);
    }

    #[test]
    fn heads_are_normalised_and_rows_get_their_bias_one_by_one() {
        let weight = [0.5f32, 2.0, 1.0].map(f32::to_le_bytes);
        let mut x = [1.0f32, -2.0, 3.0, 0.5, 0.25, -4.0];
        let mut expected = [0.0; 6];
        rms_norm(&x[..3], weight.as_flattened(), 1e-5, &mut expected[..3]);
        rms_norm(&x[3..], weight.as_flattened(), 1e-5, &mut expected[3..]);
        rms_norm_heads(&mut x, weight.as_flattened(), 1e-5);
        assert_eq!(x, expected);
        add_bias(&mut x, weight.as_flattened());
        assert_eq!(x, core::array::from_fn(|i| expected[i] + [0.5, 2.0, 1.0][i % 3]));
    }
}
