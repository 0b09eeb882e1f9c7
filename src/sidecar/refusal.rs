//! Our own answers: the one place where an error becomes HTTP.
//!
//! Two texts: the client is told what failed, the value, what is allowed and what to do
//! next; the log gets the cause. What the client's SDK does with the answer (show it, retry
//! it) decides its status and shape, which the provider's file knows (`ErrorFormat`).

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, UPGRADE,
};
use hyper::{Response, StatusCode};

pub const ERROR_HEADER: HeaderName = HeaderName::from_static("x-outrigger-error");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Why a request was not served. Stable and public: `docs/operators.md` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    ScopeDenied,
    RouteDenied,
    UnknownProvider,
    BadRequest,
    HostDenied,
    Unauthorized,
    UnsupportedEncoding,
    UnsupportedMediaType,
    BodyTooLarge,
    BodyTimeout,
    SecretMissing,
    RateLimited,
    Busy,
    BudgetExhausted,
    AuditUnavailable,
    UpstreamUnreachable,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamRedirect,
    UpstreamInvalid,
    UpstreamAuth,
    WebsocketUnsupported,
    Internal,
}

impl Code {
    pub const ALL: [Code; 23] = [
        Code::ScopeDenied,
        Code::RouteDenied,
        Code::UnknownProvider,
        Code::BadRequest,
        Code::HostDenied,
        Code::Unauthorized,
        Code::UnsupportedEncoding,
        Code::UnsupportedMediaType,
        Code::BodyTooLarge,
        Code::BodyTimeout,
        Code::SecretMissing,
        Code::RateLimited,
        Code::Busy,
        Code::BudgetExhausted,
        Code::AuditUnavailable,
        Code::UpstreamUnreachable,
        Code::UpstreamTimeout,
        Code::UpstreamTls,
        Code::UpstreamRedirect,
        Code::UpstreamInvalid,
        Code::UpstreamAuth,
        Code::WebsocketUnsupported,
        Code::Internal,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Code::ScopeDenied => "scope_denied",
            Code::RouteDenied => "route_denied",
            Code::UnknownProvider => "unknown_provider",
            Code::BadRequest => "bad_request",
            Code::HostDenied => "host_denied",
            Code::Unauthorized => "unauthorized",
            Code::UnsupportedEncoding => "unsupported_encoding",
            Code::UnsupportedMediaType => "unsupported_media_type",
            Code::BodyTooLarge => "body_too_large",
            Code::BodyTimeout => "body_timeout",
            Code::SecretMissing => "secret_missing",
            Code::RateLimited => "rate_limited",
            Code::Busy => "busy",
            Code::BudgetExhausted => "budget_exhausted",
            Code::AuditUnavailable => "audit_unavailable",
            Code::UpstreamUnreachable => "upstream_unreachable",
            Code::UpstreamTimeout => "upstream_timeout",
            Code::UpstreamTls => "upstream_tls",
            Code::UpstreamRedirect => "upstream_redirect",
            Code::UpstreamInvalid => "upstream_invalid",
            Code::UpstreamAuth => "upstream_auth",
            Code::WebsocketUnsupported => "websocket_unsupported",
            Code::Internal => "internal",
        }
    }

    /// The status where the provider's clients need no other.
    pub fn status(self) -> u16 {
        match self {
            Code::ScopeDenied | Code::SecretMissing | Code::HostDenied | Code::UpstreamAuth => 403,
            Code::Unauthorized => 401,
            Code::RouteDenied | Code::UnknownProvider => 404,
            Code::BadRequest => 400,
            Code::UnsupportedEncoding | Code::UnsupportedMediaType => 415,
            Code::BodyTooLarge => 413,
            Code::BodyTimeout => 408,
            Code::RateLimited => 429,
            Code::BudgetExhausted => 400,
            Code::Busy | Code::AuditUnavailable => 503,
            Code::UpstreamUnreachable
            | Code::UpstreamTls
            | Code::UpstreamRedirect
            | Code::UpstreamInvalid => 502,
            Code::UpstreamTimeout => 504,
            Code::WebsocketUnsupported => 426,
            Code::Internal => 500,
        }
    }

    /// Would the same request have a chance if it were sent again soon?
    fn worth_a_retry(self) -> bool {
        matches!(
            self,
            Code::RateLimited
                | Code::Busy
                | Code::AuditUnavailable
                | Code::UpstreamUnreachable
                | Code::UpstreamTimeout
        )
    }

    fn is_policy(self) -> bool {
        matches!(
            self,
            Code::ScopeDenied | Code::RateLimited | Code::BudgetExhausted | Code::SecretMissing
        )
    }
}

/// The code as the provider-shaped body carries it.
pub fn local_code(code: Code) -> String {
    match code {
        Code::SecretMissing => "local_no_credential".into(),
        code => format!("local_{}", code.name()),
    }
}

/// What a step returns when the request ends there.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub code: Code,
    /// Told to the client; never holds a secret or an internal detail.
    pub message: String,
    /// What to do next, told to the client.
    pub hint: Option<String>,
    /// For the log only.
    pub cause: Option<String>,
    /// Instead of the code's own status (framing faults have their own).
    pub status: Option<u16>,
    pub retry_after: Option<Duration>,
    /// When a budget starts over, in seconds since 1970.
    pub resets_at: Option<i64>,
    /// The scope that would have been needed.
    pub scope_needed: Option<String>,
    /// What the provider itself calls this, where clients act on it.
    pub detail: Option<&'static str>,
    /// The provider may have worked on the request all the same, and bill it.
    pub worked_on: bool,
}

impl Refusal {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Refusal {
            code,
            message: message.into(),
            hint: None,
            cause: None,
            status: None,
            retry_after: None,
            resets_at: None,
            scope_needed: None,
            detail: None,
            worked_on: false,
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn worked_on(mut self) -> Self {
        self.worked_on = true;
        self
    }

    pub fn cause(mut self, cause: impl ToString) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    fn text(&self) -> String {
        let lead = if self.code.is_policy() {
            "Blocked by workspace policy (not a login problem): "
        } else {
            ""
        };
        match &self.hint {
            Some(hint) => format!("{lead}{}\nhint: {hint}", self.message),
            None => format!("{lead}{}", self.message),
        }
    }
}

/// Who asks, as far as it changes what is retried and shown. Most clients take a 403 as it is
/// meant; these do not. Measured with the real clients (`tests/soak/clients`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Shows a 403 behind "Failed to authenticate"; has a type of its own for policy refusals.
    ClaudeCode,
    /// Retries a 403, or shows its own words about a wrong key instead of ours: Codex, GitHub
    /// Copilot, Mistral Vibe, LiteLLM. All of them show a 400 at once.
    Shows400,
    Other,
}

impl Client {
    pub fn of(headers: &HeaderMap) -> Client {
        let starts = |name: &str, with: &str| {
            headers
                .get(name)
                .is_some_and(|v| v.as_bytes().starts_with(with.as_bytes()))
        };
        let codex = starts("originator", "codex")
            || starts("user-agent", "codex")
            || headers.contains_key("x-codex-turn-metadata");
        let copilot =
            headers.contains_key("x-initiator") && headers.contains_key("x-interaction-type");
        let vibe = headers.contains_key("x-affinity") && starts("user-agent", "python-httpx/");
        if codex || copilot || vibe || starts("user-agent", "litellm/") {
            Client::Shows400
        } else if is_claude_code(headers) {
            Client::ClaudeCode
        } else {
            Client::Other
        }
    }
}

/// Told by the header of its session: others send its user agent too.
pub fn is_claude_code(headers: &HeaderMap) -> bool {
    headers.contains_key("x-claude-code-session-id")
}

/// What a provider's shape is given.
#[derive(Debug)]
pub struct RefusalText<'a> {
    pub code: Code,
    pub message: &'a str,
    pub request_id: &'a str,
    pub retry_after: Option<Duration>,
    pub resets_at: Option<i64>,
    pub client: Client,
    pub detail: Option<&'static str>,
}

/// How our own answers look to one provider's clients.
#[derive(Debug, Clone, Copy)]
pub struct ErrorFormat {
    pub render: fn(&RefusalText<'_>) -> ErrorReply,
}

#[derive(Debug)]
pub struct ErrorReply {
    status: u16,
    body: serde_json::Value,
}

impl ErrorReply {
    pub fn new(status: u16, body: serde_json::Value) -> Self {
        ErrorReply { status, body }
    }
}

/// The answer to a request that ends in `denial`.
pub fn respond(
    refusal: &Refusal,
    format: ErrorFormat,
    client: Client,
    request_id: &str,
) -> Response<Full<Bytes>> {
    let text = refusal.text();
    let told = RefusalText {
        code: refusal.code,
        message: &text,
        request_id,
        retry_after: refusal.retry_after,
        resets_at: refusal.resets_at,
        client,
        detail: refusal.detail,
    };
    let reply = (format.render)(&told);
    let status = refusal.status.unwrap_or(reply.status);
    let mut response = Response::new(Full::from(reply.body.to_string()));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ERROR_HEADER, HeaderValue::from_static(refusal.code.name()));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        "cross-origin-resource-policy",
        HeaderValue::from_static("same-origin"),
    );
    if !refusal.code.worth_a_retry() {
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    if let Some(after) = refusal.retry_after {
        headers.insert(
            RETRY_AFTER,
            HeaderValue::from(after.as_secs_f64().ceil() as u64),
        );
        headers.insert(
            "retry-after-ms",
            HeaderValue::from(after.as_millis() as u64),
        );
    }
    if refusal.code == Code::WebsocketUnsupported {
        headers.insert(UPGRADE, HeaderValue::from_static("HTTP/1.1"));
    }
    // Whoever is refused for how it speaks HTTP is not read any further; bytes behind a
    // refused upgrade are not ours to interpret.
    if matches!(
        refusal.code,
        Code::BadRequest
            | Code::HostDenied
            | Code::WebsocketUnsupported
            | Code::BodyTooLarge
            | Code::BodyTimeout
    ) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_listed_once_and_documented() {
        let names: std::collections::BTreeSet<_> = Code::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        let docs = include_str!("../../docs/operators.md");
        for name in names {
            assert!(
                docs.contains(&format!("`{name}`")),
                "docs/operators.md does not explain `{name}`"
            );
        }
    }
}
