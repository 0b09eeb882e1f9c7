//! The page at `:3100/`: one file, without anything from elsewhere.

use std::sync::LazyLock;

use base64::Engine;
use hyper::header::HeaderValue;

pub const PAGE: &str = include_str!("index.html");

/// Only this page's own script and style, known by their hashes, and only to this port: what an
/// agent writes can never become a script, whatever the page does with it.
pub fn policy() -> HeaderValue {
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
        let (script, style) = (hash("script"), hash("style"));
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'"
        );
        HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
    });
    POLICY.clone()
}

/// Of what stands between an element's tags.
fn hash(element: &str) -> String {
    let inside = PAGE
        .split_once(&format!("<{element}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{element}>")))
        .map_or("", |(text, _)| text);
    base64::engine::general_purpose::STANDARD.encode(ring::digest::digest(
        &ring::digest::SHA256,
        inside.as_bytes(),
    ))
}
