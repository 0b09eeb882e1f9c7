//! Claude Code, through `claude -p` with stream-json in both directions: one process a session.
//!
//! Format: stream-json of Claude Code 2.1 with its control protocol, as recorded in
//! `tests/fixtures/native/claude/`. What makes it odd, each with a recording:
//! - `system/init` comes with every turn, not once; it is how a turn begins.
//! - An input is acknowledged by its echo (`isReplay`), which comes after the first words of
//!   the answer. What is written while text streams is taken up as the next turn.
//! - API errors are a `result` of subtype `success` whose `is_error` is true.
//! - A stream that is cut is asked for again without streaming, silently: the answer has
//!   another message id and replaces what was written.
//! - Cost and `modelUsage` are sums over the process; only they count subagents, and only they
//!   are right after a cut. A process that resumes a session counts on from the sums in its
//!   transcript (`cost-state`), which are written when a process ends in good order.

mod launch;
mod messages;
mod result;
mod tools;

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use self::launch::{launch, uuid};
use self::messages::ClaudeTurn;
use self::result::saved_sums;
use self::tools::ClaudeTool;
use crate::adapter::inbox::Input;
use crate::adapter::runtime::action::{
    Action, CallPurpose, CallReply, FilePattern, PermissionDecision,
};
use crate::adapter::runtime::capabilities::Capabilities;
use crate::adapter::runtime::in_flight::InFlight;
use crate::adapter::runtime::items::OpenItems;
use crate::adapter::runtime::native::{DENIED, model_of_platform, parsed};
use crate::adapter::runtime::{LaunchContext, Phase, Runtime, Translator, hex};
use crate::event::{PermissionResolved, TurnEnd, TurnEndReason, Unparsed, Usage};

pub static RUNTIME: Runtime = Runtime {
    id: "claude",
    name: "Claude Code",
    program: "claude",
    package: "@anthropic-ai/claude-code",
    verified: "2.1.331",
    verified_from: "2.1.197",
    protocols: &["2."],
    default_model: "anthropic/claude-sonnet-5-5",
    model_in_env: model_of_platform,
    providers: &["anthropic"],
    capabilities: Capabilities {
        steer: true,
        interrupt: true,
        resume: true,
        permissions: true,
        questions: false,
        mcp: true,
        images: true,
        deltas: true,
        reasoning: true,
        tool_output: false,
        retries: true,
        cost: true,
    },
    launch,
    translator: |setting| Box::new(Claude::new(setting)),
};

/// By then the next turn has begun, if there is one.
const ECHO_TIME: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Claude {
    session: String,
    dir: std::path::PathBuf,
    resumed: bool,
    ready: bool,
    in_flight: InFlight,
    turn: Option<ClaudeTurn>,
    /// The message that is streamed, and the block of it.
    streaming: Option<(String, u64)>,
    items: OpenItems,
    tools: HashMap<String, ClaudeTool>,
    /// Permissions that wait: the tool's input, and what would allow it for good.
    asked: HashMap<String, (Value, Value)>,
    /// Sums over the process, of which turns are the differences.
    counted: Usage,
    requests: u64,
}

impl Claude {
    pub fn new(setting: &LaunchContext) -> Self {
        Claude {
            dir: setting.home.join("claude/projects"),
            ..Claude::default()
        }
    }

    fn find_transcript(&self, tag: CallPurpose, out: &mut Vec<Action>) {
        out.push(Action::ReadFile {
            tag,
            file: FilePattern {
                dir: self.dir.clone(),
                suffix: format!("{}.jsonl", self.session),
            },
        });
    }
}

impl Translator for Claude {
    fn open(&mut self, native_session_id: Option<&str>, resumed: bool, out: &mut Vec<Action>) {
        self.session = native_session_id.unwrap_or_default().to_owned();
        self.resumed = resumed;
        self.in_flight.open(resumed);
        if resumed {
            self.find_transcript(CallPurpose::Resume, out);
        } else {
            initialize(out);
        }
    }

    fn read(&mut self, native: &[u8], out: &mut Vec<Action>) {
        let message = parsed(native);
        if !self.message(&message, out) {
            out.push(Unparsed { native: message }.into());
        }
    }

    fn reply(&mut self, tag: CallPurpose, reply: CallReply, out: &mut Vec<Action>) {
        let transcript = match reply {
            CallReply::Lost(why) => {
                return out.push(Action::Broken(format!(
                    "Claude Code's transcript cannot be read: {why}"
                )));
            }
            CallReply::Answer { body, .. } => body,
        };
        match tag {
            CallPurpose::Resume => {
                self.counted = saved_sums(&transcript);
                initialize(out);
            }
            CallPurpose::Look(input_id) => {
                self.in_flight.after_restart(
                    &input_id,
                    RUNTIME.name,
                    |uuid, _| memchr::memmem::find(&transcript, uuid.as_bytes()).is_some(),
                    out,
                );
            }
            _ => {}
        }
    }

    fn native_id(&self, now: i64, random: [u8; 14]) -> String {
        uuid(&hex(&[&random[..], &now.to_le_bytes()[..2]].concat()))
    }

    fn deliver(&mut self, input: &Input, native_id: &str, out: &mut Vec<Action>) {
        let mut content = vec![json!({ "type": "text", "text": input.text })];
        content
            .extend(input.attachments.iter().map(|a| json!({ "type": "image", "source": { "type": "base64", "media_type": a.media_type, "data": a.data } })));
        self.in_flight.give(native_id, input);
        let message = json!({ "role": "user", "content": content });
        out.push(Action::Send(json!({ "type": "user", "message": message, "parent_tool_use_id": null, "session_id": self.session, "uuid": native_id })));
    }

    fn look_for(&mut self, input: &Input, native_id: &str, told: bool, out: &mut Vec<Action>) {
        self.in_flight.look_for(native_id, input, told);
        self.find_transcript(CallPurpose::Look(input.input_id.clone()), out);
    }

    fn interrupt(&mut self, out: &mut Vec<Action>) {
        if let Some(turn) = &mut self.turn {
            turn.aborted = true;
            self.requests += 1;
            let id = format!("interrupt-{}", self.requests);
            out.push(Action::Send(json!({ "type": "control_request", "request_id": id, "request": { "subtype": "interrupt" } })));
        }
    }

    fn answer(
        &mut self,
        request_id: &str,
        decision: &PermissionDecision,
        by: &str,
        out: &mut Vec<Action>,
    ) -> bool {
        let response = match (decision, self.asked.get(request_id)) {
            (PermissionDecision::Allow, Some((input, _))) => {
                json!({ "behavior": "allow", "updatedInput": input })
            }
            (PermissionDecision::AllowAlways, Some((input, suggested))) => {
                let rules = suggested
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|s| s["type"] == "addRules");
                let rules: Vec<Value> = rules
                    .cloned()
                    .map(|mut rule| {
                        rule["destination"] = "session".into();
                        rule
                    })
                    .collect();
                json!({ "behavior": "allow", "updatedInput": input, "updatedPermissions": rules })
            }
            (PermissionDecision::Deny { message }, Some(_)) => {
                json!({ "behavior": "deny", "message": message.as_deref().unwrap_or(DENIED), "interrupt": false })
            }
            _ => return false,
        };
        self.asked.remove(request_id);
        out.push(Action::Send(json!({ "type": "control_response", "response": { "subtype": "success", "request_id": request_id, "response": response } })));
        out.push(
            PermissionResolved {
                request_id: request_id.to_owned(),
                decision: decision.name().to_owned(),
                by: by.to_owned(),
            }
            .into(),
        );
        true
    }

    fn wake(&mut self, out: &mut Vec<Action>) {
        if self.turn.is_none() {
            self.in_flight.end_turn(out);
        }
    }

    fn close(&mut self, out: &mut Vec<Action>) {
        self.items.cut(out);
        if let Some(turn) = self.turn.take() {
            let reason = if turn.aborted {
                TurnEndReason::Interrupted
            } else {
                TurnEndReason::Error
            };
            out.push(
                TurnEnd {
                    turn: 0,
                    reason,
                    usage: Usage::default(),
                    duration_ms: 0,
                    final_text: turn.final_text,
                }
                .into(),
            );
        }
        // Inputs that were handed over are looked for when it is up again.
        *self = Claude {
            dir: std::mem::take(&mut self.dir),
            ..Claude::default()
        };
    }

    fn phase(&self) -> Phase {
        match &self.turn {
            Some(turn) if turn.aborted => Phase::Settling,
            None if self.in_flight.is_empty() => Phase::Idle,
            _ => Phase::Busy,
        }
    }
}

fn initialize(out: &mut Vec<Action>) {
    out.push(Action::Send(json!({ "type": "control_request", "request_id": "open", "request": { "subtype": "initialize" } })));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    #[test]
    fn a_resumed_session_counts_from_the_sums_that_were_saved() {
        let line = |input: u64, cost: f64| json!({ "type": "cost-state", "totalCostUSD": cost, "modelUsage": { "m": { "inputTokens": input, "outputTokens": 5 } } });
        let said = json!({ "type": "user", "message": { "content": "a \"cost-state\" in words" } });
        let transcript = format!(
            "{}\n{}\n{said}\n{{\"type\":\"cost-state\",\"mod",
            line(100, 0.25),
            line(300, 0.5)
        );
        let (mut claude, mut out) = (Claude::default(), Vec::new());
        claude.open(Some("id"), true, &mut out);
        assert!(
            matches!(
                &out[..],
                [Action::ReadFile {
                    tag: CallPurpose::Resume,
                    ..
                }]
            ),
            "{out:?}"
        );
        claude.reply(
            CallPurpose::Resume,
            CallReply::Answer {
                status: 200,
                body: transcript.into_bytes(),
            },
            &mut out,
        );
        assert!(matches!(&out[1..], [Action::Send(_)]), "{out:?}");
        let spent = claude.spent(&json!({ "total_cost_usd": 0.75, "modelUsage": { "m": { "inputTokens": 320, "outputTokens": 9, "thinkingTokens": 2 } } }));
        assert_eq!(
            (spent.input, spent.output, spent.reasoning, spent.cost_usd),
            (Some(20), Some(4), Some(2), Some(0.25))
        );
    }

    #[test]
    fn a_refusal_is_a_refusal() {
        let (mut claude, mut out) = (Claude::default(), Vec::new());
        for message in [
            json!({ "type": "system", "subtype": "init" }),
            json!({ "type": "system", "subtype": "model_refusal_no_fallback" }),
            json!({ "type": "result", "subtype": "success", "is_error": true, "stop_reason": "refusal", "result": "no" }),
        ] {
            claude.read(message.to_string().as_bytes(), &mut out);
        }
        let reasons: Vec<_> = out
            .iter()
            .filter_map(|a| {
                if let Action::Event(Payload::TurnEnd(end)) = a {
                    Some(end.reason)
                } else {
                    None
                }
            })
            .collect();
        assert_eq!(reasons, [TurnEndReason::Refusal]);
        assert!(
            !out.iter()
                .any(|a| matches!(a, Action::Event(Payload::Error(_))))
        );
    }
}
