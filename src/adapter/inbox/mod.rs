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
pub mod queue;

mod input;

pub use self::file::Sent;

use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

use self::file::{InboxRecord, Log, Payloads};
use super::trouble::{Component, Troubles};
use crate::adapter::inbox::queue::{OpenInput, Queue, Undecided};
use crate::base::sync::lock;
use crate::event::InputMode;

pub use self::input::{Accepted, Attachment, InboxError, Input, ListedInput, TakenBack};

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

#[derive(Debug)]
pub struct Inbox {
    queue: Mutex<Queue>,
    /// Held by whoever waits for the disk.
    writing: Mutex<()>,
    payloads: Payloads,
    troubles: Troubles,
    pub changed: Notify,
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

#[cfg(test)]
mod tests;
