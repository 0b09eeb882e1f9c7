//! Logs: one line per event, JSON or text, on standard error.
//!
//! `RUST_LOG` is not read: at `trace`, libraries print headers, and headers hold keys.
//! Control characters in values are escaped by both formats.
//!
//! Lines are written by a thread of their own, from a bounded queue: standard error that nobody
//! drains costs log lines, never a request. The lines that were dropped are counted.

use std::sync::OnceLock;

use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that may wait to be written, some 2 MiB.
const MAX_WAITING: usize = 4096;

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Lines that found no place in the queue.
pub fn dropped() -> usize {
    DROPPED.get().map_or(0, ErrorCounter::dropped_lines)
}

/// Starts logging. What it returns writes the lines that wait when it is dropped, as far as
/// standard error takes them.
pub fn start(level: Level, json: bool) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_WAITING)
        .thread_name("log")
        .finish(std::io::stderr());
    let _ = DROPPED.set(writer.error_counter());
    // Only our own events below warnings: a library's are not ours to vouch for.
    let filter = Targets::new()
        .with_default(Level::WARN.min(level))
        .with_target("outrigger", level);
    let registry = tracing_subscriber::registry();
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_target(false)
        .with_ansi(false);
    let _ = if json {
        registry
            .with(
                layer
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_span_list(false)
                    .with_filter(filter),
            )
            .try_init()
    } else {
        registry.with(layer.with_filter(filter)).try_init()
    };
    guard
}
