//! What `up` writes and where.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::settings_in;
use crate::adapter::config::{self, Flags};
use crate::adapter::process;
use crate::adapter::runtime::registry;
use crate::base::token::random_hex;
use crate::cli;
use crate::command::{Exit, broken, fail, place};
use crate::sidecar::server;

/// Where everything is.
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) stream: SocketAddr,
    pub(super) input: SocketAddr,
    pub(super) proxy: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) provider: SocketAddr,
}

/// Finds the mistakes in what was given, and looks for the CLI, before a directory is made or a
/// process started: else the banner would promise what does not come.
pub(super) fn look_before(args: &cli::UpArgs) -> Result<(), Exit> {
    if let Some(path) = &args.sidecar_config {
        server::read_config(path).map_err(|problems| broken(&place(Some(path)), &problems))?;
    }
    for origin in &args.origin {
        config::check_origin(origin)
            .map_err(|why| fail(Exit::Usage, &format!("`--origin`: {why}")))?;
    }
    let agent = args.session.agent.clone();
    let flags = Flags {
        runtime: agent.runtime,
        model: agent.model,
        tier: agent.tier,
        permissions: args.session.permissions.clone(),
        // Made only when everything else is right.
        workdir: Some(std::env::temp_dir()),
        ..Flags::default()
    };
    let path = args.adapter_config.as_deref();
    let config = config::load(path, &flags, &|name| std::env::var(name).ok())
        .map_err(|problems| broken(&place(path), &problems))?;
    let program = args
        .program
        .as_ref()
        .map(|program| program.display().to_string())
        .or(config.program);
    let program = program.as_deref().unwrap_or(config.runtime.program);
    let setting = if path.is_some() {
        config.runtime.program_setting()
    } else {
        "--program".to_owned()
    };
    match process::find(program, std::env::var_os("PATH").as_ref()) {
        Some(_) => Ok(()),
        None => Err(fail(
            Exit::Unavailable,
            &config.runtime.not_found(program, &setting),
        )),
    }
}

/// Each port must be free: else another program would answer for us.
pub(super) fn free(args: &cli::UpArgs, layout: &Layout) -> Result<(), String> {
    let ours = [("the console", layout.stream), ("input", layout.input)];
    let theirs = [
        ("the proxy", layout.proxy),
        ("the proxy's admin port", layout.admin),
        ("the scripted provider", layout.provider),
    ];
    let theirs = theirs.into_iter().filter(|_| args.sidecar_config.is_none());
    for (what, address) in ours.into_iter().chain(theirs) {
        if let Err(e) = std::net::TcpListener::bind(address) {
            return Err(format!(
                "port {} is needed for {what}: {e}\nhint: another `outrigger up` may run; `--port` names the first of five others",
                address.port()
            ));
        }
    }
    Ok(())
}

/// One id for both halves, so that audit and events can be joined. `None`: a session of an
/// earlier version goes on, whose id only its journal has.
pub(super) fn session_id(args: &cli::UpArgs, layout: &Layout) -> Result<Option<String>, String> {
    let (session, file) = (layout.dir.join("session"), layout.dir.join("session-id"));
    if args.fresh && session.exists() {
        std::fs::remove_dir_all(&session)
            .map_err(|e| format!("cannot remove the session in `{}`: {e}", session.display()))?;
    }
    match std::fs::read_to_string(&file) {
        Ok(id) if !args.fresh => return Ok(Some(id.trim().to_owned())),
        _ if session.join("events").exists() => return Ok(None),
        _ => {}
    }
    let id = format!("ses_{}", random_hex());
    std::fs::write(&file, &id).map_err(|e| format!("cannot write `{}`: {e}", file.display()))?;
    Ok(Some(id))
}

pub(super) fn audit_of(config: &Path) -> String {
    match settings_in(config)["audit"]["file"].as_str() {
        Some("-") => "on the standard output".to_owned(),
        Some(file) => file.to_owned(),
        None => format!("where `{}` says", config.display()),
    }
}

pub(super) fn lay_out(args: &cli::UpArgs) -> Result<Layout, String> {
    let dir = std::path::absolute(&args.dir).map_err(|e| e.to_string())?;
    for sub in ["home", "secrets/rehearsal"] {
        std::fs::create_dir_all(dir.join(sub))
            .map_err(|e| format!("cannot make `{}`: {e}", dir.join(sub).display()))?;
    }
    let at = |offset: u16| {
        args.port
            .checked_add(offset)
            .map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))
            .ok_or_else(|| format!("`--port {}`: five ports are needed from there on; the largest that can be given is 65531", args.port))
    };
    Ok(Layout {
        dir,
        stream: at(0)?,
        input: at(1)?,
        proxy: at(2)?,
        admin: at(3)?,
        provider: at(4)?,
    })
}

/// A configuration of the sidecar whose providers are the scripted one.
pub(super) fn rehearsed(layout: &Layout) -> Result<PathBuf, String> {
    let Layout {
        dir,
        proxy,
        admin,
        provider,
        ..
    } = layout;
    let (dir_text, write) = (dir.display(), |path: &Path, text: &str| {
        std::fs::write(path, text).map_err(|e| format!("cannot write `{}`: {e}", path.display()))
    });
    write(
        &dir.join("secrets/rehearsal/key"),
        "sk-rehearsal-not-a-real-key\n",
    )?;
    let config = dir.join("sidecar.yaml");
    let yaml = format!(
        "listen: {proxy}\nadmin: {admin}\nsecretsDir: {dir_text}/secrets\naudit: {{ file: {dir_text}/audit.jsonl }}\nlog: {{ format: text, level: warn }}\n\
         aiProviders:\n  \
         anthropic: {{ baseUrl: \"http://{provider}\", secretRef: {{ name: rehearsal, key: key }} }}\n  \
         openai: {{ baseUrl: \"http://{provider}/v1\", secretRef: {{ name: rehearsal, key: key }} }}\n  \
         google: {{ baseUrl: \"http://{provider}\", secretRef: {{ name: rehearsal, key: key }} }}\n\
         permissionGrants:\n  - scope: ai.anthropic:claude-*\n  - scope: ai.openai:gpt-*\n  - scope: ai.google:gemini-*\n"
    );
    write(&config, &yaml)?;
    Ok(config)
}

/// The adapter's configuration: the user's, or what the flags say of it.
pub(super) fn adapter_config(
    args: &cli::UpArgs,
    layout: &Layout,
) -> Result<Option<PathBuf>, String> {
    if args.adapter_config.is_some() || (args.program.is_none() && args.origin.is_empty()) {
        return Ok(args.adapter_config.clone());
    }
    let mut yaml = serde_json::json!({});
    if let Some(program) = &args.program {
        let runtime = args
            .session
            .agent
            .runtime
            .clone()
            .unwrap_or_else(|| registry::ALL[0].id.into());
        let program = std::path::absolute(program).map_err(|e| e.to_string())?;
        yaml["agents"] =
            serde_json::json!({ "agentRuntimes": { runtime: { "program": program } } });
    }
    if !args.origin.is_empty() {
        yaml["listen"] = serde_json::json!({ "origins": args.origin });
    }
    let config = layout.dir.join("adapter.yaml");
    std::fs::write(&config, yaml.to_string())
        .map_err(|e| format!("cannot write `{}`: {e}", config.display()))?;
    Ok(Some(config))
}
