//! A stream whose request heads are checked before hyper reads them.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::{HEAD_TIME, Handle, IDLE_TIME};
use crate::base::framing::{HeadScanner, Verdict};
use crate::base::sync::lock;

/// A client's bytes, followed as hyper reads them.
pub(super) struct StrictFraming {
    pub(super) io: TcpStream,
    pub(super) scanner: HeadScanner,
    pub(super) handle: Arc<Handle>,
    /// The last byte in or out.
    pub(super) last: Instant,
    pub(super) fresh: bool,
    pub(super) complete: bool,
    /// The body broke: its reader is told once, and answers.
    pub(super) broken: Option<&'static str>,
    pub(super) timer: Option<Pin<Box<Sleep>>>,
}

impl StrictFraming {
    pub(super) fn new(io: TcpStream, handle: Arc<Handle>) -> Self {
        StrictFraming {
            io,
            scanner: HeadScanner::default(),
            handle,
            last: Instant::now(),
            fresh: true,
            complete: false,
            broken: None,
            timer: None,
        }
    }

    /// Has nothing moved for this long? Otherwise the task is woken when it would be.
    pub(super) fn expired(&mut self, cx: &mut Context<'_>, limit: Duration) -> bool {
        loop {
            let due = self.last + limit;
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
            if timer.deadline() > due.into() {
                timer.as_mut().reset(due.into());
            }
            if timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            if Instant::now() >= due {
                return true;
            }
            timer.as_mut().reset(due.into());
        }
    }
}

impl AsyncRead for StrictFraming {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(what) = this.broken.take() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        if this.complete {
            return this.after_the_end(cx);
        }
        let before = buf.filled().len();
        if Pin::new(&mut this.io).poll_read(cx, buf)?.is_pending() {
            // hyper does not ask again by itself when the reply is over, and then we are idle.
            this.handle.busy.wake_after(cx.waker());
            if this.handle.busy.is_busy() {
                return Poll::Pending;
            }
            let limit = if this.fresh || this.scanner.mid_head() {
                HEAD_TIME
            } else {
                IDLE_TIME
            };
            if !this.expired(cx, limit) {
                return Poll::Pending;
            }
            this.complete = true;
            return Poll::Ready(Ok(()));
        }
        // The head's time runs from its first byte, whatever trickles in after it.
        if !this.scanner.mid_head() {
            this.last = Instant::now();
        }
        this.fresh = false;
        match this.scanner.scan(&buf.filled()[before..]) {
            Verdict::Pass => Poll::Ready(Ok(())),
            Verdict::BadHead { good, fault } => {
                buf.set_filled(before + good);
                this.complete = true;
                let line = this.scanner.refused_line().to_owned();
                *lock(&this.handle.fault) = Some((fault, line));
                if good == 0 {
                    this.after_the_end(cx)
                } else {
                    Poll::Ready(Ok(()))
                }
            }
            Verdict::BadBody { good, fault } => {
                buf.set_filled(before + good);
                this.complete = true;
                this.broken = Some(fault.what);
                if good == 0 {
                    Pin::new(this).poll_read(cx, buf)
                } else {
                    Poll::Ready(Ok(()))
                }
            }
        }
    }
}

impl AsyncWrite for StrictFraming {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write(cx, buf);
        this.wrote(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.wrote(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.get_mut().io).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}
