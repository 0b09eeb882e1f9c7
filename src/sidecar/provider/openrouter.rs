//! OpenRouter: Chat Completions with a choice of models.

use super::registry::{Auth, BASE, Body, Endpoint, Feature, Kind, Method, Model, NO_BODY, Named, Provider, Stream};
use super::{anthropic, openai};
use crate::sidecar::refusal::{Answer, Code, Refusal, Shape};
use serde_json::json;

pub static PROVIDER: Provider = Provider {
    kind: "openrouter",
    base_url: Some("https://openrouter.ai/api/v1"),
    auth: Auth::Bearer,
    shape: Shape { answer },
    endpoints: &[
        Endpoint {
            name: "chat",
            paths: &["chat/completions", "v1/chat/completions"],
            upstream: "chat/completions",
            stream: Stream::Flag,
            body: &Body { model: Model::BodyOrFirst, restricted: PRESET, chooses: runs_a_model, ..openai::CHAT },
            usage: Some(&openai::CHAT_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "responses",
            paths: &["responses", "v1/responses"],
            upstream: "responses",
            stream: Stream::Flag,
            body: &Body { model: Model::BodyOrFirst, restricted: RESPONSES_RESTRICTED, chooses: runs_a_model, ..openai::RESPONSES },
            usage: Some(&openai::RESPONSES_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "messages",
            paths: &["messages", "v1/messages"],
            upstream: "messages",
            query: &["beta=true"],
            stream: Stream::Flag,
            body: &Body { model: Model::BodyOrFirst, chooses: runs_a_model, ..anthropic::MESSAGES },
            usage: Some(&anthropic::FORMAT),
            ..BASE
        },
        Endpoint { name: "models", method: Method::Get, paths: &["models", "v1/models"], upstream: "models", kind: Kind::Models, body: &NO_BODY, ..BASE },
    ],
    opaque_models: chooses,
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
fn runs_a_model(named: Named<'_>) -> bool {
    match named {
        Named::Type(kind) => match kind.strip_prefix("openrouter:") {
            Some(tool) => !matches!(tool, "web_search" | "web_fetch" | "datetime"),
            None => kind.starts_with("advisor_"),
        },
        Named::Plugin(id) => !matches!(id, "web" | "file-parser" | "response-healing" | "context-compression"),
    }
}

/// The auto router, `~` aliases and stored presets pick the model on the other side.
fn chooses(model: &str) -> bool {
    let bare = model.split(':').next().unwrap_or(model);
    matches!(bare, "openrouter/auto" | "openrouter/fusion" | "auto") || model.contains("@preset/") || model.starts_with('~')
}

fn answer(refusal: &Refusal<'_>) -> Answer {
    let status = if refusal.code == Code::BudgetExhausted { 402 } else { refusal.code.status() };
    // `code` is the status as a number.
    Answer::new(status, json!({ "error": { "code": status, "message": refusal.message } }))
}
