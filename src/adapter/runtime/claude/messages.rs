//! What Claude Code says: the lines of its stream.

use serde_json::Value;

use super::Claude;
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::claude::result::named;
use crate::adapter::runtime::items::ItemKind;
use crate::adapter::runtime::native::{COMPACTED, text};
use crate::event::{ErrorCode, PermissionResolved, Retry, Warning};

#[derive(Debug, Default)]
pub(super) struct ClaudeTurn {
    pub(super) final_text: String,
    pub(super) aborted: bool,
    pub(super) refused: bool,
    /// The CLI's word for what failed, and its message.
    pub(super) failed: Option<(String, String)>,
    /// Tools have answered, and the model was not asked again yet.
    pub(super) tools_said: bool,
    pub(super) stop_reason: Option<String>,
}

pub(super) fn item(message: &str, block: u64) -> String {
    format!("{message}:{block}")
}

impl Claude {
    pub(super) fn message(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
        let parent = m["parent_tool_use_id"].as_str();
        match text(m, "/type") {
            "system" => return self.system(m, out),
            "stream_event" => self.stream(&m["event"], out),
            "assistant" => self.assistant(m, parent, out),
            "user" => return self.user(m, parent, out),
            "result" => self.result(m, out),
            "control_response" => self.control_response(&m["response"], out),
            "control_request" if m["request"]["subtype"] == "can_use_tool" => {
                self.permission_asked(m, out)
            }
            "control_cancel_request" => {
                let request_id = text(m, "/request_id").to_owned();
                if self.asked.remove(&request_id).is_some() {
                    out.push(
                        PermissionResolved {
                            request_id,
                            decision: "cancelled".into(),
                            by: "runtime".into(),
                        }
                        .into(),
                    );
                }
            }
            // An input's way through the CLI's own queue: its echo and its turn say as much.
            "keep_alive" | "command_lifecycle" => {}
            _ => return false,
        }
        true
    }

    pub(super) fn system(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
        match text(m, "/subtype") {
            "init" => self.begin_turn(out),
            "status" if m["status"] == "requesting" => {
                if self
                    .turn
                    .as_mut()
                    .is_some_and(|t| std::mem::take(&mut t.tools_said))
                {
                    out.push(Action::Step);
                }
            }
            "status" if m["compact_result"] == "failed" => {
                out.push(
                    Warning {
                        message: "the conversation could not be compacted".into(),
                    }
                    .into(),
                );
            }
            "compact_boundary" => out.push(
                Warning {
                    message: COMPACTED.into(),
                }
                .into(),
            ),
            "api_retry" => {
                self.items.cut(out);
                let status = m["error_status"].as_u64().map(|s| s as u16);
                let word = text(m, "/error");
                let message = status.map_or_else(
                    || format!("the provider could not be reached ({word})"),
                    |status| format!("the provider answered {status} ({word})"),
                );
                out.push(
                    Retry {
                        attempt: m["attempt"].as_u64().unwrap_or(1),
                        code: named(word, status, &message),
                        retry_after_ms: m["retry_delay_ms"]
                            .as_f64()
                            .map(|ms| ms.max(0.0).round() as u64),
                        message,
                        parent_tool_use_id: None,
                    }
                    .into(),
                );
            }
            "model_fallback" => out.push(
                Warning {
                    message: text(m, "/content").to_owned(),
                }
                .into(),
            ),
            "model_refusal_no_fallback" => {
                if let Some(turn) = &mut self.turn {
                    turn.refused = true;
                }
            }
            "status"
            | "session_state_changed"
            | "thinking_tokens"
            | "background_tasks_changed"
            | "task_started"
            | "task_progress"
            | "task_updated"
            | "task_notification"
            | "hook_started"
            | "hook_response" => {}
            _ => return false,
        }
        true
    }

    /// A turn begins; what was given before it is what it answers.
    pub(super) fn begin_turn(&mut self, out: &mut Vec<Action>) {
        if self.turn.is_some() {
            return;
        }
        self.turn = Some(ClaudeTurn::default());
        self.in_flight.begin_turn(out);
    }

    pub(super) fn stream(&mut self, event: &Value, out: &mut Vec<Action>) {
        match text(event, "/type") {
            "message_start" => {
                self.items.cut(out);
                self.streaming = Some((text(event, "/message/id").to_owned(), 0));
            }
            "content_block_start" => {
                if let Some((_, block)) = &mut self.streaming {
                    *block = event["index"].as_u64().unwrap_or(0);
                }
            }
            "content_block_delta" => {
                let Some((message, block)) = &self.streaming else {
                    return;
                };
                let (kind, piece) = match text(event, "/delta/type") {
                    "text_delta" => (ItemKind::Text, text(event, "/delta/text")),
                    "thinking_delta" => (ItemKind::Reasoning, text(event, "/delta/thinking")),
                    _ => return,
                };
                self.items
                    .write(&item(message, *block), kind, piece, None, out);
            }
            "message_delta" => {
                if let (Some(turn), Some(reason)) =
                    (&mut self.turn, event["delta"]["stop_reason"].as_str())
                {
                    turn.stop_reason = Some(reason.to_owned());
                }
            }
            _ => {}
        }
    }

    /// One message for each block that is finished.
    pub(super) fn assistant(&mut self, m: &Value, parent: Option<&str>, out: &mut Vec<Action>) {
        let message = &m["message"];
        if let Some(error) = m["error"].as_str() {
            if let Some(turn) = &mut self.turn {
                let said = text(message, "/content/0/text").to_owned();
                turn.failed = Some((error.to_owned(), said));
            }
            return;
        }
        let id = text(message, "/id");
        let mut name = match &self.streaming {
            Some((streaming, block)) if parent.is_none() && streaming == id => item(id, *block),
            _ => format!("{id}:{}", text(m, "/uuid")),
        };
        let again = parent.is_none()
            && self
                .streaming
                .as_ref()
                .is_some_and(|(streaming, _)| streaming != id)
            && !self.items.is_empty();
        if again {
            // Its stream was cut, and this was asked for without one.
            out.push(
                Retry {
                    attempt: 1,
                    code: ErrorCode::ProviderDown,
                    retry_after_ms: None,
                    message: "the answer was cut, and asked for again".into(),
                    parent_tool_use_id: None,
                }
                .into(),
            );
        }
        for block in message["content"].as_array().into_iter().flatten() {
            match text(block, "/type") {
                "text" => {
                    if again && let Some((begun, _)) = self.items.last_text() {
                        name.clone_from(begun);
                    }
                    let words = text(block, "/text");
                    let stopped = self.turn.as_ref().is_some_and(|t| t.aborted);
                    self.items
                        .finish(&name, ItemKind::Text, words, parent, stopped, out);
                    if let (Some(turn), None) = (&mut self.turn, parent) {
                        words.clone_into(&mut turn.final_text);
                    }
                }
                "thinking" => self.items.finish(
                    &name,
                    ItemKind::Reasoning,
                    text(block, "/thinking"),
                    parent,
                    false,
                    out,
                ),
                "tool_use" => self.tool_use(block, parent, out),
                _ => {}
            }
        }
        if again {
            self.items.cut(out);
            self.streaming = None;
        }
        if let (Some(turn), Some(reason)) = (&mut self.turn, message["stop_reason"].as_str()) {
            turn.stop_reason = Some(reason.to_owned());
        }
    }

    pub(super) fn user(&mut self, m: &Value, parent: Option<&str>, out: &mut Vec<Action>) -> bool {
        let content = &m["message"]["content"];
        if m["isReplay"] == true {
            self.acknowledged(text(m, "/uuid"), content, out);
            return true;
        }
        let mut known = false;
        for block in content.as_array().into_iter().flatten() {
            match text(block, "/type") {
                "tool_result" => {
                    self.tool_result(block, &m["tool_use_result"], out);
                    known = true;
                }
                // A subagent is told what the model likes.
                "text"
                    if parent.is_none()
                        && text(block, "/text").starts_with("[Request interrupted by user") =>
                {
                    if let Some(turn) = &mut self.turn {
                        turn.aborted = true;
                    }
                    known = true;
                }
                // What a subagent was told, or what the CLI tells the model by itself.
                _ => known |= parent.is_some() || m["isSynthetic"] == true,
            }
        }
        known
    }

    /// The echo of what was written: the CLI has it.
    pub(super) fn acknowledged(&mut self, uuid: &str, content: &Value, out: &mut Vec<Action>) {
        let texts: Vec<&str> = match content {
            Value::String(text) => vec![text.as_str()],
            blocks => blocks
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|b| b["text"].as_str())
                .collect(),
        };
        // Several may come as one, under one of their ids.
        let known = self.in_flight.acknowledge(
            |id, input| id == uuid || texts.contains(&input.text.as_str()),
            out,
        );
        if !known && !texts.iter().any(|t| t.starts_with("<local-command")) {
            self.in_flight.foreign(uuid, &texts.join("\n"), out);
        }
    }
}
