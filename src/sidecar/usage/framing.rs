//! How a reply carries its documents.

/// How a reply is divided into JSON documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Document,
    Sse,
    /// One document a line (NDJSON).
    Lines,
}

impl Framing {
    /// By the reply's `content-type`.
    pub fn of(content_type: &str) -> Option<Framing> {
        let essence = content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => Some(Framing::Document),
            "text/event-stream" => Some(Framing::Sse),
            "application/x-ndjson" | "application/jsonl" => Some(Framing::Lines),
            _ => None,
        }
    }
}
