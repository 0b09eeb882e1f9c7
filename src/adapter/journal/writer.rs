//! The one that appends: opens a journal and repairs it, writes frames, begins new segments.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::life::{Last, Life};
use super::segment::{self, Scanned};
use super::sums::{self, Sums, SumsWriter};
use super::sync::Syncer;
use super::{Block, Chunk, Journal, RECENT_BYTES, Replay, Retention, Segment, extend};
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

/// A journal, opened.
#[derive(Debug)]
pub struct OpenedJournal {
    pub writer: JournalWriter,
    /// What is not as it was left, for those who read the stream.
    pub damage: Option<String>,
}

/// What there is of a journal.
struct FoundSegment {
    segments: VecDeque<Segment>,
    /// The newest segment, if it is whole: it is written further.
    last: Option<Scanned>,
    /// The largest number of a whole frame, and of any.
    head: u64,
    highest: u64,
    damaged: bool,
    /// The newest numbers that there were may be among what is damaged.
    damaged_tail: bool,
}

impl JournalWriter {
    /// Opens the journal in `dir`, making it if there is none, and repairs it. `replay` is shown
    /// the newest state that stands at the head of a segment and everything after it. Numbers up
    /// to `floor` are known to have been shown.
    ///
    /// # Errors
    /// Another process has it, it belongs to something else, or the directory cannot be used. A
    /// full disk is no reason.
    pub fn open(
        dir: &Path,
        retention: Retention,
        floor: u64,
        part: Component,
        troubles: &Troubles,
        replay: &mut dyn Replay,
    ) -> Result<OpenedJournal, String> {
        let cannot = |what: &str, e: io::Error| {
            format!("cannot {what} the journal `{}`: {e}", dir.display())
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| cannot("make", e))?;
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(dir.join("lock"))
            .map_err(|e| cannot("lock", e))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
            |_| {
                format!(
                    "the journal `{}` is in use by another adapter",
                    dir.display()
                )
            },
        )?;
        let segments = segment::list(dir).map_err(|e| cannot("list", e))?;
        let mut found = look_through(segments, replay)
            .map_err(|e| format!("the journal `{}`: {e}", dir.display()))?;
        let (mut life, last) = Life::begin(dir);
        let (next, damage) = go_on(&found, last, floor);
        let (file, head, len, sums) = match found.last.take() {
            Some(scanned) => {
                let newest = found.segments.back().ok_or("no segment")?;
                cut(&newest.file, scanned.end).map_err(|e| cannot("repair", e))?;
                (
                    newest.file.clone(),
                    Vec::new(),
                    scanned.end,
                    SumsWriter::begin(&newest.path, &scanned.blocks, &scanned.sums),
                )
            }
            None => {
                let new = segment::create(dir, next).map_err(|e| cannot("write", e))?;
                let (file, sums) = (new.file.clone(), SumsWriter::begin(&new.path, &[], &[]));
                found.segments.push_back(new);
                (file, segment::head(&replay.rebuilt()), 0, sums)
            }
        };
        let syncer = Syncer::start(retention.durable, next - 1, troubles.clone())
            .map_err(|e| cannot("serve", e))?;
        life.shows(next, &syncer);
        let journal = Journal::new(found.segments, next - 1);
        let writer = JournalWriter {
            dir: dir.to_owned(),
            retention,
            journal,
            file,
            head,
            len,
            next,
            pending: Vec::new(),
            pending_first: next,
            pending_sums: Vec::new(),
            sums,
            syncer,
            life,
            part,
            troubles: troubles.clone(),
            dropped: 0,
            _lock: lock,
        };
        Ok(OpenedJournal { writer, damage })
    }

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

/// Cuts off what is not whole at the end.
fn cut(file: &File, end: u64) -> io::Result<()> {
    if file.metadata()?.len() > end {
        file.set_len(end)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Finds the blocks of all segments, and rebuilds the state from the newest head on.
fn look_through(
    segments: VecDeque<Segment>,
    replay: &mut dyn Replay,
) -> Result<FoundSegment, String> {
    let mut found = FoundSegment {
        segments,
        last: None,
        head: 0,
        highest: 0,
        damaged: false,
        damaged_tail: false,
    };
    // The newest whose head is whole; it and those behind it are read through.
    let mut known = 0;
    for (at, segment) in found.segments.iter().enumerate().rev() {
        match segment::read_head(&segment.file) {
            Some((state, _)) if replay.state(&state)? => {
                known = at;
                break;
            }
            _ => (found.damaged, found.damaged_tail) = (true, true),
        }
    }
    found.highest = sums::highest(found.segments.front().and_then(|s| s.path.parent()));
    let count = found.segments.len();
    for (at, segment) in found.segments.iter_mut().enumerate() {
        let part = segment.frames_at..segment.file.metadata().map_or(0, |m| m.len());
        let blocks = if at < known {
            sums::blocks(&segment.path, part.clone(), found.head)
        } else {
            None
        };
        if let Some(blocks) = blocks {
            segment.blocks = blocks;
        } else {
            let is_another =
                segment::first_number(segment).is_some_and(|first| first != segment.first);
            let sums = match segment.path.parent() {
                Some(dir) if is_another => Sums::of_all(dir),
                _ => Sums::of(&segment.path),
            };
            let scanned = segment::scan(
                &segment.file,
                part,
                found.head,
                &sums,
                |sequence, json| match at >= known {
                    true => replay.frame(sequence, json),
                    false => Ok(replay.is_whole(sequence, json)),
                },
            )?;
            // Where the checksums reach further than the frames, some are gone.
            let cut_off = !is_another && sums.end() > scanned.end;
            let damaged = scanned.damaged || cut_off || segment.frames_at == 0;
            found.damaged |= damaged;
            found.damaged_tail |= at + 1 == count && (scanned.damaged_tail || cut_off);
            found.highest = found.highest.max(scanned.highest);
            segment.blocks.clone_from(&scanned.blocks);
            if at + 1 == count && !damaged {
                found.last = Some(scanned);
            } else {
                // What is known to be damaged now is not found again.
                SumsWriter::begin(&segment.path, &scanned.blocks, &scanned.sums);
                if let Err(e) = cut(&segment.file, scanned.end) {
                    tracing::warn!(error = %e, "the end of a damaged segment cannot be cut off");
                }
            }
        }
        found.head = segment.blocks.last().map_or(found.head, |b| b.last);
        // A name that is another's is never used for a new one.
        let renamed = segment
            .blocks
            .first()
            .is_some_and(|b| b.first != segment.first);
        found.highest = found
            .highest
            .max(found.head)
            .max(segment.first - u64::from(!renamed && segment.first > 0));
    }
    found.segments.retain(|segment| {
        let of_use = !segment.blocks.is_empty() || segment.frames_at > 0;
        if !of_use {
            segment::put_aside(segment);
        }
        of_use
    });
    Ok(found)
}

/// The number that comes next, and what is to be said of what is missing before it.
fn go_on(found: &FoundSegment, last: Last, floor: u64) -> (u64, Option<String>) {
    let known = found.highest.max(floor);
    let (shown, jump) = match last {
        Last::Closed { head } => (head, false),
        Last::Killed { shown } => (
            shown.saturating_sub(1),
            found.damaged_tail || known + 1 < shown,
        ),
        Last::Cut { shown } => (shown.saturating_sub(1), true),
        // The mark may be what is damaged.
        Last::Unknown => (0, found.damaged || found.head > 0),
    };
    let missing = known.max(shown);
    let next = missing + 1 + if jump { MAX_UNSYNCED } else { 0 };
    let damage = if found.damaged || missing > found.head {
        Some(
            "the journal was damaged: everything that is whole is kept, and what is missing is told as a gap",
        )
    } else if matches!(last, Last::Cut { .. }) {
        Some(
            "the machine stopped while the session ran: events of the last moments before that may be missing, and are told as a gap",
        )
    } else {
        None
    };
    (next, damage.map(str::to_owned))
}
