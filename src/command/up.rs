//! `outrigger up`: everything on one machine. Starts the scripted provider (when no real one is
//! configured), the sidecar and the adapter, each as a process of its own: a key that the
//! sidecar reads is in no other.
//!
//! Ctrl-C, or the end of any of them, ends them all.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::{Exit, Signals, fail};
use crate::adapter::runtime::registry;
use crate::adapter::transport::Http;
use crate::cli;

const START_TIME: Duration = Duration::from_secs(20);
const STOP_TIME: Duration = Duration::from_secs(10);

pub fn run(args: &cli::Up) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve(args)),
        Err(e) => fail(Exit::Unavailable, &format!("cannot start: {e}")),
    }
}

/// Where everything is.
struct Layout {
    dir: PathBuf,
    stream: SocketAddr,
    input: SocketAddr,
    proxy: SocketAddr,
    admin: SocketAddr,
    provider: SocketAddr,
}

async fn serve(args: &cli::Up) -> Exit {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(e) => return fail(Exit::Unavailable, &format!("cannot handle signals: {e}")),
    };
    let mut children = Vec::new();
    let started = tokio::select! {
        started = start(args, &mut children) => started,
        () = signals.next() => Ok(()),
    };
    let exit = match started {
        Ok(()) if children.len() < 2 => Exit::Ok,
        Ok(()) => tokio::select! {
            () = signals.next() => Exit::Ok,
            exit = first_end(&mut children) => exit,
        },
        Err(why) => fail(Exit::Unavailable, &why),
    };
    // The adapter first: its CLI still talks to the others.
    for (name, child) in children.iter_mut().rev() {
        stop(name, child).await;
    }
    exit
}

async fn start(args: &cli::Up, children: &mut Vec<(&'static str, Child)>) -> Result<(), String> {
    let layout = lay_out(args)?;
    let config = match &args.sidecar_config {
        Some(config) => config.clone(),
        None => {
            children.push(("rehearse", spawn(&["rehearse", "--listen", &layout.provider.to_string()])?));
            rehearsed(&layout)?
        }
    };
    children.push(("sidecar", spawn(&["sidecar", "--config", &config.display().to_string()])?));
    let workdir = args.workdir.clone().unwrap_or_else(|| layout.dir.join("workspace"));
    std::fs::create_dir_all(&workdir).map_err(|e| format!("cannot make `{}`: {e}", workdir.display()))?;
    children.push(("adapter", adapter(args, &layout, &workdir)?));
    wait_for(layout.stream, children).await?;
    if let Some(text) = &args.session.prompt {
        // By `inject`, not as the session's first: in this directory one may go on.
        let http = Http { address: layout.stream.to_string(), authorization: String::new() };
        let (status, answer) = http.ask("POST", "/inject", Some(&serde_json::json!({ "text": text, "mode": "queue" })), START_TIME).await?;
        if status != 202 {
            return Err(format!("the prompt was not taken: {}", String::from_utf8_lossy(&answer)));
        }
    }
    let url = format!("http://localhost:{}/", layout.stream.port());
    let model = if args.sidecar_config.is_some() { "your providers" } else { "the scripted provider" };
    say(&format!(
        "\nThe console:  {url}\n\n\
         The stream:   curl -N {url}stream\n\
         An input:     curl {url}inject -H 'content-type: application/json' -d '{{\"text\":\"hello\"}}'\n\
         The audit:    {}\n\
         The answers come from {model}. All of this runs as one user, so the agent could read the\n\
         sidecar's files: keep real keys to containers. Ctrl-C ends everything.\n",
        layout.dir.join("audit.jsonl").display()
    ));
    Ok(())
}

fn lay_out(args: &cli::Up) -> Result<Layout, String> {
    let dir = std::path::absolute(&args.dir).map_err(|e| e.to_string())?;
    for sub in ["home", "secrets/rehearsal"] {
        std::fs::create_dir_all(dir.join(sub)).map_err(|e| format!("cannot make `{}`: {e}", dir.join(sub).display()))?;
    }
    let at = |offset: u16| {
        args.port
            .checked_add(offset)
            .map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))
            .ok_or_else(|| format!("there are no five ports from {} on", args.port))
    };
    Ok(Layout { dir, stream: at(0)?, input: at(1)?, proxy: at(2)?, admin: at(3)?, provider: at(4)? })
}

/// A configuration of the sidecar whose providers are the scripted one.
fn rehearsed(layout: &Layout) -> Result<PathBuf, String> {
    let Layout { dir, proxy, admin, provider, .. } = layout;
    let (dir_text, write) =
        (dir.display(), |path: &Path, text: &str| std::fs::write(path, text).map_err(|e| format!("cannot write `{}`: {e}", path.display())));
    write(&dir.join("secrets/rehearsal/key"), "sk-rehearsal-not-a-real-key\n")?;
    let config = dir.join("sidecar.yaml");
    let yaml = format!(
        "listen: {proxy}\nadmin: {admin}\nsecretsDir: {dir_text}/secrets\naudit: {{ file: {dir_text}/audit.jsonl }}\nlog: {{ format: text, level: warn }}\n\
         aiProviders:\n  \
         anthropic: {{ baseUrl: \"http://{provider}\", secretRef: {{ name: rehearsal, key: key }} }}\n  \
         openai: {{ baseUrl: \"http://{provider}/v1\", secretRef: {{ name: rehearsal, key: key }} }}\n  \
         google: {{ baseUrl: \"http://{provider}\", secretRef: {{ name: rehearsal, key: key }} }}\n\
         permissionGrants:\n  - scope: ai.anthropic:claude-*\n  - scope: ai.openai:gpt-*\n  - scope: ai.google:gemini-*\n"
    );
    write(&config, &yaml)?;
    Ok(config)
}

fn adapter(args: &cli::Up, layout: &Layout, workdir: &Path) -> Result<Child, String> {
    let session = args.session.clone();
    let mut words: Vec<String> =
        ["adapter", "--clean-env", "--stream", &layout.stream.to_string(), "--input", &layout.input.to_string()].map(str::to_owned).to_vec();
    let sidecar = match &args.sidecar_config {
        // Theirs may listen elsewhere.
        Some(config) => format!("http://{}", listen_of(config).unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 11432))),
        None => format!("http://{}", layout.proxy),
    };
    let options = [
        ("--workdir", Some(workdir.display().to_string())),
        ("--journal", Some(layout.dir.join("session").display().to_string())),
        ("--sidecar", Some(sidecar)),
        ("--runtime", session.agent.runtime.clone()),
        ("--model", session.agent.model),
        ("--tier", session.agent.tier),
        ("--permissions", session.permissions),
    ];
    for (name, value) in options {
        if let Some(value) = value {
            words.extend([name.to_owned(), value]);
        }
    }
    if let Some(program) = &args.program {
        let runtime = session.agent.runtime.unwrap_or_else(|| registry::ALL[0].id.into());
        let program = std::path::absolute(program).map_err(|e| e.to_string())?;
        let config = layout.dir.join("adapter.yaml");
        let yaml = serde_json::json!({ "agents": { "agentRuntimes": { runtime: { "program": program } } } });
        std::fs::write(&config, yaml.to_string()).map_err(|e| format!("cannot write `{}`: {e}", config.display()))?;
        words.extend(["--config".to_owned(), config.display().to_string()]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut command = command(&words)?;
    // A home of its own: the CLI shall not see yours, nor the adapter your keys.
    command.env_clear().env("HOME", layout.dir.join("home"));
    for name in ["PATH", "LANG", "TZ", "TERM", "TMPDIR", "USER", "SHELL", "NO_COLOR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.spawn().map_err(|e| format!("cannot start the adapter: {e}"))
}

fn listen_of(config: &Path) -> Option<SocketAddr> {
    let text = std::fs::read_to_string(config).ok()?;
    let value = crate::base::settings::parse_yaml(&text).ok()?;
    value.get("listen")?.as_str()?.replace("localhost", "127.0.0.1").parse().ok()
}

fn command(words: &[&str]) -> Result<Command, String> {
    let own = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let mut command = Command::new(own);
    // Ctrl-C goes to all processes of a terminal; these are told in their turn.
    command.args(words).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    Ok(command)
}

fn spawn(words: &[&str]) -> Result<Child, String> {
    command(words)?.spawn().map_err(|e| format!("cannot start `outrigger {}`: {e}", words.first().unwrap_or(&"")))
}

/// Until the port answers, or one of them has ended.
async fn wait_for(address: SocketAddr, children: &mut [(&'static str, Child)]) -> Result<(), String> {
    let until = Instant::now() + START_TIME;
    while tokio::net::TcpStream::connect(address).await.is_err() {
        for (name, child) in children.iter_mut() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("`outrigger {name}` ended at its start ({status}); what it said is above"));
            }
        }
        if Instant::now() > until {
            return Err(format!("nothing listens on {address} after {START_TIME:?}"));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// How `up` ends when one of them does: as the adapter did.
async fn first_end(children: &mut [(&'static str, Child)]) -> Exit {
    loop {
        for (name, child) in children.iter_mut() {
            match child.try_wait() {
                Ok(Some(status)) if *name == "adapter" && status.success() => return Exit::Ok,
                Ok(Some(status)) => return fail(Exit::Unavailable, &format!("`outrigger {name}` ended ({status}); what it said is above")),
                _ => {}
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn stop(name: &str, child: &mut Child) {
    let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) else { return };
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    if timeout(STOP_TIME, child.wait()).await.is_err() {
        let _ = child.kill().await;
        fail(Exit::Unavailable, &format!("`outrigger {name}` did not end within {STOP_TIME:?} and was killed"));
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
