//! What a runtime is: how its CLI is started, and what its format means. One file a CLI.
//!
//! A translator is pure: native bytes in, [`Action`]s out. It does no I/O, knows no clock and
//! no task, so a recording is all that it takes to test it. The session carries its actions
//! out; everything that holds for every runtime (turns that end, step limits, restarts) is
//! done there and not here.

pub mod capabilities;
pub mod claude;
pub mod codex;
pub mod error_code;
pub mod gemini;
pub mod in_flight;
pub mod items;
pub mod native;
pub mod opencode;
pub mod pi;
pub mod registry;

pub mod action;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use self::action::{Action, CallPurpose, CallReply, PermissionDecision};
use self::capabilities::Capabilities;
use crate::adapter::inbox::Input;
use crate::base::settings::shown;
use crate::base::token::hex;
use crate::event::UserMessage;

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
    /// Where the user's own settings are: `~/.config`. `None`: there is no home.
    pub user_config: Option<PathBuf>,
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
