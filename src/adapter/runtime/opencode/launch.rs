//! How opencode is started: its configuration, its permission rules, its environment.

use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::RUNTIME;
use crate::adapter::runtime::native::write_private_file;
use crate::adapter::runtime::{LaunchContext, LaunchPlan, Mcp, Permissions, Transport};
use crate::catalogue::Overrides;

pub(super) fn launch(setting: &LaunchContext) -> io::Result<LaunchPlan> {
    if let Some(dir) = &setting.user_config {
        without_plugin(&dir.join("opencode"));
    }
    let text = |s: &str| s.to_owned();
    #[rustfmt::skip]
    let env = [
        ("OPENCODE_CONFIG_CONTENT", configuration(setting).to_string()),
        ("OPENCODE_SERVER_PASSWORD", setting.random.clone()),
        // Nothing is looked up outside: catalogue, updates, plugins and language servers.
        ("OPENCODE_DISABLE_MODELS_FETCH", text("1")),
        ("OPENCODE_DISABLE_AUTOUPDATE", text("1")),
        ("OPENCODE_DISABLE_DEFAULT_PLUGINS", text("1")),
        ("OPENCODE_DISABLE_LSP_DOWNLOAD", text("1")),
    ];
    Ok(LaunchPlan {
        args: ["serve", "--hostname", "127.0.0.1", "--port", "0"]
            .map(text)
            .to_vec(),
        env: env
            .into_iter()
            .map(|(name, value)| (text(name), value))
            .collect(),
        wiring: Transport::Http {
            announced: |line| {
                line.split_once("opencode server listening on http://")
                    .map(|(_, address)| address.trim().trim_end_matches('/').to_owned())
            },
            authorization: basic("opencode", &setting.random),
            health: "/global/health",
            version: |body| {
                serde_json::from_slice::<Value>(body)
                    .ok()?
                    .get("version")?
                    .as_str()
                    .map(str::to_owned)
            },
            events: "/event",
        },
        warnings: Vec::new(),
        session: None,
    })
}

/// opencode installs its plugin package, from the registry, into every directory of
/// configuration that has no `node_modules`. One that has nothing which needs it is given what
/// such an installation leaves behind, and nothing is fetched.
pub(super) fn without_plugin(config: &Path) {
    let needed = [
        "node_modules",
        "package.json",
        "plugin",
        "plugins",
        "tool",
        "tools",
    ];
    if needed.iter().any(|name| config.join(name).exists()) {
        return;
    }
    let lock = json!({ "lockfileVersion": 3, "packages": { "": { "dependencies": { "@opencode-ai/plugin": "*" } } } });
    let written = std::fs::create_dir_all(config.join("node_modules"))
        .and_then(|()| write_private_file(&config.join("package-lock.json"), &lock.to_string()));
    // Where nobody may write opencode does not install anything either.
    if let Err(e) = written {
        tracing::debug!(error = %e, "the configuration of opencode is left as it is");
    }
}

pub(super) fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    )
}

/// What is merged over the user's and the project's own files, which stay as they are.
pub(super) fn configuration(setting: &LaunchContext) -> Value {
    let mut providers = Map::new();
    for provider in RUNTIME.providers {
        // The mount of the sidecar, where it is called otherwise; and the version in its path.
        let (mount, version) = match *provider {
            "google" => ("google", "v1beta"),
            "togetherai" => ("together", "v1"),
            "fireworks-ai" => ("fireworks", "v1"),
            other => (other, "v1"),
        };
        providers.insert((*provider).into(), json!({ "options": { "baseURL": format!("{}/{mount}/{version}", setting.sidecar), "apiKey": setting.key } }));
    }
    if let Some(model) = setting.model.strip_prefix("ollama/") {
        providers["ollama"]["npm"] = json!("@ai-sdk/openai-compatible");
        providers["ollama"]["models"] = json!({ model: {} });
    }
    if let Some((provider, model)) = setting.model.split_once('/')
        && let Some(known) = described(provider, model)
    {
        providers[provider]["models"] = json!({ model: known });
    }
    let mcp: Map<String, Value> = setting
        .mcp
        .iter()
        .map(|(name, server)| {
            let value = match server {
                Mcp::Local { command, env } => json!({ "type": "local", "command": command, "environment": env, "enabled": true }),
                Mcp::Remote { url, headers } => json!({ "type": "remote", "url": url, "headers": headers, "enabled": true }),
            };
            (name.clone(), value)
        })
        .collect();
    let permission = permission(setting);
    // What a project says of an agent is merged with what is said here, and its patterns count:
    // where tools are asked for, the agent has a name that no project knows.
    let agent = match setting.permissions {
        Permissions::Allow => "build".to_owned(),
        Permissions::Ask | Permissions::Deny => {
            format!("outrigger-{}", setting.random.get(..16).unwrap_or_default())
        }
    };
    let mut agents = json!({ "build": { "permission": permission } });
    agents[&agent] = json!({ "mode": "primary", "permission": permission });
    json!({
        "autoupdate": false,
        "share": "disabled",
        "model": setting.model,
        // Titles and summaries would go to a model that nobody granted.
        "small_model": setting.model,
        // What is in the environment or in a file of the project opens no other way out.
        "enabled_providers": RUNTIME.providers,
        "provider": providers,
        "permission": permission,
        "default_agent": agent,
        "agent": agents,
        "mcp": mcp,
    })
}

/// A model as our own catalogue knows it: opencode refuses one that is newer than itself.
pub(super) fn described(provider: &str, model: &str) -> Option<Value> {
    let price = Overrides::default().price(provider, model)?;
    let cost = [
        ("input", Some(price.input)),
        ("output", Some(price.output)),
        ("cache_read", price.cache_read),
        ("cache_write", price.cache_write),
    ];
    let cost: Map<String, Value> = cost
        .into_iter()
        .filter_map(|(name, usd)| Some((name.to_owned(), usd?.into())))
        .collect();
    Some(json!({
        "limit": { "context": price.max_input?, "output": price.max_output? },
        "cost": cost,
        "tool_call": true,
        "attachment": true,
        "modalities": { "input": ["text", "image", "pdf"], "output": ["text"] },
    }))
}

/// opencode's rules: the last that matches a tool counts.
pub(super) fn permission(setting: &LaunchContext) -> Value {
    let asked = match setting.permissions {
        Permissions::Allow => "allow",
        Permissions::Ask => "ask",
        Permissions::Deny => "deny",
    };
    let mut rules = json!({ "*": "allow", "bash": asked, "edit": asked, "webfetch": asked, "websearch": asked });
    for key in ["external_directory", "doom_loop"] {
        rules[key] = asked.into();
    }
    for name in setting.mcp.keys() {
        rules[format!("{}_*", sanitized(name))] = asked.into();
    }
    for tool in &setting.allowed_tools {
        let (name, pattern) = tool
            .split_once('(')
            .map_or((tool.as_str(), "*"), |(n, p)| (n, p.trim_end_matches(')')));
        let key = match name {
            "Write" | "MultiEdit" | "NotebookEdit" => "edit".into(),
            "WebFetch" => "webfetch".into(),
            "WebSearch" => "websearch".into(),
            mcp if mcp.starts_with("mcp__") => {
                mcp.trim_start_matches("mcp__").replacen("__", "_", 1)
            }
            other => other.to_lowercase(),
        };
        if matches!(key.as_str(), "bash" | "edit") {
            // A project's own patterns would be merged into ours: they are only where ours must be.
            if rules[&key].is_string() {
                rules[&key] = json!({ "*": asked });
            }
            rules[&key][pattern.replace(":*", " *")] = "allow".into();
        } else {
            rules[&key] = "allow".into();
        }
    }
    if !setting.interactive {
        rules["question"] = "deny".into();
    }
    if !setting.subagents {
        rules["task"] = "deny".into();
    }
    rules
}

/// How opencode spells a tool server's name before its tools' names.
pub(super) fn sanitized(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
                c
            } else {
                '_'
            }
        })
        .collect()
}
