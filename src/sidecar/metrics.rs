//! Metrics for Prometheus. Label values come only from the configuration and from enums, so that
//! nothing that a client sends can create a new series.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::record::{AccessDecision, AuditRecord};
use crate::base::intern::label;
use crate::base::sync::lock;
use crate::sidecar::ledger::limiter::GrantUsage;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    provider: &'static str,
    endpoint: &'static str,
    model: &'static str,
    code: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BudgetLabels {
    grant: &'static str,
    unit: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    provider: &'static str,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabel {
    provider: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

type Usd = Counter<f64, AtomicU64>;

type Histograms = Family<ProviderLabel, Histogram, fn() -> Histogram>;

/// All metrics that a request with these labels updates. The last ones are kept, because most
/// requests have the same labels as the request before them.
#[derive(Debug)]
struct Series {
    labels: RequestLabels,
    requests: Counter,
    tokens: [Counter; 5],
    cost: Usd,
    duration: Histogram,
    first_byte: Histogram,
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    last: Mutex<Option<Series>>,
    requests: Family<RequestLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    cost: Family<ProviderLabel, Usd>,
    duration: Histograms,
    first_byte: Histograms,
    reloads: Family<ResultLabel, Counter>,
    secret_ok: Family<ProviderLabel, Gauge>,
    pub connections: Gauge<i64, AtomicI64>,
    pub in_flight: Gauge<i64, AtomicI64>,
    pub policy_ok: Gauge,
    pub audit_ok: Gauge,
    pub key_echoes: Counter,
    pub model_mismatches: Counter,
    budgets: Family<BudgetLabels, Gauge<f64, AtomicU64>>,
    credential_age: Family<ProviderLabel, Gauge<f64, AtomicU64>>,
    /// Counts the refused requests that share an audit record with others.
    pub coalesced: Counter,
    /// Counts the new connections that were closed at once, because no place could be freed for
    /// them or the audit's memory was full.
    pub dropped_connections: Counter,
    /// The sequence number (`seq`) of the last audit record.
    pub audit_seq: Gauge,
    pub log_lines_dropped: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let seconds: fn() -> Histogram = || {
            Histogram::new([
                0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
                600.0,
            ])
        };
        let mut m = Metrics {
            registry: Registry::with_prefix("outrigger"),
            last: Mutex::default(),
            requests: Family::default(),
            tokens: Family::default(),
            cost: Family::default(),
            duration: Family::new_with_constructor(seconds),
            first_byte: Family::new_with_constructor(seconds),
            reloads: Family::default(),
            secret_ok: Family::default(),
            connections: Gauge::default(),
            in_flight: Gauge::default(),
            policy_ok: Gauge::default(),
            audit_ok: Gauge::default(),
            key_echoes: Counter::default(),
            model_mismatches: Counter::default(),
            budgets: Family::default(),
            credential_age: Family::default(),
            coalesced: Counter::default(),
            dropped_connections: Counter::default(),
            audit_seq: Gauge::default(),
            log_lines_dropped: Gauge::default(),
        };
        m.policy_ok.set(1);
        m.audit_ok.set(1);
        let r = &mut m.registry;
        r.register(
            "requests",
            "Requests, by what became of them; `code` is `ok`, `upstream_…` or the refusal's",
            m.requests.clone(),
        );
        r.register(
            "tokens",
            "Tokens that replies reported; `input` excludes both kinds of cache",
            m.tokens.clone(),
        );
        r.register(
            "cost_usd",
            "What replies cost, by the provider's own bill or the price table",
            m.cost.clone(),
        );
        r.register(
            "request_duration_seconds",
            "From a request's head to the end of its reply",
            m.duration.clone(),
        );
        r.register(
            "time_to_first_byte_seconds",
            "From a request's head to the first byte of its reply's body",
            m.first_byte.clone(),
        );
        r.register(
            "policy_reloads",
            "Readings of a changed configuration",
            m.reloads.clone(),
        );
        r.register(
            "secret_ok",
            "1 if the provider's key is readable",
            m.secret_ok.clone(),
        );
        r.register(
            "connections",
            "Open client connections",
            m.connections.clone(),
        );
        r.register(
            "requests_in_flight",
            "Requests being served, their streams included",
            m.in_flight.clone(),
        );
        r.register(
            "policy_ok",
            "0 while the configuration file is broken and the last good one serves",
            m.policy_ok.clone(),
        );
        r.register(
            "audit_ok",
            "0 while audit records cannot be written and nothing is served",
            m.audit_ok.clone(),
        );
        r.register(
            "key_echoes",
            "Replies that held the workspace's key, overwritten",
            m.key_echoes.clone(),
        );
        r.register(
            "model_mismatches",
            "Replies from a model that no grant covers",
            m.model_mismatches.clone(),
        );
        r.register("budget", "Budgets of grants: `state` is `limit`, `spent`, `held` for requests under way, or `left`", m.budgets.clone());
        r.register(
            "credential_age_seconds",
            "Since the provider's key was last changed",
            m.credential_age.clone(),
        );
        r.register(
            "refusals_coalesced",
            "Refused requests that share an audit record with others",
            m.coalesced.clone(),
        );
        r.register(
            "connections_dropped",
            "Connections closed because all places were taken",
            m.dropped_connections.clone(),
        );
        r.register(
            "audit_seq",
            "The number of the last audit record",
            m.audit_seq.clone(),
        );
        r.register(
            "log_lines_dropped",
            "Log lines that standard error did not take",
            m.log_lines_dropped.clone(),
        );
        let build: Family<BuildLabels, Gauge> = Family::default();
        build
            .get_or_create(&BuildLabels {
                version: env!("CARGO_PKG_VERSION"),
            })
            .set(1);
        r.register("build_info", "Always 1; the version is in the label", build);
        m
    }

    /// Counts a finished request. The label `provider` is the configured provider, and `model` is
    /// the model pattern of the grant that covers the model. A label without a value is `none`.
    pub fn request(&self, record: &AuditRecord) {
        let provider = record.labels.provider.unwrap_or("none");
        let status = match record.status.unwrap_or(0) / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            5 => "5xx",
            _ => "none",
        };
        let labels = RequestLabels {
            provider,
            endpoint: record.endpoint.unwrap_or("none"),
            model: record.labels.model.unwrap_or("none"),
            code: code(record),
            status,
        };
        let mut last = lock(&self.last);
        let series = match &mut *last {
            Some(series) if series.labels == labels => series,
            other => other.insert(self.series(labels)),
        };
        series.requests.inc();
        let t = &record.tokens;
        for (n, counter) in [t.input, t.cache_read, t.cache_write, t.output, t.reasoning]
            .into_iter()
            .zip(&series.tokens)
        {
            if let Some(n) = n {
                counter.inc_by(n);
            }
        }
        if let Some(usd) = record.cost_usd {
            series.cost.inc_by(usd);
        }
        series.duration.observe(record.duration_ms / 1000.0);
        if let Some(ms) = record.ttft_ms {
            series.first_byte.observe(ms / 1000.0);
        }
    }

    /// Looks up the metrics that a request with these labels updates.
    fn series(&self, labels: RequestLabels) -> Series {
        let provider = labels.provider;
        let label = ProviderLabel { provider };
        Series {
            requests: self.requests.get_or_create_owned(&labels),
            tokens: ["input", "cache_read", "cache_write", "output", "reasoning"].map(|kind| {
                self.tokens
                    .get_or_create_owned(&TokenLabels { provider, kind })
            }),
            cost: self.cost.get_or_create_owned(&label),
            duration: self.duration.get_or_create_owned(&label),
            first_byte: self.first_byte.get_or_create_owned(&label),
            labels,
        }
    }

    pub fn reload(&self, ok: bool) {
        self.reloads
            .get_or_create(&ResultLabel {
                result: if ok { "ok" } else { "broken" },
            })
            .inc();
        self.policy_ok.set(ok.into());
    }

    pub fn secret(&self, provider: &'static str, ok: bool) {
        self.secret_ok
            .get_or_create(&ProviderLabel { provider })
            .set(ok.into());
    }

    /// Removes the series of all grants and providers. The caller then sets those of the current
    /// configuration, so that the series of earlier configurations disappear.
    pub fn forget_operators_series(&self) {
        self.budgets.clear();
        self.secret_ok.clear();
        self.credential_age.clear();
    }

    pub fn credential(&self, provider: &'static str, age: f64) {
        self.credential_age
            .get_or_create(&ProviderLabel { provider })
            .set(age);
    }

    /// Sets the metrics of a grant's budgets to their current values.
    pub fn budget(&self, grant: &str, usage: &GrantUsage) {
        let grant = label(grant);
        let set = |unit, limit: f64, spent: f64, held: f64| {
            for (state, value) in [
                ("limit", limit),
                ("spent", spent),
                ("held", held),
                ("left", (limit - spent - held).max(0.0)),
            ] {
                self.budgets
                    .get_or_create(&BudgetLabels { grant, unit, state })
                    .set(value);
            }
        };
        if let Some(most) = usage.limits.tokens_per_day {
            set(
                "tokens_per_day",
                most as f64,
                usage.spent.tokens as f64,
                usage.held.tokens as f64,
            );
        }
        if let Some(most) = usage.limits.usd_per_session {
            set("usd_per_session", most, usage.spent.usd, usage.held.usd());
        }
    }

    /// Renders all metrics in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

/// Returns the label `code` of a request. Errors of the provider get codes (`upstream_…`), too, so
/// that an alert on `code != "ok"` detects an outage.
fn code(record: &AuditRecord) -> &'static str {
    match (record.code, record.status) {
        (Some(code), _) => code,
        (None, Some(429)) if record.decision == AccessDecision::Allow => "upstream_rate_limited",
        (None, Some(529)) => "upstream_overloaded",
        (None, Some(500..)) => "upstream_error",
        (None, Some(400..)) => "upstream_rejected",
        (None, _) => "ok",
    }
}
