//! The binary as a process of its own.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::kit::PATIENCE;

/// The binary: the one that was built with the tests, or `OUTRIGGER`.
pub fn binary() -> String {
    std::env::var("OUTRIGGER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_outrigger").to_owned())
}

/// Stops the process by its id when dropped.
pub struct Process(pub Child);

impl Process {
    pub fn signal(&self, name: &str) {
        assert!(
            Command::new("kill")
                .args([&format!("-{name}"), &self.0.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }

    pub fn end(&mut self) -> (i32, String) {
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "the process does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut err = String::new();
        self.0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut err)
            .unwrap();
        (status.code().unwrap_or(-1), err)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn spawn(args: &[&str]) -> Process {
    spawn_as(Command::new(binary()).args(args))
}

/// A process with names looked up as this `resolv.conf` says, in a mount namespace of its own.
pub fn spawn_with_names(args: &[&str], resolv: &Path) -> Process {
    let mount = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    spawn_as(
        Command::new("unshare")
            .args(["--mount", "sh", "-c", mount])
            .arg(resolv)
            .arg(binary())
            .args(args),
    )
}

fn spawn_as(command: &mut Command) -> Process {
    // Variables that must not matter: a proxy, another trust store, a log of everything.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let child = command
        .env_clear()
        .env("PATH", path)
        .envs([
            ("HTTPS_PROXY", "http://127.0.0.1:1"),
            ("HTTP_PROXY", "http://127.0.0.1:1"),
            ("SSL_CERT_FILE", "/dev/null"),
            ("SSLKEYLOGFILE", "/tmp/outrigger-must-not-write-this"),
            ("RUST_LOG", "trace"),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Process(child)
}

pub fn run(args: &[&str]) -> (i32, String) {
    spawn(args).end()
}

/// A free port outside the range that the system chooses from, so that no other test's listener
/// takes it before the process does.
pub fn port() -> u16 {
    loop {
        let port = 15_000 + (getrandom::u32().unwrap() % 17_000) as u16;
        let free = |host: &str| std::net::TcpListener::bind((host, port)).is_ok();
        if free("127.0.0.1") && (free("::1") || std::net::TcpListener::bind(("::1", 0)).is_err()) {
            return port;
        }
    }
}

pub struct Sidecar {
    pub process: Process,
    pub port: u16,
    pub admin: u16,
}

/// Starts the sidecar of a laid out directory, and waits until it is ready.
pub fn start(dir: &Path) -> Sidecar {
    start_as(dir, spawn)
}

/// The same, with another way to spawn it.
pub fn start_as(dir: &Path, spawn: impl Fn(&[&str]) -> Process) -> Sidecar {
    let file = dir.join("sidecar.yaml");
    let yaml = std::fs::read_to_string(&file).unwrap();
    // Ports are chosen by the first start, and kept by the next ones.
    let (mut yaml, mut ports) = (yaml, [0; 2]);
    for (slot, key) in ports.iter_mut().zip(["listen", "admin"]) {
        let line = yaml
            .lines()
            .find(|l| l.starts_with(&format!("{key}: ")))
            .unwrap()
            .to_owned();
        *slot = line.rsplit(':').next().unwrap().parse().unwrap();
        if *slot == 0 {
            *slot = port();
            yaml = yaml.replace(&line, &format!("{key}: 127.0.0.1:{slot}"));
        }
    }
    std::fs::write(&file, yaml).unwrap();
    let [port, admin] = ports;
    let process = spawn(&[
        "sidecar",
        "--config",
        file.to_str().unwrap(),
        "--session-id",
        "ses_bin",
    ]);
    let until = Instant::now() + PATIENCE;
    while run(&["healthcheck", "--address", &format!("127.0.0.1:{admin}")]).0 != 0 {
        assert!(Instant::now() < until, "the sidecar does not become ready");
        std::thread::sleep(Duration::from_millis(5));
    }
    Sidecar {
        process,
        port,
        admin,
    }
}
