//! The thread that puts segments on stable storage, many commits at once.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::adapter::trouble::{Component, Troubles};

/// Longest that a visible frame is not yet on stable storage.
const SYNC_TIME: Duration = Duration::from_millis(50);

/// What is to be done, in this order.
enum SyncRequest {
    /// Syncs a segment: now, or when others have come.
    Segment { file: Arc<File>, now: bool },
    /// Syncs a directory, so that a file that was made in it stays.
    Directory(PathBuf),
    /// Syncs a small file.
    File(Arc<File>),
}

/// Without a thread where nothing is to be put on stable storage.
#[derive(Debug)]
pub struct Syncer {
    wishes: Option<mpsc::Sender<SyncRequest>>,
    state: Arc<SyncState>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct SyncState {
    /// The thread knows already that there is something to do.
    wished: AtomicBool,
    /// Frames up to this one are in files.
    written: AtomicU64,
    /// Frames up to this one are on stable storage.
    synced: AtomicU64,
    troubles: Troubles,
}

impl Syncer {
    /// `synced`: frames up to this one are on stable storage already.
    ///
    /// # Errors
    /// The system's.
    pub fn start(durable: bool, synced: u64, troubles: Troubles) -> io::Result<Syncer> {
        let synced = if durable { synced } else { u64::MAX };
        let state = Arc::new(SyncState {
            wished: AtomicBool::new(false),
            written: AtomicU64::new(synced),
            synced: AtomicU64::new(synced),
            troubles,
        });
        if !durable {
            return Ok(Syncer {
                wishes: None,
                state,
                thread: None,
            });
        }
        let (wishes, wanted) = mpsc::channel();
        let seen = state.clone();
        let thread = std::thread::Builder::new()
            .name("journal-sync".into())
            .spawn(move || run(&wanted, &seen))?;
        Ok(Syncer {
            wishes: Some(wishes),
            state,
            thread: Some(thread),
        })
    }

    /// Frames up to this one are on stable storage.
    pub fn synced(&self) -> u64 {
        self.state.synced.load(Ordering::Acquire)
    }

    /// Has everything up to `head`, whose last frames are in `file`, put on stable storage: `now`,
    /// or within 50 ms.
    pub fn request_sync(&self, file: &Arc<File>, head: u64, now: bool) {
        self.state.written.store(head, Ordering::Release);
        if now || !self.state.wished.swap(true, Ordering::AcqRel) {
            self.send(SyncRequest::Segment {
                file: file.clone(),
                now,
            });
        }
    }

    /// Makes a file that was made in this directory stay there.
    pub fn directory(&self, dir: &Path) {
        self.send(SyncRequest::Directory(dir.to_owned()));
    }

    /// Puts a small file on stable storage.
    pub fn file(&self, file: &Arc<File>) {
        self.send(SyncRequest::File(file.clone()));
    }

    fn send(&self, wish: SyncRequest) {
        if let Some(wishes) = &self.wishes {
            let _ = wishes.send(wish);
        }
    }

    /// Waits until everything that was wished for is done.
    pub fn finish(&mut self) {
        self.wishes = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(wanted: &mpsc::Receiver<SyncRequest>, state: &SyncState) {
    let mut wish = wanted.recv().ok();
    while let Some(this) = wish {
        wish = match this {
            SyncRequest::Segment { file, now } => {
                let next = if now { None } else { company(wanted, &file) };
                // Whoever wishes from now on is not served by this.
                state.wished.store(false, Ordering::Release);
                state.sync(&file);
                next
            }
            SyncRequest::Directory(dir) => {
                state.note(File::open(dir).and_then(|dir| dir.sync_all()));
                None
            }
            SyncRequest::File(file) => {
                state.note(file.sync_all());
                None
            }
        }
        .or_else(|| wanted.recv().ok());
    }
}

/// Waits for more wishes for this file, for a while. Returns the first wish for something else.
fn company(wanted: &mpsc::Receiver<SyncRequest>, file: &Arc<File>) -> Option<SyncRequest> {
    let until = Instant::now() + SYNC_TIME;
    loop {
        match wanted
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .ok()?
        {
            SyncRequest::Segment { file: other, now } if Arc::ptr_eq(&other, file) => {
                if now {
                    return None;
                }
            }
            other => return Some(other),
        }
    }
}

impl SyncState {
    fn sync(&self, file: &File) {
        let written = self.written.load(Ordering::Acquire);
        if self.note(file.sync_data()) {
            self.synced.fetch_max(written, Ordering::AcqRel);
        }
    }

    /// Whether it is on stable storage; said once, where it is not.
    fn note(&self, synced: io::Result<()>) -> bool {
        match synced {
            Ok(()) => {
                if self.troubles.clear(Component::Storage) {
                    tracing::warn!("events are put on stable storage again");
                }
                true
            }
            Err(e) => {
                if self.troubles.set(
                    Component::Storage,
                    format!("events could not be put on stable storage: {e}"),
                ) {
                    tracing::error!(error = %e, "the journal could not be put on stable storage");
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_behind_another_kind_of_wish_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let file = Arc::new(File::create(dir.path().join("segment")).unwrap());
        let mut syncer = Syncer::start(true, 0, Troubles::default()).unwrap();
        syncer.request_sync(&file, 1, false);
        syncer.directory(dir.path());
        let until = Instant::now() + 100 * SYNC_TIME;
        while syncer.synced() < 1 && Instant::now() < until {
            std::thread::yield_now();
        }
        syncer.request_sync(&file, 2, false);
        syncer.finish();
        assert_eq!(syncer.synced(), 2);
    }
}
