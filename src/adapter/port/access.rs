//! What both ports share: who may use them, how they answer, and how one connection is served.
//!
//! A request is served only if its `Host` is one of ours (against DNS rebinding) and its `Origin`
//! is configured or, on the port that serves the console, is that of the page (against CSRF). A
//! body must be JSON. Where tokens are configured, the request must present one: there is a token
//! to read and another to write.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW,
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN, RETRY_AFTER,
    VARY, WWW_AUTHENTICATE,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::adapter::config::ports::AccessPolicy;
use crate::adapter::port::timeout::WriteTimeout;
use crate::base::token::{Attempts, bearer};

pub type PortResponse = Response<BoxBody<Bytes, Infallible>>;

/// A head must be whole within this time.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// hyper's smallest.
const READ_BUFFER: usize = 8 << 10;

/// An answer that says what went wrong (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestError {
    pub status: u16,
    /// Stable and public.
    pub code: &'static str,
    pub detail: String,
    pub hint: Option<&'static str>,
}

impl RequestError {
    pub fn new(status: u16, code: &'static str, detail: impl Into<String>) -> Self {
        RequestError {
            status,
            code,
            detail: detail.into(),
            hint: None,
        }
    }

    pub fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    pub fn answer(&self) -> PortResponse {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut body = json!({ "type": "about:blank", "title": status.canonical_reason(), "status": self.status, "code": self.code, "detail": self.detail });
        if let Some(hint) = self.hint {
            body["hint"] = hint.into();
        }
        let mut answer = full(status, "application/problem+json", body.to_string());
        let headers = answer.headers_mut();
        match self.status {
            401 => _ = headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            429 | 503 => _ = headers.insert(RETRY_AFTER, HeaderValue::from_static("1")),
            _ => {}
        }
        answer
    }
}

pub fn full(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> PortResponse {
    let mut answer = Response::new(Full::new(body.into()).boxed());
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

pub fn json_answer(status: u16, body: &Value) -> PortResponse {
    full(
        StatusCode::from_u16(status).unwrap_or_default(),
        "application/json",
        body.to_string(),
    )
}

pub fn not_allowed(allowed: &'static str) -> PortResponse {
    let mut answer = RequestError::new(
        405,
        "method_denied",
        format!("only `{allowed}` is offered here"),
    )
    .answer();
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// What a route lets its caller do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The route tells nothing about the session.
    Open,
    Read,
    Write,
}

/// Checks the requests of one port before they are served.
#[derive(Debug)]
pub struct PortGuard {
    port: u16,
    /// The port can be reached from other machines.
    public: bool,
    /// The port serves the console, whose page may write.
    console: bool,
    attempts: Attempts,
}

impl PortGuard {
    pub fn new(address: SocketAddr, console: bool) -> Self {
        PortGuard {
            port: address.port(),
            public: !address.ip().is_loopback(),
            console,
            attempts: Attempts::default(),
        }
    }

    /// # Errors
    /// `host_denied`, `origin_denied`, `unauthorized`, `rate_limited`.
    pub fn check(
        &self,
        policy: &AccessPolicy,
        headers: &HeaderMap,
        access: Access,
    ) -> Result<(), RequestError> {
        let text = |name| headers.get(name).map(|v| v.as_bytes()).unwrap_or_default();
        let host = text(HOST.as_str());
        if headers.get_all(HOST).iter().count() != 1 || !self.is_ours(policy, host) {
            return Err(RequestError::new(
                403,
                "host_denied",
                format!("host `{}` is not this port", host.escape_ascii()),
            )
            .hint("name it in `listen.hosts` if it is yours"));
        }
        self.check_origin(policy, headers, host, access)?;
        let token = match access {
            Access::Open => return Ok(()),
            Access::Read => &policy.read,
            Access::Write => &policy.write,
        };
        let Some(token) = token else { return Ok(()) };
        if bearer(text(AUTHORIZATION.as_str())).is_some_and(|presented| token.is(presented)) {
            return Ok(());
        }
        if self.attempts.are_too_many() {
            return Err(RequestError::new(
                429,
                "rate_limited",
                "too many requests without the right token",
            ));
        }
        let which = if access == Access::Read {
            "read"
        } else {
            "write"
        };
        Err(RequestError::new(
            401,
            "unauthorized",
            format!("the {which} token is missing or wrong"),
        )
        .hint("send it as `Authorization: Bearer …`"))
    }

    fn check_origin(
        &self,
        policy: &AccessPolicy,
        headers: &HeaderMap,
        host: &[u8],
        access: Access,
    ) -> Result<(), RequestError> {
        let configured = headers.get(ORIGIN).is_some_and(|o| policy.allows_origin(o));
        let origin = headers.get(ORIGIN).map(|v| v.as_bytes());
        let own = self.console
            && origin
                .and_then(|o| o.strip_prefix(b"http://"))
                .is_some_and(|o| o.eq_ignore_ascii_case(host));
        let site = headers.get("sec-fetch-site").map(|v| v.as_bytes());
        // A link to the console is followed from anywhere; it cannot be framed.
        let followed = access == Access::Open
            && headers
                .get("sec-fetch-dest")
                .is_some_and(|d| d == "document");
        let elsewhere = matches!(site, Some(b"cross-site" | b"same-site")) && !followed;
        match origin {
            Some(_) if configured || own => Ok(()),
            None if !elsewhere => Ok(()),
            _ => Err(RequestError::new(
                403,
                "origin_denied",
                format!(
                    "pages of `{}` are not served",
                    origin.unwrap_or(b"another site").escape_ascii()
                ),
            )
            .hint("name the origin in `listen.origins` if it is yours")),
        }
    }

    fn is_ours(&self, policy: &AccessPolicy, host: &[u8]) -> bool {
        let Ok(host) = std::str::from_utf8(host) else {
            return false;
        };
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port.parse::<u16>().ok()),
            _ => (host, Some(80)),
        };
        if policy.hosts.iter().any(|h| h.eq_ignore_ascii_case(name)) {
            return true;
        }
        let address = name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>();
        // A name can be made to point here; an address cannot. What is public asks for a token.
        let named = ["localhost", "127.0.0.1", "[::1]"]
            .iter()
            .any(|n| n.eq_ignore_ascii_case(name));
        // Through a tunnel, loopback has another port.
        named && port.is_some() || self.public && address.is_ok() && port == Some(self.port)
    }
}

/// What a browser asks before a configured page may send JSON.
///
/// # Errors
/// Nobody else has a reason to ask.
pub fn preflight(policy: &AccessPolicy, headers: &HeaderMap) -> Result<PortResponse, RequestError> {
    if !headers.get(ORIGIN).is_some_and(|o| policy.allows_origin(o)) {
        return Err(RequestError::new(
            405,
            "method_denied",
            "`OPTIONS` is for pages whose origin is configured",
        ));
    }
    let mut answer = full(StatusCode::NO_CONTENT, "text/plain", "");
    answer.headers_mut().insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, DELETE"),
    );
    answer.headers_mut().insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("authorization, content-type, idempotency-key, last-event-id"),
    );
    Ok(answer)
}

/// What a route answers, as it is sent: also to a configured page.
pub async fn answer<F>(policy: &AccessPolicy, origin: Option<HeaderValue>, route: F) -> PortResponse
where
    F: Future<Output = Result<PortResponse, RequestError>>,
{
    let mut answer = route.await.unwrap_or_else(|problem| problem.answer());
    let headers = answer.headers_mut();
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        "cross-origin-resource-policy",
        HeaderValue::from_static("same-origin"),
    );
    if let Some(origin) = origin.filter(|o| policy.allows_origin(o)) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(VARY, HeaderValue::from_static("Origin"));
    }
    answer
}

/// Serves one connection to its end.
pub async fn serve<S, F>(stream: TcpStream, service: S, mut stop: watch::Receiver<bool>)
where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = PortResponse>,
{
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(|request| {
        let answer = service(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = TokioIo::new(WriteTimeout {
        stream,
        stalled: None,
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    let connection = server
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(READ_BUFFER)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let stopping = async {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    tokio::select! {
        end = connection.as_mut() => if let Err(e) = end { tracing::debug!(error = %e, "connection") },
        () = stopping => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
