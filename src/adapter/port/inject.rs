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
    let bad = |what: String| RequestError::new(400, "bad_request", what);
    let text = match inject.text {
        Some(text) if !text.trim().is_empty() => text,
        _ => return Err(bad("`text` is missing or empty".into())),
    };
    if text.len() > MAX_TEXT {
        return Err(RequestError::new(
            413,
            "body_too_large",
            format!(
                "`text` has {} bytes; at most {MAX_TEXT} are taken",
                text.len()
            ),
        ));
    }
    // No terminal reads it, but what does may: nothing that is not text.
    if let Some(c) = text
        .chars()
        .find(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
    {
        return Err(bad(format!(
            "`text` holds the control character U+{:04X}",
            u32::from(c)
        )));
    }
    let input_id = match inject
        .input_id
        .or(inject.event_id)
        .or(inject.request_id)
        .or(key)
    {
        Some(id)
            if (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            id
        }
        Some(id) => {
            return Err(bad(format!(
                "`input_id` is `{}`; allowed: 1 to {MAX_ID} visible ASCII characters",
                id.escape_default()
            )));
        }
        None => format!("in_{}", random_hex()),
    };
    if inject.sender_id.as_ref().is_some_and(|s| s.len() > MAX_ID) {
        return Err(bad(format!("`sender_id` is longer than {MAX_ID} bytes")));
    }
    if let Some(a) = inject
        .attachments
        .iter()
        .find(|a| a.r#type != "image" || !MEDIA.contains(&a.media_type.as_str()))
    {
        return Err(bad(format!(
            "an attachment is a `{}` of `{}`; allowed: `image` of `{}`",
            a.r#type,
            a.media_type,
            MEDIA.join("`, `")
        )));
    }
    if inject
        .attachments
        .iter()
        .map(|a| a.data.len())
        .sum::<usize>()
        > MAX_ATTACHMENTS
    {
        return Err(RequestError::new(
            413,
            "body_too_large",
            format!("the attachments have more than {MAX_ATTACHMENTS} bytes"),
        ));
    }
    if inject
        .attachments
        .iter()
        .any(|a| a.data.is_empty() || BASE64.decode(&a.data).is_err())
    {
        return Err(bad("an attachment's `data` is not base64".into()));
    }
    let attachments = inject
        .attachments
        .into_iter()
        .map(|a| Attachment {
            media_type: a.media_type,
            data: a.data,
        })
        .collect();
    Ok(Input {
        mode: inject.mode.unwrap_or_default(),
        sender_id: inject.sender_id,
        attachments,
        ..Input::new(input_id, text)
    })
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
