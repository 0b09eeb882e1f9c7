//! `:8788`: what a user types, decides and stops. The same routes stand on `:3100`, for the
//! console page.
//!
//! A body is checked whole before anything happens: what is refused has no effect.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use hyper::{Method, Request};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::adapter::inbox::{Attachment, InboxError, Input, TakenBack};
use crate::adapter::port::access::{
    Access, PortResponse, RequestError, json_answer, not_allowed, preflight,
};
use crate::adapter::port::health;
use crate::adapter::runtime::PermissionDecision;
use crate::adapter::session::SessionCommand;
use crate::adapter::state::AdapterState;
use crate::base::token::random_hex;
use crate::event::InputMode;

const MAX_TEXT: usize = 64 << 10;
/// All images of one input, as base64.
const MAX_ATTACHMENTS: usize = 8 << 20;
/// The largest body: text and images, with what JSON adds to them.
const MAX_BODY: usize = MAX_ATTACHMENTS + 8 * MAX_TEXT;
/// The body of any other route.
const MAX_ANSWER: usize = 128 << 10;
/// How long the session may take to look at an answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How much of a refused body is read away, and for how long.
const DRAIN_BYTES: usize = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);
const BODY_TIME: Duration = Duration::from_secs(30);
const MAX_ID: usize = 256;
const MEDIA: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];

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
        .input_door
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
    // What waits can be read without a body, and when the session is over, too.
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

/// Reads the body while few others are being read. Slow ones of strangers must not keep an answer
/// or a stop from being heard: those have places of their own.
async fn read_body(
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

/// The body, which is JSON by its type, up to `max` bytes.
async fn body(request: Request<Incoming>, max: usize) -> Result<Bytes, RequestError> {
    let too_large = || RequestError::new(413, "body_too_large", format!("more than {max} bytes"));
    let announced = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<usize>().ok());
    let refused = check_type(&request)
        .err()
        .or_else(|| announced.is_some_and(|n| n > max).then(too_large));
    let mut body = request.into_body();
    if let Some(refused) = refused {
        // Read away, so that the client gets to its answer.
        let _ = tokio::time::timeout(DRAIN_TIME, drain(&mut body)).await;
        return Err(refused);
    }
    match tokio::time::timeout(BODY_TIME, Limited::new(&mut body, max).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            let _ = tokio::time::timeout(DRAIN_TIME, drain(&mut body)).await;
            Err(too_large())
        }
        Ok(Err(e)) => Err(RequestError::new(
            400,
            "bad_request",
            format!("the body could not be read: {e}"),
        )),
        Err(_) => Err(RequestError::new(
            408,
            "body_timeout",
            "the body took too long",
        )),
    }
}

async fn drain(body: &mut Incoming) {
    let mut left = DRAIN_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

/// The body's JSON; an empty one is an empty object.
fn object(bytes: &[u8]) -> Result<Value, RequestError> {
    if bytes.is_empty() {
        return Ok(json!({}));
    }
    match serde_json::from_slice::<Value>(bytes) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(RequestError::new(
            400,
            "bad_request",
            "the body is not a JSON object",
        )),
        Err(e) => Err(RequestError::new(
            400,
            "bad_request",
            format!("the body is not JSON: {e}"),
        )),
    }
}

/// A page may send other types without asking first. Nothing at all needs no type.
pub fn check_type(request: &Request<Incoming>) -> Result<(), RequestError> {
    let value = request
        .headers()
        .get(CONTENT_TYPE)
        .map(|v| v.as_bytes())
        .unwrap_or_default();
    let kind = value
        .split(|b| *b == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    if kind.eq_ignore_ascii_case(b"application/json")
        || value.is_empty() && request.body().is_end_stream()
    {
        return Ok(());
    }
    Err(RequestError::new(
        415,
        "unsupported_media_type",
        format!(
            "content-type `{}` is not `application/json`",
            value.escape_ascii()
        ),
    ))
}

/// What `POST /inject` takes; x1's further fields are taken and mean nothing here.
#[derive(Debug, Deserialize)]
struct Inject {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    input_id: Option<String>,
    #[serde(default)]
    event_id: Option<String>,
    #[serde(default)]
    request_id: Option<String>,
    #[serde(default)]
    mode: Option<InputMode>,
    #[serde(default)]
    sender_id: Option<String>,
    #[serde(default)]
    attachments: Vec<Inline>,
}

#[derive(Debug, Deserialize)]
struct Inline {
    r#type: String,
    media_type: String,
    data: String,
}

async fn inject(
    shared: &Arc<AdapterState>,
    body: &[u8],
    key: Option<String>,
) -> Result<PortResponse, RequestError> {
    // By way of a map: a struct could be read from a list of its fields, too.
    let inject: Inject = serde_json::from_slice(body)
        .and_then(|body: serde_json::Map<String, Value>| serde_json::from_value(body.into()))
        .map_err(|e| {
            RequestError::new(400, "bad_request", format!("not an input: {e}"))
                .hint("`{\"text\": \"…\", \"mode\"?: \"auto\"|\"queue\"|\"steer\"|\"interrupt\"}`")
        })?;
    let input = checked(inject, key)?;
    if !input.attachments.is_empty() && !shared.runtime.capabilities.images {
        return Err(RequestError::new(
            400,
            "unsupported",
            format!("{} takes no images", shared.runtime.name),
        ));
    }
    let (input_id, keeper) = (input.input_id.clone(), shared.clone());
    let accepted =
        tokio::task::spawn_blocking(move || keeper.inbox.accept(input, keeper.journal.head()))
            .await
            .map_err(|e| RequestError::new(500, "internal", e.to_string()))?;
    match accepted {
        Ok(a) => Ok(json_answer(
            202,
            &json!({ "input_id": input_id, "position": a.position, "duplicate": a.duplicate }),
        )),
        Err(e @ (InboxError::Full | InboxError::TooLarge)) => {
            Err(RequestError::new(429, "inbox_full", e.to_string()))
        }
        Err(e @ InboxError::Closed) => Err(RequestError::new(409, "session_ended", e.to_string())),
        Err(e @ InboxError::Io(_)) => {
            Err(RequestError::new(503, "inbox_unavailable", e.to_string()))
        }
    }
}

fn checked(inject: Inject, key: Option<String>) -> Result<Input, RequestError> {
    let bad = |what: String| RequestError::new(400, "bad_request", what);
    let text = match inject.text {
        Some(text) if !text.trim().is_empty() => text,
        _ => return Err(bad("`text` is missing or empty".into())),
    };
    if text.len() > MAX_TEXT {
        return Err(RequestError::new(
            413,
            "body_too_large",
            format!(
                "`text` has {} bytes; at most {MAX_TEXT} are taken",
                text.len()
            ),
        ));
    }
    // No terminal reads it, but what does may: nothing that is not text.
    if let Some(c) = text
        .chars()
        .find(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
    {
        return Err(bad(format!(
            "`text` holds the control character U+{:04X}",
            u32::from(c)
        )));
    }
    let input_id = match inject
        .input_id
        .or(inject.event_id)
        .or(inject.request_id)
        .or(key)
    {
        Some(id)
            if (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            id
        }
        Some(id) => {
            return Err(bad(format!(
                "`input_id` is `{}`; allowed: 1 to {MAX_ID} visible ASCII characters",
                id.escape_default()
            )));
        }
        None => format!("in_{}", random_hex()),
    };
    if inject.sender_id.as_ref().is_some_and(|s| s.len() > MAX_ID) {
        return Err(bad(format!("`sender_id` is longer than {MAX_ID} bytes")));
    }
    if let Some(a) = inject
        .attachments
        .iter()
        .find(|a| a.r#type != "image" || !MEDIA.contains(&a.media_type.as_str()))
    {
        return Err(bad(format!(
            "an attachment is a `{}` of `{}`; allowed: `image` of `{}`",
            a.r#type,
            a.media_type,
            MEDIA.join("`, `")
        )));
    }
    if inject
        .attachments
        .iter()
        .map(|a| a.data.len())
        .sum::<usize>()
        > MAX_ATTACHMENTS
    {
        return Err(RequestError::new(
            413,
            "body_too_large",
            format!("the attachments have more than {MAX_ATTACHMENTS} bytes"),
        ));
    }
    if inject
        .attachments
        .iter()
        .any(|a| a.data.is_empty() || BASE64.decode(&a.data).is_err())
    {
        return Err(bad("an attachment's `data` is not base64".into()));
    }
    let attachments = inject
        .attachments
        .into_iter()
        .map(|a| Attachment {
            media_type: a.media_type,
            data: a.data,
        })
        .collect();
    Ok(Input {
        mode: inject.mode.unwrap_or_default(),
        sender_id: inject.sender_id,
        attachments,
        ..Input::new(input_id, text)
    })
}

fn permission(body: &Value) -> Result<PermissionDecision, RequestError> {
    let message = optional_text(body, "message")?;
    match body["decision"].as_str() {
        Some("allow") => Ok(PermissionDecision::Allow),
        Some("allow_always") => Ok(PermissionDecision::AllowAlways),
        Some("deny") => Ok(PermissionDecision::Deny { message }),
        _ => Err(RequestError::new(
            400,
            "bad_request",
            format!(
                "`decision` is `{}`; allowed: `allow`, `allow_always`, `deny`",
                body["decision"]
            ),
        )),
    }
}

/// One answer, one a question, or none.
fn question(body: &Value) -> Result<PermissionDecision, RequestError> {
    let texts = |v: &Value| {
        v.as_array().and_then(|all| {
            all.iter()
                .map(|t| t.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
        })
    };
    match (&body["answer"], &body["answers"], &body["reject"]) {
        (Value::String(answer), Value::Null, _) => {
            Ok(PermissionDecision::Answers(vec![vec![answer.clone()]]))
        }
        (Value::Null, answers @ Value::Array(all), _) => {
            let each = texts(answers)
                .map(|flat| flat.into_iter().map(|t| vec![t]).collect())
                .or_else(|| all.iter().map(texts).collect());
            each.map(PermissionDecision::Answers).ok_or_else(|| {
                RequestError::new(
                    400,
                    "bad_request",
                    "`answers` is not a list of texts, or of lists of texts",
                )
            })
        }
        (Value::Null, Value::Null, Value::Bool(true)) => Ok(PermissionDecision::RejectQuestion),
        _ => Err(RequestError::new(
            400,
            "bad_request",
            "one of `answer` (a text), `answers` (one a question) and `reject: true` is needed",
        )),
    }
}

fn optional_text(body: &Value, name: &str) -> Result<Option<String>, RequestError> {
    match &body[name] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        other => Err(RequestError::new(
            400,
            "bad_request",
            format!("`{name}` is `{other}`, not a text"),
        )),
    }
}
