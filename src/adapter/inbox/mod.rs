//! The way of an input: the durable, ordered queue between `POST /inject` and the CLI.
//!
//! Invariants:
//! - What was answered with 202 is on stable storage and reaches the CLI, in order, once.
//! - The same id again is answered as before and delivers nothing.
//! - That an input is sent, and by which name it will be known in the CLI, is on stable storage
//!   before it is handed over. After a crash or a power cut the CLI is asked by that name
//!   whether it has it, and the journal whether it told of it.
//! - Nobody holds the queue while the disk is waited for, but who wants to write to it.

mod file;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use self::file::{InboxRecord, Log, Payloads, ReadLog};
use super::trouble::{Component, Troubles};
use crate::base::sync::lock;
use crate::event::{InputMode, InputSource};

/// Inputs that may wait.
pub const CAPACITY: usize = 256;
/// What their texts and attachments may have together.
pub const CAPACITY_BYTES: u64 = 64 << 20;
/// Ids of delivered inputs that are remembered across a restart.
const REMEMBERED: usize = 16_384;
/// A log that is this long, and four times as long as it need be, is rewritten.
const COMPACT_BYTES: u64 = 1 << 20;
/// An input during which the CLI ended so often is given up.
pub const MAX_DEATHS: u32 = 3;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    pub input_id: String,
    pub text: String,
    pub mode: InputMode,
    pub source: InputSource,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender_id: Option<String>,
    /// Empty while it waits: they are read when it is handed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// What its attachments have, in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attachment_bytes: u64,
}

impl Input {
    /// A text by a user.
    pub fn new(input_id: String, text: String) -> Input {
        Input {
            input_id,
            text,
            mode: InputMode::default(),
            source: InputSource::Inject,
            sender_id: None,
            attachments: Vec::new(),
            attachment_bytes: 0,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub media_type: String,
    /// Base64.
    pub data: String,
}

/// An input that was handed over, or was about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    pub input_id: String,
    /// Its name in the CLI.
    pub native_id: String,
}

/// One that is not over, as a restart looks for it in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecided {
    pub input_id: String,
    /// Its `user.message` is not before this number.
    pub since: u64,
    /// It was handed over once, or was about to be.
    pub was_sent: bool,
}

/// An input that is not over.
#[derive(Debug, Clone)]
struct OpenInput {
    input: Input,
    /// It is with the CLI, or on its way there.
    sent: Option<Sent>,
    /// Its `user.message` has a number above this: the journal's last when it was accepted.
    since: u64,
    /// It was sent once.
    was_sent: bool,
    /// How often the CLI ended while it had it.
    deaths: u32,
}

impl OpenInput {
    fn new(input: Input, since: u64) -> OpenInput {
        OpenInput {
            input,
            sent: None,
            since,
            was_sent: false,
            deaths: 0,
        }
    }
}

#[derive(Debug)]
struct Queue {
    log: Log,
    open: VecDeque<OpenInput>,
    /// Every id that was seen, with its answer.
    positions: HashMap<String, u64>,
    order: VecDeque<String>,
    /// The session is ending: nobody would deliver what comes now.
    closed: bool,
}

#[derive(Debug)]
pub struct Inbox {
    queue: Mutex<Queue>,
    /// Held by whoever waits for the disk.
    writing: Mutex<()>,
    payloads: Payloads,
    troubles: Troubles,
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
    #[error("the inputs that wait have more than {} MiB already", CAPACITY_BYTES >> 20)]
    TooLarge,
    #[error("the session is ending")]
    Closed,
    #[error("the inbox cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// One that waits, as `GET /inputs` lists it.
#[derive(Debug, Serialize)]
pub struct ListedInput {
    pub input_id: String,
    pub text: String,
    pub mode: InputMode,
    pub source: InputSource,
    pub sender_id: Option<String>,
    /// 1: the next to be delivered.
    pub position: u64,
    /// `waiting`, or `sent`: the CLI has it or is about to.
    pub state: &'static str,
}

/// What became of the wish to take an input back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    Yes,
    /// The CLI has it, or is about to.
    TooLate,
    Unknown,
}

impl Inbox {
    /// Opens the inbox, repairing its tail. Returns what the session should say of it.
    ///
    /// # Errors
    /// The file cannot be opened or read. A full disk is no reason.
    pub fn open(path: &Path, troubles: Troubles) -> io::Result<(Inbox, OpenedInbox)> {
        let (log, found) = Log::open(path)?;
        let opened = OpenedInbox {
            fresh: found.fresh,
            damaged: found.damaged,
        };
        let queue = Queue::rebuild(log, found);
        let payloads = Payloads::beside(path);
        payloads.keep_only(queue.open.iter().map(|o| o.input.input_id.as_str()));
        let inbox = Inbox {
            queue: Mutex::new(queue),
            writing: Mutex::default(),
            payloads,
            troubles,
            changed: Notify::new(),
        };
        if let Err(e) = inbox.compact() {
            tracing::warn!(error = %e, "the inbox cannot be rewritten; it is used as it is");
        }
        Ok((inbox, opened))
    }

    /// Puts an input on stable storage; `sequence`: the last that the journal has now. Blocks for
    /// as long as the disk takes.
    ///
    /// # Errors
    /// Too many are waiting, or the disk takes no more. Nothing was accepted then.
    pub fn accept(&self, mut input: Input, sequence: u64) -> Result<Accepted, InboxError> {
        let _turn = lock(&self.writing);
        let attachments = std::mem::take(&mut input.attachments);
        input.attachment_bytes = attachments.iter().map(|a| a.data.len() as u64).sum();
        let position = match self.lock().has_room(&input) {
            Ok(position) => position,
            Err(answer) => return answer,
        };
        let written = self.write(&input, &attachments, position, sequence);
        if let Err(e) = written {
            self.payloads.remove(&input.input_id);
            self.troubles.set(
                Component::Inbox,
                format!("the inbox cannot be written: {e}"),
            );
            return Err(e.into());
        }
        self.troubles.clear(Component::Inbox);
        let mut queue = self.lock();
        queue.remember(&input.input_id, position);
        queue.open.push_back(OpenInput::new(input, sequence));
        drop(queue);
        self.changed.notify_one();
        if let Err(e) = self.compact() {
            tracing::warn!(error = %e, "the inbox cannot be rewritten; it is used as it is");
        }
        Ok(Accepted {
            position,
            duplicate: false,
        })
    }

    fn write(
        &self,
        input: &Input,
        attachments: &[Attachment],
        position: u64,
        sequence: u64,
    ) -> io::Result<()> {
        if !attachments.is_empty() {
            self.payloads.put(&input.input_id, attachments)?;
        }
        let mut queue = self.lock();
        let before = queue.log.len();
        queue.log.append(&InboxRecord::Accepted {
            input: input.clone(),
            position,
            sequence,
        })?;
        let (file, after) = (queue.log.file(), queue.log.len());
        drop(queue);
        file.sync_data().inspect_err(|_| {
            // Who is told that it was not accepted must not find it there after a restart.
            let mut queue = self.lock();
            if queue.log.len() == after {
                queue.log.take_back(before);
            } else {
                let _ = queue.log.append(&InboxRecord::Void(input.input_id.clone()));
            }
        })
    }

    /// One was handed over, and its fate is not known.
    pub fn is_in_flight(&self) -> bool {
        self.lock().open.iter().any(|o| o.sent.is_some())
    }

    /// How the first that was not handed over wants to be.
    pub fn next_mode(&self) -> Option<InputMode> {
        self.lock().waiting().next().map(|o| o.input.mode)
    }

    /// Takes no more inputs from now on, if none waits or if it must be.
    pub fn close(&self, whatever_waits: bool) -> bool {
        let mut queue = self.lock();
        queue.closed |= whatever_waits || queue.open.is_empty();
        queue.closed
    }

    /// The first that was not handed over.
    pub fn next(&self) -> Option<Input> {
        self.lock().waiting().next().map(|o| o.input.clone())
    }

    /// Reads the attachments of an input that is to be handed over.
    ///
    /// # Errors
    /// They cannot be read: it cannot be delivered as it was meant.
    pub fn load(&self, input: &mut Input) -> io::Result<()> {
        if input.attachment_bytes > 0 && input.attachments.is_empty() {
            input.attachments = self.payloads.get(&input.input_id)?;
        }
        Ok(())
    }

    /// Those whose fate is not known.
    pub fn in_flight(&self) -> Vec<(Input, Sent)> {
        let sent: Vec<_> = self
            .lock()
            .open
            .iter()
            .filter_map(|o| Some((o.input.clone(), o.sent.clone()?)))
            .collect();
        sent.into_iter()
            .map(|(mut input, sent)| {
                // Only their number matters to what is told of it.
                if let Err(e) = self.load(&mut input) {
                    tracing::error!(error = %e, input = input.input_id, "the attachments of an input cannot be read");
                }
                (input, sent)
            })
            .collect()
    }

    /// All that are not over.
    pub fn undecided(&self) -> Vec<Undecided> {
        let queue = self.lock();
        queue
            .open
            .iter()
            .map(|o| Undecided {
                input_id: o.input.input_id.clone(),
                since: o.since + 1,
                was_sent: o.was_sent,
            })
            .collect()
    }

    pub fn waiting(&self) -> usize {
        self.lock().open.len()
    }

    pub fn list(&self) -> Vec<ListedInput> {
        let queue = self.lock();
        let listed = queue.open.iter().zip(1..).map(|(o, position)| ListedInput {
            input_id: o.input.input_id.clone(),
            text: o.input.text.clone(),
            mode: o.input.mode,
            source: o.input.source,
            sender_id: o.input.sender_id.clone(),
            position,
            state: if o.sent.is_some() { "sent" } else { "waiting" },
        });
        listed.collect()
    }

    /// Notes that an input is about to be handed over. It must not be before [`Inbox::sync`] has
    /// returned.
    ///
    /// # Errors
    /// The disk takes no more.
    pub fn sent(&self, sent: Sent) -> io::Result<()> {
        let mut queue = self.lock();
        let record = InboxRecord::Sent(sent);
        queue.log.append(&record)?;
        queue.apply(&record);
        Ok(())
    }

    /// Puts what was noted on stable storage. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// The disk's.
    pub fn sync(&self) -> io::Result<()> {
        let _turn = lock(&self.writing);
        let file = self.lock().log.file();
        file.sync_data()
    }

    /// # Errors
    /// The disk takes no more; it waits again for this process all the same.
    pub fn unsent(&self, input_id: &str) -> io::Result<()> {
        let mut queue = self.lock();
        let record = InboxRecord::Unsent(input_id.to_owned());
        queue.apply(&record);
        queue.log.append(&record)
    }

    /// The CLI ended while it had this input. Returns how often it did.
    ///
    /// # Errors
    /// The disk takes no more; it is counted for this process all the same.
    pub fn died(&self, input_id: &str) -> io::Result<u32> {
        let mut queue = self.lock();
        let Some(open) = queue.find(input_id) else {
            return Ok(0);
        };
        let record = InboxRecord::Died(input_id.to_owned(), open.deaths + 1);
        let deaths = open.deaths + 1;
        queue.apply(&record);
        queue.log.append(&record).map(|()| deaths)
    }

    /// The CLI has it, or never will.
    ///
    /// # Errors
    /// The disk takes no more; it is over for this process all the same.
    pub fn over(&self, input_id: &str) -> io::Result<()> {
        let mut queue = self.lock();
        let record = InboxRecord::Over(
            input_id.to_owned(),
            queue.positions.get(input_id).copied().unwrap_or(1),
        );
        queue.apply(&record);
        let written = queue.log.append(&record);
        drop(queue);
        self.payloads.remove(input_id);
        written
    }

    /// Takes back an input that was not handed over.
    ///
    /// # Errors
    /// The disk takes no more: then it still waits.
    pub fn take_back(&self, input_id: &str) -> io::Result<TakenBack> {
        let mut queue = self.lock();
        let Some(open) = queue.find(input_id) else {
            return Ok(if queue.positions.contains_key(input_id) {
                TakenBack::TooLate
            } else {
                TakenBack::Unknown
            });
        };
        if open.sent.is_some() {
            return Ok(TakenBack::TooLate);
        }
        let record = InboxRecord::Over(
            input_id.to_owned(),
            queue.positions.get(input_id).copied().unwrap_or(1),
        );
        queue.log.append(&record)?;
        queue.apply(&record);
        drop(queue);
        self.payloads.remove(input_id);
        self.changed.notify_one();
        Ok(TakenBack::Yes)
    }

    /// Rewrites the log if most of it is over. Only what is appended meanwhile is waited for.
    fn compact(&self) -> io::Result<()> {
        let (path, records, len) = {
            let queue = self.lock();
            if queue.log.len() < COMPACT_BYTES {
                return Ok(());
            }
            let records = queue.records();
            let needed: u64 = records
                .iter()
                .map(|r| serde_json::to_vec(r).map_or(0, |line| line.len() as u64 + 1))
                .sum();
            if queue.log.len() < 4 * needed {
                return Ok(());
            }
            (queue.log.path().to_owned(), records, queue.log.len())
        };
        let new = Log::write_new(&path, &records)?;
        let mut queue = self.lock();
        // Something was noted meanwhile: the next time will do.
        if queue.log.len() == len {
            queue.log.replace(new)
        } else {
            Ok(())
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

/// What an inbox was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedInbox {
    /// There was none.
    pub fresh: bool,
    /// Lines of it that could not be read.
    pub damaged: usize,
}

impl Queue {
    fn rebuild(log: Log, found: ReadLog) -> Queue {
        let mut queue = Queue {
            log,
            open: VecDeque::new(),
            positions: HashMap::new(),
            order: VecDeque::new(),
            closed: false,
        };
        found.records.iter().for_each(|record| queue.apply(record));
        queue
    }

    fn apply(&mut self, record: &InboxRecord) {
        match record {
            InboxRecord::Accepted {
                input,
                position,
                sequence,
            } => {
                if !self.positions.contains_key(&input.input_id) {
                    self.remember(&input.input_id, *position);
                    self.open
                        .push_back(OpenInput::new(input.clone(), *sequence));
                }
            }
            InboxRecord::Sent(sent) => {
                if let Some(open) = self.find(&sent.input_id) {
                    (open.sent, open.was_sent) = (Some(sent.clone()), true);
                }
            }
            InboxRecord::Unsent(id) => {
                if let Some(open) = self.find(id) {
                    (open.sent, open.was_sent) = (None, true);
                }
            }
            InboxRecord::Died(id, deaths) => {
                if let Some(open) = self.find(id) {
                    open.deaths = *deaths;
                }
            }
            InboxRecord::Over(id, position) => {
                self.open.retain(|o| o.input.input_id != *id);
                self.remember(id, *position);
            }
            InboxRecord::Void(id) => {
                self.open.retain(|o| o.input.input_id != *id);
                self.order.retain(|known| known != id);
                self.positions.remove(id);
            }
        }
    }

    fn remember(&mut self, id: &str, position: u64) {
        if self.positions.insert(id.to_owned(), position).is_none() {
            self.order.push_back(id.to_owned());
        }
        while self.order.len() > REMEMBERED {
            if let Some(old) = self.order.pop_front() {
                self.positions.remove(&old);
            }
        }
    }

    /// The position that an input would have; or the answer to one that cannot be taken.
    fn has_room(&self, input: &Input) -> Result<u64, Result<Accepted, InboxError>> {
        if let Some(&position) = self.positions.get(&input.input_id) {
            return Err(Ok(Accepted {
                position,
                duplicate: true,
            }));
        }
        let bytes = |i: &Input| i.text.len() as u64 + i.attachment_bytes;
        match () {
            () if self.closed => Err(Err(InboxError::Closed)),
            () if self.open.len() >= CAPACITY => Err(Err(InboxError::Full)),
            () if self.open.iter().map(|o| bytes(&o.input)).sum::<u64>() + bytes(input)
                > CAPACITY_BYTES =>
            {
                Err(Err(InboxError::TooLarge))
            }
            () => Ok(self.open.len() as u64 + 1),
        }
    }

    fn find(&mut self, id: &str) -> Option<&mut OpenInput> {
        self.open.iter_mut().find(|o| o.input.input_id == id)
    }

    fn waiting(&self) -> impl Iterator<Item = &OpenInput> {
        self.open.iter().filter(|o| o.sent.is_none())
    }

    /// What a log need hold to be the same as this one.
    fn records(&self) -> Vec<InboxRecord> {
        let position = |id: &str| self.positions.get(id).copied().unwrap_or(1);
        let is_open = |id: &&String| self.open.iter().any(|o| o.input.input_id == **id);
        let mut records: Vec<InboxRecord> = self
            .order
            .iter()
            .filter(|id| !is_open(id))
            .map(|id| InboxRecord::Over(id.clone(), position(id)))
            .collect();
        for open in &self.open {
            let id = &open.input.input_id;
            records.push(InboxRecord::Accepted {
                input: open.input.clone(),
                position: position(id),
                sequence: open.since,
            });
            match &open.sent {
                Some(sent) => records.push(InboxRecord::Sent(sent.clone())),
                None => records.extend(open.was_sent.then(|| InboxRecord::Unsent(id.clone()))),
            }
            records.extend((open.deaths > 0).then(|| InboxRecord::Died(id.clone(), open.deaths)));
        }
        records
    }
}

#[cfg(test)]
mod tests;
