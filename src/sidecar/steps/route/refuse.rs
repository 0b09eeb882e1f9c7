//! What is said of a path that leads nowhere, and how.

use hyper::http::request::Parts;

use super::known;
use crate::sidecar::policy::Policy;
use crate::sidecar::provider::registry::PROVIDERS;
use crate::sidecar::provider::{Endpoint, Provider, Verb, openai};
use crate::sidecar::refusal::{Code, ErrorFormat, Refusal};

/// How answers to this path look, whatever becomes of it.
pub fn error_format(policy: &Policy, path: &str) -> ErrorFormat {
    let mount = path.split('/').nth(1).unwrap_or_default();
    if let Some(p) = known(policy, mount) {
        return p.1.shape;
    }
    let rel = path.trim_start_matches('/');
    let leads = |e: &Endpoint| {
        e.bare
            .iter()
            .any(|b| rel == *b || rel.starts_with(b.split('{').next().unwrap_or(b)))
    };
    let bare = PROVIDERS.iter().find(|p| p.endpoints.iter().any(leads));
    bare.unwrap_or(&&openai::PROVIDER).shape
}

pub(super) fn allowed(endpoint: &Endpoint) -> String {
    if endpoint.query.is_empty() {
        "none".into()
    } else {
        format!("`{}`", endpoint.query.join("`, `"))
    }
}

pub(super) fn not_offered(path: &str, parts: &Parts, def: Option<&Provider>) -> Refusal {
    let offered = def.map(|d| {
        let list: Vec<String> = d
            .endpoints
            .iter()
            .filter(|e| !e.optional)
            .map(|e| {
                format!(
                    "`{} {}`",
                    if e.method == Verb::Get { "GET" } else { "POST" },
                    e.paths[0]
                )
            })
            .collect();
        format!("; offered: {}", list.join(", "))
    });
    Refusal::new(
        Code::RouteDenied,
        format!(
            "`{} {}` is not offered by this proxy{}",
            parts.method,
            path.escape_debug(),
            offered.unwrap_or_default()
        ),
    )
}

pub(super) fn unknown(policy: &Policy, path: &str) -> Refusal {
    let configured: Vec<String> = policy.providers.keys().map(|p| format!("`/{p}`")).collect();
    let list = if configured.is_empty() {
        "none".into()
    } else {
        configured.join(", ")
    };
    Refusal::new(
        Code::UnknownProvider,
        format!(
            "path `{}` belongs to no provider; known prefixes: {list}",
            path.escape_debug()
        ),
    )
}
