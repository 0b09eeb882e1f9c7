//! The rules of one request head.

use super::{Fault, HeadState, MAX_HEADER, MAX_HEADERS, MAX_TARGET, fault};

/// Checks a whole head (request line to blank line) and says what follows it.
pub(super) fn check_head(head: &[u8]) -> Result<HeadState, Fault> {
    let mut lines = HeadLines(head);
    let line = lines.next().unwrap_or(Ok(b""))?;
    let (method, version) = check_request_line(line)?;

    let (mut host, mut length, mut chunked) = (0, None, false);
    let mut seen_once = 0u32;
    for (count, line) in lines.enumerate() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if count == MAX_HEADERS {
            return fault(431, "more than 64 headers");
        }
        let (name, value) = check_header(line)?;
        if let Some(i) = SINGLE
            .iter()
            .position(|s| name.eq_ignore_ascii_case(s.as_bytes()))
        {
            if seen_once & (1 << i) != 0 {
                return fault(400, "a header that must stand once is repeated");
            }
            seen_once |= 1 << i;
        }
        if name.eq_ignore_ascii_case(b"host") {
            host += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            length = Some(content_length(value)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") || version != b"HTTP/1.1" {
                return fault(400, "`transfer-encoding` may only be `chunked`");
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"expect")
            && !value.eq_ignore_ascii_case(b"100-continue")
        {
            return fault(417, "`expect` may only be `100-continue`");
        } else if name.contains(&b'_') && is_sensitive_twin(name) {
            return fault(400, "a header name with `_` stands for one with `-`");
        }
    }
    if host != 1 {
        return fault(400, "exactly one `host` header is required");
    }
    if chunked && length.is_some() {
        return fault(400, "`content-length` beside `transfer-encoding`");
    }
    let body = chunked || length.is_some_and(|n| n > 0);
    if body && matches!(method, b"GET" | b"HEAD") {
        return fault(400, "a GET or HEAD request with a body");
    }
    Ok(match length {
        _ if chunked => HeadState::Size(0, 0),
        Some(n) if n > 0 => HeadState::Body(n),
        _ => HeadState::Head,
    })
}

/// Headers that may stand only once. The sidecar or the provider decides by them, and of two values
/// each could take another.
pub(super) const SINGLE: [&str; 12] = [
    "host",
    "content-length",
    "transfer-encoding",
    "content-type",
    "content-encoding",
    "authorization",
    "x-api-key",
    "x-goog-api-key",
    "api-key",
    "expect",
    "upgrade",
    "origin",
];

pub(super) fn is_sensitive_twin(name: &[u8]) -> bool {
    let dashed: Vec<u8> = name
        .iter()
        .map(|&b| {
            if b == b'_' {
                b'-'
            } else {
                b.to_ascii_lowercase()
            }
        })
        .collect();
    SINGLE.iter().any(|s| s.as_bytes() == dashed)
        || dashed.starts_with(b"anthropic-")
        || dashed.starts_with(b"openai-")
}

pub(super) struct HeadLines<'a>(&'a [u8]);

impl<'a> Iterator for HeadLines<'a> {
    type Item = Result<&'a [u8], Fault>;
    fn next(&mut self) -> Option<Self::Item> {
        let lf = memchr::memchr(b'\n', self.0)?;
        let line = &self.0[..lf];
        self.0 = &self.0[lf + 1..];
        Some(match line.strip_suffix(b"\r") {
            Some(line) => Ok(line),
            None => fault(400, "bare line feed in the head"),
        })
    }
}

pub(super) fn check_request_line(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let mut parts = line.split(|&b| b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return fault(400, "not an HTTP/1.1 request");
    };
    if !matches!(
        method,
        b"GET" | b"HEAD" | b"POST" | b"PUT" | b"PATCH" | b"DELETE" | b"OPTIONS"
    ) {
        return fault(405, "the method is not offered");
    }
    match version {
        b"HTTP/1.1" => {}
        b"HTTP/1.0" => return fault(505, "HTTP/1.0 is not spoken here; use HTTP/1.1"),
        _ => return fault(400, "not an HTTP/1.1 request"),
    }
    if target.len() > MAX_TARGET {
        return fault(414, "the request target is longer than 8 KiB");
    }
    if target.first() != Some(&b'/') {
        return fault(400, "the request target must be a path");
    }
    let odd = |b: &u8| {
        !(0x21..0x7f).contains(b)
            || matches!(
                b,
                b'\\' | b'#' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}'
            )
    };
    if target.iter().any(odd) {
        return fault(
            400,
            "a byte in the request target that needs no place in a path",
        );
    }
    Ok((method, version))
}

pub(super) fn check_header(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let Some(colon) = memchr::memchr(b':', line) else {
        return fault(400, "a header without a colon");
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    if name.is_empty() || !name.iter().all(token) {
        return fault(400, "a header name that is no token");
    }
    if line.len() > MAX_HEADER {
        return fault(431, "a header larger than 16 KiB");
    }
    if value.iter().any(|&b| (b < 0x20 && b != b'\t') || b == 0x7f) {
        return fault(400, "a control character in a header");
    }
    Ok((name, value.trim_ascii()))
}

pub(super) fn content_length(value: &[u8]) -> Result<u64, Fault> {
    let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    match std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()) {
        Some(n) if digits => Ok(n),
        _ => fault(400, "`content-length` is not a number"),
    }
}
