//! `POST /inject`: what an input may look like.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::adapter::inbox::{Attachment, InboxError, Input};
use crate::adapter::port::access::{PortResponse, RequestError, json_answer};
use crate::adapter::state::AdapterState;
use crate::base::token::random_hex;
use crate::event::InputMode;

pub(crate) const MAX_TEXT: usize = 64 << 10;

/// All images of one input, as base64.
pub(crate) const MAX_ATTACHMENTS: usize = 8 << 20;

pub(crate) const MAX_ID: usize = 256;

pub(crate) const MEDIA: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];

/// What `POST /inject` takes; x1's further fields are taken and mean nothing here.
#[derive(Debug, Deserialize)]
pub(crate) struct Inject {
    #[serde(default)]
    pub(crate) text: Option<String>,
    #[serde(default)]
    pub(crate) input_id: Option<String>,
    #[serde(default)]
    pub(crate) event_id: Option<String>,
    #[serde(default)]
    pub(crate) request_id: Option<String>,
    #[serde(default)]
    pub(crate) mode: Option<InputMode>,
    #[serde(default)]
    pub(crate) sender_id: Option<String>,
    #[serde(default)]
    pub(crate) attachments: Vec<Inline>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Inline {
    r#type: String,
    pub(crate) media_type: String,
    pub(crate) data: String,
}

pub(crate) async fn inject(
    shared: &Arc<AdapterState>,
    body: &[u8],
    key: Option<String>,
) -> Result<PortResponse, RequestError> {
    // By way of a map: a struct could be read from a list of its fields, too.
    let inject: Inject = serde_json::from_slice(body)
        .and_then(|body: serde_json::Map<String, Value>| serde_json::from_value(body.into()))
        .map_err(|e| {
            RequestError::new(400, "bad_request", format!("not an input: {e}"))
                .hint("`{\"text\": \"…\", \"mode\"?: \"auto\"|\"queue\"|\"steer\"|\"interrupt\"}`")
        })?;
    let input = checked(inject, key)?;
    if !input.attachments.is_empty() && !shared.runtime.capabilities.images {
        return Err(RequestError::new(
            400,
            "unsupported",
            format!("{} takes no images", shared.runtime.name),
        ));
    }
    let (input_id, keeper) = (input.input_id.clone(), shared.clone());
    let accepted =
        tokio::task::spawn_blocking(move || keeper.inbox.accept(input, keeper.journal.head()))
            .await
            .map_err(|e| RequestError::new(500, "internal", e.to_string()))?;
    match accepted {
        Ok(a) => Ok(json_answer(
            202,
            &json!({ "input_id": input_id, "position": a.position, "duplicate": a.duplicate }),
        )),
        Err(e @ (InboxError::Full | InboxError::TooLarge)) => {
            Err(RequestError::new(429, "inbox_full", e.to_string()))
        }
        Err(e @ InboxError::Closed) => Err(RequestError::new(409, "session_ended", e.to_string())),
        Err(e @ InboxError::Io(_)) => {
            Err(RequestError::new(503, "inbox_unavailable", e.to_string()))
        }
    }
}

pub(crate) fn checked(inject: Inject, key: Option<String>) -> Result<Input, RequestError> {
    let text = checked_text(inject.text)?;
    let named = inject.input_id.or(inject.event_id).or(inject.request_id);
    let input_id = checked_id(named.or(key))?;
    if inject.sender_id.as_ref().is_some_and(|s| s.len() > MAX_ID) {
        return Err(bad(format!("`sender_id` is longer than {MAX_ID} bytes")));
    }
    Ok(Input {
        mode: inject.mode.unwrap_or_default(),
        sender_id: inject.sender_id,
        attachments: checked_attachments(inject.attachments)?,
        ..Input::new(input_id, text)
    })
}

fn bad(what: impl Into<String>) -> RequestError {
    RequestError::new(400, "bad_request", what.into())
}

fn too_large(what: String) -> RequestError {
    RequestError::new(413, "body_too_large", what)
}

fn checked_text(text: Option<String>) -> Result<String, RequestError> {
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
        return Err(bad("`text` is missing or empty"));
    };
    if text.len() > MAX_TEXT {
        let length = text.len();
        return Err(too_large(format!(
            "`text` has {length} bytes; at most {MAX_TEXT} are taken"
        )));
    }
    // No terminal reads it, but what does may: nothing that is not text.
    let is_odd = |c: &char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    match text.chars().find(is_odd) {
        Some(c) => Err(bad(format!(
            "`text` holds the control character U+{:04X}",
            u32::from(c)
        ))),
        None => Ok(text),
    }
}

fn checked_id(id: Option<String>) -> Result<String, RequestError> {
    let Some(id) = id else {
        return Ok(format!("in_{}", random_hex()));
    };
    if (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(id);
    }
    Err(bad(format!(
        "`input_id` is `{}`; allowed: 1 to {MAX_ID} visible ASCII characters",
        id.escape_default()
    )))
}

fn checked_attachments(inline: Vec<Inline>) -> Result<Vec<Attachment>, RequestError> {
    let is_taken = |a: &&Inline| a.r#type == "image" && MEDIA.contains(&a.media_type.as_str());
    if let Some(a) = inline.iter().find(|a| !is_taken(a)) {
        return Err(bad(format!(
            "an attachment is a `{}` of `{}`; allowed: `image` of `{}`",
            a.r#type,
            a.media_type,
            MEDIA.join("`, `")
        )));
    }
    if inline.iter().map(|a| a.data.len()).sum::<usize>() > MAX_ATTACHMENTS {
        return Err(too_large(format!(
            "the attachments have more than {MAX_ATTACHMENTS} bytes"
        )));
    }
    let is_base64 = |a: &Inline| !a.data.is_empty() && BASE64.decode(&a.data).is_ok();
    if !inline.iter().all(is_base64) {
        return Err(bad("an attachment's `data` is not base64"));
    }
    let attachment = |a: Inline| Attachment {
        media_type: a.media_type,
        data: a.data,
    };
    Ok(inline.into_iter().map(attachment).collect())
}

pub(crate) fn optional_text(body: &Value, name: &str) -> Result<Option<String>, RequestError> {
    match &body[name] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        other => Err(RequestError::new(
            400,
            "bad_request",
            format!("`{name}` is `{other}`, not a text"),
        )),
    }
}
