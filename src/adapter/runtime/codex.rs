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

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::io;

use serde_json::{Value, json};

use super::{
    Action, COMPACTED, Capabilities, LaunchContext, LaunchPlan, Mcp, PermissionDecision,
    Permissions, Phase, Runtime, Translator, Transport, hex, parsed, permission_options,
    request_id, text, text_of, write_private_file,
};
use crate::adapter::inbox::Input;
use crate::adapter::runtime::error_code;
use crate::adapter::runtime::in_flight::InFlight;
use crate::adapter::runtime::items::{ItemKind, OpenItems};
use crate::event::{
    ChangeKind, ErrorCode, ErrorEvent, FileChange, PermissionRequest, PermissionResolved, PlanItem,
    PlanUpdate, Retry, ToolOutput, ToolResult, ToolUse, TurnEnd, TurnEndReason, Unparsed, Usage,
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

/// The variable that holds what it presents to the sidecar.
const TOKEN: &str = "OUTRIGGER_SIDECAR_TOKEN";

fn launch(setting: &LaunchContext) -> io::Result<LaunchPlan> {
    let home = setting.home.join("codex");
    write_private_file(&home.join("config.toml"), &configuration(setting))?;
    let mut warnings = Vec::new();
    if setting.permissions != Permissions::Allow {
        warnings.push("with permissions, Codex reads neither `AGENTS.md` nor `.codex/` of the project: what stands there could run without asking".to_owned());
    }
    if setting.permissions != Permissions::Allow && !setting.allowed_tools.is_empty() {
        warnings.push("`project.allowedTools`: Codex has no such list; every command that is not known to be harmless is asked for".to_owned());
    }
    Ok(LaunchPlan {
        args: vec!["app-server".into()],
        env: vec![
            ("CODEX_HOME".into(), home.display().to_string()),
            (TOKEN.into(), setting.key.clone()),
        ],
        wiring: Transport::Lines {
            version_flag: false,
        },
        warnings,
        session: None,
    })
}

/// `config.toml`: the sidecar as the only provider, no retries of its own (a refused request
/// would be sent six times), nothing looked up outside.
fn configuration(setting: &LaunchContext) -> String {
    // A JSON string is a TOML basic string.
    let quoted = |s: &str| Value::from(s).to_string();
    let (_, model) = setting.model.split_once('/').unwrap_or_default();
    let mut toml = format!(
        r#"model = {model}
model_provider = "outrigger"
# The container is the sandbox.
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
model_reasoning_summary = "auto"
[analytics]
enabled = false
[features]
{commands}plugins = false
apps = false
remote_plugin = false
unbounded_connection_retries = false
enable_request_compression = false
[agents]
enabled = {subagents}
[model_providers.outrigger]
name = "outrigger"
base_url = {url}
wire_api = "responses"
env_key = "{TOKEN}"
supports_websockets = false
request_max_retries = 0
stream_max_retries = 0
"#,
        model = quoted(model),
        url = quoted(&format!("{}/openai/v1", setting.sidecar)),
        subagents = setting.subagents,
        // What it takes for harmless it would run without asking.
        commands = if setting.permissions == Permissions::Deny {
            "shell_tool = false\nunified_exec = false\n"
        } else {
            ""
        },
    );
    // Trusted, a project starts tool servers and allows commands: not where tools are asked for.
    let trust = if setting.permissions == Permissions::Allow {
        "trusted"
    } else {
        "untrusted"
    };
    let _ = writeln!(
        toml,
        "[projects.{}]\ntrust_level = \"{trust}\"",
        quoted(&setting.workdir.display().to_string())
    );
    for (name, server) in &setting.mcp {
        let table = |map: &std::collections::BTreeMap<String, String>| {
            map.iter()
                .map(|(k, v)| format!("{} = {}", quoted(k), quoted(v)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let _ = writeln!(toml, "[mcp_servers.{}]", quoted(name));
        let _ = match server {
            Mcp::Local { command, env } => writeln!(
                toml,
                "command = {}\nargs = {}\nenv = {{ {} }}",
                quoted(command.first().map_or("", String::as_str)),
                json!(command.get(1..).unwrap_or_default()),
                table(env)
            ),
            Mcp::Remote { url, headers } => writeln!(
                toml,
                "url = {}\nhttp_headers = {{ {} }}",
                quoted(url),
                table(headers)
            ),
        };
    }
    toml
}

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

#[derive(Debug, Default)]
struct CodexTurn {
    id: String,
    final_text: String,
    aborted: bool,
    failed: bool,
    usage: Usage,
    tools_said: bool,
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

    fn begin_turn(&mut self, id: &str, out: &mut Vec<Action>) {
        match &mut self.turn {
            Some(turn) if turn.id.is_empty() => id.clone_into(&mut turn.id),
            Some(_) => {}
            None => {
                self.turn = Some(CodexTurn {
                    id: id.to_owned(),
                    ..CodexTurn::default()
                });
                self.in_flight.begin_turn(out);
            }
        }
    }

    fn write(&mut self, kind: ItemKind, p: &Value, out: &mut Vec<Action>) {
        self.items
            .write(text(p, "/itemId"), kind, text(p, "/delta"), None, out);
    }

    /// What was being written is not written any further.
    fn cut(&mut self, out: &mut Vec<Action>) {
        if let (Some(turn), Some((_, draft))) = (&mut self.turn, self.items.last_text()) {
            draft.text.clone_into(&mut turn.final_text);
        }
        self.items.cut(out);
    }

    fn item_started(&mut self, item: &Value, out: &mut Vec<Action>) -> bool {
        let id = text(item, "/id");
        match text(item, "/type") {
            "userMessage" => {
                // What it was told to steer while it wrote cut what it wrote.
                self.cut(out);
                let (client, said) = (text(item, "/clientId"), text_of(&item["content"]));
                if !self.in_flight.acknowledge(
                    |native, input| {
                        if client.is_empty() {
                            input.text == said
                        } else {
                            native == client
                        }
                    },
                    out,
                ) {
                    self.in_flight.foreign(id, &said, out);
                }
            }
            "agentMessage" | "reasoning" | "plan" | "hookPrompt" | "enteredReviewMode"
            | "exitedReviewMode" | "contextCompaction" => {}
            "" => return false,
            // It belongs to no turn, and nothing would end one that it began.
            _ if self.turn.is_none() && !self.one_shot => return false,
            kind => self.tool_use(id, kind, item, out),
        }
        true
    }

    fn tool_use(&mut self, id: &str, kind: &str, item: &Value, out: &mut Vec<Action>) {
        if !self.used.insert(id.to_owned()) {
            return;
        }
        self.begin_turn("", out);
        self.tools.insert(id.to_owned(), item["changes"].clone());
        let (name, native_name, input) = match kind {
            "commandExecution" => (
                "bash".to_owned(),
                kind,
                json!({ "command": command(text(item, "/command")), "cwd": item["cwd"] }),
            ),
            "fileChange" => (
                "edit".to_owned(),
                kind,
                json!({ "changes": item["changes"] }),
            ),
            "mcpToolCall" => {
                let tool = text(item, "/tool");
                (
                    format!("mcp__{}__{tool}", text(item, "/server")),
                    tool,
                    item["arguments"].clone(),
                )
            }
            "collabAgentToolCall" => (
                "task".to_owned(),
                text(item, "/tool"),
                json!({ "prompt": item["prompt"] }),
            ),
            "webSearch" => (
                "web_search".to_owned(),
                kind,
                json!({ "query": item["query"] }),
            ),
            other => (other.to_owned(), other, item.clone()),
        };
        let native_name = if native_name.is_empty() {
            kind
        } else {
            native_name
        }
        .to_owned();
        out.push(
            ToolUse {
                tool_use_id: id.to_owned(),
                name,
                native_name,
                input,
                parent_tool_use_id: None,
            }
            .into(),
        );
    }

    fn item_completed(&mut self, item: &Value, out: &mut Vec<Action>) -> bool {
        let id = text(item, "/id");
        match text(item, "/type") {
            "agentMessage" => {
                let words = text(item, "/text");
                self.items
                    .finish(id, ItemKind::Text, words, None, false, out);
                if let Some(turn) = &mut self.turn {
                    words.clone_into(&mut turn.final_text);
                }
            }
            "reasoning" => {
                let parts = |key: &str| {
                    item[key]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str)
                        .collect::<Vec<_>>()
                        .join("\n\n")
                };
                let words = [
                    parts("summary"),
                    parts("content"),
                    text(item, "/text").to_owned(),
                ]
                .into_iter()
                .find(|s| !s.is_empty())
                .unwrap_or_default();
                self.items
                    .finish(id, ItemKind::Reasoning, &words, None, false, out);
            }
            "contextCompaction" => out.push(
                Warning {
                    message: COMPACTED.into(),
                }
                .into(),
            ),
            "error" => out.push(
                Warning {
                    message: text(item, "/message").to_owned(),
                }
                .into(),
            ),
            "userMessage" | "plan" | "hookPrompt" | "enteredReviewMode" | "exitedReviewMode" => {}
            "" => return false,
            // What outlives its turn, and was told as cut with it.
            _ if self.turn.is_none() && self.used.contains(id) => {}
            _ if self.turn.is_none() && !self.one_shot => return false,
            kind => {
                self.tool_use(id, kind, item, out);
                self.tool_result(id, kind, item, out);
            }
        }
        true
    }

    fn tool_result(&mut self, id: &str, kind: &str, item: &Value, out: &mut Vec<Action>) {
        if self.tools.remove(id).is_none() {
            return;
        }
        if let Some(turn) = &mut self.turn {
            turn.tools_said = true;
        }
        let exit_code = item["exitCode"].as_i64();
        let is_error = matches!(text(item, "/status"), "failed" | "declined")
            || exit_code.is_some_and(|c| c != 0)
            || item["success"] == false;
        let output = match kind {
            "commandExecution" if item["status"] == "declined" => {
                "the command was not permitted".to_owned()
            }
            "commandExecution" => text(item, "/aggregatedOutput").to_owned(),
            "fileChange" => changes(item)
                .map(|c| format!("{} {}\n", kind_of(&c["kind"]).0, text(c, "/path")))
                .collect(),
            "mcpToolCall" if !item["error"].is_null() => {
                [text(item, "/error/message"), text(item, "/error")].concat()
            }
            "mcpToolCall" => {
                let blocks = item["result"]["content"].as_array().into_iter().flatten();
                blocks
                    .map(|b| {
                        b["text"]
                            .as_str()
                            .map_or_else(|| b.to_string(), str::to_owned)
                    })
                    .collect::<Vec<_>>()
                    .join("\n")
            }
            "collabAgentToolCall" => item["agentsStates"].to_string(),
            "webSearch" => item["action"].to_string(),
            _ => item.to_string(),
        };
        let duration_ms = item["durationMs"].as_u64();
        out.push(
            ToolResult {
                tool_use_id: id.to_owned(),
                output,
                is_error,
                exit_code,
                duration_ms,
                parent_tool_use_id: None,
            }
            .into(),
        );
        if kind == "fileChange" && !is_error {
            for change in changes(item) {
                let (_, kind) = kind_of(&change["kind"]);
                let path = text(change, "/path").to_owned();
                out.push(
                    FileChange {
                        path,
                        kind,
                        diff: diff(kind, text(change, "/diff")),
                        tool_use_id: Some(id.into()),
                        parent_tool_use_id: None,
                    }
                    .into(),
                );
            }
        }
    }

    /// After each call of the model: what the thread has used by now.
    fn used(&mut self, usage: &Value, out: &mut Vec<Action>) {
        let (total, last) = (counts(&usage["total"]), counts(&usage["last"]));
        // The first of a thread that was resumed has its past in it.
        let news = self
            .counted
            .as_ref()
            .map_or(last, |before| total.since(before));
        self.counted = Some(total);
        if let Some(turn) = &mut self.turn {
            turn.usage.add(&news);
            if std::mem::take(&mut turn.tools_said) {
                out.push(Action::Step);
            }
        }
    }

    fn failed(&mut self, error: &Value, will_retry: bool, out: &mut Vec<Action>) {
        self.cut(out);
        let details = text(error, "/additionalDetails");
        let message = text(error, "/message");
        let said = if will_retry && !details.is_empty() {
            details
        } else {
            message
        };
        let (code, status) = meant(error, said);
        if will_retry {
            // `Reconnecting... 2/5`
            let attempt = message
                .rsplit([' ', '.'])
                .next()
                .and_then(|n| n.split('/').next())
                .and_then(|n| n.parse().ok())
                .unwrap_or(1);
            out.push(
                Retry {
                    attempt,
                    code,
                    retry_after_ms: None,
                    message: worded(said),
                    parent_tool_use_id: None,
                }
                .into(),
            );
            return;
        }
        match &mut self.turn {
            Some(turn) if turn.failed => return,
            Some(turn) => turn.failed = true,
            None => {}
        }
        let mut event = ErrorEvent::new(code, worded(said));
        event.http_status = status;
        event.native = Some(error.clone());
        out.push(event.into());
    }

    fn turn_completed(&mut self, turn: &Value, out: &mut Vec<Action>) {
        if !turn["error"].is_null() {
            self.failed(&turn["error"], false, out);
        }
        self.end_turn(text(turn, "/status"), out);
    }

    fn end_turn(&mut self, status: &str, out: &mut Vec<Action>) {
        self.cut(out);
        let Some(turn) = self.turn.take() else { return };
        let reason = match status {
            "interrupted" => TurnEndReason::Interrupted,
            _ if turn.aborted => TurnEndReason::Interrupted,
            _ if turn.failed || status == "failed" => TurnEndReason::Error,
            _ => TurnEndReason::EndTurn,
        };
        self.tools.clear();
        self.permissions.clear();
        self.unsteerable = false;
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
        // What was to steer it and did not come that far is forgotten with it.
        self.in_flight.forgotten(out);
        self.in_flight.end_turn(out);
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

    /// A line of `codex exec --json`: the same items, otherwise spelled.
    fn exec_line(&mut self, m: &Value, out: &mut Vec<Action>) -> bool {
        let m = camel(m);
        self.one_shot |= matches!(text(&m, "/type"), "thread.started" | "turn.started");
        match text(&m, "/type") {
            "thread.started" => self.thread = m["threadId"].as_str().map(str::to_owned),
            "turn.started" => self.begin_turn("", out),
            "item.started" => return self.item_started(&m["item"], out),
            "item.updated" => {}
            "item.completed" => return self.item_completed(&m["item"], out),
            "error" if text(&m, "/message").starts_with("Reconnecting") => {
                let said = text(&m, "/message")
                    .split_once('(')
                    .map_or("", |(_, why)| why.trim_end_matches(')'));
                self.failed(
                    &json!({ "message": m["message"], "additionalDetails": said }),
                    true,
                    out,
                );
            }
            "error" => self.failed(&m, false, out),
            "turn.failed" => {
                self.failed(&m["error"], false, out);
                self.end_turn("failed", out);
            }
            "turn.completed" => {
                let usage = counts(&m["usage"]);
                if let Some(turn) = &mut self.turn {
                    turn.usage = usage;
                }
                self.end_turn("completed", out);
            }
            _ => return false,
        }
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

/// What an error means, and the status that the provider answered with.
fn meant(error: &Value, said: &str) -> (ErrorCode, Option<u16>) {
    let info = &error["codexErrorInfo"];
    let status = info
        .as_object()
        .and_then(|o| o.values().next())
        .and_then(|v| v["httpStatusCode"].as_u64());
    // The one-shot mode has only words.
    let in_words = || {
        said.split_once("status ")
            .or(said.split_once("status: "))?
            .1
            .get(..3)?
            .parse()
            .ok()
    };
    let status = status.map(|s| s as u16).or_else(in_words);
    let code = match (error_code::code(status, said), info.as_str()) {
        (ErrorCode::Internal, Some("contextWindowExceeded")) => ErrorCode::ContextOverflow,
        (
            ErrorCode::Internal | ErrorCode::RateLimited,
            Some("usageLimitExceeded" | "sessionBudgetExceeded"),
        ) => ErrorCode::Billing,
        (ErrorCode::Internal, Some("rateLimitExceeded")) => ErrorCode::RateLimited,
        (ErrorCode::Internal, Some("serverOverloaded" | "internalServerError")) => {
            ErrorCode::ProviderDown
        }
        (ErrorCode::Internal, Some("modelNotFound")) => ErrorCode::ModelUnavailable,
        (ErrorCode::Internal, Some("unauthorized")) => ErrorCode::Auth,
        // It names a connection, and no status: it never got an answer.
        (ErrorCode::Internal, None) if info.is_object() && status.is_none() => {
            ErrorCode::ProviderDown
        }
        (code, _) => code,
    };
    (code, status)
}

/// `unexpected status 403 Forbidden: <words>, url: …, request id: …`
fn worded(said: &str) -> String {
    let said = said.split(", url: http").next().unwrap_or(said);
    match said
        .strip_prefix("unexpected status ")
        .and_then(|rest| rest.split_once(": "))
    {
        Some((_, words)) => error_code::words(words),
        None => error_code::words(said),
    }
}

/// The tokens of a sum; `input` is uncached.
fn counts(usage: &Value) -> Usage {
    let n = |key: &str| usage[key].as_u64();
    let cached = n("cachedInputTokens").unwrap_or(0) + n("cacheWriteInputTokens").unwrap_or(0);
    Usage {
        input: n("inputTokens").map(|all| all.saturating_sub(cached)),
        cache_read: n("cachedInputTokens"),
        cache_write: n("cacheWriteInputTokens"),
        output: n("outputTokens"),
        reasoning: n("reasoningOutputTokens"),
        cost_usd: None,
    }
}

/// The command within `/bin/bash -lc '…'`.
fn command(wrapped: &str) -> String {
    match shlex::split(wrapped).as_deref() {
        Some([shell, flag, command])
            if shell.ends_with("sh") && flag.starts_with('-') && flag.ends_with('c') =>
        {
            command.clone()
        }
        _ => wrapped.to_owned(),
    }
}

fn changes(item: &Value) -> impl Iterator<Item = &Value> {
    item["changes"].as_array().into_iter().flatten()
}

/// `{"type":"add"}`, or `"add"` in the one-shot mode.
fn kind_of(kind: &Value) -> (&str, ChangeKind) {
    match kind["type"].as_str().or(kind.as_str()).unwrap_or_default() {
        "add" => ("added", ChangeKind::Add),
        "delete" => ("deleted", ChangeKind::Delete),
        _ => ("modified", ChangeKind::Modify),
    }
}

/// A unified diff; of a file that is new, or gone, Codex gives the text.
fn diff(kind: ChangeKind, given: &str) -> Option<String> {
    let all = |sign: char| {
        given
            .lines()
            .map(|l| format!("{sign}{l}\n"))
            .collect::<String>()
    };
    let count = given.lines().count();
    match kind {
        _ if given.is_empty() => None,
        ChangeKind::Modify => Some(given.to_owned()),
        ChangeKind::Add => Some(format!("@@ -0,0 +1,{count} @@\n{}", all('+'))),
        ChangeKind::Delete => Some(format!("@@ -1,{count} +0,0 @@\n{}", all('-'))),
    }
}

/// The one-shot mode's `snake_case` keys and types of items, as the app-server spells them.
fn camel(value: &Value) -> Value {
    let word = |s: &str| {
        let mut words = s.split('_');
        let first = words.next().unwrap_or_default().to_owned();
        words.fold(first, |mut all, w| {
            let mut letters = w.chars();
            all.extend(letters.next().into_iter().flat_map(char::to_uppercase));
            all + letters.as_str()
        })
    };
    let Value::Object(map) = value else {
        return value.clone();
    };
    let spelled = map.iter().map(|(key, value)| {
        let value = match (key.as_str(), value) {
            ("type", Value::String(kind)) => word(kind).into(),
            ("arguments" | "changes" | "result", value) => value.clone(),
            (_, value) => camel(value),
        };
        (word(key), value)
    });
    Value::Object(spelled.collect())
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
