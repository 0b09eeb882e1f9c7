//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use governor::DefaultDirectRateLimiter;
use tokio::sync::Semaphore;

use crate::sidecar::audit::Audit;
use crate::sidecar::config::SidecarConfig;
use crate::sidecar::credential::Store;
use crate::sidecar::known_objects::KnownObjects;
use crate::sidecar::ledger::limiter::Ledger;
use crate::sidecar::metrics::Metrics;
use crate::sidecar::policy::Policy;
use crate::sidecar::steps::body::BodyMemory;
use crate::sidecar::steps::guard::CallerPolicy;
use crate::sidecar::steps::upstream::Upstream;

/// What every request shares.
#[derive(Debug)]
pub struct SidecarState {
    pub config: SidecarConfig,
    pub policy: ArcSwap<Policy>,
    pub secrets: Store,
    pub ledger: Ledger,
    pub audit: Audit,
    pub metrics: Arc<Metrics>,
    pub upstream: Upstream,
    pub callers: CallerPolicy,
    pub body_memory: BodyMemory,
    /// For bodies that are kept until the provider answers.
    pub retry_memory: Semaphore,
    /// One list of models is cut down at a time.
    pub list_turns: Semaphore,
    /// What replies to this session named.
    pub known_objects: KnownObjects,
    /// How many requests may be refused at full speed, of all connections together.
    pub refusal_rate: DefaultDirectRateLimiter,
    pub draining: AtomicBool,
}

/// What bodies that are kept until the provider answers may hold together.
pub const RETRY_MEMORY: usize = 16 << 20;
