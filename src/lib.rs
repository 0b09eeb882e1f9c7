//! Outrigger: a sidecar that keeps provider keys out of coding-agent containers, and an adapter
//! that turns any coding CLI into one stream of events.
//!
//! Looking for X? Open Y.
//!
//! | X | Y |
//! |---|---|
//! | the way of a request through the sidecar | `sidecar/proxy.rs` |
//! | a step of it (guard, route, body, model, scope, limit, sign, upstream, relay) | `sidecar/<step>.rs` or `sidecar/<step>/` |
//! | which keys of a request decide | `sidecar/model/keys.rs` |
//! | what a request can cost and what it did cost | `sidecar/billing.rs`, `sidecar/ledger.rs` |
//! | what is written down of a request, and the chain of records | `sidecar/record.rs`, `sidecar/audit/` |
//! | a provider | `sidecar/provider/<provider>.rs`, listed in `registry.rs` |
//! | what operators configure | `sidecar/config.rs`, `config/sidecar.yaml` |
//! | the session behind the adapter, the way of an event and of an input | `adapter/session.rs` |
//! | a runtime (a CLI) | `adapter/runtime/<runtime>.rs`, listed in `registry.rs` |
//! | what UIs are sent | `event.rs`, `adapter/view.rs` |
//! | the routes of `:3100` and `:8788` | `adapter/stream_api.rs`, `adapter/input_api.rs` |
//! | what a CLI was given, is writing, and means by an error | `adapter/handed.rs`, `adapter/draft.rs`, `adapter/cause.rs` |
//! | what models cost | `catalogue/` |
//! | the embedded scripted provider | `rehearsal/` |
//! | a command | `cli.rs`, `command/<command>.rs` |
//! | JSON, SSE and HTTP parsers | `base/` |

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod adapter;
pub mod base;
pub mod catalogue;
pub mod cli;
pub mod command;
pub mod event;
pub mod rehearsal;
pub mod sidecar;
