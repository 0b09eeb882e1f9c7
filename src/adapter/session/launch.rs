//! What the CLI is started with.

use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::adapter::config::AdapterConfig;
use crate::adapter::runtime::{LaunchContext, LaunchPlan};
use crate::adapter::session::Session;
use crate::adapter::session::running::CliExit;
use crate::adapter::trouble::Component;
use crate::base::disk::is_full;

/// Between two tries to write its settings on a full disk.
pub(crate) const DISK_EVERY: Duration = Duration::from_millis(500);

/// The host of `http://host:port`.
pub(crate) fn host(url: &str) -> &str {
    let host = url
        .trim_start_matches("http://")
        .split('/')
        .next()
        .unwrap_or_default();
    match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => host,
    }
}

/// Where the user's own settings are. `None` where neither `XDG_CONFIG_HOME` nor `HOME` says it:
/// nothing is written then, least of all into the working directory.
fn user_config(config: &AdapterConfig) -> Option<PathBuf> {
    let var = |name: &str| {
        let ours = config.env.iter().find(|(n, _)| n == name);
        ours.map(|(_, value)| value.into())
            .or_else(|| std::env::var_os(name))
    };
    let named = var("XDG_CONFIG_HOME").filter(|_| config.inherit_env);
    config_dir(named, var("HOME"))
}

fn config_dir(named: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |value: OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    let below_home = || Some(home.and_then(absolute)?.join(".config"));
    named.and_then(absolute).or_else(below_home)
}

/// What the registry's runtime is given.
pub(super) fn setting(
    config: &AdapterConfig,
    session_id: &str,
    resume: Option<String>,
    random: String,
) -> LaunchContext {
    LaunchContext {
        session_id: session_id.to_owned(),
        model: config.native_model.clone(),
        sidecar: config.sidecar.clone(),
        key: config.key.clone(),
        workdir: config.workdir.clone(),
        permissions: config.permissions,
        allowed_tools: config.allowed_tools.clone(),
        mcp: config.mcp.clone(),
        subagents: config.subagents,
        interactive: !config.oneshot,
        home: config.home.clone(),
        user_config: user_config(config),
        resume,
        random,
    }
}

impl Session {
    /// Writes what the CLI reads. A full disk is waited for.
    pub(super) async fn prepare(&mut self, setting: &LaunchContext) -> Result<LaunchPlan, CliExit> {
        loop {
            let private = std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&setting.home);
            let e = match private.and_then(|()| (self.config.runtime.launch)(setting)) {
                Ok(launch) => {
                    self.troubles.clear(Component::Settings);
                    return Ok(launch);
                }
                Err(e) => e,
            };
            let why = format!(
                "what the CLI reads cannot be written into `{}`: {e}",
                setting.home.display()
            );
            if !is_full(&e) {
                return Err(CliExit::Crashed {
                    why,
                    status: None,
                    stderr: String::new(),
                    was_ready: false,
                });
            }
            if self.troubles.set(Component::Settings, &why) {
                tracing::error!("{why}; the CLI is not started until it can");
            }
            if let Some(end) = self.pause(DISK_EVERY, "starting").await {
                return Err(CliExit::Ended(end));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_home_there_is_no_place_for_settings() {
        let dir = |named: &str, home: &str| config_dir(Some(named.into()), Some(home.into()));
        assert_eq!(config_dir(None, None), None);
        assert_eq!(dir("", ""), None);
        assert_eq!(dir("settings", "home"), None);
        assert_eq!(dir("", "/home/a"), Some("/home/a/.config".into()));
        assert_eq!(dir("/settings", ""), Some("/settings".into()));
    }
}
