//! Google: the Gemini API (`generativelanguage.googleapis.com`).
//!
//! Formats: `@google/genai` 2.32 and the error handling of Gemini CLI.

use serde_json::json;

use crate::sidecar::provider::{
    Auth, BASE, Billing, BodyRules, Endpoint, Feature, ModelPlace, NO_BODY, Provider, StreamBy,
    Verb, never, no_notices, nobody,
};
use crate::sidecar::refusal::{self, Code, ErrorFormat, ErrorReply, RefusalText};
use crate::sidecar::usage::{Complete, Field, Format, RawUsage, ReplyUsage};

pub static PROVIDER: Provider = Provider {
    kind: "google",
    base_url: Some("https://generativelanguage.googleapis.com"),
    auth: Auth::Header("x-goog-api-key"),
    shape: SHAPE,
    endpoints: &[
        Endpoint {
            bare: V1BETA_GENERATE,
            ..GENERATE
        },
        Endpoint {
            paths: &["v1/models/{model}:generateContent"],
            bare: &["v1/models/{model}:generateContent"],
            upstream: "v1/models/{model}:generateContent",
            ..GENERATE
        },
        Endpoint {
            bare: V1BETA_STREAM,
            ..STREAM
        },
        Endpoint {
            paths: &["v1/models/{model}:streamGenerateContent"],
            bare: &["v1/models/{model}:streamGenerateContent"],
            upstream: "v1/models/{model}:streamGenerateContent",
            ..STREAM
        },
        Endpoint {
            bare: &["v1beta/models/{model}:countTokens"],
            ..COUNT
        },
        Endpoint {
            paths: &["v1/models/{model}:countTokens"],
            bare: &["v1/models/{model}:countTokens"],
            upstream: "v1/models/{model}:countTokens",
            ..COUNT
        },
        Endpoint {
            paths: &[
                "v1beta/models/{model}:embedContent",
                "models/{model}:embedContent",
            ],
            upstream: "v1beta/models/{model}:embedContent",
            ..EMBED
        },
        Endpoint {
            paths: &["v1/models/{model}:embedContent"],
            upstream: "v1/models/{model}:embedContent",
            ..EMBED
        },
        // What the official libraries send for `embedContent`.
        Endpoint {
            paths: &[
                "v1beta/models/{model}:batchEmbedContents",
                "models/{model}:batchEmbedContents",
            ],
            upstream: "v1beta/models/{model}:batchEmbedContents",
            ..EMBED
        },
        Endpoint {
            paths: &["v1/models/{model}:batchEmbedContents"],
            upstream: "v1/models/{model}:batchEmbedContents",
            ..EMBED
        },
        Endpoint {
            paths: &["v1beta/interactions"],
            upstream: "v1beta/interactions",
            ..INTERACT
        },
        Endpoint {
            paths: &["v1/interactions"],
            upstream: "v1/interactions",
            ..INTERACT
        },
        Endpoint {
            paths: &["v1beta/models", "models"],
            bare: &["v1beta/models"],
            upstream: "v1beta/models",
            ..LIST
        },
        // `GET /v1/models` without a mount is OpenAI's or Anthropic's.
        Endpoint {
            paths: &["v1/models"],
            upstream: "v1/models",
            ..LIST
        },
        Endpoint {
            paths: &["v1beta/models/{model}", "models/{model}"],
            bare: &["v1beta/models/{model}"],
            upstream: "v1beta/models/{model}",
            ..MODEL
        },
        Endpoint {
            paths: &["v1/models/{model}"],
            upstream: "v1/models/{model}",
            ..MODEL
        },
    ],
    opaque_models: never,
    forwards: &["x-goog-api-client", "x-server-timeout"],
    returns: &[],
    own_request_id: None,
    notices: no_notices,
    scrub_header: None,
    local: false,
};

/// Google's documented way to pass a key in the query: dropped, ours travels in a header.
const KEYS: &[&str] = &["key", "access_token"];
const V1BETA_GENERATE: &[&str] = &["v1beta/models/{model}:generateContent"];
const V1BETA_STREAM: &[&str] = &["v1beta/models/{model}:streamGenerateContent"];
/// Older libraries of Google's spell `alt` like this.
const QUERY: &[&str] = &[
    "alt=sse",
    "alt=json",
    "$alt=json;enum-encoding=int",
    "$alt=sse;enum-encoding=int",
    "%24alt=json%3Benum-encoding%3Dint",
    "%24alt=sse%3Benum-encoding%3Dint",
    "prettyPrint",
];

const EMBED: Endpoint = Endpoint {
    name: "embedContent",
    optional: true,
    query: &[],
    generates: false,
    ..GENERATE
};

const INTERACT: Endpoint = Endpoint {
    name: "interactions",
    optional: true,
    query: &["alt=sse"],
    query_credentials: KEYS,
    stream: StreamBy::Flag,
    body: &INTERACTIONS,
    usage: Some(&INTERACTIONS_FORMAT),
    ..BASE
};

const LIST: Endpoint = Endpoint {
    name: "models",
    method: Verb::Get,
    billing: Billing::Models,
    query: &["pageSize", "pageToken"],
    query_credentials: KEYS,
    body: &NO_BODY,
    ..BASE
};

const MODEL: Endpoint = Endpoint {
    name: "model",
    method: Verb::Get,
    billing: Billing::Free,
    query_credentials: KEYS,
    body: &NO_BODY,
    ..BASE
};

const GENERATE: Endpoint = Endpoint {
    name: "generateContent",
    paths: &[
        "v1beta/models/{model}:generateContent",
        "models/{model}:generateContent",
    ],
    upstream: "v1beta/models/{model}:generateContent",
    query: QUERY,
    query_credentials: KEYS,
    body: &CONTENT,
    usage: Some(&FORMAT),
    ..BASE
};

const STREAM: Endpoint = Endpoint {
    name: "streamGenerateContent",
    paths: &[
        "v1beta/models/{model}:streamGenerateContent",
        "models/{model}:streamGenerateContent",
    ],
    upstream: "v1beta/models/{model}:streamGenerateContent",
    stream: StreamBy::Always,
    ..GENERATE
};

const COUNT: Endpoint = Endpoint {
    name: "countTokens",
    paths: &[
        "v1beta/models/{model}:countTokens",
        "models/{model}:countTokens",
    ],
    upstream: "v1beta/models/{model}:countTokens",
    billing: Billing::Free,
    usage: None,
    ..GENERATE
};

const CONTENT: BodyRules = BodyRules {
    model: ModelPlace::Path,
    content: &[
        "contents",
        "systemInstruction",
        "system_instruction",
        "content",
    ],
    opaque: &["safetySettings", "safety_settings", "labels"],
    restricted: &[],
    chooses: nobody,
    max_output: &["maxOutputTokens", "max_output_tokens"],
    item_references: false,
};

const INTERACTIONS: BodyRules = BodyRules {
    model: ModelPlace::BodyOrAgent,
    content: &["input", "system_instruction", "systemInstruction"],
    opaque: &["labels"],
    restricted: &[
        ("agent", Feature::StoredObjects),
        ("previous_interaction_id", Feature::StoredObjects),
        ("environment", Feature::StoredObjects),
        ("background", Feature::Background),
    ],
    chooses: nobody,
    max_output: &["maxOutputTokens", "max_output_tokens"],
    item_references: false,
};

static INTERACTIONS_FORMAT: Format = Format {
    fields: &[
        ("model", Field::Model),
        ("interaction.model", Field::Model),
        ("event_type", Field::Type),
        ("usage.total_input_tokens", Field::Input),
        ("usage.total_cached_tokens", Field::CacheRead),
        ("usage.total_output_tokens", Field::Output),
        ("usage.total_thought_tokens", Field::Reasoning),
        ("usage.total_tool_use_tokens", Field::ToolPrompt),
        ("interaction.usage.total_input_tokens", Field::Input),
        ("interaction.usage.total_cached_tokens", Field::CacheRead),
        ("interaction.usage.total_output_tokens", Field::Output),
        ("interaction.usage.total_thought_tokens", Field::Reasoning),
        ("interaction.usage.total_tool_use_tokens", Field::ToolPrompt),
        ("error.status", Field::ErrorType),
        ("error.message", Field::ErrorMessage),
    ],
    complete: Complete::Type(&["interaction.completed"]),
    normal,
};

static FORMAT: Format = Format {
    fields: &[
        ("modelVersion", Field::Model),
        ("usageMetadata.promptTokenCount", Field::Input),
        ("usageMetadata.cachedContentTokenCount", Field::CacheRead),
        ("usageMetadata.candidatesTokenCount", Field::Output),
        ("usageMetadata.thoughtsTokenCount", Field::Reasoning),
        ("usageMetadata.toolUsePromptTokenCount", Field::ToolPrompt),
        ("candidates[].finishReason", Field::Finished),
        (
            "candidates[].groundingMetadata.webSearchQueries[]",
            Field::Search,
        ),
        (
            "usageMetadata.candidatesTokensDetails[].modality",
            Field::Modality,
        ),
        (
            "usageMetadata.candidatesTokensDetails[].tokenCount",
            Field::ModalityCount,
        ),
        ("error.status", Field::ErrorType),
        ("error.message", Field::ErrorMessage),
        // Without `alt=sse` a stream is one JSON array, sent in pieces.
        ("[].modelVersion", Field::Model),
        ("[].usageMetadata.promptTokenCount", Field::Input),
        ("[].usageMetadata.cachedContentTokenCount", Field::CacheRead),
        ("[].usageMetadata.candidatesTokenCount", Field::Output),
        ("[].usageMetadata.thoughtsTokenCount", Field::Reasoning),
        (
            "[].usageMetadata.toolUsePromptTokenCount",
            Field::ToolPrompt,
        ),
        (
            "[].candidates[].groundingMetadata.webSearchQueries[]",
            Field::Search,
        ),
        (
            "[].usageMetadata.candidatesTokensDetails[].modality",
            Field::Modality,
        ),
        (
            "[].usageMetadata.candidatesTokensDetails[].tokenCount",
            Field::ModalityCount,
        ),
        ("[].candidates[].finishReason", Field::Finished),
        ("[].error.status", Field::ErrorType),
        ("[].error.message", Field::ErrorMessage),
    ],
    complete: Complete::Finished,
    normal,
};

/// `promptTokenCount` includes the cache, `candidatesTokenCount` excludes thoughts, and the
/// prompt of tool use stands beside both. Counts are cumulative: the last chunk wins.
fn normal(raw: &RawUsage) -> Option<ReplyUsage> {
    let sum = |a: Option<u64>, b: Option<u64>| {
        if a.is_none() && b.is_none() {
            None
        } else {
            Some(a.unwrap_or(0) + b.unwrap_or(0))
        }
    };
    ReplyUsage {
        input: sum(
            raw.input
                .map(|n| n.saturating_sub(raw.cache_read.unwrap_or(0))),
            raw.tool_prompt,
        ),
        cache_read: raw.cache_read,
        cache_write: None,
        cache_write_1h: None,
        output: sum(raw.output, raw.reasoning),
        reasoning: raw.reasoning,
        cost_usd: None,
        ..ReplyUsage::default()
    }
    .known()
}

const SHAPE: ErrorFormat = ErrorFormat {
    render: render_error,
};

fn render_error(refusal: &RefusalText<'_>) -> ErrorReply {
    let (status, name) = match (refusal.code, refusal.code.status()) {
        // A 429 is retried by the AI SDK, LangChain, opencode, Qwen Code and Kimi.
        (Code::BudgetExhausted, _) => (400, "FAILED_PRECONDITION"),
        (Code::UpstreamUnreachable, _) => (503, "UNAVAILABLE"),
        (_, s @ (403 | 426)) => (s, "PERMISSION_DENIED"),
        (_, s @ (404 | 405)) => (s, "NOT_FOUND"),
        (_, 429) => (429, "RESOURCE_EXHAUSTED"),
        (_, 504) => (504, "DEADLINE_EXCEEDED"),
        (_, s) if s >= 500 => (s, "UNAVAILABLE"),
        (_, s) => (s, "INVALID_ARGUMENT"),
    };
    let reason = refusal::local_code(refusal.code).to_uppercase();
    let mut details = vec![
        json!({ "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "outrigger.local", "metadata": {} }),
    ];
    if let Some(after) = refusal.retry_after {
        details.push(json!({ "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": format!("{}s", after.as_secs_f64().ceil()) }));
    }
    ErrorReply::new(
        status,
        json!({ "error": { "code": status, "message": refusal.message, "status": name, "details": details } }),
    )
}
