//! Parses arguments, runs a command, says how it went.

use std::process::ExitCode;

use clap::Parser;
use outrigger::cli::{Cli, Command};
use outrigger::command;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() {
                command::Exit::Usage.into()
            } else {
                command::Exit::Ok.into()
            };
        }
    };
    let exit = match cli.command {
        Command::Sidecar(args) => command::sidecar::run(&args),
        Command::Adapter(args) => command::adapter::run(&args),
        Command::Run(args) => command::run::run(&args),
        Command::Runtimes(args) => command::runtimes::run(&args),
        Command::Up(args) => command::up::run(&args),
        Command::Schema(args) => command::schema::run(&args),
        Command::Rehearse(args) => command::rehearse::run(&args),
        Command::Audit(args) => command::audit::run(&args),
        Command::Healthcheck(args) => command::healthcheck::run(&args),
        Command::Completions(args) => command::generated::completions(&args),
        Command::Man => command::generated::man(),
        Command::Version => command::generated::version(),
    };
    exit.into()
}
