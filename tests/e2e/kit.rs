//! Builders: a scripted upstream that counts, a sidecar in a directory of its own, and a
//! client that sends exactly the bytes it is given.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outrigger::sidecar::server::Sidecar;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Searched for in every byte that leaves the process.
pub const CANARY: &str = "sk-canary-7f3a9c51e2d84b06-NEVER-LEAVES";
pub const BODY: &str = r#"{"model":"claude-sonnet-5","max_tokens":1,"messages":[]}"#;

/// Longest that any single thing may take before a test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn within<T>(what: &str, f: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, f)
        .await
        .unwrap_or_else(|_| panic!("{what} took more than {PATIENCE:?}"))
}

/// Waits until a condition holds, looking every few milliseconds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    until_async(what, async || holds()).await;
}

/// The same of one that has to be asked for.
pub async fn until_async(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A disk that is soon full, until it is dropped.
pub struct SmallDisk(PathBuf);

/// A test that cannot run here fails, unless it is left out on purpose.
pub fn cannot_run(what: &str, needs: &str) {
    assert!(
        std::env::var_os("OUTRIGGER_LEAVE_OUT").is_some(),
        "{what} cannot be tested: it needs {needs}\nhint: run the tests as root, or leave such tests out with OUTRIGGER_LEAVE_OUT=1"
    );
    eprintln!("LEFT OUT: {what}: it needs {needs}");
}

impl SmallDisk {
    /// Makes the directory and mounts a tmpfs of so many KiB on it, for a test of `what`. `None`
    /// only where such tests are left out on purpose.
    pub fn mount(at: &Path, kib: u32, what: &str) -> Option<SmallDisk> {
        std::fs::create_dir(at).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"])
            .arg(at)
            .stderr(Stdio::null());
        if !mount.status().is_ok_and(|s| s.success()) {
            cannot_run(what, "root, to mount a tmpfs");
            return None;
        }
        Some(SmallDisk(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A request as the upstream saw it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub line: String,
    /// Lower-case names, in wire order.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    pub fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }
}

/// What the upstream answers.
#[derive(Clone)]
pub enum Reply {
    /// A whole reply with `Content-Length`.
    Whole {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: Vec<u8>,
    },
    /// An event stream, a chunk an item, and its end.
    Stream(Vec<Vec<u8>>),
    /// An event stream of one chunk, so many times.
    Repeat(Vec<u8>, usize),
    /// Bytes as they are, then the connection is closed.
    Raw(Vec<u8>),
    /// A chunked head and first piece, then silence until the client goes.
    Open(Vec<u8>),
    /// No answer.
    Silence,
}

pub fn json(body: &str) -> Reply {
    status(200, body)
}

pub fn status(status: u16, body: &str) -> Reply {
    Reply::Whole {
        status,
        headers: vec![("content-type", "application/json".into())],
        body: body.as_bytes().to_vec(),
    }
}

pub fn message() -> Reply {
    json(
        r#"{"id":"m","type":"message","role":"assistant","model":"claude-sonnet-5","content":[{"type":"text","text":"hi"}],"stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":5}}"#,
    )
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

pub struct Upstream {
    pub addr: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub gone: Arc<AtomicUsize>,
    /// Every byte that arrived.
    pub bytes: Arc<Mutex<Vec<u8>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Upstream {
    pub async fn always(reply: Reply) -> Upstream {
        Upstream::new(move |_| reply.clone()).await
    }

    pub async fn new(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let up = Upstream {
            addr: listener.local_addr().unwrap(),
            connections: Arc::default(),
            gone: Arc::default(),
            bytes: Arc::default(),
            seen: Arc::default(),
        };
        let script: Arc<Script> = Arc::new(script);
        let (connections, gone, bytes, seen) = (
            up.connections.clone(),
            up.gone.clone(),
            up.bytes.clone(),
            up.seen.clone(),
        );
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (script, gone, bytes, seen) =
                    (script.clone(), gone.clone(), bytes.clone(), seen.clone());
                tokio::spawn(async move {
                    let _ = serve(stream, &*script, &bytes, &seen).await;
                    gone.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        up
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
        self.bytes.lock().unwrap().clear();
        self.connections.store(0, Ordering::SeqCst);
    }

    /// Nothing arrived, not even a connection.
    pub fn untouched(&self) -> bool {
        self.connections.load(Ordering::SeqCst) == 0 && self.bytes.lock().unwrap().is_empty()
    }
}

async fn serve(
    mut stream: TcpStream,
    script: &Script,
    bytes: &Mutex<Vec<u8>>,
    seen: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    loop {
        let Some(request) = read_request(&mut stream, &mut buffer, bytes).await? else {
            return Ok(());
        };
        seen.lock().unwrap().push(request.clone());
        match script(&request) {
            Reply::Whole {
                status,
                headers,
                body,
            } => {
                let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
                headers
                    .iter()
                    .for_each(|(n, v)| head.push_str(&format!("{n}: {v}\r\n")));
                stream
                    .write_all(&[head.as_bytes(), b"\r\n", &body].concat())
                    .await?;
            }
            Reply::Stream(chunks) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                for c in chunks {
                    stream
                        .write_all(&[format!("{:x}\r\n", c.len()).as_bytes(), &c, b"\r\n"].concat())
                        .await?;
                }
                stream.write_all(b"0\r\n\r\n").await?;
            }
            Reply::Repeat(piece, times) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
                for _ in 0..times {
                    stream.write_all(&chunk).await?;
                }
                stream.write_all(b"0\r\n\r\n").await?;
            }
            Reply::Raw(raw) => {
                stream.write_all(&raw).await?;
                stream.shutdown().await?;
                let mut rest = [0; 1024];
                while stream.read(&mut rest).await? > 0 {}
                return Ok(());
            }
            Reply::Open(first) => {
                let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                stream
                    .write_all(
                        &[
                            head,
                            format!("{:x}\r\n", first.len()).as_bytes(),
                            &first,
                            b"\r\n",
                        ]
                        .concat(),
                    )
                    .await?;
                let mut rest = [0; 1024];
                while stream.read(&mut rest).await? > 0 {}
                return Ok(());
            }
            Reply::Silence => {
                let mut rest = [0; 1024];
                while stream.read(&mut rest).await? > 0 {}
                return Ok(());
            }
        }
    }
}

async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    bytes: &Mutex<Vec<u8>>,
) -> std::io::Result<Option<Seen>> {
    loop {
        if let Some(end) = find(buffer, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let mut lines = head.split("\r\n");
            let mut seen = Seen {
                line: lines.next().unwrap_or_default().to_owned(),
                ..Seen::default()
            };
            seen.headers = lines
                .filter_map(|l| l.split_once(':'))
                .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()))
                .collect();
            let length: usize = seen
                .header("content-length")
                .and_then(|v| v.parse().ok())
                .unwrap_or(0);
            assert!(
                seen.header("transfer-encoding").is_none(),
                "the sidecar knows the length of every body it sends"
            );
            if buffer.len() >= end + 4 + length {
                seen.body = buffer[end + 4..end + 4 + length].to_vec();
                buffer.drain(..end + 4 + length);
                return Ok(Some(seen));
            }
        }
        let mut piece = vec![0; 65536];
        let n = stream.read(&mut piece).await?;
        if n == 0 {
            return Ok(None);
        }
        bytes.lock().unwrap().extend_from_slice(&piece[..n]);
        buffer.extend_from_slice(&piece[..n]);
    }
}

pub fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|w| w == what)
}

/// A reply as the client saw it.
#[derive(Debug, Clone, Default)]
pub struct Got {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body ended as its framing says it should.
    pub whole: bool,
}

impl Got {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    pub fn code(&self) -> &str {
        self.header("x-outrigger-error").unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Parses the first reply in raw bytes.
    pub fn parse(raw: &[u8]) -> Option<Got> {
        let end = find(raw, b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&raw[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .filter_map(|l| l.split_once(':'))
            .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()))
            .collect();
        let mut got = Got {
            status,
            headers,
            ..Got::default()
        };
        if status == 100 {
            return Got::parse(&raw[end + 4..]);
        }
        let rest = &raw[end + 4..];
        match (
            got.header("transfer-encoding"),
            got.header("content-length")
                .and_then(|v| v.parse::<usize>().ok()),
        ) {
            (Some(_), _) => (got.body, got.whole) = dechunk(rest),
            (None, Some(n)) => {
                got.whole = rest.len() >= n;
                got.body = rest[..n.min(rest.len())].to_vec();
            }
            (None, None) => {
                got.whole = true;
                got.body = rest.to_vec();
            }
        }
        Some(got)
    }
}

fn dechunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(line) = find(rest, b"\r\n") else {
            return (body, false);
        };
        let Some(size) = std::str::from_utf8(&rest[..line])
            .ok()
            .and_then(|s| usize::from_str_radix(s, 16).ok())
        else {
            return (body, false);
        };
        rest = &rest[line + 2..];
        if size == 0 {
            return (body, rest.starts_with(b"\r\n"));
        }
        if rest.len() < size + 2 {
            body.extend_from_slice(&rest[..rest.len().min(size)]);
            return (body, false);
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

/// Providers by name, each at a path of the upstream.
#[derive(Clone)]
pub struct Setup {
    pub upstream: SocketAddr,
    pub providers: Vec<(&'static str, &'static str)>,
    pub grants: String,
    pub extra: String,
    pub key: Option<String>,
}

pub fn sidecar(upstream: &Upstream) -> Setup {
    Setup {
        upstream: upstream.addr,
        providers: vec![("anthropic", ""), ("openai", "/v1"), ("google", "")],
        grants: "[{scope: ai.anthropic}, {scope: ai.openai}, {scope: ai.google}]".into(),
        extra: String::new(),
        key: Some(CANARY.into()),
    }
}

impl Setup {
    pub fn provider(mut self, name: &'static str, path: &'static str) -> Self {
        self.providers.push((name, path));
        self
    }

    /// The YAML list under `permissionGrants`.
    pub fn grants(mut self, grants: &str) -> Self {
        self.grants = grants.into();
        self
    }

    /// Further lines of the configuration.
    pub fn extra(mut self, lines: &str) -> Self {
        self.extra.push_str(lines);
        self.extra.push('\n');
        self
    }

    pub fn key(mut self, key: Option<&str>) -> Self {
        self.key = key.map(str::to_owned);
        self
    }

    pub fn yaml(&self, dir: &Path) -> String {
        let d = dir.display();
        let mut out = format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nsecretsDir: {d}/secrets\naudit: {{ file: {d}/audit.jsonl }}\n{}aiProviders:\n",
            self.extra
        );
        for (name, path) in &self.providers {
            // A mount may be given another kind: `name=kind`.
            let (name, kind) = name
                .split_once('=')
                .map_or((*name, String::new()), |(n, k)| (n, format!("kind: {k}, ")));
            let secret = if name == "ollama" {
                String::new()
            } else {
                format!(", secretRef: {{ name: {name}, key: key }}")
            };
            out.push_str(&format!(
                "  {name}: {{ {kind}baseUrl: \"http://{}{path}\"{secret} }}\n",
                self.upstream
            ));
        }
        out.push_str(&format!("permissionGrants: {}\n", self.grants));
        out
    }

    /// Writes configuration and secrets into a fresh directory.
    pub fn lay_out(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("sidecar.yaml"), self.yaml(dir.path())).unwrap();
        for (name, _) in &self.providers {
            let name = name.split('=').next().unwrap();
            std::fs::create_dir_all(dir.path().join("secrets").join(name)).unwrap();
            if let Some(key) = &self.key {
                std::fs::write(
                    dir.path().join("secrets").join(name).join("key"),
                    format!("{key}\n"),
                )
                .unwrap();
            }
        }
        dir
    }

    pub async fn run(self) -> Running {
        let dir = self.lay_out();
        let sidecar = Sidecar::start(&dir.path().join("sidecar.yaml"), Some("ses_test".into()))
            .await
            .unwrap();
        Running {
            addr: sidecar.addr,
            admin: sidecar.admin.unwrap(),
            sidecar,
            setup: self,
            dir,
        }
    }
}

pub struct Running {
    pub addr: SocketAddr,
    pub admin: SocketAddr,
    pub sidecar: Sidecar,
    pub setup: Setup,
    pub dir: tempfile::TempDir,
}

impl Running {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sends exactly these bytes (`{PORT}` is ours) and reads until the other side closes.
    pub async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        exchange(self.addr, bytes).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Got {
        self.request("POST", path, headers, body.as_ref()).await
    }

    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Got {
        self.request("GET", path, headers, b"").await
    }

    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Got {
        request(self.addr, method, path, headers, body).await
    }

    pub async fn admin(&self, path: &str) -> Got {
        request(self.admin, "GET", path, &[], b"").await
    }

    /// The audit records, once there are so many.
    pub async fn audit(&self, count: usize) -> Vec<Value> {
        let file = self.path("audit.jsonl");
        let mut all = Vec::new();
        until(&format!("{count} audit records"), || {
            all = records(&file);
            all.len() >= count
        })
        .await;
        assert_eq!(all.len(), count, "exactly one record a request: {all:#?}");
        all
    }

    pub fn reconfigure(&self, yaml: &str) {
        replace(&self.path("sidecar.yaml"), yaml.as_bytes());
    }

    pub fn regrant(&self, grants: &str) {
        let mut setup = self.setup.clone();
        setup.grants = grants.into();
        self.reconfigure(&setup.yaml(self.dir.path()));
    }

    pub fn rotate(&self, provider: &str, key: &str) {
        replace(
            &self.path(&format!("secrets/{provider}/key")),
            format!("{key}\n").as_bytes(),
        );
    }
}

/// As editors and Kubernetes do: written beside, then renamed.
pub fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("tmp");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(&new, path).unwrap();
}

pub fn records(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let whole = &text[..text.rfind('\n').map_or(0, |i| i + 1)];
    let lines = whole
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap());
    // Refused requests can share a record: it stands here once for each of them.
    lines
        .flat_map(|r| std::iter::repeat_n(r.clone(), r["count"].as_u64().unwrap_or(1) as usize))
        .collect()
}

pub async fn exchange(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let bytes = substitute(bytes, addr.port());
    within("an exchange", async {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let (mut read, mut write) = stream.split();
        let mut got = Vec::new();
        let send = async {
            let _ = write.write_all(&bytes).await;
        };
        let receive = async {
            let mut piece = vec![0; 65536];
            while let Ok(n) = read.read(&mut piece).await {
                if n == 0 {
                    break;
                }
                got.extend_from_slice(&piece[..n]);
            }
        };
        tokio::join!(send, receive);
        got
    })
    .await
}

fn substitute(bytes: &[u8], port: u16) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some(i) = find(rest, b"{PORT}") {
        out.extend_from_slice(&rest[..i]);
        out.extend_from_slice(port.to_string().as_bytes());
        rest = &rest[i + 6..];
    }
    out.extend_from_slice(rest);
    out
}

pub fn compose(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost:{{PORT}}\r\nConnection: close\r\n");
    if method == "POST" {
        if !headers
            .iter()
            .any(|(n, _)| n.eq_ignore_ascii_case("content-type"))
        {
            head.push_str("Content-Type: application/json\r\n");
        }
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (n, v) in headers {
        head.push_str(&format!("{n}: {v}\r\n"));
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

pub async fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Got {
    let raw = exchange(addr, &compose(method, path, headers, body)).await;
    Got::parse(&raw).unwrap_or_default()
}

pub fn fixture(path: &str) -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(path);
    std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}
