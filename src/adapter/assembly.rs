//! Puts a session together: journal, inbox, session.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::adapter::config::AdapterConfig;
use crate::adapter::inbox;
use crate::adapter::inbox::{Inbox, InboxError, Input};
use crate::adapter::journal::{Journal, JournalWriter, Replay, Retention};
use crate::adapter::session::status::{SharedStatus, Status};
use crate::adapter::session::stop::Ended;
use crate::adapter::session::{Parts, Rebuilt, Session, SessionCommand};
use crate::adapter::trouble::{Component, Troubles};
use crate::base::disk::is_full;
use crate::event::{InputMode, InputSource};

/// Descriptors that are not connections: journals, the CLI's pipes, calls.
pub(crate) const OWN_DESCRIPTORS: u64 = 128;

pub(crate) const MAX_BODIES: usize = 16;

pub(crate) const MAX_SMALL_BODIES: usize = 256;

/// When a prompt is tried again that the disk did not take.
pub(crate) const PROMPT_RETRY: Duration = Duration::from_millis(500);

/// The CLI's own lines are for debugging: fewer are kept than events.
pub(crate) const RAW_SEGMENTS: usize = 4;

/// A session that can be run, and what others have of it.
pub struct Assembled {
    pub(crate) session: Session,
    pub session_id: String,
    pub journal: Arc<Journal>,
    pub raw: Option<Arc<Journal>>,
    pub(crate) inbox: Arc<Inbox>,
    pub commands: mpsc::Sender<SessionCommand>,
    pub(crate) status: SharedStatus,
    pub(crate) troubles: Troubles,
    pub(crate) terminating: watch::Sender<bool>,
}

impl Assembled {
    /// Opens what the session is kept in, and goes on with what is there.
    ///
    /// # Errors
    /// A directory or a file that cannot be had.
    pub fn new(mut config: AdapterConfig) -> Result<Assembled, String> {
        let (dir, troubles) = (config.journal.clone(), Troubles::default());
        let mut rebuilt = Rebuilt::new(config.session_id.as_deref());
        private_dir(&dir)?;
        let (inbox, found) = Inbox::open(&dir.join("inbox.jsonl"), troubles.clone())
            .map_err(|e| format!("the inbox in `{}` cannot be used: {e}", dir.display()))?;
        let floor = inbox
            .undecided()
            .iter()
            .map(|o| o.since.saturating_sub(1))
            .max()
            .unwrap_or(0);
        let opened = JournalWriter::open(
            &dir.join("events"),
            config.retention,
            floor,
            Component::Journal,
            &troubles,
            &mut rebuilt,
        )?;
        opened.writer.journal().are_quiet(&rebuilt.quiet);
        let mut lifecycle = rebuilt.lifecycle;
        lifecycle.native_session_id = lifecycle.native_session_id.or_else(|| config.resume.take());
        let session_id = lifecycle.session_id.clone();
        config.warnings.extend(opened.damage);
        config
            .warnings
            .extend(inbox_damage(found, opened.writer.next() > 1));
        let raw = if config.raw {
            Some(open_raw(&config, &troubles)?)
        } else {
            None
        };
        let inbox = Arc::new(inbox);
        if let Some(text) = config.prompt.take() {
            // The same prompt again is a restart; another one is another input.
            let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
            let input_id = format!(
                "initial-{:08x}",
                u32::from_be_bytes(digest.as_ref().first_chunk().copied().unwrap_or_default())
            );
            accept_prompt(
                &inbox,
                Input {
                    source: InputSource::Initial,
                    mode: InputMode::Queue,
                    ..Input::new(input_id, text)
                },
                opened.writer.next() - 1,
            )?;
        }
        let (commands, commanded) = mpsc::channel(64);
        let (terminating, told_to_end) = watch::channel(false);
        let status = Status {
            state: "starting",
            turn: lifecycle.turns,
            native_session_id: None,
            runtime_version: None,
            waiting_for: Vec::new(),
            usage: lifecycle.spent,
        };
        let status = Arc::new(Mutex::new(status));
        let (journal, raw_journal) = (
            opened.writer.journal(),
            raw.as_ref().map(JournalWriter::journal),
        );
        let parts = Parts {
            config,
            session_id: session_id.clone(),
            lifecycle,
            journal: opened.writer,
            raw,
            inbox: inbox.clone(),
            commands: commanded,
            status: status.clone(),
            troubles: troubles.clone(),
            terminating: told_to_end,
        };
        Ok(Assembled {
            session: Session::new(parts),
            session_id,
            journal,
            raw: raw_journal,
            inbox,
            commands,
            status,
            troubles,
            terminating,
        })
    }

    /// Runs the session on a thread and a runtime of its own.
    ///
    /// # Errors
    /// The system's.
    pub fn run_apart(self) -> io::Result<oneshot::Receiver<Ended>> {
        let (done, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("session".into())
            .spawn(move || {
                let _ = done.send(runtime.block_on(self.session.run()));
            })?;
        Ok(ended)
    }
}

/// What is to be said of an inbox that is not as it was left.
pub(crate) fn inbox_damage(found: inbox::OpenedInbox, session_is_old: bool) -> Option<String> {
    match found {
        inbox::OpenedInbox { fresh: true, .. } if session_is_old => {
            Some("the inbox is gone: inputs that waited are lost, and ids of earlier ones are not known any more".to_owned())
        }
        inbox::OpenedInbox { damaged: 1.., .. } => {
            Some(format!("the inbox was damaged: {} of its lines cannot be read, and inputs that waited may be lost", found.damaged))
        }
        _ => None,
    }
}

/// A full disk does not stop the start: the prompt is tried again until there is room.
pub(crate) fn accept_prompt(
    inbox: &Arc<Inbox>,
    prompt: Input,
    sequence: u64,
) -> Result<(), String> {
    match inbox.accept(prompt.clone(), sequence) {
        Ok(_) => Ok(()),
        Err(InboxError::Io(e)) if is_full(&e) => {
            let inbox = Arc::downgrade(inbox);
            let again = move || {
                while let Some(inbox) = inbox.upgrade() {
                    if inbox.accept(prompt.clone(), sequence).is_ok() {
                        return;
                    }
                    drop(inbox);
                    std::thread::sleep(PROMPT_RETRY);
                }
            };
            std::thread::Builder::new()
                .name("prompt".into())
                .spawn(again)
                .map(drop)
                .map_err(|e| e.to_string())
        }
        Err(e) => Err(e.to_string()),
    }
}

pub(crate) fn private_dir(dir: &Path) -> Result<(), String> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| format!("cannot make `{}`: {e}", dir.display()))
}

/// Follows nothing: the CLI's own lines are only kept.
pub(crate) struct Unread;

impl Replay for Unread {
    fn state(&mut self, _: &[u8]) -> Result<bool, String> {
        Ok(true)
    }

    fn frame(&mut self, _: u64, json: &[u8]) -> Result<bool, String> {
        Ok(self.is_whole(0, json))
    }

    fn is_whole(&self, _: u64, json: &[u8]) -> bool {
        serde_json::from_slice::<serde::de::IgnoredAny>(json).is_ok()
    }

    fn rebuilt(&self) -> String {
        String::new()
    }
}

pub(crate) fn open_raw(
    config: &AdapterConfig,
    troubles: &Troubles,
) -> Result<JournalWriter, String> {
    let retention = Retention {
        segments: config.retention.segments.min(RAW_SEGMENTS),
        durable: false,
        ..config.retention
    };
    Ok(JournalWriter::open(
        &config.journal.join("raw"),
        retention,
        0,
        Component::Raw,
        troubles,
        &mut Unread,
    )?
    .writer)
}
