//! The trusted half, on `:11432`. Never imports the adapter.
//!
//! Looking for the way of a request? [`proxy`]. For a step: the file of its name. For a
//! provider: [`provider`].

pub mod admin;
pub mod advice;
pub mod audit;
pub mod billing;
pub mod body;
pub mod config;
pub mod connection;
pub mod guard;
pub mod known_objects;
pub mod ledger;
pub mod limit;
pub mod metrics;
pub mod model;
pub mod models;
pub mod provider;
pub mod proxy;
pub mod record;
pub mod redact;
pub mod refusal;
pub mod relay;
pub mod route;
pub mod scope;
pub mod secret;
pub mod server;
pub mod sign;
pub mod upstream;
pub mod usage;
