//! A provider (or a gateway before it) that echoes our key must not hand it to the agent.
//!
//! Looks through every reply for every live key and the ones before them: as they are, in
//! base64 at each alignment, in hex, escaped for JSON, URLs and HTML (also mixed, also twice),
//! and in the half-hidden form of error messages (`sk-…wxyz`), wherever the pieces of the reply
//! are cut. A hit is overwritten in place, so lengths stay true.
//!
//! Invariant: a byte leaves only when no key can begin before it and end after it.

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hyper::body::Bytes;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// Below this, a key is too short to be told from ordinary text.
const SHORTEST: usize = 8;

/// All forms of all keys, compiled once a rotation.
#[derive(Debug, Default)]
pub struct Patterns {
    literal: Option<Matcher>,
    /// The keys alone, for text whose escapes are undone first.
    plain: Option<Matcher>,
    /// Some key holds a character that JSON escapes with a backslash.
    slashed: bool,
}

struct Matcher {
    search: AhoCorasick,
    /// Whether a text that ends within a form must be held back.
    forms: Vec<Zeroizing<Vec<u8>>>,
    /// The bytes that forms begin with: what most of a tail is told by.
    first: [bool; 256],
    longest: usize,
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matcher({} forms)", self.forms.len())
    }
}

impl Matcher {
    fn new(mut forms: Vec<Zeroizing<Vec<u8>>>) -> Option<Matcher> {
        forms.sort_by(|a, b| a.as_slice().cmp(b.as_slice()));
        forms.dedup_by(|a, b| a.as_slice() == b.as_slice());
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .start_kind(StartKind::Unanchored)
            .build(forms.iter().map(|f| f.as_slice()))
            .ok()?;
        let longest = forms.iter().map(|f| f.len()).max()?;
        let mut first = [false; 256];
        forms.iter().for_each(|f| first[usize::from(f[0])] = true);
        Some(Matcher {
            search,
            forms,
            first,
            longest,
        })
    }

    /// How many bytes at the end could be the beginning of a form.
    fn unfinished(&self, text: &[u8]) -> usize {
        let from = text.len().saturating_sub(self.longest - 1);
        let tail = &text[from..];
        let begins = |i: &usize| {
            self.first[usize::from(tail[*i])]
                && self
                    .forms
                    .iter()
                    .any(|f| f.len() > tail.len() - i && f.starts_with(&tail[*i..]))
        };
        (0..tail.len()).find(begins).map_or(0, |i| tail.len() - i)
    }
}

impl Patterns {
    pub(super) fn new<'a>(secrets: impl Iterator<Item = &'a SecretString>) -> Patterns {
        let (mut literal, mut plain, mut slashed) = (Vec::new(), Vec::new(), false);
        for secret in secrets {
            let key = secret.expose_secret().as_bytes();
            if key.len() < SHORTEST {
                continue;
            }
            slashed |= key.iter().any(|b| b"/\"\\".contains(b));
            plain.push(Zeroizing::new(key.to_vec()));
            literal.extend(forms(key));
        }
        Patterns {
            literal: Matcher::new(literal),
            plain: Matcher::new(plain),
            slashed,
        }
    }

    /// Does the text hold a key in any form?
    pub fn find(&self, text: &[u8]) -> bool {
        !self.hits(text).is_empty()
    }

    fn is_empty(&self) -> bool {
        self.plain.is_none()
    }

    /// Escapes of visible ASCII (see [`escape_at`]): rare in JSON, where a key's letters need none.
    fn has_escapes(&self, text: &[u8]) -> bool {
        memchr::memchr3_iter(b'%', b'\\', b'&', text).any(|i| match (text[i], text.get(i + 1)) {
            (b'%', Some(next)) => next.is_ascii_hexdigit(),
            (b'&', Some(next)) => *next == b'#',
            (b'\\', Some(b'u' | b'U')) => text[i + 2..].starts_with(b"00"),
            (b'\\', Some(b'x')) => true,
            (b'\\', Some(b'/' | b'"' | b'\\')) => self.slashed,
            _ => false,
        })
    }

    /// Where the text holds keys.
    fn hits(&self, text: &[u8]) -> Vec<(usize, usize)> {
        let mut hits: Vec<(usize, usize)> = Vec::new();
        if let Some(m) = &self.literal {
            hits.extend(
                m.search
                    .find_iter(Input::new(text).anchored(Anchored::No))
                    .map(|h| (h.start(), h.end())),
            );
        }
        if let (Some(m), true) = (&self.plain, self.has_escapes(text)) {
            let (undone, at) = unescape(text);
            hits.extend(
                m.search
                    .find_iter(&undone)
                    .map(|h| (at[h.start()], at[h.end()])),
            );
        }
        hits
    }

    /// How many bytes at the end must wait for what comes next.
    fn unfinished(&self, text: &[u8]) -> usize {
        let literal = self.literal.as_ref().map_or(0, |m| m.unfinished(text));
        let Some(plain) = &self.plain else {
            return literal;
        };
        let (cut, window) = (
            cut_escape(text),
            text.len().saturating_sub(plain.longest * LONGEST_ESCAPE),
        );
        if cut == 0 && !self.has_escapes(&text[window..]) {
            return literal;
        }
        let whole = &text[window..text.len() - cut];
        let (undone, at) = unescape(whole);
        let open = plain.unfinished(&undone);
        let escaped = whole.len() - at[undone.len() - open];
        literal.max(if open > 0 || cut > 0 {
            escaped + cut
        } else {
            0
        })
    }
}

/// Each form in which a key is commonly echoed.
fn forms(key: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let mut all = vec![Zeroizing::new(key.to_vec())];
    let mut add = |form: String| all.push(Zeroizing::new(form.into_bytes()));
    for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        // The key behind 0, 1 or 2 other bytes: whole sextets of the key only.
        for pad in 0..3usize {
            let mut shifted = Zeroizing::new(vec![0u8; pad]);
            shifted.extend_from_slice(key);
            let text = Zeroizing::new(engine.encode(&*shifted));
            let first = (pad * 8).div_ceil(6);
            let last = (pad + key.len()) * 8 / 6;
            if last > first + SHORTEST {
                add(text[first..last].to_owned());
            }
        }
    }
    add(key.iter().map(|b| format!("{b:02x}")).collect());
    add(key.iter().map(|b| format!("{b:02X}")).collect());
    if key.len() >= 16 {
        // `Incorrect API key provided: sk-…wxyz`. One character of the mask is enough to tell it,
        // and a longer one would make the search slow where a text repeats that character.
        let last = String::from_utf8_lossy(&key[key.len() - 4..]).into_owned();
        for mask in ["*", "…", ".", "x", "X", "•"] {
            add(format!("{mask}{last}"));
        }
    }
    all
}

/// The longest escape of one byte, `\\\\u00XX`.
const LONGEST_ESCAPE: usize = 7;

/// The byte that an escape at `i` stands for, and the escape's length: percent-encoding (also
/// done twice), JSON's `\u00XX` (also within a JSON text that is a string of another) and its
/// escaped punctuation, `\xXX`, and HTML's references by number.
fn escape_at(text: &[u8], i: usize) -> Option<(u8, usize)> {
    let rest = &text[i..];
    let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    match rest {
        [b'%', b'2', b'5', a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
            Some((hex(&[*a, *b])?, 5))
        }
        [b'%', a, b, ..] => Some((hex(&[*a, *b])?, 3)),
        [b'\\', b'\\', b'u' | b'U', b'0', b'0', a, b, ..] => Some((hex(&[*a, *b])?, 7)),
        [b'\\', b'u' | b'U', b'0', b'0', a, b, ..] => Some((hex(&[*a, *b])?, 6)),
        [b'\\', b'x', a, b, ..] => Some((hex(&[*a, *b])?, 4)),
        [b'\\', c @ (b'/' | b'"' | b'\\'), ..] => Some((*c, 2)),
        [b'&', b'#', number @ ..] => {
            let end = number
                .iter()
                .take(LONGEST_ESCAPE - 2)
                .position(|b| *b == b';')?;
            let value = match &number[..end] {
                [b'x' | b'X', digits @ ..] => hex(digits)?,
                digits => std::str::from_utf8(digits).ok()?.parse().ok()?,
            };
            Some((value, end + 3))
        }
        _ => None,
    }
}

/// The text with its escapes undone, and where each of its bytes stood (and the end).
fn unescape(text: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let (mut out, mut at) = (
        Vec::with_capacity(text.len()),
        Vec::with_capacity(text.len() + 1),
    );
    let mut i = 0;
    while i < text.len() {
        at.push(i);
        match escape_at(text, i) {
            Some((b, len)) => {
                out.push(b);
                i += len;
            }
            None => {
                out.push(text[i]);
                i += 1;
            }
        }
    }
    at.push(text.len());
    (out, at)
}

/// Bytes at the end that begin an escape and do not end it.
fn cut_escape(text: &[u8]) -> usize {
    let tail = &text[text.len().saturating_sub(LONGEST_ESCAPE - 1)..];
    (0..tail.len())
        .find(|&i| begins_escape(&tail[i..]))
        .map_or(0, |i| tail.len() - i)
}

/// Could these bytes, with others behind them, be an escape?
fn begins_escape(rest: &[u8]) -> bool {
    let hex = |s: &[u8]| s.iter().all(u8::is_ascii_hexdigit);
    // `u00XX`, of which only some is there.
    let unicode = |u: &[u8]| match u {
        [] => true,
        [b'u' | b'U', digits @ ..] => {
            digits.len() < 4 && hex(digits) && b"00".starts_with(&digits[..digits.len().min(2)])
        }
        _ => false,
    };
    match rest {
        [b'%', digits @ ..] => {
            (digits.len() < 2 && hex(digits))
                || (digits.starts_with(b"25") && digits.len() < 4 && hex(digits))
        }
        [b'\\'] | [b'&'] => true,
        [b'\\', b'\\', u @ ..] => unicode(u),
        [b'\\', b'x', digits @ ..] => digits.len() < 2 && hex(digits),
        [b'\\', u @ ..] => unicode(u),
        [b'&', b'#', number @ ..] => {
            number.len() < LONGEST_ESCAPE - 2
                && !number.contains(&b';')
                && number
                    .iter()
                    .all(|b| b.is_ascii_hexdigit() || b"xX".contains(b))
        }
        _ => false,
    }
}

/// Follows one reply.
#[derive(Debug)]
pub struct Redactor {
    patterns: std::sync::Arc<Patterns>,
    held: Vec<u8>,
    pub hits: u32,
}

impl Redactor {
    pub fn new(patterns: std::sync::Arc<Patterns>) -> Self {
        Redactor {
            patterns,
            held: Vec::new(),
            hits: 0,
        }
    }

    /// The next piece; returns what may leave now. Without a key in sight, that is the piece
    /// itself, not a copy.
    pub fn feed(&mut self, piece: Bytes) -> Bytes {
        if self.patterns.is_empty() || piece.is_empty() {
            return piece;
        }
        let joined = if self.held.is_empty() {
            None
        } else {
            self.held.extend_from_slice(&piece);
            Some(std::mem::take(&mut self.held))
        };
        let text: &[u8] = joined.as_deref().unwrap_or(&piece);
        let hits = self.patterns.hits(text);
        let mut leave = text.len() - self.patterns.unfinished(text);
        // A hit that reaches into the tail leaves as a whole.
        leave = hits
            .iter()
            .filter(|(s, e)| *s < leave && *e > leave)
            .map(|h| h.1)
            .max()
            .unwrap_or(leave);
        self.held.extend_from_slice(&text[leave..]);
        if hits.is_empty() && joined.is_none() {
            return piece.slice(..leave);
        }
        let mut out = text[..leave].to_vec();
        for (start, end) in hits.into_iter().filter(|(_, e)| *e <= leave) {
            self.hits += 1;
            mask(&mut out[start..end]);
        }
        out.into()
    }

    /// Does this text, whole in itself, hold a key?
    pub fn echoes(&self, text: &[u8]) -> bool {
        self.patterns.find(text)
    }

    pub fn holds_nothing(&self) -> bool {
        self.held.is_empty()
    }

    /// The reply is over: what was held back is no key.
    pub fn finish(&mut self) -> Bytes {
        let mut rest = std::mem::take(&mut self.held);
        for (start, end) in self.patterns.hits(&rest) {
            self.hits += 1;
            mask(&mut rest[start..end]);
        }
        rest.into()
    }
}

fn mask(span: &mut [u8]) {
    const WORD: &[u8] = b"[REDACTED]";
    span.fill(b'*');
    if span.len() >= WORD.len() {
        span[..WORD.len()].copy_from_slice(WORD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const KEY: &str = "sk-ant-api03-Canary_0123456789-abcdefXYZ";

    fn patterns(keys: &[&str]) -> Arc<Patterns> {
        let secrets: Vec<SecretString> = keys.iter().map(|k| SecretString::from(*k)).collect();
        Arc::new(Patterns::new(secrets.iter()))
    }

    fn run(patterns: &Arc<Patterns>, pieces: &[&[u8]]) -> Vec<u8> {
        let mut r = Redactor::new(patterns.clone());
        let mut out = Vec::new();
        for p in pieces {
            out.extend_from_slice(&r.feed(Bytes::copy_from_slice(p)));
        }
        out.extend_from_slice(&r.finish());
        out
    }

    fn echoes() -> Vec<String> {
        let b64 = |prefix: &str| {
            base64::engine::general_purpose::STANDARD.encode(format!("{prefix}{KEY}tail"))
        };
        vec![
            KEY.into(),
            b64(""),
            b64("x"),
            b64("xy"),
            KEY.bytes().map(|b| format!("{b:02x}")).collect(),
            KEY.bytes().map(|b| format!("%{b:02X}")).collect(),
            KEY.bytes().map(|b| format!("\\u{b:04x}")).collect(),
            format!("\\u0073k%2D{}", &KEY[3..]),
            format!("{}%58YZ", &KEY[..KEY.len() - 3]),
            KEY.bytes().map(|b| format!("%25{b:02X}")).collect(),
            KEY.bytes().map(|b| format!("\\\\u{b:04x}")).collect(),
            KEY.bytes().map(|b| format!("\\x{b:02x}")).collect(),
            KEY.bytes().map(|b| format!("&#{b};")).collect(),
            KEY.bytes().map(|b| format!("&#x{b:x};")).collect(),
        ]
    }

    #[test]
    fn no_form_of_a_key_passes_wherever_the_reply_is_cut() {
        let p = patterns(&["another-key-entirely-1234", KEY]);
        for echo in echoes() {
            let text = format!("{{\"error\":\"Incorrect key {echo} given 100% \\u00e9\"}}");
            let whole = run(&p, &[text.as_bytes()]);
            assert!(
                !p.find(&whole) && whole.windows(4).any(|w| w == b"[RED"),
                "{}",
                String::from_utf8_lossy(&whole)
            );
            assert_eq!(whole.len(), text.len());
            for at in 0..=text.len() {
                let (a, b) = text.as_bytes().split_at(at);
                assert_eq!(run(&p, &[a, b]), whole, "{echo} cut at {at}");
            }
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(run(&p, &bytes), whole, "{echo} byte by byte");
        }
    }

    #[test]
    fn an_escaped_slash_hides_nothing() {
        let key = "base64/like+key/with/slashes==";
        let p = patterns(&[key]);
        let text = format!("{{\"e\":\"{} and \\n\"}}", key.replace('/', "\\/"));
        for at in 0..=text.len() {
            let (a, b) = text.as_bytes().split_at(at);
            let out = String::from_utf8(run(&p, &[a, b])).unwrap();
            assert!(
                out.contains("[REDACTED]") && !out.contains("slashes"),
                "{out}"
            );
        }
    }

    #[test]
    fn the_last_letters_behind_a_mask_go_too() {
        let p = patterns(&[KEY]);
        for masked in ["sk-ant-***fXYZ", "sk-…fXYZ", "sk-...fXYZ", "xxxxxxxxfXYZ"] {
            let out = run(&p, &[masked.as_bytes()]);
            assert!(!String::from_utf8_lossy(&out).contains("fXYZ"), "{masked}");
        }
    }

    #[test]
    fn other_text_passes_untouched_and_at_once() {
        let p = patterns(&[KEY]);
        let mut r = Redactor::new(p);
        for text in [
            "data: {\"text\":\"a \\\"quoted\\\" 50% of \\u00e9 sk-ant\"}\n\n",
            "{}",
            "plain",
        ] {
            let piece = Bytes::from(text.to_owned());
            assert_eq!(r.feed(piece), text);
        }
        assert_eq!(r.hits, 0);
        assert_eq!(r.feed(Bytes::from_static(b"x sk-ant-api")), "x ");
        assert_eq!(r.feed(Bytes::from_static(b"no")), "sk-ant-apino");
    }
}
