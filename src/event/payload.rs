//! What events hold: a list.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The CLI is up and has a session; again after each restart of the CLI or of the adapter.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SessionStart {
    pub runtime: String,
    pub runtime_version: Option<String>,
    /// Canonical `provider/model`.
    pub model: Option<String>,
    /// The CLI's own name of the session; what it resumes by.
    pub native_session_id: String,
    pub workdir: String,
    /// What this runtime can do: `steer`, `interrupt`, `permissions`, `questions`, `mcp`, `images`,
    /// `reasoning`, `cost`, …
    pub capabilities: Vec<String>,
    /// The history of an earlier start is there.
    pub resumed: bool,
}

/// A step of getting ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionStage {
    /// `sidecar`, `runtime_start`, …
    pub stage: String,
    pub state: StageState,
    /// Milliseconds since it was started.
    pub duration_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StageState {
    Started,
    Done,
    Failed,
}

/// An input has reached the CLI. Exactly one an input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserMessage {
    pub input_id: String,
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender_id: Option<String>,
    pub source: InputSource,
    pub mode: InputMode,
    /// Images that came with it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attachments: u32,
}

pub(super) fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputSource {
    /// The prompt that the session was started with.
    Initial,
    Inject,
}

/// When an input reaches a CLI that is busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputMode {
    /// Steer where the runtime can do it without losing output, else queue.
    #[default]
    Auto,
    /// When the turn is over.
    Queue,
    /// Into the running turn.
    Steer,
    /// At once: the running turn is interrupted.
    Interrupt,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TurnStart {
    /// Counts from 1, across restarts.
    pub turn: u64,
    pub input_ids: Vec<String>,
}

/// A piece of the answer as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AssistantDelta {
    pub item_id: String,
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_use_id: Option<String>,
}

/// A whole piece of answer; it replaces the deltas with its `item_id`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AssistantMessage {
    pub item_id: String,
    pub text: String,
    /// Its stream was cut: what is here is all there was.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_use_id: Option<String>,
}

pub(super) fn is_false(b: &bool) -> bool {
    !*b
}

/// A piece of the model's reasoning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReasoningDelta {
    pub item_id: String,
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_use_id: Option<String>,
}

/// The model's reasoning, whole; it replaces the deltas with its `item_id`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reasoning {
    pub item_id: String,
    pub text: String,
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_use_id: Option<String>,
}

/// The CLI runs a tool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolUse {
    /// Unique in the session.
    pub tool_use_id: String,
    /// `bash`, `read`, `write`, `edit`, `glob`, `grep`, `web_fetch`, `web_search`, `task`,
    /// `mcp__<server>__<tool>`, else the native name.
    pub name: String,
    pub native_name: String,
    pub input: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_use_id: Option<String>,
}

/// What a tool has printed since the last of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolOutput {
    pub tool_use_id: String,
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_use_id: Option<String>,
}

/// What came of a tool; the output whole, as the CLI gives it to the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolResult {
    pub tool_use_id: String,
    pub output: String,
    /// The tool failed, was denied, was unknown, or its command ended with another exit code than
    /// 0.
    pub is_error: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    pub duration_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_use_id: Option<String>,
}

/// The CLI changed a file with a tool of its own (not: a command that it ran).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FileChange {
    pub path: String,
    pub kind: ChangeKind,
    /// Unified diff, where the CLI gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_use_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_use_id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    Add,
    Modify,
    Delete,
}

/// The CLI's plan, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanUpdate {
    pub items: Vec<PlanItem>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanItem {
    pub text: String,
    /// `pending`, `in_progress`, `completed`, `cancelled`.
    pub status: String,
}

/// The CLI waits for a decision: `POST :8788/permission/{request_id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PermissionRequest {
    pub request_id: String,
    pub tool_use_id: Option<String>,
    pub name: String,
    pub input: Value,
    /// What can be answered: `allow`, `allow_always`, `deny`.
    pub options: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_use_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PermissionResolved {
    pub request_id: String,
    /// `allow`, `allow_always`, `deny`; `cancelled` when the turn ended first.
    pub decision: String,
    /// `user`, `policy`, `adapter`, `runtime`.
    pub by: String,
}

/// The CLI asks the user: `POST :8788/question/{request_id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QuestionRequest {
    pub request_id: String,
    pub text: String,
    pub options: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_use_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QuestionResolved {
    pub request_id: String,
    /// Null: rejected, or the turn ended first.
    pub answer: Option<String>,
}

/// The CLI will try a request again by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Retry {
    /// From 1.
    pub attempt: u64,
    pub code: ErrorCode,
    pub retry_after_ms: Option<u64>,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_use_id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    RateLimited,
    ProviderDown,
    ModelUnavailable,
    PermissionDenied,
    Auth,
    Billing,
    ContextOverflow,
    RuntimeCrashed,
    Internal,
}

/// Something went wrong. What it meant for the turn, its `turn.end` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorEvent {
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// The same input may work later.
    pub retryable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// The CLI's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_tool_use_id: Option<String>,
}

impl ErrorEvent {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let retryable = matches!(
            code,
            ErrorCode::RateLimited | ErrorCode::ProviderDown | ErrorCode::RuntimeCrashed
        );
        ErrorEvent {
            code,
            message: message.into(),
            retryable,
            retry_after_ms: None,
            provider: None,
            model: None,
            http_status: None,
            native: None,
            parent_tool_use_id: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TurnEnd {
    pub turn: u64,
    pub reason: TurnEndReason,
    pub usage: Usage,
    pub duration_ms: u64,
    /// The last whole message of the turn; empty where there was none.
    pub final_text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TurnEndReason {
    EndTurn,
    MaxTokens,
    MaxSteps,
    Refusal,
    Interrupted,
    Error,
}

/// Tokens of one turn, its subagents' included, as the CLI counts them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Uncached input.
    pub input: Option<u64>,
    pub cache_read: Option<u64>,
    pub cache_write: Option<u64>,
    pub output: Option<u64>,
    pub reasoning: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
}

impl Usage {
    pub fn add(&mut self, other: &Usage) {
        fn sum<T: std::ops::Add<Output = T> + Copy>(slot: &mut Option<T>, more: Option<T>) {
            *slot = match (*slot, more) {
                (Some(a), Some(b)) => Some(a + b),
                (a, b) => a.or(b),
            };
        }
        sum(&mut self.input, other.input);
        sum(&mut self.cache_read, other.cache_read);
        sum(&mut self.cache_write, other.cache_write);
        sum(&mut self.output, other.output);
        sum(&mut self.reasoning, other.reasoning);
        sum(&mut self.cost_usd, other.cost_usd);
    }

    /// Nothing was used, or nothing is known.
    pub fn is_zero(&self) -> bool {
        let counts = [
            self.input,
            self.cache_read,
            self.cache_write,
            self.output,
            self.reasoning,
        ];
        counts.into_iter().all(|n| n.unwrap_or(0) == 0) && self.cost_usd.unwrap_or(0.0) == 0.0
    }

    /// What has come to a sum since it was `before`.
    pub fn since(&self, before: &Usage) -> Usage {
        let more = |now: Option<u64>, before: Option<u64>| {
            now.map(|now| now.saturating_sub(before.unwrap_or(0)))
        };
        Usage {
            input: more(self.input, before.input),
            cache_read: more(self.cache_read, before.cache_read),
            cache_write: more(self.cache_write, before.cache_write),
            output: more(self.output, before.output),
            reasoning: more(self.reasoning, before.reasoning),
            cost_usd: self
                .cost_usd
                .map(|now| (now - before.cost_usd.unwrap_or(0.0)).max(0.0)),
        }
    }

    /// The larger of two sums, count by count.
    pub fn at_least(&self, other: &Usage) -> Usage {
        let cost = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::max);
        Usage {
            input: self.input.max(other.input),
            cache_read: self.cache_read.max(other.cache_read),
            cache_write: self.cache_write.max(other.cache_write),
            output: self.output.max(other.output),
            reasoning: self.reasoning.max(other.reasoning),
            cost_usd: cost(self.cost_usd, other.cost_usd),
        }
    }
}

/// What the CLI said and nobody here understands. Never dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Unparsed {
    /// The native message; a text where it was not JSON; `{bytes, sha256, head}` where it was
    /// too long to be kept.
    pub native: Value,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    pub message: String,
}

/// Events that are no longer kept; made for the subscriber that asked for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// The first that is missing.
    pub from: u64,
    /// The last that is missing.
    pub to: u64,
}

/// The last event of a session, unless it is resumed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionEnd {
    pub reason: SessionEndReason,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_tail: Option<String>,
    /// Opaque; continues the session in another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_token: Option<String>,
    /// What whoever shut it down said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionEndReason {
    Completed,
    Shutdown,
    IdleTimeout,
    Crashed,
    Terminated,
    Stale,
}
