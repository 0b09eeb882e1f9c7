//! What a translator asks of the session, and what it is answered.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::event::Payload;

/// What the session is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Say it on the stream.
    Event(Payload),
    /// Ask the CLI something; the answer comes to [`Translator::reply`].
    Call(RuntimeCall),
    /// Tell the CLI something, on a line. What it answers is read like all that it says.
    Send(Value),
    /// Read what the CLI wrote down; it comes to [`Translator::reply`], as an HTTP answer would:
    /// 200, or 404.
    ReadFile { tag: CallPurpose, file: FilePattern },
    /// The CLI tells its version.
    Version(String),
    /// The CLI has a session; inputs may come.
    Ready {
        native_session_id: String,
        resumed: bool,
    },
    /// This input is in the CLI's own history now. Said once an input.
    Delivered { input_id: String },
    /// The CLI does not have this input: hand it over (again).
    Undelivered { input_id: String },
    /// The CLI cannot take this input, ever.
    Refused { input_id: String, why: String },
    /// The model wants to go on with what its tools said: it will be asked once more.
    Step,
    /// Come back after so long, even if nothing else happens.
    Wake(Duration),
    /// The CLI cannot go on; it must be started again.
    Broken(String),
}

impl<P: Into<Payload>> From<P> for Action {
    fn from(payload: P) -> Action {
        Action::Event(payload.into())
    }
}

/// A file that a CLI keeps: the largest below `dir` (at most two directories deep) whose name
/// ends so. Of a long one, the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePattern {
    pub dir: PathBuf,
    pub suffix: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeCall {
    /// What the translator knows the answer by.
    pub tag: CallPurpose,
    pub method: &'static str,
    pub path: String,
    pub body: Option<Value>,
}

/// Why a call was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallPurpose {
    Open,
    Resume,
    /// Whether an input that was handed over before a restart arrived.
    Look(String),
    /// Whether one that was handed over since did.
    Check(String),
    Deliver(String),
    Interrupt,
    Answer(String),
    /// What a tool said, which the CLI itself does not tell.
    Output(String),
}

/// The answer to a call.
#[derive(Debug, Clone)]
pub enum CallReply {
    Answer {
        status: u16,
        body: Vec<u8>,
    },
    /// None came.
    Lost(String),
}

/// A user's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PermissionDecision {
    Allow,
    AllowAlways,
    Deny { message: Option<String> },
    Answers(Vec<Vec<String>>),
    RejectQuestion,
}

impl PermissionDecision {
    /// As the stream has it; only permissions' are there.
    pub fn name(&self) -> &'static str {
        match self {
            PermissionDecision::Allow => "allow",
            PermissionDecision::AllowAlways => "allow_always",
            PermissionDecision::Deny { .. } => "deny",
            PermissionDecision::Answers(_) => "answered",
            PermissionDecision::RejectQuestion => "rejected",
        }
    }
}
