//! What every grant's budget has spent, as it stands on disk.
//!
//! The state file follows the audit file: it holds the counts after the record of a certain
//! number, and records with higher numbers are added to it at start. So a charge is as durable
//! as its record, and a kill between the two loses nothing. The writer of the audit is the only
//! one that changes it; what decides on requests is `limit.rs`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::base::token::hex;
use crate::sidecar::record::Charge;

pub const DAY: i64 = 86_400;

/// What one grant has spent.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// The day that `tokens` belongs to, in UTC days since 1970.
    pub day: i64,
    pub tokens: u64,
    /// Spent in this session.
    pub usd: f64,
}

impl Counts {
    /// Begins a new day. A clock that jumps back does not give a spent day back.
    pub fn roll(&mut self, now: i64) {
        let day = now.div_euclid(DAY);
        if day > self.day {
            self.day = day;
            self.tokens = 0;
        }
    }

    pub fn add(&mut self, now: i64, tokens: u64, usd: f64) {
        self.roll(now);
        self.tokens = self.tokens.saturating_add(tokens);
        self.usd += usd;
    }
}

/// The file `audit.state`.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct LedgerState {
    pub session_id: String,
    /// The number of the last audit record whose charge is in here.
    #[serde(default)]
    pub seq: u64,
    /// That record's hash.
    #[serde(default)]
    pub head: String,
    pub grants: BTreeMap<Arc<str>, Counts>,
}

/// A grant's id: a digest of its text, so that a record can name it in a few bytes.
pub fn grant_id(text: &str) -> Arc<str> {
    hex(&ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref()[..8]).into()
}

impl LedgerState {
    /// # Errors
    /// When the file is there but cannot be read: starting over would forget what was spent.
    pub fn read(path: &Path) -> Result<LedgerState, String> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| e.to_string()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(LedgerState::default()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Adds a charge.
    pub fn charge(&mut self, charge: &Charge) {
        for grant in &charge.grants {
            self.grants
                .entry(grant.clone())
                .or_default()
                .add(charge.at, charge.tokens, charge.usd);
        }
    }

    /// Begins another session, if it is one: dollars are spent per session.
    pub fn enter(&mut self, session: &str) {
        if self.session_id != session {
            session.clone_into(&mut self.session_id);
            self.grants.values_mut().for_each(|counts| counts.usd = 0.0);
        }
    }

    /// Replaces the file: a reader sees the old content or the new, whatever happens.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_data()?;
        std::fs::rename(&new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_back_gives_nothing_back() {
        let mut c = Counts {
            day: 10,
            tokens: 5,
            usd: 0.0,
        };
        c.roll(9 * DAY);
        assert_eq!((c.day, c.tokens), (10, 5));
        c.roll(11 * DAY);
        assert_eq!((c.day, c.tokens), (11, 0));
    }

    #[test]
    fn dollars_are_per_session_and_tokens_per_day() {
        let mut state = LedgerState::default();
        state.enter("one");
        let charge = Charge {
            tokens: 7,
            usd: 1.5,
            grants: vec![grant_id("ai.x")],
            at: 3 * DAY,
        };
        state.charge(&charge);
        state.charge(&charge);
        let counts = |s: &LedgerState| s.grants[&grant_id("ai.x")];
        assert_eq!(
            counts(&state),
            Counts {
                day: 3,
                tokens: 14,
                usd: 3.0
            }
        );
        state.enter("one");
        assert_eq!(counts(&state).usd, 3.0);
        state.enter("two");
        assert_eq!(
            counts(&state),
            Counts {
                day: 3,
                tokens: 14,
                usd: 0.0
            }
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s.json");
        assert_eq!(LedgerState::read(&file).unwrap(), LedgerState::default());
        let state = LedgerState {
            session_id: "s".into(),
            seq: 3,
            ..LedgerState::default()
        };
        state.write(&file).unwrap();
        assert_eq!(LedgerState::read(&file).unwrap(), state);
        std::fs::write(&file, "{").unwrap();
        assert!(LedgerState::read(&file).is_err());
    }
}
