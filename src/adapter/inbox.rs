//! The way of an input: the durable, ordered queue between `POST /inject` and the CLI.
//!
//! Invariants:
//! - What was answered with 202 is on stable storage and reaches the CLI, in order, once.
//! - The same id again is answered as before and delivers nothing.
//! - An input is noted as sent, with the name it will have in the CLI, before it is handed
//!   over. After a crash the CLI is asked by that name whether it has it.
//!
//! Format: JSON lines, one a change; rewritten without what is over when it is opened.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::base::sync::lock;
use crate::event::{InputMode, InputSource};

/// Inputs that may wait.
pub const CAPACITY: usize = 256;
/// Ids of delivered inputs that are remembered across a restart.
const REMEMBERED: usize = 16_384;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    pub input_id: String,
    pub text: String,
    pub mode: InputMode,
    pub source: InputSource,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender_id: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub media_type: String,
    /// Base64.
    pub data: String,
}

/// How far an input has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Waiting,
    Sent(Sent),
}

/// An input that was handed over, or was about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    pub input_id: String,
    /// Its name in the CLI.
    pub native_id: String,
    /// The journal's next sequence at that moment: its `user.message` is not before.
    pub sequence: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Accepted {
        input: Input,
        position: u64,
    },
    Sent(Sent),
    /// The CLI does not have it after all.
    Unsent(String),
    Over(String, u64),
}

#[derive(Debug)]
struct Queue {
    file: File,
    /// Bytes of whole records.
    len: u64,
    open: VecDeque<(Input, State)>,
    /// Every id that was seen, with its answer.
    positions: HashMap<String, u64>,
    order: VecDeque<String>,
    /// The session is ending: nobody would deliver what comes now.
    closed: bool,
}

#[derive(Debug)]
pub struct Inbox {
    queue: Mutex<Queue>,
    pub changed: Notify,
}

/// The answer to an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// 1: the next to be delivered.
    pub position: u64,
    pub duplicate: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    #[error("{CAPACITY} inputs are waiting already")]
    Full,
    #[error("the session is ending")]
    Closed,
    #[error("the inbox cannot be written: {0}")]
    Io(#[from] io::Error),
}

impl Inbox {
    /// Opens the inbox, repairing its tail.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path) -> io::Result<Inbox> {
        let text = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let (mut open, mut positions, mut order) = (VecDeque::<(Input, State)>::new(), HashMap::new(), VecDeque::new());
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        for line in text[..whole].split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let Ok(record) = serde_json::from_slice::<Record>(line) else { continue };
            match record {
                Record::Accepted { input, position } => {
                    positions.insert(input.input_id.clone(), position);
                    order.push_back(input.input_id.clone());
                    open.push_back((input, State::Waiting));
                }
                Record::Sent(sent) => set(&mut open, &sent.input_id.clone(), State::Sent(sent)),
                Record::Unsent(id) => set(&mut open, &id, State::Waiting),
                Record::Over(id, position) => {
                    open.retain(|(i, _)| i.input_id != id);
                    if positions.insert(id.clone(), position).is_none() {
                        order.push_back(id);
                    }
                }
            }
        }
        while order.len() > REMEMBERED {
            if let Some(id) = order.pop_front() {
                positions.remove(&id);
            }
        }
        let (file, len) = rewrite(path, &open, &positions, &order)?;
        Ok(Inbox { queue: Mutex::new(Queue { file, len, open, positions, order, closed: false }), changed: Notify::new() })
    }

    /// Puts an input on stable storage. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// Too many are waiting, or the disk takes no more. Nothing was accepted then.
    pub fn accept(&self, input: Input) -> Result<Accepted, InboxError> {
        let mut queue = self.lock();
        if let Some(&position) = queue.positions.get(&input.input_id) {
            return Ok(Accepted { position, duplicate: true });
        }
        if queue.closed {
            return Err(InboxError::Closed);
        }
        if queue.open.len() >= CAPACITY {
            return Err(InboxError::Full);
        }
        let position = queue.open.len() as u64 + 1;
        queue.append(&Record::Accepted { input: input.clone(), position })?;
        queue.file.sync_data()?;
        queue.positions.insert(input.input_id.clone(), position);
        queue.order.push_back(input.input_id.clone());
        queue.open.push_back((input, State::Waiting));
        drop(queue);
        self.changed.notify_one();
        Ok(Accepted { position, duplicate: false })
    }

    /// One was handed over, and its fate is not known.
    pub fn is_in_flight(&self) -> bool {
        self.lock().open.iter().any(|(_, state)| *state != State::Waiting)
    }

    /// How the first that was not handed over wants to be.
    pub fn next_mode(&self) -> Option<InputMode> {
        self.lock().open.iter().find(|(_, state)| *state == State::Waiting).map(|(input, _)| input.mode)
    }

    /// Takes no more inputs from now on, if none waits or if it must be.
    pub fn close(&self, whatever_waits: bool) -> bool {
        let mut queue = self.lock();
        queue.closed |= whatever_waits || queue.open.is_empty();
        queue.closed
    }

    /// The first that was not handed over.
    pub fn next(&self) -> Option<Input> {
        self.lock().open.iter().find(|(_, state)| *state == State::Waiting).map(|(input, _)| input.clone())
    }

    /// Those whose fate is not known.
    pub fn in_flight(&self) -> Vec<(Input, Sent)> {
        let queue = self.lock();
        queue.open.iter().filter_map(|(input, state)| if let State::Sent(sent) = state { Some((input.clone(), sent.clone())) } else { None }).collect()
    }

    pub fn waiting(&self) -> usize {
        self.lock().open.len()
    }

    /// # Errors
    /// The disk takes no more; the input must not be handed over then.
    pub fn sent(&self, sent: Sent) -> io::Result<()> {
        let mut queue = self.lock();
        queue.append(&Record::Sent(sent.clone()))?;
        set(&mut queue.open, &sent.input_id.clone(), State::Sent(sent));
        Ok(())
    }

    /// # Errors
    /// The disk takes no more.
    pub fn unsent(&self, input_id: &str) -> io::Result<()> {
        let mut queue = self.lock();
        queue.append(&Record::Unsent(input_id.to_owned()))?;
        set(&mut queue.open, input_id, State::Waiting);
        Ok(())
    }

    /// The CLI has it, or never will.
    ///
    /// # Errors
    /// The disk takes no more; it is over for this process all the same.
    pub fn over(&self, input_id: &str) -> io::Result<()> {
        let mut queue = self.lock();
        queue.open.retain(|(input, _)| input.input_id != input_id);
        let position = queue.positions.get(input_id).copied().unwrap_or(1);
        queue.append(&Record::Over(input_id.to_owned(), position))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

fn set(open: &mut VecDeque<(Input, State)>, id: &str, state: State) {
    if let Some(entry) = open.iter_mut().find(|(input, _)| input.input_id == id) {
        entry.1 = state;
    }
}

impl Queue {
    fn append(&mut self, record: &Record) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        // At its place: what a failed attempt left there is written over.
        self.file.write_all_at(&line, self.len)?;
        self.len += line.len() as u64;
        Ok(())
    }
}

/// Writes what is still of use into a new file in the place of the old.
fn rewrite(path: &Path, open: &VecDeque<(Input, State)>, positions: &HashMap<String, u64>, order: &VecDeque<String>) -> io::Result<(File, u64)> {
    let mut text = Vec::new();
    let position = |id: &str| positions.get(id).copied().unwrap_or(1);
    let is_open = |id: &str| open.iter().any(|(input, _)| input.input_id == id);
    for id in order.iter().filter(|id| !is_open(id)) {
        serde_json::to_writer(&mut text, &Record::Over(id.clone(), position(id)))?;
        text.push(b'\n');
    }
    for (input, state) in open {
        serde_json::to_writer(&mut text, &Record::Accepted { input: input.clone(), position: position(&input.input_id) })?;
        text.push(b'\n');
        if let State::Sent(sent) = state {
            serde_json::to_writer(&mut text, &Record::Sent(sent.clone()))?;
            text.push(b'\n');
        }
    }
    let new: PathBuf = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).mode(0o600).open(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok((file, text.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(id: &str) -> Input {
        Input {
            input_id: id.into(),
            text: format!("text of {id}"),
            mode: InputMode::Auto,
            source: InputSource::Inject,
            sender_id: None,
            attachments: Vec::new(),
        }
    }

    fn ids(inbox: &Inbox) -> Vec<String> {
        inbox.lock().open.iter().map(|(i, s)| format!("{}{}", i.input_id, if *s == State::Waiting { "" } else { "*" })).collect()
    }

    #[test]
    fn order_and_state_survive_and_an_id_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inbox.jsonl");
        let inbox = Inbox::open(&path).unwrap();
        for id in ["a", "b", "c"] {
            assert!(!inbox.accept(input(id)).unwrap().duplicate);
        }
        assert_eq!(inbox.accept(input("b")).unwrap(), Accepted { position: 2, duplicate: true });
        inbox.sent(Sent { input_id: "a".into(), native_id: "n".into(), sequence: 4 }).unwrap();
        inbox.over("a").unwrap();
        inbox.sent(Sent { input_id: "b".into(), native_id: "m".into(), sequence: 5 }).unwrap();
        drop(inbox);
        for _ in 0..3 {
            let inbox = Inbox::open(&path).unwrap();
            assert_eq!(ids(&inbox), ["b*", "c"]);
            assert_eq!(inbox.in_flight()[0].1.native_id, "m");
            assert_eq!(inbox.next().unwrap().input_id, "c");
            assert_eq!(inbox.accept(input("a")).unwrap(), Accepted { position: 1, duplicate: true });
        }
    }

    #[test]
    fn a_torn_tail_loses_only_what_was_not_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inbox.jsonl");
        let inbox = Inbox::open(&path).unwrap();
        inbox.accept(input("a")).unwrap();
        let safe = inbox.lock().len as usize;
        inbox.accept(input("b")).unwrap();
        drop(inbox);
        let whole = std::fs::read(&path).unwrap();
        for cut in safe..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let inbox = Inbox::open(&path).unwrap();
            assert_eq!(ids(&inbox), ["a"], "cut at {cut}");
            assert!(!inbox.accept(input("b")).unwrap().duplicate);
        }
    }

    #[test]
    fn no_more_than_may_wait() {
        let dir = tempfile::tempdir().unwrap();
        let inbox = Inbox::open(&dir.path().join("inbox.jsonl")).unwrap();
        for i in 0..CAPACITY {
            inbox.accept(input(&i.to_string())).unwrap();
        }
        assert!(matches!(inbox.accept(input("more")), Err(InboxError::Full)));
        inbox.over("0").unwrap();
        inbox.accept(input("more")).unwrap();
    }
}
