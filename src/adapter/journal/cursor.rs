//! Reads the journal in order, from a place, to its end and on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use memchr::memmem;

use super::{Block, Journal, READ_BYTES, WakerSlot, segment};
use crate::base::sync::lock;

/// What a cursor finds.
#[derive(Debug)]
pub enum StreamPart {
    /// Frames, as they stand on disk. May end within one; the next part goes on there.
    Frames(Bytes),
    /// Frames that are no longer kept, or damaged.
    Gap { from: u64, to: u64 },
}

#[derive(Debug)]
pub struct Cursor {
    journal: Arc<Journal>,
    slot: Arc<WakerSlot>,
    /// The next sequence that was not yet begun.
    next: u64,
    /// Where it reads a file: what is older than memory holds.
    place: Option<CursorPlace>,
}

/// The rest of a run of frames in a file.
#[derive(Debug)]
struct CursorPlace {
    file: Arc<File>,
    offset: u64,
    end: u64,
    /// The last sequence of the run.
    last: u64,
}

/// Where the next frame is.
enum NextBytes {
    Run(CursorPlace),
    Gap(u64),
    /// A block that was not compared with its checksums yet: the segment's first sequence, and
    /// the block.
    Unchecked(u64, Arc<File>, std::path::PathBuf, Block),
}

impl Cursor {
    pub(super) fn new(journal: Arc<Journal>, slot: Arc<WakerSlot>, next: u64) -> Cursor {
        Cursor {
            journal,
            slot,
            next,
            place: None,
        }
    }

    /// The next part; waits for one. `None`: the journal is closed, and this was all of it.
    pub async fn next(&mut self) -> Option<StreamPart> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Cursor::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<StreamPart>> {
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
    pub fn read(&mut self) -> io::Result<Option<StreamPart>> {
        while self.place.is_none() {
            if self.next > self.journal.head() {
                return Ok(None);
            }
            if let Some(frames) = self.recent() {
                return Ok(Some(StreamPart::Frames(frames)));
            }
            match self.find() {
                NextBytes::Run(place) => self.place = Some(place),
                NextBytes::Gap(to) => {
                    let from = std::mem::replace(&mut self.next, to + 1);
                    return Ok(Some(StreamPart::Gap { from, to }));
                }
                NextBytes::Unchecked(segment, file, path, block) => {
                    let good = segment::compare(&file, &path, &block)?;
                    self.journal.replace(segment, &block, good);
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
        let skip = if chunk.first == self.next {
            0
        } else {
            start_of(&chunk.frames, self.next)?
        };
        self.next = chunk.last + 1;
        Some(chunk.frames.slice(skip..))
    }

    /// The run of frames that holds the next one, or the numbers before the run behind it.
    fn find(&self) -> NextBytes {
        let view = lock(&self.journal.view);
        // Not a binary search over segments: one that was just begun has no blocks.
        let block = view.segments.iter().find_map(|s| {
            let at = s.blocks.partition_point(|b| b.last < self.next);
            s.blocks.get(at).map(|block| (s, block))
        });
        let Some((segment, block)) = block else {
            return NextBytes::Gap(self.journal.head());
        };
        if block.first > self.next {
            return NextBytes::Gap(block.first - 1);
        }
        if block.unchecked.is_some() {
            return NextBytes::Unchecked(
                segment.first,
                segment.file.clone(),
                segment.path.clone(),
                block.clone(),
            );
        }
        let (file, block) = (segment.file.clone(), block.clone());
        drop(view);
        let skip = if block.first == self.next {
            Ok(0)
        } else {
            segment::offset_of(&file, &block, self.next)
        };
        // One that has become unreadable since is shown as far as it can be read.
        let offset = block.start + skip.unwrap_or(0);
        NextBytes::Run(CursorPlace {
            file,
            offset,
            end: block.end,
            last: block.last,
        })
    }

    fn read_file(&mut self) -> io::Result<Option<StreamPart>> {
        let Some(place) = &mut self.place else {
            return Ok(None);
        };
        let wanted = (place.end - place.offset).min(READ_BYTES as u64) as usize;
        let mut bytes = BytesMut::zeroed(wanted);
        place.file.read_exact_at(&mut bytes, place.offset)?;
        place.offset += wanted as u64;
        if place.offset == place.end {
            self.next = place.last + 1;
            self.place = None;
        }
        Ok(Some(StreamPart::Frames(bytes.freeze())))
    }
}

impl Journal {
    /// Puts what is whole of a block in its place.
    fn replace(&self, segment: u64, block: &Block, good: Vec<Block>) {
        let mut view = lock(&self.view);
        let Some(segment) = view.segments.iter_mut().find(|s| s.first == segment) else {
            return;
        };
        if let Some(at) = segment.blocks.iter().position(|b| b == block) {
            segment.blocks.splice(at..=at, good);
        }
    }
}

/// Where a frame starts in a run of frames.
fn start_of(frames: &[u8], sequence: u64) -> Option<usize> {
    let wanted = format!("\n\nid: {sequence}\n");
    memmem::find(frames, wanted.as_bytes()).map(|i| i + 2)
}
