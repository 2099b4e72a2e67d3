//! Batches of activations, as they are and quantised to signed bytes.

use alloc::vec::Vec;

use super::blocks::{BLOCK, SUBS, SUPER};
use super::half::{f16_to_f32, f32_to_f16};
use super::matrix::Matrix;
use crate::Result;
use crate::budget::Budget;
use crate::gguf::TensorType;

/// 32 activations, for products with formats of 32: `x = scale * q`, `q` within -127..=127. Both floats are rounded to half
/// precision, as llama.cpp stores them, so that logits can be compared with its own.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Quantised {
    /// The quants.
    pub quants: [i8; BLOCK],
    /// NaN or infinite if an activation is.
    pub scale: f32,
    /// Sum of the quants.
    pub sum: i32,
    /// Sum of the activations that the quants stand for.
    pub total: f32,
}

/// 256 activations, for products with formats of 256: `x = scale * q`, `q` within -127..=127.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SuperQuantised {
    /// The quants.
    pub quants: [i8; SUPER],
    /// Sums of the quants, 16 by 16.
    pub sums16: [i16; SUBS],
    /// Sums of the quants, 32 by 32.
    pub sums32: [i16; SUBS / 2],
    /// NaN or infinite if an activation is.
    pub scale: f32,
}

impl Quantised {
    /// Zeros.
    pub const ZERO: Self = Quantised { quants: [0; BLOCK], scale: 0.0, sum: 0, total: 0.0 };

    /// Quantises 32 activations.
    pub fn set(&mut self, values: &[f32; BLOCK]) {
        let half = |value| f16_to_f32(f32_to_f16(value));
        let scale = quantise(values, &mut self.quants) / 127.0;
        self.sum = self.quants.iter().fold(0, |sum, quant| sum.wrapping_add(i32::from(*quant)));
        self.total = half(self.sum as f32 * scale);
        self.scale = half(scale);
    }

    /// Takes over quants with scale and total in half precision, as [`Quantised::set`] would have made them.
    pub(super) fn load(&mut self, quants: &[u8; BLOCK], scale: u16, total: u16) {
        load_quants(quants, &mut self.quants);
        self.sum = self.quants.iter().fold(0, |sum, quant| sum.wrapping_add(i32::from(*quant)));
        self.total = f16_to_f32(total);
        self.scale = f16_to_f32(scale);
    }
}

/// Copies bytes as quants, all within -127..=127.
fn load_quants(bytes: &[u8], quants: &mut [i8]) {
    quants.iter_mut().zip(bytes).for_each(|(quant, byte)| *quant = (*byte as i8).max(-127));
}

impl SuperQuantised {
    pub(super) const ZERO: Self =
        SuperQuantised { quants: [0; SUPER], sums16: [0; SUBS], sums32: [0; SUBS / 2], scale: 0.0 };

    /// Quantises 256 activations.
    pub(super) fn set(&mut self, values: &[f32; SUPER]) {
        let greatest = quantise(values, &mut self.quants);
        // As llama.cpp: the inverse of the inverse.
        self.scale = if greatest < LEAST { 0.0 } else { 1.0 / (127.0 / greatest) };
        self.sum_up();
    }

    /// Takes over quants and their scale.
    pub(super) fn load(&mut self, quants: &[u8; SUPER], scale: f32) {
        load_quants(quants, &mut self.quants);
        self.scale = scale;
        self.sum_up();
    }

    fn sum_up(&mut self) {
        let sum = |quants: &[i8]| quants.iter().fold(0i16, |sum, quant| sum.wrapping_add((*quant).into()));
        for (out, quants) in self.sums16.iter_mut().zip(self.quants.as_chunks::<16>().0) {
            *out = sum(quants);
        }
        for (out, pair) in self.sums32.iter_mut().zip(self.sums16.as_chunks::<2>().0) {
            *out = pair[0].wrapping_add(pair[1]);
        }
    }
}

/// The forms of quantised activations that some matrices want.
#[derive(Clone, Copy, Debug)]
pub struct Forms {
    blocks: bool,
    supers: bool,
}

impl Forms {
    /// Both.
    pub(super) const ALL: Self = Forms { blocks: true, supers: true };

    /// The forms that matrices of these types want.
    pub fn of(types: impl Iterator<Item = TensorType>) -> Self {
        types.map(TensorType::block_length).fold(Forms { blocks: false, supers: false }, |forms, length| {
            Forms { blocks: forms.blocks || length == BLOCK, supers: forms.supers || length == SUPER }
        })
    }

    /// Numbers of blocks of each form for so many activations.
    fn counts(self, elements: usize) -> (usize, usize) {
        let count = |wanted: bool, length| if wanted { elements.div_ceil(length) } else { 0 };
        (count(self.blocks, BLOCK), count(self.supers, SUPER))
    }
}

/// Room for a batch of activations in the forms that matrices are multiplied with.
#[derive(Debug)]
pub struct InputBuffer {
    pub(super) blocks: Vec<Quantised>,
    pub(super) supers: Vec<SuperQuantised>,
}

/// A batch of activations: rows of `columns` elements, one for each token.
#[derive(Clone, Copy, Debug)]
pub struct Input<'i> {
    columns: usize,
    values: &'i [f32],
    blocks: &'i [Quantised],
    supers: &'i [SuperQuantised],
}

impl InputBuffer {
    /// Bytes that [`InputBuffer::new`] allocates for at most `elements` activations in these forms.
    pub fn required_bytes(elements: usize, forms: Forms) -> usize {
        let (blocks, supers) = forms.counts(elements);
        let blocks = blocks.saturating_mul(size_of::<Quantised>());
        blocks.saturating_add(supers.saturating_mul(size_of::<SuperQuantised>()))
    }

    /// Allocates for at most `elements` activations in these forms.
    pub fn new(elements: usize, forms: Forms, budget: &mut Budget) -> Result<Self> {
        let (blocks, supers) = forms.counts(elements);
        Ok(InputBuffer {
            blocks: budget.filled(Quantised::ZERO, blocks)?,
            supers: budget.filled(SuperQuantised::ZERO, supers)?,
        })
    }

    /// Prepares `values`, rows of `columns`, for products with `matrices`.
    pub fn prepare<'i>(
        &'i mut self,
        values: &'i [f32],
        columns: usize,
        matrices: &[&Matrix<'_>],
    ) -> Input<'i> {
        let wants = |length| matrices.iter().any(|matrix| matrix.ty().block_length() == length);
        if wants(BLOCK) {
            values.as_chunks().0.iter().zip(&mut self.blocks).for_each(|(values, block)| block.set(values));
        }
        if wants(SUPER) {
            values.as_chunks().0.iter().zip(&mut self.supers).for_each(|(values, block)| block.set(values));
        }
        self.view(values, columns)
    }

    /// The batch that was prepared last, `values` being its rows of `columns`.
    pub(super) fn view<'i>(&'i self, values: &'i [f32], columns: usize) -> Input<'i> {
        Input { columns, values, blocks: &self.blocks, supers: &self.supers }
    }
}

impl<'i> Input<'i> {
    /// The batch without its first `count` rows.
    pub fn skip(&self, count: usize) -> Self {
        Input {
            columns: self.columns,
            values: self.values.get(count * self.columns..).unwrap_or_default(),
            blocks: self.blocks.get(count * (self.columns / BLOCK)..).unwrap_or_default(),
            supers: self.supers.get(count * (self.columns / SUPER)..).unwrap_or_default(),
        }
    }

    /// Number of rows.
    pub fn tokens(&self) -> usize {
        self.values.len() / self.columns.max(1)
    }

    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The rows as they are.
    pub fn rows(&self) -> Rows<'i, f32> {
        Rows { all: self.values, each: self.columns, count: self.tokens() }
    }

    /// The rows in blocks of 32, if the columns are a multiple of that and a matrix wanted it.
    pub fn blocks(&self) -> Rows<'i, Quantised> {
        Rows { all: self.blocks, each: self.columns / BLOCK, count: self.tokens() }
    }

    /// The rows in blocks of 256, as [`Input::blocks`].
    pub fn supers(&self) -> Rows<'i, SuperQuantised> {
        Rows { all: self.supers, each: self.columns / SUPER, count: self.tokens() }
    }
}

/// Rows of equal length.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'i, T> {
    all: &'i [T],
    each: usize,
    count: usize,
}

impl<'i, T> Rows<'i, T> {
    /// Number of rows.
    #[inline(always)]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Length of a row.
    #[inline(always)]
    pub fn length(&self) -> usize {
        self.each
    }

    /// Row `index`; empty if there is none.
    #[inline(always)]
    pub fn get(&self, index: usize) -> &'i [T] {
        if index >= self.count {
            return &[];
        }
        self.all.get(index * self.each..(index + 1) * self.each).unwrap_or_default()
    }
}

/// Activations that are all smaller pass for zeros: they have no finite inverse, and do not matter beside anything else.
const LEAST: f32 = 1e-30;

/// Quantises to -127..=127, rounding to nearest even; returns the greatest magnitude, which is NaN or infinite if an element
/// is.
#[inline(always)]
fn quantise<const N: usize>(values: &[f32; N], quants: &mut [i8; N]) -> f32 {
    // 1.5 * 2^23: adding it rounds to an integer, found in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // Magnitudes compare as their bits do, which keeps NaN: it is greater than all numbers.
    let mut lanes = [0i32; 8];
    for values in values.as_chunks::<8>().0 {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = (*lane).max((value.to_bits() & 0x7fff_ffff) as i32);
        }
    }
    let greatest = f32::from_bits(lanes.into_iter().fold(0, i32::max) as u32);
    let inverse = if greatest < LEAST { 0.0 } else { 127.0 / greatest };
    for (quant, value) in quants.iter_mut().zip(values) {
        *quant = (value * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i8;
    }
    if greatest < LEAST { 0.0 } else { greatest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_quants() {
        let values: [f32; SUPER] = core::array::from_fn(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01);
        let mut whole = SuperQuantised::ZERO;
        whole.set(&values);
        for (j, quants) in whole.quants.chunks(16).enumerate() {
            assert_eq!(whole.sums16[j], quants.iter().map(|q| i16::from(*q)).sum::<i16>());
        }
        for (j, quants) in whole.quants.chunks(32).enumerate() {
            assert_eq!(whole.sums32[j], quants.iter().map(|q| i16::from(*q)).sum::<i16>());
        }
        let mut block = Quantised::ZERO;
        block.set(values.as_chunks().0.first().unwrap());
        assert_eq!(block.sum, block.quants.iter().map(|q| i32::from(*q)).sum::<i32>());
    }

    #[test]
    fn quantising_rounds_to_nearest_even_and_keeps_what_is_not_finite() {
        let mut values = [0.0; BLOCK];
        values[..6].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -127.0]);
        let mut block = Quantised::ZERO;
        block.set(&values);
        assert_eq!(block.scale, 1.0);
        assert_eq!(block.quants[..6], [127, 0, 2, 2, 0, -127]);
        block.set(&[0.0; BLOCK]);
        assert_eq!((block.scale, block.quants), (0.0, [0; BLOCK]));
        for strange in [f32::NAN, f32::INFINITY] {
            values[7] = strange;
            block.set(&values);
            assert!(!block.scale.is_finite(), "{strange}");
        }
        let mut smallest = [0.0; BLOCK];
        smallest[3] = 1e-40;
        block.set(&smallest);
        assert!(block.scale.is_finite() && block.quants == [0; BLOCK]);
    }
}
