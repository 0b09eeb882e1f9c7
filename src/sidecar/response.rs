//! The body of what the sidecar answers: its own text, a list of models, or a relayed reply.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, SizeHint};

use crate::sidecar::activity::InFlightGuard;
use crate::sidecar::steps::relay::{Relay, RelayError};

/// The body of what we answer.
#[derive(Debug)]
pub struct ResponseBody {
    pub(crate) kind: ResponseBodyKind,
    pub(crate) _busy: InFlightGuard,
}

#[derive(Debug)]
pub(crate) enum ResponseBodyKind {
    Own(Full<Bytes>),
    /// A list of models. Its bytes hold their memory until the last of them is written.
    List(Full<Bytes>),
    Relay(Box<Relay>),
}

impl ResponseBody {
    /// Whether the sidecar made this answer without asking a provider.
    pub fn is_local(&self) -> bool {
        matches!(self.kind, ResponseBodyKind::Own(_))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        match &mut self.kind {
            ResponseBodyKind::Own(body) | ResponseBodyKind::List(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            ResponseBodyKind::Relay(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            ResponseBodyKind::Own(body) | ResponseBodyKind::List(body) => body.is_end_stream(),
            ResponseBodyKind::Relay(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            ResponseBodyKind::Own(body) | ResponseBodyKind::List(body) => body.size_hint(),
            ResponseBodyKind::Relay(body) => body.size_hint(),
        }
    }
}
