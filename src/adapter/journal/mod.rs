//! The way of an event, last step: the ordered, durable log. Subscribers are cursors into it.
//!
//! What is on disk is what goes over the wire: a segment is a file of SSE frames
//! (`id: <sequence>`, one `data:` line, a blank line), named after its first sequence, that
//! begins with a comment frame which holds the state before it. Replay is copying a file.
//!
//! Invariants:
//! - One writer (a lock on the directory). Sequences start at 1 and grow, across restarts. No
//!   number that may have been shown is given to another event.
//! - A frame is visible once `write(2)` has taken it whole, in order; nothing is dropped. A
//!   full disk stops the writer, and through it the CLI, never a subscriber.
//! - What is damaged costs itself alone: every frame that is whole is served, and the numbers
//!   between are a gap that is told.
//! - Nothing that a cursor does can reach the writer: it is told that there is more by one
//!   notification, however many cursors there are.

mod cursor;
mod life;
mod segment;
mod sums;
mod sync;
mod writer;

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::Waker;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::base::sync::lock;

pub use self::cursor::{Cursor, StreamPart};
pub use self::writer::{JournalWriter, OpenedJournal};

/// How much of the newest frames is kept in memory: what live subscribers read.
const RECENT_BYTES: usize = 2 << 20;
/// How much is read from a file at once.
const READ_BYTES: usize = 64 << 10;
/// Of how many turns the beginning is remembered.
const MAX_QUIET: usize = 4096;
/// A block of frames ends when it has reached this; a sequence is found by reading one block.
const BLOCK_BYTES: u64 = 64 << 10;

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
        Retention {
            segment_bytes: 64 << 20,
            segments: 16,
            durable: true,
        }
    }
}

/// What is read while the journal is opened.
pub trait Replay {
    /// The state that stands at the head of a segment. False: it cannot be read.
    ///
    /// # Errors
    /// The journal is another's.
    fn state(&mut self, json: &[u8]) -> Result<bool, String>;
    /// A frame's JSON; false if it is damaged.
    ///
    /// # Errors
    /// The journal is another's.
    fn frame(&mut self, sequence: u64, json: &[u8]) -> Result<bool, String>;
    /// Is this what a frame of this number holds, as far as its form tells?
    fn is_whole(&self, sequence: u64, json: &[u8]) -> bool;
    /// The state after what was read, for the head of a new segment.
    fn rebuilt(&self) -> String;
}

/// Frames of one segment, each of which follows the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    first: u64,
    last: u64,
    /// Where its frames stand in the file.
    start: u64,
    end: u64,
    /// Where its checksums stand, if it has not been compared with them.
    unchecked: Option<u64>,
}

/// Adds frames to the last block, if they follow it and it is not full, or begins another.
fn extend(blocks: &mut Vec<Block>, frames: Block) {
    match blocks.last_mut() {
        Some(block)
            if block.end == frames.start
                && block.last + 1 == frames.first
                && block.end - block.start < BLOCK_BYTES =>
        {
            (block.last, block.end) = (frames.last, frames.end);
        }
        _ => blocks.push(frames),
    }
}

#[derive(Debug)]
struct Segment {
    /// The first sequence that it was made for.
    first: u64,
    path: PathBuf,
    file: Arc<File>,
    /// Where its frames begin; 0 where its head is damaged.
    frames_at: u64,
    blocks: Vec<Block>,
}

/// Frames that were published together.
#[derive(Debug)]
struct Chunk {
    first: u64,
    last: u64,
    frames: Bytes,
}

#[derive(Debug, Default)]
struct JournalSnapshot {
    segments: VecDeque<Segment>,
    recent: VecDeque<Chunk>,
    recent_bytes: usize,
}

/// The journal as subscribers see it.
#[derive(Debug)]
pub struct Journal {
    view: Mutex<JournalSnapshot>,
    head: AtomicU64,
    more: Notify,
    cursors: Mutex<Vec<Weak<WakerSlot>>>,
    /// Numbers of frames that depend on none before, ascending.
    quiet: Mutex<Vec<u64>>,
    closed: AtomicBool,
}

/// Where a cursor waits.
#[derive(Debug, Default)]
struct WakerSlot(Mutex<Option<Waker>>);

impl Journal {
    fn new(segments: VecDeque<Segment>, head: u64) -> Arc<Journal> {
        Arc::new(Journal {
            view: Mutex::new(JournalSnapshot {
                segments,
                ..JournalSnapshot::default()
            }),
            head: AtomicU64::new(head),
            more: Notify::new(),
            cursors: Mutex::default(),
            quiet: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    /// The last sequence that is visible; 0 before the first.
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// The first sequence that is still kept.
    pub fn first(&self) -> u64 {
        let view = lock(&self.view);
        let block = view.segments.iter().find_map(|s| s.blocks.first());
        block.map_or_else(|| view.segments.front().map_or(1, |s| s.first), |b| b.first)
    }

    /// The frames with these numbers depend on none before.
    pub fn are_quiet(&self, numbers: &[u64]) {
        let first = self.first();
        let mut quiet = lock(&self.quiet);
        quiet.extend_from_slice(numbers);
        if quiet.len() > MAX_QUIET {
            quiet.retain(|n| *n >= first);
            let over = quiet.len().saturating_sub(MAX_QUIET);
            quiet.drain(..over);
        }
    }

    /// The last such frame at or before this number; the first that is kept where none is known.
    pub fn quiet_before(&self, number: u64) -> u64 {
        let quiet = lock(&self.quiet);
        let at = quiet.partition_point(|n| *n <= number);
        at.checked_sub(1)
            .and_then(|i| quiet.get(i).copied())
            .unwrap_or_else(|| self.first())
    }

    /// Wakes the cursors when the writer has published. Runs once, where the cursors run, so
    /// that the writer pays for one wake-up and not for each of theirs.
    pub async fn wake_cursors(&self) {
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
        let slot = Arc::new(WakerSlot::default());
        lock(&self.cursors).push(Arc::downgrade(&slot));
        Cursor::new(self.clone(), slot, from.max(1))
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
