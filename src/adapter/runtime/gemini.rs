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

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    Action, CallPurpose, CallReply, Capabilities, DENIED, FilePattern, LaunchContext, LaunchPlan,
    Mcp, PermissionDecision, Permissions, Phase, Runtime, Translator, Transport, model_of_platform,
    newest_first, parsed, permission_options, plan, request_id, sent_at, text, timed_id,
    write_private_file,
};
use crate::adapter::inbox::Input;
use crate::adapter::runtime::error_code;
use crate::adapter::runtime::in_flight::InFlight;
use crate::adapter::runtime::items::{ItemKind, OpenItems};
use crate::event::{
    ChangeKind, ErrorCode, ErrorEvent, FileChange, PermissionRequest, PermissionResolved, Retry,
    ToolResult, ToolUse, TurnEnd, TurnEndReason, Unparsed, Usage, Warning,
};

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

/// The history of a session that is loaded is told when nothing more of it has come for so long.
const HISTORY_TIME: Duration = Duration::from_millis(200);
/// The longest texts of which the difference is looked for, and how long.
const MAX_DIFF: usize = 512 << 10;
const DIFF_TIME: Duration = Duration::from_millis(100);
/// How long after the end of a tool the step is counted. Another tool of the same step begins
/// sooner than that, and the model's next answer takes longer. The step must be counted before that
/// answer can start a command beyond the limit.
const STEP_TIME: Duration = Duration::from_millis(4);
/// How often, and how many times, the session file is read for what a tool said.
const AGAIN: Duration = Duration::from_millis(25);
const TRIES: u32 = 80;

fn launch(setting: &LaunchContext) -> io::Result<LaunchPlan> {
    let text = |s: &str| s.to_owned();
    let home = setting.home.join("gemini");
    write_private_file(
        &home.join(".gemini/settings.json"),
        &configuration(setting).to_string(),
    )?;
    if let Some(id) = &setting.resume {
        make_loadable(&chats(setting), id)?;
    }
    let (_, model) = setting.model.split_once('/').unwrap_or_default();
    // Trusted, a project could allow its own commands, and lead requests elsewhere: where tools
    // are asked for it is not.
    let (mode, trusted) = if setting.permissions == Permissions::Allow {
        ("yolo", "true")
    } else {
        ("default", "false")
    };
    let env = [
        ("GEMINI_CLI_HOME", home.display().to_string()),
        (
            "GOOGLE_GEMINI_BASE_URL",
            format!("{}/google", setting.sidecar),
        ),
        // Where a project chooses another way to log in, it leads to the sidecar too.
        (
            "GOOGLE_VERTEX_BASE_URL",
            format!("{}/google", setting.sidecar),
        ),
        (
            "CODE_ASSIST_ENDPOINT",
            format!("{}/google", setting.sidecar),
        ),
        ("GEMINI_API_KEY", setting.key.clone()),
        ("GEMINI_CLI_TRUST_WORKSPACE", text(trusted)),
        // What it writes to stderr is held back until it ends, but for this: its retries.
        ("GEMINI_DEBUG_LOG_FILE", text("/dev/stderr")),
        // Else it starts itself twice.
        ("GEMINI_CLI_NO_RELAUNCH", text("true")),
        ("TERM", text("xterm-256color")),
        ("COLORTERM", text("truecolor")),
    ];
    Ok(LaunchPlan {
        args: ["--acp", "--approval-mode", mode, "--model", model]
            .map(text)
            .to_vec(),
        env: env
            .into_iter()
            .map(|(name, value)| (text(name), value))
            .collect(),
        wiring: Transport::Lines {
            version_flag: false,
        },
        warnings: untrusting(setting),
        session: None,
    })
}

/// What it leaves out where it does not trust the project.
fn untrusting(setting: &LaunchContext) -> Vec<String> {
    let mut left_out = Vec::new();
    if setting.permissions != Permissions::Allow {
        left_out.push(
            "with permissions, Gemini CLI reads neither `GEMINI.md` nor `.gemini/` of the project: what stands there could run without asking".to_owned(),
        );
        if !setting.mcp.is_empty() {
            left_out.push(
                "`project.mcpServers`: with permissions, Gemini CLI connects none".to_owned(),
            );
        }
    }
    left_out
}

fn configuration(setting: &LaunchContext) -> Value {
    // Without a choice of how to log in it does not start; and nothing is sent elsewhere.
    let mut excluded = vec!["ask_user"];
    if !setting.subagents {
        excluded.push("invoke_agent");
    }
    if setting.permissions == Permissions::Deny && !setting.allows_commands() {
        // What it takes for harmless it would run without asking.
        excluded.push("run_shell_command");
    }
    let mut settings = json!({
        "security": { "auth": { "selectedType": "gemini-api-key" } },
        "privacy": { "usageStatisticsEnabled": false },
        "telemetry": { "enabled": false },
        // Ten attempts would take four minutes to say that a provider is gone.
        "general": { "enableAutoUpdate": false, "enableAutoUpdateNotification": false, "maxAttempts": 3 },
        "experimental": { "enableAgents": setting.subagents },
        "tools": { "exclude": excluded },
    });
    let allowed: Vec<String> = setting.allowed_tools.iter().map(|t| allowed(t)).collect();
    if !allowed.is_empty() {
        settings["tools"]["allowed"] = json!(allowed);
    }
    settings
}

/// A tool that needs no permission, from Claude Code's spelling: `Bash(git *)` is
/// `run_shell_command(git)`.
fn allowed(tool: &str) -> String {
    let (name, pattern) = tool
        .split_once('(')
        .map_or((tool, ""), |(n, p)| (n, p.trim_end_matches(')')));
    let native = match name {
        "Bash" => "run_shell_command",
        "Read" => "read_file",
        "Write" => "write_file",
        "Edit" | "MultiEdit" => "replace",
        "Glob" => "glob",
        "Grep" => "search_file_content",
        "WebFetch" => "web_fetch",
        "WebSearch" => "google_web_search",
        other => return other.replacen("mcp__", "mcp_", 1).replacen("__", "_", 1),
    };
    match pattern.trim_end_matches(['*', ':', ' ']) {
        "" => native.to_owned(),
        prefix => format!("{native}({prefix})"),
    }
}

fn chats(setting: &LaunchContext) -> PathBuf {
    setting.home.join("gemini/.gemini/tmp")
}

/// The file of a session is called by the minute of its creation. Loaded in that minute it
/// would be taken for a new one, and overwritten: so it is called by an earlier one. Each load
/// leaves another file of the session behind, with nothing in it; these go.
fn make_loadable(tmp: &Path, id: &str) -> io::Result<()> {
    let Some(short) = id.get(..8) else {
        return Ok(());
    };
    let ending = format!("-{short}.jsonl");
    for project in std::fs::read_dir(tmp).into_iter().flatten().flatten() {
        let files = std::fs::read_dir(project.path().join("chats"))
            .into_iter()
            .flatten()
            .flatten();
        let mut files: Vec<_> = files
            .filter(|f| f.file_name().to_string_lossy().ends_with(&ending))
            .map(|f| f.path())
            .collect();
        files.sort_by_key(|path| std::fs::metadata(path).map_or(0, |m| m.len()));
        let Some(history) = files.pop() else { continue };
        for empty in files {
            std::fs::remove_file(empty)?;
        }
        let earlier = (jiff::Timestamp::now() - jiff::SignedDuration::from_mins(2))
            .strftime("session-%Y-%m-%dT%H-%M")
            .to_string();
        let named = history
            .file_name()
            .is_some_and(|name| *name.to_string_lossy() < *earlier);
        if !named {
            std::fs::rename(&history, history.with_file_name(earlier + &ending))?;
        }
    }
    Ok(())
}

/// What an answer is to.
#[derive(Debug)]
enum GeminiRequest {
    Initialize,
    New,
    Load,
    Prompt,
}

#[derive(Debug)]
struct GeminiTool {
    /// It is a command.
    execute: bool,
    /// It is over, and what it said is looked for: how often still, and whether it failed.
    wanted: Option<(u32, bool)>,
}

#[derive(Debug, Default)]
struct GeminiTurn {
    /// Of its items: these begin so.
    name: String,
    items: u64,
    kind: Option<ItemKind>,
    prompt: String,
    final_text: String,
    aborted: bool,
    failed: bool,
    /// Tools have answered, and the model was not asked again yet.
    tools_over: bool,
    usage: Usage,
    /// It is over but for its tokens, which are looked for.
    ending: Option<TurnEndReason>,
    counting: bool,
}

/// A permission that waits.
#[derive(Debug)]
struct Asking {
    /// The request's number in the protocol.
    number: Value,
    options: Value,
    tool: String,
}

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

    fn ask(&mut self, asked: GeminiRequest, method: &str, params: Value, out: &mut Vec<Action>) {
        self.requests += 1;
        self.asked.insert(self.requests, asked);
        out.push(Action::Send(
            json!({ "jsonrpc": "2.0", "id": self.requests, "method": method, "params": params }),
        ));
    }

    fn open_session(&mut self, out: &mut Vec<Action>) {
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

    fn answered(&mut self, asked: GeminiRequest, m: &Value, out: &mut Vec<Action>) {
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

    fn prompt_answered(&mut self, result: &Value, error: Option<&Value>, out: &mut Vec<Action>) {
        self.in_flight.acknowledge(|_, _| true, out);
        let Some(turn) = &mut self.turn else { return };
        let tokens = &result["_meta"]["quota"]["token_count"];
        turn.usage = Usage {
            input: tokens["input_tokens"].as_u64(),
            output: tokens["output_tokens"].as_u64(),
            ..Usage::default()
        };
        let aborted = turn.aborted || result["stopReason"] == "cancelled";
        if let Some(error) = error.filter(|_| !aborted) {
            turn.failed = true;
            out.push(failure(error["code"].as_i64(), &error_text(error), error.clone()).into());
        }
        let reason = match text(result, "/stopReason") {
            _ if aborted => TurnEndReason::Interrupted,
            _ if turn.failed => TurnEndReason::Error,
            "max_tokens" => TurnEndReason::MaxTokens,
            "max_turn_requests" => TurnEndReason::MaxSteps,
            "refusal" => TurnEndReason::Refusal,
            _ => TurnEndReason::EndTurn,
        };
        self.end_turn(reason, out);
    }

    fn looks_for_output(&self) -> bool {
        self.tools.values().any(|tool| tool.wanted.is_some())
    }

    /// Goes on with what was held back.
    fn go_on(&mut self, out: &mut Vec<Action>) {
        while !self.looks_for_output()
            && let Some(message) = self.held.pop_front()
        {
            self.hear(message, out);
        }
    }

    fn hear(&mut self, message: Value, out: &mut Vec<Action>) {
        if !self.message(&message, out) {
            out.push(Unparsed { native: message }.into());
        }
    }

    fn message(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
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

    fn update(&mut self, u: &Value, out: &mut Vec<Action>) -> bool {
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

    fn begin_turn(&mut self, name: &str, out: &mut Vec<Action>) {
        if self.turn.is_some() {
            return;
        }
        self.turns += 1;
        let name = if name.is_empty() {
            format!("turn-{}", self.turns)
        } else {
            name.to_owned()
        };
        self.turn = Some(GeminiTurn {
            name,
            ..GeminiTurn::default()
        });
        self.in_flight.begin_turn(out);
    }

    fn write(&mut self, kind: ItemKind, piece: &str, out: &mut Vec<Action>) {
        self.step(out);
        let Some(turn) = &mut self.turn else { return };
        if turn.kind != Some(kind) {
            self.items.finish_all(out);
            turn.kind = Some(kind);
            turn.items += 1;
            if kind == ItemKind::Text {
                turn.final_text.clear();
            }
        }
        if kind == ItemKind::Text {
            turn.final_text.push_str(piece);
        }
        self.items.write(
            &format!("{}:{}", turn.name, turn.items),
            kind,
            piece,
            None,
            out,
        );
    }

    /// The model is asked what to do with what its tools said.
    fn step(&mut self, out: &mut Vec<Action>) {
        if self
            .turn
            .as_mut()
            .is_some_and(|turn| std::mem::take(&mut turn.tools_over))
        {
            out.push(Action::Step);
        }
    }

    /// What was written is written: something else begins.
    fn written(&mut self, out: &mut Vec<Action>) {
        self.items.finish_all(out);
        if let Some(turn) = &mut self.turn {
            turn.kind = None;
        }
    }

    fn tool_use(&mut self, u: &Value, out: &mut Vec<Action>) {
        let id = text(u, "/toolCallId").to_owned();
        // `<tool>__<tool>_<milliseconds>_<index>`
        let native_name = id
            .split_once("__")
            .map_or(id.as_str(), |(name, _)| name)
            .to_owned();
        let title = text(u, "/title");
        let said = text(u, "/content/0/content/text");
        let path = u["locations"][0]["path"].as_str();
        let input = match (
            text(u, "/kind"),
            path,
            serde_json::from_str::<Map<String, Value>>(said),
        ) {
            ("execute", _, _) => json!({ "command": title }),
            (_, _, Ok(arguments)) => Value::Object(arguments),
            (_, Some(path), _) => json!({ "file_path": path, "title": title }),
            _ => json!({ "title": title }),
        };
        self.begin_tool(id, native_name, u["kind"] == "execute", input, out);
    }

    fn begin_tool(
        &mut self,
        id: String,
        native_name: String,
        execute: bool,
        input: Value,
        out: &mut Vec<Action>,
    ) {
        if id.is_empty() || !self.used.insert(id.clone()) {
            return;
        }
        self.begin_turn("", out);
        self.written(out);
        if id
            .rsplit('_')
            .next()
            .is_some_and(|n| n != "0" && n.len() < 4)
            && let Some(turn) = &mut self.turn
        {
            // The next of several that the model called at once.
            turn.tools_over = false;
        }
        self.step(out);
        self.tools.insert(
            id.clone(),
            GeminiTool {
                execute,
                wanted: None,
            },
        );
        out.push(
            ToolUse {
                tool_use_id: id,
                name: self.canonical(&native_name),
                native_name,
                input,
                parent_tool_use_id: None,
            }
            .into(),
        );
    }

    fn tool_over(&mut self, u: &Value, out: &mut Vec<Action>) {
        let id = text(u, "/toolCallId").to_owned();
        let Some(tool) = self.tools.get_mut(&id) else {
            return;
        };
        let failed = u["status"] == "failed";
        let content = u["content"].as_array().into_iter().flatten();
        let said: Vec<&str> = content
            .clone()
            .filter_map(|c| c["content"]["text"].as_str())
            .collect();
        let changes: Vec<FileChange> = content
            .filter(|c| c["type"] == "diff")
            .map(|c| file_change(&id, c))
            .collect();
        if said.is_empty() && changes.is_empty() && tool.wanted.is_none() {
            // It does not say what came of it; its session file does.
            tool.wanted = Some((TRIES, failed));
            self.find(CallPurpose::Output(id), out);
            return;
        }
        let cancelled = self.turn.as_ref().is_some_and(|t| t.aborted)
            || said.iter().any(|s| s.starts_with("Command cancelled"));
        let output = if said.is_empty() {
            changes
                .iter()
                .map(|c| format!("changed {}\n", c.path))
                .collect()
        } else {
            said.join("\n")
        };
        self.tool_result(&id, output, failed || cancelled, None, out);
        out.extend(changes.into_iter().filter(|_| !failed).map(Action::from));
    }

    fn tool_result(
        &mut self,
        id: &str,
        output: String,
        is_error: bool,
        exit_code: Option<i64>,
        out: &mut Vec<Action>,
    ) {
        if self.tools.remove(id).is_none() {
            return;
        }
        let is_error = is_error || exit_code.is_some_and(|c| c != 0);
        out.push(
            ToolResult {
                tool_use_id: id.to_owned(),
                output,
                is_error,
                exit_code,
                duration_ms: None,
                parent_tool_use_id: None,
            }
            .into(),
        );
    }

    /// Looks into the session's own file.
    fn find(&self, tag: CallPurpose, out: &mut Vec<Action>) {
        let short = self
            .session
            .as_deref()
            .and_then(|id| id.get(..8))
            .unwrap_or("none");
        out.push(Action::ReadFile {
            tag,
            file: FilePattern {
                dir: self.chats.clone(),
                suffix: format!("-{short}.jsonl"),
            },
        });
    }

    /// The session file, read for what a tool said.
    fn found_output(&mut self, id: &str, file: &[u8], out: &mut Vec<Action>) {
        let Some(GeminiTool {
            wanted: Some((tries, failed)),
            execute,
            ..
        }) = self.tools.get_mut(id)
        else {
            return;
        };
        let call = newest_first(file, id.as_bytes()).find_map(|mut entry| {
            let calls = entry["toolCalls"].as_array_mut()?;
            calls
                .iter_mut()
                .find(|call| call["id"] == id)
                .map(Value::take)
        });
        let call = call.unwrap_or_default();
        let response =
            Some(&call["result"][0]["functionResponse"]["response"]).filter(|r| !r.is_null());
        let (failed, execute) = (
            *failed || call["status"] == "error" || call["status"] == "cancelled",
            *execute,
        );
        match response {
            Some(response) => {
                let said = response["output"]
                    .as_str()
                    .or(response["error"].as_str())
                    .map_or_else(|| response.to_string(), str::to_owned);
                let failed = failed || !response["error"].is_null();
                let (output, exit_code) = if execute {
                    of_command(&said, failed)
                } else {
                    (said, None)
                };
                self.tool_result(id, output, failed, exit_code, out);
            }
            None if *tries > 0 => {
                *tries -= 1;
                let counts_step = self.turn.as_ref().is_some_and(|turn| turn.tools_over);
                out.push(Action::Wake(if counts_step { STEP_TIME } else { AGAIN }));
            }
            None => {
                out.push(Warning { message: "Gemini CLI did not tell what a tool said, nor write it into its session file".into() }.into());
                self.tool_result(id, String::new(), failed, None, out);
            }
        }
    }

    fn end_turn(&mut self, reason: TurnEndReason, out: &mut Vec<Action>) {
        let cut = matches!(reason, TurnEndReason::Interrupted | TurnEndReason::Error);
        if cut {
            self.items.cut(out)
        } else {
            self.items.finish_all(out)
        }
        let permissions = std::mem::take(&mut self.permissions);
        out.extend(permissions.into_keys().map(|request_id| {
            PermissionResolved {
                request_id,
                decision: "cancelled".into(),
                by: "runtime".into(),
            }
            .into()
        }));
        // What was stopped says no more.
        self.tools.clear();
        if let Some(turn) = &mut self.turn {
            turn.ending = Some(reason);
            turn.counting = !turn.prompt.is_empty();
            if turn.counting {
                self.find(CallPurpose::Output(String::new()), out);
            }
        }
        self.end_if_known(out);
    }

    fn end_if_known(&mut self, out: &mut Vec<Action>) {
        if self
            .turn
            .as_ref()
            .is_none_or(|t| t.ending.is_none() || t.counting)
        {
            return;
        }
        let Some(GeminiTurn {
            ending: Some(reason),
            usage,
            final_text,
            ..
        }) = self.turn.take()
        else {
            return;
        };
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
        self.in_flight.end_turn(out);
    }

    /// What the session file says of the turn's tokens: which were cached, and what reasoning took.
    fn count(&mut self, file: &[u8], out: &mut Vec<Action>) {
        if let Some(turn) = &mut self.turn {
            turn.counting = false;
            let mut sums = Usage::default();
            for entry in answers_to(&turn.prompt, file) {
                let n = |key: &str| entry["tokens"][key].as_u64();
                let input = n("input").map(|all| all.saturating_sub(n("cached").unwrap_or(0)));
                // What it calls output is without reasoning.
                let output = n("output").map(|output| output + n("thoughts").unwrap_or(0));
                sums.add(&Usage {
                    input,
                    cache_read: n("cached"),
                    cache_write: None,
                    output,
                    reasoning: n("thoughts"),
                    cost_usd: None,
                });
            }
            if sums != Usage::default() {
                // The protocol's own sum has subagents in it.
                let cached = sums.cache_read.unwrap_or(0);
                let input = turn
                    .usage
                    .input
                    .map(|all| all.saturating_sub(cached))
                    .max(sums.input);
                turn.usage = Usage {
                    input,
                    output: turn.usage.output.max(sums.output),
                    ..sums
                };
            }
        }
        self.end_if_known(out);
    }

    fn permission_asked(&mut self, number: &Value, p: &Value, out: &mut Vec<Action>) {
        let call = &p["toolCall"];
        self.begin_turn("", out);
        self.tool_use(call, out);
        let id = text(call, "/toolCallId");
        let request_id = request_id(id, number);
        self.permissions.insert(
            request_id.clone(),
            Asking {
                number: number.clone(),
                options: p["options"].clone(),
                tool: id.to_owned(),
            },
        );
        let native = id.split_once("__").map_or(id, |(name, _)| name);
        let input = if call["kind"] == "execute" {
            json!({ "command": call["title"] })
        } else {
            json!({ "title": call["title"], "content": call["content"] })
        };
        let has = |kind: &str| {
            p["options"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|o| o["kind"] == kind)
        };
        let options = permission_options()
            .into_iter()
            .filter(|name| name != "allow_always" || has(name))
            .collect();
        let name = self.canonical(native);
        out.push(
            PermissionRequest {
                request_id,
                tool_use_id: Some(id.to_owned()),
                name,
                input,
                options,
                parent_tool_use_id: None,
            }
            .into(),
        );
    }

    /// A tool's name as every runtime has it.
    fn canonical(&self, native: &str) -> String {
        let name = match native {
            "run_shell_command" => "bash",
            "read_file" | "read_many_files" => "read",
            "write_file" => "write",
            "replace" => "edit",
            "search_file_content" | "grep_search" => "grep",
            "google_web_search" => "web_search",
            "invoke_agent" => "task",
            _ => {
                let of = |(server, _): &(String, Mcp)| {
                    Some((
                        server.clone(),
                        native.strip_prefix(&format!("mcp_{server}_"))?.to_owned(),
                    ))
                };
                return self.mcp.iter().find_map(of).map_or_else(
                    || native.to_owned(),
                    |(server, tool)| format!("mcp__{server}__{tool}"),
                );
            }
        };
        name.to_owned()
    }

    /// A line of `-o stream-json`.
    fn one_shot(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
        match (text(m, "/type"), text(m, "/role")) {
            ("init", _) => self.session = m["session_id"].as_str().map(str::to_owned),
            ("message", "user") => {
                let id = format!(
                    "{}-{}",
                    self.session.as_deref().unwrap_or_default(),
                    text(m, "/timestamp")
                );
                self.in_flight.foreign(&id, text(m, "/content"), out);
                self.begin_turn("", out);
            }
            ("message", _) => {
                self.begin_turn("", out);
                self.write(ItemKind::Text, text(m, "/content"), out);
            }
            ("tool_use", _) => {
                let name = text(m, "/tool_name").to_owned();
                self.begin_tool(
                    text(m, "/tool_id").to_owned(),
                    name,
                    false,
                    m["parameters"].clone(),
                    out,
                );
            }
            ("tool_result", _) => {
                let output = m["output"]
                    .as_str()
                    .or(m["error"]["message"].as_str())
                    .unwrap_or_default()
                    .to_owned();
                self.tool_result(
                    text(m, "/tool_id"),
                    output,
                    m["status"] == "error",
                    None,
                    out,
                );
            }
            ("error", _) => out.push(
                Warning {
                    message: text(m, "/message").to_owned(),
                }
                .into(),
            ),
            ("result", _) => {
                self.begin_turn("", out);
                let failed = m["status"] == "error";
                if failed {
                    out.push(failure(None, text(m, "/error/message"), m["error"].clone()).into());
                }
                if let Some(turn) = &mut self.turn {
                    let stats = &m["stats"];
                    turn.usage = Usage {
                        input: stats["input"].as_u64().or(stats["input_tokens"].as_u64()),
                        cache_read: stats["cached"].as_u64(),
                        output: stats["output_tokens"].as_u64(),
                        ..Usage::default()
                    };
                }
                self.end_turn(
                    if failed {
                        TurnEndReason::Error
                    } else {
                        TurnEndReason::EndTurn
                    },
                    out,
                );
            }
            _ => return false,
        }
        true
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

/// Is this entry of a session file what a user said, not what a tool did?
fn is_prompt(entry: &Value) -> bool {
    entry["type"] == "user" && entry["content"][0]["text"].is_string()
}

/// The model's answers to the last prompt with this text that have token counts. An answer that the
/// file holds several times is returned once, as it was written first.
fn answers_to(prompt: &str, file: &[u8]) -> Vec<Value> {
    let (mut answers, mut found) = (Vec::new(), false);
    for entry in newest_first(file, b"") {
        if asks(&entry, prompt) {
            found = true;
            break;
        }
        if is_prompt(&entry) {
            // Another turn's.
            answers.clear();
        } else if entry["type"] == "gemini" && !entry["tokens"].is_null() {
            answers.push(entry);
        }
    }
    let mut seen = HashSet::new();
    answers.reverse();
    answers.retain(|entry| seen.insert(text(entry, "/id").to_owned()));
    if found { answers } else { Vec::new() }
}

/// Is it this prompt?
fn asks(entry: &Value, prompt: &str) -> bool {
    entry["type"] == "user" && entry["content"][0]["text"] == prompt
}

/// The words of an error: its message, or what is behind `Internal error`.
fn error_text(error: &Value) -> String {
    let details = text(error, "/data/details");
    if details.is_empty() {
        text(error, "/message").to_owned()
    } else {
        details.to_owned()
    }
}

/// An error of the provider. `code` is its status, but 500 also for what has none.
fn failure(code: Option<i64>, message: &str, native: Value) -> ErrorEvent {
    let is_body = message.trim_start().starts_with('{');
    let status = code
        .and_then(|c| u16::try_from(c).ok())
        .filter(|s| (400..600).contains(s) && (*s != 500 || is_body));
    let mut error = error_code::error(status, message);
    if error.code == ErrorCode::Internal && code == Some(500) {
        let gone = message.contains("does not exist") || message.contains("not found");
        error = ErrorEvent::new(
            if gone {
                ErrorCode::ModelUnavailable
            } else {
                ErrorCode::ProviderDown
            },
            error.message,
        );
    }
    error.native = Some(native);
    error
}

/// What a command wrote, and its exit code, out of what the model is told of it.
fn of_command(said: &str, failed: bool) -> (String, Option<i64>) {
    let said = said
        .strip_prefix("<untrusted_context>\n")
        .and_then(|s| s.strip_suffix("\n</untrusted_context>"))
        .unwrap_or(said);
    let Some(output) = said.strip_prefix("Output: ") else {
        return (said.to_owned(), None);
    };
    // What follows the output, each on a line of its own, in this order.
    let mut lines: Vec<&str> = output.split('\n').collect();
    let (mut exit_code, mut killed) = (None, false);
    while let Some(last) = lines.last() {
        match last.split_once(": ") {
            Some(("Exit Code", code)) => exit_code = code.trim().parse().ok(),
            Some(("Signal", _)) => killed = true,
            Some(("Process Group PGID" | "Background PIDs" | "Error", _)) => {}
            _ => break,
        }
        lines.pop();
    }
    let output = lines.join("\n");
    let output = if output == "(empty)" {
        String::new()
    } else {
        output
    };
    (output, exit_code.or((!failed && !killed).then_some(0)))
}

fn file_change(id: &str, content: &Value) -> FileChange {
    let kind = match text(content, "/_meta/kind") {
        "add" => ChangeKind::Add,
        "delete" => ChangeKind::Delete,
        _ => ChangeKind::Modify,
    };
    let (before, after) = (text(content, "/oldText"), text(content, "/newText"));
    // The agent chooses the texts: neither they nor their difference may cost much.
    let short = before.len() + after.len() <= MAX_DIFF;
    let diff = short.then(|| {
        similar::TextDiff::configure()
            .timeout(DIFF_TIME)
            .diff_lines(before, after)
            .unified_diff()
            .context_radius(3)
            .to_string()
    });
    let diff = diff.filter(|d| !d.is_empty());
    FileChange {
        path: text(content, "/path").to_owned(),
        kind,
        diff,
        tool_use_id: Some(id.to_owned()),
        parent_tool_use_id: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
