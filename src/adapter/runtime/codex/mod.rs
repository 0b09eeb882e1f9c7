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

mod items;
mod launch;
mod turn;

mod exec;

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use self::items::command;
use self::launch::launch;
use self::turn::CodexTurn;
use super::{
    Action, Capabilities, LaunchContext, PermissionDecision, Permissions, Phase, Runtime,
    Translator, hex, parsed, permission_options, request_id, text,
};
use crate::adapter::inbox::Input;
use crate::adapter::runtime::in_flight::InFlight;
use crate::adapter::runtime::items::{ItemKind, OpenItems};
use crate::event::{
    PermissionRequest, PermissionResolved, PlanItem, PlanUpdate, ToolOutput, Unparsed, Usage,
    Warning,
};

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

/// What an answer is to.
#[derive(Debug)]
enum CodexRequest {
    Initialize,
    Thread {
        resumed: bool,
    },
    Turn(String),
    Steer(String),
    /// Whether an input stands in the thread.
    History(String),
    Interrupt,
    /// Which commands go on beside their turn.
    Terminals,
    Terminate,
}

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

    fn ask(&mut self, asked: CodexRequest, method: &str, params: Value, out: &mut Vec<Action>) {
        self.requests += 1;
        self.asked.insert(self.requests, asked);
        out.push(Action::Send(
            json!({ "id": self.requests, "method": method, "params": params }),
        ));
    }

    fn start_thread(&mut self, out: &mut Vec<Action>) {
        let mut params = json!({ "cwd": self.workdir, "model": self.model, "modelProvider": "outrigger", "approvalPolicy": self.approval });
        match self.resume.clone() {
            Some(id) => {
                (params["threadId"], params["excludeTurns"]) = (id.into(), true.into());
                self.ask(
                    CodexRequest::Thread { resumed: true },
                    "thread/resume",
                    params,
                    out,
                );
            }
            None => self.ask(
                CodexRequest::Thread { resumed: false },
                "thread/start",
                params,
                out,
            ),
        }
    }

    fn answered(&mut self, asked: CodexRequest, m: &Value, out: &mut Vec<Action>) {
        let (result, error) = (
            &m["result"],
            m.get("error").map(|e| text(e, "/message").to_owned()),
        );
        match (asked, error) {
            (CodexRequest::Initialize, None) => {
                // `outrigger/0.169.0 (Debian 12.0.0; x86_64) …`
                let version = text(result, "/userAgent")
                    .split(['/', ' '])
                    .nth(1)
                    .unwrap_or_default();
                out.push(Action::Version(version.to_owned()));
                out.push(Action::Send(json!({ "method": "initialized" })));
                self.start_thread(out);
            }
            (CodexRequest::Thread { resumed }, None) => {
                let id = text(result, "/thread/id").to_owned();
                self.thread = Some(id.clone());
                out.push(Action::Ready {
                    native_session_id: id,
                    resumed,
                });
            }
            (CodexRequest::Thread { resumed: true }, Some(_)) => {
                out.push(Warning { message: "Codex no longer has this thread; a new one is begun, without its history".into() }.into());
                self.resume = None;
                self.start_thread(out);
            }
            (CodexRequest::Initialize | CodexRequest::Thread { .. }, Some(why)) => {
                out.push(Action::Broken(format!("Codex gave no thread: {why}")))
            }
            (CodexRequest::Turn(input_id), Some(why)) => {
                self.in_flight
                    .refused(&input_id, format!("Codex refused it: {why}"), out)
            }
            (CodexRequest::History(input_id), None) => {
                let items = result.to_string();
                self.in_flight.after_restart(
                    &input_id,
                    RUNTIME.name,
                    |native, _| items.contains(native),
                    out,
                );
            }
            (CodexRequest::History(_), Some(why)) => out.push(Action::Broken(format!(
                "Codex does not tell its thread: {why}"
            ))),
            // The turn was over before it came, or is one that is not steered.
            (CodexRequest::Steer(input_id), Some(_)) => {
                self.unsteerable = true;
                self.in_flight.not_taken(&input_id, out);
            }
            (CodexRequest::Interrupt, _) if !self.stopped.is_empty() => {
                let params = json!({ "threadId": self.thread });
                self.ask(
                    CodexRequest::Terminals,
                    "thread/backgroundTerminals/list",
                    params,
                    out,
                );
            }
            (CodexRequest::Terminals, None) => {
                let stopped = std::mem::take(&mut self.stopped);
                let goes_on =
                    |terminal: &&Value| stopped.iter().any(|id| *id == text(terminal, "/itemId"));
                for terminal in result["data"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(goes_on)
                {
                    let params =
                        json!({ "threadId": self.thread, "processId": terminal["processId"] });
                    self.ask(
                        CodexRequest::Terminate,
                        "thread/backgroundTerminals/terminate",
                        params,
                        out,
                    );
                }
            }
            (CodexRequest::Terminals | CodexRequest::Terminate, Some(why)) => {
                out.push(
                    Warning {
                        message: format!("a command of the interrupted turn may still run: {why}"),
                    }
                    .into(),
                );
            }
            // It was over: what ended it is told by itself.
            (
                CodexRequest::Turn(_)
                | CodexRequest::Steer(_)
                | CodexRequest::Interrupt
                | CodexRequest::Terminate,
                _,
            ) => {}
        }
    }

    fn message(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
        let params = &m["params"];
        match (m["method"].as_str(), m.get("id")) {
            (Some(method), Some(id)) => self.requested(method, id, params, out),
            (Some(method), None) => {
                let thread = text(params, "/threadId");
                if method != "thread/started"
                    && !thread.is_empty()
                    && *self.thread.get_or_insert_with(|| thread.to_owned()) != thread
                {
                    return true;
                }
                self.notified(method, params, out)
            }
            (None, Some(id)) => match id.as_u64().and_then(|id| self.asked.remove(&id)) {
                Some(asked) => {
                    self.answered(asked, m, out);
                    true
                }
                None => false,
            },
            (None, None) => self.exec_line(m, out),
        }
    }

    fn notified(&mut self, method: &str, p: &Value, out: &mut Vec<Action>) -> bool {
        match method {
            "turn/started" => self.begin_turn(text(p, "/turn/id"), out),
            "item/started" => return self.item_started(&p["item"], out),
            "item/completed" => return self.item_completed(&p["item"], out),
            "item/agentMessage/delta" => self.write(ItemKind::Text, p, out),
            "item/reasoning/summaryTextDelta" | "item/reasoning/textDelta" => {
                self.write(ItemKind::Reasoning, p, out)
            }
            "item/reasoning/summaryPartAdded"
                if p["summaryIndex"].as_u64().is_some_and(|i| i > 0) =>
            {
                let apart = json!({ "itemId": p["itemId"], "delta": "\n\n" });
                self.write(ItemKind::Reasoning, &apart, out);
            }
            "item/commandExecution/outputDelta" => {
                let id = text(p, "/itemId");
                if self.tools.contains_key(id) {
                    out.push(
                        ToolOutput {
                            tool_use_id: id.into(),
                            text: text(p, "/delta").into(),
                            parent_tool_use_id: None,
                        }
                        .into(),
                    );
                }
            }
            "thread/tokenUsage/updated" => self.used(&p["tokenUsage"], out),
            "turn/plan/updated" => {
                let items = p["plan"].as_array().into_iter().flatten();
                let status = |s: &Value| {
                    if s["status"] == "inProgress" {
                        "in_progress".to_owned()
                    } else {
                        text(s, "/status").to_owned()
                    }
                };
                out.push(
                    PlanUpdate {
                        items: items
                            .map(|s| PlanItem {
                                text: text(s, "/step").into(),
                                status: status(s),
                            })
                            .collect(),
                    }
                    .into(),
                );
            }
            "error" => self.failed(&p["error"], p["willRetry"] == true, out),
            "turn/completed" => self.turn_completed(&p["turn"], out),
            "serverRequest/resolved" => {
                let number = &p["requestId"];
                let open = self
                    .permissions
                    .iter()
                    .find(|(_, n)| *n == number)
                    .map(|(id, _)| id.clone());
                if let Some(request_id) = open {
                    self.permissions.remove(&request_id);
                    out.push(
                        PermissionResolved {
                            request_id,
                            decision: "cancelled".into(),
                            by: "runtime".into(),
                        }
                        .into(),
                    );
                }
            }
            "warning" | "configWarning" | "deprecationNotice" => {
                let message = [text(p, "/message"), text(p, "/summary")]
                    .into_iter()
                    .find(|s| !s.is_empty())
                    .unwrap_or(method)
                    .to_owned();
                out.push(Warning { message }.into());
            }
            "mcpServer/startupStatus/updated" if p["status"] == "failed" => {
                out.push(
                    Warning {
                        message: format!(
                            "the tool server `{}` does not start: {}",
                            text(p, "/name"),
                            text(p, "/error")
                        ),
                    }
                    .into(),
                );
            }
            "remoteControl/status/changed"
            | "thread/started"
            | "thread/status/changed"
            | "thread/readState/changed"
            | "thread/name/updated"
            | "thread/goal/cleared"
            | "thread/settings/updated"
            | "account/rateLimits/updated"
            | "account/updated"
            | "mcpServer/startupStatus/updated"
            | "turn/diff/updated"
            | "item/reasoning/summaryPartAdded"
            | "item/fileChange/outputDelta"
            | "item/fileChange/patchUpdated"
            | "item/mcpToolCall/progress"
            | "skills/changed"
            | "item/commandExecution/terminalInteraction" => {}
            _ => return false,
        }
        true
    }

    /// It asks: may it?
    fn requested(
        &mut self,
        method: &str,
        number: &Value,
        p: &Value,
        out: &mut Vec<Action>,
    ) -> bool {
        let item = text(p, "/itemId");
        let (name, input) = match method {
            "item/commandExecution/requestApproval" => (
                "bash",
                json!({ "command": command(text(p, "/command")), "cwd": p["cwd"], "reason": p["reason"] }),
            ),
            "item/fileChange/requestApproval" => (
                "edit",
                json!({ "changes": self.tools.get(item), "reason": p["reason"] }),
            ),
            _ => {
                // It must not wait for an answer that nobody can give.
                out.push(Action::Send(json!({ "id": number, "error": { "code": -32601, "message": "not supported by this client" } })));
                return false;
            }
        };
        let request_id = request_id(item, number);
        self.permissions.insert(request_id.clone(), number.clone());
        let options = permission_options();
        out.push(
            PermissionRequest {
                request_id,
                tool_use_id: Some(item.to_owned()),
                name: name.to_owned(),
                input,
                options,
                parent_tool_use_id: None,
            }
            .into(),
        );
        true
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
    use super::*;

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
