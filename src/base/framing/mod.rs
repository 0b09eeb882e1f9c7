//! A strict reading of HTTP/1.1 requests on the wire, ahead of hyper.
//!
//! hyper repairs what it can: it drops `Content-Length` beside `Transfer-Encoding`, takes
//! two `Host` headers, bare line feeds, absolute-form targets. A proxy that decides on
//! requests must not, since whoever reads the same bytes differently reads another request
//! (RFC 9112 §11.2). This scanner follows the bytes that hyper is about to get, knows where
//! every head and body begins and ends, and stops at the first that is not in the
//! intersection of what all parsers agree on.
//!
//! Invariants:
//! - Pure: bytes in, verdict out; constant memory (a head is kept only while incomplete).
//! - Whatever passes, hyper frames in the same way: one head, one body, then the next head.

mod head;

use std::fmt;

use self::head::check_head;

pub const MAX_HEAD: usize = 32 * 1024;

pub const MAX_HEADER: usize = 16 * 1024;

pub const MAX_HEADERS: usize = 64;

pub const MAX_TARGET: usize = 8 * 1024;

/// Why a head is refused: the status to answer and what to tell the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub status: u16,
    pub what: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

const fn fault<T>(status: u16, what: &'static str) -> Result<T, Fault> {
    Err(Fault { status, what })
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of the piece may go on.
    Pass,
    /// So many bytes may go on; the head after them is refused.
    BadHead { good: usize, fault: Fault },
    /// So many bytes may go on; the chunked body is broken after them.
    BadBody { good: usize, fault: Fault },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeadState {
    Head,
    Body(u64),
    /// A chunk-size line: digits so far, their value.
    Size(u8, u64),
    SizeLf(u64),
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    EndCr,
    EndLf,
    /// A verdict fell; nothing more passes.
    Dead,
}

/// Follows one connection from its first byte.
#[derive(Debug)]
pub struct HeadScanner {
    state: HeadState,
    /// The part of a head that earlier pieces brought.
    partial: Vec<u8>,
    request_line: String,
}

impl Default for HeadScanner {
    fn default() -> Self {
        HeadScanner {
            state: HeadState::Head,
            partial: Vec::new(),
            request_line: String::new(),
        }
    }
}

impl HeadScanner {
    /// The request line of the head that was refused, as far as it is printable.
    pub fn refused_line(&self) -> &str {
        &self.request_line
    }

    /// Is the connection inside a head that has begun but not ended?
    pub fn mid_head(&self) -> bool {
        self.state == HeadState::Head && !self.partial.is_empty()
    }

    pub fn scan(&mut self, bytes: &[u8]) -> Verdict {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.state {
                HeadState::Head => match self.head(rest) {
                    Ok(Some(used)) => at += used,
                    Ok(None) => return Verdict::Pass,
                    Err(fault) => {
                        self.state = HeadState::Dead;
                        return Verdict::BadHead { good: at, fault };
                    }
                },
                HeadState::Body(left) => {
                    let n = left.min(rest.len() as u64);
                    self.state = if n == left {
                        HeadState::Head
                    } else {
                        HeadState::Body(left - n)
                    };
                    at += n as usize;
                }
                HeadState::Chunk(left) => {
                    let n = left.min(rest.len() as u64);
                    self.state = if n == left {
                        HeadState::ChunkCr
                    } else {
                        HeadState::Chunk(left - n)
                    };
                    at += n as usize;
                }
                HeadState::Dead => {
                    return Verdict::BadHead {
                        good: at,
                        fault: Fault {
                            status: 400,
                            what: "the connection is over",
                        },
                    };
                }
                framing => match chunk_byte(framing, rest[0]) {
                    Some(next) => {
                        self.state = next;
                        at += 1;
                    }
                    None => {
                        self.state = HeadState::Dead;
                        return Verdict::BadBody {
                            good: at,
                            fault: Fault {
                                status: 400,
                                what: "malformed chunked body",
                            },
                        };
                    }
                },
            }
        }
        Verdict::Pass
    }

    /// `Some(n)`: the head ended after `n` bytes of `rest`.
    fn head(&mut self, rest: &[u8]) -> Result<Option<usize>, Fault> {
        if self.partial.is_empty() {
            let found = self.whole_head(rest, 0);
            if let Ok(None) = found {
                self.partial.extend_from_slice(rest);
            }
            return found;
        }
        let mut partial = std::mem::take(&mut self.partial);
        let known = partial.len();
        partial.extend_from_slice(&rest[..rest.len().min(MAX_HEAD + 4)]);
        let found = self.whole_head(&partial, known);
        if let Ok(None) = found {
            self.partial = partial;
        }
        Ok(found?.map(|end| end - known))
    }

    /// Looks for the end of a head of which `known` bytes were looked at before.
    fn whole_head(&mut self, head: &[u8], known: usize) -> Result<Option<usize>, Fault> {
        let checked = match find_end(head, known) {
            Some(end) if end <= MAX_HEAD => check_head(&head[..end]).map(|state| {
                self.state = state;
                Some(end)
            }),
            _ if head.len() > MAX_HEAD => match memchr::memchr(b'\n', &head[..MAX_HEAD]) {
                None => fault(414, "the request target is longer than 8 KiB"),
                Some(_) => fault(431, "the request head is larger than 32 KiB"),
            },
            // Fail early on what can never become a head: TLS, HTTP/2, a bare line feed.
            _ => check_prefix(head, known).map(|()| None),
        };
        if checked.is_err() {
            self.request_line = printable_line(head);
        }
        checked
    }
}

fn printable_line(head: &[u8]) -> String {
    head.iter()
        .take(256)
        .take_while(|b| (0x20..0x7f).contains(*b))
        .map(|&b| b as char)
        .collect()
}

/// Where the head ends (after its blank line). A bare LF blank line ends it too, so that
/// the check sees and refuses it.
fn find_end(head: &[u8], known: usize) -> Option<usize> {
    let mut from = known.saturating_sub(3);
    while let Some(lf) = memchr::memchr(b'\n', &head[from..]) {
        let after = from + lf + 1;
        match head.get(after) {
            Some(b'\n') => return Some(after + 1),
            Some(b'\r') if head.get(after + 1) == Some(&b'\n') => return Some(after + 2),
            _ => from = after,
        }
    }
    None
}

fn check_prefix(head: &[u8], known: usize) -> Result<(), Fault> {
    let line = &head[..memchr::memchr(b'\n', head).unwrap_or(head.len())];
    let method_end = line
        .iter()
        .position(|b| !b.is_ascii_alphabetic() && *b != b'-');
    match method_end {
        Some(n) if (1..=16).contains(&n) && line[n] == b' ' => {}
        None if line.len() <= 16 => {}
        _ => return fault(400, "not an HTTP/1.1 request"),
    }
    if line.starts_with(b"PRI ") {
        return fault(400, "HTTP/2 is not spoken here; use HTTP/1.1");
    }
    if line.len() > MAX_TARGET + 32 {
        return fault(414, "the request target is longer than 8 KiB");
    }
    match memchr::memchr_iter(b'\n', &head[known..])
        .map(|i| i + known)
        .find(|&i| i == 0 || head[i - 1] != b'\r')
    {
        Some(_) => fault(400, "bare line feed in the head"),
        None => Ok(()),
    }
}

/// The strict chunk grammar: `1*16HEXDIG CRLF data CRLF`, no extension, no trailer.
/// No client of a model API sends either, and they are what smuggling is made of.
fn chunk_byte(state: HeadState, b: u8) -> Option<HeadState> {
    Some(match (state, b) {
        (HeadState::Size(0, _), b'\r') => return None,
        (HeadState::Size(_, size), b'\r') => HeadState::SizeLf(size),
        (HeadState::Size(n, size), _) if n < 16 => {
            HeadState::Size(n + 1, size << 4 | u64::from((b as char).to_digit(16)?))
        }
        (HeadState::SizeLf(0), b'\n') => HeadState::EndCr,
        (HeadState::SizeLf(size), b'\n') => HeadState::Chunk(size),
        (HeadState::ChunkCr, b'\r') => HeadState::ChunkLf,
        (HeadState::ChunkLf, b'\n') => HeadState::Size(0, 0),
        (HeadState::EndCr, b'\r') => HeadState::EndLf,
        (HeadState::EndLf, b'\n') => HeadState::Head,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan_all(pieces: &[&[u8]]) -> (Verdict, HeadScanner) {
        let mut s = HeadScanner::default();
        let mut total = 0;
        for p in pieces {
            match s.scan(p) {
                Verdict::Pass => total += p.len(),
                Verdict::BadHead { good, fault } => {
                    return (
                        Verdict::BadHead {
                            good: total + good,
                            fault,
                        },
                        s,
                    );
                }
                bad => return (bad, s),
            }
        }
        (Verdict::Pass, s)
    }

    const TWO: &[u8] =
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nPOST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi";

    #[test]
    fn follows_requests_however_they_are_split() {
        for at in 0..TWO.len() {
            let (a, b) = TWO.split_at(at);
            let (v, s) = scan_all(&[a, b]);
            assert_eq!(v, Verdict::Pass, "split at {at}");
            assert_eq!(s.state, HeadState::Head);
            assert!(!s.mid_head());
        }
        let bytes: Vec<&[u8]> = TWO.chunks(1).collect();
        assert_eq!(scan_all(&bytes).0, Verdict::Pass);
    }

    #[test]
    fn a_bad_second_head_lets_the_first_request_pass() {
        let raw = [TWO, b"GET /c HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n"].concat();
        for at in 0..raw.len() {
            let (a, b) = raw.split_at(at);
            match scan_all(&[a, b]).0 {
                Verdict::BadHead { good, .. } => assert!(good >= TWO.len(), "{good}"),
                v => panic!("{v:?}"),
            }
        }
    }

    #[test]
    fn limits_have_their_own_status() {
        let status = |raw: String| match scan_all(&[raw.as_bytes()]).0 {
            Verdict::BadHead { fault, .. } => fault.status,
            _ => 0,
        };
        assert_eq!(
            status(format!(
                "GET /{} HTTP/1.1\r\nHost: h\r\n\r\n",
                "a".repeat(9000)
            )),
            414
        );
        assert_eq!(
            status(format!(
                "GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n",
                "a".repeat(17_000)
            )),
            431
        );
        assert_eq!(
            status(format!(
                "GET / HTTP/1.1\r\nHost: h\r\n{}\r\n",
                "X: y\r\n".repeat(64)
            )),
            431
        );
        assert_eq!(
            status(format!(
                "GET / HTTP/1.1\r\nHost: h\r\nX: {}",
                "a".repeat(40_000)
            )),
            431
        );
        assert_eq!(
            status("CONNECT x:1 HTTP/1.1\r\nHost: h\r\n\r\n".into()),
            405
        );
        assert_eq!(status("GET / HTTP/1.0\r\nHost: h\r\n\r\n".into()), 505);
        assert_eq!(
            status("GET / HTTP/1.1\r\nHost: h\r\nExpect: x\r\n\r\n".into()),
            417
        );
    }
}
