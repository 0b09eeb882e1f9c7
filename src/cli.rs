//! The command line. Types only; what commands do is in `command/`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::base::settings::check_session_id;

/// Keys out of reach, every model call checked and audited.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, about, long_about = None)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the AI proxy that holds the workspace's keys
    ///
    /// Example: outrigger sidecar --config /etc/outrigger/sidecar.yaml
    Sidecar(SidecarArgs),
    /// Run a coding CLI headless: its events on :3100, input on :8788
    ///
    /// Example: outrigger adapter --runtime opencode --model anthropic/claude-sonnet-5-5
    Adapter(AdapterArgs),
    /// Run one task to its end: what the agent says on stdout, its outcome as the exit code
    ///
    /// Example: outrigger run --runtime codex --task "fix the failing test" --json
    Run(RunArgs),
    /// List the runtimes: what each can do, and whether it is installed
    ///
    /// Example: outrigger runtimes --json
    Runtimes(Runtimes),
    /// Run everything on this machine: sidecar, adapter and console, with the scripted provider
    /// when no key is configured
    ///
    /// Example: outrigger up --prompt "list the files here"
    Up(UpArgs),
    /// Print a schema: of the events, or of the adapter's ports
    ///
    /// Example: outrigger schema events > events.schema.json
    Schema(Schema),
    /// Serve the embedded scripted provider: Anthropic, OpenAI and Gemini without a key
    ///
    /// Example: outrigger rehearse --listen 127.0.0.1:4010 --script steps.yaml
    Rehearse(RehearseArgs),
    /// Ask a running sidecar or adapter whether it is ready (for probes in images without curl)
    ///
    /// Example: outrigger healthcheck --address 127.0.0.1:9091
    Healthcheck(Healthcheck),
    /// Work with the sidecar's audit file
    ///
    /// Example: outrigger audit verify /var/lib/outrigger/audit.jsonl
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print what a shell needs to complete this command line
    ///
    /// Example: outrigger completions bash > /etc/bash_completion.d/outrigger
    Completions(Completions),
    /// Print the manual page
    ///
    /// Example: outrigger man | man -l -
    Man,
    /// Print the version
    ///
    /// Example: outrigger version
    Version,
}

/// `127.0.0.1:3100`, or `localhost:3100`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let parsed = text.replace("localhost", "127.0.0.1").parse();
    parsed.map_err(|_| {
        "expected an address with a port from 1 to 65535, such as `127.0.0.1:3100`".to_owned()
    })
}

fn session_id(text: &str) -> Result<String, String> {
    check_session_id(text).map(|()| text.to_owned())
}

/// The first of five.
fn first_port(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|port| (1..=65_531).contains(port))
        .ok_or_else(|| {
            "expected a port from 1 to 65531: the four behind it are used too".to_owned()
        })
}

#[derive(Debug, clap::Args)]
pub struct Completions {
    pub shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
pub struct SidecarArgs {
    /// The configuration file; its grants and limits are followed while running
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/outrigger/sidecar.yaml"
    )]
    pub config: PathBuf,
    /// Read the configuration, report every problem, and end
    #[arg(long)]
    pub check: bool,
    /// The session that audit records and budgets belong to
    #[arg(long, value_name = "ID", env = "SESSION_ID", value_parser = session_id)]
    pub session_id: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct AdapterArgs {
    /// The configuration file; without this, `/etc/outrigger/adapter.yaml` where there is one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Read the configuration, report every problem, and end
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub session: SessionFlags,
    /// Where the CLI runs
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// Where the session is kept, across restarts
    #[arg(long, value_name = "DIR")]
    pub journal: Option<PathBuf>,
    /// Where events are served; 127.0.0.1:3100 without it
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub stream: Option<SocketAddr>,
    /// Where input is taken; 127.0.0.1:8788 without it
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub input: Option<SocketAddr>,
    /// The sidecar; http://127.0.0.1:11432 without it
    #[arg(long, value_name = "URL")]
    pub sidecar: Option<String>,
    /// The session that this is; without it, the journal's, or a new one
    #[arg(long, value_name = "ID")]
    pub session_id: Option<String>,
    /// Go on with another session, by the `resume_token` of its end
    #[arg(long, value_name = "TOKEN")]
    pub resume: Option<String>,
    /// Give the CLI only the environment that every program needs, not the adapter's
    #[arg(long)]
    pub clean_env: bool,
}

/// Which CLI is to run, and with which model.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentFlags {
    /// The CLI to run: opencode (the default), claude, codex, gemini, pi, or a name from the
    /// configuration
    #[arg(long, value_name = "NAME")]
    pub runtime: Option<String>,
    /// The model, as `provider/model`; without it, the configuration's or the runtime's own
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// One of the runtime's tiers in the configuration
    #[arg(long, value_name = "TIER")]
    pub tier: Option<String>,
}

/// What a session is to do; also what `up` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct SessionFlags {
    #[command(flatten)]
    pub agent: AgentFlags,
    /// A first input
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Whether tools that need a permission run, wait for one, or do not run
    #[arg(long, value_name = "POLICY", value_parser = ["allow", "ask", "deny"])]
    pub permissions: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// What the agent is to do; `-` reads it from stdin
    #[arg(long, value_name = "TEXT")]
    pub task: String,
    /// Print every event as a line of JSON, not what the agent says as text
    #[arg(long)]
    pub json: bool,
    /// Go on with an earlier run, by the token that it printed
    #[arg(long, value_name = "TOKEN")]
    pub resume: Option<String>,
    #[command(flatten)]
    pub agent: AgentFlags,
    /// Whether tools that need a permission run or do not run; there is nobody to ask
    #[arg(long, value_name = "POLICY", value_parser = ["allow", "deny"])]
    pub permissions: Option<String>,
    /// The configuration file; without this, `/etc/outrigger/adapter.yaml` where there is one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the CLI runs; without it, here
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// The sidecar; http://127.0.0.1:11432 without it
    #[arg(long, value_name = "URL")]
    pub sidecar: Option<String>,
    /// Where runs are kept, so that they can be gone on with
    #[arg(long, value_name = "DIR", default_value = ".outrigger/runs")]
    pub dir: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct Runtimes {
    /// Print it as a JSON array
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub session: SessionFlags,
    /// The first of five ports: console and events, input, proxy, its admin port, scripted provider
    #[arg(long, value_name = "PORT", default_value_t = 3100, value_parser = first_port)]
    pub port: u16,
    /// Where keys, audit and session are kept
    #[arg(long, value_name = "DIR", default_value = ".outrigger")]
    pub dir: PathBuf,
    /// The directory that the CLI works in; without it, one below --dir
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// The CLI's program, if it is not on PATH
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
    /// A configuration of the sidecar with real providers
    #[arg(long, value_name = "FILE")]
    pub sidecar_config: Option<PathBuf>,
    /// A configuration of the adapter
    #[arg(long, value_name = "FILE", conflicts_with_all = ["program", "origin"])]
    pub adapter_config: Option<PathBuf>,
    /// The origin of a page that may read the stream and send input, such as http://localhost:5173
    #[arg(long, value_name = "ORIGIN")]
    pub origin: Vec<String>,
    /// Begin another session; without this, the one in --dir goes on
    #[arg(long)]
    pub fresh: bool,
}

#[derive(Debug, clap::Args)]
pub struct Schema {
    pub which: SchemaOf,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum SchemaOf {
    /// JSON Schema of an event
    Events,
    /// OpenAPI of the adapter's ports
    Openapi,
}

/// What prompts can ask the rehearsal for; a test compares it with what it plays.
pub const SCENES_HELP: &str = "\
A prompt that says `rehearse:<scene>` picks its answer:
  text, reasoning, shell, fail, parallel, long-output, touch, nap, sleep, mcp, loop, unknown-tool,
  slow, long, max-tokens, 401, 403, 404, 429, 429-once, 500, 529, cut, cut-once, stall";

#[derive(Debug, clap::Args)]
#[command(after_help = SCENES_HELP)]
pub struct RehearseArgs {
    /// Where to listen; loopback only
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4010", value_parser = address)]
    pub listen: SocketAddr,
    /// What to answer (YAML or JSON); without it, the shell tool is called once and its output
    /// repeated
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// Append one JSON line a request to this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
pub enum AuditCommand {
    /// Follow the chain of records through the file and its rotations, and name the first break
    ///
    /// Example: outrigger audit verify /var/lib/outrigger/audit.jsonl --public-key audit.pub.pem
    Verify(AuditVerify),
}

#[derive(Debug, clap::Args)]
pub struct AuditVerify {
    /// The audit file; its rotated files are found beside it
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The public key (PEM) that checkpoints must be signed with
    #[arg(long, value_name = "FILE")]
    pub public_key: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub struct Healthcheck {
    /// The admin address of the sidecar, or the adapter's (127.0.0.1:3100)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9091", value_parser = address)]
    pub address: SocketAddr,
    /// What is asked for; `/health` of an adapter
    #[arg(long, value_name = "PATH", default_value = "/readyz")]
    pub path: String,
}
