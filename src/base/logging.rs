//! Logs: one line an event, JSON or text, on standard error.
//!
//! `RUST_LOG` is not read: at `trace`, libraries print headers, and headers hold keys.
//! Control characters in values are escaped by both formats.

use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub fn start(level: Level, json: bool) {
    // Only our own events below warnings: a library's are not ours to vouch for.
    let filter = Targets::new().with_default(Level::WARN.min(level)).with_target("outrigger", level);
    let registry = tracing_subscriber::registry();
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(false);
    let _ = if json {
        registry.with(layer.json().flatten_event(true).with_current_span(false).with_span_list(false).with_filter(filter)).try_init()
    } else {
        registry.with(layer.with_filter(filter)).try_init()
    };
}
