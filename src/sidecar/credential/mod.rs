//! Where a key comes from, and the only type that holds one.
//!
//! Invariants:
//! - A [`Secret`] cannot be printed, cloned into another type or serialised; its text is
//!   exposed in `sign.rs` (into a sensitive header) and `redact.rs` (to look for it).
//! - A request keeps the secret it was signed with; the next one sees a rotation within 2 s.
//! - What is not a key (empty, control characters, too long) is never taken for one, and the
//!   reason never quotes it. The last good key serves on, with a warning.

mod command;
mod file;

pub mod secret;

pub use self::secret::{Secret, Source, is_file_name};

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::base::sync::lock;
use crate::sidecar::redact::Patterns;

type FoundSecret = Result<Arc<Secret>, String>;

/// Keys that were replaced are still looked for in replies this long: the longest that a request
/// which was signed with one can be under way.
const KEPT_FOR_REDACTION: Duration = Duration::from_secs(3600);

/// The number of them, however often a key is replaced.
const MAX_REPLACED: usize = 64;

/// How long a request waits for its key to be read again.
const REREAD_TIME: Duration = Duration::from_millis(1500);

#[derive(Debug)]
struct SecretEntry {
    /// The key that serves: the last good one. Before there was one, why not.
    found: FoundSecret,
    /// When it was taken.
    since: SystemTime,
    /// What is wrong with the last look, while the last good key serves.
    problem: Option<String>,
    /// The keys before it, and when each was replaced.
    replaced: Vec<(Arc<Secret>, Instant)>,
    /// When a command must run again.
    due: Option<Instant>,
    /// The file's state when it was read.
    stamp: Option<file::Stamp>,
    /// The file is being written.
    unsettled: bool,
}

impl SecretEntry {
    fn new() -> Self {
        SecretEntry {
            found: Err("it has not been read yet".into()),
            since: SystemTime::UNIX_EPOCH,
            problem: None,
            replaced: Vec::new(),
            due: None,
            stamp: None,
            unsettled: false,
        }
    }
}

/// What operators see of a key.
#[derive(Debug, Clone, Copy)]
pub struct Health {
    /// The last look found a good key.
    pub ok: bool,
    /// How long ago the key that serves was taken.
    pub age: Option<Duration>,
}

/// Every key that the policy names, as last read.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    entries: Mutex<HashMap<Source, SecretEntry>>,
    view: ArcSwap<HashMap<Source, FoundSecret>>,
    patterns: ArcSwap<Patterns>,
    /// No program is waited for any more.
    stopping: AtomicBool,
    /// Rounds of looks at the files that are over; requests wait for the next.
    rounds: watch::Sender<u64>,
    /// Wakes the thread that looks at the files.
    hurry: (Mutex<bool>, Condvar),
}

impl Store {
    pub fn new(dir: PathBuf) -> Self {
        Store {
            dir,
            entries: Mutex::default(),
            view: ArcSwap::default(),
            patterns: ArcSwap::default(),
            stopping: AtomicBool::new(false),
            rounds: watch::Sender::new(0),
            hurry: Default::default(),
        }
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn wake(&self) {
        *lock(&self.hurry.0) = true;
        self.hurry.1.notify_all();
    }

    /// Waits until files are to be looked at again: after `time`, or when a request asks for it.
    pub fn wait(&self, time: Duration) {
        let hurried = lock(&self.hurry.0);
        let mut hurried = self
            .hurry
            .1
            .wait_timeout_while(hurried, time, |h| !*h)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        *hurried = false;
    }

    /// The key, or why there is none.
    ///
    /// # Errors
    /// The reason, for the log; it names the place and never the content.
    pub fn get(&self, source: &Source) -> FoundSecret {
        self.view
            .load()
            .get(source)
            .cloned()
            .unwrap_or_else(|| Err(format!("`{source}` has not been read yet")))
    }

    pub fn health(&self, source: &Source) -> Health {
        let entries = self.lock();
        let good = entries.get(source).filter(|e| e.found.is_ok());
        Health {
            ok: good.is_some_and(|e| e.problem.is_none()),
            age: good.and_then(|e| e.since.elapsed().ok()),
        }
    }

    /// What must not appear in a reply: every key, and those that were replaced lately.
    pub fn patterns(&self) -> Arc<Patterns> {
        self.patterns.load_full()
    }

    /// Reads every source again that can have changed. Files always, commands when due.
    /// True if any key changed.
    pub fn refresh<'a>(&self, sources: impl Iterator<Item = &'a Source>, kind: SecretKind) -> bool {
        let mut changed = false;
        for source in sources {
            let due = match (source, kind) {
                (Source::File { .. }, SecretKind::Files) => true,
                (Source::Command { .. }, SecretKind::Commands) => self.is_due(source),
                _ => false,
            };
            changed |= due && self.read(source);
        }
        if kind == SecretKind::Files {
            self.rounds.send_modify(|n| *n += 1);
        }
        changed
    }

    /// The provider refused this key: waits until its file has been looked at again. The thread
    /// of the keys does that, since a file system that hangs must not hold a request's thread.
    pub async fn reread(&self, source: &Source) {
        if let Source::Command { .. } = source {
            // Running a program is not a request's business; its thread does it next.
            if let Some(entry) = self.lock().get_mut(source) {
                entry.due = None;
            }
            return;
        }
        let mut rounds = self.rounds.subscribe();
        // The round that is under way may have passed this file already.
        let after = *rounds.borrow() + 2;
        let settled = async {
            loop {
                self.wake();
                let round = match rounds.changed().await {
                    Ok(()) => *rounds.borrow_and_update(),
                    Err(_) => return,
                };
                if round >= after && !self.lock().get(source).is_some_and(|e| e.unsettled) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(REREAD_TIME, settled).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Source, SecretEntry>> {
        lock(&self.entries)
    }

    fn is_due(&self, source: &Source) -> bool {
        self.lock()
            .get(source)
            .is_none_or(|e| e.due.is_none_or(|due| due <= Instant::now()))
    }

    /// Looks at one source. True if its key, or what is wrong with it, changed.
    fn read(&self, source: &Source) -> bool {
        let (looked, due) = match source {
            Source::File { name, key } => {
                let last = self.lock().get(source).and_then(|e| e.stamp);
                (file::read(&self.dir, name, key, last), None)
            }
            Source::Command { command, ttl } => {
                let read = command::run(command, &self.stopping);
                // A tenth early, so that no request meets an expired key; sooner after a failure.
                let next = if read.is_ok() {
                    *ttl - *ttl / 10
                } else {
                    Duration::from_secs(5).min(*ttl)
                };
                (
                    read.map(|bytes| file::Look::Content(bytes, file::Stamp::default())),
                    Some(Instant::now() + next),
                )
            }
        };
        let mut entries = self.lock();
        let entry = entries
            .entry(source.clone())
            .or_insert_with(SecretEntry::new);
        entry.due = due;
        entry.unsettled = matches!(looked, Ok(file::Look::Unsettled));
        let found = match looked {
            Ok(file::Look::Same | file::Look::Unsettled) => return false,
            Ok(file::Look::Content(bytes, stamp)) => {
                entry.stamp = Some(stamp);
                Secret::new(bytes).map_err(str::to_owned)
            }
            Err(why) => {
                entry.stamp = None;
                Err(why)
            }
        };
        let changed = entry.take(source, found);
        if changed {
            self.publish(&entries);
        }
        changed
    }

    fn publish(&self, entries: &HashMap<Source, SecretEntry>) {
        self.view.store(Arc::new(
            entries
                .iter()
                .map(|(s, e)| (s.clone(), e.found.clone()))
                .collect(),
        ));
        let live = entries.values().flat_map(|e| {
            e.found
                .as_ref()
                .ok()
                .into_iter()
                .chain(e.replaced.iter().map(|(s, _)| s))
        });
        self.patterns
            .store(Arc::new(Patterns::new(live.map(|s| &s.text))));
    }
}

impl SecretEntry {
    /// Takes what a look found. A look that finds no key does not take one away that serves:
    /// to withdraw a key, the grant is withdrawn.
    fn take(&mut self, source: &Source, found: Result<Secret, String>) -> bool {
        match found {
            Ok(new) => {
                self.problem = None;
                match &self.found {
                    Ok(old) if old.is(&new) => return false,
                    Ok(old) => {
                        self.replaced
                            .retain(|(_, since)| since.elapsed() < KEPT_FOR_REDACTION);
                        self.replaced.push((old.clone(), Instant::now()));
                        let surplus = self.replaced.len().saturating_sub(MAX_REPLACED);
                        self.replaced.drain(..surplus);
                    }
                    Err(_) => {}
                }
                self.found = Ok(Arc::new(new));
                self.since = SystemTime::now();
                tracing::info!(%source, "key read");
                true
            }
            Err(why) => {
                let why = format!("`{source}`: {why}");
                if self.found.is_ok() {
                    if self.problem.as_ref() != Some(&why) {
                        tracing::warn!(
                            why,
                            "the key cannot be read again; the last good one serves"
                        );
                    }
                    self.problem = Some(why);
                    return false;
                }
                let changed = self.found.as_ref().err() != Some(&why);
                if changed {
                    tracing::warn!(why, "no key");
                }
                self.found = Err(why);
                changed
            }
        }
    }
}

/// Which sources a [`Store::refresh`] looks at: each kind has a thread of its own, so that a
/// slow program delays no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretKind {
    Files,
    Commands,
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;
    use zeroize::Zeroizing;

    fn secret(bytes: &[u8]) -> Result<Secret, &'static str> {
        Secret::new(Zeroizing::new(bytes.to_vec()))
    }

    #[test]
    fn only_a_key_is_a_key() {
        assert_eq!(secret(b"sk-x\r\n").unwrap().text.expose_secret(), "sk-x");
        for bad in [
            &b""[..],
            b"\n",
            b"a b",
            b"a\nb",
            b"\xff",
            "é".as_bytes(),
            &[b'a'; 5000],
        ] {
            assert!(secret(bad).is_err());
        }
        assert!(!format!("{:?}", secret(b"sk-canary")).contains("canary"));
    }

    /// A store over one file, and the file.
    fn one_file(dir: &std::path::Path) -> (Store, Source, PathBuf) {
        std::fs::create_dir(dir.join("n")).unwrap();
        (
            Store::new(dir.into()),
            Source::File {
                name: "n".into(),
                key: "k".into(),
            },
            dir.join("n/k"),
        )
    }

    fn replace(path: &std::path::Path, text: &str) {
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, path).unwrap();
    }

    #[test]
    fn keys_that_were_rotated_away_stay_in_the_patterns() {
        let dir = tempfile::tempdir().unwrap();
        let (store, source, path) = one_file(dir.path());
        assert!(store.get(&source).is_err());
        let look = || store.refresh([&source].into_iter(), SecretKind::Files);
        assert!(look() && store.get(&source).is_err());
        let keys = [
            "sk-first-key-0001",
            "sk-second-key-0002",
            "sk-third-key-00003",
        ];
        for key in keys {
            replace(&path, &format!("{key}\n"));
            assert!(look() && !look());
            assert_eq!(store.get(&source).unwrap().text.expose_secret(), key);
        }
        for key in keys {
            assert!(store.patterns().find(key.as_bytes()), "{key}");
        }
    }

    #[test]
    fn a_look_that_finds_no_key_leaves_the_last_one_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (store, source, path) = one_file(dir.path());
        let look = || store.refresh([&source].into_iter(), SecretKind::Files);
        replace(&path, "sk-the-good-key");
        look();
        for broken in ["two words", "", "\n"] {
            replace(&path, broken);
            look();
            assert_eq!(
                store.get(&source).unwrap().text.expose_secret(),
                "sk-the-good-key"
            );
            assert!(!store.health(&source).ok && store.health(&source).age.is_some());
        }
        std::fs::remove_file(&path).unwrap();
        look();
        assert!(store.get(&source).is_ok());
        // A pipe in its place holds nobody.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        look();
        std::fs::remove_file(&path).unwrap();
        replace(&path, "sk-the-next-key");
        look();
        assert_eq!(
            store.get(&source).unwrap().text.expose_secret(),
            "sk-the-next-key"
        );
        assert!(store.health(&source).ok);
    }

    #[test]
    fn half_a_key_is_not_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let (store, source, path) = one_file(dir.path());
        let look = || store.refresh([&source].into_iter(), SecretKind::Files);
        replace(&path, "sk-the-good-key");
        look();
        std::fs::write(&path, "sk-the-n").unwrap();
        look();
        assert_eq!(
            store.get(&source).unwrap().text.expose_secret(),
            "sk-the-good-key"
        );
        std::fs::write(&path, "sk-the-new-key").unwrap();
        let settled = std::time::SystemTime::now() - Duration::from_secs(5);
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(settled)
            .unwrap();
        look();
        assert_eq!(
            store.get(&source).unwrap().text.expose_secret(),
            "sk-the-new-key"
        );
    }

    #[test]
    fn a_command_is_run_again_when_due_and_its_last_key_outlives_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let flag = dir.path().join("fail");
        let script = format!("test -e {} && exit 3; echo sk-from-command", flag.display());
        let source = Source::Command {
            command: vec!["sh".into(), "-c".into(), script],
            ttl: Duration::from_secs(3600),
        };
        let store = Store::new(dir.path().into());
        assert!(store.refresh([&source].into_iter(), SecretKind::Commands));
        assert!(
            !store.refresh([&source].into_iter(), SecretKind::Commands),
            "not due"
        );
        assert!(store.get(&source).is_ok());
        std::fs::write(&flag, "").unwrap();
        store.lock().get_mut(&source).unwrap().due = None;
        store.refresh([&source].into_iter(), SecretKind::Commands);
        assert!(store.get(&source).is_ok() && !store.health(&source).ok);
    }
}
