//! How Gemini CLI is started: its settings, and its history made loadable.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::adapter::runtime::native::write_private_file;
use crate::adapter::runtime::{LaunchContext, LaunchPlan, Permissions, Transport};

pub(super) fn launch(setting: &LaunchContext) -> io::Result<LaunchPlan> {
    let text = |s: &str| s.to_owned();
    let home = setting.home.join("gemini");
    write_private_file(
        &home.join(".gemini/settings.json"),
        &configuration(setting).to_string(),
    )?;
    if let Some(id) = &setting.resume {
        make_loadable(&chats(setting), id)?;
    }
    let (_, model) = setting.model.split_once('/').unwrap_or_default();
    // Trusted, a project could allow its own commands, and lead requests elsewhere: where tools
    // are asked for it is not.
    let (mode, trusted) = if setting.permissions == Permissions::Allow {
        ("yolo", "true")
    } else {
        ("default", "false")
    };
    let env = [
        ("GEMINI_CLI_HOME", home.display().to_string()),
        (
            "GOOGLE_GEMINI_BASE_URL",
            format!("{}/google", setting.sidecar),
        ),
        // Where a project chooses another way to log in, it leads to the sidecar too.
        (
            "GOOGLE_VERTEX_BASE_URL",
            format!("{}/google", setting.sidecar),
        ),
        (
            "CODE_ASSIST_ENDPOINT",
            format!("{}/google", setting.sidecar),
        ),
        ("GEMINI_API_KEY", setting.key.clone()),
        ("GEMINI_CLI_TRUST_WORKSPACE", text(trusted)),
        // What it writes to stderr is held back until it ends, but for this: its retries.
        ("GEMINI_DEBUG_LOG_FILE", text("/dev/stderr")),
        // Else it starts itself twice.
        ("GEMINI_CLI_NO_RELAUNCH", text("true")),
        ("TERM", text("xterm-256color")),
        ("COLORTERM", text("truecolor")),
    ];
    Ok(LaunchPlan {
        args: ["--acp", "--approval-mode", mode, "--model", model]
            .map(text)
            .to_vec(),
        env: env
            .into_iter()
            .map(|(name, value)| (text(name), value))
            .collect(),
        wiring: Transport::Lines {
            version_flag: false,
        },
        warnings: untrusting(setting),
        session: None,
    })
}

/// What it leaves out where it does not trust the project.
pub(super) fn untrusting(setting: &LaunchContext) -> Vec<String> {
    let mut left_out = Vec::new();
    if setting.permissions != Permissions::Allow {
        left_out.push(
            "with permissions, Gemini CLI reads neither `GEMINI.md` nor `.gemini/` of the project: what stands there could run without asking".to_owned(),
        );
        if !setting.mcp.is_empty() {
            left_out.push(
                "`project.mcpServers`: with permissions, Gemini CLI connects none".to_owned(),
            );
        }
    }
    left_out
}

pub(super) fn configuration(setting: &LaunchContext) -> Value {
    // Without a choice of how to log in it does not start; and nothing is sent elsewhere.
    let mut excluded = vec!["ask_user"];
    if !setting.subagents {
        excluded.push("invoke_agent");
    }
    if setting.permissions == Permissions::Deny && !setting.allows_commands() {
        // What it takes for harmless it would run without asking.
        excluded.push("run_shell_command");
    }
    let mut settings = json!({
        "security": { "auth": { "selectedType": "gemini-api-key" } },
        "privacy": { "usageStatisticsEnabled": false },
        "telemetry": { "enabled": false },
        // Ten attempts would take four minutes to say that a provider is gone.
        "general": { "enableAutoUpdate": false, "enableAutoUpdateNotification": false, "maxAttempts": 3 },
        "experimental": { "enableAgents": setting.subagents },
        "tools": { "exclude": excluded },
    });
    let allowed: Vec<String> = setting.allowed_tools.iter().map(|t| allowed(t)).collect();
    if !allowed.is_empty() {
        settings["tools"]["allowed"] = json!(allowed);
    }
    settings
}

/// A tool that needs no permission, from Claude Code's spelling: `Bash(git *)` is
/// `run_shell_command(git)`.
pub(super) fn allowed(tool: &str) -> String {
    let (name, pattern) = tool
        .split_once('(')
        .map_or((tool, ""), |(n, p)| (n, p.trim_end_matches(')')));
    let native = match name {
        "Bash" => "run_shell_command",
        "Read" => "read_file",
        "Write" => "write_file",
        "Edit" | "MultiEdit" => "replace",
        "Glob" => "glob",
        "Grep" => "search_file_content",
        "WebFetch" => "web_fetch",
        "WebSearch" => "google_web_search",
        other => return other.replacen("mcp__", "mcp_", 1).replacen("__", "_", 1),
    };
    match pattern.trim_end_matches(['*', ':', ' ']) {
        "" => native.to_owned(),
        prefix => format!("{native}({prefix})"),
    }
}

pub(super) fn chats(setting: &LaunchContext) -> PathBuf {
    setting.home.join("gemini/.gemini/tmp")
}

/// The file of a session is called by the minute of its creation. Loaded in that minute it
/// would be taken for a new one, and overwritten: so it is called by an earlier one. Each load
/// leaves another file of the session behind, with nothing in it; these go.
pub(super) fn make_loadable(tmp: &Path, id: &str) -> io::Result<()> {
    let Some(short) = id.get(..8) else {
        return Ok(());
    };
    let ending = format!("-{short}.jsonl");
    for project in std::fs::read_dir(tmp).into_iter().flatten().flatten() {
        let files = std::fs::read_dir(project.path().join("chats"))
            .into_iter()
            .flatten()
            .flatten();
        let mut files: Vec<_> = files
            .filter(|f| f.file_name().to_string_lossy().ends_with(&ending))
            .map(|f| f.path())
            .collect();
        files.sort_by_key(|path| std::fs::metadata(path).map_or(0, |m| m.len()));
        let Some(history) = files.pop() else { continue };
        for empty in files {
            std::fs::remove_file(empty)?;
        }
        let earlier = (jiff::Timestamp::now() - jiff::SignedDuration::from_mins(2))
            .strftime("session-%Y-%m-%dT%H-%M")
            .to_string();
        let named = history
            .file_name()
            .is_some_and(|name| *name.to_string_lossy() < *earlier);
        if !named {
            std::fs::rename(&history, history.with_file_name(earlier + &ending))?;
        }
    }
    Ok(())
}
