//! `outrigger sidecar`: harden the process, start, wait for a signal, drain.

use super::{Exit, Signals, broken, fail, place, print};
use crate::base::{harden, logging};
use crate::cli;
use crate::sidecar::config::{LogFormat, SidecarConfig};
use crate::sidecar::server::{self, Sidecar, StartError};

pub fn run(args: &cli::SidecarArgs) -> Exit {
    // First of all: nothing that is read below may be readable to others.
    let hardened = harden::this_process();
    let (config, advice) = match server::read_config(&args.config) {
        Ok(read) => read,
        Err(problems) => return broken(&place(Some(&args.config)), &problems),
    };
    if args.check {
        return match server::check(&config) {
            Ok(()) => {
                let advice: String = advice
                    .iter()
                    .map(|what| format!("warning: {what}\n"))
                    .collect();
                print(&format!("{advice}`{}` is good\n", args.config.display()))
            }
            Err(StartError::Config(problems)) => broken(&place(Some(&args.config)), &problems),
            Err(StartError::Unavailable(why)) => fail(Exit::Unavailable, &why),
        };
    }
    let _log = logging::start(config.log.level, config.log.format == LogFormat::Json);
    for weakness in hardened.into_iter().chain(advice) {
        tracing::warn!("{weakness}");
    }
    keep_freed_memory();
    match runtime(&config) {
        Ok(runtime) => runtime.block_on(serve(args)),
        Err(e) => fail(Exit::Unavailable, &format!("cannot start: {e}")),
    }
}

/// Has glibc keep up to twice this much freed memory at the end of its heap. By default it gives
/// everything beyond 128 KiB back to the kernel and fetches it again with the next body; it keeps
/// more once a block that it had mapped is freed (`M_TRIM_THRESHOLD` in mallopt(3)).
const HEAP_BLOCK: usize = 512 * 1024;

fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(HEAP_BLOCK)));
}

fn runtime(config: &SidecarConfig) -> std::io::Result<tokio::runtime::Runtime> {
    // One thread serves more streams than a pod's agent can open; more only help where
    // several sessions share a sidecar.
    let mut builder = if config.workers == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    builder.worker_threads(config.workers).enable_all().build()
}

async fn serve(args: &cli::SidecarArgs) -> Exit {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(e) => return fail(Exit::Unavailable, &format!("cannot handle signals: {e}")),
    };
    let sidecar = match Sidecar::start(&args.config, args.session_id.clone()).await {
        Ok(sidecar) => sidecar,
        Err(StartError::Config(problems)) => return broken(&place(Some(&args.config)), &problems),
        Err(StartError::Unavailable(why)) => return fail(Exit::Unavailable, &why),
    };
    tracing::info!(address = %sidecar.addr, admin = sidecar.admin.map(tracing::field::display), session = sidecar.shared.ledger.session(), "ready");
    signals.next().await;
    tracing::info!("draining");
    sidecar
        .stop(async {
            signals.next().await;
        })
        .await;
    tracing::info!("stopped");
    Exit::Ok
}
