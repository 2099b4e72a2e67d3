//! The engine against golden files that an independent implementation wrote (`tests/models/demo/reference.py`).

use std::path::PathBuf;

use flexserve_engine::{
    Event, Flow, KvFormat, Limits, Model, Request, Session, SessionConfig, StopReason, generate,
};
use serde_json::Value;

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/models")
}

fn read(name: &str) -> Vec<u8> {
    let path = models().join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

#[test]
fn tiny_f16_gives_the_golden_logits() {
    let file = read("tiny-f16.gguf");
    let golden: Value = serde_json::from_slice(&read("tiny-f16.json")).unwrap();
    let tolerance = golden["tolerance"].as_f64().unwrap() as f32;
    let model = Model::load(&file, &Limits::default()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let prompt = ids(&case["ids"]);
        let encoded = model.tokenizer().encode(case["text"].as_str().unwrap(), true, false).unwrap();
        assert_eq!(encoded, prompt);
        let config = SessionConfig { kv: KvFormat::F32, ..SessionConfig::for_model(&model) };
        let mut session = Session::new(&model, &config).unwrap();
        for (i, token) in prompt.iter().enumerate() {
            session.decode(*token).unwrap();
            let logits = session.logits();
            assert_eq!(argmax(logits), case["argmax"][i].as_u64().unwrap() as u32);
            let sum: f64 = logits.iter().map(|logit| f64::from(*logit)).sum();
            let difference = sum - case["row_sums"][i].as_f64().unwrap();
            assert!(difference.abs() < f64::from(tolerance) * (logits.len() as f64).sqrt(), "{difference}");
        }
        let expected = floats(&case["last"]);
        assert_eq!(expected.len(), session.logits().len());
        for (logit, expected) in session.logits().iter().zip(&expected) {
            assert!((logit - expected).abs() < tolerance, "{logit} instead of {expected}");
        }
        let mut greedy = Vec::new();
        for _ in ids(&case["greedy"]) {
            greedy.push(argmax(session.logits()));
            session.decode(*greedy.last().unwrap()).unwrap();
        }
        assert_eq!(greedy, ids(&case["greedy"]));
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    best.0 as u32
}

/// Differences of logits below this may come from the rounding of activations to eight bits, which the oracle does not
/// do: where its two best logits are closer, the answer may differ.
const MARGIN: f64 = 0.3;

#[test]
fn the_demo_model_gives_the_golden_answers() {
    let file = read("demo.gguf");
    let golden: Value = serde_json::from_slice(&read("demo/golden.json")).unwrap();
    let model = Model::load(&file, &Limits::default()).unwrap();
    let mut session = Session::new(&model, &SessionConfig::for_model(&model)).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    let mut compared = 0;
    for case in cases {
        let prompt = case["prompt"].as_str().unwrap();
        let encoded = model.tokenizer().encode_request(prompt, false).unwrap();
        assert_eq!(encoded, ids(&case["prompt_ids"]), "{prompt}");
        if case["margin"].as_f64().unwrap() < MARGIN {
            continue;
        }
        compared += 1;
        let request = Request { max_tokens: 128, ..Request::new(prompt) };
        let mut answer = String::new();
        let report = generate(&mut session, &request, &mut |event| {
            if let Event::Text(text) = event {
                answer.push_str(text);
            }
            Flow::Continue
        })
        .unwrap();
        assert_eq!(answer, case["answer"].as_str().unwrap(), "{prompt}");
        assert_eq!(report.tokens, ids(&case["answer_ids"]).len());
        assert_eq!(report.stop, StopReason::EndOfGeneration);
    }
    assert!(compared * 2 > cases.len(), "{compared} of {} answers compared", cases.len());
}
