//! Every provider that speaks OpenAI's Chat Completions: `kind: openai-compatible` with a
//! `baseUrl`, and presets for the well known. A client's base URL may end where it likes:
//! `/groq`, `/groq/v1`, or as the provider's own does (`/groq/openai/v1`).

use super::openai;
use crate::sidecar::provider::{
    Auth, BASE, Billing, BodyRules, Endpoint, Feature, NO_BODY, Provider, StreamBy, Verb, never,
    no_notices,
};
use crate::sidecar::usage::{Complete, Format, RawUsage, ReplyUsage};

pub static GENERIC: Provider = BASE_PROVIDER;
pub static GROQ: Provider = Provider {
    kind: "groq",
    base_url: Some("https://api.groq.com/openai/v1"),
    ..BASE_PROVIDER
};
pub static MISTRAL: Provider = Provider {
    kind: "mistral",
    base_url: Some("https://api.mistral.ai/v1"),
    ..BASE_PROVIDER
};
pub static XAI: Provider = Provider {
    kind: "xai",
    base_url: Some("https://api.x.ai/v1"),
    endpoints: &[
        Endpoint {
            usage: Some(&XAI_FORMAT),
            body: &XAI_CHAT,
            ..CHAT
        },
        RESPONSES,
        MODELS,
    ],
    ..BASE_PROVIDER
};
pub static DEEPSEEK: Provider = Provider {
    kind: "deepseek",
    base_url: Some("https://api.deepseek.com"),
    ..BASE_PROVIDER
};
pub static TOGETHER: Provider = Provider {
    kind: "together",
    base_url: Some("https://api.together.xyz/v1"),
    ..BASE_PROVIDER
};
pub static FIREWORKS: Provider = Provider {
    kind: "fireworks",
    base_url: Some("https://api.fireworks.ai/inference/v1"),
    ..BASE_PROVIDER
};
pub static CEREBRAS: Provider = Provider {
    kind: "cerebras",
    base_url: Some("https://api.cerebras.ai/v1"),
    ..BASE_PROVIDER
};

const BASE_PROVIDER: Provider = Provider {
    kind: "openai-compatible",
    base_url: None,
    auth: Auth::Bearer,
    shape: openai::SHAPE,
    endpoints: &[CHAT, RESPONSES, MODELS],
    opaque_models: never,
    forwards: openai::FORWARDS,
    returns: openai::RETURNS,
    own_request_id: None,
    notices: no_notices,
    scrub_header: None,
    local: false,
};

const CHAT: Endpoint = Endpoint {
    name: "chat",
    paths: &["chat/completions", "v1/chat/completions"],
    upstream: "chat/completions",
    stream: StreamBy::Flag,
    body: &openai::OPEN_CHAT,
    usage: Some(&openai::CHAT_FORMAT),
    ..BASE
};
const RESPONSES: Endpoint = Endpoint {
    name: "responses",
    paths: &["responses", "v1/responses"],
    upstream: "responses",
    stream: StreamBy::Flag,
    body: &openai::OPEN_RESPONSES,
    usage: Some(&openai::RESPONSES_FORMAT),
    ..BASE
};
const MODELS: Endpoint = Endpoint {
    name: "models",
    method: Verb::Get,
    paths: &["models", "v1/models"],
    upstream: "models",
    billing: Billing::Models,
    body: &NO_BODY,
    ..BASE
};

/// A deferred reply is fetched by a later request, which nobody here would see.
const XAI_CHAT: BodyRules = BodyRules {
    restricted: &[("deferred", Feature::Background)],
    ..openai::OPEN_CHAT
};

/// xAI reports reasoning beside `completion_tokens`, and bills both.
static XAI_FORMAT: Format = Format {
    fields: openai::CHAT_FIELDS,
    complete: Complete::Done,
    normal: with_reasoning,
};

fn with_reasoning(raw: &RawUsage) -> Option<ReplyUsage> {
    let output = raw.output.map(|n| n + raw.reasoning.unwrap_or(0));
    openai::normal(&RawUsage {
        output,
        ..raw.clone()
    })
}
