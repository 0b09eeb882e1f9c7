//! One record per request, always: served, refused, failed or left by its client.
//!
//! A request's [`AuditEntry`] is opened before anything else happens and written when it is dropped,
//! so there is no path on which it is forgotten. Before anything of it goes upstream, it is noted
//! ([`notes`]), so that a kill does not lose it either. One thread writes ([`writer`]): batches of
//! a few milliseconds, each synced to disk.
//!
//! Invariants:
//! - A record holds no secret and no prompt.
//! - While records cannot be written, no new request is served (`503 audit_unavailable`);
//!   those that wait are kept, in bounded memory, and written when it works again.
//! - Refused requests cannot wash others away: beyond a rate, equal ones share one record with a
//!   `count`.
//! - After a crash the file ends with a whole record.

pub mod chain;
mod file;
mod notes;
mod recover;
mod refused;
pub mod verify;
mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use self::notes::{NotePlace, Notes};
use self::refused::Refused;
use super::config::AuditConfig;
use super::metrics::Metrics;
use super::record::{AccessDecision, AuditRecord, Charge, Describe};
use super::refusal::{Code, Refusal};
use crate::base::disk;
use crate::base::sync::lock;
use crate::base::token::hex_to_letters;
use crate::sidecar::provider::Utilisation;
use crate::sidecar::steps::limit::Admission;

pub use self::recover::{Recovered, recover};
pub use self::writer::AuditWriter;

/// What may wait in memory; when it is full, connections are closed unserved.
const MAX_WAITING: usize = 8 << 20;

/// A request's record while the request goes on; written on drop.
#[derive(Debug)]
pub struct AuditEntry {
    log: Audit,
    started: Instant,
    pub record: AuditRecord,
    /// What is held back for it; given back on drop.
    admission: Option<Admission>,
    place: Option<NotePlace>,
    /// It stands in a record that it shares with others like it.
    shared: bool,
}

impl AuditEntry {
    pub fn id(&self) -> &str {
        &self.record.request_id
    }

    pub fn elapsed_ms(&self) -> f64 {
        millis(self.started)
    }

    /// Writes down what a step has found out.
    pub fn note(&mut self, proof: &impl Describe) {
        proof.describe(&mut self.record);
    }

    /// Notes that the request was let in. Must be called before anything of it goes upstream.
    ///
    /// # Errors
    /// `audit_unavailable` when it cannot be noted.
    pub fn admit(&mut self, admission: Admission) -> Result<(), Refusal> {
        self.record.decision = AccessDecision::Allow;
        let held = admission.held();
        self.admission = Some(admission);
        let Some(notes) = &self.log.shared.notes else {
            return Ok(());
        };
        match notes.put(&self.record, held.as_ref()) {
            Ok(place) => self.place = Some(place),
            Err(e) => {
                self.record.decision = AccessDecision::Deny;
                return Err(unavailable().cause(e));
            }
        }
        Ok(())
    }

    /// How far the tightest budget of its grants is used.
    pub fn utilisation(&self) -> Option<Utilisation> {
        self.admission.as_ref().and_then(Admission::utilisation)
    }

    pub fn admission(&mut self) -> Option<&mut Admission> {
        self.admission.as_mut()
    }

    /// Whether this request, which was refused or answered here, gets a record and a line in the
    /// log of its own.
    pub fn is_told_apart(&mut self) -> bool {
        // What was let in has a charge and a note of its own.
        self.shared =
            self.admission.is_none() && self.place.is_none() && !self.log.shared.refused.has_room();
        !self.shared
    }
}

/// The answer while records cannot be written.
pub fn unavailable() -> Refusal {
    let mut refusal = Refusal::new(
        Code::AuditUnavailable,
        "audit records cannot be written, so nothing is served",
    )
    .hint("an operator must make room under the audit file");
    refusal.retry_after = Some(Duration::from_secs(5));
    refusal
}

/// To the microsecond: more than that no clock in a container is good for.
fn millis(since: Instant) -> f64 {
    since.elapsed().as_micros() as f64 / 1000.0
}

impl Drop for AuditEntry {
    fn drop(&mut self) {
        self.record.duration_ms = millis(self.started);
        if self.record.code.is_none() && self.record.status.is_none() {
            // Nobody was there any more to be answered.
            self.record.code = Some("client_closed");
        }
        self.record.charged = self.admission.take().and_then(Admission::finish);
        self.log.metrics.request(&self.record);
        let shared = &self.log.shared;
        if self.shared {
            shared.refused.add(&self.record, &self.log.metrics);
            return;
        }
        shared.push(&mut self.record, self.place);
    }
}

#[derive(Debug, Clone)]
pub struct Audit {
    shared: Arc<AuditQueue>,
    metrics: Arc<Metrics>,
    session: Arc<str>,
}

#[derive(Debug, Default)]
struct AuditQueue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    failed: AtomicBool,
    written: AtomicU64,
    /// No more records fit.
    full: AtomicBool,
    notes: Option<Notes>,
    refused: Refused,
}

/// Records on their way to the writer.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    records: Vec<RecordMark>,
    closing: bool,
}

/// Where a record ends in [`Waiting::bytes`], and what goes with it.
#[derive(Debug)]
struct RecordMark {
    end: usize,
    charge: Option<Charge>,
    place: Option<NotePlace>,
}

impl AuditQueue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }

    fn push(&self, record: &mut AuditRecord, place: Option<NotePlace>) {
        let mut waiting = self.lock();
        let first = waiting.bytes.is_empty();
        let from = waiting.bytes.len();
        if serde_json::to_writer(&mut waiting.bytes, record).is_err() {
            waiting.bytes.truncate(from);
            return;
        }
        let end = waiting.bytes.len();
        waiting.records.push(RecordMark {
            end,
            charge: record.charged.take(),
            place,
        });
        if end > MAX_WAITING {
            self.full.store(true, Ordering::Release);
        }
        drop(waiting);
        if first {
            self.wake.notify_one();
        }
    }
}

/// Whether records could be written, without writing any.
///
/// # Errors
/// Why not.
pub fn check(config: &AuditConfig) -> Result<(), String> {
    let Some(path) = &config.file else {
        return Ok(());
    };
    if path.exists() {
        std::fs::OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|e| format!("`{}` cannot be written: {e}", path.display()))?;
    } else {
        disk::can_be_made(path)?;
    }
    recover(config).map(drop)
}

impl Audit {
    /// Writes what the last process left unwritten, and starts the writer.
    ///
    /// # Errors
    /// When the file cannot be opened, or another sidecar holds it.
    pub fn open(
        config: &AuditConfig,
        recovered: Recovered,
        session: &str,
        metrics: Arc<Metrics>,
    ) -> Result<(Audit, AuditWriter), String> {
        let mut writing = writer::Writing::open(config, recovered, session)?;
        let notes = writing.begin()?;
        let shared = Arc::new(AuditQueue {
            notes,
            ..AuditQueue::default()
        });
        let writer = writing.start(shared.clone(), metrics.clone())?;
        Ok((
            Audit {
                shared,
                metrics,
                session: session.into(),
            },
            writer,
        ))
    }

    /// Opens the record of a request that has just arrived.
    pub fn entry(&self) -> AuditEntry {
        AuditEntry {
            log: self.clone(),
            started: Instant::now(),
            record: AuditRecord::new(request_id(), self.session.clone()),
            admission: None,
            place: None,
            shared: false,
        }
    }

    /// A connection was closed before a request could be read from it.
    pub fn dropped_connection(&self) {
        self.metrics.dropped_connections.inc();
        let mut record = AuditRecord::new(request_id(), self.session.clone());
        record.code = Some(Code::Busy.name());
        record.endpoint = Some("connection");
        self.shared.refused.add(&record, &self.metrics);
    }

    /// Can records be written?
    pub fn works(&self) -> bool {
        !self.shared.failed.load(Ordering::Acquire)
            && self.shared.notes.as_ref().is_none_or(Notes::works)
    }

    /// No more records fit: nobody may be served, not even with a refusal.
    pub fn is_full(&self) -> bool {
        self.shared.full.load(Ordering::Acquire)
    }

    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }
}

/// Unique across restarts: a random start, then a count. In letters: some CLIs look for numbers
/// such as 429 or 502 anywhere in an error, and try again for it.
fn request_id() -> String {
    static START: LazyLock<String> =
        LazyLock::new(|| format!("req_{}", hex_to_letters(&crate::base::token::random_hex())));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut id = String::with_capacity(START.len() + 8);
    id.push_str(&START);
    id.extend(
        (0..8)
            .rev()
            .map(|digit| char::from(b'a' + (count >> (4 * digit) & 0xf) as u8)),
    );
    id
}

#[cfg(test)]
mod tests;
