//! `outrigger run`: one task, in one CLI, to its end; no port is opened.
//!
//! stdout has what the agent says (or every event, as a line of JSON), stderr what it does. What
//! a later `--resume` needs stays in `--dir`, one directory a run.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::adapter::{DEFAULT, keys_within_reach};
use super::{Exit, Signals, broken, fail, place};
use crate::adapter::assembly::Assembled;
use crate::adapter::config::{self, AdapterConfig, Flags};
use crate::adapter::journal::StreamPart;
use crate::adapter::process;
use crate::adapter::session::SessionCommand;
use crate::adapter::session::stop::Ended;
use crate::adapter::transport::LineSplitter;
use crate::base::token::random_hex;
use crate::base::{harden, logging};
use crate::cli;
use crate::event::{Event, Payload, SessionEndReason, StageState, TurnEndReason};

/// In a run's directory: the token that goes on with it.
const TOKEN: &str = "token";
/// Whoever waits for a task is told soon when there is no sidecar.
const SIDECAR_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

pub fn run(args: &cli::RunArgs) -> Exit {
    let dir = match home_of(args) {
        Ok(dir) => dir,
        Err(why) => return fail(Exit::Usage, &why),
    };
    let task = match task(&args.task) {
        Ok(task) => task,
        Err(e) => {
            return fail(
                Exit::Usage,
                &format!("the task cannot be read from stdin: {e}"),
            );
        }
    };
    if task.trim().is_empty() {
        return fail(
            Exit::Usage,
            "the task is empty\nhint: --task \"what the agent is to do\"",
        );
    }
    let path = args
        .config
        .clone()
        .or_else(|| Some(PathBuf::from(DEFAULT)).filter(|p| p.exists()));
    let mut config = match config::load(path.as_deref(), &flags(args, task, &dir), &|name| {
        std::env::var(name).ok()
    }) {
        Ok(config) => config,
        Err(problems) => return broken(&place(path.as_deref()), &problems),
    };
    let keys = keys_within_reach(&config.allow_env);
    if !keys.is_empty() {
        return broken("the agent's environment", &keys);
    }
    if let Err(e) = prepare(&args.dir, &dir) {
        return fail(
            Exit::Unavailable,
            &format!("the run cannot be kept in `{}`: {e}", dir.display()),
        );
    }
    (config.oneshot, config.raw, config.sidecar_patience) = (true, false, Some(SIDECAR_PATIENCE));
    harden::this_process();
    let _log = logging::start(tracing::Level::ERROR, false);
    process::adopt_orphans();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve(config, args.json, &dir)),
        Err(e) => fail(Exit::Unavailable, &format!("cannot start: {e}")),
    }
}

/// The run's directory: a new one, or that of the run which is gone on with.
fn home_of(args: &cli::RunArgs) -> Result<PathBuf, String> {
    let Some(token) = &args.resume else {
        return Ok(args.dir.join(random_hex()));
    };
    let runs = std::fs::read_dir(&args.dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|run| run.path());
    let mut found =
        runs.filter(|run| kept(&run.join(TOKEN)).is_ok_and(|kept| kept.trim() == token));
    found.next().ok_or_else(|| {
        format!(
            "no run in `{}` has the token `{token}`\nhint: name the directory that it was started with in `--dir`, or begin without `--resume`",
            args.dir.display()
        )
    })
}

/// The token of a run: a short file, and nothing else that a project may have put there.
fn kept(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = File::options()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        file.take(4096).read_to_string(&mut text)?;
    }
    Ok(text)
}

/// Makes a run's directory, for nobody else to read, and keeps it out of commits.
fn prepare(runs: &Path, run: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(run)?;
    let ignored = runs.join(".gitignore");
    if !ignored.exists() {
        std::fs::write(ignored, "*\n")?;
    }
    Ok(())
}

fn task(given: &str) -> io::Result<String> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

fn flags(args: &cli::RunArgs, task: String, dir: &Path) -> Flags {
    Flags {
        runtime: args.agent.runtime.clone(),
        model: args.agent.model.clone(),
        tier: args.agent.tier.clone(),
        prompt: Some(task),
        resume: args.resume.clone(),
        session_id: Some(format!("ses_{}", random_hex())),
        workdir: Some(
            args.workdir
                .clone()
                .unwrap_or_else(|| std::env::current_dir().unwrap_or_default()),
        ),
        journal: Some(dir.join("journal")),
        home: Some(dir.join("home")),
        sidecar: args.sidecar.clone(),
        permissions: args.permissions.clone(),
        ..Flags::default()
    }
}

async fn serve(config: AdapterConfig, json: bool, dir: &Path) -> Exit {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(e) => return fail(Exit::Unavailable, &format!("cannot handle signals: {e}")),
    };
    let kept = config.journal.clone();
    let assembled = match Assembled::new(config) {
        Ok(assembled) => assembled,
        Err(why) => return fail(Exit::Unavailable, &why),
    };
    let (journal, commands, session_id) = (
        assembled.journal.clone(),
        assembled.commands.clone(),
        assembled.session_id.clone(),
    );
    let mut cursor = journal.subscribe(1);
    let telling = tokio::spawn(async move { journal.wake_cursors().await });
    let mut ended = match assembled.run_apart() {
        Ok(ended) => ended,
        Err(e) => {
            return fail(
                Exit::Unavailable,
                &format!("the session cannot be started: {e}"),
            );
        }
    };
    let (mut interrupted, mut asked) = (false, false);
    let (mut printer, mut lines) = (
        Printer {
            json,
            in_text: false,
            token: None,
        },
        LineSplitter::default(),
    );
    loop {
        tokio::select! {
            part = cursor.next() => match part {
                Some(StreamPart::Frames(frames)) => lines.feed(&frames, |line| {
                    if let Some(event) = line.ok().and_then(|line| line.strip_prefix(b"data: ")) {
                        printer.print(event);
                    }
                }),
                Some(_) => {}
                None => break,
            },
            ctrl_c = signals.next() => {
                interrupted |= ctrl_c;
                if std::mem::replace(&mut asked, true) {
                    process::sweep(&session_id).await;
                    let exit = if interrupted { Exit::Interrupted } else { Exit::Unavailable };
                    return fail(exit, "stopped before the session had ended");
                }
                let _ = commands.try_send(SessionCommand::Terminate);
            }
        }
    }
    telling.abort();
    // It was ours alone. What was said is on stdout; what the CLI remembers is beside it.
    let _ = std::fs::remove_dir_all(kept);
    let Ok(Ended { reason, outcome }) = (&mut ended).await else {
        return fail(Exit::Software, "the session ended without a word");
    };
    if let Some(token) = &printer.token {
        if let Err(e) = std::fs::write(dir.join(TOKEN), token) {
            return fail(
                Exit::Unavailable,
                &format!("the token cannot be kept in `{}`: {e}", dir.display()),
            );
        }
        printer.aside(&format!(
            "go on with: outrigger run --task \"…\" --resume {token}"
        ));
    }
    match (reason, outcome) {
        _ if interrupted => Exit::Interrupted,
        (SessionEndReason::Completed, Some(TurnEndReason::EndTurn)) => Exit::Ok,
        // It never had a turn: the CLI is not there, or does not start.
        (SessionEndReason::Crashed, None) => Exit::Unavailable,
        _ => Exit::Failed,
    }
}

/// Writes events for whoever started the task.
struct Printer {
    json: bool,
    /// The last that stdout has is text without an end of line.
    in_text: bool,
    token: Option<String>,
}

impl Printer {
    fn print(&mut self, json: &[u8]) {
        let Ok(event) = Event::read(json) else { return };
        if let Payload::SessionEnd(end) = &event.payload {
            self.token.clone_from(&end.resume_token);
        }
        if self.json {
            let mut stdout = io::stdout().lock();
            let _ = stdout
                .write_all(json)
                .and_then(|()| stdout.write_all(b"\n"))
                .and_then(|()| stdout.flush());
            return;
        }
        match event.payload {
            Payload::AssistantDelta(delta) if delta.parent_tool_use_id.is_none() => {
                let mut stdout = io::stdout().lock();
                let _ = stdout
                    .write_all(shown(&delta.text).as_bytes())
                    .and_then(|()| stdout.flush());
                self.in_text = true;
            }
            Payload::AssistantMessage(message) if message.parent_tool_use_id.is_none() => {
                // Without pieces, it is told here; with them, it has been.
                let text = if self.in_text {
                    ""
                } else {
                    message.text.as_str()
                };
                let _ = writeln!(io::stdout(), "{}", shown(text));
                self.in_text = false;
            }
            Payload::ToolUse(tool) => {
                let input = tool.input["command"]
                    .as_str()
                    .or(tool.input["file_path"].as_str())
                    .map_or_else(|| tool.input.to_string(), str::to_owned);
                self.aside(&format!("[{}] {}", tool.name, first_line(&input)));
            }
            Payload::ToolResult(result) if result.is_error => {
                let how = result
                    .exit_code
                    .map_or_else(|| "failed".to_owned(), |code| format!("exit {code}"));
                self.aside(&format!("[{how}] {}", first_line(result.output.trim())));
            }
            Payload::Retry(retry) => self.aside(&format!(
                "[retry {}] {}",
                retry.attempt,
                first_line(&retry.message)
            )),
            Payload::Warning(warning) => self.aside(&format!("[warning] {}", warning.message)),
            Payload::Error(error) => self.aside(&format!("[error] {}", error.message)),
            // What failed is told by the error that follows.
            Payload::SessionStage(stage) if stage.state != StageState::Failed => {
                if let Some(message) = stage.message {
                    self.aside(&format!("[{}] {message}", stage.stage));
                }
            }
            Payload::TurnEnd(end) if end.reason != TurnEndReason::EndTurn => {
                let reason = serde_json::to_value(end.reason).unwrap_or_default();
                self.aside(&format!("[ended] {}", reason.as_str().unwrap_or_default()));
            }
            _ => {}
        }
    }

    /// Says it on stderr, on a line of its own.
    fn aside(&mut self, what: &str) {
        if std::mem::take(&mut self.in_text) {
            let _ = writeln!(io::stdout());
        }
        let _ = writeln!(io::stderr(), "{}", shown(what));
    }
}

/// Without what a terminal would take for a command.
fn shown(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && !matches!(c, '\n' | '\t') {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut short: String = line.chars().take(200).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
