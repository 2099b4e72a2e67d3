//! What a context keeps from one request to the next, and what it forgets when it is full.

mod support;

use flexserve_engine::{
    Conversation, Error, Event, Flow, KvFormat, Limits, Model, Report, Request, Session, SessionConfig,
    StopReason, generate,
};
use support::reference::{Random, Scaling, Shape};
use support::{F32, Q8_0};

fn go_on(_: usize, _: usize) -> Flow {
    Flow::Continue
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count).map(|i| 1 + (i * i * 37 + i * 11) as u32 % 270).collect()
}

fn bits(session: &Session<'_>) -> Vec<u32> {
    session.logits().iter().map(|logit| logit.to_bits()).collect()
}

/// Largest difference, relative to the spread of the expected values.
fn difference(logits: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(logits.len(), expected.len());
    let spread = (expected.iter().map(|e| e * e).sum::<f64>() / expected.len() as f64).sqrt();
    let worst = logits.iter().zip(expected).map(|(l, e)| (f64::from(*l) - e).abs()).fold(0.0, f64::max);
    worst / spread
}

#[test]
fn a_prefix_that_is_kept_changes_no_bit() {
    let file = Random::new(&Shape::tiny(&[Q8_0]).with_heads_of(32), 11).file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    for kv in KvFormat::ALL {
        let config = SessionConfig { kv, batch: 7, ..SessionConfig::for_model(&model) };
        let mut session = Session::new(&model, &config).unwrap();
        let mut fresh = Session::new(&model, &config).unwrap();
        let base = tokens(40);
        let mut other = base.clone();
        other[23] = 5;
        let longer = [&base[..], &[7, 8, 9]].concat();
        // Each prompt, and how much of it the one before left.
        for (prompt, expected) in
            [(&base, 0), (&base, 39), (&other, 23), (&base, 23), (&longer, 40), (&base[..10].to_vec(), 9)]
        {
            let kept = session.keep_prefix(prompt);
            assert_eq!((kept, session.position()), (expected, expected));
            session.prefill(&prompt[kept..], &mut go_on).unwrap();
            assert_eq!(session.tokens(), &prompt[..]);
            fresh.reset();
            fresh.prefill(prompt, &mut go_on).unwrap();
            assert_eq!(bits(&session), bits(&fresh), "{kv:?}");
            // What follows depends on keys and values alone.
            for token in [3, 4] {
                session.decode(token).unwrap();
                fresh.decode(token).unwrap();
                assert_eq!(bits(&session), bits(&fresh), "{kv:?}");
            }
        }
        assert_eq!(session.keep_prefix(&[]), 0);
        assert!(session.tokens().is_empty());
    }
}

#[test]
fn requests_use_what_they_have_in_common() {
    let file = Random::new(&Shape::tiny(&[Q8_0]), 5).file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let config = SessionConfig { batch: 4, ..SessionConfig::for_model(&model) };
    let ask = |session: &mut Session<'_>, prompt: &str| -> (Report, String, Vec<(usize, usize)>) {
        let request = Request { max_tokens: 6, ..Request::new(prompt) };
        let (mut text, mut progress) = (String::new(), Vec::new());
        let report = generate(session, &request, &mut |event| {
            match event {
                Event::Text(piece) => text.push_str(piece),
                Event::Prefill { done, total } => progress.push((done, total)),
                _ => {}
            }
            Flow::Continue
        });
        (report.unwrap(), text, progress)
    };
    let mut session = Session::new(&model, &config).unwrap();
    let common = "the the the the the ";
    for (prompt, least) in [("the the the the the b", 0), ("the the the the the the", 5), (common, 5)] {
        let (report, text, progress) = ask(&mut session, prompt);
        let (fresh, expected, _) = ask(&mut Session::new(&model, &config).unwrap(), prompt);
        assert_eq!(text, expected);
        assert!(report.reused_tokens >= least && (least > 0 || report.reused_tokens == 0), "{report:?}");
        assert_eq!(Report { reused_tokens: 0, ..report }, fresh);
        let last = (report.prompt_tokens, report.prompt_tokens);
        assert_eq!(progress.last(), Some(&last));
        assert!(progress.iter().all(|(done, _)| *done > report.reused_tokens));
    }
}

/// Appends tokens one by one, in a context of 64 with 16 kept at least; returns the logits after each.
fn shifting(random: &Random, kv: KvFormat, keep: usize, tokens: &[u32]) -> Vec<Vec<f32>> {
    let file = random.file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let config =
        SessionConfig { kv, context: 64, context_shift: Some(keep), ..SessionConfig::for_model(&model) };
    let mut session = Session::new(&model, &config).unwrap();
    let append = |token: &u32| {
        session.decode(*token).unwrap();
        assert!((1..=64).contains(&session.position()) && session.room() > 0);
        session.logits().to_vec()
    };
    tokens.iter().map(append).collect()
}

#[test]
fn a_shift_follows_its_definition() {
    let tiny = Shape { layers: 3, ..Shape::tiny(&[F32]) };
    let shapes = [
        tiny.clone(),
        Shape { rope_dimensions: 8, ..tiny.clone() },
        Shape { rope_freqs: true, ..tiny.clone() },
        Shape { rope_scaling: Scaling::Linear(4.0, true), kv_heads: 1, ..tiny.clone() },
        Shape { rope_scaling: Scaling::Yarn(4.0, 256, 1.0), ..tiny.clone() },
        Shape { architecture: "qwen2", ..tiny.clone() },
        Shape { architecture: "qwen3", ..tiny.clone() },
        tiny.with_heads_of(32),
    ];
    // 64 tokens fit. With 16 kept, three chunks can go, of which half, rounded up, are two; with 17 kept, one of two.
    let (wide, narrow) = ([(64, 16..48), (96, 16..48)], [(64, 32..48), (80, 32..48), (96, 32..48)]);
    for shape in &shapes {
        let random = Random::new(shape, 42);
        let tokens = tokens(110);
        for (keep, shifts) in [(0, &wide[..]), (16, &wide), (17, &narrow)] {
            let expected = random.logits_with_shifts(&tokens, shifts);
            let without = random.logits_with_shifts(&tokens, &[]);
            let (mut worst, mut changed) = (0.0f64, 0.0f64);
            let found = shifting(&random, KvFormat::F32, keep, &tokens);
            for ((found, expected), without) in found.iter().zip(&expected).zip(&without) {
                worst = worst.max(difference(found, expected));
                changed = changed.max(difference(found, without));
            }
            assert!(worst < 1e-4, "{worst} with {keep} kept and {shape:?}");
            assert!(changed > 1e-2, "a shift that makes no difference tests nothing: {changed}");
        }
    }
}

#[test]
fn a_shift_of_rounded_keys_differs_little() {
    let random = Random::new(&Shape::tiny(&[F32]).with_heads_of(32), 42);
    let tokens = tokens(110);
    let expected = random.logits_with_shifts(&tokens, &[(64, 16..48), (96, 16..48)]);
    for (kv, bound) in [(KvFormat::F16, 1e-2), (KvFormat::Q8_0, 0.15)] {
        let found = shifting(&random, kv, 0, &tokens);
        let differences: Vec<f64> = found.iter().zip(&expected).map(|(f, e)| difference(f, e)).collect();
        let (before, after) = differences.split_at(64);
        let [before, after] = [before, after].map(|some| some.iter().copied().fold(0.0, f64::max));
        // Keys are rounded once more with every shift.
        assert!(after < 3.0 * before && after < bound, "{after} after {before} with {kv:?}");
    }
}

/// In the first layer a key depends on nothing but its token and position: with one layer, a shifted context is that of the
/// tokens that are left.
#[test]
fn with_one_layer_a_shift_is_as_if_the_forgotten_had_never_been() {
    let file = Random::new(&Shape { layers: 1, ..Shape::tiny(&[F32]) }, 3).file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let config = SessionConfig { kv: KvFormat::F32, ..SessionConfig::for_model(&model) };
    let mut session = Session::new(&model, &config).unwrap();
    let all = tokens(60);
    session.prefill(&all[..59], &mut go_on).unwrap();
    // Of 59 tokens two whole chunks and 11 tokens follow the first 16.
    assert_eq!((session.shift(1), session.position()), (16, 43));
    session.decode(all[59]).unwrap();
    let left = [&all[..16], &all[32..]].concat();
    assert_eq!(session.tokens(), left);
    let mut fresh = Session::new(&model, &config).unwrap();
    fresh.prefill(&left, &mut go_on).unwrap();
    let expected: Vec<f64> = fresh.logits().iter().map(|logit| f64::from(*logit)).collect();
    let found = difference(session.logits(), &expected);
    assert!(found < 1e-5, "{found}");

    // What was shifted is not the prefix of another prompt, however equal it looks; what was kept is.
    assert_eq!(session.keep_prefix(&left), 16);
    session.prefill(&left[16..], &mut go_on).unwrap();
    assert_eq!(bits(&session), bits(&fresh));
}

#[test]
fn room_is_made_for_whole_prompts_too_and_only_if_it_can_be() {
    let file = Random::new(&Shape::tiny(&[Q8_0]), 3).file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let config = SessionConfig { context: 60, ..SessionConfig::for_model(&model) };
    let off = Session::new(&model, &config).map(|mut session| {
        session.prefill(&tokens(60), &mut go_on).unwrap();
        (session.room(), session.decode(1))
    });
    assert_eq!(off, Ok((0, Err(Error::ContextFull { tokens: 1, left: 0 }))));

    let config = SessionConfig { context_shift: Some(20), ..config };
    let mut session = Session::new(&model, &config).unwrap();
    session.prefill(&tokens(55), &mut go_on).unwrap();
    // 32 are kept, so that of 55 one whole chunk can go.
    assert_eq!(session.room(), 21);
    let full = Err(Error::ContextFull { tokens: 22, left: 21 });
    assert_eq!(session.prefill(&tokens(22), &mut go_on), full);
    assert_eq!(session.prefill(&[1, 9999], &mut go_on), Err(Error::UnknownToken(9999)));
    assert_eq!(session.position(), 55);
    assert_eq!(session.prefill(&tokens(21), &mut go_on), Ok(Flow::Continue));
    assert_eq!((session.position(), session.room()), (60, 16));
    // Nothing can go of a context that holds hardly more than what is kept.
    for keep in [44, 1000, usize::MAX] {
        let config = SessionConfig { context_shift: Some(keep), ..config.clone() };
        let mut session = Session::new(&model, &config).unwrap();
        session.prefill(&tokens(60), &mut go_on).unwrap();
        assert_eq!((session.room(), session.shift(keep)), (0, 0));
        assert_eq!(session.decode(1), Err(Error::ContextFull { tokens: 1, left: 0 }));
    }
}

#[test]
fn an_answer_goes_on_beyond_the_context() {
    let file = Random::new(&Shape::tiny(&[Q8_0]), 5).file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let config = SessionConfig { context: 48, ..SessionConfig::for_model(&model) };
    let request = Request { max_tokens: 200, ..Request::new("the the") };
    let run = |config| {
        let mut session = Session::new(&model, &config).unwrap();
        let mut text = String::new();
        let report = generate(&mut session, &request, &mut |event| {
            if let Event::Text(piece) = event {
                text.push_str(piece);
            }
            Flow::Continue
        });
        (report.unwrap(), text)
    };
    let (short, beginning) = run(config.clone());
    assert_eq!(short.stop, StopReason::ContextFull);
    let (long, text) = run(SessionConfig { context_shift: Some(0), ..config });
    assert_eq!((long.stop, long.tokens), (StopReason::MaxTokens, 200));
    assert!(text.starts_with(beginning.trim_end_matches('\u{fffd}')), "{text:?} {beginning:?}");
}

#[test]
fn a_conversation_goes_on_beyond_the_context_and_survives_what_is_stopped() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny-chat.gguf");
    let file = std::fs::read(path).unwrap();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let config =
        SessionConfig { context: 96, batch: 8, context_shift: Some(0), ..SessionConfig::for_model(&model) };
    let mut session = Session::new(&model, &config).unwrap();
    let mut conversation = Conversation::new();
    let request = Request { max_tokens: 20, ..Request::new("wake me at six") };
    let mut total = 0;
    for turn in 0..12 {
        let before = session.position();
        // Every third turn is stopped before its answer begins, and is as if it had not been.
        if turn % 3 == 2 {
            let stop = &mut |_: Event<'_>| Flow::Stop;
            let report = conversation.answer(&mut session, &request, stop).unwrap();
            assert_eq!((report.stop, report.tokens), (StopReason::Cancelled, 0));
            assert!(session.position() <= before && session.position() > 0);
            continue;
        }
        let report = conversation.answer(&mut session, &request, &mut |_| Flow::Continue).unwrap();
        assert!(turn == 0 || report.reused_tokens == 0);
        total += report.prompt_tokens + report.tokens;
        assert!(!conversation.is_empty() && session.position() <= 96);
    }
    assert!(total > 2 * 96, "{total} tokens are too few to shift");
    // Without a shift the same conversation is full.
    let config = SessionConfig { context_shift: None, ..config };
    let mut session = Session::new(&model, &config).unwrap();
    let mut conversation = Conversation::new();
    let mut turns = (0..12).map(|_| conversation.answer(&mut session, &request, &mut |_| Flow::Continue));
    assert!(turns.any(|turn| matches!(turn, Err(Error::ContextFull { .. }))));
}
