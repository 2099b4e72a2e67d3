//! Whole requests, as the command and the partition run them.

mod support;

use flexserve_engine::{
    Constraint, Error, Event, Flow, Grammar, KvFormat, Limits, Model, Report, Request, Sampling, Session,
    SessionConfig, StopReason, TokenIndex, generate,
};
use support::reference::{Random, Shape};
use support::{Q8_0, Value};

struct Outcome {
    report: Report,
    text: String,
    events: Vec<String>,
}

fn run(bytes: &[u8], request: &Request<'_>, context: usize) -> Result<Outcome, Error> {
    let model = Model::load(bytes, &Limits::default()).unwrap();
    let config = SessionConfig { context, batch: 4, ..SessionConfig::for_model(&model) };
    let mut session = Session::new(&model, &config).unwrap();
    let (mut text, mut events) = (String::new(), Vec::new());
    let report = generate(&mut session, request, &mut |event| {
        match event {
            Event::Text(piece) => {
                assert!(!piece.is_empty());
                text.push_str(piece);
            }
            other => events.push(format!("{other:?}")),
        }
        Flow::Continue
    })?;
    assert!(session.position() >= report.prompt_tokens);
    Ok(Outcome { report, text, events })
}

fn file() -> Vec<u8> {
    Random::new(&Shape::tiny(&[Q8_0]), 5).file.bytes()
}

fn request(prompt: &str, max_tokens: usize, sampling: Sampling) -> Request<'_> {
    Request { max_tokens, sampling, ..Request::new(prompt) }
}

#[test]
fn the_same_request_gives_the_same_answer() {
    let file = file();
    let hot =
        |seed| Sampling { temperature: 1.5, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..Sampling::default() };
    let text = |sampling| run(&file, &request("the", 30, sampling), 64).unwrap().text;
    assert_eq!(text(Sampling::default()), text(Sampling { seed: 9, ..Sampling::default() }));
    assert_eq!(text(hot(1)), text(hot(1)));
    assert_ne!(text(hot(1)), text(hot(2)));
}

#[test]
fn events_come_in_order_and_the_report_counts() {
    let outcome = run(&file(), &request("the the b", 5, Sampling::default()), 64).unwrap();
    assert_eq!(
        outcome.events,
        ["Prefill { done: 4, total: 5 }", "Prefill { done: 5, total: 5 }", "Prefilled { tokens: 5 }"]
    );
    assert_eq!(
        outcome.report,
        Report { prompt_tokens: 5, reused_tokens: 0, tokens: 5, stop: StopReason::MaxTokens }
    );
    let none = run(&file(), &request("the", 0, Sampling::default()), 64).unwrap();
    assert_eq!((none.report.tokens, none.report.stop, none.text.as_str()), (0, StopReason::MaxTokens, ""));
}

#[test]
fn an_answer_ends_with_the_context() {
    let outcome = run(&file(), &request("the", usize::MAX, Sampling::default()), 9).unwrap();
    // Two tokens of prompt and seven of answer are in the context; the eighth was chosen when it was full.
    assert_eq!(
        outcome.report,
        Report { prompt_tokens: 2, reused_tokens: 0, tokens: 8, stop: StopReason::ContextFull }
    );
    let full = run(&file(), &request("the the the the", 9, Sampling::default()), 5);
    assert_eq!(full.err(), Some(Error::ContextFull { tokens: 6, left: 5 }));
}

#[test]
fn an_answer_ends_where_the_model_says_so() {
    let mut random = Random::new(&Shape::tiny(&[Q8_0]), 5);
    let file = random.file.bytes();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let mut session = Session::new(&model, &SessionConfig::for_model(&model)).unwrap();
    let prompt = model.tokenizer().encode_request("the", false).unwrap();
    session.prefill(&prompt, &mut |_, _| Flow::Continue).unwrap();
    let mut sampler = flexserve_engine::Sampler::new(&Sampling::default(), session.logits().len()).unwrap();
    let mut tokens = vec![sampler.sample(session.logits()).unwrap()];
    while tokens.last() == tokens.first() {
        session.decode(tokens[0]).unwrap();
        tokens.push(sampler.sample(session.logits()).unwrap());
    }
    random.file.set("tokenizer.ggml.eos_token_id", Value::U32(tokens[tokens.len() - 1]));
    let outcome = run(&random.file.bytes(), &request("the", 60, Sampling::default()), 64).unwrap();
    assert_eq!((outcome.report.tokens, outcome.report.stop), (tokens.len() - 1, StopReason::EndOfGeneration));
}

#[test]
fn the_caller_can_stop_at_every_event() {
    let file = file();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let config = SessionConfig { batch: 2, kv: KvFormat::F32, ..SessionConfig::for_model(&model) };
    let mut session = Session::new(&model, &config).unwrap();
    let request = request("the the", 8, Sampling::default());
    let mut total = 0;
    generate(&mut session, &request, &mut |_| {
        total += 1;
        Flow::Continue
    })
    .unwrap();
    assert!(total > 4);
    for last in 1..=total {
        let mut count = 0;
        // Otherwise less of the prompt would be left to compute.
        session.reset();
        let report = generate(&mut session, &request, &mut |_| {
            count += 1;
            if count == last { Flow::Stop } else { Flow::Continue }
        })
        .unwrap();
        assert_eq!((count, report.stop), (last, StopReason::Cancelled));
    }
}

#[test]
fn a_stop_string_ends_the_answer_and_is_no_part_of_it() {
    let file = file();
    let plain = run(&file, &request("the", 30, Sampling::default()), 64).unwrap();
    let characters: Vec<char> = plain.text.chars().collect();
    assert!(characters.len() > 12, "{}", plain.text);
    // Every text of two or three characters that the answer has.
    for (length, start) in [2, 3].into_iter().flat_map(|length| (0..10).map(move |start| (length, start))) {
        let stop: String = characters[start..start + length].iter().collect();
        let request = Request { stop: &["never", &stop], ..request("the", 30, Sampling::default()) };
        let outcome = run(&file, &request, 64).unwrap();
        assert_eq!(outcome.report.stop, StopReason::StopString);
        assert_eq!(outcome.text, plain.text[..plain.text.find(&stop).unwrap()], "{stop:?}");
        assert!(outcome.report.tokens <= plain.report.tokens);
    }
    // What is held back comes in the end.
    let last = format!("{}x", characters[characters.len() - 1]);
    let held = Request { stop: &[&last], ..request("the", 30, Sampling::default()) };
    assert_eq!(run(&file, &held, 64).unwrap().text, plain.text);
    let bad = Request { stop: &[""], ..request("the", 30, Sampling::default()) };
    assert!(matches!(run(&file, &bad, 64), Err(Error::Parameter { name: "stop", .. })));
}

#[test]
fn the_repetition_penalty_counts_prompt_and_answer() {
    let file = file();
    let tokens = |repeat_penalty| {
        let model = Model::load(&file, &Limits::default()).unwrap();
        let mut session = Session::new(&model, &SessionConfig::for_model(&model)).unwrap();
        let sampling = Sampling { repeat_penalty, ..Sampling::default() };
        let mut text = String::new();
        let request = Request { raw: true, ..request("t", 20, sampling) };
        generate(&mut session, &request, &mut |event| {
            if let Event::Text(piece) = event {
                text.push_str(piece);
            }
            Flow::Continue
        })
        .unwrap();
        text
    };
    assert_ne!(tokens(1.0), tokens(1000.0));
    // With so great a penalty no token of prompt or answer comes again while it is remembered.
    let text = tokens(1000.0);
    let mut pieces: Vec<char> = text.chars().filter(|c| c.is_ascii_graphic()).collect();
    let count = pieces.len();
    pieces.sort_unstable();
    pieces.dedup();
    assert!(pieces.len() * 2 > count, "{text:?}");
}

#[test]
fn an_answer_follows_its_schema() {
    let file = file();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let index = TokenIndex::new(model.tokenizer(), 1 << 20).unwrap();
    let schema = r#"{"type":"array","items":{"enum":["ab",true,{"the":1}]},"minItems":2,"maxItems":3}"#;
    let grammar = Grammar::from_schema(schema, 1 << 20).unwrap();
    let constraint = Some(Constraint { grammar: &grammar, index: &index });
    let hot =
        |seed| Sampling { temperature: 2.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..Sampling::default() };
    let mut texts = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let request = Request { constraint, ..request("the", 60, hot(seed)) };
        let outcome = run(&file, &request, 64).unwrap();
        assert_eq!(outcome.report.stop, StopReason::EndOfGeneration);
        let value: serde_json::Value = serde_json::from_str(&outcome.text).unwrap();
        let items = value.as_array().unwrap();
        assert!((2..=3).contains(&items.len()), "{value}");
        texts.insert(outcome.text);
    }
    assert!(texts.len() > 3, "{texts:?}");
    // Cut off, it is a beginning.
    let cut = run(&file, &Request { constraint, ..request("the", 3, Sampling::default()) }, 64).unwrap();
    assert_eq!(cut.report.stop, StopReason::MaxTokens);
    assert!(cut.text.starts_with('['));
}
