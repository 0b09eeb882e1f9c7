//! Codex, through `codex app-server`: JSON-RPC without its version member, one message a line.
//!
//! Format: app-server protocol v2 of Codex 0.169 (`codex app-server generate-json-schema`), as
//! recorded in `tests/fixtures/native/codex/`; the lines of `codex exec --json` are understood
//! too. What makes it odd, each with a recording:
//! - What it was told to steer while it writes cuts what it writes: an input joins a turn only
//!   while a tool runs.
//! - A text or a command that is cut never gets its `item/completed`.
//! - The pieces of a command's output are not all of it; `aggregatedOutput` is.
//! - Usage is told after each call of the model, with the sums of the thread.
//! - Other threads speak on the same connection: those of subagents. They are not told.

mod exec;
mod items;
mod launch;
mod messages;
mod turn;

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use self::launch::launch;
use self::messages::CodexRequest;
use self::turn::CodexTurn;
use crate::adapter::inbox::Input;
use crate::adapter::runtime::action::{Action, PermissionDecision};
use crate::adapter::runtime::capabilities::Capabilities;
use crate::adapter::runtime::in_flight::InFlight;
use crate::adapter::runtime::items::OpenItems;
use crate::adapter::runtime::native::parsed;
use crate::adapter::runtime::{LaunchContext, Permissions, Phase, Runtime, Translator, hex};
use crate::event::{PermissionResolved, Unparsed, Usage};

pub static RUNTIME: Runtime = Runtime {
    id: "codex",
    name: "Codex",
    program: "codex",
    package: "@openai/codex",
    verified: "0.169.0",
    verified_from: "0.169.0",
    protocols: &["0."],
    default_model: "openai/gpt-5.5",
    model_in_env: |env| {
        env("OPENAI_MODEL").map(|model| {
            if model.contains('/') {
                model
            } else {
                format!("openai/{model}")
            }
        })
    },
    providers: &["openai"],
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
        tool_output: true,
        retries: true,
        cost: false,
    },
    launch,
    translator: |setting| Box::new(Codex::new(setting)),
};

#[derive(Default)]
pub struct Codex {
    model: String,
    workdir: String,
    /// `never`, or `untrusted`: what is not known to be harmless is asked for.
    approval: &'static str,
    resume: Option<String>,
    thread: Option<String>,
    requests: u64,
    asked: HashMap<u64, CodexRequest>,
    in_flight: InFlight,
    turn: Option<CodexTurn>,
    items: OpenItems,
    /// Calls that run, and the changes that they make.
    tools: HashMap<String, Value>,
    /// Calls that ran when the turn was interrupted: Codex lets their commands go on.
    stopped: Vec<String>,
    /// Ids of calls; providers may use one again.
    used: HashSet<String>,
    /// Permissions that wait: the number of the request.
    permissions: HashMap<String, Value>,
    /// These are lines of `codex exec`.
    one_shot: bool,
    /// This turn refused to be steered.
    unsteerable: bool,
    /// The sums of the thread, as last told.
    counted: Option<Usage>,
}

impl Codex {
    pub fn new(setting: &LaunchContext) -> Self {
        let (_, model) = setting.model.split_once('/').unwrap_or_default();
        let approval = if setting.permissions == Permissions::Allow {
            "never"
        } else {
            "untrusted"
        };
        Codex {
            approval,
            model: model.to_owned(),
            workdir: setting.workdir.display().to_string(),
            ..Codex::default()
        }
    }
}

impl Translator for Codex {
    fn open(&mut self, native_session_id: Option<&str>, resumed: bool, out: &mut Vec<Action>) {
        self.resume = native_session_id.map(str::to_owned);
        self.in_flight.open(resumed);
        let client = json!({ "name": "outrigger", "title": "Outrigger", "version": env!("CARGO_PKG_VERSION") });
        self.ask(
            CodexRequest::Initialize,
            "initialize",
            json!({ "clientInfo": client, "capabilities": { "experimentalApi": true } }),
            out,
        );
    }

    fn read(&mut self, native: &[u8], out: &mut Vec<Action>) {
        let message = parsed(native);
        if !self.message(&message, out) {
            out.push(Unparsed { native: message }.into());
        }
    }

    fn native_id(&self, _now: i64, random: [u8; 14]) -> String {
        format!("in-{}", hex(&random))
    }

    fn deliver(&mut self, input: &Input, native_id: &str, out: &mut Vec<Action>) {
        self.in_flight.give(native_id, input);
        let mut content = vec![json!({ "type": "text", "text": input.text })];
        content.extend(input.attachments.iter().map(|a| json!({ "type": "image", "url": format!("data:{};base64,{}", a.media_type, a.data) })));
        let mut params =
            json!({ "threadId": self.thread, "input": content, "clientUserMessageId": native_id });
        let input_id = input.input_id.clone();
        match &self.turn {
            Some(turn) => {
                params["expectedTurnId"] = turn.id.clone().into();
                self.ask(CodexRequest::Steer(input_id), "turn/steer", params, out);
            }
            None => self.ask(CodexRequest::Turn(input_id), "turn/start", params, out),
        }
    }

    fn look_for(&mut self, input: &Input, native_id: &str, told: bool, out: &mut Vec<Action>) {
        self.in_flight.look_for(native_id, input, told);
        if self.resume.is_none() {
            // A thread that has just begun has nothing.
            return self
                .in_flight
                .after_restart(&input.input_id, RUNTIME.name, |_, _| false, out);
        }
        let params = json!({ "threadId": self.thread, "sortDirection": "desc", "limit": 200 });
        self.ask(
            CodexRequest::History(input.input_id.clone()),
            "thread/items/list",
            params,
            out,
        );
    }

    fn interrupt(&mut self, out: &mut Vec<Action>) {
        if let Some(turn) = &mut self.turn {
            turn.aborted = true;
            let params = json!({ "threadId": self.thread, "turnId": turn.id });
            self.stopped = self.tools.keys().cloned().collect();
            self.ask(CodexRequest::Interrupt, "turn/interrupt", params, out);
        }
    }

    fn answer(
        &mut self,
        request_id: &str,
        decision: &PermissionDecision,
        by: &str,
        out: &mut Vec<Action>,
    ) -> bool {
        let native = match decision {
            PermissionDecision::Allow => "accept",
            PermissionDecision::AllowAlways => "acceptForSession",
            PermissionDecision::Deny { .. } => "decline",
            PermissionDecision::Answers(_) | PermissionDecision::RejectQuestion => return false,
        };
        let Some(number) = self.permissions.remove(request_id) else {
            return false;
        };
        out.push(Action::Send(
            json!({ "id": number, "result": { "decision": native } }),
        ));
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

    fn steers_now(&self, lossy: bool) -> bool {
        let steerable = !self.unsteerable && self.turn.as_ref().is_some_and(|t| !t.id.is_empty());
        steerable && (lossy || self.items.is_empty() && !self.tools.is_empty())
    }

    fn close(&mut self, out: &mut Vec<Action>) {
        let status = if self.turn.as_ref().is_some_and(|t| t.aborted) {
            "interrupted"
        } else {
            "failed"
        };
        self.end_turn(status, out);
        *self = Codex {
            approval: self.approval,
            model: std::mem::take(&mut self.model),
            workdir: std::mem::take(&mut self.workdir),
            used: std::mem::take(&mut self.used),
            ..Codex::default()
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

#[cfg(test)]
mod tests {
    use crate::adapter::runtime::codex::items::command;

    #[test]
    fn commands_are_shown_as_they_were_given() {
        assert_eq!(command("/bin/bash -lc 'echo hello; ls'"), "echo hello; ls");
        assert_eq!(command(r#"/bin/bash -lc "echo 'a b'""#), "echo 'a b'");
        assert_eq!(command("ls -l"), "ls -l");
        assert_eq!(
            command("/bin/bash -lc 'unclosed"),
            "/bin/bash -lc 'unclosed"
        );
    }
}
