//! Step 5 of a request: how often, how many at once, how much.
//!
//! Rates are charged on admission (GCRA on the monotonic clock), budgets by what the reply
//! reports. A request that is let in holds back an estimate of its input until it is over,
//! so that a burst cannot spend one remainder many times. What was spent survives reloads
//! (limiters are kept by the grant's text) and restarts (the state file).

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde::{Deserialize, Serialize};

use super::refusal::{Code, Denial};
use super::scope::Permit;

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    pub requests_per_minute: Option<u32>,
    /// Requests in flight, their streams included.
    pub concurrent: Option<u32>,
    /// Tokens of every kind in one UTC day.
    pub tokens_per_day: Option<u64>,
    pub usd_per_session: Option<f64>,
}

impl Limits {
    pub fn has_budget(&self) -> bool {
        self.tokens_per_day.is_some() || self.usd_per_session.is_some()
    }
}

#[derive(Debug, Default)]
pub struct Limiter {
    limits: Limits,
    rate: Option<DefaultDirectRateLimiter>,
    spent: Arc<Spent>,
}

/// What outlives a change of the limits.
#[derive(Debug, Default)]
struct Spent {
    active: AtomicU32,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
struct Counts {
    /// The day that `tokens` belongs to, in UTC days since 1970.
    day: i64,
    tokens: u64,
    usd: f64,
    /// Held back for requests in flight.
    #[serde(skip)]
    pending: Estimate,
}

/// What a request is taken to cost before its reply says more.
#[derive(Debug, Default, Clone, Copy)]
pub struct Estimate {
    pub tokens: u64,
    pub usd: f64,
}

const DAY: i64 = 86_400;

/// Every limiter there has been, by its grant, and where their counts are kept.
#[derive(Debug, Default)]
pub struct Ledger {
    session: String,
    limiters: Mutex<HashMap<String, Arc<Limiter>>>,
    changed: AtomicBool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    session_id: String,
    grants: BTreeMap<String, Counts>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned count is still a count.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// The counts of this session, as far as `state` remembers them. Without a session id
    /// of the operator's, the one in the file goes on, or a new one begins.
    ///
    /// # Errors
    /// When the file is there but cannot be read: starting over would forget what was spent.
    pub fn open(state: Option<&Path>, session: Option<&str>) -> Result<Ledger, String> {
        let stored = match state.map(std::fs::read) {
            Some(Ok(bytes)) => Some(serde_json::from_slice::<State>(&bytes).map_err(|e| e.to_string())?),
            Some(Err(e)) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.to_string()),
            _ => None,
        };
        let stored = stored.unwrap_or_default();
        let session = match session {
            Some(s) => s.to_owned(),
            None if !stored.session_id.is_empty() => stored.session_id.clone(),
            None => format!("ses_{}", crate::base::token::random_hex()),
        };
        let same = stored.session_id == session;
        let limiters = stored
            .grants
            .into_iter()
            .map(|(key, mut counts)| {
                if !same {
                    counts.usd = 0.0;
                }
                let spent = Arc::new(Spent { active: AtomicU32::new(0), counts: Mutex::new(counts) });
                (key, Arc::new(Limiter { limits: Limits::default(), rate: None, spent }))
            })
            .collect();
        Ok(Ledger { session, limiters: Mutex::new(limiters), changed: AtomicBool::new(!same) })
    }

    pub fn session(&self) -> &str {
        &self.session
    }

    /// The limiter of a grant, with the counts it had under earlier limits.
    pub fn limiter(&self, grant: &str, limits: &Limits) -> Arc<Limiter> {
        let mut all = lock(&self.limiters);
        let known = all.get(grant);
        if let Some(limiter) = known.filter(|l| l.limits == *limits) {
            return limiter.clone();
        }
        let spent = known.map(|l| l.spent.clone()).unwrap_or_default();
        let rate = limits.requests_per_minute.and_then(NonZeroU32::new).map(|n| RateLimiter::direct(Quota::per_minute(n)));
        let limiter = Arc::new(Limiter { limits: *limits, rate, spent });
        all.insert(grant.to_owned(), limiter.clone());
        limiter
    }

    /// The counts to write to the state file, if they changed since the last call.
    pub fn unsaved(&self) -> Option<Vec<u8>> {
        if !self.changed.swap(false, Ordering::AcqRel) {
            return None;
        }
        let grants = lock(&self.limiters).iter().map(|(k, l)| (k.clone(), *lock(&l.spent.counts))).collect();
        serde_json::to_vec(&State { session_id: self.session.clone(), grants }).ok()
    }

    pub fn is_unsaved(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    /// Writing the state file failed: try again later.
    pub fn save_failed(&self) {
        self.changed.store(true, Ordering::Release);
    }
}

/// Proof that a request was let in; gives back its place when dropped.
#[derive(Debug)]
pub struct Admission {
    ledger: Arc<Ledger>,
    limiters: Vec<Arc<Limiter>>,
    held: Estimate,
    /// Charged on drop, when nobody said what the request really cost.
    owed: Estimate,
}

/// Lets a request in, or says when to come back.
///
/// # Errors
/// `busy`, `budget_exhausted`, `rate_limited`. Nothing is charged for a refused request.
pub fn admit(permit: &Permit, ledger: &Arc<Ledger>, held: Estimate) -> Result<Admission, Denial> {
    let mut admission = Admission { ledger: ledger.clone(), limiters: Vec::new(), held, owed: Estimate::default() };
    let grants: Vec<_> = permit.grants().filter(|g| g.limits != Limits::default()).collect();
    for grant in &grants {
        let limiter = &grant.limiter;
        let active = limiter.spent.active.fetch_add(1, Ordering::AcqRel);
        {
            let mut counts = lock(&limiter.spent.counts);
            counts.pending.tokens += held.tokens;
            counts.pending.usd += held.usd;
        }
        admission.limiters.push(limiter.clone());
        if let Some(most) = grant.limits.concurrent.filter(|most| active >= *most) {
            let mut busy = Denial::new(Code::Busy, format!("grant `{grant}` allows {most} requests at a time, and so many are running"));
            busy.retry_after = Some(Duration::from_secs(1));
            return Err(busy);
        }
        limiter.within_budget(&grant.to_string(), held)?;
    }
    for grant in &grants {
        if let (Some(rate), Some(most)) = (&grant.limiter.rate, grant.limits.requests_per_minute)
            && let Err(not_yet) = rate.check()
        {
            let wait = not_yet.wait_time_from(DefaultClock::default().now()).max(Duration::from_millis(1));
            let seconds = wait.as_secs_f64().ceil();
            let mut limited = Denial::new(Code::RateLimited, format!("grant `{grant}` allows {most} requests a minute. Please try again in {seconds}s"));
            limited.retry_after = Some(wait);
            return Err(limited);
        }
    }
    Ok(admission)
}

impl Limiter {
    fn within_budget(&self, grant: &str, held: Estimate) -> Result<(), Denial> {
        let mut counts = lock(&self.spent.counts);
        let now = jiff::Timestamp::now().as_second();
        counts.roll(now);
        // What this request itself holds back does not count against it.
        let pending = Estimate { tokens: counts.pending.tokens.saturating_sub(held.tokens), usd: (counts.pending.usd - held.usd).max(0.0) };
        if let Some(most) = self.limits.tokens_per_day.filter(|most| counts.tokens.saturating_add(pending.tokens) >= *most) {
            let resets = (now / DAY + 1) * DAY;
            let when = jiff::Timestamp::from_second(resets).map(|t| t.to_string()).unwrap_or_default();
            let mut d = Denial::new(Code::BudgetExhausted, format!("grant `{grant}` allows {most} tokens a day; {} are spent (resets {when})", counts.tokens));
            d.resets_at = Some(resets);
            return Err(d.hint("ask an operator for more `tokensPerDay`, or go on tomorrow"));
        }
        if let Some(most) = self.limits.usd_per_session.filter(|most| counts.usd + pending.usd >= *most) {
            let d = Denial::new(Code::BudgetExhausted, format!("grant `{grant}` allows {most} USD a session; {:.2} are spent", counts.usd));
            return Err(d.hint("ask an operator for more `usdPerSession`, or start a new session"));
        }
        Ok(())
    }
}

impl Counts {
    fn roll(&mut self, now: i64) {
        let day = now.div_euclid(DAY);
        // A clock that jumps back must not give a spent day back.
        if day > self.day {
            self.day = day;
            self.tokens = 0;
        }
    }
}

impl Admission {
    /// From now on the provider may be working on it.
    pub fn owe(&mut self) {
        self.owed = self.held;
    }

    /// It failed: unless the provider may have worked on it all the same, nothing is owed.
    pub fn unless_worked_on(&mut self, code: Code) {
        if code != Code::UpstreamTimeout {
            self.owed = Estimate::default();
        }
    }

    /// The request is over and cost this much.
    pub fn charge(&mut self, tokens: u64, usd: f64) {
        self.owed = Estimate::default();
        if self.limiters.is_empty() || (tokens == 0 && usd == 0.0) {
            return;
        }
        let now = jiff::Timestamp::now().as_second();
        for limiter in &self.limiters {
            let mut counts = lock(&limiter.spent.counts);
            counts.roll(now);
            counts.tokens = counts.tokens.saturating_add(tokens);
            counts.usd += usd;
        }
        self.ledger.changed.store(true, Ordering::Release);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if self.owed.tokens > 0 {
            self.charge(self.owed.tokens, self.owed.usd);
        }
        for limiter in &self.limiters {
            limiter.spent.active.fetch_sub(1, Ordering::AcqRel);
            let mut counts = lock(&limiter.spent.counts);
            counts.pending.tokens = counts.pending.tokens.saturating_sub(self.held.tokens);
            counts.pending.usd = (counts.pending.usd - self.held.usd).max(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_a_restart_and_a_change_of_limits() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state.json");
        let ledger = Ledger::open(Some(&file), None).unwrap();
        let limits = Limits { tokens_per_day: Some(100), ..Limits::default() };
        let limiter = ledger.limiter("ai.x", &limits);
        let ledger = Arc::new(ledger);
        Admission { ledger: ledger.clone(), limiters: vec![limiter], held: Estimate::default(), owed: Estimate::default() }.charge(100, 1.5);
        std::fs::write(&file, ledger.unsaved().unwrap()).unwrap();
        assert!(ledger.unsaved().is_none());

        let again = Ledger::open(Some(&file), None).unwrap();
        assert_eq!(again.session(), ledger.session());
        let more = Limits { tokens_per_day: Some(101), usd_per_session: Some(1.0), ..limits };
        assert_eq!(again.limiter("ai.x", &limits).within_budget("ai.x", Estimate::default()).unwrap_err().code, Code::BudgetExhausted);
        assert!(again.limiter("ai.x", &more).within_budget("ai.x", Estimate::default()).unwrap_err().message.contains("USD"));
        let other = Ledger::open(Some(&file), Some("another")).unwrap();
        assert!(other.limiter("ai.x", &more).within_budget("ai.x", Estimate::default()).is_ok(), "dollars are per session, and one token is left");
        std::fs::write(&file, "{").unwrap();
        assert!(Ledger::open(Some(&file), None).is_err());
    }

    #[test]
    fn a_clock_that_jumps_back_gives_nothing_back() {
        let mut c = Counts { day: 10, tokens: 5, usd: 0.0, pending: Estimate::default() };
        c.roll(9 * DAY);
        assert_eq!((c.day, c.tokens), (10, 5));
        c.roll(11 * DAY);
        assert_eq!((c.day, c.tokens), (11, 0));
    }
}
