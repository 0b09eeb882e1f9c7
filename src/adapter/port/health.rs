//! `GET /health` and `GET /readyz`, on both ports.

use serde_json::json;

use crate::adapter::port::access::{PortResponse, json_answer};
use crate::adapter::state::AdapterState;

/// Live: nothing stands still that keeps events or inputs from being written, and the session is
/// not over.
pub fn health(shared: &AdapterState) -> PortResponse {
    let well = shared.state() != "ended" && !shared.troubles.stop_the_session();
    answer(well, if well { "ok" } else { "failing" }, shared)
}

/// Ready: inputs are delivered as they come.
pub fn readiness(shared: &AdapterState) -> PortResponse {
    let working = matches!(shared.state(), "idle" | "busy");
    let ready =
        working && !shared.troubles.stop_the_session() && !shared.troubles.waits_for_sidecar();
    answer(ready, if ready { "ready" } else { "not ready" }, shared)
}

fn answer(well: bool, status: &str, shared: &AdapterState) -> PortResponse {
    json_answer(
        if well { 200 } else { 503 },
        &json!({ "status": status, "state": shared.state(), "trouble": shared.troubles.text() }),
    )
}
