//! What becomes of the next input: a table without side effects, and what is known of inputs that
//! are on their way.

use tokio::task::JoinHandle;

use crate::adapter::inbox::Input;
use crate::adapter::runtime::Phase;
use crate::adapter::runtime::native::effective_mode;
use crate::event::InputMode;

/// What is done with the next input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextStep {
    /// It waits.
    Wait,
    /// The turn is interrupted, and the input waits for its end.
    Interrupt,
    /// It waits, and the stream is told that it cannot be steered.
    CannotSteer,
    HandOver,
}

/// Whether an input can join the turn that is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Steering {
    No,
    /// It can, and output of the turn may be lost.
    Lossy,
    Yes,
}

/// Decides on the next input, which wants to be delivered by `mode`. `interrupting`: the turn is
/// being stopped already. `turns_left`: the session may begin another turn.
pub(super) fn next_step(
    mode: InputMode,
    phase: Phase,
    steering: Steering,
    interrupting: bool,
    turns_left: bool,
) -> NextStep {
    let busy = match phase {
        Phase::Settling => return NextStep::Wait,
        Phase::Busy => true,
        Phase::Idle => false,
    };
    match effective_mode(mode, steering == Steering::Yes) {
        InputMode::Queue | InputMode::Auto if busy => NextStep::Wait,
        InputMode::Interrupt if busy && interrupting => NextStep::Wait,
        InputMode::Interrupt if busy => NextStep::Interrupt,
        InputMode::Steer if busy && steering == Steering::No => NextStep::CannotSteer,
        _ if !busy && !turns_left => NextStep::Wait,
        _ => NextStep::HandOver,
    }
}

/// What is known of inputs that are on their way to the CLI.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// An input that is noted as sent, on its way to stable storage.
    pub(super) pending: Option<PendingInput>,
    /// Inputs whose `user.message` stands in the journal already.
    announced: Vec<String>,
    /// The turn that is about to begin is to be stopped.
    pub(super) interrupt_soon: bool,
    /// An input that cannot be steered, and of which that was said.
    unsteered: Option<String>,
}

/// An input that is given to the CLI once the note of it is on stable storage.
#[derive(Debug)]
pub(super) struct PendingInput {
    pub(super) input: Input,
    pub(super) native_id: String,
    pub(super) synced: JoinHandle<std::io::Result<()>>,
}

impl Delivery {
    pub(super) fn is_announced(&self, input_id: &str) -> bool {
        self.announced.iter().any(|id| id == input_id)
    }

    pub(super) fn announced(&mut self, input_id: &str) {
        self.announced.push(input_id.to_owned());
    }

    pub(super) fn delivered(&mut self, input_id: &str) {
        self.announced.retain(|id| id != input_id);
    }

    /// Whether the stream has yet to be told that this input cannot be steered.
    pub(super) fn is_first_refusal(&mut self, input_id: &str) -> bool {
        let first = self.unsteered.as_deref() != Some(input_id);
        self.unsteered = Some(input_id.to_owned());
        first
    }

    /// Waits until the pending input is noted on stable storage.
    pub(super) async fn noted(&mut self) -> std::io::Result<()> {
        match &mut self.pending {
            Some(pending) => (&mut pending.synced)
                .await
                .unwrap_or_else(|e| Err(std::io::Error::other(e))),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_decisions() {
        use InputMode::{Auto, Interrupt, Queue, Steer};
        use NextStep::{CannotSteer, HandOver, Wait};
        use Phase::{Busy, Idle, Settling};
        use Steering::{Lossy, No, Yes};
        #[rustfmt::skip]
        let cases = [
            // Nothing is running: every input begins a turn.
            (Auto, Idle, No, false, HandOver),
            (Queue, Idle, Yes, false, HandOver),
            (Steer, Idle, No, false, HandOver),
            (Interrupt, Idle, No, false, HandOver),
            // A turn is running.
            (Auto, Busy, No, false, Wait),
            (Auto, Busy, Lossy, false, Wait),
            (Auto, Busy, Yes, false, HandOver),
            (Queue, Busy, Yes, false, Wait),
            (Steer, Busy, No, false, CannotSteer),
            (Steer, Busy, Lossy, false, HandOver),
            (Steer, Busy, Yes, false, HandOver),
            (Interrupt, Busy, Yes, false, NextStep::Interrupt),
            (Interrupt, Busy, Yes, true, Wait),
            // It was stopped, and not all of it was said.
            (Auto, Settling, Yes, false, Wait),
            (Steer, Settling, Yes, false, Wait),
            (Interrupt, Settling, Yes, false, Wait),
        ];
        for (mode, phase, steering, interrupting, expected) in cases {
            let step = next_step(mode, phase, steering, interrupting, true);
            assert_eq!(step, expected, "{mode:?} {phase:?} {steering:?}");
            // Without turns left, only what joins a turn is handed over.
            let last = next_step(mode, phase, steering, interrupting, false);
            let allowed = if phase == Idle { Wait } else { expected };
            assert_eq!(last, allowed, "{mode:?} {phase:?} {steering:?}");
        }
    }

    #[test]
    fn an_input_that_cannot_be_steered_is_told_once() {
        let mut delivery = Delivery::default();
        assert!(delivery.is_first_refusal("a") && !delivery.is_first_refusal("a"));
        assert!(delivery.is_first_refusal("b"));
    }
}
