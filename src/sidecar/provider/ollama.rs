//! Ollama on this machine: its own API and the ones it imitates. Needs no key.
//!
//! A model whose id ends in `cloud` leaves the machine: a pattern does not cover it, only a
//! grant of all of Ollama or one that names it.

use super::registry::{Auth, BASE, Body, Endpoint, Kind, Method, Model, NO_BODY, Provider, Stream, nobody};
use super::{anthropic, openai};
use crate::sidecar::refusal::{Answer, Code, Refusal, Shape};
use crate::sidecar::usage::{Complete, Field, Format};
use serde_json::json;

pub static PROVIDER: Provider = Provider {
    kind: "ollama",
    base_url: Some("http://127.0.0.1:11434"),
    auth: Auth::OptionalBearer,
    shape: Shape { answer },
    endpoints: &[
        Endpoint { name: "ollama.chat", paths: &["api/chat"], upstream: "api/chat", stream: Stream::UnlessFalse, body: &NATIVE, usage: Some(&FORMAT), ..BASE },
        Endpoint {
            name: "ollama.generate",
            paths: &["api/generate"],
            upstream: "api/generate",
            stream: Stream::UnlessFalse,
            body: &NATIVE,
            usage: Some(&FORMAT),
            ..BASE
        },
        Endpoint {
            name: "chat",
            paths: &["v1/chat/completions"],
            upstream: "v1/chat/completions",
            stream: Stream::Flag,
            body: &openai::CHAT,
            usage: Some(&openai::CHAT_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "responses",
            paths: &["v1/responses"],
            upstream: "v1/responses",
            stream: Stream::Flag,
            body: &openai::RESPONSES,
            usage: Some(&openai::RESPONSES_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "messages",
            paths: &["v1/messages"],
            upstream: "v1/messages",
            query: &["beta=true"],
            stream: Stream::Flag,
            body: &anthropic::MESSAGES,
            usage: Some(&anthropic::FORMAT),
            ..BASE
        },
        Endpoint { name: "show", paths: &["api/show"], upstream: "api/show", kind: Kind::Free, body: &NATIVE, ..BASE },
        Endpoint { name: "tags", method: Method::Get, paths: &["api/tags"], upstream: "api/tags", kind: Kind::Models, body: &NO_BODY, ..BASE },
        Endpoint { name: "ps", method: Method::Get, paths: &["api/ps"], upstream: "api/ps", kind: Kind::Models, body: &NO_BODY, ..BASE },
        Endpoint { name: "models", method: Method::Get, paths: &["v1/models"], upstream: "v1/models", kind: Kind::Models, body: &NO_BODY, ..BASE },
        Endpoint { name: "version", method: Method::Get, paths: &["api/version"], upstream: "api/version", kind: Kind::Free, body: &NO_BODY, ..BASE },
    ],
    opaque_models: leaves_the_machine,
    scrub_header: None,
    local: true,
};

fn leaves_the_machine(model: &str) -> bool {
    model.ends_with("-cloud") || model.ends_with(":cloud")
}

const NATIVE: Body = Body {
    model: Model::Body,
    content: &["messages", "prompt", "system", "template", "suffix", "images", "format", "options", "context", "raw"],
    content_but: &[],
    restricted: &[],
    chooses: nobody,
};

static FORMAT: Format = Format {
    fields: &[
        ("model", Field::Model),
        ("prompt_eval_count", Field::Input),
        ("eval_count", Field::Output),
        ("done", Field::Finished),
        ("error", Field::ErrorMessage),
    ],
    complete: Complete::Finished,
    normal: openai::normal,
};

fn answer(refusal: &Refusal<'_>) -> Answer {
    let status = if refusal.code == Code::BudgetExhausted { 402 } else { refusal.code.status() };
    Answer::new(status, json!({ "error": refusal.message }))
}
