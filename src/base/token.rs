//! A token that whoever calls a port must present. Compared in constant time.

use std::num::NonZeroU32;
use std::path::Path;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::settings::shown;

/// Shortest that is taken: 32 random bytes are 43 characters of base64 and 64 of hex, and
/// whoever writes fewer than 32 characters has not drawn 32 bytes.
const MIN_LENGTH: usize = 32;
const MAX_LENGTH: usize = 4096;

/// Wrong tokens a minute before they are told to wait.
const ATTEMPTS: NonZeroU32 = NonZeroU32::new(60).unwrap();

/// How often a port was asked with a wrong token.
#[derive(Debug)]
pub struct Attempts(DefaultDirectRateLimiter);

impl Default for Attempts {
    fn default() -> Self {
        Attempts(RateLimiter::direct(Quota::per_minute(ATTEMPTS)))
    }
}

impl Attempts {
    /// Counts one more.
    pub fn are_too_many(&self) -> bool {
        self.0.check().is_err()
    }
}

pub struct Token(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// The content of a file, without the line end.
    ///
    /// # Errors
    /// Why the file holds no token; never its content.
    pub fn read(file: &Path) -> Result<Token, String> {
        let bytes = Zeroizing::new(
            std::fs::read(file)
                .map_err(|e| format!("cannot read {}: {e}", shown(&file.to_string_lossy())))?,
        );
        let text = bytes.trim_ascii_end();
        if !(MIN_LENGTH..=MAX_LENGTH).contains(&text.len())
            || !text.iter().all(u8::is_ascii_graphic)
        {
            return Err(format!(
                "{} holds no token: {MIN_LENGTH} to {MAX_LENGTH} visible ASCII characters (`openssl rand -hex 32` writes one)",
                shown(&file.to_string_lossy())
            ));
        }
        Ok(Token(Zeroizing::new(text.to_vec())))
    }

    /// A fresh one of 32 random bytes, in hex.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn draw() -> Result<String, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(hex(&bytes))
    }

    /// In constant time.
    pub fn is(&self, presented: &[u8]) -> bool {
        self.0.ct_eq(presented).into()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Token) -> bool {
        self.is(&other.0)
    }
}

/// Two digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n)]);
    let mut out = String::with_capacity(2 * bytes.len());
    bytes
        .iter()
        .for_each(|b| out.extend([digit(b >> 4), digit(b & 15)]));
    out
}

/// Hex digits as the letters `a` to `p`.
pub fn hex_to_letters(hex: &str) -> String {
    hex.chars()
        .map(|c| c.to_digit(16).map_or(c, |n| char::from(b'a' + n as u8)))
        .collect()
}

/// 16 hex digits of the system's randomness: a name that nobody else has, not a secret.
pub fn random_hex() -> String {
    format!(
        "{:016x}",
        getrandom::u64().unwrap_or_else(|_| jiff::Timestamp::now().as_nanosecond() as u64)
    )
}

/// The token of an `Authorization: Bearer …` value.
pub fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}
