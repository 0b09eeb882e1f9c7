//! The way of an event, last step: the ordered, durable log. Subscribers are cursors into it.
//!
//! What is on disk is what goes over the wire: a segment is a file of SSE frames
//! (`id: <sequence>`, one `data:` line, a blank line), named after its first sequence, that
//! begins with a comment frame which holds the state before it. Replay is copying a file.
//!
//! Invariants:
//! - One writer (a lock on the directory). Sequences start at 1 and grow by 1, across restarts.
//! - A frame is visible once `write(2)` has taken it whole, in order; nothing is dropped. A
//!   full disk stops the writer, and through it the CLI, never a subscriber.
//! - A torn tail is cut off at the last whole frame when the journal is opened.
//! - Nothing that a cursor does can reach the writer: it is told that there is more by one
//!   notification, however many cursors there are.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::base::sync::lock;
use bytes::{Bytes, BytesMut};
use memchr::memmem;
use tokio::sync::Notify;

/// First words of a segment; the number is the version of the format.
const HEADER: &str = ": outrigger journal 1 ";
/// How much of the newest frames is kept in memory: what live subscribers read.
const RECENT_BYTES: usize = 2 << 20;
/// How much a cursor reads from a file at once.
const READ_BYTES: usize = 64 << 10;
/// A sequence is found by reading at most so much of a segment.
const INDEX_BYTES: u64 = 256 << 10;
/// Longest that a visible frame is not yet on stable storage.
const SYNC_TIME: Duration = Duration::from_millis(50);

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// A segment that has reached this is followed by another.
    pub segment_bytes: u64,
    pub segments: usize,
    /// Frames are put on stable storage; else they survive a crash of the process alone.
    pub durable: bool,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { segment_bytes: 64 << 20, segments: 16, durable: true }
    }
}

#[derive(Debug)]
struct Segment {
    first: u64,
    path: PathBuf,
    /// Sequences and where they start, every `INDEX_BYTES`; filled while it is written.
    index: Vec<(u64, u64)>,
}

/// Frames that were published together.
#[derive(Debug)]
struct Chunk {
    first: u64,
    last: u64,
    frames: Bytes,
}

#[derive(Debug, Default)]
struct View {
    segments: VecDeque<Segment>,
    recent: VecDeque<Chunk>,
    recent_bytes: usize,
}

/// The journal as subscribers see it.
#[derive(Debug)]
pub struct Journal {
    view: Mutex<View>,
    head: AtomicU64,
    more: Notify,
    cursors: Mutex<Vec<Weak<Slot>>>,
    closed: AtomicBool,
    /// Why nothing can be written right now; empty when it can.
    trouble: Mutex<String>,
}

/// Where a cursor waits.
#[derive(Debug, Default)]
struct Slot(Mutex<Option<Waker>>);

/// The one that appends.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    retention: Retention,
    journal: Arc<Journal>,
    file: Arc<File>,
    /// Bytes of the current segment that are whole frames.
    len: u64,
    indexed: u64,
    next: u64,
    pending: Vec<u8>,
    pending_first: u64,
    syncs: mpsc::Sender<Sync>,
    /// The syncer knows already that there is something to do.
    wished: Arc<AtomicBool>,
    syncer: Option<std::thread::JoinHandle<()>>,
    _lock: File,
}

struct Sync {
    file: Arc<File>,
    now: bool,
}

/// A journal, opened.
#[derive(Debug)]
pub struct Opened {
    pub writer: Writer,
    /// Bytes of a torn tail that were cut off.
    pub repaired: u64,
}

/// What is read while the last segment is checked.
pub trait Replay {
    /// The state that stands at the head of the segment.
    fn state(&mut self, json: &[u8]) -> Result<(), String>;
    /// A frame's JSON; false if it is not what it should be.
    fn frame(&mut self, sequence: u64, json: &[u8]) -> bool;
}

impl Writer {
    /// Opens the journal in `dir`, making it if there is none, and repairs its tail. `replay`
    /// is shown the state at the head of the last segment and everything after it.
    ///
    /// # Errors
    /// Another process has it, it belongs to something else, or the directory cannot be used.
    pub fn open(dir: &Path, retention: Retention, state: &str, replay: &mut dyn Replay) -> Result<Opened, String> {
        let cannot = |what: &str, e: io::Error| format!("cannot {what} the journal `{}`: {e}", dir.display());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| cannot("make", e))?;
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join("lock")).map_err(|e| cannot("lock", e))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| format!("the journal `{}` is in use by another adapter", dir.display()))?;
        let mut segments = list(dir).map_err(|e| cannot("list", e))?;
        let mut repaired = 0;
        let (file, len, next) = loop {
            let Some(last) = segments.back_mut() else {
                let (segment, file, len) = create(dir, 1, state).map_err(|e| cannot("write", e))?;
                segments.push_back(segment);
                break (file, len, 1);
            };
            let file = OpenOptions::new().read(true).write(true).open(&last.path).map_err(|e| cannot("open", e))?;
            let size = file.metadata().map_err(|e| cannot("read", e))?.len();
            let (len, next) = check(&file, last, replay).map_err(|e| format!("the journal `{}`: {e}", last.path.display()))?;
            repaired += size - len;
            if len == 0 {
                // Not even its head was written: the one before it is the last.
                std::fs::remove_file(&last.path).map_err(|e| cannot("repair", e))?;
                segments.pop_back();
                continue;
            }
            if len < size {
                file.set_len(len).and_then(|()| file.sync_all()).map_err(|e| cannot("repair", e))?;
            }
            break (file, len, next);
        };
        let journal = Arc::new(Journal {
            view: Mutex::new(View { segments, ..View::default() }),
            head: AtomicU64::new(next - 1),
            more: Notify::new(),
            cursors: Mutex::default(),
            closed: AtomicBool::new(false),
            trouble: Mutex::default(),
        });
        let (syncs, wanted) = mpsc::channel();
        let wished = Arc::new(AtomicBool::new(false));
        let seen = wished.clone();
        let syncer = std::thread::Builder::new().name("journal-sync".into()).spawn(move || sync(&wanted, &seen)).map_err(|e| cannot("serve", e))?;
        let writer = Writer {
            dir: dir.to_owned(),
            retention,
            journal,
            file: Arc::new(file),
            len,
            indexed: len,
            next,
            pending: Vec::new(),
            pending_first: next,
            syncs,
            wished,
            syncer: Some(syncer),
            _lock: lock,
        };
        Ok(Opened { writer, repaired })
    }

    pub fn journal(&self) -> Arc<Journal> {
        self.journal.clone()
    }

    /// The sequence that the next frame gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Adds a frame that becomes visible with the next [`Writer::commit`]. `json` appends one
    /// line without its end.
    pub fn append(&mut self, json: impl FnOnce(u64, &mut Vec<u8>)) -> u64 {
        let sequence = self.next;
        self.pending.extend_from_slice(b"id: ");
        self.pending.extend_from_slice(sequence.to_string().as_bytes());
        self.pending.extend_from_slice(b"\ndata: ");
        json(sequence, &mut self.pending);
        self.pending.extend_from_slice(b"\n\n");
        self.next += 1;
        sequence
    }

    /// Writes what was appended and shows it to the cursors. While the disk takes nothing it
    /// tries again, and the caller waits: that is what holds the CLI back.
    ///
    /// `state` is asked for what stands now, when the next frames begin a new segment.
    /// Returns for how long the disk was in trouble.
    pub async fn commit(&mut self, state: impl Fn() -> String) -> Option<Duration> {
        if self.pending.is_empty() {
            return None;
        }
        let mut since: Option<Instant> = None;
        loop {
            // At its place: what a failed attempt left there is written over.
            match self.file.write_all_at(&self.pending, self.len) {
                Ok(()) => break,
                Err(e) => {
                    let text = format!("the journal cannot be written: {e}");
                    if since.is_none() {
                        tracing::error!("{text}; the CLI is held back until it can");
                    }
                    since.get_or_insert_with(Instant::now);
                    *lock(&self.journal.trouble) = text;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        if since.is_some() {
            lock(&self.journal.trouble).clear();
        }
        self.publish();
        // Now, while nothing is pending that the state knows of already.
        if self.len >= self.retention.segment_bytes
            && let Err(e) = self.rotate(&state())
        {
            tracing::warn!(error = %e, "a new segment of the journal cannot be begun; the old one is used further");
        }
        since.map(|s| s.elapsed())
    }

    fn rotate(&mut self, state: &str) -> io::Result<()> {
        let (segment, file, len) = create(&self.dir, self.pending_first, state)?;
        self.wish(true);
        self.file = Arc::new(file);
        (self.len, self.indexed) = (len, len);
        let mut view = lock(&self.journal.view);
        view.segments.push_back(segment);
        while view.segments.len() > self.retention.segments.max(1) {
            if let Some(old) = view.segments.pop_front() {
                let _ = std::fs::remove_file(old.path);
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

    fn publish(&mut self) {
        let frames = Bytes::from(std::mem::take(&mut self.pending));
        let (first, last) = (self.pending_first, self.next - 1);
        let mut view = lock(&self.journal.view);
        if self.len - self.indexed >= INDEX_BYTES {
            self.indexed = self.len;
            if let Some(segment) = view.segments.back_mut() {
                segment.index.push((first, self.len));
            }
        }
        self.len += frames.len() as u64;
        view.recent_bytes += frames.len();
        view.recent.push_back(Chunk { first, last, frames });
        while view.recent_bytes > RECENT_BYTES
            && let Some(old) = view.recent.pop_front()
        {
            view.recent_bytes -= old.frames.len();
        }
        drop(view);
        self.pending_first = self.next;
        self.journal.head.store(last, Ordering::Release);
        self.journal.more.notify_one();
        self.wish(false);
    }

    /// Has everything that is visible put on stable storage: `now`, or within 50 ms.
    pub fn wish(&self, now: bool) {
        if self.retention.durable && (now || !self.wished.swap(true, Ordering::AcqRel)) {
            let _ = self.syncs.send(Sync { file: self.file.clone(), now });
        }
    }

    /// Nothing comes any more: cursors end behind the last frame.
    pub fn close(mut self) {
        self.wish(true);
        self.journal.closed.store(true, Ordering::Release);
        self.journal.more.notify_one();
        let (nothing, _) = mpsc::channel();
        drop(std::mem::replace(&mut self.syncs, nothing));
        if let Some(syncer) = self.syncer.take() {
            let _ = syncer.join();
        }
    }
}

/// Puts files on stable storage, many commits at once.
fn sync(wanted: &mpsc::Receiver<Sync>, wished: &AtomicBool) {
    while let Ok(mut wish) = wanted.recv() {
        let until = Instant::now() + SYNC_TIME;
        while !wish.now {
            match wanted.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(next) if Arc::ptr_eq(&next.file, &wish.file) => wish.now = next.now,
                Ok(next) => {
                    note(wish.file.sync_data());
                    wish = next;
                }
                Err(_) => wish.now = true,
            }
        }
        wished.store(false, Ordering::Release);
        note(wish.file.sync_data());
    }
}

fn note(synced: io::Result<()>) {
    if let Err(e) = synced {
        tracing::error!(error = %e, "the journal could not be put on stable storage");
    }
}

/// The segments there are, oldest first.
fn list(dir: &Path) -> io::Result<VecDeque<Segment>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let first = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".sse")).and_then(|n| n.parse().ok());
        segments.extend(first.map(|first| Segment { first, path, index: Vec::new() }));
    }
    segments.sort_by_key(|s| s.first);
    Ok(segments.into())
}

fn create(dir: &Path, first: u64, state: &str) -> io::Result<(Segment, File, u64)> {
    let path = dir.join(format!("{first:020}.sse"));
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).mode(0o600).open(&path)?;
    let header = format!("{HEADER}{state}\n\n");
    let written = file.write_all_at(header.as_bytes(), 0).and_then(|()| File::open(dir)?.sync_all());
    if let Err(e) = written {
        // A segment that is not used must not be found later.
        std::fs::remove_file(&path)?;
        return Err(e);
    }
    Ok((Segment { first, path, index: Vec::new() }, file, header.len() as u64))
}

/// Reads a segment through; how many of its bytes are whole frames, and the sequence behind them.
fn check(file: &File, segment: &mut Segment, replay: &mut dyn Replay) -> Result<(u64, u64), String> {
    let mut reader = BufReader::with_capacity(READ_BYTES, file);
    let mut line = Vec::new();
    let mut read = |line: &mut Vec<u8>| {
        line.clear();
        reader.read_until(b'\n', line).unwrap_or(0) as u64
    };
    let mut len = read(&mut line);
    let Some(state) = line.strip_prefix(HEADER.as_bytes()).and_then(|s| s.strip_suffix(b"\n")) else { return Ok((0, segment.first)) };
    let state = state.to_vec();
    len += read(&mut line);
    if line != b"\n" {
        return Ok((0, segment.first));
    }
    replay.state(&state)?;
    let (mut next, mut indexed) = (segment.first, len);
    loop {
        let mut frame = read(&mut line);
        if line.strip_prefix(b"id: ").and_then(|l| l.strip_suffix(b"\n")) != Some(next.to_string().as_bytes()) {
            return Ok((len, next));
        }
        frame += read(&mut line);
        let whole = line.strip_prefix(b"data: ").and_then(|l| l.strip_suffix(b"\n")).map(<[u8]>::to_vec);
        let Some(json) = whole else { return Ok((len, next)) };
        frame += read(&mut line);
        if line != b"\n" || !replay.frame(next, &json) {
            return Ok((len, next));
        }
        if len - indexed >= INDEX_BYTES {
            indexed = len;
            segment.index.push((next, len));
        }
        len += frame;
        next += 1;
    }
}

impl Journal {
    /// The last sequence that is visible; 0 before the first.
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// The first sequence that is still kept.
    pub fn first(&self) -> u64 {
        lock(&self.view).segments.front().map_or(1, |s| s.first)
    }

    /// Why nothing can be written right now.
    pub fn trouble(&self) -> Option<String> {
        Some(lock(&self.trouble).clone()).filter(|t| !t.is_empty())
    }

    /// Wakes the cursors when the writer has published. Runs once, where the cursors run, so
    /// that the writer pays for one wake-up and not for each of theirs.
    pub async fn tell(&self) {
        loop {
            self.more.notified().await;
            let mut cursors = lock(&self.cursors);
            cursors.retain(|slot| {
                let slot = slot.upgrade();
                if let Some(waker) = slot.as_ref().and_then(|s| lock(&s.0).take()) {
                    waker.wake();
                }
                slot.is_some()
            });
        }
    }

    /// A cursor whose first frame is `from`.
    pub fn subscribe(self: &Arc<Self>, from: u64) -> Cursor {
        let slot = Arc::new(Slot::default());
        lock(&self.cursors).push(Arc::downgrade(&slot));
        Cursor { journal: self.clone(), slot, next: from.max(1), file: None }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// What a cursor finds.
#[derive(Debug)]
pub enum Part {
    /// Frames, as they stand on disk. May end within one; the next part goes on there.
    Frames(Bytes),
    /// Frames that are no longer kept.
    Gap { from: u64, to: u64 },
}

/// Reads the journal in order, from a place, to its end and on.
#[derive(Debug)]
pub struct Cursor {
    journal: Arc<Journal>,
    slot: Arc<Slot>,
    /// The next sequence that was not yet begun.
    next: u64,
    /// Where it reads a segment: what is older than memory holds.
    file: Option<Place>,
}

#[derive(Debug)]
struct Place {
    file: File,
    segment: u64,
    offset: u64,
    /// In the middle of a frame.
    within: bool,
}

impl Cursor {
    /// The next part; waits for one. `None`: the journal is closed, and this was all of it.
    pub async fn next(&mut self) -> Option<Part> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Cursor::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Part>> {
        for registered in [false, true] {
            let closed = self.journal.is_closed();
            match self.read() {
                Ok(Some(part)) => return Poll::Ready(Some(part)),
                Ok(None) if closed => return Poll::Ready(None),
                // Looked at once more: something may have come before the waker was there.
                Ok(None) if !registered => *lock(&self.slot.0) = Some(cx.waker().clone()),
                Ok(None) => {}
                Err(e) => {
                    tracing::error!(error = %e, "the journal cannot be read");
                    return Poll::Ready(None);
                }
            }
        }
        Poll::Pending
    }

    /// What is there now.
    ///
    /// # Errors
    /// A segment cannot be read.
    pub fn read(&mut self) -> io::Result<Option<Part>> {
        if !self.file.as_ref().is_some_and(|f| f.within) {
            if self.next > self.journal.head() {
                return Ok(None);
            }
            if let Some(frames) = self.recent() {
                self.file = None;
                return Ok(Some(Part::Frames(frames)));
            }
        }
        if self.file.is_none() {
            match self.find()? {
                Ok(place) => self.file = Some(place),
                Err(kept) => {
                    let from = std::mem::replace(&mut self.next, kept);
                    return Ok(Some(Part::Gap { from, to: kept - 1 }));
                }
            }
        }
        self.read_file()
    }

    fn recent(&mut self) -> Option<Bytes> {
        let view = lock(&self.journal.view);
        let oldest = view.recent.front()?.first;
        if self.next < oldest {
            return None;
        }
        let at = view.recent.partition_point(|c| c.last < self.next);
        let chunk = view.recent.get(at)?;
        let skip = if chunk.first == self.next { 0 } else { start_of(&chunk.frames, self.next)? };
        self.next = chunk.last + 1;
        Some(chunk.frames.slice(skip..))
    }

    /// Opens the segment that holds the next frame, at that frame; or the first that is kept.
    fn find(&mut self) -> io::Result<Result<Place, u64>> {
        let (path, segment, from) = {
            let view = lock(&self.journal.view);
            let at = view.segments.partition_point(|s| s.first <= self.next);
            let Some(segment) = at.checked_sub(1).and_then(|i| view.segments.get(i)) else {
                return Ok(Err(view.segments.front().map_or(self.next, |s| s.first)));
            };
            let near = segment.index.partition_point(|(sequence, _)| *sequence <= self.next);
            (segment.path.clone(), segment.first, near.checked_sub(1).map_or(0, |i| segment.index[i].1))
        };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            // Rotated away since.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Err(self.journal.first())),
            Err(e) => return Err(e),
        };
        file.seek(SeekFrom::Start(from))?;
        let mut reader = BufReader::with_capacity(READ_BYTES, &mut file);
        let (mut offset, mut line) = (from, Vec::new());
        let wanted = format!("id: {}\n", self.next);
        loop {
            line.clear();
            let n = reader.read_until(b'\n', &mut line)? as u64;
            if n == 0 || line == wanted.as_bytes() {
                return Ok(Ok(Place { file, segment, offset, within: false }));
            }
            offset += n;
        }
    }

    fn read_file(&mut self) -> io::Result<Option<Part>> {
        let Some(place) = &mut self.file else { return Ok(None) };
        let mut bytes = BytesMut::zeroed(READ_BYTES);
        let n = place.file.read_at(&mut bytes, place.offset)?;
        bytes.truncate(n);
        // What is visible ends with the frame `head`; a frame that is being written is not.
        let (taken, next) = whole_frames(&bytes, self.next, place.within, self.journal.head());
        if n == 0 || taken == 0 {
            let segment = place.segment;
            self.file = None;
            // The end of a segment, and the next frame is in another.
            let later = lock(&self.journal.view).segments.iter().any(|s| s.first > segment && s.first <= self.next);
            return if later { self.read() } else { Ok(None) };
        }
        place.offset += taken as u64;
        place.within = !bytes[..taken].ends_with(b"\n\n");
        self.next = next;
        bytes.truncate(taken);
        Ok(Some(Part::Frames(bytes.freeze())))
    }
}

/// Where a frame starts in a run of frames.
fn start_of(frames: &[u8], sequence: u64) -> Option<usize> {
    let wanted = format!("\n\nid: {sequence}\n");
    memmem::find(frames, wanted.as_bytes()).map(|i| i + 2)
}

/// How many of `bytes` may be handed on, and the sequence that is begun next behind them.
/// They start at the frame `next`, or `within` the one before it.
fn whole_frames(bytes: &[u8], mut next: u64, within: bool, head: u64) -> (usize, u64) {
    let mut at = 0;
    if within {
        match memmem::find(bytes, b"\n\n") {
            Some(end) => at = end + 2,
            // A line feed at the very end may be half of the frame's end: it waits.
            None => return (bytes.len() - usize::from(bytes.len() > 1 && bytes.ends_with(b"\n")), next),
        }
    }
    if let Some(last) = memmem::rfind(&bytes[at..], b"\n\n") {
        let end = at + last + 2;
        let start = memmem::rfind(&bytes[at..end - 2], b"\n\nid: ").map_or(at, |i| at + i + 2);
        let digits = bytes[start..].strip_prefix(b"id: ").unwrap_or_default();
        let digits = &digits[..memchr::memchr(b'\n', digits).unwrap_or(0)];
        if let Some(sequence) = std::str::from_utf8(digits).ok().and_then(|d| d.parse::<u64>().ok()) {
            if sequence <= head {
                (at, next) = (end, sequence + 1);
            } else {
                // Only those up to the head; rare: the file is ahead for a moment.
                let visible = start_of(&bytes[at..], head + 1).map_or(0, |i| i);
                return (at + visible, if visible > 0 { head + 1 } else { next });
            }
        }
    }
    // A frame longer than one read goes in pieces, if it is visible at all.
    if at == 0 && next <= head && bytes.starts_with(b"id: ") && bytes.len() == READ_BYTES {
        return (bytes.len() - usize::from(bytes.ends_with(b"\n")), next + 1);
    }
    (at, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(u64);
    impl Replay for Count {
        fn state(&mut self, json: &[u8]) -> Result<(), String> {
            self.0 = std::str::from_utf8(json).unwrap().parse().map_err(|_| "odd state".to_owned())?;
            Ok(())
        }
        fn frame(&mut self, sequence: u64, json: &[u8]) -> bool {
            self.0 = sequence;
            serde_json::from_slice::<serde::de::IgnoredAny>(json).is_ok()
        }
    }

    fn open(dir: &Path, segment_bytes: u64) -> (Opened, u64) {
        let mut count = Count(0);
        let opened = Writer::open(dir, Retention { segment_bytes, segments: 4, durable: true }, "0", &mut count).unwrap();
        (opened, count.0)
    }

    fn text(n: u64, size: usize) -> String {
        format!("{{\"n\":{n},\"t\":\"{}\"}}", "x".repeat(size))
    }

    async fn fill(writer: &mut Writer, sizes: impl IntoIterator<Item = usize>) {
        for size in sizes {
            let state = writer.next().to_string();
            writer.append(|n, out| out.extend_from_slice(text(n, size).as_bytes()));
            writer.commit(|| state.clone()).await;
        }
    }

    /// Everything from `from` on, as (sequence, json), and the gap before it.
    #[allow(clippy::type_complexity)]
    fn all(journal: &Arc<Journal>, from: u64) -> (Vec<(u64, String)>, Option<(u64, u64)>) {
        let (mut cursor, mut bytes, mut gap) = (journal.subscribe(from), Vec::new(), None);
        while let Some(part) = cursor.read().unwrap() {
            match part {
                Part::Frames(f) => bytes.extend_from_slice(&f),
                Part::Gap { from, to } => gap = Some((from, to)),
            }
        }
        let text = String::from_utf8(bytes).unwrap();
        let frames = text
            .split_terminator("\n\n")
            .filter(|f| !f.starts_with(':'))
            .map(|f| {
                let (id, data) = f.split_once('\n').unwrap();
                (id.strip_prefix("id: ").unwrap().parse().unwrap(), data.strip_prefix("data: ").unwrap().to_owned())
            })
            .collect();
        (frames, gap)
    }

    fn assert_whole(frames: &[(u64, String)], from: u64, to: u64) {
        let ids: Vec<u64> = frames.iter().map(|f| f.0).collect();
        assert_eq!(ids, (from..=to).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn sequences_go_on_across_restarts_and_segments() {
        let dir = tempfile::tempdir().unwrap();
        let mut head = 0;
        for round in 0..6 {
            let (opened, seen) = open(dir.path(), 4000);
            assert_eq!((seen, opened.repaired), (head, 0), "round {round}");
            let mut writer = opened.writer;
            fill(&mut writer, (0..20).map(|i| i * 7)).await;
            head += 20;
            let journal = writer.journal();
            let first = journal.first();
            for from in first..=head {
                let (frames, gap) = all(&journal, from);
                assert_whole(&frames, from, head);
                assert_eq!(gap, None);
            }
            let (frames, gap) = all(&journal, 1);
            assert_eq!(gap, (first > 1).then_some((1, first - 1)));
            assert_whole(&frames, first, head);
        }
    }

    #[tokio::test]
    async fn a_torn_tail_is_cut_at_every_byte() {
        let dir = tempfile::tempdir().unwrap();
        let (opened, _) = open(dir.path(), 1 << 20);
        let mut writer = opened.writer;
        fill(&mut writer, [3, 5, 0]).await;
        drop(writer);
        let file = dir.path().join(format!("{:020}.sse", 1));
        let whole = std::fs::read(&file).unwrap();
        let ends: Vec<usize> = memmem::find_iter(&whole, b"\n\n").map(|i| i + 2).collect();
        for cut in 0..whole.len() {
            std::fs::write(&file, &whole[..cut]).unwrap();
            let (opened, _) = open(dir.path(), 1 << 20);
            let kept = ends.iter().filter(|e| **e <= cut).count().saturating_sub(1) as u64;
            assert_eq!(opened.writer.next(), kept + 1, "cut at {cut}");
            let mut writer = opened.writer;
            fill(&mut writer, [1]).await;
            assert_whole(&all(&writer.journal(), 1).0, 1, kept + 1);
        }
        // What a power cut leaves: blocks of zeros, or another record's bytes.
        for tail in [vec![0; 300], b"id: 9\ndata: {}\n\n".to_vec(), b"id: 4\ndata: {\"broken\n\n".to_vec()] {
            std::fs::write(&file, [whole.as_slice(), &tail].concat()).unwrap();
            let (opened, _) = open(dir.path(), 1 << 20);
            assert_eq!((opened.writer.next(), opened.repaired), (4, tail.len() as u64));
        }
    }

    #[tokio::test]
    async fn frames_of_any_size_come_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (opened, _) = open(dir.path(), 1 << 30);
        let mut writer = opened.writer;
        let near = |n: usize| (n - 40)..(n + 5);
        let sizes: Vec<usize> = near(READ_BYTES).chain(near(2 * READ_BYTES)).chain([RECENT_BYTES + 5, 0, 3 * RECENT_BYTES, 1, 1]).collect();
        fill(&mut writer, sizes.iter().copied()).await;
        let (frames, _) = all(&writer.journal(), 1);
        assert_whole(&frames, 1, sizes.len() as u64);
        for ((n, json), size) in frames.iter().zip(&sizes) {
            assert!(*json == text(*n, *size), "frame {n} of {size}");
        }
        let last = sizes.len() as u64;
        assert_whole(&all(&writer.journal(), last - 2).0, last - 2, last);
    }

    #[tokio::test]
    async fn a_cursor_sees_all_while_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (opened, _) = open(dir.path(), 300_000);
        let mut writer = opened.writer;
        let journal = writer.journal();
        let teller = journal.clone();
        let telling = tokio::spawn(async move { teller.tell().await });
        let readers: Vec<_> = (0..4)
            .map(|r| {
                let journal = journal.clone();
                tokio::spawn(async move {
                    let (mut cursor, mut got) = (journal.subscribe(1), Vec::new());
                    while let Some(part) = cursor.next().await {
                        match part {
                            Part::Frames(f) => got.extend_from_slice(&f),
                            Part::Gap { .. } => panic!("nothing was rotated away"),
                        }
                        if r % 2 == 0 {
                            tokio::task::yield_now().await;
                        }
                    }
                    got
                })
            })
            .collect();
        for i in 0..5_000_usize {
            writer.append(|n, out| out.extend_from_slice(text(n, i % 131).as_bytes()));
            if i % 3 == 0 {
                writer.commit(|| "0".into()).await;
                tokio::task::yield_now().await;
            }
        }
        writer.commit(|| "0".into()).await;
        writer.close();
        for reader in readers {
            let got = reader.await.unwrap();
            let ids: Vec<u64> = memmem::find_iter(&got, b"id: ")
                .map(|i| std::str::from_utf8(&got[i + 4..]).unwrap_or_default().split('\n').next().unwrap().parse().unwrap())
                .collect();
            assert_eq!(ids, (1..=5_000).collect::<Vec<_>>());
        }
        telling.abort();
    }

    #[test]
    fn one_writer_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = open(dir.path(), 1 << 20);
        let again = Writer::open(dir.path(), Retention::default(), "0", &mut Count(0));
        assert!(again.unwrap_err().contains("in use by another adapter"));
        drop(first);
        open(dir.path(), 1 << 20);
    }
}
