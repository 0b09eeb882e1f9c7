//! The one task that owns the CLI: it starts it, hears it, asks it, restarts it and ends it.
//!
//! The way of an event: heard → lines → translator → balance → journal, all in `hear` and
//! `carry_out`; everything that came in one piece is written in one. The way of an input:
//! inbox → `deliver` → translator → call; it is over when the CLI has it.
//!
//! Invariants:
//! - Nobody else writes the journal or talks to the CLI.
//! - An input is handed over only when the fate of the one before it is known.
//! - Whatever ends the CLI, what it left open is closed on the stream before it is started again.

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::balance::{self, Admitted, Balance};
use super::config::Config;
use super::inbox::{Inbox, Input, Sent};
use super::journal::{self, Replay};
use super::process::{self, Process, Program};
use super::runtime::{Action, Decision, Launch, Permissions, Phase, Setting, Translator, Wiring, effective_mode};
use super::transport::{Heard, Http, Lines};
use crate::base::token::Token;
use crate::event::{
    ErrorCode, ErrorEvent, Event, InputMode, Payload, SessionEnd, SessionEndReason, SessionStage, SessionStart, StageState, TurnEndReason, TurnStart, Unparsed,
    Warning,
};

/// From its start until it can take a first input.
const START_TIME: Duration = Duration::from_secs(60);
/// One try of its health; an early one may never be answered.
const HEALTH_TIME: Duration = Duration::from_millis(500);
const HEALTH_EVERY: Duration = Duration::from_millis(50);
/// After this a CLI that was told to stop its turn is restarted.
const INTERRUPT_TIME: Duration = Duration::from_secs(10);
/// How long it waits for the sidecar before it starts a CLI that cannot work without.
const SIDECAR_TIME: Duration = Duration::from_secs(30);
/// Crashes, each so soon after the other, after which it is given up.
const MAX_CRASHES: usize = 5;
const CRASH_WINDOW: Duration = Duration::from_secs(120);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// How long what is in the pipes of a CLI that is gone is read.
const WIND_UP_TIME: Duration = Duration::from_secs(2);
/// What is kept of what it writes to stderr.
const STDERR_TAIL: usize = 4 << 10;

/// What others ask of the session.
#[derive(Debug)]
pub enum Command {
    Interrupt,
    /// Answers whether such a request was open.
    Answer {
        request_id: String,
        decision: Decision,
        known: oneshot::Sender<bool>,
    },
    /// Somebody is there.
    Keepalive,
    Shutdown {
        summary: Option<String>,
    },
    /// The container is being stopped.
    Terminate,
}

/// What can be asked of the session at any time: `GET /status`.
#[derive(Debug, Clone)]
pub struct Status {
    /// `starting`, `idle`, `busy`, `restarting`, `ended`.
    pub state: &'static str,
    pub turn: u64,
    pub native_session_id: Option<String>,
    pub runtime_version: Option<String>,
    /// Requests that wait for a decision or an answer.
    pub waiting_for: Vec<String>,
}

pub type SharedStatus = Arc<Mutex<Status>>;

/// Why the session is over.
#[derive(Debug)]
pub struct Ended {
    pub reason: SessionEndReason,
    /// How the last turn ended, if there was one.
    pub outcome: Option<TurnEndReason>,
}

pub struct Session {
    config: Config,
    session_id: String,
    translator: Box<dyn Translator>,
    balance: Balance,
    journal: journal::Writer,
    raw: Option<journal::Writer>,
    inbox: Arc<Inbox>,
    commands: mpsc::Receiver<Command>,
    status: SharedStatus,
    /// Inputs whose `user.message` stands in the journal already.
    said: Vec<String>,
    admitted: Vec<Admitted>,
    calls: JoinSet<()>,
    version: Option<String>,
    steps: u64,
    /// The turn is being stopped for its steps.
    over_limit: bool,
    /// Somebody wants the turn stopped that is about to begin.
    interrupt_soon: bool,
    interrupt_by: Option<Instant>,
    wake_at: Option<Instant>,
    deadlines: Vec<(String, Instant)>,
    active: Instant,
    outcome: Option<TurnEndReason>,
    /// An input that cannot be steered, and of which that was said.
    unsteered: Option<String>,
    crashes: VecDeque<Instant>,
}

/// A CLI that is up.
struct Running {
    process: Process,
    http: Http,
    heard: mpsc::Receiver<Heard>,
    say: mpsc::Sender<Heard>,
    events: Lines,
    stdout: Lines,
    stderr: Tail,
    ready: bool,
    broken: Option<String>,
    events_task: tokio::task::JoinHandle<()>,
}

/// Why a CLI is not up any more.
enum Gone {
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
struct Tail {
    lines: Lines,
    kept: VecDeque<u8>,
}

impl Tail {
    fn feed(&mut self, bytes: &[u8]) {
        self.kept.extend(&bytes[bytes.len().saturating_sub(STDERR_TAIL)..]);
        let over = self.kept.len().saturating_sub(STDERR_TAIL);
        self.kept.drain(..over);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept.iter().copied().collect::<Vec<u8>>()).trim().to_owned()
    }
}

/// What a session is made of.
pub struct Parts {
    pub config: Config,
    pub session_id: String,
    pub balance: Balance,
    pub journal: journal::Writer,
    pub raw: Option<journal::Writer>,
    pub inbox: Arc<Inbox>,
    pub commands: mpsc::Receiver<Command>,
    pub status: SharedStatus,
}

impl Session {
    pub fn new(parts: Parts) -> Session {
        let Parts { config, session_id, balance, journal, raw, inbox, commands, status } = parts;
        let now = Instant::now();
        Session {
            translator: (config.runtime.translator)(&setting(&config, &session_id, String::new())),
            config,
            session_id,
            balance,
            journal,
            raw,
            inbox,
            commands,
            status,
            said: Vec::new(),
            admitted: Vec::new(),
            calls: JoinSet::new(),
            version: None,
            steps: 0,
            over_limit: false,
            interrupt_soon: false,
            interrupt_by: None,
            wake_at: None,
            deadlines: Vec::new(),
            active: now,
            outcome: None,
            unsteered: None,
            crashes: VecDeque::new(),
        }
    }

    /// The whole of a session.
    pub async fn run(mut self) -> Ended {
        self.close_what_a_crash_left().await;
        let end = loop {
            let gone = match self.start().await {
                Ok(running) => self.serve(running).await,
                Err(gone) => gone,
            };
            match gone {
                Gone::Ended(end) => break end,
                Gone::Crashed { why, status, stderr, was_ready } => {
                    self.tell_crash(&why, status, &stderr).await;
                    let Some(pause) = self.backoff(was_ready) else { break crashed(status, stderr) };
                    if let Some(end) = self.pause(pause).await {
                        break end;
                    }
                }
            }
        };
        self.end(end).await
    }

    /// What was open when an adapter before this one was killed, and whose input is where.
    async fn close_what_a_crash_left(&mut self) {
        process::sweep(&self.session_id).await;
        if self.balance.turn.is_some() {
            let error = ErrorEvent::new(ErrorCode::Internal, "the adapter was stopped while this turn was running; the CLI is started again with its history");
            self.say(error);
            self.say(ended_turn(TurnEndReason::Error));
            self.outcome = Some(TurnEndReason::Error);
        }
        let input_ids = std::mem::take(&mut self.balance.unanswered);
        if !input_ids.is_empty() {
            self.say(TurnStart { turn: 0, input_ids });
            self.say(ErrorEvent::new(ErrorCode::RuntimeCrashed, "the adapter was stopped before this input was answered; it stands in the CLI's history"));
            self.say(ended_turn(TurnEndReason::Error));
            self.outcome = Some(TurnEndReason::Error);
        }
        for (input, sent) in self.inbox.in_flight() {
            if said_since(&self.journal.journal(), sent.sequence, &input.input_id) {
                self.said.push(input.input_id.clone());
            }
        }
        for input_id in self.said.clone() {
            note(self.inbox.over(&input_id));
        }
        for warning in std::mem::take(&mut self.config.warnings) {
            self.say(Warning { message: warning });
        }
        self.commit().await;
    }

    /// Starts the CLI, up to where it has a session of ours.
    async fn start(&mut self) -> Result<Running, Gone> {
        self.set_state("starting");
        self.wait_for_sidecar().await?;
        let since = Instant::now();
        self.stage("runtime_start", StageState::Started, since, None).await;
        let running = self.launch().await;
        match &running {
            Ok(_) => self.stage("runtime_start", StageState::Done, since, None).await,
            Err(Gone::Crashed { why, .. }) => self.stage("runtime_start", StageState::Failed, since, Some(why.clone())).await,
            Err(Gone::Ended(_)) => {}
        }
        running
    }

    async fn launch(&mut self) -> Result<Running, Gone> {
        let failed = |why: String| Gone::Crashed { why, status: None, stderr: String::new(), was_ready: false };
        let password = Token::draw().map_err(|e| failed(format!("no password can be drawn: {e}")))?;
        let Launch { args, env, wiring } = (self.config.runtime.launch)(&setting(&self.config, &self.session_id, password));
        let program = self.config.program.clone().unwrap_or_else(|| self.config.runtime.program.to_owned());
        let ours: Vec<(String, String)> = self.config.env.iter().cloned().chain(env).collect();
        let env = process::environment(self.config.inherit_env, &self.config.allow_env, &ours);
        let path = env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
        let found = process::find(&program, path.as_ref());
        let found = found.ok_or_else(|| {
            failed(format!(
                "`{program}` was not found on `PATH`\nhint: install it (`{}`), or name it in `agents.agentRuntimes.{}.program`",
                self.config.runtime.install, self.config.runtime.id
            ))
        })?;
        let (say, heard) = mpsc::channel(64);
        let program = Program { path: &found, args: &args, env: &env, workdir: &self.config.workdir, session: &self.session_id };
        let process = Process::start(&program, &say).map_err(|e| failed(format!("`{}` cannot be started: {e}", found.display())))?;
        self.raw_event(json!({ "type": "start", "command": found.display().to_string(), "args": args }));
        let http = Http { address: String::new(), authorization: String::new() };
        let events_task = tokio::spawn(async {});
        let mut running = Running {
            process,
            http,
            heard,
            say,
            events: Lines::default(),
            stdout: Lines::default(),
            stderr: Tail::default(),
            ready: false,
            broken: None,
            events_task,
        };
        // Heard beside it: who wants the session to end does not wait for its start.
        let mut commands = std::mem::replace(&mut self.commands, mpsc::channel(1).1);
        let got_ready = tokio::select! {
            got_ready = tokio::time::timeout(START_TIME, self.connect(&mut running, &wiring)) => Ok(got_ready),
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

    /// Finds the CLI's server, waits until it is healthy, hears its events, gets a session.
    async fn connect(&mut self, running: &mut Running, wiring: &Wiring) -> Result<(), String> {
        let Wiring::Http { announced, authorization, health, version, events } = wiring;
        let mut address = None;
        while address.is_none() {
            tokio::select! {
                heard = running.heard.recv() => match heard {
                    Some(Heard::Stdout(bytes)) => {
                        let mut lines = Vec::new();
                        running.stdout.feed(&bytes, |line| lines.extend(line.ok().map(<[u8]>::to_vec)));
                        for line in lines {
                            self.raw_line("stdout", &line);
                            address = address.or_else(|| announced(&String::from_utf8_lossy(&line)));
                        }
                    }
                    Some(Heard::Stderr(bytes)) => self.hear_stderr(running, &bytes),
                    _ => {}
                },
                status = running.process.ended() => return Err(format!("it ended before it was ready ({})", describe(status))),
            }
        }
        running.http = Http { address: address.unwrap_or_default(), authorization: authorization.clone() };
        let body = loop {
            match running.http.ask("GET", health, None, HEALTH_TIME).await {
                Ok((200, body)) => break body,
                Ok((401 | 403, _)) => return Err("it does not accept the password that it was given".into()),
                _ => tokio::select! {
                    () = sleep(HEALTH_EVERY) => {}
                    status = running.process.ended() => return Err(format!("it ended before it was ready ({})", describe(status))),
                },
            }
        };
        self.version = version(&body);
        self.check_version()?;
        running.events_task.abort();
        running.events_task = running.http.events(events, running.say.clone()).await.map_err(|e| format!("its events cannot be read: {e}"))?;
        let mut actions = Vec::new();
        self.translator.open(self.balance.native_session_id.as_deref(), &mut actions);
        self.carry_out(running, actions).await;
        while !running.ready {
            tokio::select! {
                heard = running.heard.recv() => if let Some(heard) = heard { self.hear(running, heard).await },
                status = running.process.ended() => return Err(format!("it ended before it was ready ({})", describe(status))),
            }
            if let Some(why) = running.broken.take() {
                return Err(why);
            }
        }
        Ok(())
    }

    fn check_version(&mut self) -> Result<(), String> {
        let runtime = self.config.runtime;
        let version = self.version.clone().unwrap_or_default();
        if !version.starts_with(runtime.protocol) {
            return Err(format!(
                "its version is `{version}`, and only `{}x` is understood\nhint: install {} ({})",
                runtime.protocol, runtime.verified, runtime.install
            ));
        }
        if version != runtime.verified {
            self.say(Warning { message: format!("{} {version} is not the version that was verified ({})", runtime.name, runtime.verified) });
        }
        Ok(())
    }

    /// Serves inputs and commands until the CLI is gone or the session is over.
    async fn serve(&mut self, mut running: Running) -> Gone {
        self.active = Instant::now();
        for (input, sent) in self.inbox.in_flight() {
            let mut actions = Vec::new();
            self.translator.look_for(&input, &sent.native_id, &mut actions);
            self.carry_out(&mut running, actions).await;
        }
        loop {
            self.deliver(&mut running).await;
            if let Some(why) = running.broken.take() {
                return self.gone(running, why).await;
            }
            if let Some(end) = self.is_over() {
                return self.stop(running, end).await;
            }
            self.show_state();
            let wake = self.wake_at.into_iter().chain(self.interrupt_by).chain(self.deadlines.iter().map(|d| d.1)).chain(self.idle_until()).min();
            tokio::select! {
                biased;
                heard = running.heard.recv() => if let Some(heard) = heard { self.hear(&mut running, heard).await },
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown { summary }) => return self.stop(running, SessionEnd { summary, ..ended(SessionEndReason::Shutdown) }).await,
                    Some(Command::Terminate) | None => return self.stop(running, ended(SessionEndReason::Terminated)).await,
                    Some(command) => self.obey(&mut running, command).await,
                },
                () = self.inbox.changed.notified() => self.active = Instant::now(),
                status = running.process.ended() => {
                    let why = format!("{} ended unexpectedly ({})", self.config.runtime.name, describe(status));
                    return self.gone(running, why).await;
                }
                () = until(wake) => self.on_time(&mut running).await,
            }
        }
    }

    /// One piece of what the CLI says: through the translator, and onto the stream at once.
    async fn hear(&mut self, running: &mut Running, heard: Heard) {
        let mut actions = Vec::new();
        match heard {
            Heard::Events(bytes) => {
                let (translator, raw) = (&mut self.translator, &mut self.raw);
                running.events.feed(&bytes, |line| match line {
                    Ok(line) => {
                        let Some(data) = line.strip_prefix(b"data:") else { return };
                        let data = data.strip_prefix(b" ").unwrap_or(data);
                        raw_output(raw, "events", data);
                        translator.read(data, &mut actions);
                    }
                    Err(oversize) => actions.push(Unparsed { native: oversize }.into()),
                });
            }
            Heard::Stdout(bytes) => {
                let raw = &mut self.raw;
                running.stdout.feed(&bytes, |line| raw_output(raw, "stdout", line.unwrap_or(b"(a line that was too long)")));
            }
            Heard::Stderr(bytes) => self.hear_stderr(running, &bytes),
            Heard::EventsOver(why) => running.broken = Some(format!("the events of {} ended: {why}", self.config.runtime.name)),
            Heard::Reply(tag, reply) => self.translator.reply(tag, reply, &mut actions),
            Heard::Exited(_) => {}
        }
        self.carry_out(running, actions).await;
    }

    fn hear_stderr(&mut self, running: &mut Running, bytes: &[u8]) {
        running.stderr.feed(bytes);
        let raw = &mut self.raw;
        running.stderr.lines.feed(bytes, |line| raw_output(raw, "stderr", line.unwrap_or(b"(a line that was too long)")));
    }

    /// Does what a translator wants done, and writes down what it said.
    async fn carry_out(&mut self, running: &mut Running, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Event(payload) => self.tell(running, payload),
                Action::Call(call) => _ = self.calls.spawn(running.http.clone().call(call, running.say.clone())),
                Action::Ready { native_session_id, resumed } => {
                    running.ready = true;
                    self.say(self.session_start(native_session_id, resumed));
                }
                Action::Delivered { input_id } => {
                    // First the event, then the note that it is over: what a crash between
                    // them leaves is found in the journal.
                    self.commit().await;
                    note(self.inbox.over(&input_id));
                }
                Action::Undelivered { input_id } => persist(|| self.inbox.unsent(&input_id)).await,
                Action::Refused { input_id, why } => {
                    self.say(ErrorEvent::new(ErrorCode::Internal, format!("input `{input_id}` was not delivered: {why}")));
                    self.outcome = Some(TurnEndReason::Error);
                    self.commit().await;
                    note(self.inbox.over(&input_id));
                }
                Action::Step => self.count_step(running),
                Action::Wake(after) => self.wake_at = Some(Instant::now() + after),
                Action::Broken(why) => running.broken = Some(why),
            }
        }
        while self.calls.try_join_next().is_some() {}
        self.commit().await;
    }

    /// Puts an event on the stream, and draws the consequences that hold for every runtime.
    fn tell(&mut self, running: &mut Running, payload: Payload) {
        match payload {
            Payload::UserMessage(message) if self.said.contains(&message.input_id) => {}
            Payload::TurnStart(_) => {
                (self.steps, self.over_limit) = (0, false);
                self.say(payload);
                if std::mem::take(&mut self.interrupt_soon) {
                    self.interrupt(running);
                }
            }
            Payload::TurnEnd(mut end) => {
                if self.over_limit && end.reason == TurnEndReason::Interrupted {
                    end.reason = TurnEndReason::MaxSteps;
                }
                self.outcome = Some(end.reason);
                if end.reason != TurnEndReason::Error {
                    // It works: an earlier crash says nothing of the next.
                    self.crashes.clear();
                }
                self.interrupt_by = None;
                self.wake_at = None;
                self.deadlines.clear();
                self.active = Instant::now();
                self.say(end);
                self.journal.wish(true);
            }
            Payload::PermissionRequest(request) => {
                let (id, answer) = (request.request_id.clone(), self.policy());
                self.say(request);
                self.wait_for_answer(running, id, answer);
            }
            Payload::QuestionRequest(request) => {
                let id = request.request_id.clone();
                self.say(request);
                self.wait_for_answer(running, id, self.config.oneshot.then_some(Decision::RejectQuestion));
            }
            other => self.say(other),
        }
    }

    /// What is answered without asking anybody.
    fn policy(&self) -> Option<Decision> {
        match self.config.permissions {
            Permissions::Allow => Some(Decision::Allow),
            Permissions::Deny => Some(Decision::Deny { message: Some("this session allows no tools that need a permission".into()) }),
            Permissions::Ask if self.config.oneshot => Some(Decision::Deny { message: Some("nobody is there to give this permission".into()) }),
            Permissions::Ask => None,
        }
    }

    fn wait_for_answer(&mut self, running: &Running, id: String, answer: Option<Decision>) {
        match answer {
            Some(decision) => _ = self.answer(running, &id, &decision, "policy"),
            None => self.deadlines.push((id, Instant::now() + self.config.permission_timeout)),
        }
    }

    fn answer(&mut self, running: &Running, request_id: &str, decision: &Decision, by: &str) -> bool {
        let mut actions = Vec::new();
        let known = self.translator.answer(request_id, decision, by, &mut actions);
        for action in actions {
            if let Action::Call(call) = action {
                self.calls.spawn(running.http.clone().call(call, running.say.clone()));
            }
        }
        if known {
            self.deadlines.retain(|(id, _)| id != request_id);
        }
        known
    }

    fn count_step(&mut self, running: &Running) {
        self.steps += 1;
        let (steps, max) = (self.steps, self.config.max_steps);
        // At each quarter of the way.
        if (1..=4).any(|quarter| steps == (max * quarter).div_ceil(4)) {
            self.say(Warning { message: format!("step {steps} of {max} of this turn") });
        }
        if steps >= max && !self.over_limit {
            self.over_limit = true;
            self.interrupt(running);
        }
    }

    fn interrupt(&mut self, running: &Running) {
        if self.balance.turn.is_none() {
            // Its turn has not begun, and may be about to.
            self.interrupt_soon = self.inbox.is_in_flight() || self.translator.phase() != Phase::Idle;
            return;
        }
        let mut actions = Vec::new();
        self.translator.interrupt(&mut actions);
        for action in actions {
            if let Action::Call(call) = action {
                self.interrupt_by.get_or_insert(Instant::now() + INTERRUPT_TIME);
                self.calls.spawn(running.http.clone().call(call, running.say.clone()));
            }
        }
    }

    async fn obey(&mut self, running: &mut Running, command: Command) {
        self.active = Instant::now();
        match command {
            Command::Interrupt => self.interrupt(running),
            Command::Answer { request_id, decision, known } => _ = known.send(self.answer(running, &request_id, &decision, "user")),
            Command::Keepalive | Command::Shutdown { .. } | Command::Terminate => {}
        }
        self.commit().await;
    }

    async fn on_time(&mut self, running: &mut Running) {
        let now = Instant::now();
        let past = |at: &mut Option<Instant>| at.is_some_and(|t| t <= now) && at.take().is_some();
        if past(&mut self.wake_at) {
            let mut actions = Vec::new();
            self.translator.wake(&mut actions);
            self.carry_out(running, actions).await;
        }
        if past(&mut self.interrupt_by) && self.balance.turn.is_some() {
            running.broken = Some(format!("{} did not stop its turn within {INTERRUPT_TIME:?}", self.config.runtime.name));
        }
        let late: Vec<String> = self.deadlines.iter().filter(|d| d.1 <= now).map(|d| d.0.clone()).collect();
        for id in late {
            let decision = if self.balance.questions.contains(&id) {
                Decision::RejectQuestion
            } else {
                Decision::Deny { message: Some("nobody answered in time".into()) }
            };
            self.answer(running, &id, &decision, "adapter");
            self.deadlines.retain(|(late, _)| *late != id);
        }
    }

    /// Hands the next input over, if its time has come.
    async fn deliver(&mut self, running: &mut Running) {
        if self.inbox.is_in_flight() {
            return;
        }
        let Some(mode) = self.inbox.next_mode() else { return };
        let busy = match self.translator.phase() {
            Phase::Settling => return,
            phase => phase == Phase::Busy,
        };
        match effective_mode(mode, &self.config.runtime.capabilities) {
            InputMode::Queue | InputMode::Auto if busy => return,
            InputMode::Interrupt if busy => {
                if self.interrupt_by.is_none() {
                    self.interrupt(running);
                }
                return;
            }
            InputMode::Steer if busy && !self.config.runtime.capabilities.steer => return self.cannot_steer(),
            _ => {}
        }
        if self.balance.turns >= self.config.max_turns && !busy {
            return;
        }
        if let Some(input) = self.inbox.next() {
            self.hand_over(running, &input).await;
        }
    }

    fn cannot_steer(&mut self) {
        let Some(input) = self.inbox.next().filter(|i| self.unsteered.as_ref() != Some(&i.input_id)) else { return };
        self.say(Warning { message: format!("{} cannot be steered: input `{}` waits for the end of the turn", self.config.runtime.name, input.input_id) });
        self.unsteered = Some(input.input_id);
    }

    async fn hand_over(&mut self, running: &mut Running, input: &Input) {
        let mut random = [0; 14];
        if let Err(e) = getrandom::fill(&mut random) {
            running.broken = Some(format!("no random bytes: {e}"));
            return;
        }
        let native_id = self.translator.native_id(jiff::Timestamp::now().as_millisecond(), random);
        let sent = Sent { input_id: input.input_id.clone(), native_id: native_id.clone(), sequence: self.journal.next() };
        persist(|| self.inbox.sent(sent.clone())).await;
        let mut actions = Vec::new();
        self.translator.deliver(input, &native_id, &mut actions);
        self.carry_out(running, actions).await;
    }

    /// Is there a reason to end, now that nothing is running?
    fn is_over(&mut self) -> Option<SessionEnd> {
        if self.translator.phase() != Phase::Idle || self.inbox.is_in_flight() {
            return None;
        }
        if self.balance.turns >= self.config.max_turns {
            self.say(Warning { message: format!("the session had its {} turns", self.config.max_turns) });
            self.inbox.close(true);
            return Some(ended(SessionEndReason::Completed));
        }
        let reason = match () {
            () if self.config.oneshot && self.outcome.is_some() => SessionEndReason::Completed,
            () if self.active.elapsed() >= self.config.idle_timeout => SessionEndReason::IdleTimeout,
            () => return None,
        };
        // Whoever was answered with 202 before this is delivered first.
        self.inbox.close(false).then(|| ended(reason))
    }

    fn idle_until(&self) -> Option<Instant> {
        let idle = self.translator.phase() == Phase::Idle && self.inbox.waiting() == 0;
        idle.then(|| self.active + self.config.idle_timeout)
    }

    /// Ends a CLI that works, because the session is over.
    async fn stop(&mut self, mut running: Running, end: SessionEnd) -> Gone {
        self.inbox.close(true);
        // What is cut here was interrupted by us.
        self.translator.interrupt(&mut Vec::new());
        let mut end = end;
        let status = self.wind_up(&mut running).await;
        let status = stop_process(running, status).await;
        if end.reason != SessionEndReason::Completed {
            end.exit_code = status.and_then(|s| s.code());
        }
        self.raw_event(json!({ "type": "exit", "code": status.and_then(|s| s.code()) }));
        Gone::Ended(end)
    }

    /// A CLI that is gone, or must go because it does not work.
    async fn gone(&mut self, mut running: Running, why: String) -> Gone {
        // What it wrote last may say why.
        let status = self.wind_up(&mut running).await;
        let (stderr, was_ready) = (running.stderr.text(), running.ready);
        let status = stop_process(running, status).await;
        self.raw_event(json!({ "type": "exit", "code": status.and_then(|s| s.code()) }));
        Gone::Crashed { why, status, stderr, was_ready }
    }

    /// Hears what is still in the pipes.
    async fn wind_up(&mut self, running: &mut Running) -> Option<ExitStatus> {
        let status = tokio::time::timeout(Duration::ZERO, running.process.ended()).await.ok().flatten();
        let until = Instant::now() + WIND_UP_TIME;
        while let Ok(Some(heard)) = tokio::time::timeout(Duration::from_millis(50), running.heard.recv()).await {
            if Instant::now() > until {
                break;
            }
            if !matches!(heard, Heard::EventsOver(_)) {
                self.hear(running, heard).await;
            }
            if status.is_none() {
                break;
            }
        }
        self.calls.shutdown().await;
        running.events_task.abort();
        status
    }

    async fn tell_crash(&mut self, why: &str, status: Option<ExitStatus>, stderr: &str) {
        tracing::error!(exit = %describe(status), "{why}");
        let mut error = ErrorEvent::new(ErrorCode::RuntimeCrashed, why);
        error.native = Some(json!({ "exit": describe(status), "stderr_tail": stderr }));
        self.say(error);
        self.close_translator();
        self.commit().await;
    }

    fn close_translator(&mut self) {
        let mut actions = Vec::new();
        self.translator.close(&mut actions);
        for action in actions {
            if let Action::Event(payload) = action {
                self.outcome = if let Payload::TurnEnd(end) = &payload { Some(end.reason) } else { self.outcome };
                self.say(payload);
            }
        }
        if self.balance.turn.is_some() {
            self.say(ended_turn(TurnEndReason::Error));
        }
        (self.interrupt_by, self.wake_at) = (None, None);
        self.deadlines.clear();
    }

    /// How long to wait before it is started again; `None`: no more.
    fn backoff(&mut self, was_ready: bool) -> Option<Duration> {
        let now = Instant::now();
        self.crashes.push_back(now);
        while self.crashes.front().is_some_and(|c| now - *c > CRASH_WINDOW) {
            self.crashes.pop_front();
        }
        // One that never worked will not by itself.
        let worked_once = was_ready || self.version.is_some() && self.balance.native_session_id.is_some();
        let again = worked_once && self.crashes.len() < MAX_CRASHES && !(self.config.oneshot && self.outcome.is_some());
        again.then(|| FIRST_BACKOFF * 2_u32.pow(self.crashes.len() as u32 - 1))
    }

    /// Waits before a restart, and still obeys.
    async fn pause(&mut self, time: Duration) -> Option<SessionEnd> {
        self.set_state("restarting");
        tokio::time::timeout(time, asked_to_end(&mut self.commands)).await.ok()
    }

    async fn end(mut self, mut end: SessionEnd) -> Ended {
        self.inbox.close(true);
        self.close_translator();
        end.resume_token = self.balance.native_session_id.clone().map(|id| format!("{}:{id}", self.config.runtime.id));
        let reason = end.reason;
        self.say(end);
        self.commit().await;
        self.set_state("ended");
        process::sweep(&self.session_id).await;
        self.journal.close();
        if let Some(raw) = self.raw {
            raw.close();
        }
        Ended { reason, outcome: self.outcome }
    }

    /// A CLI without its provider would only fail, each in its own way.
    async fn wait_for_sidecar(&mut self) -> Result<(), Gone> {
        let (since, address) = (Instant::now(), self.config.sidecar.trim_start_matches("http://").to_owned());
        let http = Http { address: address.clone(), authorization: format!("Bearer {}", self.config.key) };
        let mut told = false;
        loop {
            let why = match http.ask("HEAD", "/", None, HEALTH_TIME).await {
                Ok((200, _)) => {
                    if told {
                        self.stage("sidecar", StageState::Done, since, None).await;
                    }
                    return Ok(());
                }
                Ok((status, _)) => format!("status {status}"),
                Err(why) => why,
            };
            if !told {
                told = true;
                self.stage("sidecar", StageState::Started, since, Some(format!("waiting for the sidecar at {address}"))).await;
            }
            if since.elapsed() > SIDECAR_TIME {
                self.stage("sidecar", StageState::Failed, since, Some(why.clone())).await;
                let why = format!(
                    "the sidecar at `{}` does not answer: {why}\nhint: start `outrigger sidecar`, or name another address in `sidecar.url`",
                    self.config.sidecar
                );
                return Err(Gone::Crashed { why, status: None, stderr: String::new(), was_ready: false });
            }
            if let Some(end) = self.pause(Duration::from_millis(200)).await {
                return Err(Gone::Ended(end));
            }
            self.set_state("starting");
        }
    }

    fn session_start(&self, native_session_id: String, resumed: bool) -> SessionStart {
        SessionStart {
            runtime: self.config.runtime.id.to_owned(),
            runtime_version: self.version.clone(),
            model: Some(self.config.model.clone()),
            native_session_id,
            workdir: self.config.workdir.display().to_string(),
            capabilities: self.config.runtime.capabilities.names(),
            resumed,
        }
    }

    async fn stage(&mut self, stage: &str, state: StageState, since: Instant, message: Option<String>) {
        let duration_ms = if state == StageState::Started { 0 } else { since.elapsed().as_millis() as u64 };
        self.say(SessionStage { stage: stage.to_owned(), state, duration_ms, message });
        self.commit().await;
    }

    /// Adds an event to what the next commit shows.
    fn say(&mut self, payload: impl Into<Payload>) {
        let now = jiff::Timestamp::now();
        self.balance.admit(now.as_millisecond(), payload.into(), &mut self.admitted);
        let timestamp = format!("{now:.3}");
        for (payload, turn_id) in self.admitted.drain(..) {
            let (session_id, runtime) = (&self.session_id, self.config.runtime.id);
            self.journal.append(|sequence, out| {
                let event = Event { session_id: session_id.clone(), sequence, timestamp: timestamp.clone(), turn_id, runtime: runtime.to_owned(), payload };
                if let Err(e) = event.write(out) {
                    tracing::error!(error = %e, "an event cannot be written");
                }
            });
        }
    }

    async fn commit(&mut self) {
        if let Some(raw) = &mut self.raw {
            raw.commit(String::new).await;
        }
        let balance = &self.balance;
        let state = || serde_json::to_string(balance).unwrap_or_default();
        if let Some(trouble) = self.journal.commit(state).await {
            self.say(Warning {
                message: format!("the journal could not be written for {:.1} s; the CLI was held back, and nothing was lost", trouble.as_secs_f64()),
            });
            let balance = &self.balance;
            self.journal.commit(|| serde_json::to_string(balance).unwrap_or_default()).await;
        }
    }

    fn raw_line(&mut self, stream: &str, line: &[u8]) {
        raw_output(&mut self.raw, stream, line);
    }

    fn raw_event(&mut self, mut event: Value) {
        event["timestamp"] = json!(format!("{:.3}", jiff::Timestamp::now()));
        if let Some(raw) = &mut self.raw {
            raw.append(|_, out| out.extend_from_slice(event.to_string().as_bytes()));
        }
    }

    fn set_state(&self, state: &'static str) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.state = state;
        status.turn = self.balance.turns;
        status.native_session_id.clone_from(&self.balance.native_session_id);
        status.runtime_version.clone_from(&self.version);
        status.waiting_for = self.balance.permissions.iter().chain(&self.balance.questions).cloned().collect();
    }

    fn show_state(&self) {
        self.set_state(if self.balance.turn.is_some() || self.translator.phase() != Phase::Idle { "busy" } else { "idle" });
    }
}

/// One line of the CLI's own, for `?view=raw`.
fn raw_output(raw: &mut Option<journal::Writer>, stream: &str, line: &[u8]) {
    if let Some(raw) = raw {
        raw.append(|_, out| {
            out.extend_from_slice(b"{\"type\":\"output\",\"stream\":\"");
            out.extend_from_slice(stream.as_bytes());
            out.extend_from_slice(b"\",\"data\":");
            let _ = serde_json::to_writer(&mut *out, &String::from_utf8_lossy(line));
            out.push(b'}');
        });
    }
}

async fn stop_process(running: Running, status: Option<ExitStatus>) -> Option<ExitStatus> {
    let Running { process, mut heard, say, .. } = running;
    drop(say);
    // Its pipes are read until it is gone, so that nothing it writes then can block it.
    let drain = async move { while heard.recv().await.is_some() {} };
    let drain = tokio::spawn(drain);
    let stopped = process.stop().await;
    drain.abort();
    status.or(stopped)
}

/// What the registry's runtime is given.
fn setting(config: &Config, session_id: &str, password: String) -> Setting {
    Setting {
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
        password,
    }
}

fn ended(reason: SessionEndReason) -> SessionEnd {
    SessionEnd { reason, exit_code: None, signal: None, stderr_tail: None, resume_token: None, summary: None }
}

fn crashed(status: Option<ExitStatus>, stderr: String) -> SessionEnd {
    use std::os::unix::process::ExitStatusExt;
    SessionEnd {
        exit_code: status.and_then(|s| s.code()),
        signal: status.and_then(|s| s.signal()),
        stderr_tail: Some(stderr),
        ..ended(SessionEndReason::Crashed)
    }
}

/// Waits until somebody wants the session to end; other commands have nothing to act on.
async fn asked_to_end(commands: &mut mpsc::Receiver<Command>) -> SessionEnd {
    loop {
        match commands.recv().await {
            Some(Command::Shutdown { summary }) => return SessionEnd { summary, ..ended(SessionEndReason::Shutdown) },
            Some(Command::Terminate) | None => return ended(SessionEndReason::Terminated),
            Some(Command::Answer { known, .. }) => _ = known.send(false),
            Some(Command::Interrupt | Command::Keepalive) => {}
        }
    }
}

fn ended_turn(reason: TurnEndReason) -> crate::event::TurnEnd {
    crate::event::TurnEnd { turn: 0, reason, usage: Default::default(), duration_ms: 0, final_text: String::new() }
}

fn describe(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "no exit status".to_owned(), |s| s.to_string())
}

/// Writes what the next step depends on, however long the disk is full.
async fn persist(write: impl Fn() -> std::io::Result<()>) {
    while let Err(e) = write() {
        tracing::error!(error = %e, "the inbox cannot be written; the input waits");
        sleep(Duration::from_millis(200)).await;
    }
}

fn note(written: std::io::Result<()>) {
    if let Err(e) = written {
        tracing::error!(error = %e, "the inbox cannot be written");
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Does the journal, from `sequence` on, tell of this input?
fn said_since(journal: &Arc<journal::Journal>, sequence: u64, input_id: &str) -> bool {
    let mut cursor = journal.subscribe(sequence);
    let (mut lines, mut found) = (Lines::default(), false);
    while let Ok(Some(part)) = cursor.read() {
        let journal::Part::Frames(frames) = part else { continue };
        lines.feed(&frames, |line| {
            let event = line.ok().and_then(|l| l.strip_prefix(b"data: ")).and_then(|json| Event::read(json).ok());
            found |= matches!(event, Some(Event { payload: Payload::UserMessage(m), .. }) if m.input_id == input_id);
        });
    }
    found
}

/// Follows a journal that is opened.
#[derive(Debug)]
pub struct Rebuilt(pub Balance);

impl Replay for Rebuilt {
    fn state(&mut self, json: &[u8]) -> Result<(), String> {
        let state: Balance = serde_json::from_slice(json).map_err(|e| format!("its head is not of this version: {e}"))?;
        if !self.0.session_id.is_empty() && state.session_id != self.0.session_id {
            return Err(format!("it belongs to session `{}`, not to `{}`\nhint: another session needs another journal", state.session_id, self.0.session_id));
        }
        self.0 = state;
        Ok(())
    }

    fn frame(&mut self, sequence: u64, json: &[u8]) -> bool {
        // Only what the state depends on is read whole; the rest must be JSON.
        let kind = memchr::memmem::find(json, b"\",\"type\":\"").map(|i| &json[i + 10..]).and_then(|rest| rest.split(|b| *b == b'"').next());
        if kind.is_some_and(|kind| !balance::is_followed(kind)) {
            return serde_json::from_slice::<serde::de::IgnoredAny>(json).is_ok();
        }
        match Event::read(json) {
            Ok(event) if event.sequence == sequence => {
                self.0.follow(&event);
                true
            }
            _ => false,
        }
    }
}
