//! Step 5 of a request: may this session call this model?
//!
//! Grammar: `ai.<provider>` or `ai.<provider>:<glob>`; `*` is the only wildcard, anchored,
//! case-sensitive. No grant, nothing allowed. A [`Permit`] can be made here only, and no
//! request can be signed without one.

use std::sync::Arc;

use crate::sidecar::known_objects::KnownObjects;
use crate::sidecar::policy::{Grant, Policy, ProviderConfig};
use crate::sidecar::provider::Feature;
use crate::sidecar::record::{AuditRecord, Describe};
use crate::sidecar::refusal::{Code, Refusal};
use crate::sidecar::steps::model::Read;
use crate::sidecar::steps::model::facts::RequestFacts;

/// Proof that all that a request asks for is granted.
#[derive(Debug)]
pub struct Permitted {
    read: Read,
    permit: Permit,
}

impl Permitted {
    pub fn read(&self) -> &Read {
        &self.read
    }

    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Refuses the request if its only fault is the thread. Asked after the budget, so that a
    /// client which sends it again without a thread does so once.
    ///
    /// # Errors
    /// `scope_denied`, in the form by which the client falls back.
    pub fn thread(&mut self) -> Result<(), Refusal> {
        self.permit.unthreaded.take().map_or(Ok(()), Err)
    }

    pub fn into_parts(self) -> (Read, Permit) {
        (self.read, self.permit)
    }
}

impl Describe for Permitted {
    fn describe(&self, record: &mut AuditRecord) {
        record.scope_matched = self.permit.scope_matched().map(str::to_owned);
        record.labels.model = self.permit.model_label(self.read.facts().main_model());
    }
}

/// By which grants a request is allowed. Holds the policy it was decided on, so a
/// reload in between changes nothing half-way.
#[derive(Debug)]
pub struct Permit {
    policy: Arc<Policy>,
    provider: Arc<ProviderConfig>,
    /// The grants that cover the request's models, the main model's first.
    grants: Vec<usize>,
    /// Why the request must be sent again without its thread.
    unthreaded: Option<Refusal>,
}

impl Permit {
    pub fn provider(&self) -> &Arc<ProviderConfig> {
        &self.provider
    }

    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.grants
            .iter()
            .filter_map(|&i| self.policy.grants.get(i))
    }

    /// What metrics call the model: the pattern of the grant that covers it, so that no client can
    /// make up a name.
    pub fn model_label(&self, model: Option<&str>) -> Option<&'static str> {
        let grant = self.grants().next()?;
        let model = model?;
        let pattern = grant
            .models
            .iter()
            .find(|g| g.matches(model))
            .or(grant.glob.as_ref());
        Some(pattern.map_or("*", |g| g.label))
    }

    pub fn scope_matched(&self) -> Option<&str> {
        self.grants().next().map(|g| g.scope.as_str())
    }

    /// May this session see that the provider has this model?
    pub fn shows(&self, model: &str) -> bool {
        self.policy
            .live_grants(&self.provider.name)
            .any(|(_, g)| g.covers(model))
    }
}

/// Decides on everything that the request asks for.
///
/// # Errors
/// `scope_denied`, naming what is granted and what would be needed.
pub fn check(policy: &Arc<Policy>, read: Read, known: &KnownObjects) -> Result<Permitted, Refusal> {
    let permit = decide(policy, read.routed().provider(), read.facts(), known)?;
    Ok(Permitted { read, permit })
}

fn decide(
    policy: &Arc<Policy>,
    provider: &str,
    facts: &RequestFacts,
    known: &KnownObjects,
) -> Result<Permit, Refusal> {
    let features = features(provider, facts, known);
    let config = policy.providers.get(provider);
    let grants = covering(policy, provider, facts, &features)?;
    for feature in features {
        if !grants
            .iter()
            .all(|&i| policy.grants[i].allow.contains(&feature))
        {
            let name = feature.name();
            return Err(Refusal::new(Code::ScopeDenied, format!("the request uses `{name}` of provider `{provider}`, which no grant of this session allows"))
                .hint(format!("leave it out, or ask an operator to add `allow: [{name}]` to the grant"))
                .needing(format!("ai.{provider} allow {name}")));
        }
    }
    let Some(config) = config else {
        return Err(denied(policy, provider, facts.models().next()));
    };
    let thread = facts.thread()
        && !grants
            .iter()
            .all(|&i| policy.grants[i].allow.contains(&Feature::StoredObjects));
    Ok(Permit {
        policy: policy.clone(),
        provider: config.clone(),
        grants,
        unthreaded: thread.then(|| no_threads(provider)),
    })
}

/// The grants that cover the models of the request, the main model's first. Of several that cover
/// a model, it is one that allows the features of the request: the grant that allows also pays.
fn covering(
    policy: &Policy,
    provider: &str,
    facts: &RequestFacts,
    features: &[Feature],
) -> Result<Vec<usize>, Refusal> {
    let first = |covers: &dyn Fn(&Grant) -> bool| {
        let live = || policy.live_grants(provider).filter(|(_, g)| covers(g));
        let allows = |g: &Grant| features.iter().all(|f| g.allow.contains(f));
        let found = live().find(|(_, g)| allows(g)).or_else(|| live().next());
        found.map(|(i, _)| i)
    };
    let config = policy.providers.get(provider);
    let mut grants = Vec::new();
    let add = |grants: &mut Vec<usize>, grant| {
        if !grants.contains(&grant) {
            grants.push(grant);
        }
    };
    for model in facts.models() {
        let opaque = config.is_some_and(|p| (p.def.opaque_models)(model));
        let covers = |g: &Grant| match opaque {
            true => g.is_unlimited() || g.names(model),
            false => g.covers(model),
        };
        let denied = || denied(policy, provider, Some(model));
        add(&mut grants, first(&covers).ok_or_else(denied)?);
    }
    if facts.any_model() {
        let chosen = || chosen(policy, provider);
        add(&mut grants, first(&Grant::is_unlimited).ok_or_else(chosen)?);
    }
    if grants.is_empty() {
        // An endpoint without a model (a list of models): any grant of the provider will do.
        let any = policy.live_grants(provider).next();
        grants.push(any.ok_or_else(|| denied(policy, provider, None))?.0);
    }
    Ok(grants)
}

/// The tool runners of Anthropic's libraries keep their conversation in a thread at the provider,
/// and send it whole instead when they are told so with this code.
fn no_threads(provider: &str) -> Refusal {
    let mut refusal = Refusal::new(
        Code::ScopeDenied,
        format!("the request keeps its conversation in a thread of provider `{provider}`, which no grant of this session allows"),
    )
    .hint("send the conversation without `thread`, or ask an operator to add `allow: [stored_objects]` to the grant")
    .needing(format!("ai.{provider} allow {}", Feature::StoredObjects.name()));
    refusal.detail = Some("thread_unsupported_request");
    refusal
}

/// What the request uses beyond models. Objects that this sidecar's own replies named are free to
/// be named again.
fn features(provider: &str, facts: &RequestFacts, known: &KnownObjects) -> Vec<Feature> {
    let mut features: Vec<Feature> = facts.features().collect();
    if !features.contains(&Feature::StoredObjects)
        && facts.references().any(|id| !known.knows(provider, id))
    {
        features.push(Feature::StoredObjects);
    }
    features
}

fn chosen(policy: &Policy, provider: &str) -> Refusal {
    Refusal::new(Code::ScopeDenied, format!("the request lets provider `{provider}` choose the model, and the grants name models; granted: {}", granted(policy)))
        .hint(format!("name the model, or ask an operator to grant `ai.{provider}`"))
        .needing(format!("ai.{provider}"))
}

fn denied(policy: &Policy, provider: &str, model: Option<&str>) -> Refusal {
    let needed = match model {
        Some(model) => format!("ai.{provider}:{model}"),
        None => format!("ai.{provider}"),
    };
    let what = match model {
        Some(model) => {
            format!("model `{model}` of provider `{provider}` is not granted to this session")
        }
        None => format!("provider `{provider}` is not granted to this session"),
    };
    let ended = ended(policy, provider, model).map_or_else(String::new, |(grant, end)| {
        format!(" (the grant `{grant}` ended at {end})")
    });
    Refusal::new(
        Code::ScopeDenied,
        format!("{what}{ended}; granted: {}", granted(policy)),
    )
    .hint(format!("ask an operator to grant `{needed}`"))
    .needing(needed)
}

/// A grant that would have allowed it, and when it ended.
fn ended<'a>(
    policy: &'a Policy,
    provider: &str,
    model: Option<&str>,
) -> Option<(&'a Grant, jiff::Timestamp)> {
    let now = jiff::Timestamp::now();
    let covers = |grant: &&Grant| {
        grant.provider == provider
            && !grant.is_live(now)
            && model.is_none_or(|model| grant.covers(model))
    };
    policy
        .grants
        .iter()
        .find(covers)
        .and_then(|grant| Some((grant, grant.expires?)))
}

fn granted(policy: &Policy) -> String {
    let now = jiff::Timestamp::now();
    let live: Vec<String> = policy
        .grants
        .iter()
        .filter(|g| g.is_live(now))
        .map(|g| format!("`{g}`"))
        .collect();
    if live.is_empty() {
        "nothing".into()
    } else {
        live.join(", ")
    }
}

impl Refusal {
    fn needing(mut self, scope: String) -> Self {
        self.scope_needed = Some(scope);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_grant_that_has_ended() {
        let text = "aiProviders: {anthropic: {secretRef: {name: a, key: k}}}\npermissionGrants: [{scope: 'ai.anthropic:claude-*', expires: 2020-01-01T00:00:00Z}]\n";
        let policy = crate::sidecar::config::read::parse(text).unwrap().policy;
        let said = |model: &str| denied(&policy, "anthropic", Some(model)).message;
        assert!(said("claude-x").contains("(the grant `ai.anthropic:claude-*` ended at 2020-01-01T00:00:00Z); granted: nothing"), "{}", said("claude-x"));
        assert!(!said("other").contains("ended"));
    }
}
