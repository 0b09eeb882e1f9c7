//! Step 8 of a request: to the provider and back, once.
//!
//! Invariants:
//! - Only a [`Signed`] is sent, and it is sent once: a pooled connection that turns
//!   out dead before a byte of the request left it is replaced, nothing else is repeated.
//! - Nothing is followed, upgraded or taken for a reply that is none.
//! - A provider's public name that leads into a private network is not dialled: the pod's
//!   DNS and `/etc/hosts` are the agent's to forge. TLS proves the rest.
//! - Each request in flight has a connection of its own (HTTP/1.1), so that no client can hold
//!   up another by not reading, and no provider's limit on streams makes a request wait.
//! - No thread is made after start: the agent may have used up the pod's.

mod address;
mod connect;
mod error;
mod resolve;
mod tls;

use std::error::Error as StdError;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::{Response, StatusCode};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::oneshot;

use crate::base::sync::lock;
use crate::sidecar::config::Timeouts;
use crate::sidecar::refusal::{Code, Refusal};
use crate::sidecar::steps::body::READ_BUFFER;
use crate::sidecar::steps::body::buffered::BufferedBodyStream;
use crate::sidecar::steps::sign::Signed;
use crate::sidecar::steps::upstream::connect::Connector;
use crate::sidecar::steps::upstream::error::ConnectError;
use crate::sidecar::steps::upstream::resolve::Resolver;
use crate::sidecar::steps::upstream::tls::{Tls, extra_roots};

/// Interim responses (1xx) before the real one.
const MAX_INTERIM: u32 = 16;

#[derive(Debug)]
pub struct Upstream {
    /// For providers' public addresses.
    public: Client<Connector, BufferedBodyStream>,
    /// For addresses that the operator wrote.
    operator_defined: Client<Connector, BufferedBodyStream>,
    first_byte: Duration,
}

impl Upstream {
    /// # Errors
    /// When the operator's CA file holds no certificate.
    pub fn new(timeouts: &Timeouts, ca_file: Option<&Path>) -> Result<Upstream, String> {
        let tls = Arc::new(Tls {
            extra: extra_roots(ca_file)?,
            config: OnceLock::new(),
        });
        let names = Arc::new(Resolver::start()?);
        let client = |public| {
            let connector = Connector {
                tls: tls.clone(),
                names: names.clone(),
                public,
                timeout: timeouts.connect,
            };
            Client::builder(TokioExecutor::new())
                .pool_idle_timeout(Duration::from_secs(30)) // below every provider's load balancer
                .pool_max_idle_per_host(32)
                .pool_timer(TokioTimer::new())
                .timer(TokioTimer::new())
                // Replies are read as they come, in small pieces; hyper's own default grows to 400
                // KiB.
                .http1_max_buf_size(READ_BUFFER)
                .build(connector)
        };
        Ok(Upstream {
            public: client(true),
            operator_defined: client(false),
            first_byte: timeouts.first_byte,
        })
    }

    /// Sends the request and waits for the head of the reply.
    ///
    /// # Errors
    /// `upstream_*`, with the cause for the log.
    pub async fn send(&self, signed: Signed) -> Result<Response<Incoming>, Refusal> {
        let client = if signed.may_dial_private() {
            &self.operator_defined
        } else {
            &self.public
        };
        let mut request = signed.into_request();
        let interim = Arc::new(AtomicU32::new(0));
        let (too_many, flood) = oneshot::channel();
        let too_many = Mutex::new(Some(too_many));
        hyper::ext::on_informational(&mut request, move |_| {
            if interim.fetch_add(1, Ordering::Relaxed) == MAX_INTERIM
                && let Some(tx) = lock(&too_many).take()
            {
                let _ = tx.send(());
            }
        });
        let reply = async {
            tokio::select! {
                biased;
                reply = client.request(request) => reply.map_err(|e| if e.is_connect() { refusal(&e) } else { refusal(&e).worked_on() }),
                Ok(()) = flood => Err(invalid("more than 16 interim responses").worked_on()),
            }
        };
        let response = tokio::time::timeout(self.first_byte, reply)
            .await
            .map_err(|_| {
                Refusal::new(
                    Code::UpstreamTimeout,
                    format!(
                        "the provider did not begin to answer within {} s",
                        self.first_byte.as_secs()
                    ),
                )
                .worked_on()
            })??;
        check(response).map_err(Refusal::worked_on)
    }
}

/// Takes a reply for one, or not.
fn check(response: Response<Incoming>) -> Result<Response<Incoming>, Refusal> {
    let status = response.status();
    if status.is_redirection() {
        return Err(Refusal::new(
            Code::UpstreamRedirect,
            format!(
                "the provider answered with a redirect ({}), which is never followed",
                status.as_u16()
            ),
        )
        .hint("ask an operator to check the provider's `baseUrl`"));
    }
    if status.is_informational() || status.as_u16() > 599 {
        return Err(invalid(&format!("status {}", status.as_u16())));
    }
    let headers = response.headers();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    let framed_once = coding.is_none_or(|c| {
        c.as_bytes().eq_ignore_ascii_case(b"chunked") && !headers.contains_key(CONTENT_LENGTH)
    });
    if codings.next().is_some() || !framed_once {
        return Err(invalid("ambiguous framing of the reply"));
    }
    Ok(response)
}

fn invalid(what: &str) -> Refusal {
    Refusal::new(
        Code::UpstreamInvalid,
        "the provider's answer is not HTTP as it should be",
    )
    .cause(what)
}

fn refusal(e: &ClientError) -> Refusal {
    let mut source: Option<&(dyn StdError + 'static)> = Some(e);
    let mut chain = String::new();
    let mut found: Option<&ConnectError> = None;
    let mut http: Option<&hyper::Error> = None;
    while let Some(s) = source {
        if !chain.is_empty() {
            chain.push_str(": ");
        }
        chain.push_str(&s.to_string());
        found = found.or_else(|| s.downcast_ref());
        http = http.or_else(|| s.downcast_ref());
        source = s.source();
    }
    let refusal = match found {
        Some(ConnectError::Timeout) => Refusal::new(
            Code::UpstreamTimeout,
            "the provider could not be reached in time",
        ),
        Some(ConnectError::Tls(_)) => Refusal::new(
            Code::UpstreamTls,
            "the provider could not prove who it is (TLS)",
        )
        .hint("ask an operator to check the provider's `baseUrl` and `tls.caFile`"),
        Some(ConnectError::Private(_)) => Refusal::new(
            Code::UpstreamUnreachable,
            "the provider's name leads into a private network, which is not dialled",
        )
        .hint("ask an operator to set the provider's `baseUrl` if that is meant"),
        Some(_) => Refusal::new(
            Code::UpstreamUnreachable,
            "the provider could not be reached",
        ),
        None if http.is_some_and(|h| h.is_parse() || h.is_parse_too_large()) => {
            return invalid(&chain);
        }
        None => Refusal::new(
            Code::UpstreamUnreachable,
            "the connection to the provider broke before it answered",
        ),
    };
    refusal.cause(chain)
}

/// Is this an answer that says our key is no good?
pub fn refuses_key(status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED
}
