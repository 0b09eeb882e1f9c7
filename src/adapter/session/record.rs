//! What a session writes down: events, the CLI's own lines, and what a restart reads of them.

use std::collections::HashSet;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::Deserialize;

use super::stream::begins_a_turn;
use crate::adapter::journal::{self, Replay};
use crate::adapter::lifecycle;
use crate::adapter::lifecycle::Lifecycle;
use crate::adapter::transport::LineSplitter;
use crate::base::token::random_hex;
use crate::event;
use crate::event::{AssistantMessage, Event, Payload, Reasoning};

/// Which of these inputs does the journal, from `sequence` on, tell of?
pub(super) fn said_since(
    journal: &Arc<journal::Journal>,
    sequence: u64,
    input_ids: &[&str],
) -> HashSet<String> {
    let mut found = HashSet::new();
    read_since(journal, sequence, |event| {
        if let Payload::UserMessage(message) = event.payload
            && input_ids.contains(&message.input_id.as_str())
        {
            found.insert(message.input_id);
        }
    });
    found
}

/// Texts that were said in pieces since `sequence`, and that no message has replaced.
pub(super) fn said_in_pieces(journal: &Arc<journal::Journal>, sequence: u64) -> Vec<Payload> {
    let mut open = IndexMap::<String, Payload>::new();
    read_since(journal, sequence, |event| match event.payload {
        Payload::AssistantDelta(d) => {
            let fresh = AssistantMessage {
                item_id: d.item_id.clone(),
                text: String::new(),
                truncated: true,
                parent_tool_use_id: d.parent_tool_use_id,
            };
            if let Payload::AssistantMessage(message) =
                open.entry(d.item_id).or_insert_with(|| fresh.into())
            {
                message.text.push_str(&d.text);
            }
        }
        Payload::ReasoningDelta(d) => {
            let fresh = Reasoning {
                item_id: d.item_id.clone(),
                text: String::new(),
                truncated: true,
                parent_tool_use_id: d.parent_tool_use_id,
            };
            if let Payload::Reasoning(reasoning) =
                open.entry(d.item_id).or_insert_with(|| fresh.into())
            {
                reasoning.text.push_str(&d.text);
            }
        }
        Payload::AssistantMessage(m) => _ = open.shift_remove(&m.item_id),
        Payload::Reasoning(r) => _ = open.shift_remove(&r.item_id),
        _ => {}
    });
    open.into_values().collect()
}

fn read_since(journal: &Arc<journal::Journal>, sequence: u64, mut see: impl FnMut(Event)) {
    let (mut cursor, mut lines) = (journal.subscribe(sequence), LineSplitter::default());
    while let Ok(Some(part)) = cursor.read() {
        let journal::StreamPart::Frames(frames) = part else {
            continue;
        };
        lines.feed(&frames, |line| {
            if let Some(event) = line
                .ok()
                .and_then(|l| l.strip_prefix(b"data: "))
                .and_then(|json| Event::read(json).ok())
            {
                see(event);
            }
        });
    }
}

/// Follows a journal that is opened.
#[derive(Debug)]
pub struct Rebuilt {
    pub lifecycle: Lifecycle,
    /// Where views can begin, see [`Lifecycle::is_quiet`].
    pub quiet: Vec<u64>,
    /// The id that a new session gets; one that is not asked for is drawn.
    fresh: Option<String>,
}

impl Rebuilt {
    /// Of the session with this id, or of whichever is there.
    pub fn new(session_id: Option<&str>) -> Rebuilt {
        let fresh = session_id
            .is_none()
            .then(|| format!("ses_{}", random_hex()));
        Rebuilt {
            lifecycle: Lifecycle::new(session_id.or(fresh.as_deref()).unwrap_or_default()),
            quiet: Vec::new(),
            fresh,
        }
    }

    fn is_ours(&mut self, session_id: &str) -> Result<(), String> {
        if self.fresh.take().is_some() {
            session_id.clone_into(&mut self.lifecycle.session_id);
        }
        if session_id != self.lifecycle.session_id {
            return Err(format!(
                "it belongs to session `{session_id}`, not to `{}`\nhint: another session needs another journal",
                self.lifecycle.session_id
            ));
        }
        Ok(())
    }
}

impl Replay for Rebuilt {
    fn state(&mut self, json: &[u8]) -> Result<bool, String> {
        let Ok(state) = serde_json::from_slice::<Lifecycle>(json) else {
            return Ok(false);
        };
        self.is_ours(&state.session_id)?;
        self.lifecycle = state;
        Ok(true)
    }

    fn frame(&mut self, sequence: u64, json: &[u8]) -> Result<bool, String> {
        // Only what the state depends on is read whole; the rest must be JSON.
        if !lifecycle::is_followed(event::kind(json)) {
            return Ok(self.is_whole(sequence, json));
        }
        match Event::read(json) {
            Ok(event) if event.sequence == sequence => {
                self.is_ours(&event.session_id)?;
                if self.lifecycle.is_quiet() && begins_a_turn(&event.payload) {
                    self.quiet.push(sequence);
                }
                self.lifecycle.follow(&event);
                Ok(true)
            }
            Ok(_) => Ok(false),
            // Of a later version: kept, as far as it says that it is this frame.
            Err(_) => Ok(self.is_whole(sequence, json)),
        }
    }

    fn is_whole(&self, sequence: u64, json: &[u8]) -> bool {
        serde_json::from_slice::<Numbered>(json).is_ok_and(|n| n.sequence == sequence)
    }

    fn rebuilt(&self) -> String {
        serde_json::to_string(&self.lifecycle).unwrap_or_default()
    }
}

/// What every event has, whatever its version.
#[derive(Deserialize)]
struct Numbered {
    sequence: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_of_a_later_version_are_kept() {
        let mut rebuilt = Rebuilt::new(Some("s"));
        let event = |sequence: u64, kind: &str| {
            json!({ "session_id": "s", "sequence": sequence, "timestamp": "t", "type": kind, "runtime": "r", "payload": { "turn": 1 } }).to_string()
        };
        assert_eq!(
            rebuilt.frame(7, event(7, "of.the.future").as_bytes()),
            Ok(true)
        );
        assert_eq!(
            rebuilt.frame(8, event(9, "of.the.future").as_bytes()),
            Ok(false),
            "it says that it is another"
        );
        assert_eq!(rebuilt.frame(8, b"{broken"), Ok(false));
        let other = event(9, "warning")
            .replace("\"turn\":1", "\"message\":\"x\"")
            .replace("\"s\"", "\"another\"");
        assert!(
            rebuilt.frame(9, other.as_bytes()).is_err(),
            "another session's"
        );
    }
}
