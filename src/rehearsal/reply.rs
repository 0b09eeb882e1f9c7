//! What the scripted provider answers.

use std::time::Duration;

use serde_json::{Value, json};

use super::example;
use crate::rehearsal::Tool;

#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Reply(ScriptedReply),
    Error(Failure),
}

/// A reply of the model: reasoning, then text, then tool calls.
#[derive(Debug, Clone, PartialEq)]
pub struct ScriptedReply {
    pub reasoning: Option<String>,
    pub text: Option<String>,
    pub calls: Vec<ScriptedCall>,
    /// Pieces that the text is streamed in.
    pub chunks: usize,
    /// Pause before each event of the stream.
    pub delay: Duration,
    /// Break the connection after so many events.
    pub cut_after: Option<usize>,
    /// Stop sending after so many events and keep the connection.
    pub stall_after: Option<usize>,
    pub finish: Finish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Done,
    MaxTokens,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ScriptedCall {
    pub name: String,
    pub namespace: Option<String>,
    pub input: Value,
    /// The input is text of the tool's own kind.
    pub freeform: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub status: u16,
    pub message: String,
    pub retry_after: Option<u64>,
}

impl Default for ScriptedReply {
    fn default() -> Self {
        ScriptedReply {
            reasoning: None,
            text: None,
            calls: Vec::new(),
            chunks: 8,
            delay: Duration::ZERO,
            cut_after: None,
            stall_after: None,
            finish: Finish::Done,
        }
    }
}

impl ScriptedReply {
    pub(crate) fn say(text: &str) -> Self {
        ScriptedReply {
            text: Some(text.to_owned()),
            ..ScriptedReply::default()
        }
    }

    pub(super) fn call(tool: &Tool, command: &str) -> Self {
        ScriptedReply {
            calls: vec![shell_call(tool, command)],
            ..ScriptedReply::default()
        }
    }
}

pub(crate) fn shell_call(tool: &Tool, command: &str) -> ScriptedCall {
    if tool.freeform {
        // Codex' `exec` runs JavaScript in which its tools are functions.
        let script = format!(
            "const r = await tools.exec_command({{ cmd: {} }}); text(r.output ?? r);",
            json!(command)
        );
        return ScriptedCall {
            name: tool.name.clone(),
            namespace: tool.namespace.clone(),
            input: json!(script),
            freeform: true,
        };
    }
    let properties = tool.schema.get("properties").cloned().unwrap_or_default();
    let key = ["command", "cmd", "script", "input", "commands"]
        .into_iter()
        .find(|k| properties.get(*k).is_some())
        .unwrap_or("command");
    let list = properties
        .pointer(&format!("/{key}/type"))
        .and_then(Value::as_str)
        == Some("array");
    let value = match (list, key) {
        // A list of commands, or one command in words.
        (true, "commands") => json!([command]),
        (true, _) => json!(["bash", "-lc", command]),
        (false, _) => json!(command),
    };
    ScriptedCall {
        name: tool.name.clone(),
        namespace: tool.namespace.clone(),
        input: arguments(tool, &json!({ key: value })),
        freeform: false,
    }
}

/// The given arguments, and something valid for every other that the schema requires.
pub(crate) fn arguments(tool: &Tool, given: &Value) -> Value {
    let mut all = example::of(&tool.schema)
        .as_object()
        .cloned()
        .unwrap_or_default();
    all.extend(given.as_object().cloned().unwrap_or_default());
    // What was given but is not in the schema would be refused by a strict CLI.
    if let Some(properties) = tool
        .schema
        .get("properties")
        .and_then(Value::as_object)
        .filter(|p| !p.is_empty())
    {
        all.retain(|k, _| properties.contains_key(k));
    }
    Value::Object(all)
}
