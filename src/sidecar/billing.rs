//! From tokens to cost to charge: what a request can cost at most, and what it did cost.
//!
//! Invariants:
//! - What is held back covers the request's own tokens: a token has at least one byte, and no more
//!   tokens than the model's context go in. Searches, pictures, and what the provider's tools read
//!   beyond [`TOOL_INPUT`] are charged afterwards.
//! - A reply that does not say what it used is charged by its size, never with nothing.

use super::record::{ExtraTokens, Tokens};
use super::usage::{Extra, PICTURES, ReplyUsage};
use crate::catalogue::{self, Mode, Overrides, Price};
use crate::sidecar::ledger::limiter::Hold;
use crate::sidecar::policy::ProviderConfig;
use crate::sidecar::provider::{Billing, Endpoint};
use crate::sidecar::steps::model::facts::RequestFacts;

/// The context of a model that the catalogue does not know, in tokens.
const CONTEXT: u64 = 1_000_000;
/// The longest reply of a model that the catalogue does not know, in tokens.
const MAX_OUTPUT: u64 = 128_000;
/// No provider takes more tokens for one picture.
const IMAGE_TOKENS: u64 = 5_000;
/// What the provider's own tools (search, fetch, files) add to the input of one request: what they
/// read is not in it.
const TOOL_INPUT: u64 = 100_000;
/// Tokens that a model writes per second at most, also those of reasoning that nobody sees.
const TOKENS_PER_SECOND: f64 = 150.0;
/// A stream that is cut may have produced so many tokens beyond those that arrived.
const UNDELIVERED: u64 = 1_024;

/// The prices that count for one provider.
#[derive(Debug, Clone, Copy)]
pub struct Prices<'a> {
    pub table: &'a Overrides,
    pub provider: &'a ProviderConfig,
}

impl Prices<'_> {
    /// An own name for a provider does not change what its kind costs.
    fn of(&self, model: &str) -> Option<Price> {
        self.table
            .price(&self.provider.name, model)
            .or_else(|| self.table.price(self.provider.def.kind, model))
    }

    /// A model without a price is paid as a dear one, or a budget in dollars would not hold.
    fn of_any(&self, model: &str) -> Price {
        match self.of(model) {
            Some(price) => price,
            None if self.provider.def.local => Price::default(),
            None => catalogue::UNKNOWN,
        }
    }

    /// The most that a request of this size can cost.
    pub fn hold(&self, endpoint: &Endpoint, facts: &RequestFacts, bytes: usize) -> Hold {
        if endpoint.billing != Billing::Billed {
            return Hold::default();
        }
        let cost = facts.cost();
        let mode = Mode {
            tier: cost.priority.then_some("priority"),
            fast: cost.fast,
            us_only: cost.us_only,
        };
        let whole_context = facts.may_fill_context();
        let (mut tokens, mut usd) = (0, 0.0);
        for model in facts.models() {
            let price = self.of_any(model);
            let context = price.max_input.unwrap_or(CONTEXT);
            let tools = if cost.reads { TOOL_INPUT } else { 0 };
            let seen = bytes as u64 + u64::from(cost.images) * IMAGE_TOKENS + tools;
            let input = if whole_context {
                context
            } else {
                seen.min(context)
            };
            let output = match endpoint.generates {
                true => cost.most_output().unwrap_or_else(|| {
                    price
                        .max_output
                        .unwrap_or(MAX_OUTPUT)
                        .saturating_mul(cost.copies.max(1))
                }),
                false => 0,
            };
            tokens = input.saturating_add(output).saturating_add(tokens);
            usd += price.most(input, output, mode);
        }
        if facts.any_model() && !self.provider.def.local {
            usd = usd.max(catalogue::UNKNOWN.most(bytes as u64, MAX_OUTPUT, mode));
            tokens = tokens.max(MAX_OUTPUT.saturating_add(bytes as u64));
        }
        Hold::new(tokens, usd)
    }

    /// What the reply cost; `None` without a price.
    pub fn cost(&self, usage: &ReplyUsage, models: Models<'_>, tier: Option<&str>) -> Option<f64> {
        if usage.cost_usd.is_some() {
            return usage.cost_usd;
        }
        let main = models
            .reported
            .and_then(|m| self.of(m))
            .or_else(|| models.requested.and_then(|m| self.of(m)))?;
        Some(self.cost_at(&main, usage, tier))
    }

    fn cost_at(&self, main: &Price, usage: &ReplyUsage, tier: Option<&str>) -> f64 {
        let mode = Mode {
            tier,
            fast: usage.fast,
            us_only: usage.us_only,
        };
        let extras = usage.extra.iter().map(|e| {
            let price = match &e.model {
                Some(model) => self.of(model).unwrap_or(*main),
                None if e.kind == PICTURES => catalogue::UNKNOWN,
                None => *main,
            };
            price.cost(
                tokens_of(&ReplyUsage {
                    input: e.input,
                    cache_read: e.cache_read,
                    cache_write: e.cache_write,
                    output: e.output,
                    ..ReplyUsage::default()
                }),
                Mode::default(),
            )
        });
        main.cost(tokens_of(usage), mode) + extras.sum::<f64>()
    }

    /// What the budgets are charged for a reply: tokens and USD.
    pub fn charge(&self, settled: &Settled<'_>) -> (u64, f64) {
        // Most replies say all there is to say, and their cost is in the record already.
        if let (true, Some(usage), Some(usd)) = (settled.complete, settled.usage, settled.cost)
            && usage.total() > 0
        {
            return (usage.total(), usd);
        }
        let mut usage = settled.usage.cloned().unwrap_or_default();
        let known = settled.usage.is_some_and(|u| u.total() > 0);
        if !(settled.complete && known) {
            self.estimate(settled, &mut usage);
        }
        let models = settled.models;
        let usd = self.cost(&usage, models, settled.tier).unwrap_or_else(|| {
            let price = self.of_any(models.requested.unwrap_or_default());
            self.cost_at(&price, &usage, settled.tier)
        });
        (usage.total(), usd)
    }

    /// Fills in what a reply did not report. A reply that came whole is estimated by its size; of
    /// one that did not, everything counts that the provider may have worked on.
    fn estimate(&self, settled: &Settled<'_>, usage: &mut ReplyUsage) {
        let price = self.of_any(settled.models.requested.unwrap_or_default());
        let held_output = settled
            .max_output
            .or(price.max_output)
            .unwrap_or(MAX_OUTPUT);
        if usage.input.is_none() && usage.cache_read.is_none() && usage.cache_write.is_none() {
            let context = price.max_input.unwrap_or(CONTEXT);
            // Prose has four bytes a token, source and other scripts fewer.
            usage.input = Some(if settled.whole_context {
                context
            } else {
                (settled.bytes_in / 3).min(context)
            });
        }
        let thought = (settled.seconds * TOKENS_PER_SECOND) as u64;
        let output = match (settled.generates, settled.complete, settled.stream) {
            (false, ..) => 0,
            // Each token of a stream is wrapped in JSON; a whole reply is mostly text.
            (true, true, true) => (settled.bytes_out / 16).max(thought.min(held_output)),
            (true, true, false) => settled.bytes_out / 3,
            // The provider stops when its client goes, some tokens later.
            (true, false, true) => (settled.bytes_out / 4 + UNDELIVERED)
                .max(thought)
                .min(held_output)
                .max(settled.bytes_out / 16),
            (true, false, false) => held_output,
        };
        usage.output = Some(usage.output.unwrap_or(0).max(output));
        usage.cost_usd = None;
    }
}

/// The models of a request and of its reply.
#[derive(Debug, Clone, Copy)]
pub struct Models<'a> {
    pub requested: Option<&'a str>,
    pub reported: Option<&'a str>,
}

/// What is known of a reply that is over.
#[derive(Debug)]
pub struct Settled<'a> {
    pub models: Models<'a>,
    pub usage: Option<&'a ReplyUsage>,
    /// What that usage costs, where the model has a price.
    pub cost: Option<f64>,
    pub tier: Option<&'a str>,
    /// It ended as its protocol ends.
    pub complete: bool,
    pub stream: bool,
    pub generates: bool,
    /// The most output tokens that the request allows, of all the replies that it asks for.
    pub max_output: Option<u64>,
    pub whole_context: bool,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// From the request's head to the end of the reply.
    pub seconds: f64,
}

fn tokens_of(usage: &ReplyUsage) -> catalogue::PricedTokens {
    let n = |v: Option<u64>| v.unwrap_or(0);
    catalogue::PricedTokens {
        input: n(usage.input),
        cache_read: n(usage.cache_read),
        cache_write: n(usage.cache_write),
        cache_write_1h: n(usage.cache_write_1h),
        output: n(usage.output),
        image_output: n(usage.image_output),
        searches: usage.searches,
        images: usage.pictures,
    }
}

/// The tokens of a further inference, for the record.
pub fn extra(e: &Extra) -> ExtraTokens {
    ExtraTokens {
        kind: e.kind.clone(),
        model: e.model.clone(),
        tokens: Tokens {
            input: e.input,
            cache_read: e.cache_read,
            cache_write: e.cache_write,
            output: e.output,
            reasoning: None,
        },
    }
}
