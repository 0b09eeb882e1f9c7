//! The untrusted half: starts the CLI, turns what it says into events on `:3100`, takes input
//! on `:8788`. Never imports `sidecar`.

pub mod balance;
pub mod cause;
pub mod config;
mod console;
pub mod draft;
pub mod handed;
mod health;
mod http;
pub mod inbox;
mod input_api;
pub mod journal;
mod openapi;
pub mod process;
pub mod runtime;
pub mod server;
pub mod session;
mod stream_api;
pub mod transport;
pub mod trouble;
mod view;

pub use openapi::document as openapi;
