//! How Codex is started: `config.toml` in a home of the session's own.

use std::fmt::Write as _;
use std::io;

use serde_json::{Value, json};

use crate::adapter::runtime::native::write_private_file;
use crate::adapter::runtime::{LaunchContext, LaunchPlan, Mcp, Permissions, Transport};

/// The variable that holds what it presents to the sidecar.
pub(super) const TOKEN: &str = "OUTRIGGER_SIDECAR_TOKEN";

pub(super) fn launch(setting: &LaunchContext) -> io::Result<LaunchPlan> {
    let home = setting.home.join("codex");
    write_private_file(&home.join("config.toml"), &configuration(setting))?;
    let mut warnings = Vec::new();
    if setting.permissions != Permissions::Allow {
        warnings.push("with permissions, Codex reads neither `AGENTS.md` nor `.codex/` of the project: what stands there could run without asking".to_owned());
    }
    if setting.permissions != Permissions::Allow && !setting.allowed_tools.is_empty() {
        warnings.push("`project.allowedTools`: Codex has no such list; every command that is not known to be harmless is asked for".to_owned());
    }
    Ok(LaunchPlan {
        args: vec!["app-server".into()],
        env: vec![
            ("CODEX_HOME".into(), home.display().to_string()),
            (TOKEN.into(), setting.key.clone()),
        ],
        wiring: Transport::Lines {
            version_flag: false,
        },
        warnings,
        session: None,
    })
}

/// Makes `config.toml`. The sidecar is the only provider, and nothing is looked up outside. Codex
/// is told not to retry: otherwise it would send a request that is refused six times.
pub(super) fn configuration(setting: &LaunchContext) -> String {
    // A JSON string is a TOML basic string.
    let quoted = |s: &str| Value::from(s).to_string();
    let (_, model) = setting.model.split_once('/').unwrap_or_default();
    let mut toml = format!(
        r#"model = {model}
model_provider = "outrigger"
# The container is the sandbox.
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
model_reasoning_summary = "auto"
[analytics]
enabled = false
[features]
{commands}plugins = false
apps = false
remote_plugin = false
unbounded_connection_retries = false
enable_request_compression = false
[agents]
enabled = {subagents}
[model_providers.outrigger]
name = "outrigger"
base_url = {url}
wire_api = "responses"
env_key = "{TOKEN}"
supports_websockets = false
request_max_retries = 0
stream_max_retries = 0
"#,
        model = quoted(model),
        url = quoted(&format!("{}/openai/v1", setting.sidecar)),
        subagents = setting.subagents,
        // What it takes for harmless it would run without asking.
        commands = if setting.permissions == Permissions::Deny {
            "shell_tool = false\nunified_exec = false\n"
        } else {
            ""
        },
    );
    // Trusted, a project starts tool servers and allows commands: not where tools are asked for.
    let trust = if setting.permissions == Permissions::Allow {
        "trusted"
    } else {
        "untrusted"
    };
    let _ = writeln!(
        toml,
        "[projects.{}]\ntrust_level = \"{trust}\"",
        quoted(&setting.workdir.display().to_string())
    );
    for (name, server) in &setting.mcp {
        let table = |map: &std::collections::BTreeMap<String, String>| {
            map.iter()
                .map(|(k, v)| format!("{} = {}", quoted(k), quoted(v)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let _ = writeln!(toml, "[mcp_servers.{}]", quoted(name));
        let _ = match server {
            Mcp::Local { command, env } => writeln!(
                toml,
                "command = {}\nargs = {}\nenv = {{ {} }}",
                quoted(command.first().map_or("", String::as_str)),
                json!(command.get(1..).unwrap_or_default()),
                table(env)
            ),
            Mcp::Remote { url, headers } => writeln!(
                toml,
                "url = {}\nhttp_headers = {{ {} }}",
                quoted(url),
                table(headers)
            ),
        };
    }
    toml
}
