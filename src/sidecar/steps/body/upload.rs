//! One upload, and whether it is late.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::BodyMemory;
use crate::base::sync::lock;
use crate::sidecar::refusal::{Code, Refusal};

/// Longest time between two pieces of a body.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(15);

/// A body may take this long, and one second more for every KiB that has come …
pub(super) const BASE_TIME: Duration = Duration::from_secs(30);

/// … but never longer than this.
pub(super) const MAX_TIME: Duration = Duration::from_secs(600);

/// A late body is given up at most this much later.
pub(super) const LATENESS: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(super) struct Uploads {
    pub(super) next: u64,
    pub(super) open: BTreeMap<u64, Arc<Upload>>,
}

/// Why a body that was still coming is waited for no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// Others needed its place.
    MakeRoom,
    /// Its next piece did not come in time, or the whole body did not.
    Late,
}

/// A body that is still coming.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) since: Instant,
    pub(super) progress: Mutex<Progress>,
    /// Told that `progress.given_up` is set.
    pub(super) given_up: Notify,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// Bytes of memory that it holds.
    pub(super) held: usize,
    /// Bytes of the body that came.
    pub(super) received: usize,
    pub(super) last: Instant,
    pub(super) given_up: Option<GivenUp>,
}

/// Takes an upload off the list when its body is whole or given up.
pub(super) struct UploadRegistration<'a> {
    pub(super) memory: &'a BodyMemory,
    pub(super) id: u64,
    pub(super) upload: Arc<Upload>,
}

impl Drop for UploadRegistration<'_> {
    fn drop(&mut self) {
        lock(&self.memory.uploads).open.remove(&self.id);
    }
}

impl Upload {
    pub(super) fn give_up(&self, why: GivenUp) {
        lock(&self.progress).given_up.get_or_insert(why);
        self.given_up.notify_one();
    }

    pub(super) fn progressed(&self, held: usize, received: usize) {
        let mut progress = lock(&self.progress);
        progress.held = held;
        progress.received = received;
        progress.last = Instant::now();
    }

    pub(super) fn is_late(&self, now: Instant) -> bool {
        let progress = *lock(&self.progress);
        let allowed = BASE_TIME + Duration::from_secs(progress.received as u64 / 1024);
        now > self.since + allowed.min(MAX_TIME) || now > progress.last + IDLE_TIME
    }

    pub(super) fn refusal(&self) -> Refusal {
        let progress = *lock(&self.progress);
        let (bytes, seconds) = (progress.received, self.since.elapsed().as_secs());
        let message = match progress.given_up {
            Some(GivenUp::Late) => {
                format!("only {bytes} bytes of the request body arrived within {seconds} s")
            }
            _ => format!(
                "the request body was given up to make room for others ({bytes} bytes in {seconds} s)"
            ),
        };
        Refusal::new(Code::BodyTimeout, message)
    }
}
