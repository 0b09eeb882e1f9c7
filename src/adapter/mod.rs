//! The untrusted half: starts the CLI, turns what it says into events on `:3100`, takes input
//! on `:8788`. Never imports `sidecar`.

pub mod assembly;
pub mod config;
mod console;
pub mod environment;
pub mod inbox;
pub mod journal;
pub mod lifecycle;
pub mod port;
pub mod process;
mod protocol;
pub mod runtime;
pub mod server;
pub mod session;
mod state;
pub mod transport;
pub mod trouble;

pub use port::openapi::document as openapi;
