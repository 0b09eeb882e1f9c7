//! The stream of one session: the rules that it keeps, its journal, and the CLI's own lines.

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::adapter::journal::JournalWriter;
use crate::adapter::lifecycle::{Lifecycle, TurnPayload};
use crate::event::{Event, Payload, Warning};

pub(super) struct Stream {
    pub(super) session_id: String,
    runtime_id: &'static str,
    pub(super) lifecycle: Lifecycle,
    pub(super) journal: JournalWriter,
    pub(super) raw: Option<JournalWriter>,
    /// What the rules made of one payload, with its turns.
    placed: Vec<TurnPayload>,
    /// The session is told to end: nothing waits for a disk any more.
    terminating: watch::Receiver<bool>,
}

impl Stream {
    pub(super) fn new(
        lifecycle: Lifecycle,
        runtime_id: &'static str,
        (journal, raw): (JournalWriter, Option<JournalWriter>),
        terminating: watch::Receiver<bool>,
    ) -> Stream {
        Stream {
            session_id: lifecycle.session_id.clone(),
            runtime_id,
            lifecycle,
            journal,
            raw,
            placed: Vec::new(),
            terminating,
        }
    }

    /// Adds an event to what the next commit shows.
    pub(super) fn emit(&mut self, payload: impl Into<Payload>) {
        let (now, payload) = (jiff::Timestamp::now(), payload.into());
        if self.lifecycle.is_quiet() && begins_a_turn(&payload) {
            self.journal.journal().are_quiet(&[self.journal.next()]);
        }
        self.lifecycle
            .admit(now.as_millisecond(), payload, &mut self.placed);
        let timestamp = format!("{now:.3}");
        let mut began = 0;
        for (payload, turn_id) in self.placed.drain(..) {
            let (session_id, runtime) = (&self.session_id, self.runtime_id);
            self.journal.append(|sequence, out| {
                began = began.max(if matches!(payload, Payload::TurnStart(_)) {
                    sequence
                } else {
                    0
                });
                let event = Event {
                    session_id: session_id.clone(),
                    sequence,
                    timestamp: timestamp.clone(),
                    turn_id,
                    runtime: runtime.to_owned(),
                    payload,
                };
                if let Err(e) = event.write(out) {
                    tracing::error!(error = %e, "an event cannot be written");
                }
            });
        }
        self.lifecycle.began_at(began);
    }

    /// Writes what was said. A full disk is waited for, unless the session is to end.
    pub(super) async fn commit(&mut self) {
        if let Some(raw) = &mut self.raw {
            raw.commit_or_drop();
        }
        let lifecycle = &self.lifecycle;
        let state = || serde_json::to_string(lifecycle).unwrap_or_default();
        let mut terminating = self.terminating.clone();
        let trouble = tokio::select! {
            biased;
            trouble = self.journal.commit(state) => trouble,
            _ = terminating.wait_for(|it_is| *it_is) => return,
        };
        if let Some(trouble) = trouble {
            self.emit(Warning {
                message: format!("the journal could not be written for {:.1} s; the CLI was held back, and nothing was lost", trouble.as_secs_f64()),
            });
            let lifecycle = &self.lifecycle;
            self.journal
                .commit(|| serde_json::to_string(lifecycle).unwrap_or_default())
                .await;
        }
    }

    pub(super) fn raw_event(&mut self, mut event: Value) {
        event["timestamp"] = json!(format!("{:.3}", jiff::Timestamp::now()));
        if let Some(raw) = &mut self.raw {
            raw.append(|_, out| out.extend_from_slice(event.to_string().as_bytes()));
        }
    }
}

/// One line of the CLI's own, for `?view=raw`.
pub(super) fn raw_output(raw: &mut Option<JournalWriter>, stream: &str, line: &[u8]) {
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

/// With such an event a turn begins, or what leads to one.
pub(super) fn begins_a_turn(payload: &Payload) -> bool {
    matches!(payload, Payload::UserMessage(_) | Payload::TurnStart(_))
}
