//! Reading the body of a request.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::Request;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde_json::{Value, json};

use crate::adapter::port::access::RequestError;
use crate::adapter::port::inject::{MAX_ATTACHMENTS, MAX_TEXT};

/// The largest body: text and images, with what JSON adds to them.
pub(crate) const MAX_BODY: usize = MAX_ATTACHMENTS + 8 * MAX_TEXT;

/// How much of a refused body is read away, and for how long.
pub(crate) const DRAIN_BYTES: usize = 64 << 20;

pub(crate) const DRAIN_TIME: Duration = Duration::from_secs(5);

pub(crate) const BODY_TIME: Duration = Duration::from_secs(30);

/// Reads a body of at most `max` bytes. Its content type must be JSON.
pub(crate) async fn body(request: Request<Incoming>, max: usize) -> Result<Bytes, RequestError> {
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

pub(crate) async fn drain(body: &mut Incoming) {
    let mut left = DRAIN_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

/// The body's JSON; an empty one is an empty object.
pub(crate) fn object(bytes: &[u8]) -> Result<Value, RequestError> {
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
