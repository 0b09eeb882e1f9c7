//! Whether a connection is serving a request, for those that wait for its end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;

use crate::base::sync::lock;
use crate::sidecar::state::SidecarState;

/// While it lives, its connection is serving a request.
#[derive(Debug)]
pub struct InFlightGuard {
    pub(crate) flag: Arc<Activity>,
    pub(crate) shared: Arc<SidecarState>,
}

#[derive(Debug, Default)]
pub struct Activity {
    pub(crate) busy: AtomicBool,
    /// Whoever waits for the request to be over.
    pub(crate) waiting: Mutex<Option<Waker>>,
}

impl Activity {
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// Wakes this task when the request that is being served is over.
    pub fn wake_after(&self, waker: &Waker) {
        *lock(&self.waiting) = Some(waker.clone());
    }
}

impl InFlightGuard {
    pub fn new(flag: &Arc<Activity>, shared: &Arc<SidecarState>) -> Self {
        flag.busy.store(true, Ordering::Release);
        shared.metrics.in_flight.inc();
        InFlightGuard {
            flag: flag.clone(),
            shared: shared.clone(),
        }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.flag.busy.store(false, Ordering::Release);
        self.shared.metrics.in_flight.dec();
        if let Some(waker) = lock(&self.flag.waiting).take() {
            waker.wake();
        }
    }
}
