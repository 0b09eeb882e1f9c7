//! What pi says: its messages, its runs, its answers.

use serde_json::{Value, json};

use super::{Pi, RETRY_TIME, RUN_TIME, STRANDED_TIME};
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::error_code;
use crate::adapter::runtime::items::ItemKind;
use crate::adapter::runtime::native::{COMPACTED, text, text_of};
use crate::event::{ErrorEvent, Retry, TurnEnd, TurnEndReason, Usage, Warning};

#[derive(Debug, Default)]
pub(super) struct PiTurn {
    pub(super) final_text: String,
    pub(super) aborted: bool,
    pub(super) stop: String,
    pub(super) failure: Option<String>,
    pub(super) usage: Usage,
    pub(super) rounds: u64,
    /// It failed, and may be tried again.
    pub(super) complete: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum History {
    #[default]
    None,
    /// Its first answer is said, and about to be written.
    Coming,
    Written,
}

/// `403 {…}`: the status and the body.
pub(super) fn split(said: &str) -> (Option<u16>, &str) {
    match said.split_once(' ') {
        Some((status, body)) if status.len() == 3 => (status.parse().ok(), body),
        _ => (None, said),
    }
}

impl Pi {
    pub(super) fn message(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
        if self.file == History::Coming {
            self.file = History::Written;
            self.in_flight.acknowledge(|_, _| true, out);
        }
        match text(m, "/type") {
            "response" => self.responded(m, out),
            "agent_start" => {
                if let Some(turn) = &mut self.turn {
                    turn.complete = false;
                }
                self.begin_turn(out);
            }
            "turn_start" => {
                if let Some(turn) = &mut self.turn {
                    turn.rounds += 1;
                    if turn.rounds > 1 {
                        out.push(Action::Step);
                    }
                }
            }
            "message_start" => self.message_started(&m["message"], out),
            "message_update" => self.update(&m["assistantMessageEvent"], out),
            "message_end" => self.message_over(&m["message"], out),
            "tool_execution_start" => self.tool_use(m, out),
            "tool_execution_update" => self.tool_output(m, out),
            "tool_execution_end" => self.tool_result(m, out),
            "agent_end" => self.run_over(out),
            "auto_retry_start" => {
                let said = text(m, "/errorMessage");
                let (status, message) = split(said);
                out.push(
                    Retry {
                        attempt: m["attempt"].as_u64().unwrap_or(1),
                        code: error_code::code(status, message),
                        retry_after_ms: m["delayMs"].as_u64(),
                        message: error_code::words(message),
                        parent_tool_use_id: None,
                    }
                    .into(),
                );
                if let Some(turn) = &mut self.turn {
                    (turn.complete, turn.failure, turn.rounds) = (false, None, 0);
                }
            }
            "auto_retry_end" if m["success"] == false => {
                if let Some(turn) = &mut self.turn {
                    turn.failure = m["finalError"]
                        .as_str()
                        .map(str::to_owned)
                        .or(turn.failure.take());
                    turn.complete = true;
                }
                self.end_turn(out);
            }
            "compaction_start" => {
                // What failed for its length is tried again behind it.
                if let Some(turn) = self
                    .turn
                    .as_mut()
                    .filter(|t| t.complete && m["reason"] == "overflow")
                {
                    turn.complete = false;
                }
            }
            "compaction_end" => {
                if !m["result"].is_null() {
                    out.push(
                        Warning {
                            message: COMPACTED.into(),
                        }
                        .into(),
                    );
                }
                if let Some(turn) = self.turn.as_mut().filter(|_| m["reason"] == "overflow") {
                    if m["willRetry"] == true {
                        (turn.failure, turn.rounds) = (None, 0);
                    } else {
                        turn.complete = true;
                        self.end_turn(out);
                    }
                }
            }
            "extension_error" => out.push(
                Warning {
                    message: text(m, "/error").to_owned(),
                }
                .into(),
            ),
            "extension_ui_request"
                if matches!(
                    text(m, "/method"),
                    "select" | "confirm" | "input" | "editor"
                ) =>
            {
                // It must not wait for what nobody can answer.
                out.push(Action::Send(
                    json!({ "type": "extension_ui_response", "id": m["id"], "cancelled": true }),
                ));
                out.push(
                    Warning {
                        message: format!(
                            "an extension asked `{}`, and was told that nobody answers",
                            text(m, "/title")
                        ),
                    }
                    .into(),
                );
            }
            // `agent_settled` follows each run, `entry_appended` each change of its history.
            "turn_end"
            | "queue_update"
            | "auto_retry_end"
            | "extension_ui_request"
            | "session"
            | "agent_settled"
            | "entry_appended" => {}
            _ => return false,
        }
        true
    }

    pub(super) fn responded(&mut self, m: &Value, out: &mut Vec<Action>) {
        let failed = m["success"] == false;
        match (text(m, "/command"), text(m, "/id")) {
            ("get_messages", _) => {
                let messages = m["data"]["messages"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|m| m["role"] == "user");
                self.history = messages
                    .filter_map(|m| Some((m["timestamp"].as_i64()?, text_of(&m["content"]))))
                    .collect();
            }
            ("get_state", _) if failed => out.push(Action::Broken(format!(
                "pi gave no session: {}",
                text(m, "/error")
            ))),
            ("get_state", _) if !self.ready => {
                self.ready = true;
                out.push(Action::Ready {
                    native_session_id: text(m, "/data/sessionId").to_owned(),
                    resumed: self.resumed,
                });
            }
            ("prompt", id) if failed => {
                self.in_flight
                    .refused(id, format!("pi refused it: {}", text(m, "/error")), out)
            }
            ("prompt", _) if self.turn.is_none() && !self.in_flight.is_empty() => {
                self.accepted = true;
                out.push(Action::Wake(RUN_TIME));
            }
            ("abort", _) if failed => out.push(Action::Broken(format!(
                "pi cannot be interrupted: {}",
                text(m, "/error")
            ))),
            _ => {}
        }
    }

    pub(super) fn begin_turn(&mut self, out: &mut Vec<Action>) {
        if self.turn.is_none() {
            (self.accepted, self.stranded) = (false, false);
            self.turn = Some(PiTurn::default());
            self.in_flight.begin_turn(out);
        }
    }

    pub(super) fn message_started(&mut self, message: &Value, out: &mut Vec<Action>) {
        if message["role"] == "user" {
            let said = text_of(&message["content"]);
            // It may be another text than was sent: what extensions and templates made of it.
            if self.file == History::None && !self.in_flight.is_empty() {
                // Told with the beginning of its turn, and delivered once it is in the file.
            } else if !self.in_flight.acknowledge(|_, _| true, out) {
                self.in_flight
                    .foreign(&format!("user-{}", message["timestamp"]), &said, out);
            }
        } else if message["role"] == "assistant" {
            self.message = message["timestamp"].to_string();
        }
    }

    pub(super) fn update(&mut self, event: &Value, out: &mut Vec<Action>) {
        let item = format!("{}:{}", self.message, event["contentIndex"]);
        match text(event, "/type") {
            "text_delta" => {
                self.items
                    .write(&item, ItemKind::Text, text(event, "/delta"), None, out)
            }
            "thinking_delta" => {
                self.items
                    .write(&item, ItemKind::Reasoning, text(event, "/delta"), None, out)
            }
            "text_end" => {
                let words = text(event, "/content");
                self.items
                    .finish(&item, ItemKind::Text, words, None, false, out);
                if let Some(turn) = &mut self.turn {
                    words.clone_into(&mut turn.final_text);
                }
            }
            "thinking_end" => self.items.finish(
                &item,
                ItemKind::Reasoning,
                text(event, "/content"),
                None,
                false,
                out,
            ),
            _ => {}
        }
    }

    /// What was being written is not written any further.
    pub(super) fn cut(&mut self, out: &mut Vec<Action>) {
        if let (Some(turn), Some((_, draft))) = (&mut self.turn, self.items.last_text()) {
            draft.text.clone_into(&mut turn.final_text);
        }
        self.items.cut(out);
    }

    pub(super) fn message_over(&mut self, message: &Value, out: &mut Vec<Action>) {
        if message["role"] != "assistant" {
            return;
        }
        if self.file == History::None {
            self.file = History::Coming;
        }
        self.cut(out);
        let Some(turn) = &mut self.turn else { return };
        text(message, "/stopReason").clone_into(&mut turn.stop);
        turn.failure = (turn.stop == "error").then(|| text(message, "/errorMessage").to_owned());
        let usage = &message["usage"];
        if usage["totalTokens"].as_u64().is_some_and(|n| n > 0) {
            turn.usage.add(&Usage {
                input: usage["input"].as_u64(),
                cache_read: usage["cacheRead"].as_u64(),
                cache_write: usage["cacheWrite"].as_u64(),
                output: usage["output"].as_u64(),
                reasoning: None,
                cost_usd: usage["cost"]["total"].as_f64(),
            });
        }
    }

    pub(super) fn run_over(&mut self, out: &mut Vec<Action>) {
        let Some(turn) = &mut self.turn else { return };
        turn.complete = true;
        if turn.failure.is_some() && !turn.aborted {
            out.push(Action::Wake(RETRY_TIME));
        } else {
            self.end_turn(out);
        }
    }

    pub(super) fn end_turn(&mut self, out: &mut Vec<Action>) {
        self.cut(out);
        let Some(turn) = self.turn.take() else { return };
        let reason = match turn.stop.as_str() {
            _ if turn.aborted => TurnEndReason::Interrupted,
            _ if turn.failure.is_some() || !turn.complete => TurnEndReason::Error,
            "aborted" => TurnEndReason::Interrupted,
            "length" => TurnEndReason::MaxTokens,
            _ => TurnEndReason::EndTurn,
        };
        if let Some(said) = turn.failure.filter(|_| reason == TurnEndReason::Error) {
            let (status, message) = split(&said);
            let mut error: ErrorEvent = error_code::error(status, message);
            error.native = Some(json!({ "errorMessage": said }));
            out.push(error.into());
        }
        self.tools.clear();
        out.push(
            TurnEnd {
                turn: 0,
                reason,
                usage: turn.usage,
                duration_ms: 0,
                final_text: turn.final_text,
            }
            .into(),
        );
        self.in_flight.end_turn(out);
        if !self.in_flight.is_empty() {
            self.stranded = true;
            out.push(Action::Wake(STRANDED_TIME));
        }
    }
}
