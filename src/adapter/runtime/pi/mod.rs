//! pi, through `pi --mode rpc`: commands and events, one JSON message a line.
//!
//! Format: RPC mode of pi 0.73 to 0.87 (`docs/rpc.md` of its package), as recorded in
//! `tests/fixtures/native/pi/`. What makes it odd:
//! - A run that failed ends (`agent_end`), and begins again if it is tried again: that it will
//!   be is known only when `auto_retry_start` follows.
//! - It has neither permissions nor tool servers.

mod launch;
mod messages;
mod tools;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};

use self::launch::launch;
use self::messages::{History, PiTurn};
use crate::adapter::inbox::Input;
use crate::adapter::runtime::action::{Action, PermissionDecision};
use crate::adapter::runtime::capabilities::Capabilities;
use crate::adapter::runtime::in_flight::InFlight;
use crate::adapter::runtime::items::OpenItems;
use crate::adapter::runtime::native::{model_of_platform, parsed, sent_at, timed_id};
use crate::adapter::runtime::{Phase, Runtime, Translator};
use crate::event::{Unparsed, Warning};

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

#[derive(Default)]
pub struct Pi {
    resumed: bool,
    ready: bool,
    in_flight: InFlight,
    turn: Option<PiTurn>,
    /// The time of the message that the model is writing. The ids of its items are made from it.
    message: String,
    items: OpenItems,
    /// The tool calls that are running, each with its output so far.
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
