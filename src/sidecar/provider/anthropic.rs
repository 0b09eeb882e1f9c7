//! Anthropic: the Messages API.
//!
//! Formats: `@anthropic-ai/sdk` 1.11 (resources, errors, streaming) and the LLM gateway
//! contract of Claude Code's documentation.

use super::registry::{Auth, BASE, Body, Endpoint, Feature, Kind, Method, Model, NO_BODY, Provider, Stream, never, nobody};
use crate::sidecar::refusal::{self, Answer, Code, Refusal, Shape};
use crate::sidecar::usage::{Complete, Field, Format, Raw, Usage};
use serde_json::json;
use std::borrow::Cow;

pub static PROVIDER: Provider = Provider {
    kind: "anthropic",
    base_url: Some("https://api.anthropic.com"),
    auth: Auth::Header("x-api-key"),
    shape: SHAPE,
    endpoints: &[
        Endpoint {
            name: "messages",
            paths: &["v1/messages"],
            // `/messages`: the AI SDK takes `ANTHROPIC_BASE_URL` as ending in `/v1`.
            bare: &["v1/messages", "messages"],
            upstream: "v1/messages",
            query: &["beta=true"],
            stream: Stream::Flag,
            body: &MESSAGES,
            usage: Some(&FORMAT),
            ..BASE
        },
        Endpoint {
            name: "count_tokens",
            paths: &["v1/messages/count_tokens"],
            bare: &["v1/messages/count_tokens"],
            upstream: "v1/messages/count_tokens",
            kind: Kind::Free,
            query: &["beta=true"],
            body: &MESSAGES,
            ..BASE
        },
        Endpoint {
            name: "models",
            method: Method::Get,
            paths: &["v1/models"],
            bare: &["v1/models"],
            bare_needs: Some("anthropic-version"),
            upstream: "v1/models",
            kind: Kind::Models,
            query: &["limit", "after_id", "before_id", "beta=true"],
            body: &NO_BODY,
            ..BASE
        },
        Endpoint {
            name: "model",
            method: Method::Get,
            paths: &["v1/models/{id}"],
            bare: &["v1/models/{id}"],
            bare_needs: Some("anthropic-version"),
            upstream: "v1/models/{id}",
            kind: Kind::Free,
            query: &["beta=true"],
            body: &NO_BODY,
            ..BASE
        },
    ],
    opaque_models: never,
    scrub_header: Some(("anthropic-beta", without_oauth)),
    local: false,
};

pub(super) const MESSAGES: Body = Body {
    model: Model::Body,
    content: &["messages", "system", "metadata", "output_config", "output_format", "thinking", "context_management", "stop_sequences"],
    content_but: &[],
    restricted: &[
        ("mcp_servers", Feature::McpServers),
        ("container", Feature::StoredObjects),
        ("thread", Feature::StoredObjects),
        ("fallback_credit_token", Feature::StoredObjects),
        ("billing_policy", Feature::StoredObjects),
        ("user_profile_id", Feature::StoredObjects),
        ("workspace_id", Feature::StoredObjects),
    ],
    chooses: nobody,
};

/// A client that was logged in announces its token's kind; ours is a key. Every other beta
/// goes on byte for byte: gateways that drop one break the CLI that needs it.
fn without_oauth(value: &str) -> Cow<'_, str> {
    let is_oauth = |beta: &&str| beta.trim().starts_with("oauth-");
    if !value.split(',').any(|b| is_oauth(&b)) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(value.split(',').filter(|b| !is_oauth(b)).map(str::trim).collect::<Vec<_>>().join(","))
}

pub(super) static FORMAT: Format = Format {
    fields: &[
        ("model", Field::Model),
        ("message.model", Field::Model),
        ("type", Field::Type),
        ("usage.input_tokens", Field::Input),
        ("usage.cache_read_input_tokens", Field::CacheRead),
        ("usage.cache_creation_input_tokens", Field::CacheWrite),
        ("usage.cache_creation.ephemeral_1h_input_tokens", Field::CacheWrite1h),
        ("usage.output_tokens", Field::Output),
        ("usage.output_tokens_details.thinking_tokens", Field::Reasoning),
        ("message.usage.input_tokens", Field::Input),
        ("message.usage.cache_read_input_tokens", Field::CacheRead),
        ("message.usage.cache_creation_input_tokens", Field::CacheWrite),
        ("message.usage.cache_creation.ephemeral_1h_input_tokens", Field::CacheWrite1h),
        ("message.usage.output_tokens", Field::Output),
        ("usage.iterations", Field::Extras),
        ("usage.iterations[].type", Field::ExtraKind),
        ("usage.iterations[].model", Field::ExtraModel),
        ("usage.iterations[].input_tokens", Field::ExtraInput),
        ("usage.iterations[].cache_read_input_tokens", Field::ExtraCacheRead),
        ("usage.iterations[].cache_creation_input_tokens", Field::ExtraCacheWrite),
        ("usage.iterations[].output_tokens", Field::ExtraOutput),
        ("error.type", Field::ErrorType),
        ("error.message", Field::ErrorMessage),
    ],
    complete: Complete::Type(&["message_stop"]),
    normal,
};

/// `input_tokens` excludes both kinds of cache; `output_tokens` includes thinking and is
/// cumulative. Compaction and advisor iterations are in neither total (SDK `BetaUsage`).
fn normal(raw: &Raw) -> Option<Usage> {
    let billed_apart = |kind: &str| kind == "compaction" || kind.starts_with("advisor");
    Usage {
        input: raw.input,
        cache_read: raw.cache_read,
        cache_write: raw.cache_write,
        cache_write_1h: raw.cache_write_1h,
        output: raw.output,
        reasoning: raw.reasoning,
        cost_usd: None,
        extra: raw.extras.iter().filter(|e| billed_apart(&e.kind)).cloned().collect(),
    }
    .known()
}

const SHAPE: Shape = Shape { answer };

fn answer(refusal: &Refusal<'_>) -> Answer {
    let (status, kind) = match refusal.code {
        // Anthropic's own spend limit is a 400; a 429 is retried up to ten times by Claude Code.
        Code::BudgetExhausted => (400, "invalid_request_error"),
        code => match code.status() {
            403 => (403, "permission_error"),
            404 | 405 => (code.status(), "not_found_error"),
            413 => (413, "request_too_large"),
            429 => (429, "rate_limit_error"),
            504 => (504, "timeout_error"),
            s if s >= 500 => (s, "api_error"),
            s => (s, "invalid_request_error"),
        },
    };
    Answer::new(
        status,
        json!({
            "type": "error",
            "error": { "type": kind, "message": refusal.message, "details": { "error_code": refusal::local_code(refusal.code) } },
            "request_id": refusal.request_id,
        }),
    )
}
