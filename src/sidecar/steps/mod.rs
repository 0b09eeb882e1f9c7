//! The steps of a request, one file or folder each. `proxy.rs` calls them in this order: guard,
//! route, body, model, scope, limit, sign, upstream, relay. No step calls another.

pub mod body;
pub mod guard;
pub mod limit;
pub mod model;
pub mod relay;
pub mod route;
pub mod scope;
pub mod sign;
pub mod upstream;
