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

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    Action, COMPACTED, CallPurpose, CallReply, Capabilities, DENIED, FilePattern, LaunchContext,
    LaunchPlan, Mcp, PermissionDecision, Permissions, Phase, Runtime, Translator, Transport, hex,
    model_of_platform, newest_first, parsed, permission_options, plan, text, text_of,
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

/// Variables that would lead it past the sidecar.
const DETOURS: [&str; 7] = [
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_USE_ANTHROPIC_AWS",
    "CLAUDE_CODE_USE_MANTLE",
    "CLAUDE_CODE_USE_GATEWAY",
    "ANTHROPIC_UNIX_SOCKET",
];

fn launch(setting: &LaunchContext) -> io::Result<LaunchPlan> {
    let text = |s: &str| s.to_owned();
    let (_, model) = setting.model.split_once('/').unwrap_or_default();
    let provider = [
        (
            "ANTHROPIC_BASE_URL",
            format!("{}/anthropic", setting.sidecar),
        ),
        ("ANTHROPIC_AUTH_TOKEN", setting.key.clone()),
    ];
    // A project's settings may set variables too; these come after them.
    let mut settled: Map<String, Value> = provider
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone().into()))
        .collect();
    settled.extend(DETOURS.map(|name| (name.to_owned(), "".into())));
    let mut settings = json!({ "skipWebFetchPreflight": true, "env": settled });
    if asks_for_each_command(setting) {
        // By itself it runs what it takes for read-only.
        settings["permissions"] = json!({ "ask": ["Bash"] });
    }
    let home = setting.home.join("claude");
    let [settings_file, mcp_file] =
        ["outrigger-settings.json", "outrigger-mcp.json"].map(|name| home.join(name));
    write_private_file(&settings_file, &settings.to_string())?;
    write_private_file(&mcp_file, &mcp(setting).to_string())?;
    let env = [
        ("CLAUDE_CONFIG_DIR", home.display().to_string()),
        // Nothing is looked up, reported or updated outside.
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", text("1")),
        ("DISABLE_AUTOUPDATER", text("1")),
        // Ten would take three minutes to say that a provider is gone.
        ("CLAUDE_CODE_MAX_RETRIES", text("3")),
        ("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", text("1")),
        // The container is the sandbox; without this it refuses to skip permissions as root.
        ("IS_SANDBOX", text("1")),
        // Subagents and helpers would go to models that nobody granted.
        ("ANTHROPIC_DEFAULT_HAIKU_MODEL", text(model)),
        ("CLAUDE_CODE_SUBAGENT_MODEL", text(model)),
    ];
    let (session, mut warnings) = (session(setting), Vec::new());
    let mut args: Vec<String> = [
        "-p",
        "--input-format",
        "stream-json",
        "--output-format",
        "stream-json",
        "--verbose",
        "--include-partial-messages",
    ]
    .map(text)
    .to_vec();
    args.extend(["--replay-user-messages", "--model", model, "--settings"].map(text));
    args.push(settings_file.display().to_string());
    args.extend([
        text(if session.1 {
            "--resume"
        } else {
            "--session-id"
        }),
        session.0.clone(),
    ]);
    args.extend([
        text("--strict-mcp-config"),
        text("--mcp-config"),
        mcp_file.display().to_string(),
    ]);
    if setting.permissions == Permissions::Allow {
        args.push(text("--dangerously-skip-permissions"));
    } else {
        args.extend(
            [
                "--permission-mode",
                "default",
                "--permission-prompt-tool",
                "stdio",
            ]
            .map(text),
        );
        // Hooks and key helpers of a project run without being asked for: its settings are not
        // read where tools are, and with them goes all that it says.
        args.extend([text("--setting-sources"), String::new()]);
        warnings.push(
            "with permissions, Claude Code reads neither `CLAUDE.md` nor `.claude/` of the project: what stands there could run without asking".to_owned(),
        );
        if !setting.allowed_tools.is_empty() {
            args.extend([text("--allowedTools"), setting.allowed_tools.join(",")]);
        }
    }
    // Its questions cannot be answered over this protocol.
    let denied = if setting.subagents {
        "AskUserQuestion"
    } else {
        "AskUserQuestion,Task,Agent"
    };
    args.extend([text("--disallowedTools"), text(denied)]);
    Ok(LaunchPlan {
        args,
        env: env
            .into_iter()
            .chain(provider)
            .map(|(name, value)| (text(name), value))
            .collect(),
        wiring: Transport::Lines { version_flag: true },
        warnings,
        session: Some(session),
    })
}

/// Its rules to ask stand above those to allow: with commands that may run, they cannot be used.
fn asks_for_each_command(setting: &LaunchContext) -> bool {
    setting.permissions != Permissions::Allow && !setting.allows_commands()
}

/// The session's id, and whether it is there to be resumed: it is not before its first turn.
fn session(setting: &LaunchContext) -> (String, bool) {
    match &setting.resume {
        Some(id) => (
            id.clone(),
            has_transcript(&setting.home.join("claude/projects"), id),
        ),
        None => (uuid(&setting.random), false),
    }
}

fn has_transcript(projects: &Path, id: &str) -> bool {
    let name = format!("{id}.jsonl");
    std::fs::read_dir(projects)
        .into_iter()
        .flatten()
        .flatten()
        .any(|project| project.path().join(&name).is_file())
}

/// A version 4 UUID of the first hexadecimal digits.
fn uuid(hex: &str) -> String {
    format!(
        "{}-{}-4{}-8{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..32]
    )
}

fn mcp(setting: &LaunchContext) -> Value {
    let server = |server: &Mcp| match server {
        Mcp::Local { command, env } => {
            json!({ "type": "stdio", "command": command.first(), "args": command.get(1..), "env": env })
        }
        Mcp::Remote { url, headers } => json!({ "type": "http", "url": url, "headers": headers }),
    };
    let servers: Map<String, Value> = setting
        .mcp
        .iter()
        .map(|(name, s)| (name.clone(), server(s)))
        .collect();
    json!({ "mcpServers": servers })
}

#[derive(Debug)]
struct ClaudeTool {
    name: String,
    input: Value,
    parent: Option<String>,
}

#[derive(Debug, Default)]
struct ClaudeTurn {
    final_text: String,
    aborted: bool,
    refused: bool,
    /// The CLI's word for what failed, and its message.
    failed: Option<(String, String)>,
    /// Tools have answered, and the model was not asked again yet.
    tools_said: bool,
    stop_reason: Option<String>,
}

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

    fn message(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
        let parent = m["parent_tool_use_id"].as_str();
        match text(m, "/type") {
            "system" => return self.system(m, out),
            "stream_event" => self.stream(&m["event"], out),
            "assistant" => self.assistant(m, parent, out),
            "user" => return self.user(m, parent, out),
            "result" => self.result(m, out),
            "control_response" => self.control_response(&m["response"], out),
            "control_request" if m["request"]["subtype"] == "can_use_tool" => {
                self.permission_asked(m, out)
            }
            "control_cancel_request" => {
                let request_id = text(m, "/request_id").to_owned();
                if self.asked.remove(&request_id).is_some() {
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
            // An input's way through the CLI's own queue: its echo and its turn say as much.
            "keep_alive" | "command_lifecycle" => {}
            _ => return false,
        }
        true
    }

    fn system(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
        match text(m, "/subtype") {
            "init" => self.begin_turn(out),
            "status" if m["status"] == "requesting" => {
                if self
                    .turn
                    .as_mut()
                    .is_some_and(|t| std::mem::take(&mut t.tools_said))
                {
                    out.push(Action::Step);
                }
            }
            "status" if m["compact_result"] == "failed" => {
                out.push(
                    Warning {
                        message: "the conversation could not be compacted".into(),
                    }
                    .into(),
                );
            }
            "compact_boundary" => out.push(
                Warning {
                    message: COMPACTED.into(),
                }
                .into(),
            ),
            "api_retry" => {
                self.items.cut(out);
                let status = m["error_status"].as_u64().map(|s| s as u16);
                let word = text(m, "/error");
                let message = status.map_or_else(
                    || format!("the provider could not be reached ({word})"),
                    |status| format!("the provider answered {status} ({word})"),
                );
                out.push(
                    Retry {
                        attempt: m["attempt"].as_u64().unwrap_or(1),
                        code: named(word, status, &message),
                        retry_after_ms: m["retry_delay_ms"]
                            .as_f64()
                            .map(|ms| ms.max(0.0).round() as u64),
                        message,
                        parent_tool_use_id: None,
                    }
                    .into(),
                );
            }
            "model_fallback" => out.push(
                Warning {
                    message: text(m, "/content").to_owned(),
                }
                .into(),
            ),
            "model_refusal_no_fallback" => {
                if let Some(turn) = &mut self.turn {
                    turn.refused = true;
                }
            }
            "status"
            | "session_state_changed"
            | "thinking_tokens"
            | "background_tasks_changed"
            | "task_started"
            | "task_progress"
            | "task_updated"
            | "task_notification"
            | "hook_started"
            | "hook_response" => {}
            _ => return false,
        }
        true
    }

    /// A turn begins; what was given before it is what it answers.
    fn begin_turn(&mut self, out: &mut Vec<Action>) {
        if self.turn.is_some() {
            return;
        }
        self.turn = Some(ClaudeTurn::default());
        self.in_flight.begin_turn(out);
    }

    fn stream(&mut self, event: &Value, out: &mut Vec<Action>) {
        match text(event, "/type") {
            "message_start" => {
                self.items.cut(out);
                self.streaming = Some((text(event, "/message/id").to_owned(), 0));
            }
            "content_block_start" => {
                if let Some((_, block)) = &mut self.streaming {
                    *block = event["index"].as_u64().unwrap_or(0);
                }
            }
            "content_block_delta" => {
                let Some((message, block)) = &self.streaming else {
                    return;
                };
                let (kind, piece) = match text(event, "/delta/type") {
                    "text_delta" => (ItemKind::Text, text(event, "/delta/text")),
                    "thinking_delta" => (ItemKind::Reasoning, text(event, "/delta/thinking")),
                    _ => return,
                };
                self.items
                    .write(&item(message, *block), kind, piece, None, out);
            }
            "message_delta" => {
                if let (Some(turn), Some(reason)) =
                    (&mut self.turn, event["delta"]["stop_reason"].as_str())
                {
                    turn.stop_reason = Some(reason.to_owned());
                }
            }
            _ => {}
        }
    }

    /// One message for each block that is finished.
    fn assistant(&mut self, m: &Value, parent: Option<&str>, out: &mut Vec<Action>) {
        let message = &m["message"];
        if let Some(error) = m["error"].as_str() {
            if let Some(turn) = &mut self.turn {
                let said = text(message, "/content/0/text").to_owned();
                turn.failed = Some((error.to_owned(), said));
            }
            return;
        }
        let id = text(message, "/id");
        let mut name = match &self.streaming {
            Some((streaming, block)) if parent.is_none() && streaming == id => item(id, *block),
            _ => format!("{id}:{}", text(m, "/uuid")),
        };
        let again = parent.is_none()
            && self
                .streaming
                .as_ref()
                .is_some_and(|(streaming, _)| streaming != id)
            && !self.items.is_empty();
        if again {
            // Its stream was cut, and this was asked for without one.
            out.push(
                Retry {
                    attempt: 1,
                    code: ErrorCode::ProviderDown,
                    retry_after_ms: None,
                    message: "the answer was cut, and asked for again".into(),
                    parent_tool_use_id: None,
                }
                .into(),
            );
        }
        for block in message["content"].as_array().into_iter().flatten() {
            match text(block, "/type") {
                "text" => {
                    if again && let Some((begun, _)) = self.items.last_text() {
                        name.clone_from(begun);
                    }
                    let words = text(block, "/text");
                    let stopped = self.turn.as_ref().is_some_and(|t| t.aborted);
                    self.items
                        .finish(&name, ItemKind::Text, words, parent, stopped, out);
                    if let (Some(turn), None) = (&mut self.turn, parent) {
                        words.clone_into(&mut turn.final_text);
                    }
                }
                "thinking" => self.items.finish(
                    &name,
                    ItemKind::Reasoning,
                    text(block, "/thinking"),
                    parent,
                    false,
                    out,
                ),
                "tool_use" => self.tool_use(block, parent, out),
                _ => {}
            }
        }
        if again {
            self.items.cut(out);
            self.streaming = None;
        }
        if let (Some(turn), Some(reason)) = (&mut self.turn, message["stop_reason"].as_str()) {
            turn.stop_reason = Some(reason.to_owned());
        }
    }

    fn tool_use(&mut self, block: &Value, parent: Option<&str>, out: &mut Vec<Action>) {
        self.begin_turn(out);
        let (id, native_name) = (
            text(block, "/id").to_owned(),
            text(block, "/name").to_owned(),
        );
        let input = block["input"].clone();
        if native_name == "TodoWrite" {
            out.push(plan(&input["todos"]));
        }
        let parent = parent.map(str::to_owned);
        self.tools.insert(
            id.clone(),
            ClaudeTool {
                name: native_name.clone(),
                input: input.clone(),
                parent: parent.clone(),
            },
        );
        out.push(
            ToolUse {
                tool_use_id: id,
                name: canonical(&native_name),
                native_name,
                input,
                parent_tool_use_id: parent,
            }
            .into(),
        );
    }

    fn user(&mut self, m: &Value, parent: Option<&str>, out: &mut Vec<Action>) -> bool {
        let content = &m["message"]["content"];
        if m["isReplay"] == true {
            self.acknowledged(text(m, "/uuid"), content, out);
            return true;
        }
        let mut known = false;
        for block in content.as_array().into_iter().flatten() {
            match text(block, "/type") {
                "tool_result" => {
                    self.tool_result(block, &m["tool_use_result"], out);
                    known = true;
                }
                // A subagent is told what the model likes.
                "text"
                    if parent.is_none()
                        && text(block, "/text").starts_with("[Request interrupted by user") =>
                {
                    if let Some(turn) = &mut self.turn {
                        turn.aborted = true;
                    }
                    known = true;
                }
                // What a subagent was told, or what the CLI tells the model by itself.
                _ => known |= parent.is_some() || m["isSynthetic"] == true,
            }
        }
        known
    }

    /// The echo of what was written: the CLI has it.
    fn acknowledged(&mut self, uuid: &str, content: &Value, out: &mut Vec<Action>) {
        let texts: Vec<&str> = match content {
            Value::String(text) => vec![text.as_str()],
            blocks => blocks
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|b| b["text"].as_str())
                .collect(),
        };
        // Several may come as one, under one of their ids.
        let known = self.in_flight.acknowledge(
            |id, input| id == uuid || texts.contains(&input.text.as_str()),
            out,
        );
        if !known && !texts.iter().any(|t| t.starts_with("<local-command")) {
            self.in_flight.foreign(uuid, &texts.join("\n"), out);
        }
    }

    fn tool_result(&mut self, block: &Value, details: &Value, out: &mut Vec<Action>) {
        let id = text(block, "/tool_use_id");
        let Some(tool) = self.tools.remove(id) else {
            return;
        };
        if let (Some(turn), None) = (&mut self.turn, &tool.parent) {
            turn.tools_said = true;
        }
        let output = text_of(&block["content"]);
        let is_error = block["is_error"] == true;
        let exit_code = (tool.name == "Bash")
            .then(|| {
                if is_error {
                    output
                        .strip_prefix("Exit code ")?
                        .lines()
                        .next()?
                        .trim()
                        .parse()
                        .ok()
                } else {
                    Some(0)
                }
            })
            .flatten();
        let change = (!is_error)
            .then(|| file_change(id, &tool, details))
            .flatten();
        out.push(
            ToolResult {
                tool_use_id: id.to_owned(),
                output,
                is_error,
                exit_code,
                duration_ms: None,
                parent_tool_use_id: tool.parent,
            }
            .into(),
        );
        out.extend(change.map(Action::from));
    }

    fn result(&mut self, m: &Value, out: &mut Vec<Action>) {
        let status = m["api_error_status"].as_u64().map(|s| s as u16);
        let errors = m["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join("\n");
        // One without its beginning: the one-shot mode prints nothing else.
        self.begin_turn(out);
        let Some(turn) = self.turn.take() else { return };
        let aborted = turn.aborted || text(m, "/terminal_reason").starts_with("aborted");
        let limit = m["subtype"] == "error_max_turns";
        let refused = turn.refused
            || m["stop_reason"] == "refusal"
            || turn.stop_reason.as_deref() == Some("refusal");
        let failed = m["is_error"] == true && !aborted && !limit && !refused;
        if failed {
            let (word, said) = turn.failed.unwrap_or_default();
            let message = [said.as_str(), text(m, "/result"), &errors, &word]
                .into_iter()
                .find(|s| !s.is_empty())
                .unwrap_or("the turn failed")
                .to_owned();
            let mut error =
                ErrorEvent::new(named(&word, status, &message), error_code::words(&message));
            error.http_status = status;
            error.native = Some(
                json!({ "error": word, "result": m["result"], "api_error_status": m["api_error_status"], "errors": m["errors"] }),
            );
            out.push(error.into());
        }
        self.items.cut(out);
        let reason = match m["stop_reason"].as_str().or(turn.stop_reason.as_deref()) {
            _ if aborted => TurnEndReason::Interrupted,
            _ if limit => TurnEndReason::MaxSteps,
            _ if failed => TurnEndReason::Error,
            _ if refused => TurnEndReason::Refusal,
            Some("max_tokens" | "model_context_window_exceeded") => TurnEndReason::MaxTokens,
            _ => TurnEndReason::EndTurn,
        };
        let usage = self.spent(m);
        let final_text = if turn.final_text.is_empty() && !failed {
            text(m, "/result").to_owned()
        } else {
            turn.final_text
        };
        self.tools.clear();
        self.asked.clear();
        self.streaming = None;
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
        if self.in_flight.is_begun() {
            // Its echo is missing: it may have come while the CLI began a turn by itself, and
            // then the next is its own.
            out.push(Action::Wake(ECHO_TIME));
        }
    }

    /// What the turn used: how the sums have grown, subagents and repeated requests included.
    fn spent(&mut self, m: &Value) -> Usage {
        let sums = sums(&m["total_cost_usd"], &m["modelUsage"]);
        let spent = sums.since(&self.counted);
        self.counted = self.counted.at_least(&sums);
        spent
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

    fn permission_asked(&mut self, m: &Value, out: &mut Vec<Action>) {
        let (request_id, request) = (text(m, "/request_id").to_owned(), &m["request"]);
        let input = request["input"].clone();
        let id = text(request, "/tool_use_id").to_owned();
        let parent = self.tools.get(&id).and_then(|t| t.parent.clone());
        self.asked.insert(
            request_id.clone(),
            (input.clone(), request["permission_suggestions"].clone()),
        );
        out.push(
            PermissionRequest {
                request_id,
                tool_use_id: Some(id).filter(|id| !id.is_empty()),
                name: canonical(text(request, "/tool_name")),
                input,
                options: permission_options(),
                parent_tool_use_id: parent,
            }
            .into(),
        );
    }

    fn control_response(&mut self, response: &Value, out: &mut Vec<Action>) {
        let (id, failed) = (
            text(response, "/request_id"),
            response["subtype"] == "error",
        );
        if failed && (id == "open" || id.starts_with("interrupt-")) {
            out.push(Action::Broken(format!(
                "Claude Code refused to `{id}`: {}",
                text(response, "/error")
            )));
        } else if id == "open" && !self.ready {
            self.ready = true;
            out.push(Action::Ready {
                native_session_id: self.session.clone(),
                resumed: self.resumed,
            });
        }
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

/// Adds up what each model used, and takes the cost as the CLI counts it.
fn sums(cost_usd: &Value, models: &Value) -> Usage {
    let mut sums = Usage {
        cost_usd: cost_usd.as_f64(),
        ..Usage::default()
    };
    for model in models.as_object().into_iter().flat_map(Map::values) {
        sums.add(&Usage {
            input: model["inputTokens"].as_u64(),
            cache_read: model["cacheReadInputTokens"].as_u64(),
            cache_write: model["cacheCreationInputTokens"].as_u64(),
            output: model["outputTokens"].as_u64(),
            reasoning: model["thinkingTokens"].as_u64(),
            cost_usd: None,
        });
    }
    sums
}

/// The sums that a resumed session begins with. The CLI writes them into its transcript when it
/// ends in good order, and a later process counts on from the last of them.
fn saved_sums(transcript: &[u8]) -> Usage {
    let saved = newest_first(transcript, b"\"cost-state\"")
        .find(|entry| entry["type"] == "cost-state")
        .unwrap_or_default();
    sums(&saved["totalCostUSD"], &saved["modelUsage"])
}

fn item(message: &str, block: u64) -> String {
    format!("{message}:{block}")
}

/// What failed: by its status where there is one, else by the CLI's word for it.
fn named(word: &str, status: Option<u16>, message: &str) -> ErrorCode {
    match (error_code::code(status, message), word) {
        (ErrorCode::Internal, "rate_limit") => ErrorCode::RateLimited,
        (ErrorCode::Internal, "overloaded" | "server_error") => ErrorCode::ProviderDown,
        (ErrorCode::Internal, "authentication_failed") => ErrorCode::Auth,
        (ErrorCode::Internal, "billing_error") => ErrorCode::Billing,
        (ErrorCode::Internal, "model_not_found") => ErrorCode::ModelUnavailable,
        (code, _) => code,
    }
}

fn file_change(id: &str, tool: &ClaudeTool, details: &Value) -> Option<FileChange> {
    if !matches!(
        tool.name.as_str(),
        "Write" | "Edit" | "MultiEdit" | "NotebookEdit"
    ) {
        return None;
    }
    let path = details["filePath"]
        .as_str()
        .or(tool.input["file_path"].as_str())?
        .to_owned();
    let kind = if details["type"] == "create" {
        ChangeKind::Add
    } else {
        ChangeKind::Modify
    };
    let hunk = |hunk: &Value| {
        let n = |key: &str| hunk[key].as_u64().unwrap_or(0);
        let lines = hunk["lines"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(|l| format!("{l}\n"))
            .collect::<String>();
        format!(
            "@@ -{},{} +{},{} @@\n{lines}",
            n("oldStart"),
            n("oldLines"),
            n("newStart"),
            n("newLines")
        )
    };
    let diff: String = details["structuredPatch"]
        .as_array()
        .into_iter()
        .flatten()
        .map(hunk)
        .collect();
    let diff = Some(diff).filter(|d| !d.is_empty());
    Some(FileChange {
        path,
        kind,
        diff,
        tool_use_id: Some(id.to_owned()),
        parent_tool_use_id: tool.parent.clone(),
    })
}

/// A tool's name as every runtime has it.
fn canonical(native: &str) -> String {
    match native {
        "Bash" => "bash",
        "Read" => "read",
        "Write" => "write",
        "Edit" | "MultiEdit" | "NotebookEdit" => "edit",
        "Glob" => "glob",
        "Grep" => "grep",
        "WebFetch" => "web_fetch",
        "WebSearch" => "web_search",
        "Task" | "Agent" => "task",
        other => other,
    }
    .to_owned()
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
