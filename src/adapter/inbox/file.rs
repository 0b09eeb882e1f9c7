//! The inbox on disk: a log of changes, and a file for the attachments of each input.
//!
//! A line of the log is a change. A log of which most is over is rewritten, so that it stays
//! short whatever passes through. What cannot be read is skipped and counted.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::adapter::inbox::input::{Attachment, Input};
use crate::base::token::hex;

/// Longest line that is read: an input of an earlier version, whose attachments stand in it.
const MAX_LINE: u64 = 16 << 20;

/// One line of the log.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InboxRecord {
    /// The attachments stand in a file of their own, which is written before this line.
    Accepted {
        input: Input,
        position: u64,
        /// The journal's last sequence at that moment.
        #[serde(default)]
        sequence: u64,
    },
    Sent(Sent),
    /// The CLI does not have it after all.
    Unsent(String),
    /// The CLI ended while it had this input, so many times.
    Died(String, u32),
    /// It is delivered, refused or taken back.
    Over(String, u64),
    /// It could not be put on stable storage, and was never accepted.
    Void(String),
}

/// Where the records stand.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: Arc<File>,
    /// Bytes of whole records.
    len: u64,
}

/// What a log held when it was opened.
#[derive(Debug, Default)]
pub struct ReadLog {
    pub records: Vec<InboxRecord>,
    /// There was no file.
    pub fresh: bool,
    /// Lines that could not be read.
    pub damaged: usize,
}

impl Log {
    /// Opens the log and cuts off a torn tail.
    ///
    /// # Errors
    /// The file cannot be opened or read. A full disk is no reason.
    pub fn open(path: &Path) -> io::Result<(Log, ReadLog)> {
        let mut found = ReadLog {
            fresh: !path.exists(),
            ..ReadLog::default()
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        let (mut reader, mut line, mut len) = (BufReader::new(&file), Vec::new(), 0);
        loop {
            line.clear();
            let read = reader
                .by_ref()
                .take(MAX_LINE)
                .read_until(b'\n', &mut line)? as u64;
            if read == 0 || (!line.ends_with(b"\n") && read < MAX_LINE) {
                break;
            }
            len += read;
            match serde_json::from_slice(line.trim_ascii_end()) {
                Ok(record) => found.records.push(record),
                Err(_) => found.damaged += 1,
            }
        }
        if file.metadata()?.len() > len {
            file.set_len(len)?;
        }
        Ok((
            Log {
                path: path.to_owned(),
                file: Arc::new(file),
                len,
            },
            found,
        ))
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// The file to be synced, once what was appended must be on stable storage.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// # Errors
    /// The disk takes no more. Nothing was appended then.
    pub fn append(&mut self, record: &InboxRecord) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        // At its place: what a failed attempt left there is written over.
        self.file.write_all_at(&line, self.len)?;
        self.len += line.len() as u64;
        Ok(())
    }

    /// Takes back what was appended since the log had `len` bytes.
    pub fn take_back(&mut self, len: u64) {
        self.len = len;
        if let Err(e) = self.file.set_len(len) {
            tracing::error!(error = %e, "the inbox cannot be cut");
        }
    }

    /// Writes a shorter log beside this one and puts it on stable storage.
    ///
    /// # Errors
    /// The disk takes no more; this log is used further.
    pub fn write_new(path: &Path, records: &[InboxRecord]) -> io::Result<NewLog> {
        let mut text = Vec::new();
        for record in records {
            serde_json::to_writer(&mut text, record)?;
            text.push(b'\n');
        }
        let new = path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        Ok(NewLog {
            path: new,
            file,
            len: text.len() as u64,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Goes on with the new log in the place of this one.
    ///
    /// # Errors
    /// The file system's; this log is used further.
    pub fn replace(&mut self, new: NewLog) -> io::Result<()> {
        std::fs::rename(&new.path, &self.path)?;
        (self.file, self.len) = (Arc::new(new.file), new.len);
        sync_dir(&self.path)
    }
}

/// A log that is to take the place of another.
#[derive(Debug)]
pub struct NewLog {
    path: PathBuf,
    file: File,
    len: u64,
}

/// The attachments of inputs, a file an input.
#[derive(Debug)]
pub struct Payloads {
    dir: PathBuf,
}

impl Payloads {
    pub fn beside(log: &Path) -> Payloads {
        Payloads {
            dir: log.with_extension("payloads"),
        }
    }

    fn path(&self, input_id: &str) -> PathBuf {
        let digest = ring::digest::digest(&ring::digest::SHA256, input_id.as_bytes());
        self.dir
            .join(format!("{}.json", hex(&digest.as_ref()[..16])))
    }

    /// Puts them on stable storage.
    ///
    /// # Errors
    /// The disk takes no more.
    pub fn put(&self, input_id: &str, attachments: &[Attachment]) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        let path = self.path(input_id);
        let written = || {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(&serde_json::to_vec(attachments)?)?;
            file.sync_all()?;
            sync_dir(&path)
        };
        written().inspect_err(|_| _ = std::fs::remove_file(&path))
    }

    /// # Errors
    /// They cannot be read.
    pub fn get(&self, input_id: &str) -> io::Result<Vec<Attachment>> {
        Ok(serde_json::from_slice(&std::fs::read(
            self.path(input_id),
        )?)?)
    }

    pub fn remove(&self, input_id: &str) {
        let _ = std::fs::remove_file(self.path(input_id));
    }

    /// Removes those of inputs that are no longer open.
    pub fn keep_only<'a>(&self, open: impl Iterator<Item = &'a str>) {
        let kept: Vec<PathBuf> = open.map(|id| self.path(id)).collect();
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if !kept.contains(&entry.path()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// An input that was handed over, or was about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    pub input_id: String,
    /// Its name in the CLI.
    pub native_id: String,
}
