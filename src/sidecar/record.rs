//! What is written down about a request.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The record, as `docs/operators.md` explains it. Absent is `null`, not 0. Its line in the file
/// ends with `seq` and `prev`, which the writer adds (`audit/chain.rs`).
#[derive(Debug, Clone, Serialize)]
pub struct AuditRecord {
    pub ts: jiff::Timestamp,
    pub request_id: String,
    pub session_id: Arc<str>,
    pub provider: Option<String>,
    pub endpoint: Option<&'static str>,
    pub model_requested: Option<String>,
    pub model_reported: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope_matched: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope_needed: Option<String>,
    pub decision: AccessDecision,
    pub code: Option<&'static str>,
    pub policy_revision: Option<Arc<str>>,
    pub status: Option<u16>,
    pub stream: bool,
    pub tokens: Tokens,
    /// The reply said all there is to say about its usage and ended as it should.
    pub usage_complete: bool,
    pub cost_usd: Option<f64>,
    /// From the request's head to the first byte of the reply's body.
    pub ttft_ms: Option<f64>,
    pub duration_ms: f64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// The session that the client says it is in (`x-claude-code-session-id`, `session-id`, …).
    pub client_session: Option<String>,
    /// Tokens of further models within the request (advisors, compaction).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_usage: Vec<ExtraTokens>,
    /// The type of the provider's own error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_error: Option<String>,
    /// The reply held the workspace's key, which was overwritten.
    #[serde(skip_serializing_if = "is_false")]
    pub key_echoed: bool,
    /// What the budgets of its grants were charged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub charged: Option<Charge>,
    /// How many refused requests the record stands for; absent for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// What metrics are labelled with; not written.
    #[serde(skip)]
    pub labels: Labels,
    /// The whole body of the request was taken in; not written.
    #[serde(skip)]
    pub body_read: bool,
}

/// The configured names that metrics are labelled with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Labels {
    pub provider: Option<&'static str>,
    /// The model pattern of the grant that covers the model.
    pub model: Option<&'static str>,
}

/// A proof that a step made says what is written down of it.
pub trait Describe {
    fn describe(&self, record: &mut AuditRecord);
}

fn is_false(b: &bool) -> bool {
    !b
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessDecision {
    Allow,
    Deny,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Tokens {
    pub input: Option<u64>,
    pub cache_read: Option<u64>,
    pub cache_write: Option<u64>,
    pub output: Option<u64>,
    pub reasoning: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ExtraTokens {
    pub kind: String,
    pub model: Option<String>,
    #[serde(flatten)]
    pub tokens: Tokens,
}

/// What a request was charged, and to which budgets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Charge {
    pub tokens: u64,
    pub usd: f64,
    /// The ids of the grants that paid (the digest of a grant's text, see `ledger.rs`).
    pub grants: Vec<Arc<str>>,
    /// When, in seconds since 1970: daily budgets are those of this day.
    pub at: i64,
}

impl AuditRecord {
    /// The record of a request that has just arrived.
    pub fn new(request_id: String, session_id: Arc<str>) -> Self {
        AuditRecord {
            ts: jiff::Timestamp::now(),
            request_id,
            session_id,
            provider: None,
            endpoint: None,
            model_requested: None,
            model_reported: None,
            scope_matched: None,
            scope_needed: None,
            decision: AccessDecision::Deny,
            code: None,
            policy_revision: None,
            status: None,
            stream: false,
            tokens: Tokens::default(),
            usage_complete: false,
            cost_usd: None,
            ttft_ms: None,
            duration_ms: 0.0,
            bytes_in: 0,
            bytes_out: 0,
            client_session: None,
            extra_usage: Vec::new(),
            upstream_error: None,
            key_echoed: false,
            charged: None,
            count: None,
            labels: Labels::default(),
            body_read: false,
        }
    }
}
