//! Constrained output: whatever is chosen among the allowed tokens is valid, and whatever is valid can be chosen.
//!
//! Schemas, documents and choices are random (seeded). The judge of documents is `serde_json` and a validator of its own below,
//! which follows the specification's words and knows nothing of the engine.

#[path = "support/json_schema.rs"]
mod json_schema;
mod support;

use std::collections::BTreeSet;

use flexserve_engine::gguf::Gguf;
use flexserve_engine::grammar::{ALTERNATIVES_MAX, Matcher, SCHEMA_BYTES_MAX};
use flexserve_engine::{Error, Grammar, Limits, Sampler, Sampling, TokenIndex, Tokenizer};
use json_schema::{is_valid, judge, resolve};
use serde_json::{Map, Value, json};
use support::File;

const MEMORY: usize = 1 << 20;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// A vocabulary with every byte, and pieces that cross the borders of JSON's own tokens.
fn vocabulary() -> File {
    let pieces = [
        "{\"",
        "\":",
        "\":\"",
        "\",\"",
        "\"}",
        "\"}]",
        "}}",
        "},{\"",
        "[[",
        "]]",
        ",",
        "[]",
        "{}",
        "true",
        "false",
        "null",
        "tr",
        "ab",
        "aab",
        "abc",
        "a",
        "b",
        "é",
        "水",
        "水a",
        "12",
        "10",
        "0.",
        "-1",
        "e+",
        "1\"",
        "\\n",
        "\\u",
        "\\ud83e",
        "\\\"",
        "\\",
        " ",
        "  ",
        " {",
        "\n",
        "🦙🦙",
        "zz\":",
        "a\":1",
        "\"a\":",
        "\",",
        "\u{2581}the",
    ];
    let (mut texts, mut scores, mut kinds) = support::vocabulary();
    let old: BTreeSet<Vec<u8>> = texts.iter().cloned().collect();
    for piece in pieces.iter().map(|piece| piece.replace(' ', "\u{2581}").into_bytes()) {
        if !old.contains(&piece) {
            texts.push(piece);
            scores.push(-20.0);
            kinds.push(1);
        }
    }
    // Half characters, which a vocabulary of words may have too.
    for piece in [&b"\xe6\xb0"[..], b"\xb4", b"\xb4\"", b"a\xf0\x9f"] {
        texts.push(piece.to_vec());
        scores.push(-30.0);
        kinds.push(1);
    }
    let mut file = File::new();
    file.set("tokenizer.ggml.model", "llama");
    file.set("tokenizer.ggml.add_space_prefix", support::Value::Bool(0));
    file.set("tokenizer.ggml.tokens", support::Value::Strings(texts));
    file.set("tokenizer.ggml.scores", support::Value::F32s(scores));
    file.set("tokenizer.ggml.token_type", support::Value::I32s(kinds));
    file
}

fn with_vocabulary(f: impl FnOnce(&Tokenizer<'_>, &TokenIndex)) {
    let bytes = vocabulary().bytes();
    let gguf = Gguf::parse(&bytes, &Limits::default()).unwrap();
    let tokenizer = Tokenizer::load(&gguf, &Limits::default()).unwrap();
    let index = TokenIndex::new(&tokenizer, MEMORY).unwrap();
    assert!(index.memory_bytes() < 20 * tokenizer.token_count() + 4000);
    f(&tokenizer, &index);
}

// ---- random schemas ----

const NAMES: [&str; 7] = ["a", "ab", "b", "tool", "e\"", "x\n", ""];

fn random_schema(random: &mut Random, depth: usize) -> Value {
    let kind = if depth == 0 { random.below(8) } else { random.below(15) };
    match kind {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => json!({"type": "number", "description": "any"}),
        3 => {
            let (min, max) = (random.below(300) as i64 - 150, random.below(200) as i64);
            match random.below(4) {
                0 => json!({"type": "integer"}),
                1 => json!({"type": "integer", "minimum": min}),
                2 => json!({"type": "integer", "exclusiveMaximum": max}),
                _ => json!({"type": "integer", "minimum": min, "maximum": min + max}),
            }
        }
        4 => {
            let mut schema = json!({"type": "string"});
            if random.chance(2) {
                schema["minLength"] = json!(random.below(4));
            }
            if random.chance(2) {
                schema["maxLength"] = json!(3 + random.below(6));
            }
            schema
        }
        5 => {
            let values = [
                json!("a"),
                json!("ab"),
                json!("abc"),
                json!(1),
                json!(12),
                json!(123),
                json!(null),
                json!([1, {"a": "b"}]),
                json!("水\"\\\n"),
                json!(true),
                json!({}),
                json!(-0.5),
            ];
            let count = 1 + random.below(6);
            json!({"enum": (0..count).map(|_| random.pick(&values.each_ref()).clone()).collect::<Vec<_>>()})
        }
        6 => json!({"const": random.pick(&["set_alarm", "set_timer", "set"])}),
        7 => random
            .pick(&[json!({"$ref": "#/$defs/list"}), json!({"$ref": "#/$defs/leaf"})].each_ref())
            .clone(),
        8 | 9 => {
            let mut properties = Map::new();
            let mut required = Vec::new();
            for name in NAMES {
                if random.chance(2) {
                    properties.insert(name.into(), random_schema(random, depth - 1));
                    if random.chance(2) {
                        required.push(name);
                    }
                }
            }
            if random.chance(8) {
                required.push("zz");
            }
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": random.chance(2)})
        }
        10 => json!({"type": "object", "additionalProperties": random_schema(random, depth - 1)}),
        11 => {
            let min = random.below(3);
            match random.below(3) {
                0 => json!({"type": "array", "items": random_schema(random, depth - 1)}),
                1 => json!({"type": "array", "items": random_schema(random, depth - 1), "minItems": min}),
                _ => {
                    json!({"type": "array", "items": random_schema(random, depth - 1), "minItems": min, "maxItems": min + random.below(3)})
                }
            }
        }
        12 => {
            let count = 1 + random.below(4);
            json!({"anyOf": (0..count).map(|_| random_schema(random, depth - 1)).collect::<Vec<_>>()})
        }
        13 => {
            let tool = |name: &str, args: Value| json!({"type": "object", "properties": {"args": args, "tool": {"const": name}}, "required": ["tool", "args"]});
            json!({"oneOf": [tool("set_alarm", random_schema(random, depth - 1)), tool("set", random_schema(random, depth - 1))]})
        }
        _ => {
            json!({"type": ["string", "null", "array"], "items": {"type": "integer"}, "maxItems": 2, "maxLength": 4})
        }
    }
}

fn random_root(random: &mut Random) -> Value {
    let mut root = random_schema(random, 3);
    let list = json!({"type": "object", "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]},
                      "value": {"type": "integer", "minimum": 0, "maximum": 20}}, "required": ["next"]});
    root["$defs"] = json!({"list": list, "leaf": {"allOf": [{"type": "string", "maxLength": 3}]}});
    root
}

#[test]
fn the_judge_knows_right_from_wrong() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"],
                        "additionalProperties": false});
    let holds = |value: Value| is_valid(&schema, &schema, &value);
    assert!(holds(json!({"a": 3})));
    assert!(
        !holds(json!({"a": 2})) && !holds(json!({})) && !holds(json!({"a": 3, "b": 1})) && !holds(json!([]))
    );
    let one = json!({"oneOf": [{"maxLength": 3}, {"minLength": 2}]});
    assert!(is_valid(&one, &one, &json!("a")) && !is_valid(&one, &one, &json!("abc")));
}

// ---- random documents ----

/// A value that satisfies the schema, if one is found within `depth`.
fn random_value(random: &mut Random, schema: &Value, root: &Value, depth: usize) -> Option<Value> {
    let schema = resolve(schema, root);
    if schema == &Value::Bool(true) || schema.as_object().is_some_and(Map::is_empty) {
        return Some(
            random
                .pick(&[json!(null), json!([1, "a"]), json!({"a": {"b": []}}), json!("x")].each_ref())
                .clone(),
        );
    }
    for name in ["anyOf", "oneOf", "allOf"] {
        if let Some(list) = schema.get(name).and_then(Value::as_array) {
            let start = random.below(list.len());
            return (0..list.len()).find_map(|i| {
                random_value(random, &list[(start + i) % list.len()], root, depth.checked_sub(1)?)
            });
        }
    }
    if let Some(list) = schema.get("enum").and_then(Value::as_array) {
        return Some(list[random.below(list.len())].clone());
    }
    if let Some(constant) = schema.get("const") {
        return Some(constant.clone());
    }
    let count = |name: &str, default| schema.get(name).map_or(default, |v| v.as_i64().unwrap());
    let ty = match schema.get("type") {
        Some(Value::Array(list)) => list[random.below(list.len())].as_str().unwrap(),
        Some(ty) => ty.as_str().unwrap(),
        None => "array",
    };
    let between =
        |random: &mut Random, min: i64, max: i64| min + random.below((max - min + 1).max(1) as usize) as i64;
    Some(match ty {
        "null" => Value::Null,
        "boolean" => Value::Bool(random.chance(2)),
        "number" => match random.below(4) {
            0 => json!(random.below(1000) as i64 - 500),
            1 => json!(1e20),
            _ => json!((random.below(4000) as f64 - 2000.0) / 8.0),
        },
        "integer" => {
            let max = count(
                "maximum",
                count("exclusiveMaximum", 10_000) - i64::from(schema.get("exclusiveMaximum").is_some()),
            );
            let min = count("minimum", max - 5000);
            json!(between(random, min, max.max(min)))
        }
        "string" => {
            let min = count("minLength", 0);
            let length = between(random, min, count("maxLength", min + 5));
            let characters = ['a', 'b', '水', '🦙', '"', '\\', '\n', ' ', 'é', '\u{1}', '/', 'z'];
            Value::String((0..length).map(|_| random.pick(&characters)).collect())
        }
        "array" => {
            let min = count("minItems", 0);
            let length = between(random, min, count("maxItems", min + 2));
            let items = schema.get("items").unwrap_or(&Value::Bool(true));
            let values: Option<Vec<Value>> =
                (0..length).map(|_| random_value(random, items, root, depth.checked_sub(1)?)).collect();
            Value::Array(values?)
        }
        _ => {
            let mut members = Map::new();
            let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
            let required: Vec<&str> = schema
                .get("required")
                .and_then(Value::as_array)
                .map_or(vec![], |list| list.iter().map(|name| name.as_str().unwrap()).collect());
            for (name, value) in &properties {
                if required.contains(&name.as_str()) || random.chance(2) {
                    match depth.checked_sub(1).and_then(|depth| random_value(random, value, root, depth)) {
                        Some(value) => drop(members.insert(name.clone(), value)),
                        None if required.contains(&name.as_str()) => return None,
                        None => {}
                    }
                }
            }
            let additional = schema.get("additionalProperties").unwrap_or(&Value::Bool(true));
            for name in required {
                if !properties.contains_key(name) {
                    members
                        .insert(name.into(), random_value(random, additional, root, depth.checked_sub(1)?)?);
                }
            }
            if properties.is_empty() && additional != &Value::Bool(false) {
                for _ in 0..random.below(3) {
                    let name = random.pick(&["k", "水", "\"", "", "zzz"]);
                    members
                        .insert(name.into(), random_value(random, additional, root, depth.checked_sub(1)?)?);
                }
            }
            Value::Object(members)
        }
    })
}

// ---- the tests ----

/// What the allowed tokens are by definition: those that can be accepted, from the start anew.
fn by_definition(
    grammar: &Grammar,
    index: &TokenIndex,
    tokenizer: &Tokenizer<'_>,
    tokens: &[u32],
    token: u32,
) -> bool {
    let mut matcher = Matcher::new(grammar, index).unwrap();
    tokens.iter().for_each(|token| matcher.accept(tokenizer, *token).unwrap());
    if tokenizer.is_end_of_generation(token) {
        matcher.is_complete()
    } else {
        matcher.accept(tokenizer, token).is_ok()
    }
}

#[test]
fn whatever_is_chosen_is_valid() {
    with_vocabulary(|tokenizer, index| {
        let (mut documents, mut longest) = (BTreeSet::new(), 0);
        for seed in 0..600 {
            let random = &mut Random(seed);
            let schema = random_root(random);
            let text = schema.to_string();
            let grammar = match Grammar::from_schema(&text, MEMORY) {
                Ok(grammar) => grammar,
                // Members may have schemas that nothing satisfies.
                Err(Error::Schema { what: "the schema", .. }) => continue,
                Err(error) => panic!("{error}: {text}"),
            };
            let mut matcher = Matcher::new(&grammar, index).unwrap();
            let sampling =
                Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..Sampling::default() };
            let mut sampler = Sampler::new(&sampling, tokenizer.token_count()).unwrap();
            let mut logits = vec![0.0; tokenizer.token_count()];
            let (mut tokens, mut document) = (Vec::new(), Vec::new());
            let mut bytes = Vec::new();
            let check_at = random.below(30);
            loop {
                let step = tokens.len();
                // The longer it gets, the likelier is what ends strings, arrays and objects, and the end itself.
                let haste = step as f32 / 15.0;
                for (token, logit) in (0..).zip(&mut logits) {
                    token_bytes(tokenizer, token, &mut bytes);
                    let ends =
                        tokenizer.is_end_of_generation(token) || matches!(bytes[..], [b'"' | b']' | b'}']);
                    *logit = random.below(1000) as f32 / 250.0 + if ends { haste } else { 0.0 };
                }
                let allowed = matcher.allowed();
                if step == check_at {
                    for token in 0..tokenizer.token_count() as u32 {
                        let expected = by_definition(&grammar, index, tokenizer, &tokens, token);
                        assert_eq!(
                            allowed.contains(token),
                            expected,
                            "token {token} after {document:?}: {text}"
                        );
                    }
                }
                let token = sampler.sample_from(&logits, Some(allowed)).unwrap_or_else(|error| {
                    panic!("{error} after {:?}: {text}", String::from_utf8_lossy(&document))
                });
                if tokenizer.is_end_of_generation(token) {
                    break;
                }
                matcher.accept(tokenizer, token).unwrap();
                token_bytes(tokenizer, token, &mut bytes);
                document.extend(&bytes);
                tokens.push(token);
                assert!(step < 3000, "no end: {text}");
            }
            let value: Value = serde_json::from_slice(&document)
                .unwrap_or_else(|error| panic!("{error}: {} of {text}", String::from_utf8_lossy(&document)));
            assert!(is_valid(&schema, &schema, &value), "{value} of {text}");
            longest = longest.max(document.len());
            documents.insert(document);
        }
        assert!(documents.len() > 250 && longest > 60, "{} documents, {longest}", documents.len());
    });
}

/// The bytes that a token stands for.
fn token_bytes(tokenizer: &Tokenizer<'_>, token: u32, bytes: &mut Vec<u8>) {
    tokenizer.token_bytes(token, bytes).unwrap();
}

#[test]
fn whatever_is_valid_can_be_chosen() {
    with_vocabulary(|tokenizer, index| {
        let mut checked = 0;
        for seed in 0..3000 {
            let random = &mut Random(seed);
            let schema = random_root(random);
            let text = schema.to_string();
            let Ok(grammar) = Grammar::from_schema(&text, MEMORY) else { continue };
            let Some(value) = random_value(random, &schema, &schema, 6) else { continue };
            if !judge(&schema, &schema, &value, true) {
                continue;
            }
            // Members in the order of `properties`: serde_json sorts both.
            let document = value.to_string();
            let mut matcher = Matcher::new(&grammar, index).unwrap();
            let (mut at, mut bytes) = (0, Vec::new());
            while at < document.len() {
                // Any token that goes on, not only those that an encoder would choose.
                let rest = &document.as_bytes()[at..];
                let fitting: Vec<u32> = (0..tokenizer.token_count() as u32)
                    .filter(|token| {
                        token_bytes(tokenizer, *token, &mut bytes);
                        !bytes.is_empty() && rest.starts_with(&bytes)
                    })
                    .collect();
                let allowed = matcher.allowed();
                for token in &fitting {
                    assert!(allowed.contains(*token), "{token} at {at} of {document}: {text}");
                }
                let token = random.pick(&fitting);
                matcher.accept(tokenizer, token).unwrap();
                token_bytes(tokenizer, token, &mut bytes);
                at += bytes.len();
            }
            assert!(matcher.is_complete() && matcher.allowed().contains(2), "{document}: {text}");
            checked += 1;
        }
        assert!(checked > 1500, "{checked}");
    });
}

/// Follows a text byte by byte: how far it is a beginning, and whether it is valid.
fn follow(schema: &str, document: &str) -> (usize, bool) {
    let mut result = (0, false);
    with_vocabulary(|tokenizer, index| {
        let grammar = Grammar::from_schema(schema, MEMORY).unwrap();
        let mut matcher = Matcher::new(&grammar, index).unwrap();
        // The byte tokens.
        let length = document
            .bytes()
            .take_while(|byte| matcher.accept(tokenizer, 3 + u32::from(*byte)).is_ok())
            .count();
        result = (length, matcher.is_complete());
    });
    result
}

#[test]
fn keywords_mean_what_they_say() {
    let tool = r##"{"oneOf":[{"$ref":"#/$defs/alarm"},{"$ref":"#/$defs/volume"}],"$defs":{
        "alarm":{"type":"object","properties":{"tool":{"const":"set_alarm"},"args":{"type":"object","properties":
            {"time":{"type":"string","minLength":5,"maxLength":5},"day":{"enum":["today","tomorrow"]}},"required":["time"]}},
            "required":["tool","args"]},
        "volume":{"type":"object","properties":{"tool":{"const":"set_volume"},"args":{"type":"object","properties":
            {"level":{"type":"integer","minimum":0,"maximum":100}},"required":["level"]}},"required":["tool","args"]}}}"##;
    let valid = [
        (tool, r#"{"tool":"set_alarm","args":{"time":"06:30"}}"#),
        (tool, r#"{"tool":"set_alarm","args":{"time":"06:30","day":"tomorrow"}}"#),
        (tool, r#"{"tool":"set_volume","args":{"level":100}}"#),
        ("{}", r#"{"a":[1,{}],"a":null}"#),
        ("true", r#"[1.5e3,"x"]"#),
        (r#"{"required":["a"]}"#, r#"{"a":{}}"#),
        (r#"{"type":"object","properties":{}}"#, r#"{"x":1}"#),
        (r#"{"type":"object","additionalProperties":false}"#, "{}"),
        (r#"{"type":"array","maxItems":0}"#, "[]"),
        (r#"{"minLength":2}"#, r#""\ud83e\udd99é""#),
        (r#"{"type":"integer","maximum":-99999999999999990}"#, "-99999999999999991"),
        (r#"{"enum":[ "a" , { "b" : [ 1 , 2 ] } ]}"#, r#"{"b":[1,2]}"#),
        (r#"{"type":"string","enum":["a",1],"title":"t","x-any":[]}"#, r#""a""#),
        (
            "{\"anyOf\":[{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}},{\"type\":\"null\"}]}",
            "[[null,[]],null]",
        ),
    ];
    for (schema, document) in valid {
        assert_eq!(follow(schema, document), (document.len(), true), "{document}: {schema}");
    }
    // Up to the mark it is a beginning.
    let invalid = [
        (tool, r#"{"tool":"set_alarm","args":{"time":"06:30|1"#),
        (tool, r#"{"tool":"set_alarm","args":{"time":"06:3|""#),
        (tool, r#"{"tool":"set_volume","args":{"level":10|1"#),
        (tool, r#"{"tool":"set_volume","args":{"|time"#),
        (tool, r#"{"|args""#),
        (tool, "| {"),
        ("{}", "|["),
        ("{}", r#"{| "#),
        (r#"{"type":"object","additionalProperties":false}"#, r#"{|""#),
        (r#"{"type":"array","minItems":1}"#, "[|]"),
        (r#"{"type":"array","maxItems":1}"#, "[1|,"),
        (r#"{"type":"integer"}"#, "-|."),
        (r#"{"type":"string","enum":["a",1]}"#, "|1"),
        ("true", "\"|\u{1}"),
    ];
    for (schema, document) in invalid {
        let (begin, rest) = document.split_once('|').unwrap();
        assert_eq!(follow(schema, &format!("{begin}{rest}")), (begin.len(), false), "{document}: {schema}");
    }
}

#[test]
fn what_is_not_understood_is_refused_with_its_place() {
    let refused = |schema: &str| Grammar::from_schema(schema, MEMORY).unwrap_err().to_string();
    for (schema, part) in [
        (r#"{"type":"string","pattern":"a+"}"#, "byte 27: pattern is not supported"),
        (r#"{"type":"array","uniqueItems":true}"#, "uniqueItems is not supported"),
        (r#"{"typ":"string"}"#, "byte 7: the keyword before this is not known"),
        (r#"{"type":"text"}"#, "byte 8: this type is not known"),
        (r#"{"type":"number","minimum":1}"#, "integers only"),
        (r#"{"type":"integer","minimum":1.5}"#, "not a whole number"),
        (r#"{"minItems":-1}"#, "not a whole number"),
        (r#"{"anyOf":[{"type":"null"}],"minLength":1}"#, "anyOf beside"),
        (r#"{"anyOf":[]}"#, "is empty"),
        (r#"{"allOf":[{},{}]}"#, "several schemas"),
        (r#"{"oneOf":[{"type":"integer"},{"type":"number"}]}"#, "may overlap"),
        (r#"{"oneOf":[{"type":"null"},{"properties":{"a":{"type":"null"}}}]}"#, "may overlap"),
        (r#"{"oneOf":[{"enum":["a","b"]},{"enum":["b"]}]}"#, "may overlap"),
        (r#"{"oneOf":[{"properties":{"a":{"const":1}}},{"properties":{"a":{"const":2}}}]}"#, "may overlap"),
        (r##"{"$ref":"#/$defs/x"}"##, "leads to nothing"),
        (r#"{"$ref":"http://x"}"#, "must begin with #"),
        (r#"{"enum":[]}"#, "no valid value"),
        ("false", "no valid value"),
        (r##"{"properties":{"a":{"$ref":"#"}},"required":["a"]}"##, "no valid value"),
        (r##"{"$ref":"#"}"##, "no valid value"),
        (r##"{"anyOf":[{"$ref":"#"},{"$ref":"#"}]}"##, "no valid value"),
        (r#"{"type":"string","minLength":2,"maxLength":1}"#, "no valid value"),
        ("", "ends too early"),
        ("[]", "must be an object"),
        (r#"{"a":1,"a":2}"#, "occurs twice"),
        (r#"{"required":"a"}"#, "must be an array"),
    ] {
        let error = refused(schema);
        assert!(error.contains(part), "{error}: {schema}");
    }
    // The message holds none of the schema's own text.
    assert!(
        !refused(r#"{"SECRET":1}"#).contains("SECRET") && !refused(r#"{"type":"SECRET"}"#).contains("SECRET")
    );
    let long = format!("{{\"title\":\"{}\"}}", "x".repeat(SCHEMA_BYTES_MAX));
    assert!(refused(&long).contains("bytes of schema"));
    let many: Vec<Value> = (0..=ALTERNATIVES_MAX).map(|i| json!({"minItems": i})).collect();
    assert!(refused(&json!({"anyOf": many}).to_string()).contains("alternatives"));
    let many: Map<String, Value> = (0..=ALTERNATIVES_MAX).map(|i| (format!("{i}"), json!(true))).collect();
    assert!(refused(&json!({"properties": many}).to_string()).contains("optional"));
    assert!(matches!(Grammar::from_schema("{}", 10), Err(Error::MemoryLimit { .. })));
}

/// Schemas that would recurse, or multiply the ways to understand a text, without end.
#[test]
fn hostile_schemas_are_bounded() {
    let deep = format!("{}{{\"type\":\"null\"}}{}", "{\"items\":".repeat(60), "}".repeat(60));
    let doubling = r##"{"anyOf":[{"type":"array","items":{"$ref":"#"}},{"type":"array","items":{"anyOf":[{"$ref":"#"},{"type":"null"}]}},
        {"type":"array","items":{"$ref":"#"},"maxItems":1}]}"##;
    let chain: Map<String, Value> = (0..200)
        .map(|i| (format!("d{i}"), json!({"items": {"$ref": format!("#/$defs/d{}", (i + 1) % 200)}})))
        .collect();
    let chain = json!({"$defs": chain, "$ref": "#/$defs/d0"}).to_string();
    with_vocabulary(|tokenizer, index| {
        for schema in [deep.as_str(), doubling, &chain] {
            let grammar = Grammar::from_schema(schema, MEMORY).unwrap();
            let mut matcher = Matcher::new(&grammar, index).unwrap();
            let bracket = 3 + u32::from(b'[');
            // Opens as many arrays as it may, then must be able to close them.
            let mut open = 0;
            while matcher.allowed().contains(bracket) {
                matcher.accept(tokenizer, bracket).unwrap();
                open += 1;
                assert!(open <= 32, "{schema}");
            }
            for left in (0..open).rev() {
                matcher.accept(tokenizer, 3 + u32::from(b']')).unwrap();
                assert_eq!(matcher.is_complete(), left == 0, "{schema}");
            }
            assert!(open > 30 && matcher.is_closed(), "{open}");
        }
    });
}

/// `FLEXSERVE_VOCABULARIES` names a folder with llama.cpp's `models/ggml-vocab-*.gguf`.
#[test]
#[ignore = "needs llama.cpp's vocabularies"]
fn real_vocabularies_are_constrained_too() {
    let folder =
        std::path::PathBuf::from(std::env::var_os("FLEXSERVE_VOCABULARIES").expect("no folder given"));
    for name in ["llama-spm", "llama-bpe", "qwen2"] {
        let bytes = std::fs::read(folder.join(format!("ggml-vocab-{name}.gguf"))).unwrap();
        let gguf = Gguf::parse(&bytes, &Limits::default()).unwrap();
        let tokenizer = Tokenizer::load(&gguf, &Limits::default()).unwrap();
        let start = std::time::Instant::now();
        let index = TokenIndex::new(&tokenizer, 64 << 20).unwrap();
        let count = tokenizer.token_count();
        eprintln!("{name}: {count} tokens, {} KiB, {:?}", index.memory_bytes() >> 10, start.elapsed());
        let (mut steps, mut time, mut longest) = (0, std::time::Duration::ZERO, std::time::Duration::ZERO);
        let mut bytes = Vec::new();
        for seed in 0..60 {
            let random = &mut Random(seed);
            let schema = random_root(random);
            let Ok(grammar) = Grammar::from_schema(&schema.to_string(), MEMORY) else { continue };
            let mut matcher = Matcher::new(&grammar, &index).unwrap();
            let mut document = Vec::new();
            loop {
                let start = std::time::Instant::now();
                let allowed = matcher.allowed();
                longest = longest.max(start.elapsed());
                time += start.elapsed();
                steps += 1;
                // Of some tokens the shortest, so that strings end.
                let tokens: Vec<u32> = (0..count as u32).filter(|token| allowed.contains(*token)).collect();
                let short = |token: &u32| {
                    let mut bytes = Vec::new();
                    tokenizer.token_bytes(*token, &mut bytes).unwrap();
                    (!bytes.starts_with(b"\"") || document.len() < 60, bytes.len())
                };
                let some: Vec<u32> = (0..8).map(|_| random.pick(&tokens)).collect();
                let quote = tokens.iter().copied().find(|token| short(token) == (false, 1));
                let token = quote.unwrap_or_else(|| *some.iter().min_by_key(|token| short(token)).unwrap());
                if tokenizer.is_end_of_generation(token) {
                    break;
                }
                matcher.accept(&tokenizer, token).unwrap();
                tokenizer.token_bytes(token, &mut bytes).unwrap();
                document.extend(&bytes);
                if document.len() > 600 {
                    break;
                }
            }
            if matcher.is_complete() {
                let value: Value = serde_json::from_slice(&document).unwrap();
                assert!(is_valid(&schema, &schema, &value), "{value} of {schema}");
            }
        }
        eprintln!("{name}: {steps} steps, {:?} each, at most {longest:?}", time / steps);
    }
}
