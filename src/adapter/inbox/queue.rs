//! The inputs that are open, in memory.

use std::collections::{HashMap, VecDeque};

use crate::adapter::inbox::file::{InboxRecord, Log, ReadLog, Sent};
use crate::adapter::inbox::input::{Accepted, InboxError, Input};
use crate::adapter::inbox::{CAPACITY, CAPACITY_BYTES, REMEMBERED};

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
pub(super) struct OpenInput {
    pub(super) input: Input,
    /// It is with the CLI, or on its way there.
    pub(super) sent: Option<Sent>,
    /// Its `user.message` has a number above this: the journal's last when it was accepted.
    pub(super) since: u64,
    /// It was sent once.
    pub(super) was_sent: bool,
    /// How often the CLI ended while it had it.
    pub(super) deaths: u32,
}

impl OpenInput {
    pub(super) fn new(input: Input, since: u64) -> OpenInput {
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
pub(super) struct Queue {
    pub(super) log: Log,
    pub(super) open: VecDeque<OpenInput>,
    /// Every id that was seen, with its answer.
    pub(super) positions: HashMap<String, u64>,
    pub(super) order: VecDeque<String>,
    /// The session is ending: nobody would deliver what comes now.
    pub(super) closed: bool,
}

impl Queue {
    pub(super) fn rebuild(log: Log, found: ReadLog) -> Queue {
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

    pub(super) fn apply(&mut self, record: &InboxRecord) {
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

    pub(super) fn remember(&mut self, id: &str, position: u64) {
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
    pub(super) fn has_room(&self, input: &Input) -> Result<u64, Result<Accepted, InboxError>> {
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

    pub(super) fn find(&mut self, id: &str) -> Option<&mut OpenInput> {
        self.open.iter_mut().find(|o| o.input.input_id == id)
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = &OpenInput> {
        self.open.iter().filter(|o| o.sent.is_none())
    }

    /// What a log need hold to be the same as this one.
    pub(super) fn records(&self) -> Vec<InboxRecord> {
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
