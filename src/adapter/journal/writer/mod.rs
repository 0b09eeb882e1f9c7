//! The one that appends: opens a journal and repairs it, writes frames, begins new segments.

mod open;

pub use self::open::OpenedJournal;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::life::Life;
use super::segment::{self};
use super::sums::SumsWriter;
use super::sync::Syncer;
use super::{Block, Chunk, Journal, RECENT_BYTES, Retention, extend};
use crate::adapter::trouble::{Component, Troubles};
use crate::base::sync::lock;

/// So many frames may be visible and not on stable storage; and so many numbers are left out
/// where it cannot be known which of them were shown.
const MAX_UNSYNCED: u64 = 100_000;

const RETRY: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct JournalWriter {
    dir: PathBuf,
    retention: Retention,
    journal: Arc<Journal>,
    file: Arc<File>,
    /// What must be written before the first frame of the segment.
    head: Vec<u8>,
    /// Bytes of the current segment that are whole frames.
    len: u64,
    next: u64,
    pending: Vec<u8>,
    pending_first: u64,
    pending_sums: Vec<u32>,
    sums: SumsWriter,
    syncer: Syncer,
    life: Life,
    part: Component,
    troubles: Troubles,
    /// Frames that were left out because the disk took none; only where nothing waits for them.
    dropped: u64,
    _lock: File,
}

impl JournalWriter {
    pub fn journal(&self) -> Arc<Journal> {
        self.journal.clone()
    }

    /// The sequence that the next frame gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Adds a frame that becomes visible with the next [`JournalWriter::commit`]. `json` appends one
    /// line without its end.
    pub fn append(&mut self, json: impl FnOnce(u64, &mut Vec<u8>)) -> u64 {
        let (sequence, from) = (self.next, self.pending.len());
        self.pending.extend_from_slice(b"id: ");
        self.pending
            .extend_from_slice(sequence.to_string().as_bytes());
        self.pending.extend_from_slice(b"\ndata: ");
        json(sequence, &mut self.pending);
        self.pending.extend_from_slice(b"\n\n");
        self.pending_sums
            .push(crc32fast::hash(&self.pending[from..]));
        self.next += 1;
        sequence
    }

    /// Writes what was appended and shows it to the cursors. While the disk takes nothing it
    /// tries again, and the caller waits: that is what holds the CLI back. May be dropped, and
    /// called again.
    ///
    /// `state` is asked for what stands now, when the next frames begin a new segment.
    /// Returns for how long the disk was in trouble.
    pub async fn commit(&mut self, state: impl Fn() -> String) -> Option<Duration> {
        if self.pending.is_empty() {
            return None;
        }
        let mut since: Option<Instant> = None;
        while let Err(e) = self.write() {
            if since.is_none() {
                tracing::error!(error = %e, "the journal cannot be written; the CLI is held back until it can");
            }
            since.get_or_insert_with(Instant::now);
            self.troubles
                .set(self.part, format!("the journal cannot be written: {e}"));
            tokio::time::sleep(RETRY).await;
        }
        if since.is_some() {
            self.troubles.clear(self.part);
        }
        self.publish();
        self.keep_near_the_disk().await;
        self.rotate_if_full(state).await;
        since.map(|s| s.elapsed())
    }

    /// As [`JournalWriter::commit`], for what nobody must wait for: what the disk does not take now is
    /// left out, and counted.
    pub fn commit_or_drop(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        match self.write() {
            Ok(()) => {
                if std::mem::take(&mut self.dropped) > 0 {
                    self.troubles.clear(self.part);
                }
                self.publish();
                if self.len >= self.retention.segment_bytes {
                    self.rotate("");
                }
            }
            Err(e) => {
                self.dropped += self.next - self.pending_first;
                self.troubles.set(
                    self.part,
                    format!(
                        "the CLI's own lines cannot be written: {e}; {} were left out",
                        self.dropped
                    ),
                );
                self.pending.clear();
                self.pending_sums.clear();
                self.next = self.pending_first;
            }
        }
    }

    /// Tries once to write what is pending.
    ///
    /// # Errors
    /// The disk takes no more.
    pub fn commit_once(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.write()?;
            self.publish();
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        if !self.head.is_empty() {
            self.file.write_all_at(&self.head, 0)?;
            self.syncer.directory(&self.dir);
            self.len = self.head.len() as u64;
            self.head.clear();
        }
        // At its place: what a failed attempt left there is written over.
        self.file.write_all_at(&self.pending, self.len)
    }

    fn publish(&mut self) {
        let frames = Bytes::from(std::mem::take(&mut self.pending));
        let (first, last) = (self.pending_first, self.next - 1);
        let (start, end) = (self.len, self.len + frames.len() as u64);
        self.sums.add(first, &mut self.pending_sums, start..end);
        let mut view = lock(&self.journal.view);
        if let Some(segment) = view.segments.back_mut() {
            extend(
                &mut segment.blocks,
                Block {
                    first,
                    last,
                    start,
                    end,
                    unchecked: None,
                },
            );
        }
        view.recent_bytes += frames.len();
        view.recent.push_back(Chunk {
            first,
            last,
            frames,
        });
        while view.recent_bytes > RECENT_BYTES
            && let Some(old) = view.recent.pop_front()
        {
            view.recent_bytes -= old.frames.len();
        }
        drop(view);
        self.len = end;
        self.pending_first = self.next;
        self.journal.head.store(last, Ordering::Release);
        self.journal.more.notify_one();
        self.request_sync(false);
    }

    /// Has everything that is visible put on stable storage: `now`, or within 50 ms.
    pub fn request_sync(&self, now: bool) {
        self.syncer.request_sync(&self.file, self.next - 1, now);
    }

    fn unsynced(&self) -> u64 {
        (self.next - 1).saturating_sub(self.syncer.synced())
    }

    /// Waits where a power cut would take too many frames.
    async fn keep_near_the_disk(&self) {
        while self.unsynced() > MAX_UNSYNCED {
            self.request_sync(true);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Begins a new segment once everything in the old one is on stable storage: a moment when it
    /// is, is used; one that does not come is waited for in the end.
    async fn rotate_if_full(&mut self, state: impl Fn() -> String) {
        if self.len < self.retention.segment_bytes {
            return;
        }
        while self.unsynced() > 0 {
            self.request_sync(true);
            if self.len < 2 * self.retention.segment_bytes {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.rotate(&state());
    }

    fn rotate(&mut self, state: &str) {
        if let Err(e) = self.begin_segment(state) {
            tracing::warn!(error = %e, "a new segment of the journal cannot be begun; the old one is used further");
        }
    }

    fn begin_segment(&mut self, state: &str) -> io::Result<()> {
        let new = segment::create(&self.dir, self.pending_first)?;
        let head = segment::head(state);
        // A segment that is not used must not be found later.
        new.file
            .write_all_at(&head, 0)
            .inspect_err(|_| segment::remove(&new))?;
        self.syncer.directory(&self.dir);
        self.sums.flush();
        self.sums = SumsWriter::begin(&new.path, &[], &[]);
        (self.file, self.len) = (new.file.clone(), head.len() as u64);
        self.life.shows(new.first, &self.syncer);
        let mut view = lock(&self.journal.view);
        view.segments.push_back(new);
        while view.segments.len() > self.retention.segments.max(1) {
            if let Some(old) = view.segments.pop_front() {
                segment::remove(&old);
            }
        }
        // Memory may hold more; what is served is what is kept.
        let first = view.segments.front().map_or(1, |s| s.first);
        while view.recent.front().is_some_and(|c| c.last < first)
            && let Some(old) = view.recent.pop_front()
        {
            view.recent_bytes -= old.frames.len();
        }
        Ok(())
    }

    /// Nothing comes any more: cursors end behind the last frame.
    pub fn close(mut self) {
        self.request_sync(true);
        self.sums.flush();
        self.journal.closed.store(true, Ordering::Release);
        self.journal.more.notify_one();
        self.life.close(self.journal.head(), &self.syncer);
        self.syncer.finish();
    }
}
