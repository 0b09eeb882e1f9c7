//! What a session writes down: events, the CLI's own lines, and what a restart reads of them.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Session;
use crate::adapter::balance::{self, Balance};
use crate::adapter::journal::{self, Replay};
use crate::adapter::transport::Lines;
use crate::event::{self, Event, Payload, SessionStage, SessionStart, StageState, Warning};

impl Session {
    /// Adds an event to what the next commit shows.
    pub(super) fn say(&mut self, payload: impl Into<Payload>) {
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

    pub(super) async fn commit(&mut self) {
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

    pub(super) fn raw_event(&mut self, mut event: Value) {
        event["timestamp"] = json!(format!("{:.3}", jiff::Timestamp::now()));
        if let Some(raw) = &mut self.raw {
            raw.append(|_, out| out.extend_from_slice(event.to_string().as_bytes()));
        }
    }

    pub(super) async fn stage(&mut self, stage: &str, state: StageState, since: Instant, message: Option<String>) {
        let duration_ms = if state == StageState::Started { 0 } else { since.elapsed().as_millis() as u64 };
        self.say(SessionStage { stage: stage.to_owned(), state, duration_ms, message });
        self.commit().await;
    }

    pub(super) fn session_start(&self, native_session_id: String, resumed: bool) -> SessionStart {
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
}

/// One line of the CLI's own, for `?view=raw`.
pub(super) fn raw_output(raw: &mut Option<journal::Writer>, stream: &str, line: &[u8]) {
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

/// Does the journal, from `sequence` on, tell of this input?
pub(super) fn said_since(journal: &Arc<journal::Journal>, sequence: u64, input_id: &str) -> bool {
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
        if !balance::is_followed(event::kind(json)) {
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
