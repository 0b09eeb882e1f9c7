//! The items of Codex' turns: messages, reasoning, commands, changes of files, tools.

use serde_json::{Value, json};

use super::Codex;
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::items::ItemKind;
use crate::adapter::runtime::native::{COMPACTED, text, text_of};
use crate::event::{ChangeKind, FileChange, ToolResult, ToolUse, Warning};

/// The command within `/bin/bash -lc '…'`.
pub(super) fn command(wrapped: &str) -> String {
    match shlex::split(wrapped).as_deref() {
        Some([shell, flag, command])
            if shell.ends_with("sh") && flag.starts_with('-') && flag.ends_with('c') =>
        {
            command.clone()
        }
        _ => wrapped.to_owned(),
    }
}

pub(super) fn changes(item: &Value) -> impl Iterator<Item = &Value> {
    item["changes"].as_array().into_iter().flatten()
}

/// `{"type":"add"}`, or `"add"` in the one-shot mode.
pub(super) fn kind_of(kind: &Value) -> (&str, ChangeKind) {
    match kind["type"].as_str().or(kind.as_str()).unwrap_or_default() {
        "add" => ("added", ChangeKind::Add),
        "delete" => ("deleted", ChangeKind::Delete),
        _ => ("modified", ChangeKind::Modify),
    }
}

/// A unified diff; of a file that is new, or gone, Codex gives the text.
pub(super) fn diff(kind: ChangeKind, given: &str) -> Option<String> {
    let all = |sign: char| {
        given
            .lines()
            .map(|l| format!("{sign}{l}\n"))
            .collect::<String>()
    };
    let count = given.lines().count();
    match kind {
        _ if given.is_empty() => None,
        ChangeKind::Modify => Some(given.to_owned()),
        ChangeKind::Add => Some(format!("@@ -0,0 +1,{count} @@\n{}", all('+'))),
        ChangeKind::Delete => Some(format!("@@ -1,{count} +0,0 @@\n{}", all('-'))),
    }
}

/// The one-shot mode's `snake_case` keys and types of items, as the app-server spells them.
pub(super) fn camel(value: &Value) -> Value {
    let word = |s: &str| {
        let mut words = s.split('_');
        let first = words.next().unwrap_or_default().to_owned();
        words.fold(first, |mut all, w| {
            let mut letters = w.chars();
            all.extend(letters.next().into_iter().flat_map(char::to_uppercase));
            all + letters.as_str()
        })
    };
    let Value::Object(map) = value else {
        return value.clone();
    };
    let spelled = map.iter().map(|(key, value)| {
        let value = match (key.as_str(), value) {
            ("type", Value::String(kind)) => word(kind).into(),
            ("arguments" | "changes" | "result", value) => value.clone(),
            (_, value) => camel(value),
        };
        (word(key), value)
    });
    Value::Object(spelled.collect())
}

impl Codex {
    pub(super) fn write(&mut self, kind: ItemKind, p: &Value, out: &mut Vec<Action>) {
        self.items
            .write(text(p, "/itemId"), kind, text(p, "/delta"), None, out);
    }

    /// What was being written is not written any further.
    pub(super) fn cut(&mut self, out: &mut Vec<Action>) {
        if let (Some(turn), Some((_, draft))) = (&mut self.turn, self.items.last_text()) {
            draft.text.clone_into(&mut turn.final_text);
        }
        self.items.cut(out);
    }

    pub(super) fn item_started(&mut self, item: &Value, out: &mut Vec<Action>) -> bool {
        let id = text(item, "/id");
        match text(item, "/type") {
            "userMessage" => {
                // What it was told to steer while it wrote cut what it wrote.
                self.cut(out);
                let (client, said) = (text(item, "/clientId"), text_of(&item["content"]));
                if !self.in_flight.acknowledge(
                    |native, input| {
                        if client.is_empty() {
                            input.text == said
                        } else {
                            native == client
                        }
                    },
                    out,
                ) {
                    self.in_flight.foreign(id, &said, out);
                }
            }
            "agentMessage" | "reasoning" | "plan" | "hookPrompt" | "enteredReviewMode"
            | "exitedReviewMode" | "contextCompaction" => {}
            "" => return false,
            // It belongs to no turn, and nothing would end one that it began.
            _ if self.turn.is_none() && !self.one_shot => return false,
            kind => self.tool_use(id, kind, item, out),
        }
        true
    }

    pub(super) fn tool_use(&mut self, id: &str, kind: &str, item: &Value, out: &mut Vec<Action>) {
        if !self.used.insert(id.to_owned()) {
            return;
        }
        self.begin_turn("", out);
        self.tools.insert(id.to_owned(), item["changes"].clone());
        let (name, native_name, input) = match kind {
            "commandExecution" => (
                "bash".to_owned(),
                kind,
                json!({ "command": command(text(item, "/command")), "cwd": item["cwd"] }),
            ),
            "fileChange" => (
                "edit".to_owned(),
                kind,
                json!({ "changes": item["changes"] }),
            ),
            "mcpToolCall" => {
                let tool = text(item, "/tool");
                (
                    format!("mcp__{}__{tool}", text(item, "/server")),
                    tool,
                    item["arguments"].clone(),
                )
            }
            "collabAgentToolCall" => (
                "task".to_owned(),
                text(item, "/tool"),
                json!({ "prompt": item["prompt"] }),
            ),
            "webSearch" => (
                "web_search".to_owned(),
                kind,
                json!({ "query": item["query"] }),
            ),
            other => (other.to_owned(), other, item.clone()),
        };
        let native_name = if native_name.is_empty() {
            kind
        } else {
            native_name
        }
        .to_owned();
        out.push(
            ToolUse {
                tool_use_id: id.to_owned(),
                name,
                native_name,
                input,
                parent_tool_use_id: None,
            }
            .into(),
        );
    }

    pub(super) fn item_completed(&mut self, item: &Value, out: &mut Vec<Action>) -> bool {
        let id = text(item, "/id");
        match text(item, "/type") {
            "agentMessage" => {
                let words = text(item, "/text");
                self.items
                    .finish(id, ItemKind::Text, words, None, false, out);
                if let Some(turn) = &mut self.turn {
                    words.clone_into(&mut turn.final_text);
                }
            }
            "reasoning" => {
                let parts = |key: &str| {
                    item[key]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str)
                        .collect::<Vec<_>>()
                        .join("\n\n")
                };
                let words = [
                    parts("summary"),
                    parts("content"),
                    text(item, "/text").to_owned(),
                ]
                .into_iter()
                .find(|s| !s.is_empty())
                .unwrap_or_default();
                self.items
                    .finish(id, ItemKind::Reasoning, &words, None, false, out);
            }
            "contextCompaction" => out.push(
                Warning {
                    message: COMPACTED.into(),
                }
                .into(),
            ),
            "error" => out.push(
                Warning {
                    message: text(item, "/message").to_owned(),
                }
                .into(),
            ),
            "userMessage" | "plan" | "hookPrompt" | "enteredReviewMode" | "exitedReviewMode" => {}
            "" => return false,
            // What outlives its turn, and was told as cut with it.
            _ if self.turn.is_none() && self.used.contains(id) => {}
            _ if self.turn.is_none() && !self.one_shot => return false,
            kind => {
                self.tool_use(id, kind, item, out);
                self.tool_result(id, kind, item, out);
            }
        }
        true
    }

    pub(super) fn tool_result(
        &mut self,
        id: &str,
        kind: &str,
        item: &Value,
        out: &mut Vec<Action>,
    ) {
        if self.tools.remove(id).is_none() {
            return;
        }
        if let Some(turn) = &mut self.turn {
            turn.tools_said = true;
        }
        let exit_code = item["exitCode"].as_i64();
        let is_error = matches!(text(item, "/status"), "failed" | "declined")
            || exit_code.is_some_and(|c| c != 0)
            || item["success"] == false;
        let output = output_of(kind, item);
        let duration_ms = item["durationMs"].as_u64();
        out.push(
            ToolResult {
                tool_use_id: id.to_owned(),
                output,
                is_error,
                exit_code,
                duration_ms,
                parent_tool_use_id: None,
            }
            .into(),
        );
        if kind == "fileChange" && !is_error {
            for change in changes(item) {
                let (_, kind) = kind_of(&change["kind"]);
                let path = text(change, "/path").to_owned();
                out.push(
                    FileChange {
                        path,
                        kind,
                        diff: diff(kind, text(change, "/diff")),
                        tool_use_id: Some(id.into()),
                        parent_tool_use_id: None,
                    }
                    .into(),
                );
            }
        }
    }
}

/// What a tool of this kind said.
fn output_of(kind: &str, item: &Value) -> String {
    match kind {
        "commandExecution" if item["status"] == "declined" => {
            "the command was not permitted".to_owned()
        }
        "commandExecution" => text(item, "/aggregatedOutput").to_owned(),
        "fileChange" => changes(item)
            .map(|c| format!("{} {}\n", kind_of(&c["kind"]).0, text(c, "/path")))
            .collect(),
        "mcpToolCall" if !item["error"].is_null() => {
            [text(item, "/error/message"), text(item, "/error")].concat()
        }
        "mcpToolCall" => {
            let blocks = item["result"]["content"].as_array().into_iter().flatten();
            blocks
                .map(|b| {
                    b["text"]
                        .as_str()
                        .map_or_else(|| b.to_string(), str::to_owned)
                })
                .collect::<Vec<_>>()
                .join("\n")
        }
        "collabAgentToolCall" => item["agentsStates"].to_string(),
        "webSearch" => item["action"].to_string(),
        _ => item.to_string(),
    }
}
