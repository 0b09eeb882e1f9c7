//! The providers of `sidecar.yaml`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hyper::http::uri::{Scheme, Uri};

use crate::base::settings;
use crate::base::settings::section::Section;
use crate::base::settings::{looks_like_a_key, shown};
use crate::sidecar::policy::{BaseUrl, ProviderConfig, is_loopback};
use crate::sidecar::provider::{Auth, registry};
use crate::sidecar::{credential, policy};

/// Returns the providers that can be used, and the names of all providers in the file. A grant may
/// name a provider that is itself wrong: that is reported once, for the provider. The names are
/// `None` where `aiProviders` is not a mapping.
pub(super) fn providers(
    root: &mut Section,
) -> (
    BTreeMap<String, Arc<ProviderConfig>>,
    Option<BTreeSet<String>>,
) {
    let (mut all, mut named) = (BTreeMap::new(), BTreeSet::new());
    for (name, mut section) in root.entries("aiProviders") {
        match provider(&name, &mut section) {
            Some(p) => _ = all.insert(name.clone(), Arc::new(p)),
            // A misspelt name stands for what was meant.
            None => named.extend(
                settings::nearest(&name, registry::PROVIDERS.iter().map(|p| p.kind))
                    .map(str::to_owned),
            ),
        }
        named.insert(name);
    }
    (all, (!root.is_mistyped("aiProviders")).then_some(named))
}

pub(super) fn provider(name: &str, section: &mut Section) -> Option<ProviderConfig> {
    let kind = section.string("kind");
    let def = registry::find(kind.as_deref().unwrap_or(name));
    let base = section.string("baseUrl");
    let secret = secret_source(section);
    let endpoints = section.items("endpoints").unwrap_or_default();
    let org = section.string("org");
    let project = section.string("project");
    if section.is_no_mapping() {
        return None;
    }
    if !policy::is_provider_name(name) {
        section.add(
            "",
            format!(
                "{} is not a provider name of lower-case letters, digits, `-` and `_`",
                shown(name)
            ),
        );
        return None;
    }
    let Some(def) = def else {
        let kinds: Vec<String> = registry::PROVIDERS
            .iter()
            .map(|p| format!("`{}`", p.kind))
            .collect();
        let (key, value) = match &kind {
            Some(kind) => ("kind", kind.as_str()),
            None => ("", name),
        };
        let meant = settings::did_you_mean(value, registry::PROVIDERS.iter().map(|p| p.kind));
        section.add(key, format!("{} is not a provider of this version{meant}; known: {}\nhint: any other that speaks OpenAI's chat API works with `kind: openai-compatible` and a `baseUrl`", shown(value), kinds.join(", ")));
        return None;
    };
    if kind.as_deref() != Some(def.kind) && registry::find(name).is_some_and(|p| p.kind != def.kind)
    {
        section.add("kind", format!("`{name}` is the name of another provider"));
    }
    let base = match (base.as_deref(), def.base_url) {
        (Some(url), _) => base_url(url, true)
            .map_err(|e| section.add("baseUrl", e))
            .ok()?,
        (None, Some(url)) => base_url(url, def.local).ok()?,
        (None, None) => {
            section.add(
                "baseUrl",
                format!(
                    "is needed for `{}`, such as `https://llm.example.com/v1`",
                    def.kind
                ),
            );
            return None;
        }
    };
    if secret.is_none()
        && !section.is_wrong("secretRef")
        && !section.is_wrong("credential")
        && def.auth != Auth::OptionalBearer
    {
        section.add("secretRef", "the provider's key is needed: `secretRef: { name: …, key: … }`, or `credential: { command: […], ttl: 60s }`");
    }
    let mut headers = Vec::new();
    for (key, name, value) in [
        ("org", "openai-organization", org),
        ("project", "openai-project", project),
    ] {
        let Some(value) = value else { continue };
        if def.kind != "openai" && def.kind != "openai-compatible" {
            section.add(
                key,
                format!("is a setting of OpenAI's API only, not of `{}`", def.kind),
            );
        }
        match hyper::header::HeaderValue::from_str(&value) {
            Ok(v) => headers.push((name, v)),
            Err(_) => section.add(key, format!("{} cannot stand in a header", shown(&value))),
        }
    }
    for (place, name) in &endpoints {
        let optional: Vec<&str> = def
            .endpoints
            .iter()
            .filter(|e| e.optional)
            .map(|e| e.name)
            .collect();
        if !optional.contains(&name.as_str()) {
            let known = if optional.is_empty() {
                "none".into()
            } else {
                format!("`{}`", optional.join("`, `"))
            };
            let meant = settings::did_you_mean(name, optional.iter().copied());
            section.add(
                place,
                format!(
                    "{} is not an optional endpoint of `{}`{meant}; optional: {known}",
                    shown(name),
                    def.kind
                ),
            );
        }
    }
    let endpoints = endpoints.into_iter().map(|(_, name)| name).collect();
    Some(ProviderConfig {
        name: name.to_owned(),
        label: crate::base::intern::label(name),
        def,
        base,
        secret,
        endpoints,
        headers,
    })
}

pub(super) fn secret_source(section: &mut Section) -> Option<credential::Source> {
    let file = section.section("secretRef").and_then(|mut s| {
        let (name, key) = (s.required("name", "`anthropic`: a directory in `secretsDir`"), s.required("key", "`api-key`: a file in that directory"));
        let checked = |field: &'static str, value: Option<String>| {
            let value = value?;
            if looks_like_a_key(&value) {
                s.add(field, "holds what looks like the key itself (it is not shown)\nhint: write the key into a file `<secretsDir>/<name>/<key>`, name that file here, and take the key out of this file");
                None
            } else if !credential::is_file_name(&value) {
                s.add(field, format!("{} is not the plain name of a file: letters, digits, `.`, `_` and `-`", shown(&value)));
                None
            } else {
                Some(value)
            }
        };
        let (name, key) = (checked("name", name), checked("key", key));
        Some(credential::Source::File { name: name?, key: key? })
    });
    let command = section.section("credential").and_then(|mut s| {
        let ttl = s.duration("ttl").unwrap_or(Duration::from_secs(300));
        match s.strings("command") {
            Some(command) if !command.is_empty() => Some(credential::Source::Command { command, ttl }),
            _ => {
                if !s.is_troubled() {
                    s.add("command", "is needed: a list of the program and its arguments, such as `[vault, read, -field=key, secret/anthropic]`");
                }
                None
            }
        }
    });
    if file.is_some() && command.is_some() {
        section.add(
            "credential",
            "stands beside `secretRef`, and a key comes from one place: leave one of them out",
        );
    }
    file.or(command)
}

/// # Errors
/// What is wrong with it.
pub fn base_url(url: &str, own: bool) -> Result<BaseUrl, String> {
    let wrong = || {
        format!(
            "{} is not a URL such as `https://llm.example.com/v1`",
            shown(url)
        )
    };
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let (Some(scheme), Some(authority)) = (uri.scheme().cloned(), uri.authority().cloned()) else {
        return Err(wrong());
    };
    let path = uri.path().trim_end_matches('/').to_owned();
    let plain_path = path
        .bytes()
        .all(|b| b == b'/' || crate::sidecar::id::is_id_byte(b))
        && !path.contains("..")
        && !path.contains("//");
    if uri.query().is_some() || authority.as_str().contains('@') || !plain_path || url.contains('#')
    {
        return Err(format!(
            "{}: a user, a password, a query and a fragment are not allowed",
            wrong()
        ));
    }
    if scheme == Scheme::HTTP && !is_loopback(authority.host()) {
        return Err(format!(
            "{} would send keys and prompts in the clear: `http://` is for loopback addresses only, use `https://`",
            shown(url)
        ));
    }
    if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
        return Err(wrong());
    }
    Ok(BaseUrl {
        scheme,
        authority,
        path,
        operator_defined: own,
    })
}
