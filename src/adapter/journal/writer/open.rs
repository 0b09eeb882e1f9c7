//! Opening a journal: what is whole, what is missing, where to go on.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::adapter::journal::life::{Last, Life};
use crate::adapter::journal::segment::Scanned;
use crate::adapter::journal::sums::{Sums, SumsWriter};
use crate::adapter::journal::sync::Syncer;
use crate::adapter::journal::writer::{JournalWriter, MAX_UNSYNCED};
use crate::adapter::journal::{Journal, Replay, Retention, Segment, segment, sums};
use crate::adapter::trouble::{Component, Troubles};

/// A journal, opened.
#[derive(Debug)]
pub struct OpenedJournal {
    pub writer: JournalWriter,
    /// What is not as it was left, for those who read the stream.
    pub damage: Option<String>,
}

/// What there is of a journal.
pub(crate) struct FoundSegment {
    pub(crate) segments: VecDeque<Segment>,
    /// The newest segment, if it is whole: it is written further.
    pub(crate) last: Option<Scanned>,
    /// The largest number of a whole frame, and of any.
    pub(crate) head: u64,
    pub(crate) highest: u64,
    pub(crate) damaged: bool,
    /// The newest numbers that there were may be among what is damaged.
    pub(crate) damaged_tail: bool,
}

/// Cuts off what is not whole at the end.
pub(crate) fn cut(file: &File, end: u64) -> io::Result<()> {
    if file.metadata()?.len() > end {
        file.set_len(end)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Finds the blocks of all segments, and rebuilds the state from the newest head on.
pub(crate) fn look_through(
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
pub(crate) fn go_on(found: &FoundSegment, last: Last, floor: u64) -> (u64, Option<String>) {
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
}
