//! `:8788`: what a user types, decides and stops. The same routes stand on `:3100`, for the
//! console page.
//!
//! A body is checked whole before anything happens: what is refused has no effect.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use hyper::{Method, Request};
use serde_json::json;
use tokio::sync::oneshot;

use crate::adapter::inbox::TakenBack;
use crate::adapter::port::access::{
    Access, PortResponse, RequestError, json_answer, not_allowed, preflight,
};
use crate::adapter::port::answer::{MAX_ANSWER, permission, question};
use crate::adapter::port::body::{MAX_BODY, body, object};
use crate::adapter::port::health;
use crate::adapter::port::inject::{inject, optional_text};
use crate::adapter::runtime::action::PermissionDecision;
use crate::adapter::session::SessionCommand;
use crate::adapter::state::AdapterState;

/// How long the session may take to look at an answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// What stands behind one of the routes of inputs and answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputRoute {
    Inject,
    Interrupt,
    Keepalive,
    Shutdown,
    Permission(String),
    Question(String),
    Inputs,
    Input(String),
}

impl InputRoute {
    pub fn of(path: &str) -> Option<InputRoute> {
        let id = |prefix: &str| {
            let id = path
                .strip_prefix(prefix)
                .filter(|id| !id.is_empty() && !id.contains('/'))?;
            percent_encoding::percent_decode_str(id)
                .decode_utf8()
                .ok()
                .map(Cow::into_owned)
        };
        Some(match path {
            "/inject" => InputRoute::Inject,
            "/interrupt" => InputRoute::Interrupt,
            "/keepalive" => InputRoute::Keepalive,
            "/shutdown" => InputRoute::Shutdown,
            "/inputs" => InputRoute::Inputs,
            _ => id("/permission/")
                .map(InputRoute::Permission)
                .or_else(|| id("/question/").map(InputRoute::Question))
                .or_else(|| id("/inputs/").map(InputRoute::Input))?,
        })
    }

    /// What it asks of its caller.
    pub fn access(&self) -> Access {
        if *self == InputRoute::Inputs {
            Access::Read
        } else {
            Access::Write
        }
    }

    fn method(&self) -> (Method, &'static str) {
        match self {
            InputRoute::Inputs => (Method::GET, "GET"),
            InputRoute::Input(_) => (Method::DELETE, "DELETE"),
            _ => (Method::POST, "POST"),
        }
    }
}

/// # Errors
/// Why the request is refused.
pub async fn route(
    shared: &Arc<AdapterState>,
    request: Request<Incoming>,
) -> Result<PortResponse, RequestError> {
    let path = request.uri().path();
    let target = InputRoute::of(path);
    let access = match (path, &target) {
        _ if *request.method() == Method::OPTIONS => Access::Open,
        ("/health" | "/readyz", _) => Access::Open,
        (_, target) => target.as_ref().map_or(Access::Write, InputRoute::access),
    };
    shared
        .input_guard
        .check(&shared.policy, request.headers(), access)?;
    if *request.method() == Method::OPTIONS {
        return preflight(&shared.policy, request.headers());
    }
    let read = matches!(*request.method(), Method::GET | Method::HEAD);
    match (path, target) {
        ("/health", _) if read => Ok(health::health(shared)),
        ("/readyz", _) if read => Ok(health::readiness(shared)),
        ("/health" | "/readyz", _) => Ok(not_allowed("GET, HEAD")),
        (_, Some(target)) => act(shared, request, target).await,
        (path, None) => Err(RequestError::new(
            404,
            "route_denied",
            format!(
                "there is no `{path}`; offered: `/inject`, `/interrupt`, `/permission/{{id}}`, `/question/{{id}}`, `/inputs`, `/inputs/{{id}}`, `/keepalive`, `/shutdown`, `/health`, `/readyz`"
            ),
        )),
    }
}

/// A request for one of the routes, by a caller who may.
pub async fn act(
    shared: &Arc<AdapterState>,
    request: Request<Incoming>,
    target: InputRoute,
) -> Result<PortResponse, RequestError> {
    let (method, name) = target.method();
    if *request.method() != method {
        return Ok(not_allowed(name));
    }
    let key = request
        .headers()
        .get("idempotency-key")
        .and_then(|v| v.to_str().ok())
        .map(str::to_owned);
    // The waiting inputs can be listed without a body, also after the end of the session.
    let bytes = if target == InputRoute::Inputs {
        Bytes::new()
    } else {
        body_for_session(shared, request, &target).await?
    };
    match target {
        InputRoute::Inputs => Ok(json_answer(200, &json!({ "inputs": shared.inbox.list() }))),
        InputRoute::Inject => inject(shared, &bytes, key).await,
        InputRoute::Interrupt => {
            object(&bytes)?;
            send_command(shared, SessionCommand::Interrupt).await
        }
        InputRoute::Keepalive => {
            object(&bytes)?;
            send_command(shared, SessionCommand::Keepalive).await
        }
        InputRoute::Shutdown => {
            let summary = optional_text(&object(&bytes)?, "summary")?;
            shared.drain();
            send_command(shared, SessionCommand::Shutdown { summary }).await
        }
        InputRoute::Permission(id) => decide(shared, id, permission(&object(&bytes)?)?).await,
        InputRoute::Question(id) => decide(shared, id, question(&object(&bytes)?)?).await,
        InputRoute::Input(id) => {
            object(&bytes)?;
            take_back(shared, id).await
        }
    }
}

/// The body of a request that the session must be able to take.
async fn body_for_session(
    shared: &AdapterState,
    request: Request<Incoming>,
    target: &InputRoute,
) -> Result<Bytes, RequestError> {
    let bytes = read_body(shared, request, target).await?;
    match shared.state() {
        "ended" => Err(RequestError::new(
            409,
            "session_ended",
            "the session is over",
        )),
        _ if shared.is_draining() => Err(RequestError::new(
            503,
            "draining",
            "the session is being stopped",
        )),
        _ => Ok(bytes),
    }
}

async fn decide(
    shared: &AdapterState,
    request_id: String,
    decision: PermissionDecision,
) -> Result<PortResponse, RequestError> {
    let (known, answer) = oneshot::channel();
    send_command(
        shared,
        SessionCommand::Answer {
            request_id: request_id.clone(),
            decision,
            known,
        },
    )
    .await?;
    let Ok(known) = tokio::time::timeout(ANSWER_TIME, answer).await else {
        return Err(RequestError::new(
            503,
            "busy",
            "the session does not answer; it may be starting, or its disk is full",
        ));
    };
    if known.unwrap_or(false) {
        return Ok(json_answer(202, &json!({ "request_id": request_id })));
    }
    Err(RequestError::new(
        404,
        "unknown_request",
        format!("no request `{request_id}` waits for an answer"),
    )
    .hint("it was answered, it timed out, its turn is over, or it is of the other kind"))
}

/// `DELETE /inputs/{id}`
async fn take_back(
    shared: &Arc<AdapterState>,
    input_id: String,
) -> Result<PortResponse, RequestError> {
    let (keeper, id) = (shared.clone(), input_id.clone());
    let taken = tokio::task::spawn_blocking(move || keeper.inbox.take_back(&id))
        .await
        .map_err(|e| RequestError::new(500, "internal", e.to_string()))?;
    match taken {
        Ok(TakenBack::Yes) => Ok(json_answer(200, &json!({ "input_id": input_id }))),
        Ok(TakenBack::TooLate) => Err(RequestError::new(
            409,
            "input_sent",
            format!("input `{input_id}` does not wait any more"),
        )
        .hint("`POST /interrupt` stops the turn that it began")),
        Ok(TakenBack::Unknown) => Err(RequestError::new(
            404,
            "unknown_input",
            format!("there is no input `{input_id}`"),
        )),
        Err(e) => Err(RequestError::new(
            503,
            "inbox_unavailable",
            format!("the inbox cannot be written: {e}"),
        )),
    }
}

async fn send_command(
    shared: &AdapterState,
    command: SessionCommand,
) -> Result<PortResponse, RequestError> {
    shared
        .commands
        .send(command)
        .await
        .map_err(|_| RequestError::new(409, "session_ended", "the session is over"))?;
    Ok(json_answer(202, &json!({ "accepted": true })))
}

/// Reads the body while few others are being read. Slow ones of strangers must not keep an answer
/// or a stop from being heard: those have places of their own.
pub(crate) async fn read_body(
    shared: &AdapterState,
    request: Request<Incoming>,
    target: &InputRoute,
) -> Result<Bytes, RequestError> {
    let (places, max) = if *target == InputRoute::Inject {
        (&shared.bodies, MAX_BODY)
    } else {
        (&shared.small_bodies, MAX_ANSWER)
    };
    // One that is empty needs no place.
    if request.body().is_end_stream() {
        return body(request, max).await;
    }
    let Ok(_held) = places.try_acquire() else {
        return Err(RequestError::new(
            503,
            "busy",
            "too many requests are being read",
        ));
    };
    body(request, max).await
}
