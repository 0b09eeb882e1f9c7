//! What a request asks for.

use crate::sidecar::provider::Feature;

/// More models than this name nothing that a person meant.
pub(super) const MAX_MODELS: usize = 64;

/// Keys and lists that are looked at, before a body is taken for an attack on our time: some
/// hundred tools with their schemas have a few thousand.
pub(super) const MAX_VALUES: usize = 250_000;

/// What a request asks for, read from every place that can say so.
#[derive(Debug, Default, PartialEq)]
pub struct RequestFacts {
    pub(super) main: Option<String>,
    pub(super) extra: Vec<String>,
    pub(super) any: bool,
    pub(super) features: Vec<Feature>,
    pub(super) references: Vec<String>,
    pub(super) thread: bool,
    pub(super) stream: bool,
    pub(super) cost: CostFacts,
}

/// What tells how much a request can cost.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct CostFacts {
    /// The most output tokens that the request allows for one reply.
    pub max_output: Option<u64>,
    /// How many replies it asks for; 0 where it does not say.
    pub copies: u64,
    pub fast: bool,
    pub priority: bool,
    pub us_only: bool,
    pub images: u32,
    /// Some of its input is not in its bytes (an address, a document), or takes more tokens than
    /// bytes.
    pub unseen: bool,
    /// Tools of the provider's own may read more.
    pub reads: bool,
}

impl CostFacts {
    /// The most output tokens of all the replies that it asks for.
    pub fn most_output(&self) -> Option<u64> {
        self.max_output
            .map(|each| each.saturating_mul(self.copies.max(1)))
    }
}

impl RequestFacts {
    /// The main model first.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.main.iter().chain(&self.extra).map(String::as_str)
    }

    pub fn main_model(&self) -> Option<&str> {
        self.main.as_deref()
    }

    /// The provider may choose a model that the request does not name.
    pub fn any_model(&self) -> bool {
        self.any
    }

    pub fn features(&self) -> impl Iterator<Item = Feature> {
        self.features.iter().copied()
    }

    /// Ids of stored objects that the content refers to.
    pub fn references(&self) -> impl Iterator<Item = &str> {
        self.references.iter().map(String::as_str)
    }

    /// It begins or continues a thread that is kept at the provider.
    pub fn thread(&self) -> bool {
        self.thread
    }

    pub fn stream(&self) -> bool {
        self.stream
    }

    pub fn cost(&self) -> CostFacts {
        self.cost
    }

    /// Part of the input is not in the body, so it is counted as the model's whole context: it is
    /// kept at the provider, or stands where its size cannot be seen.
    pub fn may_fill_context(&self) -> bool {
        self.cost.unseen
            || self.features.contains(&Feature::StoredObjects)
            || self.thread
            || !self.references.is_empty()
    }

    pub(super) fn feature(&mut self, feature: Feature) {
        if !self.features.contains(&feature) {
            self.features.push(feature);
        }
    }
}
