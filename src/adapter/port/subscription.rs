//! The body of a stream: what a subscriber is sent, as it comes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::task::JoinHandle;
use tokio::time::Interval;

use crate::adapter::journal::{Cursor, StreamPart};
use crate::adapter::port::access::RequestError;
use crate::adapter::protocol::EventView;

/// So that nothing between here and a browser takes a quiet stream for a dead one.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(15);

/// Parts of the journal that one subscriber looks through before others are served.
pub(crate) const PARTS_AT_ONCE: usize = 8;

pub(crate) const MAX_SUBSCRIBERS: usize = 2048;

/// A subscriber that is counted.
#[derive(Debug)]
pub(crate) struct SubscriberSlot(Arc<AtomicUsize>);

impl SubscriberSlot {
    pub(crate) fn take(count: &Arc<AtomicUsize>) -> Result<SubscriberSlot, RequestError> {
        if count.fetch_add(1, Ordering::AcqRel) >= MAX_SUBSCRIBERS {
            count.fetch_sub(1, Ordering::AcqRel);
            return Err(RequestError::new(
                503,
                "busy",
                format!("{MAX_SUBSCRIBERS} subscribers are here already"),
            ));
        }
        Ok(SubscriberSlot(count.clone()))
    }
}

impl Drop for SubscriberSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a subscriber is sent: the journal from its place on, and a heartbeat.
pub(crate) struct Subscription {
    pub(crate) cursor: Cursor,
    pub(crate) view: Looking,
    pub(crate) heartbeat: Interval,
    pub(crate) queue: VecDeque<Bytes>,
    pub(crate) complete: bool,
    pub(crate) _slot: SubscriberSlot,
}

/// Who looks at what a view does not pass on as it is.
pub(crate) enum Looking {
    Here(Box<EventView>),
    /// A thread that nobody is served by.
    Apart(JoinHandle<(Box<EventView>, VecDeque<Bytes>)>),
    /// That thread failed.
    Nobody,
}

impl Subscription {
    /// Goes on with what was looked at elsewhere. False: it is not done.
    fn is_here(&mut self, cx: &mut Context<'_>) -> bool {
        let Looking::Apart(looking) = &mut self.view else {
            return true;
        };
        match Pin::new(looking).poll(cx) {
            Poll::Pending => return false,
            Poll::Ready(Ok((view, queue))) => {
                (self.view, self.queue) = (Looking::Here(view), queue)
            }
            Poll::Ready(Err(_)) => (self.view, self.complete) = (Looking::Nobody, true),
        }
        true
    }

    fn feed(&mut self, part: StreamPart) {
        let Looking::Here(view) = &mut self.view else {
            return;
        };
        if !view.takes_its_time(&part) {
            return view.feed(part, &mut self.queue);
        }
        if let Looking::Here(mut view) = std::mem::replace(&mut self.view, Looking::Nobody) {
            self.view = Looking::Apart(tokio::task::spawn_blocking(move || {
                let mut queue = VecDeque::new();
                view.feed(part, &mut queue);
                (view, queue)
            }));
        }
    }
}

impl Body for Subscription {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        for _ in 0..PARTS_AT_ONCE {
            if !this.is_here(cx) {
                return Poll::Pending;
            }
            if let Some(bytes) = this.queue.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if this.complete {
                return Poll::Ready(None);
            }
            match this.cursor.poll_next(cx) {
                Poll::Ready(Some(part)) => this.feed(part),
                Poll::Ready(None) => this.complete = true,
                Poll::Pending if this.heartbeat.poll_tick(cx).is_ready() => {
                    this.queue.push_back(Bytes::from_static(b": heartbeat\n\n"))
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        // A filter that passes little: the others have their turn, too.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
