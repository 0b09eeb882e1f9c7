//! The thread that writes records, keeps the ledger's state file, and watches the audit file.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::chain::{self, ChainHead, SigningKey};
use super::file::{AuditFile, Watched};
use super::notes::{NotePlace, Notes};
use super::recover::Recovered;
use super::{AuditConfig, AuditQueue, RecordMark};
use crate::sidecar::ledger::state::LedgerState;
use crate::sidecar::metrics::Metrics;

/// Records wait this long for company: one write and one sync for all of them. On a machine with
/// one CPU the requests of that moment wait for it: it is rare enough to stand above their p99.
const BATCH: Duration = Duration::from_millis(25);
const RETRY: Duration = Duration::from_millis(250);
/// How often spent budgets are saved, at most.
const SAVE: Duration = Duration::from_millis(250);
/// How often the file is looked for, shared records are written and notes are tidied.
const TICK: Duration = Duration::from_millis(500);
/// How often the chain is signed, where there is a key, and after how many records at the latest.
const CHECKPOINT: Duration = Duration::from_secs(60);
const CHECKPOINT_RECORDS: u64 = 1000;

/// Ends the writer, after what waits is written.
#[derive(Debug)]
pub struct AuditWriter {
    shared: Arc<AuditQueue>,
    thread: Option<JoinHandle<()>>,
}

impl AuditWriter {
    /// Writes what waits and ends; gives up after `limit` on a disk that does not work.
    pub fn close(mut self, limit: Duration) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_all();
        let Some(thread) = self.thread.take() else {
            return;
        };
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

enum Sink {
    File(AuditFile),
    Stdout,
}

impl Sink {
    fn write(&mut self, batch: &[u8]) -> std::io::Result<()> {
        match self {
            Sink::Stdout => {
                let mut out = std::io::stdout().lock();
                out.write_all(batch)?;
                out.flush()
            }
            Sink::File(file) => file.write(batch),
        }
    }
}

pub struct Writing {
    sink: Sink,
    head: ChainHead,
    /// The state as the file has it, or will have it with the next save.
    state: LedgerState,
    state_file: Option<PathBuf>,
    dirty: bool,
    saved: Instant,
    ticked: Instant,
    key: Option<SigningKey>,
    /// The last checkpoint, and the chain's number then.
    signed: (Instant, u64),
    /// Places of requests whose record is written.
    released: Vec<NotePlace>,
    unknown: Vec<Vec<u8>>,
    notes: Option<PathBuf>,
}

impl Writing {
    pub fn open(
        config: &AuditConfig,
        recovered: Recovered,
        session: &str,
    ) -> Result<Writing, String> {
        let sink = match &config.file {
            Some(path) => Sink::File(AuditFile::open(path, config)?),
            None => Sink::Stdout,
        };
        let key = config
            .signing_key
            .as_deref()
            .map(SigningKey::read)
            .transpose()?;
        let Recovered {
            mut state,
            head,
            unknown,
            notes,
        } = recovered;
        state.enter(session);
        Ok(Writing {
            sink,
            signed: (Instant::now(), head.seq),
            head,
            state,
            state_file: config.state.clone(),
            dirty: true,
            saved: Instant::now(),
            ticked: Instant::now(),
            key,
            released: Vec::new(),
            unknown,
            notes,
        })
    }

    /// Writes the records of requests that the last process left, then begins new notes.
    pub fn begin(&mut self) -> Result<Option<Notes>, String> {
        let cannot = |e: std::io::Error| e.to_string();
        let (mut head, mut lines) = (self.head.clone(), Vec::new());
        self.unknown
            .drain(..)
            .for_each(|record| head.append(&record, &mut lines));
        if !lines.is_empty() {
            self.sink.write(&lines).map_err(cannot)?;
        }
        self.head = head;
        self.note_head();
        if let Some(path) = &self.state_file {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir).map_err(cannot)?;
            }
            self.state
                .write(path)
                .map_err(|e| format!("`{}`: {e}", path.display()))?;
        }
        self.notes
            .as_deref()
            .map(Notes::create)
            .transpose()
            .map_err(cannot)
    }

    pub fn start(
        mut self,
        shared: Arc<AuditQueue>,
        metrics: Arc<Metrics>,
    ) -> Result<AuditWriter, String> {
        let ours = shared.clone();
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || {
                // Requests come first. On a machine with one CPU, a request that arrives while
                // records are hashed would wait for them. On Linux `nice` changes this thread alone.
                let _ = rustix::process::nice(5);
                self.run(&ours, &metrics);
            })
            .map_err(|e| e.to_string())?;
        Ok(AuditWriter {
            shared,
            thread: Some(thread),
        })
    }

    fn run(&mut self, shared: &AuditQueue, metrics: &Metrics) {
        let (mut batch, mut lines) = ((Vec::new(), Vec::new()), Vec::new());
        loop {
            let closing = self.next(shared, &mut batch);
            self.tick(shared, closing);
            if !batch.1.is_empty() {
                self.write_out(shared, &batch, &mut lines, closing);
                shared
                    .written
                    .fetch_add(batch.1.len() as u64, Ordering::Relaxed);
                batch.0.clear();
                batch.1.clear();
            }
            self.checkpoint(shared, closing);
            self.save_state(shared, closing);
            if closing && shared.lock().bytes.is_empty() {
                if let Some(notes) = &shared.notes {
                    notes.tidy();
                }
                metrics.audit_seq.set(self.head.seq as i64);
                return;
            }
            metrics.audit_seq.set(self.head.seq as i64);
        }
    }

    /// Waits for records and takes them all.
    fn next(&self, shared: &AuditQueue, batch: &mut (Vec<u8>, Vec<RecordMark>)) -> bool {
        let mut waiting = shared.lock();
        if waiting.bytes.is_empty() && !waiting.closing {
            let soon = if self.dirty { SAVE } else { TICK };
            waiting = shared
                .wake
                .wait_timeout(waiting, soon)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if !waiting.closing && !waiting.bytes.is_empty() {
            drop(waiting);
            std::thread::sleep(BATCH);
            waiting = shared.lock();
        }
        std::mem::swap(&mut waiting.bytes, &mut batch.0);
        std::mem::swap(&mut waiting.records, &mut batch.1);
        shared.full.store(false, Ordering::Release);
        waiting.closing
    }

    /// What is done from time to time.
    fn tick(&mut self, shared: &AuditQueue, closing: bool) {
        if self.ticked.elapsed() < TICK && !closing {
            return;
        }
        self.ticked = Instant::now();
        for mut record in shared.refused.flush(closing) {
            shared.push(&mut record, None);
        }
        if let Some(notes) = &shared.notes {
            notes.tidy();
        }
        if let Sink::File(file) = &mut self.sink {
            match file.watch() {
                Ok(Watched::InPlace) => {}
                Ok(Watched::Restored) => tracing::error!(
                    "the audit file was removed; its records are written to a new one"
                ),
                Ok(Watched::Moved) => {
                    tracing::warn!("the audit file was moved; a new one is begun")
                }
                Err(e) => fail(shared, &e),
            }
        }
    }

    fn write_out(
        &mut self,
        shared: &AuditQueue,
        batch: &(Vec<u8>, Vec<RecordMark>),
        lines: &mut Vec<u8>,
        closing: bool,
    ) {
        let (mut head, mut from) = (self.head.clone(), 0);
        lines.clear();
        for mark in &batch.1 {
            head.append(&batch.0[from..mark.end], lines);
            from = mark.end;
        }
        if !self.write(shared, lines, closing) {
            return;
        }
        self.head = head;
        for mark in &batch.1 {
            if let Some(charge) = &mark.charge {
                self.state.charge(charge);
            }
            self.released.extend(mark.place);
        }
        self.note_head();
        if matches!(self.sink, Sink::File(_)) || self.state_file.is_none() {
            self.release(shared);
        }
    }

    /// Writes until it works. Returns whether it did; at the end nobody waits for ever.
    fn write(&mut self, shared: &AuditQueue, lines: &[u8], closing: bool) -> bool {
        let mut tries = 0;
        while let Err(e) = self.sink.write(lines) {
            fail(shared, &e);
            tries += 1;
            if (closing || shared.lock().closing) && tries > 3 {
                tracing::error!(
                    bytes = lines.len(),
                    "audit records could not be written before the process ended"
                );
                return false;
            }
            std::thread::sleep(RETRY);
        }
        if shared.failed.swap(false, Ordering::AcqRel) {
            tracing::warn!("audit records are written again");
        }
        true
    }

    fn note_head(&mut self) {
        self.state.seq = self.head.seq;
        self.head.hash.clone_into(&mut self.state.head);
        self.dirty = true;
    }

    fn release(&mut self, shared: &AuditQueue) {
        if let Some(notes) = &shared.notes {
            notes.release(&mut self.released);
        }
        self.released.clear();
    }

    /// Signs the chain's head, if there is a key and something to sign.
    fn checkpoint(&mut self, shared: &AuditQueue, closing: bool) {
        let Some(key) = &self.key else { return };
        let unsigned = self.head.seq - self.signed.1;
        let due = closing || self.signed.0.elapsed() > CHECKPOINT || unsigned >= CHECKPOINT_RECORDS;
        if unsigned == 0 || !due {
            return;
        }
        let record = chain::checkpoint(key, &self.state.session_id, &self.head);
        let (mut head, mut line) = (self.head.clone(), Vec::new());
        head.append(record.as_bytes(), &mut line);
        if self.write(shared, &line, closing) {
            self.signed = (Instant::now(), head.seq);
            self.head = head;
            self.note_head();
        }
    }

    fn save_state(&mut self, shared: &AuditQueue, closing: bool) {
        if !self.dirty || (self.saved.elapsed() < SAVE && !closing) {
            return;
        }
        self.saved = Instant::now();
        let Some(path) = &self.state_file else { return };
        match self.state.write(path) {
            Ok(()) => {
                self.dirty = false;
                self.release(shared);
            }
            Err(e) => {
                tracing::error!(error = %e, file = %path.display(), "spent budgets cannot be saved")
            }
        }
    }
}

fn fail(shared: &AuditQueue, e: &std::io::Error) {
    if !shared.failed.swap(true, Ordering::AcqRel) {
        tracing::error!(error = %e, "audit records cannot be written: no request is served until they can");
    }
}
