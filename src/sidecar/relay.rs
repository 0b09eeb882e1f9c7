//! Step 8 of a request: the reply's bytes, as they come.
//!
//! Invariants:
//! - A reply that was cut is cut for the client too (its connection is aborted): it never
//!   looks like one that ended well.
//! - Whatever ends a relay (its end, an error, a client that went away), the record is filled
//!   and the budget charged exactly once, and the upstream connection is let go at once.
//! - Nothing is kept of a reply but what could still be the beginning of a key.

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode, http::response::Parts};
use tokio::time::Sleep;

use super::audit::{Entry, ExtraTokens, Tokens};
use super::config::ProviderConfig;
use super::limit::{Admission, Estimate};
use super::proxy::Shared;
use super::redact::{Patterns, Redactor};
use super::refusal::{Code, Denial};
use super::route::Route;
use super::scope::Permit;
use super::usage::{Framing, Meter, Report, Usage};
use crate::catalogue;

/// Headers of a reply that clients need: what it is, whose it is, when to try again. In
/// lower case. No cookie, no account, no redirect, no hop of somebody else's.
const RETURNED: &[&str] = &[
    "content-type",
    "request-id",
    "x-request-id",
    "x-oai-request-id",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "openai-processing-ms",
    "openai-version",
    "openai-model",
    "x-generation-id",
    "x-models-etag",
    "x-reasoning-included",
];
const RETURNED_PREFIXES: &[&str] = &["anthropic-ratelimit-", "x-ratelimit-", "x-codex-", "x-openai-"];

/// Largest list of models that is taken in to be cut down.
const MAX_LIST: usize = 8 << 20;
const LIST_TIME: Duration = Duration::from_secs(30);
/// A compressed reply is undone in slices of this size, so that a bomb costs a megabyte.
const INFLATE_SLICE: usize = 1024;

/// What a relay needs to know of its request.
#[derive(Debug)]
pub struct Call {
    pub shared: Arc<Shared>,
    pub route: Route,
    pub permit: Permit,
    pub admission: Admission,
}

/// The client's response: the reply's head with only what is listed, and its body.
///
/// # Errors
/// `upstream_invalid` for a reply in an encoding that was not asked for.
pub fn relay(call: Call, reply: Response<Incoming>, entry: Entry) -> Result<Response<Relay>, (Denial, Box<Entry>)> {
    let (parts, body) = reply.into_parts();
    let inflate = match parts.headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity" | b"") => None,
        Some(b"gzip") => Some(flate2::write::GzDecoder::new(Vec::new())),
        Some(other) => {
            let d = Denial::new(Code::UpstreamInvalid, "the provider compressed its answer although it was asked not to").cause(other.escape_ascii());
            return Err((d, Box::new(entry)));
        }
    };
    let redactor = Redactor::new(call.shared.secrets.patterns());
    let mut head = Response::new(());
    *head.status_mut() = parts.status;
    *head.headers_mut() = returned(&parts, inflate.is_some(), &redactor, &entry);
    let meter = meter(&call.route, &parts);
    let timeouts = call.shared.config.timeouts;
    let left = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
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

fn meter(route: &Route, parts: &Parts) -> Option<Meter> {
    let format = route.endpoint().usage?;
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    Framing::of(content_type).map(|framing| Meter::new(format, framing))
}

fn returned(parts: &Parts, inflated: bool, redactor: &Redactor, entry: &Entry) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    let listed = |name: &HeaderName| RETURNED.contains(&name.as_str()) || RETURNED_PREFIXES.iter().any(|p| name.as_str().starts_with(p));
    for (name, value) in &parts.headers {
        if listed(name) && !redactor.echoes(value.as_bytes()) {
            headers.append(name, value.clone());
        }
    }
    if let Some(length) = parts.headers.get(CONTENT_LENGTH).filter(|_| !inflated) {
        headers.insert(CONTENT_LENGTH, length.clone());
    }
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(entry.id()) {
        headers.insert("x-outrigger-request-id", id);
    }
    headers
}

/// Why a reply was cut.
#[derive(Debug, thiserror::Error)]
pub enum Cut {
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
    call: Call,
    entry: Option<Box<Entry>>,
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
    /// Nothing more comes: the body says so, or all of its announced length was read (over
    /// HTTP/2 its end is a frame of its own, for which nobody waits).
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

    fn inflate(&mut self) -> Result<Bytes, Cut> {
        let Some(decoder) = &mut self.inflate else { return Ok(Bytes::new()) };
        let slice = self.raw.split_to(self.raw.len().min(INFLATE_SLICE));
        decoder.write_all(&slice).and_then(|()| decoder.flush()).map_err(Cut::Encoding)?;
        Ok(std::mem::take(decoder.get_mut()).into())
    }

    fn stalled(&mut self, cx: &mut Context<'_>) -> Option<Cut> {
        loop {
            let due = (self.last + self.idle).min(self.end);
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
            if sleep.as_mut().poll(cx).is_pending() {
                return None;
            }
            let now = Instant::now();
            if now >= self.end {
                return Some(Cut::TooLong);
            }
            if now >= self.last + self.idle {
                return Some(Cut::Stalled);
            }
            sleep.as_mut().reset(due.into());
        }
    }

    fn cut(&mut self, why: Cut) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        tracing::warn!(request_id = self.entry.as_ref().map(|e| e.id()), cause = %why, "reply cut");
        let code = if matches!(why, Cut::Stalled | Cut::TooLong) { Code::UpstreamTimeout.name() } else { "upstream_cut" };
        self.finish(false, Some(code));
        Poll::Ready(Some(Err(why)))
    }

    /// Fills the record and charges the budget. Once.
    fn finish(&mut self, clean: bool, code: Option<&'static str>) {
        self.done = true;
        let Some(mut entry) = self.entry.take() else { return };
        entry.record.code = code;
        let mut report = self.meter.take().map(|m| m.finish(clean)).unwrap_or_default();
        self.redact(&mut report);
        settle(&mut self.call, &mut entry, self.status, report);
        if self.redactor.hits > 0 {
            entry.record.key_echoed = true;
            self.call.shared.metrics.key_echoes.inc();
            tracing::error!(
                request_id = entry.id(),
                provider = self.call.route.provider(),
                "the provider's reply held the workspace's key, which was blotted out"
            );
        }
    }

    /// What goes into records and logs is an id, and not our key.
    fn redact(&self, report: &mut Report) {
        let fine = |s: &String| s.len() <= 128 && super::model::is_id(s) && !self.redactor.echoes(s.as_bytes());
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

/// What the reply said about itself goes into the record and onto the bill.
fn settle(call: &mut Call, entry: &mut Entry, status: StatusCode, report: Report) {
    let record = &mut entry.record;
    record.model_reported = report.model;
    record.upstream_error = report.error.and_then(|e| e.kind);
    let billed = call.route.endpoint().usage.is_some() && status.is_success();
    let usage = report.usage.filter(|_| billed);
    if let Some(u) = &usage {
        record.tokens = Tokens { input: u.input, cache_read: u.cache_read, cache_write: u.cache_write, output: u.output, reasoning: u.reasoning };
        record.extra_usage = u.extra.iter().map(extra).collect();
        record.usage_complete = report.complete;
        let (prices, provider) = (&call.shared.config.prices, call.permit.provider());
        record.cost_usd = price_of(prices, provider, u, record.model_reported.as_deref(), record.model_requested.as_deref(), report.tier.as_deref());
    }
    if let (Some(reported), Some(requested)) = (&record.model_reported, &record.model_requested)
        && billed
        && !reported.starts_with(requested.as_str())
        && !call.permit.shows(reported)
    {
        call.shared.metrics.model_mismatches.inc();
        tracing::warn!(request_id = %record.request_id, requested, reported, "the reply comes from a model that no grant covers");
    }
    if billed {
        charge(call, entry, usage, report.complete);
    } else {
        call.admission.charge(0, 0.0);
    }
}

/// The budget pays what the reply reported. Of what it did not, or could not before it was
/// cut, it pays what is known to have passed: the request at four bytes a token, the reply at
/// sixteen, since a stream wraps each token in JSON.
fn charge(call: &mut Call, entry: &Entry, usage: Option<Usage>, complete: bool) {
    let record = &entry.record;
    let mut usage = usage.unwrap_or_default();
    if !complete {
        if usage.input.is_none() && usage.cache_read.is_none() && usage.cache_write.is_none() {
            usage.input = Some(record.bytes_in / 4);
        }
        usage.output = Some(usage.output.unwrap_or(0).max(record.bytes_out / 16));
    }
    let usd = record.cost_usd.filter(|_| complete).unwrap_or_else(|| {
        let provider = call.permit.provider();
        price_of(&call.shared.config.prices, provider, &usage, record.model_reported.as_deref(), record.model_requested.as_deref(), None)
            .unwrap_or_else(|| unpriced(provider, &usage))
    });
    call.admission.charge(usage.total(), usd);
}

/// A model without a price is paid as a dear one, or a budget in dollars would not hold.
fn unpriced(provider: &ProviderConfig, usage: &Usage) -> f64 {
    if provider.def.local { 0.0 } else { catalogue::UNKNOWN.cost(tokens_of(usage), None) }
}

/// What a request of this size is taken to cost before anything is known of its reply.
pub fn estimate(prices: &catalogue::Overrides, provider: &ProviderConfig, model: Option<&str>, bytes: usize) -> Estimate {
    let tokens = bytes as u64 / 4;
    let usage = Usage { input: Some(tokens), ..Usage::default() };
    let usd = price_of(prices, provider, &usage, None, model, None).unwrap_or_else(|| unpriced(provider, &usage));
    Estimate { tokens, usd }
}

fn tokens_of(usage: &Usage) -> catalogue::Tokens {
    let n = |v: Option<u64>| v.unwrap_or(0);
    catalogue::Tokens {
        input: n(usage.input),
        cache_read: n(usage.cache_read),
        cache_write: n(usage.cache_write),
        cache_write_1h: n(usage.cache_write_1h),
        output: n(usage.output),
    }
}

fn extra(e: &super::usage::Extra) -> ExtraTokens {
    ExtraTokens {
        kind: e.kind.clone(),
        model: e.model.clone(),
        tokens: Tokens { input: e.input, cache_read: e.cache_read, cache_write: e.cache_write, output: e.output, reasoning: None },
    }
}

fn price_of(
    prices: &catalogue::Overrides,
    provider: &ProviderConfig,
    usage: &Usage,
    reported: Option<&str>,
    requested: Option<&str>,
    tier: Option<&str>,
) -> Option<f64> {
    if usage.cost_usd.is_some() {
        return usage.cost_usd;
    }
    // An own name for a provider does not change what its kind costs.
    let price = |model: &str| prices.price(&provider.name, model).or_else(|| prices.price(provider.def.kind, model));
    let main = reported.and_then(price).or_else(|| requested.and_then(price))?;
    let mut usd = main.cost(tokens_of(usage), tier);
    for e in &usage.extra {
        let price = e.model.as_deref().and_then(price).unwrap_or(main);
        usd +=
            price.cost(tokens_of(&Usage { input: e.input, cache_read: e.cache_read, cache_write: e.cache_write, output: e.output, ..Usage::default() }), None);
    }
    Some(usd)
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
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
                    let Ok(piece) = frame.into_data() else { continue }; // trailers stay here
                    this.left = this.left.map(|left| left.saturating_sub(piece.len() as u64));
                    if this.inflate.is_some() {
                        this.raw = piece;
                        continue;
                    }
                    let out = this.pass(piece);
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out))));
                    }
                }
                Poll::Ready(Some(Err(e))) => return this.cut(Cut::Upstream(e)),
                Poll::Ready(None) => {
                    if let Some(Err(why)) = this.inflate.as_mut().map(flate2::write::GzDecoder::try_finish) {
                        return this.cut(Cut::Encoding(why));
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
        if self.inflate.is_some() || !self.redactor.holds_nothing() { SizeHint::default() } else { self.body.size_hint() }
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

/// A list of models, cut down to those that the session may use; and whether it held our key.
///
/// # Errors
/// `upstream_invalid` when it is no list, or too long.
pub async fn filter_models(permit: &Permit, reply: Response<Incoming>, patterns: Arc<Patterns>) -> Result<(Bytes, bool), Denial> {
    let bad = |cause: &str| Denial::new(Code::UpstreamInvalid, "the provider's list of models could not be read").cause(cause);
    let body = http_body_util::Limited::new(reply.into_body(), MAX_LIST).collect();
    let body =
        tokio::time::timeout(LIST_TIME, body).await.map_err(|_| Denial::new(Code::UpstreamTimeout, "the provider's list of models did not arrive in time"))?;
    let body = body.map_err(|e| bad(&e.to_string()))?.to_bytes();
    let mut list: serde_json::Value = serde_json::from_slice(&body).map_err(|e| bad(&e.to_string()))?;
    let shows = |item: &serde_json::Value| {
        let id = ["id", "model", "name"].iter().find_map(|k| item.get(*k)?.as_str());
        id.is_some_and(|id| permit.shows(id.strip_prefix("models/").unwrap_or(id)))
    };
    for key in ["data", "models"] {
        if let Some(items) = list.get_mut(key).and_then(serde_json::Value::as_array_mut) {
            items.retain(shows);
        }
    }
    if let Some(items) = list.as_array_mut() {
        items.retain(shows);
    }
    let list = serde_json::to_vec(&list).map_err(|e| bad(&e.to_string()))?;
    let mut redactor = Redactor::new(patterns);
    let clean = [redactor.feed(list.into()), redactor.finish()].concat();
    Ok((clean.into(), redactor.hits > 0))
}
