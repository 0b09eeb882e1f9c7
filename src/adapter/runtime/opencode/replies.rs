//! The answers of opencode to what it was asked, and how it is asked.

use serde_json::{Value, json};

use super::Opencode;
use crate::adapter::runtime::action::Action;
use crate::adapter::runtime::action::CallPurpose;
use crate::adapter::runtime::action::RuntimeCall;

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
