//! How a turn of Claude Code ends, and what it used.

use serde_json::{Map, Value, json};

use super::{Claude, ECHO_TIME};
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::error_code;
use crate::adapter::runtime::native::{newest_first, text};
use crate::event::{ErrorCode, ErrorEvent, TurnEnd, TurnEndReason, Usage};

/// Adds up what each model used, and takes the cost as the CLI counts it.
pub(super) fn sums(cost_usd: &Value, models: &Value) -> Usage {
    let mut sums = Usage {
        cost_usd: cost_usd.as_f64(),
        ..Usage::default()
    };
    for model in models.as_object().into_iter().flat_map(Map::values) {
        sums.add(&Usage {
            input: model["inputTokens"].as_u64(),
            cache_read: model["cacheReadInputTokens"].as_u64(),
            cache_write: model["cacheCreationInputTokens"].as_u64(),
            output: model["outputTokens"].as_u64(),
            reasoning: model["thinkingTokens"].as_u64(),
            cost_usd: None,
        });
    }
    sums
}

/// The sums that a resumed session begins with. The CLI writes them into its transcript when it
/// ends in good order, and a later process counts on from the last of them.
pub(super) fn saved_sums(transcript: &[u8]) -> Usage {
    let saved = newest_first(transcript, b"\"cost-state\"")
        .find(|entry| entry["type"] == "cost-state")
        .unwrap_or_default();
    sums(&saved["totalCostUSD"], &saved["modelUsage"])
}

/// What failed: by its status where there is one, else by the CLI's word for it.
pub(super) fn named(word: &str, status: Option<u16>, message: &str) -> ErrorCode {
    match (error_code::code(status, message), word) {
        (ErrorCode::Internal, "rate_limit") => ErrorCode::RateLimited,
        (ErrorCode::Internal, "overloaded" | "server_error") => ErrorCode::ProviderDown,
        (ErrorCode::Internal, "authentication_failed") => ErrorCode::Auth,
        (ErrorCode::Internal, "billing_error") => ErrorCode::Billing,
        (ErrorCode::Internal, "model_not_found") => ErrorCode::ModelUnavailable,
        (code, _) => code,
    }
}

impl Claude {
    pub(super) fn result(&mut self, m: &Value, out: &mut Vec<Action>) {
        let status = m["api_error_status"].as_u64().map(|s| s as u16);
        let errors = m["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join("\n");
        // One without its beginning: the one-shot mode prints nothing else.
        self.begin_turn(out);
        let Some(turn) = self.turn.take() else { return };
        let aborted = turn.aborted || text(m, "/terminal_reason").starts_with("aborted");
        let limit = m["subtype"] == "error_max_turns";
        let refused = turn.refused
            || m["stop_reason"] == "refusal"
            || turn.stop_reason.as_deref() == Some("refusal");
        let failed = m["is_error"] == true && !aborted && !limit && !refused;
        if failed {
            let (word, said) = turn.failed.unwrap_or_default();
            let message = [said.as_str(), text(m, "/result"), &errors, &word]
                .into_iter()
                .find(|s| !s.is_empty())
                .unwrap_or("the turn failed")
                .to_owned();
            let mut error =
                ErrorEvent::new(named(&word, status, &message), error_code::words(&message));
            error.http_status = status;
            error.native = Some(
                json!({ "error": word, "result": m["result"], "api_error_status": m["api_error_status"], "errors": m["errors"] }),
            );
            out.push(error.into());
        }
        self.items.cut(out);
        let reason = match m["stop_reason"].as_str().or(turn.stop_reason.as_deref()) {
            _ if aborted => TurnEndReason::Interrupted,
            _ if limit => TurnEndReason::MaxSteps,
            _ if failed => TurnEndReason::Error,
            _ if refused => TurnEndReason::Refusal,
            Some("max_tokens" | "model_context_window_exceeded") => TurnEndReason::MaxTokens,
            _ => TurnEndReason::EndTurn,
        };
        let usage = self.spent(m);
        let final_text = if turn.final_text.is_empty() && !failed {
            text(m, "/result").to_owned()
        } else {
            turn.final_text
        };
        self.tools.clear();
        self.asked.clear();
        self.streaming = None;
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
        if self.in_flight.is_begun() {
            // Its echo is missing: it may have come while the CLI began a turn by itself, and
            // then the next is its own.
            out.push(Action::Wake(ECHO_TIME));
        }
    }

    /// What the turn used: how the sums have grown, subagents and repeated requests included.
    pub(super) fn spent(&mut self, m: &Value) -> Usage {
        let sums = sums(&m["total_cost_usd"], &m["modelUsage"]);
        let spent = sums.since(&self.counted);
        self.counted = self.counted.at_least(&sums);
        spent
    }
}
