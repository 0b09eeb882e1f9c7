//! What the sidecar costs, side by side with a bare relay in the same run.
//!
//! One binary in several roles, each its own process: an upstream, a relay that parses
//! nothing, the load. Requests to all targets are interleaved, so that a busy machine is busy
//! for all of them. Run by `make bench`; prints Markdown.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SIZES: [(&str, usize); 3] = [("1 KB", 1 << 10), ("128 KB", 128 << 10), ("1 MB", 1 << 20)];

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    match args
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["upstream", port, tls] => {
            runtime.block_on(upstream(port.parse().unwrap(), *tls != "-", Path::new(tls)))
        }
        ["relay", port, upstream, scan] => {
            runtime.block_on(relay(port.parse().unwrap(), upstream, *scan == "scan"))
        }
        rest => {
            let quick = rest.contains(&"quick");
            runtime.block_on(bench(quick));
        }
    }
}

fn nanos() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64
}

// --- the upstream -----------------------------------------------------------------------

const ANSWER: &str = r#"{"id":"m","type":"message","role":"assistant","model":"claude-sonnet-5","content":[{"type":"text","text":"ok"}],"stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":5}}"#;

/// Answers once the body is read; `x-app: N,MS` asks for a stream of N chunks, MS apart.
async fn upstream(port: u16, tls: bool, dir: &Path) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let acceptor = tls.then(|| tls_acceptor(dir));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true).unwrap();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            match acceptor {
                Some(a) => {
                    if let Ok(s) = a.accept(stream).await {
                        serve_upstream(s).await;
                    }
                }
                None => serve_upstream(stream).await,
            }
        });
    }
}

async fn serve_upstream(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
        let asked = request
            .headers()
            .get("x-app")
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.split_once(','))
            .map(|(n, ms)| (n.parse().unwrap(), ms.parse().unwrap()));
        let mut body = request.into_body();
        while let Some(Ok(_)) = body.frame().await {}
        let (body, kind) = match asked {
            Some((chunks, ms)) => (
                Either::Left(Chunks {
                    left: chunks,
                    every: Duration::from_millis(ms),
                    sleep: None,
                }),
                "text/event-stream",
            ),
            None => (Either::Right(Full::from(ANSWER)), "application/json"),
        };
        let mut response = Response::new(body);
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        Ok::<_, Infallible>(response)
    });
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(io), service)
        .await;
}

struct Chunks {
    left: u32,
    every: Duration,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if !self.every.is_zero() {
            let every = self.every;
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(every)));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.sleep = None;
        }
        self.left -= 1;
        let event = format!(
            "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":\"at={} and some words\"}}}}\n\n",
            nanos()
        );
        Poll::Ready(Some(Ok(Frame::data(event.into()))))
    }
}

fn tls_acceptor(dir: &Path) -> tokio_rustls::TlsAcceptor {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let cert = CertificateDer::from_pem_file(dir.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![cert], key)
    .unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

fn certificate(dir: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params =
        rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
            .unwrap();
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    let cert = params.self_signed(&key).unwrap();
    std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

// --- the bare relay ---------------------------------------------------------------------

/// hyper to hyper: copies bytes, parses nothing. With `scan` it holds the body and looks for
/// `"model"` in it, the least that a gateway which reads models could do.
async fn relay(port: u16, upstream: &str, scan: bool) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let (base, tls) = upstream
        .split_once('#')
        .map_or((upstream, None), |(u, d)| (u, Some(PathBuf::from(d))));
    let base: &'static str = Box::leak(base.to_owned().into_boxed_str());
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    http.enforce_http(false);
    let connector = Connector {
        http,
        tls: tls.map(|d| tls_connector(&d)),
    };
    let client: Client<Connector, Either<Incoming, Full<Bytes>>> =
        Client::builder(TokioExecutor::new()).build(connector);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true).unwrap();
        let client = client.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
                let client = client.clone();
                async move {
                    let path = request
                        .uri()
                        .path()
                        .trim_start_matches("/anthropic")
                        .to_owned();
                    *request.uri_mut() = format!("{base}{path}").parse::<Uri>().unwrap();
                    request.headers_mut().remove("host");
                    request
                        .headers_mut()
                        .insert("x-api-key", HeaderValue::from_static("sk-bench"));
                    let request = if scan {
                        let (parts, body) = request.into_parts();
                        let bytes = body.collect().await.unwrap().to_bytes();
                        assert!(memchr::memmem::find(&bytes, b"\"model\"").is_some());
                        Request::from_parts(parts, Either::Right(Full::new(bytes)))
                    } else {
                        request.map(Either::Left)
                    };
                    client.request(request).await
                }
            });
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[derive(Clone)]
struct Connector {
    http: HttpConnector,
    tls: Option<tokio_rustls::TlsConnector>,
}

type Io = TokioIo<Wire>;

impl tower_service::Service<Uri> for Connector {
    type Response = Io;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Io, Self::Error>> + Send>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut this = self.clone();
        Box::pin(async move {
            let stream = this.http.call(uri).await?.into_inner();
            Ok(TokioIo::new(match this.tls {
                Some(tls) => Wire::Tls(Box::new(
                    tls.connect("localhost".try_into().unwrap(), stream).await?,
                )),
                None => Wire::Plain(stream),
            }))
        })
    }
}

fn tls_connector(dir: &Path) -> tokio_rustls::TlsConnector {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(dir.join("cert.pem")).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_root_certificates(roots)
    .with_no_client_auth();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl hyper_util::client::legacy::connect::Connection for Wire {
    fn connected(&self) -> hyper_util::client::legacy::connect::Connected {
        hyper_util::client::legacy::connect::Connected::new()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Wire::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Wire::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(s) => Pin::new(s).poll_flush(cx),
            Wire::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Wire::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Wire::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
}

// --- processes --------------------------------------------------------------------------

struct Process {
    child: Child,
    addr: SocketAddr,
    ready: Duration,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Starts a process on a CPU and waits until its port answers.
fn start(cpu: usize, port: u16, program: &Path, args: &[String]) -> Process {
    let started = Instant::now();
    let child = Command::new("taskset")
        .args(["-c", &cpu.to_string()])
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    while std::net::TcpStream::connect(addr).is_err() {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{program:?} {args:?} does not listen"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
    Process {
        child,
        addr,
        ready: started.elapsed(),
    }
}

impl Process {
    fn ids(&self) -> Vec<u32> {
        // nginx serves in a child of the process that was started.
        let children =
            std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id()))
                .unwrap_or_default();
        std::iter::once(self.child.id())
            .chain(children.split_whitespace().filter_map(|c| c.parse().ok()))
            .collect()
    }

    fn cpu(&self) -> Duration {
        let threads = self.ids().into_iter().flat_map(|id| {
            std::fs::read_dir(format!("/proc/{id}/task"))
                .into_iter()
                .flatten()
        });
        let ns = threads
            .filter_map(|t| {
                std::fs::read_to_string(t.ok()?.path().join("schedstat"))
                    .ok()?
                    .split(' ')
                    .next()?
                    .parse::<u64>()
                    .ok()
            })
            .sum();
        Duration::from_nanos(ns)
    }

    /// Proportional set size in KiB.
    fn pss(&self) -> u64 {
        let of = |id: u32| {
            std::fs::read_to_string(format!("/proc/{id}/smaps_rollup"))
                .ok()?
                .lines()
                .find(|l| l.starts_with("Pss:"))?
                .split_whitespace()
                .nth(1)?
                .parse::<u64>()
                .ok()
        };
        self.ids().into_iter().filter_map(of).sum()
    }
}

struct Target {
    name: &'static str,
    process: Option<Process>,
    addr: SocketAddr,
}

fn sidecar_binary() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let beside = here.parent().unwrap().parent().unwrap().join("outrigger");
    assert!(
        beside.exists(),
        "build it first: cargo build --release ({})",
        beside.display()
    );
    beside
}

fn sidecar(dir: &Path, cpu: usize, upstream: &str, binary: &Path) -> Process {
    let port = free_port();
    let d = dir.display();
    std::fs::create_dir_all(dir.join("secrets/a")).unwrap();
    std::fs::write(
        dir.join("secrets/a/key"),
        "sk-bench-0123456789abcdef0123456789abcdef",
    )
    .unwrap();
    let tls = if upstream.starts_with("https") {
        format!("tls: {{ caFile: {d}/cert.pem }}\n")
    } else {
        String::new()
    };
    let yaml = format!(
        "listen: 127.0.0.1:{port}\nadmin: off\nsecretsDir: {d}/secrets\naudit: {{ file: {d}/audit-{port}.jsonl }}\nconnections: 4096\nlog: {{ level: warn }}\n{tls}aiProviders: {{ anthropic: {{ baseUrl: \"{upstream}\", secretRef: {{ name: a, key: key }} }} }}\npermissionGrants: [{{ scope: \"ai.anthropic:claude-*\", limits: {{ requestsPerMinute: 1000000, concurrent: 100000, tokensPerDay: 1000000000000, usdPerSession: 1000000 }} }}]\n"
    );
    let file = dir.join(format!("sidecar-{port}.yaml"));
    std::fs::write(&file, yaml).unwrap();
    start(
        cpu,
        port,
        binary,
        &[
            "sidecar".into(),
            "--config".into(),
            file.display().to_string(),
        ],
    )
}

fn bare(dir: &Path, cpu: usize, upstream: &str, scan: bool) -> Process {
    let port = free_port();
    let upstream = if upstream.starts_with("https") {
        format!("{upstream}#{}", dir.display())
    } else {
        upstream.to_owned()
    };
    let mode = if scan { "scan" } else { "-" };
    start(
        cpu,
        port,
        &std::env::current_exe().unwrap(),
        &["relay".into(), port.to_string(), upstream, mode.into()],
    )
}

fn nginx(dir: &Path, cpu: usize, upstream: SocketAddr) -> Option<Process> {
    let program = ["/usr/sbin/nginx", "/usr/bin/nginx"]
        .into_iter()
        .map(Path::new)
        .find(|p| p.exists())?;
    let port = free_port();
    let d = dir.display();
    let conf = format!(
        "daemon off; master_process on; worker_processes 1; user root; pid {d}/nginx-{port}.pid; error_log {d}/nginx.err;\nevents {{ worker_connections 4096; }}\nhttp {{ access_log off; keepalive_requests 100000000; client_max_body_size 64m; client_body_buffer_size 2m; client_body_temp_path {d}/nb; proxy_temp_path {d}/np; fastcgi_temp_path {d}/nf; uwsgi_temp_path {d}/nu; scgi_temp_path {d}/ns;\nupstream u {{ server {upstream}; keepalive 64; keepalive_requests 100000000; }}\nserver {{ listen 127.0.0.1:{port}; location /anthropic/ {{ proxy_pass http://u/; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header x-api-key sk-bench; proxy_buffering off; proxy_request_buffering on; }} }} }}\n"
    );
    let file = dir.join(format!("nginx-{port}.conf"));
    std::fs::write(&file, conf).unwrap();
    Some(start(
        cpu,
        port,
        program,
        &["-c".into(), file.display().to_string()],
    ))
}

// --- the load ---------------------------------------------------------------------------

fn body(size: usize) -> String {
    // Prose and code as CLIs send them: a line end every 60 bytes or so, a quote now and then.
    let lines = [
        r#"    let answer = compute(&mut state, 42)?; // and so on, at length\n"#,
        r#"The function above reads the file once and keeps what it needs.\n"#,
        r#"    assert_eq!(answer, 42, \"the answer is known\"); // a test\n"#,
    ];
    let head =
        r#"{"model":"claude-sonnet-5","max_tokens":1,"messages":[{"role":"user","content":""#;
    let mut text = head.to_owned();
    for line in lines.iter().cycle() {
        if text.len() + line.len() + 4 >= size {
            break;
        }
        text.push_str(line);
    }
    text.push_str("\"}]}");
    text
}

fn request(port: u16, path: &str, extra: &str, body: &str) -> Vec<u8> {
    format!("POST {path}/v1/messages HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nanthropic-version: 2023-06-01\r\nuser-agent: bench\r\n{extra}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn new(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Connection {
            stream,
            buffer: vec![0; 64 << 10],
        }
    }

    /// One request and its whole (small) answer.
    async fn ask(&mut self, raw: &[u8]) -> Duration {
        let start = Instant::now();
        self.stream.write_all(raw).await.unwrap();
        let mut len = 0;
        loop {
            let n = self.stream.read(&mut self.buffer[len..]).await.unwrap();
            assert!(
                n > 0,
                "closed: {}",
                String::from_utf8_lossy(&self.buffer[..len])
            );
            len += n;
            // Whole when the answer's last byte is there, chunked or not.
            let got = &self.buffer[..len];
            if got.ends_with(b"\"output_tokens\":5}}") || got.ends_with(b"0\r\n\r\n") {
                break;
            }
        }
        assert!(
            self.buffer.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&self.buffer[..len.min(400)])
        );
        start.elapsed()
    }

    /// A stream; the delay of each chunk between upstream and here, in nanoseconds.
    async fn stream(&mut self, raw: &[u8]) -> Vec<u64> {
        self.stream.write_all(raw).await.unwrap();
        let mut delays = Vec::new();
        let mut rest = Vec::new();
        loop {
            let n = self.stream.read(&mut self.buffer).await.unwrap();
            let now = nanos();
            assert!(n > 0);
            rest.extend_from_slice(&self.buffer[..n]);
            let mut from = 0;
            while let Some(i) = memchr::memmem::find(&rest[from..], b"at=") {
                let digits = &rest[from + i + 3..];
                if digits.len() < 20 {
                    break;
                }
                let sent: u64 = std::str::from_utf8(&digits[..19]).unwrap().parse().unwrap();
                delays.push(now.saturating_sub(sent));
                from += i + 22;
            }
            let done = rest.ends_with(b"0\r\n\r\n");
            rest.drain(..from.max(rest.len().saturating_sub(64)).min(rest.len()));
            if done {
                return delays;
            }
        }
    }
}

fn quantile<T: Copy + Ord>(values: &mut [T], q: f64) -> T {
    values.sort_unstable();
    values[((values.len() - 1) as f64 * q) as usize]
}

fn micros(d: Duration) -> f64 {
    d.as_nanos() as f64 / 1e3
}

#[derive(Default)]
struct Row {
    p50: f64,
    p99: f64,
    rate: f64,
    cpu: f64,
}

async fn requests(
    targets: &[Target],
    size: usize,
    connections: usize,
    rounds: usize,
    per_round: usize,
) -> Vec<Row> {
    let text = body(size);
    let mut latencies: Vec<Vec<Duration>> = targets.iter().map(|_| Vec::new()).collect();
    let mut busy = vec![Duration::ZERO; targets.len()];
    let mut cpu = vec![Duration::ZERO; targets.len()];
    let mut pools = Vec::new();
    for t in targets {
        let path = if t.process.is_some() {
            "/anthropic"
        } else {
            ""
        };
        let raw: Arc<[u8]> = request(t.addr.port(), path, "", &text).into();
        let mut pool = Vec::new();
        for _ in 0..connections {
            let mut c = Connection::new(t.addr).await;
            for _ in 0..5 {
                c.ask(&raw).await;
            }
            pool.push(c);
        }
        pools.push((raw, pool));
    }
    for round in 0..rounds {
        for k in 0..targets.len() {
            let k = (k + round) % targets.len();
            let before = targets[k]
                .process
                .as_ref()
                .map(Process::cpu)
                .unwrap_or_default();
            let started = Instant::now();
            let (raw, pool) = &mut pools[k];
            let each = per_round.div_ceil(connections);
            let mut tasks = tokio::task::JoinSet::new();
            for mut c in pool.drain(..) {
                let raw = raw.clone();
                tasks.spawn(async move {
                    let mut times = Vec::with_capacity(each);
                    for _ in 0..each {
                        times.push(c.ask(&raw).await);
                    }
                    (c, times)
                });
            }
            while let Some(done) = tasks.join_next().await {
                let (c, times) = done.unwrap();
                pools[k].1.push(c);
                latencies[k].extend(times);
            }
            busy[k] += started.elapsed();
            cpu[k] += targets[k]
                .process
                .as_ref()
                .map(Process::cpu)
                .unwrap_or_default()
                - before;
        }
    }
    latencies
        .iter_mut()
        .enumerate()
        .map(|(k, l)| Row {
            rate: l.len() as f64 / busy[k].as_secs_f64(),
            cpu: cpu[k].as_secs_f64() * 1e6 / l.len() as f64,
            p50: micros(quantile(l, 0.5)),
            p99: micros(quantile(l, 0.99)),
        })
        .collect()
}

/// Delay per chunk of a paced stream (µs) and CPU per 1,000 chunks (ms).
async fn chunks(targets: &[Target], rounds: usize) -> Vec<(f64, f64, f64)> {
    let text = body(1 << 10);
    let mut delays: Vec<Vec<u64>> = targets.iter().map(|_| Vec::new()).collect();
    let mut cpu = vec![Duration::ZERO; targets.len()];
    for round in 0..rounds {
        for k in 0..targets.len() {
            let k = (k + round) % targets.len();
            let t = &targets[k];
            let path = if t.process.is_some() {
                "/anthropic"
            } else {
                ""
            };
            let raw = request(t.addr.port(), path, "x-app: 200,2\r\n", &text);
            let before = t.process.as_ref().map(Process::cpu).unwrap_or_default();
            delays[k].extend(Connection::new(t.addr).await.stream(&raw).await);
            cpu[k] += t.process.as_ref().map(Process::cpu).unwrap_or_default() - before;
        }
    }
    delays
        .iter_mut()
        .enumerate()
        .map(|(k, d)| {
            (
                quantile(d, 0.5) as f64 / 1e3,
                quantile(d, 0.99) as f64 / 1e3,
                cpu[k].as_secs_f64() * 1e6 / d.len() as f64,
            )
        })
        .collect()
}

/// KiB of PSS per open slow stream.
async fn per_stream(target: &Target, count: usize) -> (u64, f64) {
    let process = target.process.as_ref().unwrap();
    let idle = process.pss();
    let raw = request(
        target.addr.port(),
        "/anthropic",
        "x-app: 100,400\r\n",
        &body(1 << 10),
    );
    let mut open = Vec::new();
    for _ in 0..count {
        let mut c = Connection::new(target.addr).await;
        c.stream.write_all(&raw).await.unwrap();
        open.push(c);
    }
    // Every stream has had a chunk.
    for c in &mut open {
        let mut got = 0;
        while got < 200 {
            got += c.stream.read(&mut c.buffer).await.unwrap();
        }
    }
    let busy = process.pss();
    (idle, (busy.saturating_sub(idle)) as f64 / count as f64)
}

// --- the report -------------------------------------------------------------------------

fn set_affinity(cpu: usize) {
    let id = std::process::id().to_string();
    assert!(
        Command::new("taskset")
            .args(["-cp", &cpu.to_string(), &id])
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
}

async fn bench(quick: bool) {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path());
    let (rounds, per_round) = if quick { (6, 50) } else { (20, 200) };
    let mut out = String::new();
    for (label, proxy_cpu) in [
        ("Everything on one CPU", 0),
        ("The proxy on a CPU of its own", 1),
    ] {
        set_affinity(0);
        let me = std::env::current_exe().unwrap();
        let port = free_port();
        let up = start(
            0,
            port,
            &me,
            &["upstream".into(), port.to_string(), "-".into()],
        );
        let url = format!("http://127.0.0.1:{port}");
        let target = |name, process: Process| Target {
            name,
            addr: process.addr,
            process: Some(process),
        };
        let mut targets = vec![
            Target {
                name: "direct",
                process: None,
                addr: up.addr,
            },
            target("bare relay", bare(dir.path(), proxy_cpu, &url, false)),
            target("+ buffer and scan", bare(dir.path(), proxy_cpu, &url, true)),
        ];
        if let Some(n) = nginx(dir.path(), proxy_cpu, up.addr) {
            targets.push(target("nginx", n));
        }
        targets.push(target(
            "Outrigger",
            sidecar(dir.path(), proxy_cpu, &url, &sidecar_binary()),
        ));
        // Another build of it, to compare with.
        if let Some(before) = std::env::var_os("OUTRIGGER_BEFORE") {
            targets.push(target(
                "Outrigger before",
                sidecar(dir.path(), proxy_cpu, &url, Path::new(&before)),
            ));
        }
        writeln!(out, "\n## {label}\n").unwrap();
        table(&mut out, &targets, rounds, per_round).await;
        writeln!(out, "\nStreams of 200 chunks, 2 ms apart: delay from the upstream's write to the client's read.\n").unwrap();
        writeln!(
            out,
            "| | p50 µs | p99 µs | CPU ms / 1,000 chunks | p99 ÷ relay |\n|---|---|---|---|---|"
        )
        .unwrap();
        let rows = chunks(&targets, if quick { 3 } else { 15 }).await;
        for (t, r) in targets.iter().zip(&rows) {
            writeln!(
                out,
                "| {} | {:.0} | {:.0} | {:.1} | {:.2} |",
                t.name,
                r.0,
                r.1,
                r.2,
                r.1 / rows[1].1
            )
            .unwrap();
        }
        if proxy_cpu == 1 {
            writeln!(out, "\n1,000 concurrent slow streams.\n\n| | idle PSS MiB | KiB a stream |\n|---|---|---|").unwrap();
            // Fresh processes: what earlier load left in an allocator is not a stream's.
            let mut fresh = vec![target("bare relay", bare(dir.path(), 1, &url, false))];
            fresh.extend(nginx(dir.path(), 1, up.addr).map(|n| target("nginx", n)));
            fresh.push(target(
                "Outrigger",
                sidecar(dir.path(), 1, &url, &sidecar_binary()),
            ));
            for t in &fresh {
                let (idle, each) = per_stream(t, 1000).await;
                writeln!(
                    out,
                    "| {} | {:.1} | {each:.1} |",
                    t.name,
                    idle as f64 / 1024.0
                )
                .unwrap();
            }
            drop(targets);
            let port = free_port();
            let up = start(
                0,
                port,
                &me,
                &[
                    "upstream".into(),
                    port.to_string(),
                    dir.path().display().to_string(),
                ],
            );
            let url = format!("https://localhost:{port}");
            let targets = vec![
                target("bare relay", bare(dir.path(), 1, &url, false)),
                target("Outrigger", sidecar(dir.path(), 1, &url, &sidecar_binary())),
            ];
            writeln!(out, "\n## TLS upstream, the proxy on a CPU of its own\n\nTotal latency (there is no direct comparison: the load speaks plain HTTP).\n")
                .unwrap();
            table(&mut out, &targets, rounds, per_round).await;
            drop(up);
        }
    }
    startup(&mut out, dir.path());
    println!("{out}");
}

async fn table(out: &mut String, targets: &[Target], rounds: usize, per_round: usize) {
    let direct = targets[0].process.is_none();
    let relay = targets.iter().position(|t| t.name == "bare relay").unwrap();
    let added = if direct { "added p50 µs" } else { "p50 µs" };
    writeln!(
        out,
        "| body, connections | | {added} | {} | requests/s | CPU ms / 1,000 | p50 ÷ relay | CPU ÷ relay |\n|---|---|---|---|---|---|---|---|",
        added.replace("50", "99")
    )
    .unwrap();
    for (label, size) in SIZES {
        for connections in [1, 16] {
            let rows = requests(
                targets,
                size,
                connections,
                rounds,
                if size > 1 << 19 {
                    per_round / 4
                } else {
                    per_round
                },
            )
            .await;
            let base: BTreeMap<&str, f64> = if direct {
                [("p50", rows[0].p50), ("p99", rows[0].p99)].into()
            } else {
                [("p50", 0.0), ("p99", 0.0)].into()
            };
            for (t, r) in targets.iter().zip(&rows).skip(usize::from(direct)) {
                let (p50, p99) = (r.p50 - base["p50"], r.p99 - base["p99"]);
                let ratio = p50 / (rows[relay].p50 - base["p50"]);
                writeln!(
                    out,
                    "| {label}, {connections} | {} | {p50:.0} | {p99:.0} | {:.0} | {:.1} | {ratio:.2} | {:.2} |",
                    t.name,
                    r.rate,
                    r.cpu,
                    r.cpu / rows[relay].cpu
                )
                .unwrap();
            }
        }
    }
}

fn startup(out: &mut String, dir: &Path) {
    let ready = |f: &dyn Fn() -> Process| {
        let mut times: Vec<Duration> = (0..11).map(|_| f().ready).collect();
        micros(quantile(&mut times, 0.5)) / 1000.0
    };
    let up = "http://127.0.0.1:9";
    let ours = ready(&|| sidecar(dir, 1, up, &sidecar_binary()));
    let relay = ready(&|| bare(dir, 1, up, false));
    let size = std::fs::metadata(sidecar_binary()).unwrap().len() as f64 / f64::from(1 << 20);
    writeln!(out, "\n## Start and size\n\nReady (from spawn to the first accepted connection, median of 11): Outrigger {ours:.1} ms, bare relay {relay:.1} ms. Binary: {size:.1} MiB.").unwrap();
}
