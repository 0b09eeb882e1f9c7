//! Reading single values.

use std::time::Duration;

use serde_json::Value;

use crate::base::settings::shown::shown;

/// A session's id stands in file names, records and headers.
///
/// # Errors
/// Why this cannot be one.
pub fn check_session_id(id: &str) -> Result<(), String> {
    let fine = (1..=128).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._~:@+-".contains(&b));
    if fine {
        Ok(())
    } else {
        Err(format!(
            "{} is not a session's id: 1 to 128 letters, digits and `._~:@+-`",
            shown(id)
        ))
    }
}

/// Describes a value that has the wrong type. A string is not repeated: where a mapping belongs, it
/// may be a key.
pub(super) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Number(n) => format!("the number `{n}`"),
        Value::String(_) => "a string".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
    }
}

/// Shows a value in the message that says what is wrong with it.
pub(super) fn written(value: &Value) -> String {
    match value {
        Value::String(s) => shown(s),
        Value::Array(_) | Value::Object(_) => kind(value),
        other => format!("`{other}`"),
    }
}

/// The end of a message where a string stands in place of a number.
pub(super) fn unquoted(value: &Value) -> &'static str {
    match value.as_str().map(str::trim) {
        Some(s) if s.parse::<f64>().is_ok() => "; write it without quotes",
        Some(s) if s.starts_with(|c: char| c.is_ascii_digit()) => {
            "; write the plain number, without a unit"
        }
        _ => "",
    }
}

pub(super) fn camel_case(key: &str) -> String {
    let mut out = String::new();
    let mut up = false;
    for c in key.chars() {
        match c {
            '_' if !out.is_empty() => up = true,
            c if up => {
                out.extend(c.to_uppercase());
                up = false;
            }
            c => out.push(c),
        }
    }
    out
}

pub fn parse_duration(s: &str) -> Option<Duration> {
    let unit = s.find(|c: char| !c.is_ascii_digit())?;
    let n: u64 = s[..unit].parse().ok()?;
    Some(match &s[unit..] {
        "ms" => Duration::from_millis(n),
        "s" => Duration::from_secs(n),
        "m" => Duration::from_secs(n.checked_mul(60)?),
        "h" => Duration::from_secs(n.checked_mul(3600)?),
        _ => return None,
    })
}
