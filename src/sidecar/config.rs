//! `sidecar.yaml`: what the operator decides.
//!
//! All problems are reported together. What may change while running (providers, grants,
//! limits) is the [`Policy`], replaced whole; the rest is read once.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::http::uri::{Scheme, Uri};

use super::audit::chain::SigningKey;
use crate::base::settings::{self, Problems, Section, looks_like_a_key, parse_yaml, shown};
use crate::base::token::Token;
use crate::catalogue::Overrides;
use crate::sidecar::credential;
use crate::sidecar::ledger::state::grant_id;
use crate::sidecar::policy;
use crate::sidecar::policy::Limits;
use crate::sidecar::policy::{BaseUrl, Policy, ProviderConfig, is_loopback};
use crate::sidecar::policy::{Glob, Grant};
use crate::sidecar::provider::{Auth, Feature, registry};

/// Read once, at start.
#[derive(Debug)]
pub struct SidecarConfig {
    pub listen: SocketAddr,
    pub admin: Option<SocketAddr>,
    /// Names besides `localhost` and loopback addresses that `Host` may say.
    pub hosts: Vec<String>,
    /// What clients must present as their key; `None`: anything will do.
    pub token: Option<Token>,
    pub secrets_dir: PathBuf,
    pub audit: AuditConfig,
    pub timeouts: Timeouts,
    pub ca_file: Option<PathBuf>,
    pub prices: Overrides,
    /// Threads that serve requests.
    pub workers: usize,
    pub connections: usize,
    pub session_id: Option<String>,
    pub log: LogConfig,
}

#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// `None`: standard output.
    pub file: Option<PathBuf>,
    pub max_bytes: u64,
    /// Rotated files that are kept however old they are.
    pub keep: u32,
    /// Rotated files younger than this are never deleted; 0: none is ever deleted.
    pub keep_days: u32,
    /// The operator's Ed25519 key, which signs the chain of records.
    pub signing_key: Option<PathBuf>,
    /// Where spent budgets are kept across restarts; `None`: nowhere.
    pub state: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    pub connect: Duration,
    /// From the request sent to the head of the reply.
    pub first_byte: Duration,
    /// Between two pieces of a reply.
    pub idle: Duration,
    pub total: Duration,
    /// After SIGTERM, for streams that are still open.
    pub drain: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Debug, Clone, Copy)]
pub struct LogConfig {
    pub format: LogFormat,
    pub level: tracing::Level,
}

/// Keys of the file, each with its value in a form that can be compared.
pub type Fixed = Vec<(&'static str, String)>;

impl SidecarConfig {
    /// The settings that take effect only at a start, for comparison with those of another reading.
    pub fn fixed(&self) -> Fixed {
        let shown = |value: &dyn std::fmt::Debug| format!("{value:?}");
        vec![
            ("listen", shown(&self.listen)),
            ("admin", shown(&self.admin)),
            ("hosts", shown(&self.hosts)),
            ("secretsDir", shown(&self.secrets_dir)),
            ("audit", shown(&self.audit)),
            ("timeouts", shown(&self.timeouts)),
            ("tls.caFile", shown(&self.ca_file)),
            ("workers", shown(&self.workers)),
            ("connections", shown(&self.connections)),
            ("sessionId", shown(&self.session_id)),
            ("log", shown(&self.log)),
        ]
    }
}

/// Both halves of the file.
#[derive(Debug)]
pub struct Loaded {
    pub config: SidecarConfig,
    pub policy: Policy,
}

/// Reads the file.
///
/// # Errors
/// Every problem, with its path in the file.
pub fn load(path: &Path) -> Result<Loaded, Vec<String>> {
    parse(&settings::read(path).map_err(|e| vec![e])?)
}

/// # Errors
/// As [`load`].
pub fn parse(text: &str) -> Result<Loaded, Vec<String>> {
    let value = parse_yaml(text).map_err(|e| vec![e])?;
    // A file that is being written may hold nothing, or comments alone: that grants nothing, and
    // is not meant.
    if value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty) {
        return Err(vec![
            "the file holds no setting; name at least `aiProviders` and `permissionGrants`".into(),
        ]);
    }
    let problems = Problems::default();
    let loaded = {
        let mut root = Section::new("", value, &problems);
        let (providers, named) = providers(&mut root);
        let grants = grants(&mut root, named.as_ref());
        let policy = Policy {
            revision: revision(text).into(),
            providers,
            grants,
        };
        let config = config(&mut root);
        if config.audit.state.is_none() && policy.grants.iter().any(|g| g.limits.has_budget()) {
            root.add(
                "audit.state",
                "a budget (`tokensPerDay`, `usdPerSession`) must survive a restart, and with the audit on standard output it has no place; name a file",
            );
        }
        Loaded { config, policy }
    };
    let all = problems.take(text);
    if all.is_empty() { Ok(loaded) } else { Err(all) }
}

fn revision(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn config(root: &mut Section) -> SidecarConfig {
    let listen =
        address(root, "listen").unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 11432));
    if !listen.ip().is_loopback() {
        root.add(
            "listen",
            format!("`{listen}` is not a loopback address: whoever reaches this port spends the workspace's keys, so only `127.0.0.1` and `[::1]` are allowed"),
        );
    }
    let admin = match root.value("admin") {
        // YAML reads a bare `off` as false.
        Some(serde_json::Value::Bool(false)) => None,
        Some(serde_json::Value::String(s)) if s == "off" => None,
        Some(serde_json::Value::String(s)) => parse_address(root, "admin", &s),
        Some(other) => {
            root.add(
                "admin",
                format!("`{other}` is not an address such as `0.0.0.0:9091`, or `off`"),
            );
            None
        }
        None => Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 9091)),
    };
    if admin.is_some_and(|admin| admin.port() == listen.port() && admin.port() != 0) {
        root.add(
            "admin",
            format!("has the port {} of `listen`; choose another", listen.port()),
        );
    }
    let secrets_dir = root
        .string("secretsDir")
        .map_or_else(|| PathBuf::from("/run/secrets/outrigger"), PathBuf::from);
    if secrets_dir.is_file() {
        root.add(
            "secretsDir",
            format!(
                "{} is a file; expected the directory that holds `<name>/<key>`",
                shown(&secrets_dir.to_string_lossy())
            ),
        );
    } else if secrets_dir.to_string_lossy().contains("${") {
        root.add(
            "secretsDir",
            "variables are not replaced in this file; write the directory itself",
        );
    }
    let prices = match root.string("prices").map(PathBuf::from) {
        Some(file) => Overrides::load(&file).unwrap_or_else(|problems| {
            problems.iter().for_each(|p| root.add("prices", p));
            Overrides::default()
        }),
        None => Overrides::default(),
    };
    let ca_file = root
        .section("tls")
        .and_then(|mut tls| tls.string("caFile").map(PathBuf::from));
    let token = root.string("tokenFile").and_then(|file| {
        Token::read(Path::new(&file))
            .map_err(|e| root.add("tokenFile", e))
            .ok()
    });
    let log = log(root);
    SidecarConfig {
        listen,
        admin,
        hosts: root.hosts("hosts"),
        token,
        secrets_dir,
        audit: audit(root),
        timeouts: timeouts(root),
        ca_file,
        prices,
        workers: root.integer("workers", 1, 64).unwrap_or(1) as usize,
        connections: root.integer("connections", 1, 65_536).unwrap_or(512) as usize,
        session_id: root.session_id("sessionId"),
        log,
    }
}

fn log(root: &mut Section) -> LogConfig {
    let mut log = LogConfig {
        format: LogFormat::Json,
        level: tracing::Level::INFO,
    };
    if let Some(mut s) = root.section("log") {
        log.format = s
            .choice(
                "format",
                &[("json", LogFormat::Json), ("text", LogFormat::Text)],
            )
            .unwrap_or(log.format);
        use tracing::Level;
        log.level = s
            .choice(
                "level",
                &[
                    ("error", Level::ERROR),
                    ("warn", Level::WARN),
                    ("info", Level::INFO),
                    ("debug", Level::DEBUG),
                ],
            )
            .unwrap_or(log.level);
    }
    log
}

fn audit(root: &mut Section) -> AuditConfig {
    let mut audit = AuditConfig {
        file: Some("/var/lib/outrigger/audit.jsonl".into()),
        max_bytes: 64 << 20,
        keep: 16,
        keep_days: 30,
        signing_key: None,
        state: None,
    };
    if let Some(mut s) = root.section("audit") {
        match s.string("file") {
            Some(f) if f == "-" => audit.file = None,
            Some(f) => audit.file = Some(f.into()),
            None => {}
        }
        audit.max_bytes = s
            .integer("maxBytes", 4096, u64::MAX)
            .unwrap_or(audit.max_bytes);
        audit.keep = s.integer("keep", 1, 10_000).unwrap_or(audit.keep.into()) as u32;
        audit.keep_days = s
            .integer("keepDays", 0, 36_500)
            .unwrap_or(audit.keep_days.into()) as u32;
        audit.signing_key = s.string("signingKeyFile").map(PathBuf::from);
        if let Some(Err(e)) = audit.signing_key.as_deref().map(SigningKey::read) {
            s.add("signingKeyFile", e);
        }
        audit.state = s.string("state").map(PathBuf::from);
    }
    if audit.state.is_none() {
        audit.state = audit.file.as_ref().map(|f| f.with_extension("state.json"));
    }
    audit
}

fn timeouts(root: &mut Section) -> Timeouts {
    let mut t = Timeouts {
        connect: Duration::from_secs(5),
        // Claude Code and the SDKs wait 600 s themselves; giving up earlier would break them.
        first_byte: Duration::from_secs(600),
        idle: Duration::from_secs(600),
        total: Duration::from_secs(3600),
        drain: Duration::from_secs(25),
    };
    if let Some(mut s) = root.section("timeouts") {
        for (key, slot) in [
            ("connect", &mut t.connect),
            ("firstByte", &mut t.first_byte),
            ("idle", &mut t.idle),
            ("total", &mut t.total),
            ("drain", &mut t.drain),
        ] {
            *slot = s.duration(key).unwrap_or(*slot);
        }
    }
    t
}

fn address(section: &mut Section, key: &'static str) -> Option<SocketAddr> {
    match section.value(key)? {
        serde_json::Value::String(s) => parse_address(section, key, &s),
        other => {
            let port = other
                .as_u64()
                .filter(|n| *n <= 65_535)
                .map_or_else(String::new, |port| {
                    format!("; for this port write `127.0.0.1:{port}`")
                });
            section.add(
                key,
                format!("`{other}` is not an address such as `127.0.0.1:11432`{port}"),
            );
            None
        }
    }
}

fn parse_address(section: &Section, key: &str, s: &str) -> Option<SocketAddr> {
    let parsed = s.replace("localhost", "127.0.0.1").parse().ok();
    if parsed.is_none() {
        section.add(
            key,
            format!(
                "{} is not an address with a port from 1 to 65535, such as `127.0.0.1:11432`",
                shown(s)
            ),
        );
    }
    parsed
}

/// Returns the providers that can be used, and the names of all providers in the file. A grant may
/// name a provider that is itself wrong: that is reported once, for the provider. The names are
/// `None` where `aiProviders` is not a mapping.
fn providers(
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

fn provider(name: &str, section: &mut Section) -> Option<ProviderConfig> {
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

fn secret_source(section: &mut Section) -> Option<credential::Source> {
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

fn grants(root: &mut Section, providers: Option<&BTreeSet<String>>) -> Vec<Grant> {
    root.sections("permissionGrants")
        .into_iter()
        .filter_map(|mut s| grant(&mut s, providers))
        .collect()
}

fn expiry(s: &mut Section) -> Option<jiff::Timestamp> {
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
fn grant(s: &mut Section, providers: Option<&BTreeSet<String>>) -> Option<Grant> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        parse(text).err().unwrap_or_default()
    }

    #[test]
    fn the_contracts_example_loads_in_both_spellings() {
        let camel = include_str!("../../config/sidecar.yaml");
        let loaded = parse(camel).unwrap();
        assert_eq!(loaded.config.listen.port(), 11432);
        assert!(!loaded.policy.grants.is_empty());
        let snake = camel
            .replace("aiProviders", "ai_providers")
            .replace("secretRef", "secret_ref")
            .replace("permissionGrants", "permission_grants")
            .replace("requestsPerMinute", "requests_per_minute");
        assert_eq!(problems(&snake), Vec::<String>::new());
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let all = problems(
            "listen: 0.0.0.0:1\nadmin: x\nnope: 1\naiProviders:\n  anthropic: { secretRef: { name: ../x, key: k } }\n  bedrock: {}\n  mine: { kind: openai-compatible, baseUrl: \"http://example.com\", secretRef: {name: a, key: b} }\npermissionGrants:\n  - scope: ai.*\n  - scope: ai.openai\n    models: []\n  - scope: ai.anthropic\n    expires: tomorrow\n    limits: { concurrent: 0, usdPerSession: -1 }\n    allow: [everything]\n",
        );
        #[rustfmt::skip]
        let cases = [
            ("`listen`", "loopback"),
            ("`admin`", "not an address"),
            ("`nope`", "unknown key"),
            ("`aiProviders.anthropic.secretRef.name`", "plain name of a file"),
            ("`aiProviders.bedrock", "not a provider"),
            ("`aiProviders.mine.baseUrl`", "in the clear"),
            ("`permissionGrants[0].scope`", "`ai.*` is not"),
            ("`permissionGrants[1].models`", "empty"),
            ("`permissionGrants[1].scope`", "not configured"),
            ("`permissionGrants[2].expires`", "tomorrow"),
            ("`permissionGrants[2].limits.concurrent`", "`0`"),
            ("`permissionGrants[2].limits.usdPerSession`", "`-1`"),
            ("`permissionGrants[2].allow[0]`", "everything"),
        ];
        for (path, what) in cases {
            assert!(
                all.iter().any(|p| p.starts_with(path) && p.contains(what)),
                "{path} {what}: {all:#?}"
            );
        }
    }

    #[test]
    fn one_mistake_is_one_message_and_never_shows_a_key() {
        const GOOD: &str = "aiProviders: {anthropic: {secretRef: {name: a, key: k}}}\npermissionGrants: [{scope: ai.anthropic}]\n";
        assert_eq!(problems(GOOD), Vec::<String>::new());
        #[rustfmt::skip]
        let cases = [
            ("{name: a, key: k}", "sk-ant-api03-SECRET", "`aiProviders.anthropic.secretRef` (line 1): expected a mapping"),
            ("{secretRef: {name: a, key: k}}", "sk-ant-api03-SECRET", "`aiProviders.anthropic` (line 1): expected a mapping"),
            ("key: k", "key: sk-ant-api03-SECRET", "looks like the key itself"),
            ("key: k", "key: 5", "expected a string"),
            ("secretRef: {name: a, key: k}", "credential: vault read -token=hvs.SECRET", "expected a mapping"),
            ("secretRef: {name: a, key: k}", "credential: {command: SECRET}", "expected a list"),
            ("secretRef: {", "baseUrl: 'https://user:SECRET@host', secretRef: {", "`https://***@host`"),
            ("anthropic: {", "antropic: {", "did you mean `anthropic`?"),
            ("{scope: ai.anthropic}", "{scop: ai.anthropic}", "did you mean `scope`?"),
            ("{scope: ai.anthropic}", "ai.anthropic", "expected a mapping"),
            ("{scope: ai.anthropic}", "{scope: 5}", "expected a string"),
            ("{scope: ai.anthropic}", "{scope: ai.anthropc}", "did you mean `anthropic`?"),
            ("{scope: ai.anthropic}", "{scope: ai.anthropic, models: [x, '']}", "`permissionGrants[0].models[1]` (line 2): an empty string"),
            ("{scope: ai.anthropic}", "{scope: ai.anthropic, expires: 2027-02-30T00:00:00Z}", "there is no such day"),
            ("{scope: ai.anthropic}", "{scope: ai.anthropic, expires: 2027-01-01}", "the time of day is missing"),
            ("aiProviders", "listen: 25532\naiProviders", "write `127.0.0.1:25532`"),
            ("aiProviders", "admin: 127.0.0.1:11432\naiProviders", "`admin` (line 1): has the port 11432 of `listen`"),
            ("aiProviders", "hosts: [ok, 'https://a']\naiProviders", "`hosts[1]` (line 1)"),
            ("aiProviders", "sessionId: ''\naiProviders", "is not a session's id"),
            ("aiProviders", "tokenFile: 0123456789abcdef0123456789SECRET\naiProviders", "`tokenFile` (line 1): cannot read"),
            ("aiProviders", "secretsDir: '${SECRETS}'\naiProviders", "variables are not replaced"),
            ("aiProviders", "timeouts: {connect: 5}\naiProviders", "has no unit"),
        ];
        for (good, bad, said) in cases {
            assert!(GOOD.contains(good), "{good}");
            let all = problems(&GOOD.replacen(good, bad, 1));
            assert!(
                all.len() == 1 && all[0].contains(said) && !all[0].contains("SECRET"),
                "{bad}: {all:#?}"
            );
        }
    }

    #[test]
    fn base_urls_never_carry_a_key_in_the_clear() {
        for good in [
            "https://a.example",
            "https://a.example:8443/v1/",
            "http://127.0.0.1:9/x",
            "http://[::1]:9",
            "http://localhost:9",
        ] {
            assert!(base_url(good, true).is_ok(), "{good}");
        }
        let cases = [
            "http://10.0.0.1",
            "http://localhost.evil.example",
            "https://u:p@a.example",
            "https://a.example/?k=1",
            "https://a.example/../x",
            "ftp://a.example",
            "a.example",
            "https://",
            "https://a.example/#x",
        ];
        for bad in cases {
            assert!(base_url(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_that_is_no_configuration_is_refused() {
        for nothing in ["", "\n\n", "# only a comment\n", "---\n"] {
            assert!(!problems(nothing).is_empty(), "{nothing:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s.yaml");
        std::fs::File::create(&file)
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        assert!(load(&file).unwrap_err()[0].contains("larger than 4 MiB"));
    }
}
