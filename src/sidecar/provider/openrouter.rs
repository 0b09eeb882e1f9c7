//! OpenRouter: Chat Completions with a choice of models.

use serde_json::json;

use super::{anthropic, openai};
use crate::sidecar::provider::{
    Auth, BASE, Billing, BodyRules, Endpoint, Feature, ModelPlace, NO_BODY, Provider, StreamBy,
    ToolName, Verb, no_notices,
};
use crate::sidecar::refusal::{ErrorFormat, ErrorReply, RefusalText};

pub static PROVIDER: Provider = Provider {
    kind: "openrouter",
    base_url: Some("https://openrouter.ai/api/v1"),
    auth: Auth::Bearer,
    shape: ErrorFormat {
        render: render_error,
    },
    endpoints: &[
        Endpoint {
            name: "chat",
            paths: &["chat/completions", "v1/chat/completions"],
            upstream: "chat/completions",
            stream: StreamBy::Flag,
            body: &BodyRules {
                model: ModelPlace::BodyOrFirst,
                restricted: PRESET,
                chooses: runs_a_model,
                ..openai::CHAT
            },
            usage: Some(&openai::CHAT_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "responses",
            paths: &["responses", "v1/responses"],
            upstream: "responses",
            stream: StreamBy::Flag,
            body: &BodyRules {
                model: ModelPlace::BodyOrFirst,
                restricted: RESPONSES_RESTRICTED,
                chooses: runs_a_model,
                ..openai::RESPONSES
            },
            usage: Some(&openai::RESPONSES_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "messages",
            paths: &["messages", "v1/messages"],
            upstream: "messages",
            query: &["beta=true"],
            stream: StreamBy::Flag,
            body: &BodyRules {
                model: ModelPlace::BodyOrFirst,
                chooses: runs_a_model,
                ..anthropic::MESSAGES
            },
            usage: Some(&anthropic::FORMAT),
            ..BASE
        },
        Endpoint {
            name: "models",
            method: Verb::Get,
            paths: &["models", "v1/models"],
            upstream: "models",
            billing: Billing::Models,
            query: &["supported_parameters"],
            body: &NO_BODY,
            ..BASE
        },
    ],
    opaque_models: chooses,
    forwards: &[
        "http-referer",
        "x-title",
        "x-openrouter-title",
        "anthropic-version",
        "anthropic-beta",
        "openai-beta",
    ],
    returns: &["x-generation-id", "x-request-id"],
    own_request_id: None,
    notices: no_notices,
    scrub_header: None,
    local: false,
};

/// A preset is a configuration kept at OpenRouter; it can hold a model.
const PRESET: &[(&str, Feature)] = &[("preset", Feature::StoredObjects)];
const RESPONSES_RESTRICTED: &[(&str, Feature)] = &[
    ("preset", Feature::StoredObjects),
    ("prompt", Feature::StoredObjects),
    ("conversation", Feature::StoredObjects),
    ("previous_response_id", Feature::StoredObjects),
    ("background", Feature::Background),
];

/// OpenRouter's own tools and plugins can run further models (advisor, fusion, the auto
/// router), by default some that the request does not name. Those known to run none are
/// listed; any other is taken to.
fn runs_a_model(named: ToolName<'_>) -> bool {
    match named {
        ToolName::Type(kind) => match kind.strip_prefix("openrouter:") {
            Some(tool) => !matches!(tool, "web_search" | "web_fetch" | "datetime"),
            None => kind.starts_with("advisor_"),
        },
        ToolName::Plugin(id) => !matches!(
            id,
            "web" | "file-parser" | "response-healing" | "context-compression"
        ),
    }
}

/// OpenRouter's own models (routers, and models under a cover name), `~` aliases and stored presets
/// pick the model on the other side.
fn chooses(model: &str) -> bool {
    let bare = model
        .split(':')
        .next()
        .unwrap_or(model)
        .to_ascii_lowercase();
    bare == "auto"
        || bare.starts_with("openrouter/")
        || model.contains("@preset/")
        || model.starts_with('~')
}

fn render_error(refusal: &RefusalText<'_>) -> ErrorReply {
    let status = refusal.code.status();
    // `code` is the status as a number.
    ErrorReply::new(
        status,
        json!({ "error": { "code": status, "message": refusal.message } }),
    )
}
