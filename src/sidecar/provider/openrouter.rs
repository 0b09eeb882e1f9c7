//! OpenRouter: Chat Completions with a choice of models.

use super::registry::{Auth, BASE, Body, Endpoint, Kind, Method, Model, NO_BODY, Provider, Stream};
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
            body: &Body { model: Model::BodyOrFirst, ..openai::CHAT },
            usage: Some(&openai::CHAT_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "responses",
            paths: &["responses", "v1/responses"],
            upstream: "responses",
            stream: Stream::Flag,
            body: &Body { model: Model::BodyOrFirst, ..openai::RESPONSES },
            usage: Some(&openai::RESPONSES_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "messages",
            paths: &["messages", "v1/messages"],
            upstream: "messages",
            query: &["beta=true"],
            stream: Stream::Flag,
            body: &Body { model: Model::BodyOrFirst, ..anthropic::MESSAGES },
            usage: Some(&anthropic::FORMAT),
            ..BASE
        },
        Endpoint { name: "models", method: Method::Get, paths: &["models", "v1/models"], upstream: "models", kind: Kind::Models, body: &NO_BODY, ..BASE },
    ],
    opaque_models: chooses,
    scrub_header: None,
    reasoning_beside_output: false,
    local: false,
};

/// The auto router and stored presets pick the model on the other side.
fn chooses(model: &str) -> bool {
    let bare = model.split(':').next().unwrap_or(model);
    matches!(bare, "openrouter/auto" | "openrouter/fusion" | "auto") || model.contains("@preset/")
}

fn answer(refusal: &Refusal<'_>) -> Answer {
    let status = if refusal.code == Code::BudgetExhausted { 402 } else { refusal.code.status() };
    // `code` is the status as a number.
    Answer::new(status, json!({ "error": { "code": status, "message": refusal.message } }))
}
