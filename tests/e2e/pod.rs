//! An adapter as a process of its own, with a stand-in for its CLI, in a directory of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::{Got, Upstream, find, message, request, sidecar, until, until_async};
use crate::{fake, fake_lines};

pub const BIN: &str = env!("CARGO_BIN_EXE_outrigger");

/// An adapter in a directory of its own.
pub struct Pod {
    pub dir: tempfile::TempDir,
    pub config: Value,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub child: Option<Child>,
    pub stream: SocketAddr,
    pub input: SocketAddr,
    _sidecar: crate::kit::Running,
}

pub async fn free() -> SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

impl Pod {
    pub async fn new(config: Value) -> Pod {
        Self::of("opencode", config).await
    }

    /// With the stand-in of a runtime.
    pub async fn of(runtime: &str, config: Value) -> Pod {
        let up = Upstream::always(message()).await;
        let sc = sidecar(&up).run().await;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("work")).unwrap();
        let program = if runtime == "opencode" {
            fake::install(dir.path())
        } else {
            fake_lines::install(dir.path(), runtime)
        };
        let mut whole = json!({ "agents": { "defaultRuntime": runtime, "agentRuntimes": { runtime: { "program": program } } }, "sidecar": { "url": format!("http://{}", sc.addr) } });
        for (key, value) in config.as_object().unwrap() {
            whole[key] = value.clone();
        }
        Pod {
            dir,
            config: whole,
            args: Vec::new(),
            env: Vec::new(),
            child: None,
            stream: free().await,
            input: free().await,
            _sidecar: sc,
        }
    }

    pub async fn run(config: Value) -> Pod {
        let mut pod = Pod::new(config).await;
        pod.start();
        pod
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self) -> Command {
        let file = self.path("adapter.yaml");
        std::fs::write(&file, self.config.to_string()).unwrap();
        let mut command = Command::new(BIN);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.dir.path())
            .envs(self.env.iter().cloned());
        command.arg("adapter").arg("--config").arg(file);
        for (name, value) in [
            ("--workdir", self.path("work").display().to_string()),
            ("--journal", self.path("journal").display().to_string()),
        ] {
            command.args([name, &value]);
        }
        command
            .args([
                "--stream",
                &self.stream.to_string(),
                "--input",
                &self.input.to_string(),
            ])
            .args(&self.args);
        command
    }

    pub fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        self.child = Some(
            self.command()
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap(),
        );
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Its exit code, once it has ended.
    pub async fn exit(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let mut status = None;
        until("the adapter's end", || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap().code()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Got {
        request(self.input, "POST", path, &[], body.to_string().as_bytes()).await
    }

    /// Posts until it is taken, whatever becomes of the adapter meanwhile.
    pub async fn say(&self, id: &str, text: &str) {
        let body = json!({ "text": text, "input_id": id, "mode": "queue" });
        until_async("an input", async || {
            attempt(self.input, &body).await == Some(202)
        })
        .await;
    }

    /// What stands in the journal's files.
    pub fn events(&self) -> Vec<Value> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.path("journal/events"))
            .map(|d| d.map(|e| e.unwrap().path()).collect())
            .unwrap_or_default();
        files.sort();
        let text: String = files
            .iter()
            .filter(|f| f.extension().is_some_and(|e| e == "sse"))
            .map(|f| std::fs::read_to_string(f).unwrap_or_default())
            .collect();
        let whole = &text[..text.rfind("\n\n").map_or(0, |i| i + 2)];
        whole
            .lines()
            .filter_map(|l| l.strip_prefix("data: "))
            .map(|l| serde_json::from_str(l).unwrap())
            .collect()
    }

    pub async fn wait(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        until(what, || {
            found = self.events().into_iter().find(&holds);
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    pub async fn ends(&self, count: usize) -> Vec<Value> {
        let ends = || {
            self.events()
                .into_iter()
                .filter(|e| e["type"] == "turn.end")
                .collect::<Vec<_>>()
        };
        until(&format!("{count} turns"), || ends().len() >= count).await;
        ends()
    }

    pub fn session(&self) -> String {
        self.events()[0]["session_id"].as_str().unwrap().to_owned()
    }

    /// The CLI's processes, by the mark in their environment.
    pub fn agents(&self) -> Vec<i32> {
        let mark = format!("OUTRIGGER_SESSION={}", self.session());
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|e| e.unwrap().file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                std::fs::read(format!("/proc/{pid}/environ"))
                    .is_ok_and(|env| env.split(|b| *b == 0).any(|v| v == mark.as_bytes()))
            })
            .collect()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
            if self.path("journal/events").exists() && !self.events().is_empty() {
                for pid in self.agents() {
                    let _ = rustix::process::kill_process(
                        rustix::process::Pid::from_raw(pid).unwrap(),
                        rustix::process::Signal::KILL,
                    );
                }
            }
        }
    }
}

/// One try of an input; `None` if there was no whole answer.
pub async fn attempt(addr: SocketAddr, body: &Value) -> Option<u16> {
    let mut stream = TcpStream::connect(addr).await.ok()?;
    let body = body.to_string();
    let head = format!(
        "POST /inject HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .await
        .ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    Got::parse(&answer).map(|got| got.status)
}

/// Reads a stream until it breaks; ids and data as they come.
pub async fn follow(
    addr: SocketAddr,
    query: &str,
    last: Option<u64>,
    mut frame: impl FnMut(Option<u64>, &str) -> bool,
) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    let resume = last
        .map(|id| format!("Last-Event-ID: {id}\r\n"))
        .unwrap_or_default();
    stream
        .write_all(
            format!("GET /stream{query} HTTP/1.1\r\nHost: {addr}\r\n{resume}\r\n").as_bytes(),
        )
        .await?;
    let (mut raw, mut piece, mut text, mut body) =
        (Vec::new(), vec![0; 1 << 16], Vec::new(), false);
    loop {
        let n = stream.read(&mut piece).await?;
        if n == 0 {
            return Ok(());
        }
        raw.extend_from_slice(&piece[..n]);
        if !body {
            let Some(end) = find(&raw, b"\r\n\r\n") else {
                continue;
            };
            assert!(raw.starts_with(b"HTTP/1.1 200"), "{}", raw.escape_ascii());
            raw.drain(..end + 4);
            body = true;
        }
        // Chunks that are whole.
        while let Some(line) = find(&raw, b"\r\n") {
            let size =
                usize::from_str_radix(std::str::from_utf8(&raw[..line]).unwrap(), 16).unwrap();
            if raw.len() < line + 2 + size + 2 {
                break;
            }
            text.extend_from_slice(&raw[line + 2..line + 2 + size]);
            raw.drain(..line + 2 + size + 2);
            if size == 0 {
                return Ok(());
            }
        }
        while let Some(end) = find(&text, b"\n\n") {
            let one = String::from_utf8(text[..end].to_vec()).unwrap();
            text.drain(..end + 2);
            let field = |name: &str| one.lines().find_map(|l| l.strip_prefix(name));
            if let Some(data) = field("data: ")
                && !frame(field("id: ").map(|id| id.parse().unwrap()), data)
            {
                return Ok(());
            }
        }
    }
}
