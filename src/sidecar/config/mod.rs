//! `sidecar.yaml`: what the operator decides.
//!
//! All problems are reported together. What may change while running (providers, grants,
//! limits) is the [`Policy`], replaced whole; the rest is read once.

pub mod providers;
pub mod read;

mod grants;

pub use self::read::{load, parse};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use self::grants::grants;
use self::providers::providers;
use crate::base::token::Token;
use crate::catalogue::Overrides;
use crate::sidecar::policy::Policy;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sidecar::config::providers::base_url;

    fn problems(text: &str) -> Vec<String> {
        parse(text).err().unwrap_or_default()
    }

    #[test]
    fn the_contracts_example_loads_in_both_spellings() {
        let camel = include_str!("../../../config/sidecar.yaml");
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
