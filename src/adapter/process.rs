//! The CLI's process, and everything that it forks.
//!
//! Invariants:
//! - It runs in a process group of its own, without a key: `environment` says with what.
//! - When it is stopped nothing of it is left, whatever it forked, detached or ignored:
//!   orphans become children of the adapter (`PR_SET_CHILD_SUBREAPER`), and what an adapter
//!   that was killed has left behind is found by a mark in its environment.
//! - As PID 1 of a container the adapter reaps what others leave, and never takes away the
//!   exit status of the CLI.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::transport::FromCli;

/// Marks every process of a session.
pub const MARK: &str = "OUTRIGGER_SESSION";

/// From one signal to the next harder one.
const PATIENCE: Duration = Duration::from_millis(1300);

/// How long it may take to tell its version.
const VERSION_TIME: Duration = Duration::from_secs(20);

/// After SIGKILL, until what is left is looked for again.
const SWEEP: Duration = Duration::from_millis(20);

/// What is left after this is said, and left.
const SWEEP_TIME: Duration = Duration::from_secs(2);

/// The CLI, whose exit status is not ours to take; 0: there is none.
static CLI: AtomicU32 = AtomicU32::new(0);

/// So long a dead child may be somebody else's to wait for.
const REAP_AFTER: Duration = Duration::from_millis(500);

pub struct Process {
    child: Child,
    pid: Pid,
    /// As the mark has it.
    session: String,
}

/// What is started.
#[derive(Debug)]
pub struct Program {
    pub path: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(OsString, OsString)>,
    pub workdir: PathBuf,
    pub session: String,
    /// Its standard input stays open; else it is empty.
    pub stdin: bool,
}

impl Program {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command
            .env_clear()
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .env(MARK, &self.session)
            .current_dir(&self.workdir);
        command
    }
}

impl Process {
    /// Starts it; what it says and how it ends comes through `heard`.
    ///
    /// # Errors
    /// The system's.
    pub fn start(program: &Program, from_cli: &mpsc::Sender<FromCli>) -> io::Result<Process> {
        let mut command = program.command();
        let stdin = if program.stdin {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        command
            .args(&program.args)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn()?;
        let pid = child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()))
            .ok_or_else(|| io::Error::other("it has no process id"))?;
        CLI.store(pid.as_raw_nonzero().get().unsigned_abs(), Ordering::Release);
        if let Some(stdout) = child.stdout.take() {
            let from_cli = from_cli.clone();
            tokio::spawn(async move {
                drain(stdout, from_cli.clone(), FromCli::Stdout).await;
                let _ = from_cli.send(FromCli::StdoutOver).await;
            });
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(drain(stderr, from_cli.clone(), FromCli::Stderr));
        }
        Ok(Process {
            child,
            pid,
            session: program.session.clone(),
        })
    }

    /// Takes its standard input, if it is open; what is sent is written in order, by a task of its
    /// own, so that a CLI that does not read holds nobody up. Closed when the sender is dropped.
    pub fn input(&mut self) -> Option<mpsc::UnboundedSender<Bytes>> {
        let mut stdin = self.child.stdin.take()?;
        let (sender, mut lines) = mpsc::unbounded_channel::<Bytes>();
        tokio::spawn(async move {
            while let Some(line) = lines.recv().await {
                if stdin.write_all(&line).await.is_err() {
                    return;
                }
            }
        });
        Some(sender)
    }

    /// Waits for its end. May be dropped and called again.
    pub async fn ended(&mut self) -> Option<ExitStatus> {
        self.child.wait().await.ok()
    }

    /// Ends it and all that it started: SIGINT, SIGTERM, SIGKILL, and then whoever is left.
    pub async fn stop(mut self) -> Option<ExitStatus> {
        let mut status = None;
        for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
            let _ = rustix::process::kill_process_group(self.pid, signal);
            if let Ok(ended) = tokio::time::timeout(PATIENCE, self.child.wait()).await {
                status = ended.ok();
                break;
            }
        }
        CLI.store(0, Ordering::Release);
        sweep(&self.session).await;
        status
    }
}

/// Asks a CLI for its version; the first word with a digit at its beginning.
///
/// # Errors
/// It does not say it.
pub async fn version(program: &Program) -> Result<String, String> {
    let mut command = program.command();
    command
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let asked = tokio::time::timeout(VERSION_TIME, command.output()).await;
    let output = asked
        .map_err(|_| "it does not tell its version".to_owned())?
        .map_err(|e| format!("it cannot be asked for its version: {e}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let why: Vec<&str> = stderr
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect();
        return Err(format!(
            "`--version` failed ({}): {}",
            output.status,
            why.join(" | ")
        ));
    }
    let said = [output.stdout, output.stderr]
        .map(|said| String::from_utf8_lossy(&said).into_owned())
        .join(" ");
    let version = said
        .split_whitespace()
        .find(|w| w.starts_with(|c: char| c.is_ascii_digit()));
    version
        .map(str::to_owned)
        .ok_or_else(|| format!("`--version` says `{}`, which is not a version", said.trim()))
}

async fn drain(
    mut pipe: impl AsyncRead + Unpin,
    from_cli: mpsc::Sender<FromCli>,
    kind: fn(Bytes) -> FromCli,
) {
    let mut piece = vec![0; 16 << 10];
    while let Ok(n) = pipe.read(&mut piece).await {
        if n == 0
            || from_cli
                .send(kind(Bytes::copy_from_slice(&piece[..n])))
                .await
                .is_err()
        {
            return;
        }
    }
}

/// Orphans of what is started from now on become ours.
pub fn adopt_orphans() {
    if let Err(e) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::warn!(error = %e, "orphans of the CLI cannot be adopted; they are found by their environment only");
    }
}

/// Kills whatever still belongs to a session: descendants of this process, and processes that
/// carry its mark.
pub async fn sweep(session: &str) {
    let until = Instant::now() + SWEEP_TIME;
    loop {
        let left = belonging(session);
        if left.is_empty() {
            return;
        }
        for pid in &left {
            // A group that it leads goes with it: what forks faster than it is found.
            let _ = rustix::process::kill_process_group(*pid, Signal::KILL);
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
        reap();
        if Instant::now() > until {
            tracing::error!(
                processes = left.len(),
                "processes of the CLI cannot be killed"
            );
            return;
        }
        sleep(SWEEP).await;
    }
}

struct Stat {
    pid: i32,
    parent: i32,
    zombie: bool,
}

fn stats() -> Vec<Stat> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| {
            let pid: i32 = e.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(e.path().join("stat")).ok()?;
            // The name may hold anything, also spaces and parentheses.
            let mut rest = stat.rsplit_once(") ")?.1.split(' ');
            let zombie = rest.next()? == "Z";
            Some(Stat {
                pid,
                parent: rest.next()?.parse().ok()?,
                zombie,
            })
        })
        .collect()
}

fn belonging(session: &str) -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let stats = stats();
    let parents: HashMap<i32, i32> = stats.iter().map(|s| (s.pid, s.parent)).collect();
    let descends = |mut pid: i32| {
        for _ in 0..1000 {
            match parents.get(&pid) {
                Some(&parent) if parent == own => return true,
                Some(&parent) if parent > 1 => pid = parent,
                _ => return false,
            }
        }
        false
    };
    let mark = format!("{MARK}={session}");
    let marked = |pid: i32| {
        std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|env| env.split(|b| *b == 0).any(|v| v == mark.as_bytes()))
    };
    stats
        .iter()
        .filter(|s| !s.zombie && s.pid != own && (descends(s.pid) || marked(s.pid)))
        .filter_map(|s| Pid::from_raw(s.pid))
        .collect()
}

/// Takes the exit status of every dead child but the CLI's own.
fn reap() {
    let (own, cli) = (
        rustix::process::getpid().as_raw_nonzero().get(),
        CLI.load(Ordering::Acquire),
    );
    for stat in stats()
        .iter()
        .filter(|s| s.zombie && s.parent == own && s.pid.unsigned_abs() != cli)
    {
        if let Some(pid) = Pid::from_raw(stat.pid) {
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Reaps orphans for as long as it runs.
///
/// # Errors
/// Signals cannot be handled.
pub async fn keep_reaping() -> io::Result<()> {
    let mut died = signal(SignalKind::child())?;
    while died.recv().await.is_some() {
        sleep(REAP_AFTER).await;
        reap();
    }
    Ok(())
}

/// Finds a program as a shell would.
pub fn find(program: &str, path: Option<&OsString>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runs = |p: &Path| {
        std::fs::metadata(p).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        let absolute = std::path::absolute(program).ok()?;
        return runs(&absolute).then_some(absolute);
    }
    std::env::split_paths(path?)
        .map(|dir| dir.join(program))
        .find(|p| runs(p))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::environment::holds_a_key;
    use crate::adapter::environment::reroutes;

    #[test]
    fn keys_are_known_by_their_names() {
        let keys = "ANTHROPIC_API_KEY OPENAI_API_KEY GEMINI_API_KEY AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN ANTHROPIC_AUTH_TOKEN \
            CLAUDE_CODE_OAUTH_TOKEN GOOGLE_APPLICATION_CREDENTIALS AWS_BEARER_TOKEN_BEDROCK AWS_WEB_IDENTITY_TOKEN_FILE AWS_PROFILE API_KEY OPENAI_KEY \
            AWS_CONTAINER_CREDENTIALS_FULL_URI HF_TOKEN CLOUDFLARE_API_TOKEN AICORE_SERVICE_KEY ANTHROPIC_CUSTOM_HEADERS openai_api_key";
        for name in keys.split_whitespace() {
            assert!(holds_a_key(name), "{name}");
        }
        for name in "PATH HOME SESSION_ID MAX_TOKENS KEYBOARD GITHUB_TOKEN NEXTAUTH_SECRET STRIPE_SECRET_KEY OPENAI_MODEL AWS_REGION".split(' ') {
            assert!(!holds_a_key(name), "{name}");
        }
        for name in [
            "ANTHROPIC_BASE_URL",
            "CLAUDE_CODE_USE_BEDROCK",
            "ANTHROPIC_UNIX_SOCKET",
            "CODEX_HOME",
            "GEMINI_CLI_HOME",
            "GOOGLE_GENAI_USE_VERTEXAI",
        ] {
            assert!(reroutes(name), "{name}");
        }
        assert!(!reroutes("VITE_BASE_URL") && !reroutes("PIP_INDEX_URL"));
    }

    #[tokio::test]
    async fn a_program_is_found_as_a_shell_would() {
        let path: OsString = "/nowhere:/bin:/usr/bin".into();
        assert!(find("sh", Some(&path)).is_some());
        assert_eq!(find("no-such-program", Some(&path)), None);
        assert!(find("/bin/sh", None).is_some());
        assert_eq!(
            find(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), None),
            None
        );
    }
}
