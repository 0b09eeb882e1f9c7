//! One record a request, always: served, refused, failed or left by its client.
//!
//! A request's [`Entry`] is opened before anything else happens and written when it is
//! dropped, so there is no path on which it is forgotten. One thread writes: batches of a few
//! milliseconds, each synced to disk.
//!
//! Invariants:
//! - A record holds no secret and no prompt.
//! - While records cannot be written, no new request is served (`503 audit_unavailable`);
//!   those that wait are kept, in bounded memory, and written when it works again.
//! - After a crash the file ends with a whole record.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::config::AuditConfig;
use super::limit::Ledger;
use super::metrics::Metrics;
use crate::base::token::lettered;

/// Records wait this long for company: one write and one sync for all of them.
const BATCH: Duration = Duration::from_millis(10);
const RETRY: Duration = Duration::from_millis(250);
/// What may wait in memory; when it is full, connections are closed unserved.
const MAX_WAITING: usize = 8 << 20;

/// The record, as `docs/operators.md` explains it. Absent is `null`, not 0.
#[derive(Debug, Serialize)]
pub struct Record {
    pub ts: jiff::Timestamp,
    pub request_id: String,
    pub session_id: Arc<str>,
    pub provider: Option<String>,
    pub endpoint: Option<&'static str>,
    pub model_requested: Option<String>,
    pub model_reported: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope_matched: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope_needed: Option<String>,
    pub decision: Decision,
    pub code: Option<&'static str>,
    pub policy_revision: Option<Arc<str>>,
    pub status: Option<u16>,
    pub stream: bool,
    pub tokens: Tokens,
    /// The reply said all there is to say about its usage and ended as it should.
    pub usage_complete: bool,
    pub cost_usd: Option<f64>,
    /// From the request's head to the first byte of the reply's body.
    pub ttft_ms: Option<f64>,
    pub duration_ms: f64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// The session that the client says it is in (`x-claude-code-session-id`, `session-id`, …).
    pub client_session: Option<String>,
    /// Tokens of further models within the request (advisors, compaction).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_usage: Vec<ExtraTokens>,
    /// The type of the provider's own error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_error: Option<String>,
    /// The reply held the workspace's key, which was blotted out.
    #[serde(skip_serializing_if = "is_false")]
    pub key_echoed: bool,
}

fn is_false(b: &bool) -> bool {
    !b
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    Allow,
    Deny,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Tokens {
    pub input: Option<u64>,
    pub cache_read: Option<u64>,
    pub cache_write: Option<u64>,
    pub output: Option<u64>,
    pub reasoning: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ExtraTokens {
    pub kind: String,
    pub model: Option<String>,
    #[serde(flatten)]
    pub tokens: Tokens,
}

/// A request's record while the request goes on; written on drop.
#[derive(Debug)]
pub struct Entry {
    log: Audit,
    started: Instant,
    /// The configured provider that it is about, to label metrics with.
    pub label: Option<&'static str>,
    pub record: Record,
}

impl Entry {
    pub fn id(&self) -> &str {
        &self.record.request_id
    }

    pub fn elapsed_ms(&self) -> f64 {
        millis(self.started)
    }
}

/// To the microsecond: more than that no clock in a container is good for.
fn millis(since: Instant) -> f64 {
    since.elapsed().as_micros() as f64 / 1000.0
}

impl Drop for Entry {
    fn drop(&mut self) {
        let record = &mut self.record;
        record.duration_ms = millis(self.started);
        if record.code.is_none() && record.status.is_none() {
            // Nobody was there any more to be answered.
            record.code = Some("client_closed");
        }
        self.log.metrics.request(record, self.label);
        self.log.shared.push(record);
    }
}

#[derive(Debug, Clone)]
pub struct Audit {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    session: Arc<str>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    failed: AtomicBool,
    written: AtomicU64,
    /// No more records fit.
    full: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    records: u64,
    closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, record: &Record) {
        let mut waiting = self.lock();
        let first = waiting.bytes.is_empty();
        let from = waiting.bytes.len();
        if serde_json::to_writer(&mut waiting.bytes, record).is_err() {
            waiting.bytes.truncate(from);
            return;
        }
        waiting.bytes.push(b'\n');
        waiting.records += 1;
        if waiting.bytes.len() > MAX_WAITING {
            self.full.store(true, Ordering::Release);
        }
        drop(waiting);
        if first {
            self.wake.notify_one();
        }
    }
}

/// Ends the writer, after what waits is written.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Audit {
    /// Opens the file (repairing a torn end) and starts the writer.
    ///
    /// # Errors
    /// When the file cannot be opened, or another sidecar holds it.
    pub fn open(config: &AuditConfig, ledger: Arc<Ledger>, metrics: Arc<Metrics>) -> Result<(Audit, Writer), String> {
        let sink = match &config.file {
            Some(path) => Sink::file(path, config)?,
            None => Sink::Stdout,
        };
        let shared = Arc::new(Shared::default());
        let mut writing = Writing { saved: Instant::now(), sink, shared: shared.clone(), ledger: ledger.clone(), state: config.state.clone() };
        let thread = std::thread::Builder::new().name("audit".into()).spawn(move || writing.run()).map_err(|e| e.to_string())?;
        let audit = Audit { shared: shared.clone(), metrics, session: ledger.session().into() };
        Ok((audit, Writer { shared, thread: Some(thread) }))
    }

    /// Opens the record of a request that has just arrived.
    pub fn entry(&self) -> Entry {
        Entry {
            log: self.clone(),
            started: Instant::now(),
            label: None,
            record: Record {
                ts: jiff::Timestamp::now(),
                request_id: request_id(),
                session_id: self.session.clone(),
                provider: None,
                endpoint: None,
                model_requested: None,
                model_reported: None,
                scope_matched: None,
                scope_needed: None,
                decision: Decision::Deny,
                code: None,
                policy_revision: None,
                status: None,
                stream: false,
                tokens: Tokens::default(),
                usage_complete: false,
                cost_usd: None,
                ttft_ms: None,
                duration_ms: 0.0,
                bytes_in: 0,
                bytes_out: 0,
                client_session: None,
                extra_usage: Vec::new(),
                upstream_error: None,
                key_echoed: false,
            },
        }
    }

    /// Can records be written?
    pub fn works(&self) -> bool {
        !self.shared.failed.load(Ordering::Acquire)
    }

    /// No more records fit: nobody may be served, not even with a refusal.
    pub fn is_full(&self) -> bool {
        self.shared.full.load(Ordering::Acquire)
    }

    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Writes what waits and ends; gives up after `limit` on a disk that does not work.
    pub fn close(mut self, limit: Duration) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_all();
        let Some(thread) = self.thread.take() else { return };
        let until = Instant::now() + limit;
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        if thread.is_finished() {
            let _ = thread.join();
        } else {
            tracing::error!("audit records could not be written before the end");
        }
    }
}

/// How often spent budgets are saved, at most.
const SAVE: Duration = Duration::from_millis(250);

struct Writing {
    saved: Instant,
    sink: Sink,
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    state: Option<PathBuf>,
}

impl Writing {
    fn run(&mut self) {
        let mut batch = Vec::new();
        loop {
            let (records, closing) = self.next(&mut batch);
            if !batch.is_empty() {
                self.write_out(&batch, closing);
                self.shared.written.fetch_add(records, Ordering::Relaxed);
                batch.clear();
            }
            self.save_state(closing);
            if closing && self.shared.lock().bytes.is_empty() {
                return;
            }
        }
    }

    /// Waits for records and takes them all.
    fn next(&self, batch: &mut Vec<u8>) -> (u64, bool) {
        let mut waiting = self.shared.lock();
        while waiting.bytes.is_empty() && !waiting.closing {
            if self.ledger.is_unsaved() {
                // Nothing to write but budgets: their turn comes soon.
                let soon = self.shared.wake.wait_timeout(waiting, SAVE).unwrap_or_else(PoisonError::into_inner);
                waiting = soon.0;
                if soon.1.timed_out() {
                    break;
                }
            } else {
                waiting = self.shared.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
        }
        if !waiting.closing && !waiting.bytes.is_empty() {
            drop(waiting);
            std::thread::sleep(BATCH);
            waiting = self.shared.lock();
        }
        std::mem::swap(&mut waiting.bytes, batch);
        self.shared.full.store(false, Ordering::Release);
        (std::mem::take(&mut waiting.records), waiting.closing)
    }

    fn write_out(&mut self, batch: &[u8], closing: bool) {
        let mut tries = 0;
        while let Err(e) = self.sink.write(batch) {
            if !self.shared.failed.swap(true, Ordering::AcqRel) {
                tracing::error!(error = %e, "audit records cannot be written: no request is served until they can");
            }
            tries += 1;
            if (closing || self.shared.lock().closing) && tries > 3 {
                return;
            }
            std::thread::sleep(RETRY);
        }
        if self.shared.failed.swap(false, Ordering::AcqRel) {
            tracing::warn!("audit records are written again");
        }
    }

    fn save_state(&mut self, closing: bool) {
        if self.saved.elapsed() < SAVE && !closing {
            return;
        }
        self.saved = Instant::now();
        let (Some(path), Some(bytes)) = (&self.state, self.ledger.unsaved()) else { return };
        if let Err(e) = replace(path, &bytes) {
            tracing::error!(error = %e, file = %path.display(), "spent budgets cannot be saved");
            self.ledger.save_failed();
        }
    }
}

/// Writes a file so that a reader sees the old content or the new, whatever happens.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    std::fs::rename(&new, path)
}

enum Sink {
    File { file: File, path: PathBuf, len: u64, max_bytes: u64, keep: u32 },
    Stdout,
}

impl Sink {
    fn file(path: &Path, config: &AuditConfig) -> Result<Sink, String> {
        let at = |e: std::io::Error| format!("`{}`: {e}", path.display());
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(at)?;
        }
        let mut file = open(path).map_err(at)?;
        lock(&file).map_err(|_| format!("`{}` is in use by another sidecar", path.display()))?;
        let len = repair(&mut file).map_err(at)?;
        Ok(Sink::File { file, path: path.into(), len, max_bytes: config.max_bytes, keep: config.keep })
    }

    fn write(&mut self, batch: &[u8]) -> std::io::Result<()> {
        match self {
            Sink::Stdout => {
                let mut out = std::io::stdout().lock();
                out.write_all(batch)?;
                out.flush()
            }
            Sink::File { file, path, len, max_bytes, keep } => {
                if *len > 0 && *len + batch.len() as u64 > *max_bytes {
                    *file = rotate(path, *keep)?;
                    *len = 0;
                }
                let written = file.write_all(batch).and_then(|()| file.sync_data());
                if let Err(e) = written {
                    // Whole records only: what was written of this batch goes again.
                    let _ = file.set_len(*len);
                    let _ = file.seek(SeekFrom::Start(*len));
                    return Err(e);
                }
                *len += batch.len() as u64;
                Ok(())
            }
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)
}

fn lock(file: &File) -> std::io::Result<()> {
    rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(Into::into)
}

/// Cuts a record that a crash left half-written. Returns the length.
fn repair(file: &mut File) -> std::io::Result<u64> {
    let len = file.metadata()?.len();
    let mut end = len;
    let mut block = [0u8; 4096];
    while end > 0 {
        let from = end.saturating_sub(block.len() as u64);
        let part = &mut block[..(end - from) as usize];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(part)?;
        if let Some(i) = memchr::memrchr(b'\n', part) {
            end = from + i as u64 + 1;
            break;
        }
        end = from;
    }
    if end < len {
        tracing::warn!(bytes = len - end, "the audit file ended in half a record, which is cut off");
        file.set_len(end)?;
    }
    Ok(end)
}

/// `audit.jsonl` becomes `audit.jsonl.1`, and so on; the oldest goes. Whatever fails on the
/// way, trying again continues: files move into a gap only, so none is moved twice.
fn rotate(path: &Path, keep: u32) -> std::io::Result<File> {
    let numbered = |n: u32| PathBuf::from(format!("{}.{n}", path.display()));
    let next = path.with_extension("next");
    let fresh = open(&next)?;
    lock(&fresh)?;
    if !path.exists() {
        // Somebody moved it, or an earlier try got this far.
        std::fs::rename(&next, path)?;
        return Ok(fresh);
    }
    let gap = (1..keep).find(|n| !numbered(*n).exists()).unwrap_or(keep);
    for n in (1..gap).rev() {
        std::fs::rename(numbered(n), numbered(n + 1))?;
    }
    std::fs::rename(path, numbered(1))?;
    std::fs::rename(&next, path)?;
    Ok(fresh)
}

/// Unique across restarts: a random start, then a count. In letters: some CLIs look for numbers
/// such as 429 or 502 anywhere in an error, and try again for it.
fn request_id() -> String {
    use std::sync::OnceLock;
    static START: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let start = START.get_or_init(|| getrandom::u64().unwrap_or_else(|_| jiff::Timestamp::now().as_nanosecond() as u64));
    format!("req_{}", lettered(&format!("{start:016x}{:08x}", COUNT.fetch_add(1, Ordering::Relaxed))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> AuditConfig {
        AuditConfig { file: Some(dir.join("a.jsonl")), max_bytes: 1 << 20, keep: 3, state: Some(dir.join("s.json")) }
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        std::fs::read_to_string(path).unwrap_or_default().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn every_entry_is_one_line_whatever_becomes_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let (audit, writer) = Audit::open(&config, Arc::default(), Arc::default()).unwrap();
        drop(audit.entry());
        let mut e = audit.entry();
        e.record.model_requested = Some("\u{1b}[31m\n\"x".into());
        drop(e);
        assert!(Audit::open(&config, Arc::default(), Arc::default()).is_err(), "a second sidecar must not share the file");
        writer.close(Duration::from_secs(5));
        let all = lines(config.file.as_ref().unwrap());
        assert_eq!(all.len(), 2);
        assert_ne!(all[0]["request_id"], all[1]["request_id"]);
        assert_eq!(all[0]["tokens"]["input"], serde_json::Value::Null);
    }

    #[test]
    fn half_a_record_is_cut_off_at_start() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let path = config.file.clone().unwrap();
        for torn in ["{\"a\":1}\n{\"b\"", "{\"b\"", ""] {
            std::fs::write(&path, torn).unwrap();
            let (audit, writer) = Audit::open(&config, Arc::default(), Arc::default()).unwrap();
            drop(audit.entry());
            writer.close(Duration::from_secs(5));
            assert_eq!(lines(&path).len(), torn.matches('\n').count() + 1);
        }
    }

    #[test]
    fn files_rotate_and_none_is_lost_before_its_turn() {
        let dir = tempfile::tempdir().unwrap();
        let config = AuditConfig { max_bytes: 4096, keep: 12, ..config(dir.path()) };
        for _ in 0..12 {
            let (audit, writer) = Audit::open(&config, Arc::default(), Arc::default()).unwrap();
            for _ in 0..3 {
                drop(audit.entry());
            }
            writer.close(Duration::from_secs(5));
        }
        let path = config.file.unwrap();
        let count = |p: PathBuf| lines(&p).len();
        let total: usize = count(path.clone()) + (1..=12).map(|n| count(PathBuf::from(format!("{}.{n}", path.display())))).sum::<usize>();
        assert_eq!(total, 36);
        assert!(path.metadata().unwrap().len() <= 4096);
    }

    #[test]
    fn a_file_that_somebody_moved_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let config = AuditConfig { max_bytes: 4096, ..config(dir.path()) };
        let (audit, writer) = Audit::open(&config, Arc::default(), Arc::default()).unwrap();
        drop(audit.entry());
        while audit.written() < 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::fs::remove_file(config.file.as_ref().unwrap()).unwrap();
        for _ in 0..20 {
            drop(audit.entry());
        }
        writer.close(Duration::from_secs(5));
        assert!(lines(config.file.as_ref().unwrap()).len() >= 10);
    }

    #[test]
    fn a_disk_that_fails_closes_the_door_and_opens_it_again() {
        // A directory in the file's place after opening: rotation fails as a full disk would.
        let dir = tempfile::tempdir().unwrap();
        // Room for all of this test's records behind one rotation, which the first of them asks for.
        let config = AuditConfig { max_bytes: 64 << 10, ..config(dir.path()) };
        let before = format!("{{\"before\":\"{}\"}}\n", "x".repeat((64 << 10) - 20));
        std::fs::write(config.file.as_ref().unwrap(), before).unwrap();
        let blocked = PathBuf::from(format!("{}.1", config.file.as_ref().unwrap().display()));
        std::fs::create_dir(&blocked).unwrap();
        std::fs::write(blocked.join("x"), "").unwrap();
        let config = AuditConfig { keep: 1, ..config };
        let (audit, writer) = Audit::open(&config, Arc::default(), Arc::default()).unwrap();
        let mut n = 0;
        while audit.works() {
            drop(audit.entry());
            n += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        std::fs::remove_dir_all(&blocked).unwrap();
        while !audit.works() {
            std::thread::sleep(Duration::from_millis(1));
        }
        writer.close(Duration::from_secs(5));
        assert_eq!(lines(config.file.as_ref().unwrap()).len() + lines(&blocked).len(), n + 1, "nothing unaudited");
    }
}
