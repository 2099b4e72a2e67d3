//! The demo model's tool calls, constrained by the schema of its tools.

use flexserve_engine::grammar::Matcher;
use flexserve_engine::{
    Constraint, Event, Flow, Grammar, Limits, Model, Request, Sampling, Session, SessionConfig, StopReason,
    TokenIndex, generate,
};
use serde_json::Value;

#[path = "support/json_schema.rs"]
mod json_schema;

fn file(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../../tests/models/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn text(name: &str) -> String {
    String::from_utf8(file(name)).unwrap()
}

/// Prompts and answers of the held-out set.
fn held_out() -> Vec<(String, String)> {
    let text = text("demo/heldout.jsonl");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let field = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    lines.map(|line| (field(&line, "prompt"), field(&line, "answer"))).collect()
}

#[test]
fn every_expected_answer_is_one_that_the_schema_allows() {
    let bytes = file("demo.gguf");
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let tokenizer = model.tokenizer();
    let index = TokenIndex::new(tokenizer, 1 << 20).unwrap();
    let schema = text("demo/tools.schema.json");
    let grammar = Grammar::from_schema(&schema, 1 << 20).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    for (prompt, answer) in held_out() {
        assert!(json_schema::is_valid(&schema, &schema, &serde_json::from_str(&answer).unwrap()), "{answer}");
        let mut matcher = Matcher::new(&grammar, &index).unwrap();
        for token in tokenizer.encode(&answer, false, false).unwrap() {
            assert!(matcher.allowed().contains(token), "{answer} for {prompt}");
            matcher.accept(tokenizer, token).unwrap();
        }
        assert!(matcher.is_complete() && matcher.is_closed(), "{answer}");
    }
}

/// However hot the model is sampled, what it says is a call of one of its tools; and greedily, a right answer stays.
#[test]
fn answers_are_tool_calls() {
    let bytes = file("demo.gguf");
    let model = Model::load(&bytes, &Limits::default()).unwrap();
    let index = TokenIndex::new(model.tokenizer(), 1 << 20).unwrap();
    let schema = text("demo/tools.schema.json");
    let grammar = Grammar::from_schema(&schema, 1 << 20).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let constraint = Some(Constraint { grammar: &grammar, index: &index });
    let mut session = Session::new(&model, &SessionConfig::for_model(&model)).unwrap();
    let mut ask = |request: &Request<'_>| {
        let mut text = String::new();
        let report = generate(&mut session, request, &mut |event| {
            if let Event::Text(piece) = event {
                text.push_str(piece);
            }
            Flow::Continue
        });
        (text, report.unwrap().stop)
    };
    for (seed, (prompt, expected)) in (0..).zip(held_out().into_iter().take(40)) {
        let plain = Request::new(&prompt);
        let (free, _) = ask(&plain);
        let (bound, stop) = ask(&Request { constraint, ..plain.clone() });
        assert_eq!(stop, StopReason::EndOfGeneration);
        assert!(free != expected || bound == expected, "{bound} instead of {expected}");
        let sampling =
            Sampling { temperature: 2.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..Sampling::default() };
        for prompt in [&prompt, "nonsense, not a request"] {
            let (hot, stop) =
                ask(&Request { sampling: sampling.clone(), constraint, ..Request::new(prompt) });
            if stop == StopReason::EndOfGeneration {
                let value: Value = serde_json::from_str(&hot).unwrap();
                assert!(json_schema::is_valid(&schema, &schema, &value), "{hot}");
            } else {
                assert_eq!(stop, StopReason::ContextFull, "{hot}");
            }
        }
    }
}
