//! The program around a node: command line, log, exit codes.
//!
//! Exit codes: 0 stopped as asked, 1 the start or the node failed, 2 the command line, the
//! environment or the configuration file is wrong, or `recover` was not forced. The banner goes to
//! stdout once the node is ready; log and errors go to stderr.

mod banner;
mod recover;
mod serve;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

use crate::config::settings::{Sources, flags, resolve};
use crate::config::{LogConfig, LogFormat};
use crate::{ClientThreads, Config, seams};

/// Exit code of a command line that cannot be used.
const USAGE: u8 = 2;
/// Turns of tasks after which a thread looks at its sockets again. With tokio's 61 a busy one leaves a packet of another
/// node, or a client's request, for some milliseconds, which each step of each run waits for several times.
const SOCKETS_EVERY_TURNS: u32 = 16;

/// Runs the program with the process's arguments and environment.
pub fn main() -> ExitCode {
    let flags = match flags::command().try_get_matches() {
        Ok(flags) => flags,
        Err(error) => {
            // Help and version come this way as well, for stdout and with code 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    let env = |name: &str| -> Option<OsString> { std::env::var_os(name) };
    let sources = Sources { env: &env, read: &seams::read_config_file };
    let recover = flags.subcommand_matches(flags::RECOVER);
    let (config, log) = match resolve(recover.unwrap_or(&flags), &sources) {
        Ok(resolved) => resolved,
        Err(error) => return fail(USAGE, &error.to_string()),
    };
    start_log(&log);
    let node = match threads("node") {
        Ok(node) => node,
        Err(error) => return no_threads(&error),
    };
    let code = match recover {
        Some(recover) => node.block_on(recover::recover(config, recover.get_flag(flags::FORCE))),
        None => run(&node, config),
    };
    // Without waiting for threads: a name lookup that the system has not answered must not delay the
    // exit.
    node.shutdown_background();
    code
}

/// Runs a node to its end, with threads for clients' requests beside its own.
fn run(node: &Runtime, config: Config) -> ExitCode {
    let clients = match threads("clients") {
        Ok(clients) => clients,
        Err(error) => return no_threads(&error),
    };
    let own = ClientThreads::Own(clients.handle().clone());
    let ended = node.block_on(serve::serve(config, own));
    clients.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

/// Starts threads that tasks run on, one for each processor.
fn threads(name: &str) -> io::Result<Runtime> {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    threads.enable_all().thread_name(name).event_interval(SOCKETS_EVERY_TURNS).build()
}

fn no_threads(error: &io::Error) -> ExitCode {
    fail(1, &format!("cannot start threads: {error}"))
}

fn fail(code: u8, reason: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {reason}");
    ExitCode::from(code)
}

/// Logs to stderr; in colour only to a terminal, and not when `NO_COLOR` is set.
fn start_log(log: &LogConfig) {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let mut filter = log.filter.clone();
    if !filter.contains("openraft") {
        // openraft warns of every heartbeat that fails. The failure detector logs the state of the
        // members instead.
        filter.push_str(",openraft=error");
    }
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_ansi(io::stderr().is_terminal() && !no_color)
        .with_writer(io::stderr);
    // Fails when a program that embeds this one logs already; then that log is used.
    let _ = match log.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        let mut command = flags::command();
        command.clone().debug_assert();
        let help = command.render_long_help().to_string();
        assert!(help.contains("--deny-private-targets") && !help.contains("--test-hooks"));
        assert!(help.contains("[env: SHIIOO_JOIN_TOKEN]"), "names of variables, no values: {help}");
    }
}
