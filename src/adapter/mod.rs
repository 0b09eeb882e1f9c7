//! The untrusted half: starts the CLI, turns what it says into events on `:3100`, takes input
//! on `:8788`. Never imports `sidecar`.

pub mod balance;
pub mod inbox;
pub mod journal;
pub mod runtime;
