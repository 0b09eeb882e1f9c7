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
mod delivery;
mod record;
mod restarts;
mod stream;
mod timers;

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use self::cli::{CliExit, RunningCli, setting};
use self::delivery::{Delivery, NextStep, PendingInput, Steering, next_step};
use self::record::{said_in_pieces, said_since};
use self::restarts::Restarts;
use self::stream::{Stream, raw_output};
use self::timers::{ANSWER_TIME, INTERRUPT_TIME, Timers};
use super::config::AdapterConfig;
use super::journal;
use super::process;
use super::transport::{self, FromCli};
use super::trouble::{Component, Troubles};
use crate::adapter::inbox::Sent;
use crate::adapter::inbox::{Inbox, Input, MAX_DEATHS};
use crate::adapter::lifecycle::Lifecycle;
use crate::adapter::runtime::action::{Action, PermissionDecision};
use crate::adapter::runtime::{Permissions, Phase, Translator};
use crate::base::sync::lock;
use crate::event::SessionStage;
use crate::event::SessionStart;
use crate::event::StageState;
use crate::event::{
    ErrorCode, ErrorEvent, Payload, SessionEnd, SessionEndReason, TurnEndReason, TurnStart,
    Unparsed, Usage, Warning,
};

pub use self::record::Rebuilt;

/// How long a CLI that has closed its output may take to end.
const LAST_WORDS_TIME: Duration = Duration::from_millis(500);
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

/// The task that owns the CLI.
pub struct Session {
    config: AdapterConfig,
    translator: Box<dyn Translator>,
    stream: Stream,
    inbox: Arc<Inbox>,
    commands: mpsc::Receiver<SessionCommand>,
    status: SharedStatus,
    troubles: Troubles,
    delivery: Delivery,
    timers: Timers,
    restarts: Restarts,
    steps: StepLimit,
    /// Requests to the CLI, and files that are read for the translator.
    calls: JoinSet<()>,
    /// What is to be done, in order.
    actions: VecDeque<Action>,
    version: Option<String>,
    /// How the last turn ended.
    outcome: Option<TurnEndReason>,
}

/// How many steps the turn has taken, of those that it may.
#[derive(Debug, Default)]
struct StepLimit {
    taken: u64,
    /// The turn is being stopped for its steps.
    exceeded: bool,
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
        let launch = setting(&config, &session_id, None, String::new());
        let runtime = config.runtime;
        Session {
            translator: (runtime.translator)(&launch),
            // A task that had its end before has it still.
            outcome: lifecycle.outcome.filter(|_| config.oneshot),
            stream: Stream::new(lifecycle, runtime.id, (journal, raw), terminating),
            inbox,
            commands,
            status,
            troubles,
            delivery: Delivery::default(),
            timers: Timers::new(config.idle_timeout),
            restarts: Restarts::default(),
            steps: StepLimit::default(),
            calls: JoinSet::new(),
            actions: VecDeque::new(),
            version: None,
            config,
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
        process::sweep(&self.stream.session_id).await;
        if let Some(turn) = &self.stream.lifecycle.turn {
            for said in said_in_pieces(&self.stream.journal.journal(), turn.sequence) {
                self.stream.emit(said);
            }
            let error = ErrorEvent::new(
                ErrorCode::Internal,
                "the adapter was stopped while this turn was running; the CLI is started again with its history",
            );
            self.stream.emit(error);
            self.stream.emit(ended_turn(TurnEndReason::Error));
            self.outcome = Some(TurnEndReason::Error);
        }
        let input_ids = std::mem::take(&mut self.stream.lifecycle.unanswered);
        if !input_ids.is_empty() {
            self.stream.emit(TurnStart { turn: 0, input_ids });
            self.stream.emit(ErrorEvent::new(ErrorCode::RuntimeCrashed, "the adapter was stopped before this input was answered; it stands in the CLI's history"));
            self.stream.emit(ended_turn(TurnEndReason::Error));
            self.outcome = Some(TurnEndReason::Error);
        }
        self.look_up_open_inputs();
        for warning in std::mem::take(&mut self.config.warnings) {
            self.stream.emit(Warning { message: warning });
        }
        self.stream.commit().await;
    }

    /// What the journal tells of inputs whose fate is not known.
    fn look_up_open_inputs(&mut self) {
        let open = self.inbox.undecided();
        let Some(from) = open.iter().map(|o| o.since).min() else {
            return;
        };
        let ids: Vec<&str> = open.iter().map(|o| o.input_id.as_str()).collect();
        let said = said_since(&self.stream.journal.journal(), from, &ids);
        for open in open.iter().filter(|o| said.contains(&o.input_id)) {
            if open.was_sent {
                self.delivery.announced(&open.input_id);
            } else {
                // The stream has it, and the note that it was sent is lost.
                note(self.inbox.over(&open.input_id));
            }
        }
    }

    /// A task that is over, and whose adapter was started again.
    async fn end_again(self) -> Ended {
        if !self.stream.lifecycle.ended {
            return self.end(ended(SessionEndReason::Completed)).await;
        }
        self.inbox.close(true);
        self.set_state("ended");
        self.stream.journal.close();
        Ended {
            reason: SessionEndReason::Completed,
            outcome: self.outcome,
        }
    }

    /// Serves inputs and commands until the CLI is gone or the session is over.
    async fn serve(&mut self, mut running: RunningCli) -> CliExit {
        self.timers.something_happened();
        for (input, sent) in self.inbox.in_flight() {
            let mut actions = Vec::new();
            // What it was told of, its turn was told of too.
            let told = self.delivery.is_announced(&input.input_id);
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
            let wake = self.timers.next(self.is_idle());
            tokio::select! {
                biased;
                // Before what it says, which may never end; its own end comes after that.
                command = self.commands.recv() => match command {
                    Some(SessionCommand::Shutdown { summary }) => return self.stop(running, SessionEnd { summary, ..ended(SessionEndReason::Shutdown) }).await,
                    Some(SessionCommand::Terminate) | None => return self.stop(running, ended(SessionEndReason::Terminated)).await,
                    Some(command) => self.handle_command(&mut running, command).await,
                },
                () = until(wake) => self.on_time(&mut running).await,
                synced = self.delivery.noted() => self.noted_as_sent(&mut running, synced).await,
                from_cli = running.from_cli.recv() => if let Some(from_cli) = from_cli { self.handle_output(&mut running, from_cli).await },
                () = self.inbox.changed.notified() => self.timers.something_happened(),
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
                let (translator, raw) = (&mut self.translator, &mut self.stream.raw);
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
                let raw = &mut self.stream.raw;
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
        let (raw, translator) = (&mut self.stream.raw, &mut self.translator);
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
                    self.stream
                        .emit(self.session_start(native_session_id, resumed));
                }
                Action::Delivered { input_id } => {
                    // First the event, then the note that it is over: what a crash between
                    // them leaves is found in the journal.
                    self.stream.commit().await;
                    note(self.inbox.over(&input_id));
                    self.delivery.delivered(&input_id);
                }
                Action::Undelivered { input_id } => note(self.inbox.unsent(&input_id)),
                Action::Refused { input_id, why } => {
                    self.stream.emit(ErrorEvent::new(
                        ErrorCode::Internal,
                        format!("input `{input_id}` was not delivered: {why}"),
                    ));
                    self.outcome = Some(TurnEndReason::Error);
                    self.delivery.interrupt_soon = false;
                    self.stream.commit().await;
                    note(self.inbox.over(&input_id));
                }
                Action::Step => self.count_step(),
                Action::Wake(after) => self.timers.wake_after(after),
                Action::Broken(why) => running.broken = Some(why),
            }
        }
        while self.calls.try_join_next().is_some() {}
        self.stream.commit().await;
    }

    /// Puts an event on the stream, and draws the consequences that hold for every runtime.
    fn publish(&mut self, payload: Payload) {
        match payload {
            // What was told of before a crash is not told again.
            Payload::UserMessage(message) if self.delivery.is_announced(&message.input_id) => {}
            Payload::UserMessage(message) => {
                self.delivery.announced(&message.input_id);
                self.stream.emit(message);
            }
            Payload::TurnStart(_) => {
                self.steps = StepLimit::default();
                self.timers.turn_began();
                self.stream.emit(payload);
                if std::mem::take(&mut self.delivery.interrupt_soon) {
                    self.interrupt();
                }
            }
            Payload::TurnEnd(mut end) => {
                if self.steps.exceeded && end.reason == TurnEndReason::Interrupted {
                    end.reason = TurnEndReason::MaxSteps;
                }
                self.outcome = Some(end.reason);
                if end.reason != TurnEndReason::Error {
                    // It works: an earlier crash says nothing of the next.
                    self.restarts.it_works();
                }
                self.timers.turn_ended(self.inbox.is_in_flight());
                self.stream.emit(end);
                self.stream.journal.request_sync(true);
            }
            Payload::PermissionRequest(request) => {
                let (id, answer) = (request.request_id.clone(), self.policy());
                self.stream.emit(request);
                self.wait_for_answer(id, answer);
            }
            Payload::QuestionRequest(request) => {
                let id = request.request_id.clone();
                self.stream.emit(request);
                self.wait_for_answer(
                    id,
                    self.config
                        .oneshot
                        .then_some(PermissionDecision::RejectQuestion),
                );
            }
            other => self.stream.emit(other),
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
                .timers
                .expect_an_answer(id, self.config.permission_timeout),
        }
    }

    /// Whether such a request was open; what there is to do then, `apply` does.
    fn answer(&mut self, request_id: &str, decision: &PermissionDecision, by: &str) -> bool {
        let mut actions = Vec::new();
        let known = self
            .translator
            .answer(request_id, decision, by, &mut actions);
        self.actions.extend(actions);
        if known {
            self.timers.answered(request_id);
        }
        known
    }

    fn count_step(&mut self) {
        self.steps.taken += 1;
        let (steps, max) = (self.steps.taken, self.config.max_steps);
        // At each quarter of the way.
        if (1..=4).any(|quarter| steps == (max * quarter).div_ceil(4)) {
            self.stream.emit(Warning {
                message: format!("step {steps} of {max} of this turn"),
            });
        }
        if steps >= max && !self.steps.exceeded {
            self.steps.exceeded = true;
            self.interrupt();
        }
    }

    fn interrupt(&mut self) {
        if self.stream.lifecycle.turn.is_none() {
            // Its turn has not begun, and may be about to.
            self.delivery.interrupt_soon =
                self.inbox.is_in_flight() || self.translator.phase() != Phase::Idle;
            return;
        }
        let mut actions = Vec::new();
        self.translator.interrupt(&mut actions);
        if !actions.is_empty() {
            self.timers.interrupted();
        }
        self.actions.extend(actions);
    }

    async fn handle_command(&mut self, running: &mut RunningCli, command: SessionCommand) {
        self.timers.something_happened();
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
        let expired = self.timers.take_expired();
        if expired.wake {
            let mut actions = Vec::new();
            self.translator.wake(&mut actions);
            self.apply(running, actions).await;
        }
        let name = self.config.runtime.name;
        if expired.interrupt && self.stream.lifecycle.turn.is_some() {
            let why = format!("{name} did not stop its turn within {INTERRUPT_TIME:?}");
            running.broken = Some(why);
        }
        if expired.answer && self.stream.lifecycle.turn.is_none() && self.inbox.is_in_flight() {
            let why = format!("{name} did not take up an input within {ANSWER_TIME:?}");
            running.broken = Some(why);
        }
        for id in expired.requests {
            let decision = if self.stream.lifecycle.questions.contains(&id) {
                PermissionDecision::RejectQuestion
            } else {
                PermissionDecision::Deny {
                    message: Some("nobody answered in time".into()),
                }
            };
            self.answer(&id, &decision, "adapter");
        }
        self.apply(running, Vec::new()).await;
    }

    /// Hands the next input over, if its time has come.
    async fn deliver(&mut self, running: &mut RunningCli) {
        if self.inbox.is_in_flight() || self.timers.waits_for_the_disk() {
            return;
        }
        let Some(mode) = self.inbox.next_mode() else {
            return;
        };
        let turns_left = self.stream.lifecycle.turns < self.config.max_turns;
        let interrupting = self.timers.is_interrupting();
        let phase = self.translator.phase();
        match next_step(mode, phase, self.steering(), interrupting, turns_left) {
            NextStep::Wait => {}
            NextStep::Interrupt => {
                self.interrupt();
                self.apply(running, Vec::new()).await;
            }
            NextStep::CannotSteer => self.cannot_steer(),
            NextStep::HandOver => {
                if let Some(input) = self.inbox.next() {
                    self.dispatch(running, input).await;
                }
            }
        }
    }

    fn steering(&self) -> Steering {
        let able = self.config.runtime.capabilities.steer;
        match () {
            () if able && self.translator.steers_now(false) => Steering::Yes,
            () if able && self.translator.steers_now(true) => Steering::Lossy,
            () => Steering::No,
        }
    }

    fn cannot_steer(&mut self) {
        let Some(input) = self.inbox.next() else {
            return;
        };
        if !self.delivery.is_first_refusal(&input.input_id) {
            return;
        }
        self.stream.emit(Warning {
            message: format!(
                "{} cannot be steered now: input `{}` waits for the end of the turn",
                self.config.runtime.name, input.input_id
            ),
        });
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
        if self.stream.lifecycle.turn.is_none() {
            self.timers.expect_a_turn();
        }
        self.delivery.pending = Some(PendingInput {
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
        let Some(pending) = self.delivery.pending.take() else {
            return;
        };
        if let Err(e) = synced {
            self.wait_for_the_inbox(&e);
            return note(self.inbox.unsent(&pending.input.input_id));
        }
        self.troubles.clear(Component::Inbox);
        let mut actions = Vec::new();
        self.translator
            .deliver(&pending.input, &pending.native_id, &mut actions);
        self.apply(running, actions).await;
    }

    fn wait_for_the_inbox(&mut self, e: &std::io::Error) {
        if self.troubles.set(
            Component::Inbox,
            format!("the inbox cannot be written: {e}"),
        ) {
            tracing::error!(error = %e, "the inbox cannot be written; the input waits");
        }
        self.timers.wait_for_the_disk();
    }

    /// Is there a reason to end, now that nothing is running?
    fn is_over(&mut self) -> Option<SessionEnd> {
        if self.translator.phase() != Phase::Idle || self.inbox.is_in_flight() {
            return None;
        }
        if self.stream.lifecycle.turns >= self.config.max_turns {
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
            self.stream.emit(Warning {
                message: format!("the session had its {} turns{left}", self.config.max_turns),
            });
            self.inbox.close(true);
            return Some(ended(SessionEndReason::Completed));
        }
        let reason = match () {
            () if self.config.oneshot && self.outcome.is_some() => SessionEndReason::Completed,
            () if self.timers.is_idle_too_long() => SessionEndReason::IdleTimeout,
            () => return None,
        };
        // Whoever was answered with 202 before this is delivered first.
        self.inbox.close(false).then(|| ended(reason))
    }

    fn is_idle(&self) -> bool {
        self.translator.phase() == Phase::Idle && self.inbox.waiting() == 0
    }

    async fn tell_crash(&mut self, why: &str, status: Option<ExitStatus>, stderr: &str) {
        tracing::error!(exit = %describe(status), "{why}");
        let mut error = ErrorEvent::new(ErrorCode::RuntimeCrashed, why);
        error.native = Some(json!({ "exit": describe(status), "stderr_tail": stderr }));
        self.stream.emit(error);
        self.close_translator();
        self.stream.commit().await;
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
                self.stream
                    .emit(ErrorEvent::new(ErrorCode::RuntimeCrashed, why));
                self.outcome = Some(TurnEndReason::Error);
                self.stream.commit().await;
                note(self.inbox.over(&input.input_id));
                // What is behind it has its own tries.
                self.restarts.it_works();
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
                self.stream.emit(payload);
            }
        }
        if self.stream.lifecycle.turn.is_some() {
            self.stream.emit(ended_turn(TurnEndReason::Error));
        }
        self.timers.clear();
        self.delivery.pending = None;
    }

    /// How long to wait before it is started again; `None`: no more.
    fn backoff(&mut self, was_ready: bool) -> Option<Duration> {
        let wait = self.restarts.crashed()?;
        // One that never worked will not by itself.
        let worked_once = was_ready || self.stream.lifecycle.native_session_id.is_some();
        let is_task_done = self.config.oneshot && self.outcome.is_some();
        (worked_once && !is_task_done).then_some(wait)
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
            .stream
            .lifecycle
            .native_session_id
            .clone()
            .map(|id| format!("{}:{id}", self.config.runtime.id));
        let reason = end.reason;
        self.stream.emit(end);
        self.stream.commit().await;
        if let Err(e) = self.stream.journal.commit_once() {
            tracing::error!(error = %e, "the last events could not be written");
        }
        self.set_state("ended");
        process::sweep(&self.stream.session_id).await;
        self.stream.journal.close();
        if let Some(raw) = self.stream.raw {
            raw.close();
        }
        Ended {
            reason,
            outcome: self.outcome,
        }
    }

    async fn stage(
        &mut self,
        stage: &str,
        state: StageState,
        since: Instant,
        message: Option<String>,
    ) {
        let duration_ms = if state == StageState::Started {
            0
        } else {
            since.elapsed().as_millis() as u64
        };
        self.stream.emit(SessionStage {
            stage: stage.to_owned(),
            state,
            duration_ms,
            message,
        });
        self.stream.commit().await;
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

    fn set_state(&self, state: &'static str) {
        let mut status = lock(&self.status);
        status.state = state;
        status.turn = self.stream.lifecycle.turns;
        status
            .native_session_id
            .clone_from(&self.stream.lifecycle.native_session_id);
        status.runtime_version.clone_from(&self.version);
        status.usage.clone_from(&self.stream.lifecycle.spent);
        status.waiting_for = self
            .stream
            .lifecycle
            .permissions
            .iter()
            .chain(&self.stream.lifecycle.questions)
            .cloned()
            .collect();
    }

    fn show_state(&self) {
        self.set_state(
            if self.stream.lifecycle.turn.is_some() || self.translator.phase() != Phase::Idle {
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
