//! A body held whole, in the pieces in which it came.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};

use super::Share;
use crate::sidecar::record::{AuditRecord, Describe};

/// A body held whole, in the pieces in which it came.
#[derive(Debug, Clone, Default)]
pub struct BufferedBody {
    pub(super) pieces: Vec<Bytes>,
    pub(super) len: usize,
    /// Its share of the memory, given back with the last copy.
    pub(super) _share: Option<Arc<Share>>,
}

impl BufferedBody {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// The body of the upstream request.
    pub fn into_stream(self) -> BufferedBodyStream {
        BufferedBodyStream {
            left: self.len as u64,
            pieces: self.pieces.into_iter(),
            _share: self._share,
        }
    }

    #[cfg(test)]
    pub(crate) fn of(pieces: Vec<Bytes>) -> Self {
        BufferedBody {
            len: pieces.iter().map(Bytes::len).sum(),
            pieces,
            _share: None,
        }
    }
}

impl Describe for BufferedBody {
    fn describe(&self, record: &mut AuditRecord) {
        record.body_read = true;
        record.bytes_in = self.len as u64;
    }
}

/// Sends a [`BufferedBody`] piece by piece, without joining the pieces.
#[derive(Debug)]
pub struct BufferedBodyStream {
    pub(super) pieces: std::vec::IntoIter<Bytes>,
    pub(super) left: u64,
    pub(super) _share: Option<Arc<Share>>,
}

impl HttpBody for BufferedBodyStream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let next = self.pieces.next();
        if let Some(piece) = &next {
            self.left -= piece.len() as u64;
        }
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
