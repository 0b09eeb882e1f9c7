//! The two ports: events out on `:3100`, input in on `:8788`.

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
