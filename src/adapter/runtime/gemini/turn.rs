//! The turns of Gemini CLI: what it writes in them, and how they end.

use std::time::Duration;

use serde_json::Value;

use super::Gemini;
use crate::adapter::runtime::action::{Action, CallPurpose};
use crate::adapter::runtime::error_code;
use crate::adapter::runtime::items::ItemKind;
use crate::adapter::runtime::native::text;
use crate::event::{ErrorCode, ErrorEvent, PermissionResolved, TurnEnd, TurnEndReason, Usage};

/// How long after the end of a tool the step is counted. Another tool of the same step begins
/// sooner than that, and the model's next answer takes longer. The step must be counted before that
/// answer can start a command beyond the limit.
pub(super) const STEP_TIME: Duration = Duration::from_millis(4);

#[derive(Debug, Default)]
pub(super) struct GeminiTurn {
    /// Of its items: these begin so.
    pub(super) name: String,
    pub(super) items: u64,
    pub(super) kind: Option<ItemKind>,
    pub(super) prompt: String,
    pub(super) final_text: String,
    pub(super) aborted: bool,
    pub(super) failed: bool,
    /// Tools have answered, and the model was not asked again yet.
    pub(super) tools_over: bool,
    pub(super) usage: Usage,
    /// It is over but for its tokens, which are looked for.
    pub(super) ending: Option<TurnEndReason>,
    pub(super) counting: bool,
}

/// The words of an error: its message, or what is behind `Internal error`.
pub(super) fn error_text(error: &Value) -> String {
    let details = text(error, "/data/details");
    if details.is_empty() {
        text(error, "/message").to_owned()
    } else {
        details.to_owned()
    }
}

/// An error of the provider. `code` is its status, but 500 also for what has none.
pub(super) fn failure(code: Option<i64>, message: &str, native: Value) -> ErrorEvent {
    let is_body = message.trim_start().starts_with('{');
    let status = code
        .and_then(|c| u16::try_from(c).ok())
        .filter(|s| (400..600).contains(s) && (*s != 500 || is_body));
    let mut error = error_code::error(status, message);
    if error.code == ErrorCode::Internal && code == Some(500) {
        let gone = message.contains("does not exist") || message.contains("not found");
        error = ErrorEvent::new(
            if gone {
                ErrorCode::ModelUnavailable
            } else {
                ErrorCode::ProviderDown
            },
            error.message,
        );
    }
    error.native = Some(native);
    error
}

impl Gemini {
    pub(super) fn prompt_answered(
        &mut self,
        result: &Value,
        error: Option<&Value>,
        out: &mut Vec<Action>,
    ) {
        self.in_flight.acknowledge(|_, _| true, out);
        let Some(turn) = &mut self.turn else { return };
        let tokens = &result["_meta"]["quota"]["token_count"];
        turn.usage = Usage {
            input: tokens["input_tokens"].as_u64(),
            output: tokens["output_tokens"].as_u64(),
            ..Usage::default()
        };
        let aborted = turn.aborted || result["stopReason"] == "cancelled";
        if let Some(error) = error.filter(|_| !aborted) {
            turn.failed = true;
            out.push(failure(error["code"].as_i64(), &error_text(error), error.clone()).into());
        }
        let reason = match text(result, "/stopReason") {
            _ if aborted => TurnEndReason::Interrupted,
            _ if turn.failed => TurnEndReason::Error,
            "max_tokens" => TurnEndReason::MaxTokens,
            "max_turn_requests" => TurnEndReason::MaxSteps,
            "refusal" => TurnEndReason::Refusal,
            _ => TurnEndReason::EndTurn,
        };
        self.end_turn(reason, out);
    }

    pub(super) fn begin_turn(&mut self, name: &str, out: &mut Vec<Action>) {
        if self.turn.is_some() {
            return;
        }
        self.turns += 1;
        let name = if name.is_empty() {
            format!("turn-{}", self.turns)
        } else {
            name.to_owned()
        };
        self.turn = Some(GeminiTurn {
            name,
            ..GeminiTurn::default()
        });
        self.in_flight.begin_turn(out);
    }

    pub(super) fn write(&mut self, kind: ItemKind, piece: &str, out: &mut Vec<Action>) {
        self.step(out);
        let Some(turn) = &mut self.turn else { return };
        if turn.kind != Some(kind) {
            self.items.finish_all(out);
            turn.kind = Some(kind);
            turn.items += 1;
            if kind == ItemKind::Text {
                turn.final_text.clear();
            }
        }
        if kind == ItemKind::Text {
            turn.final_text.push_str(piece);
        }
        self.items.write(
            &format!("{}:{}", turn.name, turn.items),
            kind,
            piece,
            None,
            out,
        );
    }

    /// The model is asked what to do with what its tools said.
    pub(super) fn step(&mut self, out: &mut Vec<Action>) {
        if self
            .turn
            .as_mut()
            .is_some_and(|turn| std::mem::take(&mut turn.tools_over))
        {
            out.push(Action::Step);
        }
    }

    /// What was written is written: something else begins.
    pub(super) fn written(&mut self, out: &mut Vec<Action>) {
        self.items.finish_all(out);
        if let Some(turn) = &mut self.turn {
            turn.kind = None;
        }
    }

    pub(super) fn end_turn(&mut self, reason: TurnEndReason, out: &mut Vec<Action>) {
        let cut = matches!(reason, TurnEndReason::Interrupted | TurnEndReason::Error);
        if cut {
            self.items.cut(out)
        } else {
            self.items.finish_all(out)
        }
        let permissions = std::mem::take(&mut self.permissions);
        out.extend(permissions.into_keys().map(|request_id| {
            PermissionResolved {
                request_id,
                decision: "cancelled".into(),
                by: "runtime".into(),
            }
            .into()
        }));
        // What was stopped says no more.
        self.tools.clear();
        if let Some(turn) = &mut self.turn {
            turn.ending = Some(reason);
            turn.counting = !turn.prompt.is_empty();
            if turn.counting {
                self.find(CallPurpose::Output(String::new()), out);
            }
        }
        self.end_if_known(out);
    }

    pub(super) fn end_if_known(&mut self, out: &mut Vec<Action>) {
        if self
            .turn
            .as_ref()
            .is_none_or(|t| t.ending.is_none() || t.counting)
        {
            return;
        }
        let Some(GeminiTurn {
            ending: Some(reason),
            usage,
            final_text,
            ..
        }) = self.turn.take()
        else {
            return;
        };
        out.push(
            TurnEnd {
                turn: 0,
                reason,
                usage,
                duration_ms: 0,
                final_text,
            }
            .into(),
        );
        self.in_flight.end_turn(out);
    }
}
