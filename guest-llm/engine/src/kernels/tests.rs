//! Each kernel against its definition, and SIMD variants against their portable twins, bit by bit.

use std::vec;
use std::vec::Vec;

use spin::mutex::SpinMutex;

use super::half::f32_to_f16;
use super::portable::{Q8_BLOCK, Q8_BYTES};
use super::{InputBuffer, Matrix, RowScratch, Workers, half::f16_to_f32, matmul, portable, simd};
use crate::budget::Budget;
use crate::gguf::{TensorInfo, TensorType};
use crate::parallel::Serial;

/// A reproducible sequence.
struct Numbers(u64);

impl Numbers {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 32) as u32
    }

    /// In [-1, 1).
    fn float(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    /// A Q8_0 row with elements over the whole range.
    fn q8_row(&mut self, blocks: usize) -> Vec<u8> {
        let mut row = Vec::new();
        for _ in 0..blocks {
            row.extend(f32_to_f16(self.float() / 100.0).to_le_bytes());
            row.extend((0..Q8_BLOCK).map(|_| match self.bits() % 8 {
                0 => 0x80,
                1 => 0x7f,
                _ => self.bits() as u8,
            }));
        }
        row
    }

    /// Quantised activations, extremes included.
    fn quants(&mut self, blocks: usize) -> (Vec<[i8; Q8_BLOCK]>, Vec<f32>) {
        let mut quant = || match self.bits() % 8 {
            0 => -127,
            1 => 127,
            _ => (self.bits() % 255) as i32 as i8,
        };
        let quants = (0..blocks).map(|_| core::array::from_fn(|_| quant().max(-127))).collect();
        (quants, self.floats(blocks))
    }
}

fn bytes<const N: usize, T: Copy>(values: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| f(*value)).collect()
}

fn close(found: f32, expected: f64, magnitude: f64) -> bool {
    (f64::from(found) - expected).abs() <= 1e-6 * magnitude
}

#[test]
fn float_dots_follow_their_definition_and_variants_agree() {
    let mut numbers = Numbers(1);
    for count in (0..70).chain([1000, 1003]) {
        let (x, w) = (numbers.floats(count), numbers.floats(count));
        let exact = |w: &[f32]| w.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
        let single = bytes(&w, f32::to_le_bytes);
        assert!(close(portable::dot_f32(&single, &x), exact(&w), count as f64));
        assert_eq!(portable::dot_f32(&single, &x).to_bits(), portable::dot_slices(&w, &x).to_bits());

        let half = bytes(&w, |w| f32_to_f16(w).to_le_bytes());
        let rounded: Vec<f32> = w.iter().map(|w| f16_to_f32(f32_to_f16(*w))).collect();
        let dot = portable::dot_f16(&half, &x);
        assert!(close(dot, exact(&rounded), count as f64));
        assert_eq!(dot.to_bits(), simd::dot_f16(&half, &x).to_bits(), "{count}");
        assert_eq!(dot.to_bits(), portable::dot_slices(&rounded, &x).to_bits(), "{count}");
    }
}

#[test]
fn the_order_of_summation_is_the_documented_one() {
    // 2^24 + 1 is not representable: only elements that share a sum are lost beside it.
    let big = (1u32 << 24) as f32;
    let mut x = vec![1.0; 17];
    x[0] = big;
    let ones = vec![1.0; 17];
    let mut sums = [0.0f32; 8];
    for (i, x) in x[..16].iter().enumerate() {
        sums[i % 8] += x;
    }
    let [a, b, c, d, e, f, g, h] = sums;
    let expected = (((a + e) + (b + f)) + ((c + g) + (d + h))) + 1.0;
    assert_eq!(portable::dot_slices(&ones, &x), expected);
    assert_eq!(simd::dot_f16(&bytes(&ones, |w| f32_to_f16(w).to_le_bytes()), &x), expected);
}

#[test]
fn every_half_has_the_same_product_in_all_variants() {
    for start in (0..=u16::MAX).step_by(8) {
        let halves: Vec<u16> = (start..=start + 7).collect();
        let row = bytes(&halves, u16::to_le_bytes);
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let (a, b) = (portable::dot_f16(&row, &x), simd::dot_f16(&row, &x));
        assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{start:#x}: {a} {b}");
    }
}

#[test]
fn quantised_dots_follow_their_definition_and_variants_agree() {
    let mut numbers = Numbers(2);
    for blocks in [0, 1, 2, 3, 8, 33] {
        let rows: [Vec<u8>; 4] = core::array::from_fn(|_| numbers.q8_row(blocks));
        let (quants, x_scales) = numbers.quants(blocks);
        let rows = [&*rows[0], &rows[1], &rows[2], &rows[3]];
        let mut scales = vec![[0.0; 4]; blocks];
        super::matrix::gather_scales(rows, &mut scales);
        let four = portable::dot4_q8_0(rows, &scales, &quants, &x_scales);
        let variant = simd::dot4_q8_0(rows, &scales, &quants, &x_scales);
        for (i, row) in rows.iter().enumerate() {
            let single = portable::dot_q8_0(row, &quants, &x_scales);
            assert_eq!(four[i].to_bits(), single.to_bits());
            assert_eq!(variant[i].to_bits(), single.to_bits(), "{blocks} blocks, row {i}");
            let (mut exact, mut magnitude) = (0.0, 1e-30);
            for (b, block) in row.as_chunks::<Q8_BYTES>().0.iter().enumerate() {
                let scale = f64::from(f16_to_f32(u16::from_le_bytes([block[0], block[1]])));
                for (w, x) in block[2..].iter().zip(&quants[b]) {
                    let term = f64::from(*w as i8) * scale * f64::from(*x) * f64::from(x_scales[b]);
                    exact += term;
                    magnitude += term.abs();
                }
            }
            assert!(close(single, exact, magnitude));
        }
    }
}

#[test]
fn extremes_of_the_range_do_not_overflow() {
    let mut row = [0x80u8; Q8_BYTES];
    row[..2].copy_from_slice(&f32_to_f16(1.0).to_le_bytes());
    let rows = [&row[..]; 4];
    for (quant, expected) in [(-127i8, 32.0 * 128.0 * 127.0), (127, -32.0 * 128.0 * 127.0)] {
        let dots = simd::dot4_q8_0(rows, &[[1.0; 4]], &[[quant; Q8_BLOCK]], &[1.0]);
        assert_eq!(dots, [expected; 4]);
        assert_eq!(portable::dot_q8_0(&row, &[[quant; Q8_BLOCK]], &[1.0]), expected);
    }
}

fn product(ty: TensorType, data: &[u8], shape: (usize, usize), x: &[f32]) -> Vec<f32> {
    let (columns, rows) = shape;
    let tensor = TensorInfo::for_test(ty, columns, rows, data);
    let matrix = Matrix::new(&tensor);
    let mut budget = Budget::new(usize::MAX);
    let mut buffer = InputBuffer::new(x.len(), &mut budget).unwrap();
    let scratch = [SpinMutex::new(RowScratch::new(columns, &mut budget).unwrap())];
    let workers = Workers { parallel: &Serial, scratch: &scratch };
    let input = buffer.prepare(x, columns, &[&matrix]);
    let mut out = vec![f32::NAN; x.len() / columns * rows];
    matmul(&matrix, &input, &workers, &mut out);
    for skipped in 0..x.len() / columns {
        let mut rest = vec![f32::NAN; out.len() - skipped * rows];
        matmul(&matrix, &input.skip(skipped), &workers, &mut rest);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&rest), bits(&out[skipped * rows..]));
    }
    out
}

#[test]
fn products_have_every_row_of_every_token() {
    let mut numbers = Numbers(3);
    for rows in 1..10 {
        for tokens in 1..4 {
            for columns in [32, 64, 160] {
                let x = numbers.floats(tokens * columns);
                let w = numbers.floats(rows * columns);
                let q8: Vec<u8> = (0..rows).flat_map(|_| numbers.q8_row(columns / 32)).collect();
                let halves = bytes(&w, |w| f32_to_f16(w).to_le_bytes());
                for (ty, data) in [
                    (TensorType::F32, bytes(&w, f32::to_le_bytes)),
                    (TensorType::F16, halves),
                    (TensorType::Q8_0, q8),
                ] {
                    let tensor = TensorInfo::for_test(ty, columns, rows, &data);
                    let out = product(ty, &data, (columns, rows), &x);
                    let mut row = vec![0.0; columns];
                    for (i, found) in out.iter().enumerate() {
                        Matrix::new(&tensor).expand_row(i % rows, &mut row);
                        let x = &x[i / rows * columns..][..columns];
                        let exact: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                        let most: f64 = row.iter().map(|w| f64::from(w.abs())).sum();
                        let tolerance = if ty == TensorType::Q8_0 { 0.5 / 127.0 * most } else { 1e-6 * most };
                        assert!((f64::from(*found) - exact).abs() <= tolerance, "{ty:?} {found} {exact}");
                    }
                }
            }
        }
    }
}

#[test]
fn activations_of_any_kind_are_quantised_without_harm() {
    let mut row = [1u8; Q8_BYTES];
    row[..2].copy_from_slice(&f32_to_f16(1.0).to_le_bytes());
    let dot = |x: [f32; 32]| product(TensorType::Q8_0, &row, (32, 1), &x)[0];
    assert_eq!(dot([0.0; 32]), 0.0);
    assert_eq!(dot([-3.0; 32]), -96.0);
    assert_eq!(dot([1e-38; 32]), 0.0);
    assert_eq!(dot([1e38; 32]), f32::INFINITY);
    let mut one = [0.0; 32];
    one[7] = f32::INFINITY;
    assert!(!dot(one).is_finite());
    one[7] = f32::NAN;
    assert!(dot(one).is_nan(), "a broken activation must not pass for a zero");
    // Halves round to even: 127 is the greatest, so the scale is 1.
    let mut x = [0.0; 32];
    x[..5].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5]);
    assert_eq!(dot(x), 127.0 + 0.0 + 2.0 + 2.0);
}

/// A product with one token costs one token's work, whatever the buffer has room for.
#[test]
fn a_small_batch_is_small_in_a_large_buffer() {
    let (columns, data) = (2 * Q8_BLOCK, [1; 2 * Q8_BYTES]);
    let tensor = TensorInfo::for_test(TensorType::Q8_0, columns, 1, &data);
    let matrix = Matrix::new(&tensor);
    let mut buffer = InputBuffer::new(32 * columns, &mut Budget::new(usize::MAX)).unwrap();
    for tokens in [1, 2, 31, 32] {
        let values = vec![1.0; tokens * columns];
        let input = buffer.prepare(&values, columns, &[&matrix]);
        assert_eq!(input.quantised_rows().count(), tokens);
        assert_eq!(input.skip(1).quantised_rows().count(), tokens - 1);
    }
}
