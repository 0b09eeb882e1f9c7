//! What the CLI says: through the translator, onto the stream, and what follows from it.

use std::time::Duration;

use super::input::note;
use super::{Session, StepLimit};
use crate::adapter::runtime::Permissions;
use crate::adapter::runtime::action::{Action, PermissionDecision};
use crate::adapter::session::running::{RunningCli, TOO_LONG};
use crate::adapter::session::stream::raw_output;
use crate::adapter::transport;
use crate::adapter::transport::FromCli;
use crate::event::{ErrorCode, ErrorEvent, Payload, TurnEndReason, Unparsed, Warning};

/// How long a CLI that has closed its output may take to end.
pub(super) const LAST_WORDS_TIME: Duration = Duration::from_millis(500);

impl Session {
    /// One piece of what the CLI says: through the translator, and onto the stream at once.
    pub(super) async fn handle_output(&mut self, running: &mut RunningCli, from_cli: FromCli) {
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

    pub(super) fn hear_stderr(
        &mut self,
        running: &mut RunningCli,
        bytes: &[u8],
        actions: &mut Vec<Action>,
    ) {
        running.stderr.feed(bytes);
        let (raw, translator) = (&mut self.stream.raw, &mut self.translator);
        running.stderr.lines.feed(bytes, |line| {
            let line = line.unwrap_or(TOO_LONG);
            raw_output(raw, "stderr", line);
            translator.read_stderr(&String::from_utf8_lossy(line), actions);
        });
    }

    /// Does what a translator wants done, and writes down what it said.
    pub(super) async fn apply(&mut self, running: &mut RunningCli, actions: Vec<Action>) {
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
    pub(super) fn publish(&mut self, payload: Payload) {
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
    pub(super) fn policy(&self) -> Option<PermissionDecision> {
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

    pub(super) fn wait_for_answer(&mut self, id: String, answer: Option<PermissionDecision>) {
        match answer {
            Some(decision) => _ = self.answer(&id, &decision, "policy"),
            None => self
                .timers
                .expect_an_answer(id, self.config.permission_timeout),
        }
    }

    /// Whether such a request was open; what there is to do then, `apply` does.
    pub(super) fn answer(
        &mut self,
        request_id: &str,
        decision: &PermissionDecision,
        by: &str,
    ) -> bool {
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

    pub(super) fn count_step(&mut self) {
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
}
