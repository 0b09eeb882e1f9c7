//! JSON-RPC with Gemini CLI: what it is asked, and what it says.

use serde_json::{Value, json};

use super::Gemini;
use crate::adapter::runtime::Mcp;
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::gemini::session_file::HISTORY_TIME;
use crate::adapter::runtime::gemini::turn::{STEP_TIME, error_text};
use crate::adapter::runtime::items::ItemKind;
use crate::adapter::runtime::native::{plan, text};
use crate::event::Warning;

/// What an answer is to.
#[derive(Debug)]
pub(super) enum GeminiRequest {
    Initialize,
    New,
    Load,
    Prompt,
}

impl Gemini {
    pub(super) fn ask(
        &mut self,
        asked: GeminiRequest,
        method: &str,
        params: Value,
        out: &mut Vec<Action>,
    ) {
        self.requests += 1;
        self.asked.insert(self.requests, asked);
        out.push(Action::Send(
            json!({ "jsonrpc": "2.0", "id": self.requests, "method": method, "params": params }),
        ));
    }

    pub(super) fn open_session(&mut self, out: &mut Vec<Action>) {
        let pairs = |map: &std::collections::BTreeMap<String, String>| {
            map.iter()
                .map(|(name, value)| json!({ "name": name, "value": value }))
                .collect::<Vec<_>>()
        };
        let servers: Vec<Value> = self
            .mcp
            .iter()
            .map(|(name, server)| match server {
                Mcp::Local { command, env } => json!({ "name": name, "command": command.first(), "args": command.get(1..), "env": pairs(env) }),
                Mcp::Remote { url, headers } => json!({ "type": "http", "name": name, "url": url, "headers": pairs(headers) }),
            })
            .collect();
        let mut params = json!({ "cwd": self.workdir, "mcpServers": servers });
        match self.resume.clone() {
            Some(id) => {
                params["sessionId"] = id.into();
                self.loading = true;
                self.ask(GeminiRequest::Load, "session/load", params, out);
            }
            None => self.ask(GeminiRequest::New, "session/new", params, out),
        }
    }

    pub(super) fn answered(&mut self, asked: GeminiRequest, m: &Value, out: &mut Vec<Action>) {
        let (result, error) = (&m["result"], m.get("error"));
        match (asked, error) {
            (GeminiRequest::Initialize, None) => {
                out.push(Action::Version(
                    text(result, "/agentInfo/version").to_owned(),
                ));
                self.open_session(out);
            }
            (GeminiRequest::New, None) => {
                let id = text(result, "/sessionId").to_owned();
                self.session = Some(id.clone());
                out.push(Action::Ready {
                    native_session_id: id,
                    resumed: false,
                });
            }
            (GeminiRequest::Load, None) => {
                // Its history comes behind this answer, and has no end but that it stops.
                self.session.clone_from(&self.resume);
                out.push(Action::Wake(HISTORY_TIME));
            }
            (GeminiRequest::Load, Some(_)) => {
                out.push(Warning { message: "Gemini CLI no longer has this session; a new one is begun, without its history".into() }.into());
                (self.resume, self.loading) = (None, false);
                self.open_session(out);
            }
            (GeminiRequest::Initialize | GeminiRequest::New, Some(error)) => out.push(
                Action::Broken(format!("Gemini CLI gave no session: {}", error_text(error))),
            ),
            (GeminiRequest::Prompt, _) => self.prompt_answered(result, error, out),
        }
    }

    pub(super) fn message(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
        let p = &m["params"];
        match (m["method"].as_str(), m.get("id")) {
            (Some("session/update"), None) => return self.update(&p["update"], out),
            (Some("session/request_permission"), Some(number)) => {
                self.permission_asked(number, p, out)
            }
            (Some(_), Some(number)) => {
                // It must not wait for what nobody here does.
                out.push(Action::Send(json!({ "jsonrpc": "2.0", "id": number, "error": { "code": -32601, "message": "not supported by this client" } })));
                return false;
            }
            (None, Some(number)) => match number.as_u64().and_then(|n| self.asked.remove(&n)) {
                Some(asked) => self.answered(asked, m, out),
                None => return false,
            },
            (None, None) => return self.one_shot(m, out),
            (Some(_), None) => return false,
        }
        true
    }

    pub(super) fn update(&mut self, u: &Value, out: &mut Vec<Action>) -> bool {
        let kind = text(u, "/sessionUpdate");
        if self.loading && self.session.is_some() {
            out.push(Action::Wake(HISTORY_TIME));
        }
        if self.loading
            || matches!(
                kind,
                "available_commands_update"
                    | "user_message_chunk"
                    | "current_mode_update"
                    | "session_info_update"
            )
        {
            return true;
        }
        if matches!(
            kind,
            "agent_message_chunk" | "agent_thought_chunk" | "tool_call"
        ) {
            if self.turn.as_ref().is_none_or(|t| t.ending.is_some()) {
                // It answers nothing.
                return false;
            }
            self.in_flight.acknowledge(|_, _| true, out);
        }
        match kind {
            "agent_message_chunk" => self.write(ItemKind::Text, text(u, "/content/text"), out),
            "agent_thought_chunk" => self.write(ItemKind::Reasoning, text(u, "/content/text"), out),
            "tool_call" => self.tool_use(u, out),
            "tool_call_update" => {
                if !self.used.contains(text(u, "/toolCallId")) {
                    if self.turn.is_none() {
                        return false;
                    }
                    self.tool_use(u, out);
                }
                if matches!(text(u, "/status"), "completed" | "failed") {
                    if let Some(turn) = &mut self.turn {
                        turn.tools_over = true;
                        out.push(Action::Wake(STEP_TIME));
                    }
                    self.tool_over(u, out);
                }
            }
            "plan" => out.push(plan(&u["entries"])),
            _ => return false,
        }
        true
    }
}
