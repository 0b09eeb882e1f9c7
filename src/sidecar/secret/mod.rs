//! Where a key comes from, and the only type that holds one.
//!
//! Invariants:
//! - A [`Secret`] cannot be printed, cloned into another type or serialised; its text is
//!   exposed in `sign.rs` (into a sensitive header) and `redact.rs` (to look for it).
//! - A request keeps the secret it was signed with; the next one sees a rotation within 2 s.
//! - What is not a key (empty, control characters, too long) is no key, and the reason never
//!   quotes it.

mod command;
mod file;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::redact::Patterns;

/// Where one key comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// `<secretsDir>/<name>/<key>`, as Kubernetes mounts a Secret.
    File { name: String, key: String },
    /// What a program prints, run again when `ttl` is over.
    Command { command: Vec<String>, ttl: Duration },
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::File { name, key } => write!(f, "{name}/{key}"),
            Source::Command { command, .. } => f.write_str(command.first().map_or("", String::as_str)),
        }
    }
}

/// Longest key that is taken for one.
const MAX_SECRET: usize = 4096;

/// A provider's key.
#[derive(Debug)]
pub struct Secret {
    pub(super) text: SecretString,
}

impl Secret {
    /// Takes a file's or a program's content: one line end is trimmed, the rest must be a key.
    fn new(bytes: Zeroizing<Vec<u8>>) -> Result<Secret, &'static str> {
        let mut text = bytes.as_slice();
        text = text.strip_suffix(b"\n").unwrap_or(text);
        text = text.strip_suffix(b"\r").unwrap_or(text);
        match text {
            [] => Err("it is empty"),
            _ if text.len() > MAX_SECRET => Err("it is longer than 4 KiB"),
            _ if !text.iter().all(u8::is_ascii_graphic) => Err("it holds a space, a control character or a letter beyond ASCII"),
            _ => match std::str::from_utf8(text) {
                Ok(text) => Ok(Secret { text: SecretString::from(text) }),
                Err(_) => Err("it is not text"),
            },
        }
    }

    fn is(&self, other: &Secret) -> bool {
        use secrecy::ExposeSecret;
        self.text.expose_secret() == other.text.expose_secret()
    }
}

/// A name that stays inside the directory it is joined to.
pub fn is_file_name(name: &str) -> bool {
    (1..=253).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

type Found = Result<Arc<Secret>, String>;

#[derive(Debug)]
struct Entry {
    found: Found,
    /// Still redacted from replies: a request may be under way with it.
    previous: Option<Arc<Secret>>,
    /// When a command must run again.
    due: Option<Instant>,
}

/// Every key that the policy names, as last read.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    entries: Mutex<HashMap<Source, Entry>>,
    view: ArcSwap<HashMap<Source, Found>>,
    patterns: ArcSwap<Patterns>,
    /// No program is waited for any more.
    stopping: AtomicBool,
}

impl Store {
    pub fn new(dir: PathBuf) -> Self {
        Store { dir, entries: Mutex::default(), view: ArcSwap::default(), patterns: ArcSwap::default(), stopping: AtomicBool::new(false) }
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The key, or why there is none.
    ///
    /// # Errors
    /// The reason, for the log; it names the place and never the content.
    pub fn get(&self, source: &Source) -> Found {
        self.view.load().get(source).cloned().unwrap_or_else(|| Err(format!("`{source}` has not been read yet")))
    }

    /// What must not appear in a reply: every live key and the one before it.
    pub fn patterns(&self) -> Arc<Patterns> {
        self.patterns.load_full()
    }

    /// Reads every source again that can have changed. Files always, commands when due.
    /// True if any key changed.
    pub fn refresh<'a>(&self, sources: impl Iterator<Item = &'a Source>, kind: Kind) -> bool {
        let mut changed = false;
        for source in sources {
            let due = match (source, kind) {
                (Source::File { .. }, Kind::Files) => true,
                (Source::Command { .. }, Kind::Commands) => self.is_due(source),
                _ => false,
            };
            changed |= due && self.read(source);
        }
        changed
    }

    /// The provider refused this key: read its place again at once.
    pub fn reread(&self, source: &Source) -> bool {
        match source {
            Source::File { .. } => self.read(source),
            // Running a program is not a request's business; its thread does it next.
            Source::Command { .. } => {
                if let Some(entry) = self.lock().get_mut(source) {
                    entry.due = None;
                }
                false
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Source, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_due(&self, source: &Source) -> bool {
        self.lock().get(source).is_none_or(|e| e.due.is_none_or(|due| due <= Instant::now()))
    }

    fn read(&self, source: &Source) -> bool {
        let (read, due) = match source {
            Source::File { name, key } => (file::read(&self.dir, name, key), None),
            Source::Command { command, ttl } => {
                let read = command::run(command, &self.stopping);
                // A tenth early, so that no request meets an expired key; sooner after a failure.
                let next = if read.is_ok() { *ttl - *ttl / 10 } else { Duration::from_secs(5).min(*ttl) };
                (read, Some(Instant::now() + next))
            }
        };
        let found: Found = read.and_then(|bytes| Secret::new(bytes).map_err(str::to_owned)).map(Arc::new).map_err(|why| format!("`{source}`: {why}"));
        let mut entries = self.lock();
        let old = entries.get(source);
        let same = match (old.map(|e| &e.found), &found) {
            (Some(Ok(a)), Ok(b)) => a.is(b),
            (Some(Err(a)), Err(b)) => a == b,
            _ => false,
        };
        if same {
            if let Some(entry) = entries.get_mut(source) {
                entry.due = due;
            }
            return false;
        }
        let previous = old.and_then(|e| e.found.as_ref().ok().cloned().or_else(|| e.previous.clone()));
        // A helper that fails for once does not take a key away that still works.
        let found = match (&found, old.map(|e| &e.found), source) {
            (Err(why), Some(Ok(last)), Source::Command { .. }) => {
                tracing::warn!(source = %source, why, "keeping the last key");
                Ok(last.clone())
            }
            _ => found,
        };
        entries.insert(source.clone(), Entry { found, previous, due });
        self.view.store(Arc::new(entries.iter().map(|(s, e)| (s.clone(), e.found.clone())).collect()));
        let live = entries.values().flat_map(|e| e.found.as_ref().ok().into_iter().chain(&e.previous));
        self.patterns.store(Arc::new(Patterns::new(live.map(|s| &**s))));
        true
    }
}

/// Which sources a [`Store::refresh`] looks at: each kind has a thread of its own, so that a
/// slow program delays no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Files,
    Commands,
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn secret(bytes: &[u8]) -> Result<Secret, &'static str> {
        Secret::new(Zeroizing::new(bytes.to_vec()))
    }

    #[test]
    fn only_a_key_is_a_key() {
        assert_eq!(secret(b"sk-x\r\n").unwrap().text.expose_secret(), "sk-x");
        for bad in [&b""[..], b"\n", b"a b", b"a\nb", b"\xff", "é".as_bytes(), &[b'a'; 5000]] {
            assert!(secret(bad).is_err());
        }
        assert!(!format!("{:?}", secret(b"sk-canary")).contains("canary"));
    }

    #[test]
    fn a_rotation_keeps_the_old_key_in_the_patterns() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("n")).unwrap();
        let path = dir.path().join("n/k");
        let source = Source::File { name: "n".into(), key: "k".into() };
        let store = Store::new(dir.path().into());
        assert!(store.get(&source).is_err());
        assert!(store.refresh([&source].into_iter(), Kind::Files));
        std::fs::write(&path, "sk-first-key-0001\n").unwrap();
        assert!(store.refresh([&source].into_iter(), Kind::Files));
        assert!(!store.refresh([&source].into_iter(), Kind::Files));
        std::fs::write(&path, "sk-second-key-0002").unwrap();
        assert!(store.reread(&source));
        assert_eq!(store.get(&source).unwrap().text.expose_secret(), "sk-second-key-0002");
        for key in ["sk-first-key-0001", "sk-second-key-0002"] {
            assert!(store.patterns().find(key.as_bytes()));
        }
        std::fs::write(&path, "two words").unwrap();
        store.refresh([&source].into_iter(), Kind::Files);
        let why = store.get(&source).unwrap_err();
        assert!(why.contains("n/k") && !why.contains("two"), "{why}");
    }

    #[test]
    fn a_command_is_run_again_when_due_and_its_last_key_outlives_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let flag = dir.path().join("fail");
        let script = format!("test -e {} && exit 3; echo sk-from-command", flag.display());
        let source = Source::Command { command: vec!["sh".into(), "-c".into(), script], ttl: Duration::from_secs(3600) };
        let store = Store::new(dir.path().into());
        assert!(store.refresh([&source].into_iter(), Kind::Commands));
        assert!(!store.refresh([&source].into_iter(), Kind::Commands), "not due");
        assert!(store.get(&source).is_ok());
        std::fs::write(&flag, "").unwrap();
        store.reread(&source);
        store.refresh([&source].into_iter(), Kind::Commands);
        assert!(store.get(&source).is_ok());
    }
}
