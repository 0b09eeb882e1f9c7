//! How pi is started: its models file, its session.

use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::adapter::runtime::native::write_private_file;
use crate::adapter::runtime::{LaunchContext, LaunchPlan, Transport};

pub(super) fn launch(setting: &LaunchContext) -> io::Result<LaunchPlan> {
    let text = |s: &str| s.to_owned();
    let home = setting.home.join("pi");
    let sessions = home.join("sessions");
    std::fs::create_dir_all(&sessions)?;
    let paths = [
        ("anthropic", "anthropic"),
        ("openai", "openai/v1"),
        ("google", "google/v1beta"),
    ];
    let providers: Map<String, Value> = paths
        .iter()
        .map(|(name, path)| {
            (
                (*name).to_owned(),
                json!({ "baseUrl": format!("{}/{path}", setting.sidecar) }),
            )
        })
        .collect();
    write_private_file(
        &home.join("models.json"),
        &json!({ "providers": providers }).to_string(),
    )?;
    let (provider, model) = setting.model.split_once('/').unwrap_or_default();
    let mut args = [
        "--mode",
        "rpc",
        "--provider",
        provider,
        "--model",
        model,
        "--session-dir",
    ]
    .map(text)
    .to_vec();
    args.push(sessions.display().to_string());
    let session = setting.resume.clone().map(|id| {
        let there = has_session(&sessions, &id);
        (id, there)
    });
    if let Some((id, true)) = &session {
        args.extend([text("--session"), id.clone()]);
    }
    let env = [
        ("PI_CODING_AGENT_DIR", home.display().to_string()),
        ("PI_OFFLINE", text("1")),
        ("PI_TELEMETRY", text("0")),
        ("ANTHROPIC_API_KEY", setting.key.clone()),
        ("OPENAI_API_KEY", setting.key.clone()),
        ("GEMINI_API_KEY", setting.key.clone()),
    ];
    let mut warnings = Vec::new();
    if !setting.mcp.is_empty() {
        warnings
            .push("`project.mcpServers`: pi has no tool servers; it runs without them".to_owned());
    }
    if setting.subagents {
        warnings.push("`session.subagents`: pi has none".to_owned());
    }
    Ok(LaunchPlan {
        args,
        env: env
            .into_iter()
            .map(|(name, value)| (text(name), value))
            .collect(),
        wiring: Transport::Lines { version_flag: true },
        warnings,
        session,
    })
}

/// A session's file is written with its first answer.
pub(super) fn has_session(sessions: &Path, id: &str) -> bool {
    std::fs::read_dir(sessions)
        .into_iter()
        .flatten()
        .flatten()
        .any(|file| file.file_name().to_string_lossy().contains(id))
}
