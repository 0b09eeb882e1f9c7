//! The head of the client's response.

use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{StatusCode, http::response::Parts};

use super::RelayedCall;
use crate::sidecar::audit::AuditEntry;
use crate::sidecar::redact::Redactor;
use crate::sidecar::steps::route::Routed;
use crate::sidecar::usage::framing::Framing;
use crate::sidecar::usage::meter::Meter;

/// The headers of a reply that are passed on for every provider, in lower case: the content type,
/// and when to try again. Cookies, account names, redirects and hop-by-hop headers are not. Each
/// provider lists in its own file the further headers that its clients need.
pub(super) const RETURNED: &[&str] = &[
    "content-type",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
];

pub(super) fn meter(route: &Routed, parts: &Parts) -> Option<Meter> {
    let format = route.endpoint().usage?;
    let content_type = parts
        .headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    Framing::of(content_type).map(|framing| Meter::new(format, framing))
}

pub(super) fn returned(
    call: &RelayedCall,
    parts: &Parts,
    inflated: bool,
    redactor: &Redactor,
    entry: &AuditEntry,
) -> HeaderMap {
    let provider = call.permit.provider().def;
    let mut headers = HeaderMap::with_capacity(8);
    let listed = |name: &HeaderName| {
        RETURNED.contains(&name.as_str()) || provider.returns.contains(&name.as_str())
    };
    for (name, value) in &parts.headers {
        if listed(name) && !redactor.echoes(value.as_bytes()) {
            headers.append(name, value.clone());
        }
    }
    if let Some(length) = parts
        .headers
        .get(CONTENT_LENGTH)
        .filter(|_| !inflated && parts.status != StatusCode::NO_CONTENT)
    {
        headers.insert(CONTENT_LENGTH, length.clone());
    }
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    if let Ok(id) = HeaderValue::from_str(entry.id()) {
        if let Some(name) = provider.own_request_id {
            headers.insert(name, id.clone());
        }
        headers.insert("x-outrigger-request-id", id);
    }
    if call.notices
        && parts.status.is_success()
        && let Some(budget) = entry.utilisation()
    {
        for (name, value) in (provider.notices)(&budget) {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
    }
    headers
}
