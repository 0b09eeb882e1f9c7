//! One client connection: strict framing, timeouts, and a decent end.
//!
//! hyper reads through a [`StrictFraming`] stream, which follows the bytes and stops at the first
//! that breaks the grammar. hyper then sees the end of the stream; the refusal is written
//! here, after what hyper still had to say.

mod framing;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderMap};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use self::framing::StrictFraming;
use super::refusal::{Client, Code, Refusal};
use crate::base::framing::Fault;
use crate::base::sync::lock;
use crate::sidecar::activity::{Activity, InFlightGuard};
use crate::sidecar::proxy;
use crate::sidecar::response::ResponseBody;
use crate::sidecar::state::SidecarState;
use crate::sidecar::steps::body::READ_BUFFER;
use crate::sidecar::steps::route;

/// A head, once begun (or a connection, once made), must be whole within this time.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// Longer than the pools of the CLIs keep a connection, so that none is closed under a request.
const IDLE_TIME: Duration = Duration::from_secs(90);

/// A client that reads nothing for so long is gone; its upstream request is cancelled.
const WRITE_STALL: Duration = Duration::from_secs(60);

/// A client that reads nothing for so long makes room when others wait for a connection.
const STALLED: Duration = Duration::from_secs(1);

/// Requests in a row on one connection that are refused at full speed …
const REFUSED_IN_A_ROW: u32 = 20;

/// … before each further answer is held back for so long.
const PENALTY: Duration = Duration::from_millis(100);

/// Bytes of an unwanted body that are read away so that the client sees its refusal.
const LINGER_BYTES: usize = 64 << 20;

const LINGER_TIME: Duration = Duration::from_secs(2);

/// What the acceptor knows of a connection.
#[derive(Debug)]
pub struct Handle {
    pub busy: Arc<Activity>,
    /// Told to go, to make room for another.
    pub leave: Notify,
    fault: Mutex<Option<(Fault, String)>>,
    /// A request or its answer said that it is the last: what comes behind it is none.
    last: AtomicBool,
    since: Instant,
    /// It has had a request answered.
    served: AtomicBool,
    /// Requests in a row that were refused.
    refused: AtomicU32,
    /// The answer to a refused request is being held back.
    penalised: AtomicBool,
    /// Milliseconds after `since` at which the client stopped reading; 0 while it reads.
    stalled: AtomicU64,
}

/// How dispensable a connection is when others wait for a place; the least needed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Its client sends requests that are refused, one after the other.
    Penalised,
    /// It has not had a whole request yet.
    Fresh,
    /// It waits for its next request.
    Idle,
    /// Its client has not read for [`STALLED`].
    Stalled,
}

impl Handle {
    pub fn new() -> Arc<Self> {
        Arc::new(Handle {
            busy: Arc::default(),
            leave: Notify::new(),
            fault: Mutex::default(),
            last: AtomicBool::new(false),
            since: Instant::now(),
            served: AtomicBool::new(false),
            refused: AtomicU32::new(0),
            penalised: AtomicBool::new(false),
            stalled: AtomicU64::new(0),
        })
    }

    /// How readily this connection can be closed to make room; `None` while its request is being
    /// served.
    pub fn rank(&self) -> Option<Rank> {
        let stalled = || {
            let at = self.stalled.load(Ordering::Relaxed);
            at > 0 && self.since.elapsed() > Duration::from_millis(at) + STALLED
        };
        if self.penalised.load(Ordering::Relaxed) {
            Some(Rank::Penalised)
        } else if !self.busy.is_busy() {
            Some(if self.served.load(Ordering::Relaxed) {
                Rank::Idle
            } else {
                Rank::Fresh
            })
        } else {
            stalled().then_some(Rank::Stalled)
        }
    }

    /// Delays the answers to a client that is refused again and again, or that sends only requests
    /// which the sidecar answers itself.
    async fn temper(&self, shared: &SidecarState, response: &Response<ResponseBody>) {
        self.served.store(true, Ordering::Relaxed);
        if !response.body().is_local() {
            self.refused.store(0, Ordering::Relaxed);
            return;
        }
        let in_a_row = match response.status().is_success() {
            // A probe says nothing about the client, but has its rate.
            true => self.refused.load(Ordering::Relaxed),
            false => self.refused.fetch_add(1, Ordering::Relaxed),
        };
        if in_a_row < REFUSED_IN_A_ROW && shared.refusal_rate.check().is_ok() {
            return;
        }
        self.penalised.store(true, Ordering::Relaxed);
        tokio::time::sleep(PENALTY).await;
        self.penalised.store(false, Ordering::Relaxed);
    }

    fn note(&self, headers: &HeaderMap) {
        if headers
            .get(CONNECTION)
            .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"close"))
        {
            self.last.store(true, Ordering::Release);
        }
    }
}

/// Serves the connection to its end.
pub async fn serve(
    shared: Arc<SidecarState>,
    stream: TcpStream,
    handle: Arc<Handle>,
    mut stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let strict = StrictFraming::new(stream, handle.clone());
    let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
        let busy = InFlightGuard::new(&handle.busy, &shared);
        handle.note(request.headers());
        let handle = handle.clone();
        let (answer, shared) = (proxy::serve(shared.clone(), request, busy), shared.clone());
        Box::pin(async move {
            let response = answer.await?;
            handle.temper(&shared, &response).await;
            handle.note(response.headers());
            Ok::<_, proxy::Unserved>(response)
        })
    });
    let mut connection = http1::Builder::new()
        .max_buf_size(READ_BUFFER)
        .serve_connection(TokioIo::new(strict), service);
    let mut stopping = *stop.borrow();
    loop {
        if stopping {
            Pin::new(&mut connection).graceful_shutdown();
        }
        tokio::select! {
            end = poll_fn(|cx| connection.poll_without_shutdown(cx)) => {
                if let Err(e) = end {
                    tracing::debug!(error = %e, "connection");
                }
                break;
            }
            _ = stop.changed(), if !stopping => stopping = true,
            () = handle.leave.notified() => return,
        }
    }
    let mut io = connection.into_parts().io.into_inner().io;
    let fault = lock(&handle.fault).take();
    let end = async {
        if let Some((fault, line)) = fault.filter(|_| !handle.last.load(Ordering::Acquire)) {
            let _ = tokio::time::timeout(LINGER_TIME, refuse(&shared, &mut io, fault, &line)).await;
        }
        linger(io).await;
    };
    tokio::select! {
        () = end => {}
        () = handle.leave.notified() => {}
    }
}

/// Answers a head that is no request.
async fn refuse(
    shared: &Arc<SidecarState>,
    io: &mut TcpStream,
    fault: Fault,
    line: &str,
) -> io::Result<()> {
    let mut entry = shared.audit.entry();
    let policy = shared.policy.load_full();
    entry.record.policy_revision = Some(policy.revision.clone());
    let mut refusal = Refusal::new(Code::BadRequest, fault.what).cause(line);
    refusal.status = Some(fault.status);
    let path = line.split(' ').nth(1).unwrap_or_default();
    let response = proxy::refused(
        &mut entry,
        &refusal,
        route::error_format(&policy, path),
        Client::Other,
    );
    drop(entry);
    io.write_all(&serialize(response).await).await
}

async fn serialize(response: Response<http_body_util::Full<Bytes>>) -> Vec<u8> {
    let (parts, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(never) => match never {},
    };
    let mut out = format!(
        "HTTP/1.1 {} {}\r\n",
        parts.status.as_u16(),
        parts.status.canonical_reason().unwrap_or("Refused")
    )
    .into_bytes();
    for (name, value) in &parts.headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    out.extend_from_slice(&body);
    out
}

/// Closes so that the client gets to read what it was told: closing a socket with unread
/// bytes resets it, and the answer with it.
async fn linger(mut io: TcpStream) {
    if io.shutdown().await.is_err() {
        return;
    }
    let mut waste = [0u8; 4096];
    let mut total = 0;
    let until = tokio::time::Instant::now() + LINGER_TIME;
    while total < LINGER_BYTES {
        match tokio::time::timeout_at(until, io.read(&mut waste)).await {
            Ok(Ok(n)) if n > 0 => total += n,
            _ => return,
        }
    }
}

impl StrictFraming {
    /// A bad head came behind a request that is still being served: hyper must not take the
    /// end for the client's going away, but the client may really go. What it sends is waste.
    fn after_the_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waste = [0; 1024];
        self.handle.busy.wake_after(cx.waker());
        while self.handle.busy.is_busy() {
            let mut buf = ReadBuf::new(&mut waste);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match result {
            Poll::Pending if self.expired(cx, WRITE_STALL) => {
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Pending => {
                if self.handle.stalled.load(Ordering::Relaxed) == 0 {
                    self.handle.stalled.store(
                        (self.handle.since.elapsed().as_millis() as u64).max(1),
                        Ordering::Relaxed,
                    );
                }
                Poll::Pending
            }
            ready => {
                self.handle.stalled.store(0, Ordering::Relaxed);
                self.last = Instant::now();
                ready
            }
        }
    }
}
