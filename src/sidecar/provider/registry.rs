//! The list of providers.
//!
//! A new provider is one file beside this one and one line in [`PROVIDERS`] (a test compares
//! the two). Nothing else in the sidecar knows a provider's name.

use super::{Provider, anthropic, compatible, google, ollama, openai, openrouter};

/// Every provider this version speaks to. The order decides between providers that offer
/// the same bare path.
pub static PROVIDERS: &[&Provider] = &[
    &anthropic::PROVIDER,
    &openai::PROVIDER,
    &google::PROVIDER,
    &openrouter::PROVIDER,
    &ollama::PROVIDER,
    &compatible::GROQ,
    &compatible::MISTRAL,
    &compatible::XAI,
    &compatible::DEEPSEEK,
    &compatible::TOGETHER,
    &compatible::FIREWORKS,
    &compatible::CEREBRAS,
    &compatible::GENERIC,
];

/// The provider of this `kind` (which is also the name it has when none is given).
pub fn find(kind: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().copied().find(|p| p.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sidecar::provider::{ModelPlace, Verb};
    use std::collections::BTreeSet;

    #[test]
    fn kinds_and_endpoint_names_are_unique() {
        let mut kinds = BTreeSet::new();
        for p in PROVIDERS {
            assert!(kinds.insert(p.kind), "{}", p.kind);
            let mut paths = BTreeSet::new();
            for e in p.endpoints {
                assert!(!e.name.is_empty() && !e.paths.is_empty() && !e.upstream.is_empty());
                assert_eq!(
                    e.body.model == ModelPlace::NoBody,
                    e.method == Verb::Get,
                    "{} {}",
                    p.kind,
                    e.name
                );
                for path in e.paths {
                    assert!(
                        paths.insert((*path, e.method == Verb::Get)),
                        "{} {path}",
                        p.kind
                    );
                }
            }
        }
    }
}
