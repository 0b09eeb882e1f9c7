//! The rules that every stream keeps, whatever a translator says and whatever happens to the
//! CLI: turns and tool calls that begin, end, once.
//!
//! A pure fold. The same state is rebuilt from the journal when the adapter starts again, so
//! that what a crash left open is closed then.

use serde::{Deserialize, Serialize};

use crate::event::{
    Event, Payload, PermissionResolved, QuestionResolved, ToolResult, TurnEnd, TurnEndReason,
    TurnStart, Unparsed, Usage,
};

/// What is open, and what was the last.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Lifecycle {
    pub session_id: String,
    /// Turns that were started.
    pub turns: u64,
    pub turn: Option<OpenTurn>,
    /// Inputs that the CLI has and that no turn has begun for.
    #[serde(default)]
    pub unanswered: Vec<String>,
    pub tools: Vec<OpenTool>,
    pub permissions: Vec<String>,
    pub questions: Vec<String>,
    /// The last whole message of the turn.
    #[serde(default)]
    pub final_text: String,
    /// What all turns used.
    #[serde(default)]
    pub spent: Usage,
    /// How the last turn ended.
    #[serde(default)]
    pub outcome: Option<TurnEndReason>,
    /// What the CLI resumes by.
    pub native_session_id: Option<String>,
    pub ended: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenTurn {
    pub turn: u64,
    /// Milliseconds since 1970.
    pub since: i64,
    /// The number of its `turn.start`.
    #[serde(default)]
    pub sequence: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenTool {
    pub id: String,
    pub parent: Option<String>,
    pub since: i64,
}

/// A payload with the turn that it belongs to.
pub type TurnPayload = (Payload, Option<String>);

pub fn turn_id(turn: u64) -> String {
    format!("turn_{turn}")
}

impl Lifecycle {
    pub fn new(session_id: &str) -> Self {
        Lifecycle {
            session_id: session_id.to_owned(),
            ..Lifecycle::default()
        }
    }

    /// Takes what a translator says at `now` (milliseconds since 1970); appends what the
    /// stream may say instead. Turns get their numbers and durations here.
    pub fn admit(&mut self, now: i64, payload: Payload, out: &mut Vec<TurnPayload>) {
        match payload {
            Payload::TurnStart(start) => {
                self.end_turn(
                    now,
                    TurnEndReason::Error,
                    Usage::default(),
                    String::new(),
                    out,
                );
                self.turns += 1;
                self.turn = Some(OpenTurn {
                    turn: self.turns,
                    since: now,
                    sequence: 0,
                });
                self.final_text.clear();
                self.unanswered.clear();
                self.push(
                    TurnStart {
                        turn: self.turns,
                        ..start
                    },
                    out,
                );
            }
            Payload::TurnEnd(end) if self.turn.is_some() => {
                self.end_turn(now, end.reason, end.usage, end.final_text, out)
            }
            Payload::ToolUse(tool) if !self.tools.iter().any(|t| t.id == tool.tool_use_id) => {
                self.tools.push(OpenTool {
                    id: tool.tool_use_id.clone(),
                    parent: tool.parent_tool_use_id.clone(),
                    since: now,
                });
                self.push(tool, out);
            }
            Payload::ToolResult(mut result)
                if self.tools.iter().any(|t| t.id == result.tool_use_id) =>
            {
                for tool in self.tools.extract_if(.., |t| t.id == result.tool_use_id) {
                    result.duration_ms.get_or_insert(elapsed(tool.since, now));
                }
                self.push(result, out);
            }
            Payload::PermissionRequest(request)
                if !self.permissions.contains(&request.request_id) =>
            {
                self.permissions.push(request.request_id.clone());
                self.push(request, out);
            }
            Payload::PermissionResolved(resolved)
                if self.permissions.contains(&resolved.request_id) =>
            {
                self.permissions.retain(|id| *id != resolved.request_id);
                self.push(resolved, out);
            }
            Payload::QuestionRequest(request) if !self.questions.contains(&request.request_id) => {
                self.questions.push(request.request_id.clone());
                self.push(request, out);
            }
            Payload::QuestionResolved(resolved)
                if self.questions.contains(&resolved.request_id) =>
            {
                self.questions.retain(|id| *id != resolved.request_id);
                self.push(resolved, out);
            }
            // An end without a beginning, or a second one: said, but not as what it claims to be.
            odd @ (Payload::TurnEnd(_)
            | Payload::ToolUse(_)
            | Payload::ToolResult(_)
            | Payload::PermissionRequest(_)
            | Payload::PermissionResolved(_)
            | Payload::QuestionRequest(_)
            | Payload::QuestionResolved(_)) => {
                let native =
                    serde_json::json!({ "out_of_place": odd.name(), "payload": odd.to_value() });
                self.push(Unparsed { native }, out);
            }
            Payload::SessionStart(start) => {
                self.native_session_id = Some(start.native_session_id.clone());
                self.ended = false;
                self.push(start, out);
            }
            Payload::SessionEnd(end) => {
                self.end_turn(
                    now,
                    TurnEndReason::Interrupted,
                    Usage::default(),
                    String::new(),
                    out,
                );
                self.ended = true;
                self.push(end, out);
            }
            Payload::AssistantMessage(message) => {
                if message.parent_tool_use_id.is_none() && self.turn.is_some() {
                    self.final_text.clone_from(&message.text);
                }
                self.push(message, out);
            }
            Payload::UserMessage(message) => {
                if self.turn.is_none() {
                    self.unanswered.push(message.input_id.clone());
                }
                self.push(message, out);
            }
            other => self.push(other, out),
        }
    }

    /// Closes the turn and everything in it. Nothing if there is none.
    fn end_turn(
        &mut self,
        now: i64,
        reason: TurnEndReason,
        usage: Usage,
        final_text: String,
        out: &mut Vec<TurnPayload>,
    ) {
        for tool in std::mem::take(&mut self.tools) {
            let duration_ms = Some(elapsed(tool.since, now));
            let output = "(the turn ended before the tool did)".to_owned();
            self.push(
                ToolResult {
                    tool_use_id: tool.id,
                    output,
                    is_error: true,
                    exit_code: None,
                    duration_ms,
                    parent_tool_use_id: tool.parent,
                },
                out,
            );
        }
        for request_id in std::mem::take(&mut self.permissions) {
            self.push(
                PermissionResolved {
                    request_id,
                    decision: "cancelled".into(),
                    by: "adapter".into(),
                },
                out,
            );
        }
        for request_id in std::mem::take(&mut self.questions) {
            self.push(
                QuestionResolved {
                    request_id,
                    answer: None,
                },
                out,
            );
        }
        if let Some(turn) = &self.turn {
            let last = std::mem::take(&mut self.final_text);
            let final_text = if final_text.is_empty() {
                last
            } else {
                final_text
            };
            self.outcome = Some(reason);
            // A CLI that was stopped may say zero for what it does not know.
            let cut = matches!(reason, TurnEndReason::Interrupted | TurnEndReason::Error);
            let usage = if cut && usage.is_zero() {
                Usage::default()
            } else {
                usage
            };
            self.spent.add(&usage);
            let end = TurnEnd {
                turn: turn.turn,
                reason,
                usage,
                duration_ms: elapsed(turn.since, now),
                final_text,
            };
            self.push(end, out);
            self.turn = None;
        }
    }

    fn push(&self, payload: impl Into<Payload>, out: &mut Vec<TurnPayload>) {
        out.push((payload.into(), self.turn.as_ref().map(|t| turn_id(t.turn))));
    }

    /// Follows an event that stands in the journal already.
    pub fn follow(&mut self, event: &Event) {
        // Its time only has to be near: durations of what a crash left open are counted from it.
        let now = event
            .timestamp
            .parse::<jiff::Timestamp>()
            .map_or(0, |t| t.as_millisecond());
        self.admit(now, event.payload.clone(), &mut Vec::new());
        if matches!(event.payload, Payload::TurnStart(_)) {
            self.began_at(event.sequence);
        }
    }

    /// No turn is open and no input waits for one: whoever begins to read with the next event needs
    /// to know nothing of those before.
    pub fn is_quiet(&self) -> bool {
        self.turn.is_none() && self.unanswered.is_empty()
    }

    /// The number of the `turn.start` of the turn that has begun; 0: none has.
    pub fn began_at(&mut self, sequence: u64) {
        if let Some(turn) = self.turn.as_mut().filter(|_| sequence > 0) {
            turn.sequence = sequence;
        }
    }
}

fn elapsed(since: i64, now: i64) -> u64 {
    u64::try_from(now - since).unwrap_or(0)
}

/// Types that the state depends on; the rest of a journal need not be parsed to rebuild it.
pub fn is_followed(name: &[u8]) -> bool {
    !matches!(
        name,
        b"assistant.delta" | b"reasoning.delta" | b"tool.output" | b"reasoning" | b"agent.unparsed"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ErrorCode, ErrorEvent, ToolUse};

    fn tool(id: &str) -> Payload {
        ToolUse {
            tool_use_id: id.into(),
            name: "bash".into(),
            native_name: "bash".into(),
            input: serde_json::json!({}),
            parent_tool_use_id: None,
        }
        .into()
    }

    fn result(id: &str) -> Payload {
        ToolResult {
            tool_use_id: id.into(),
            output: String::new(),
            is_error: false,
            exit_code: None,
            duration_ms: None,
            parent_tool_use_id: None,
        }
        .into()
    }

    fn start() -> Payload {
        TurnStart {
            turn: 0,
            input_ids: vec![],
        }
        .into()
    }

    fn end() -> Payload {
        TurnEnd {
            turn: 0,
            reason: TurnEndReason::EndTurn,
            usage: Usage::default(),
            duration_ms: 0,
            final_text: String::new(),
        }
        .into()
    }

    fn names(said: Vec<Payload>) -> Vec<String> {
        let (mut lifecycle, mut out) = (Lifecycle::new("s"), Vec::new());
        for (i, payload) in said.into_iter().enumerate() {
            lifecycle.admit(i as i64 * 10, payload, &mut out);
        }
        out.iter()
            .map(|(p, t)| {
                format!(
                    "{}{}",
                    p.name(),
                    t.as_deref().map(|t| format!("@{t}")).unwrap_or_default()
                )
            })
            .collect()
    }

    #[test]
    fn what_is_open_is_closed_with_the_turn() {
        assert_eq!(
            names(vec![start(), tool("a"), tool("b"), result("a"), end()]),
            [
                "turn.start@turn_1",
                "tool.use@turn_1",
                "tool.use@turn_1",
                "tool.result@turn_1",
                "tool.result@turn_1",
                "turn.end@turn_1"
            ]
        );
        assert_eq!(
            names(vec![start(), start(), end()]),
            [
                "turn.start@turn_1",
                "turn.end@turn_1",
                "turn.start@turn_2",
                "turn.end@turn_2"
            ]
        );
    }

    #[test]
    fn ends_without_beginnings_are_said_as_what_they_are() {
        assert_eq!(
            names(vec![
                end(),
                result("x"),
                start(),
                tool("a"),
                tool("a"),
                result("a"),
                result("a"),
                end(),
                end()
            ]),
            [
                "agent.unparsed",
                "agent.unparsed",
                "turn.start@turn_1",
                "tool.use@turn_1",
                "agent.unparsed@turn_1",
                "tool.result@turn_1",
                "agent.unparsed@turn_1",
                "turn.end@turn_1",
                "agent.unparsed"
            ]
        );
    }

    #[test]
    fn the_state_can_be_rebuilt_from_what_was_said() {
        let (mut lifecycle, mut out) = (Lifecycle::new("s"), Vec::new());
        for payload in [
            start(),
            tool("a"),
            ErrorEvent::new(ErrorCode::Internal, "x").into(),
            result("a"),
            end(),
            start(),
            tool("b"),
        ] {
            lifecycle.admit(5, payload, &mut out);
        }
        lifecycle.began_at(6);
        let mut again = Lifecycle::new("s");
        for (i, (payload, turn_id)) in out.into_iter().enumerate() {
            let timestamp = "1970-01-01T00:00:00.005Z".to_owned();
            again.follow(&Event {
                session_id: "s".into(),
                sequence: i as u64 + 1,
                timestamp,
                turn_id,
                runtime: "r".into(),
                payload,
            });
        }
        assert_eq!(again, lifecycle);
        let stored: Lifecycle =
            serde_json::from_str(&serde_json::to_string(&lifecycle).unwrap()).unwrap();
        assert_eq!(stored, lifecycle);
    }
}
