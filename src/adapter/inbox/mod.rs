//! The durable, ordered queue of inputs between `POST /inject` and the CLI.
//!
//! Invariants:
//! - An input that was answered with 202 is on stable storage. Inputs reach the CLI in order, and
//!   each of them reaches it once.
//! - A second input with the same id gets the same position as the first and is not delivered.
//! - Before an input is handed over, a record of this, with the input's id in the CLI, is on stable
//!   storage. After a crash or a power cut, the CLI is asked by that id whether it has the input,
//!   and the journal is searched for the input's `user.message`.
//! - A sync of the log holds `writing` and not `queue`, so that only calls that write to stable
//!   storage, too, wait for the disk. The one exception is the directory's sync in `compact`.

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

/// How many inputs may be open: they wait, or their delivery is not confirmed yet.
pub const CAPACITY: usize = 256;

/// The maximum total size of the texts and attachments of all open inputs.
pub const CAPACITY_BYTES: u64 = 64 << 20;

/// How many ids of accepted inputs are remembered, also across a restart, to detect repeated ones.
const REMEMBERED: usize = 16_384;

/// A log is rewritten when it has at least this size and at least four times the size of the
/// records that are still needed.
const COMPACT_BYTES: u64 = 1 << 20;

/// An input is given up when the CLI has ended this many times while it had the input.
pub const MAX_DEATHS: u32 = 3;

#[derive(Debug)]
pub struct Inbox {
    queue: Mutex<Queue>,
    /// Held while an input is accepted or the log is synced, including the wait for the disk.
    writing: Mutex<()>,
    payloads: Payloads,
    troubles: Troubles,
    pub changed: Notify,
}

impl Inbox {
    /// Opens the inbox and cuts off an incomplete last record. Also returns the state in
    /// which the inbox was found, so that the session can report damage.
    ///
    /// # Errors
    /// The file cannot be opened or read. A full disk does not cause an error.
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

    /// Puts an input on stable storage. `sequence` is the journal's current last sequence number.
    /// Blocks until the disk has stored the input.
    ///
    /// # Errors
    /// The inbox is full or closed, or its log cannot be written. The input is not accepted then.
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
            // The client is told that the input was not accepted. A restart must not find it.
            let mut queue = self.lock();
            if queue.log.len() == after {
                queue.log.take_back(before);
            } else {
                let _ = queue.log.append(&InboxRecord::Void(input.input_id.clone()));
            }
        })
    }

    /// Whether there is an input that was handed over and whose delivery is not confirmed yet.
    pub fn is_in_flight(&self) -> bool {
        self.lock().open.iter().any(|o| o.sent.is_some())
    }

    /// The delivery mode of the first input that was not handed over.
    pub fn next_mode(&self) -> Option<InputMode> {
        self.lock().waiting().next().map(|o| o.input.mode)
    }

    /// Closes the inbox to further inputs if no input is open, or in any case if `whatever_waits`
    /// is set. Returns whether the inbox is closed.
    pub fn close(&self, whatever_waits: bool) -> bool {
        let mut queue = self.lock();
        queue.closed |= whatever_waits || queue.open.is_empty();
        queue.closed
    }

    /// The first input that was not handed over. [`Inbox::load`] reads its attachments.
    pub fn next(&self) -> Option<Input> {
        self.lock().waiting().next().map(|o| o.input.clone())
    }

    /// Reads the attachments of an input, which is about to be handed over, from their file.
    ///
    /// # Errors
    /// The attachments cannot be read. The input cannot be delivered without them.
    pub fn load(&self, input: &mut Input) -> io::Result<()> {
        if input.attachment_bytes > 0 && input.attachments.is_empty() {
            input.attachments = self.payloads.get(&input.input_id)?;
        }
        Ok(())
    }

    /// The inputs that were handed over and whose delivery is not confirmed yet.
    pub fn in_flight(&self) -> Vec<(Input, Sent)> {
        let sent: Vec<_> = self
            .lock()
            .open
            .iter()
            .filter_map(|o| Some((o.input.clone(), o.sent.clone()?)))
            .collect();
        sent.into_iter()
            .map(|(mut input, sent)| {
                // Events only contain the number of attachments, so an error is only logged.
                if let Err(e) = self.load(&mut input) {
                    tracing::error!(error = %e, input = input.input_id, "the attachments of an input cannot be read");
                }
                (input, sent)
            })
            .collect()
    }

    /// All open inputs: they wait, or their delivery is not confirmed yet.
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

    /// Records that an input is about to be handed over. The caller must not hand it over before
    /// [`Inbox::sync`] has returned.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn sent(&self, sent: Sent) -> io::Result<()> {
        let mut queue = self.lock();
        let record = InboxRecord::Sent(sent);
        queue.log.append(&record)?;
        queue.apply(&record);
        Ok(())
    }

    /// Puts all records of the log on stable storage. Blocks until the disk has stored them.
    ///
    /// # Errors
    /// The log cannot be synced.
    pub fn sync(&self) -> io::Result<()> {
        let _turn = lock(&self.writing);
        let file = self.lock().log.file();
        file.sync_data()
    }

    /// Records that the CLI does not have this input after all, so that the input waits again.
    ///
    /// # Errors
    /// The log cannot be written. In this process, the input waits again all the same.
    pub fn unsent(&self, input_id: &str) -> io::Result<()> {
        let mut queue = self.lock();
        let record = InboxRecord::Unsent(input_id.to_owned());
        queue.apply(&record);
        queue.log.append(&record)
    }

    /// Records that the CLI ended while it had this input. Returns how often this has happened.
    ///
    /// # Errors
    /// The log cannot be written. In this process, the end of the CLI is counted all the same.
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

    /// Records that an input is no longer open: the CLI has it, or it will never be delivered.
    ///
    /// # Errors
    /// The log cannot be written. In this process, the input is no longer open all the same.
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

    /// Withdraws an input unless it was handed over already.
    ///
    /// # Errors
    /// The log cannot be written. The input keeps waiting then.
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

    /// Rewrites the log if most of it is about inputs that are no longer open. The queue is not
    /// locked while the new log is written; if a record is appended meanwhile, the new log is
    /// discarded.
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
        // If a record was appended meanwhile, the new log lacks it. A later call tries again.
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

/// The state in which an inbox was found when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedInbox {
    /// There was no inbox yet: its file was created.
    pub fresh: bool,
    /// How many lines of the log could not be read; they are skipped.
    pub damaged: usize,
}

#[cfg(test)]
mod tests;
