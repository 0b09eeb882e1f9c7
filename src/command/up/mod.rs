//! `outrigger up`: everything on one machine. Starts the scripted provider (when no real one is
//! configured), the sidecar and the adapter, each as a process of its own: a key that the
//! sidecar reads is in no other.
//!
//! Ctrl-C, or the end of any of them, ends them all.

mod layout;

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use self::layout::{
    Layout, adapter_config, audit_of, free, lay_out, look_before, rehearsed, session_id,
};
use super::{Exit, Signals, fail};
use crate::adapter::transport::CliHttpClient;
use crate::base::settings;
use crate::cli;

const START_TIME: Duration = Duration::from_secs(20);

/// The idle time of a session that a terminal keeps open.
const FOR_GOOD: Duration = Duration::from_secs(30 * 86_400);

const STOP_TIME: Duration = Duration::from_secs(10);

pub fn run(args: &cli::UpArgs) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve(args)),
        Err(e) => fail(Exit::Unavailable, &format!("cannot start: {e}")),
    }
}

async fn serve(args: &cli::UpArgs) -> Exit {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(e) => return fail(Exit::Unavailable, &format!("cannot handle signals: {e}")),
    };
    if let Err(exit) = look_before(args) {
        return exit;
    }
    let layout = match lay_out(args) {
        Ok(layout) => layout,
        Err(why) => return fail(Exit::Usage, &why),
    };
    let mut children = Vec::new();
    let by_signal = |ctrl_c| if ctrl_c { Exit::Interrupted } else { Exit::Ok };
    let started = tokio::select! {
        started = start(args, &layout, &mut children) => started.map_err(|why| fail(Exit::Unavailable, &why)),
        ctrl_c = signals.next() => Err(by_signal(ctrl_c)),
    };
    let exit = match started {
        Ok(()) => tokio::select! {
            ctrl_c = signals.next() => by_signal(ctrl_c),
            exit = first_end(&mut children) => exit,
        },
        Err(exit) => exit,
    };
    // The adapter first: its CLI still talks to the others.
    for (name, child) in children.iter_mut().rev() {
        stop(name, child).await;
    }
    exit
}

async fn start(
    args: &cli::UpArgs,
    layout: &Layout,
    children: &mut Vec<(&'static str, Child)>,
) -> Result<(), String> {
    let config = adapter_config(args, layout)?;
    free(args, layout)?;
    let sidecar = match &args.sidecar_config {
        Some(config) => config.clone(),
        None => {
            children.push((
                "rehearse",
                spawn(&["rehearse", "--listen", &layout.provider.to_string()])?,
            ));
            rehearsed(layout)?
        }
    };
    let session = session_id(args, layout)?;
    let mut words = vec![
        "sidecar".to_owned(),
        "--config".to_owned(),
        sidecar.display().to_string(),
    ];
    words.extend(
        session
            .iter()
            .flat_map(|id| ["--session-id".to_owned(), id.clone()]),
    );
    children.push((
        "sidecar",
        spawn(&words.iter().map(String::as_str).collect::<Vec<_>>())?,
    ));
    let workdir = args
        .workdir
        .clone()
        .unwrap_or_else(|| layout.dir.join("workspace"));
    std::fs::create_dir_all(&workdir)
        .map_err(|e| format!("cannot make `{}`: {e}", workdir.display()))?;
    children.push((
        "adapter",
        adapter(
            args,
            layout,
            &workdir,
            config.as_deref(),
            session.as_deref(),
        )?,
    ));
    wait_for(layout.stream, children).await?;
    if let Some(text) = &args.session.prompt {
        // By `inject`, not as the session's first: in this directory one may go on.
        let http = CliHttpClient {
            address: layout.stream.to_string(),
            authorization: String::new(),
        };
        let (status, answer) = http
            .ask(
                "POST",
                "/inject",
                Some(&serde_json::json!({ "text": text, "mode": "queue" })),
                START_TIME,
            )
            .await?;
        if status != 202 {
            return Err(format!(
                "the prompt was not taken: {}",
                String::from_utf8_lossy(&answer)
            ));
        }
    }
    say(&banner(args, layout));
    Ok(())
}

fn banner(args: &cli::UpArgs, layout: &Layout) -> String {
    let url = format!("http://localhost:{}/", layout.stream.port());
    let (model, audit) = match &args.sidecar_config {
        Some(config) => ("your providers", audit_of(config)),
        None => (
            "the scripted provider",
            layout.dir.join("audit.jsonl").display().to_string(),
        ),
    };
    format!(
        "\nThe console:  {url}\n\n\
         The stream:   curl -N {url}stream\n\
         An input:     curl {url}inject -H 'content-type: application/json' -d '{{\"text\":\"hello\"}}'\n\
         The audit:    {audit}\n\
         The answers come from {model}. All of this runs as one user, so the agent could read the\n\
         sidecar's files: keep real keys to containers. Ctrl-C ends everything.\n"
    )
}

fn adapter(
    args: &cli::UpArgs,
    layout: &Layout,
    workdir: &Path,
    config: Option<&Path>,
    session_id: Option<&str>,
) -> Result<Child, String> {
    let session = args.session.clone();
    let mut words: Vec<String> = [
        "adapter",
        "--clean-env",
        "--stream",
        &layout.stream.to_string(),
        "--input",
        &layout.input.to_string(),
    ]
    .map(str::to_owned)
    .to_vec();
    let sidecar = match &args.sidecar_config {
        // Theirs may listen elsewhere.
        Some(config) => format!(
            "http://{}",
            listen_of(config).unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 11432))
        ),
        None => format!("http://{}", layout.proxy),
    };
    #[rustfmt::skip]
    let options = [
        ("--config", config.map(|c| c.display().to_string())),
        ("--session-id", session_id.map(str::to_owned)),
        ("--workdir", Some(workdir.display().to_string())),
        ("--journal", Some(layout.dir.join("session").display().to_string())),
        ("--sidecar", Some(sidecar)),
        ("--runtime", session.agent.runtime),
        ("--model", session.agent.model),
        ("--tier", session.agent.tier),
        ("--permissions", session.permissions),
    ];
    for (name, value) in options {
        words.extend(value.into_iter().flat_map(|value| [name.to_owned(), value]));
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut command = command(&words)?;
    // A home of its own: the CLI shall not see yours, nor the adapter your keys.
    command.env_clear().env("HOME", layout.dir.join("home"));
    for name in [
        "PATH",
        "LANG",
        "TZ",
        "TERM",
        "TMPDIR",
        "USER",
        "SHELL",
        "NO_COLOR",
        "IDLE_TIMEOUT_MS",
    ] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if args.adapter_config.is_none()
        && std::env::var_os("IDLE_TIMEOUT_MS").is_none()
        && std::io::stdout().is_terminal()
    {
        // Somebody is there for as long as the terminal is.
        command.env("IDLE_TIMEOUT_MS", FOR_GOOD.as_millis().to_string());
    }
    command
        .spawn()
        .map_err(|e| format!("cannot start the adapter: {e}"))
}

fn listen_of(config: &Path) -> Option<SocketAddr> {
    settings_in(config)["listen"]
        .as_str()?
        .replace("localhost", "127.0.0.1")
        .parse()
        .ok()
}

/// The sidecar's configuration as it stands in the file; null where it cannot be read: the sidecar
/// itself says why.
fn settings_in(config: &Path) -> Value {
    settings::read(config)
        .ok()
        .and_then(|text| settings::parse_yaml(&text).ok())
        .unwrap_or_default()
}

fn command(words: &[&str]) -> Result<Command, String> {
    let own = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let mut command = Command::new(own);
    // Ctrl-C goes to all processes of a terminal; these are told in their turn.
    command
        .args(words)
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    Ok(command)
}

fn spawn(words: &[&str]) -> Result<Child, String> {
    command(words)?.spawn().map_err(|e| {
        format!(
            "cannot start `outrigger {}`: {e}",
            words.first().unwrap_or(&"")
        )
    })
}

/// Until the port answers, or one of them has ended.
async fn wait_for(
    address: SocketAddr,
    children: &mut [(&'static str, Child)],
) -> Result<(), String> {
    let until = Instant::now() + START_TIME;
    while tokio::net::TcpStream::connect(address).await.is_err() {
        for (name, child) in children.iter_mut() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!(
                    "`outrigger {name}` ended at its start ({status}); what it said is above"
                ));
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
                Ok(Some(status)) => {
                    return fail(
                        Exit::Unavailable,
                        &format!("`outrigger {name}` ended ({status}); what it said is above"),
                    );
                }
                _ => {}
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn stop(name: &str, child: &mut Child) {
    let Some(pid) = child
        .id()
        .and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
    else {
        return;
    };
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    if timeout(STOP_TIME, child.wait()).await.is_err() {
        let _ = child.kill().await;
        fail(
            Exit::Unavailable,
            &format!("`outrigger {name}` did not end within {STOP_TIME:?} and was killed"),
        );
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
