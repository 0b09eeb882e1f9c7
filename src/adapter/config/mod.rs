//! `adapter.yaml`, the environment that platforms set, and the command line: what one session
//! is to be. Read once; all problems are reported together.
//!
//! The shape is the one that users of Fracta know. Its keys for credentials are taken and do
//! nothing: credentials are the sidecar's, and the warning says so.

pub mod ports;
pub mod project;
mod read;

mod model;

pub use self::ports::check_origin;
pub use self::read::{load, parse};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use self::ports::AccessPolicy;
use super::journal::Retention;
use super::runtime::{Mcp, Permissions, Runtime};

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
        let text = include_str!("../../../config/adapter.yaml");
        let problems = with(text, &Flags::default(), &[]).unwrap_err();
        assert!(
            problems
                .iter()
                .all(|p| p.contains("TokenFile") || p.contains("tokenFile")),
            "all but the tokens, which are not there: {problems:#?}"
        );
        let docs = include_str!("../../../docs/image-builders.md");
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
