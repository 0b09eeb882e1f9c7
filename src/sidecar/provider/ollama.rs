//! Ollama on this machine: its own API and the ones it imitates. Needs no key.
//!
//! A model whose id ends in `cloud` leaves the machine: a pattern does not cover it, only a
//! grant of all of Ollama or one that names it.

use serde_json::json;

use super::{anthropic, openai};
use crate::sidecar::provider::{
    Auth, BASE, Billing, BodyRules, Endpoint, ModelPlace, NO_BODY, Provider, StreamBy, Verb,
    no_notices, nobody,
};
use crate::sidecar::refusal::{ErrorFormat, ErrorReply, RefusalText};
use crate::sidecar::usage::{Complete, Field, Format};

pub static PROVIDER: Provider = Provider {
    kind: "ollama",
    base_url: Some("http://127.0.0.1:11434"),
    auth: Auth::OptionalBearer,
    shape: ErrorFormat {
        render: render_error,
    },
    endpoints: &[
        Endpoint {
            name: "ollama.chat",
            paths: &["api/chat"],
            upstream: "api/chat",
            stream: StreamBy::UnlessFalse,
            body: &NATIVE,
            usage: Some(&FORMAT),
            ..BASE
        },
        Endpoint {
            name: "ollama.generate",
            paths: &["api/generate"],
            upstream: "api/generate",
            stream: StreamBy::UnlessFalse,
            body: &NATIVE,
            usage: Some(&FORMAT),
            ..BASE
        },
        Endpoint {
            name: "chat",
            paths: &["v1/chat/completions"],
            upstream: "v1/chat/completions",
            stream: StreamBy::Flag,
            body: &openai::OPEN_CHAT,
            usage: Some(&openai::CHAT_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "responses",
            paths: &["v1/responses"],
            upstream: "v1/responses",
            stream: StreamBy::Flag,
            body: &openai::OPEN_RESPONSES,
            usage: Some(&openai::RESPONSES_FORMAT),
            ..BASE
        },
        Endpoint {
            name: "messages",
            paths: &["v1/messages"],
            upstream: "v1/messages",
            query: &["beta=true"],
            stream: StreamBy::Flag,
            body: &anthropic::MESSAGES,
            usage: Some(&anthropic::FORMAT),
            ..BASE
        },
        Endpoint {
            name: "show",
            paths: &["api/show"],
            upstream: "api/show",
            billing: Billing::Free,
            body: &NATIVE,
            ..BASE
        },
        Endpoint {
            name: "tags",
            method: Verb::Get,
            paths: &["api/tags"],
            upstream: "api/tags",
            billing: Billing::Models,
            body: &NO_BODY,
            ..BASE
        },
        Endpoint {
            name: "ps",
            method: Verb::Get,
            paths: &["api/ps"],
            upstream: "api/ps",
            billing: Billing::Models,
            body: &NO_BODY,
            ..BASE
        },
        Endpoint {
            name: "models",
            method: Verb::Get,
            paths: &["v1/models"],
            upstream: "v1/models",
            billing: Billing::Models,
            body: &NO_BODY,
            ..BASE
        },
        Endpoint {
            name: "version",
            method: Verb::Get,
            paths: &["api/version"],
            upstream: "api/version",
            billing: Billing::Free,
            body: &NO_BODY,
            ..BASE
        },
    ],
    opaque_models: leaves_the_machine,
    forwards: &["anthropic-version", "anthropic-beta", "openai-beta"],
    returns: &[],
    own_request_id: None,
    notices: no_notices,
    scrub_header: None,
    local: true,
};

fn leaves_the_machine(model: &str) -> bool {
    // Ollama itself looks at the ending without its case.
    let model = model.to_ascii_lowercase();
    model.ends_with("-cloud") || model.ends_with(":cloud")
}

const NATIVE: BodyRules = BodyRules {
    model: ModelPlace::Body,
    content: &[],
    opaque: &[
        "messages", "prompt", "system", "template", "suffix", "images", "format", "options",
        "context", "raw",
    ],
    restricted: &[],
    chooses: nobody,
    max_output: &[],
    item_references: false,
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

fn render_error(refusal: &RefusalText<'_>) -> ErrorReply {
    ErrorReply::new(refusal.code.status(), json!({ "error": refusal.message }))
}
