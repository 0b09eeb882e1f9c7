//! What grants have spent: counted while serving ([`limiter`]), kept on disk across restarts
//! ([`state`]).

pub mod limiter;
pub mod state;
