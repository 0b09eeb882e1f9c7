//! JSON-RPC with Codex: what it is asked, and what it says.

use serde_json::{Value, json};

use super::{Codex, RUNTIME};
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::codex::items::command;
use crate::adapter::runtime::items::ItemKind;
use crate::adapter::runtime::native::{permission_options, request_id, text};
use crate::event::{
    PermissionRequest, PermissionResolved, PlanItem, PlanUpdate, ToolOutput, Warning,
};

/// What an answer is to.
#[derive(Debug)]
pub(super) enum CodexRequest {
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

impl Codex {
    pub(super) fn ask(
        &mut self,
        asked: CodexRequest,
        method: &str,
        params: Value,
        out: &mut Vec<Action>,
    ) {
        self.requests += 1;
        self.asked.insert(self.requests, asked);
        out.push(Action::Send(
            json!({ "id": self.requests, "method": method, "params": params }),
        ));
    }

    pub(super) fn start_thread(&mut self, out: &mut Vec<Action>) {
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

    pub(super) fn answered(&mut self, asked: CodexRequest, m: &Value, out: &mut Vec<Action>) {
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

    pub(super) fn message(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
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

    pub(super) fn notified(&mut self, method: &str, p: &Value, out: &mut Vec<Action>) -> bool {
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
    pub(super) fn requested(
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
