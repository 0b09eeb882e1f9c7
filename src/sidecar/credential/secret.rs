//! The type that holds a provider's key, and the places that a key is read from.

use std::sync::OnceLock;
use std::time::Duration;

use hyper::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// Where one key comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// The key is in the file `<secretsDir>/<name>/<key>`, which is how Kubernetes mounts a Secret.
    File { name: String, key: String },
    /// A program prints the key. It is run again shortly before `ttl` has passed.
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

/// The maximum length of a key in bytes. Longer content is rejected.
pub(super) const MAX_SECRET: usize = 4096;

/// A provider's key.
#[derive(Debug)]
pub struct Secret {
    pub(super) text: SecretString,
    /// The header value with the key, and the prefix that it was made for. It is made only once.
    pub(super) header: OnceLock<(&'static str, HeaderValue)>,
}

impl Secret {
    pub(super) fn from_text(text: &str) -> Secret {
        Secret {
            text: SecretString::from(text),
            header: OnceLock::new(),
        }
    }

    /// Returns a sensitive header value that consists of `prefix` and the key. Returns `None` if
    /// the key is not allowed in a header.
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

    /// Reads a key from the content of a file or the output of a program. One line ending is
    /// removed, and the rest must be a valid key.
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

/// Whether `name` is a plain file name, which cannot lead out of the directory it is joined to.
pub fn is_file_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
