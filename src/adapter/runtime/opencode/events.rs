//! The events of opencode's server.

use serde_json::Value;

use super::Opencode;
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::native::{COMPACTED, plan, text};
use crate::adapter::runtime::opencode::requests::Early;
use crate::event::Warning;

/// Events that say nothing that another does not say better.
pub(super) const SILENT: [&str; 21] = [
    "server.connected",
    "server.heartbeat",
    "session.updated",
    "session.diff",
    "session.idle",
    "plugin.added",
    "catalog.updated",
    "reference.updated",
    "integration.updated",
    "file.watcher.updated",
    "file.edited",
    "lsp.updated",
    "lsp.client.diagnostics",
    "vcs.branch.updated",
    "project.updated",
    "mcp.tools.changed",
    "command.executed",
    "message.removed",
    "message.part.removed",
    "session.deleted",
    // On the global bus: what another event has said, for replicas.
    "sync",
];

impl Opencode {
    /// `None`: not of this session. `Some(parent)`: ours, or a subagent's of that tool call.
    pub(super) fn whose(&mut self, session: &str) -> Option<Option<String>> {
        match &self.session {
            Some(own) if own == session => Some(None),
            Some(_) => self.children.get(session).cloned(),
            // A recording that begins within a session.
            None => {
                self.session = Some(session.to_owned());
                Some(None)
            }
        }
    }

    pub(super) fn event(&mut self, id: &str, kind: &str, p: &Value, out: &mut Vec<Action>) -> bool {
        let session = text(p, "/sessionID");
        if kind == "session.created" {
            self.session_created(p);
            return true;
        }
        let Some(parent) = (if session.is_empty() {
            Some(None)
        } else {
            self.whose(session)
        }) else {
            return true;
        };
        match kind {
            "message.updated" => self.message(&p["info"], parent.as_ref(), out),
            "message.part.updated" => return self.part(&p["part"], parent, out),
            "session.status" => self.status(id, &p["status"], parent, out),
            "session.error" => self.error(&p["error"], parent, out),
            "permission.asked" => self.asked_for(
                Early {
                    asked: p.clone(),
                    parent,
                    question: false,
                },
                out,
            ),
            "permission.replied" => self.permission_replied(p, out),
            "question.asked" => self.asked_for(
                Early {
                    asked: p.clone(),
                    parent,
                    question: true,
                },
                out,
            ),
            "question.replied" | "question.rejected" => self.question_over(p, out),
            "todo.updated" if parent.is_none() => out.push(plan(&p["todos"])),
            "todo.updated" => {}
            "session.compacted" => out.push(
                Warning {
                    message: COMPACTED.into(),
                }
                .into(),
            ),
            _ => return false,
        }
        true
    }

    pub(super) fn session_created(&mut self, p: &Value) {
        let info = &p["info"];
        let (session, parent) = (text(info, "/id"), text(info, "/parentID"));
        if session.is_empty() {
            return;
        }
        if parent.is_empty() {
            self.session.get_or_insert_with(|| session.to_owned());
        } else if self.whose(parent).is_some() {
            // Its task has begun and has no session yet.
            let task = self
                .tools
                .values_mut()
                .find(|t| t.name == "task" && t.child.is_none());
            let tool = task.map(|t| {
                t.child = Some(session.to_owned());
                t.id.clone()
            });
            self.children.insert(session.to_owned(), tool);
        }
    }
}
