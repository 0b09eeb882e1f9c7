//! How a session ends, how a crash is told, and what an adapter before this one left.

use std::process::ExitStatus;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;

use super::input::note;
use super::{Session, SessionCommand};
use crate::adapter::inbox::MAX_DEATHS;
use crate::adapter::process;
use crate::adapter::runtime::Phase;
use crate::adapter::runtime::action::Action;
use crate::adapter::session::record::{said_in_pieces, said_since};
use crate::event::{
    ErrorCode, ErrorEvent, Payload, SessionEnd, SessionEndReason, TurnEndReason, TurnStart, Warning,
};

/// Why the session is over.
#[derive(Debug)]
pub struct Ended {
    pub reason: SessionEndReason,
    /// How the last turn ended, if there was one.
    pub outcome: Option<TurnEndReason>,
}

pub(super) fn ended(reason: SessionEndReason) -> SessionEnd {
    SessionEnd {
        reason,
        exit_code: None,
        signal: None,
        stderr_tail: None,
        resume_token: None,
        summary: None,
    }
}

pub(super) fn crashed(status: Option<ExitStatus>, stderr: String) -> SessionEnd {
    use std::os::unix::process::ExitStatusExt;
    SessionEnd {
        exit_code: status.and_then(|s| s.code()),
        signal: status.and_then(|s| s.signal()),
        stderr_tail: Some(stderr),
        ..ended(SessionEndReason::Crashed)
    }
}

/// Waits until somebody wants the session to end; other commands have nothing to act on.
pub(super) async fn asked_to_end(commands: &mut mpsc::Receiver<SessionCommand>) -> SessionEnd {
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

pub(super) fn ended_turn(reason: TurnEndReason) -> crate::event::TurnEnd {
    crate::event::TurnEnd {
        turn: 0,
        reason,
        usage: Default::default(),
        duration_ms: 0,
        final_text: String::new(),
    }
}

pub(super) fn describe(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "no exit status".to_owned(), |s| s.to_string())
}

impl Session {
    /// What was open when an adapter before this one was killed, and whose input is where.
    pub(super) async fn close_what_a_crash_left(&mut self) {
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
    pub(super) fn look_up_open_inputs(&mut self) {
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
    pub(super) async fn end_again(self) -> Ended {
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

    /// Is there a reason to end, now that nothing is running?
    pub(super) fn is_over(&mut self) -> Option<SessionEnd> {
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

    pub(super) fn is_idle(&self) -> bool {
        self.translator.phase() == Phase::Idle && self.inbox.waiting() == 0
    }

    pub(super) async fn tell_crash(&mut self, why: &str, status: Option<ExitStatus>, stderr: &str) {
        tracing::error!(exit = %describe(status), "{why}");
        let mut error = ErrorEvent::new(ErrorCode::RuntimeCrashed, why);
        error.native = Some(json!({ "exit": describe(status), "stderr_tail": stderr }));
        self.stream.emit(error);
        self.close_translator();
        self.stream.commit().await;
        self.give_up_poison().await;
    }

    /// An input during which the CLI ended again and again is not tried for ever.
    pub(super) async fn give_up_poison(&mut self) {
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

    pub(super) fn close_translator(&mut self) {
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
    pub(super) fn backoff(&mut self, was_ready: bool) -> Option<Duration> {
        let wait = self.restarts.crashed()?;
        // One that never worked will not by itself.
        let worked_once = was_ready || self.stream.lifecycle.native_session_id.is_some();
        let is_task_done = self.config.oneshot && self.outcome.is_some();
        (worked_once && !is_task_done).then_some(wait)
    }

    /// Waits, and still obeys.
    pub(super) async fn pause(
        &mut self,
        time: Duration,
        state: &'static str,
    ) -> Option<SessionEnd> {
        self.set_state(state);
        tokio::time::timeout(time, asked_to_end(&mut self.commands))
            .await
            .ok()
    }

    pub(super) async fn end(mut self, mut end: SessionEnd) -> Ended {
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
}
