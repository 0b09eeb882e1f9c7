//! `outrigger audit verify`: follows the chain of records through a file and its rotations.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::chain::{Links, hash};
use super::file;

/// What a chain that holds consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub files: usize,
    pub records: u64,
    /// The number of the first record that is still there; 1 unless old files were deleted.
    pub first: u64,
    pub last: u64,
    pub checkpoints: u64,
}

/// Why a chain was not found to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotVerified {
    /// A file is not there or cannot be read.
    Unreadable {
        file: PathBuf,
        why: String,
    },
    Broken(Break),
}

impl std::fmt::Display for NotVerified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotVerified::Unreadable { file, why } => {
                write!(f, "`{}` cannot be verified: {why}", file.display())
            }
            NotVerified::Broken(at) => at.fmt(f),
        }
    }
}

/// Where a chain breaks first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    pub file: PathBuf,
    /// Counted from 1; 0 where no line is to blame.
    pub line: u64,
    pub request_id: Option<String>,
    pub why: String,
}

impl std::fmt::Display for Break {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the chain breaks at `{}` line {}",
            self.file.display(),
            self.line
        )?;
        if let Some(id) = &self.request_id {
            write!(f, " (request `{id}`)")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// Verifies the records of `path` and of its rotated files. With a public key, every checkpoint
/// must be signed by its owner, and there must be one.
///
/// # Errors
/// The first break, or why a file cannot be read.
pub fn verify(path: &Path, public_key: Option<&[u8]>) -> Result<Verified, NotVerified> {
    let files = file::all(path);
    if files.is_empty() {
        return Err(NotVerified::Unreadable {
            file: path.to_owned(),
            why: "there is no such file".into(),
        });
    }
    let mut done = Verified {
        files: files.len(),
        records: 0,
        first: 0,
        last: 0,
        checkpoints: 0,
    };
    let mut prev: Option<String> = None;
    for file in &files {
        let unreadable = |e: std::io::Error| NotVerified::Unreadable {
            file: file.clone(),
            why: e.to_string(),
        };
        let at = |line: u64, id: Option<&String>, why: String| {
            NotVerified::Broken(Break {
                file: file.clone(),
                line,
                request_id: id.cloned(),
                why,
            })
        };
        let opened = File::open(file).map_err(unreadable)?;
        for (n, line) in BufReader::new(opened).split(b'\n').enumerate() {
            let n = n as u64 + 1;
            let line = line.map_err(unreadable)?;
            let links: Links = serde_json::from_slice(&line)
                .map_err(|e| at(n, None, format!("the line is not a record: {e}")))?;
            let id = links.request_id.as_ref();
            match &prev {
                None if links.seq == 1 && links.prev.bytes().any(|b| b != b'0') => {
                    return Err(at(n, id, "the first record points to one before it".into()));
                }
                None => done.first = links.seq,
                Some(_) if links.seq != done.last + 1 => {
                    return Err(at(
                        n,
                        id,
                        format!(
                            "record {} follows record {}; records in between are missing, or the order was changed",
                            links.seq, done.last
                        ),
                    ));
                }
                Some(prev) if *prev != links.prev => {
                    return Err(at(n, id, "the record before it was changed".into()));
                }
                Some(_) => {}
            }
            if let Some(checkpoint) = &links.checkpoint {
                let speaks_of_it = prev.as_ref().is_none_or(|p| *p == checkpoint.head)
                    && checkpoint.seq + 1 == links.seq;
                if !speaks_of_it {
                    return Err(at(
                        n,
                        id,
                        "the checkpoint does not belong to this place in the chain".into(),
                    ));
                }
                if public_key.is_some_and(|key| !checkpoint.is_signed_by(key)) {
                    return Err(at(
                        n,
                        id,
                        "the checkpoint's signature does not match the public key".into(),
                    ));
                }
                done.checkpoints += 1;
            }
            prev = Some(hash(&line));
            (done.last, done.records) = (links.seq, done.records + 1);
        }
    }
    if public_key.is_some() && done.checkpoints == 0 {
        return Err(NotVerified::Broken(Break {
            file: path.to_owned(),
            line: 0,
            request_id: None,
            why: "it holds no signed checkpoint".into(),
        }));
    }
    Ok(done)
}
