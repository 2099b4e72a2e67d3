//! Rotary position embedding: the angles of a batch's positions.

use alloc::vec::Vec;

use crate::Result;
use crate::budget::Budget;
use crate::model::Hyperparameters;

/// Frequencies, and the rotations (cosine, sine) of the current batch. They are computed once per token and used by
/// every head of every layer.
#[derive(Debug)]
pub struct Rope {
    frequencies: Vec<f32>,
    rotations: Vec<(f32, f32)>,
}

impl Rope {
    /// Bytes that [`Rope::new`] allocates.
    pub fn required_bytes(h: &Hyperparameters, batch: usize) -> Option<usize> {
        let rotations = batch.checked_mul(size_of::<(f32, f32)>())?;
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
            let mut frequency = libm::pow(h.rope_freq_base.into(), exponent) * f64::from(h.rope_scale);
            if let Some(factor) = factors.and_then(|factors| factors.as_chunks().0.get(i)) {
                frequency /= f64::from(f32::from_le_bytes(*factor));
            }
            frequencies.push(frequency as f32);
        }
        Ok(Rope { frequencies, rotations: budget.filled((1.0, 0.0), count * batch)? })
    }

    /// Computes the rotations of `count` positions from `start` on.
    pub fn set_positions(&mut self, start: usize, count: usize) {
        let rows = self.rotations.chunks_exact_mut(self.frequencies.len().max(1));
        for (row, position) in rows.zip(start..start + count) {
            for (rotation, frequency) in row.iter_mut().zip(&self.frequencies) {
                let angle = position as f32 * frequency;
                *rotation = (libm::cosf(angle), libm::sinf(angle));
            }
        }
    }

    /// The rotations of the batch's positions, in order.
    pub fn rotations(&self) -> impl Iterator<Item = &[(f32, f32)]> {
        self.rotations.chunks_exact(self.frequencies.len().max(1))
    }
}
