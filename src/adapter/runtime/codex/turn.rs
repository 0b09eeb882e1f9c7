//! The turns of Codex: how they begin and end, what they used, how they fail.

use serde_json::Value;

use super::Codex;
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::error_code;
use crate::adapter::runtime::native::text;
use crate::event::{ErrorCode, ErrorEvent, Retry, TurnEnd, TurnEndReason, Usage};

#[derive(Debug, Default)]
pub(super) struct CodexTurn {
    pub(super) id: String,
    pub(super) final_text: String,
    pub(super) aborted: bool,
    pub(super) failed: bool,
    pub(super) usage: Usage,
    pub(super) tools_said: bool,
}

/// What an error means, and the status that the provider answered with.
pub(super) fn meant(error: &Value, said: &str) -> (ErrorCode, Option<u16>) {
    let info = &error["codexErrorInfo"];
    let status = info
        .as_object()
        .and_then(|o| o.values().next())
        .and_then(|v| v["httpStatusCode"].as_u64());
    // The one-shot mode has only words.
    let in_words = || {
        said.split_once("status ")
            .or(said.split_once("status: "))?
            .1
            .get(..3)?
            .parse()
            .ok()
    };
    let status = status.map(|s| s as u16).or_else(in_words);
    let code = match (error_code::code(status, said), info.as_str()) {
        (ErrorCode::Internal, Some("contextWindowExceeded")) => ErrorCode::ContextOverflow,
        (
            ErrorCode::Internal | ErrorCode::RateLimited,
            Some("usageLimitExceeded" | "sessionBudgetExceeded"),
        ) => ErrorCode::Billing,
        (ErrorCode::Internal, Some("rateLimitExceeded")) => ErrorCode::RateLimited,
        (ErrorCode::Internal, Some("serverOverloaded" | "internalServerError")) => {
            ErrorCode::ProviderDown
        }
        (ErrorCode::Internal, Some("modelNotFound")) => ErrorCode::ModelUnavailable,
        (ErrorCode::Internal, Some("unauthorized")) => ErrorCode::Auth,
        // It names a connection, and no status: it never got an answer.
        (ErrorCode::Internal, None) if info.is_object() && status.is_none() => {
            ErrorCode::ProviderDown
        }
        (code, _) => code,
    };
    (code, status)
}

/// `unexpected status 403 Forbidden: <words>, url: …, request id: …`
pub(super) fn worded(said: &str) -> String {
    let said = said.split(", url: http").next().unwrap_or(said);
    match said
        .strip_prefix("unexpected status ")
        .and_then(|rest| rest.split_once(": "))
    {
        Some((_, words)) => error_code::words(words),
        None => error_code::words(said),
    }
}

/// The tokens of a sum; `input` is uncached.
pub(super) fn counts(usage: &Value) -> Usage {
    let n = |key: &str| usage[key].as_u64();
    let cached = n("cachedInputTokens").unwrap_or(0) + n("cacheWriteInputTokens").unwrap_or(0);
    Usage {
        input: n("inputTokens").map(|all| all.saturating_sub(cached)),
        cache_read: n("cachedInputTokens"),
        cache_write: n("cacheWriteInputTokens"),
        output: n("outputTokens"),
        reasoning: n("reasoningOutputTokens"),
        cost_usd: None,
    }
}

impl Codex {
    pub(super) fn begin_turn(&mut self, id: &str, out: &mut Vec<Action>) {
        match &mut self.turn {
            Some(turn) if turn.id.is_empty() => id.clone_into(&mut turn.id),
            Some(_) => {}
            None => {
                self.turn = Some(CodexTurn {
                    id: id.to_owned(),
                    ..CodexTurn::default()
                });
                self.in_flight.begin_turn(out);
            }
        }
    }

    /// After each call of the model: what the thread has used by now.
    pub(super) fn used(&mut self, usage: &Value, out: &mut Vec<Action>) {
        let (total, last) = (counts(&usage["total"]), counts(&usage["last"]));
        // The first of a thread that was resumed has its past in it.
        let news = self
            .counted
            .as_ref()
            .map_or(last, |before| total.since(before));
        self.counted = Some(total);
        if let Some(turn) = &mut self.turn {
            turn.usage.add(&news);
            if std::mem::take(&mut turn.tools_said) {
                out.push(Action::Step);
            }
        }
    }

    pub(super) fn failed(&mut self, error: &Value, will_retry: bool, out: &mut Vec<Action>) {
        self.cut(out);
        let details = text(error, "/additionalDetails");
        let message = text(error, "/message");
        let said = if will_retry && !details.is_empty() {
            details
        } else {
            message
        };
        let (code, status) = meant(error, said);
        if will_retry {
            // `Reconnecting... 2/5`
            let attempt = message
                .rsplit([' ', '.'])
                .next()
                .and_then(|n| n.split('/').next())
                .and_then(|n| n.parse().ok())
                .unwrap_or(1);
            out.push(
                Retry {
                    attempt,
                    code,
                    retry_after_ms: None,
                    message: worded(said),
                    parent_tool_use_id: None,
                }
                .into(),
            );
            return;
        }
        match &mut self.turn {
            Some(turn) if turn.failed => return,
            Some(turn) => turn.failed = true,
            None => {}
        }
        let mut event = ErrorEvent::new(code, worded(said));
        event.http_status = status;
        event.native = Some(error.clone());
        out.push(event.into());
    }

    pub(super) fn turn_completed(&mut self, turn: &Value, out: &mut Vec<Action>) {
        if !turn["error"].is_null() {
            self.failed(&turn["error"], false, out);
        }
        self.end_turn(text(turn, "/status"), out);
    }

    pub(super) fn end_turn(&mut self, status: &str, out: &mut Vec<Action>) {
        self.cut(out);
        let Some(turn) = self.turn.take() else { return };
        let reason = match status {
            "interrupted" => TurnEndReason::Interrupted,
            _ if turn.aborted => TurnEndReason::Interrupted,
            _ if turn.failed || status == "failed" => TurnEndReason::Error,
            _ => TurnEndReason::EndTurn,
        };
        self.tools.clear();
        self.permissions.clear();
        self.unsteerable = false;
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
        // What was to steer it and did not come that far is forgotten with it.
        self.in_flight.forgotten(out);
        self.in_flight.end_turn(out);
    }
}
