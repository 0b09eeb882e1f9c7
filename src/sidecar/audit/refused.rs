//! Records that refused requests share.
//!
//! An agent can send refused requests as fast as it likes. Each gets a record of its own up to a
//! rate; beyond it, those with the same code are counted in one record, which is written from time
//! to time. So what an agent can write to the audit per day is bounded, whatever it sends.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::base::sync::lock;
use crate::sidecar::metrics::Metrics;
use crate::sidecar::record::AuditRecord;

/// Records of their own per second, and how many at once after a quiet time.
const PER_SECOND: NonZeroU32 = NonZeroU32::new(1).unwrap();
const BURST: NonZeroU32 = NonZeroU32::new(1000).unwrap();
/// A shared record is written so long after its first request …
const SOON: Duration = Duration::from_secs(1);
/// … and no sooner than this after the last one of the same code.
const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Refused {
    rate: DefaultDirectRateLimiter,
    groups: Mutex<BTreeMap<&'static str, Group>>,
}

/// The requests of one code.
#[derive(Debug, Default)]
struct Group {
    /// The first since the last record, and how many there were.
    open: Option<(Box<AuditRecord>, u64, Instant)>,
    written: Option<Instant>,
}

impl Default for Refused {
    fn default() -> Self {
        Refused {
            rate: RateLimiter::direct(Quota::per_second(PER_SECOND).allow_burst(BURST)),
            groups: Mutex::default(),
        }
    }
}

impl Refused {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Group>> {
        lock(&self.groups)
    }

    /// May one more have a record of its own?
    pub fn has_room(&self) -> bool {
        self.rate.check().is_ok()
    }

    pub fn add(&self, record: &AuditRecord, metrics: &Metrics) {
        metrics.coalesced.inc();
        let mut groups = self.lock();
        let group = groups.entry(record.code.unwrap_or("none")).or_default();
        let (shared, count, _) = group
            .open
            .get_or_insert_with(|| (Box::new(record.clone()), 0, Instant::now()));
        *count += 1;
        // What they do not have in common is not said of them.
        if shared.provider != record.provider {
            shared.provider = None;
        }
        if shared.endpoint != record.endpoint {
            shared.endpoint = None;
        }
        if shared.model_requested != record.model_requested {
            (shared.model_requested, shared.scope_needed) = (None, None);
        }
    }

    /// The shared records that are due; all of them at the end.
    pub fn flush(&self, closing: bool) -> Vec<AuditRecord> {
        let now = Instant::now();
        let due = |group: &Group| {
            let recent = group.written.is_some_and(|at| now - at < INTERVAL);
            group
                .open
                .as_ref()
                .is_some_and(|(_, _, since)| closing || (now - *since >= SOON && !recent))
        };
        let mut groups = self.lock();
        let ready = groups.values_mut().filter(|g| due(g)).filter_map(|group| {
            group.written = Some(now);
            group.open.take()
        });
        ready
            .map(|(record, count, _)| AuditRecord {
                count: Some(count),
                ..*record
            })
            .collect()
    }
}
