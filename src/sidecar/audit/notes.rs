//! Notes of requests that were let in, in a file of fixed places.
//!
//! A request is noted before anything of it goes upstream, and its place is free again when its
//! record has been written. What is found in the file at start was under way when the process was
//! killed. A note survives a kill of the process; nothing waits for the disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::base::sync::lock;
use crate::sidecar::record::{AuditRecord, Charge};

/// Bytes of a place; a longer note is cut down to what is needed to charge it.
const PLACE: usize = 2048;

/// A place in the file.
pub type NotePlace = u32;

/// What is noted of a request: who it was, and what it is charged if nothing else is heard of it.
#[derive(Debug, Serialize)]
struct Note<'a> {
    /// When it arrived, in microseconds since 1970.
    at: i64,
    request_id: &'a str,
    session_id: &'a str,
    provider: Option<&'a str>,
    endpoint: Option<&'a str>,
    model_requested: Option<&'a str>,
    scope_matched: Option<&'a str>,
    policy_revision: Option<&'a str>,
    stream: bool,
    bytes_in: u64,
    client_session: Option<&'a str>,
    charged: Option<&'a Charge>,
}

/// A note as it is found at start.
#[derive(Debug, Deserialize)]
pub struct FoundNotes {
    pub at: i64,
    pub request_id: String,
    #[serde(default)]
    pub charged: Option<Charge>,
    /// The whole note, to be completed to a record.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug)]
pub struct Notes {
    file: File,
    places: Mutex<Places>,
    /// A note could not be written; until one can, no request is let in.
    failed: AtomicBool,
}

#[derive(Debug, Default)]
struct Places {
    /// Free places; those that still hold a note of before are in `stale` too.
    free: Vec<NotePlace>,
    next: NotePlace,
    stale: Vec<NotePlace>,
    line: Vec<u8>,
}

/// Where the notes stand: beside the state file.
pub fn path(state: &Path) -> PathBuf {
    let name = state
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    state.with_file_name(format!(
        "{}.open",
        name.trim_end_matches(".json").trim_end_matches(".state")
    ))
}

/// The notes that the last process left.
///
/// # Errors
/// The file system's, but for a file that is not there.
pub fn left_behind(path: &Path) -> io::Result<Vec<FoundNotes>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let note = |place: &[u8]| {
        let end = memchr::memchr(b'\n', place)?;
        serde_json::from_slice(&place[..end]).ok()
    };
    Ok(bytes
        .chunks(PLACE)
        .filter(|p| p.first() == Some(&b'{'))
        .filter_map(note)
        .collect())
}

impl Notes {
    /// # Errors
    /// The file system's.
    pub fn create(path: &Path) -> io::Result<Notes> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(path)?;
        Ok(Notes {
            file,
            places: Mutex::default(),
            failed: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Places> {
        lock(&self.places)
    }

    /// Notes a request that is about to go upstream.
    ///
    /// # Errors
    /// The file system's: then the request must not go.
    pub fn put(&self, record: &AuditRecord, charge: Option<&Charge>) -> io::Result<NotePlace> {
        let mut places = self.lock();
        let place = places.free.pop().unwrap_or_else(|| {
            places.next += 1;
            places.next - 1
        });
        let mut line = std::mem::take(&mut places.line);
        line.clear();
        let full = Note {
            at: record.ts.as_microsecond(),
            request_id: &record.request_id,
            session_id: &record.session_id,
            provider: record.provider.as_deref(),
            endpoint: record.endpoint,
            model_requested: record.model_requested.as_deref(),
            scope_matched: record.scope_matched.as_deref(),
            policy_revision: record.policy_revision.as_deref(),
            stream: record.stream,
            bytes_in: record.bytes_in,
            client_session: record.client_session.as_deref(),
            charged: charge,
        };
        serde_json::to_writer(&mut line, &full)?;
        if line.len() >= PLACE {
            line.clear();
            serde_json::to_writer(
                &mut line,
                &Note {
                    model_requested: None,
                    scope_matched: None,
                    client_session: None,
                    ..full
                },
            )?;
        }
        line.push(b'\n');
        let written = self
            .file
            .write_all_at(&line, u64::from(place) * PLACE as u64);
        places.line = line;
        if let Err(e) = &written {
            places.free.push(place);
            if !self.failed.swap(true, Ordering::AcqRel) {
                tracing::error!(error = %e, "requests cannot be noted: none is served until they can");
            }
        }
        written.map(|()| place)
    }

    pub fn works(&self) -> bool {
        !self.failed.load(Ordering::Acquire)
    }

    /// Tries to write again after a failure, at the place that comes next.
    fn try_again(&self) {
        if self.works() {
            return;
        }
        let places = self.lock();
        let next = places.free.last().copied().unwrap_or(places.next);
        if self
            .file
            .write_all_at(&[0; PLACE], u64::from(next) * PLACE as u64)
            .is_ok()
        {
            self.failed.store(false, Ordering::Release);
            tracing::warn!("requests are noted again");
        }
    }

    /// The records of these requests are written: their places can be taken again.
    pub fn release(&self, released: &mut Vec<NotePlace>) {
        let mut places = self.lock();
        places.stale.extend_from_slice(released);
        places.free.append(released);
    }

    /// Empties the places that nobody took again, so that the file holds what is under way.
    pub fn tidy(&self) {
        self.try_again();
        let mut places = self.lock();
        let mut stale = std::mem::take(&mut places.stale);
        if stale.is_empty() {
            return;
        }
        // A place that was taken and released many times since is emptied once.
        stale.sort_unstable();
        stale.dedup();
        let free: std::collections::BTreeSet<NotePlace> = places.free.iter().copied().collect();
        for place in stale.into_iter().filter(|p| free.contains(p)) {
            let _ = self
                .file
                .write_all_at(b"\0", u64::from(place) * PLACE as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(&dir.path().join("audit.state.json"));
        assert!(file.ends_with("audit.open"));
        let record = |id: &str| AuditRecord {
            model_requested: Some("m".repeat(200)),
            ..AuditRecord::new(id.into(), "ses".into())
        };
        let charge = Charge {
            tokens: 5,
            usd: 0.5,
            grants: vec!["g".into()],
            at: 1,
        };
        let notes = Notes::create(&file).unwrap();
        let mut places: Vec<NotePlace> = (0..5)
            .map(|i| notes.put(&record(&format!("r{i}")), Some(&charge)).unwrap())
            .collect();
        notes.release(&mut places.drain(..2).collect());
        notes.put(&record("again"), None).unwrap();
        notes.tidy();
        let ids =
            |found: Vec<FoundNotes>| found.into_iter().map(|n| n.request_id).collect::<Vec<_>>();
        let found = left_behind(&file).unwrap();
        assert_eq!(found[1].charged, Some(charge));
        assert_eq!(ids(found), ["again", "r2", "r3", "r4"].map(str::to_owned));
        assert!(left_behind(&dir.path().join("none")).unwrap().is_empty());
    }
}
