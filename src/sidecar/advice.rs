//! Warnings about settings that are valid and probably a mistake, such as a grant that has expired.
//! They are given by `--check`, at the start and with each reload; none makes the file refused.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use crate::sidecar::config::SidecarConfig;
use crate::sidecar::credential::secret::Source;
use crate::sidecar::policy::{Grant, Policy};

/// All warnings about a configuration, each with its place in the file.
pub fn on(config: &SidecarConfig, policy: &Policy) -> Vec<String> {
    let mut all = Vec::new();
    if policy.grants.is_empty() {
        all.push("`permissionGrants`: there is none, so every request is refused".to_owned());
    }
    let mut seen = BTreeMap::new();
    for (i, grant) in policy.grants.iter().enumerate() {
        let place = format!("permissionGrants[{i}]");
        all.extend(
            of_grant(grant)
                .into_iter()
                .map(|what| format!("`{place}`: {what}")),
        );
        if let Some(first) = seen.insert(grant.to_string(), i) {
            all.push(format!(
                "`{place}`: says the same as `permissionGrants[{first}]`, and shares its limits"
            ));
        }
    }
    for provider in policy.providers.values() {
        if let Some(Source::File { name, key }) = &provider.secret {
            let file = config.secrets_dir.join(name).join(key);
            let place = format!("aiProviders.{}.secretRef", provider.name);
            match std::fs::metadata(&file) {
                Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o007 != 0 => {
                    all.push(format!("`{place}`: every user can read or change `{}`; give it to the sidecar's user alone", file.display()));
                }
                Ok(meta) if meta.is_file() => {}
                _ => all.push(format!("`{place}`: `{}` is not there yet; until it is, requests are refused with `secret_missing`", file.display())),
            }
        }
    }
    all
}

fn of_grant(grant: &Grant) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(ended) = grant.expires.filter(|end| *end <= jiff::Timestamp::now()) {
        all.push(format!("ended at {ended}, and allows nothing"));
    }
    let Some(scope) = &grant.glob else { return all };
    for (i, model) in grant.models.iter().enumerate() {
        // Two patterns can meet in many ways; a plain name is granted or it is not.
        if !model.as_str().contains('*') && !scope.matches(model.as_str()) {
            all.push(format!(
                "`models[{i}]` is `{}`, which the scope's `{}` does not cover: it is never granted",
                model.as_str(),
                scope.as_str()
            ));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use crate::sidecar::config::Loaded;
    use crate::sidecar::config::read::parse;

    #[test]
    fn what_is_hardly_meant_is_told() {
        let text = "secretsDir: /nowhere\naiProviders: {anthropic: {secretRef: {name: a, key: k}}}\npermissionGrants:\n  - {scope: 'ai.anthropic:claude-opus*', models: [claude-sonnet-5-5, 'claude-*'], expires: 2020-01-01T00:00:00Z}\n  - scope: ai.anthropic\n  - scope: ai.anthropic\n";
        let Loaded { config, policy } = parse(text).unwrap();
        let said = super::on(&config, &policy);
        let has = |words: &str| said.iter().any(|s| s.contains(words));
        assert!(
            has("`permissionGrants[0]`: ended at 2020")
                && has("`models[0]` is `claude-sonnet-5-5`")
                && has("/nowhere/a/k"),
            "{said:#?}"
        );
        assert!(
            has("`permissionGrants[2]`: says the same as `permissionGrants[1]`"),
            "{said:#?}"
        );
        assert_eq!(said.len(), 4, "{said:#?}");
        let Loaded { config, policy } = parse("aiProviders: {ollama: {}}\n").unwrap();
        assert_eq!(
            super::on(&config, &policy),
            ["`permissionGrants`: there is none, so every request is refused"]
        );
    }
}
