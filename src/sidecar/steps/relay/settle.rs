//! What a reply cost, once it is over.

use hyper::StatusCode;

use super::RelayedCall;
use crate::sidecar::audit::AuditEntry;
use crate::sidecar::billing;
use crate::sidecar::billing::{Models, Prices, Settled};
use crate::sidecar::record::Tokens;
use crate::sidecar::usage::Report;

/// What the reply said about itself goes into the record and onto the bill.
pub(super) fn settle(
    call: &RelayedCall,
    entry: &mut AuditEntry,
    status: StatusCode,
    report: Report,
) {
    let elapsed_ms = entry.elapsed_ms();
    let record = &mut entry.record;
    record.model_reported = report.model;
    record.upstream_error = report.error.and_then(|e| e.kind);
    let billed = call.routed.endpoint().usage.is_some() && status.is_success();
    let usage = report.usage.filter(|_| billed);
    let prices = Prices {
        table: &call.shared.config.prices,
        provider: call.permit.provider(),
    };
    let tier = report.tier.as_deref();
    if let Some(u) = &usage {
        record.tokens = Tokens {
            input: u.input,
            cache_read: u.cache_read,
            cache_write: u.cache_write,
            output: u.output,
            reasoning: u.reasoning,
        };
        record.extra_usage = u.extra.iter().map(billing::extra).collect();
        record.usage_complete = report.complete;
        record.cost_usd = prices.cost(
            u,
            Models {
                requested: record.model_requested.as_deref(),
                reported: record.model_reported.as_deref(),
            },
            tier,
        );
    }
    if let (Some(reported), Some(requested)) = (&record.model_reported, &record.model_requested)
        && billed
        && !reported.starts_with(requested.as_str())
        && !call.permit.shows(reported)
    {
        call.shared.metrics.model_mismatches.inc();
        tracing::warn!(request_id = %record.request_id, requested, reported, "the reply comes from a model that no grant covers");
    }
    let (tokens, usd) = match billed {
        true => prices.charge(&Settled {
            models: Models {
                requested: record.model_requested.as_deref(),
                reported: record.model_reported.as_deref(),
            },
            usage: usage.as_ref(),
            cost: record.cost_usd,
            tier,
            complete: report.complete,
            stream: record.stream,
            generates: call.routed.endpoint().generates,
            max_output: call.max_output,
            whole_context: call.whole_context,
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            seconds: elapsed_ms / 1000.0,
        }),
        false => (0, 0.0),
    };
    if let Some(admission) = entry.admission() {
        admission.charge(tokens, usd);
    }
}
