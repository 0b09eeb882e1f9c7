//! How inputs reach the CLI.

use tokio::task::JoinHandle;

use super::Session;
use crate::adapter::inbox::{Input, Sent};
use crate::adapter::runtime::action::Action;
use crate::adapter::session::delivery::{NextStep, PendingInput, Steering, next_step};
use crate::adapter::session::running::RunningCli;
use crate::adapter::trouble::Component;
use crate::event::Warning;

pub(super) fn note(written: std::io::Result<()>) {
    if let Err(e) = written {
        tracing::error!(error = %e, "the inbox cannot be written");
    }
}

impl Session {
    /// Hands the next input over, if its time has come.
    pub(super) async fn deliver(&mut self, running: &mut RunningCli) {
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

    pub(super) fn steering(&self) -> Steering {
        let able = self.config.runtime.capabilities.steer;
        match () {
            () if able && self.translator.steers_now(false) => Steering::Yes,
            () if able && self.translator.steers_now(true) => Steering::Lossy,
            () => Steering::No,
        }
    }

    pub(super) fn cannot_steer(&mut self) {
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
    pub(super) async fn dispatch(&mut self, running: &mut RunningCli, mut input: Input) {
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

    pub(super) fn sync_inbox(&self) -> JoinHandle<std::io::Result<()>> {
        let inbox = self.inbox.clone();
        tokio::task::spawn_blocking(move || inbox.sync())
    }

    /// The note stands on stable storage, or cannot.
    pub(super) async fn noted_as_sent(
        &mut self,
        running: &mut RunningCli,
        synced: std::io::Result<()>,
    ) {
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

    pub(super) fn wait_for_the_inbox(&mut self, e: &std::io::Error) {
        if self.troubles.set(
            Component::Inbox,
            format!("the inbox cannot be written: {e}"),
        ) {
            tracing::error!(error = %e, "the inbox cannot be written; the input waits");
        }
        self.timers.wait_for_the_disk();
    }
}
