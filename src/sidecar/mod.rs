//! The trusted half, on `:11432`. Never imports the adapter.
//!
//! Looking for the way of a request? [`proxy`]. For a step: the file of its name. For a
//! provider: [`provider`].

pub mod activity;
pub mod admin;
pub mod advice;
pub mod audit;
pub mod billing;
pub mod config;
pub mod connection;
pub mod credential;
pub mod id;
pub mod known_objects;
pub mod ledger;
pub mod metrics;
pub mod models;
pub mod policy;
pub mod provider;
pub mod proxy;
pub mod record;
pub mod redact;
pub mod refusal;
pub mod reload;
pub mod response;
pub mod server;
pub mod state;
pub mod steps;
pub mod usage;
