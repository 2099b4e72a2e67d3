//! Each kernel against its definition, and every instruction set against the portable twin, bit by bit.

use std::vec;
use std::vec::Vec;

use spin::mutex::SpinMutex;

use super::half::{f16_to_f32, f32_to_f16};
use super::{
    Activations, Forms, InputBuffer, Matrix, Multiplier, RowScratch, Workers, cpu, matmul, portable,
};
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

    /// A byte, the extremes more often.
    fn byte(&mut self) -> u8 {
        match self.bits() % 8 {
            0 => 0x80,
            1 => 0x7f,
            2 => 0xff,
            _ => self.bits() as u8,
        }
    }

    /// Blocks of a format, their scales small and finite.
    fn blocks(&mut self, ty: TensorType, count: usize) -> Vec<u8> {
        use TensorType::*;
        let mut bytes = Vec::new();
        for _ in 0..count {
            let start = bytes.len();
            bytes.extend((0..ty.block_bytes()).map(|_| self.byte()));
            let block = &mut bytes[start..];
            let scales: &[usize] = match ty {
                F32 => {
                    block.copy_from_slice(&self.float().to_le_bytes());
                    &[]
                }
                Bf16 => {
                    block.copy_from_slice(&self.float().to_le_bytes()[2..]);
                    &[]
                }
                F16 | Q4_0 | Q5_0 | Q8_0 => &[0],
                Q4_1 | Q5_1 | Q4K | Q5K => &[0, 2],
                Q6K => &[208],
            };
            for at in scales {
                block[*at..at + 2].copy_from_slice(&f32_to_f16(self.float() / 100.0).to_le_bytes());
            }
        }
        bytes
    }
}

fn bytes<const N: usize, T: Copy>(values: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| f(*value)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
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
        let dot = portable::dot_f32(&single, &x);
        assert!(close(dot, exact(&w), count as f64));
        assert_eq!(dot.to_bits(), portable::dot_slices(&w, &x).to_bits());
        assert_eq!(dot.to_bits(), cpu::dot_slices(&w, &x).to_bits());

        let half = bytes(&w, |w| f32_to_f16(w).to_le_bytes());
        let rounded: Vec<f32> = w.iter().map(|w| f16_to_f32(f32_to_f16(*w))).collect();
        let dot = portable::dot_f16(&half, &x);
        assert!(close(dot, exact(&rounded), count as f64));
        if count > 0 {
            let variant = product(TensorType::F16, &half, (count, 1), &x)[0];
            assert_eq!(dot.to_bits(), variant.to_bits(), "{count}");
        }
        assert_eq!(dot.to_bits(), portable::dot_slices(&rounded, &x).to_bits(), "{count}");
    }
}

#[test]
fn the_order_of_summation_is_the_documented_one() {
    // 2^24 + 1 is not representable: only elements that share a sum are lost beside it.
    let mut x = vec![1.0; 33];
    x[0] = (1u32 << 24) as f32;
    let mut sums = vec![0.0f32; 16];
    for (i, x) in x[..32].iter().enumerate() {
        sums[i % 16] += x;
    }
    while sums.len() > 1 {
        let upper = sums.split_off(sums.len() / 2);
        sums.iter_mut().zip(upper).for_each(|(sum, upper)| *sum += upper);
    }
    let ones = vec![1.0; 33];
    assert_eq!(portable::dot_slices(&ones, &x), sums[0] + 1.0);
    assert_eq!(cpu::dot_slices(&ones, &x), sums[0] + 1.0);
}

#[test]
fn floats_are_multiplied_and_added_with_one_rounding() {
    let (w, x) = ([1.0 + f32::EPSILON; 1], [1.0 - f32::EPSILON; 1]);
    let w = [[-1.0].as_slice(), &w].concat();
    let x = [[1.0].as_slice(), &x].concat();
    // The product is 1 - 2^-46, which alone would round to 1.
    assert_eq!(cpu::dot_slices(&w, &x), -(2.0f32.powi(-46)));
    assert_eq!(portable::dot_slices(&w, &x), -(2.0f32.powi(-46)));
}

#[test]
fn every_half_has_the_same_product_in_all_variants() {
    for start in (0..=u16::MAX).step_by(16) {
        // What is no number has many forms, of which instruction sets choose different ones.
        let is_nan = |half: &u16| f16_to_f32(*half).is_nan();
        let halves: Vec<u16> = (start..=start + 15).filter(|half| !is_nan(half)).collect();
        if halves.is_empty() {
            continue;
        }
        let row = bytes(&halves, u16::to_le_bytes);
        let x: Vec<f32> = (1..=halves.len()).map(|i| i as f32).collect();
        let (a, b) = (portable::dot_f16(&row, &x), product(TensorType::F16, &row, (x.len(), 1), &x)[0]);
        assert_eq!(a.to_bits(), b.to_bits(), "{start:#x}: {a} {b}");
    }
}

/// Products by the definition and by every instruction set that this CPU has, compared.
fn product(ty: TensorType, data: &[u8], shape: (usize, usize), x: &[f32]) -> Vec<f32> {
    let (columns, rows) = shape;
    let tensor = TensorInfo::for_test(ty, columns, rows, data);
    let matrix = Matrix::new(&tensor);
    let mut budget = Budget::new(usize::MAX);
    let mut buffer = InputBuffer::new(x.len(), Forms::of([ty].into_iter()), &mut budget).unwrap();
    let scratch = [SpinMutex::new(RowScratch::new(columns, x.len() / columns, &mut budget).unwrap())];
    let workers = Workers { parallel: &Serial, scratch: &scratch };
    let input = buffer.prepare(x, columns, &[&matrix]);
    let mut expected = vec![f32::NAN; x.len() / columns * rows];
    let row_bytes = data.len() / rows;
    for (i, out) in expected.iter_mut().enumerate() {
        let row = &data[i % rows * row_bytes..][..row_bytes];
        *out = portable::dot_row(ty, row, &input, i / rows);
    }
    #[cfg(target_arch = "x86_64")]
    for level in super::x86::Level::ALL {
        let mut out = vec![f32::NAN; expected.len()];
        if super::matrix::matmul_at(level, &matrix, &input, &workers, &mut out) {
            assert_eq!(bits(&out), bits(&expected), "{ty:?} {level:?} {rows} x {columns}");
        }
    }
    let mut out = vec![f32::NAN; expected.len()];
    matmul(&matrix, &input, &workers, &mut out);
    assert_eq!(bits(&out), bits(&expected), "{ty:?} {rows} x {columns}");
    for skipped in 0..x.len() / columns {
        let mut rest = vec![f32::NAN; out.len() - skipped * rows];
        matmul(&matrix, &input.skip(skipped), &workers, &mut rest);
        assert_eq!(bits(&rest), bits(&out[skipped * rows..]));
    }
    out
}

#[test]
fn products_of_every_format_follow_their_definition() {
    let mut numbers = Numbers(3);
    for ty in TensorType::ALL {
        let length = ty.block_length();
        for (rows, tokens) in [(1, 1), (2, 2), (7, 3), (8, 4), (9, 5), (16, 9), (17, 8), (35, 21)] {
            for columns in [length, 3 * length, 1280 / length * length].map(|columns| columns.max(24)) {
                let x = numbers.floats(tokens * columns);
                let data = numbers.blocks(ty, rows * columns / length);
                let tensor = TensorInfo::for_test(ty, columns, rows, &data);
                let out = product(ty, &data, (columns, rows), &x);
                let mut row = vec![0.0; columns];
                for (i, found) in out.iter().enumerate() {
                    Matrix::new(&tensor).expand_row(i % rows, &mut row);
                    let x = &x[i / rows * columns..][..columns];
                    let exact: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    let most: f64 = row.iter().map(|w| f64::from(w.abs())).sum();
                    let tolerance = if length == 1 { 1e-6 * most } else { 0.5 / 127.0 * most };
                    assert!((f64::from(*found) - exact).abs() <= tolerance, "{ty:?} {found} {exact}");
                }
            }
        }
    }
}

/// The greatest and the least of everything: sums must not overflow.
#[test]
fn extremes_of_the_range_do_not_overflow() {
    for ty in TensorType::ALL {
        if ty.block_length() == 1 {
            continue;
        }
        for byte in [0x00u8, 0x7f, 0x80, 0xff] {
            for sign in [-1.0f32, 1.0] {
                let mut block = vec![byte; ty.block_bytes()];
                let one = f32_to_f16(1.0).to_le_bytes();
                let at = if ty == TensorType::Q6K { 208 } else { 0 };
                block[at..at + 2].copy_from_slice(&one);
                if matches!(ty, TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K) {
                    block[2..4].copy_from_slice(&one);
                }
                let columns = ty.block_length();
                let data = block.repeat(16);
                let x = vec![sign * 127.0; 8 * columns];
                let mut row = vec![0.0; columns];
                Matrix::new(&TensorInfo::for_test(ty, columns, 16, &data)).expand_row(0, &mut row);
                let expected: f64 = row.iter().map(|w| f64::from(*w) * f64::from(sign) * 127.0).sum();
                for found in product(ty, &data, (columns, 16), &x) {
                    assert!(
                        close(found, expected, expected.abs() + 1.0),
                        "{ty:?} {byte:#x} {found} {expected}"
                    );
                }
            }
        }
    }
}

/// What the `gguf` Python package makes of random blocks.
#[test]
fn blocks_stand_for_what_others_read_from_them() {
    let text = include_str!("../../../../tests/models/formats.json");
    let fixture: serde_json::Value = serde_json::from_str(text).unwrap();
    let bytes = |hex: &serde_json::Value| -> Vec<u8> {
        let digits = hex.as_str().unwrap().as_bytes().chunks(2);
        digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    };
    let formats = fixture["formats"].as_array().unwrap();
    assert_eq!(formats.len(), TensorType::ALL.len());
    for format in formats {
        let ty = TensorType::from_number(format["number"].as_u64().unwrap() as u32).unwrap();
        assert_eq!(format["name"].as_str(), Some(ty.name()));
        assert_eq!(format["block_length"].as_u64(), Some(ty.block_length() as u64));
        assert_eq!(format["block_bytes"].as_u64(), Some(ty.block_bytes() as u64));
        let (data, values) = (bytes(&format["data"]), bytes(&format["values"]));
        let values: Vec<f32> = values.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        assert!(!values.is_empty() && data.len() / ty.block_bytes() * ty.block_length() == values.len());
        let mut out = vec![f32::NAN; values.len()];
        super::blocks::expand(ty, &data, &mut out);
        for (found, expected) in out.iter().zip(values) {
            let tolerance = 1e-6 * (1.0 + expected.abs());
            assert!((found - expected).abs() <= tolerance, "{ty:?} {found} {expected}");
        }
    }
}

#[test]
fn activations_of_any_kind_are_quantised_without_harm() {
    for ty in [TensorType::Q8_0, TensorType::Q6K] {
        let columns = ty.block_length();
        let mut block = vec![1u8; ty.block_bytes()];
        let mut row = vec![0.0; columns];
        let at = if ty == TensorType::Q6K { 208 } else { 0 };
        block[at..at + 2].copy_from_slice(&f32_to_f16(1.0).to_le_bytes());
        Matrix::new(&TensorInfo::for_test(ty, columns, 1, &block)).expand_row(0, &mut row);
        let sum: f32 = row.iter().sum();
        let dot = |x: &[f32]| product(ty, &block, (columns, 1), x)[0];
        assert_eq!(dot(&vec![0.0; columns]), 0.0);
        assert_eq!(dot(&vec![-127.0; columns]), -127.0 * sum);
        assert_eq!(dot(&vec![1e-38; columns]), 0.0);
        assert!(dot(&vec![1e38; columns]).is_infinite());
        let mut one = vec![0.0; columns];
        one[7] = f32::NAN;
        let matrix = TensorInfo::for_test(ty, columns, 1, &block);
        let matrix = Matrix::new(&matrix);
        let mut budget = Budget::new(usize::MAX);
        let mut buffer = InputBuffer::new(columns, Forms::of([ty].into_iter()), &mut budget).unwrap();
        let input = buffer.prepare(&one, columns, &[&matrix]);
        assert!(
            portable::dot_row(ty, &block, &input, 0).is_nan(),
            "a broken activation must not pass for a zero"
        );
    }
}

/// A product with one token costs one token's work, whatever the buffer has room for.
#[test]
fn a_small_batch_is_small_in_a_large_buffer() {
    for ty in [TensorType::Q8_0, TensorType::Q4K] {
        let columns = 256;
        let data = Numbers(5).blocks(ty, columns / ty.block_length());
        let tensor = TensorInfo::for_test(ty, columns, 1, &data);
        let matrix = Matrix::new(&tensor);
        let forms = Forms::of([TensorType::Q8_0, TensorType::Q4K].into_iter());
        let mut buffer = InputBuffer::new(32 * columns, forms, &mut Budget::new(usize::MAX)).unwrap();
        for tokens in [1, 2, 31, 32] {
            let values = vec![1.0; tokens * columns];
            let input = buffer.prepare(&values, columns, &[&matrix]);
            assert_eq!((input.blocks().count(), input.supers().count()), (tokens, tokens));
            assert_eq!(input.skip(1).blocks().count(), tokens - 1);
        }
    }
}

#[test]
fn devices_get_the_same_bits_from_any_form_of_activations() {
    let mut numbers = Numbers(7);
    for portable in [false, true] {
        let mut multiplier = Multiplier::new(512 * 9, 512, 9, portable).unwrap();
        assert!(multiplier.is_scrubbed());
        for ty in TensorType::ALL {
            for tokens in [1, 3, 9] {
                let (columns, rows) = (512, 37);
                let data = numbers.blocks(ty, columns / ty.block_length() * rows);
                let x = numbers.floats(columns * tokens);
                let expected = product(ty, &data, (columns, rows), &x);
                let forms: &[u32] = match ty.block_length() {
                    32 if ty.has_minimum() => &[0, 9],
                    32 => &[0, 8, 9],
                    256 => &[0, 15],
                    _ => &[0],
                };
                for form in forms {
                    assert!(multiplier.begin(ty, columns, tokens));
                    for (token, x) in x.chunks(columns).enumerate() {
                        let bytes = quantised(*form, x);
                        assert!(multiplier.set(
                            token,
                            match form {
                                0 => Activations::F32(&bytes),
                                8 => Activations::Q8_0(&bytes),
                                9 => Activations::Q8_1(&bytes),
                                _ => Activations::Q8K(&bytes),
                            }
                        ));
                        assert!(!multiplier.set(token, Activations::F32(&bytes[1..])));
                        assert!(!multiplier.set(tokens, Activations::F32(&bytes)));
                    }
                    let mut out = vec![0.0; rows * tokens];
                    multiplier.multiply(&data, &mut out);
                    assert_eq!(bits(&out), bits(&expected), "{ty:?} {tokens} {form} {portable}");
                }
            }
        }
        assert!(!multiplier.is_scrubbed());
        multiplier.scrub();
        assert!(multiplier.is_scrubbed());
    }
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let mut multiplier = Multiplier::new(1024, 512, 3, false).unwrap();
    for (columns, tokens) in [(0, 1), (512, 0), (500, 1), (544, 1), (512, 3), (32, 4), (usize::MAX, 2)] {
        assert!(!multiplier.begin(TensorType::Q8_0, columns, tokens), "{columns} {tokens}");
        assert!(!multiplier.set(0, Activations::Q8_0(&[])));
        multiplier.multiply(&[0; 100], &mut [0.0; 3]);
    }
    assert!(multiplier.begin(TensorType::Q4K, 512, 2));
    assert!(!multiplier.set(0, Activations::Q8_0(&[0; 34 * 16])), "blocks of 32");
    // Part of a row, and too little room for the products: nothing happens beyond.
    multiplier.multiply(&[0; 300], &mut [0.0; 1]);
}

/// Activations in one of ggml's formats.
fn quantised(form: u32, x: &[f32]) -> Vec<u8> {
    use super::activations::{Quantised, SuperQuantised};
    let mut bytes = Vec::new();
    let half = |value| f32_to_f16(value).to_le_bytes();
    match form {
        0 => x.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        15 => x.as_chunks().0.iter().for_each(|x| {
            let mut block = SuperQuantised::ZERO;
            block.set(x);
            bytes.extend(block.scale.to_le_bytes());
            bytes.extend(block.quants.map(|quant| quant as u8));
            bytes.extend(block.sums16.iter().flat_map(|sum| sum.to_le_bytes()));
        }),
        form => x.as_chunks().0.iter().for_each(|x| {
            let mut block = Quantised::ZERO;
            block.set(x);
            bytes.extend(half(block.scale));
            if form == 9 {
                bytes.extend(half(block.total));
            }
            bytes.extend(block.quants.map(|quant| quant as u8));
        }),
    }
    bytes
}
