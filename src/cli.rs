//! The command line. Types only; what commands do is in `command/`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Keys out of reach, every model call checked and audited.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, about, long_about = None, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the AI proxy that holds the workspace's keys
    ///
    /// Example: outrigger sidecar --config /etc/outrigger/sidecar.yaml
    Sidecar(Sidecar),
    /// Serve the embedded scripted provider: Anthropic, OpenAI and Gemini without a key
    ///
    /// Example: outrigger rehearse --listen 127.0.0.1:4010 --script steps.yaml
    Rehearse(Rehearse),
    /// Ask a running sidecar whether it is ready (for probes in images without curl)
    ///
    /// Example: outrigger healthcheck --address 127.0.0.1:9091
    Healthcheck(Healthcheck),
}

#[derive(Debug, clap::Args)]
pub struct Sidecar {
    /// The configuration file; its grants and limits are followed while running
    #[arg(long, value_name = "FILE", default_value = "/etc/outrigger/sidecar.yaml")]
    pub config: PathBuf,
    /// Read the configuration, report every problem, and end
    #[arg(long)]
    pub check: bool,
    /// The session that audit records and budgets belong to
    #[arg(long, value_name = "ID", env = "SESSION_ID")]
    pub session_id: Option<String>,
}

/// What prompts can ask the rehearsal for; a test compares it with what it plays.
pub const SCENES_HELP: &str = "\
A prompt that says `rehearse:<scene>` picks its answer:
  text, reasoning, shell, fail, parallel, long-output, sleep, mcp, unknown-tool,
  slow, long, max-tokens, 401, 403, 404, 429, 429-once, 500, 529, cut, cut-once, stall";

#[derive(Debug, clap::Args)]
#[command(after_help = SCENES_HELP)]
pub struct Rehearse {
    /// Where to listen; loopback only
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4010")]
    pub listen: SocketAddr,
    /// What to answer (YAML or JSON); without it, the shell tool is called once and its output repeated
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// Append one JSON line a request to this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Healthcheck {
    /// The admin address of the sidecar
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9091")]
    pub address: SocketAddr,
}
