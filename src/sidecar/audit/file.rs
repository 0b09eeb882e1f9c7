//! The audit file and its rotation.
//!
//! Invariants:
//! - Whole records only: what was written of a batch that failed is cut off again.
//! - A rotated file is deleted only when it is older than the operator wants (`keepDays`) and
//!   there are more than `keep` of them. A disk that is full stops the service, not the records.
//! - A file that was removed is written anew from the descriptor that is still open; one that was
//!   moved stays where it was moved to, and the next record begins a new file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sidecar::config::AuditConfig;

#[derive(Debug)]
pub struct AuditFile {
    file: File,
    path: PathBuf,
    len: u64,
    max_bytes: u64,
    keep: u32,
    keep_for: Option<Duration>,
}

/// What became of the file since the last look.
#[derive(Debug, PartialEq, Eq)]
pub enum Watched {
    InPlace,
    /// It was removed, and its records stand in a new file.
    Restored,
    /// It was moved, and a new file was begun.
    Moved,
}

impl AuditFile {
    /// Opens the file, and cuts off half a record that a crash left.
    ///
    /// # Errors
    /// The file system's, or another sidecar holds the file.
    pub fn open(path: &Path, config: &AuditConfig) -> Result<AuditFile, String> {
        let at = |e: std::io::Error| format!("`{}`: {e}", path.display());
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(at)?;
        }
        let mut file = open(path).map_err(at)?;
        lock(&file).map_err(|_| format!("`{}` is in use by another sidecar", path.display()))?;
        let len = repair(&mut file).map_err(at)?;
        let keep_for = (config.keep_days > 0)
            .then(|| Duration::from_secs(u64::from(config.keep_days) * 86_400));
        Ok(AuditFile {
            file,
            path: path.into(),
            len,
            max_bytes: config.max_bytes,
            keep: config.keep,
            keep_for,
        })
    }

    /// Would this batch begin a new file?
    pub fn is_full(&self, batch: usize) -> bool {
        self.len > 0 && self.len + batch as u64 > self.max_bytes
    }

    /// # Errors
    /// The file system's; nothing of the batch is in the file then.
    pub fn write(&mut self, batch: &[u8]) -> std::io::Result<()> {
        if self.is_full(batch.len()) {
            self.file = rotate(&self.path, self.keep, self.keep_for)?;
            self.len = 0;
        }
        let written = self
            .file
            .write_all(batch)
            .and_then(|()| self.file.sync_data());
        if let Err(e) = written {
            let _ = self.file.set_len(self.len);
            let _ = self.file.seek(SeekFrom::Start(self.len));
            return Err(e);
        }
        self.len += batch.len() as u64;
        Ok(())
    }

    /// Looks whether the path still leads to the file that is written.
    ///
    /// # Errors
    /// The file system's: a new file cannot be made.
    pub fn watch(&mut self) -> std::io::Result<Watched> {
        let ours = self.file.metadata()?;
        if let Ok(there) = std::fs::metadata(&self.path)
            && (there.dev(), there.ino()) == (ours.dev(), ours.ino())
        {
            return Ok(Watched::InPlace);
        }
        if let Some(dir) = self.path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let fresh = open(&self.path)?;
        lock(&fresh)?;
        let mut begins = fresh.metadata()?.len();
        let removed = ours.nlink() == 0;
        if removed {
            begins += copy(&self.file, self.len, &fresh)?;
        }
        (self.file, self.len) = (fresh, begins);
        Ok(if removed {
            Watched::Restored
        } else {
            Watched::Moved
        })
    }
}

/// The files of a chain, the oldest first: `audit.jsonl.2`, `audit.jsonl.1`, `audit.jsonl`.
pub fn all(path: &Path) -> Vec<PathBuf> {
    let mut rotated: Vec<u32> = numbers(path);
    rotated.sort_unstable_by(|a, b| b.cmp(a));
    rotated
        .into_iter()
        .map(|n| numbered(path, n))
        .chain(path.exists().then(|| path.to_owned()))
        .collect()
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    PathBuf::from(format!("{}.{n}", path.display()))
}

fn numbers(path: &Path) -> Vec<u32> {
    let (Some(dir), Some(name)) = (
        path.parent(),
        path.file_name()
            .map(|n| format!("{}.", n.to_string_lossy())),
    ) else {
        return Vec::new();
    };
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(|e| {
            e.ok()?
                .file_name()
                .to_str()?
                .strip_prefix(&name)?
                .parse()
                .ok()
        })
        .collect()
}

fn copy(from: &File, len: u64, to: &File) -> std::io::Result<u64> {
    let (mut at, mut block) = (0, vec![0; 64 << 10]);
    let mut to = to;
    while at < len {
        let n = from.read_at(&mut block, at)?;
        if n == 0 {
            break;
        }
        to.write_all(&block[..n])?;
        at += n as u64;
    }
    to.sync_data()?;
    Ok(at)
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

fn lock(file: &File) -> std::io::Result<()> {
    rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(Into::into)
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
        tracing::warn!(
            bytes = len - end,
            "the audit file ended in half a record, which is cut off"
        );
        file.set_len(end)?;
    }
    Ok(end)
}

/// `audit.jsonl` becomes `audit.jsonl.1`, and so on. Whatever fails on the way, trying again
/// continues: files move into a gap only, so none is moved twice.
fn rotate(path: &Path, keep: u32, keep_for: Option<Duration>) -> std::io::Result<File> {
    expire(path, keep, keep_for);
    let next = path.with_extension("next");
    let fresh = open(&next)?;
    lock(&fresh)?;
    if !path.exists() {
        // Somebody moved it, or an earlier try got this far.
        std::fs::rename(&next, path)?;
        return Ok(fresh);
    }
    let gap = (1..).find(|n| !numbered(path, *n).exists()).unwrap_or(1);
    for n in (1..gap).rev() {
        std::fs::rename(numbered(path, n), numbered(path, n + 1))?;
    }
    std::fs::rename(path, numbered(path, 1))?;
    std::fs::rename(&next, path)?;
    Ok(fresh)
}

/// Deletes the files that are beyond the number to keep and old enough.
fn expire(path: &Path, keep: u32, keep_for: Option<Duration>) {
    let Some(keep_for) = keep_for else { return };
    // The file that is rotated now becomes number 1.
    for n in numbers(path).into_iter().filter(|n| *n >= keep) {
        let file = numbered(path, n);
        let age = file
            .metadata()
            .and_then(|m| m.modified())
            .ok()
            .and_then(|m| m.elapsed().ok());
        if age.is_some_and(|age| age > keep_for) {
            match std::fs::remove_file(&file) {
                Ok(()) => {
                    tracing::info!(file = %file.display(), "an audit file older than `audit.keepDays` is deleted")
                }
                Err(e) => {
                    tracing::warn!(file = %file.display(), error = %e, "an old audit file cannot be deleted")
                }
            }
        }
    }
}
