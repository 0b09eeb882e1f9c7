//! A CLI that runs, and how one ends.

use std::collections::VecDeque;
use std::process::ExitStatus;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::adapter::process::Process;
use crate::adapter::transport::{CliHttpClient, FromCli, LineSplitter};
use crate::event::SessionEnd;

/// What is kept of what it writes to stderr.
pub(crate) const STDERR_TAIL: usize = 4 << 10;

/// A CLI that is up.
pub(super) struct RunningCli {
    pub(super) process: Process,
    pub(super) http: CliHttpClient,
    /// It speaks in JSON lines; this writes to its standard input.
    pub(crate) input: Option<mpsc::UnboundedSender<Bytes>>,
    pub(super) speaks_lines: bool,
    pub(super) from_cli: mpsc::Receiver<FromCli>,
    pub(super) say: mpsc::Sender<FromCli>,
    pub(super) events: LineSplitter,
    pub(super) stdout: LineSplitter,
    pub(super) stderr: Tail,
    pub(super) ready: bool,
    pub(super) broken: Option<String>,
    pub(crate) events_task: Option<tokio::task::JoinHandle<()>>,
}

impl RunningCli {
    /// Writes one message to its standard input, after those before it.
    pub(super) fn send(&self, message: &Value) {
        if let Some(input) = &self.input {
            let mut line = message.to_string();
            line.push('\n');
            // One that has gone is noticed by its end.
            let _ = input.send(line.into());
        }
    }
}

/// Why a CLI is not up any more.
pub(super) enum CliExit {
    /// The session is over.
    Ended(SessionEnd),
    Crashed {
        why: String,
        status: Option<ExitStatus>,
        stderr: String,
        was_ready: bool,
    },
}

#[derive(Default)]
pub(super) struct Tail {
    pub(super) lines: LineSplitter,
    pub(crate) kept: VecDeque<u8>,
}

impl Tail {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.kept
            .extend(&bytes[bytes.len().saturating_sub(STDERR_TAIL)..]);
        let over = self.kept.len().saturating_sub(STDERR_TAIL);
        self.kept.drain(..over);
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept.iter().copied().collect::<Vec<u8>>())
            .trim()
            .to_owned()
    }
}

/// Instead of a line that nobody keeps.
pub(super) const TOO_LONG: &[u8] = b"(a line that was too long)";
