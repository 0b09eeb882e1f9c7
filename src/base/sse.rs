//! The field-by-field half of a Server-Sent Events parser: which bytes are `data`.
//!
//! Format: WHATWG HTML, "Server-sent events", as every provider's own client reads it: CR,
//! LF or CRLF, a BOM, comments, `data:` with or without a space, several `data` lines an
//! event, a last event without its blank line.
//!
//! Payload bytes are handed on as they arrive, so a stream is read with constant memory
//! whatever the length of its lines and wherever it is cut.

/// A part of an event's payload, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes of the current event's data.
    Data(&'a [u8]),
    /// The event goes on in another `data` line; the two are joined by a line feed.
    NextLine,
    /// The event is over.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SseState {
    /// Start of the stream: bytes of a byte order mark read so far.
    Bom(u8),
    /// Reading a field name; so many of its bytes match `data`.
    Name(u8),
    /// After `data:`, where one space is dropped.
    Space,
    Data,
    /// Comments and fields that carry no payload.
    Ignored,
    /// After CR: an LF belongs to the same line end.
    Cr,
}

#[derive(Debug)]
pub struct SseScanner {
    state: SseState,
    lines: u32,
}

impl Default for SseScanner {
    fn default() -> Self {
        SseScanner {
            state: SseState::Bom(0),
            lines: 0,
        }
    }
}

const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

impl SseScanner {
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut impl FnMut(Piece<'_>)) {
        while let Some(&b) = bytes.first() {
            match self.state {
                SseState::Bom(n) if b == BOM[n as usize] => {
                    self.state = if n == 2 {
                        SseState::Name(0)
                    } else {
                        SseState::Bom(n + 1)
                    };
                    bytes = &bytes[1..];
                }
                SseState::Bom(_) => self.state = SseState::Name(0),
                SseState::Cr => {
                    self.state = SseState::Name(0);
                    if b == b'\n' {
                        bytes = &bytes[1..];
                    }
                }
                SseState::Name(n) => {
                    bytes = &bytes[1..];
                    match b {
                        b'\r' | b'\n' => {
                            if n == 0 {
                                self.blank(out);
                            } else if n == 4 {
                                self.begin_data(out);
                            }
                            self.end_line(b);
                        }
                        b':' if n == 4 => {
                            self.begin_data(out);
                            self.state = SseState::Space;
                        }
                        _ if n < 4 && b == b"data"[n as usize] => {
                            self.state = SseState::Name(n + 1)
                        }
                        _ => self.state = SseState::Ignored,
                    }
                }
                SseState::Space => {
                    self.state = SseState::Data;
                    if b == b' ' {
                        bytes = &bytes[1..];
                    }
                }
                SseState::Data | SseState::Ignored => {
                    let end = memchr::memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len());
                    if self.state == SseState::Data && end > 0 {
                        out(Piece::Data(&bytes[..end]));
                    }
                    if let Some(&b) = bytes.get(end) {
                        self.end_line(b);
                        bytes = &bytes[end + 1..];
                    } else {
                        bytes = &[];
                    }
                }
            }
        }
    }

    /// The stream ended; an event without its blank line still counts.
    pub fn finish(&mut self, out: &mut impl FnMut(Piece<'_>)) {
        self.blank(out);
    }

    fn end_line(&mut self, b: u8) {
        self.state = if b == b'\r' {
            SseState::Cr
        } else {
            SseState::Name(0)
        };
    }

    fn begin_data(&mut self, out: &mut impl FnMut(Piece<'_>)) {
        if self.lines > 0 {
            out(Piece::NextLine);
        }
        self.lines += 1;
    }

    fn blank(&mut self, out: &mut impl FnMut(Piece<'_>)) {
        if self.lines > 0 {
            out(Piece::End);
        }
        self.lines = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut s = SseScanner::default();
        let (mut all, mut cur) = (Vec::new(), Vec::new());
        let mut out = |p: Piece<'_>| match p {
            Piece::Data(d) => cur.extend_from_slice(d),
            Piece::NextLine => cur.push(b'\n'),
            Piece::End => all.push(String::from_utf8(std::mem::take(&mut cur)).unwrap()),
        };
        for p in pieces {
            s.feed(p, &mut out);
        }
        s.finish(&mut out);
        all
    }

    const STREAM: &str = "\u{feff}: hi\r\nevent: a\r\ndata:one\r\ndata: two\r\rdata:  x\ndatum: no\n\n\nid: 1\n\ndata\n\ndata: last";

    #[test]
    fn reads_what_an_independent_parser_reads_however_it_is_cut() {
        use eventsource_stream::Eventsource;
        use futures_util::{FutureExt, StreamExt, stream};
        // Without the byte order mark: `eventsource-stream` 0.2.3 panics on one, which is why
        // it is the reference here and not what reads a provider's bytes.
        let theirs: Vec<String> = stream::iter([Ok::<_, std::convert::Infallible>(format!(
            "{}\n\n",
            &STREAM[3..]
        ))])
        .eventsource()
        .map(|e| e.unwrap().data)
        .collect::<Vec<_>>()
        .now_or_never()
        .unwrap();
        let whole = events(&[STREAM.as_bytes()]);
        assert_eq!(whole, ["one\ntwo", " x", "", "last"]);
        // The reference drops the event whose only field is a bare `data`, which carries nothing.
        assert_eq!(
            whole.iter().filter(|e| !e.is_empty()).collect::<Vec<_>>(),
            theirs.iter().filter(|e| !e.is_empty()).collect::<Vec<_>>()
        );
        for at in 0..STREAM.len() {
            let (a, b) = STREAM.as_bytes().split_at(at);
            assert_eq!(events(&[a, b]), whole, "cut at {at}");
        }
    }
}
