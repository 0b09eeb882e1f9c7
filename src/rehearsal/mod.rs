//! The embedded scripted provider: the APIs of Anthropic, OpenAI and Google without a key.
//!
//! People rehearse an image with it before they pay for a model, `up` uses it when no key is
//! configured, and our own tests talk to it. Each API's requests are read into an [`Ask`],
//! a script answers with a [`Step`], and the API's file writes that as its provider would.

mod anthropic;
mod example;
mod google;
mod openai;
pub mod reply;
mod scene;
mod script;
mod server;

pub use reply::Step;
pub use script::Script;
pub use server::Rehearsal;

use serde_json::Value;

/// What a request says, whichever API it came by.
#[derive(Debug, Default, Clone)]
pub struct Ask {
    pub model: String,
    pub stream: bool,
    /// The last text that the user wrote.
    pub prompt: String,
    /// What the tool said, if the last message is a tool's.
    pub tool_output: Option<String>,
    /// The tool that was called last, where the API says it.
    pub last_call: Option<String>,
    /// The name of an MCP tool that the request mentions: it may have to be looked for.
    pub mcp_name: Option<String>,
    pub tools: Vec<Tool>,
    /// The answer is to be JSON of this schema.
    pub schema: Option<Value>,
    /// Chat Completions report usage in streams only when asked to.
    pub stream_usage: bool,
    /// Size of the request, from which token counts are made up.
    pub bytes: usize,
}

#[derive(Debug, Default, Clone)]
pub struct Tool {
    pub name: String,
    /// Codex puts MCP tools into namespaces.
    pub namespace: Option<String>,
    /// JSON Schema of the arguments.
    pub schema: Value,
    /// It takes text of its own kind instead of JSON: Codex' `exec` takes JavaScript.
    pub freeform: bool,
}

/// One API: where it lives and how it reads and writes.
struct Api {
    /// What its clients always send, and others do not.
    header: Option<&'static str>,
    /// Is this path one of its own, and what does it ask for?
    route: fn(method: &str, path: &str) -> Option<Wanted>,
    read: fn(path: &str, body: &Value) -> Ask,
    /// A whole reply.
    reply: fn(&Ask, &reply::ScriptedReply, kind: &str) -> Value,
    /// The events of a streamed reply.
    events: fn(&Ask, &reply::ScriptedReply, kind: &str) -> Vec<String>,
    error: fn(status: u16, message: &str) -> Value,
    /// The list of models.
    models: fn(&[&str]) -> Value,
}

/// What a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// An inference, by one of the API's shapes.
    Inference(&'static str),
    /// A count of tokens, as `{field: n}`.
    Count(&'static str),
    Models,
}

const APIS: [&Api; 3] = [&anthropic::API, &openai::API, &google::API];

/// Token counts are made up from sizes: about four bytes a token, and never 0.
fn tokens(bytes: usize) -> u64 {
    (bytes as u64 / 4).max(1)
}

/// The models that are listed; any other is answered just the same.
const MODELS: [&str; 3] = ["rehearsal-1", "gpt-5.5", "gpt-5.5-mini"];

/// The schema of structured output: an object under this path of the request.
fn schema_at(body: &Value, paths: &[&str]) -> Option<Value> {
    paths
        .iter()
        .find_map(|path| body.pointer(path).filter(|s| s.is_object()).cloned())
}

/// The text of a message's content: a string, or the text parts of a list.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(s) => s.clone(),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|p| p.get("text")?.as_str())
            .collect::<Vec<_>>()
            .join("\n"),
        _ => String::new(),
    }
}

/// Cuts a text into so many pieces, at characters; into as many as it has, where these are fewer.
fn pieces(text: &str, count: usize) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let count = count.max(1).min(chars.len());
    (0..count)
        .map(|i| {
            chars[i * chars.len() / count..(i + 1) * chars.len() / count]
                .iter()
                .collect()
        })
        .collect()
}

/// One event of an SSE stream; a name where the API gives names.
fn sse(name: Option<&str>, data: &Value) -> String {
    match name {
        Some(name) => format!("event: {name}\ndata: {data}\n\n"),
        None => format!("data: {data}\n\n"),
    }
}
