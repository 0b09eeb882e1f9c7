//! The page at `:3100/`: one file, without anything from elsewhere.

pub const PAGE: &str = include_str!("index.html");

/// Only this page's own script and style, and only to this port.
pub const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
