//! The coming and going of the CLI: started, found, heard, stopped.

mod sidecar;

use std::process::ExitStatus;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::stop::{asked_to_end, describe};
use super::stream::raw_output;
use super::{Session, until};
use crate::adapter::environment;
use crate::adapter::process::{self, Process, Program};
use crate::adapter::runtime::{LaunchPlan, Transport};
use crate::adapter::session::launch::{host, setting};
use crate::adapter::session::running::{CliExit, RunningCli, TOO_LONG, Tail};
use crate::adapter::transport::{CliHttpClient, FromCli, LineSplitter};
use crate::base::token::Token;
use crate::event::{SessionEnd, SessionEndReason, StageState, Warning};

/// From its start until it can take a first input.
const START_TIME: Duration = Duration::from_secs(60);

/// One try of its health; an early one may never be answered.
const HEALTH_TIME: Duration = Duration::from_millis(500);

const HEALTH_EVERY: Duration = Duration::from_millis(50);

/// How long what is in the pipes of a CLI that is gone is read.
const WIND_UP_TIME: Duration = Duration::from_secs(2);

impl Session {
    /// Starts the CLI, up to where it has a session of ours.
    pub(super) async fn start(&mut self) -> Result<RunningCli, CliExit> {
        self.set_state("starting");
        self.wait_for_sidecar().await?;
        let since = Instant::now();
        self.stage("runtime_start", StageState::Started, since, None)
            .await;
        let running = self.launch().await;
        match &running {
            Ok(_) => {
                self.stage("runtime_start", StageState::Done, since, None)
                    .await
            }
            Err(CliExit::Crashed { why, .. }) => {
                self.stage(
                    "runtime_start",
                    StageState::Failed,
                    since,
                    Some(why.clone()),
                )
                .await
            }
            Err(CliExit::Ended(_)) => {}
        }
        running
    }

    pub(super) async fn launch(&mut self) -> Result<RunningCli, CliExit> {
        let failed = |why: String| CliExit::Crashed {
            why,
            status: None,
            stderr: String::new(),
            was_ready: false,
        };
        let random =
            Token::draw().map_err(|e| failed(format!("no random bytes can be drawn: {e}")))?;
        let setting = setting(
            &self.config,
            &self.stream.session_id,
            self.stream.lifecycle.native_session_id.clone(),
            random,
        );
        let LaunchPlan {
            args,
            env,
            wiring,
            warnings,
            session,
        } = self.prepare(&setting).await?;
        let program = self
            .config
            .program
            .clone()
            .unwrap_or_else(|| self.config.runtime.program.to_owned());
        let ours: Vec<(String, String)> = self.config.env.iter().cloned().chain(env).collect();
        let env = environment::environment(
            self.config.inherit_env,
            &self.config.allow_env,
            &ours,
            host(&self.config.sidecar),
        );
        let path = env
            .iter()
            .find(|(name, _)| name == "PATH")
            .map(|(_, value)| value.clone());
        let found = process::find(&program, path.as_ref());
        let found = found.ok_or_else(|| {
            failed(
                self.config
                    .runtime
                    .not_found(&program, &self.config.runtime.program_setting()),
            )
        })?;
        let (say, from_cli) = mpsc::channel(64);
        let speaks_lines = matches!(wiring, Transport::Lines { .. });
        let (workdir, session_id) = (self.config.workdir.clone(), self.stream.session_id.clone());
        let program = Program {
            path: found,
            args,
            env,
            workdir,
            session: session_id,
            stdin: speaks_lines,
        };
        let mut process = Process::start(&program, &say).map_err(|e| {
            failed(format!(
                "`{}` cannot be started: {e}",
                program.path.display()
            ))
        })?;
        self.stream.raw_event(json!({ "type": "start", "command": program.path.display().to_string(), "args": program.args }));
        let http = CliHttpClient {
            address: String::new(),
            authorization: String::new(),
        };
        let input = process.input();
        let mut running = RunningCli {
            process,
            http,
            input,
            speaks_lines,
            from_cli,
            say,
            events: LineSplitter::default(),
            stdout: LineSplitter::default(),
            stderr: Tail::default(),
            ready: false,
            broken: None,
            events_task: None,
        };
        if self.stream.lifecycle.native_session_id.is_none() {
            for message in warnings {
                self.stream.emit(Warning { message });
            }
        }
        // Heard beside it: who wants the session to end does not wait for its start.
        let mut commands = std::mem::replace(&mut self.commands, mpsc::channel(1).1);
        let got_ready = tokio::select! {
            got_ready = tokio::time::timeout(START_TIME, self.connect(&mut running, &wiring, &program, session)) => Ok(got_ready),
            end = asked_to_end(&mut commands) => Err(end),
        };
        self.commands = commands;
        let got_ready = match got_ready {
            Ok(got_ready) => got_ready,
            Err(end) => return Err(self.stop(running, end).await),
        };
        match got_ready.unwrap_or_else(|_| Err(format!("it was not ready within {START_TIME:?}"))) {
            Ok(()) => Ok(running),
            Err(why) => Err(self.gone(running, why).await),
        }
    }

    /// Waits until the CLI can be talked with, and gets a session.
    async fn connect(
        &mut self,
        running: &mut RunningCli,
        wiring: &Transport,
        program: &Program,
        session: Option<(String, bool)>,
    ) -> Result<(), String> {
        let found = match wiring {
            Transport::Http {
                announced,
                authorization,
                health,
                version,
                events,
            } => {
                let address = self.find_address(running, *announced).await?;
                running.http = CliHttpClient {
                    address,
                    authorization: authorization.clone(),
                };
                let body = healthy(running, health).await?;
                let found = version(&body);
                running.events_task = Some(
                    running
                        .http
                        .events(events, running.say.clone())
                        .await
                        .map_err(|e| format!("its events cannot be read: {e}"))?,
                );
                Some(found.unwrap_or_default())
            }
            Transport::Lines { version_flag: true } => Some(process::version(program).await?),
            Transport::Lines {
                version_flag: false,
            } => None,
        };
        if let Some(version) = found {
            self.version = Some(version);
            self.check_version()?;
        }
        let known = self
            .stream
            .lifecycle
            .native_session_id
            .clone()
            .map(|id| (id, true));
        let (id, resumed) = session
            .or(known)
            .map_or((None, false), |(id, resumed)| (Some(id), resumed));
        let mut actions = Vec::new();
        self.translator.open(id.as_deref(), resumed, &mut actions);
        self.apply(running, actions).await;
        while !running.ready {
            tokio::select! {
                biased;
                () = until(self.timers.next(false)) => self.on_time(running).await,
                from_cli = running.from_cli.recv() => if let Some(from_cli) = from_cli { self.handle_output(running, from_cli).await },
                status = running.process.ended() => return Err(too_early(status)),
            }
            if let Some(why) = running.broken.take() {
                return Err(why);
            }
        }
        Ok(())
    }

    /// Where the CLI says that it listens.
    async fn find_address(
        &mut self,
        running: &mut RunningCli,
        announced: fn(&str) -> Option<String>,
    ) -> Result<String, String> {
        loop {
            let mut address = None;
            tokio::select! {
                from_cli = running.from_cli.recv() => match from_cli {
                    Some(FromCli::Stdout(bytes)) => running.stdout.feed(&bytes, |line| {
                        let line = line.unwrap_or(TOO_LONG);
                        raw_output(&mut self.stream.raw, "stdout", line);
                        address = address.take().or_else(|| announced(&String::from_utf8_lossy(line)));
                    }),
                    Some(from_cli) => self.handle_output(running, from_cli).await,
                    None => {}
                },
                status = running.process.ended() => return Err(too_early(status)),
            }
            if let Some(address) = address {
                return Ok(address);
            }
        }
    }

    pub(super) fn check_version(&mut self) -> Result<(), String> {
        let runtime = self.config.runtime;
        let version = self.version.clone().unwrap_or_default();
        runtime.accept_version(&version)?;
        if !runtime.is_verified(&version) {
            self.stream.emit(Warning {
                message: format!(
                    "{} {version} was not verified; verified: {}",
                    runtime.name,
                    runtime.verified_range()
                ),
            });
        }
        Ok(())
    }

    /// Ends a CLI that works, because the session is over.
    pub(super) async fn stop(&mut self, running: RunningCli, end: SessionEnd) -> CliExit {
        self.inbox.close(true);
        // What is cut here was interrupted by us.
        self.translator.interrupt(&mut Vec::new());
        let (mut end, (status, _)) = (end, self.terminate(running).await);
        if end.reason != SessionEndReason::Completed {
            end.exit_code = status.and_then(|s| s.code());
        }
        CliExit::Ended(end)
    }

    /// A CLI that is gone, or must go because it does not work.
    pub(super) async fn gone(&mut self, running: RunningCli, why: String) -> CliExit {
        let was_ready = running.ready;
        let (status, stderr) = self.terminate(running).await;
        CliExit::Crashed {
            why,
            status,
            stderr,
            was_ready,
        }
    }

    /// Hears its last words, which may say why, and leaves nothing of it running.
    async fn terminate(&mut self, mut running: RunningCli) -> (Option<ExitStatus>, String) {
        let status = self.drain_pipes(&mut running).await;
        let stderr = running.stderr.text();
        let status = stop_process(running, status).await;
        self.stream
            .raw_event(json!({ "type": "exit", "code": status.and_then(|s| s.code()) }));
        (status, stderr)
    }

    /// Hears what is still in the pipes.
    async fn drain_pipes(&mut self, running: &mut RunningCli) -> Option<ExitStatus> {
        let status = tokio::time::timeout(Duration::ZERO, running.process.ended())
            .await
            .ok()
            .flatten();
        let until = Instant::now() + WIND_UP_TIME;
        while let Ok(Some(from_cli)) =
            tokio::time::timeout(Duration::from_millis(50), running.from_cli.recv()).await
        {
            if Instant::now() > until {
                break;
            }
            if !matches!(from_cli, FromCli::EventsOver(_)) {
                self.handle_output(running, from_cli).await;
            }
            if status.is_none() {
                break;
            }
        }
        // A last line without its end counts.
        for (open, kind) in [
            (
                running.stdout.are_open(),
                FromCli::Stdout as fn(Bytes) -> FromCli,
            ),
            (running.stderr.lines.are_open(), FromCli::Stderr),
        ] {
            if open {
                self.handle_output(running, kind(Bytes::from_static(b"\n")))
                    .await;
            }
        }
        self.calls.shutdown().await;
        if let Some(events) = running.events_task.take() {
            events.abort();
        }
        status
    }
}

/// Polls it until it is well.
async fn healthy(running: &mut RunningCli, path: &str) -> Result<Vec<u8>, String> {
    loop {
        match running.http.ask("GET", path, None, HEALTH_TIME).await {
            Ok((200, body)) => return Ok(body),
            Ok((401 | 403, _)) => {
                return Err("it does not accept the password that it was given".into());
            }
            _ => tokio::select! {
                () = sleep(HEALTH_EVERY) => {}
                status = running.process.ended() => return Err(too_early(status)),
            },
        }
    }
}

fn too_early(status: Option<ExitStatus>) -> String {
    format!("it ended before it was ready ({})", describe(status))
}

async fn stop_process(running: RunningCli, status: Option<ExitStatus>) -> Option<ExitStatus> {
    let RunningCli {
        process,
        mut from_cli,
        say,
        ..
    } = running;
    drop(say);
    // Its pipes are read until it is gone, so that nothing it writes then can block it.
    let drain = async move { while from_cli.recv().await.is_some() {} };
    let drain = tokio::spawn(drain);
    let stopped = process.stop().await;
    drain.abort();
    status.or(stopped)
}
