//! The way of a request, in [`decide`]: guard, route, model, scope, limit, sign, upstream;
//! then relay, and one audit record whatever happens.

use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response};

use super::audit::{self, AuditEntry};
use super::models::Filtered;
use super::record::AccessDecision;
use super::redact::Redactor;
use super::refusal::{self, Client, Code, ErrorFormat, Refusal};
use crate::sidecar::activity::InFlightGuard;
use crate::sidecar::models;
use crate::sidecar::policy::Policy;
use crate::sidecar::provider::Billing;
use crate::sidecar::response::{ResponseBody, ResponseBodyKind};
use crate::sidecar::state::SidecarState;
use crate::sidecar::steps::body::buffered::BufferedBody;
use crate::sidecar::steps::limit::Admitted;
use crate::sidecar::steps::relay::RelayedCall;
use crate::sidecar::steps::route::RouteTarget;
use crate::sidecar::steps::sign::BodyUse;
use crate::sidecar::steps::{guard, limit, model, relay, route, scope, sign, upstream};

/// Where a request that may be served leads.
#[expect(
    clippy::large_enum_variant,
    reason = "made once a request, and moved once"
)]
enum Outcome {
    Probe,
    Discard,
    Reply(RelayedCall, Response<Incoming>),
    Models(Filtered),
}

async fn decide(
    shared: &Arc<SidecarState>,
    policy: &Arc<Policy>,
    parts: &Parts,
    body: Incoming,
    entry: &mut AuditEntry,
) -> Result<Outcome, Refusal> {
    audit_works(shared)?;
    let guarded = guard::check(parts, &shared.callers)?;
    let routed = match route::resolve(policy, parts, &guarded)? {
        RouteTarget::Probe(mount) => {
            return Ok(entry.answered_here(mount, "probe", Outcome::Probe));
        }
        RouteTarget::Discard(mount) => {
            return Ok(entry.answered_here(mount, "telemetry", Outcome::Discard));
        }
        RouteTarget::Call(routed) => routed,
    };
    entry.note(&routed);
    let body = shared.body_memory.collect(body, &parts.headers).await?;
    entry.note(&body);
    let read = model::read(routed, body).await?;
    entry.note(&read);
    // The body may have taken its time: what is granted now counts.
    let policy = shared.policy.load_full();
    entry.note(&*policy);
    let permitted = scope::check(&policy, read, &shared.known_objects)?;
    entry.note(&permitted);
    let (mut admitted, admission) = limit::admit(permitted, &shared.ledger, &shared.config.prices)?;
    entry.admit(admission)?;
    let reply = send(shared, &mut admitted, &parts.headers).await;
    let reply = reply.inspect_err(|refusal| entry.failed(refusal))?;
    entry.record.status = Some(reply.status().as_u16());
    if lists_models(&admitted, &reply) {
        return filter(shared, &admitted, reply, entry)
            .await
            .map(Outcome::Models);
    }
    let call = RelayedCall::new(shared, admitted, &parts.headers);
    Ok(Outcome::Reply(call, reply))
}

fn lists_models(admitted: &Admitted, reply: &Response<Incoming>) -> bool {
    admitted.routed().endpoint().billing == Billing::Models && reply.status().is_success()
}

/// Cuts a list of models down to what is granted.
async fn filter(
    shared: &SidecarState,
    admitted: &Admitted,
    reply: Response<Incoming>,
    entry: &mut AuditEntry,
) -> Result<Filtered, Refusal> {
    let redactor = Redactor::new(shared.secrets.patterns());
    let (memory, turns) = (&shared.body_memory, &shared.list_turns);
    let filtered = models::filter(admitted.permit(), reply, redactor, memory, turns).await?;
    entry.record.key_echoed = filtered.echoed;
    shared.metrics.key_echoes.inc_by(filtered.echoed.into());
    Ok(filtered)
}

/// Signs and sends. A key that the provider refuses is read again; if it has changed, the
/// request, which the provider did not work on, goes out once more with the new one.
async fn send(
    shared: &SidecarState,
    admitted: &mut Admitted,
    client: &HeaderMap,
) -> Result<Response<Incoming>, Refusal> {
    // Kept for a second try where that holds up nobody: the memory of bodies is needed while the
    // model thinks.
    let length = admitted.body().map_or(0, BufferedBody::len);
    let room = shared.retry_memory.try_acquire_many(length as u32);
    let body_use = if room.is_ok() {
        BodyUse::MayRepeat
    } else {
        BodyUse::Last
    };
    let signed = sign::sign(admitted, body_use, client, &shared.secrets)?;
    let used = signed.secret().cloned();
    let reply = shared.upstream.send(signed).await?;
    if !upstream::refuses_key(reply.status()) {
        return Ok(reply);
    }
    let provider = admitted.permit().provider().clone();
    let (Some(used), Some(source)) = (used, &provider.secret) else {
        return Ok(reply);
    };
    shared.secrets.reread(source).await;
    let now = shared.secrets.get(source);
    if admitted.body().is_some() && now.is_ok_and(|now| !Arc::ptr_eq(&now, &used)) {
        drop(reply);
        let signed = sign::sign(admitted, BodyUse::Last, client, &shared.secrets)?;
        let reply = shared.upstream.send(signed).await?;
        if !upstream::refuses_key(reply.status()) {
            return Ok(reply);
        }
    }
    // The provider's own text may quote the key, and its 401 sends clients to log in.
    let what = format!("provider `{}` refused the workspace's key", provider.name);
    Err(Refusal::new(Code::UpstreamAuth, what)
        .hint("ask an operator to renew the key; no restart is needed"))
}

fn audit_works(shared: &SidecarState) -> Result<(), Refusal> {
    if shared.audit.works() {
        Ok(())
    } else {
        Err(audit::unavailable())
    }
}

/// No record of the request could be kept, so it is not even refused: the connection ends.
#[derive(Debug, thiserror::Error)]
#[error("the audit's memory is full")]
pub struct Unserved;

/// Serves one request: what goes wrong is an answer.
///
/// # Errors
/// [`Unserved`] alone.
pub async fn serve(
    shared: Arc<SidecarState>,
    request: Request<Incoming>,
    busy: InFlightGuard,
) -> Result<Response<ResponseBody>, Unserved> {
    if shared.audit.is_full() {
        return Err(Unserved);
    }
    let mut entry = shared.audit.entry();
    let policy = shared.policy.load_full();
    entry.note(&*policy);
    let (parts, body) = request.into_parts();
    let has_body = !body.is_end_stream();
    entry.record.client_session = client_session(&parts.headers);
    let outcome = decide(&shared, &policy, &parts, body, &mut entry).await;
    let shape = || route::error_format(&policy, parts.uri.path());
    let client = || Client::of(&parts.headers);
    Ok(match outcome {
        Ok(Outcome::Reply(call, reply)) => match relay::relay(call, reply, entry) {
            Ok(response) => response.map(|relay| ResponseBody {
                kind: ResponseBodyKind::Relay(Box::new(relay)),
                _busy: busy,
            }),
            Err((refusal, entry)) => refuse(*entry, &refusal, shape(), client(), busy),
        },
        Ok(Outcome::Models(Filtered { list, .. })) => {
            own(entry, list, ResponseBodyKind::List, busy)
        }
        Ok(Outcome::Discard) => own(
            entry,
            Bytes::from_static(b"{}"),
            ResponseBodyKind::Own,
            busy,
        ),
        Ok(Outcome::Probe) => own(
            entry,
            Bytes::from_static(b"{\"outrigger\":\"sidecar\"}"),
            ResponseBodyKind::Own,
            busy,
        ),
        Err(refusal) => {
            // hyper closes a connection whose request body nobody took; the client is told.
            let unread = has_body && !entry.record.body_read;
            let mut response = refuse(entry, &refusal, shape(), client(), busy);
            if unread {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    })
}

fn own(
    mut entry: AuditEntry,
    body: Bytes,
    kind: fn(Full<Bytes>) -> ResponseBodyKind,
    busy: InFlightGuard,
) -> Response<ResponseBody> {
    entry.record.bytes_out = body.len() as u64;
    let mut response = Response::new(ResponseBody {
        kind: kind(Full::new(body)),
        _busy: busy,
    });
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn refuse(
    mut entry: AuditEntry,
    refusal: &Refusal,
    shape: ErrorFormat,
    client: Client,
    busy: InFlightGuard,
) -> Response<ResponseBody> {
    let response = refused(&mut entry, refusal, shape, client);
    response.map(|body| ResponseBody {
        kind: ResponseBodyKind::Own(body),
        _busy: busy,
    })
}

/// The answer to a refusal, with its record filled and its line in the log.
pub fn refused(
    entry: &mut AuditEntry,
    refusal: &Refusal,
    shape: ErrorFormat,
    client: Client,
) -> Response<Full<Bytes>> {
    let response = refusal::respond(refusal, shape, client, entry.id());
    entry.record.code = Some(refusal.code.name());
    entry.record.scope_needed = refusal.scope_needed.clone();
    entry.record.status = Some(response.status().as_u16());
    entry.record.bytes_out = response.body().size_hint().exact().unwrap_or(0);
    if !entry.is_told_apart() {
        return response;
    }
    // Cause is for operators only; values in it are escaped by the log's format.
    tracing::info!(
        request_id = entry.id(),
        code = refusal.code.name(),
        status = response.status().as_u16(),
        cause = refusal.cause.as_deref(),
        "{}",
        refusal.message
    );
    response
}

impl AuditEntry {
    fn answered_here(
        &mut self,
        provider: Option<String>,
        endpoint: &'static str,
        outcome: Outcome,
    ) -> Outcome {
        self.record.provider = provider;
        self.record.endpoint = Some(endpoint);
        self.record.decision = AccessDecision::Allow;
        self.record.status = Some(200);
        let _ = self.is_told_apart();
        outcome
    }

    /// The provider did not answer: unless it may have worked on the request, nothing is owed.
    fn failed(&mut self, refusal: &Refusal) {
        if let Some(admission) = self.admission().filter(|_| !refusal.worked_on) {
            admission.owe_nothing();
        }
    }
}

fn client_session(headers: &HeaderMap) -> Option<String> {
    static NAMES: [HeaderName; 5] = [
        HeaderName::from_static("x-claude-code-session-id"),
        HeaderName::from_static("session-id"),
        HeaderName::from_static("session_id"),
        HeaderName::from_static("x-session-id"),
        HeaderName::from_static("x-session-affinity"),
    ];
    let value = NAMES.iter().find_map(|n| headers.get(n))?.to_str().ok()?;
    (value.len() <= 128).then(|| value.to_owned())
}
