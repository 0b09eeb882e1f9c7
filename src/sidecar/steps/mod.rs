//! The steps of a request, one file or folder each. `proxy.rs` calls them in this order: guard,
//! route, body, model, scope, limit, sign, upstream, relay. No step calls another.
//!
//! A request carries its proofs: each step consumes the proof of the step before it and returns
//! one that only it can make. So a request that skipped a step cannot be written down:
//!
//! ```
//! use outrigger::sidecar::steps::{limit::Admitted, sign::Signed, upstream::Upstream};
//! # use {hyper::HeaderMap, outrigger::sidecar::{credential::Store, steps::sign::{self, BodyUse}}};
//! fn signed(admitted: &mut Admitted, client: &HeaderMap, secrets: &Store) -> bool {
//!     sign::sign(admitted, BodyUse::Last, client, secrets).is_ok()
//! }
//! async fn sent(upstream: &Upstream, signed: Signed) -> bool {
//!     upstream.send(signed).await.is_ok()
//! }
//! ```
//!
//! Only what is signed can be sent:
//!
//! ```compile_fail,E0308
//! use outrigger::sidecar::steps::{limit::Admitted, upstream::Upstream};
//! async fn sent(upstream: &Upstream, admitted: Admitted) -> bool {
//!     upstream.send(admitted).await.is_ok()
//! }
//! ```
//!
//! Only what was admitted can be signed:
//!
//! ```compile_fail,E0308
//! use outrigger::sidecar::steps::{scope::Permitted, sign::Signed};
//! # use {hyper::HeaderMap, outrigger::sidecar::{credential::Store, steps::sign::{self, BodyUse}}};
//! fn signed(permitted: &mut Permitted, client: &HeaderMap, secrets: &Store) -> bool {
//!     sign::sign(permitted, BodyUse::Last, client, secrets).is_ok()
//! }
//! ```
//!
//! Only what is permitted can be admitted:
//!
//! ```compile_fail,E0308
//! use outrigger::sidecar::steps::{limit, model::Read};
//! # use outrigger::{catalogue::Overrides, sidecar::ledger::limiter::Ledger};
//! fn admitted(read: Read, ledger: &Ledger, prices: &Overrides) -> bool {
//!     limit::admit(read, ledger, prices).is_ok()
//! }
//! ```
//!
//! Only what was read can be permitted, and nobody but the step can say that it was:
//!
//! ```compile_fail,E0308
//! use outrigger::sidecar::steps::{route::Routed, scope};
//! # use {std::sync::Arc, outrigger::sidecar::{known_objects::KnownObjects, policy::Policy}};
//! fn permitted(routed: Routed, policy: &Arc<Policy>, known: &KnownObjects) -> bool {
//!     scope::check(policy, routed, known).is_ok()
//! }
//! ```
//!
//! ```compile_fail,E0451
//! use outrigger::sidecar::steps::{body::BufferedBody, model::{Read, facts::RequestFacts}, route::Routed};
//! fn read(routed: Routed, body: BufferedBody, facts: RequestFacts) -> Read {
//!     Read { routed, body, facts }
//! }
//! ```

pub mod body;
pub mod guard;
pub mod limit;
pub mod model;
pub mod relay;
pub mod route;
pub mod scope;
pub mod sign;
pub mod upstream;
