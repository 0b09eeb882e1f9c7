//! What stands still right now, and why: `trouble` in `GET /health`, `/readyz` and `/status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::base::sync::lock;

/// What can stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// Events cannot be written.
    Journal,
    /// Events were written, and could not be put on stable storage.
    Storage,
    Inbox,
    /// The CLI's settings, which are written before it is started.
    Settings,
    Sidecar,
    /// The CLI's own lines. They are for debugging: nothing waits for them.
    Raw,
}

/// Shared by everything that can be in trouble.
#[derive(Debug, Clone, Default)]
pub struct Troubles(Arc<Mutex<BTreeMap<Component, String>>>);

impl Troubles {
    /// Returns whether this part was well before.
    pub fn set(&self, part: Component, why: impl Into<String>) -> bool {
        lock(&self.0).insert(part, why.into()).is_none()
    }

    /// Returns whether this part was in trouble before.
    pub fn clear(&self, part: Component) -> bool {
        lock(&self.0).remove(&part).is_some()
    }

    /// All of it, in one text.
    pub fn text(&self) -> Option<String> {
        let all: Vec<String> = lock(&self.0).values().cloned().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Does the session stand still?
    pub fn stop_the_session(&self) -> bool {
        lock(&self.0)
            .keys()
            .any(|part| !matches!(part, Component::Raw | Component::Sidecar))
    }

    pub fn waits_for_sidecar(&self) -> bool {
        lock(&self.0).contains_key(&Component::Sidecar)
    }
}
