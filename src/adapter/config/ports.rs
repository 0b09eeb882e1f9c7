//! The ports in the configuration: where they listen, who may use them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use hyper::header::HeaderValue;

use super::Flags;
use crate::adapter::runtime::Env;
use crate::base::settings::section::Section;
use crate::base::settings::shown;
use crate::base::token::Token;

/// Who may talk to the ports.
#[derive(Debug, Default)]
pub struct AccessPolicy {
    /// Names besides the loopback ones that `Host` may say.
    pub hosts: Vec<String>,
    /// Origins of pages that may read the stream.
    pub origins: Vec<String>,
    pub read: Option<Token>,
    pub write: Option<Token>,
}

impl AccessPolicy {
    /// Is this a page that was configured?
    pub fn allows_origin(&self, origin: &HeaderValue) -> bool {
        self.origins
            .iter()
            .any(|o| o.as_bytes() == origin.as_bytes())
    }
}

pub(super) fn ports(root: &mut Section, flags: &Flags) -> (AccessPolicy, SocketAddr, SocketAddr) {
    let mut policy = AccessPolicy::default();
    // Token files that are named and cannot be read: that is said already.
    let mut given = [false; 2];
    let (mut stream, mut input) = (
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 3100),
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8788),
    );
    if let Some(mut s) = root.section("listen") {
        for (key, slot) in [("stream", &mut stream), ("input", &mut input)] {
            if let Some(text) = s.string(key) {
                match text.replace("localhost", "127.0.0.1").parse() {
                    Ok(address) => *slot = address,
                    Err(_) => s.add(key, format!("{} is not an address with a port from 1 to 65535, such as `127.0.0.1:3100`", shown(&text))),
                }
            }
        }
        for (key, slot) in [
            ("readTokenFile", &mut policy.read),
            ("writeTokenFile", &mut policy.write),
        ] {
            if let Some(file) = s.string(key) {
                *slot = Token::read(Path::new(&file))
                    .map_err(|e| s.add(key, e))
                    .ok();
            }
        }
        policy.hosts = s.hosts("hosts");
        for (place, origin) in s.items("origins").unwrap_or_default() {
            if let Err(why) = check_origin(&origin) {
                s.add(&place, why);
            }
            policy.origins.push(origin);
        }
        given = ["readTokenFile", "writeTokenFile"].map(|key| s.is_wrong(key));
        if policy.read.is_some() && policy.read == policy.write {
            s.add(
                "writeTokenFile",
                "it holds the read token; whoever may read could write",
            );
        }
    }
    stream = flags.stream.unwrap_or(stream);
    input = flags.input.unwrap_or(input);
    // Whoever reads the stream sees the workspace, and whoever writes runs commands in it.
    for (key, address) in [("stream", stream), ("input", input)] {
        let needed = if key == "stream" {
            policy.read.is_some() && policy.write.is_some()
        } else {
            policy.write.is_some()
        };
        if !address.ip().is_loopback() && !needed && given == [false; 2] {
            root.add(
                &format!("listen.{key}"),
                format!("`{address}` can be reached by others, and nothing says who may; name files with tokens in `listen.readTokenFile` and `listen.writeTokenFile` (`openssl rand -hex 32` writes one), or listen on `127.0.0.1`"),
            );
        }
    }
    if stream == input && stream.port() != 0 && flags.stream.is_none() {
        root.add(
            "listen.input",
            format!("is the address of `listen.stream`, `{stream}`; choose another"),
        );
    }
    (policy, stream, input)
}

/// Whether a page of this origin can be named.
///
/// # Errors
/// Why it is no origin.
pub fn check_origin(origin: &str) -> Result<(), String> {
    let host = origin
        .strip_prefix("https://")
        .or_else(|| origin.strip_prefix("http://"))
        .unwrap_or_default();
    if host.is_empty() || host.contains(['/', '*', '@', '?', '#', ' ']) {
        return Err(format!(
            "{} is not an origin such as `https://ui.example` or `http://localhost:5173`, without a path",
            shown(origin)
        ));
    }
    Ok(())
}

/// Its address, what it is shown as a key, and the file that holds this.
pub(super) fn sidecar(
    root: &mut Section,
    flags: &Flags,
    env: Env<'_>,
) -> (String, String, Option<PathBuf>) {
    let (mut url, mut key, mut key_file) = (None, "outrigger".to_owned(), None);
    if let Some(mut s) = root.section("sidecar") {
        url = s.string("url");
        // The session's token, where the sidecar asks for one. It opens the sidecar, no provider.
        if let Some(file) = s.string("tokenFile").map(PathBuf::from) {
            match read_key(&file) {
                Ok(text) => (key, key_file) = (text, Some(file)),
                Err(e) => s.add("tokenFile", e),
            }
        }
    }
    let (place, url) = if let Some(url) = flags.sidecar.clone() {
        ("--sidecar", url)
    } else if let Some(url) = env("OUTRIGGER_SIDECAR_URL") {
        ("OUTRIGGER_SIDECAR_URL", url)
    } else {
        (
            "sidecar.url",
            url.unwrap_or_else(|| "http://127.0.0.1:11432".into()),
        )
    };
    let plain = |uri: &hyper::Uri| {
        uri.scheme_str() == Some("http")
            && uri.path().trim_end_matches('/').is_empty()
            && uri.query().is_none()
    };
    if url.contains('@') || !url.parse::<hyper::Uri>().is_ok_and(|uri| plain(&uri)) {
        root.add(
            place,
            format!(
                "{} is not an address such as `http://127.0.0.1:11432`, without a path",
                shown(&url)
            ),
        );
    }
    (url.trim_end_matches('/').to_owned(), key, key_file)
}

/// The session's token.
///
/// # Errors
/// Why the file holds none; never its content.
pub fn read_key(file: &Path) -> Result<String, String> {
    Token::read(file)?;
    std::fs::read_to_string(file)
        .map(|text| text.trim_end().to_owned())
        .map_err(|e| e.to_string())
}
