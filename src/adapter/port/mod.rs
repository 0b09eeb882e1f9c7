//! The adapter's two HTTP ports: `:3100` serves the events, and `:8788` accepts the inputs.

pub mod access;
pub mod answer;
mod body;
pub mod health;
pub mod inject;
pub mod input;
pub mod openapi;
pub mod stream;
pub mod subscription;
pub mod tickets;
pub mod timeout;
