//! The grants of `sidecar.yaml`.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::base::settings;
use crate::base::settings::section::Section;
use crate::base::settings::shown;
use crate::sidecar::ledger::state::grant_id;
use crate::sidecar::policy;
use crate::sidecar::policy::{Glob, Grant, Limits};
use crate::sidecar::provider::Feature;

pub(super) fn grants(root: &mut Section, providers: Option<&BTreeSet<String>>) -> Vec<Grant> {
    root.sections("permissionGrants")
        .into_iter()
        .filter_map(|mut s| grant(&mut s, providers))
        .collect()
}

pub(super) fn expiry(s: &mut Section) -> Option<jiff::Timestamp> {
    let value = s.value("expires")?;
    let text = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    let parsed = text.parse().ok();
    if parsed.is_none() {
        let day = text.get(..10).unwrap_or(&text);
        let is_day = day.len() == 10
            && day.bytes().enumerate().all(|(i, b)| {
                if i == 4 || i == 7 {
                    b == b'-'
                } else {
                    b.is_ascii_digit()
                }
            });
        let why = match day.parse::<jiff::civil::Date>() {
            Ok(_) if text == day => ": the time of day is missing",
            Err(_) if is_day => ": there is no such day",
            _ => "",
        };
        s.add(
            "expires",
            format!(
                "{} is not a time such as `2027-01-31T00:00:00Z`{why}",
                shown(&text)
            ),
        );
    }
    parsed
}

/// `providers`: the names that may stand in a scope; `None` where the file's list is itself wrong.
pub(super) fn grant(s: &mut Section, providers: Option<&BTreeSet<String>>) -> Option<Grant> {
    let scope_text = s.required("scope", "`ai.anthropic` or `ai.openai:gpt-*`");
    let models = s.items("models");
    let allow = s.items("allow").unwrap_or_default();
    let expires = expiry(s);
    let limits = s.section("limits").map(|mut l| Limits {
        requests_per_minute: l
            .integer("requestsPerMinute", 1, 1_000_000)
            .map(|n| n as u32),
        concurrent: l.integer("concurrent", 1, 100_000).map(|n| n as u32),
        tokens_per_day: l.integer("tokensPerDay", 1, u64::MAX),
        usd_per_session: l.positive("usdPerSession"),
    });
    let scope_text = scope_text?;
    let parsed = policy::parse_scope(&scope_text)
        .map_err(|e| s.add("scope", e))
        .ok();
    if models.as_ref().is_some_and(Vec::is_empty) {
        s.add(
            "models",
            "is an empty list, which grants nothing; leave it out to grant every model",
        );
    }
    let mut globs = Vec::new();
    for (place, model) in models.unwrap_or_default() {
        match Glob::parse(&model) {
            Ok(g) => globs.push(g),
            Err(e) => s.add(&place, e),
        }
    }
    let mut features = Vec::new();
    for (place, name) in &allow {
        match Feature::ALL.into_iter().find(|f| f.name() == name) {
            Some(f) => features.push(f),
            None => {
                let known: Vec<String> = Feature::ALL
                    .iter()
                    .map(|f| format!("`{}`", f.name()))
                    .collect();
                let meant = settings::did_you_mean(name, Feature::ALL.iter().map(|f| f.name()));
                s.add(
                    place,
                    format!("{} is not one of {}{meant}", shown(name), known.join(", ")),
                );
            }
        }
    }
    let (provider, glob) = parsed?;
    if let Some(names) = providers.filter(|names| !names.contains(&provider)) {
        let meant = settings::did_you_mean(&provider, names.iter().map(String::as_str));
        let known: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
        let known = if known.is_empty() {
            "none".into()
        } else {
            known.join(", ")
        };
        s.add(
            "scope",
            format!("provider `{provider}` is not configured{meant}; configured: {known}"),
        );
    }
    let limits = limits.unwrap_or_default();
    let mut grant = Grant {
        scope: scope_text,
        provider,
        glob,
        models: globs,
        allow: features,
        expires,
        limits,
        ledger_id: Arc::default(),
    };
    grant.ledger_id = grant_id(&grant.to_string());
    Some(grant)
}
