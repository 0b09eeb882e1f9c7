//! What translators share: reading native values, and the events that all of them make.

use std::io;
use std::path::Path;

use serde_json::Value;

use crate::adapter::runtime::Env;
use crate::adapter::runtime::action::Action;
use crate::base::token::hex;
use crate::event::{InputMode, PlanItem, PlanUpdate};

/// `OPENCODE_MODEL`, of `OPENCODE_PROVIDER` where it names none: what platforms set, whichever CLI
/// runs.
pub(super) fn model_of_platform(env: Env<'_>) -> Option<String> {
    let model = env("OPENCODE_MODEL")?;
    Some(match env("OPENCODE_PROVIDER") {
        Some(provider) if !model.contains('/') => format!("{provider}/{model}"),
        _ => model,
    })
}

/// Writes a file that a CLI reads, whatever stands in its place: nobody else can read it, and no
/// link or pipe that the agent laid there is followed or waited for.
pub(super) fn write_private_file(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&fresh, path)
}

/// A name for an input that begins with the time: where the CLI keeps no name, the time tells
/// it from another with the same text.
pub(super) fn timed_id(now: i64, random: [u8; 14]) -> String {
    format!("{now:012x}-{}", hex(&random[..8]))
}

/// The time of such a name, in milliseconds since 1970.
pub(super) fn sent_at(native_id: &str) -> Option<i64> {
    i64::from_str_radix(native_id.split_once('-')?.0, 16).ok()
}

/// A native message: JSON, or what stands where some should.
pub(super) fn parsed(native: &[u8]) -> Value {
    serde_json::from_slice(native)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(native).into_owned()))
}

/// The lines of a CLI's own file that contain `part`, parsed, the newest first. Such a file can be
/// long, and what is looked for stands near its end: no other line is parsed.
pub(super) fn newest_first(file: &[u8], part: &[u8]) -> impl Iterator<Item = Value> {
    let lines = file
        .rsplit(|b| *b == b'\n')
        .filter(move |line| memchr::memmem::find(line, part).is_some());
    lines.filter_map(|line| serde_json::from_slice(line).ok())
}

/// The text of a message or of a tool's result. The content is a string, or a list of blocks, each
/// with a text, or with the name of a tool that a search has found.
pub(super) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        blocks => {
            let blocks = blocks.as_array().into_iter().flatten();
            blocks
                .filter_map(|b| b["text"].as_str().or(b["tool_name"].as_str()))
                .collect::<Vec<_>>()
                .join("\n")
        }
    }
}

/// An id of ours, made from ids of a CLI: it can stand in a path as it is.
pub(super) fn request_id(tool: &str, number: &Value) -> String {
    let unreserved = |c: char| {
        if c.is_ascii_alphanumeric() || "-._~".contains(c) {
            c
        } else {
            '-'
        }
    };
    format!("{tool}.{number}").chars().map(unreserved).collect()
}

/// A plan whose steps have a `content` and a `status`.
pub(super) fn plan(steps: &Value) -> Action {
    let step = |s: &Value| PlanItem {
        text: text(s, "/content").into(),
        status: text(s, "/status").into(),
    };
    PlanUpdate {
        items: steps.as_array().into_iter().flatten().map(step).collect(),
    }
    .into()
}

/// What a tool's permission can be answered with.
pub(super) fn permission_options() -> Vec<String> {
    ["allow", "allow_always", "deny"]
        .map(str::to_owned)
        .to_vec()
}

/// What a CLI is told of a refusal that came without a reason.
pub(super) const DENIED: &str = "the user denied this";

/// What is said when a CLI has compacted its history.
pub(super) const COMPACTED: &str =
    "the conversation was compacted: the model sees a summary of what came before";

/// The text at a JSON pointer; empty where there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// How an input gets to a busy CLI; `steers`: it can join the turn without loss, now.
pub fn effective_mode(mode: InputMode, steers: bool) -> InputMode {
    match mode {
        InputMode::Auto if steers => InputMode::Steer,
        InputMode::Auto => InputMode::Queue,
        other => other,
    }
}
