//! Reading `adapter.yaml`, with what the platform's configuration and the flags say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::model::with_model;
use super::ports::{ports, sidecar};
use super::{AdapterConfig, Flags};
use crate::adapter::config::project::{agents, expanded, project, resumed};
use crate::adapter::environment;
use crate::adapter::journal::Retention;
use crate::adapter::runtime::{Env, Permissions, registry};
use crate::base::settings;
use crate::base::settings::section::Section;
use crate::base::settings::{Problems, check_session_id, looks_like_a_key, parse_yaml, shown};

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
