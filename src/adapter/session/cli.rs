//! The coming and going of the CLI: started, found, heard, stopped.

use std::collections::VecDeque;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::stream::raw_output;
use super::{Session, TOO_LONG, asked_to_end, describe, until};
use crate::adapter::config::AdapterConfig;
use crate::adapter::config::ports::read_key;
use crate::adapter::environment;
use crate::adapter::process::{self, Process, Program};
use crate::adapter::runtime::{LaunchContext, LaunchPlan, Transport};
use crate::adapter::transport::{CliHttpClient, FromCli, LineSplitter};
use crate::adapter::trouble::Component;
use crate::base::disk::is_full;
use crate::base::token::Token;
use crate::event::{ErrorCode, ErrorEvent, SessionEnd, SessionEndReason, StageState, Warning};

/// From its start until it can take a first input.
const START_TIME: Duration = Duration::from_secs(60);
/// One try of its health; an early one may never be answered.
const HEALTH_TIME: Duration = Duration::from_millis(500);
const HEALTH_EVERY: Duration = Duration::from_millis(50);
/// One try to reach the sidecar: one that has little CPU takes its time.
const SIDECAR_TIME: Duration = Duration::from_secs(5);
/// Between two tries: at first, and in the end.
const SIDECAR_EVERY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often it is said that the sidecar is waited for.
const SIDECAR_STAGE: Duration = Duration::from_secs(60);
/// How long what is in the pipes of a CLI that is gone is read.
const WIND_UP_TIME: Duration = Duration::from_secs(2);
/// Between two tries to write its settings on a full disk.
const DISK_EVERY: Duration = Duration::from_millis(500);
/// What is kept of what it writes to stderr.
const STDERR_TAIL: usize = 4 << 10;

/// A CLI that is up.
pub(super) struct RunningCli {
    pub(super) process: Process,
    pub(super) http: CliHttpClient,
    /// It speaks in JSON lines; this writes to its standard input.
    input: Option<mpsc::UnboundedSender<Bytes>>,
    pub(super) speaks_lines: bool,
    pub(super) from_cli: mpsc::Receiver<FromCli>,
    pub(super) say: mpsc::Sender<FromCli>,
    pub(super) events: LineSplitter,
    pub(super) stdout: LineSplitter,
    pub(super) stderr: Tail,
    pub(super) ready: bool,
    pub(super) broken: Option<String>,
    events_task: Option<tokio::task::JoinHandle<()>>,
}

impl RunningCli {
    /// Writes one message to its standard input, after those before it.
    pub(super) fn send(&self, message: &Value) {
        if let Some(input) = &self.input {
            let mut line = message.to_string();
            line.push('\n');
            // One that has gone is noticed by its end.
            let _ = input.send(line.into());
        }
    }
}

/// Why a CLI is not up any more.
pub(super) enum CliExit {
    /// The session is over.
    Ended(SessionEnd),
    Crashed {
        why: String,
        status: Option<ExitStatus>,
        stderr: String,
        was_ready: bool,
    },
}

#[derive(Default)]
pub(super) struct Tail {
    pub(super) lines: LineSplitter,
    kept: VecDeque<u8>,
}

impl Tail {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.kept
            .extend(&bytes[bytes.len().saturating_sub(STDERR_TAIL)..]);
        let over = self.kept.len().saturating_sub(STDERR_TAIL);
        self.kept.drain(..over);
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept.iter().copied().collect::<Vec<u8>>())
            .trim()
            .to_owned()
    }
}

impl Session {
    /// Starts the CLI, up to where it has a session of ours.
    pub(super) async fn start(&mut self) -> Result<RunningCli, CliExit> {
        self.set_state("starting");
        self.wait_for_sidecar().await?;
        let since = Instant::now();
        self.stage("runtime_start", StageState::Started, since, None)
            .await;
        let running = self.launch().await;
        match &running {
            Ok(_) => {
                self.stage("runtime_start", StageState::Done, since, None)
                    .await
            }
            Err(CliExit::Crashed { why, .. }) => {
                self.stage(
                    "runtime_start",
                    StageState::Failed,
                    since,
                    Some(why.clone()),
                )
                .await
            }
            Err(CliExit::Ended(_)) => {}
        }
        running
    }

    pub(super) async fn launch(&mut self) -> Result<RunningCli, CliExit> {
        let failed = |why: String| CliExit::Crashed {
            why,
            status: None,
            stderr: String::new(),
            was_ready: false,
        };
        let random =
            Token::draw().map_err(|e| failed(format!("no random bytes can be drawn: {e}")))?;
        let setting = setting(
            &self.config,
            &self.stream.session_id,
            self.stream.lifecycle.native_session_id.clone(),
            random,
        );
        let LaunchPlan {
            args,
            env,
            wiring,
            warnings,
            session,
        } = self.prepare(&setting).await?;
        let program = self
            .config
            .program
            .clone()
            .unwrap_or_else(|| self.config.runtime.program.to_owned());
        let ours: Vec<(String, String)> = self.config.env.iter().cloned().chain(env).collect();
        let env = environment::environment(
            self.config.inherit_env,
            &self.config.allow_env,
            &ours,
            host(&self.config.sidecar),
        );
        let path = env
            .iter()
            .find(|(name, _)| name == "PATH")
            .map(|(_, value)| value.clone());
        let found = process::find(&program, path.as_ref());
        let found = found.ok_or_else(|| {
            failed(
                self.config
                    .runtime
                    .not_found(&program, &self.config.runtime.program_setting()),
            )
        })?;
        let (say, from_cli) = mpsc::channel(64);
        let speaks_lines = matches!(wiring, Transport::Lines { .. });
        let (workdir, session_id) = (self.config.workdir.clone(), self.stream.session_id.clone());
        let program = Program {
            path: found,
            args,
            env,
            workdir,
            session: session_id,
            stdin: speaks_lines,
        };
        let mut process = Process::start(&program, &say).map_err(|e| {
            failed(format!(
                "`{}` cannot be started: {e}",
                program.path.display()
            ))
        })?;
        self.stream.raw_event(json!({ "type": "start", "command": program.path.display().to_string(), "args": program.args }));
        let http = CliHttpClient {
            address: String::new(),
            authorization: String::new(),
        };
        let input = process.input();
        let mut running = RunningCli {
            process,
            http,
            input,
            speaks_lines,
            from_cli,
            say,
            events: LineSplitter::default(),
            stdout: LineSplitter::default(),
            stderr: Tail::default(),
            ready: false,
            broken: None,
            events_task: None,
        };
        if self.stream.lifecycle.native_session_id.is_none() {
            for message in warnings {
                self.stream.emit(Warning { message });
            }
        }
        // Heard beside it: who wants the session to end does not wait for its start.
        let mut commands = std::mem::replace(&mut self.commands, mpsc::channel(1).1);
        let got_ready = tokio::select! {
            got_ready = tokio::time::timeout(START_TIME, self.connect(&mut running, &wiring, &program, session)) => Ok(got_ready),
            end = asked_to_end(&mut commands) => Err(end),
        };
        self.commands = commands;
        let got_ready = match got_ready {
            Ok(got_ready) => got_ready,
            Err(end) => return Err(self.stop(running, end).await),
        };
        match got_ready.unwrap_or_else(|_| Err(format!("it was not ready within {START_TIME:?}"))) {
            Ok(()) => Ok(running),
            Err(why) => Err(self.gone(running, why).await),
        }
    }

    /// Writes what the CLI reads. A full disk is waited for.
    async fn prepare(&mut self, setting: &LaunchContext) -> Result<LaunchPlan, CliExit> {
        loop {
            let private = std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&setting.home);
            let e = match private.and_then(|()| (self.config.runtime.launch)(setting)) {
                Ok(launch) => {
                    self.troubles.clear(Component::Settings);
                    return Ok(launch);
                }
                Err(e) => e,
            };
            let why = format!(
                "what the CLI reads cannot be written into `{}`: {e}",
                setting.home.display()
            );
            if !is_full(&e) {
                return Err(CliExit::Crashed {
                    why,
                    status: None,
                    stderr: String::new(),
                    was_ready: false,
                });
            }
            if self.troubles.set(Component::Settings, &why) {
                tracing::error!("{why}; the CLI is not started until it can");
            }
            if let Some(end) = self.pause(DISK_EVERY, "starting").await {
                return Err(CliExit::Ended(end));
            }
        }
    }

    /// Waits until the CLI can be talked with, and gets a session.
    async fn connect(
        &mut self,
        running: &mut RunningCli,
        wiring: &Transport,
        program: &Program,
        session: Option<(String, bool)>,
    ) -> Result<(), String> {
        let found = match wiring {
            Transport::Http {
                announced,
                authorization,
                health,
                version,
                events,
            } => {
                let address = self.find_address(running, *announced).await?;
                running.http = CliHttpClient {
                    address,
                    authorization: authorization.clone(),
                };
                let body = healthy(running, health).await?;
                let found = version(&body);
                running.events_task = Some(
                    running
                        .http
                        .events(events, running.say.clone())
                        .await
                        .map_err(|e| format!("its events cannot be read: {e}"))?,
                );
                Some(found.unwrap_or_default())
            }
            Transport::Lines { version_flag: true } => Some(process::version(program).await?),
            Transport::Lines {
                version_flag: false,
            } => None,
        };
        if let Some(version) = found {
            self.version = Some(version);
            self.check_version()?;
        }
        let known = self
            .stream
            .lifecycle
            .native_session_id
            .clone()
            .map(|id| (id, true));
        let (id, resumed) = session
            .or(known)
            .map_or((None, false), |(id, resumed)| (Some(id), resumed));
        let mut actions = Vec::new();
        self.translator.open(id.as_deref(), resumed, &mut actions);
        self.apply(running, actions).await;
        while !running.ready {
            tokio::select! {
                biased;
                () = until(self.timers.next(false)) => self.on_time(running).await,
                from_cli = running.from_cli.recv() => if let Some(from_cli) = from_cli { self.handle_output(running, from_cli).await },
                status = running.process.ended() => return Err(too_early(status)),
            }
            if let Some(why) = running.broken.take() {
                return Err(why);
            }
        }
        Ok(())
    }

    /// Where the CLI says that it listens.
    async fn find_address(
        &mut self,
        running: &mut RunningCli,
        announced: fn(&str) -> Option<String>,
    ) -> Result<String, String> {
        loop {
            let mut address = None;
            tokio::select! {
                from_cli = running.from_cli.recv() => match from_cli {
                    Some(FromCli::Stdout(bytes)) => running.stdout.feed(&bytes, |line| {
                        let line = line.unwrap_or(TOO_LONG);
                        raw_output(&mut self.stream.raw, "stdout", line);
                        address = address.take().or_else(|| announced(&String::from_utf8_lossy(line)));
                    }),
                    Some(from_cli) => self.handle_output(running, from_cli).await,
                    None => {}
                },
                status = running.process.ended() => return Err(too_early(status)),
            }
            if let Some(address) = address {
                return Ok(address);
            }
        }
    }

    pub(super) fn check_version(&mut self) -> Result<(), String> {
        let runtime = self.config.runtime;
        let version = self.version.clone().unwrap_or_default();
        runtime.accept_version(&version)?;
        if !runtime.is_verified(&version) {
            self.stream.emit(Warning {
                message: format!(
                    "{} {version} was not verified; verified: {}",
                    runtime.name,
                    runtime.verified_range()
                ),
            });
        }
        Ok(())
    }

    /// A CLI without its provider would only fail, each in its own way. The sidecar may come later
    /// than the agent: it is waited for without end.
    pub(super) async fn wait_for_sidecar(&mut self) -> Result<(), CliExit> {
        let (since, address) = (
            Instant::now(),
            self.config.sidecar.trim_start_matches("http://").to_owned(),
        );
        let (mut told, mut refused, mut every) = (None::<Instant>, false, SIDECAR_EVERY.0);
        loop {
            self.read_key_again();
            let http = CliHttpClient {
                address: address.clone(),
                authorization: format!("Bearer {}", self.config.key),
            };
            let why = match http.ask("HEAD", "/", None, SIDECAR_TIME).await {
                Ok((200, _)) => break,
                Ok((401, _)) => {
                    if !std::mem::replace(&mut refused, true) {
                        self.stream.emit(self.wrong_token(&address));
                    }
                    every = SIDECAR_EVERY.1;
                    "it refuses this session's token".to_owned()
                }
                Ok((status, _)) => format!("it answers with status {status}"),
                Err(why) => why,
            };
            let why = format!("the sidecar at {address} is waited for: {why}");
            self.troubles.set(Component::Sidecar, &why);
            if told.is_none_or(|at| at.elapsed() >= SIDECAR_STAGE) {
                told = Some(Instant::now());
                self.stage("sidecar", StageState::Started, since, Some(why.clone()))
                    .await;
            }
            if self
                .config
                .sidecar_patience
                .is_some_and(|patience| since.elapsed() > patience)
            {
                let why = format!(
                    "{why}\nhint: start `outrigger sidecar`, or name another address in `--sidecar` or `sidecar.url`"
                );
                return Err(CliExit::Crashed {
                    why,
                    status: None,
                    stderr: String::new(),
                    was_ready: false,
                });
            }
            if let Some(end) = self.pause(every, "starting").await {
                self.troubles.clear(Component::Sidecar);
                return Err(CliExit::Ended(end));
            }
            every = (every * 2).min(SIDECAR_EVERY.1);
        }
        self.troubles.clear(Component::Sidecar);
        if told.is_some() {
            self.stage("sidecar", StageState::Done, since, None).await;
        }
        Ok(())
    }

    fn wrong_token(&self, address: &str) -> ErrorEvent {
        let hint = match &self.config.key_file {
            Some(file) => format!(
                "`{}` must hold the token of the sidecar's `tokenFile`",
                file.display()
            ),
            None => "name the file that holds it in `sidecar.tokenFile` of adapter.yaml".to_owned(),
        };
        ErrorEvent::new(
            ErrorCode::Auth,
            format!("the sidecar at {address} refuses this session's token\nhint: {hint}"),
        )
    }

    /// The token may have been renewed since.
    fn read_key_again(&mut self) {
        let Some(file) = &self.config.key_file else {
            return;
        };
        match read_key(file) {
            Ok(key) => self.config.key = key,
            Err(e) => tracing::warn!("the session's token stays as it was: {e}"),
        }
    }

    /// Ends a CLI that works, because the session is over.
    pub(super) async fn stop(&mut self, running: RunningCli, end: SessionEnd) -> CliExit {
        self.inbox.close(true);
        // What is cut here was interrupted by us.
        self.translator.interrupt(&mut Vec::new());
        let (mut end, (status, _)) = (end, self.terminate(running).await);
        if end.reason != SessionEndReason::Completed {
            end.exit_code = status.and_then(|s| s.code());
        }
        CliExit::Ended(end)
    }

    /// A CLI that is gone, or must go because it does not work.
    pub(super) async fn gone(&mut self, running: RunningCli, why: String) -> CliExit {
        let was_ready = running.ready;
        let (status, stderr) = self.terminate(running).await;
        CliExit::Crashed {
            why,
            status,
            stderr,
            was_ready,
        }
    }

    /// Hears its last words, which may say why, and leaves nothing of it running.
    async fn terminate(&mut self, mut running: RunningCli) -> (Option<ExitStatus>, String) {
        let status = self.drain_pipes(&mut running).await;
        let stderr = running.stderr.text();
        let status = stop_process(running, status).await;
        self.stream
            .raw_event(json!({ "type": "exit", "code": status.and_then(|s| s.code()) }));
        (status, stderr)
    }

    /// Hears what is still in the pipes.
    async fn drain_pipes(&mut self, running: &mut RunningCli) -> Option<ExitStatus> {
        let status = tokio::time::timeout(Duration::ZERO, running.process.ended())
            .await
            .ok()
            .flatten();
        let until = Instant::now() + WIND_UP_TIME;
        while let Ok(Some(from_cli)) =
            tokio::time::timeout(Duration::from_millis(50), running.from_cli.recv()).await
        {
            if Instant::now() > until {
                break;
            }
            if !matches!(from_cli, FromCli::EventsOver(_)) {
                self.handle_output(running, from_cli).await;
            }
            if status.is_none() {
                break;
            }
        }
        // A last line without its end counts.
        for (open, kind) in [
            (
                running.stdout.are_open(),
                FromCli::Stdout as fn(Bytes) -> FromCli,
            ),
            (running.stderr.lines.are_open(), FromCli::Stderr),
        ] {
            if open {
                self.handle_output(running, kind(Bytes::from_static(b"\n")))
                    .await;
            }
        }
        self.calls.shutdown().await;
        if let Some(events) = running.events_task.take() {
            events.abort();
        }
        status
    }
}

/// Polls it until it is well.
async fn healthy(running: &mut RunningCli, path: &str) -> Result<Vec<u8>, String> {
    loop {
        match running.http.ask("GET", path, None, HEALTH_TIME).await {
            Ok((200, body)) => return Ok(body),
            Ok((401 | 403, _)) => {
                return Err("it does not accept the password that it was given".into());
            }
            _ => tokio::select! {
                () = sleep(HEALTH_EVERY) => {}
                status = running.process.ended() => return Err(too_early(status)),
            },
        }
    }
}

fn too_early(status: Option<ExitStatus>) -> String {
    format!("it ended before it was ready ({})", describe(status))
}

async fn stop_process(running: RunningCli, status: Option<ExitStatus>) -> Option<ExitStatus> {
    let RunningCli {
        process,
        mut from_cli,
        say,
        ..
    } = running;
    drop(say);
    // Its pipes are read until it is gone, so that nothing it writes then can block it.
    let drain = async move { while from_cli.recv().await.is_some() {} };
    let drain = tokio::spawn(drain);
    let stopped = process.stop().await;
    drain.abort();
    status.or(stopped)
}

/// The host of `http://host:port`.
fn host(url: &str) -> &str {
    let host = url
        .trim_start_matches("http://")
        .split('/')
        .next()
        .unwrap_or_default();
    match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => host,
    }
}

/// `~/.config` of the CLI.
fn user_config(config: &AdapterConfig) -> PathBuf {
    let var = |name: &str| {
        let ours = config
            .env
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.into());
        ours.or_else(|| std::env::var_os(name))
            .filter(|value| !value.is_empty())
    };
    let named = var("XDG_CONFIG_HOME").filter(|_| config.inherit_env);
    named.map_or_else(
        || PathBuf::from(var("HOME").unwrap_or_default()).join(".config"),
        PathBuf::from,
    )
}

/// What the registry's runtime is given.
pub(super) fn setting(
    config: &AdapterConfig,
    session_id: &str,
    resume: Option<String>,
    random: String,
) -> LaunchContext {
    LaunchContext {
        session_id: session_id.to_owned(),
        model: config.native_model.clone(),
        sidecar: config.sidecar.clone(),
        key: config.key.clone(),
        workdir: config.workdir.clone(),
        permissions: config.permissions,
        allowed_tools: config.allowed_tools.clone(),
        mcp: config.mcp.clone(),
        subagents: config.subagents,
        interactive: !config.oneshot,
        home: config.home.clone(),
        user_config: user_config(config),
        resume,
        random,
    }
}
