//! Puts a session together: journals, inbox, the task that owns the CLI, the two ports.
//!
//! The session runs on a thread of its own, so that serving subscribers costs the CLI nothing.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::ORIGIN;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::config::AdapterConfig;
use super::inbox::{self, Inbox, InboxError, Input};
use super::journal::{Journal, JournalWriter, Replay, Retention};
use super::session::{Ended, Parts, Rebuilt, Session, SessionCommand, SharedStatus, Status};
use super::trouble::{Component, Troubles};
use crate::adapter::port::access;
use crate::adapter::port::access::PortGuard;
use crate::adapter::port::tickets::Tickets;
use crate::adapter::port::{input, stream};
use crate::adapter::state::AdapterState;
use crate::base::disk::is_full;
use crate::base::sync::lock;
use crate::event::{InputMode, InputSource};

/// What one port serves at once, where the system allows so many descriptors.
const MAX_CONNECTIONS: usize = 4096;

/// Descriptors that are not connections: journals, the CLI's pipes, calls.
const OWN_DESCRIPTORS: u64 = 128;

const MAX_BODIES: usize = 16;

const MAX_SMALL_BODIES: usize = 256;

/// How long subscribers may take to read a session's end.
const LINGER: Duration = Duration::from_secs(3);

/// When a prompt is tried again that the disk did not take.
const PROMPT_RETRY: Duration = Duration::from_millis(500);

/// The CLI's own lines are for debugging: fewer are kept than events.
const RAW_SEGMENTS: usize = 4;

impl AdapterState {
    pub fn status(&self) -> Value {
        let s = lock(&self.status).clone();
        json!({
            "session_id": self.session_id,
            "state": s.state,
            "runtime": self.runtime.id,
            "runtime_version": s.runtime_version,
            "model": self.model,
            "native_session_id": s.native_session_id,
            "turn": s.turn,
            "waiting_for": s.waiting_for,
            "usage": s.usage,
            "trouble": self.troubles.text(),
            "inputs_waiting": self.inbox.waiting(),
            "sequence": self.journal.head(),
            "first_sequence": self.journal.first(),
            "subscribers": self.subscribers.load(Ordering::Relaxed),
        })
    }

    /// `starting`, `idle`, `busy`, `restarting`, `ended`.
    pub fn state(&self) -> &'static str {
        lock(&self.status).state
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// No more inputs.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }
}

/// A session that runs.
#[derive(Debug)]
pub struct RunningAdapter {
    pub stream: SocketAddr,
    pub input: SocketAddr,
    pub shared: Arc<AdapterState>,
    ended: oneshot::Receiver<Ended>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// A session that can be run, and what others have of it.
pub struct Assembled {
    session: Session,
    pub session_id: String,
    pub journal: Arc<Journal>,
    pub raw: Option<Arc<Journal>>,
    inbox: Arc<Inbox>,
    pub commands: mpsc::Sender<SessionCommand>,
    status: SharedStatus,
    troubles: Troubles,
    terminating: watch::Sender<bool>,
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

impl RunningAdapter {
    /// # Errors
    /// A directory, a file or a port that cannot be had.
    pub async fn start(mut config: AdapterConfig) -> Result<RunningAdapter, String> {
        let (runtime, model, policy) = (
            config.runtime,
            config.model.clone(),
            std::mem::take(&mut config.policy),
        );
        let (stream, input) = (config.stream, config.input);
        let assembled = Assembled::new(config)?;
        let (stream_listener, input_listener) = (bind(stream).await?, bind(input).await?);
        let address = |l: &TcpListener| l.local_addr().map_err(|e| e.to_string());
        let (stream, input) = (address(&stream_listener)?, address(&input_listener)?);
        let shared = Arc::new(AdapterState {
            session_id: assembled.session_id.clone(),
            runtime,
            model,
            policy,
            stream_door: PortGuard::new(stream, true),
            input_door: PortGuard::new(input, false),
            journal: assembled.journal.clone(),
            raw: assembled.raw.clone(),
            inbox: assembled.inbox.clone(),
            commands: assembled.commands.clone(),
            tickets: Tickets::default(),
            bodies: Semaphore::new(MAX_BODIES),
            small_bodies: Semaphore::new(MAX_SMALL_BODIES),
            subscribers: Arc::default(),
            troubles: assembled.troubles.clone(),
            status: assembled.status.clone(),
            terminating: assembled.terminating.clone(),
            draining: AtomicBool::new(false),
        });
        let ended = assembled
            .run_apart()
            .map_err(|e| format!("the session cannot be started: {e}"))?;
        let (stop, stopping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for journal in shared.raw.iter().chain([&shared.journal]) {
            let journal = journal.clone();
            tasks.spawn(async move { journal.wake_cursors().await });
        }
        tasks.spawn(accept(
            stream_listener,
            shared.clone(),
            stopping.clone(),
            |shared, stream, stop| {
                access::serve(
                    stream,
                    move |request| answer(shared.clone(), request, true),
                    stop,
                )
            },
        ));
        tasks.spawn(accept(
            input_listener,
            shared.clone(),
            stopping,
            |shared, stream, stop| {
                access::serve(
                    stream,
                    move |request| answer(shared.clone(), request, false),
                    stop,
                )
            },
        ));
        Ok(RunningAdapter {
            stream,
            input,
            shared,
            ended,
            stop,
            tasks,
        })
    }

    /// Waits for the session's end. May be dropped and called again.
    pub async fn ended(&mut self) -> Option<Ended> {
        (&mut self.ended).await.ok()
    }

    /// Tells the session to end.
    pub async fn terminate(&self) {
        self.shared.drain();
        let _ = self.shared.terminating.send(true);
        // A session that hears nothing is left behind at the second signal.
        let _ = tokio::time::timeout(
            Duration::from_secs(1),
            self.shared.commands.send(SessionCommand::Terminate),
        )
        .await;
    }

    /// Lets subscribers read the end, and closes the ports.
    pub async fn close(mut self) {
        let read = async {
            while self.shared.subscribers.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(LINGER, read).await;
        let _ = self.stop.send(true);
        self.tasks.shutdown().await;
    }
}

/// What is to be said of an inbox that is not as it was left.
fn inbox_damage(found: inbox::OpenedInbox, session_is_old: bool) -> Option<String> {
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
fn accept_prompt(inbox: &Arc<Inbox>, prompt: Input, sequence: u64) -> Result<(), String> {
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

fn private_dir(dir: &Path) -> Result<(), String> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| format!("cannot make `{}`: {e}", dir.display()))
}

/// Follows nothing: the CLI's own lines are only kept.
struct Unread;

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

fn open_raw(config: &AdapterConfig, troubles: &Troubles) -> Result<JournalWriter, String> {
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

async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|e| format!("cannot listen on `{address}`: {e}"))
}

/// One request, on the port of the stream or on that of the input.
async fn answer(
    shared: Arc<AdapterState>,
    request: Request<Incoming>,
    to_stream: bool,
) -> access::PortResponse {
    let origin = request.headers().get(ORIGIN).cloned();
    let route = async {
        if to_stream {
            stream::route(&shared, request).await
        } else {
            input::route(&shared, request).await
        }
    };
    access::answer(&shared.policy, origin, route).await
}

async fn stop_requested(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn accept<F>(
    listener: TcpListener,
    shared: Arc<AdapterState>,
    stop: watch::Receiver<bool>,
    serve: impl Fn(Arc<AdapterState>, TcpStream, watch::Receiver<bool>) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    // Two ports share the descriptors, and a reader of old events has a file besides its socket.
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(u64::MAX);
    let most =
        MAX_CONNECTIONS.min((descriptors.saturating_sub(OWN_DESCRIPTORS) / 4).max(16) as usize);
    let mut connections = JoinSet::new();
    let mut stopping = stop.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < most => _ = connections.spawn(serve(shared.clone(), stream, stop.clone())),
                Ok(_) => {}
                // Out of descriptors: those that there are must get on.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
            () = stop_requested(&mut stopping) => break,
        }
    }
    drop(listener);
    let rest = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
}
