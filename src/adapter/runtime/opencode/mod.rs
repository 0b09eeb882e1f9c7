//! The translator for opencode, which runs as `opencode serve`. It reads opencode's event bus and
//! calls its session API.
//!
//! The format is the legacy API of opencode 1.18 (`GET /event`, `POST /session/:id/prompt_async`),
//! as recorded in `tests/fixtures/native/opencode/`. A recording shows each of its peculiarities:
//! - A turn has no id. It spans everything from `busy` to `idle`. The `parentID` of an answer names
//!   the user message that it answers. An input that comes too late for one turn is answered in
//!   the next one.
//! - After an abort or an error, `idle` comes twice, and the first one precedes the turn's last
//!   updates. Such a turn ends with the second `idle`. Any other turn ends when `idle` has come and
//!   all of its messages are complete.
//! - Every update of a running tool repeats the whole output, or only its last 30 KB once it is
//!   longer than that.
//! - A retry abandons the text and reasoning that were being written: they never get an end.
//! - Subagents are separate sessions on the same bus, and each of them sends its own `idle`.

mod events;
mod files;
mod launch;
mod parts;
mod replies;
mod requests;
mod turn;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use self::events::SILENT;
use self::launch::launch;
use self::replies::{Lookup, milliseconds_after, replace_lone_surrogates, said, status};
use self::requests::Early;
use self::turn::{Message, OpencodeTurn};
use crate::adapter::inbox::Input;
use crate::adapter::runtime::action::{
    Action, CallPurpose, CallReply, PermissionDecision, RuntimeCall,
};
use crate::adapter::runtime::capabilities::Capabilities;
use crate::adapter::runtime::items::OpenItems;
use crate::adapter::runtime::native::{model_of_platform, parsed};
use crate::adapter::runtime::opencode::files::OpencodeTool;
use crate::adapter::runtime::opencode::parts::Delta;
use crate::adapter::runtime::{LaunchContext, Phase, Runtime, Translator};
use crate::event::Unparsed;

pub static RUNTIME: Runtime = Runtime {
    id: "opencode",
    name: "opencode",
    program: "opencode",
    package: "opencode-ai",
    verified: "1.18.33",
    verified_from: "1.18.33",
    protocols: &["1."],
    default_model: "anthropic/claude-sonnet-5-5",
    model_in_env: model_of_platform,
    providers: &[
        "anthropic",
        "openai",
        "google",
        "openrouter",
        "groq",
        "mistral",
        "xai",
        "deepseek",
        "togetherai",
        "fireworks-ai",
        "cerebras",
        "ollama",
    ],
    capabilities: Capabilities {
        steer: true,
        interrupt: true,
        resume: true,
        permissions: true,
        questions: true,
        mcp: true,
        images: true,
        deltas: true,
        reasoning: true,
        tool_output: true,
        retries: true,
        cost: true,
    },
    launch,
    translator: |setting| Box::new(Opencode::new(setting)),
};

/// How long opencode may take to begin a turn for an input that is in its history. After that, the
/// input is reported as unanswered.
const ANSWER_TIME: Duration = Duration::from_secs(15);

/// How long opencode may take to store an input in its history. After that, opencode is asked for
/// the input, and an input that it does not have counts as refused.
const STORE_TIME: Duration = Duration::from_secs(20);

/// How long a permission request or question that came before its tool call waits for that call.
const CALL_TIME: Duration = Duration::from_millis(500);

#[derive(Default)]
pub struct Opencode {
    session_id: String,
    mcp: Vec<String>,
    session: Option<String>,
    /// Ids of the subagents' sessions, each with the tool call that started it, if it is known.
    children: HashMap<String, Option<String>>,
    /// Inputs that were handed over and are not known to be stored yet, by message id.
    sent: HashMap<String, Input>,
    /// Ids of the user messages that are already on the event stream.
    users: HashSet<String>,
    /// Stored inputs for which no turn has begun yet, as pairs of message id and input id.
    waiting: Vec<(String, String)>,
    messages: HashMap<String, Message>,
    items: OpenItems,
    tools: HashMap<String, OpencodeTool>,
    /// Ids of the model's messages in turns that were interrupted or failed. Later updates of these
    /// messages are ignored, because they belong to no other turn.
    ended: HashSet<String>,
    /// Ids of finished parts. Later updates of these parts bring nothing new and are ignored.
    done: HashSet<String>,
    tool_ids: HashSet<String>,
    turn: Option<OpencodeTurn>,
    said_error: Option<String>,
    /// Decisions on permission requests, each with who made it, by request id. A decision is kept
    /// until opencode confirms it.
    decided: HashMap<String, (String, String)>,
    /// Open requests by id. The first flag is set for a question (and not for a permission), the
    /// second one once the request was answered.
    asked: HashMap<String, (bool, bool)>,
    /// Requests that came before the tool calls that they belong to.
    early: Vec<Early>,
    first: bool,
}

#[derive(Deserialize)]
struct MessageHead<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "type", default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    properties: Option<&'a RawValue>,
    /// `/global/event` wraps what `/event` sends.
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    /// A line of `opencode run --format json`.
    #[serde(default)]
    part: Option<Value>,
    #[serde(default)]
    error: Option<Value>,
}

impl Opencode {
    pub fn new(setting: &LaunchContext) -> Self {
        let mut mcp: Vec<String> = setting.mcp.keys().cloned().collect();
        mcp.sort_by_key(|name| std::cmp::Reverse(name.len()));
        Opencode {
            session_id: setting.session_id.clone(),
            mcp,
            first: true,
            ..Opencode::default()
        }
    }
}

impl Translator for Opencode {
    fn open(&mut self, native_session_id: Option<&str>, _resumed: bool, out: &mut Vec<Action>) {
        self.session = native_session_id.map(str::to_owned);
        self.first = native_session_id.is_none();
        out.push(match native_session_id {
            Some(id) => Action::Call(RuntimeCall {
                tag: CallPurpose::Resume,
                method: "GET",
                path: format!("/session/{id}"),
                body: None,
            }),
            None => self.create(),
        });
    }

    fn read(&mut self, native: &[u8], out: &mut Vec<Action>) {
        let known = match serde_json::from_slice::<MessageHead<'_>>(native) {
            Ok(MessageHead {
                payload: Some(inner),
                ..
            }) => return self.read(inner.get().as_bytes(), out),
            Ok(MessageHead {
                kind: Some(kind),
                part: Some(part),
                ..
            }) => self.run_line(&kind, &part, out),
            Ok(MessageHead {
                kind: Some(kind),
                error: Some(error),
                ..
            }) if kind == "error" => {
                self.begin_turn(out);
                self.error(&error, None, out);
                true
            }
            Ok(MessageHead {
                kind: Some(kind),
                properties: Some(properties),
                ..
            }) if kind == "message.part.delta" => {
                let text = properties.get();
                match serde_json::from_str::<Delta<'_>>(text) {
                    Ok(delta) => self.delta(&delta, out),
                    Err(_) => serde_json::from_str::<Delta<'_>>(&replace_lone_surrogates(text))
                        .is_ok_and(|delta| self.delta(&delta, out)),
                }
            }
            Ok(MessageHead {
                kind: Some(kind), ..
            }) if SILENT.contains(&kind.as_ref()) => true,
            Ok(MessageHead {
                id,
                kind: Some(kind),
                properties: Some(properties),
                ..
            }) => {
                let text = properties.get();
                let properties = serde_json::from_str::<Value>(text)
                    .or_else(|_| serde_json::from_str(&replace_lone_surrogates(text)));
                properties
                    .is_ok_and(|p| self.event(id.as_deref().unwrap_or_default(), &kind, &p, out))
            }
            _ => false,
        };
        if !known {
            out.push(
                Unparsed {
                    native: parsed(native),
                }
                .into(),
            );
        }
    }

    fn reply(&mut self, tag: CallPurpose, reply: CallReply, out: &mut Vec<Action>) {
        match tag {
            CallPurpose::Open | CallPurpose::Resume => self.opened(&tag, &reply, out),
            CallPurpose::Deliver(input_id) => self.taken(input_id, &reply, out),
            CallPurpose::Look(id) => self.looked_up(id, &reply, Lookup::AfterRestart, out),
            CallPurpose::Check(id) => self.looked_up(id, &reply, Lookup::AfterDelivery, out),
            CallPurpose::Interrupt if status(&reply) == 200 => {}
            CallPurpose::Interrupt => {
                let why = format!("opencode cannot be interrupted: {}", said(&reply));
                out.push(Action::Broken(why));
            }
            CallPurpose::Answer(request) => self.answer_taken(&request, &reply, out),
            CallPurpose::Output(_) => {}
        }
    }

    /// Makes an id in opencode's own format. opencode orders messages by their ids, which begin
    /// with the time.
    fn native_id(&self, now: i64, random: [u8; 14]) -> String {
        const LETTERS: &[u8; 62] =
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let tail: String = random
            .iter()
            .map(|b| char::from(LETTERS[usize::from(*b) % 62]))
            .collect();
        format!(
            "msg_{:012x}{tail}",
            ((now as u64) << 12 | 1) & 0xffff_ffff_ffff
        )
    }

    fn deliver(&mut self, input: &Input, native_id: &str, out: &mut Vec<Action>) {
        let mut parts = vec![json!({ "type": "text", "text": input.text })];
        for (i, a) in input.attachments.iter().enumerate() {
            parts.push(json!({ "type": "file", "mime": a.media_type, "filename": format!("attachment-{}", i + 1), "url": format!("data:{};base64,{}", a.media_type, a.data) }));
        }
        self.sent.insert(native_id.to_owned(), input.clone());
        let path = format!(
            "/session/{}/prompt_async",
            self.session.as_deref().unwrap_or_default()
        );
        out.push(self.post(
            CallPurpose::Deliver(input.input_id.clone()),
            &path,
            json!({ "messageID": native_id, "parts": parts }),
        ));
        out.push(Action::Wake(STORE_TIME));
    }

    fn look_for(&mut self, input: &Input, native_id: &str, told: bool, out: &mut Vec<Action>) {
        if told {
            // The input was announced only once it was in opencode's history: no look-up is needed.
            self.users.insert(native_id.to_owned());
            return out.push(Action::Delivered {
                input_id: input.input_id.clone(),
            });
        }
        self.sent.insert(native_id.to_owned(), input.clone());
        out.push(self.look(CallPurpose::Look(input.input_id.clone()), native_id));
    }

    fn interrupt(&mut self, out: &mut Vec<Action>) {
        if let Some(turn) = &mut self.turn {
            // opencode sends no event for an abort while it waits to retry.
            turn.aborted = true;
            let path = format!(
                "/session/{}/abort",
                self.session.as_deref().unwrap_or_default()
            );
            out.push(self.post(CallPurpose::Interrupt, &path, json!({})));
        }
    }

    fn answer(
        &mut self,
        request_id: &str,
        decision: &PermissionDecision,
        by: &str,
        out: &mut Vec<Action>,
    ) -> bool {
        self.decide(request_id, decision, by, out)
    }

    fn wake(&mut self, out: &mut Vec<Action>) {
        self.tell_early(out);
        if self.turn.as_ref().is_some_and(|t| t.draining) {
            self.end_turn(out);
        } else if self.turn.is_none() && !self.waiting.is_empty() {
            self.unanswered(out);
        }
        out.extend(
            self.sent.iter().map(|(native, input)| {
                self.look(CallPurpose::Check(input.input_id.clone()), native)
            }),
        );
    }

    fn close(&mut self, out: &mut Vec<Action>) {
        self.orphan(None, out);
        if let Some(turn) = &mut self.turn {
            // With this finish reason and no running tool, only the `idle` event is missing.
            let finished =
                self.tools.is_empty() && matches!(turn.finish.as_deref(), Some("stop" | "length"));
            turn.error |= !turn.draining && !turn.aborted && !finished;
        }
        self.end_turn(out);
        if !self.waiting.is_empty() {
            self.unanswered(out);
        }
        // After the restart, the session calls `look_for` for each input that was handed over.
        *self = Opencode {
            session_id: std::mem::take(&mut self.session_id),
            mcp: std::mem::take(&mut self.mcp),
            users: std::mem::take(&mut self.users),
            tool_ids: std::mem::take(&mut self.tool_ids),
            ..Opencode::default()
        };
    }

    fn phase(&self) -> Phase {
        match &self.turn {
            Some(turn) if turn.draining || turn.stopped() => Phase::Settling,
            None if self.waiting.is_empty() => Phase::Idle,
            _ => Phase::Busy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::runtime::opencode::files::appended_since;
    use crate::adapter::runtime::opencode::files::counts;

    #[test]
    fn reasoning_is_in_the_output_whatever_the_provider_says() {
        let beside = json!({ "total": 128, "input": 100, "output": 15, "reasoning": 13, "cache": { "read": 0, "write": 0 } });
        let within = json!({ "total": 128, "input": 100, "output": 28, "reasoning": 13, "cache": { "read": 0, "write": 0 } });
        assert_eq!(
            (counts(&beside).output, counts(&within).output),
            (Some(28), Some(28))
        );
    }

    #[test]
    fn only_what_is_new_of_an_output_is_told() {
        assert_eq!(appended_since("", "a\n"), "a\n");
        assert_eq!(appended_since("a\n", "a\nb\n"), "b\n");
        assert_eq!(appended_since("a\nb\n", "a\nb\n"), "");
        let line = |i: usize| format!("line {i} abcdefghijklmnop\n");
        let first: String = (1..500).map(line).collect();
        let window: String = (300..700).map(line).collect();
        let windowed = format!("...\n\n{window}");
        assert_eq!(
            appended_since(&first, &windowed),
            (500..700).map(line).collect::<String>()
        );
        let later = format!("...\n\n{}", (650..900).map(line).collect::<String>());
        assert_eq!(
            appended_since(&windowed, &later),
            (700..900).map(line).collect::<String>()
        );
        // Texts without a common part yield the whole new window.
        assert_eq!(appended_since("x", "...\n\nyy"), "yy");
        assert_eq!(appended_since("é", "éà"), "à");
    }

    #[test]
    fn halves_of_surrogate_pairs_are_replaced_and_nothing_else() {
        let cases = [
            (r#""a\ud83e\udd80b""#, "a\u{1F980}b"),
            (r#""\udd80 x""#, "\u{fffd} x"),
            (r#""x \ud83e""#, "x \u{fffd}"),
            (r#""\ud83e\ud83e\udd80""#, "\u{fffd}\u{1F980}"),
            (r#""\\ud83e \" \u00e9 é""#, "\\ud83e \" é é"),
        ];
        for (json, text) in cases {
            assert_eq!(
                serde_json::from_str::<String>(&replace_lone_surrogates(json)).unwrap(),
                text,
                "{json}"
            );
        }
    }

    #[test]
    fn the_wait_is_counted_from_the_time_in_the_id() {
        assert_eq!(
            milliseconds_after("evt_1fc515d14001smm12J7lh8fiao", 1_795_234_555_197),
            Some(2089)
        );
        assert_eq!(milliseconds_after("evt_zz", 1), None);
    }
}
