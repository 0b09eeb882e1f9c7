//! Puts a session together: journals, inbox, the task that owns the CLI, the two ports.
//!
//! The session runs on a thread of its own, so that serving subscribers costs the CLI nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::ORIGIN;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;

use super::config::AdapterConfig;
use crate::adapter::assembly::{Assembled, MAX_BODIES, MAX_SMALL_BODIES, OWN_DESCRIPTORS};
use crate::adapter::port::access::PortGuard;
use crate::adapter::port::tickets::Tickets;
use crate::adapter::port::{access, input, stream};
use crate::adapter::session::SessionCommand;
use crate::adapter::session::stop::Ended;
use crate::adapter::state::AdapterState;
use crate::base::sync::lock;

/// What one port serves at once, where the system allows so many descriptors.
const MAX_CONNECTIONS: usize = 4096;

/// How long subscribers may take to read a session's end.
const LINGER: Duration = Duration::from_secs(3);

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
            "refused_connections": self.refused_connections.load(Ordering::Relaxed),
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
            stream_guard: PortGuard::new(stream, true),
            input_guard: PortGuard::new(input, false),
            journal: assembled.journal.clone(),
            raw: assembled.raw.clone(),
            inbox: assembled.inbox.clone(),
            commands: assembled.commands.clone(),
            tickets: Tickets::default(),
            bodies: Semaphore::new(MAX_BODIES),
            small_bodies: Semaphore::new(MAX_SMALL_BODIES),
            subscribers: Arc::default(),
            refused_connections: AtomicU64::default(),
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
                Ok(_) => {
                    let before = shared.refused_connections.fetch_add(1, Ordering::Relaxed);
                    if before == 0 {
                        tracing::warn!(most, "a port has all the connections that it may have; others are closed");
                    }
                }
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
