//! Step 5 of a request: how often, how many at once, how much.
//!
//! Rates are charged on admission (GCRA on the monotonic clock). Of a budget, all that a request
//! can spend is held back on admission, and settled by what it did spend (`billing.rs`).
//!
//! Invariants:
//! - A request is let in beside others only when what all of them hold fits the budget. One that
//!   runs alone may use what is left, however little: so a budget is exceeded by one request at
//!   most.
//! - What was spent survives reloads (limiters are kept by the grant's text) and restarts (the
//!   ledger).

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::base::sync::lock;
use crate::sidecar::ledger::{Counts, DAY, LedgerState, grant_id};
use crate::sidecar::record::Charge;
use crate::sidecar::refusal::{Code, Refusal};
use crate::sidecar::steps::scope::Permit;

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

/// The limits of one grant, and what was spent of them.
#[derive(Debug, Default)]
pub struct Limiter {
    id: Arc<str>,
    limits: Limits,
    rate: Option<DefaultDirectRateLimiter>,
    spent: Arc<Spent>,
}

/// What outlives a change of the limits.
#[derive(Debug, Default)]
struct Spent {
    active: AtomicU32,
    budget: Mutex<Budget>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Budget {
    spent: Counts,
    /// What requests in flight hold, and how many of them hold something.
    held: Hold,
    holders: u32,
}

/// The most that a request can cost.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Hold {
    pub tokens: u64,
    /// In 10⁻⁹ USD, so that what is added and taken away again leaves nothing.
    pub nano_usd: u64,
}

impl Hold {
    pub fn new(tokens: u64, usd: f64) -> Hold {
        Hold {
            tokens,
            nano_usd: (usd * 1e9).ceil() as u64,
        }
    }

    pub fn usd(&self) -> f64 {
        self.nano_usd as f64 / 1e9
    }

    fn is_empty(&self) -> bool {
        self.tokens == 0 && self.nano_usd == 0
    }
}

/// How much of a budget is used, for metrics.
#[derive(Debug, Clone, Copy)]
pub struct GrantUsage {
    pub limits: Limits,
    pub spent: Counts,
    pub held: Hold,
}

/// Every limiter there has been, by its grant.
#[derive(Debug, Default)]
pub struct Ledger {
    session: String,
    /// What grants had spent before this process.
    before: HashMap<Arc<str>, Counts>,
    limiters: Mutex<HashMap<Arc<str>, Arc<Limiter>>>,
}

impl Ledger {
    /// The counts of this session, as far as `state` remembers them. Without a session id of the
    /// operator's, the one in the state goes on, or a new one begins.
    pub fn new(state: &LedgerState, session: Option<&str>) -> Ledger {
        let session = match session {
            Some(s) => s.to_owned(),
            None if !state.session_id.is_empty() => state.session_id.clone(),
            None => format!("ses_{}", crate::base::token::random_hex()),
        };
        let mut state = state.clone();
        state.enter(&session);
        Ledger {
            session,
            before: state.grants.into_iter().collect(),
            limiters: Mutex::default(),
        }
    }

    pub fn session(&self) -> &str {
        &self.session
    }

    /// The limiter of a grant, with the counts it had under earlier limits.
    pub fn limiter(&self, grant: &str, limits: &Limits) -> Arc<Limiter> {
        let id = grant_id(grant);
        let mut all = lock(&self.limiters);
        let known = all.get(&id);
        if let Some(limiter) = known.filter(|l| l.limits == *limits) {
            return limiter.clone();
        }
        let spent = known.map(|l| l.spent.clone()).unwrap_or_else(|| {
            let spent = self.before.get(&id).copied().unwrap_or_default();
            Arc::new(Spent {
                active: AtomicU32::new(0),
                budget: Mutex::new(Budget {
                    spent,
                    ..Budget::default()
                }),
            })
        });
        let rate = limits
            .requests_per_minute
            .and_then(NonZeroU32::new)
            .map(|n| RateLimiter::direct(Quota::per_minute(n)));
        let limiter = Arc::new(Limiter {
            id: id.clone(),
            limits: *limits,
            rate,
            spent,
        });
        all.insert(id, limiter.clone());
        limiter
    }
}

/// Proof that a request was let in; gives back its place when it is finished or dropped.
#[derive(Debug)]
pub struct Admission {
    limiters: Vec<Arc<Limiter>>,
    held: Hold,
    /// What it is charged when nobody says what it really cost.
    owed: Hold,
    charged: Option<Charge>,
}

/// Lets a request in, or says when to come back.
///
/// # Errors
/// `busy`, `budget_exhausted`, `rate_limited`. Nothing is charged for a refused request.
pub fn admit(permit: &Permit, held: Hold) -> Result<Admission, Refusal> {
    let mut admission = Admission {
        limiters: Vec::new(),
        held,
        owed: Hold::default(),
        charged: None,
    };
    let grants: Vec<_> = permit
        .grants()
        .filter(|g| g.limits != Limits::default())
        .collect();
    for grant in &grants {
        let limiter = &grant.limiter;
        limiter.hold(*grant, held)?;
        let active = limiter.spent.active.fetch_add(1, Ordering::AcqRel);
        admission.limiters.push(limiter.clone());
        if let Some(most) = grant.limits.concurrent.filter(|most| active >= *most) {
            let mut busy = Refusal::new(
                Code::Busy,
                format!(
                    "grant `{grant}` allows {}, and {active} are running",
                    counted(most, "concurrent request")
                ),
            );
            busy.retry_after = Some(Duration::from_secs(1));
            return Err(busy);
        }
    }
    for grant in &grants {
        if let (Some(rate), Some(most)) = (&grant.limiter.rate, grant.limits.requests_per_minute)
            && let Err(not_yet) = rate.check()
        {
            let wait = not_yet
                .wait_time_from(DefaultClock::default().now())
                .max(Duration::from_millis(1));
            let seconds = wait.as_secs_f64().ceil();
            let mut limited = Refusal::new(
                Code::RateLimited,
                format!(
                    "grant `{grant}` allows {} per minute. Please try again in {seconds}s",
                    counted(most, "request")
                ),
            );
            limited.retry_after = Some(wait);
            return Err(limited);
        }
    }
    Ok(admission)
}

/// `1 request`, `2 requests`.
fn counted(n: u32, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// An amount of money: as many decimals as it needs, two at least.
fn money(usd: f64) -> String {
    let text = format!("{usd:.6}");
    let end = text.trim_end_matches('0').len().max(text.len() - 4);
    text[..end].to_owned()
}

impl Limiter {
    /// Holds back the most that a request can cost.
    fn hold(&self, grant: &dyn std::fmt::Display, hold: Hold) -> Result<(), Refusal> {
        if !self.limits.has_budget() {
            return Ok(());
        }
        let mut budget = lock(&self.spent.budget);
        let now = jiff::Timestamp::now().as_second();
        budget.spent.roll(now);
        let (spent, held) = (budget.spent, budget.held);
        let alone = budget.holders == 0;
        let mut fits = true;
        if let Some(most) = self.limits.tokens_per_day {
            if spent.tokens >= most {
                let resets = (now / DAY + 1) * DAY;
                let when = jiff::Timestamp::from_second(resets)
                    .map(|t| t.to_string())
                    .unwrap_or_default();
                let mut d = Refusal::new(
                    Code::BudgetExhausted,
                    format!(
                        "grant `{grant}` allows {most} tokens per day; {} are spent (resets {when})",
                        spent.tokens
                    ),
                );
                d.resets_at = Some(resets);
                return Err(d.hint("ask an operator for more `tokensPerDay`, or go on tomorrow"));
            }
            fits &= spent
                .tokens
                .saturating_add(held.tokens)
                .saturating_add(hold.tokens)
                <= most;
        }
        if let Some(most) = self.limits.usd_per_session {
            if spent.usd >= most {
                let d = Refusal::new(
                    Code::BudgetExhausted,
                    format!(
                        "grant `{grant}` allows {} USD per session; {} are spent",
                        money(most),
                        money(spent.usd)
                    ),
                );
                return Err(
                    d.hint("ask an operator for more `usdPerSession`, or start a new session")
                );
            }
            fits &= spent.usd + held.usd() + hold.usd() <= most;
        }
        if !(fits || alone || hold.is_empty()) {
            let mut d = Refusal::new(
                Code::Busy,
                format!(
                    "the rest of the budget of grant `{grant}` is reserved for requests in progress"
                ),
            )
            .hint("send it again when they are done");
            d.retry_after = Some(Duration::from_secs(1));
            return Err(d);
        }
        if !hold.is_empty() {
            budget.holders += 1;
            budget.held.tokens = budget.held.tokens.saturating_add(hold.tokens);
            budget.held.nano_usd = budget.held.nano_usd.saturating_add(hold.nano_usd);
        }
        Ok(())
    }

    fn release(&self, hold: Hold) {
        self.spent.active.fetch_sub(1, Ordering::AcqRel);
        if !self.limits.has_budget() || hold.is_empty() {
            return;
        }
        let mut budget = lock(&self.spent.budget);
        budget.holders = budget.holders.saturating_sub(1);
        budget.held.tokens = budget.held.tokens.saturating_sub(hold.tokens);
        budget.held.nano_usd = budget.held.nano_usd.saturating_sub(hold.nano_usd);
    }

    pub fn usage(&self) -> GrantUsage {
        let mut budget = lock(&self.spent.budget);
        budget.spent.roll(jiff::Timestamp::now().as_second());
        GrantUsage {
            limits: self.limits,
            spent: budget.spent,
            held: budget.held,
        }
    }
}

impl Admission {
    fn payers(&self) -> impl Iterator<Item = &Arc<Limiter>> {
        self.limiters.iter().filter(|l| l.limits.has_budget())
    }

    fn payer_ids(&self) -> Vec<Arc<str>> {
        self.payers().map(|l| l.id.clone()).collect()
    }

    /// What it is charged if nothing more is heard of it; `None` where no budget pays.
    pub fn held(&self) -> Option<Charge> {
        let grants = self.payer_ids();
        let charge = Charge {
            tokens: self.held.tokens,
            usd: self.held.usd(),
            grants,
            at: jiff::Timestamp::now().as_second(),
        };
        (!charge.grants.is_empty()).then_some(charge)
    }

    /// How much of the tightest budget is used; `None` without a budget.
    pub fn utilisation(&self) -> Option<Utilisation> {
        let all = self.payers().map(|l| l.usage()).flat_map(|u| {
            let tokens = u.limits.tokens_per_day.map(|most| {
                (
                    u.spent.tokens as f64 / most as f64,
                    Some((u.spent.day + 1) * DAY),
                )
            });
            let usd = u
                .limits
                .usd_per_session
                .map(|most| (u.spent.usd / most, None));
            [tokens, usd].into_iter().flatten()
        });
        all.max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(used, resets_at)| Utilisation { used, resets_at })
    }

    /// From now on the provider may be working on it.
    pub fn owe(&mut self) {
        self.owed = self.held;
    }

    /// The provider cannot have worked on it.
    pub fn owe_nothing(&mut self) {
        self.owed = Hold::default();
    }

    /// What was held back for it.
    pub fn hold(&self) -> Hold {
        self.held
    }

    /// The request is over and cost this much.
    pub fn charge(&mut self, tokens: u64, usd: f64) {
        self.owed = Hold::default();
        if tokens == 0 && usd == 0.0 {
            return;
        }
        let at = jiff::Timestamp::now().as_second();
        let grants = self.payer_ids();
        if grants.is_empty() {
            return;
        }
        self.payers()
            .for_each(|l| lock(&l.spent.budget).spent.add(at, tokens, usd));
        self.charged = Some(Charge {
            tokens,
            usd,
            grants,
            at,
        });
    }

    #[cfg(test)]
    pub fn of(limiter: &Arc<Limiter>, tokens: u64) -> Admission {
        limiter.spent.active.fetch_add(1, Ordering::AcqRel);
        limiter.hold(&"ai.x", Hold::new(tokens, 0.0)).unwrap();
        Admission {
            limiters: vec![limiter.clone()],
            held: Hold::new(tokens, 0.0),
            owed: Hold::default(),
            charged: None,
        }
    }

    /// Gives its place back. Returns what it was charged.
    pub fn finish(mut self) -> Option<Charge> {
        self.settle();
        self.charged.take()
    }

    fn settle(&mut self) {
        if !self.owed.is_empty() {
            self.charge(self.owed.tokens, self.owed.usd());
        }
        for limiter in std::mem::take(&mut self.limiters) {
            limiter.release(self.held);
        }
    }
}

/// How far the tightest budget of a request is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Utilisation {
    /// 0 to 1, beyond it when exceeded.
    pub used: f64,
    /// When it starts over, in seconds since 1970; `None`: with the next session.
    pub resets_at: Option<i64>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(limits: Limits) -> Arc<Limiter> {
        Ledger::new(&LedgerState::default(), Some("s")).limiter("ai.x", &limits)
    }

    fn admission(limiter: &Arc<Limiter>, held: Hold) -> Result<Admission, Code> {
        limiter.hold(&"ai.x", held).map_err(|d| d.code)?;
        limiter.spent.active.fetch_add(1, Ordering::AcqRel);
        Ok(Admission {
            limiters: vec![limiter.clone()],
            held,
            owed: Hold::default(),
            charged: None,
        })
    }

    #[test]
    fn a_burst_holds_no_more_than_the_budget() {
        let limiter = limiter(Limits {
            tokens_per_day: Some(1000),
            ..Limits::default()
        });
        let hold = Hold::new(400, 0.0);
        let first = admission(&limiter, hold).unwrap();
        let mut second = admission(&limiter, hold).unwrap();
        assert_eq!(
            admission(&limiter, hold).unwrap_err(),
            Code::Busy,
            "the rest is held, not spent"
        );
        second.charge(400, 0.0);
        drop((first, second));
        let third = admission(&limiter, hold).unwrap();
        assert_eq!(limiter.usage().held, hold);
        drop(third);
        assert_eq!(
            (limiter.usage().held, limiter.usage().spent.tokens),
            (Hold::default(), 400)
        );
    }

    #[test]
    fn a_request_alone_may_use_what_is_left_and_is_the_last() {
        let limiter = limiter(Limits {
            usd_per_session: Some(1.0),
            ..Limits::default()
        });
        let hold = Hold::new(1_000_000, 30.0);
        let mut alone = admission(&limiter, hold).unwrap();
        assert_eq!(admission(&limiter, hold).unwrap_err(), Code::Busy);
        alone.charge(1, 1.25);
        assert_eq!(alone.finish().unwrap().usd, 1.25);
        assert_eq!(
            admission(&limiter, hold).unwrap_err(),
            Code::BudgetExhausted
        );
    }

    #[test]
    fn what_nobody_settles_is_charged_as_it_was_held() {
        let limiter = limiter(Limits {
            tokens_per_day: Some(1000),
            ..Limits::default()
        });
        let mut left = admission(&limiter, Hold::new(300, 0.1)).unwrap();
        left.owe();
        drop(left);
        assert_eq!(
            (limiter.usage().spent.tokens, limiter.usage().spent.usd),
            (300, 0.1)
        );
        let mut failed = admission(&limiter, Hold::new(300, 0.1)).unwrap();
        failed.owe();
        failed.owe_nothing();
        drop(failed);
        assert_eq!(limiter.usage().spent.tokens, 300);
    }

    #[test]
    fn counts_outlive_a_change_of_limits_and_a_restart() {
        let mut state = LedgerState::default();
        state.enter("s");
        let at = jiff::Timestamp::now().as_second();
        state.charge(&Charge {
            tokens: 100,
            usd: 1.5,
            grants: vec![grant_id("ai.x")],
            at,
        });
        let ledger = Ledger::new(&state, None);
        assert_eq!(ledger.session(), "s");
        let limits = Limits {
            tokens_per_day: Some(100),
            ..Limits::default()
        };
        assert_eq!(
            ledger
                .limiter("ai.x", &limits)
                .hold(&"ai.x", Hold::default())
                .unwrap_err()
                .code,
            Code::BudgetExhausted
        );
        let more = Limits {
            tokens_per_day: Some(101),
            usd_per_session: Some(1.0),
            ..limits
        };
        assert!(
            ledger
                .limiter("ai.x", &more)
                .hold(&"ai.x", Hold::default())
                .unwrap_err()
                .message
                .contains("USD")
        );
        let other = Ledger::new(&state, Some("another"));
        assert!(
            other
                .limiter("ai.x", &more)
                .hold(&"ai.x", Hold::default())
                .is_ok(),
            "dollars are per session, and one token is left"
        );
    }

    #[test]
    fn money_is_told_as_exactly_as_it_needs() {
        for (usd, told) in [
            (5.0, "5.00"),
            (0.0005, "0.0005"),
            (1.25, "1.25"),
            (0.0, "0.00"),
            (12.3456789, "12.345679"),
        ] {
            assert_eq!(money(usd), told);
        }
    }
}
