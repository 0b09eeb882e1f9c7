//! Reads the sections `agents` and `project`, which have the format that users of Fracta know.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::adapter::config::Flags;
use crate::adapter::config::model::Agent;
use crate::adapter::runtime::{Env, Mcp, registry};
use crate::base::settings::section::Section;
use crate::base::settings::{Problems, did_you_mean, shown};

pub(super) fn agents(
    root: &mut Section,
    warnings: &mut Vec<String>,
) -> (Option<String>, bool, BTreeMap<String, Agent>) {
    let mut agents = BTreeMap::new();
    let Some(mut section) = root.section("agents") else {
        return (None, false, agents);
    };
    let mut credentials = Vec::new();
    for key in [
        "authOrigins",
        "runtimeAuthResolvers",
        "authBindings",
        "authProfiles",
        "defaultBinding",
    ] {
        credentials.extend(section.value(key).map(|_| format!("agents.{key}")));
    }
    let chosen = section.string("defaultRuntime");
    let batch = section
        .choice("defaultMode", &[("stream", false), ("batch", true)])
        .unwrap_or(false);
    for (name, mut s) in section.entries("agentRuntimes") {
        for key in ["authProfile", "authBinding", "kubernetes"] {
            credentials.extend(s.value(key).map(|_| s.path(key)));
        }
        let agent = Agent {
            adapter: s.string("adapter"),
            model: s.string("model"),
            tiers: s.texts("modelTiers"),
            map: s.texts("modelMap"),
            env: s.texts("env"),
            program: s.string("program"),
        };
        let id = agent.adapter.as_deref().unwrap_or(&name);
        if registry::find(id).is_none() && Some(&name) != chosen.as_ref() {
            // This is not an error: a file from elsewhere can list runtimes that are unknown here.
            warnings.push(format!(
                "`agents.agentRuntimes.{name}` is not used: {}",
                registry::unknown(id)
            ));
        }
        check_models(&s, &agent);
        agents.insert(name, agent);
    }
    if !credentials.is_empty() {
        warnings.push(format!(
            "`{}`: not used here; credentials and pods are the sidecar's and the platform's",
            credentials.join("`, `")
        ));
    }
    (chosen, batch, agents)
}

/// Checks the models in `modelTiers` and `modelMap` now, and not when a session first needs one.
pub(super) fn check_models(s: &Section, agent: &Agent) {
    let is_model = |model: &String| {
        agent.map.contains_key(model)
            || model
                .split_once('/')
                .is_some_and(|(provider, name)| !provider.is_empty() && !name.is_empty())
    };
    for (key, models) in [("modelTiers", &agent.tiers), ("modelMap", &agent.map)] {
        for (name, model) in models.iter().filter(|(_, model)| !is_model(model)) {
            s.add(
                &format!("{key}.{name}"),
                format!(
                    "{} is not a model such as `anthropic/claude-sonnet-5-5`",
                    shown(model)
                ),
            );
        }
    }
}

pub(super) fn project(
    root: &mut Section,
    problems: &Problems,
    env: Env<'_>,
) -> (Vec<String>, BTreeMap<String, Mcp>) {
    let Some(mut project) = root.section("project") else {
        return Default::default();
    };
    let allowed = project.items("allowedTools").unwrap_or_default();
    for (place, tool) in &allowed {
        let (name, pattern) = tool
            .split_once('(')
            .map_or((tool.as_str(), None), |(name, pattern)| {
                (name, Some(pattern))
            });
        if !TOOLS.contains(&name) && !name.starts_with("mcp__") {
            let meant = did_you_mean(name, TOOLS.iter().copied());
            project.add(
                place,
                format!(
                    "{} is not a tool{meant}; known: `{}`, `mcp__<server>__<tool>`",
                    shown(name),
                    TOOLS.join("`, `")
                ),
            );
        } else if pattern.is_some_and(|pattern| !pattern.ends_with(')')) {
            project.add(
                place,
                format!("{} has no `)` at its end, as in `Bash(git *)`", shown(tool)),
            );
        }
    }
    let allowed = allowed.into_iter().map(|(_, tool)| tool).collect();
    let mut servers = BTreeMap::new();
    for (name, mut s) in project.entries("mcpServers") {
        if s.is_no_mapping() {
            continue;
        }
        if name.is_empty()
            || !name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        {
            s.add("", "a tool server's name has letters, digits, `_` and `-`: it stands in the names of its tools");
        }
        let (command, url) = (s.value("command"), s.string("url"));
        let (args, kind) = (s.strings("args").unwrap_or_default(), s.string("type"));
        // These values may be keys: the project is responsible for its tool servers' credentials.
        let vars = |s: &mut Section, key| {
            let texts = s.texts(key);
            expanded(problems, &s.path(key), texts, env)
                .into_iter()
                .collect()
        };
        let server = match (command, url, kind.as_deref()) {
            (Some(Value::String(program)), None, None | Some("stdio" | "local"))
                if !program.is_empty() =>
            {
                Mcp::Local {
                    command: std::iter::once(program).chain(args).collect(),
                    env: vars(&mut s, "env"),
                }
            }
            (Some(Value::Array(words)), None, None | Some("stdio" | "local"))
                if words.iter().all(Value::is_string) && !words.is_empty() =>
            {
                let command = words
                    .iter()
                    .filter_map(|w| w.as_str().map(str::to_owned))
                    .chain(args)
                    .collect();
                Mcp::Local {
                    command,
                    env: vars(&mut s, "env"),
                }
            }
            (None, Some(url), None | Some("http" | "sse" | "remote")) => {
                let is_http = url.parse::<hyper::Uri>().is_ok_and(|uri| {
                    matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
                });
                if !is_http || url.contains('@') {
                    s.add("url", format!("{} is not an address such as `https://tools.example/mcp`, without user and password", shown(&url)));
                }
                Mcp::Remote {
                    url,
                    headers: vars(&mut s, "headers"),
                }
            }
            _ => {
                // These would be right, and are not what is wrong.
                let _known = (s.value("env"), s.value("headers"));
                if !s.is_troubled() {
                    s.add("", "a tool server has either a `command` (with `args` and `env`) or a `url` (with `headers`)");
                }
                continue;
            }
        };
        servers.insert(name, server);
    }
    (allowed, servers)
}

/// Splits the token of `--resume`, `<runtime>:<the CLI's own session id>`, into its two parts.
pub(super) fn resumed(flags: &Flags, problems: &Problems) -> Option<(String, String)> {
    let token = flags.resume.as_ref()?;
    let parts = token
        .split_once(':')
        .filter(|(runtime, id)| registry::find(runtime).is_some() && !id.is_empty());
    if parts.is_none() {
        problems.add(
            "",
            format!(
                "`--resume {token}`: not a token such as `opencode:ses_…`, as `session.end` has it"
            ),
        );
    }
    parts.map(|(runtime, id)| (runtime.to_owned(), id.to_owned()))
}

/// The names of the tools that `allowedTools` can list, in Claude Code's spelling.
pub(super) const TOOLS: [&str; 13] = [
    "Bash",
    "Read",
    "Write",
    "Edit",
    "MultiEdit",
    "NotebookEdit",
    "Glob",
    "Grep",
    "LS",
    "WebFetch",
    "WebSearch",
    "Task",
    "TodoWrite",
];

/// Replaces each value that is exactly `${NAME}` with the environment variable `NAME`. A variable
/// that is not set is reported as a problem.
pub(super) fn expanded(
    problems: &Problems,
    path: &str,
    vars: BTreeMap<String, String>,
    env: Env<'_>,
) -> Vec<(String, String)> {
    let expand = |(name, value): (String, String)| {
        let Some(variable) = value.strip_prefix("${").and_then(|v| v.strip_suffix('}')) else {
            return Some((name, value));
        };
        let found = env(variable);
        if found.is_none() {
            problems.add(
                &format!("{path}.{name}"),
                format!(
                    "the variable {} is not set in the environment of the adapter",
                    shown(variable)
                ),
            );
        }
        found.map(|value| (name, value))
    };
    vars.into_iter().filter_map(expand).collect()
}
