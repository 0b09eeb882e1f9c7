//! `:3100`: the stream, what there is to know of the session, and the console page.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::adapter::port::access::{
    Access, PortResponse, RequestError, full, json_answer, not_allowed, preflight,
};
use crate::adapter::port::body::check_type;
use crate::adapter::port::input::InputRoute;
use crate::adapter::port::subscription::{HEARTBEAT, Looking, SubscriberSlot, Subscription};
use crate::adapter::port::tickets::TICKET_TIME;
use crate::adapter::port::{health, input};
use crate::adapter::protocol::{EventView, StreamFormat, StreamQuery};
use crate::adapter::state::AdapterState;
use crate::event::{self, Payload};

const ROUTES: [&str; 8] = [
    "/stream",
    "/health",
    "/readyz",
    "/status",
    "/capabilities",
    "/openapi.json",
    "/schema/events.json",
    "/",
];

/// They are the same for everybody who asks.
static OPENAPI: LazyLock<String> =
    LazyLock::new(|| crate::adapter::port::openapi::document().to_string());

static SCHEMA: LazyLock<String> = LazyLock::new(|| event::schema().to_string());

/// # Errors
/// Why the request is refused.
pub async fn route(
    shared: &Arc<AdapterState>,
    request: Request<Incoming>,
) -> Result<PortResponse, RequestError> {
    let path = request.uri().path().to_owned();
    let target = InputRoute::of(&path);
    let access = match path.as_str() {
        "/" | "/health" | "/readyz" | "/openapi.json" | "/schema/events.json" => Access::Open,
        _ if *request.method() == Method::OPTIONS => Access::Open,
        "/stream" if ticketed(shared, &request) => Access::Open,
        _ => target.as_ref().map_or(Access::Read, InputRoute::access),
    };
    shared
        .stream_guard
        .check(&shared.policy, request.headers(), access)?;
    if *request.method() == Method::OPTIONS {
        return preflight(&shared.policy, request.headers());
    }
    if let Some(target) = target {
        return input::act(shared, request, target).await;
    }
    if path == "/ticket" {
        if *request.method() != Method::POST {
            return Ok(not_allowed("POST"));
        }
        check_type(&request)?;
        let ticket = shared
            .tickets
            .issue()
            .map_err(|e| RequestError::new(500, "internal", e.to_string()))?;
        return Ok(json_answer(
            200,
            &json!({ "ticket": ticket, "expires_in": TICKET_TIME.as_secs() }),
        ));
    }
    if ROUTES.contains(&path.as_str()) && !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(not_allowed("GET, HEAD"));
    }
    match path.as_str() {
        "/stream" => stream(shared, &request),
        "/" => Ok(console()),
        "/health" => Ok(health::health(shared)),
        "/readyz" => Ok(health::readiness(shared)),
        "/status" => Ok(json_answer(200, &shared.status())),
        "/capabilities" => Ok(json_answer(
            200,
            &json!({ "runtime": shared.runtime.id, "tier": shared.runtime.capabilities.tier(), "verified": shared.runtime.verified, "capabilities": shared.runtime.capabilities }),
        )),
        "/openapi.json" => Ok(full(StatusCode::OK, "application/json", OPENAPI.as_str())),
        "/schema/events.json" => Ok(full(
            StatusCode::OK,
            "application/schema+json",
            SCHEMA.as_str(),
        )),
        _ => Err(RequestError::new(
            404,
            "route_denied",
            format!("there is no `{path}`; offered: `{}`", ROUTES.join("`, `")),
        )),
    }
}

fn ticketed(shared: &AdapterState, request: &Request<Incoming>) -> bool {
    query(request).any(|(name, value)| name == "ticket" && shared.tickets.admits(&value))
}

/// The pairs of a query.
fn query<B>(request: &Request<B>) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
}

fn stream(
    shared: &Arc<AdapterState>,
    request: &Request<Incoming>,
) -> Result<PortResponse, RequestError> {
    let (wish, since) = stream_query(request)?;
    let journal = match wish.shape {
        StreamFormat::Raw => shared.raw.as_ref().ok_or_else(|| {
            RequestError::new(
                404,
                "view_denied",
                "the CLI's own lines are not kept in this session",
            )
            .hint("set `session.raw: true`")
        })?,
        _ => &shared.journal,
    };
    // Clients that have seen nothing send it empty.
    let seen = match request
        .headers()
        .get("last-event-id")
        .filter(|id| !id.is_empty())
    {
        Some(id) => id.to_str().ok().and_then(number).ok_or_else(|| {
            bad_sequence("Last-Event-ID", &String::from_utf8_lossy(id.as_bytes()))
        })?,
        None => since,
    };
    let head = journal.head();
    if seen > head {
        return Err(RequestError::new(
            409,
            "sequence_ahead",
            format!("event {seen} has not been; the last is {head}"),
        )
        .hint("this is another session's stream: start again, without `Last-Event-ID`"));
    }
    let slot = SubscriberSlot::take(&shared.subscribers)?;
    let view = EventView::new(wish, seen, shared.session_id.clone(), shared.runtime.id);
    let cursor = journal.subscribe(view.first(journal));
    let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let queue = VecDeque::from([Bytes::from_static(b"retry: 1000\n\n")]);
    let view = Looking::Here(Box::new(view));
    let body = Subscription {
        cursor,
        view,
        heartbeat,
        queue,
        complete: *request.method() == Method::HEAD,
        _slot: slot,
    };
    let mut answer = Response::new(body.boxed());
    let headers = answer.headers_mut();
    for (name, value) in [
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-store"),
        ("x-accel-buffering", "no"),
        ("x-proxy-buffering", "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(answer)
}

fn stream_query(request: &Request<Incoming>) -> Result<(StreamQuery, u64), RequestError> {
    let (mut wish, mut since) = (StreamQuery::default(), 0);
    for (name, value) in query(request) {
        match name.as_ref() {
            "since" => since = number(&value).ok_or_else(|| bad_sequence("since", &value))?,
            "view" => wish.shape = view(&value)?,
            "types" => wish.types = types(&value)?,
            "deltas" => wish.without_deltas = !switch("deltas", &value)?,
            "named" => wish.named = switch("named", &value)?,
            "ticket" => {}
            "token" | "access_token" => {
                return Err(bad("tokens never stand in a URL".to_owned())
                    .hint("`POST /ticket` gives one that may"));
            }
            _ => {
                return Err(bad(format!(
                    "unknown parameter `{name}`; known: `since`, `view`, `types`, `deltas`, `named`, `ticket`"
                )));
            }
        }
    }
    let filtered = !wish.types.is_empty() || wish.without_deltas || wish.named;
    if wish.shape != StreamFormat::Native && filtered {
        let what = "`types`, `deltas` and `named` are for `view=native`";
        return Err(bad(what.to_owned()));
    }
    Ok((wish, since))
}

fn bad(what: String) -> RequestError {
    RequestError::new(400, "bad_request", what)
}

fn not_allowed_value(name: &str, value: &str, allowed: &str) -> RequestError {
    bad(format!("`{name}={value}`: allowed: {allowed}"))
}

fn view(value: &str) -> Result<StreamFormat, RequestError> {
    match value {
        "native" => Ok(StreamFormat::Native),
        "x1" => Ok(StreamFormat::X1),
        "raw" => Ok(StreamFormat::Raw),
        _ => Err(not_allowed_value("view", value, "`native`, `x1`, `raw`")),
    }
}

/// Types of events, with commas between them.
fn types(value: &str) -> Result<Vec<String>, RequestError> {
    let types: Vec<String> = value
        .split(',')
        .filter(|t| !t.is_empty())
        .map(str::to_owned)
        .collect();
    if types.is_empty() || !types.iter().all(|t| Payload::NAMES.contains(&t.as_str())) {
        let allowed = format!("some of `{}`, with commas", Payload::NAMES.join("`, `"));
        return Err(not_allowed_value("types", value, &allowed));
    }
    Ok(types)
}

fn switch(name: &str, value: &str) -> Result<bool, RequestError> {
    match value {
        "0" | "false" => Ok(false),
        "1" | "true" => Ok(true),
        _ => Err(not_allowed_value(name, value, "`0`, `1`")),
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

fn bad_sequence(name: &str, value: &str) -> RequestError {
    RequestError::new(
        400,
        "bad_request",
        format!("`{name}: {value}` is not the number of an event"),
    )
}

fn console() -> PortResponse {
    let mut answer = full(
        StatusCode::OK,
        "text/html; charset=utf-8",
        crate::adapter::console::PAGE,
    );
    answer
        .headers_mut()
        .insert("content-security-policy", crate::adapter::console::policy());
    answer
        .headers_mut()
        .insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    answer
        .headers_mut()
        .insert("x-frame-options", HeaderValue::from_static("DENY"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_as_browsers_encode_them() {
        let request = Request::get("/stream?types=a%2Cb+c%&x=%zz%e2%82%ac")
            .body(())
            .unwrap();
        let pairs: Vec<_> = query(&request)
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(pairs, ["types=a,b c%", "x=%zz€"]);
        assert_eq!(
            (
                number("12"),
                number("-1"),
                number("+1"),
                number(""),
                number("18446744073709551616")
            ),
            (Some(12), None, None, None, None)
        );
    }
}
