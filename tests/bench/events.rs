//! What an event costs on its way from the CLI to its subscribers. Run by `make bench`; prints
//! Markdown.
//!
//! The adapter is a process of its own. This process plays its CLI (a server with opencode's
//! protocol) and its subscribers, on one thread. Each delta carries the time at
//! which it was written to the adapter; a subscriber reads it off the socket.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Method, Request, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Longest that anything may take before the run fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let quick = std::env::args().any(|a| a == "quick");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(bench(quick));
}

/// The CLI's side: what is sent here goes out on `/event`.
struct Cli {
    address: SocketAddr,
    events: Arc<Mutex<Option<mpsc::UnboundedSender<Bytes>>>>,
}

impl Cli {
    async fn start() -> Cli {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cli = Cli {
            address: listener.local_addr().unwrap(),
            events: Arc::default(),
        };
        let events = cli.events.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let events = events.clone();
                tokio::spawn(async move {
                    let service =
                        hyper::service::service_fn(move |request| serve(events.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        cli
    }

    fn say(&self, bytes: impl Into<Bytes>) {
        self.events
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .send(bytes.into())
            .unwrap();
    }

    fn event(kind: &str, properties: &Value) -> String {
        format!(
            "data: {}\n\n",
            json!({ "id": "evt_000000000000", "type": kind, "properties": properties })
        )
    }

    /// Begins a turn whose answer is then written delta by delta.
    fn begin(&self) {
        self.say(Cli::event("message.updated", &json!({ "sessionID": "s", "info": { "id": "a", "role": "assistant", "parentID": "u", "time": {} } })));
        self.say(Cli::event(
            "message.part.updated",
            &json!({ "sessionID": "s", "part": { "id": "p", "messageID": "a", "type": "text", "text": "", "time": { "start": 1 } } }),
        ));
    }
}

async fn serve(
    events: Arc<Mutex<Option<mpsc::UnboundedSender<Bytes>>>>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    if request.uri().path() == "/event" {
        let (sender, heard) = mpsc::unbounded_channel();
        *events.lock().unwrap() = Some(sender);
        let stream = futures_util::stream::unfold(heard, |mut heard| async move {
            Some((Ok(Frame::data(heard.recv().await?)), heard))
        });
        return Ok(Response::new(BodyExt::boxed(StreamBody::new(stream))));
    }
    let answer = match (request.method(), request.uri().path()) {
        (&Method::GET, "/global/health") => json!({ "healthy": true, "version": "1.18.33" }),
        (&Method::HEAD, _) => Value::Null,
        _ => json!({ "id": "s" }),
    };
    Ok(Response::new(BodyExt::boxed(Full::new(Bytes::from(
        answer.to_string(),
    )))))
}

struct Adapter {
    child: Child,
    stream: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Adapter {
    /// `alone`: on one CPU, which its CLI and its subscribers do not use.
    async fn start(cli: &Cli, session: Value, alone: bool) -> Adapter {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("opencode");
        std::fs::write(
            &script,
            format!(
                "#!/bin/sh\necho 'opencode server listening on http://{}'\nexec sleep 1000000\n",
                cli.address
            ),
        )
        .unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let (stream, input) = (free().await, free().await);
        let mut session = session;
        session["journal"] = json!(dir.path().join("journal"));
        session["maxTurns"] = json!(1_000_000);
        let config = json!({
            "agents": { "agentRuntimes": { "opencode": { "program": script } } },
            "session": session, "sidecar": { "url": format!("http://{}", cli.address) },
            "listen": { "stream": stream.to_string(), "input": input.to_string() },
        });
        let file = dir.path().join("adapter.yaml");
        std::fs::write(&file, config.to_string()).unwrap();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let cpus = if alone {
            (cpus - 1).to_string()
        } else {
            format!("0-{}", cpus - 1)
        };
        let mut command = Command::new("taskset");
        command
            .args([
                "-c",
                &cpus,
                env!("CARGO_BIN_EXE_outrigger"),
                "adapter",
                "--config",
            ])
            .arg(&file)
            .args(["--workdir", "/tmp"]);
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let adapter = Adapter {
            child,
            stream,
            _dir: dir,
        };
        adapter.until(|s| s["state"] == "idle").await;
        adapter
    }

    /// Waits until its status is so, looking every millisecond.
    async fn until(&self, holds: impl Fn(&Value) -> bool) {
        let began = Instant::now();
        while !self.status().await.is_some_and(|s| holds(&s)) {
            assert!(
                began.elapsed() < PATIENCE,
                "{}",
                std::fs::read_to_string(self._dir.path().join("log")).unwrap()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn until_sequence(&self, least: u64) {
        self.until(|s| s["sequence"].as_u64().unwrap() >= least)
            .await;
    }

    async fn sequence(&self) -> u64 {
        self.status().await.unwrap()["sequence"].as_u64().unwrap()
    }

    async fn status(&self) -> Option<Value> {
        let mut stream = TcpStream::connect(self.stream).await.ok()?;
        stream
            .write_all(
                format!(
                    "GET /status HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                    self.stream
                )
                .as_bytes(),
            )
            .await
            .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(
            Path::new("/proc")
                .join(self.child.id().to_string())
                .join(file),
        )
        .unwrap()
    }

    /// Seconds of CPU, all threads.
    fn cpu(&self) -> f64 {
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }

    fn kib(&self, file: &str, name: &str) -> u64 {
        self.proc(file)
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap()
    }

    fn pss(&self) -> u64 {
        // Its own uid may not read the memory map of a process that holds itself closed; root may.
        self.kib("smaps_rollup", "Pss:")
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

async fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

/// What all subscribers have seen.
#[derive(Default)]
struct Seen {
    deliveries: AtomicU64,
    micros: Mutex<Vec<u32>>,
}

async fn subscribe(addr: SocketAddr, since: u64, seen: Arc<Seen>, epoch: Instant) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream
        .write_all(format!("GET /stream?since={since} HTTP/1.1\r\nHost: {addr}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    tokio::spawn(async move {
        let (mut buffer, mut kept) = (vec![0; 64 << 10], Vec::new());
        let finder = memchr::memmem::Finder::new(b"\"text\":\"T");
        while let Ok(n) = stream.read(&mut buffer).await {
            if n == 0 {
                return;
            }
            let now = epoch.elapsed().as_nanos() as u64;
            kept.extend_from_slice(&buffer[..n]);
            let mut last = 0;
            for at in finder.find_iter(&kept) {
                let digits = &kept[at + 9..];
                let Some(end) = digits.iter().position(|b| !b.is_ascii_digit()) else {
                    break;
                };
                let sent: u64 = std::str::from_utf8(&digits[..end])
                    .unwrap()
                    .parse()
                    .unwrap();
                seen.micros
                    .lock()
                    .unwrap()
                    .push((now.saturating_sub(sent) / 1000) as u32);
                seen.deliveries.fetch_add(1, Ordering::Relaxed);
                last = at + 9;
            }
            let keep = kept.len() - last.max(kept.len().saturating_sub(64));
            kept.drain(..kept.len() - keep);
        }
    });
}

fn delta(text: &str) -> String {
    format!(
        "data: {{\"id\":\"evt_000000000000\",\"type\":\"message.part.delta\",\"properties\":{{\"sessionID\":\"s\",\"messageID\":\"a\",\"partID\":\"p\",\"field\":\"text\",\"delta\":\"{text}\"}}}}\n\n"
    )
}

async fn bench(quick: bool) {
    println!(
        "## Events\n\n`make bench`. One event is one delta of some 300 bytes. The adapter, its CLI and its subscribers share the machine's CPUs, but where one CPU is named.\n"
    );
    latencies(quick).await;
    hindrance(quick).await;
    throughput(quick).await;
    long_line().await;
}

async fn latencies(quick: bool) {
    println!(
        "| events/s | subscribers | p50 µs | p99 µs | CPU µs a delivery | KiB a subscriber |\n|---|---|---|---|---|---|"
    );
    for rate in [200_u64, 1000] {
        for count in [1_u64, 100, 300, 1000] {
            let cli = Cli::start().await;
            let adapter = Adapter::start(&cli, json!({}), false).await;
            cli.begin();
            adapter.until(|s| s["state"] == "busy").await;
            let (before, epoch, seen) = (adapter.pss(), Instant::now(), Arc::new(Seen::default()));
            for _ in 0..count {
                subscribe(adapter.stream, 0, seen.clone(), epoch).await;
            }
            adapter.until(|s| s["subscribers"] == count).await;
            let events = rate * if quick { 1 } else { 5 };
            let cpu = adapter.cpu();
            let mut tick = tokio::time::interval(Duration::from_micros(1_000_000 / rate));
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for _ in 0..events {
                tick.tick().await;
                cli.say(delta(&format!("T{} ", epoch.elapsed().as_nanos())));
            }
            let patience = Instant::now();
            while seen.deliveries.load(Ordering::Relaxed) < events * count
                && patience.elapsed() < Duration::from_secs(20)
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let delivered = seen.deliveries.load(Ordering::Relaxed);
            assert_eq!(
                delivered,
                events * count,
                "every subscriber has every event"
            );
            let cost = (adapter.cpu() - cpu) * 1e6 / delivered as f64;
            let memory = adapter.pss().saturating_sub(before) as f64 / count as f64;
            let mut micros = std::mem::take(&mut *seen.micros.lock().unwrap());
            micros.sort_unstable();
            let at = |q: f64| micros[((micros.len() - 1) as f64 * q) as usize];
            println!(
                "| {rate} | {count} | {} | {} | {cost:.1} | {memory:.1} |",
                at(0.5),
                at(0.99)
            );
        }
    }
    println!();
}

/// Do subscribers slow the CLI down? It writes as fast as the adapter reads, in bursts.
async fn hindrance(quick: bool) {
    let (bursts, burst) = (if quick { 100 } else { 500 }, 20_u64);
    let mut seconds = Vec::new();
    for subscribers in [0, 300, 0, 300] {
        let cli = Cli::start().await;
        let adapter = Adapter::start(&cli, json!({}), false).await;
        cli.begin();
        let (seen, epoch, mut stuck) = (Arc::new(Seen::default()), Instant::now(), Vec::new());
        for i in 0..subscribers {
            if i % 3 == 0 {
                let mut stream = TcpStream::connect(adapter.stream).await.unwrap();
                stream
                    .write_all(
                        format!("GET /stream HTTP/1.1\r\nHost: {}\r\n\r\n", adapter.stream)
                            .as_bytes(),
                    )
                    .await
                    .unwrap();
                stuck.push(stream);
            } else {
                subscribe(adapter.stream, 0, seen.clone(), epoch).await;
            }
        }
        let first = adapter.sequence().await;
        let batch: Bytes = delta("word ").repeat(burst as usize).into();
        // 1,000 events a second, which is more than any CLI says.
        let mut tick = tokio::time::interval(Duration::from_millis(burst));
        let began = Instant::now();
        for _ in 0..bursts {
            tick.tick().await;
            cli.say(batch.clone());
        }
        adapter.until_sequence(first + bursts * burst).await;
        seconds.push(began.elapsed().as_secs_f64());
    }
    let (without, with) = (seconds[0] + seconds[2], seconds[1] + seconds[3]);
    println!(
        "{} events of a CLI that says 1,000 a second are on disk after {without:.3} s without subscribers, and after {with:.3} s with 300 of which 100 never read: {:+.2} %.\n",
        2 * bursts * burst,
        (with / without - 1.0) * 100.0
    );
}

/// As many as go, and all of them again for one who comes late.
async fn throughput(quick: bool) {
    let events: u64 = if quick { 100_000 } else { 1_000_000 };
    println!(
        "| | events/s on one CPU | replay MB/s | idle PSS MiB | PSS after replay MiB |\n|---|---|---|---|---|"
    );
    for raw in [true, false] {
        let cli = Cli::start().await;
        let adapter = Adapter::start(&cli, json!({ "raw": raw }), true).await;
        let idle = adapter.pss();
        cli.begin();
        let text = "x".repeat(24);
        let batch: Bytes = delta(&text).repeat(100).into();
        let first = adapter.sequence().await;
        let began = Instant::now();
        for i in 0..events / 100 {
            cli.say(batch.clone());
            // What is on its way stays bounded.
            if i % 50 == 49 {
                adapter
                    .until_sequence((first + (i + 1) * 100).saturating_sub(20_000))
                    .await;
            }
        }
        adapter.until_sequence(first + events).await;
        let rate = events as f64 / began.elapsed().as_secs_f64();
        let mut stream = TcpStream::connect(adapter.stream).await.unwrap();
        stream
            .write_all(
                format!("GET /stream HTTP/1.1\r\nHost: {}\r\n\r\n", adapter.stream).as_bytes(),
            )
            .await
            .unwrap();
        let (mut buffer, mut bytes, mut tail, began) =
            (vec![0; 1 << 20], 0_u64, Vec::new(), Instant::now());
        let wanted = format!("id: {}\n", first + events);
        loop {
            let n = stream.read(&mut buffer).await.unwrap();
            bytes += n as u64;
            tail.extend_from_slice(&buffer[..n]);
            if memchr::memmem::find(&tail, wanted.as_bytes()).is_some() {
                break;
            }
            tail.drain(..tail.len().saturating_sub(64));
        }
        let replay = bytes as f64 / 1e6 / began.elapsed().as_secs_f64();
        let name = if raw {
            "the CLI's own lines kept too"
        } else {
            "events only"
        };
        println!(
            "| {name} | {rate:.0} | {replay:.0} | {:.1} | {:.1} |",
            idle as f64 / 1024.0,
            adapter.pss() as f64 / 1024.0
        );
    }
    println!();
}

async fn long_line() {
    let cli = Cli::start().await;
    let adapter = Adapter::start(&cli, json!({}), false).await;
    let head = adapter.sequence().await;
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    let began = Instant::now();
    cli.say("data: \"");
    for _ in 0..100 {
        cli.say(piece.clone());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    cli.say("\"\n\n");
    adapter.until_sequence(head + 1).await;
    println!(
        "A line of 100 MB: {} ms, the adapter's largest size {:.1} MiB.",
        began.elapsed().as_millis(),
        adapter.kib("status", "VmHWM:") as f64 / 1024.0
    );
}
