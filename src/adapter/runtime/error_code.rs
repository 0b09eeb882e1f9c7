//! What an error means, whichever CLI tells of it: by its status, and by the sidecar's own
//! words, which reach the stream through every CLI.
//!
//! The words are those of `sidecar/refusal.rs`; its codes, where a CLI shows whole bodies, are
//! `local_<code>`.

use serde_json::Value;

use crate::event::{ErrorCode, ErrorEvent};

/// The error that a CLI tells of with an HTTP status and a message.
pub fn error(status: Option<u16>, message: &str) -> ErrorEvent {
    let status = status.or_else(|| of_body(message));
    let mut event = ErrorEvent::new(code(status, message), words(message));
    event.http_status = status;
    event
}

/// The status within a body that is shown whole: Google's have it.
fn of_body(message: &str) -> Option<u16> {
    let body = serde_json::Deserializer::from_str(&message[message.find('{')?..])
        .into_iter::<Value>()
        .next()?
        .ok()?;
    body["error"]["code"]
        .as_u64()
        .and_then(|code| u16::try_from(code).ok())
        .filter(|code| (400..600).contains(code))
}

/// What is wrong.
pub fn code(status: Option<u16>, message: &str) -> ErrorCode {
    let lower = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|w| lower.contains(w));
    if let Some(code) = of_sidecar(&says) {
        return code;
    }
    match status {
        Some(401) => ErrorCode::Auth,
        Some(402) => ErrorCode::Billing,
        Some(403) => ErrorCode::PermissionDenied,
        Some(404) => ErrorCode::ModelUnavailable,
        Some(429)
            if says(&[
                "insufficient_quota",
                "exceeded your current quota",
                "billing",
                "credit balance",
                "usage limit",
            ]) =>
        {
            ErrorCode::Billing
        }
        Some(429) => ErrorCode::RateLimited,
        _ if says(&[
            "prompt is too long",
            "context length",
            "context window",
            "context_length_exceeded",
            "maximum number of tokens",
        ]) =>
        {
            ErrorCode::ContextOverflow
        }
        Some(500..) => ErrorCode::ProviderDown,
        _ if says(&[
            "model not found",
            "model_not_found",
            "issue with the selected model",
        ]) =>
        {
            ErrorCode::ModelUnavailable
        }
        _ if says(&["is not found for api version", "models/"]) && says(&["not found"]) => {
            ErrorCode::ModelUnavailable
        }
        _ if says(&[
            "rate limit",
            "rate_limit",
            "too many requests",
            "429",
            "quota exceeded",
        ]) =>
        {
            ErrorCode::RateLimited
        }
        _ if says(&[
            "not logged in",
            "invalid api key",
            "authentication",
            "missing environment variable",
        ]) =>
        {
            ErrorCode::Auth
        }
        _ if says(&DOWN) => ErrorCode::ProviderDown,
        _ => ErrorCode::Internal,
    }
}

/// How a provider that is gone is told of.
const DOWN: [&str; 16] = [
    "cannot connect",
    "unable to connect",
    "connection",
    "overloaded",
    "socket",
    "server error",
    "timed out",
    "terminated",
    "fetch failed",
    "stream disconnected",
    "stream closed",
    "high demand",
    "econnre",
    "premature close",
    "ended without",
    "network",
];

/// What the sidecar means by its refusal, if it is one.
fn of_sidecar(says: &dyn Fn(&[&str]) -> bool) -> Option<ErrorCode> {
    if says(&[
        "local_upstream_auth",
        "refused the workspace's key",
        "this session's token is missing or wrong",
    ]) {
        return Some(ErrorCode::Auth);
    }
    if says(&[
        "the provider could not be reached",
        "the connection to the provider broke",
        "the provider did not begin to answer",
    ]) {
        return Some(ErrorCode::ProviderDown);
    }
    says(&["blocked by workspace policy"]).then(|| match () {
        () if says(&["usd per session", "tokens per day"]) => ErrorCode::Billing,
        () if says(&["requests per minute", "request per minute"]) => ErrorCode::RateLimited,
        () => ErrorCode::PermissionDenied,
    })
}

/// What a message says to people: out of the JSON that CLIs show whole
/// (`[API Error: {…}]`, `403 {…}`), and without the prefixes that they put before it.
pub fn words(message: &str) -> String {
    let shown = message.find('{').and_then(|start| {
        serde_json::Deserializer::from_str(&message[start..])
            .into_iter::<Value>()
            .next()?
            .ok()
    });
    let inner = shown.as_ref().and_then(|body| {
        let error = body.get("error").unwrap_or(body);
        error
            .get("message")
            .or_else(|| error.as_str().map(|_| error))
            .and_then(Value::as_str)
    });
    // A provider's message may again be a body.
    match inner {
        Some(inner) if inner.len() < message.len() => words(inner),
        _ => match message.find("Blocked by workspace policy") {
            Some(start) => message[start..].trim_end_matches(']').to_owned(),
            None => unprefixed(message).to_owned(),
        },
    }
}

/// Without what CLIs put around a provider's words: `… API Error: 403 <words>`, `[API Error:
/// <words>]`.
fn unprefixed(message: &str) -> &str {
    let Some((before, said)) = message.split_once("API Error: ") else {
        return message;
    };
    let said = if before.ends_with('[') {
        said.split_once(']').map_or(said, |(words, _)| words)
    } else {
        said
    };
    said.split_once(' ')
        .filter(|(status, _)| status.len() == 3 && status.bytes().all(|b| b.is_ascii_digit()))
        .map_or(said, |(_, words)| words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_found_in_what_clis_show() {
        let ours = "Blocked by workspace policy (not a login problem): model `m` is not granted";
        let body = serde_json::json!({ "error": { "code": 403, "message": ours } }).to_string();
        let twice = serde_json::json!({ "error": { "message": body } }).to_string();
        for shown in [
            ours.to_owned(),
            body.clone(),
            twice,
            format!("[API Error: {body}]"),
            format!("403 {body}"),
            format!("Failed to authenticate. API Error: 403 {ours}"),
        ] {
            assert_eq!(words(&shown), ours, "{shown}");
            assert_eq!(code(None, &shown), ErrorCode::PermissionDenied);
        }
        let google = error(
            None,
            r#"[API Error: {"error":{"code":401,"message":"API key not valid"}}]"#,
        );
        assert_eq!(
            (google.code, google.http_status, google.message.as_str()),
            (ErrorCode::Auth, Some(401), "API key not valid")
        );
        assert_eq!(words("{not json"), "{not json");
        assert_eq!(words("plain"), "plain");
        assert_eq!(
            words("[API Error: Quota exceeded]\nPlease wait"),
            "Quota exceeded"
        );
        assert_eq!(
            words("Failed to authenticate. API Error: 403 not allowed"),
            "not allowed"
        );
    }

    #[test]
    fn an_error_means_the_same_whoever_tells_it() {
        #[rustfmt::skip]
        let cases = [
            (Some(400), "Blocked by workspace policy (not a login problem): grant `g` allows 5.00 USD per session; 5.10 are spent", ErrorCode::Billing),
            (Some(403), "provider `anthropic` refused the workspace's key", ErrorCode::Auth),
            (Some(429), "Request rejected (429)", ErrorCode::RateLimited),
            (Some(429), "You exceeded your current quota", ErrorCode::Billing),
            (Some(529), "Overloaded", ErrorCode::ProviderDown),
            (Some(400), "prompt is too long: 210000 tokens > 200000 maximum", ErrorCode::ContextOverflow),
            (Some(500), "models/x is not found for API version v1beta", ErrorCode::ProviderDown),
            (None, "models/x is not found for API version v1beta", ErrorCode::ModelUnavailable),
            (None, "fetch failed sending request", ErrorCode::ProviderDown),
            (None, "Unable to connect to API (ECONNRESET)", ErrorCode::ProviderDown),
            (None, "what else", ErrorCode::Internal),
        ];
        for (status, message, expected) in cases {
            assert_eq!(code(status, message), expected, "{status:?} {message}");
        }
    }
}
