//! The chain of records: each line ends with its number and the hash of the line before it.
//!
//! ```json
//! {…,"seq":42,"prev":"<64 hexadecimal digits>"}
//! ```
//!
//! `prev` is the SHA-256 of the whole line before, without its line end. The first record of all
//! has 64 zeros. Rotation and restarts continue the chain. Where the operator configures a key,
//! the writer signs the chain's head from time to time ([`checkpoint`]), so that whoever can
//! write the file cannot make a new chain.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::Deserialize;
use serde_json::json;

use crate::base::settings::shown;
use crate::base::token::hex;

/// Where a chain stands: the number and the hash of its last record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainHead {
    pub seq: u64,
    pub hash: String,
}

impl Default for ChainHead {
    fn default() -> Self {
        ChainHead {
            seq: 0,
            hash: "0".repeat(64),
        }
    }
}

/// The links of a line.
#[derive(Debug, Deserialize)]
pub struct Links {
    pub seq: u64,
    pub prev: String,
    #[serde(default)]
    pub request_id: Option<String>,
    #[serde(default)]
    pub checkpoint: Option<Checkpoint>,
}

/// A signed statement of the writer: the chain had this head.
#[derive(Debug, Deserialize)]
pub struct Checkpoint {
    pub session_id: String,
    /// The record that it speaks of is the one before it.
    pub head: String,
    pub seq: u64,
    pub signature: String,
}

impl ChainHead {
    /// Appends a record to `out`: a JSON object, without its line end.
    pub fn append(&mut self, record: &[u8], out: &mut Vec<u8>) {
        let from = out.len();
        out.extend_from_slice(record.strip_suffix(b"}").unwrap_or(record));
        self.seq += 1;
        out.extend_from_slice(b",\"seq\":");
        out.extend_from_slice(self.seq.to_string().as_bytes());
        out.extend_from_slice(b",\"prev\":\"");
        out.extend_from_slice(self.hash.as_bytes());
        out.extend_from_slice(b"\"}");
        self.hash = hash(&out[from..]);
        out.push(b'\n');
    }
}

/// The hash of a line without its line end.
pub fn hash(line: &[u8]) -> String {
    hex(digest(&SHA256, line).as_ref())
}

/// The operator's key for checkpoints.
pub struct SigningKey(Ed25519KeyPair);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey")
    }
}

impl SigningKey {
    /// Reads an Ed25519 key in PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// What is wrong with the file; never its content.
    pub fn read(path: &Path) -> Result<SigningKey, String> {
        let wrong = || {
            format!(
                "{} is not a file with an Ed25519 key in PEM; `openssl genpkey -algorithm ed25519` writes one",
                shown(&path.to_string_lossy())
            )
        };
        let der = PrivatePkcs8KeyDer::from_pem_file(path).map_err(|e| match e {
            rustls::pki_types::pem::Error::Io(e) => {
                format!("cannot read {}: {e}", shown(&path.to_string_lossy()))
            }
            _ => wrong(),
        })?;
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
            .map(SigningKey)
            .map_err(|_| wrong())
    }

    pub fn public(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }
}

/// Reads a public key in PEM (`openssl pkey -pubout`).
///
/// # Errors
/// What is wrong with the file.
pub fn public_key(path: &Path) -> Result<Vec<u8>, String> {
    let file = shown(&path.to_string_lossy());
    let wrong = || {
        format!(
            "{file} is not an Ed25519 public key in PEM; `openssl pkey -in KEY -pubout` writes one"
        )
    };
    let der = SubjectPublicKeyInfoDer::from_pem_file(path).map_err(|e| match e {
        rustls::pki_types::pem::Error::Io(e) => format!("cannot read {file}: {e}"),
        _ => wrong(),
    })?;
    // The key is the last 32 bytes behind a fixed head (RFC 8410).
    match der.as_ref() {
        spki if spki.len() == 44 => Ok(spki[12..].to_vec()),
        _ => Err(wrong()),
    }
}

fn statement(session: &str, seq: u64, head: &str) -> String {
    format!("outrigger audit checkpoint\n{session}\n{seq}\n{head}\n")
}

/// The record of a checkpoint, without its links.
pub fn checkpoint(key: &SigningKey, session: &str, head: &ChainHead) -> String {
    let signature = STANDARD.encode(
        key.0
            .sign(statement(session, head.seq, &head.hash).as_bytes())
            .as_ref(),
    );
    json!({
        "ts": jiff::Timestamp::now(),
        "checkpoint": { "session_id": session, "seq": head.seq, "head": head.hash, "signature": signature },
    })
    .to_string()
}

impl Checkpoint {
    pub fn is_signed_by(&self, public: &[u8]) -> bool {
        let Ok(signature) = STANDARD.decode(&self.signature) else {
            return false;
        };
        UnparsedPublicKey::new(&ED25519, public)
            .verify(
                statement(&self.session_id, self.seq, &self.head).as_bytes(),
                &signature,
            )
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_linked() {
        let (mut head, mut out) = (ChainHead::default(), Vec::new());
        for record in ["{\"a\":1}", "{\"b\":2}"] {
            head.append(record.as_bytes(), &mut out);
        }
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let links: Vec<Links> = lines
            .iter()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!((links[0].seq, links[1].seq), (1, 2));
        assert_eq!(links[0].prev, ChainHead::default().hash);
        assert_eq!(links[1].prev, hash(lines[0].as_bytes()));
        assert_eq!(head.hash, hash(lines[1].as_bytes()));
    }

    #[test]
    fn a_checkpoint_is_verified_with_the_public_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pem");
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        std::fs::write(&file, pair.serialize_pem()).unwrap();
        std::fs::write(dir.path().join("public.pem"), pair.public_key_pem()).unwrap();
        let key = SigningKey::read(&file).unwrap();
        let public = public_key(&dir.path().join("public.pem")).unwrap();
        assert_eq!(key.public(), public);
        let mut head = ChainHead {
            seq: 7,
            hash: "x".into(),
        };
        let (record, mut line) = (checkpoint(&key, "s", &head), Vec::new());
        head.append(record.as_bytes(), &mut line);
        let line: Links = serde_json::from_slice(&line).unwrap();
        let mut checkpoint = line.checkpoint.unwrap();
        assert!(checkpoint.is_signed_by(&public) && !checkpoint.is_signed_by(&[0; 32]));
        checkpoint.seq = 8;
        assert!(!checkpoint.is_signed_by(&public));
        std::fs::write(&file, "no key").unwrap();
        assert!(SigningKey::read(&file).is_err());
    }
}
