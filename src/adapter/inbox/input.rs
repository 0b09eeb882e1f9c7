//! What users send.

use std::io;

use serde::{Deserialize, Serialize};

use super::{CAPACITY, CAPACITY_BYTES};
use crate::event::{InputMode, InputSource};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    pub input_id: String,
    pub text: String,
    pub mode: InputMode,
    pub source: InputSource,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender_id: Option<String>,
    /// Empty while it waits: they are read when it is handed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// What its attachments have, in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attachment_bytes: u64,
}

impl Input {
    /// A text by a user.
    pub fn new(input_id: String, text: String) -> Input {
        Input {
            input_id,
            text,
            mode: InputMode::default(),
            source: InputSource::Inject,
            sender_id: None,
            attachments: Vec::new(),
            attachment_bytes: 0,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
pub(super) fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub media_type: String,
    /// Base64.
    pub data: String,
}

/// The answer to an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// 1: the next to be delivered.
    pub position: u64,
    pub duplicate: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    #[error("{CAPACITY} inputs are waiting already")]
    Full,
    #[error("the inputs that wait have more than {} MiB already", CAPACITY_BYTES >> 20)]
    TooLarge,
    #[error("the session is ending")]
    Closed,
    #[error("the inbox cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// One that waits, as `GET /inputs` lists it.
#[derive(Debug, Serialize)]
pub struct ListedInput {
    pub input_id: String,
    pub text: String,
    pub mode: InputMode,
    pub source: InputSource,
    pub sender_id: Option<String>,
    /// 1: the next to be delivered.
    pub position: u64,
    /// `waiting`, or `sent`: the CLI has it or is about to.
    pub state: &'static str,
}

/// What became of the wish to take an input back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    Yes,
    /// The CLI has it, or is about to.
    TooLate,
    Unknown,
}
