//! How one hears and asks a CLI: bounded lines of what it writes, and a client for one that
//! serves HTTP on loopback.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ring::digest::{Context, SHA256};
use rustix::fs::OFlags;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::adapter::runtime::action::{CallPurpose, CallReply, FilePattern, RuntimeCall};
use crate::base::token::hex;

/// Longest line that is kept whole.
pub const MAX_LINE: usize = 8 << 20;
/// What is kept of a longer one.
const HEAD: usize = 4 << 10;
/// Longest answer to a call.
const MAX_REPLY: usize = 8 << 20;
/// Of one directory that is looked through.
const MAX_ENTRIES: usize = 4096;
const CALL_TIME: Duration = Duration::from_secs(30);

/// What comes from a CLI, as it comes.
#[derive(Debug)]
pub enum FromCli {
    Stdout(Bytes),
    /// It has closed that.
    StdoutOver,
    Stderr(Bytes),
    /// Of its stream of events.
    Events(Bytes),
    /// That stream is over.
    EventsOver(String),
    Reply(CallPurpose, CallReply),
}

/// Cuts a stream into lines, none of which costs more than so many bytes.
pub struct LineSplitter {
    max: usize,
    held: Vec<u8>,
    /// The line is too long: what there was of it, and its digest so far.
    over: Option<(u64, Context)>,
}

/// A line that was too long, as `agent.unparsed` tells it: `{bytes, sha256, head}`.
type Oversize = Value;

impl Default for LineSplitter {
    fn default() -> Self {
        LineSplitter::up_to(MAX_LINE)
    }
}

impl LineSplitter {
    pub fn up_to(max: usize) -> Self {
        LineSplitter {
            max,
            held: Vec::new(),
            over: None,
        }
    }

    /// Hands on every line that `bytes` completes, without its end; those too long as what is
    /// known of them.
    pub fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(Result<&[u8], Oversize>)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (head, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.held.is_empty() && self.over.is_none() && head.len() <= self.max {
                // The usual case: nothing is copied.
                line(Ok(head.strip_suffix(b"\r").unwrap_or(head)));
                continue;
            }
            self.hold(head);
            self.finish(&mut line);
        }
        self.hold(bytes);
    }

    /// A line has begun and not ended.
    pub fn are_open(&self) -> bool {
        !self.held.is_empty()
    }

    fn hold(&mut self, bytes: &[u8]) {
        if let Some((length, digest)) = &mut self.over {
            *length += bytes.len() as u64;
            digest.update(bytes);
        } else if self.held.len() + bytes.len() > self.max {
            let mut digest = Context::new(&SHA256);
            digest.update(&self.held);
            digest.update(bytes);
            let length = (self.held.len() + bytes.len()) as u64;
            self.held.extend_from_slice(&bytes[..bytes.len().min(HEAD)]);
            self.held.truncate(HEAD);
            self.held.shrink_to_fit();
            self.over = Some((length, digest));
        } else {
            self.held.extend_from_slice(bytes);
        }
    }

    fn finish(&mut self, line: &mut impl FnMut(Result<&[u8], Oversize>)) {
        let held = std::mem::take(&mut self.held);
        match self.over.take() {
            Some((length, digest)) => line(Err(
                json!({ "bytes": length, "sha256": hex(digest.finish().as_ref()), "head": String::from_utf8_lossy(&held) }),
            )),
            None => line(Ok(held.strip_suffix(b"\r").unwrap_or(&held))),
        }
    }
}

/// Reads what a CLI wrote down, and says so.
pub async fn find(file: FilePattern, tag: CallPurpose, from_cli: mpsc::Sender<FromCli>) {
    let reply = match tokio::task::spawn_blocking(move || largest(&file)).await {
        Ok(Ok(Some(body))) => CallReply::Answer { status: 200, body },
        Ok(Ok(None)) => CallReply::Answer {
            status: 404,
            body: Vec::new(),
        },
        Ok(Err(e)) => CallReply::Lost(e.to_string()),
        Err(e) => CallReply::Lost(e.to_string()),
    };
    let _ = from_cli.send(FromCli::Reply(tag, reply)).await;
}

fn largest(file: &FilePattern) -> io::Result<Option<Vec<u8>>> {
    let mut found: Option<(u64, PathBuf)> = None;
    look_below(&file.dir, 2, &file.suffix, &mut found);
    let Some((_, path)) = found else {
        return Ok(None);
    };
    // Whatever the agent put in its place meanwhile: no link is followed, nothing is waited for.
    let mut file = File::options()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    file.seek(SeekFrom::Start(meta.len().saturating_sub(MAX_REPLY as u64)))?;
    let mut bytes = Vec::new();
    file.take(MAX_REPLY as u64).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn look_below(dir: &Path, depth: u32, suffix: &str, found: &mut Option<(u64, PathBuf)>) {
    for entry in std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .take(MAX_ENTRIES)
    {
        // Not through links: the agent could lay them.
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() && depth > 0 {
            look_below(&entry.path(), depth - 1, suffix, found);
        } else if kind.is_file() && entry.file_name().to_string_lossy().ends_with(suffix) {
            let length = entry.metadata().map_or(0, |m| m.len());
            if found.as_ref().is_none_or(|(before, _)| length >= *before) {
                *found = Some((length, entry.path()));
            }
        }
    }
}

/// The client of a CLI that serves HTTP.
#[derive(Debug, Clone)]
pub struct CliHttpClient {
    /// `127.0.0.1:port`.
    pub address: String,
    pub authorization: String,
}

impl CliHttpClient {
    /// One request on a connection of its own: there are few, and none may wait for another.
    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, String> {
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(|e| format!("cannot connect: {e}"))?;
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.address)
            .header(AUTHORIZATION, &self.authorization);
        request = request.header(ACCEPT, "application/json, text/event-stream");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let request = request.body(Full::new(body)).map_err(|e| e.to_string())?;
        sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())
    }

    /// # Errors
    /// No whole answer came in `time`.
    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        time: Duration,
    ) -> Result<(u16, Vec<u8>), String> {
        let exchange = async {
            let response = self.send(method, path, body).await?;
            let status = response.status().as_u16();
            let body = http_body_util::Limited::new(response.into_body(), MAX_REPLY)
                .collect()
                .await
                .map_err(|e| e.to_string())?;
            Ok((status, body.to_bytes().to_vec()))
        };
        tokio::time::timeout(time, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {time:?}")))
    }

    pub async fn call(self, call: RuntimeCall, from_cli: mpsc::Sender<FromCli>) {
        let reply = match self
            .ask(call.method, &call.path, call.body.as_ref(), CALL_TIME)
            .await
        {
            Ok((status, body)) => CallReply::Answer { status, body },
            Err(why) => CallReply::Lost(why),
        };
        let _ = from_cli.send(FromCli::Reply(call.tag, reply)).await;
    }

    /// Opens the stream of events; from when this returns, none is missed.
    ///
    /// # Errors
    /// It is not offered.
    pub async fn events(
        &self,
        path: &str,
        from_cli: mpsc::Sender<FromCli>,
    ) -> Result<tokio::task::JoinHandle<()>, String> {
        let response = tokio::time::timeout(CALL_TIME, self.send("GET", path, None))
            .await
            .map_err(|_| "no answer".to_owned())??;
        if response.status() != 200 {
            let status = response.status().as_u16();
            let body = http_body_util::Limited::new(response.into_body(), HEAD)
                .collect()
                .await
                .map(|b| b.to_bytes())
                .unwrap_or_default();
            return Err(format!(
                "status {status} {}",
                String::from_utf8_lossy(&body)
            ));
        }
        let mut body = response.into_body();
        Ok(tokio::spawn(async move {
            let why = loop {
                match body.frame().await {
                    Some(Ok(frame)) => {
                        let Ok(data) = frame.into_data() else {
                            continue;
                        };
                        // Where the disk is full this waits, and with it the CLI.
                        if from_cli.send(FromCli::Events(data)).await.is_err() {
                            return;
                        }
                    }
                    Some(Err(e)) => break e.to_string(),
                    None => break "it ended".to_owned(),
                }
            };
            let _ = from_cli.send(FromCli::EventsOver(why)).await;
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<Result<Vec<u8>, Value>> {
        let (mut lines, mut out) = (LineSplitter::default(), Vec::new());
        for piece in pieces {
            lines.feed(piece, |l| out.push(l.map(<[u8]>::to_vec)));
        }
        if lines.are_open() {
            lines.feed(b"\n", |l| out.push(l.map(<[u8]>::to_vec)));
        }
        out
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let text = b"one\r\n\ntwo\xff\nlast";
        let expected: Vec<_> = [&b"one"[..], b"", b"two\xff", b"last"]
            .iter()
            .map(|l| Ok(l.to_vec()))
            .collect();
        for i in 0..text.len() {
            for j in i..text.len() {
                assert_eq!(cut(&[&text[..i], &text[i..j], &text[j..]]), expected);
            }
        }
    }

    #[test]
    fn a_line_without_end_costs_its_head() {
        let piece = vec![b'x'; 1 << 20];
        let (mut lines, mut said) = (LineSplitter::default(), Vec::new());
        for _ in 0..100 {
            lines.feed(&piece, |_| panic!("it is not over"));
            assert!(lines.held.capacity() <= 2 * MAX_LINE);
        }
        lines.feed(b"\nnext\n", |l| said.push(l.map(<[u8]>::to_vec)));
        let over = said[0].as_ref().unwrap_err();
        assert_eq!(
            (over["bytes"].as_u64(), over["head"].as_str().map(str::len)),
            (Some(100 << 20), Some(HEAD))
        );
        // `head -c 104857600 /dev/zero | tr '\0' x | sha256sum`
        assert_eq!(
            over["sha256"],
            "5b05b298e974f3b9e40f0a1a8188f50984a4f18fb329e050324296632d3d9dfc"
        );
        assert_eq!(said[1].as_ref().unwrap(), b"next");
        assert_eq!(cut(&[&vec![b'y'; MAX_LINE], b"\n"]).len(), 1);
    }
}
