//! Reading `adapter.yaml`, with what the platform's configuration and the flags say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::model::with_model;
use super::ports::{ports, sidecar};
use super::{AdapterConfig, Flags};
use crate::adapter::config::model::Agent;
use crate::adapter::environment;
use crate::adapter::journal::Retention;
use crate::adapter::runtime::Env;
use crate::adapter::runtime::Mcp;
use crate::adapter::runtime::Permissions;
use crate::adapter::runtime::registry;
use crate::base::settings;
use crate::base::settings::section::{Section, check_session_id};
use crate::base::settings::{Problems, did_you_mean, looks_like_a_key, parse_yaml, shown};

/// Reads the file, if there is one.
///
/// # Errors
/// Every problem, with its path in the file or the variable's name.
pub fn load(
    path: Option<&Path>,
    flags: &Flags,
    env: Env<'_>,
) -> Result<AdapterConfig, Vec<String>> {
    let text = match path {
        Some(path) => settings::read(path).map_err(|e| vec![e])?,
        None => String::new(),
    };
    parse(&text, flags, env)
}

/// # Errors
/// As [`load`].
pub fn parse(text: &str, flags: &Flags, env: Env<'_>) -> Result<AdapterConfig, Vec<String>> {
    let value = parse_yaml(text).map_err(|e| vec![e])?;
    let problems = Problems::default();
    let env = |name: &str| env(name).filter(|v| !v.is_empty());
    let config = config(value, flags, &env, &problems);
    let all = problems.take(text);
    match config {
        Some(config) if all.is_empty() => Ok(config),
        _ => Err(all),
    }
}

/// Tools that can be allowed, as Claude Code spells them.
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

pub(super) fn config(
    value: Value,
    flags: &Flags,
    env: Env<'_>,
    problems: &Problems,
) -> Option<AdapterConfig> {
    let mut warnings = Vec::new();
    let mut root = Section::new("", value, problems);
    let (chosen, batch, mut agents) = agents(&mut root, &mut warnings);
    let resume = resumed(flags, problems);
    let name = flags
        .runtime
        .clone()
        .or(resume.as_ref().map(|(runtime, _)| runtime.clone()))
        .or(chosen)
        .unwrap_or_else(|| registry::ALL[0].id.into());
    let agent = agents.remove(&name).unwrap_or_default();
    let id = agent.adapter.clone().unwrap_or_else(|| name.clone());
    let found = registry::find(&id);
    let runtime = found.unwrap_or_else(|| {
        let place = if flags.runtime.is_some() {
            "--runtime"
        } else {
            "agents.defaultRuntime"
        };
        problems.add(place, registry::unknown(&id));
        registry::ALL[0]
    });
    if let Some((of, _)) = resume.as_ref().filter(|(of, _)| of != runtime.id) {
        problems.add(
            "",
            format!(
                "`--resume`: the session is one of `{of}`, not of `{}`",
                runtime.id
            ),
        );
    }
    let (allowed_tools, mcp) = project(&mut root, problems, env);
    let mut session = root
        .section("session")
        .unwrap_or_else(|| Section::new("session", Value::Null, problems));
    let retention = Retention::default();
    let retention = Retention {
        segment_bytes: session
            .integer("segmentBytes", 4096, 1 << 40)
            .unwrap_or(retention.segment_bytes),
        segments: session
            .integer("segments", 2, 100_000)
            .map_or(retention.segments, |n| n as usize),
        durable: true,
    };
    let permissions = permissions(&mut session, flags, problems);
    if permissions != Permissions::Allow && !runtime.capabilities.permissions && found.is_some() {
        let able: Vec<_> = registry::ALL
            .iter()
            .filter(|r| r.capabilities.permissions)
            .map(|r| format!("`{}`", r.id))
            .collect();
        problems.add(
            if flags.permissions.is_some() { "--permissions" } else { "session.permissions" },
            format!("{} has no permissions: every tool of it runs; allowed with it: `allow` (runtimes that ask: {})", runtime.name, able.join(", ")),
        );
    }
    let idle = number(env, "IDLE_TIMEOUT_MS", problems).map(Duration::from_millis);
    let oneshot = mode(env, batch, problems);
    let (policy, stream, input) = ports(&mut root, flags);
    let (sidecar, key, key_file) = sidecar(&mut root, flags, env);
    let journal = session.string("journal").map(PathBuf::from);
    let idle_in_file = session.duration("idleTimeout");
    let turns_in_file = session.integer("maxTurns", 1, 1_000_000);
    let allow_env = session.strings("allowEnv").unwrap_or_default();
    let agent_env = agent_env(
        problems,
        &name,
        agent.env.clone(),
        &allow_env,
        env,
        &mut warnings,
    );
    for name in allow_env.iter().filter(|name| {
        environment::holds_a_key(name)
            && env(name).is_some_and(|value| !environment::is_placeholder(&value))
    }) {
        warnings.push(format!("`session.allowEnv`: the agent can read what `{name}` holds, and so can whoever leads it astray"));
    }
    let session_id = flags.session_id.clone().or_else(|| env("SESSION_ID"));
    if let Some(Err(why)) = session_id.as_deref().map(check_session_id) {
        problems.add(
            if flags.session_id.is_some() {
                "--session-id"
            } else {
                "SESSION_ID"
            },
            why,
        );
    }
    let program = agent.program.clone();
    let workdir = flags
        .workdir
        .clone()
        .or_else(|| env("WORKSPACE_DIR").map(PathBuf::from))
        .unwrap_or_else(|| ".".into());
    let journal = flags
        .journal
        .clone()
        .or(journal)
        .unwrap_or_else(|| PathBuf::from("/var/lib/outrigger/session"));
    let home = session.string("home").map(PathBuf::from);
    let home = flags
        .home
        .clone()
        .or(home)
        .unwrap_or_else(|| journal.join("home"));
    let config = AdapterConfig {
        session_id,
        runtime,
        program,
        model: String::new(),
        native_model: String::new(),
        prompt: flags.prompt.clone().or_else(|| env("AGENT_PROMPT")),
        resume: resume.map(|(_, id)| id),
        oneshot,
        // The CLI is started in it, and told its name: relative, it would be looked for in itself.
        workdir: std::path::absolute(&workdir).unwrap_or(workdir),
        env: agent_env,
        allow_env,
        inherit_env: !flags.clean_env,
        allowed_tools,
        mcp,
        permissions,
        permission_timeout: session
            .duration("permissionTimeout")
            .unwrap_or(Duration::from_secs(600)),
        subagents: session.flag("subagents").unwrap_or(false),
        journal,
        home: std::path::absolute(&home).unwrap_or(home),
        retention,
        raw: session.flag("raw").unwrap_or(true),
        idle_timeout: idle.or(idle_in_file).unwrap_or(Duration::from_secs(900)),
        max_steps: session.integer("maxSteps", 1, 1_000_000).unwrap_or(20),
        max_turns: number(env, "MAX_TURNS", problems)
            .or(turns_in_file)
            .unwrap_or(200),
        stream,
        input,
        policy,
        sidecar,
        sidecar_patience: None,
        key,
        key_file,
        warnings,
    };
    if !config.workdir.is_dir() {
        let place = if flags.workdir.is_some() {
            "--workdir"
        } else {
            "WORKSPACE_DIR"
        };
        problems.add(
            place,
            format!(
                "{} is not a directory",
                shown(&config.workdir.to_string_lossy())
            ),
        );
    }
    // Of a runtime that nobody knows there is no model to speak of.
    if found.is_some() {
        with_model(config, &agent, flags, env, problems)
    } else {
        None
    }
}

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
            // A file of another project may have more.
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

/// The models of tiers and of the map are looked at before a session needs one.
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

/// `${NAME}` as a whole value is taken from the environment.
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

/// What the chosen runtime's `env` gives the CLI.
pub(super) fn agent_env(
    problems: &Problems,
    runtime: &str,
    vars: BTreeMap<String, String>,
    allowed: &[String],
    env: Env<'_>,
    warnings: &mut Vec<String>,
) -> Vec<(String, String)> {
    let path = format!("agents.agentRuntimes.{runtime}.env");
    let vars = expanded(problems, &path, vars, env);
    for (name, value) in &vars {
        let place = format!("{path}.{name}");
        if name.is_empty() || name.contains(['=', '\0', ' ']) || value.contains('\0') {
            problems.add(&place, "is not a variable: its name is empty or has a space or `=` in it, or its value has a zero byte");
        } else if (environment::holds_a_key(name) || looks_like_a_key(value))
            && !environment::is_placeholder(value)
            && !allowed.contains(name)
        {
            problems.add(&place, "looks like a key, and a provider's key must not reach the agent: the sidecar adds it to what the agent asks\nhint: take it out; if it opens something else, name the variable in `session.allowEnv`");
        } else if environment::reroutes(name) {
            warnings.push(format!(
                "`{place}` does not reach the CLI: it could lead past the sidecar"
            ));
        }
    }
    vars
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
        // A tool server's own credentials are the project's affair.
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

/// `<runtime>:<the CLI's own id>`.
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

pub(super) fn permissions(
    session: &mut Section,
    flags: &Flags,
    problems: &Problems,
) -> Permissions {
    let choices = [
        ("allow", Permissions::Allow),
        ("ask", Permissions::Ask),
        ("deny", Permissions::Deny),
    ];
    let in_file = session.choice("permissions", &choices);
    let Some(flag) = &flags.permissions else {
        return in_file.unwrap_or(Permissions::Allow);
    };
    choices.iter().find(|(name, _)| name == flag).map_or_else(
        || {
            problems.add(
                "",
                format!("`--permissions {flag}`: not one of `allow`, `ask`, `deny`"),
            );
            Permissions::Deny
        },
        |(_, p)| *p,
    )
}

pub(super) fn number(env: Env<'_>, name: &str, problems: &Problems) -> Option<u64> {
    let text = env(name)?;
    let number = text.parse().ok().filter(|n| *n > 0);
    if number.is_none() {
        problems.add(
            "",
            format!("the variable `{name}` is `{text}`, not a whole number above 0"),
        );
    }
    number
}

pub(super) fn mode(env: Env<'_>, batch: bool, problems: &Problems) -> bool {
    match env("SESSION_MODE").as_deref() {
        Some("oneshot") => true,
        Some("interactive") => false,
        None => batch,
        Some(other) => {
            problems.add(
                "",
                format!(
                    "the variable `SESSION_MODE` is `{other}`; allowed: `oneshot`, `interactive`"
                ),
            );
            batch
        }
    }
}
