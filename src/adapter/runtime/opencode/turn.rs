//! The turns of opencode: which messages begin one, and what ends it.

use std::time::Duration;

use serde_json::Value;

use super::{ANSWER_TIME, Opencode, milliseconds_after};
use crate::adapter::inbox::Input;
use crate::adapter::runtime::action::{Action, CallPurpose};
use crate::adapter::runtime::error_code;
use crate::adapter::runtime::native::text;
use crate::event::{ErrorCode, ErrorEvent, Retry, TurnEnd, TurnEndReason, TurnStart, Usage};

/// After this long a turn that went idle is over, whatever is still missing: one that was
/// stopped while it waited to retry goes idle only once.
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(1);

/// The same where both must come, and are only late.
pub(super) const LATE_TIME: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) user: bool,
    pub(super) complete: bool,
}

#[derive(Debug, Default)]
pub(super) struct OpencodeTurn {
    pub(super) usage: Usage,
    pub(super) final_text: String,
    pub(super) finish: Option<String>,
    pub(super) aborted: bool,
    pub(super) error: bool,
    /// It waits to try a request again.
    pub(super) retrying: bool,
    /// Went idle before everything was complete.
    pub(super) draining: bool,
    /// Inputs that arrived while it ran, by their message's id, and were not answered yet.
    pub(super) joined: Vec<(String, String)>,
}

impl OpencodeTurn {
    /// It goes idle twice, and is over with the second.
    pub(super) fn stopped(&self) -> bool {
        self.aborted || self.error
    }
}

impl Opencode {
    pub(super) fn message(&mut self, info: &Value, parent: Option<&String>, out: &mut Vec<Action>) {
        let id = text(info, "/id").to_owned();
        if self.ended.contains(&id) {
            return;
        }
        if info["role"] == "user" {
            self.messages.entry(id.clone()).or_default().user = true;
            if parent.is_none()
                && let Some(input) = self.sent.remove(&id)
            {
                self.arrived(&id, &input, out);
            }
            return;
        }
        if parent.is_none() {
            self.begin_turn(out);
        }
        let complete = !info["time"]["completed"].is_null();
        let message = self.messages.entry(id).or_default();
        message.complete |= complete;
        let answered = text(info, "/parentID");
        if let Some(turn) = &mut self.turn {
            // An answer to one is an answer to those before it.
            if let Some(at) = turn
                .joined
                .iter()
                .position(|(message, _)| message == answered)
            {
                turn.joined.drain(..=at);
            }
            if parent.is_none()
                && let Some(finish) = info["finish"].as_str()
            {
                turn.finish = Some(finish.to_owned());
            }
        }
        if complete && !info["error"].is_null() {
            self.error(&info["error"], parent.cloned(), out);
        }
        self.end_if_drained(out);
    }

    /// An input stands in opencode's own history.
    pub(super) fn arrived(&mut self, message: &str, input: &Input, out: &mut Vec<Action>) {
        self.users.insert(message.to_owned());
        out.push(input.message().into());
        out.push(Action::Delivered {
            input_id: input.input_id.clone(),
        });
        self.first = false;
        self.queued(message, &input.input_id);
        if self.turn.is_none() {
            out.push(Action::Wake(ANSWER_TIME));
        }
    }

    /// An input that had arrived when the CLI was stopped, and that it will not take up again by
    /// itself: the model sees it with the next one.
    pub(super) fn unanswered(&mut self, out: &mut Vec<Action>) {
        if self.turn.is_some() {
            return;
        }
        self.begin_turn(out);
        let mut error = ErrorEvent::new(
            ErrorCode::RuntimeCrashed,
            "opencode was stopped before it answered this input, which stands in its history",
        );
        error.retryable = true;
        out.push(error.into());
        if let Some(turn) = &mut self.turn {
            turn.error = true;
        }
        self.end_turn(out);
    }

    pub(super) fn queued(&mut self, message: &str, input_id: &str) {
        let entry = (message.to_owned(), input_id.to_owned());
        match &mut self.turn {
            Some(turn) => turn.joined.push(entry),
            None => self.waiting.push(entry),
        }
    }

    pub(super) fn begin_turn(&mut self, out: &mut Vec<Action>) {
        if self.turn.is_some() {
            return;
        }
        let input_ids = self.waiting.drain(..).map(|(_, input)| input).collect();
        self.turn = Some(OpencodeTurn::default());
        self.said_error = None;
        out.push(TurnStart { turn: 0, input_ids }.into());
    }

    pub(super) fn status(
        &mut self,
        id: &str,
        status: &Value,
        parent: Option<String>,
        out: &mut Vec<Action>,
    ) {
        match (text(status, "/type"), parent.is_none()) {
            ("busy", true) => {
                if self.turn.as_ref().is_some_and(|t| t.draining) {
                    self.end_turn(out);
                }
                self.begin_turn(out);
                if let Some(turn) = &mut self.turn {
                    turn.retrying = false;
                }
            }
            ("idle", true) => match &mut self.turn {
                // The second: nothing more will come.
                Some(turn) if turn.draining => self.end_turn(out),
                Some(turn) => {
                    turn.draining = true;
                    let written = self.messages.values().any(|m| !m.user);
                    out.push(Action::Wake(
                        if turn.stopped() && written && !turn.retrying {
                            LATE_TIME
                        } else {
                            DRAIN_TIME
                        },
                    ));
                    self.end_if_drained(out);
                }
                None => {}
            },
            ("retry", _) => {
                self.orphan(Some(&parent), out);
                if let (Some(turn), None) = (&mut self.turn, &parent) {
                    turn.retrying = true;
                }
                let message = text(status, "/message");
                let code = match error_code::code(None, message) {
                    ErrorCode::Internal => ErrorCode::ProviderDown,
                    code => code,
                };
                let retry_after_ms = status["next"]
                    .as_u64()
                    .and_then(|next| milliseconds_after(id, next));
                out.push(
                    Retry {
                        attempt: status["attempt"].as_u64().unwrap_or(1),
                        code,
                        retry_after_ms,
                        message: message.into(),
                        parent_tool_use_id: parent,
                    }
                    .into(),
                );
            }
            _ => {}
        }
    }

    /// What was being written is not written any further: by whom `of` says, or by anybody.
    pub(super) fn orphan(&mut self, of: Option<&Option<String>>, out: &mut Vec<Action>) {
        self.done.extend(
            self.items
                .cut_those(|draft| of.is_none_or(|parent| draft.parent == *parent), out),
        );
    }

    pub(super) fn error(&mut self, error: &Value, parent: Option<String>, out: &mut Vec<Action>) {
        let (name, message) = (text(error, "/name"), text(error, "/data/message"));
        if self.turn.is_none() {
            // It may be why an input is not stored.
            out.extend(self.sent.iter().map(|(native, input)| {
                self.look(CallPurpose::Check(input.input_id.clone()), native)
            }));
        }
        if name == "MessageAbortedError" {
            if let (Some(turn), None) = (&mut self.turn, &parent) {
                turn.aborted = true;
            }
            return;
        }
        if name == "MessageOutputLengthError" {
            if let (Some(turn), None) = (&mut self.turn, &parent) {
                turn.finish = Some("length".into());
            }
            return;
        }
        // The same again: from the bus, from the message, or with its stack.
        let first_line = message.lines().next().unwrap_or_default();
        if self
            .said_error
            .as_ref()
            .is_some_and(|said| first_line.contains(said.as_str()) || said.contains(first_line))
        {
            return;
        }
        self.said_error = Some(first_line.to_owned());
        let status = error["data"]["statusCode"].as_u64().map(|s| s as u16);
        let code = match (text(error, "/data/responseHeaders/x-outrigger-error"), name) {
            ("scope_denied" | "secret_missing" | "host_denied", _) => ErrorCode::PermissionDenied,
            ("budget_exhausted", _) => ErrorCode::Billing,
            ("unauthorized" | "upstream_auth", _) | (_, "ProviderAuthError") => ErrorCode::Auth,
            ("route_denied" | "unknown_provider", _) => ErrorCode::ModelUnavailable,
            (_, "ContextOverflowError") => ErrorCode::ContextOverflow,
            _ => error_code::code(status, message),
        };
        let mut event = ErrorEvent::new(code, if message.is_empty() { name } else { first_line });
        event.retryable |= error["data"]["isRetryable"] == true;
        event.http_status = status;
        event.retry_after_ms = text(error, "/data/responseHeaders/retry-after")
            .parse::<u64>()
            .ok()
            .map(|s| s.saturating_mul(1000));
        event.provider = Some(text(error, "/data/providerID").to_owned()).filter(|p| !p.is_empty());
        event.native = Some(error.clone());
        event.parent_tool_use_id.clone_from(&parent);
        if let (Some(turn), None) = (&mut self.turn, &parent) {
            turn.error = true;
        }
        out.push(event.into());
    }

    pub(super) fn end_if_drained(&mut self, out: &mut Vec<Action>) {
        let running = self.tools.values().any(|t| t.used);
        let complete = self.items.is_empty()
            && !running
            && self.messages.values().all(|m| m.user || m.complete);
        if self
            .turn
            .as_ref()
            .is_some_and(|t| t.draining && !t.stopped())
            && complete
        {
            self.end_turn(out);
        }
    }

    pub(super) fn end_turn(&mut self, out: &mut Vec<Action>) {
        self.orphan(None, out);
        let Some(turn) = self.turn.take() else { return };
        let reason = match turn.finish.as_deref() {
            _ if turn.aborted => TurnEndReason::Interrupted,
            _ if turn.error => TurnEndReason::Error,
            Some("length") => TurnEndReason::MaxTokens,
            Some("content-filter") => TurnEndReason::Refusal,
            Some(_) => TurnEndReason::EndTurn,
            // Without a finished answer, the turn was stopped while opencode waited to retry.
            None => TurnEndReason::Interrupted,
        };
        let stopped = turn.stopped();
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
        if stopped {
            self.ended.extend(
                self.messages
                    .iter()
                    .filter(|(_, m)| !m.user)
                    .map(|(id, _)| id.clone()),
            );
        } else if !turn.joined.is_empty() {
            // They came too late for this turn, and begin the next.
            self.waiting.extend(turn.joined);
            out.push(Action::Wake(ANSWER_TIME));
        }
        self.messages.retain(|_, m| m.user);
        self.tools.clear();
        self.asked.clear();
        self.children.clear();
    }
}
