//! Sidecar and adapter, end to end: builders in `kit`, a file a subject.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod kit;

mod adapter;
mod attacks;
mod availability;
mod budgets;
mod commands;
mod endings;
#[expect(clippy::disallowed_methods, reason = "a fake that crashes")]
mod fake;
mod fake_lines;
mod framing;
mod limits;
mod live;
mod objects;
mod pod;
mod power;
mod process;
mod recordings;
mod requests;
mod soak;
mod upstreams;
mod usage;
