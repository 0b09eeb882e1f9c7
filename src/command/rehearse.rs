//! `outrigger rehearse`: the embedded scripted provider alone.

use std::io::Write;

use super::{Exit, broken, fail, place};
use crate::cli;
use crate::rehearsal::{Rehearsal, Script};

pub fn run(args: &cli::RehearseArgs) -> Exit {
    if !args.listen.ip().is_loopback() {
        return fail(
            Exit::Usage,
            &format!(
                "`{}` is not a loopback address; the rehearsal asks nobody for a key\n  hint: use `127.0.0.1:{}`",
                args.listen,
                args.listen.port()
            ),
        );
    }
    let script = match args.script.as_deref().map(Script::load).transpose() {
        Ok(script) => script.unwrap_or_default(),
        Err(problems) => {
            return broken(&place(args.script.as_deref()), &problems);
        }
    };
    if let Some(log) = &args.log
        && let Err(e) = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
    {
        return fail(
            Exit::Usage,
            &format!("`--log`: `{}` cannot be written: {e}", log.display()),
        );
    }
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(serve(args, script)),
        Err(e) => fail(Exit::Unavailable, &format!("cannot start: {e}")),
    }
}

async fn serve(args: &cli::RehearseArgs, script: Script) -> Exit {
    let rehearsal = match Rehearsal::start(args.listen, script, args.log.as_deref()).await {
        Ok(rehearsal) => rehearsal,
        Err(e) => {
            return fail(
                Exit::Unavailable,
                &format!("cannot listen on `{}`: {e}", args.listen),
            );
        }
    };
    let _ = writeln!(std::io::stderr(), "rehearsing on http://{}", rehearsal.addr);
    let mut term = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(term) => term,
        Err(e) => return fail(Exit::Unavailable, &format!("cannot handle signals: {e}")),
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = term.recv() => {}
    }
    rehearsal.stop().await;
    Exit::Ok
}
