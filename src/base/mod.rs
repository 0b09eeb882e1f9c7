//! The leaf: what both halves stand on. Knows no provider and no agent.

pub mod disk;
pub mod framing;
pub mod harden;
pub mod intern;
pub mod json;
pub mod logging;
pub mod settings;
pub mod sse;
pub mod sync;
pub mod token;
mod utf8;
