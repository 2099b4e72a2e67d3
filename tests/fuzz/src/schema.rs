//! A hostile JSON schema, and a model that says what the input wants.

use std::sync::OnceLock;

use flexserve_engine::gguf::Gguf;
use flexserve_engine::grammar::Matcher;
use flexserve_engine::{Grammar, Limits, TokenIndex, Tokenizer};
use serde_json::Value;

#[path = "../../../guest-llm/engine/tests/support/json_schema.rs"]
mod judge;

/// Its vocabulary has every byte.
const TINY: &[u8] = include_bytes!("../../models/tiny-f16.gguf");
const MEMORY: usize = 1 << 20;
/// Tokens that are chosen at most.
const TOKENS: usize = 300;

fn vocabulary() -> &'static (Tokenizer<'static>, TokenIndex) {
    static VOCABULARY: OnceLock<(Tokenizer<'static>, TokenIndex)> = OnceLock::new();
    VOCABULARY.get_or_init(|| {
        let gguf = Gguf::parse(TINY, &Limits::default()).expect("a good file");
        let tokenizer = Tokenizer::load(&gguf, &Limits::default()).expect("a good file");
        let index = TokenIndex::new(&tokenizer, MEMORY).expect("a small vocabulary");
        (tokenizer, index)
    })
}

/// Compiles a schema, the input up to its first zero byte, and follows the choices that the rest makes among the allowed tokens.
/// There is always one, and what ends is valid.
pub fn schema(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (text, choices) = data.split_at(end);
    let Ok(text) = core::str::from_utf8(text) else { return };
    let Ok(grammar) = Grammar::from_schema(text, MEMORY) else { return };
    let schema: Value = serde_json::from_str(text).expect("what we read is JSON");
    let (tokenizer, index) = vocabulary();
    let mut matcher = Matcher::new(&grammar, index).expect("memory");
    let mut document = Vec::new();
    let mut bytes = Vec::new();
    for choice in choices.iter().skip(1).copied().chain(core::iter::repeat(0)).take(TOKENS) {
        let allowed = matcher.allowed();
        let tokens: Vec<u32> =
            (0..tokenizer.token_count() as u32).filter(|token| allowed.contains(*token)).collect();
        assert!(!tokens.is_empty(), "a dead end after {:?}", String::from_utf8_lossy(&document));
        // What ends the text is chosen when the choices are over.
        let is_end = |token: &&u32| tokenizer.is_end_of_generation(**token);
        let over = if choice == 0 { tokens.iter().find(is_end) } else { None };
        let token = *over.unwrap_or(&tokens[usize::from(choice) % tokens.len()]);
        if tokenizer.is_end_of_generation(token) {
            assert!(matcher.is_complete());
            break;
        }
        matcher.accept(tokenizer, token).expect("it is allowed");
        tokenizer.token_bytes(token, &mut bytes).expect("it is a token");
        document.extend(&bytes);
    }
    if matcher.is_complete() {
        let value: Value = serde_json::from_slice(&document).expect("what is complete is JSON");
        assert!(judge::is_valid(&schema, &schema, &value), "{value} does not follow {schema}");
    }
}
