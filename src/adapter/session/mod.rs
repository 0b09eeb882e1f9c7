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

mod cli;
mod record;

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use self::cli::{CliExit, RunningCli, setting};
use self::record::{raw_output, said_in_pieces, said_since};
use super::config::AdapterConfig;
use super::journal;
use super::process;
use super::transport::{self, FromCli};
use super::trouble::{Component, Troubles};
use crate::adapter::inbox::Sent;
use crate::adapter::inbox::{Inbox, Input, MAX_DEATHS};
use crate::adapter::lifecycle::{Lifecycle, TurnPayload};
use crate::adapter::runtime::action::{Action, PermissionDecision};
use crate::adapter::runtime::native::effective_mode;
use crate::adapter::runtime::{Permissions, Phase, Translator};
use crate::base::sync::lock;
use crate::event::{
    ErrorCode, ErrorEvent, InputMode, Payload, SessionEnd, SessionEndReason, TurnEndReason,
    TurnStart, Unparsed, Usage, Warning,
};

pub use self::record::Rebuilt;

/// After this a CLI that was told to stop its turn is restarted.
const INTERRUPT_TIME: Duration = Duration::from_secs(10);
/// By then the CLI has begun to answer what it was handed, or it is restarted.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// Crashes, each so soon after the other, after which it is given up.
const MAX_CRASHES: usize = 5;
const CRASH_WINDOW: Duration = Duration::from_secs(120);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// How long a CLI that has closed its output may take to end.
const LAST_WORDS_TIME: Duration = Duration::from_millis(500);
/// When something is tried again that the disk did not take.
const DISK_RETRY: Duration = Duration::from_millis(200);
/// Instead of a line that nobody keeps.
const TOO_LONG: &[u8] = b"(a line that was too long)";

/// What others ask of the session.
#[derive(Debug)]
pub enum SessionCommand {
    Interrupt,
    /// Answers whether such a request was open.
    Answer {
        request_id: String,
        decision: PermissionDecision,
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
    /// What all turns used; null where no CLI said it.
    pub usage: Usage,
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
    config: AdapterConfig,
    session_id: String,
    translator: Box<dyn Translator>,
    lifecycle: Lifecycle,
    journal: journal::JournalWriter,
    raw: Option<journal::JournalWriter>,
    inbox: Arc<Inbox>,
    commands: mpsc::Receiver<SessionCommand>,
    status: SharedStatus,
    troubles: Troubles,
    /// The session is told to end: nothing waits for a disk any more.
    terminating: watch::Receiver<bool>,
    /// An input that is noted as sent, on its way to stable storage.
    handing: Option<Handing>,
    /// When the disk is tried again.
    retry_at: Option<Instant>,
    /// Inputs whose `user.message` stands in the journal already.
    announced: Vec<String>,
    admitted: Vec<TurnPayload>,
    calls: JoinSet<()>,
    /// What is to be done, in order.
    actions: VecDeque<Action>,
    version: Option<String>,
    steps: u64,
    /// The turn is being stopped for its steps.
    over_limit: bool,
    /// Somebody wants the turn stopped that is about to begin.
    interrupt_soon: bool,
    interrupt_by: Option<Instant>,
    /// When an input that is in flight must have become a turn.
    answer_by: Option<Instant>,
    wake_at: Option<Instant>,
    deadlines: Vec<(String, Instant)>,
    active: Instant,
    outcome: Option<TurnEndReason>,
    /// An input that cannot be steered, and of which that was said.
    unsteered: Option<String>,
    crashes: VecDeque<Instant>,
}

/// An input that is handed over once this is on stable storage.
struct Handing {
    input: Input,
    native_id: String,
    synced: JoinHandle<std::io::Result<()>>,
}

/// What a session is made of.
pub struct Parts {
    pub config: AdapterConfig,
    pub session_id: String,
    pub lifecycle: Lifecycle,
    pub journal: journal::JournalWriter,
    pub raw: Option<journal::JournalWriter>,
    pub inbox: Arc<Inbox>,
    pub commands: mpsc::Receiver<SessionCommand>,
    pub status: SharedStatus,
    pub troubles: Troubles,
    pub terminating: watch::Receiver<bool>,
}

impl Session {
    pub fn new(parts: Parts) -> Session {
        let Parts {
            config,
            session_id,
            lifecycle,
            journal,
            raw,
            inbox,
            commands,
            status,
            troubles,
            terminating,
        } = parts;
        let now = Instant::now();
        Session {
            translator: (config.runtime.translator)(&setting(
                &config,
                &session_id,
                None,
                String::new(),
            )),
            // A task that had its end before has it still.
            outcome: lifecycle.outcome.filter(|_| config.oneshot),
            config,
            session_id,
            lifecycle,
            journal,
            raw,
            inbox,
            commands,
            status,
            troubles,
            terminating,
            handing: None,
            retry_at: None,
            announced: Vec::new(),
            admitted: Vec::new(),
            calls: JoinSet::new(),
            actions: VecDeque::new(),
            version: None,
            steps: 0,
            over_limit: false,
            interrupt_soon: false,
            interrupt_by: None,
            answer_by: None,
            wake_at: None,
            deadlines: Vec::new(),
            active: now,
            unsteered: None,
            crashes: VecDeque::new(),
        }
    }

    /// The whole of a session.
    pub async fn run(mut self) -> Ended {
        self.close_what_a_crash_left().await;
        if self.config.oneshot && self.outcome.is_some() && self.inbox.waiting() == 0 {
            return self.end_again().await;
        }
        let end = loop {
            let gone = match self.start().await {
                Ok(running) => self.serve(running).await,
                Err(gone) => gone,
            };
            match gone {
                CliExit::Ended(end) => break end,
                CliExit::Crashed {
                    why,
                    status,
                    stderr,
                    was_ready,
                } => {
                    self.tell_crash(&why, status, &stderr).await;
                    let Some(pause) = self.backoff(was_ready) else {
                        break crashed(status, stderr);
                    };
                    if let Some(end) = self.pause(pause, "restarting").await {
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
        if let Some(turn) = &self.lifecycle.turn {
            for said in said_in_pieces(&self.journal.journal(), turn.sequence) {
                self.emit(said);
            }
            let error = ErrorEvent::new(
                ErrorCode::Internal,
                "the adapter was stopped while this turn was running; the CLI is started again with its history",
            );
            self.emit(error);
            self.emit(ended_turn(TurnEndReason::Error));
            self.outcome = Some(TurnEndReason::Error);
        }
        let input_ids = std::mem::take(&mut self.lifecycle.unanswered);
        if !input_ids.is_empty() {
            self.emit(TurnStart { turn: 0, input_ids });
            self.emit(ErrorEvent::new(ErrorCode::RuntimeCrashed, "the adapter was stopped before this input was answered; it stands in the CLI's history"));
            self.emit(ended_turn(TurnEndReason::Error));
            self.outcome = Some(TurnEndReason::Error);
        }
        self.look_up_open_inputs();
        for warning in std::mem::take(&mut self.config.warnings) {
            self.emit(Warning { message: warning });
        }
        self.commit().await;
    }

    /// What the journal tells of inputs whose fate is not known.
    fn look_up_open_inputs(&mut self) {
        let open = self.inbox.undecided();
        let Some(from) = open.iter().map(|o| o.since).min() else {
            return;
        };
        let ids: Vec<&str> = open.iter().map(|o| o.input_id.as_str()).collect();
        let said = said_since(&self.journal.journal(), from, &ids);
        for open in open.iter().filter(|o| said.contains(&o.input_id)) {
            if open.was_sent {
                self.announced.push(open.input_id.clone());
            } else {
                // The stream has it, and the note that it was sent is lost.
                note(self.inbox.over(&open.input_id));
            }
        }
    }

    /// A task that is over, and whose adapter was started again.
    async fn end_again(self) -> Ended {
        if !self.lifecycle.ended {
            return self.end(ended(SessionEndReason::Completed)).await;
        }
        self.inbox.close(true);
        self.set_state("ended");
        self.journal.close();
        Ended {
            reason: SessionEndReason::Completed,
            outcome: self.outcome,
        }
    }

    /// Serves inputs and commands until the CLI is gone or the session is over.
    async fn serve(&mut self, mut running: RunningCli) -> CliExit {
        self.active = Instant::now();
        for (input, sent) in self.inbox.in_flight() {
            let mut actions = Vec::new();
            // What it was told of, its turn was told of too.
            let told = self.announced.contains(&input.input_id);
            self.translator
                .look_for(&input, &sent.native_id, told, &mut actions);
            self.apply(&mut running, actions).await;
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
            let wake = self
                .wake_at
                .into_iter()
                .chain(self.interrupt_by)
                .chain(self.answer_by)
                .chain(self.deadlines.iter().map(|d| d.1))
                .chain(self.retry_at)
                .chain(self.idle_until())
                .min();
            tokio::select! {
                biased;
                // Before what it says, which may never end; its own end comes after that.
                command = self.commands.recv() => match command {
                    Some(SessionCommand::Shutdown { summary }) => return self.stop(running, SessionEnd { summary, ..ended(SessionEndReason::Shutdown) }).await,
                    Some(SessionCommand::Terminate) | None => return self.stop(running, ended(SessionEndReason::Terminated)).await,
                    Some(command) => self.handle_command(&mut running, command).await,
                },
                () = until(wake) => self.on_time(&mut running).await,
                synced = noted(&mut self.handing) => self.noted_as_sent(&mut running, synced).await,
                from_cli = running.from_cli.recv() => if let Some(from_cli) = from_cli { self.handle_output(&mut running, from_cli).await },
                () = self.inbox.changed.notified() => self.active = Instant::now(),
                status = running.process.ended() => {
                    let why = format!("{} ended unexpectedly ({})", self.config.runtime.name, describe(status));
                    return self.gone(running, why).await;
                }
            }
        }
    }

    /// One piece of what the CLI says: through the translator, and onto the stream at once.
    async fn handle_output(&mut self, running: &mut RunningCli, from_cli: FromCli) {
        let mut actions = Vec::new();
        match from_cli {
            FromCli::Events(bytes) => {
                let (translator, raw) = (&mut self.translator, &mut self.raw);
                running.events.feed(&bytes, |line| match line {
                    Ok(line) => {
                        let Some(data) = line.strip_prefix(b"data:") else {
                            return;
                        };
                        let data = data.strip_prefix(b" ").unwrap_or(data);
                        raw_output(raw, "events", data);
                        translator.read(data, &mut actions);
                    }
                    Err(oversize) => actions.push(Unparsed { native: oversize }.into()),
                });
            }
            FromCli::Stdout(bytes) => {
                let raw = &mut self.raw;
                let mut translator = running.speaks_lines.then_some(&mut self.translator);
                running
                    .stdout
                    .feed(&bytes, |line| match (line, translator.as_mut()) {
                        (Ok(line), translator) => {
                            raw_output(raw, "stdout", line);
                            if let Some(translator) = translator.filter(|_| !line.is_empty()) {
                                translator.read(line, &mut actions);
                            }
                        }
                        (Err(oversize), _) => actions.push(Unparsed { native: oversize }.into()),
                    });
            }
            FromCli::Stderr(bytes) => self.hear_stderr(running, &bytes, &mut actions),
            FromCli::EventsOver(why) => {
                running.broken = Some(format!(
                    "the events of {} ended: {why}",
                    self.config.runtime.name
                ))
            }
            FromCli::StdoutOver => {
                // It ends, or it can say nothing any more.
                let lives = tokio::time::timeout(LAST_WORDS_TIME, running.process.ended())
                    .await
                    .is_err();
                if running.speaks_lines && lives {
                    running.broken =
                        Some(format!("{} closed its output", self.config.runtime.name));
                }
            }
            FromCli::Reply(tag, reply) => self.translator.reply(tag, reply, &mut actions),
        }
        self.apply(running, actions).await;
    }

    fn hear_stderr(&mut self, running: &mut RunningCli, bytes: &[u8], actions: &mut Vec<Action>) {
        running.stderr.feed(bytes);
        let (raw, translator) = (&mut self.raw, &mut self.translator);
        running.stderr.lines.feed(bytes, |line| {
            let line = line.unwrap_or(TOO_LONG);
            raw_output(raw, "stderr", line);
            translator.read_stderr(&String::from_utf8_lossy(line), actions);
        });
    }

    /// Does what a translator wants done, and writes down what it said.
    async fn apply(&mut self, running: &mut RunningCli, actions: Vec<Action>) {
        self.actions.extend(actions);
        while let Some(action) = self.actions.pop_front() {
            match action {
                Action::Event(payload) => self.publish(payload),
                Action::Call(call) => {
                    _ = self
                        .calls
                        .spawn(running.http.clone().call(call, running.say.clone()))
                }
                Action::Send(message) => running.send(&message),
                Action::ReadFile { tag, file } => {
                    _ = self
                        .calls
                        .spawn(transport::find(file, tag, running.say.clone()))
                }
                Action::Version(version) => {
                    self.version = Some(version);
                    if let Err(why) = self.check_version() {
                        running.broken = Some(why);
                    }
                }
                Action::Ready {
                    native_session_id,
                    resumed,
                } => {
                    running.ready = true;
                    self.emit(self.session_start(native_session_id, resumed));
                }
                Action::Delivered { input_id } => {
                    // First the event, then the note that it is over: what a crash between
                    // them leaves is found in the journal.
                    self.commit().await;
                    note(self.inbox.over(&input_id));
                    self.announced.retain(|said| *said != input_id);
                }
                Action::Undelivered { input_id } => note(self.inbox.unsent(&input_id)),
                Action::Refused { input_id, why } => {
                    self.emit(ErrorEvent::new(
                        ErrorCode::Internal,
                        format!("input `{input_id}` was not delivered: {why}"),
                    ));
                    self.outcome = Some(TurnEndReason::Error);
                    self.interrupt_soon = false;
                    self.commit().await;
                    note(self.inbox.over(&input_id));
                }
                Action::Step => self.count_step(),
                Action::Wake(after) => self.wake_at = Some(Instant::now() + after),
                Action::Broken(why) => running.broken = Some(why),
            }
        }
        while self.calls.try_join_next().is_some() {}
        self.commit().await;
    }

    /// Puts an event on the stream, and draws the consequences that hold for every runtime.
    fn publish(&mut self, payload: Payload) {
        match payload {
            // What was told of before a crash is not told again.
            Payload::UserMessage(message) if self.announced.contains(&message.input_id) => {}
            Payload::UserMessage(message) => {
                self.announced.push(message.input_id.clone());
                self.emit(message);
            }
            Payload::TurnStart(_) => {
                (self.steps, self.over_limit, self.answer_by) = (0, false, None);
                self.emit(payload);
                if std::mem::take(&mut self.interrupt_soon) {
                    self.interrupt();
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
                // One that did not join this turn begins another.
                self.answer_by = self
                    .inbox
                    .is_in_flight()
                    .then(|| Instant::now() + ANSWER_TIME);
                self.emit(end);
                self.journal.request_sync(true);
            }
            Payload::PermissionRequest(request) => {
                let (id, answer) = (request.request_id.clone(), self.policy());
                self.emit(request);
                self.wait_for_answer(id, answer);
            }
            Payload::QuestionRequest(request) => {
                let id = request.request_id.clone();
                self.emit(request);
                self.wait_for_answer(
                    id,
                    self.config
                        .oneshot
                        .then_some(PermissionDecision::RejectQuestion),
                );
            }
            other => self.emit(other),
        }
    }

    /// What is answered without asking anybody.
    fn policy(&self) -> Option<PermissionDecision> {
        match self.config.permissions {
            Permissions::Allow => Some(PermissionDecision::Allow),
            Permissions::Deny => Some(PermissionDecision::Deny {
                message: Some("this session allows no tools that need a permission".into()),
            }),
            Permissions::Ask if self.config.oneshot => Some(PermissionDecision::Deny {
                message: Some("nobody is there to give this permission".into()),
            }),
            Permissions::Ask => None,
        }
    }

    fn wait_for_answer(&mut self, id: String, answer: Option<PermissionDecision>) {
        match answer {
            Some(decision) => _ = self.answer(&id, &decision, "policy"),
            None => self
                .deadlines
                .push((id, Instant::now() + self.config.permission_timeout)),
        }
    }

    /// Whether such a request was open; what there is to do then, `carry_out` does.
    fn answer(&mut self, request_id: &str, decision: &PermissionDecision, by: &str) -> bool {
        let mut actions = Vec::new();
        let known = self
            .translator
            .answer(request_id, decision, by, &mut actions);
        self.actions.extend(actions);
        if known {
            self.deadlines.retain(|(id, _)| id != request_id);
        }
        known
    }

    fn count_step(&mut self) {
        self.steps += 1;
        let (steps, max) = (self.steps, self.config.max_steps);
        // At each quarter of the way.
        if (1..=4).any(|quarter| steps == (max * quarter).div_ceil(4)) {
            self.emit(Warning {
                message: format!("step {steps} of {max} of this turn"),
            });
        }
        if steps >= max && !self.over_limit {
            self.over_limit = true;
            self.interrupt();
        }
    }

    fn interrupt(&mut self) {
        if self.lifecycle.turn.is_none() {
            // Its turn has not begun, and may be about to.
            self.interrupt_soon =
                self.inbox.is_in_flight() || self.translator.phase() != Phase::Idle;
            return;
        }
        let mut actions = Vec::new();
        self.translator.interrupt(&mut actions);
        if !actions.is_empty() {
            self.interrupt_by
                .get_or_insert(Instant::now() + INTERRUPT_TIME);
        }
        self.actions.extend(actions);
    }

    async fn handle_command(&mut self, running: &mut RunningCli, command: SessionCommand) {
        self.active = Instant::now();
        match command {
            SessionCommand::Interrupt => self.interrupt(),
            SessionCommand::Answer {
                request_id,
                decision,
                known,
            } => _ = known.send(self.answer(&request_id, &decision, "user")),
            SessionCommand::Keepalive
            | SessionCommand::Shutdown { .. }
            | SessionCommand::Terminate => {}
        }
        self.apply(running, Vec::new()).await;
    }

    async fn on_time(&mut self, running: &mut RunningCli) {
        let now = Instant::now();
        let past = |at: &mut Option<Instant>| at.is_some_and(|t| t <= now) && at.take().is_some();
        if past(&mut self.wake_at) {
            let mut actions = Vec::new();
            self.translator.wake(&mut actions);
            self.apply(running, actions).await;
        }
        if past(&mut self.interrupt_by) && self.lifecycle.turn.is_some() {
            running.broken = Some(format!(
                "{} did not stop its turn within {INTERRUPT_TIME:?}",
                self.config.runtime.name
            ));
        }
        if past(&mut self.answer_by) && self.lifecycle.turn.is_none() && self.inbox.is_in_flight() {
            running.broken = Some(format!(
                "{} did not take up an input within {ANSWER_TIME:?}",
                self.config.runtime.name
            ));
        }
        let late: Vec<String> = self
            .deadlines
            .iter()
            .filter(|d| d.1 <= now)
            .map(|d| d.0.clone())
            .collect();
        for id in late {
            let decision = if self.lifecycle.questions.contains(&id) {
                PermissionDecision::RejectQuestion
            } else {
                PermissionDecision::Deny {
                    message: Some("nobody answered in time".into()),
                }
            };
            self.answer(&id, &decision, "adapter");
            self.deadlines.retain(|(late, _)| *late != id);
        }
        past(&mut self.retry_at);
        self.apply(running, Vec::new()).await;
    }

    /// Hands the next input over, if its time has come.
    async fn deliver(&mut self, running: &mut RunningCli) {
        if self.inbox.is_in_flight() || self.retry_at.is_some() {
            return;
        }
        let Some(mode) = self.inbox.next_mode() else {
            return;
        };
        let busy = match self.translator.phase() {
            Phase::Settling => return,
            phase => phase == Phase::Busy,
        };
        let able = self.config.runtime.capabilities.steer;
        match effective_mode(mode, able && self.translator.steers_now(false)) {
            InputMode::Queue | InputMode::Auto if busy => return,
            InputMode::Interrupt if busy => {
                if self.interrupt_by.is_none() {
                    self.interrupt();
                    self.apply(running, Vec::new()).await;
                }
                return;
            }
            InputMode::Steer if busy && !(able && self.translator.steers_now(true)) => {
                return self.cannot_steer();
            }
            _ => {}
        }
        if self.lifecycle.turns >= self.config.max_turns && !busy {
            return;
        }
        if let Some(input) = self.inbox.next() {
            self.dispatch(running, input).await;
        }
    }

    fn cannot_steer(&mut self) {
        let Some(input) = self
            .inbox
            .next()
            .filter(|i| self.unsteered.as_ref() != Some(&i.input_id))
        else {
            return;
        };
        self.emit(Warning {
            message: format!(
                "{} cannot be steered now: input `{}` waits for the end of the turn",
                self.config.runtime.name, input.input_id
            ),
        });
        self.unsteered = Some(input.input_id);
    }

    /// First the note that it is sent, on stable storage; then the input.
    async fn dispatch(&mut self, running: &mut RunningCli, mut input: Input) {
        let mut random = [0; 14];
        if let Err(e) = getrandom::fill(&mut random) {
            running.broken = Some(format!("no random bytes: {e}"));
            return;
        }
        if let Err(e) = self.inbox.load(&mut input) {
            let refused = Action::Refused {
                input_id: input.input_id,
                why: format!("its attachments cannot be read: {e}"),
            };
            return self.apply(running, vec![refused]).await;
        }
        let native_id = self
            .translator
            .native_id(jiff::Timestamp::now().as_millisecond(), random);
        let sent = Sent {
            input_id: input.input_id.clone(),
            native_id: native_id.clone(),
        };
        if let Err(e) = self.inbox.sent(sent) {
            return self.wait_for_the_inbox(&e);
        }
        if self.lifecycle.turn.is_none() {
            self.answer_by = Some(Instant::now() + ANSWER_TIME);
        }
        self.handing = Some(Handing {
            input,
            native_id,
            synced: self.sync_inbox(),
        });
    }

    fn sync_inbox(&self) -> JoinHandle<std::io::Result<()>> {
        let inbox = self.inbox.clone();
        tokio::task::spawn_blocking(move || inbox.sync())
    }

    /// The note stands on stable storage, or cannot.
    async fn noted_as_sent(&mut self, running: &mut RunningCli, synced: std::io::Result<()>) {
        let Some(handing) = self.handing.take() else {
            return;
        };
        if let Err(e) = synced {
            self.wait_for_the_inbox(&e);
            return note(self.inbox.unsent(&handing.input.input_id));
        }
        self.troubles.clear(Component::Inbox);
        let mut actions = Vec::new();
        self.translator
            .deliver(&handing.input, &handing.native_id, &mut actions);
        self.apply(running, actions).await;
    }

    fn wait_for_the_inbox(&mut self, e: &std::io::Error) {
        if self.troubles.set(
            Component::Inbox,
            format!("the inbox cannot be written: {e}"),
        ) {
            tracing::error!(error = %e, "the inbox cannot be written; the input waits");
        }
        self.answer_by = None;
        self.retry_at = Some(Instant::now() + DISK_RETRY);
    }

    /// Is there a reason to end, now that nothing is running?
    fn is_over(&mut self) -> Option<SessionEnd> {
        if self.translator.phase() != Phase::Idle || self.inbox.is_in_flight() {
            return None;
        }
        if self.lifecycle.turns >= self.config.max_turns {
            let waiting: Vec<String> = self
                .inbox
                .list()
                .into_iter()
                .map(|i| format!("`{}`", i.input_id))
                .collect();
            let left = if waiting.is_empty() {
                String::new()
            } else {
                format!("; these inputs were not delivered: {}", waiting.join(", "))
            };
            self.emit(Warning {
                message: format!("the session had its {} turns{left}", self.config.max_turns),
            });
            self.inbox.close(true);
            return Some(ended(SessionEndReason::Completed));
        }
        let reason = match () {
            () if self.config.oneshot && self.outcome.is_some() => SessionEndReason::Completed,
            () if self.active.elapsed() >= self.config.idle_timeout => {
                SessionEndReason::IdleTimeout
            }
            () => return None,
        };
        // Whoever was answered with 202 before this is delivered first.
        self.inbox.close(false).then(|| ended(reason))
    }

    fn idle_until(&self) -> Option<Instant> {
        let idle = self.translator.phase() == Phase::Idle && self.inbox.waiting() == 0;
        idle.then(|| self.active + self.config.idle_timeout)
    }

    async fn tell_crash(&mut self, why: &str, status: Option<ExitStatus>, stderr: &str) {
        tracing::error!(exit = %describe(status), "{why}");
        let mut error = ErrorEvent::new(ErrorCode::RuntimeCrashed, why);
        error.native = Some(json!({ "exit": describe(status), "stderr_tail": stderr }));
        self.emit(error);
        self.close_translator();
        self.commit().await;
        self.give_up_poison().await;
    }

    /// An input during which the CLI ended again and again is not tried for ever.
    async fn give_up_poison(&mut self) {
        for (input, _) in self.inbox.in_flight() {
            let deaths = self.inbox.died(&input.input_id).unwrap_or_else(|e| {
                tracing::error!(error = %e, "the inbox cannot be written");
                1
            });
            if deaths >= MAX_DEATHS {
                let why = format!(
                    "input `{}` was given up: {} ended {deaths} times while it had it",
                    input.input_id, self.config.runtime.name
                );
                self.emit(ErrorEvent::new(ErrorCode::RuntimeCrashed, why));
                self.outcome = Some(TurnEndReason::Error);
                self.commit().await;
                note(self.inbox.over(&input.input_id));
                // What is behind it has its own tries.
                self.crashes.clear();
            }
        }
    }

    fn close_translator(&mut self) {
        let mut actions = Vec::new();
        self.translator.close(&mut actions);
        for action in actions {
            if let Action::Event(payload) = action {
                self.outcome = if let Payload::TurnEnd(end) = &payload {
                    Some(end.reason)
                } else {
                    self.outcome
                };
                self.emit(payload);
            }
        }
        if self.lifecycle.turn.is_some() {
            self.emit(ended_turn(TurnEndReason::Error));
        }
        (self.interrupt_by, self.answer_by, self.wake_at) = (None, None, None);
        (self.handing, self.retry_at) = (None, None);
        self.deadlines.clear();
    }

    /// How long to wait before it is started again; `None`: no more.
    fn backoff(&mut self, was_ready: bool) -> Option<Duration> {
        let now = Instant::now();
        self.crashes.push_back(now);
        while self
            .crashes
            .front()
            .is_some_and(|c| now - *c > CRASH_WINDOW)
        {
            self.crashes.pop_front();
        }
        // One that never worked will not by itself.
        let worked_once = was_ready || self.lifecycle.native_session_id.is_some();
        let again = worked_once
            && self.crashes.len() < MAX_CRASHES
            && !(self.config.oneshot && self.outcome.is_some());
        again.then(|| FIRST_BACKOFF * 2_u32.pow(self.crashes.len() as u32 - 1))
    }

    /// Waits, and still obeys.
    async fn pause(&mut self, time: Duration, state: &'static str) -> Option<SessionEnd> {
        self.set_state(state);
        tokio::time::timeout(time, asked_to_end(&mut self.commands))
            .await
            .ok()
    }

    async fn end(mut self, mut end: SessionEnd) -> Ended {
        self.inbox.close(true);
        self.close_translator();
        end.resume_token = self
            .lifecycle
            .native_session_id
            .clone()
            .map(|id| format!("{}:{id}", self.config.runtime.id));
        let reason = end.reason;
        self.emit(end);
        self.commit().await;
        if let Err(e) = self.journal.commit_once() {
            tracing::error!(error = %e, "the last events could not be written");
        }
        self.set_state("ended");
        process::sweep(&self.session_id).await;
        self.journal.close();
        if let Some(raw) = self.raw {
            raw.close();
        }
        Ended {
            reason,
            outcome: self.outcome,
        }
    }

    fn set_state(&self, state: &'static str) {
        let mut status = lock(&self.status);
        status.state = state;
        status.turn = self.lifecycle.turns;
        status
            .native_session_id
            .clone_from(&self.lifecycle.native_session_id);
        status.runtime_version.clone_from(&self.version);
        status.usage.clone_from(&self.lifecycle.spent);
        status.waiting_for = self
            .lifecycle
            .permissions
            .iter()
            .chain(&self.lifecycle.questions)
            .cloned()
            .collect();
    }

    fn show_state(&self) {
        self.set_state(
            if self.lifecycle.turn.is_some() || self.translator.phase() != Phase::Idle {
                "busy"
            } else {
                "idle"
            },
        );
    }
}

fn ended(reason: SessionEndReason) -> SessionEnd {
    SessionEnd {
        reason,
        exit_code: None,
        signal: None,
        stderr_tail: None,
        resume_token: None,
        summary: None,
    }
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
async fn asked_to_end(commands: &mut mpsc::Receiver<SessionCommand>) -> SessionEnd {
    loop {
        match commands.recv().await {
            Some(SessionCommand::Shutdown { summary }) => {
                return SessionEnd {
                    summary,
                    ..ended(SessionEndReason::Shutdown)
                };
            }
            Some(SessionCommand::Terminate) | None => return ended(SessionEndReason::Terminated),
            Some(SessionCommand::Answer { known, .. }) => _ = known.send(false),
            Some(SessionCommand::Interrupt | SessionCommand::Keepalive) => {}
        }
    }
}

fn ended_turn(reason: TurnEndReason) -> crate::event::TurnEnd {
    crate::event::TurnEnd {
        turn: 0,
        reason,
        usage: Default::default(),
        duration_ms: 0,
        final_text: String::new(),
    }
}

fn describe(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "no exit status".to_owned(), |s| s.to_string())
}

/// Waits until an input that is handed over is noted as such on stable storage.
async fn noted(handing: &mut Option<Handing>) -> std::io::Result<()> {
    match handing {
        Some(handing) => (&mut handing.synced)
            .await
            .unwrap_or_else(|e| Err(std::io::Error::other(e))),
        None => std::future::pending().await,
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
