//! Composition roots: a configuration in, an exit code out. One file a subcommand.

pub mod healthcheck;
pub mod rehearse;
pub mod sidecar;

use std::process::ExitCode;

/// How a command ended (sysexits.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Ok,
    /// Configuration or usage.
    Usage,
    /// Something outside is missing: a port, a file, a provider.
    Unavailable,
    /// A bug.
    Software,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Ok => 0,
            Exit::Usage => 64,
            Exit::Unavailable => 69,
            Exit::Software => 70,
        })
    }
}

/// Says on stderr why a command ends.
pub fn fail(exit: Exit, what: &str) -> Exit {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "outrigger: {what}");
    exit
}
