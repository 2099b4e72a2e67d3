//! The transformer against a plain one in double precision, and against itself in other batches.

mod support;

use flexserve_engine::{Error, Flow, KvFormat, Limits, Model, Session, SessionConfig};
use support::reference::{Random, Scaling, Shape};
use support::{F16, F32, Q8_0};

/// Tokens that end in the middle of a chunk of keys and values.
fn tokens(count: usize) -> Vec<u32> {
    (0..count).map(|i| 1 + (i * i * 37 + i * 11) as u32 % 270).collect()
}

fn logits(model: &Model<'_>, tokens: &[u32], batch: usize, kv: KvFormat) -> Vec<f32> {
    let config = SessionConfig { batch, kv, ..SessionConfig::for_model(model) };
    let mut session = Session::new(model, &config).unwrap();
    assert_eq!(session.prefill(tokens, &mut |_, _| Flow::Continue), Ok(Flow::Continue));
    assert_eq!(session.position(), tokens.len());
    session.logits().to_vec()
}

/// Largest difference, relative to the spread of the expected values.
fn difference(logits: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(logits.len(), expected.len());
    let spread = (expected.iter().map(|e| e * e).sum::<f64>() / expected.len() as f64).sqrt();
    let worst = logits.iter().zip(expected).map(|(l, e)| (f64::from(*l) - e).abs()).fold(0.0, f64::max);
    worst / spread
}

fn compare(shape: &Shape, tolerance: f64) {
    let random = Random::new(shape, 42);
    let file = random.file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let tokens = tokens(37);
    let expected = random.logits(&tokens);
    let config = SessionConfig { kv: KvFormat::F32, ..SessionConfig::for_model(&model) };
    let mut session = Session::new(&model, &config).unwrap();
    for (token, expected) in tokens.iter().zip(&expected) {
        session.decode(*token).unwrap();
        let difference = difference(session.logits(), expected);
        assert!(difference < tolerance, "{difference} with {shape:?}");
    }
}

#[test]
fn every_weight_format_gives_the_reference_logits() {
    compare(&Shape::tiny(&[F32]), 1e-4);
    compare(&Shape::tiny(&[F16]), 1e-4);
    compare(&Shape::tiny(&[Q8_0]), 3e-2); // rounding of activations may go the other way
    compare(&Shape::tiny(&[Q8_0, F16, F32, Q8_0, F32]), 3e-2);
}

#[test]
fn every_shape_gives_the_reference_logits() {
    let tiny = Shape::tiny(&[F32]);
    let shapes = [
        Shape { kv_heads: 4, ..tiny.clone() },
        Shape { kv_heads: 1, ..tiny.clone() },
        Shape { heads: 1, kv_heads: 1, ..tiny.clone() },
        Shape { tied: false, ..tiny.clone() },
        Shape { rope_dimensions: 8, ..tiny.clone() },
        Shape { rope_freqs: true, ..tiny.clone() },
        Shape { rope_scaling: Scaling::Linear(4.0, true), ..tiny.clone() },
        Shape { rope_scaling: Scaling::Linear(4.0, false), ..tiny.clone() },
        Shape { rope_scaling: Scaling::Yarn(4.0, 256, 1.0), ..tiny.clone() },
        Shape { rope_scaling: Scaling::Yarn(8.0, 32, 0.9), rope_freqs: true, ..tiny.clone() },
        Shape { biases: true, ..tiny.clone() },
        Shape { key_length: 24, rope_dimensions: 24, value_length: 8, ..tiny.clone() },
        Shape { width: 60, hidden: 50, key_length: 10, rope_dimensions: 10, value_length: 7, ..tiny.clone() },
        Shape { layers: 1, ..tiny.clone() },
        Shape { layers: 5, ..tiny },
    ];
    for shape in &shapes {
        compare(shape, 1e-4);
    }
}

#[test]
fn every_architecture_gives_the_reference_logits() {
    for architecture in ["llama", "qwen2", "qwen3"] {
        let tiny = Shape { architecture, ..Shape::tiny(&[F32]) };
        // In qwen3 models the heads' length does not follow from the width.
        let own_heads = Shape { key_length: 24, value_length: 24, rope_dimensions: 24, ..tiny.clone() };
        let shapes = [
            Shape { biases: true, ..tiny.clone() },
            Shape { tied: false, ..tiny.clone() },
            Shape { rope_dimensions: 8, ..tiny.clone() },
            Shape { rope_scaling: Scaling::Yarn(4.0, 256, 1.0), ..tiny.clone() },
            own_heads,
            tiny,
        ];
        for shape in &shapes {
            compare(shape, 1e-4);
        }
        compare(&Shape { architecture, ..Shape::tiny(&[F16, Q8_0]) }, 3e-2);
    }
}

#[test]
fn the_batch_makes_no_difference_to_any_bit() {
    let shapes = [&[Q8_0][..], &[F16], &[F32], &[F16, Q8_0]].map(Shape::tiny);
    let qwen3 = Shape { architecture: "qwen3", ..Shape::tiny(&[Q8_0]) };
    for shape in shapes.into_iter().chain([qwen3]) {
        let file = Random::new(&shape.with_heads_of(32), 7).file.bytes();
        let model = Model::load(&file, &Limits::default()).unwrap();
        for kv in KvFormat::ALL {
            let tokens = tokens(50);
            let expected = logits(&model, &tokens, 1, kv);
            for batch in [3, 16, 49, 1000] {
                let logits = logits(&model, &tokens, batch, kv);
                assert!(logits.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{batch}");
            }
        }
    }
}

/// The constants were computed on x86-64; the test also runs on aarch64, with SIMD kernels.
#[test]
fn logits_have_the_same_bits_on_every_target() {
    let hash = |types: &[u32], kv| {
        let shape = Shape { rope_freqs: true, tied: false, ..Shape::tiny(types).with_heads_of(32) };
        let file = Random::new(&shape, 8).file.bytes();
        let model = Model::load(&file, &Limits::default()).unwrap();
        let logits = logits(&model, &tokens(60), 7, kv);
        // FNV-1a, 64 bits.
        let bytes = logits.iter().flat_map(|logit| logit.to_le_bytes());
        bytes.fold(0xcbf29ce484222325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100000001b3))
    };
    let found = [
        hash(&[Q8_0], KvFormat::F16),
        hash(&[Q8_0], KvFormat::F32),
        hash(&[F16, F32], KvFormat::F16),
        hash(&[F16, F32], KvFormat::F32),
        hash(&[Q8_0], KvFormat::Q8_0),
    ];
    assert_eq!(
        found,
        [0xb3387e8d7f627687, 0xea60dbf242a4ab51, 0x040ad9f931b02e9e, 0x2bcc998f592399a1, 0xfad199c881076d4c],
        "{found:#x?}"
    );
}

#[test]
fn half_precision_keys_and_values_differ_little() {
    let random = Random::new(&Shape::tiny(&[F32]), 9);
    let file = random.file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let tokens = tokens(40);
    let expected = random.logits(&tokens);
    let found = difference(&logits(&model, &tokens, 8, KvFormat::F16), expected.last().unwrap());
    assert!(found > 1e-5, "half precision is not used at all: {found}");
    assert!(found < 1e-2, "{found}");
}

#[test]
fn quantised_keys_and_values_differ_little_more() {
    let random = Random::new(&Shape::tiny(&[F32]).with_heads_of(64), 9);
    let file = random.file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let tokens = tokens(40);
    let expected = random.logits(&tokens);
    let found = difference(&logits(&model, &tokens, 8, KvFormat::Q8_0), expected.last().unwrap());
    assert!(found > 1e-3, "8 bits are not used at all: {found}");
    assert!(found < 5e-2, "{found}");
}

#[test]
fn quantised_keys_need_heads_of_whole_blocks() {
    let shape = Shape::tiny(&[F32]).with_heads_of(32);
    for (key_length, value_length, fits) in [(32, 64, true), (16, 32, false), (32, 48, false)] {
        let shape = Shape { key_length, rope_dimensions: key_length, value_length, ..shape.clone() };
        let file = Random::new(&shape, 1).file.bytes();
        let model = Model::load(&file, &Limits::default()).unwrap();
        let config = SessionConfig { kv: KvFormat::Q8_0, ..SessionConfig::for_model(&model) };
        let refused = matches!(Session::new(&model, &config), Err(Error::Parameter { .. }));
        assert_eq!(refused, !fits, "{key_length} {value_length}");
        assert_eq!(Session::required_bytes(&model, &config).is_ok(), fits);
    }
}

#[test]
fn a_session_keeps_to_its_context_and_vocabulary() {
    let file = Random::new(&Shape::tiny(&[Q8_0]), 1).file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let config = SessionConfig { context: 20, batch: 8, ..SessionConfig::for_model(&model) };
    let mut session = Session::new(&model, &config).unwrap();
    assert!(session.logits().is_empty());
    let go_on = &mut |_, _| Flow::Continue;
    assert_eq!(session.prefill(&tokens(21), go_on), Err(Error::ContextFull { tokens: 21, left: 20 }));
    assert_eq!(session.prefill(&[1, 271], go_on), Err(Error::UnknownToken(271)));
    assert_eq!(session.position(), 0);
    let mut progress = Vec::new();
    let flow = session.prefill(&tokens(20), &mut |done, total| {
        progress.push((done, total));
        if done == 16 { Flow::Stop } else { Flow::Continue }
    });
    assert_eq!((flow, session.position()), (Ok(Flow::Stop), 16));
    assert_eq!(progress, [(8, 20), (16, 20)]);
    session.prefill(&tokens(20)[16..], go_on).unwrap();
    assert_eq!(session.decode(1), Err(Error::ContextFull { tokens: 1, left: 0 }));

    let whole = session.logits().to_vec();
    session.reset();
    assert!(session.logits().is_empty());
    session.prefill(&tokens(20), go_on).unwrap();
    assert_eq!(session.logits(), whole);

    for (context, batch) in [(0, 1), (65, 1), (20, 0)] {
        let config = SessionConfig { context, batch, ..config.clone() };
        assert!(matches!(Session::new(&model, &config), Err(Error::Parameter { .. })));
    }
}

#[test]
fn broken_weights_are_reported_and_do_no_harm() {
    // NaN and infinite scales, the most negative quants.
    for bits in [0x7e00u16, 0x7c00, 0xfc00] {
        let mut random = Random::new(&Shape::tiny(&[Q8_0]), 3);
        for tensor in random.file.tensors.iter_mut().filter(|tensor| tensor.ty == Q8_0) {
            for block in tensor.data.chunks_exact_mut(34).step_by(5) {
                block.fill(0x80);
                block[..2].copy_from_slice(&bits.to_le_bytes());
            }
        }
        let file = random.file.bytes();
        let model = Model::load(&file, &Limits::default()).unwrap();
        let logits = logits(&model, &tokens(20), 8, KvFormat::F16);
        let mut sampler = flexserve_engine::Sampler::new(&Default::default(), logits.len()).unwrap();
        assert_eq!(sampler.sample(&logits), Err(Error::Logits));
    }
}
