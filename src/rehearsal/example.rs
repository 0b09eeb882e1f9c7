//! A value that satisfies a JSON Schema.
//!
//! Tools with required arguments and requests for structured output get values that their schema
//! allows, so that a client which validates them goes on. Knows what schemas of tools use; where
//! a schema asks for more (a pattern, say), the value may not satisfy it.

use serde_json::{Map, Value, json};

/// References are followed, and optional branches taken, down to this depth.
const MAX_DEPTH: usize = 16;

/// The simplest value that `schema` allows.
pub(super) fn of(schema: &Value) -> Value {
    value(schema, schema, 0)
}

fn value(schema: &Value, root: &Value, depth: usize) -> Value {
    if depth > MAX_DEPTH {
        return Value::Null;
    }
    let next = |schema: &Value| value(schema, root, depth + 1);
    if let Some(fixed) = ["const", "default"].iter().find_map(|k| schema.get(*k)) {
        return fixed.clone();
    }
    if let Some(first) = schema
        .get("enum")
        .and_then(Value::as_array)
        .and_then(|all| all.first())
    {
        return first.clone();
    }
    if let Some(target) = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|r| root.pointer(r.trim_start_matches('#')))
    {
        return next(target);
    }
    if let Some(first) = ["anyOf", "oneOf"]
        .iter()
        .find_map(|k| schema.get(*k)?.as_array()?.first())
    {
        return next(first);
    }
    if let Some(parts) = schema.get("allOf").and_then(Value::as_array) {
        let mut whole = Map::new();
        parts
            .iter()
            .map(next)
            .for_each(|part| whole.extend(part.as_object().cloned().unwrap_or_default()));
        return Value::Object(whole);
    }
    match kind(schema).as_str() {
        "object" => object(schema, root, depth),
        "array" => {
            let count = schema
                .get("minItems")
                .and_then(Value::as_u64)
                .unwrap_or(0)
                .min(100);
            let item = schema.get("items").map_or(Value::Null, next);
            (0..count).map(|_| item.clone()).collect()
        }
        "integer" => json!(number(schema, 1000.0) as i64),
        "number" => json!(number(schema, 1000.0)),
        "boolean" => json!(false),
        "null" => Value::Null,
        _ => json!(text(schema)),
    }
}

/// The schema's type in lower case (Google writes them in capitals), the first of several.
fn kind(schema: &Value) -> String {
    let named = match schema.get("type") {
        Some(Value::Array(all)) => all.first().and_then(Value::as_str),
        other => other.and_then(Value::as_str),
    };
    match named {
        Some(kind) => kind.to_ascii_lowercase(),
        None if schema.get("properties").is_some() => "object".into(),
        None if schema.get("items").is_some() => "array".into(),
        None => "string".into(),
    }
}

fn object(schema: &Value, root: &Value, depth: usize) -> Value {
    let required = || {
        schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
    };
    let property = |name: &str| {
        schema
            .get("properties")
            .and_then(|p| p.get(name))
            .cloned()
            .unwrap_or_default()
    };
    required()
        .map(|name| (name.to_owned(), value(&property(name), root, depth + 1)))
        .collect::<Map<_, _>>()
        .into()
}

fn number(schema: &Value, usual: f64) -> f64 {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let low = bound("minimum").or_else(|| bound("exclusiveMinimum").map(|n| n + 1.0));
    let high = bound("maximum").or_else(|| bound("exclusiveMaximum").map(|n| n - 1.0));
    usual
        .min(high.unwrap_or(usual))
        .max(low.unwrap_or(f64::MIN))
}

fn text(schema: &Value) -> String {
    let text = match schema.get("format").and_then(Value::as_str) {
        Some("date-time") => "2026-01-01T00:00:00Z",
        Some("date") => "2026-01-01",
        Some("time") => "00:00:00Z",
        Some("email") => "rehearsal@example.com",
        Some("uri" | "url") => "https://example.com/",
        Some("uuid") => "00000000-0000-4000-8000-000000000000",
        _ => "rehearsal",
    };
    let length = |key: &str| {
        schema
            .get(key)
            .and_then(Value::as_u64)
            .map(|n| n.min(10_000) as usize)
    };
    let mut text = text.to_owned();
    text.truncate(length("maxLength").unwrap_or(usize::MAX));
    let missing = length("minLength").unwrap_or(0).saturating_sub(text.len());
    text.push_str(&"l".repeat(missing));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_satisfy_their_schemas() {
        for (schema, expected) in [
            (
                json!({ "type": "object", "properties": { "a": { "type": "string" }, "b": { "type": "integer", "maximum": 5 } }, "required": ["a", "b"] }),
                json!({ "a": "rehearsal", "b": 5 }),
            ),
            (
                json!({ "anyOf": [{ "type": "number" }, { "type": "null" }] }),
                json!(1000.0),
            ),
            (json!({ "type": ["null", "string"] }), Value::Null),
            (
                json!({ "type": "OBJECT", "properties": { "x": { "type": "ARRAY", "items": { "type": "BOOLEAN" }, "minItems": 2 } }, "required": ["x"] }),
                json!({ "x": [false, false] }),
            ),
            (
                json!({ "$ref": "#/$defs/e", "$defs": { "e": { "enum": ["low", "high"] } } }),
                json!("low"),
            ),
            (
                json!({ "type": "string", "minLength": 12 }),
                json!("rehearsallll"),
            ),
            (json!({ "const": 7 }), json!(7)),
            (
                json!({ "allOf": [{ "properties": { "p": { "type": "string", "format": "uuid" } }, "required": ["p"] }] }),
                json!({ "p": "00000000-0000-4000-8000-000000000000" }),
            ),
        ] {
            assert_eq!(of(&schema), expected, "{schema}");
        }
        let endless = json!({ "type": "object", "properties": { "again": { "$ref": "#" } }, "required": ["again"] });
        assert!(of(&endless).is_object());
    }
}
