//! What a runtime is: how its CLI is started, and what its format means. One file a CLI.
//!
//! A translator is pure: native bytes in, [`Action`]s out. It does no I/O, knows no clock and
//! no task, so a recording is all that it takes to test it. The session carries its actions
//! out; everything that holds for every runtime (turns that end, step limits, restarts) is
//! done there and not here.

pub mod claude;
pub mod codex;
pub mod error_code;
pub mod gemini;
pub mod in_flight;
pub mod items;
pub mod opencode;
pub mod pi;
pub mod registry;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::adapter::inbox::Input;
use crate::base::settings::shown;
use crate::base::token::hex;
use crate::event::{InputMode, Payload, PlanItem, PlanUpdate, UserMessage};

/// Reads one variable of the environment.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A CLI, as the registry lists it.
#[derive(Debug)]
pub struct Runtime {
    /// Its name in configurations and events.
    pub id: &'static str,
    pub name: &'static str,
    /// What is looked for on `PATH`.
    pub program: &'static str,
    /// Its package, for npm.
    pub package: &'static str,
    /// The newest version that passed all tests. Tests, images and hints install this one.
    pub verified: &'static str,
    /// The oldest version that passed all tests.
    pub verified_from: &'static str,
    /// The first parts of the version numbers that are accepted (`2.`): these versions are taken to
    /// speak the recorded protocol.
    pub protocols: &'static [&'static str],
    pub default_model: &'static str,
    /// Finds the model in the environment that a platform sets.
    pub model_in_env: fn(Env<'_>) -> Option<String>,
    /// Providers that it can be pointed at the sidecar for.
    pub providers: &'static [&'static str],
    pub capabilities: Capabilities,
    /// Writes what the CLI reads into its home, and says how it is started.
    pub launch: fn(&LaunchContext) -> io::Result<LaunchPlan>,
    pub translator: fn(&LaunchContext) -> Box<dyn Translator>,
}

impl Runtime {
    /// Whether `version` lies in the range whose two ends passed all tests.
    pub fn is_verified(&self, version: &str) -> bool {
        let numbers = |version: &str| {
            version
                .split('.')
                .map(|n| n.parse().ok())
                .collect::<Option<Vec<u32>>>()
        };
        numbers(version).is_some_and(|version| {
            (numbers(self.verified_from)..=numbers(self.verified)).contains(&Some(version))
        })
    }

    /// The range of versions that were verified, as it stands in messages and in the documentation.
    pub fn verified_range(&self) -> String {
        if self.verified_from == self.verified {
            self.verified.to_owned()
        } else {
            format!("{} to {}", self.verified_from, self.verified)
        }
    }

    /// Whether `version` can be used.
    ///
    /// # Errors
    /// It does not speak the protocol that is understood; what to install instead.
    pub fn accept_version(&self, version: &str) -> Result<(), String> {
        if self
            .protocols
            .iter()
            .any(|first| version.starts_with(first))
        {
            return Ok(());
        }
        let known = self
            .protocols
            .iter()
            .map(|first| format!("`{first}x`"))
            .collect::<Vec<_>>()
            .join(" and ");
        Err(format!(
            "its version is `{version}`, and only {known} is understood\nhint: install {} (`{}`)",
            self.verified,
            self.install()
        ))
    }

    /// How the newest version that was verified is installed.
    pub fn install(&self) -> String {
        format!("npm install -g {}@{}", self.package, self.verified)
    }

    /// The message for a program that cannot be found or run. `place` names the setting or the flag
    /// in which another program can be given.
    pub fn not_found(&self, program: &str, place: &str) -> String {
        let path = Path::new(program);
        let why = match path.components().count() {
            1 => "was not found on `PATH`".to_owned(),
            _ if path.is_dir() => format!("is a directory; name the program itself in `{place}`"),
            _ if path.exists() => format!(
                "cannot be run by user {}: make it executable (`chmod +x`)",
                rustix::process::geteuid().as_raw()
            ),
            _ => format!("was not found; it stands in `{place}`"),
        };
        format!(
            "{} {why}\nhint: install it (`{}`), or name its program with `{place}`",
            shown(program),
            self.install()
        )
    }

    /// Where the configuration can name another program.
    pub fn program_setting(&self) -> String {
        format!("agents.agentRuntimes.{}.program", self.id)
    }
}

/// What a runtime can do. Public: `GET /capabilities`.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(clippy::struct_excessive_bools)]
pub struct Capabilities {
    /// An input reaches a running turn without output being lost.
    pub steer: bool,
    pub interrupt: bool,
    pub resume: bool,
    /// Tools can wait for a decision.
    pub permissions: bool,
    pub questions: bool,
    pub mcp: bool,
    pub images: bool,
    pub deltas: bool,
    pub reasoning: bool,
    /// Output of a tool while it runs.
    pub tool_output: bool,
    /// Retries that the CLI makes are told.
    pub retries: bool,
    pub cost: bool,
}

/// How much of a session a runtime can be given. Public: `outrigger runtimes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Tier {
    /// One task, to its end.
    Batch,
    /// Inputs while it runs, interrupts, and a session that survives a restart.
    Interactive,
    /// And tools that wait for a decision, and tool servers.
    #[serde(rename = "Full-Agent")]
    FullAgent,
}

impl Capabilities {
    pub fn tier(&self) -> Tier {
        match (
            self.interrupt && self.resume && self.deltas,
            self.permissions && self.mcp,
        ) {
            (true, true) => Tier::FullAgent,
            (true, false) => Tier::Interactive,
            (false, _) => Tier::Batch,
        }
    }

    /// The names of those it has.
    pub fn names(&self) -> Vec<String> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map
                .into_iter()
                .filter(|(_, v)| *v == Value::Bool(true))
                .map(|(k, _)| k)
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// Whether tools may run without being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permissions {
    /// The container is the sandbox: nothing is asked.
    Allow,
    /// What changes something waits for `POST :8788/permission/{id}`.
    Ask,
    /// What would be asked for is refused.
    Deny,
}

/// A tool server that the CLI is given.
#[derive(Debug, Clone, PartialEq)]
pub enum Mcp {
    Local {
        command: Vec<String>,
        env: BTreeMap<String, String>,
    },
    Remote {
        url: String,
        headers: BTreeMap<String, String>,
    },
}

/// What a session wants of its runtime.
#[derive(Debug, Clone)]
pub struct LaunchContext {
    pub session_id: String,
    /// The CLI's own spelling.
    pub model: String,
    /// The sidecar, without a trailing slash.
    pub sidecar: String,
    /// What clients present to the sidecar as their key: its session token, or a placeholder.
    pub key: String,
    pub workdir: PathBuf,
    pub permissions: Permissions,
    /// Tools that need no permission, as Claude Code spells them: `Read`, `Bash(git *)`.
    pub allowed_tools: Vec<String>,
    pub mcp: BTreeMap<String, Mcp>,
    /// Subagents may be started.
    pub subagents: bool,
    /// Somebody is there to answer questions.
    pub interactive: bool,
    /// A directory of the session's own, kept across restarts: where a CLI can be told where
    /// its settings and its history are, they are here.
    pub home: PathBuf,
    /// Where the user's own settings are: `~/.config`.
    pub user_config: PathBuf,
    /// What the CLI is to resume by.
    pub resume: Option<String>,
    /// 64 hexadecimal digits, drawn anew for each start: for a password, or an id.
    pub random: String,
}

impl LaunchContext {
    /// Whether some commands need no permission.
    fn allows_commands(&self) -> bool {
        self.allowed_tools
            .iter()
            .any(|tool| tool.starts_with("Bash"))
    }
}

/// How a CLI is started.
#[derive(Debug, Clone)]
pub struct LaunchPlan {
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub wiring: Transport,
    /// What was asked for and this CLI cannot do.
    pub warnings: Vec<String>,
    /// Its session, where the one who starts it chooses: the id, and whether it is resumed.
    pub session: Option<(String, bool)>,
}

/// How one talks with it.
#[derive(Debug, Clone)]
pub enum Transport {
    /// It serves HTTP on loopback.
    Http {
        /// Finds its address in a line that it prints.
        announced: fn(&str) -> Option<String>,
        /// `Authorization` of every request.
        authorization: String,
        /// Polled until it answers 200.
        health: &'static str,
        /// Finds the CLI's version in that answer.
        version: fn(&[u8]) -> Option<String>,
        /// A stream of server-sent events.
        events: &'static str,
    },
    /// JSON lines: messages to its standard input, which stays open, and from its standard output.
    Lines {
        /// Its protocol does not tell its version: it is asked with `--version`.
        version_flag: bool,
    },
}

/// What the session is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Say it on the stream.
    Event(Payload),
    /// Ask the CLI something; the answer comes to [`Translator::reply`].
    Call(RuntimeCall),
    /// Tell the CLI something, on a line. What it answers is read like all that it says.
    Send(Value),
    /// Read what the CLI wrote down; it comes to [`Translator::reply`], as an HTTP answer would:
    /// 200, or 404.
    ReadFile { tag: CallPurpose, file: FilePattern },
    /// The CLI tells its version.
    Version(String),
    /// The CLI has a session; inputs may come.
    Ready {
        native_session_id: String,
        resumed: bool,
    },
    /// This input is in the CLI's own history now. Said once an input.
    Delivered { input_id: String },
    /// The CLI does not have this input: hand it over (again).
    Undelivered { input_id: String },
    /// The CLI cannot take this input, ever.
    Refused { input_id: String, why: String },
    /// The model wants to go on with what its tools said: it will be asked once more.
    Step,
    /// Come back after so long, even if nothing else happens.
    Wake(Duration),
    /// The CLI cannot go on; it must be started again.
    Broken(String),
}

impl Input {
    /// What is said when the CLI has it.
    pub fn message(&self) -> UserMessage {
        UserMessage {
            input_id: self.input_id.clone(),
            text: self.text.clone(),
            sender_id: self.sender_id.clone(),
            source: self.source,
            mode: self.mode,
            attachments: self.attachments.len() as u32,
        }
    }
}

impl<P: Into<Payload>> From<P> for Action {
    fn from(payload: P) -> Action {
        Action::Event(payload.into())
    }
}

/// A file that a CLI keeps: the largest below `dir` (at most two directories deep) whose name
/// ends so. Of a long one, the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePattern {
    pub dir: PathBuf,
    pub suffix: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeCall {
    /// What the translator knows the answer by.
    pub tag: CallPurpose,
    pub method: &'static str,
    pub path: String,
    pub body: Option<Value>,
}

/// Why a call was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallPurpose {
    Open,
    Resume,
    /// Whether an input that was handed over before a restart arrived.
    Look(String),
    /// Whether one that was handed over since did.
    Check(String),
    Deliver(String),
    Interrupt,
    Answer(String),
    /// What a tool said, which the CLI itself does not tell.
    Output(String),
}

/// The answer to a call.
#[derive(Debug, Clone)]
pub enum CallReply {
    Answer {
        status: u16,
        body: Vec<u8>,
    },
    /// None came.
    Lost(String),
}

/// A user's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PermissionDecision {
    Allow,
    AllowAlways,
    Deny { message: Option<String> },
    Answers(Vec<Vec<String>>),
    RejectQuestion,
}

impl PermissionDecision {
    /// As the stream has it; only permissions' are there.
    pub fn name(&self) -> &'static str {
        match self {
            PermissionDecision::Allow => "allow",
            PermissionDecision::AllowAlways => "allow_always",
            PermissionDecision::Deny { .. } => "deny",
            PermissionDecision::Answers(_) => "answered",
            PermissionDecision::RejectQuestion => "rejected",
        }
    }
}

/// What one CLI's format means.
pub trait Translator: Send {
    /// The CLI is up: make a session, or go on with one.
    fn open(&mut self, native_session_id: Option<&str>, resumed: bool, out: &mut Vec<Action>);
    /// One native message.
    fn read(&mut self, native: &[u8], out: &mut Vec<Action>);
    /// One line of what it writes beside its messages.
    fn read_stderr(&mut self, _line: &str, _out: &mut Vec<Action>) {}
    /// The answer to a `Call` or a `ReadFile`.
    fn reply(&mut self, _tag: CallPurpose, _reply: CallReply, _out: &mut Vec<Action>) {}
    /// The name that an input will have in the CLI, where it can be chosen; `now` in
    /// milliseconds since 1970, `random` 14 random bytes.
    fn native_id(&self, now: i64, random: [u8; 14]) -> String;
    fn deliver(&mut self, input: &Input, native_id: &str, out: &mut Vec<Action>);
    /// Did this input, handed over before a crash, arrive? Answered by `Delivered` or
    /// `Undelivered`. `told`: so was its turn; else one is told for it, if it arrived.
    fn look_for(&mut self, input: &Input, native_id: &str, told: bool, out: &mut Vec<Action>);
    fn interrupt(&mut self, out: &mut Vec<Action>);
    /// False: no such request is open.
    fn answer(
        &mut self,
        request_id: &str,
        decision: &PermissionDecision,
        by: &str,
        out: &mut Vec<Action>,
    ) -> bool;
    /// Could an input join the running turn now: at all, or (not `lossy`) without output being
    /// lost?
    fn steers_now(&self, _lossy: bool) -> bool {
        true
    }
    /// The time of a `Wake` has come.
    fn wake(&mut self, _out: &mut Vec<Action>) {}
    /// The CLI is gone: say what of its work is known, and forget it.
    fn close(&mut self, out: &mut Vec<Action>);
    fn phase(&self) -> Phase;
}

/// What the CLI is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No turn is running, and none is about to.
    Idle,
    Busy,
    /// The turn was stopped, or has failed, and not all of it has been said: what is handed
    /// over now could be taken for a part of it.
    Settling,
}

/// `OPENCODE_MODEL`, of `OPENCODE_PROVIDER` where it names none: what platforms set, whichever CLI
/// runs.
fn model_of_platform(env: Env<'_>) -> Option<String> {
    let model = env("OPENCODE_MODEL")?;
    Some(match env("OPENCODE_PROVIDER") {
        Some(provider) if !model.contains('/') => format!("{provider}/{model}"),
        _ => model,
    })
}

/// Writes a file that a CLI reads, whatever stands in its place: nobody else can read it, and no
/// link or pipe that the agent laid there is followed or waited for.
fn write_private_file(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&fresh, path)
}

/// A name for an input that begins with the time: where the CLI keeps no name, the time tells
/// it from another with the same text.
fn timed_id(now: i64, random: [u8; 14]) -> String {
    format!("{now:012x}-{}", hex(&random[..8]))
}

/// The time of such a name, in milliseconds since 1970.
fn sent_at(native_id: &str) -> Option<i64> {
    i64::from_str_radix(native_id.split_once('-')?.0, 16).ok()
}

/// A native message: JSON, or what stands where some should.
fn parsed(native: &[u8]) -> Value {
    serde_json::from_slice(native)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(native).into_owned()))
}

/// The lines of a CLI's own file that contain `part`, parsed, the newest first. Such a file can be
/// long, and what is looked for stands near its end: no other line is parsed.
fn newest_first(file: &[u8], part: &[u8]) -> impl Iterator<Item = Value> {
    let lines = file
        .rsplit(|b| *b == b'\n')
        .filter(move |line| memchr::memmem::find(line, part).is_some());
    lines.filter_map(|line| serde_json::from_slice(line).ok())
}

/// The text of a message or of a tool's result. The content is a string, or a list of blocks, each
/// with a text, or with the name of a tool that a search has found.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        blocks => {
            let blocks = blocks.as_array().into_iter().flatten();
            blocks
                .filter_map(|b| b["text"].as_str().or(b["tool_name"].as_str()))
                .collect::<Vec<_>>()
                .join("\n")
        }
    }
}

/// An id of ours, made from ids of a CLI: it can stand in a path as it is.
fn request_id(tool: &str, number: &Value) -> String {
    let unreserved = |c: char| {
        if c.is_ascii_alphanumeric() || "-._~".contains(c) {
            c
        } else {
            '-'
        }
    };
    format!("{tool}.{number}").chars().map(unreserved).collect()
}

/// A plan whose steps have a `content` and a `status`.
fn plan(steps: &Value) -> Action {
    let step = |s: &Value| PlanItem {
        text: text(s, "/content").into(),
        status: text(s, "/status").into(),
    };
    PlanUpdate {
        items: steps.as_array().into_iter().flatten().map(step).collect(),
    }
    .into()
}

/// What a tool's permission can be answered with.
fn permission_options() -> Vec<String> {
    ["allow", "allow_always", "deny"]
        .map(str::to_owned)
        .to_vec()
}

/// What a CLI is told of a refusal that came without a reason.
const DENIED: &str = "the user denied this";

/// What is said when a CLI has compacted its history.
const COMPACTED: &str =
    "the conversation was compacted: the model sees a summary of what came before";

/// The text at a JSON pointer; empty where there is none.
fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// How an input gets to a busy CLI; `steers`: it can join the turn without loss, now.
pub fn effective_mode(mode: InputMode, steers: bool) -> InputMode {
    match mode {
        InputMode::Auto if steers => InputMode::Steer,
        InputMode::Auto => InputMode::Queue,
        other => other,
    }
}
