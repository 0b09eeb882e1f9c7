//! `adapter.yaml`, the environment that platforms set, and the command line: what one session
//! is to be. Read once; all problems are reported together.
//!
//! The shape is the one that users of Fracta know. Its keys for credentials are taken and do
//! nothing: credentials are the sidecar's, and the warning says so.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::header::HeaderValue;
use serde_json::Value;

use super::journal::Retention;
use super::process;
use super::runtime::{Env, Mcp, Permissions, Runtime, registry};
use crate::base::settings::{
    self, Problems, Section, check_session_id, did_you_mean, looks_like_a_key, parse_yaml, shown,
};
use crate::base::token::Token;

/// A session, as it was asked for.
#[derive(Debug)]
pub struct AdapterConfig {
    pub session_id: Option<String>,
    pub runtime: &'static Runtime,
    /// Instead of the runtime's program on `PATH`.
    pub program: Option<String>,
    /// Canonical `provider/model`.
    pub model: String,
    /// The same, as the CLI spells it.
    pub native_model: String,
    pub prompt: Option<String>,
    /// The CLI's own name of a session that is to be gone on with.
    pub resume: Option<String>,
    /// One turn, then the session is over.
    pub oneshot: bool,
    pub workdir: PathBuf,
    pub env: Vec<(String, String)>,
    /// Variables that are called like a provider's key and may reach the CLI all the same.
    pub allow_env: Vec<String>,
    /// The CLI gets the adapter's environment (without keys), not only what every program needs.
    pub inherit_env: bool,
    pub allowed_tools: Vec<String>,
    pub mcp: BTreeMap<String, Mcp>,
    pub permissions: Permissions,
    pub permission_timeout: Duration,
    pub subagents: bool,
    pub journal: PathBuf,
    /// Settings and history of the CLI, where it can be told where to keep them.
    pub home: PathBuf,
    pub retention: Retention,
    /// The CLI's own lines are kept too, for `?view=raw`.
    pub raw: bool,
    pub idle_timeout: Duration,
    pub max_steps: u64,
    pub max_turns: u64,
    pub stream: SocketAddr,
    pub input: SocketAddr,
    pub policy: AccessPolicy,
    /// The sidecar, without a trailing slash.
    pub sidecar: String,
    /// How long it is waited for; `None`: without end.
    pub sidecar_patience: Option<Duration>,
    /// What the CLI presents to the sidecar as its key.
    pub key: String,
    /// Where that stands, if it is a token: it is read again before each start of the CLI.
    pub key_file: Option<PathBuf>,
    /// Said on the stream once it is open.
    pub warnings: Vec<String>,
}

/// Who may talk to the ports.
#[derive(Debug, Default)]
pub struct AccessPolicy {
    /// Names besides the loopback ones that `Host` may say.
    pub hosts: Vec<String>,
    /// Origins of pages that may read the stream.
    pub origins: Vec<String>,
    pub read: Option<Token>,
    pub write: Option<Token>,
}

impl AccessPolicy {
    /// Is this a page that was configured?
    pub fn allows_origin(&self, origin: &HeaderValue) -> bool {
        self.origins
            .iter()
            .any(|o| o.as_bytes() == origin.as_bytes())
    }
}

/// What the command line says; it wins.
#[derive(Debug, Default, Clone)]
pub struct Flags {
    pub runtime: Option<String>,
    pub model: Option<String>,
    pub tier: Option<String>,
    pub prompt: Option<String>,
    /// `resume_token` of another session's end.
    pub resume: Option<String>,
    pub session_id: Option<String>,
    pub workdir: Option<PathBuf>,
    pub journal: Option<PathBuf>,
    pub home: Option<PathBuf>,
    pub stream: Option<SocketAddr>,
    pub input: Option<SocketAddr>,
    pub sidecar: Option<String>,
    pub permissions: Option<String>,
    /// Only what every program needs.
    pub clean_env: bool,
}

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
const TOOLS: [&str; 13] = [
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

/// What `agents` says of one runtime.
#[derive(Debug, Default)]
struct Agent {
    adapter: Option<String>,
    model: Option<String>,
    tiers: BTreeMap<String, String>,
    map: BTreeMap<String, String>,
    /// As they stand in the file.
    env: BTreeMap<String, String>,
    program: Option<String>,
}

fn config(value: Value, flags: &Flags, env: Env<'_>, problems: &Problems) -> Option<AdapterConfig> {
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
        process::holds_a_key(name)
            && env(name).is_some_and(|value| !process::is_placeholder(&value))
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

fn agents(
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
fn check_models(s: &Section, agent: &Agent) {
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
fn expanded(
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
fn agent_env(
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
        } else if (process::holds_a_key(name) || looks_like_a_key(value))
            && !process::is_placeholder(value)
            && !allowed.contains(name)
        {
            problems.add(&place, "looks like a key, and a provider's key must not reach the agent: the sidecar adds it to what the agent asks\nhint: take it out; if it opens something else, name the variable in `session.allowEnv`");
        } else if process::reroutes(name) {
            warnings.push(format!(
                "`{place}` does not reach the CLI: it could lead past the sidecar"
            ));
        }
    }
    vars
}

fn project(
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
fn resumed(flags: &Flags, problems: &Problems) -> Option<(String, String)> {
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

fn permissions(session: &mut Section, flags: &Flags, problems: &Problems) -> Permissions {
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

fn number(env: Env<'_>, name: &str, problems: &Problems) -> Option<u64> {
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

fn mode(env: Env<'_>, batch: bool, problems: &Problems) -> bool {
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

fn ports(root: &mut Section, flags: &Flags) -> (AccessPolicy, SocketAddr, SocketAddr) {
    let mut policy = AccessPolicy::default();
    // Token files that are named and cannot be read: that is said already.
    let mut given = [false; 2];
    let (mut stream, mut input) = (
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 3100),
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8788),
    );
    if let Some(mut s) = root.section("listen") {
        for (key, slot) in [("stream", &mut stream), ("input", &mut input)] {
            if let Some(text) = s.string(key) {
                match text.replace("localhost", "127.0.0.1").parse() {
                    Ok(address) => *slot = address,
                    Err(_) => s.add(key, format!("{} is not an address with a port from 1 to 65535, such as `127.0.0.1:3100`", shown(&text))),
                }
            }
        }
        for (key, slot) in [
            ("readTokenFile", &mut policy.read),
            ("writeTokenFile", &mut policy.write),
        ] {
            if let Some(file) = s.string(key) {
                *slot = Token::read(Path::new(&file))
                    .map_err(|e| s.add(key, e))
                    .ok();
            }
        }
        policy.hosts = s.hosts("hosts");
        for (place, origin) in s.items("origins").unwrap_or_default() {
            if let Err(why) = check_origin(&origin) {
                s.add(&place, why);
            }
            policy.origins.push(origin);
        }
        given = ["readTokenFile", "writeTokenFile"].map(|key| s.is_wrong(key));
        if policy.read.is_some() && policy.read == policy.write {
            s.add(
                "writeTokenFile",
                "it holds the read token; whoever may read could write",
            );
        }
    }
    stream = flags.stream.unwrap_or(stream);
    input = flags.input.unwrap_or(input);
    // Whoever reads the stream sees the workspace, and whoever writes runs commands in it.
    for (key, address) in [("stream", stream), ("input", input)] {
        let needed = if key == "stream" {
            policy.read.is_some() && policy.write.is_some()
        } else {
            policy.write.is_some()
        };
        if !address.ip().is_loopback() && !needed && given == [false; 2] {
            root.add(
                &format!("listen.{key}"),
                format!("`{address}` can be reached by others, and nothing says who may; name files with tokens in `listen.readTokenFile` and `listen.writeTokenFile` (`openssl rand -hex 32` writes one), or listen on `127.0.0.1`"),
            );
        }
    }
    if stream == input && stream.port() != 0 && flags.stream.is_none() {
        root.add(
            "listen.input",
            format!("is the address of `listen.stream`, `{stream}`; choose another"),
        );
    }
    (policy, stream, input)
}

/// Whether a page of this origin can be named.
///
/// # Errors
/// Why it is no origin.
pub fn check_origin(origin: &str) -> Result<(), String> {
    let host = origin
        .strip_prefix("https://")
        .or_else(|| origin.strip_prefix("http://"))
        .unwrap_or_default();
    if host.is_empty() || host.contains(['/', '*', '@', '?', '#', ' ']) {
        return Err(format!(
            "{} is not an origin such as `https://ui.example` or `http://localhost:5173`, without a path",
            shown(origin)
        ));
    }
    Ok(())
}

/// Its address, what it is shown as a key, and the file that holds this.
fn sidecar(root: &mut Section, flags: &Flags, env: Env<'_>) -> (String, String, Option<PathBuf>) {
    let (mut url, mut key, mut key_file) = (None, "outrigger".to_owned(), None);
    if let Some(mut s) = root.section("sidecar") {
        url = s.string("url");
        // The session's token, where the sidecar asks for one. It opens the sidecar, no provider.
        if let Some(file) = s.string("tokenFile").map(PathBuf::from) {
            match read_key(&file) {
                Ok(text) => (key, key_file) = (text, Some(file)),
                Err(e) => s.add("tokenFile", e),
            }
        }
    }
    let (place, url) = if let Some(url) = flags.sidecar.clone() {
        ("--sidecar", url)
    } else if let Some(url) = env("OUTRIGGER_SIDECAR_URL") {
        ("OUTRIGGER_SIDECAR_URL", url)
    } else {
        (
            "sidecar.url",
            url.unwrap_or_else(|| "http://127.0.0.1:11432".into()),
        )
    };
    let plain = |uri: &hyper::Uri| {
        uri.scheme_str() == Some("http")
            && uri.path().trim_end_matches('/').is_empty()
            && uri.query().is_none()
    };
    if url.contains('@') || !url.parse::<hyper::Uri>().is_ok_and(|uri| plain(&uri)) {
        root.add(
            place,
            format!(
                "{} is not an address such as `http://127.0.0.1:11432`, without a path",
                shown(&url)
            ),
        );
    }
    (url.trim_end_matches('/').to_owned(), key, key_file)
}

/// The session's token.
///
/// # Errors
/// Why the file holds none; never its content.
pub fn read_key(file: &Path) -> Result<String, String> {
    Token::read(file)?;
    std::fs::read_to_string(file)
        .map(|text| text.trim_end().to_owned())
        .map_err(|e| e.to_string())
}

/// A model is warned of when it ends within so many days.
const ENDS_SOON: i64 = 60;

/// What there is to say of a model that the provider will not serve for long, or not any more.
fn ends_soon(model: &str) -> Option<String> {
    let (provider, name) = model.split_once('/')?;
    let end = crate::catalogue::end_of(provider, name)?;
    let left = format!("{end}T00:00:00Z")
        .parse::<jiff::Timestamp>()
        .ok()?
        .as_second()
        - jiff::Timestamp::now().as_second();
    let days = left.div_euclid(86_400);
    match days {
        ..0 => Some(format!(
            "model `{model}` has ended on {end}: choose another"
        )),
        0..=ENDS_SOON => Some(format!(
            "model `{model}` ends on {end}, in {days} days: choose another before that"
        )),
        _ => None,
    }
}

/// Flag, environment, tier, the runtime's, its default: the first that says something.
fn with_model(
    mut config: AdapterConfig,
    agent: &Agent,
    flags: &Flags,
    env: Env<'_>,
    problems: &Problems,
) -> Option<AdapterConfig> {
    let runtime = config.runtime;
    let tier = match &flags.tier {
        Some(tier) => {
            let model = agent.tiers.get(tier);
            if model.is_none() {
                let known: Vec<_> = agent.tiers.keys().map(|t| format!("`{t}`")).collect();
                let known = if known.is_empty() {
                    format!(
                        "none; tiers stand in `agents.agentRuntimes.{}.modelTiers`",
                        runtime.id
                    )
                } else {
                    known.join(", ")
                };
                problems.add(
                    "--tier",
                    format!(
                        "{} is not a tier of `{}`; known: {known}",
                        shown(tier),
                        runtime.id
                    ),
                );
            }
            model.cloned()
        }
        None => None,
    };
    let of_agent = format!("agents.agentRuntimes.{}.model", runtime.id);
    let said = [
        ("--model", flags.model.clone()),
        ("the environment's model", (runtime.model_in_env)(env)),
        ("--tier", tier),
        (of_agent.as_str(), agent.model.clone()),
    ];
    let (place, model) = said
        .into_iter()
        .find_map(|(place, model)| Some((place, model?)))
        .unwrap_or_else(|| ("the runtime's model", runtime.default_model.to_owned()));
    config.native_model = agent
        .map
        .get(&model)
        .cloned()
        .unwrap_or_else(|| model.clone());
    let reachable = config
        .native_model
        .split_once('/')
        .is_some_and(|(provider, name)| runtime.providers.contains(&provider) && !name.is_empty());
    if !reachable {
        let provider = config
            .native_model
            .split_once('/')
            .map_or("", |(provider, _)| provider);
        let near = did_you_mean(provider, runtime.providers.iter().copied());
        let meant = match crate::catalogue::provider_of(&model)
            .filter(|provider| runtime.providers.contains(provider))
        {
            Some(provider) => format!("; did you mean `{provider}/{model}`?"),
            None => near,
        };
        let (some, providers) = (
            if runtime.providers.len() == 1 {
                "the provider"
            } else {
                "one of the providers"
            },
            runtime.providers.join("`, `"),
        );
        problems.add(
            place,
            format!("{} is not a model that `{}` can reach: it is `<provider>/<model>`, with {some} `{providers}`{meant}", shown(&model), runtime.id),
        );
        return None;
    }
    config.warnings.extend(ends_soon(&config.native_model));
    config.model = model;
    Some(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(
        text: &str,
        flags: &Flags,
        vars: &[(&str, &str)],
    ) -> Result<AdapterConfig, Vec<String>> {
        let vars: BTreeMap<String, String> = vars
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        parse(text, flags, &move |name| vars.get(name).cloned())
    }

    const FRACTA: &str = r#"
agents:
  default_runtime: fast
  default_mode: batch
  auth_origins: {x: {secret_ref: y}}
  agent_runtimes:
    fast:
      adapter: opencode
      model: claude-sonnet-4
      model_tiers: {heavy: anthropic/claude-opus-5-5, light: anthropic/claude-haiku-4-5}
      model_map: {claude-sonnet-4: anthropic/claude-sonnet-5-5}
      env: {FOO: "${BAR}", LEVEL: "3"}
      auth_profile: p
      kubernetes: {image: i}
project:
  allowed_tools: [Read, "Bash(git *)"]
  mcp_servers:
    files: {command: mcp-files, args: [-r, .], env: {A: b}}
    web: {url: "http://127.0.0.1:9/mcp"}
session: {idle_timeout: 5m, max_steps: 7, permissions: ask}
"#;

    #[test]
    fn a_project_of_another_platform_loads() {
        let config = with(FRACTA, &Flags::default(), &[("BAR", "bar")]).unwrap();
        assert_eq!(
            (
                config.runtime.id,
                config.oneshot,
                config.max_steps,
                config.idle_timeout
            ),
            ("opencode", true, 7, Duration::from_secs(300))
        );
        assert_eq!(
            (config.model.as_str(), config.native_model.as_str()),
            ("claude-sonnet-4", "anthropic/claude-sonnet-5-5")
        );
        assert_eq!(
            config.env,
            [
                ("FOO".to_owned(), "bar".to_owned()),
                ("LEVEL".to_owned(), "3".to_owned())
            ]
        );
        assert_eq!(
            config.mcp["files"],
            Mcp::Local {
                command: ["mcp-files", "-r", "."].map(str::to_owned).to_vec(),
                env: BTreeMap::from([("A".into(), "b".into())])
            }
        );
        assert_eq!(config.permissions, Permissions::Ask);
        assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    }

    #[test]
    fn the_example_is_understood() {
        let text = include_str!("../../config/adapter.yaml");
        let problems = with(text, &Flags::default(), &[]).unwrap_err();
        assert!(
            problems
                .iter()
                .all(|p| p.contains("TokenFile") || p.contains("tokenFile")),
            "all but the tokens, which are not there: {problems:#?}"
        );
        let docs = include_str!("../../docs/image-builders.md");
        assert!(
            docs.contains(text.split_once("\nagents").unwrap().1),
            "the documentation shows another one"
        );
    }

    #[test]
    fn the_nearest_word_on_the_model_counts() {
        let flags = |model: Option<&str>, tier: Option<&str>| Flags {
            model: model.map(Into::into),
            tier: tier.map(Into::into),
            ..Flags::default()
        };
        let model = |flags: &Flags, vars: &[(&str, &str)]| {
            with(FRACTA, flags, &[&[("BAR", "b")], vars].concat())
                .unwrap()
                .native_model
        };
        assert_eq!(
            model(
                &flags(Some("openai/gpt-6"), Some("heavy")),
                &[("OPENCODE_MODEL", "x/y")]
            ),
            "openai/gpt-6"
        );
        assert_eq!(
            model(
                &flags(None, Some("heavy")),
                &[("OPENCODE_MODEL", "gpt-5"), ("OPENCODE_PROVIDER", "openai")]
            ),
            "openai/gpt-5"
        );
        assert_eq!(
            model(&flags(None, Some("heavy")), &[]),
            "anthropic/claude-opus-5-5"
        );
        assert_eq!(
            with("", &Flags::default(), &[]).unwrap().native_model,
            "anthropic/claude-sonnet-5-5"
        );
        let codex = Flags {
            runtime: Some("codex".into()),
            ..Flags::default()
        };
        let vars = [("OPENAI_MODEL", "gpt-6"), ("OPENCODE_MODEL", "x/y")];
        assert_eq!(
            with("", &codex, &vars).unwrap().native_model,
            "openai/gpt-6"
        );
        assert_eq!(
            with("", &codex, &vars[1..]).unwrap().native_model,
            "openai/gpt-5.5"
        );
    }

    #[test]
    fn a_relative_workspace_is_made_absolute() {
        let config = with(
            "",
            &Flags {
                workdir: Some("src".into()),
                ..Flags::default()
            },
            &[],
        )
        .unwrap();
        assert_eq!(config.workdir, std::env::current_dir().unwrap().join("src"));
    }

    #[test]
    fn every_mistake_is_reported() {
        let bad = "agents: {defaultRuntime: nope, agentRuntimes: {nope: {env: {OPENAI_API_KEY: sk-1234}}, other: {env: {A: '${UNSET}'}}}}\nsession: {permissions: maybe, maxSteps: 0}\nlisten: {stream: '0.0.0.0:3100', hosts: ['a:1'], origins: ['https://a/']}\nwhat: 1\n";
        let problems = with(
            bad,
            &Flags::default(),
            &[("SESSION_MODE", "x"), ("MAX_TURNS", "-1")],
        )
        .unwrap_err();
        let cases = [
            "`agents.defaultRuntime` (line 1): `nope`",
            "OPENAI_API_KEY",
            "`session.permissions`",
            "`session.maxSteps`",
            "`listen.stream`",
            "`listen.hosts[0]`",
            "`listen.origins[0]`",
            "`what`",
            "SESSION_MODE",
            "MAX_TURNS",
        ];
        for part in cases {
            assert!(
                problems.iter().any(|p| p.contains(part)),
                "{part}: {problems:#?}"
            );
        }
        assert!(
            !problems
                .iter()
                .any(|p| p.contains("sk-1234") || p.contains("UNSET")),
            "a key is not repeated; another runtime's mistakes are its own"
        );
        let one = |text: &str, flags: &Flags, vars: &[(&str, &str)]| {
            let all = with(text, flags, vars).unwrap_err();
            assert_eq!(all.len(), 1, "{all:#?}");
            all[0].clone()
        };
        let said = one(
            "",
            &Flags {
                model: Some("claude-sonnet-5-5".into()),
                ..Flags::default()
            },
            &[],
        );
        assert!(
            said.starts_with("`--model`: ")
                && said.ends_with("did you mean `anthropic/claude-sonnet-5-5`?"),
            "{said}"
        );
        let said = one(
            "agents: {agentRuntimes: {opencode: {modelTiers: {heavy: opus}}}}",
            &Flags::default(),
            &[],
        );
        assert!(
            said.starts_with(
                "`agents.agentRuntimes.opencode.modelTiers.heavy` (line 1): `opus` is not a model"
            ),
            "{said}"
        );
        let said = one(
            "",
            &Flags {
                tier: Some("heavy".into()),
                ..Flags::default()
            },
            &[],
        );
        assert!(said.contains("known: none; tiers stand in"), "{said}");
        let said = one(
            "agents: {agentRuntimes: {opencode: {env: {MY: sk-ant-api03-secret1}}}}",
            &Flags::default(),
            &[],
        );
        assert!(
            said.contains("looks like a key") && !said.contains("secret1"),
            "{said}"
        );
        let said = one(
            "",
            &Flags::default(),
            &[("OUTRIGGER_SIDECAR_URL", "http://u:p@host")],
        );
        assert_eq!(
            said,
            "`OUTRIGGER_SIDECAR_URL`: `http://***@host` is not an address such as `http://127.0.0.1:11432`, without a path"
        );
        let said = one(
            "project: {mcpServers: {a: {comand: x}}}",
            &Flags::default(),
            &[],
        );
        assert!(said.contains("did you mean `command`?"), "{said}");
        let said = one(
            "project: {allowedTools: [Read, 'Bash(git *']}",
            &Flags::default(),
            &[],
        );
        assert!(
            said.starts_with("`project.allowedTools[1]` (line 1): `Bash(git *` has no `)`"),
            "{said}"
        );
        let said = one(
            "",
            &Flags {
                runtime: Some("opncode".into()),
                model: Some("z".into()),
                ..Flags::default()
            },
            &[],
        );
        assert!(said.contains("did you mean `opencode`?"), "{said}");
        let problems = with(
            "",
            &Flags {
                model: Some("nope/x".into()),
                ..Flags::default()
            },
            &[],
        )
        .unwrap_err();
        assert!(
            problems[0].contains("`nope/x`") && problems[0].contains("`anthropic`"),
            "{problems:?}"
        );
    }
}
