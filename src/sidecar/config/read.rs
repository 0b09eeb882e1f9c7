//! Reading `sidecar.yaml`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{
    AuditConfig, Loaded, LogConfig, LogFormat, SidecarConfig, Timeouts, grants, providers,
};
use crate::base::settings;
use crate::base::settings::section::Section;
use crate::base::settings::{Problems, parse_yaml, shown};
use crate::base::token::{Token, hex};
use crate::catalogue::Overrides;
use crate::sidecar::audit::chain::SigningKey;
use crate::sidecar::policy::Policy;

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

/// The first 8 bytes of the SHA-256 of the file, in hexadecimal.
pub(super) fn revision(text: &str) -> String {
    hex(&ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref()[..8])
}

pub(super) fn config(root: &mut Section) -> SidecarConfig {
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

pub(super) fn log(root: &mut Section) -> LogConfig {
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

pub(super) fn audit(root: &mut Section) -> AuditConfig {
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

pub(super) fn timeouts(root: &mut Section) -> Timeouts {
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

pub(super) fn address(section: &mut Section, key: &'static str) -> Option<SocketAddr> {
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

pub(super) fn parse_address(section: &Section, key: &str, s: &str) -> Option<SocketAddr> {
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
