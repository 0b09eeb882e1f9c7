//! What changes while the sidecar runs: its configuration and its credentials.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::base::settings;
use crate::sidecar::config::{Fixed, Loaded};
use crate::sidecar::credential::SecretKind;
use crate::sidecar::state::SidecarState;
use crate::sidecar::{advice, config};

/// How often files are looked at: grants within 1 s, keys within 2 s, with room to spare.
pub(crate) const LOOK: Duration = Duration::from_millis(250);

/// How long the threads that follow files get to end.
pub(crate) const FOLLOWERS_END: Duration = Duration::from_millis(500);

/// A body that takes longer makes room for a new connection before an idle one does.
pub(crate) const SLOW: Duration = Duration::from_secs(1);

/// Follows the configuration, the keys in files, and the keys that programs print, each on a
/// thread of its own: a file system or a program that hangs stops none of the others.
pub(crate) fn follow(
    path: &Path,
    shared: &Arc<SidecarState>,
    on: &Arc<AtomicBool>,
    running: Fixed,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let mut last = settings::read(path).unwrap_or_default();
    let (path, files, on_files) = (path.to_path_buf(), shared.clone(), on.clone());
    let grants = std::thread::Builder::new()
        .name("follow".into())
        .spawn(move || {
            while on_files.load(Ordering::Acquire) {
                std::thread::sleep(LOOK);
                reload(&files, &path, &mut last, &running);
            }
        })?;
    let keys = shared.clone();
    let keys = std::thread::Builder::new()
        .name("keys".into())
        .spawn(move || {
            while !keys.secrets.is_stopping() {
                keys.secrets.wait(LOOK);
                refresh(&keys, SecretKind::Files);
            }
        })?;
    let commands = shared.clone();
    let commands = std::thread::Builder::new()
        .name("credentials".into())
        .spawn(move || {
            while !commands.secrets.is_stopping() {
                refresh(&commands, SecretKind::Commands);
                std::thread::sleep(LOOK);
            }
        })?;
    Ok(vec![grants, keys, commands])
}

/// Takes a changed configuration, or keeps the last good one and says so.
pub(crate) fn reload(shared: &SidecarState, path: &Path, last: &mut String, running: &Fixed) {
    let now = match settings::read(path) {
        Ok(now) => now,
        Err(e) => {
            if shared.metrics.policy_ok.get() != 0 {
                shared.metrics.reload(false);
                tracing::error!(file = %path.display(), error = %e, "the configuration cannot be read; the last good one serves");
            }
            last.clear();
            return;
        }
    };
    if now == *last {
        return;
    }
    match config::parse(&now) {
        Ok(Loaded { config, policy }) => {
            for what in advice::on(&config, &policy) {
                tracing::warn!("{what}");
            }
            let changed: Vec<&str> = config
                .fixed()
                .into_iter()
                .filter(|setting| !running.contains(setting))
                .map(|(key, _)| key)
                .collect();
            if !changed.is_empty() {
                tracing::warn!(
                    "`{}`: changed, and used after a restart",
                    changed.join("`, `")
                );
            }
            tracing::info!(revision = %policy.revision, grants = policy.grants.len(), "configuration taken");
            shared.policy.store(Arc::new(policy));
            shared.metrics.reload(true);
        }
        Err(problems) => {
            shared.metrics.reload(false);
            tracing::error!(file = %path.display(), "the configuration is broken; the last good one serves:\n{}", problems.join("\n"));
        }
    }
    *last = now;
}

pub(crate) fn refresh(shared: &SidecarState, kind: SecretKind) {
    let policy = shared.policy.load_full();
    let sources = policy.providers.values().filter_map(|p| p.secret.as_ref());
    shared.secrets.refresh(sources, kind);
}
