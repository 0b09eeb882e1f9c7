//! Gemini CLI, through `gemini --acp`: the Agent Client Protocol, JSON-RPC 2.0, one message a line.
//!
//! Format: ACP 1 as Gemini CLI 0.61 speaks it, and its session files
//! (`~/.gemini/tmp/<project>/chats/session-<minute>-<id>.jsonl`), as recorded in
//! `tests/fixtures/native/gemini/`; the lines of `-o stream-json` are understood too. What makes
//! it odd, each with a recording:
//! - A second prompt cancels the first: one is sent when the one before it is over.
//! - Neither the output of a command nor its exit code is told; they stand in the session file.
//! - Nothing has an id but a tool's call; texts end where something else begins.
//! - Retries are told in its debug log only, which is sent to stderr.
//! - A session that is loaded in the minute of its creation is overwritten instead.

mod launch;
mod one_shot;
mod requests;
mod session_file;
mod tools;
mod turn;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;

use serde_json::{Value, json};

use self::launch::{chats, launch};
use self::requests::GeminiRequest;
use self::session_file::asks;
use self::tools::{Asking, GeminiTool};
use self::turn::{GeminiTurn, STEP_TIME};
use crate::adapter::inbox::Input;
use crate::adapter::runtime::action::{Action, CallPurpose, CallReply, PermissionDecision};
use crate::adapter::runtime::capabilities::Capabilities;
use crate::adapter::runtime::in_flight::InFlight;
use crate::adapter::runtime::items::OpenItems;
use crate::adapter::runtime::native::{
    DENIED, model_of_platform, newest_first, parsed, sent_at, text, timed_id,
};
use crate::adapter::runtime::{LaunchContext, Mcp, Phase, Runtime, Translator, error_code};
use crate::event::{ErrorCode, PermissionResolved, Retry, TurnEnd, TurnEndReason, Unparsed};

pub static RUNTIME: Runtime = Runtime {
    id: "gemini",
    name: "Gemini CLI",
    program: "gemini",
    package: "@google/gemini-cli",
    verified: "0.61.0",
    verified_from: "0.61.0",
    protocols: &["0."],
    default_model: "google/gemini-2.5-pro",
    model_in_env: model_of_platform,
    providers: &["google"],
    capabilities: Capabilities {
        steer: false,
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
        cost: false,
    },
    launch,
    translator: |setting| Box::new(Gemini::new(setting)),
};

#[derive(Default)]
pub struct Gemini {
    workdir: String,
    chats: PathBuf,
    mcp: Vec<(String, Mcp)>,
    resume: Option<String>,
    session: Option<String>,
    /// What it says now is history.
    loading: bool,
    requests: u64,
    turns: u64,
    asked: HashMap<u64, GeminiRequest>,
    in_flight: InFlight,
    turn: Option<GeminiTurn>,
    items: OpenItems,
    tools: HashMap<String, GeminiTool>,
    /// What came while it was looked for what a tool said: it is told after that.
    held: VecDeque<Value>,
    used: HashSet<String>,
    /// Permissions that wait, by the request's id on the stream.
    permissions: HashMap<String, Asking>,
}

impl Gemini {
    pub fn new(setting: &LaunchContext) -> Self {
        let mut mcp: Vec<(String, Mcp)> = setting
            .mcp
            .iter()
            .map(|(name, server)| (name.clone(), server.clone()))
            .collect();
        mcp.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        Gemini {
            workdir: setting.workdir.display().to_string(),
            chats: chats(setting),
            mcp,
            ..Gemini::default()
        }
    }

    fn hear(&mut self, message: Value, out: &mut Vec<Action>) {
        if !self.message(&message, out) {
            out.push(Unparsed { native: message }.into());
        }
    }
}

impl Translator for Gemini {
    fn open(&mut self, native_session_id: Option<&str>, resumed: bool, out: &mut Vec<Action>) {
        self.resume = native_session_id.map(str::to_owned);
        self.in_flight.open(resumed);
        let client = json!({ "name": "outrigger", "version": env!("CARGO_PKG_VERSION") });
        let able =
            json!({ "fs": { "readTextFile": false, "writeTextFile": false }, "terminal": false });
        self.ask(
            GeminiRequest::Initialize,
            "initialize",
            json!({ "protocolVersion": 1, "clientCapabilities": able, "clientInfo": client }),
            out,
        );
    }

    fn read(&mut self, native: &[u8], out: &mut Vec<Action>) {
        let message = parsed(native);
        if self.looks_for_output() {
            self.held.push_back(message);
        } else {
            self.hear(message, out);
        }
    }

    /// `[<time>] [WARN] Attempt 1 failed with status 429. Retrying with backoff...`
    fn read_stderr(&mut self, line: &str, out: &mut Vec<Action>) {
        // At its end it writes the same again, without the time.
        let Some((attempt, why)) = line
            .split_once("] [WARN] Attempt ")
            .and_then(|(_, rest)| rest.split_once(" failed"))
        else {
            return;
        };
        let Ok(attempt) = attempt.parse() else { return };
        let status = why
            .split_once("status ")
            .and_then(|(_, rest)| rest.get(..3))
            .and_then(|s| s.parse().ok());
        let code = match error_code::code(status, why) {
            ErrorCode::Internal => ErrorCode::ProviderDown,
            code => code,
        };
        let retry_after_ms = why
            .split_once("Retrying after ")
            .and_then(|(_, rest)| rest.split_once("ms"))
            .and_then(|(ms, _)| ms.parse().ok());
        self.items.cut(out);
        let message = error_code::words(why.trim_end());
        out.push(
            Retry {
                attempt,
                code,
                retry_after_ms,
                message,
                parent_tool_use_id: None,
            }
            .into(),
        );
    }

    fn reply(&mut self, tag: CallPurpose, reply: CallReply, out: &mut Vec<Action>) {
        let file = match reply {
            CallReply::Answer { body, .. } => body,
            CallReply::Lost(why) if matches!(tag, CallPurpose::Look(_)) => {
                return out.push(Action::Broken(format!(
                    "the session file of Gemini CLI cannot be read: {why}"
                )));
            }
            CallReply::Lost(_) => Vec::new(),
        };
        match tag {
            CallPurpose::Output(id) if id.is_empty() => self.count(&file, out),
            CallPurpose::Output(id) => {
                self.found_output(&id, &file, out);
                self.go_on(out);
            }
            CallPurpose::Look(input_id) => {
                let at = |entry: &Value| {
                    text(entry, "/timestamp")
                        .parse::<jiff::Timestamp>()
                        .ok()
                        .map(jiff::Timestamp::as_millisecond)
                };
                let has = |native: &str, input: &Input| {
                    let sent = sent_at(native);
                    newest_first(&file, b"").any(|e| {
                        asks(&e, &input.text)
                            && at(&e).zip(sent).is_some_and(|(at, sent)| at >= sent)
                    })
                };
                self.in_flight
                    .after_restart(&input_id, RUNTIME.name, has, out);
            }
            _ => {}
        }
    }

    fn native_id(&self, now: i64, random: [u8; 14]) -> String {
        timed_id(now, random)
    }

    fn deliver(&mut self, input: &Input, native_id: &str, out: &mut Vec<Action>) {
        self.in_flight.give(native_id, input);
        let mut prompt = vec![json!({ "type": "text", "text": input.text })];
        prompt.extend(
            input
                .attachments
                .iter()
                .map(|a| json!({ "type": "image", "mimeType": a.media_type, "data": a.data })),
        );
        self.begin_turn(native_id, out);
        if let Some(turn) = &mut self.turn {
            turn.prompt.clone_from(&input.text);
        }
        let params = json!({ "sessionId": self.session, "prompt": prompt });
        self.ask(GeminiRequest::Prompt, "session/prompt", params, out);
    }

    fn look_for(&mut self, input: &Input, native_id: &str, told: bool, out: &mut Vec<Action>) {
        self.in_flight.look_for(native_id, input, told);
        self.find(CallPurpose::Look(input.input_id.clone()), out);
    }

    fn interrupt(&mut self, out: &mut Vec<Action>) {
        if let Some(turn) = &mut self.turn {
            turn.aborted = true;
            for (request_id, Asking { number, .. }) in std::mem::take(&mut self.permissions) {
                out.push(Action::Send(json!({ "jsonrpc": "2.0", "id": number, "result": { "outcome": { "outcome": "cancelled" } } })));
                out.push(
                    PermissionResolved {
                        request_id,
                        decision: "cancelled".into(),
                        by: "adapter".into(),
                    }
                    .into(),
                );
            }
            out.push(Action::Send(json!({ "jsonrpc": "2.0", "method": "session/cancel", "params": { "sessionId": self.session } })));
        }
    }

    fn answer(
        &mut self,
        request_id: &str,
        decision: &PermissionDecision,
        by: &str,
        out: &mut Vec<Action>,
    ) -> bool {
        let kind = match decision {
            PermissionDecision::Allow => "allow_once",
            PermissionDecision::AllowAlways => "allow_always",
            PermissionDecision::Deny { .. } => "reject_once",
            PermissionDecision::Answers(_) | PermissionDecision::RejectQuestion => return false,
        };
        let Some(Asking {
            number,
            options,
            tool,
        }) = self.permissions.remove(request_id)
        else {
            return false;
        };
        let option = options
            .as_array()
            .into_iter()
            .flatten()
            .find(|o| o["kind"] == kind)
            .map(|o| o["optionId"].clone());
        let outcome = option.map_or_else(
            || json!({ "outcome": "cancelled" }),
            |id| json!({ "outcome": "selected", "optionId": id }),
        );
        out.push(Action::Send(
            json!({ "jsonrpc": "2.0", "id": number, "result": { "outcome": outcome } }),
        ));
        out.push(
            PermissionResolved {
                request_id: request_id.to_owned(),
                decision: decision.name().to_owned(),
                by: by.to_owned(),
            }
            .into(),
        );
        if let PermissionDecision::Deny { message } = decision {
            // The CLI says no more of this call.
            self.tool_result(
                &tool,
                message.clone().unwrap_or_else(|| DENIED.to_owned()),
                true,
                None,
                out,
            );
        }
        true
    }

    fn wake(&mut self, out: &mut Vec<Action>) {
        if self.session.is_some() && std::mem::take(&mut self.loading) {
            out.push(Action::Ready {
                native_session_id: self.resume.clone().unwrap_or_default(),
                resumed: true,
            });
        }
        for (id, _) in self.tools.iter().filter(|(_, tool)| tool.wanted.is_some()) {
            self.find(CallPurpose::Output(id.clone()), out);
        }
        if self.held.is_empty() && self.tools.values().all(|tool| tool.wanted.is_some()) {
            self.step(out);
        }
    }

    fn close(&mut self, out: &mut Vec<Action>) {
        // What it said before it went is told, with or without what a tool said.
        for id in self
            .tools
            .iter()
            .filter(|(_, t)| t.wanted.is_some())
            .map(|(id, _)| id.clone())
            .collect::<Vec<_>>()
        {
            self.tool_result(&id, String::new(), true, None, out);
        }
        self.go_on(out);
        self.items.cut(out);
        if let Some(turn) = self.turn.take() {
            let reason = turn.ending.unwrap_or(if turn.aborted {
                TurnEndReason::Interrupted
            } else {
                TurnEndReason::Error
            });
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
        }
        *self = Gemini {
            workdir: std::mem::take(&mut self.workdir),
            chats: std::mem::take(&mut self.chats),
            mcp: std::mem::take(&mut self.mcp),
            used: std::mem::take(&mut self.used),
            turns: self.turns,
            ..Gemini::default()
        };
    }

    fn phase(&self) -> Phase {
        match &self.turn {
            Some(turn) if turn.aborted || turn.ending.is_some() => Phase::Settling,
            None if self.in_flight.is_empty() => Phase::Idle,
            _ => Phase::Busy,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::adapter::runtime::gemini::launch::allowed;
    use crate::adapter::runtime::gemini::launch::make_loadable;
    use crate::adapter::runtime::gemini::session_file::of_command;

    #[test]
    fn a_command_is_told_apart_from_what_is_said_of_it() {
        let wrapped = |s: &str| format!("<untrusted_context>\n{s}\n</untrusted_context>");
        assert_eq!(
            of_command(
                &wrapped("Output: out\nerr\nExit Code: 3\nProcess Group PGID: 7"),
                false
            ),
            ("out\nerr".into(), Some(3))
        );
        assert_eq!(
            of_command("Output: a: b\nProcess Group PGID: 7", false),
            ("a: b".into(), Some(0))
        );
        assert_eq!(
            of_command("Output: (empty)", false),
            (String::new(), Some(0))
        );
        assert_eq!(
            of_command("Command was cancelled.", true),
            ("Command was cancelled.".into(), None)
        );
    }

    #[test]
    fn a_young_session_is_made_loadable() {
        let dir = tempfile::tempdir().unwrap();
        let chats = dir.path().join("work/chats");
        std::fs::create_dir_all(&chats).unwrap();
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H-%M")
            .to_string();
        for (name, text) in [
            (format!("session-{now}-0123abcd.jsonl"), "history"),
            ("session-2020-01-01T00-00-0123abcd.jsonl".into(), "x"),
            (format!("session-{now}-ffffffff.jsonl"), "other"),
        ] {
            std::fs::write(chats.join(name), text).unwrap();
        }
        make_loadable(dir.path(), "0123abcd-0000").unwrap();
        make_loadable(dir.path(), "0123abcd-0000").unwrap();
        let mut left: Vec<String> = std::fs::read_dir(&chats)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(
            left[0].ends_with("-0123abcd.jsonl") && !left[0].contains(&now),
            "{left:?}"
        );
        assert_eq!(
            std::fs::read_to_string(chats.join(&left[0])).unwrap(),
            "history"
        );
    }

    #[test]
    fn allowed_tools_are_spelled_its_way() {
        assert_eq!(
            ["Bash(git *)", "Read", "mcp__echo__say", "Bash"].map(allowed),
            [
                "run_shell_command(git)",
                "read_file",
                "mcp_echo_say",
                "run_shell_command"
            ]
        );
    }
}
