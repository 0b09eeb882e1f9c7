//! A provider's key.

use std::sync::OnceLock;
use std::time::Duration;

use hyper::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// Where one key comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// `<secretsDir>/<name>/<key>`, as Kubernetes mounts a Secret.
    File { name: String, key: String },
    /// What a program prints, run again when `ttl` is over.
    Command { command: Vec<String>, ttl: Duration },
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::File { name, key } => write!(f, "{name}/{key}"),
            Source::Command { command, .. } => {
                f.write_str(command.first().map_or("", String::as_str))
            }
        }
    }
}

/// Longest key that is taken for one.
pub(super) const MAX_SECRET: usize = 4096;

/// A provider's key.
#[derive(Debug)]
pub struct Secret {
    pub(super) text: SecretString,
    /// The header that carries it, with the word before it; made once.
    pub(super) header: OnceLock<(&'static str, HeaderValue)>,
}

impl Secret {
    pub(super) fn from_text(text: &str) -> Secret {
        Secret {
            text: SecretString::from(text),
            header: OnceLock::new(),
        }
    }

    /// What a header says that carries it behind `prefix`. `None`: it cannot stand in a header.
    pub fn header(&self, prefix: &'static str) -> Option<HeaderValue> {
        if let Some((_, value)) = self
            .header
            .get()
            .filter(|(made_for, _)| *made_for == prefix)
        {
            return Some(value.clone());
        }
        let text = Zeroizing::new(format!("{prefix}{}", self.text.expose_secret()));
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        let _ = self.header.set((prefix, value.clone()));
        Some(value)
    }

    /// Takes a file's or a program's content: one line end is trimmed, the rest must be a key.
    pub(super) fn new(bytes: Zeroizing<Vec<u8>>) -> Result<Secret, &'static str> {
        let mut text = bytes.as_slice();
        text = text.strip_suffix(b"\n").unwrap_or(text);
        text = text.strip_suffix(b"\r").unwrap_or(text);
        match text {
            [] => Err("it is empty"),
            _ if text.len() > MAX_SECRET => Err("it is longer than 4 KiB"),
            _ if !text.iter().all(u8::is_ascii_graphic) => {
                Err("it holds a space, a control character or a letter beyond ASCII")
            }
            _ => match std::str::from_utf8(text) {
                Ok(text) => Ok(Secret::from_text(text)),
                Err(_) => Err("it is not text"),
            },
        }
    }

    pub(super) fn is(&self, other: &Secret) -> bool {
        self.text.expose_secret() == other.text.expose_secret()
    }
}

/// A name that stays inside the directory it is joined to.
pub fn is_file_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
