//! OpenAI: the Responses and Chat Completions APIs, which many others speak too.
//!
//! Formats: `openai` 6.49 (npm) and the sources of Codex for what it retries.

use serde_json::json;

use crate::sidecar::provider::{
    Auth, BASE, Billing, BodyRules, Endpoint, Feature, ModelPlace, NO_BODY, Provider, StreamBy,
    Verb, never, no_notices, nobody,
};
use crate::sidecar::refusal::{self, Client, Code, ErrorFormat, ErrorReply, RefusalText};
use crate::sidecar::usage::{Complete, Field, Format, RawUsage, ReplyUsage};

pub static PROVIDER: Provider = Provider {
    kind: "openai",
    base_url: Some("https://api.openai.com/v1"),
    auth: Auth::Bearer,
    shape: SHAPE,
    endpoints: &[
        Endpoint {
            name: "responses",
            paths: &["v1/responses", "responses"],
            // Without `/v1`: what the SDK sends when the base URL is the bare host.
            bare: &["v1/responses", "responses"],
            upstream: "responses",
            stream: StreamBy::Flag,
            body: &RESPONSES,
            usage: Some(&RESPONSES_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "responses.compact",
            paths: &["v1/responses/compact", "responses/compact"],
            bare: &["v1/responses/compact", "responses/compact"],
            upstream: "responses/compact",
            body: &RESPONSES,
            usage: Some(&RESPONSES_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "input_tokens",
            paths: &["v1/responses/input_tokens", "responses/input_tokens"],
            bare: &["v1/responses/input_tokens", "responses/input_tokens"],
            upstream: "responses/input_tokens",
            billing: Billing::Free,
            body: &RESPONSES,
            ..BASE
        },
        Endpoint {
            name: "chat",
            paths: &["v1/chat/completions", "chat/completions"],
            bare: &["v1/chat/completions", "chat/completions"],
            upstream: "chat/completions",
            stream: StreamBy::Flag,
            body: &CHAT,
            usage: Some(&CHAT_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "embeddings",
            optional: true,
            paths: &["v1/embeddings", "embeddings"],
            bare: &["v1/embeddings", "embeddings"],
            upstream: "embeddings",
            body: &EMBEDDINGS,
            generates: false,
            usage: Some(&CHAT_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "completions",
            optional: true,
            paths: &["v1/completions", "completions"],
            bare: &["v1/completions", "completions"],
            upstream: "completions",
            stream: StreamBy::Flag,
            body: &COMPLETIONS,
            usage: Some(&CHAT_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "models",
            method: Verb::Get,
            paths: &["v1/models", "models"],
            bare: &["v1/models", "models"],
            upstream: "models",
            billing: Billing::Models,
            query: &["client_version"],
            body: &NO_BODY,
            ..BASE
        },
        Endpoint {
            name: "model",
            method: Verb::Get,
            paths: &["v1/models/{id}", "models/{id}"],
            bare: &["v1/models/{id}", "models/{id}"],
            upstream: "models/{id}",
            billing: Billing::Free,
            body: &NO_BODY,
            ..BASE
        },
    ],
    opaque_models: never,
    forwards: FORWARDS,
    returns: RETURNS,
    own_request_id: None,
    notices: no_notices,
    scrub_header: None,
    local: false,
};

pub(super) const FORWARDS: &[&str] = &[
    "openai-beta",
    "originator",
    "x-codex-beta-features",
    "x-codex-installation-id",
    "x-codex-parent-thread-id",
    "x-codex-turn-metadata",
    "x-codex-turn-state",
    "x-codex-window-id",
    "x-openai-internal-codex-responses-lite",
    "x-openai-memgen-request",
    "x-openai-subagent",
];
pub(super) const RETURNS: &[&str] = &[
    "x-oai-request-id",
    "openai-processing-ms",
    "openai-version",
    "openai-model",
    "x-models-etag",
    "x-reasoning-included",
    "x-codex-turn-state",
    "x-request-id",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
];

pub(super) const RESPONSES: BodyRules = BodyRules {
    model: ModelPlace::Body,
    // "Responses lite" puts the tools into the first input item.
    content: &["input"],
    opaque: &[
        "instructions",
        "metadata",
        "client_metadata",
        "text",
        "reasoning",
        "include",
        "prompt_cache_key",
        "prompt_cache_options",
    ],
    restricted: &[
        ("prompt", Feature::StoredObjects),
        ("conversation", Feature::StoredObjects),
        ("previous_response_id", Feature::StoredObjects),
        ("background", Feature::Background),
    ],
    chooses: nobody,
    max_output: &["max_output_tokens"],
    item_references: true,
};

/// The same of servers that keep nothing of OpenAI's: an id there is a name and no reference.
pub(super) const OPEN_RESPONSES: BodyRules = BodyRules {
    item_references: false,
    ..RESPONSES
};

pub(super) const CHAT: BodyRules = BodyRules {
    model: ModelPlace::Body,
    content: &["messages"],
    opaque: &[
        "functions",
        "response_format",
        "metadata",
        "prediction",
        "stop",
        "logit_bias",
        "user",
    ],
    restricted: &[],
    chooses: nobody,
    max_output: &["max_tokens", "max_completion_tokens"],
    item_references: false,
};

/// The same of servers that may not know OpenAI's newer name for the limit.
pub(super) const OPEN_CHAT: BodyRules = BodyRules {
    max_output: &["max_tokens"],
    ..CHAT
};

const EMBEDDINGS: BodyRules = BodyRules {
    content: &[],
    opaque: &["input", "user"],
    ..CHAT
};
const COMPLETIONS: BodyRules = BodyRules {
    content: &[],
    opaque: &["prompt", "suffix", "stop", "logit_bias", "user"],
    ..CHAT
};

pub(super) static CHAT_FORMAT: Format = Format {
    fields: CHAT_FIELDS,
    complete: Complete::Done,
    normal,
};

pub(super) const CHAT_FIELDS: &[(&str, Field)] = &[
    ("model", Field::Model),
    ("usage.prompt_tokens", Field::Input),
    ("usage.completion_tokens", Field::Output),
    (
        "usage.prompt_tokens_details.cached_tokens",
        Field::CacheRead,
    ),
    (
        "usage.prompt_tokens_details.cache_write_tokens",
        Field::CacheWrite,
    ),
    (
        "usage.completion_tokens_details.reasoning_tokens",
        Field::Reasoning,
    ),
    // OpenRouter's own bill in USD beats every table.
    ("usage.cost", Field::Cost),
    ("usage.prompt_cache_hit_tokens", Field::CacheRead), // DeepSeek
    ("usage.num_cached_tokens", Field::CacheRead),       // Mistral
    ("x_groq.usage.prompt_tokens", Field::Input),
    ("x_groq.usage.completion_tokens", Field::Output),
    (
        "x_groq.usage.prompt_tokens_details.cached_tokens",
        Field::CacheRead,
    ),
    ("error", Field::ErrorMessage), // Ollama: a string
    ("error.type", Field::ErrorType),
    ("error.code", Field::ErrorCode),
    ("error.message", Field::ErrorMessage),
    ("detail", Field::ErrorMessage), // FastAPI
    ("object", Field::Object),
    ("type", Field::FlatErrorType),
    ("message", Field::FlatErrorMessage),
];

pub(super) static RESPONSES_FORMAT: Format = Format {
    fields: &[
        ("model", Field::Model),
        ("response.model", Field::Model),
        ("type", Field::Type),
        ("usage.input_tokens", Field::Input),
        ("usage.input_tokens_details.cached_tokens", Field::CacheRead),
        (
            "usage.input_tokens_details.cache_write_tokens",
            Field::CacheWrite,
        ),
        ("usage.output_tokens", Field::Output),
        (
            "usage.output_tokens_details.reasoning_tokens",
            Field::Reasoning,
        ),
        ("response.usage.input_tokens", Field::Input),
        (
            "response.usage.input_tokens_details.cached_tokens",
            Field::CacheRead,
        ),
        (
            "response.usage.input_tokens_details.cache_write_tokens",
            Field::CacheWrite,
        ),
        ("response.usage.output_tokens", Field::Output),
        (
            "response.usage.output_tokens_details.reasoning_tokens",
            Field::Reasoning,
        ),
        ("output[].type", Field::OutputItem),
        ("response.output[].type", Field::OutputItem),
        ("tool_usage.image_gen.input_tokens", Field::PictureInput),
        ("tool_usage.image_gen.output_tokens", Field::PictureOutput),
        (
            "response.tool_usage.image_gen.input_tokens",
            Field::PictureInput,
        ),
        (
            "response.tool_usage.image_gen.output_tokens",
            Field::PictureOutput,
        ),
        ("output[].id", Field::ObjectId),
        ("output[].container_id", Field::ObjectId),
        ("response.output[].id", Field::ObjectId),
        ("response.output[].container_id", Field::ObjectId),
        ("item.id", Field::ObjectId),
        ("item.container_id", Field::ObjectId),
        ("error.type", Field::ErrorType),
        ("error.code", Field::ErrorCode),
        ("error.message", Field::ErrorMessage),
        ("response.error.code", Field::ErrorType),
        ("response.error.message", Field::ErrorMessage),
        ("code", Field::EventErrorType),
        ("message", Field::EventErrorMessage),
    ],
    complete: Complete::Type(&[
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]),
    normal,
};

/// `prompt_tokens`/`input_tokens` include what was read from and written to the cache;
/// output includes reasoning.
pub(super) fn normal(raw: &RawUsage) -> Option<ReplyUsage> {
    let cached = raw.cache_read.unwrap_or(0) + raw.cache_write.unwrap_or(0);
    ReplyUsage {
        input: raw.input.map(|n| n.saturating_sub(cached)),
        cache_read: raw.cache_read,
        cache_write: raw.cache_write,
        cache_write_1h: None,
        output: raw.output,
        reasoning: raw.reasoning,
        cost_usd: raw.cost_usd,
        ..ReplyUsage::default()
    }
    .known()
}

pub(super) const SHAPE: ErrorFormat = ErrorFormat {
    render: render_error,
};

fn render_error(refusal: &RefusalText<'_>) -> ErrorReply {
    let (status, kind) = match (refusal.code, refusal.code.status()) {
        // One request by each of 20 clients, with the text on the screen. A 429 is retried by the
        // AI SDK, opencode, Qwen Code and aider, and Codex shows words of its own for it.
        (Code::BudgetExhausted, _) => (400, "insufficient_quota"),
        (_, 403) if refusal.client == Client::Shows400 => (400, "invalid_request_error"),
        (_, 403) => (403, "permission_error"),
        (_, 429) => (429, "rate_limit_error"),
        (_, s) if s >= 500 => (s, "server_error"),
        (_, s) => (s, "invalid_request_error"),
    };
    let code = match refusal.code {
        Code::BudgetExhausted => "insufficient_quota".to_owned(),
        Code::RateLimited => "rate_limit_exceeded".to_owned(),
        Code::WebsocketUnsupported => "websocket_unsupported".to_owned(),
        code => refusal::local_code(code),
    };
    ErrorReply::new(
        status,
        json!({ "error": { "message": refusal.message, "type": kind, "param": null, "code": code } }),
    )
}
