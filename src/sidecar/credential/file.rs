//! Keys in files. Kubernetes replaces a mounted Secret by swapping a symbolic link, so the path
//! is opened anew each time; nothing is watched.
//!
//! A file that is being written is not a key yet. A file that was put in place of another is
//! taken when it has not changed for [`REPLACED`]; one that is rewritten in place, for
//! [`REWRITTEN`], since a writer may pause between two halves of a key.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

use super::secret::MAX_SECRET;

/// How long a file that replaced another must have been as it is.
const REPLACED: Duration = Duration::from_millis(50);
/// How long a file that is rewritten in place must have been as it is.
const REWRITTEN: Duration = Duration::from_secs(1);
const TRIES: u32 = 4;

/// Which file was read, and in which state.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    file: (u64, u64),
    changed: (i64, i64),
    len: u64,
}

/// What a look at the file found.
pub(super) enum Look {
    /// The file is as it was at the last look.
    Same,
    /// It is still being written; the next look decides.
    Unsettled,
    Content(Zeroizing<Vec<u8>>, Stamp),
}

/// Reads the file if it changed since `last`.
pub(super) fn read(dir: &Path, name: &str, key: &str, last: Option<Stamp>) -> Result<Look, String> {
    let path = dir.join(name).join(key);
    for _ in 0..TRIES {
        let (mut file, before) = open(&path)?;
        if last == Some(before) {
            return Ok(Look::Same);
        }
        if last.is_some_and(|l| l.file == before.file) {
            if before.age() < REWRITTEN {
                return Ok(Look::Unsettled);
            }
        } else if before.age() < REWRITTEN {
            std::thread::sleep(REPLACED);
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 4));
        let limit = MAX_SECRET as u64 + 4;
        file.by_ref()
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|e| format!("cannot be read: {e}"))?;
        // The same file in the same state as before it was read: it was read whole.
        if open(&path)?.1 == before {
            return Ok(Look::Content(bytes, before));
        }
    }
    Ok(Look::Unsettled)
}

/// Opens without waiting: a pipe or a device in the key's place must not hold the thread.
fn open(path: &Path) -> Result<(File, Stamp), String> {
    let cannot = |e: &dyn std::fmt::Display| format!("cannot be read: {e}");
    let fd: OwnedFd = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| cannot(&e))?;
    let file = File::from(fd);
    let meta = file.metadata().map_err(|e| cannot(&e))?;
    if !meta.is_file() {
        return Err("is not a regular file".into());
    }
    let stamp = Stamp {
        file: (meta.dev(), meta.ino()),
        changed: (meta.mtime(), meta.mtime_nsec()),
        len: meta.len(),
    };
    Ok((file, stamp))
}

impl Stamp {
    fn age(&self) -> Duration {
        let changed = SystemTime::UNIX_EPOCH
            + Duration::new(
                self.changed.0.max(0) as u64,
                self.changed.1.clamp(0, 999_999_999) as u32,
            );
        // A time in the future says nothing; the file counts as old.
        changed.elapsed().unwrap_or(Duration::MAX)
    }
}
