//! `outrigger adapter`: refuse to run beside a key, start, reap, end with the session.

use std::io::Write;
use std::path::PathBuf;

use super::{Exit, Signals, broken, fail, place, print};
use crate::adapter::config::{self, AdapterConfig, Flags};
use crate::adapter::server::RunningAdapter;
use crate::adapter::session::stop::Ended;
use crate::adapter::{environment, process};
use crate::base::{disk, harden, logging};
use crate::cli;
use crate::event::{SessionEndReason, TurnEndReason};

pub(super) const DEFAULT: &str = "/etc/outrigger/adapter.yaml";

/// Where the sidecar's keys are mounted, unless it is told otherwise.
const SECRETS: &str = "/run/secrets/outrigger";

pub fn run(args: &cli::AdapterArgs) -> Exit {
    let path = args
        .config
        .clone()
        .or_else(|| Some(PathBuf::from(DEFAULT)).filter(|p| p.exists()));
    let config = match config::load(path.as_deref(), &flags(args), &|name| {
        std::env::var(name).ok()
    }) {
        Ok(config) => config,
        Err(problems) => return broken(&place(path.as_deref()), &problems),
    };
    let keys = keys_within_reach(&config.allow_env);
    if !keys.is_empty() {
        return broken("the agent's container", &keys);
    }
    if args.check {
        let name = place(path.as_deref());
        let problems = missing(&config);
        for warning in &config.warnings {
            let _ = writeln!(std::io::stderr(), "warning: {warning}");
        }
        return if problems.is_empty() {
            print(&format!("{name} is good\n"))
        } else {
            broken(&name, &problems)
        };
    }
    let hardened = harden::this_process();
    let _log = logging::start(tracing::Level::INFO, false);
    for weakness in hardened {
        tracing::warn!("{weakness}");
    }
    process::adopt_orphans();
    // One thread serves the ports; the session has its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve(config)),
        Err(e) => fail(Exit::Unavailable, &format!("cannot start: {e}")),
    }
}

/// What a start would not find.
fn missing(config: &AdapterConfig) -> Vec<String> {
    let mut problems = Vec::new();
    let program = config.program.as_deref().unwrap_or(config.runtime.program);
    if process::find(program, std::env::var_os("PATH").as_ref()).is_none() {
        problems.push(
            config
                .runtime
                .not_found(program, &config.runtime.program_setting()),
        );
    }
    if let Err(why) = disk::can_be_made(&config.journal) {
        problems.push(format!(
            "the journal `{}` cannot be made: {why}",
            config.journal.display()
        ));
    }
    problems
}

fn flags(args: &cli::AdapterArgs) -> Flags {
    let session = args.session.clone();
    Flags {
        runtime: session.agent.runtime,
        model: session.agent.model,
        tier: session.agent.tier,
        prompt: session.prompt,
        permissions: session.permissions,
        resume: args.resume.clone(),
        session_id: args.session_id.clone(),
        workdir: args.workdir.clone(),
        journal: args.journal.clone(),
        home: None,
        stream: args.stream,
        input: args.input,
        sidecar: args.sidecar.clone(),
        clean_env: args.clean_env,
    }
}

/// What the agent could steal. The sidecar is there so that there is nothing.
pub(super) fn keys_within_reach(allowed: &[String]) -> Vec<String> {
    let mut found: Vec<String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, value)| environment::holds_a_key(name) && !allowed.contains(name) && !value.to_str().is_some_and(environment::is_placeholder))
        .map(|(name, _)| format!("the variable `{name}` holds a key that the agent could read\nhint: give keys to the sidecar's container only; a CLI that wants one takes `outrigger`"))
        .collect();
    if std::fs::read_dir(SECRETS).is_ok() {
        found.push(format!("the secrets in `{SECRETS}` can be read\nhint: mount them into the sidecar's container only"));
    }
    found.sort();
    found
}

async fn serve(config: AdapterConfig) -> Exit {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(e) => return fail(Exit::Unavailable, &format!("cannot handle signals: {e}")),
    };
    let reaper = tokio::spawn(async {
        if let Err(e) = process::keep_reaping().await {
            tracing::error!(error = %e, "processes that the CLI leaves behind are not waited for");
        }
    });
    let mut adapter = match RunningAdapter::start(config).await {
        Ok(adapter) => adapter,
        Err(why) => return fail(Exit::Unavailable, &why),
    };
    tracing::info!(stream = %adapter.stream, input = %adapter.input, session = adapter.shared.session_id, "ready");
    let session_id = adapter.shared.session_id.clone();
    let mut asked = false;
    let ended = loop {
        tokio::select! {
            ended = adapter.ended() => break ended,
            // Asked again: whatever is still in the way is left behind.
            _ = signals.next() => {
                if asked {
                    break None;
                }
                asked = true;
                tracing::info!("stopping the session");
                adapter.terminate().await;
            }
        }
    };
    adapter.close().await;
    reaper.abort();
    if ended.is_none() {
        process::sweep(&session_id).await;
    }
    let Some(Ended { reason, outcome }) = ended else {
        return fail(Exit::Unavailable, "stopped before the session had ended");
    };
    tracing::info!(?reason, "the session is over");
    match (reason, outcome) {
        (SessionEndReason::Crashed, _) => Exit::Unavailable,
        (SessionEndReason::Completed, Some(TurnEndReason::Error)) => Exit::Unavailable,
        _ => Exit::Ok,
    }
}
