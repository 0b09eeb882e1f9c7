//! Step 1 of a request: who may talk to this port at all.
//!
//! A web page must not (DNS rebinding, CSRF): the `Host` must be one of ours, there is no
//! `Origin`, and a body is JSON by its content type. Framing was checked before, on the wire
//! (`base::framing`). `Sec-Fetch-Mode` alone is what Node's `fetch` sends, and no reason.

use std::time::Duration;

use hyper::Method;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, ORIGIN, UPGRADE};
use hyper::http::request::Parts;

use crate::base::token::{Attempts, Token, bearer};
use crate::sidecar::refusal::{Code, Refusal};

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Proof that a request came from a client and not from a page.
#[derive(Debug)]
pub struct Guarded(());

/// What stands in front of this port.
#[derive(Debug)]
pub struct CallerPolicy {
    /// What `Host` may say.
    hosts: Vec<String>,
    /// What clients present as their key, where the operator wants that.
    token: Option<Token>,
    /// How often a wrong one is looked at.
    attempts: Attempts,
}

impl CallerPolicy {
    /// `names` are allowed beside the loopback ones, all with the port that is listened on.
    pub fn new(port: u16, names: &[String], token: Option<Token>) -> Self {
        let own = ["localhost", "127.0.0.1", "[::1]"];
        let hosts = own
            .into_iter()
            .chain(names.iter().map(String::as_str))
            .map(|name| format!("{name}:{port}"))
            .collect();
        CallerPolicy {
            hosts,
            token,
            attempts: Attempts::default(),
        }
    }

    fn allows(&self, host: &[u8]) -> bool {
        self.hosts
            .iter()
            .any(|h| h.as_bytes().eq_ignore_ascii_case(host))
    }

    /// Everything that a client may call its key must be the token (none stands there twice:
    /// the framing was checked).
    /// Asked before the path is looked at, so that nobody without it learns what is offered.
    fn authenticate(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        let (mut right, mut wrong) = (false, false);
        for name in ["authorization", "x-api-key", "x-goog-api-key", "api-key"] {
            if let Some(value) = headers.get(name).map(|v| v.as_bytes()) {
                let is = token.is(bearer(value).unwrap_or(value));
                right |= is;
                wrong |= !is;
            }
        }
        if right && !wrong {
            return Ok(());
        }
        if self.attempts.are_too_many() {
            let mut refusal = Refusal::new(
                Code::RateLimited,
                "too many requests without the session's token",
            );
            refusal.retry_after = Some(Duration::from_secs(1));
            return Err(refusal);
        }
        Err(Refusal::new(
            Code::Unauthorized,
            "this session's token is missing or wrong",
        )
        .hint("the token that the pod was given must be the CLI's API key"))
    }
}

/// # Errors
/// `host_denied`, `unauthorized`, `websocket_unsupported`, `unsupported_media_type`,
/// `route_denied`.
pub fn check(parts: &Parts, callers: &CallerPolicy) -> Result<Guarded, Refusal> {
    let headers = &parts.headers;
    let host = headers.get(HOST).map(|h| h.as_bytes()).unwrap_or_default();
    if !callers.allows(host) {
        return Err(Refusal::new(
            Code::HostDenied,
            format!(
                "host `{}` is not this proxy; allowed: `{}`",
                host.escape_ascii(),
                callers.hosts.join("`, `")
            ),
        ));
    }
    if let Some(origin) = headers.get(ORIGIN) {
        return Err(Refusal::new(
            Code::HostDenied,
            format!(
                "requests from web pages are not served (origin `{}`)",
                origin.as_bytes().escape_ascii()
            ),
        ));
    }
    if headers.get(&SEC_FETCH_SITE).is_some_and(|v| v != "none") {
        return Err(Refusal::new(
            Code::HostDenied,
            "requests from web pages are not served (`sec-fetch-site`)",
        ));
    }
    callers.authenticate(headers)?;
    if headers.contains_key(UPGRADE) {
        return Err(Refusal::new(
            Code::WebsocketUnsupported,
            "upgrades are not offered; use plain HTTP",
        ));
    }
    match parts.method {
        Method::GET | Method::HEAD => {}
        Method::POST if takes_any_body(parts.uri.path()) => {}
        Method::POST => json(headers)?,
        _ => {
            let mut d = Refusal::new(
                Code::RouteDenied,
                format!(
                    "method `{}` is not offered; allowed: `GET`, `HEAD`, `POST`",
                    parts.method
                ),
            );
            d.status = Some(405);
            return Err(d);
        }
    }
    Ok(Guarded(()))
}

fn json(headers: &HeaderMap) -> Result<(), Refusal> {
    let value = headers
        .get(CONTENT_TYPE)
        .map(|v| v.as_bytes())
        .unwrap_or_default();
    if value == b"application/json" {
        return Ok(());
    }
    let text = std::str::from_utf8(value)
        .unwrap_or_default()
        .to_ascii_lowercase();
    let mut parts = text.split(';').map(str::trim);
    let plain = parts.next() == Some("application/json")
        && parts.all(|p| p.is_empty() || matches!(p, "charset=utf-8" | "charset=\"utf-8\""));
    if plain {
        return Ok(());
    }
    Err(Refusal::new(
        Code::UnsupportedMediaType,
        format!(
            "content-type `{}` is not `application/json`",
            value.escape_ascii()
        ),
    ))
}

/// Is this path one of telemetry, whose body is not JSON?
fn takes_any_body(path: &str) -> bool {
    let rest = ["/v1/metrics", "/v1/logs", "/v1/traces"]
        .iter()
        .find_map(|end| path.strip_suffix(end));
    rest.is_some_and(|mount| !mount.trim_start_matches('/').contains('/'))
}
