//! What a grant may still spend: its rate, its requests in flight, and its budgets.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::base::sync::lock;
use crate::sidecar::ledger::state::{Counts, DAY, LedgerState};
use crate::sidecar::policy::{Grant, Limits};
use crate::sidecar::refusal::{Code, Refusal};

/// The limits of one grant, and what was spent of them.
#[derive(Debug)]
pub struct Limiter {
    pub(crate) id: Arc<str>,
    pub(crate) limits: Limits,
    pub(crate) rate: Option<DefaultDirectRateLimiter>,
    pub(crate) spent: Arc<Spent>,
}

/// What outlives a change of the limits.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    pub(crate) active: AtomicU32,
    pub(crate) budget: Mutex<Budget>,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) spent: Counts,
    /// What requests in flight hold, and how many of them hold something.
    pub(crate) held: Hold,
    pub(crate) holders: u32,
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

    pub(crate) fn is_empty(&self) -> bool {
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

/// Every limiter that there has been, by the text of its grant.
#[derive(Debug, Default)]
pub struct Ledger {
    session: String,
    /// What grants had spent before this process.
    before: HashMap<Arc<str>, Counts>,
    grants: Mutex<HashMap<Arc<str>, Kept>>,
}

/// What is kept of the grants with one text.
#[derive(Debug)]
struct Kept {
    spent: Arc<Spent>,
    /// One for each of the limits that such a grant has had: few, since operators write them.
    limiters: Vec<Arc<Limiter>>,
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
            grants: Mutex::default(),
        }
    }

    pub fn session(&self) -> &str {
        &self.session
    }

    /// The limiter of grants with this text and these limits. What was spent is shared by all
    /// limits, a rate is not: neither a configuration that is refused, nor a grant of equal text,
    /// nor a look at the metrics resets the rate of another.
    pub fn limiter(&self, id: &Arc<str>, limits: &Limits) -> Arc<Limiter> {
        let mut grants = lock(&self.grants);
        let kept = grants.entry(id.clone()).or_insert_with(|| Kept {
            spent: self.spent_before(id),
            limiters: Vec::new(),
        });
        if let Some(limiter) = kept.limiters.iter().find(|l| l.limits == *limits) {
            return limiter.clone();
        }
        let rate = limits
            .requests_per_minute
            .and_then(NonZeroU32::new)
            .map(|n| RateLimiter::direct(Quota::per_minute(n)));
        let limiter = Arc::new(Limiter {
            id: id.clone(),
            limits: *limits,
            rate,
            spent: kept.spent.clone(),
        });
        kept.limiters.push(limiter.clone());
        limiter
    }

    fn spent_before(&self, id: &Arc<str>) -> Arc<Spent> {
        let spent = self.before.get(id).copied().unwrap_or_default();
        let budget = Budget {
            spent,
            ..Budget::default()
        };
        Arc::new(Spent {
            budget: Mutex::new(budget),
            ..Spent::default()
        })
    }

    /// As [`Ledger::limiter`].
    pub fn limiter_of(&self, grant: &Grant) -> Arc<Limiter> {
        self.limiter(&grant.ledger_id, &grant.limits)
    }
}

/// `1 request`, `2 requests`.
pub(crate) fn counted(n: u32, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// An amount of money: as many decimals as it needs, two at least.
pub(crate) fn money(usd: f64) -> String {
    let text = format!("{usd:.6}");
    let end = text.trim_end_matches('0').len().max(text.len() - 4);
    text[..end].to_owned()
}

impl Limiter {
    /// Holds back the most that a request can cost.
    pub(crate) fn hold(&self, grant: &dyn std::fmt::Display, hold: Hold) -> Result<(), Refusal> {
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

    pub(crate) fn release(&self, hold: Hold) {
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
