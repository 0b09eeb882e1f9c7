//! pi, through `pi --mode rpc`: commands and events, one JSON message a line.
//!
//! Format: RPC mode of pi 0.73 to 0.87 (`docs/rpc.md` of its package), as recorded in
//! `tests/fixtures/native/pi/`. What makes it odd:
//! - A run that failed ends (`agent_end`), and begins again if it is tried again: that it will
//!   be is known only when `auto_retry_start` follows.
//! - It has neither permissions nor tool servers.

mod launch;

mod tools;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};

use self::launch::launch;
use super::{
    Action, COMPACTED, Capabilities, PermissionDecision, Phase, Runtime, Translator,
    model_of_platform, parsed, sent_at, text, text_of, timed_id,
};
use crate::adapter::inbox::Input;
use crate::adapter::runtime::error_code;
use crate::adapter::runtime::in_flight::InFlight;
use crate::adapter::runtime::items::{ItemKind, OpenItems};
use crate::event::{ErrorEvent, Retry, TurnEnd, TurnEndReason, Unparsed, Usage, Warning};

pub static RUNTIME: Runtime = Runtime {
    id: "pi",
    name: "pi",
    program: "pi",
    package: "@earendil-works/pi-coding-agent",
    verified: "0.87.1",
    verified_from: "0.73.1",
    protocols: &["0.", "1."],
    default_model: "anthropic/claude-sonnet-5-5",
    model_in_env: model_of_platform,
    providers: &["anthropic", "openai", "google"],
    capabilities: Capabilities {
        steer: true,
        interrupt: true,
        resume: true,
        permissions: false,
        questions: false,
        mcp: false,
        images: true,
        deltas: true,
        reasoning: true,
        tool_output: true,
        retries: true,
        cost: true,
    },
    launch,
    translator: |_| Box::new(Pi::default()),
};

/// By then what came too late for one run has begun the next.
const STRANDED_TIME: Duration = Duration::from_secs(2);

/// By then a run has begun for what was accepted, or none will: a command of an extension.
const RUN_TIME: Duration = Duration::from_secs(20);

/// How long after a run that failed it may still say that it tries again.
const RETRY_TIME: Duration = Duration::from_millis(300);

#[derive(Debug, Default)]
struct PiTurn {
    final_text: String,
    aborted: bool,
    stop: String,
    failure: Option<String>,
    usage: Usage,
    rounds: u64,
    /// It failed, and may be tried again.
    complete: bool,
}

#[derive(Default)]
pub struct Pi {
    resumed: bool,
    ready: bool,
    in_flight: InFlight,
    turn: Option<PiTurn>,
    /// The message that is written; its time names its items.
    message: String,
    items: OpenItems,
    /// Calls that run, with what they have printed.
    tools: HashMap<String, String>,
    used: HashSet<String>,
    /// The user messages of the resumed history that have not been matched with an input yet, in
    /// order: the time in milliseconds since 1970, and the text.
    history: Vec<(i64, String)>,
    /// An input was accepted, and no run began.
    accepted: bool,
    /// One was to join a run that was stopped, and stays where it is.
    stranded: bool,
    /// Its file is written with its first answer; until then it forgets what it was given when it
    /// is stopped.
    file: History,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum History {
    #[default]
    None,
    /// Its first answer is said, and about to be written.
    Coming,
    Written,
}

impl Pi {
    fn message(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
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

    fn responded(&mut self, m: &Value, out: &mut Vec<Action>) {
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

    fn begin_turn(&mut self, out: &mut Vec<Action>) {
        if self.turn.is_none() {
            (self.accepted, self.stranded) = (false, false);
            self.turn = Some(PiTurn::default());
            self.in_flight.begin_turn(out);
        }
    }

    fn message_started(&mut self, message: &Value, out: &mut Vec<Action>) {
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

    fn update(&mut self, event: &Value, out: &mut Vec<Action>) {
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
    fn cut(&mut self, out: &mut Vec<Action>) {
        if let (Some(turn), Some((_, draft))) = (&mut self.turn, self.items.last_text()) {
            draft.text.clone_into(&mut turn.final_text);
        }
        self.items.cut(out);
    }

    fn message_over(&mut self, message: &Value, out: &mut Vec<Action>) {
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

    fn run_over(&mut self, out: &mut Vec<Action>) {
        let Some(turn) = &mut self.turn else { return };
        turn.complete = true;
        if turn.failure.is_some() && !turn.aborted {
            out.push(Action::Wake(RETRY_TIME));
        } else {
            self.end_turn(out);
        }
    }

    fn end_turn(&mut self, out: &mut Vec<Action>) {
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

impl Translator for Pi {
    fn open(&mut self, _native_session_id: Option<&str>, resumed: bool, out: &mut Vec<Action>) {
        self.resumed = resumed;
        self.file = if resumed {
            History::Written
        } else {
            History::None
        };
        self.in_flight.open(resumed);
        out.push(Action::Send(json!({ "type": "get_messages" })));
        out.push(Action::Send(json!({ "type": "get_state" })));
    }

    fn read(&mut self, native: &[u8], out: &mut Vec<Action>) {
        let message = parsed(native);
        if !self.message(&message, out) {
            out.push(Unparsed { native: message }.into());
        }
    }

    fn native_id(&self, now: i64, random: [u8; 14]) -> String {
        timed_id(now, random)
    }

    fn deliver(&mut self, input: &Input, native_id: &str, out: &mut Vec<Action>) {
        self.in_flight.give(native_id, input);
        let images: Vec<Value> = input
            .attachments
            .iter()
            .map(|a| json!({ "type": "image", "data": a.data, "mimeType": a.media_type }))
            .collect();
        let mut prompt = json!({ "id": input.input_id, "type": "prompt", "message": input.text, "streamingBehavior": "steer" });
        if !images.is_empty() {
            prompt["images"] = images.into();
        }
        out.push(Action::Send(prompt));
    }

    fn look_for(&mut self, input: &Input, native_id: &str, told: bool, out: &mut Vec<Action>) {
        self.in_flight.look_for(native_id, input, told);
        // pi keeps no ids, only times. Inputs arrive in the order in which they were sent, so this
        // one is the first unmatched message that is not older. In the same millisecond the text
        // decides.
        let is_it = |(at, said): &(i64, String), sent: i64| {
            *at > sent || *at == sent && *said == input.text
        };
        let found = sent_at(native_id)
            .and_then(|sent| self.history.iter().position(|entry| is_it(entry, sent)));
        if let Some(found) = found {
            self.history.drain(..=found);
        }
        self.in_flight
            .after_restart(&input.input_id, RUNTIME.name, |_, _| found.is_some(), out);
    }

    fn interrupt(&mut self, out: &mut Vec<Action>) {
        if let Some(turn) = &mut self.turn {
            turn.aborted = true;
            out.push(Action::Send(json!({ "type": "abort" })));
        }
    }

    fn answer(
        &mut self,
        _request_id: &str,
        _decision: &PermissionDecision,
        _by: &str,
        _out: &mut Vec<Action>,
    ) -> bool {
        false
    }

    fn wake(&mut self, out: &mut Vec<Action>) {
        if self.turn.as_ref().is_some_and(|t| t.complete) {
            return self.end_turn(out);
        }
        if self.turn.is_some() || self.in_flight.is_empty() {
            return;
        }
        if std::mem::take(&mut self.stranded) {
            // It would come with whatever is said next.
            out.push(Action::Broken(
                "pi kept an input that was to join a run which was stopped".into(),
            ));
        } else if std::mem::take(&mut self.accepted) {
            self.in_flight.acknowledge(|_, _| true, out);
            out.push(
                Warning {
                    message: "pi took an input without a run: it was a command of an extension"
                        .into(),
                }
                .into(),
            );
        }
    }

    fn close(&mut self, out: &mut Vec<Action>) {
        self.end_turn(out);
        *self = Pi {
            used: std::mem::take(&mut self.used),
            ..Pi::default()
        };
    }

    fn phase(&self) -> Phase {
        match &self.turn {
            Some(turn) if turn.aborted || turn.complete => Phase::Settling,
            None if self.in_flight.is_empty() => Phase::Idle,
            _ => Phase::Busy,
        }
    }
}

/// `403 {…}`: the status and the body.
fn split(said: &str) -> (Option<u16>, &str) {
    match said.split_once(' ') {
        Some((status, body)) if status.len() == 3 => (status.parse().ok(), body),
        _ => (None, said),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    #[test]
    fn after_a_restart_each_message_of_the_history_is_one_input() {
        let (mut pi, mut out) = (Pi::default(), Vec::new());
        pi.open(Some("session"), true, &mut out);
        let message = |at: i64, text: &str| json!({ "role": "user", "timestamp": at, "content": [{ "type": "text", "text": text }] });
        let messages = json!([
            message(50, "before"),
            message(100, "first"),
            message(200, "made of the second")
        ]);
        pi.read(json!({ "type": "response", "command": "get_messages", "success": true, "data": { "messages": messages } }).to_string().as_bytes(), &mut out);
        let mut arrived = |text: &str, sent: i64| {
            let mut out = Vec::new();
            pi.look_for(
                &Input::new(text.into(), text.into()),
                &timed_id(sent, [0; 14]),
                true,
                &mut out,
            );
            out.iter().any(|a| matches!(a, Action::Delivered { .. }))
        };
        assert!(arrived("first", 100), "in the same millisecond");
        assert!(
            !arrived("other", 200),
            "another text in the same millisecond"
        );
        assert!(arrived("second", 150));
        assert!(!arrived("third", 160), "nothing is left for it");
    }

    #[test]
    fn the_first_input_is_delivered_once_its_file_has_it() {
        let (mut pi, mut out) = (Pi::default(), Vec::new());
        let mut hear = |message: Value| {
            let mut out = Vec::new();
            if message["type"] == "open" {
                pi.open(None, false, &mut out);
                pi.deliver(&Input::new("in".into(), "hello".into()), "native", &mut out);
            } else {
                pi.read(message.to_string().as_bytes(), &mut out);
            }
            let told = out
                .iter()
                .filter(|a| matches!(a, Action::Event(Payload::UserMessage(_))))
                .count();
            (
                told,
                out.iter().any(|a| matches!(a, Action::Delivered { .. })),
            )
        };
        #[rustfmt::skip]
        let cases = [
            (json!({ "type": "open" }), (0, false)),
            (json!({ "type": "agent_start" }), (1, false)),
            (json!({ "type": "message_start", "message": { "role": "user", "content": "hello", "timestamp": 1 } }), (0, false)),
            (json!({ "type": "message_start", "message": { "role": "assistant", "timestamp": 2 } }), (0, false)),
            (json!({ "type": "message_end", "message": { "role": "assistant", "stopReason": "stop", "timestamp": 2 } }), (0, false)),
            (json!({ "type": "turn_end" }), (0, true)),
        ];
        for (message, expected) in cases {
            assert_eq!(hear(message.clone()), expected, "{message}");
        }
        pi.close(&mut out);
    }
}
