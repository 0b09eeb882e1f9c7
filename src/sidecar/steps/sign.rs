//! Step 7 of a request: replace the client's credentials with the workspace's.
//!
//! Invariants:
//! - The upstream request is new: method, target, host and framing are ours, and of the
//!   client's headers only those listed here go along. No header that the client sent can
//!   reach the provider as a credential, an account or a route.
//! - A secret is exposed in this file only (and, to look for it, in `redact.rs`), and only
//!   into a sensitive `HeaderValue`.

use std::borrow::Cow;
use std::sync::Arc;

use hyper::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use hyper::{Method, Request, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::sidecar::credential::Store;
use crate::sidecar::credential::secret::{Secret, Source};
use crate::sidecar::provider::{Auth, Verb};
use crate::sidecar::refusal::{Code, Refusal};
use crate::sidecar::steps::body::buffered::BufferedBodyStream;
use crate::sidecar::steps::limit::Admitted;
use crate::sidecar::steps::route::Routed;
use crate::sidecar::steps::scope::Permit;

/// A request that may leave. Only this file can make one.
#[derive(Debug)]
pub struct Signed {
    request: Request<BufferedBodyStream>,
    /// The operator wrote the provider's address, so it may lead into a private network.
    may_dial_private: bool,
    secret: Option<Arc<Secret>>,
}

impl Signed {
    pub fn into_request(self) -> Request<BufferedBodyStream> {
        self.request
    }

    pub fn may_dial_private(&self) -> bool {
        self.may_dial_private
    }

    /// The key it was signed with.
    pub fn secret(&self) -> Option<&Arc<Secret>> {
        self.secret.as_ref()
    }
}

/// Whether a request may have to be signed once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyUse {
    /// The body is kept for that.
    MayRepeat,
    /// The body's memory is given back as it is sent.
    Last,
}

/// Headers of a client that go to every provider: the library's account of itself, and what
/// joins the requests of a session. In lower case; `*` ends a prefix. What a provider needs
/// beside them stands in its file.
const FORWARDED: &[&str] = &[
    "accept",
    "user-agent",
    "idempotency-key",
    "session-id",
    "session_id",
    "thread-id",
    "thread_id",
    "conversation_id",
    "x-app",
    "x-client-request-id",
    "x-session-affinity",
    "x-session-id",
    "x-stainless-*",
];
/// No header that a prefix lets through is forwarded when its name holds one of these.
const CREDENTIALS: &[&str] = &["auth", "cookie", "credential", "key", "secret", "token"];

/// # Errors
/// `secret_missing`.
pub fn sign(
    admitted: &mut Admitted,
    body: BodyUse,
    client: &HeaderMap,
    secrets: &Store,
) -> Result<Signed, Refusal> {
    let body = match body {
        BodyUse::MayRepeat => admitted.body().cloned(),
        BodyUse::Last => admitted.take_body(),
    };
    let body = body.ok_or_else(|| Refusal::new(Code::Internal, "the body was sent already"))?;
    let (route, permit) = (admitted.routed(), admitted.permit());
    let provider = permit.provider();
    let secret = match &provider.secret {
        None => None,
        Some(source) => Some(secrets.get(source).map_err(|why| {
            let (what, hint) = match source {
                Source::File { .. } => (format!("was found at `{source}`"), "ask an operator to mount the key; no restart is needed"),
                Source::Command { .. } => {
                    (format!("came from the program `{source}`"), "ask an operator for the cause, which the sidecar's log has; the program is run again")
                }
            };
            let scope = permit.scope_matched().unwrap_or("?");
            Refusal::new(Code::SecretMissing, format!("scope `{scope}` is granted, but no key for `{}` {what}", provider.name)).hint(hint).cause(why)
        })?),
    };
    let endpoint = route.endpoint();
    let mut request = Request::new(body.into_stream());
    *request.method_mut() = match endpoint.method {
        Verb::Get => Method::GET,
        Verb::Post => Method::POST,
    };
    *request.uri_mut() = target(route, permit)?;
    let headers = request.headers_mut();
    for (name, value) in client {
        if forwards(name, provider.def.forwards) {
            headers.append(name, value.clone());
        }
    }
    if let Some((name, scrub)) = provider.def.scrub_header {
        scrub_all(headers, name, scrub);
    }
    if endpoint.method == Verb::Post {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    // Replies are read for their usage and looked through for our key.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    for (name, value) in &provider.headers {
        headers.insert(*name, value.clone());
    }
    if let Some(secret) = &secret {
        let (name, prefix) = match provider.def.auth {
            Auth::Bearer | Auth::OptionalBearer => (AUTHORIZATION, "Bearer "),
            Auth::Header(name) => (HeaderName::from_static(name), ""),
        };
        headers.insert(
            name,
            secret
                .header(prefix)
                .ok_or_else(|| Refusal::new(Code::Internal, "the key cannot stand in a header"))?,
        );
    }
    Ok(Signed {
        request,
        may_dial_private: provider.base.operator_defined,
        secret,
    })
}

fn forwards(name: &HeaderName, own: &[&str]) -> bool {
    let name = name.as_str();
    let listed = FORWARDED
        .iter()
        .chain(own)
        .find(|entry| match entry.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => **entry == name,
        });
    listed
        .is_some_and(|entry| !entry.ends_with('*') || !CREDENTIALS.iter().any(|c| name.contains(c)))
}

fn scrub_all(headers: &mut HeaderMap, name: &'static str, scrub: fn(&str) -> Cow<'_, str>) {
    let values: Vec<HeaderValue> = headers.get_all(name).iter().cloned().collect();
    headers.remove(name);
    for value in values {
        let kept = match value.to_str().map(scrub) {
            Ok(Cow::Borrowed(_)) => Some(value),
            Ok(Cow::Owned(text)) if !text.is_empty() => HeaderValue::from_str(&text).ok(),
            _ => None,
        };
        if let Some(kept) = kept {
            headers.append(name, kept);
        }
    }
}

fn target(route: &Routed, permit: &Permit) -> Result<Uri, Refusal> {
    let base = &permit.provider().base;
    let upstream = route.endpoint().upstream;
    let path = match route.model() {
        Some(model) => {
            let encoded = encode_segment(model);
            upstream
                .replace("{model}", &encoded)
                .replace("{id}", &encoded)
        }
        None => upstream.to_owned(),
    };
    let target = format!("{}/{path}{}", base.path, route.query());
    Uri::builder()
        .scheme(base.scheme.clone())
        .authority(base.authority.clone())
        .path_and_query(target)
        .build()
        .map_err(|e| {
            Refusal::new(Code::Internal, "the upstream address could not be built").cause(e)
        })
}

/// What stands as it is in one segment of a path: the unreserved characters of RFC 3986, and `:` and
/// `@`, which need no encoding there.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':')
    .remove(b'@');

/// A model as one segment of the upstream's path.
fn encode_segment(model: &str) -> String {
    utf8_percent_encode(model, SEGMENT).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sidecar::provider::registry::PROVIDERS;

    #[test]
    fn nothing_like_a_credential_is_forwarded_to_anybody() {
        for provider in PROVIDERS {
            let whole = FORWARDED
                .iter()
                .chain(provider.forwards)
                .filter(|e| !e.ends_with('*') && **e != "idempotency-key");
            whole.for_each(|entry| {
                assert!(!CREDENTIALS.iter().any(|c| entry.contains(c)), "{entry}")
            });
            let cases = [
                "x-openai-actor-authorization",
                "x-claude-code-session-token",
                "x-stainless-api-key",
                "x-codex-secret",
                "x-openai-anything",
                "x-forwarded-for",
                "anthropic-workspace-id",
                "cookie",
            ];
            for name in cases {
                assert!(
                    !forwards(&HeaderName::from_static(name), provider.forwards),
                    "{} {name}",
                    provider.kind
                );
            }
            for name in [
                "user-agent",
                "idempotency-key",
                "x-stainless-retry-count",
                "session-id",
            ] {
                assert!(
                    forwards(&HeaderName::from_static(name), provider.forwards),
                    "{} {name}",
                    provider.kind
                );
            }
        }
    }

    #[test]
    fn a_model_is_one_segment_of_the_path() {
        assert_eq!(encode_segment("a/b c:d@1"), "a%2Fb%20c:d@1");
    }
}
