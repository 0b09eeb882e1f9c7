//! opencode, through `opencode serve`: its event bus in, its session API out.
//!
//! Format: the legacy surface of opencode 1.18 (`GET /event`, `POST /session/:id/prompt_async`),
//! as recorded in `tests/fixtures/native/opencode/`. What makes it odd, each with a recording:
//! - A turn has no id. It is everything from `busy` to `idle`, and an answer's `parentID` says
//!   whose it is; an input that came too late for one turn is answered in the next.
//! - `idle` comes twice after an abort or an error, the first before the last updates. Such a
//!   turn ends with the second, any other when all of its messages are complete.
//! - A running tool's output is sent whole with every update, later a window of its last 30 KB.
//! - A retry orphans what was being written: it never gets an end.
//! - Subagents are sessions of their own on the same bus, with an idle of their own.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{
    Action, COMPACTED, CallPurpose, CallReply, Capabilities, DENIED, LaunchContext, LaunchPlan,
    Mcp, PermissionDecision, Permissions, Phase, Runtime, RuntimeCall, Translator, Transport,
    model_of_platform, parsed, permission_options, plan, text, write_private_file,
};
use crate::adapter::inbox::Input;
use crate::adapter::runtime::error_code;
use crate::adapter::runtime::items::{ItemKind, OpenItems};
use crate::catalogue::Overrides;
use crate::event::{
    ChangeKind, ErrorCode, ErrorEvent, FileChange, InputMode, InputSource, PermissionRequest,
    PermissionResolved, QuestionRequest, QuestionResolved, Retry, ToolOutput, ToolResult, ToolUse,
    TurnEnd, TurnEndReason, TurnStart, Unparsed, Usage, UserMessage, Warning,
};

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

/// After this long a turn that went idle is over, whatever is still missing: one that was
/// stopped while it waited to retry goes idle only once.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// The same where both must come, and are only late.
const LATE_TIME: Duration = Duration::from_secs(5);
/// By then opencode has begun to answer what it has.
const ANSWER_TIME: Duration = Duration::from_secs(15);
/// By then what it was given stands in its history, or never will.
const STORE_TIME: Duration = Duration::from_secs(20);
/// By then the call has come that a request was made for.
const CALL_TIME: Duration = Duration::from_millis(500);

fn launch(setting: &LaunchContext) -> io::Result<LaunchPlan> {
    without_plugin(&setting.user_config.join("opencode"));
    let text = |s: &str| s.to_owned();
    #[rustfmt::skip]
    let env = [
        ("OPENCODE_CONFIG_CONTENT", configuration(setting).to_string()),
        ("OPENCODE_SERVER_PASSWORD", setting.random.clone()),
        // Nothing is looked up outside: catalogue, updates, plugins and language servers.
        ("OPENCODE_DISABLE_MODELS_FETCH", text("1")),
        ("OPENCODE_DISABLE_AUTOUPDATE", text("1")),
        ("OPENCODE_DISABLE_DEFAULT_PLUGINS", text("1")),
        ("OPENCODE_DISABLE_LSP_DOWNLOAD", text("1")),
    ];
    Ok(LaunchPlan {
        args: ["serve", "--hostname", "127.0.0.1", "--port", "0"]
            .map(text)
            .to_vec(),
        env: env
            .into_iter()
            .map(|(name, value)| (text(name), value))
            .collect(),
        wiring: Transport::Http {
            announced: |line| {
                line.split_once("opencode server listening on http://")
                    .map(|(_, address)| address.trim().trim_end_matches('/').to_owned())
            },
            authorization: basic("opencode", &setting.random),
            health: "/global/health",
            version: |body| {
                serde_json::from_slice::<Value>(body)
                    .ok()?
                    .get("version")?
                    .as_str()
                    .map(str::to_owned)
            },
            events: "/event",
        },
        warnings: Vec::new(),
        session: None,
    })
}

/// opencode installs its plugin package, from the registry, into every directory of
/// configuration that has no `node_modules`. One that has nothing which needs it is given what
/// such an installation leaves behind, and nothing is fetched.
fn without_plugin(config: &Path) {
    let needed = [
        "node_modules",
        "package.json",
        "plugin",
        "plugins",
        "tool",
        "tools",
    ];
    if needed.iter().any(|name| config.join(name).exists()) {
        return;
    }
    let lock = json!({ "lockfileVersion": 3, "packages": { "": { "dependencies": { "@opencode-ai/plugin": "*" } } } });
    let written = std::fs::create_dir_all(config.join("node_modules"))
        .and_then(|()| write_private_file(&config.join("package-lock.json"), &lock.to_string()));
    // Where nobody may write opencode does not install anything either.
    if let Err(e) = written {
        tracing::debug!(error = %e, "the configuration of opencode is left as it is");
    }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    )
}

/// What is merged over the user's and the project's own files, which stay as they are.
fn configuration(setting: &LaunchContext) -> Value {
    let mut providers = Map::new();
    for provider in RUNTIME.providers {
        // The mount of the sidecar, where it is called otherwise; and the version in its path.
        let (mount, version) = match *provider {
            "google" => ("google", "v1beta"),
            "togetherai" => ("together", "v1"),
            "fireworks-ai" => ("fireworks", "v1"),
            other => (other, "v1"),
        };
        providers.insert((*provider).into(), json!({ "options": { "baseURL": format!("{}/{mount}/{version}", setting.sidecar), "apiKey": setting.key } }));
    }
    if let Some(model) = setting.model.strip_prefix("ollama/") {
        providers["ollama"]["npm"] = json!("@ai-sdk/openai-compatible");
        providers["ollama"]["models"] = json!({ model: {} });
    }
    if let Some((provider, model)) = setting.model.split_once('/')
        && let Some(known) = described(provider, model)
    {
        providers[provider]["models"] = json!({ model: known });
    }
    let mcp: Map<String, Value> = setting
        .mcp
        .iter()
        .map(|(name, server)| {
            let value = match server {
                Mcp::Local { command, env } => json!({ "type": "local", "command": command, "environment": env, "enabled": true }),
                Mcp::Remote { url, headers } => json!({ "type": "remote", "url": url, "headers": headers, "enabled": true }),
            };
            (name.clone(), value)
        })
        .collect();
    let permission = permission(setting);
    // What a project says of an agent is merged with what is said here, and its patterns count:
    // where tools are asked for, the agent has a name that no project knows.
    let agent = match setting.permissions {
        Permissions::Allow => "build".to_owned(),
        Permissions::Ask | Permissions::Deny => {
            format!("outrigger-{}", setting.random.get(..16).unwrap_or_default())
        }
    };
    let mut agents = json!({ "build": { "permission": permission } });
    agents[&agent] = json!({ "mode": "primary", "permission": permission });
    json!({
        "autoupdate": false,
        "share": "disabled",
        "model": setting.model,
        // Titles and summaries would go to a model that nobody granted.
        "small_model": setting.model,
        // What is in the environment or in a file of the project opens no other way out.
        "enabled_providers": RUNTIME.providers,
        "provider": providers,
        "permission": permission,
        "default_agent": agent,
        "agent": agents,
        "mcp": mcp,
    })
}

/// What one step used.
fn counts(tokens: &Value) -> Usage {
    let n = |key: &str| tokens[key].as_u64().unwrap_or(0);
    let cached = ["read", "write"]
        .iter()
        .filter_map(|key| tokens["cache"][*key].as_u64())
        .sum::<u64>();
    // With some providers reasoning stands beside the output, with others in it: the total tells.
    let beside = n("total") > 0 && n("total") == n("input") + n("output") + n("reasoning") + cached;
    Usage {
        input: tokens["input"].as_u64(),
        cache_read: tokens["cache"]["read"].as_u64(),
        cache_write: tokens["cache"]["write"].as_u64(),
        output: tokens["output"]
            .as_u64()
            .map(|output| output + if beside { n("reasoning") } else { 0 }),
        reasoning: tokens["reasoning"].as_u64(),
        cost_usd: None,
    }
}

/// A model as our own catalogue knows it: opencode refuses one that is newer than itself.
fn described(provider: &str, model: &str) -> Option<Value> {
    let price = Overrides::default().price(provider, model)?;
    let cost = [
        ("input", Some(price.input)),
        ("output", Some(price.output)),
        ("cache_read", price.cache_read),
        ("cache_write", price.cache_write),
    ];
    let cost: Map<String, Value> = cost
        .into_iter()
        .filter_map(|(name, usd)| Some((name.to_owned(), usd?.into())))
        .collect();
    Some(json!({
        "limit": { "context": price.max_input?, "output": price.max_output? },
        "cost": cost,
        "tool_call": true,
        "attachment": true,
        "modalities": { "input": ["text", "image", "pdf"], "output": ["text"] },
    }))
}

/// opencode's rules: the last that matches a tool counts.
fn permission(setting: &LaunchContext) -> Value {
    let asked = match setting.permissions {
        Permissions::Allow => "allow",
        Permissions::Ask => "ask",
        Permissions::Deny => "deny",
    };
    let mut rules = json!({ "*": "allow", "bash": asked, "edit": asked, "webfetch": asked, "websearch": asked });
    for key in ["external_directory", "doom_loop"] {
        rules[key] = asked.into();
    }
    for name in setting.mcp.keys() {
        rules[format!("{}_*", sanitized(name))] = asked.into();
    }
    for tool in &setting.allowed_tools {
        let (name, pattern) = tool
            .split_once('(')
            .map_or((tool.as_str(), "*"), |(n, p)| (n, p.trim_end_matches(')')));
        let key = match name {
            "Write" | "MultiEdit" | "NotebookEdit" => "edit".into(),
            "WebFetch" => "webfetch".into(),
            "WebSearch" => "websearch".into(),
            mcp if mcp.starts_with("mcp__") => {
                mcp.trim_start_matches("mcp__").replacen("__", "_", 1)
            }
            other => other.to_lowercase(),
        };
        if matches!(key.as_str(), "bash" | "edit") {
            // A project's own patterns would be merged into ours: they are only where ours must be.
            if rules[&key].is_string() {
                rules[&key] = json!({ "*": asked });
            }
            rules[&key][pattern.replace(":*", " *")] = "allow".into();
        } else {
            rules[&key] = "allow".into();
        }
    }
    if !setting.interactive {
        rules["question"] = "deny".into();
    }
    if !setting.subagents {
        rules["task"] = "deny".into();
    }
    rules
}

/// How opencode spells a tool server's name before its tools' names.
fn sanitized(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
                c
            } else {
                '_'
            }
        })
        .collect()
}

#[derive(Debug, Default)]
struct Message {
    user: bool,
    complete: bool,
}

#[derive(Debug, Default)]
struct OpencodeTool {
    id: String,
    /// The provider's id of the call.
    call: String,
    name: String,
    input: Value,
    used: bool,
    /// The output as last sent.
    seen: String,
    /// The session that a `task` runs in.
    child: Option<String>,
}

/// A permission or a question that came before its call.
#[derive(Debug)]
struct Early {
    asked: Value,
    parent: Option<String>,
    question: bool,
}

#[derive(Debug, Default)]
struct OpencodeTurn {
    usage: Usage,
    final_text: String,
    finish: Option<String>,
    aborted: bool,
    error: bool,
    /// It waits to try a request again.
    retrying: bool,
    /// Went idle before everything was complete.
    draining: bool,
    /// Inputs that arrived while it ran, by their message's id, and were not answered yet.
    joined: Vec<(String, String)>,
}

impl OpencodeTurn {
    /// It goes idle twice, and is over with the second.
    fn stopped(&self) -> bool {
        self.aborted || self.error
    }
}

#[derive(Default)]
pub struct Opencode {
    session_id: String,
    mcp: Vec<String>,
    session: Option<String>,
    /// Sessions of subagents, with the tool call that each serves.
    children: HashMap<String, Option<String>>,
    /// Inputs handed over, by their message's id.
    sent: HashMap<String, Input>,
    /// User messages whose text has been said, or is known.
    users: HashSet<String>,
    /// Inputs that no turn has started for: message's id, input's id.
    waiting: Vec<(String, String)>,
    messages: HashMap<String, Message>,
    items: OpenItems,
    tools: HashMap<String, OpencodeTool>,
    /// Messages of turns that were stopped: what still comes of them belongs to no other turn.
    ended: HashSet<String>,
    /// Parts that are finished: what comes of them later is known already.
    done: HashSet<String>,
    tool_ids: HashSet<String>,
    turn: Option<OpencodeTurn>,
    said_error: Option<String>,
    /// Who decided what, until the CLI says that it has heard.
    decided: HashMap<String, (String, String)>,
    /// Requests that wait: whether it is a question, and whether it was answered.
    asked: HashMap<String, (bool, bool)>,
    /// Requests for calls that were not told of yet.
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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Delta<'a> {
    #[serde(borrow, rename = "sessionID")]
    session: Cow<'a, str>,
    #[serde(borrow, rename = "partID")]
    part: Cow<'a, str>,
    #[serde(borrow)]
    delta: Cow<'a, str>,
}

/// Events that say nothing that another does not say better.
const SILENT: [&str; 21] = [
    "server.connected",
    "server.heartbeat",
    "session.updated",
    "session.diff",
    "session.idle",
    "plugin.added",
    "catalog.updated",
    "reference.updated",
    "integration.updated",
    "file.watcher.updated",
    "file.edited",
    "lsp.updated",
    "lsp.client.diagnostics",
    "vcs.branch.updated",
    "project.updated",
    "mcp.tools.changed",
    "command.executed",
    "message.removed",
    "message.part.removed",
    "session.deleted",
    // On the global bus: what another event has said, for replicas.
    "sync",
];

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

    /// `None`: not of this session. `Some(parent)`: ours, or a subagent's of that tool call.
    fn whose(&mut self, session: &str) -> Option<Option<String>> {
        match &self.session {
            Some(own) if own == session => Some(None),
            Some(_) => self.children.get(session).cloned(),
            // A recording that begins within a session.
            None => {
                self.session = Some(session.to_owned());
                Some(None)
            }
        }
    }

    fn event(&mut self, id: &str, kind: &str, p: &Value, out: &mut Vec<Action>) -> bool {
        let session = text(p, "/sessionID");
        if kind == "session.created" {
            self.session_created(p);
            return true;
        }
        let Some(parent) = (if session.is_empty() {
            Some(None)
        } else {
            self.whose(session)
        }) else {
            return true;
        };
        match kind {
            "message.updated" => self.message(&p["info"], parent.as_ref(), out),
            "message.part.updated" => return self.part(&p["part"], parent, out),
            "session.status" => self.status(id, &p["status"], parent, out),
            "session.error" => self.error(&p["error"], parent, out),
            "permission.asked" => self.asked_for(
                Early {
                    asked: p.clone(),
                    parent,
                    question: false,
                },
                out,
            ),
            "permission.replied" => self.permission_replied(p, out),
            "question.asked" => self.asked_for(
                Early {
                    asked: p.clone(),
                    parent,
                    question: true,
                },
                out,
            ),
            "question.replied" | "question.rejected" => self.question_over(p, out),
            "todo.updated" if parent.is_none() => out.push(plan(&p["todos"])),
            "todo.updated" => {}
            "session.compacted" => out.push(
                Warning {
                    message: COMPACTED.into(),
                }
                .into(),
            ),
            _ => return false,
        }
        true
    }

    fn session_created(&mut self, p: &Value) {
        let info = &p["info"];
        let (session, parent) = (text(info, "/id"), text(info, "/parentID"));
        if session.is_empty() {
            return;
        }
        if parent.is_empty() {
            self.session.get_or_insert_with(|| session.to_owned());
        } else if self.whose(parent).is_some() {
            // Its task has begun and has no session yet.
            let task = self
                .tools
                .values_mut()
                .find(|t| t.name == "task" && t.child.is_none());
            let tool = task.map(|t| {
                t.child = Some(session.to_owned());
                t.id.clone()
            });
            self.children.insert(session.to_owned(), tool);
        }
    }

    fn message(&mut self, info: &Value, parent: Option<&String>, out: &mut Vec<Action>) {
        let id = text(info, "/id").to_owned();
        if self.ended.contains(&id) {
            return;
        }
        if info["role"] == "user" {
            self.messages.entry(id.clone()).or_default().user = true;
            if parent.is_none()
                && let Some(input) = self.sent.remove(&id)
            {
                self.arrived(&id, &input, out);
            }
            return;
        }
        if parent.is_none() {
            self.begin_turn(out);
        }
        let complete = !info["time"]["completed"].is_null();
        let message = self.messages.entry(id).or_default();
        message.complete |= complete;
        let answered = text(info, "/parentID");
        if let Some(turn) = &mut self.turn {
            // An answer to one is an answer to those before it.
            if let Some(at) = turn
                .joined
                .iter()
                .position(|(message, _)| message == answered)
            {
                turn.joined.drain(..=at);
            }
            if parent.is_none()
                && let Some(finish) = info["finish"].as_str()
            {
                turn.finish = Some(finish.to_owned());
            }
        }
        if complete && !info["error"].is_null() {
            self.error(&info["error"], parent.cloned(), out);
        }
        self.end_if_drained(out);
    }

    /// An input stands in opencode's own history.
    fn arrived(&mut self, message: &str, input: &Input, out: &mut Vec<Action>) {
        self.users.insert(message.to_owned());
        out.push(input.message().into());
        out.push(Action::Delivered {
            input_id: input.input_id.clone(),
        });
        self.first = false;
        self.queued(message, &input.input_id);
        if self.turn.is_none() {
            out.push(Action::Wake(ANSWER_TIME));
        }
    }

    /// An input that had arrived when the CLI was stopped, and that it will not take up again by
    /// itself: the model sees it with the next one.
    fn unanswered(&mut self, out: &mut Vec<Action>) {
        if self.turn.is_some() {
            return;
        }
        self.begin_turn(out);
        let mut error = ErrorEvent::new(
            ErrorCode::RuntimeCrashed,
            "opencode was stopped before it answered this input, which stands in its history",
        );
        error.retryable = true;
        out.push(error.into());
        if let Some(turn) = &mut self.turn {
            turn.error = true;
        }
        self.end_turn(out);
    }

    fn queued(&mut self, message: &str, input_id: &str) {
        let entry = (message.to_owned(), input_id.to_owned());
        match &mut self.turn {
            Some(turn) => turn.joined.push(entry),
            None => self.waiting.push(entry),
        }
    }

    fn begin_turn(&mut self, out: &mut Vec<Action>) {
        if self.turn.is_some() {
            return;
        }
        let input_ids = self.waiting.drain(..).map(|(_, input)| input).collect();
        self.turn = Some(OpencodeTurn::default());
        self.said_error = None;
        out.push(TurnStart { turn: 0, input_ids }.into());
    }

    fn status(&mut self, id: &str, status: &Value, parent: Option<String>, out: &mut Vec<Action>) {
        match (text(status, "/type"), parent.is_none()) {
            ("busy", true) => {
                if self.turn.as_ref().is_some_and(|t| t.draining) {
                    self.end_turn(out);
                }
                self.begin_turn(out);
                if let Some(turn) = &mut self.turn {
                    turn.retrying = false;
                }
            }
            ("idle", true) => match &mut self.turn {
                // The second: nothing more will come.
                Some(turn) if turn.draining => self.end_turn(out),
                Some(turn) => {
                    turn.draining = true;
                    let written = self.messages.values().any(|m| !m.user);
                    out.push(Action::Wake(
                        if turn.stopped() && written && !turn.retrying {
                            LATE_TIME
                        } else {
                            DRAIN_TIME
                        },
                    ));
                    self.end_if_drained(out);
                }
                None => {}
            },
            ("retry", _) => {
                self.orphan(Some(&parent), out);
                if let (Some(turn), None) = (&mut self.turn, &parent) {
                    turn.retrying = true;
                }
                let message = text(status, "/message");
                let code = match error_code::code(None, message) {
                    ErrorCode::Internal => ErrorCode::ProviderDown,
                    code => code,
                };
                let retry_after_ms = status["next"]
                    .as_u64()
                    .and_then(|next| milliseconds_after(id, next));
                out.push(
                    Retry {
                        attempt: status["attempt"].as_u64().unwrap_or(1),
                        code,
                        retry_after_ms,
                        message: message.into(),
                        parent_tool_use_id: parent,
                    }
                    .into(),
                );
            }
            _ => {}
        }
    }

    /// What was being written is not written any further: by whom `of` says, or by anybody.
    fn orphan(&mut self, of: Option<&Option<String>>, out: &mut Vec<Action>) {
        self.done.extend(
            self.items
                .cut_those(|draft| of.is_none_or(|parent| draft.parent == *parent), out),
        );
    }

    fn error(&mut self, error: &Value, parent: Option<String>, out: &mut Vec<Action>) {
        let (name, message) = (text(error, "/name"), text(error, "/data/message"));
        if self.turn.is_none() {
            // It may be why an input is not stored.
            out.extend(self.sent.iter().map(|(native, input)| {
                self.look(CallPurpose::Check(input.input_id.clone()), native)
            }));
        }
        if name == "MessageAbortedError" {
            if let (Some(turn), None) = (&mut self.turn, &parent) {
                turn.aborted = true;
            }
            return;
        }
        if name == "MessageOutputLengthError" {
            if let (Some(turn), None) = (&mut self.turn, &parent) {
                turn.finish = Some("length".into());
            }
            return;
        }
        // The same again: from the bus, from the message, or with its stack.
        let first_line = message.lines().next().unwrap_or_default();
        if self
            .said_error
            .as_ref()
            .is_some_and(|said| first_line.contains(said.as_str()) || said.contains(first_line))
        {
            return;
        }
        self.said_error = Some(first_line.to_owned());
        let status = error["data"]["statusCode"].as_u64().map(|s| s as u16);
        let code = match (text(error, "/data/responseHeaders/x-outrigger-error"), name) {
            ("scope_denied" | "secret_missing" | "host_denied", _) => ErrorCode::PermissionDenied,
            ("budget_exhausted", _) => ErrorCode::Billing,
            ("unauthorized" | "upstream_auth", _) | (_, "ProviderAuthError") => ErrorCode::Auth,
            ("route_denied" | "unknown_provider", _) => ErrorCode::ModelUnavailable,
            (_, "ContextOverflowError") => ErrorCode::ContextOverflow,
            _ => error_code::code(status, message),
        };
        let mut event = ErrorEvent::new(code, if message.is_empty() { name } else { first_line });
        event.retryable |= error["data"]["isRetryable"] == true;
        event.http_status = status;
        event.retry_after_ms = text(error, "/data/responseHeaders/retry-after")
            .parse::<u64>()
            .ok()
            .map(|s| s.saturating_mul(1000));
        event.provider = Some(text(error, "/data/providerID").to_owned()).filter(|p| !p.is_empty());
        event.native = Some(error.clone());
        event.parent_tool_use_id.clone_from(&parent);
        if let (Some(turn), None) = (&mut self.turn, &parent) {
            turn.error = true;
        }
        out.push(event.into());
    }

    fn part(&mut self, part: &Value, parent: Option<String>, out: &mut Vec<Action>) -> bool {
        let message = text(part, "/messageID");
        if self.ended.contains(message) {
            return true;
        }
        if self.messages.get(message).is_some_and(|m| m.user) {
            self.user_part(message.to_owned(), part, parent.as_ref(), out);
            return true;
        }
        let id = text(part, "/id");
        match text(part, "/type") {
            "text" => self.written(id, ItemKind::Text, part, parent, out),
            "reasoning" => self.written(id, ItemKind::Reasoning, part, parent, out),
            "tool" => self.tool(id, part, parent, out),
            "step-finish" => self.step_finish(id, part, parent.as_ref(), out),
            "step-start" | "patch" | "snapshot" | "agent" | "subtask" | "retry" | "compaction" => {}
            _ => return false,
        }
        self.end_if_drained(out);
        true
    }

    /// A message that somebody else put there: another client, or who made a recording.
    fn user_part(
        &mut self,
        message: String,
        part: &Value,
        parent: Option<&String>,
        out: &mut Vec<Action>,
    ) {
        if parent.is_some()
            || part["type"] != "text"
            || part["synthetic"] == true
            || !self.users.insert(message.clone())
        {
            return;
        }
        let source = if std::mem::take(&mut self.first) {
            InputSource::Initial
        } else {
            InputSource::Inject
        };
        let text = text(part, "/text").to_owned();
        out.push(
            UserMessage {
                input_id: message.clone(),
                text,
                sender_id: None,
                source,
                mode: InputMode::Auto,
                attachments: 0,
            }
            .into(),
        );
        let input = message.clone();
        self.queued(&message, &input);
    }

    fn written(
        &mut self,
        id: &str,
        kind: ItemKind,
        part: &Value,
        parent: Option<String>,
        out: &mut Vec<Action>,
    ) {
        if self.done.contains(id) {
            return;
        }
        let full = text(part, "/text");
        if part["time"]["end"].is_null() {
            return self.items.begin(id, kind, full, parent.as_deref());
        }
        self.done.insert(id.to_owned());
        let parent = self
            .items
            .get(id)
            .map_or(parent, |draft| draft.parent.clone());
        // Written to its end, or until it was stopped: the end is stamped either way.
        let stopped =
            kind == ItemKind::Text && self.turn.as_ref().is_some_and(|t| t.aborted && t.draining);
        if let (ItemKind::Text, None, Some(turn)) = (kind, &parent, &mut self.turn) {
            full.clone_into(&mut turn.final_text);
        }
        self.items
            .finish(id, kind, full, parent.as_deref(), stopped, out);
    }

    fn delta(&mut self, delta: &Delta<'_>, out: &mut Vec<Action>) -> bool {
        if self.whose(&delta.session).is_none() || self.done.contains(delta.part.as_ref()) {
            return true;
        }
        self.items.append(&delta.part, &delta.delta, out)
    }

    fn tool(&mut self, id: &str, part: &Value, parent: Option<String>, out: &mut Vec<Action>) {
        if self.done.contains(id) {
            return;
        }
        let state = &part["state"];
        if !self.tools.contains_key(id) {
            // Providers may use a call id again; on the stream each call has its own.
            let call = text(part, "/callID");
            let taken = call.is_empty() || !self.tool_ids.insert(call.to_owned());
            let tool_id = if taken {
                id.to_owned()
            } else {
                call.to_owned()
            };
            self.tools.insert(
                id.to_owned(),
                OpencodeTool {
                    id: tool_id,
                    call: call.to_owned(),
                    ..OpencodeTool::default()
                },
            );
        }
        let Some(tool) = self.tools.get_mut(id) else {
            return;
        };
        text(part, "/tool").clone_into(&mut tool.name);
        let status = text(state, "/status");
        if let Some(child) = state["metadata"]["sessionId"].as_str() {
            tool.child = Some(child.to_owned());
            self.children
                .insert(child.to_owned(), Some(tool.id.clone()));
        }
        if status == "pending" {
            return;
        }
        if !tool.used {
            tool.used = true;
            // A tool that there is none of is turned into one called `invalid`.
            let native_name = if tool.name == "invalid" {
                text(state, "/input/tool")
            } else {
                &tool.name
            }
            .to_owned();
            tool.input = state["input"].clone();
            out.push(
                ToolUse {
                    tool_use_id: tool.id.clone(),
                    name: canonical(&native_name, &self.mcp),
                    native_name,
                    input: tool.input.clone(),
                    parent_tool_use_id: parent.clone(),
                }
                .into(),
            );
            let call = tool.call.clone();
            self.call_is_told(&call, out);
        }
        let Some(tool) = self.tools.get_mut(id) else {
            return;
        };
        if let Some(output) = state["metadata"]["output"]
            .as_str()
            .filter(|_| status == "running")
        {
            let news = appended_since(&tool.seen, output).to_owned();
            output.clone_into(&mut tool.seen);
            if !news.is_empty() {
                out.push(
                    ToolOutput {
                        tool_use_id: tool.id.clone(),
                        text: news,
                        parent_tool_use_id: parent,
                    }
                    .into(),
                );
            }
            return;
        }
        if matches!(status, "completed" | "error")
            && let Some(tool) = self.tools.remove(id)
        {
            self.done.insert(id.to_owned());
            tool_over(tool, state, parent, out);
        }
    }

    fn step_finish(
        &mut self,
        id: &str,
        part: &Value,
        parent: Option<&String>,
        out: &mut Vec<Action>,
    ) {
        if !self.done.insert(id.to_owned()) {
            return;
        }
        if part["reason"] == "tool-calls" {
            out.push(Action::Step);
        }
        let Some(turn) = &mut self.turn else { return };
        turn.usage.add(&Usage {
            cost_usd: part["cost"].as_f64(),
            ..counts(&part["tokens"])
        });
        if parent.is_none() {
            turn.finish = part["reason"].as_str().map(str::to_owned);
        }
    }

    /// What a call waits for is told behind the call, although it may come before it.
    fn asked_for(&mut self, early: Early, out: &mut Vec<Action>) {
        let call = text(&early.asked, "/tool/callID");
        if call.is_empty() || self.tools.values().any(|t| t.call == call && t.used) {
            return self.tell_request(&early, out);
        }
        self.early.push(early);
        out.push(Action::Wake(CALL_TIME));
    }

    fn tell_request(&mut self, early: &Early, out: &mut Vec<Action>) {
        if early.question {
            self.question_asked(&early.asked, early.parent.clone(), out);
        } else {
            self.permission_asked(&early.asked, early.parent.clone(), out);
        }
    }

    /// Tells the requests that waited for this call.
    fn call_is_told(&mut self, call: &str, out: &mut Vec<Action>) {
        for early in std::mem::take(&mut self.early) {
            if text(&early.asked, "/tool/callID") == call {
                self.tell_request(&early, out);
            } else {
                self.early.push(early);
            }
        }
    }

    /// The call did not come: it is told as the request describes it.
    fn tell_early(&mut self, out: &mut Vec<Action>) {
        for early in std::mem::take(&mut self.early) {
            let (call, native_name) = (
                text(&early.asked, "/tool/callID"),
                text(&early.asked, "/permission"),
            );
            let waiting = self.tools.values_mut().find(|t| t.call == call);
            if let Some(tool) = waiting.filter(|t| !t.used) {
                tool.used = true;
                let (tool_use_id, name) = (tool.id.clone(), canonical(native_name, &self.mcp));
                let input = early.asked["metadata"].clone();
                out.push(
                    ToolUse {
                        tool_use_id,
                        name,
                        native_name: native_name.to_owned(),
                        input,
                        parent_tool_use_id: early.parent.clone(),
                    }
                    .into(),
                );
            }
            self.tell_request(&early, out);
        }
    }

    fn permission_asked(&mut self, p: &Value, parent: Option<String>, out: &mut Vec<Action>) {
        let (request_id, call) = (text(p, "/id").to_owned(), text(p, "/tool/callID"));
        // It may ask before it has said what with: then its own summary stands for the input.
        let tool = self.tools.values().find(|t| t.call == call);
        let known = tool.map(|t| &t.input);
        let tool_use_id = tool.map_or_else(|| call.to_owned(), |t| t.id.clone());
        let input = [known, Some(&p["metadata"])]
            .into_iter()
            .flatten()
            .find(|i| i.as_object().is_some_and(|o| !o.is_empty()))
            .cloned();
        self.asked.insert(request_id.clone(), (false, false));
        out.push(
            PermissionRequest {
                request_id,
                tool_use_id: Some(tool_use_id).filter(|c| !c.is_empty()),
                name: canonical(text(p, "/permission"), &self.mcp),
                input: input.unwrap_or_else(|| json!({ "patterns": p["patterns"] })),
                options: permission_options(),
                parent_tool_use_id: parent,
            }
            .into(),
        );
    }

    fn permission_replied(&mut self, p: &Value, out: &mut Vec<Action>) {
        let request_id = text(p, "/requestID").to_owned();
        if self.asked.remove(&request_id).is_none() {
            return;
        }
        let said = match text(p, "/reply") {
            "once" => "allow",
            "always" => "allow_always",
            _ => "deny",
        };
        let (decision, by) = self
            .decided
            .remove(&request_id)
            .unwrap_or((said.to_owned(), "runtime".to_owned()));
        out.push(
            PermissionResolved {
                request_id,
                decision,
                by,
            }
            .into(),
        );
    }

    fn question_asked(&mut self, p: &Value, parent: Option<String>, out: &mut Vec<Action>) {
        let request_id = text(p, "/id").to_owned();
        self.asked.insert(request_id.clone(), (true, false));
        let questions: Vec<&Value> = p["questions"].as_array().into_iter().flatten().collect();
        let asked = questions
            .iter()
            .map(|q| text(q, "/question"))
            .collect::<Vec<_>>()
            .join("\n");
        let options = questions
            .iter()
            .flat_map(|q| q["options"].as_array().into_iter().flatten());
        let options = options
            .map(|o| {
                o["label"]
                    .as_str()
                    .or(o.as_str())
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect();
        out.push(
            QuestionRequest {
                request_id,
                text: asked,
                options,
                parent_tool_use_id: parent,
            }
            .into(),
        );
    }

    fn question_over(&mut self, p: &Value, out: &mut Vec<Action>) {
        let request_id = text(p, "/requestID").to_owned();
        if self.asked.remove(&request_id).is_some() {
            let answers = p["answers"].as_array().map(|all| {
                let one = |a: &Value| {
                    a.as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str)
                        .collect::<Vec<_>>()
                        .join(", ")
                };
                all.iter().map(one).collect::<Vec<_>>().join("\n")
            });
            out.push(
                QuestionResolved {
                    request_id,
                    answer: answers,
                }
                .into(),
            );
        }
    }

    fn end_if_drained(&mut self, out: &mut Vec<Action>) {
        let running = self.tools.values().any(|t| t.used);
        let complete = self.items.is_empty()
            && !running
            && self.messages.values().all(|m| m.user || m.complete);
        if self
            .turn
            .as_ref()
            .is_some_and(|t| t.draining && !t.stopped())
            && complete
        {
            self.end_turn(out);
        }
    }

    fn end_turn(&mut self, out: &mut Vec<Action>) {
        self.orphan(None, out);
        let Some(turn) = self.turn.take() else { return };
        let reason = match turn.finish.as_deref() {
            _ if turn.aborted => TurnEndReason::Interrupted,
            _ if turn.error => TurnEndReason::Error,
            Some("length") => TurnEndReason::MaxTokens,
            Some("content-filter") => TurnEndReason::Refusal,
            Some(_) => TurnEndReason::EndTurn,
            // No answer was finished: somebody stopped it while it waited to retry.
            None => TurnEndReason::Interrupted,
        };
        let stopped = turn.stopped();
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
        if stopped {
            self.ended.extend(
                self.messages
                    .iter()
                    .filter(|(_, m)| !m.user)
                    .map(|(id, _)| id.clone()),
            );
        } else if !turn.joined.is_empty() {
            // They came too late for this turn, and begin the next.
            self.waiting.extend(turn.joined);
            out.push(Action::Wake(ANSWER_TIME));
        }
        self.messages.retain(|_, m| m.user);
        self.tools.clear();
        self.asked.clear();
        self.children.clear();
    }

    /// A line of the one-shot mode: finished parts, without the messages that they belong to.
    fn run_line(&mut self, kind: &str, part: &Value, out: &mut Vec<Action>) -> bool {
        let session = text(part, "/sessionID");
        let Some(parent) = self.whose(session) else {
            return true;
        };
        if !matches!(
            kind,
            "step_start" | "text" | "reasoning" | "tool_use" | "step_finish"
        ) {
            return false;
        }
        self.begin_turn(out);
        self.part(part, parent, out)
    }

    fn post(&self, tag: CallPurpose, path: &str, body: Value) -> Action {
        Action::Call(RuntimeCall {
            tag,
            method: "POST",
            path: path.to_owned(),
            body: Some(body),
        })
    }

    fn look(&self, tag: CallPurpose, native_id: &str) -> Action {
        let path = format!(
            "/session/{}/message/{native_id}",
            self.session.as_deref().unwrap_or_default()
        );
        Action::Call(RuntimeCall {
            tag,
            method: "GET",
            path,
            body: None,
        })
    }

    fn create(&self) -> Action {
        // With a title of ours, the model is not asked for one.
        self.post(
            CallPurpose::Open,
            "/session",
            json!({ "title": format!("session {}", self.session_id) }),
        )
    }

    fn sent_as(&self, input_id: &str) -> Option<String> {
        self.sent
            .iter()
            .find(|(_, input)| input.input_id == input_id)
            .map(|(id, _)| id.clone())
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
        let (status, body) = match &reply {
            CallReply::Answer { status, body } => (*status, body.as_slice()),
            CallReply::Lost(_) => (0, &b""[..]),
        };
        let said = || String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned();
        let after_restart = matches!(tag, CallPurpose::Look(_));
        match tag {
            CallPurpose::Open | CallPurpose::Resume if status == 200 => {
                let id = serde_json::from_slice::<Value>(body)
                    .ok()
                    .and_then(|v| v["id"].as_str().map(str::to_owned));
                match id {
                    Some(id) => {
                        self.session = Some(id.clone());
                        out.push(Action::Ready {
                            native_session_id: id,
                            resumed: tag == CallPurpose::Resume,
                        });
                    }
                    None => out.push(Action::Broken(format!(
                        "opencode answered a session without an id: {}",
                        said()
                    ))),
                }
            }
            CallPurpose::Resume if status == 404 => {
                out.push(Warning { message: "opencode no longer has this session; a new one is begun, without its history".into() }.into());
                self.session = None;
                out.push(self.create());
            }
            CallPurpose::Open | CallPurpose::Resume => out.push(Action::Broken(format!(
                "opencode gave no session: status {status} {}",
                said()
            ))),
            CallPurpose::Deliver(input_id) => match (&reply, self.sent_as(&input_id)) {
                (_, None)
                | (
                    CallReply::Answer {
                        status: 200..300, ..
                    },
                    _,
                ) => {}
                (
                    CallReply::Answer {
                        status: 400..500, ..
                    },
                    Some(native),
                ) => {
                    self.sent.remove(&native);
                    out.push(Action::Refused {
                        input_id,
                        why: format!("opencode refused it with status {status}: {}", said()),
                    });
                }
                // Whether it arrived is not known, and is asked when opencode is up again.
                (CallReply::Answer { .. }, _) => out.push(Action::Broken(format!(
                    "opencode failed to take an input: status {status} {}",
                    said()
                ))),
                (CallReply::Lost(why), _) => out.push(Action::Broken(format!(
                    "opencode did not say whether it took an input: {why}"
                ))),
            },
            CallPurpose::Look(input_id) | CallPurpose::Check(input_id) => match (
                status,
                self.sent_as(&input_id),
            ) {
                (_, None) => {}
                (200, Some(native)) => {
                    if let Some(input) = self.sent.remove(&native) {
                        self.arrived(&native, &input, out);
                        if after_restart {
                            self.unanswered(out);
                        }
                    }
                }
                (404, Some(native)) => {
                    self.sent.remove(&native);
                    out.push(match after_restart {
                        true => Action::Undelivered { input_id },
                        false => Action::Refused {
                            input_id,
                            why: "opencode took it and did not store it".into(),
                        },
                    });
                }
                _ => out.push(Action::Broken(format!(
                    "opencode does not say whether it has message `{input_id}`: status {status} {}",
                    said()
                ))),
            },
            CallPurpose::Interrupt if status == 200 => {}
            CallPurpose::Interrupt => out.push(Action::Broken(format!(
                "opencode cannot be interrupted: status {status} {}",
                said()
            ))),
            CallPurpose::Output(_) => {}
            CallPurpose::Answer(_) if status == 200 => {}
            CallPurpose::Answer(request) => {
                // It still waits.
                self.asked
                    .entry(request.clone())
                    .and_modify(|asked| asked.1 = false);
                self.decided.remove(&request);
                out.push(
                    Warning {
                        message: format!(
                            "opencode did not take the answer to `{request}`: status {status} {}",
                            said()
                        ),
                    }
                    .into(),
                )
            }
        }
    }

    /// As opencode makes them: it orders messages by their ids, which begin with the time.
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
            // That was said when it stood in opencode's history.
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
            // While it waits to retry, opencode says nothing of an abort.
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
        let about_question = matches!(
            decision,
            PermissionDecision::Answers(_) | PermissionDecision::RejectQuestion
        );
        match self.asked.get_mut(request_id) {
            Some((is_question, answered)) if *is_question == about_question && !*answered => {
                *answered = true
            }
            _ => return false,
        }
        let permission = |reply: &str, message: Option<&str>| {
            (
                format!("/permission/{request_id}/reply"),
                json!({ "reply": reply, "message": message }),
            )
        };
        let (path, body) = match decision {
            PermissionDecision::Allow => permission("once", None),
            PermissionDecision::AllowAlways => permission("always", None),
            // Without a message opencode would end the turn.
            PermissionDecision::Deny { message } => {
                permission("reject", Some(message.as_deref().unwrap_or(DENIED)))
            }
            PermissionDecision::Answers(answers) => (
                format!("/question/{request_id}/reply"),
                json!({ "answers": answers }),
            ),
            PermissionDecision::RejectQuestion => {
                (format!("/question/{request_id}/reject"), json!({}))
            }
        };
        if !about_question {
            self.decided.insert(
                request_id.to_owned(),
                (decision.name().to_owned(), by.to_owned()),
            );
        }
        out.push(self.post(CallPurpose::Answer(request_id.to_owned()), &path, body));
        true
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
            // Its last word was said: what is missing is only the word that it is idle.
            let finished =
                self.tools.is_empty() && matches!(turn.finish.as_deref(), Some("stop" | "length"));
            turn.error |= !turn.draining && !turn.aborted && !finished;
        }
        self.end_turn(out);
        if !self.waiting.is_empty() {
            self.unanswered(out);
        }
        // Inputs that were handed over are looked for when it is up again.
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

fn tool_over(tool: OpencodeTool, state: &Value, parent: Option<String>, out: &mut Vec<Action>) {
    let completed = state["status"] == "completed";
    let exit_code = state["metadata"]["exit"].as_i64();
    // A command that was killed has an exit code of null.
    let killed = state["metadata"].get("exit").is_some_and(Value::is_null);
    let is_error =
        !completed || killed || exit_code.is_some_and(|c| c != 0) || tool.name == "invalid";
    let output = text(state, if completed { "/output" } else { "/error" }).to_owned();
    let time = &state["time"];
    let duration_ms = time["end"]
        .as_u64()
        .zip(time["start"].as_u64())
        .map(|(end, start)| end.saturating_sub(start));
    let change = (!is_error)
        .then(|| file_change(&tool, state, parent.clone()))
        .flatten();
    out.push(
        ToolResult {
            tool_use_id: tool.id,
            output,
            is_error,
            exit_code,
            duration_ms,
            parent_tool_use_id: parent,
        }
        .into(),
    );
    out.extend(change.map(Action::from));
}

fn file_change(tool: &OpencodeTool, state: &Value, parent: Option<String>) -> Option<FileChange> {
    if !matches!(
        tool.name.as_str(),
        "write" | "edit" | "multiedit" | "apply_patch" | "patch"
    ) {
        return None;
    }
    let path = [
        text(state, "/input/filePath"),
        text(state, "/metadata/filediff/file"),
        text(state, "/metadata/filepath"),
    ];
    let path = path.into_iter().find(|p| !p.is_empty())?.to_owned();
    let kind = if state["metadata"]["exists"] == false {
        ChangeKind::Add
    } else {
        ChangeKind::Modify
    };
    let diff = Some(text(state, "/metadata/diff").to_owned()).filter(|d| !d.is_empty());
    Some(FileChange {
        path,
        kind,
        diff,
        tool_use_id: Some(tool.id.clone()),
        parent_tool_use_id: parent,
    })
}

/// A tool's name as every runtime has it.
fn canonical(native: &str, mcp: &[String]) -> String {
    match native {
        "webfetch" => return "web_fetch".into(),
        "websearch" => return "web_search".into(),
        "apply_patch" | "multiedit" | "patch" => return "edit".into(),
        _ => {}
    }
    for server in mcp {
        if let Some(tool) = native
            .strip_prefix(&sanitized(server))
            .and_then(|rest| rest.strip_prefix('_'))
        {
            return format!("mcp__{server}__{tool}");
        }
    }
    native.to_owned()
}

/// What `output` has beyond `seen`. It grows at its end; from 30 KB on it is a window of the
/// end, after three dots and a blank line.
fn appended_since<'a>(seen: &str, output: &'a str) -> &'a str {
    if let Some(more) = output.strip_prefix(seen) {
        return more;
    }
    let window = output.strip_prefix("...\n\n").unwrap_or(output);
    let seen = seen.strip_prefix("...\n\n").unwrap_or(seen);
    // The longest end of what was seen that the window begins with.
    let probe = window
        .char_indices()
        .nth(32)
        .map_or(window.len(), |(i, _)| i);
    let finder = memchr::memmem::Finder::new(&window[..probe]);
    for start in finder.find_iter(seen.as_bytes()) {
        if let Some(tail) = seen.get(start..)
            && let Some(more) = window.strip_prefix(tail)
        {
            return more;
        }
    }
    window
}

/// From the time within an event's id to `next`; both count milliseconds since 1970, the id
/// only their lower 36 bits.
fn milliseconds_after(id: &str, next: u64) -> Option<u64> {
    const BITS: u64 = (1 << 36) - 1;
    let said = u64::from_str_radix(id.strip_prefix("evt_")?.get(..12)?, 16).ok()? >> 12;
    let after = (next & BITS).wrapping_sub(said) & BITS;
    // Further away than a day: the time has passed.
    Some(if after > 86_400_000 { 0 } else { after })
}

/// JSON in which every half of a surrogate pair that stands alone is U+FFFD: JavaScript cuts
/// texts between the two, and writes what no Unicode text can hold.
fn replace_lone_surrogates(json: &str) -> String {
    let unit = |at: usize| {
        json.get(at..at + 6)
            .and_then(|e| e.strip_prefix("\\u"))
            .and_then(|hex| u16::from_str_radix(hex, 16).ok())
    };
    let (mut out, mut at) = (String::with_capacity(json.len()), 0);
    while let Some(found) = json[at..].find('\\') {
        let escape = at + found;
        out.push_str(&json[at..escape]);
        let whole = match (unit(escape), unit(escape + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                out.push('\u{fffd}');
                at = escape + 6;
                continue;
            }
            (Some(_), _) => 6,
            // A backslash and the character that it escapes.
            (None, _) => 1 + json[escape + 1..].chars().next().map_or(0, char::len_utf8),
        };
        out.push_str(&json[escape..escape + whole]);
        at = escape + whole;
    }
    out.push_str(&json[at..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

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
        // Nothing in common: all of it.
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
