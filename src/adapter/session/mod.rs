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
mod launch;
mod output;
mod record;
mod restarts;
mod running;
pub mod status;
pub mod stop;
mod stream;
mod timers;

mod input;

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::delivery::Delivery;
use self::restarts::Restarts;
use self::status::SharedStatus;
use self::stop::{Ended, crashed, describe, ended};
use self::stream::Stream;
use self::timers::{ANSWER_TIME, INTERRUPT_TIME, Timers};
use super::config::AdapterConfig;
use super::journal;
use super::trouble::Troubles;
use crate::adapter::inbox::Inbox;
use crate::adapter::lifecycle::Lifecycle;
use crate::adapter::runtime::action::{Action, PermissionDecision};
use crate::adapter::runtime::{Phase, Translator};
use crate::adapter::session::launch::setting;
use crate::adapter::session::running::{CliExit, RunningCli};
use crate::event::{SessionEnd, SessionEndReason, TurnEndReason};

pub use self::record::Rebuilt;

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
        if self.timers.take_wake() {
            let mut actions = Vec::new();
            self.translator.wake(&mut actions);
            self.apply(running, actions).await;
        }
        let expired = self.timers.take_expired();
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
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
