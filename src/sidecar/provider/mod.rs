//! What a provider *is*: data, and plain functions over data. No I/O. One file per provider, listed
//! in [`registry`].

pub mod anthropic;
pub mod compatible;
pub mod google;
pub mod ollama;
pub mod openai;
pub mod openrouter;
pub mod registry;

use std::borrow::Cow;

use crate::sidecar::refusal::ErrorFormat;
use crate::sidecar::usage::Format;

#[derive(Debug)]
pub struct Provider {
    pub kind: &'static str,
    /// Where its API lives; `None`: the operator must say.
    pub base_url: Option<&'static str>,
    pub auth: Auth,
    /// How our own answers look to this provider's clients.
    pub shape: ErrorFormat,
    pub endpoints: &'static [Endpoint],
    /// Model ids that let the provider choose the model. They need a grant without a model
    /// filter, or one that names them literally.
    pub opaque_models: fn(&str) -> bool,
    /// Headers of the client that go on to this provider, beside those of all; `*` ends a prefix.
    pub forwards: &'static [&'static str],
    /// Headers of a reply that go back to the client, beside those of all: whole names, since a
    /// name can hold a key, too.
    pub returns: &'static [&'static str],
    /// Replies carry our id under this name instead of the provider's.
    pub own_request_id: Option<&'static str>,
    /// Headers that tell a client how far its budget is used.
    pub notices: fn(&Utilisation) -> Vec<(&'static str, String)>,
    /// Header values of the client that must not travel with the workspace's key.
    pub scrub_header: Option<(&'static str, Scrub)>,
    /// The provider lives on this machine: plain `http://` to loopback is its normal state.
    pub local: bool,
}

/// A header value without what must not go on; empty if nothing may.
pub type Scrub = fn(&str) -> Cow<'_, str>;

/// How far the tightest budget of a request is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Utilisation {
    /// 0 to 1, beyond it when exceeded.
    pub used: f64,
    /// When it starts over, in seconds since 1970; `None`: with the next session.
    pub resets_at: Option<i64>,
}

/// How the workspace's key is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer KEY`
    Bearer,
    /// The key alone in this header.
    Header(&'static str),
    /// `Authorization: Bearer KEY` where a key is configured, nothing otherwise.
    OptionalBearer,
}

#[derive(Debug)]
pub struct Endpoint {
    /// Its name in the audit.
    pub name: &'static str,
    pub method: Verb,
    /// Offered only where the operator lists it (`endpoints`).
    pub optional: bool,
    /// Accepted behind the mount (`/anthropic/…`), without the leading slash. `{model}`
    /// stands for one segment, percent-decoded once, `{id}` for one that may hold colons.
    pub paths: &'static [&'static str],
    /// Accepted without a mount, so that `*_BASE_URL=http://localhost:11432` alone works.
    pub bare: &'static [&'static str],
    /// A bare path counts only when the client sends this header.
    pub bare_needs: Option<&'static str>,
    /// Appended to the provider's base URL.
    pub upstream: &'static str,
    pub billing: Billing,
    /// Query keys (or whole `key=value` pairs) that are forwarded; any other is refused.
    pub query: &'static [&'static str],
    /// Query keys that are credentials: dropped, never forwarded.
    pub query_credentials: &'static [&'static str],
    pub stream: StreamBy,
    pub body: &'static BodyRules,
    pub usage: Option<&'static Format>,
    /// A reply has output tokens (embeddings have none).
    pub generates: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Get,
    Post,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Billing {
    /// Tokens are billed.
    Billed,
    /// Names a model, costs nothing (counting).
    Free,
    /// Lists models: the answer is cut down to what is granted.
    Models,
}

/// How a client asks for a streamed reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamBy {
    Never,
    /// The endpoint always streams.
    Always,
    /// Top-level `"stream": true`.
    Flag,
    /// Streams unless top-level `"stream": false`.
    UnlessFalse,
}

/// Where a request body can name a model, and what else in it decides.
#[derive(Debug)]
pub struct BodyRules {
    pub model: ModelPlace,
    /// Top-level keys that hold the user's content: only references to stored objects and
    /// definitions of tools count there.
    pub content: &'static [&'static str],
    /// Top-level keys that are not looked into at all.
    pub opaque: &'static [&'static str],
    /// What needs a grant's `allow`, by its top-level key.
    pub restricted: &'static [(&'static str, Feature)],
    /// Tools and plugins that run a model which the request need not name.
    pub chooses: fn(ToolName<'_>) -> bool,
    /// The API's own name for the most output tokens of a reply: at the top level, or in
    /// `generationConfig`. Any other spelling limits nothing.
    pub max_output: &'static [&'static str],
    /// Items of the content can refer to items that the provider keeps, by their id.
    pub item_references: bool,
}

/// What a request calls in to help.
#[derive(Debug, Clone, Copy)]
pub enum ToolName<'a> {
    /// A `type`, of a tool or of anything else.
    Type(&'a str),
    /// The `id` of an item of `plugins`.
    Plugin(&'a str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelPlace {
    /// Top-level `model`, required.
    Body,
    /// Top-level `model`, or the first of `models`.
    BodyOrFirst,
    /// Top-level `model`, or none beside an agent that is kept at the provider.
    BodyOrAgent,
    /// In the path; a `model` in the body must be the same.
    Path,
    /// There is no body.
    NoBody,
}

/// What a request can ask for beyond a model, refused unless a grant's `allow` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Feature {
    /// The provider connects to a server that the client names (`mcp_servers`,
    /// `tools[].server_url`).
    McpServers,
    /// Objects kept at the provider under the shared key: stored prompts, conversations,
    /// earlier responses, containers. They can hold a model and other pods' data.
    StoredObjects,
    /// The reply comes later by another request, so its usage would be seen by nobody.
    Background,
}

impl Feature {
    pub const ALL: [Feature; 3] = [
        Feature::McpServers,
        Feature::StoredObjects,
        Feature::Background,
    ];

    /// Its name in a grant's `allow`.
    pub fn name(self) -> &'static str {
        match self {
            Feature::McpServers => "mcp_servers",
            Feature::StoredObjects => "stored_objects",
            Feature::Background => "background",
        }
    }
}

pub(super) const NO_BODY: BodyRules = BodyRules {
    model: ModelPlace::NoBody,
    content: &[],
    opaque: &[],
    restricted: &[],
    chooses: nobody,
    max_output: &[],
    item_references: false,
};

/// The rest of an endpoint, so that each entry says only what is its own.
pub(super) const BASE: Endpoint = Endpoint {
    name: "",
    method: Verb::Post,
    optional: false,
    paths: &[],
    bare: &[],
    bare_needs: None,
    upstream: "",
    billing: Billing::Billed,
    query: &[],
    query_credentials: &[],
    stream: StreamBy::Never,
    body: &NO_BODY,
    usage: None,
    generates: true,
};

/// No notice of a budget.
pub(super) fn no_notices(_: &Utilisation) -> Vec<(&'static str, String)> {
    Vec::new()
}

pub(super) fn nobody(_: ToolName<'_>) -> bool {
    false
}

pub(super) fn never(_: &str) -> bool {
    false
}
