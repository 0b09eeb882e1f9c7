//! Describes the provider Anthropic and its Messages API.
//!
//! The formats are those of `@anthropic-ai/sdk` 1.11 (resources, errors, streaming) and of the LLM
//! gateway contract in Claude Code's documentation.

use std::borrow::Cow;

use serde_json::json;

use crate::sidecar::provider::{
    Auth, BASE, Billing, BodyRules, Endpoint, Feature, ModelPlace, NO_BODY, Provider, StreamBy,
    Utilisation, Verb, never, nobody,
};
use crate::sidecar::refusal::{self, Client, Code, ErrorFormat, ErrorReply, RefusalText};
use crate::sidecar::usage::{Complete, Field, Format, RawUsage, ReplyUsage};

pub static PROVIDER: Provider = Provider {
    kind: "anthropic",
    base_url: Some("https://api.anthropic.com"),
    auth: Auth::Header("x-api-key"),
    shape: SHAPE,
    endpoints: &[
        Endpoint {
            name: "messages",
            paths: &["v1/messages", "messages"],
            // The AI SDK expects `ANTHROPIC_BASE_URL` to end in `/v1` and appends only `/messages`.
            bare: &["v1/messages", "messages"],
            upstream: "v1/messages",
            query: &["beta=true"],
            stream: StreamBy::Flag,
            body: &MESSAGES,
            usage: Some(&FORMAT),
            ..BASE
        },
        Endpoint {
            name: "count_tokens",
            paths: &["v1/messages/count_tokens", "messages/count_tokens"],
            bare: &["v1/messages/count_tokens", "messages/count_tokens"],
            upstream: "v1/messages/count_tokens",
            billing: Billing::Free,
            query: &["beta=true"],
            body: &MESSAGES,
            ..BASE
        },
        Endpoint {
            name: "models",
            method: Verb::Get,
            paths: &["v1/models", "models"],
            bare: &["v1/models"],
            bare_needs: Some("anthropic-version"),
            upstream: "v1/models",
            billing: Billing::Models,
            query: &["limit", "after_id", "before_id", "beta=true"],
            body: &NO_BODY,
            ..BASE
        },
        Endpoint {
            name: "model",
            method: Verb::Get,
            paths: &["v1/models/{id}", "models/{id}"],
            bare: &["v1/models/{id}"],
            bare_needs: Some("anthropic-version"),
            upstream: "v1/models/{id}",
            billing: Billing::Free,
            query: &["beta=true"],
            body: &NO_BODY,
            ..BASE
        },
    ],
    opaque_models: never,
    // Any release of Claude Code can add headers, so the list has a pattern for them.
    forwards: FORWARDS,
    returns: &["x-should-retry"],
    // The provider's request id belongs to the workspace's account. Clients get our id instead,
    // which also identifies the audit record.
    own_request_id: Some("request-id"),
    notices,
    scrub_header: Some(("anthropic-beta", without_oauth)),
    local: false,
};

pub(super) const FORWARDS: &[&str] = &[
    "anthropic-version",
    "anthropic-beta",
    "anthropic-dangerous-direct-browser-access",
    "x-claude-code-*",
];

/// Makes the reply headers that Claude Code's gateway contract requires. They tell which share of
/// the budget is used, and the highest threshold that was reached.
fn notices(budget: &Utilisation) -> Vec<(&'static str, String)> {
    let threshold = [0.95, 0.75].into_iter().find(|t| budget.used >= *t);
    let status = if threshold.is_some() {
        "allowed_warning"
    } else {
        "allowed"
    };
    let mut headers = vec![
        ("anthropic-ratelimit-unified-status", status.to_owned()),
        (
            "anthropic-ratelimit-unified-representative-claim",
            "overage".into(),
        ),
        ("anthropic-ratelimit-unified-overage-status", status.into()),
        (
            "anthropic-ratelimit-unified-overage-utilization",
            format!("{:.2}", budget.used.min(1.0)),
        ),
    ];
    if let Some(threshold) = threshold {
        headers.push((
            "anthropic-ratelimit-unified-overage-surpassed-threshold",
            threshold.to_string(),
        ));
    }
    if let Some(at) = budget.resets_at {
        headers.push(("anthropic-ratelimit-unified-reset", at.to_string()));
        headers.push(("anthropic-ratelimit-unified-overage-reset", at.to_string()));
    }
    headers
}

pub(super) const MESSAGES: BodyRules = BodyRules {
    model: ModelPlace::Body,
    content: &["messages", "system"],
    opaque: &[
        "metadata",
        "output_config",
        "output_format",
        "thinking",
        "context_management",
        "stop_sequences",
        "diagnostics",
        "safeguards",
        "tags",
    ],
    restricted: &[
        ("mcp_servers", Feature::McpServers),
        ("fallback_credit_token", Feature::StoredObjects),
        ("billing_policy", Feature::StoredObjects),
        ("user_profile_id", Feature::StoredObjects),
        ("workspace_id", Feature::StoredObjects),
    ],
    chooses: nobody,
    max_output: &["max_tokens"],
    item_references: false,
};

/// Removes the `oauth-…` betas. A client that is logged in sends them to announce an OAuth token,
/// but the sidecar sends an API key instead. Every other beta is kept as it is, because a gateway
/// that drops one breaks the CLI that needs it.
fn without_oauth(value: &str) -> Cow<'_, str> {
    let is_oauth = |beta: &&str| beta.trim().starts_with("oauth-");
    if !value.split(',').any(|b| is_oauth(&b)) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(
        value
            .split(',')
            .filter(|b| !is_oauth(b))
            .map(str::trim)
            .collect::<Vec<_>>()
            .join(","),
    )
}

pub(super) static FORMAT: Format = Format {
    fields: &[
        ("model", Field::Model),
        ("message.model", Field::Model),
        ("type", Field::Type),
        ("usage.input_tokens", Field::Input),
        ("usage.cache_read_input_tokens", Field::CacheRead),
        ("usage.cache_creation_input_tokens", Field::CacheWrite),
        (
            "usage.cache_creation.ephemeral_1h_input_tokens",
            Field::CacheWrite1h,
        ),
        ("usage.output_tokens", Field::Output),
        (
            "usage.output_tokens_details.thinking_tokens",
            Field::Reasoning,
        ),
        ("message.usage.input_tokens", Field::Input),
        ("message.usage.cache_read_input_tokens", Field::CacheRead),
        (
            "message.usage.cache_creation_input_tokens",
            Field::CacheWrite,
        ),
        (
            "message.usage.cache_creation.ephemeral_1h_input_tokens",
            Field::CacheWrite1h,
        ),
        ("message.usage.output_tokens", Field::Output),
        ("usage.iterations", Field::Extras),
        ("usage.iterations[].type", Field::ExtraKind),
        ("usage.iterations[].model", Field::ExtraModel),
        ("usage.iterations[].input_tokens", Field::ExtraInput),
        (
            "usage.iterations[].cache_read_input_tokens",
            Field::ExtraCacheRead,
        ),
        (
            "usage.iterations[].cache_creation_input_tokens",
            Field::ExtraCacheWrite,
        ),
        ("usage.iterations[].output_tokens", Field::ExtraOutput),
        ("usage.server_tool_use.web_search_requests", Field::Searches),
        (
            "message.usage.server_tool_use.web_search_requests",
            Field::Searches,
        ),
        ("usage.speed", Field::Speed),
        ("message.usage.speed", Field::Speed),
        ("usage.inference_geo", Field::Geography),
        ("message.usage.inference_geo", Field::Geography),
        ("error.type", Field::ErrorType),
        ("error.message", Field::ErrorMessage),
    ],
    complete: Complete::Type(&["message_stop"]),
    normal,
};

/// Converts the reported numbers. `input_tokens` excludes cache reads and cache writes.
/// `output_tokens` includes thinking and is cumulative. Neither of the two includes compaction and
/// advisor iterations (SDK `BetaUsage`).
fn normal(raw: &RawUsage) -> Option<ReplyUsage> {
    let billed_apart = |kind: &str| kind == "compaction" || kind.starts_with("advisor");
    ReplyUsage {
        input: raw.input,
        cache_read: raw.cache_read,
        cache_write: raw.cache_write,
        cache_write_1h: raw.cache_write_1h,
        output: raw.output,
        reasoning: raw.reasoning,
        cost_usd: None,
        extra: raw
            .extras
            .iter()
            .filter(|e| billed_apart(&e.kind))
            .cloned()
            .collect(),
        ..ReplyUsage::default()
    }
    .known()
}

const SHAPE: ErrorFormat = ErrorFormat {
    render: render_error,
};

fn render_error(refusal: &RefusalText<'_>) -> ErrorReply {
    let (status, kind) = match refusal.code {
        // With this answer, each of the 15 clients that were tested sends one request and shows the
        // text. Clients retry a 429 or wait for the reset, and an `invalid_request_error` makes
        // Claude Code drop fields and try again.
        Code::BudgetExhausted => (400, "billing_error"),
        // Other clients get a 403. Claude Code shows a `policy_blocked` error as it is, without a
        // login prompt and without a fallback model. The clients of `Client::Shows400` retry a 403
        // or show a text of their own instead of ours.
        Code::ScopeDenied | Code::SecretMissing | Code::UpstreamAuth
            if refusal.client != Client::Other =>
        {
            (400, "policy_blocked")
        }
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
    let code = refusal
        .detail
        .map_or_else(|| refusal::local_code(refusal.code), str::to_owned);
    ErrorReply::new(
        status,
        json!({
            "type": "error",
            "error": { "type": kind, "message": refusal.message, "details": { "error_code": code } },
            "request_id": refusal.request_id,
        }),
    )
}
