//! Step 2 of a request: which provider, which of its listed endpoints.
//!
//! Invariants:
//! - Default deny: what the provider's table does not list does not exist.
//! - The client's path and query are matched, never forwarded: `sign` writes new ones from
//!   what is held here.
//! - A percent sign means something in a model segment only, where it is decoded once.

mod refuse;

pub use self::refuse::error_format;

use std::sync::Arc;

use hyper::Method;
use hyper::http::request::Parts;

use self::refuse::{allowed, not_offered, unknown};
use crate::sidecar::id;
use crate::sidecar::policy::{Policy, ProviderConfig};
use crate::sidecar::provider::registry::PROVIDERS;
use crate::sidecar::provider::{Endpoint, Provider, Verb, registry};
use crate::sidecar::record::{AuditRecord, Describe};
use crate::sidecar::refusal::{Code, Refusal};
use crate::sidecar::steps::guard::Guarded;

#[derive(Debug)]
pub enum RouteTarget {
    /// A look whether anybody is here (`HEAD /`): answered by us.
    Probe(Option<String>),
    /// A client's own telemetry: taken and thrown away, since a refusal makes it complain.
    Discard(Option<String>),
    Call(Routed),
}

/// Proof that a request leads to an endpoint that is offered: the endpoint, and what the request
/// line said beyond it.
#[derive(Debug)]
pub struct Routed {
    provider: String,
    /// The provider's name in metrics.
    label: Option<&'static str>,
    endpoint: &'static Endpoint,
    model: Option<String>,
    query: String,
}

impl Describe for Routed {
    fn describe(&self, record: &mut AuditRecord) {
        record.labels.provider = self.label;
        record.provider = Some(self.provider.clone());
        record.endpoint = Some(self.endpoint.name);
        record.model_requested = self.model.clone();
    }
}

impl Routed {
    pub fn provider(&self) -> &str {
        &self.provider
    }

    pub fn endpoint(&self) -> &'static Endpoint {
        self.endpoint
    }

    /// The model that the path names, decoded.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// The query to send, `?` included; empty where there is none.
    pub fn query(&self) -> &str {
        &self.query
    }
}

/// # Errors
/// `unknown_provider`, `route_denied`, `bad_request`.
pub fn resolve(policy: &Policy, parts: &Parts, _: &Guarded) -> Result<RouteTarget, Refusal> {
    let path = parts.uri.path();
    check_path(path)?;
    let segments: Vec<&str> = path[1..].split('/').collect();
    if matches!(parts.method, Method::GET | Method::HEAD) && segments.len() == 1 {
        if path == "/" {
            return Ok(RouteTarget::Probe(None));
        }
        if let Some((name, _)) = known(policy, segments[0]) {
            return Ok(RouteTarget::Probe(Some(name.to_owned())));
        }
    }
    if let Some(target) = aside(policy, parts, &segments) {
        return Ok(target);
    }
    let verb = match parts.method {
        Method::GET => Verb::Get,
        Method::POST => Verb::Post,
        _ => return Err(not_offered(path, parts, None)),
    };
    let (provider, endpoint, model) = endpoint_of(policy, parts, verb, &segments)?;
    if let Some(m) = model.as_deref().filter(|m| !id::is_id(m)) {
        return Err(Refusal::new(
            Code::BadRequest,
            format!("`{}` is not a model id", m.escape_debug()),
        ));
    }
    let query = query(endpoint, parts.uri.query().unwrap_or_default())?;
    let label = policy.providers.get(&provider).map(|p| p.label);
    Ok(RouteTarget::Call(Routed {
        provider,
        label,
        endpoint,
        model,
        query,
    }))
}

/// An endpoint, with the provider's name and the model that the path names.
type Found = (String, &'static Endpoint, Option<String>);

fn endpoint_of(
    policy: &Policy,
    parts: &Parts,
    verb: Verb,
    segments: &[&str],
) -> Result<Found, Refusal> {
    let path = parts.uri.path();
    // `/compat/<name>/…` is another spelling of `/<name>/…`.
    let mounted = if segments[0] == "compat" && !policy.providers.contains_key("compat") {
        &segments[1..]
    } else {
        segments
    };
    if let Some((name, def)) = mounted.first().and_then(|m| known(policy, m)) {
        let config = policy.providers.get(name);
        let base = base_path(config, def);
        let mut offered = def.endpoints.iter().filter(|e| offers(config, e));
        let found = offered.find_map(|e| Some((e, behind_mount(e, verb, &mounted[1..], base)?)));
        return match found {
            Some((endpoint, model)) => Ok((name.to_owned(), endpoint, model)),
            None => Err(not_offered(path, parts, Some(def))),
        };
    }
    let bare = |def: &&'static Provider| {
        let config = policy.providers.get(def.kind);
        let named = |e: &&Endpoint| {
            offers(config, e) && e.bare_needs.is_none_or(|h| parts.headers.contains_key(h))
        };
        let mut named = def.endpoints.iter().filter(named);
        let (endpoint, model) = named.find_map(|e| {
            let model = e.bare.iter().find_map(|t| matches(t, e, verb, segments))?;
            Some((e, model))
        })?;
        Some((def.kind.to_owned(), endpoint, model))
    };
    let found = PROVIDERS.iter().find_map(bare);
    found.ok_or_else(|| unknown(policy, path))
}

/// Calls that Claude Code makes beside its requests: it looks whether its provider is there, and
/// sends telemetry where that is switched on.
fn aside(policy: &Policy, parts: &Parts, segments: &[&str]) -> Option<RouteTarget> {
    if !matches!(
        segments,
        [.., "api", "hello"] | [.., "v1", "metrics" | "logs" | "traces"]
    ) {
        return None;
    }
    let (mount, rest) = match known(policy, segments[0]) {
        Some((name, _)) => (Some(name.to_owned()), &segments[1..]),
        None => (None, segments),
    };
    match (&parts.method, rest) {
        (&Method::HEAD | &Method::GET, ["api", "hello"]) => Some(RouteTarget::Probe(mount)),
        (&Method::POST, rest) if is_telemetry(rest) => Some(RouteTarget::Discard(mount)),
        _ => None,
    }
}

fn is_telemetry(segments: &[&str]) -> bool {
    matches!(segments, ["v1", "metrics" | "logs" | "traces"])
}

fn offers(config: Option<&Arc<ProviderConfig>>, endpoint: &Endpoint) -> bool {
    !endpoint.optional
        || config.is_some_and(|c| c.endpoints.iter().any(|name| name == endpoint.name))
}

/// A provider by its mount: a configured one, or one that this version could speak to (so
/// that its clients are refused in a shape that they read).
fn known<'a>(policy: &'a Policy, mount: &'a str) -> Option<(&'a str, &'static Provider)> {
    match policy.providers.get(mount) {
        Some(config) => Some((mount, config.def)),
        None => registry::find(mount)
            .filter(|p| p.base_url.is_some())
            .map(|p| (mount, p)),
    }
}

fn base_path<'a>(config: Option<&'a Arc<ProviderConfig>>, def: &'static Provider) -> &'a str {
    match config {
        Some(config) => &config.base.path,
        None => def
            .base_url
            .and_then(|u| u.splitn(4, '/').nth(3))
            .unwrap_or_default(),
    }
}

/// Behind the mount stands one of the endpoint's own paths, or the provider's real one.
fn behind_mount(
    endpoint: &Endpoint,
    verb: Verb,
    rel: &[&str],
    base: &str,
) -> Option<Option<String>> {
    let own = endpoint
        .paths
        .iter()
        .find_map(|t| matches(t, endpoint, verb, rel));
    own.or_else(|| {
        let prefix: Vec<&str> = base.split('/').filter(|s| !s.is_empty()).collect();
        let rest = rel
            .strip_prefix(prefix.as_slice())
            .filter(|_| !prefix.is_empty())?;
        matches(endpoint.upstream, endpoint, verb, rest)
    })
}

/// `Some(model)` if the segments are those of the template.
fn matches(
    template: &str,
    endpoint: &Endpoint,
    verb: Verb,
    segments: &[&str],
) -> Option<Option<String>> {
    if endpoint.method != verb {
        return None;
    }
    let mut model = None;
    let mut parts = template.split('/');
    for segment in segments {
        let part = parts.next()?;
        match part.strip_prefix("{model}") {
            None if part == "{id}" => model = Some(decode_once(segment)?),
            None if part == *segment => {}
            None => return None,
            Some(suffix) => model = Some(model_segment(segment, suffix)?),
        }
    }
    parts.next().is_none().then_some(model)
}

/// Decodes a segment once and takes `:verb` off its end. The model holds no colon and no
/// slash, so that nobody can find another verb in it.
fn model_segment(segment: &str, verb: &str) -> Option<String> {
    let decoded = decode_once(segment)?;
    let model = decoded.strip_suffix(verb)?;
    (!model.contains([':', '/'])).then(|| model.to_owned())
}

fn decode_once(segment: &str) -> Option<String> {
    let mut out = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digit = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16));
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            out.push((high << 4 | low) as u8);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok().filter(|s| !s.contains('%'))
}

fn check_path(path: &str) -> Result<(), Refusal> {
    let odd = path.bytes().find(|&b| !(id::is_id_byte(b) || b == b'%'));
    if let Some(b) = odd {
        return Err(Refusal::new(
            Code::BadRequest,
            format!(
                "byte `{}` has no place in a path of this proxy",
                [b].escape_ascii()
            ),
        ));
    }
    let dots = |s: &str| {
        matches!(s, "." | "..")
            || s.contains('%')
                && decode_once(s).is_some_and(|d| {
                    d == "." || d == ".." || d.contains("../") || d.contains("/..")
                })
    };
    if path.split('/').any(dots) {
        return Err(Refusal::new(
            Code::BadRequest,
            "dot segments have no place in a path of this proxy",
        ));
    }
    Ok(())
}

fn query(endpoint: &Endpoint, query: &str) -> Result<String, Refusal> {
    let mut kept = String::new();
    let mut seen: Vec<&str> = Vec::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let refuse = |why: &str| {
            Err(Refusal::new(
                Code::BadRequest,
                format!(
                    "query `{}` {why}; allowed: {}",
                    pair.escape_debug(),
                    allowed(endpoint)
                ),
            ))
        };
        if seen.contains(&key) {
            return refuse("stands twice");
        }
        seen.push(key);
        if endpoint.query_credentials.contains(&key) {
            continue;
        }
        let whole = endpoint.query.contains(&pair);
        if !whole && !endpoint.query.contains(&key) {
            return refuse("is not offered here");
        }
        if !whole
            && !value
                .bytes()
                .all(|b| id::is_id_byte(b) || b"%=,".contains(&b))
        {
            return refuse("holds a character that needs no place there");
        }
        kept.push(if kept.is_empty() { '?' } else { '&' });
        kept.push_str(pair);
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_decoded_once() {
        assert_eq!(
            model_segment("gemini-2.5-pro:generateContent", ":generateContent").as_deref(),
            Some("gemini-2.5-pro")
        );
        assert_eq!(
            model_segment("gemini-2.5-pro%3AgenerateContent", ":generateContent").as_deref(),
            Some("gemini-2.5-pro")
        );
        let cases = [
            "m:generateContent:streamGenerateContent",
            "a%252fb:streamGenerateContent",
            "m%ZZ:streamGenerateContent",
            "a%2Fb:streamGenerateContent",
            "%ff:streamGenerateContent",
        ];
        for bad in cases {
            assert_eq!(model_segment(bad, ":streamGenerateContent"), None, "{bad}");
        }
    }
}
