//! The uniform events: what `GET :3100/stream` carries, whichever CLI runs. A public contract.
//!
//! Rules that hold for every stream, whatever happens to the CLI (`adapter/lifecycle.rs` keeps
//! them):
//! - `sequence` starts at 1 and grows by 1, across restarts.
//! - Every `turn.start` has exactly one `turn.end`, every `tool.use` exactly one `tool.result`.
//! - A subagent's events carry `parent_tool_use_id` and do not end the parent's turn.
//! - Usage is per turn, never cumulative. Absent is null, not 0.

mod payload;

pub use self::payload::{
    AssistantDelta, AssistantMessage, ChangeKind, ErrorCode, ErrorEvent, FileChange, Gap,
    InputMode, InputSource, PermissionRequest, PermissionResolved, PlanItem, PlanUpdate,
    QuestionRequest, QuestionResolved, Reasoning, ReasoningDelta, Retry, SessionEnd,
    SessionEndReason, SessionStage, SessionStart, StageState, ToolOutput, ToolResult, ToolUse,
    TurnEnd, TurnEndReason, TurnStart, Unparsed, Usage, UserMessage, Warning,
};

use schemars::{Schema, SchemaGenerator};
use serde::Deserialize;
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
