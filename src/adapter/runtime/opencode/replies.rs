//! The answers of opencode to what it was asked, and how it is asked.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::Opencode;
use crate::adapter::runtime::action::{Action, CallPurpose, CallReply, RuntimeCall};
use crate::event::Warning;

/// From the time within an event's id to `next`; both count milliseconds since 1970, the id
/// only their lower 36 bits.
pub(super) fn milliseconds_after(id: &str, next: u64) -> Option<u64> {
    const BITS: u64 = (1 << 36) - 1;
    let said = u64::from_str_radix(id.strip_prefix("evt_")?.get(..12)?, 16).ok()? >> 12;
    let after = (next & BITS).wrapping_sub(said) & BITS;
    // Further away than a day: the time has passed.
    Some(if after > 86_400_000 { 0 } else { after })
}

/// JSON in which every half of a surrogate pair that stands alone is U+FFFD: JavaScript cuts
/// texts between the two, and writes what no Unicode text can hold.
pub(super) fn replace_lone_surrogates(json: &str) -> String {
    let unit = |at: usize| {
        json.get(at..at + 6)
            .and_then(|e| e.strip_prefix("\\u"))
            .and_then(|hex| u16::from_str_radix(hex, 16).ok())
    };
    let (mut out, mut at) = (String::with_capacity(json.len()), 0);
    while let Some(found) = json[at..].find('\\') {
        let escape = at + found;
        out.push_str(&json[at..escape]);
        let whole = match (unit(escape), unit(escape + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                out.push('\u{fffd}');
                at = escape + 6;
                continue;
            }
            (Some(_), _) => 6,
            // A backslash and the character that it escapes.
            (None, _) => 1 + json[escape + 1..].chars().next().map_or(0, char::len_utf8),
        };
        out.push_str(&json[escape..escape + whole]);
        at = escape + whole;
    }
    out.push_str(&json[at..]);
    out
}

/// When opencode is asked whether it has an input.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// The input was given to it before it was started again.
    AfterRestart,
    /// The input was given to it, and no event told that it arrived.
    AfterDelivery,
}

/// The status of an answer; 0: none came.
pub(super) fn status(reply: &CallReply) -> u16 {
    match reply {
        CallReply::Answer { status, .. } => *status,
        CallReply::Lost(_) => 0,
    }
}

/// `status 500 the first words of its body`, for messages.
pub(super) fn said(reply: &CallReply) -> String {
    format!("status {} {}", status(reply), words(reply))
}

/// The first words of the body of an answer.
fn words(reply: &CallReply) -> Cow<'_, str> {
    let body = body(reply);
    String::from_utf8_lossy(&body[..body.len().min(500)])
}

fn body(reply: &CallReply) -> &[u8] {
    match reply {
        CallReply::Answer { body, .. } => body,
        CallReply::Lost(_) => b"",
    }
}

impl Opencode {
    /// The answer to the opening or resuming of a session.
    pub(super) fn opened(&mut self, tag: &CallPurpose, reply: &CallReply, out: &mut Vec<Action>) {
        let resumed = *tag == CallPurpose::Resume;
        match status(reply) {
            200 => {
                let session = serde_json::from_slice::<Value>(body(reply)).ok();
                match session.and_then(|v| v["id"].as_str().map(str::to_owned)) {
                    Some(id) => {
                        self.session = Some(id.clone());
                        out.push(Action::Ready {
                            native_session_id: id,
                            resumed,
                        });
                    }
                    None => out.push(Action::Broken(format!(
                        "opencode answered a session without an id: {}",
                        words(reply)
                    ))),
                }
            }
            404 if resumed => {
                out.push(Warning { message: "opencode no longer has this session; a new one is begun, without its history".into() }.into());
                self.session = None;
                out.push(self.create());
            }
            _ => out.push(Action::Broken(format!(
                "opencode gave no session: {}",
                said(reply)
            ))),
        }
    }

    /// The answer to the delivery of an input.
    pub(super) fn taken(&mut self, input_id: String, reply: &CallReply, out: &mut Vec<Action>) {
        let Some(native) = self.sent_as(&input_id) else {
            return;
        };
        match reply {
            CallReply::Answer {
                status: 200..300, ..
            } => {}
            CallReply::Answer {
                status: 400..500, ..
            } => {
                self.sent.remove(&native);
                out.push(Action::Refused {
                    input_id,
                    why: format!(
                        "opencode refused it with status {}: {}",
                        status(reply),
                        words(reply)
                    ),
                });
            }
            // Whether it arrived is not known, and is asked when opencode is up again.
            CallReply::Answer { .. } => out.push(Action::Broken(format!(
                "opencode failed to take an input: {}",
                said(reply)
            ))),
            CallReply::Lost(why) => out.push(Action::Broken(format!(
                "opencode did not say whether it took an input: {why}"
            ))),
        }
    }

    /// The answer to the question whether opencode has an input.
    pub(super) fn looked_up(
        &mut self,
        input_id: String,
        reply: &CallReply,
        lookup: Lookup,
        out: &mut Vec<Action>,
    ) {
        let Some(native) = self.sent_as(&input_id) else {
            return;
        };
        match status(reply) {
            200 => {
                if let Some(input) = self.sent.remove(&native) {
                    self.arrived(&native, &input, out);
                    if lookup == Lookup::AfterRestart {
                        self.unanswered(out);
                    }
                }
            }
            404 => {
                self.sent.remove(&native);
                out.push(match lookup {
                    Lookup::AfterRestart => Action::Undelivered { input_id },
                    Lookup::AfterDelivery => Action::Refused {
                        input_id,
                        why: "opencode took it and did not store it".into(),
                    },
                });
            }
            _ => out.push(Action::Broken(format!(
                "opencode does not say whether it has message `{input_id}`: {}",
                said(reply)
            ))),
        }
    }

    /// The answer to the answer of a request.
    pub(super) fn answer_taken(&mut self, request: &str, reply: &CallReply, out: &mut Vec<Action>) {
        if status(reply) == 200 {
            return;
        }
        // It still waits.
        if let Some(asked) = self.asked.get_mut(request) {
            asked.1 = false;
        }
        self.decided.remove(request);
        let message = format!(
            "opencode did not take the answer to `{request}`: {}",
            said(reply)
        );
        out.push(Warning { message }.into());
    }
}

impl Opencode {
    pub(super) fn post(&self, tag: CallPurpose, path: &str, body: Value) -> Action {
        Action::Call(RuntimeCall {
            tag,
            method: "POST",
            path: path.to_owned(),
            body: Some(body),
        })
    }

    pub(super) fn look(&self, tag: CallPurpose, native_id: &str) -> Action {
        let path = format!(
            "/session/{}/message/{native_id}",
            self.session.as_deref().unwrap_or_default()
        );
        Action::Call(RuntimeCall {
            tag,
            method: "GET",
            path,
            body: None,
        })
    }

    pub(super) fn create(&self) -> Action {
        // With a title of ours, the model is not asked for one.
        self.post(
            CallPurpose::Open,
            "/session",
            json!({ "title": format!("session {}", self.session_id) }),
        )
    }

    pub(super) fn sent_as(&self, input_id: &str) -> Option<String> {
        self.sent
            .iter()
            .find(|(_, input)| input.input_id == input_id)
            .map(|(id, _)| id.clone())
    }
}
