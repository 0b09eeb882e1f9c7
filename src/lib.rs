//! Outrigger: a sidecar that keeps provider keys out of coding-agent containers, and an adapter
//! that turns any coding CLI into one stream of events.
//!
//! Looking for X? Open Y.
//!
//! | X | Y |
//! |---|---|
//! | the way of a request through the sidecar | `sidecar/proxy.rs` |
//! | a step of it | `sidecar/steps/<step>.rs` or `sidecar/steps/<step>/` |
//! | host, origin, method and content type of a request | `sidecar/steps/guard.rs` |
//! | which endpoint a path leads to | `sidecar/steps/route/` |
//! | the limits of a body, its memory, gzip and zstd | `sidecar/steps/body/` |
//! | which keys of a request decide | `sidecar/steps/model/keys.rs` |
//! | scopes, grants and model globs | `sidecar/policy.rs`, `sidecar/steps/scope.rs` |
//! | rates, concurrency and budgets | `sidecar/steps/limit.rs`, `sidecar/ledger/limiter.rs` |
//! | headers to the provider, and its key | `sidecar/steps/sign.rs` |
//! | DNS, private addresses, TLS | `sidecar/steps/upstream/` |
//! | the bytes of a reply | `sidecar/steps/relay/` |
//! | where a key comes from | `sidecar/credential/` |
//! | a key in a reply | `sidecar/redact.rs` |
//! | what a request can cost and what it did cost | `sidecar/billing.rs`, `sidecar/usage/` |
//! | what grants have spent, on disk | `sidecar/ledger/state.rs` |
//! | what is written down about a request, and the chain of records | `sidecar/record.rs`, `sidecar/audit/` |
//! | error codes, and how clients are told | `sidecar/refusal.rs` |
//! | lists of models cut down to what is granted | `sidecar/models.rs` |
//! | metrics, health and the operators' port | `sidecar/metrics.rs`, `sidecar/admin.rs` |
//! | a provider | `sidecar/provider/<provider>.rs`, listed in `sidecar/provider/registry.rs` |
//! | what operators configure | `sidecar/config/`, `config/sidecar.yaml` |
//! | the session behind the adapter | `adapter/session/mod.rs` |
//! | the way of an event | `adapter/session/output.rs`, `adapter/session/stream.rs` |
//! | the way of an input | `adapter/session/input.rs`, `adapter/session/delivery.rs` |
//! | when a CLI is started, stopped and started again | `adapter/session/cli/`, `adapter/session/restarts.rs` |
//! | the environment of the CLI | `adapter/environment.rs` |
//! | the rules of every stream | `adapter/lifecycle.rs` |
//! | the events on disk | `adapter/journal/` |
//! | inputs that wait | `adapter/inbox/` |
//! | a runtime (a CLI) | `adapter/runtime/<runtime>/`, listed in `adapter/runtime/registry.rs` |
//! | what translators share | `adapter/runtime/native.rs`, `adapter/runtime/in_flight.rs`, `adapter/runtime/items.rs`, `adapter/runtime/error_code.rs` |
//! | the routes of `:3100` and `:8788` | `adapter/port/stream.rs`, `adapter/port/input.rs` |
//! | who may use the ports | `adapter/port/access.rs`, `adapter/port/tickets.rs` |
//! | other shapes of the stream | `adapter/protocol/` |
//! | the page at `:3100` | `adapter/console/` |
//! | what UIs are sent | `event/` |
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
