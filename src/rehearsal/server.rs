//! The rehearsal's port: HTTP in, the script's steps out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Sleep;

use super::{APIS, Api, Ask, MODELS, Wanted, tokens};
use crate::base::sync::lock;
use crate::rehearsal::reply::{ScriptedReply, Step};
use crate::rehearsal::script::Script;

const MAX_BODY: usize = 64 << 20;

/// A running rehearsal.
#[derive(Debug)]
pub struct Rehearsal {
    pub addr: SocketAddr,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Rehearsal {
    /// Serves the script. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the port or the log file cannot be opened.
    pub async fn start(
        listen: SocketAddr,
        script: Script,
        log: Option<&Path>,
    ) -> io::Result<Rehearsal> {
        let listener = TcpListener::bind(listen).await?;
        let addr = listener.local_addr()?;
        let log = log
            .map(|p| {
                std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(p)
            })
            .transpose()?;
        let stage = Arc::new(Stage {
            script,
            log: Mutex::new(log),
        });
        let (stop, stopping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, stage, stopping));
        Ok(Rehearsal { addr, stop, tasks })
    }

    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

#[derive(Debug)]
struct Stage {
    script: Script,
    log: Mutex<Option<std::fs::File>>,
}

async fn accept(listener: TcpListener, stage: Arc<Stage>, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let stage = stage.clone();
                connections.spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let stage = stage.clone();
                        async move { Ok::<_, Infallible>(serve(&stage, request).await) }
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = stop.changed() => break,
        }
    }
    connections.shutdown().await;
}

async fn serve(stage: &Stage, request: Request<Incoming>) -> Response<Played> {
    let (parts, body) = request.into_parts();
    let method = parts.method.as_str();
    let path = parts.uri.path();
    let offers = |api: &'static Api| Some((api, (api.route)(method, path)?));
    // Anthropic and OpenAI list models at the same path: a header tells their clients apart.
    let is_meant = |(api, wanted): &(&'static Api, Wanted)| {
        *wanted != Wanted::Models || api.header.is_none_or(|h| parts.headers.contains_key(h))
    };
    let Some((api, wanted)) = APIS.iter().copied().filter_map(offers).find(is_meant) else {
        stage.note(&json!({ "method": method, "path": path, "status": 404 }));
        return whole(
            404,
            &json!({ "error": { "message": format!("the rehearsal does not offer `{method} {path}`") } }),
        );
    };
    let bytes = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return whole(400, &(api.error)(400, "the request body could not be read")),
    };
    let decoded = if parts
        .headers
        .get(CONTENT_ENCODING)
        .is_some_and(|v| v == "zstd")
    {
        zstd::decode_all(bytes.as_ref()).unwrap_or_default()
    } else {
        bytes.to_vec()
    };
    let body: Value = serde_json::from_slice(&decoded).unwrap_or_default();
    if wanted != Wanted::Models && !body.is_object() {
        return whole(
            400,
            &(api.error)(400, "the request body is not a JSON object"),
        );
    }
    let mut ask = (api.read)(path, &body);
    if let Some(model) = body["model"].as_str() {
        ask.model = model.to_owned();
    }
    ask.bytes = decoded.len();
    let (response, status, events) = answer(stage, api, &wanted, &ask);
    stage.note(&json!({ "method": method, "path": path, "model": ask.model, "stream": ask.stream, "status": status, "events": events, "tools": ask.tools.len(), "after_tool": ask.tool_output.is_some() }));
    response
}

fn answer(stage: &Stage, api: &Api, wanted: &Wanted, ask: &Ask) -> (Response<Played>, u16, usize) {
    let kind = match wanted {
        Wanted::Count(field) => return (whole(200, &json!({ *field: tokens(ask.bytes) })), 200, 0),
        Wanted::Models => return (whole(200, &(api.models)(&MODELS)), 200, 0),
        Wanted::Inference(kind) => kind,
    };
    match stage.script.next(ask) {
        Step::Error(failure) => {
            let mut response = whole(
                failure.status,
                &(api.error)(failure.status, &failure.message),
            );
            if let Some(after) = failure.retry_after {
                response
                    .headers_mut()
                    .insert(RETRY_AFTER, HeaderValue::from(after));
            }
            (response, failure.status, 0)
        }
        Step::Reply(reply) if ask.stream => {
            let events = (api.events)(ask, &reply, kind);
            let count = events.len();
            let mut response = Response::new(Played::stream(events, &reply));
            response.headers_mut().insert(
                CONTENT_TYPE,
                HeaderValue::from_static("text/event-stream; charset=utf-8"),
            );
            (response, 200, count)
        }
        Step::Reply(reply) => (whole(200, &(api.reply)(ask, &reply, kind)), 200, 0),
    }
}

impl Stage {
    fn note(&self, line: &Value) {
        if let Some(file) = lock(&self.log).as_mut() {
            let _ = writeln!(file, "{line}");
        }
    }
}

fn whole(status: u16, body: &Value) -> Response<Played> {
    let mut response = Response::new(Played {
        events: [body.to_string()].into(),
        delay: Duration::ZERO,
        sleep: None,
        sent: 0,
        cut_after: None,
        stall_after: None,
        flushed: None,
    });
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A body that is sent piece by piece, at its pace, and may break off.
#[derive(Debug)]
struct Played {
    events: VecDeque<String>,
    delay: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    sent: usize,
    cut_after: Option<usize>,
    stall_after: Option<usize>,
    /// Before a cut, what was sent gets the time to arrive.
    flushed: Option<Pin<Box<Sleep>>>,
}

/// An error ends the connection at once, also for what has not been written yet.
const BEFORE_A_CUT: Duration = Duration::from_millis(20);

impl Played {
    fn stream(events: Vec<String>, reply: &ScriptedReply) -> Self {
        Played {
            events: events.into(),
            delay: reply.delay,
            sleep: None,
            sent: 0,
            cut_after: reply.cut_after,
            stall_after: reply.stall_after,
            flushed: None,
        }
    }
}

impl Body for Played {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.cut_after.is_some_and(|n| self.sent >= n) {
            let flushed = self
                .flushed
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(BEFORE_A_CUT)));
            std::task::ready!(flushed.as_mut().poll(cx));
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
        }
        if self.stall_after.is_some_and(|n| self.sent >= n) {
            return Poll::Pending; // until the client goes
        }
        if self.events.is_empty() {
            return Poll::Ready(None);
        }
        if !self.delay.is_zero() {
            let delay = self.delay;
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(delay)));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.sleep = None;
        }
        self.sent += 1;
        Poll::Ready(self.events.pop_front().map(|e| Ok(Frame::data(e.into()))))
    }
}
