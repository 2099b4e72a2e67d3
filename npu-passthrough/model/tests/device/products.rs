//! Results are those of the engine, bit by bit, wherever tensors lie.

use flexserve_engine::gguf::TensorType;
use flexserve_engine::{Activations, Multiplier};
use flexserve_npu_abi::{Format, Job, Matrix, Rows, Status};
use flexserve_npu_model::Options;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::guest::{Guest, TENSORS};

/// A reproducible sequence.
fn bytes(count: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 32) as u32
    };
    (0..count).map(|_| next() as u8).collect()
}

fn activations(count: usize, seed: u64) -> Vec<u8> {
    bytes(count, seed).iter().flat_map(|byte| (f32::from(*byte as i8) / 16.0).to_le_bytes()).collect()
}

#[derive(Clone, Debug)]
struct Case {
    ty: TensorType,
    input: Format,
    rows: usize,
    columns: usize,
    tokens: usize,
    gaps: [u64; 3],
    skew: u64,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = (1..70usize, 1..4usize, 1..20usize);
    let ty = proptest::sample::select(&TensorType::ALL[..]);
    (ty, any::<bool>(), shape, any::<[u8; 3]>(), 0..5000u64, any::<u64>()).prop_map(
        |(ty, quantised, (rows, blocks, tokens), gaps, skew, seed)| {
            let weights = Format::of_weights(ty.number()).unwrap();
            let inputs = [Format::F32, Format::Q8_0, Format::Q8_1, Format::Q8_K];
            let possible = |format: &&Format| Format::of_input(format.number, weights).is_some();
            let input = if quantised { inputs.iter().rfind(possible) } else { inputs.iter().find(possible) };
            let columns = blocks * if ty.block_length() == 1 { 40 } else { ty.block_length() };
            let gaps = [u64::from(gaps[0]), u64::from(gaps[1]) * 4, u64::from(gaps[2]) * 4];
            Case { ty, input: *input.unwrap(), rows, columns, tokens, gaps, skew, seed }
        },
    )
}

/// What the engine computes by the definition.
fn expected(case: &Case, weights: &[u8], input: &[u8]) -> Vec<u32> {
    let mut multiplier =
        Multiplier::new(case.columns * case.tokens, case.columns, case.tokens, true).unwrap();
    assert!(multiplier.begin(case.ty, case.columns, case.tokens));
    for (token, row) in input.chunks(input.len() / case.tokens).enumerate() {
        let row = match case.input.number {
            0 => Activations::F32(row),
            8 => Activations::Q8_0(row),
            9 => Activations::Q8_1(row),
            _ => Activations::Q8K(row),
        };
        assert!(multiplier.set(token, row));
    }
    let mut out = vec![0.0; case.rows * case.tokens];
    multiplier.multiply(weights, &mut out);
    out.iter().map(|value| value.to_bits()).collect()
}

/// Rows at an IOVA, with a stride.
fn spread(guest: &Guest, iova: u64, rows: &[u8], row_bytes: u64, stride: u64) {
    for (row, bytes) in (0..).zip(rows.chunks(row_bytes as usize)) {
        guest.write(iova + row * stride, bytes);
    }
}

fn check(guest: &mut Guest, case: &Case) {
    let format = Format::of_weights(case.ty.number()).unwrap();
    let weights_bytes = format.row_bytes(case.columns as u32).unwrap();
    let input_bytes = case.input.row_bytes(case.columns as u32).unwrap();
    let weights = bytes(weights_bytes as usize * case.rows, case.seed);
    let input = match case.input.number {
        0 => activations(case.columns * case.tokens, case.seed),
        _ => bytes(input_bytes as usize * case.tokens, case.seed ^ 1),
    };
    let at = [TENSORS + case.skew, TENSORS + 0x20_0000 + 4 * case.skew, TENSORS + 0x60_0000 + 4 * case.skew];
    let strides =
        [weights_bytes + case.gaps[0], input_bytes + case.gaps[1], 4 * case.rows as u64 + case.gaps[2]];
    spread(guest, at[0], &weights, weights_bytes, strides[0]);
    spread(guest, at[1], &input, input_bytes, strides[1]);
    let matrix = Matrix {
        format: format.number,
        rows: case.rows as u32,
        columns: case.columns as u32,
        iova: at[0],
        stride: strides[0],
    };
    let rows = |i: usize| Rows { iova: at[i], stride: strides[i] };
    let job = Job::multiply(matrix, case.tokens as u32, case.input.number, rows(1), rows(2));
    let outcome = guest.run(0, &[job]);
    assert_eq!(outcome.status(), Some(Status::Ok), "{case:?} {:?}", outcome.results);
    let mut found = Vec::new();
    for token in 0..case.tokens as u64 {
        found.extend(guest.floats(at[2] + token * strides[2], case.rows));
    }
    // NaN is NaN, but which one an addition of two gives is nobody's business.
    let same = |bits: &u32| if f32::from_bits(*bits).is_nan() { f32::NAN.to_bits() } else { *bits };
    let found: Vec<u32> = found.iter().map(same).collect();
    let expected: Vec<u32> = expected(case, &weights, &input).iter().map(same).collect();
    assert_eq!(found, expected, "{case:?}");
}

fn check_all(portable: bool) {
    let mut guest = Guest::new(Options { portable, ..Options::default() });
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    let guest = std::cell::RefCell::new(&mut guest);
    TestRunner::new(config)
        .run(&cases(), |case| {
            check(&mut guest.borrow_mut(), &case);
            Ok(())
        })
        .unwrap();
}

#[test]
fn products_are_those_of_the_engine() {
    check_all(false);
}

#[test]
fn the_portable_twin_computes_the_same() {
    check_all(true);
}

/// Many tiles, in both directions.
#[test]
fn large_products_are_those_of_the_engine() {
    let mut guest = Guest::new(Options::default());
    let input = Format::F32;
    let case = Case {
        ty: TensorType::Q4K,
        input,
        rows: 700,
        columns: 1024,
        tokens: 130,
        gaps: [0; 3],
        skew: 3,
        seed: 5,
    };
    check(&mut guest, &case);
}

#[test]
fn copies_are_copies() {
    let mut guest = Guest::new(Options::default());
    let data = bytes(3 * 5000, 1);
    spread(&guest, TENSORS + 1, &data, 5000, 6000);
    let from = Rows { iova: TENSORS + 1, stride: 6000 };
    let to = Rows { iova: TENSORS + 0x10_0002, stride: 5000 };
    let outcome = guest.run(0, &[Job::copy(5000, 3, from, to)]);
    assert_eq!((outcome.status(), outcome.results[0].bytes), (Some(Status::Ok), 30_000));
    assert_eq!(guest.read(to.iova, data.len()), data);
}
