//! The shapes that a stream can have: as it is, filtered, or as another platform names it.
//!
//! `native` without a filter is the journal's own bytes and is not looked at. The others are
//! taken apart frame by frame.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::adapter::journal::{Journal, StreamPart};
use crate::adapter::transport::LineSplitter;
use crate::event;
use crate::event::{Event, Gap, Payload, SessionEndReason};

/// Longest event that a filter sees: a line of the CLI, and what JSON adds to it.
const MAX_EVENT: usize = 64 << 20;

/// What is looked at where it is served; more is looked at elsewhere.
const LITTLE: usize = 8 << 10;

/// What a subscriber asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamQuery {
    pub shape: StreamFormat,
    /// Only these types; empty: all.
    pub types: Vec<String>,
    pub without_deltas: bool,
    /// With `event:` lines.
    pub named: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StreamFormat {
    #[default]
    Native,
    /// What the x1 platform's UI renders.
    X1,
    /// The CLI's own lines, from a journal of their own.
    Raw,
}

pub struct EventView {
    wish: StreamQuery,
    /// Frames up to this one only build the state: the subscriber has them.
    seen: u64,
    lines: LineSplitter,
    sequence: u64,
    x1: X1,
    session_id: String,
    runtime: &'static str,
}

impl EventView {
    /// `seen`: the last sequence that the subscriber has.
    pub fn new(wish: StreamQuery, seen: u64, session_id: String, runtime: &'static str) -> Self {
        EventView {
            wish,
            seen,
            lines: LineSplitter::up_to(MAX_EVENT),
            sequence: 0,
            x1: X1::default(),
            session_id,
            runtime,
        }
    }

    /// Where its cursor starts.
    pub fn first(&self, journal: &Journal) -> u64 {
        let next = self.seen + 1;
        // Which texts were said in pieces depends on what came before in the turn.
        if self.wish.shape == StreamFormat::X1 {
            journal.quiet_before(next).min(next)
        } else {
            next
        }
    }

    /// Whether so much is looked at that others must not wait for it.
    pub fn takes_its_time(&self, part: &StreamPart) -> bool {
        !self.passes_all() && matches!(part, StreamPart::Frames(frames) if frames.len() > LITTLE)
    }

    fn passes_all(&self) -> bool {
        self.wish.shape != StreamFormat::X1
            && self.wish.types.is_empty()
            && !self.wish.without_deltas
            && !self.wish.named
    }

    /// Turns a part of the journal into what is sent.
    pub fn feed(&mut self, part: StreamPart, out: &mut VecDeque<Bytes>) {
        match part {
            StreamPart::Gap { from, to } => out.extend(self.gap(from, to)),
            StreamPart::Frames(frames) if self.passes_all() => out.push_back(frames),
            StreamPart::Frames(frames) => {
                let mut lines = std::mem::replace(&mut self.lines, LineSplitter::up_to(0));
                let mut sent = Vec::new();
                lines.feed(&frames, |line| {
                    let Ok(line) = line else { return };
                    if let Some(id) = line.strip_prefix(b"id: ") {
                        self.sequence = std::str::from_utf8(id)
                            .ok()
                            .and_then(|id| id.parse().ok())
                            .unwrap_or(self.sequence);
                    } else if let Some(json) = line.strip_prefix(b"data: ") {
                        self.frame(json, &mut sent);
                    }
                });
                self.lines = lines;
                if !sent.is_empty() {
                    out.push_back(sent.into());
                }
            }
        }
    }

    fn gap(&self, from: u64, to: u64) -> Option<Bytes> {
        let from = from.max(self.seen + 1);
        if from > to {
            return None;
        }
        let timestamp = format!("{:.3}", jiff::Timestamp::now());
        let (session_id, runtime) = (self.session_id.clone(), self.runtime.to_owned());
        let event = Event {
            session_id,
            sequence: to,
            timestamp,
            turn_id: None,
            runtime,
            payload: Gap { from, to }.into(),
        };
        if self.wish.shape == StreamFormat::X1 {
            let message = json!({ "session_id": event.session_id, "timestamp": event.timestamp, "sequence": to, "type": "stream.gap", "payload": { "from": from, "to": to } });
            let mut sent = Vec::new();
            frame(to, None, message.to_string().as_bytes(), &mut sent);
            return Some(sent.into());
        }
        let mut json = Vec::new();
        event.write(&mut json).ok()?;
        let mut sent = Vec::new();
        frame(
            to,
            self.wish.named.then_some("stream.gap".as_bytes()),
            &json,
            &mut sent,
        );
        Some(sent.into())
    }

    fn frame(&mut self, json: &[u8], out: &mut Vec<u8>) {
        if self.wish.shape == StreamFormat::X1 {
            let Ok(event) = Event::read(json) else { return };
            if let Some(message) = self
                .x1
                .translate(&event)
                .filter(|_| self.sequence > self.seen)
            {
                frame(
                    self.sequence,
                    None,
                    ascii(&message.to_string()).as_bytes(),
                    out,
                );
            }
            return;
        }
        let kind = event::kind(json);
        let wanted =
            self.wish.types.is_empty() || self.wish.types.iter().any(|t| t.as_bytes() == kind);
        if wanted && !(self.wish.without_deltas && kind.ends_with(b".delta")) {
            frame(self.sequence, self.wish.named.then_some(kind), json, out);
        }
    }
}

fn frame(id: u64, name: Option<&[u8]>, json: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("id: {id}\n").as_bytes());
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name);
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(json);
    out.extend_from_slice(b"\n\n");
}

/// JSON in ASCII alone: x1's reader decodes each piece by itself, wherever it is cut.
fn ascii(json: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(json.len());
    let mut units = [0; 2];
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

/// The names and payloads of the x1 platform (its `packages/agent/src/normalize.ts`).
#[derive(Debug, Default)]
struct X1 {
    /// Items whose text was sent in pieces.
    in_pieces: HashSet<String>,
    /// Inputs that no word of the agent has answered yet.
    event_ids: VecDeque<String>,
}

impl X1 {
    fn translate(&mut self, event: &Event) -> Option<Value> {
        let (kind, payload) = match &event.payload {
            Payload::SessionStart(s) => (
                "session.init",
                json!({ "mcp_servers": [], "tools": [], "model": s.model, "runtime": s.runtime }),
            ),
            Payload::UserMessage(m) => {
                self.event_ids.push_back(m.input_id.clone());
                (
                    "user.message",
                    json!({ "text": m.text, "event_id": m.input_id, "request_id": m.input_id, "sender_id": m.sender_id }),
                )
            }
            Payload::TurnStart(t) => (
                "session.agent_thinking",
                json!({ "event_id": t.input_ids.first(), "thread_id": null, "wake_source": "user", "started_at": event.timestamp }),
            ),
            Payload::AssistantDelta(d) if d.parent_tool_use_id.is_none() => {
                self.piece(&d.item_id, "agent.text", &d.text)
            }
            Payload::ReasoningDelta(d) if d.parent_tool_use_id.is_none() => {
                self.piece(&d.item_id, "agent.thinking", &d.text)
            }
            Payload::AssistantMessage(m) if m.parent_tool_use_id.is_none() => {
                self.whole(&m.item_id, "agent.text", &m.text)?
            }
            Payload::Reasoning(m) if m.parent_tool_use_id.is_none() => {
                self.whole(&m.item_id, "agent.thinking", &m.text)?
            }
            Payload::ToolUse(t) => (
                "agent.tool_call",
                json!({ "tool_name": t.name, "tool_use_id": t.tool_use_id, "input": t.input }),
            ),
            Payload::ToolResult(r) => {
                let kind = if r.is_error {
                    "agent.tool_error"
                } else {
                    "agent.tool_result"
                };
                (
                    kind,
                    json!({ "tool_use_id": r.tool_use_id, "content": r.output, "is_error": r.is_error }),
                )
            }
            Payload::PlanUpdate(plan) => (
                "agent.artifact",
                json!({ "artifact_type": "todo_list", "title": "Plan", "content": plan.items }),
            ),
            Payload::PermissionRequest(p) => (
                "agent.permission_request",
                json!({ "question": format!("Allow {}?", p.name), "options": p.options, "request_id": p.request_id, "tool_use_id": p.tool_use_id, "input": p.input }),
            ),
            Payload::QuestionRequest(q) => (
                "agent.input_request",
                json!({ "question": q.text, "options": q.options, "request_id": q.request_id }),
            ),
            Payload::PermissionResolved(p) => (
                "user.input_response",
                json!({ "text": p.decision, "request_id": p.request_id }),
            ),
            Payload::QuestionResolved(q) => (
                "user.input_response",
                json!({ "text": q.answer, "request_id": q.request_id }),
            ),
            Payload::Error(e) => (
                "agent.error",
                json!({ "message": e.message, "recoverable": e.retryable, "code": e.code }),
            ),
            Payload::TurnEnd(end) => {
                let u = &end.usage;
                let usage = json!({ "input_tokens": u.input, "output_tokens": u.output, "cache_read_input_tokens": u.cache_read, "cache_creation_input_tokens": u.cache_write, "cost_usd": u.cost_usd });
                ("agent.usage", usage)
            }
            Payload::SessionEnd(end) => {
                let failed = matches!(
                    end.reason,
                    SessionEndReason::Crashed | SessionEndReason::Stale
                );
                let kind = if failed {
                    "session.failed"
                } else {
                    "session.completed"
                };
                (
                    kind,
                    json!({ "reason": end.reason, "exit_code": end.exit_code, "error": end.stderr_tail, "summary": end.summary }),
                )
            }
            _ => return None,
        };
        Some(self.envelope(event, kind, payload))
    }

    fn piece(&mut self, item: &str, kind: &'static str, text: &str) -> (&'static str, Value) {
        self.in_pieces.insert(item.to_owned());
        (kind, json!({ "text": text }))
    }

    fn whole(
        &mut self,
        item: &str,
        kind: &'static str,
        text: &str,
    ) -> Option<(&'static str, Value)> {
        (!self.in_pieces.remove(item)).then(|| (kind, json!({ "text": text })))
    }

    fn envelope(&mut self, event: &Event, kind: &str, mut payload: Value) -> Value {
        // The first word after an input says whose answer it is.
        if (kind.starts_with("agent.") || kind == "session.completed" || kind == "session.failed")
            && let Some(id) = self.event_ids.pop_front()
        {
            payload["event_id"] = id.into();
        }
        json!({ "session_id": event.session_id, "timestamp": event.timestamp, "sequence": event.sequence, "type": kind, "payload": payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{
        AssistantDelta, AssistantMessage, InputMode, InputSource, TurnStart, UserMessage,
    };

    fn frames(events: Vec<Payload>) -> Bytes {
        let mut out = Vec::new();
        for (i, payload) in events.into_iter().enumerate() {
            let sequence = i as u64 + 1;
            let event = Event {
                session_id: "s".into(),
                sequence,
                timestamp: "t".into(),
                turn_id: None,
                runtime: "r".into(),
                payload,
            };
            let mut json = Vec::new();
            event.write(&mut json).unwrap();
            frame(sequence, None, &json, &mut out);
        }
        out.into()
    }

    fn some() -> Bytes {
        let delta = |text: &str| {
            AssistantDelta {
                item_id: "i".into(),
                text: text.into(),
                parent_tool_use_id: None,
            }
            .into()
        };
        let input = UserMessage {
            input_id: "in".into(),
            text: "q".into(),
            sender_id: None,
            source: InputSource::Initial,
            mode: InputMode::Auto,
            attachments: 0,
        };
        frames(vec![
            input.into(),
            TurnStart {
                turn: 1,
                input_ids: vec!["in".into()],
            }
            .into(),
            delta("h\u{1F980}"),
            delta("\",\"type\":\"session.end"),
            AssistantMessage {
                item_id: "i".into(),
                text: "hi".into(),
                truncated: false,
                parent_tool_use_id: None,
            }
            .into(),
        ])
    }

    fn shown(wish: StreamQuery, seen: u64, pieces: usize) -> String {
        let mut view = EventView::new(wish, seen, "s".into(), "r");
        let (mut out, bytes) = (VecDeque::new(), some());
        for piece in bytes.chunks(pieces) {
            view.feed(StreamPart::Frames(Bytes::copy_from_slice(piece)), &mut out);
        }
        String::from_utf8(out.into_iter().flatten().collect()).unwrap()
    }

    fn ids(text: &str) -> Vec<&str> {
        text.lines()
            .filter_map(|l| l.strip_prefix("id: "))
            .collect()
    }

    #[test]
    fn filters_drop_whole_frames_however_they_come() {
        for pieces in [1, 7, 10_000] {
            let wish = StreamQuery {
                types: vec!["turn.start".into(), "assistant.delta".into()],
                ..StreamQuery::default()
            };
            assert_eq!(ids(&shown(wish, 0, pieces)), ["2", "3", "4"]);
            assert_eq!(
                ids(&shown(
                    StreamQuery {
                        without_deltas: true,
                        ..StreamQuery::default()
                    },
                    0,
                    pieces
                )),
                ["1", "2", "5"]
            );
            let named = shown(
                StreamQuery {
                    named: true,
                    ..StreamQuery::default()
                },
                0,
                pieces,
            );
            assert_eq!(
                named.lines().filter(|l| l.starts_with("event: ")).count(),
                5
            );
            assert!(
                named.contains("event: assistant.delta\n") && !named.contains("event: session.end")
            );
            assert_eq!(shown(StreamQuery::default(), 0, pieces).as_bytes(), some());
        }
    }

    #[test]
    fn x1_begins_where_nothing_is_open_and_tells_gaps() {
        let wish = StreamQuery {
            shape: StreamFormat::X1,
            ..StreamQuery::default()
        };
        let mut view = EventView::new(wish, 3, "s".into(), "r");
        let mut out = VecDeque::new();
        view.feed(StreamPart::Gap { from: 1, to: 2 }, &mut out);
        assert!(out.is_empty(), "the subscriber has these");
        view.feed(StreamPart::Gap { from: 2, to: 9 }, &mut out);
        let told = String::from_utf8(out.into_iter().flatten().collect()).unwrap();
        assert!(
            told.starts_with("id: 9\n")
                && told.contains(r#""type":"stream.gap""#)
                && told.contains(r#"{"from":4,"to":9}"#),
            "{told}"
        );
    }

    #[test]
    fn x1_says_each_text_once_in_ascii_and_whose_answer_it_is() {
        let wish = StreamQuery {
            shape: StreamFormat::X1,
            ..StreamQuery::default()
        };
        let text = shown(wish.clone(), 0, 10_000);
        assert!(text.is_ascii() && text.contains("\\ud83e\\udd80"), "{text}");
        let messages: Vec<Value> = text
            .lines()
            .filter_map(|l| l.strip_prefix("data: "))
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        let kinds: Vec<_> = messages
            .iter()
            .map(|m| m["type"].as_str().unwrap())
            .collect();
        assert_eq!(
            kinds,
            [
                "user.message",
                "session.agent_thinking",
                "agent.text",
                "agent.text"
            ]
        );
        assert_eq!(
            (
                messages[2]["payload"]["event_id"].as_str(),
                messages[3]["payload"]["event_id"].as_str()
            ),
            (Some("in"), None)
        );
        // Resumed within the text: what was said in pieces is not said again.
        assert_eq!(ids(&shown(wish, 3, 10_000)), ["4"]);
    }
}
