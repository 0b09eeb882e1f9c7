//! The parts of opencode's messages: text, reasoning, tools and steps.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

use super::Opencode;
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::items::ItemKind;
use crate::adapter::runtime::native::text;
use crate::adapter::runtime::opencode::files::{OpencodeTool, appended_since, counts, file_change};
use crate::adapter::runtime::opencode::launch::sanitized;
use crate::event::{InputMode, InputSource, ToolOutput, ToolResult, ToolUse, Usage, UserMessage};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Delta<'a> {
    #[serde(borrow, rename = "sessionID")]
    pub(super) session: Cow<'a, str>,
    #[serde(borrow, rename = "partID")]
    pub(super) part: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) delta: Cow<'a, str>,
}

pub(super) fn tool_over(
    tool: OpencodeTool,
    state: &Value,
    parent: Option<String>,
    out: &mut Vec<Action>,
) {
    let completed = state["status"] == "completed";
    let exit_code = state["metadata"]["exit"].as_i64();
    // A command that was killed has an exit code of null.
    let killed = state["metadata"].get("exit").is_some_and(Value::is_null);
    let is_error =
        !completed || killed || exit_code.is_some_and(|c| c != 0) || tool.name == "invalid";
    let output = text(state, if completed { "/output" } else { "/error" }).to_owned();
    let time = &state["time"];
    let duration_ms = time["end"]
        .as_u64()
        .zip(time["start"].as_u64())
        .map(|(end, start)| end.saturating_sub(start));
    let change = (!is_error)
        .then(|| file_change(&tool, state, parent.clone()))
        .flatten();
    out.push(
        ToolResult {
            tool_use_id: tool.id,
            output,
            is_error,
            exit_code,
            duration_ms,
            parent_tool_use_id: parent,
        }
        .into(),
    );
    out.extend(change.map(Action::from));
}

/// A tool's name as every runtime has it.
pub(super) fn canonical(native: &str, mcp: &[String]) -> String {
    match native {
        "webfetch" => return "web_fetch".into(),
        "websearch" => return "web_search".into(),
        "apply_patch" | "multiedit" | "patch" => return "edit".into(),
        _ => {}
    }
    for server in mcp {
        if let Some(tool) = native
            .strip_prefix(&sanitized(server))
            .and_then(|rest| rest.strip_prefix('_'))
        {
            return format!("mcp__{server}__{tool}");
        }
    }
    native.to_owned()
}

impl Opencode {
    pub(super) fn part(
        &mut self,
        part: &Value,
        parent: Option<String>,
        out: &mut Vec<Action>,
    ) -> bool {
        let message = text(part, "/messageID");
        if self.ended.contains(message) {
            return true;
        }
        if self.messages.get(message).is_some_and(|m| m.user) {
            self.user_part(message.to_owned(), part, parent.as_ref(), out);
            return true;
        }
        let id = text(part, "/id");
        match text(part, "/type") {
            "text" => self.written(id, ItemKind::Text, part, parent, out),
            "reasoning" => self.written(id, ItemKind::Reasoning, part, parent, out),
            "tool" => self.tool(id, part, parent, out),
            "step-finish" => self.step_finish(id, part, parent.as_ref(), out),
            "step-start" | "patch" | "snapshot" | "agent" | "subtask" | "retry" | "compaction" => {}
            _ => return false,
        }
        self.end_if_drained(out);
        true
    }

    /// A message that somebody else put there: another client, or who made a recording.
    pub(super) fn user_part(
        &mut self,
        message: String,
        part: &Value,
        parent: Option<&String>,
        out: &mut Vec<Action>,
    ) {
        if parent.is_some()
            || part["type"] != "text"
            || part["synthetic"] == true
            || !self.users.insert(message.clone())
        {
            return;
        }
        let source = if std::mem::take(&mut self.first) {
            InputSource::Initial
        } else {
            InputSource::Inject
        };
        let text = text(part, "/text").to_owned();
        out.push(
            UserMessage {
                input_id: message.clone(),
                text,
                sender_id: None,
                source,
                mode: InputMode::Auto,
                attachments: 0,
            }
            .into(),
        );
        let input = message.clone();
        self.queued(&message, &input);
    }

    pub(super) fn written(
        &mut self,
        id: &str,
        kind: ItemKind,
        part: &Value,
        parent: Option<String>,
        out: &mut Vec<Action>,
    ) {
        if self.done.contains(id) {
            return;
        }
        let full = text(part, "/text");
        if part["time"]["end"].is_null() {
            return self.items.begin(id, kind, full, parent.as_deref());
        }
        self.done.insert(id.to_owned());
        let parent = self
            .items
            .get(id)
            .map_or(parent, |draft| draft.parent.clone());
        // Written to its end, or until it was stopped: the end is stamped either way.
        let stopped =
            kind == ItemKind::Text && self.turn.as_ref().is_some_and(|t| t.aborted && t.draining);
        if let (ItemKind::Text, None, Some(turn)) = (kind, &parent, &mut self.turn) {
            full.clone_into(&mut turn.final_text);
        }
        self.items
            .finish(id, kind, full, parent.as_deref(), stopped, out);
    }

    pub(super) fn delta(&mut self, delta: &Delta<'_>, out: &mut Vec<Action>) -> bool {
        if self.whose(&delta.session).is_none() || self.done.contains(delta.part.as_ref()) {
            return true;
        }
        self.items.append(&delta.part, &delta.delta, out)
    }

    pub(super) fn tool(
        &mut self,
        id: &str,
        part: &Value,
        parent: Option<String>,
        out: &mut Vec<Action>,
    ) {
        if self.done.contains(id) {
            return;
        }
        let state = &part["state"];
        if !self.tools.contains_key(id) {
            // Providers may use a call id again; on the stream each call has its own.
            let call = text(part, "/callID");
            let taken = call.is_empty() || !self.tool_ids.insert(call.to_owned());
            let tool_id = if taken {
                id.to_owned()
            } else {
                call.to_owned()
            };
            self.tools.insert(
                id.to_owned(),
                OpencodeTool {
                    id: tool_id,
                    call: call.to_owned(),
                    ..OpencodeTool::default()
                },
            );
        }
        let Some(tool) = self.tools.get_mut(id) else {
            return;
        };
        text(part, "/tool").clone_into(&mut tool.name);
        let status = text(state, "/status");
        if let Some(child) = state["metadata"]["sessionId"].as_str() {
            tool.child = Some(child.to_owned());
            self.children
                .insert(child.to_owned(), Some(tool.id.clone()));
        }
        if status == "pending" {
            return;
        }
        if !tool.used {
            tool.used = true;
            // A tool that there is none of is turned into one called `invalid`.
            let native_name = if tool.name == "invalid" {
                text(state, "/input/tool")
            } else {
                &tool.name
            }
            .to_owned();
            tool.input = state["input"].clone();
            out.push(
                ToolUse {
                    tool_use_id: tool.id.clone(),
                    name: canonical(&native_name, &self.mcp),
                    native_name,
                    input: tool.input.clone(),
                    parent_tool_use_id: parent.clone(),
                }
                .into(),
            );
            let call = tool.call.clone();
            self.call_is_told(&call, out);
        }
        let Some(tool) = self.tools.get_mut(id) else {
            return;
        };
        if let Some(output) = state["metadata"]["output"]
            .as_str()
            .filter(|_| status == "running")
        {
            let news = appended_since(&tool.seen, output).to_owned();
            output.clone_into(&mut tool.seen);
            if !news.is_empty() {
                out.push(
                    ToolOutput {
                        tool_use_id: tool.id.clone(),
                        text: news,
                        parent_tool_use_id: parent,
                    }
                    .into(),
                );
            }
            return;
        }
        if matches!(status, "completed" | "error")
            && let Some(tool) = self.tools.remove(id)
        {
            self.done.insert(id.to_owned());
            tool_over(tool, state, parent, out);
        }
    }

    pub(super) fn step_finish(
        &mut self,
        id: &str,
        part: &Value,
        parent: Option<&String>,
        out: &mut Vec<Action>,
    ) {
        if !self.done.insert(id.to_owned()) {
            return;
        }
        if part["reason"] == "tool-calls" {
            out.push(Action::Step);
        }
        let Some(turn) = &mut self.turn else { return };
        turn.usage.add(&Usage {
            cost_usd: part["cost"].as_f64(),
            ..counts(&part["tokens"])
        });
        if parent.is_none() {
            turn.finish = part["reason"].as_str().map(str::to_owned);
        }
    }

    /// A line of the one-shot mode: finished parts, without the messages that they belong to.
    pub(super) fn run_line(&mut self, kind: &str, part: &Value, out: &mut Vec<Action>) -> bool {
        let session = text(part, "/sessionID");
        let Some(parent) = self.whose(session) else {
            return true;
        };
        if !matches!(
            kind,
            "step_start" | "text" | "reasoning" | "tool_use" | "step_finish"
        ) {
            return false;
        }
        self.begin_turn(out);
        self.part(part, parent, out)
    }
}
