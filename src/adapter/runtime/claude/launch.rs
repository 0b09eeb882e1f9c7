//! How Claude Code is started: its arguments, its environment, its tool servers.

use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::adapter::runtime::native::write_private_file;
use crate::adapter::runtime::{LaunchContext, LaunchPlan, Mcp, Permissions, Transport};

/// Variables that would lead it past the sidecar.
pub(super) const DETOURS: [&str; 7] = [
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_USE_ANTHROPIC_AWS",
    "CLAUDE_CODE_USE_MANTLE",
    "CLAUDE_CODE_USE_GATEWAY",
    "ANTHROPIC_UNIX_SOCKET",
];

pub(super) fn launch(setting: &LaunchContext) -> io::Result<LaunchPlan> {
    let text = |s: &str| s.to_owned();
    let (_, model) = setting.model.split_once('/').unwrap_or_default();
    let provider = [
        (
            "ANTHROPIC_BASE_URL",
            format!("{}/anthropic", setting.sidecar),
        ),
        ("ANTHROPIC_AUTH_TOKEN", setting.key.clone()),
    ];
    // A project's settings may set variables too; these come after them.
    let mut settled: Map<String, Value> = provider
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone().into()))
        .collect();
    settled.extend(DETOURS.map(|name| (name.to_owned(), "".into())));
    let mut settings = json!({ "skipWebFetchPreflight": true, "env": settled });
    if asks_for_each_command(setting) {
        // By itself it runs what it takes for read-only.
        settings["permissions"] = json!({ "ask": ["Bash"] });
    }
    let home = setting.home.join("claude");
    let [settings_file, mcp_file] =
        ["outrigger-settings.json", "outrigger-mcp.json"].map(|name| home.join(name));
    write_private_file(&settings_file, &settings.to_string())?;
    write_private_file(&mcp_file, &mcp(setting).to_string())?;
    let env = [
        ("CLAUDE_CONFIG_DIR", home.display().to_string()),
        // Nothing is looked up, reported or updated outside.
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", text("1")),
        ("DISABLE_AUTOUPDATER", text("1")),
        // Ten would take three minutes to say that a provider is gone.
        ("CLAUDE_CODE_MAX_RETRIES", text("3")),
        ("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", text("1")),
        // The container is the sandbox; without this it refuses to skip permissions as root.
        ("IS_SANDBOX", text("1")),
        // Subagents and helpers would go to models that nobody granted.
        ("ANTHROPIC_DEFAULT_HAIKU_MODEL", text(model)),
        ("CLAUDE_CODE_SUBAGENT_MODEL", text(model)),
    ];
    let (session, mut warnings) = (session(setting), Vec::new());
    let mut args: Vec<String> = [
        "-p",
        "--input-format",
        "stream-json",
        "--output-format",
        "stream-json",
        "--verbose",
        "--include-partial-messages",
    ]
    .map(text)
    .to_vec();
    args.extend(["--replay-user-messages", "--model", model, "--settings"].map(text));
    args.push(settings_file.display().to_string());
    args.extend([
        text(if session.1 {
            "--resume"
        } else {
            "--session-id"
        }),
        session.0.clone(),
    ]);
    args.extend([
        text("--strict-mcp-config"),
        text("--mcp-config"),
        mcp_file.display().to_string(),
    ]);
    if setting.permissions == Permissions::Allow {
        args.push(text("--dangerously-skip-permissions"));
    } else {
        args.extend(
            [
                "--permission-mode",
                "default",
                "--permission-prompt-tool",
                "stdio",
            ]
            .map(text),
        );
        // Hooks and key helpers of a project run without being asked for: its settings are not
        // read where tools are, and with them goes all that it says.
        args.extend([text("--setting-sources"), String::new()]);
        warnings.push(
            "with permissions, Claude Code reads neither `CLAUDE.md` nor `.claude/` of the project: what stands there could run without asking".to_owned(),
        );
        if !setting.allowed_tools.is_empty() {
            args.extend([text("--allowedTools"), setting.allowed_tools.join(",")]);
        }
    }
    // Its questions cannot be answered over this protocol.
    let denied = if setting.subagents {
        "AskUserQuestion"
    } else {
        "AskUserQuestion,Task,Agent"
    };
    args.extend([text("--disallowedTools"), text(denied)]);
    Ok(LaunchPlan {
        args,
        env: env
            .into_iter()
            .chain(provider)
            .map(|(name, value)| (text(name), value))
            .collect(),
        wiring: Transport::Lines { version_flag: true },
        warnings,
        session: Some(session),
    })
}

/// Its rules to ask stand above those to allow: with commands that may run, they cannot be used.
pub(super) fn asks_for_each_command(setting: &LaunchContext) -> bool {
    setting.permissions != Permissions::Allow && !setting.allows_commands()
}

/// The session's id, and whether it is there to be resumed: it is not before its first turn.
pub(super) fn session(setting: &LaunchContext) -> (String, bool) {
    match &setting.resume {
        Some(id) => (
            id.clone(),
            has_transcript(&setting.home.join("claude/projects"), id),
        ),
        None => (uuid(&setting.random), false),
    }
}

pub(super) fn has_transcript(projects: &Path, id: &str) -> bool {
    let name = format!("{id}.jsonl");
    std::fs::read_dir(projects)
        .into_iter()
        .flatten()
        .flatten()
        .any(|project| project.path().join(&name).is_file())
}

/// A version 4 UUID of the first hexadecimal digits.
pub(super) fn uuid(hex: &str) -> String {
    format!(
        "{}-{}-4{}-8{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..32]
    )
}

pub(super) fn mcp(setting: &LaunchContext) -> Value {
    let server = |server: &Mcp| match server {
        Mcp::Local { command, env } => {
            json!({ "type": "stdio", "command": command.first(), "args": command.get(1..), "env": env })
        }
        Mcp::Remote { url, headers } => json!({ "type": "http", "url": url, "headers": headers }),
    };
    let servers: Map<String, Value> = setting
        .mcp
        .iter()
        .map(|(name, s)| (name.clone(), server(s)))
        .collect();
    json!({ "mcpServers": servers })
}
