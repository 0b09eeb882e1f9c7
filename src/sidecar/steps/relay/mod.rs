//! Step 9 of a request: the reply's bytes, as they come.
//!
//! Invariants:
//! - A reply that was cut is cut for the client too (its connection is aborted): it never
//!   looks like one that ended well.
//! - Whatever ends a relay (its end, an error, a client that went away), the record is filled
//!   and the budget charged exactly once, and the upstream connection is let go at once.
//! - Nothing is kept of a reply but what could still be the beginning of a key.

mod settle;

mod head;

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::time::Sleep;

use self::head::{meter, returned};
use self::settle::settle;
use crate::sidecar::audit::AuditEntry;
use crate::sidecar::redact::Redactor;
use crate::sidecar::refusal;
use crate::sidecar::refusal::{Code, Refusal};
use crate::sidecar::state::SidecarState;
use crate::sidecar::steps::limit::Admitted;
use crate::sidecar::steps::route::Routed;
use crate::sidecar::steps::scope::Permit;
use crate::sidecar::usage::Report;
use crate::sidecar::usage::meter::Meter;

/// A compressed reply is undone in slices of this size, so that a bomb costs a megabyte.
const INFLATE_SLICE: usize = 1024;

/// What a relay needs to know of its request.
#[derive(Debug)]
pub struct RelayedCall {
    shared: Arc<SidecarState>,
    routed: Routed,
    permit: Permit,
    /// The most output tokens that the request allows.
    max_output: Option<u64>,
    /// Part of its input is kept at the provider, or is not in its bytes.
    whole_context: bool,
    /// The client shows how far its budget is used.
    notices: bool,
}

impl RelayedCall {
    /// `client`: the headers of the request. The body that may have been kept for a second try
    /// gives its memory back here.
    pub fn new(shared: &Arc<SidecarState>, admitted: Admitted, client: &HeaderMap) -> RelayedCall {
        let (routed, permit, facts) = admitted.into_parts();
        RelayedCall {
            shared: shared.clone(),
            routed,
            permit,
            max_output: facts.cost().most_output(),
            whole_context: facts.may_fill_context(),
            notices: refusal::is_claude_code(client),
        }
    }
}

/// The client's response: the reply's head with only what is listed, and its body.
///
/// # Errors
/// `upstream_invalid` for a reply in an encoding that was not asked for.
pub fn relay(
    call: RelayedCall,
    reply: Response<Incoming>,
    entry: AuditEntry,
) -> Result<Response<Relay>, (Refusal, Box<AuditEntry>)> {
    let (parts, body) = reply.into_parts();
    let mut encodings = parts
        .headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .map(HeaderValue::as_bytes)
        .filter(|v| !matches!(*v, b"identity" | b""));
    let inflate = match (encodings.next(), encodings.next()) {
        (None, _) => None,
        (Some(b"gzip"), None) => Some(flate2::write::GzDecoder::new(Vec::new())),
        (Some(other), _) => {
            let d = Refusal::new(
                Code::UpstreamInvalid,
                "the provider compressed its answer although it was asked not to",
            )
            .cause(other.escape_ascii());
            return Err((d, Box::new(entry)));
        }
    };
    let redactor = Redactor::new(call.shared.secrets.patterns());
    let mut head = Response::new(());
    *head.status_mut() = parts.status;
    *head.headers_mut() = returned(&call, &parts, inflate.is_some(), &redactor, &entry);
    let meter = meter(&call.routed, &parts);
    let timeouts = call.shared.config.timeouts;
    let left = parts
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse().ok());
    let relay = Relay {
        body,
        left,
        call,
        entry: Some(Box::new(entry)),
        meter,
        redactor,
        inflate,
        raw: Bytes::new(),
        status: parts.status,
        last: Instant::now(),
        idle: timeouts.idle,
        end: Instant::now() + timeouts.total,
        sleep: None,
        done: false,
    };
    Ok(head.map(|()| relay))
}

/// Why a reply was cut.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("the provider's reply was cut: {0}")]
    Upstream(hyper::Error),
    #[error("the provider's reply stalled")]
    Stalled,
    #[error("the provider's reply took too long")]
    TooLong,
    #[error("the provider's compressed reply is broken: {0}")]
    Encoding(std::io::Error),
}

/// A reply's body on its way to the client.
#[derive(Debug)]
pub struct Relay {
    body: Incoming,
    /// Bytes that are still to come, by the reply's `Content-Length`.
    left: Option<u64>,
    call: RelayedCall,
    entry: Option<Box<AuditEntry>>,
    meter: Option<Meter>,
    redactor: Redactor,
    inflate: Option<flate2::write::GzDecoder<Vec<u8>>>,
    /// Compressed bytes that are still to be undone.
    raw: Bytes,
    status: StatusCode,
    last: Instant,
    idle: Duration,
    end: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
    done: bool,
}

impl Relay {
    /// Nothing more comes: the body says so, or all of its announced length was read (hyper may
    /// report the end only on a further poll).
    fn is_whole(&self) -> bool {
        // A compressed reply is whole when its own end was found, at the end of the body.
        self.inflate.is_none() && (self.left == Some(0) || self.body.is_end_stream())
    }

    /// A piece of the reply, on its way out; empty if all of it is held back.
    fn pass(&mut self, piece: Bytes) -> Bytes {
        if let Some(entry) = self.entry.as_mut()
            && entry.record.ttft_ms.is_none()
        {
            entry.record.ttft_ms = Some(entry.elapsed_ms());
        }
        if let Some(meter) = &mut self.meter {
            meter.feed(&piece);
        }
        let mut out = self.redactor.feed(piece);
        if self.is_whole() {
            let rest = self.redactor.finish();
            if !rest.is_empty() {
                out = [out, rest].concat().into();
            }
        }
        if let Some(entry) = self.entry.as_mut() {
            entry.record.bytes_out += out.len() as u64;
        }
        out
    }

    fn inflate(&mut self) -> Result<Bytes, RelayError> {
        let Some(decoder) = &mut self.inflate else {
            return Ok(Bytes::new());
        };
        let slice = self.raw.split_to(self.raw.len().min(INFLATE_SLICE));
        decoder
            .write_all(&slice)
            .and_then(|()| decoder.flush())
            .map_err(RelayError::Encoding)?;
        Ok(std::mem::take(decoder.get_mut()).into())
    }

    fn stalled(&mut self, cx: &mut Context<'_>) -> Option<RelayError> {
        loop {
            let due = (self.last + self.idle).min(self.end);
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
            if sleep.as_mut().poll(cx).is_pending() {
                return None;
            }
            let now = Instant::now();
            if now >= self.end {
                return Some(RelayError::TooLong);
            }
            if now >= self.last + self.idle {
                return Some(RelayError::Stalled);
            }
            sleep.as_mut().reset(due.into());
        }
    }

    fn cut(&mut self, why: RelayError) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        tracing::warn!(request_id = self.entry.as_ref().map(|e| e.id()), cause = %why, "reply cut");
        let code = if matches!(why, RelayError::Stalled | RelayError::TooLong) {
            Code::UpstreamTimeout.name()
        } else {
            "upstream_cut"
        };
        self.finish(false, Some(code));
        Poll::Ready(Some(Err(why)))
    }

    /// Fills the record and charges the budget. Once.
    fn finish(&mut self, clean: bool, code: Option<&'static str>) {
        self.done = true;
        let Some(mut entry) = self.entry.take() else {
            return;
        };
        entry.record.code = code;
        let mut report = self
            .meter
            .take()
            .map(|m| m.finish(clean))
            .unwrap_or_default();
        self.redact(&mut report);
        // Only a provider that makes the ids itself vouches for them; compaction repeats the
        // client's.
        if self.call.routed.endpoint().body.item_references
            && self.call.routed.endpoint().name == "responses"
        {
            self.call
                .shared
                .known_objects
                .remember(self.call.routed.provider(), std::mem::take(&mut report.ids));
        }
        settle(&self.call, &mut entry, self.status, report);
        if self.redactor.hits > 0 {
            entry.record.key_echoed = true;
            self.call.shared.metrics.key_echoes.inc();
            tracing::error!(
                request_id = entry.id(),
                provider = self.call.routed.provider(),
                "the provider's reply held the workspace's key, which was overwritten"
            );
        }
    }

    /// What goes into records and logs is an id, and not our key.
    fn redact(&self, report: &mut Report) {
        let fine = |s: &String| {
            s.len() <= 128 && crate::sidecar::id::is_id(s) && !self.redactor.echoes(s.as_bytes())
        };
        report.model = report.model.take().filter(fine);
        report.tier = report.tier.take().filter(fine);
        if let Some(error) = &mut report.error {
            error.kind = error.kind.take().filter(fine);
        }
        for extra in report.usage.iter_mut().flat_map(|u| &mut u.extra) {
            extra.model = extra.model.take().filter(fine);
            if !fine(&extra.kind) {
                extra.kind = "other".into();
            }
        }
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let this = self.get_mut();
        if this.done {
            return Poll::Ready(None);
        }
        loop {
            if !this.raw.is_empty() {
                let out = match this.inflate() {
                    Ok(piece) => this.pass(piece),
                    Err(why) => return this.cut(why),
                };
                if !out.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(out))));
                }
                continue;
            }
            match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.last = Instant::now();
                    let Ok(piece) = frame.into_data() else {
                        continue;
                    }; // trailers stay here
                    this.left = this
                        .left
                        .map(|left| left.saturating_sub(piece.len() as u64));
                    if this.inflate.is_some() {
                        this.raw = piece;
                        continue;
                    }
                    let out = this.pass(piece);
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out))));
                    }
                }
                Poll::Ready(Some(Err(e))) => return this.cut(RelayError::Upstream(e)),
                Poll::Ready(None) => {
                    if let Some(Err(why)) = this
                        .inflate
                        .as_mut()
                        .map(flate2::write::GzDecoder::try_finish)
                    {
                        return this.cut(RelayError::Encoding(why));
                    }
                    let rest = this.redactor.finish();
                    if let Some(entry) = this.entry.as_mut() {
                        entry.record.bytes_out += rest.len() as u64;
                    }
                    this.finish(true, None);
                    return Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))));
                }
                Poll::Pending => {
                    return match this.stalled(cx) {
                        Some(why) => this.cut(why),
                        None => Poll::Pending,
                    };
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.done || (self.is_whole() && self.redactor.holds_nothing())
    }

    fn size_hint(&self) -> SizeHint {
        if self.inflate.is_some() || !self.redactor.holds_nothing() {
            SizeHint::default()
        } else {
            self.body.size_hint()
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.done {
            // hyper stops asking once a body of known length is whole, and a client may stop
            // listening once the protocol has ended.
            let whole = self.is_end_stream() || self.meter.as_ref().is_some_and(Meter::ended);
            self.finish(whole, (!whole).then_some("client_closed"));
        }
    }
}
