//! Rotary position embedding: the angles of a batch's positions.

use alloc::vec::Vec;

use crate::Result;
use crate::budget::Budget;
use crate::kernels::{rope_rotate_halves, rope_rotate_neighbours};
use crate::model::{Hyperparameters, RopePairs, RopeScaling};

/// Frequencies, and the rotations (cosine, sine) of the current batch. They are computed once per token and used by
/// every head of every layer.
#[derive(Debug)]
pub struct Rope {
    frequencies: Vec<f32>,
    rotations: Vec<[f32; 2]>,
    /// Factor of what is rotated.
    magnitude: f32,
    pairs: RopePairs,
    head_length: usize,
}

impl Rope {
    /// Bytes that [`Rope::new`] allocates.
    pub fn required_bytes(h: &Hyperparameters, batch: usize) -> Option<usize> {
        let rotations = batch.checked_mul(size_of::<[f32; 2]>())?;
        (h.rope_dimension_count / 2).checked_mul(rotations.checked_add(size_of::<f32>())?)
    }

    /// Computes the frequencies; `factors` divide them (F32, one for each), if given.
    pub fn new(
        h: &Hyperparameters,
        factors: Option<&[u8]>,
        batch: usize,
        budget: &mut Budget,
    ) -> Result<Self> {
        let count = h.rope_dimension_count / 2;
        let mut frequencies = budget.reserve(count)?;
        for i in 0..count {
            let exponent = -2.0 * i as f64 / h.rope_dimension_count as f64;
            let mut frequency = libm::pow(h.rope_freq_base.into(), exponent) * scale(h, i);
            if let Some(factor) = factors.and_then(|factors| factors.as_chunks().0.get(i)) {
                frequency /= f64::from(f32::from_le_bytes(*factor));
            }
            frequencies.push(frequency as f32);
        }
        Ok(Rope {
            frequencies,
            rotations: budget.filled([1.0, 0.0], count * batch)?,
            magnitude: magnitude(h),
            pairs: h.architecture.rope_pairs(),
            head_length: h.key_length,
        })
    }

    /// Computes the rotations of `count` positions from `start` on.
    pub fn set_positions(&mut self, start: usize, count: usize) {
        let rows = self.rotations.chunks_exact_mut(self.frequencies.len().max(1));
        for (row, position) in rows.zip(start..start + count) {
            for (rotation, frequency) in row.iter_mut().zip(&self.frequencies) {
                let angle = position as f32 * frequency;
                *rotation = [libm::cosf(angle) * self.magnitude, libm::sinf(angle) * self.magnitude];
            }
        }
    }

    /// Computes, in place of those of positions, the rotation that takes a key from its position to the one `distance` before
    /// it.
    pub fn set_distance_back(&mut self, distance: usize) {
        for (rotation, frequency) in self.rotations.iter_mut().zip(&self.frequencies) {
            let angle = distance as f32 * frequency;
            // The key has its magnitude already.
            *rotation = [libm::cosf(angle), -libm::sinf(angle)];
        }
    }

    /// The rotations of the batch's positions, in order.
    pub fn rotations(&self) -> impl Iterator<Item = &[[f32; 2]]> {
        self.rotations.chunks_exact(self.frequencies.len().max(1))
    }

    /// The same, one after another.
    pub fn all(&mut self) -> &mut [[f32; 2]] {
        &mut self.rotations
    }

    /// Pairs of a head, and whether they are its halves' elements.
    pub fn pairs(&self) -> (usize, bool) {
        (self.frequencies.len(), self.pairs == RopePairs::Halves)
    }

    /// Rotates every head of `x` by one of [`Rope::rotations`].
    pub fn rotate(&self, x: &mut [f32], rotation: &[[f32; 2]]) {
        match self.pairs {
            RopePairs::Neighbours => rope_rotate_neighbours(x, self.head_length, rotation),
            RopePairs::Halves => rope_rotate_halves(x, self.head_length, rotation),
        }
    }
}

/// Factor of the frequency of pair `index`.
fn scale(h: &Hyperparameters, index: usize) -> f64 {
    match h.rope_scaling {
        RopeScaling::Linear { factor } => f64::from(1.0 / factor),
        RopeScaling::Yarn { factor, original_context, .. } => {
            // A pair that turns more often than `turns` times in the original context lies below this index.
            let bound = |turns: f64| {
                let ratio = original_context as f64 / (turns * 2.0 * core::f64::consts::PI);
                h.rope_dimension_count as f64 * libm::log(ratio)
                    / (2.0 * libm::log(f64::from(h.rope_freq_base)))
            };
            let low = libm::floor(bound(32.0)).max(0.0);
            let high = libm::ceil(bound(1.0)).min(h.rope_dimension_count as f64 - 1.0);
            let ramp = ((index as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            (1.0 - ramp) + ramp / f64::from(factor)
        }
    }
}

/// Factor of what is rotated.
fn magnitude(h: &Hyperparameters) -> f32 {
    match h.rope_scaling {
        RopeScaling::Linear { .. } => 1.0,
        RopeScaling::Yarn { factor, attention_factor, .. } => {
            (0.1 * libm::logf(factor.max(1.0)) + 1.0) * attention_factor
        }
    }
}
