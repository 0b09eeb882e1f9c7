//! Step 6 of a request: how often, how many at once, how much.
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

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};

use crate::base::sync::lock;
use crate::catalogue::Overrides;
use crate::sidecar::billing::Prices;
use crate::sidecar::ledger::limiter::{Hold, Ledger, Limiter, counted};
use crate::sidecar::ledger::state::DAY;
use crate::sidecar::policy::Limits;
use crate::sidecar::provider::Utilisation;
use crate::sidecar::record::Charge;
use crate::sidecar::refusal::{Code, Refusal};
use crate::sidecar::steps::body::buffered::BufferedBody;
use crate::sidecar::steps::model::facts::RequestFacts;
use crate::sidecar::steps::route::Routed;
use crate::sidecar::steps::scope::{Permit, Permitted};

/// The place of a request that was let in, with what its budgets hold back for it. Both are given
/// back when it is finished or dropped.
#[derive(Debug)]
pub struct Admission {
    limiters: Vec<Arc<Limiter>>,
    held: Hold,
    /// What it is charged when nobody says what it really cost.
    owed: Hold,
    charged: Option<Charge>,
}

/// Proof that a request was let in. The [`Admission`] belongs to the record of the request.
#[derive(Debug)]
pub struct Admitted {
    routed: Routed,
    permit: Permit,
    facts: RequestFacts,
    /// `None` once it was given to the request that is sent.
    body: Option<BufferedBody>,
}

impl Admitted {
    pub fn routed(&self) -> &Routed {
        &self.routed
    }

    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    pub fn body(&self) -> Option<&BufferedBody> {
        self.body.as_ref()
    }

    /// The body, which is not kept.
    pub fn take_body(&mut self) -> Option<BufferedBody> {
        self.body.take()
    }

    pub fn into_parts(self) -> (Routed, Permit, RequestFacts) {
        (self.routed, self.permit, self.facts)
    }
}

/// Lets a request in, or says when to come back. From then on it owes what was held back.
///
/// # Errors
/// `busy`, `budget_exhausted`, `rate_limited`. Nothing is charged for a refused request.
pub fn admit(
    mut permitted: Permitted,
    ledger: &Ledger,
    prices: &Overrides,
) -> Result<(Admitted, Admission), Refusal> {
    let read = permitted.read();
    let prices = Prices {
        table: prices,
        provider: permitted.permit().provider(),
    };
    let hold = prices.hold(read.routed().endpoint(), read.facts(), read.body().len());
    let mut admission = hold_back(permitted.permit(), ledger, hold)?;
    permitted.thread()?;
    admission.owe();
    let (read, permit) = permitted.into_parts();
    let (routed, body, facts) = read.into_parts();
    let admitted = Admitted {
        routed,
        permit,
        facts,
        body: Some(body),
    };
    Ok((admitted, admission))
}

fn hold_back(permit: &Permit, ledger: &Ledger, held: Hold) -> Result<Admission, Refusal> {
    let mut admission = Admission {
        limiters: Vec::new(),
        held,
        owed: Hold::default(),
        charged: None,
    };
    let limited = permit.grants().filter(|g| g.limits != Limits::default());
    let limited: Vec<_> = limited.map(|g| (g, ledger.limiter_of(g))).collect();
    for (grant, limiter) in &limited {
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
    for (grant, limiter) in &limited {
        if let (Some(rate), Some(most)) = (&limiter.rate, grant.limits.requests_per_minute)
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

impl Drop for Admission {
    fn drop(&mut self) {
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sidecar::ledger::limiter::money;
    use crate::sidecar::ledger::state::{LedgerState, grant_id};

    fn limiter(limits: Limits) -> Arc<Limiter> {
        Ledger::new(&LedgerState::default(), Some("s")).limiter(&grant_id("ai.x"), &limits)
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
    fn grants_of_equal_text_do_not_reset_each_other() {
        let ledger = Ledger::new(&LedgerState::default(), Some("s"));
        let narrow = Limits {
            requests_per_minute: Some(2),
            ..Limits::default()
        };
        let other = Limits {
            tokens_per_day: Some(1),
            ..narrow
        };
        let id = grant_id("ai.x");
        let is_let_in = |limits| {
            let limiter = ledger.limiter(&id, limits);
            limiter.rate.as_ref().unwrap().check().is_ok()
        };
        assert!(is_let_in(&narrow) && is_let_in(&narrow) && !is_let_in(&narrow));
        assert!(is_let_in(&other));
        assert!(!is_let_in(&narrow), "the other grant gave it a new rate");
        let spent = |limits| ledger.limiter(&id, limits).spent.clone();
        assert!(Arc::ptr_eq(&spent(&narrow), &spent(&other)));
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
                .limiter(&grant_id("ai.x"), &limits)
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
                .limiter(&grant_id("ai.x"), &more)
                .hold(&"ai.x", Hold::default())
                .unwrap_err()
                .message
                .contains("USD")
        );
        let other = Ledger::new(&state, Some("another"));
        assert!(
            other
                .limiter(&grant_id("ai.x"), &more)
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
