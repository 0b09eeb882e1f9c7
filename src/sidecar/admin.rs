//! `:9091` for the kubelet and Prometheus: alive, ready, metrics, version. Nothing else: no
//! secret, no model traffic, and nothing that changes anything.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue, ORIGIN};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::sidecar::state::SidecarState;

pub fn serve(shared: &Arc<SidecarState>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let headers = request.headers();
    // A page could reach this port by its own name; a probe uses an address.
    let host = headers
        .get(HOST)
        .and_then(|h| h.to_str().ok())
        .unwrap_or_default();
    if headers.contains_key(ORIGIN) || !is_ours(host, &shared.config.hosts) {
        return problem(
            StatusCode::FORBIDDEN,
            "host_denied",
            "only addresses and configured names are served here, and no web pages",
        );
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = problem(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_denied",
            "only `GET` and `HEAD` are offered",
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "text/plain", "ok\n".into()),
        "/readyz" => ready(shared),
        "/metrics" => {
            shared.metrics.audit_ok.set(shared.audit.works().into());
            note_secrets(shared);
            note_budgets(shared);
            shared
                .metrics
                .log_lines_dropped
                .set(crate::base::logging::dropped() as i64);
            text(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                shared.metrics.render(),
            )
        }
        "/version" => text(
            StatusCode::OK,
            "application/json",
            json!({ "version": env!("CARGO_PKG_VERSION") }).to_string(),
        ),
        _ => problem(
            StatusCode::NOT_FOUND,
            "route_denied",
            "offered: `/healthz`, `/readyz`, `/metrics`, `/version`",
        ),
    }
}

/// An address with or without a port, `localhost`, or a configured name.
fn is_ours(host: &str, names: &[String]) -> bool {
    let bare = match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    };
    let address = bare.trim_start_matches('[').trim_end_matches(']');
    address.parse::<std::net::IpAddr>().is_ok()
        || bare.eq_ignore_ascii_case("localhost")
        || names.iter().any(|n| bare.eq_ignore_ascii_case(n))
}

fn ready(shared: &SidecarState) -> Response<Full<Bytes>> {
    let problems = unready(shared);
    let status = if problems.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({ "ready": problems.is_empty(), "problems": problems, "warnings": stale_keys(shared) });
    text(status, "application/json", body.to_string())
}

/// Why requests that the operator meant to be served would not be.
fn unready(shared: &SidecarState) -> Vec<String> {
    let mut problems = Vec::new();
    if shared.draining.load(Ordering::Acquire) {
        problems.push("shutting down".to_owned());
    }
    if !shared.audit.works() {
        problems.push("audit records cannot be written".to_owned());
    }
    if shared.metrics.policy_ok.get() == 0 {
        problems.push(
            "the configuration file is broken; the last good one serves (see the log)".to_owned(),
        );
    }
    let policy = shared.policy.load();
    for provider in policy.providers.values() {
        let granted = policy.grants.iter().any(|g| g.provider == provider.name);
        if let Some(source) = provider.secret.as_ref().filter(|_| granted)
            && shared.secrets.get(source).is_err()
        {
            problems.push(format!(
                "no readable key for granted provider `{}`",
                provider.name
            ));
        }
    }
    problems
}

/// Keys that serve although the last look found none.
fn stale_keys(shared: &SidecarState) -> Vec<String> {
    let policy = shared.policy.load();
    let stale = |p: &&std::sync::Arc<crate::sidecar::policy::ProviderConfig>| {
        p.secret
            .as_ref()
            .map(|s| shared.secrets.health(s))
            .is_some_and(|h| !h.ok && h.age.is_some())
    };
    let all = policy.providers.values().filter(stale);
    all.map(|p| {
        format!(
            "the key of provider `{}` cannot be read again; the last good one serves (see the log)",
            p.name
        )
    })
    .collect()
}

fn note_secrets(shared: &SidecarState) {
    shared.metrics.forget_operators_series();
    for provider in shared.policy.load().providers.values() {
        if let Some(source) = &provider.secret {
            let health = shared.secrets.health(source);
            shared.metrics.secret(provider.label, health.ok);
            if let Some(age) = health.age {
                shared.metrics.credential(provider.label, age.as_secs_f64());
            }
        }
    }
}

fn note_budgets(shared: &SidecarState) {
    for grant in shared
        .policy
        .load()
        .grants
        .iter()
        .filter(|g| g.limits.has_budget())
    {
        shared
            .metrics
            .budget(&grant.to_string(), &shared.ledger.limiter_of(grant).usage());
    }
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    headers.insert("cache-control", HeaderValue::from_static("no-store"));
    response
}

/// RFC 9457.
fn problem(status: StatusCode, code: &'static str, detail: &str) -> Response<Full<Bytes>> {
    let title = status.canonical_reason().unwrap_or_default();
    let body = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail, "code": code });
    let mut response = text(status, "application/problem+json", body.to_string());
    response
        .headers_mut()
        .insert(super::refusal::ERROR_HEADER, HeaderValue::from_static(code));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_by_address_pass_and_pages_by_name_do_not() {
        let names = ["sidecar.pod".to_owned()];
        for good in [
            "10.0.0.7:9091",
            "10.0.0.7",
            "[fd00::1]:9091",
            "localhost:9091",
            "sidecar.pod:9091",
        ] {
            assert!(is_ours(good, &names), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "evil.example:9091",
            "localhost.evil.example",
            "10.0.0.7.nip.io",
        ] {
            assert!(!is_ours(bad, &names), "{bad}");
        }
    }
}
