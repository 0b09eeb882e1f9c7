//! Step 4 of a request: may this session call this model?
//!
//! Grammar: `ai.<provider>` or `ai.<provider>:<glob>`; `*` is the only wildcard, anchored,
//! case-sensitive. No grant, nothing allowed. A [`Permit`] can be made here only, and no
//! request can be signed without one.

use std::fmt;
use std::sync::Arc;

use crate::base::settings::shown;
use crate::sidecar::config::{Policy, ProviderConfig};
use crate::sidecar::known_objects::KnownObjects;
use crate::sidecar::provider::registry::Feature;
use crate::sidecar::refusal::{Code, Refusal};
use crate::sidecar::steps::limit::{Limiter, Limits};
use crate::sidecar::steps::model::RequestFacts;

/// `claude-*`: literal text with `*` for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    text: String,
    /// The same, to label metrics with.
    label: &'static str,
}

impl Glob {
    /// # Errors
    /// When it is empty or holds what no model id can hold.
    pub fn parse(text: &str) -> Result<Glob, String> {
        let fine = |b: u8| b"*#".contains(&b) || crate::sidecar::steps::model::is_id_byte(b);
        if text.is_empty() || text.len() > 256 || !text.bytes().all(fine) {
            return Err(format!(
                "{} is not a model glob of letters, digits, `._:/@+-~#` and `*`",
                shown(text)
            ));
        }
        Ok(Glob {
            text: text.to_owned(),
            label: crate::sidecar::metrics::label(text),
        })
    }

    /// Linear in the model's length for every pattern: only the last `*` is ever retried.
    pub fn matches(&self, model: &str) -> bool {
        let (p, s) = (self.text.as_bytes(), model.as_bytes());
        let (mut i, mut j, mut star) = (0, 0, None);
        while j < s.len() {
            if p.get(i) == Some(&b'*') {
                star = Some((i, j));
                i += 1;
            } else if p.get(i) == Some(&s[j]) {
                i += 1;
                j += 1;
            } else if let Some((at, from)) = star {
                star = Some((at, from + 1));
                i = at + 1;
                j = from + 1;
            } else {
                return false;
            }
        }
        p[i..].iter().all(|&b| b == b'*')
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn is_any(&self) -> bool {
        self.text.bytes().all(|b| b == b'*')
    }
}

/// One line of `permissionGrants`.
#[derive(Debug)]
pub struct Grant {
    /// As the operator wrote it.
    pub scope: String,
    pub provider: String,
    /// The scope's own glob; a model must match it and, where there are any, one of `models`.
    pub glob: Option<Glob>,
    pub models: Vec<Glob>,
    pub allow: Vec<Feature>,
    pub expires: Option<jiff::Timestamp>,
    pub limits: Limits,
    pub limiter: Arc<Limiter>,
}

/// Splits a scope into its provider and glob.
///
/// # Errors
/// What is wrong with it and what is allowed.
pub fn parse(scope: &str) -> Result<(String, Option<Glob>), String> {
    let wrong = || {
        format!(
            "{} is not `ai.<provider>` or `ai.<provider>:<model glob>`",
            shown(scope)
        )
    };
    let rest = scope.strip_prefix("ai.").ok_or_else(wrong)?;
    let (provider, glob) = match rest.split_once(':') {
        Some((provider, glob)) => (provider, Some(glob)),
        None => (rest, None),
    };
    if !is_provider_name(provider) {
        return Err(wrong());
    }
    Ok((provider.to_owned(), glob.map(Glob::parse).transpose()?))
}

/// A provider's name is a path segment, a label and a scope part: lower-case and plain.
pub fn is_provider_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

impl Grant {
    pub fn covers(&self, model: &str) -> bool {
        self.glob.as_ref().is_none_or(|g| g.matches(model))
            && (self.models.is_empty() || self.models.iter().any(|g| g.matches(model)))
    }

    /// Does it cover every model there is?
    fn is_unlimited(&self) -> bool {
        self.glob.as_ref().is_none_or(Glob::is_any)
            && (self.models.is_empty() || self.models.iter().any(Glob::is_any))
    }

    fn names(&self, model: &str) -> bool {
        self.glob
            .iter()
            .chain(&self.models)
            .any(|g| g.as_str() == model)
    }

    fn is_live(&self, now: jiff::Timestamp) -> bool {
        self.expires.is_none_or(|e| now < e)
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.models.is_empty() {
            return f.write_str(&self.scope);
        }
        let names: Vec<&str> = self.models.iter().map(Glob::as_str).collect();
        write!(f, "{} ({})", self.scope, names.join(", "))
    }
}

/// Proof that every model of a request is granted. Holds the policy it was decided on, so a
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
    /// Refuses the request if its only fault is the thread. Asked after the budget, so that a
    /// client which sends it again without a thread does so once.
    ///
    /// # Errors
    /// `scope_denied`, in the form by which the client falls back.
    pub fn thread(&mut self) -> Result<(), Refusal> {
        self.unthreaded.take().map_or(Ok(()), Err)
    }

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

impl Policy {
    fn live_grants<'a>(&'a self, provider: &'a str) -> impl Iterator<Item = (usize, &'a Grant)> {
        let now = jiff::Timestamp::now();
        self.grants
            .iter()
            .enumerate()
            .filter(move |(_, g)| g.provider == provider && g.is_live(now))
    }
}

/// Decides on everything that the request asks for.
///
/// # Errors
/// `scope_denied`, naming what is granted and what would be needed.
pub fn check(
    policy: &Arc<Policy>,
    provider: &str,
    facts: &RequestFacts,
    known: &KnownObjects,
) -> Result<Permit, Refusal> {
    let mut grants = Vec::new();
    let features = features(provider, facts, known);
    let config = policy.providers.get(provider);
    for model in facts.models() {
        let opaque = config.is_some_and(|p| (p.def.opaque_models)(model));
        let covers = |g: &Grant| {
            if opaque {
                g.is_unlimited() || g.names(model)
            } else {
                g.covers(model)
            }
        };
        // Of several, one that allows what the request uses.
        let allows = |g: &Grant| features.iter().all(|f| g.allow.contains(f));
        let covering = || policy.live_grants(provider).filter(|(_, g)| covers(g));
        let covering = covering()
            .find(|(_, g)| allows(g))
            .or_else(|| covering().next());
        let Some((i, _)) = covering else {
            return Err(denied(policy, provider, Some(model)));
        };
        if !grants.contains(&i) {
            grants.push(i);
        }
    }
    if facts.any_model() {
        // The grant that allows it is the one that pays.
        let allows = |g: &Grant| features.iter().all(|f| g.allow.contains(f));
        let unlimited = || {
            policy
                .live_grants(provider)
                .filter(|(_, g)| g.is_unlimited())
        };
        match unlimited()
            .find(|(_, g)| allows(g))
            .or_else(|| unlimited().next())
        {
            Some((i, _)) if !grants.contains(&i) => grants.push(i),
            Some(_) => {}
            None => return Err(chosen(policy, provider)),
        }
    }
    if grants.is_empty() {
        // An endpoint without a model (a list of models): any grant of the provider will do.
        match policy.live_grants(provider).next() {
            Some((i, _)) => grants.push(i),
            None => return Err(denied(policy, provider, None)),
        }
    }
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
        let policy = crate::sidecar::config::parse(text).unwrap().policy;
        let said = |model: &str| denied(&policy, "anthropic", Some(model)).message;
        assert!(said("claude-x").contains("(the grant `ai.anthropic:claude-*` ended at 2020-01-01T00:00:00Z); granted: nothing"), "{}", said("claude-x"));
        assert!(!said("other").contains("ended"));
    }

    /// The definition, by trying every way to fill each `*`.
    fn naive(p: &[u8], s: &[u8]) -> bool {
        match p.split_first() {
            None => s.is_empty(),
            Some((b'*', rest)) => (0..=s.len()).any(|n| naive(rest, &s[n..])),
            Some((c, rest)) => s.first() == Some(c) && naive(rest, &s[1..]),
        }
    }

    fn words(alphabet: &[u8], longest: usize) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut from = 0;
        for _ in 0..longest {
            let end = all.len();
            for i in from..end {
                for &c in alphabet {
                    all.push(format!("{}{}", all[i], c as char));
                }
            }
            from = end;
        }
        all
    }

    #[test]
    fn globs_agree_with_their_definition() {
        let mut pairs = 0;
        for p in words(b"ab*", 6).iter().filter(|p| !p.is_empty()) {
            let glob = Glob::parse(p).unwrap();
            for s in words(b"ab", 7) {
                assert_eq!(
                    glob.matches(&s),
                    naive(p.as_bytes(), s.as_bytes()),
                    "{p} {s}"
                );
                pairs += 1;
            }
        }
        assert!(pairs > 200_000);
    }

    #[test]
    fn globs_are_linear_anchored_and_case_sensitive() {
        let g = |p: &str, s: &str| Glob::parse(p).unwrap().matches(s);
        assert!(
            g("claude-*", "claude-sonnet-5")
                && !g("claude-*", "xclaude-5")
                && !g("claude-*", "Claude-5")
        );
        assert!(!g("gpt-4", "gpt-4o") && !g("gpt-4o", "gpt-4"));
        let long = "a".repeat(256);
        assert!(!g(
            &"*a"
                .repeat(100)
                .chars()
                .chain("b".chars())
                .collect::<String>(),
            &long
        ));
    }

    #[test]
    fn widening_typos_are_no_scopes() {
        let cases = [
            "ai.*",
            "ai.",
            "ai",
            "anthropic",
            "ai.anthropic:",
            "ai.Anthropic",
            "ai.openai:gpt-*,gpt-5",
            "ai.openai: gpt",
            "ai.openai:gpt\n",
            "ai.openai:[ab]",
            "ai.a/b",
            " ai.openai",
            "ai.openai:gpt?",
        ];
        for bad in cases {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(
            parse("ai.openai:gpt-*").unwrap(),
            ("openai".into(), Some(Glob::parse("gpt-*").unwrap()))
        );
        assert_eq!(parse("ai.my-own").unwrap(), ("my-own".into(), None));
    }
}
