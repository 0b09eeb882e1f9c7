//! A push parser for JSON: bytes in as they come, events out, nothing kept.
//!
//! Two things need it. The model check must walk the *whole* request body (RFC 8259, no
//! leniency) without copying it into one buffer, and the usage tap must find a few numbers
//! in replies of any size with constant memory. A document may arrive in any pieces.
//!
//! Invariants:
//! - Total: no input panics, recurses or allocates beyond [`MAX_TEXT`] per string and
//!   one byte per nesting level (at most [`MAX_DEPTH`]).
//! - What it accepts is JSON in UTF-8; what it rejects, `serde_json` rejects too, except
//!   nesting beyond [`MAX_DEPTH`]. One exception the other way: a lone `\ud800` escape in a
//!   *skipped* value passes, since real CLIs send them in prompts and upstream decides.
//! - Keys are reported decoded, so `"\u006dodel"` is `model`.

use std::fmt;

use crate::base::utf8::Utf8;

/// Nesting limit; the same as `serde_json`'s, far beyond any provider's schema.
pub const MAX_DEPTH: usize = 128;

/// Longest string reported whole; a longer one is reported with `truncated`.
pub const MAX_TEXT: usize = 512;

/// A decoded string, cut at [`MAX_TEXT`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text<'a> {
    pub bytes: &'a [u8],
    pub truncated: bool,
    /// It held an unpaired surrogate escape, so it is no Unicode string.
    pub broken: bool,
}

impl<'a> Text<'a> {
    /// The text, when it is whole and valid Unicode.
    pub fn as_str(&self) -> Option<&'a str> {
        if self.truncated || self.broken {
            None
        } else {
            std::str::from_utf8(self.bytes).ok()
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonEvent<'a> {
    Key(Text<'a>),
    OpenObject,
    OpenArray,
    Close,
    String(Text<'a>),
    /// A number, `true`, `false` or `null`, as written (cut at [`MAX_TEXT`] bytes).
    Scalar(&'a str),
}

/// What to do with the value that a [`JsonEvent::Key`] names or an open event begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Visit,
    /// Check its syntax, report nothing of it (not even its close).
    Skip,
}

/// Why a document is not JSON; the offset counts from its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonError {
    pub offset: u64,
    pub what: &'static str,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.offset)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JsonState {
    Value,
    /// After `[`: a value or `]`.
    FirstItem,
    /// After `{`: a key or `}`.
    FirstKey,
    Key,
    Colon,
    AfterValue,
    String,
    Escape,
    /// Inside `\uXXXX`: digits read so far.
    Hex(u8),
    Number(Num),
    /// Inside `true`, `false` or `null`: which, and bytes read so far.
    Literal(&'static [u8], u8),
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Num {
    Minus,
    Zero,
    Int,
    Dot,
    Frac,
    E,
    ESign,
    Exp,
}

/// One document's parse. See the module for what it promises.
#[derive(Debug)]
pub struct Parser {
    state: JsonState,
    /// `true` for an object, `false` for an array.
    stack: Vec<bool>,
    /// Nothing is reported while the stack is at least this deep.
    quiet_from: Option<usize>,
    /// The next value is not reported.
    skip_next: bool,
    in_key: bool,
    text: Vec<u8>,
    truncated: bool,
    broken: bool,
    unit: u16,
    high: Option<u16>,
    offset: u64,
    utf8: Utf8,
    failed: Option<JsonError>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    pub fn new() -> Self {
        Parser {
            state: JsonState::Value,
            stack: Vec::new(),
            quiet_from: None,
            skip_next: false,
            in_key: false,
            text: Vec::new(),
            truncated: false,
            broken: false,
            unit: 0,
            high: None,
            offset: 0,
            utf8: Utf8::default(),
            failed: None,
        }
    }

    /// Starts over with the next document, keeping the buffers.
    pub fn reset(&mut self) {
        let stack = std::mem::take(&mut self.stack);
        let text = std::mem::take(&mut self.text);
        *self = Parser {
            stack,
            text,
            ..Parser::new()
        };
        self.stack.clear();
        self.text.clear();
    }

    /// Has a whole document been read (white space may still follow)?
    pub fn at_end(&self) -> bool {
        self.failed.is_none()
            && (self.state == JsonState::End
                || (self.stack.is_empty()
                    && matches!(
                        self.state,
                        JsonState::Number(Num::Zero | Num::Int | Num::Frac | Num::Exp)
                    )))
    }

    pub fn depth(&self) -> usize {
        self.stack.len()
    }

    /// The document is over.
    ///
    /// # Errors
    /// When it stopped in the middle, or an earlier piece was not JSON.
    pub fn finish(
        &mut self,
        visit: &mut impl FnMut(JsonEvent<'_>) -> Flow,
    ) -> Result<(), JsonError> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        if let JsonState::Number(n) = self.state {
            self.end_number(n, visit)?;
        }
        if self.state == JsonState::End && self.utf8.is_whole() {
            Ok(())
        } else {
            self.fail("unexpected end")
        }
    }

    /// Reads the next piece of the document.
    ///
    /// # Errors
    /// At the first byte that makes it no JSON; every later call repeats the error.
    pub fn feed(
        &mut self,
        piece: &[u8],
        visit: &mut impl FnMut(JsonEvent<'_>) -> Flow,
    ) -> Result<(), JsonError> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        // Beyond ASCII a piece is validated first; outside strings the grammar refuses the rest.
        if (!piece.is_ascii() || !self.utf8.is_whole())
            && let Err(at) = self.utf8.feed(piece)
        {
            self.offset += at as u64;
            return self.fail("invalid UTF-8");
        }
        let base = self.offset;
        let mut i = 0;
        while i < piece.len() {
            if self.state == JsonState::String {
                let rest = &piece[i..];
                // Of a string that is longer than what is reported of it, the rest is only checked.
                let run = if self.reporting() && !self.truncated {
                    plain_run(rest)
                } else {
                    self.skip_run(rest)
                };
                self.keep(&rest[..run]);
                i += run;
                if i == piece.len() {
                    break;
                }
            }
            match self.step(piece[i], visit) {
                Ok(true) => i += 1,
                Ok(false) => {}
                Err(what) => {
                    self.offset = base + i as u64;
                    return self.fail(what);
                }
            }
        }
        self.offset = base + piece.len() as u64;
        Ok(())
    }

    /// Steps over string content that nobody is told of: plain bytes and whole, valid
    /// escapes. What remains (an end, a cut escape, an error) is [`Parser::step`]'s.
    fn skip_run(&mut self, s: &[u8]) -> usize {
        self.high = None;
        let mut i = 0;
        loop {
            i += plain_run(&s[i..]);
            if s.get(i) != Some(&b'\\') {
                return i;
            }
            match s.get(i + 1) {
                Some(b'n' | b'"' | b'\\' | b't' | b'r' | b'/' | b'b' | b'f') => i += 2,
                Some(b'u')
                    if s.get(i + 2..i + 6)
                        .is_some_and(|h| h.iter().all(u8::is_ascii_hexdigit)) =>
                {
                    i += 6
                }
                _ => return i,
            }
        }
    }

    fn fail<T>(&mut self, what: &'static str) -> Result<T, JsonError> {
        let e = JsonError {
            offset: self.offset,
            what,
        };
        self.failed = Some(e);
        Err(e)
    }

    fn reporting(&self) -> bool {
        self.quiet_from.is_none() && !self.skip_next
    }

    /// One byte. `Ok(false)`: not consumed, look again in the new state.
    fn step(
        &mut self,
        b: u8,
        visit: &mut impl FnMut(JsonEvent<'_>) -> Flow,
    ) -> Result<bool, &'static str> {
        match self.state {
            JsonState::String => match b {
                b'"' => self.end_string(visit),
                b'\\' => self.state = JsonState::Escape,
                _ => return Err("control character in a string"),
            },
            JsonState::Escape => self.escape(b)?,
            JsonState::Hex(n) => self.hex(b, n)?,
            JsonState::Number(n) => return self.number(b, n, visit),
            JsonState::Literal(word, n) => self.literal(b, word, n, visit)?,
            _ if matches!(b, b' ' | b'\n' | b'\r' | b'\t') => {}
            JsonState::Value => self.begin(b, visit)?,
            JsonState::FirstItem => {
                if b == b']' {
                    self.close(visit);
                } else {
                    self.begin(b, visit)?;
                }
            }
            JsonState::FirstKey if b == b'}' => self.close(visit),
            JsonState::FirstKey | JsonState::Key => {
                if b != b'"' {
                    return Err("expected a key");
                }
                self.in_key = true;
                self.begin_string();
            }
            JsonState::Colon => {
                if b != b':' {
                    return Err("expected `:`");
                }
                self.state = JsonState::Value;
            }
            JsonState::AfterValue => match (b, self.stack.last()) {
                (b',', Some(true)) => self.state = JsonState::Key,
                (b',', Some(false)) => self.state = JsonState::Value,
                (b'}', Some(true)) | (b']', Some(false)) => self.close(visit),
                _ => return Err("expected `,` or a closing bracket"),
            },
            JsonState::End => return Err("bytes after the document"),
        }
        Ok(true)
    }

    fn begin(
        &mut self,
        b: u8,
        visit: &mut impl FnMut(JsonEvent<'_>) -> Flow,
    ) -> Result<(), &'static str> {
        match b {
            b'"' => {
                self.in_key = false;
                self.begin_string();
            }
            b'{' => self.open(true, visit)?,
            b'[' => self.open(false, visit)?,
            b'-' => self.begin_number(b, Num::Minus),
            b'0' => self.begin_number(b, Num::Zero),
            b'1'..=b'9' => self.begin_number(b, Num::Int),
            b't' => self.state = JsonState::Literal(b"true", 1),
            b'f' => self.state = JsonState::Literal(b"false", 1),
            b'n' => self.state = JsonState::Literal(b"null", 1),
            _ => return Err("expected a value"),
        }
        Ok(())
    }

    fn open(
        &mut self,
        object: bool,
        visit: &mut impl FnMut(JsonEvent<'_>) -> Flow,
    ) -> Result<(), &'static str> {
        if self.stack.len() == MAX_DEPTH {
            return Err("nested too deeply");
        }
        self.stack.push(object);
        if self.quiet_from.is_none() {
            let quiet = std::mem::take(&mut self.skip_next)
                || visit(if object {
                    JsonEvent::OpenObject
                } else {
                    JsonEvent::OpenArray
                }) == Flow::Skip;
            if quiet {
                self.quiet_from = Some(self.stack.len());
            }
        }
        self.state = if object {
            JsonState::FirstKey
        } else {
            JsonState::FirstItem
        };
        Ok(())
    }

    fn close(&mut self, visit: &mut impl FnMut(JsonEvent<'_>) -> Flow) {
        let depth = self.stack.len();
        self.stack.pop();
        if self.quiet_from == Some(depth) {
            self.quiet_from = None;
        } else if self.quiet_from.is_none() {
            visit(JsonEvent::Close);
        }
        self.value_done();
    }

    fn value_done(&mut self) {
        self.skip_next = false;
        self.state = if self.stack.is_empty() {
            JsonState::End
        } else {
            JsonState::AfterValue
        };
    }

    fn begin_string(&mut self) {
        self.text.clear();
        self.truncated = false;
        self.broken = false;
        self.high = None;
        self.state = JsonState::String;
    }

    /// Keeps decoded bytes of a string that will be reported.
    fn keep(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.broken |= self.high.take().is_some();
        if self.reporting() {
            let room = MAX_TEXT - self.text.len();
            self.truncated |= bytes.len() > room;
            self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    fn end_string(&mut self, visit: &mut impl FnMut(JsonEvent<'_>) -> Flow) {
        self.broken |= self.high.take().is_some();
        let text = Text {
            bytes: &self.text,
            truncated: self.truncated,
            broken: self.broken,
        };
        if self.in_key {
            if self.quiet_from.is_none() {
                self.skip_next = visit(JsonEvent::Key(text)) == Flow::Skip;
            }
            self.state = JsonState::Colon;
        } else {
            if self.quiet_from.is_none() && !self.skip_next {
                visit(JsonEvent::String(text));
            }
            self.value_done();
        }
    }

    fn escape(&mut self, b: u8) -> Result<(), &'static str> {
        let c = match b {
            b'"' | b'\\' | b'/' => b,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.unit = 0;
                self.state = JsonState::Hex(0);
                return Ok(());
            }
            _ => return Err("invalid escape"),
        };
        self.state = JsonState::String;
        self.keep(&[c]);
        Ok(())
    }

    fn hex(&mut self, b: u8, n: u8) -> Result<(), &'static str> {
        let Some(digit) = (b as char).to_digit(16) else {
            return Err("invalid escape");
        };
        self.unit = self.unit << 4 | digit as u16;
        if n < 3 {
            self.state = JsonState::Hex(n + 1);
            return Ok(());
        }
        self.state = JsonState::String;
        let unit = u32::from(self.unit);
        let scalar = match (self.high.take(), unit) {
            (Some(high), 0xdc00..=0xdfff) => {
                0x10000 + ((u32::from(high) - 0xd800) << 10) + (unit - 0xdc00)
            }
            (high, 0xd800..=0xdbff) => {
                self.broken |= high.is_some();
                self.high = Some(self.unit);
                return Ok(());
            }
            (high, 0xdc00..=0xdfff) => {
                self.broken = true;
                self.high = high;
                return Ok(());
            }
            (high, _) => {
                self.broken |= high.is_some();
                unit
            }
        };
        if let Some(c) = char::from_u32(scalar) {
            let mut buf = [0; 4];
            self.keep(c.encode_utf8(&mut buf).as_bytes());
        }
        Ok(())
    }

    fn begin_number(&mut self, b: u8, n: Num) {
        self.text.clear();
        self.truncated = false;
        self.keep(&[b]);
        self.state = JsonState::Number(n);
    }

    fn number(
        &mut self,
        b: u8,
        n: Num,
        visit: &mut impl FnMut(JsonEvent<'_>) -> Flow,
    ) -> Result<bool, &'static str> {
        let next = match (n, b) {
            (Num::Minus, b'0') => Num::Zero,
            (Num::Minus, b'1'..=b'9') | (Num::Int, b'0'..=b'9') => Num::Int,
            (Num::Zero | Num::Int, b'.') => Num::Dot,
            (Num::Dot | Num::Frac, b'0'..=b'9') => Num::Frac,
            (Num::Zero | Num::Int | Num::Frac, b'e' | b'E') => Num::E,
            (Num::E, b'+' | b'-') => Num::ESign,
            (Num::E | Num::ESign | Num::Exp, b'0'..=b'9') => Num::Exp,
            _ => {
                return self
                    .end_number(n, visit)
                    .map(|()| false)
                    .map_err(|e| e.what);
            }
        };
        self.keep(&[b]);
        self.state = JsonState::Number(next);
        Ok(true)
    }

    fn end_number(
        &mut self,
        n: Num,
        visit: &mut impl FnMut(JsonEvent<'_>) -> Flow,
    ) -> Result<(), JsonError> {
        if !matches!(n, Num::Zero | Num::Int | Num::Frac | Num::Exp) {
            return Err(JsonError {
                offset: self.offset,
                what: "incomplete number",
            });
        }
        if self.reporting() {
            visit(JsonEvent::Scalar(
                std::str::from_utf8(&self.text).unwrap_or_default(),
            ));
        }
        self.value_done();
        Ok(())
    }

    fn literal(
        &mut self,
        b: u8,
        word: &'static [u8],
        n: u8,
        visit: &mut impl FnMut(JsonEvent<'_>) -> Flow,
    ) -> Result<(), &'static str> {
        if word[n as usize] != b {
            return Err("expected a value");
        }
        if n as usize + 1 < word.len() {
            self.state = JsonState::Literal(word, n + 1);
            return Ok(());
        }
        if self.reporting() {
            visit(JsonEvent::Scalar(
                std::str::from_utf8(word).unwrap_or_default(),
            ));
        }
        self.value_done();
        Ok(())
    }
}

/// How many bytes from the start are ordinary string content: no quote, no backslash, no
/// control character. Eight bytes at a time; strings between escapes are too short for more.
fn plain_run(s: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    // The high bit of each byte that is zero (exact up to the first, which is all we need).
    let zero = |x: u64| x.wrapping_sub(ONES) & !x & HIGH;
    let mut i = 0;
    for eight in s.chunks_exact(8) {
        let x = u64::from_le_bytes([
            eight[0], eight[1], eight[2], eight[3], eight[4], eight[5], eight[6], eight[7],
        ]);
        let special = zero(x ^ (ONES * 0x22))
            | zero(x ^ (ONES * 0x5c))
            | (x.wrapping_sub(ONES * 0x20) & !x & HIGH);
        if special != 0 {
            return i + special.trailing_zeros() as usize / 8;
        }
        i += 8;
    }
    i + s[i..]
        .iter()
        .position(|&b| matches!(b, b'"' | b'\\' | 0..=0x1f))
        .unwrap_or(s.len() - i)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_in(pieces: &[&[u8]]) -> Result<String, JsonError> {
        let mut out = String::new();
        let mut p = Parser::new();
        let mut visit = |e: JsonEvent<'_>| {
            out.push_str(&match e {
                JsonEvent::Key(t) => format!("{}:", t.as_str().unwrap_or("?")),
                JsonEvent::String(t) => format!("'{}' ", t.as_str().unwrap_or("?")),
                JsonEvent::Scalar(s) => format!("{s} "),
                JsonEvent::OpenObject => "{".into(),
                JsonEvent::OpenArray => "[".into(),
                JsonEvent::Close => "^".into(),
            });
            match e {
                JsonEvent::Key(t) if t.bytes == b"skip" => Flow::Skip,
                _ => Flow::Visit,
            }
        };
        for piece in pieces {
            p.feed(piece, &mut visit)?;
        }
        p.finish(&mut visit)?;
        Ok(out)
    }

    const SAMPLES: &[&str] = &[
        r#"{"a":1,"skip":{"x":["deep \ud800 "]},"b":[true,null,-0.5e+7],"\u006dodel":"\ud83d\ude00é"}"#,
        r#" [ ] "#,
        r#"0"#,
        r#""\"\\\/\b\f\n\r\t""#,
        r#"{"":{"":[[[]],{}]}}"#,
    ];

    #[test]
    fn reports_the_same_however_the_document_is_split() {
        for s in SAMPLES {
            let whole = parse_in(&[s.as_bytes()]).unwrap();
            for at in 0..=s.len() {
                let (a, b) = s.as_bytes().split_at(at);
                assert_eq!(parse_in(&[a, b]).unwrap(), whole, "{s} split at {at}");
            }
            let bytes: Vec<&[u8]> = s.as_bytes().chunks(1).collect();
            assert_eq!(parse_in(&bytes).unwrap(), whole);
        }
        assert_eq!(
            parse_in(&[SAMPLES[0].as_bytes()]).unwrap(),
            "{a:1 skip:b:[true null -0.5e+7 ^model:'😀é' ^"
        );
    }

    #[test]
    fn refuses_what_is_not_json() {
        let bad: &[&[u8]] = &[
            b"",
            b" ",
            b"{",
            b"}",
            b"[1,]",
            b"{\"a\":1,}",
            b"{a:1}",
            b"'x'",
            b"01",
            b"-",
            b"1.",
            b"1e",
            b"+1",
            b".5",
            b"NaN",
            b"tru",
            b"nulll",
            b"{\"a\" 1}",
            b"[1 2]",
            b"{} {}",
            b"{}\0",
            b"\xef\xbb\xbf{}",
            b"\"\x01\"",
            b"\"\n\"",
            b"\"\\x\"",
            b"\"\\u12g4\"",
            b"\"\xff\"",
            b"\"\xc0\xaf\"",
            b"\"\xed\xa0\x80\"",
            b"// c\n{}",
            b"{\"a\":1}//",
            b"[1}",
            b"\"abc",
            b"\xe2\x82",
        ];
        for b in bad {
            assert!(parse_in(&[b]).is_err(), "{:?}", String::from_utf8_lossy(b));
            assert!(serde_json::from_slice::<serde_json::Value>(b).is_err());
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = "[".repeat(MAX_DEPTH + 1);
        assert_eq!(
            parse_in(&[deep.as_bytes()]).unwrap_err().what,
            "nested too deeply"
        );
        let ok = "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH);
        assert!(parse_in(&[ok.as_bytes()]).is_ok());
    }

    #[test]
    fn long_strings_are_cut_and_say_so() {
        let doc = format!("{{\"{}\":1}}", "k".repeat(MAX_TEXT + 1));
        let mut p = Parser::new();
        let mut seen = None;
        p.feed(doc.as_bytes(), &mut |e| {
            if let JsonEvent::Key(t) = e {
                seen = Some((t.bytes.len(), t.truncated));
            }
            Flow::Visit
        })
        .unwrap();
        assert_eq!(seen, Some((MAX_TEXT, true)));
    }

    #[test]
    fn a_lone_surrogate_is_no_text() {
        let mut p = Parser::new();
        p.feed(br#"["\ud800x"]"#, &mut |e| {
            if let JsonEvent::String(t) = e {
                assert_eq!(t.as_str(), None);
            }
            Flow::Visit
        })
        .unwrap();
    }

    /// Every truncation and every single-byte change agrees with `serde_json`.
    #[test]
    fn agrees_with_serde_json_on_mutants() {
        let s = SAMPLES[0].as_bytes();
        let ours = |b: &[u8]| parse_in(&[b]).is_ok();
        // serde_json refuses the lone surrogate that we let pass; replace it for the comparison.
        let s: Vec<u8> = String::from_utf8_lossy(s)
            .replace("\\ud800", "\\u00e9")
            .into_bytes();
        for at in 0..s.len() {
            assert_eq!(
                ours(&s[..at]),
                serde_json::from_slice::<serde_json::Value>(&s[..at]).is_ok()
            );
            for b in [
                0u8, b'"', b'\\', b'{', b'}', b'[', b']', b',', b':', b' ', b'0', b'e', b'u', 0x1f,
                0x80, 0xc3, 0xff,
            ] {
                let mut m = s.clone();
                m[at] = b;
                let theirs = serde_json::from_slice::<serde_json::Value>(&m);
                let surrogate = theirs.as_ref().is_err_and(|e| {
                    let e = e.to_string();
                    e.contains("surrogate") || e.contains("hex escape")
                });
                if !surrogate
                    && !theirs
                        .as_ref()
                        .is_err_and(|e| e.to_string().contains("number out of range"))
                {
                    assert_eq!(
                        ours(&m),
                        theirs.is_ok(),
                        "{:?} {theirs:?}",
                        String::from_utf8_lossy(&m)
                    );
                }
            }
        }
    }
}
