//! The program around a node: command line, log, signals, exit codes.
//!
//! Exit codes: 0 stopped as asked, 1 the start or the node failed, 2 the command line, the
//! environment or the configuration file is wrong. What a person has to know goes to stdout once
//! the node is ready; log and errors go to stderr.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::settings::{LogConfig, LogFormat, Settings, Sources, resolve};
use crate::{Config, Node, NodeSeams, StartError, seams};

/// How long a stop may take. A node that is asked to stop is gone within 10 s; the last second is
/// for the process itself.
const STOP_MS_MAX: u64 = 9_000;

/// Data directories that are tried where the wished one is in use and may be another.
const DATA_DIRS_MAX: u32 = 64;

/// The exit code of a command line that cannot be used.
const USAGE: u8 = 2;

/// Many tenants' workflows and schedules on a small cluster: one binary, no database, no broker,
/// no coordinator. Without a command it starts a node.
#[derive(Debug, Parser)]
#[command(name = "shiioo", version)]
struct Cli {
    /// TOML file with the same names as the flags, with underscores [env: SHIIOO_CONFIG]
    /// [default: shiioo.toml if there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,
}

/// Runs the program with the process's arguments and environment.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way as well, for stdout and with code 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    let env = |name: &str| -> Option<OsString> { std::env::var_os(name) };
    let sources = Sources { env: &env, read: &seams::read_config_file };
    let (config, log) = match resolve(cli.settings, cli.config, &sources) {
        Ok(resolved) => resolved,
        Err(error) => return fail(USAGE, &error.to_string()),
    };
    start_log(&log);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("cannot start threads: {error}")),
    };
    let code = match runtime.block_on(serve(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    };
    // A thread that is still busy, as with a name that is being resolved, must not delay the exit.
    runtime.shutdown_background();
    code
}

fn fail(code: u8, reason: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {reason}");
    ExitCode::from(code)
}

/// Logs to stderr; in colour only to a terminal, and not where `NO_COLOR` is set.
fn start_log(log: &LogConfig) {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let mut filter = log.filter.clone();
    if !filter.contains("openraft") {
        // It tells of every heartbeat that fails: too much, unless it is asked for by name. How the
        // members are is told by our own monitor.
        filter.push_str(",openraft=error");
    }
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_ansi(io::stderr().is_terminal() && !no_color)
        .with_writer(io::stderr);
    // A host program that embeds this one may log already; then its log is used.
    let _ = match log.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}

/// Runs a node until a signal or its own failure ends it. The error is the line to show.
async fn serve(config: Config) -> Result<(), String> {
    let mut signals =
        Signals::new().map_err(|error| format!("cannot wait for signals: {error}"))?;
    let started = tokio::select! {
        started = start(config) => started,
        // Nothing was promised to anybody yet.
        () = signals.next() => return Ok(()),
    };
    let node = started.map_err(|error| error.to_string())?;
    let served = async {
        node.ready().await;
        let _ = io::stdout().write_all(banner(&node).as_bytes());
        let (node_id, api_addr) = (node.identity().node_id, node.api_addr());
        tracing::info!(%node_id, %api_addr, node_addr = %node.node_addr(), "ready");
        warn_when_open(&node);
        std::future::pending::<()>().await;
    };
    let failure = tokio::select! {
        () = served => None,
        () = signals.next() => None,
        failure = node.failed() => Some(failure),
    };
    tracing::info!("stopping");
    let patience = Duration::from_millis(STOP_MS_MAX);
    // A task of its own, so that a stop that keeps a thread busy does not keep signals from being
    // heard.
    let stop = tokio::spawn(node.stop());
    let stopped = tokio::select! {
        stopped = tokio::time::timeout(patience, stop) => stopped,
        () = signals.next() => return Err("stopped at once, as asked twice".to_owned()),
    };
    match (failure, stopped) {
        (Some(failure), _) => Err(format!("the node failed: {failure}")),
        (None, Ok(Ok(()))) => Ok(()),
        (None, Ok(Err(error))) => Err(format!("the node failed while it stopped: {error}")),
        (None, Err(_)) => Err(format!(
            "gave up after {STOP_MS_MAX} ms of stopping; nothing that was acknowledged is lost"
        )),
    }
}

async fn start(mut config: Config) -> Result<Node, StartError> {
    // Before the data directory is made: what is refused leaves no trace.
    config.check()?;
    let wished = config.data_dir.clone();
    for number in 2.. {
        let seams = NodeSeams::real(&config.data_dir)
            .map_err(|source| StartError::DataDir { dir: config.data_dir.clone(), source })?;
        match Node::start(config.clone(), seams).await {
            Err(StartError::DataDirLocked { .. })
                if config.yields.data_dir && number <= DATA_DIRS_MAX => {}
            started => return started,
        }
        let mut next = wished.clone().into_os_string();
        next.push(format!("-{number}"));
        config.data_dir = next.into();
    }
    unreachable!("the last directory is used or refused")
}

/// What a person needs to know about a node that is ready.
fn banner(node: &Node) -> String {
    let (config, identity) = (node.config(), node.identity());
    let mut api = node.api_addr();
    if api.ip().is_unspecified() {
        // That is no address to call.
        api.set_ip(match api {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let wished = Config::default();
    let moved = (config.yields.data_dir && config.data_dir != wished.data_dir)
        || (config.yields.api_addr && node.api_addr() != wished.api_addr)
        || (config.yields.node_addr && node.node_addr() != wished.node_addr);
    let is_local = api == node.api_addr() && api.ip().is_loopback();
    let access = match (node.has_admin_token(), is_local) {
        (true, _) => "needs a credential",
        (false, true) => "no admin token: open to this machine only",
        (false, false) => "NO admin token: open to everybody who reaches it",
    };
    format!(
        "shiioo {version} is ready\n  \
           node       {node_id} (region {region})\n  \
           cluster    {cluster_id}\n  \
           API        http://{api}/api ({access})\n  \
           nodes      {node_addr} (UDP)\n  \
           data       {data_dir}{moved}\n  \
           to join it {join}\n",
        version = env!("CARGO_PKG_VERSION"),
        node_id = identity.node_id,
        region = config.region,
        cluster_id = identity.cluster_id,
        node_addr = node.node_addr(),
        data_dir = config.data_dir.display(),
        moved = if moved { " (the defaults were taken by another node)" } else { "" },
        join = join_command(node),
    )
}

/// The command that has another node join this one's cluster.
fn join_command(node: &Node) -> String {
    let config = node.config();
    let at = config.advertise_addr.clone().unwrap_or_else(|| node.node_addr().to_string());
    let needs_token = config.join_token.is_some() || node.has_admin_token();
    let token = if needs_token { " --join-token ..." } else { "" };
    format!("shiioo --join {at}{token}   (cargo run -- --join {at}{token})")
}

fn warn_when_open(node: &Node) {
    if node.config().insecure && !node.has_admin_token() {
        tracing::warn!("started with --insecure: no credential is asked of anybody");
    }
}

/// SIGTERM and Ctrl-C.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("--deny-private-targets") && !help.contains("--test-hooks"));
    }
}
