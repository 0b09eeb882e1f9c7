//! Composition roots: a configuration in, an exit code out. One file a subcommand.

pub mod adapter;
pub mod audit;
pub mod generated;
pub mod healthcheck;
pub mod rehearse;
pub mod run;
pub mod runtimes;
pub mod schema;
pub mod sidecar;
pub mod up;

use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How a command ended (sysexits.h; 1 is a task's own failure).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Ok,
    /// A task that did not end as it should.
    Failed,
    /// Configuration or usage.
    Usage,
    /// Something outside is missing: a port, a file, a provider.
    Unavailable,
    /// A bug.
    Software,
    /// Ctrl-C.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 64,
            Exit::Unavailable => 69,
            Exit::Software => 70,
            Exit::Interrupted => 130,
        })
    }
}

/// Says on stderr why a command ends.
pub fn fail(exit: Exit, what: &str) -> Exit {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "outrigger: {what}");
    exit
}

/// Prints what a command is for. A reader that has seen enough is no error.
pub fn print(text: &str) -> Exit {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            fail(Exit::Unavailable, &format!("cannot write: {e}"))
        }
        _ => Exit::Ok,
    }
}

/// Names the source of a configuration in a message: its file, or the command line and the
/// environment where there is no file.
pub fn place(path: Option<&Path>) -> String {
    path.map_or_else(
        || "the command line and the environment".to_owned(),
        |path| format!("`{}`", path.display()),
    )
}

/// Reports all problems of `place`: a configuration as [`place`] names it, or an environment.
pub fn broken(place: &str, problems: &[String]) -> Exit {
    let count = match problems.len() {
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    let list: String = problems
        .iter()
        .map(|p| format!("\n  - {}", p.replace('\n', "\n    ")))
        .collect();
    fail(Exit::Usage, &format!("{count} in {place}:{list}"))
}

/// The signals that ask a process to end.
pub struct Signals {
    term: Signal,
    int: Signal,
    /// The terminal is gone.
    hup: Signal,
}

impl Signals {
    /// # Errors
    /// The system's.
    pub fn new() -> std::io::Result<Self> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one. True: it was Ctrl-C.
    pub async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.term.recv() => false,
            _ = self.int.recv() => true,
            _ = self.hup.recv() => false,
        }
    }
}
