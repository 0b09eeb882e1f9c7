//! What a runtime can do.

use serde::Serialize;
use serde_json::Value;

/// What a runtime can do. Public: `GET /capabilities`.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(clippy::struct_excessive_bools)]
pub struct Capabilities {
    /// An input reaches a running turn without output being lost.
    pub steer: bool,
    pub interrupt: bool,
    pub resume: bool,
    /// Tools can wait for a decision.
    pub permissions: bool,
    pub questions: bool,
    pub mcp: bool,
    pub images: bool,
    pub deltas: bool,
    pub reasoning: bool,
    /// Output of a tool while it runs.
    pub tool_output: bool,
    /// Retries that the CLI makes are told.
    pub retries: bool,
    pub cost: bool,
}

/// How much of a session a runtime can be given. Public: `outrigger runtimes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Tier {
    /// One task, to its end.
    Batch,
    /// Inputs while it runs, interrupts, and a session that survives a restart.
    Interactive,
    /// And tools that wait for a decision, and tool servers.
    #[serde(rename = "Full-Agent")]
    FullAgent,
}

impl Capabilities {
    pub fn tier(&self) -> Tier {
        match (
            self.interrupt && self.resume && self.deltas,
            self.permissions && self.mcp,
        ) {
            (true, true) => Tier::FullAgent,
            (true, false) => Tier::Interactive,
            (false, _) => Tier::Batch,
        }
    }

    /// The names of those it has.
    pub fn names(&self) -> Vec<String> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map
                .into_iter()
                .filter(|(_, v)| *v == Value::Bool(true))
                .map(|(k, _)| k)
                .collect(),
            _ => Vec::new(),
        }
    }
}
