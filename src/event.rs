//! The uniform events: what `GET :3100/stream` carries, whichever CLI runs. A public contract.
//!
//! Rules that hold for every stream, whatever happens to the CLI (`adapter/balance.rs` keeps
//! them):
//! - `sequence` starts at 1 and grows by 1, across restarts.
//! - Every `turn.start` has exactly one `turn.end`, every `tool.use` exactly one `tool.result`.
//! - A subagent's events carry `parent_tool_use_id` and do not end the parent's turn.
//! - Usage is per turn, never cumulative. Absent is null, not 0.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Declares the enum of payloads beside their names on the wire, once.
macro_rules! payloads {
    ($($(#[$doc:meta])* $name:literal $variant:ident($body:ident),)*) => {
        /// What happened. The variant is the event's `type`.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Payload { $($(#[$doc])* $variant($body),)* }

        impl Payload {
            /// Every `type` there is, in the order of the documentation.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            pub fn name(&self) -> &'static str {
                match self { $(Payload::$variant(_) => $name,)* }
            }

            /// Appends the payload's JSON, on one line.
            fn write(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
                match self { $(Payload::$variant(body) => serde_json::to_writer(out, body),)* }
            }

            pub fn to_value(&self) -> Value {
                match self { $(Payload::$variant(body) => serde_json::to_value(body).unwrap_or_default(),)* }
            }

            fn read(name: &str, payload: Value) -> serde_json::Result<Payload> {
                match name {
                    $($name => serde_json::from_value(payload).map(Payload::$variant),)*
                    other => Err(serde::de::Error::custom(format!("`{other}` is no type of event"))),
                }
            }

            /// The JSON Schema of every payload, by `type`.
            fn schemas(generator: &mut SchemaGenerator) -> Vec<(&'static str, Schema)> {
                vec![$(($name, generator.subschema_for::<$body>())),*]
            }
        }

        $(impl From<$body> for Payload { fn from(body: $body) -> Payload { Payload::$variant(body) } })*
    };
}

payloads! {
    "session.start" SessionStart(SessionStart),
    "session.stage" SessionStage(SessionStage),
    "user.message" UserMessage(UserMessage),
    "turn.start" TurnStart(TurnStart),
    "assistant.delta" AssistantDelta(AssistantDelta),
    "assistant.message" AssistantMessage(AssistantMessage),
    "reasoning.delta" ReasoningDelta(ReasoningDelta),
    "reasoning" Reasoning(Reasoning),
    "tool.use" ToolUse(ToolUse),
    "tool.output" ToolOutput(ToolOutput),
    "tool.result" ToolResult(ToolResult),
    "file.change" FileChange(FileChange),
    "plan.update" PlanUpdate(PlanUpdate),
    "permission.request" PermissionRequest(PermissionRequest),
    "permission.resolved" PermissionResolved(PermissionResolved),
    "question.request" QuestionRequest(QuestionRequest),
    "question.resolved" QuestionResolved(QuestionResolved),
    "retry" Retry(Retry),
    "error" Error(ErrorEvent),
    "turn.end" TurnEnd(TurnEnd),
    "agent.unparsed" Unparsed(Unparsed),
    "warning" Warning(Warning),
    "stream.gap" Gap(Gap),
    "session.end" SessionEnd(SessionEnd),
}

/// One event, as it stands in a `data:` line.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub session_id: String,
    pub sequence: u64,
    /// RFC 3339, UTC, milliseconds.
    pub timestamp: String,
    /// `turn_<n>`; absent outside of turns.
    pub turn_id: Option<String>,
    pub runtime: String,
    pub payload: Payload,
}

impl Event {
    /// Appends the event's JSON, on one line, without a line end.
    ///
    /// # Errors
    /// None that a payload of this file can cause.
    pub fn write(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        out.extend_from_slice(b"{\"session_id\":");
        serde_json::to_writer(&mut *out, &self.session_id)?;
        out.extend_from_slice(b",\"sequence\":");
        serde_json::to_writer(&mut *out, &self.sequence)?;
        out.extend_from_slice(b",\"timestamp\":\"");
        out.extend_from_slice(self.timestamp.as_bytes());
        out.extend_from_slice(b"\",\"type\":\"");
        out.extend_from_slice(self.payload.name().as_bytes());
        out.push(b'"');
        if let Some(turn) = &self.turn_id {
            out.extend_from_slice(b",\"turn_id\":");
            serde_json::to_writer(&mut *out, turn)?;
        }
        out.extend_from_slice(b",\"runtime\":");
        serde_json::to_writer(&mut *out, &self.runtime)?;
        out.extend_from_slice(b",\"payload\":");
        self.payload.write(out)?;
        out.push(b'}');
        Ok(())
    }

    /// # Errors
    /// It is not an event of this version.
    pub fn read(json: &[u8]) -> serde_json::Result<Event> {
        #[derive(Deserialize)]
        struct RawEvent {
            session_id: String,
            sequence: u64,
            timestamp: String,
            r#type: String,
            #[serde(default)]
            turn_id: Option<String>,
            runtime: String,
            payload: Value,
        }
        let raw: RawEvent = serde_json::from_slice(json)?;
        let payload = Payload::read(&raw.r#type, raw.payload)?;
        Ok(Event {
            session_id: raw.session_id,
            sequence: raw.sequence,
            timestamp: raw.timestamp,
            turn_id: raw.turn_id,
            runtime: raw.runtime,
            payload,
        })
    }
}

/// The `type` of an event, found without parsing it: it stands before anything that a CLI could
/// write. Empty where there is none.
pub fn kind(json: &[u8]) -> &[u8] {
    const BEFORE: &[u8] = b"\"type\":\"";
    let Some(at) = memchr::memmem::find(json, BEFORE) else {
        return b"";
    };
    json[at + BEFORE.len()..]
        .split(|b| *b == b'"')
        .next()
        .unwrap_or_default()
}

/// The JSON Schema (2020-12) of an event: one branch a `type`.
pub fn schema() -> Value {
    let mut generator = SchemaGenerator::default();
    let branches: Vec<Value> = Payload::schemas(&mut generator)
        .into_iter()
        .map(|(name, payload)| {
            serde_json::json!({
                "title": name,
                "type": "object",
                "properties": {
                    "session_id": {"type": "string"},
                    "sequence": {"type": "integer", "minimum": 1, "description": "grows by 1, across restarts; the SSE `id`"},
                    "timestamp": {"type": "string", "format": "date-time"},
                    "type": {"const": name},
                    "turn_id": {"type": "string", "description": "absent outside of turns"},
                    "runtime": {"type": "string"},
                    "payload": payload,
                },
                "required": ["session_id", "sequence", "timestamp", "type", "runtime", "payload"],
            })
        })
        .collect();
    serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Outrigger event",
        "oneOf": branches,
        "$defs": generator.take_definitions(true),
    })
}

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

fn is_zero(n: &u32) -> bool {
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

fn is_false(b: &bool) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let event = Event {
            session_id: "s".into(),
            sequence: 7,
            timestamp: "2026-11-21T00:00:00.000Z".into(),
            turn_id: Some("turn_1".into()),
            runtime: "opencode".into(),
            payload: AssistantDelta {
                item_id: "i".into(),
                text: "a\nb\u{2028}\0 \u{1F980}".into(),
                parent_tool_use_id: None,
            }
            .into(),
        };
        let mut line = Vec::new();
        event.write(&mut line).unwrap();
        assert!(
            !line.contains(&b'\n') && !line.contains(&b'\r'),
            "an event is one line, whatever its text"
        );
        assert_eq!(Event::read(&line).unwrap(), event);
        assert!(Event::read(br#"{"session_id":"s","sequence":1,"timestamp":"","type":"nope","runtime":"r","payload":{}}"#).is_err());
    }

    #[test]
    fn the_schema_has_a_branch_for_every_type() {
        let schema = schema();
        let branches: Vec<_> = schema["oneOf"]
            .as_array()
            .unwrap()
            .iter()
            .map(|b| b["title"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(branches, Payload::NAMES);
    }

    #[test]
    fn absent_counts_stay_absent() {
        let mut usage = Usage {
            input: Some(3),
            ..Usage::default()
        };
        usage.add(&Usage {
            input: Some(4),
            output: Some(1),
            ..Usage::default()
        });
        assert_eq!(
            usage,
            Usage {
                input: Some(7),
                output: Some(1),
                ..Usage::default()
            }
        );
    }
}
