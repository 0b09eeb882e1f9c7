//! What the session tells about itself: its state, its stages, its start.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::Session;
use crate::adapter::runtime::Phase;
use crate::base::sync::lock;
use crate::event::{SessionStage, SessionStart, StageState, Usage};

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

impl Session {
    pub(super) async fn stage(
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

    pub(super) fn set_state(&self, state: &'static str) {
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

    pub(super) fn show_state(&self) {
        self.set_state(
            if self.stream.lifecycle.turn.is_some() || self.translator.phase() != Phase::Idle {
                "busy"
            } else {
                "idle"
            },
        );
    }
}
