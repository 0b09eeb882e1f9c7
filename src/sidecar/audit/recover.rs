//! What the last process left: where the chain stands, what was spent, what was under way.
//!
//! After a clean stop there is nothing to do. After a kill, records with higher numbers than the
//! state file knows are charged, and requests that were noted but have no record get one with the
//! code `unknown`, charged with all that was held back for them.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::chain::{self, ChainHead};
use super::notes::{self, FoundNotes};
use super::{AuditConfig, file};
use crate::sidecar::ledger::state::LedgerState;
use crate::sidecar::record::Charge;

/// What a new process begins with.
#[derive(Debug, Default)]
pub struct Recovered {
    pub state: LedgerState,
    pub head: ChainHead,
    /// Records of requests that were under way, to be written first.
    pub unknown: Vec<Vec<u8>>,
    /// Where notes are to be kept.
    pub notes: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Line {
    seq: u64,
    #[serde(default)]
    request_id: Option<String>,
    #[serde(default)]
    charged: Option<Charge>,
}

/// Reads the state file, the notes and the end of the audit file. Changes nothing.
///
/// # Errors
/// When a file is there but cannot be read.
pub fn recover(config: &AuditConfig) -> Result<Recovered, String> {
    let Some(path) = &config.state else {
        return Ok(Recovered::default());
    };
    let at = |e: &dyn std::fmt::Display| {
        format!("the state file `{}` cannot be used: {e}", path.display())
    };
    let mut state = LedgerState::read(path).map_err(|e| at(&e))?;
    let notes = notes::path(path);
    let mut left: BTreeMap<String, FoundNotes> = notes::left_behind(&notes)
        .map_err(|e| at(&e))?
        .into_iter()
        .map(|n| (n.request_id.clone(), n))
        .collect();
    let mut head = ChainHead {
        seq: state.seq,
        hash: if state.head.is_empty() {
            ChainHead::default().hash
        } else {
            state.head.clone()
        },
    };
    if let Some(audit) = &config.file {
        let recorded = follow(audit, &mut state, &mut head, !left.is_empty())?;
        left.retain(|id, _| !recorded.contains(id));
    }
    if state.seq > head.seq {
        tracing::error!(
            last = head.seq,
            known = state.seq,
            "records are missing at the end of the audit file; `outrigger audit verify` shows where"
        );
        head = ChainHead {
            seq: state.seq,
            hash: state.head.clone(),
        };
    }
    let unknown = left
        .into_values()
        .map(|note| complete(note, &mut state))
        .collect::<Vec<_>>();
    if !unknown.is_empty() {
        tracing::warn!(
            requests = unknown.len(),
            "requests were under way when the last process ended; they are recorded as `unknown`"
        );
    }
    Ok(Recovered {
        state,
        head,
        unknown,
        notes: Some(notes),
    })
}

/// Adds what was charged after the state was saved. Returns the requests that have a record, of
/// the current file and the one before it, where `all` of them are wanted.
fn follow(
    path: &Path,
    state: &mut LedgerState,
    head: &mut ChainHead,
    all: bool,
) -> Result<HashSet<String>, String> {
    let mut recorded = HashSet::new();
    let files = file::all(path);
    let newest = files.iter().rev().find_map(|f| tail(f));
    let mut last = newest.clone();
    let is_known = newest.is_some_and(|line| {
        serde_json::from_slice::<Line>(&line).is_ok_and(|l| l.seq == state.seq)
    });
    // As many files as hold records that the state does not know; of the notes, the last two.
    let begins_before =
        |file: &&PathBuf| first_seq(file).is_some_and(|first| first <= state.seq + 1);
    let unread = match (is_known, all) {
        (true, false) => 0,
        (true, true) => 2,
        (false, _) => files
            .iter()
            .rev()
            .position(|f| begins_before(&f))
            .map_or(files.len(), |i| i + 1)
            .max(2),
    };
    for file in files.iter().rev().take(unread).rev() {
        let opened = File::open(file)
            .map_err(|e| format!("the audit file `{}` cannot be read: {e}", file.display()))?;
        for line in BufReader::new(opened).split(b'\n') {
            let Ok(line) = line else { break };
            let Ok(parsed) = serde_json::from_slice::<Line>(&line) else {
                continue;
            };
            if let Some(charge) = parsed.charged.filter(|_| parsed.seq > state.seq) {
                state.charge(&charge);
            }
            recorded.extend(parsed.request_id.filter(|_| all));
            last = Some(line);
        }
    }
    if let Some(line) = last
        && let Ok(parsed) = serde_json::from_slice::<Line>(&line)
    {
        *head = ChainHead {
            seq: parsed.seq,
            hash: chain::hash(&line),
        };
        if parsed.seq > state.seq {
            (state.seq, state.head) = (parsed.seq, head.hash.clone());
        }
    }
    Ok(recorded)
}

/// The last whole line of a file.
fn tail(path: &Path) -> Option<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    const MOST: u64 = 64 << 10;
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(MOST))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let end = memchr::memrchr(b'\n', &bytes)?;
    let begin = memchr::memrchr(b'\n', &bytes[..end]).map_or(0, |i| i + 1);
    Some(bytes[begin..end].to_vec())
}

/// The number of the first record of a file.
fn first_seq(path: &Path) -> Option<u64> {
    let mut line = Vec::new();
    BufReader::new(File::open(path).ok()?)
        .read_until(b'\n', &mut line)
        .ok()?;
    serde_json::from_slice::<Line>(&line).ok().map(|l| l.seq)
}

/// Makes a record of a note, and charges what was held back.
fn complete(note: FoundNotes, state: &mut LedgerState) -> Vec<u8> {
    if let Some(charge) = &note.charged {
        state.charge(charge);
    }
    let mut record = serde_json::Map::new();
    let mut rest = note.rest;
    record.insert(
        "ts".into(),
        jiff::Timestamp::from_microsecond(note.at).map_or(Value::Null, |ts| json!(ts)),
    );
    record.insert("request_id".into(), note.request_id.into());
    record.append(&mut rest);
    let known = json!({
        "decision": "allow", "code": "unknown", "status": null,
        "tokens": { "input": null, "cache_read": null, "cache_write": null, "output": null, "reasoning": null },
        "usage_complete": false, "cost_usd": null,
    });
    record.extend(known.as_object().cloned().unwrap_or_default());
    if let Some(charge) = note.charged {
        record.insert("charged".into(), json!(charge));
    }
    Value::Object(record).to_string().into_bytes()
}
