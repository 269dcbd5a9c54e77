//! Runs a node until a signal or its own failure ends it.

use std::io::{self, Write as _};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::banner::banner;
use crate::repair::{self, RepairError};
use crate::{ClientThreads, Config, Node, NodeSeams, StartError};

/// Longest stop, ms. A node that is asked to stop is gone within 10 s; the last second is for the
/// process itself.
const STOP_MS_MAX: u64 = 9_000;
/// Data directories that are tried where the wished one is in use and another may be used.
const DATA_DIRS_MAX: u32 = 64;

/// Runs a node to its end. The error is the line to show.
pub(super) async fn serve(config: Config, client_threads: ClientThreads) -> Result<(), String> {
    let mut signals =
        Signals::new().map_err(|error| format!("cannot wait for signals: {error}"))?;
    let started = tokio::select! {
        started = start(config, client_threads) => started,
        // The start is abandoned: nothing was promised to anybody yet.
        () = signals.next() => return Ok(()),
    };
    let node = started?;
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
    // In a task of its own: a stop that keeps its thread busy must not keep this task from hearing
    // the second signal.
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

/// Starts the node, in the next free data directory where the wished one is in use and another may be
/// used.
async fn start(mut config: Config, client_threads: ClientThreads) -> Result<Node, String> {
    // Before the data directory is made: what is refused leaves no trace.
    config.check().map_err(|error| error.to_string())?;
    let wished = config.data_dir.clone();
    for number in 2.. {
        let seams = NodeSeams::real(&config.data_dir, client_threads.clone())
            .map_err(|source| StartError::DataDir { dir: config.data_dir.clone(), source })
            .map_err(|error| error.to_string())?;
        let may_move = config.auto_assign.data_dir && number <= DATA_DIRS_MAX;
        match start_in(&config, seams).await {
            Err(Refused::Start(StartError::DataDirLocked { .. })) if may_move => {}
            started => return started.map_err(|refused| refused.to_string()),
        }
        let mut next = wished.clone().into_os_string();
        next.push(format!("-{number}"));
        config.data_dir = next.into();
    }
    unreachable!("the last directory is used or refused")
}

/// Tells why a node does not start in a data directory.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Start(StartError),
    /// Damage that a lone node can go on without.
    #[error("{0}. {1}")]
    Damaged(StartError, String),
    #[error("cannot repair the data directory: {0}")]
    Repair(RepairError),
}

/// Repairs the data directory, where that is asked for, and starts the node in it.
async fn start_in(config: &Config, seams: NodeSeams) -> Result<Node, Refused> {
    let dir = &config.data_dir;
    if config.repair {
        match repair::repair(dir, &seams).await {
            Ok(Some(report)) => {
                let told =
                    format!("{report}The report is in {}.\n", dir.join(report.file()).display());
                let _ = io::stdout().write_all(told.as_bytes());
            }
            Ok(None) => tracing::info!("nothing is damaged; --repair is not needed"),
            Err(RepairError::InUse(error)) => return Err(Refused::Start(error)),
            Err(error) => return Err(Refused::Repair(error)),
        }
    }
    match Node::start(config.clone(), seams.clone()).await {
        Err(error @ StartError::Services { .. }) => match repair::way_out(dir, &seams).await {
            Some(way_out) => Err(Refused::Damaged(error, way_out)),
            None => Err(Refused::Start(error)),
        },
        started => started.map_err(Refused::Start),
    }
}

fn warn_when_open(node: &Node) {
    if node.config().insecure && !node.has_admin_token() {
        tracing::warn!("started with --insecure: no credential is asked of anybody");
    }
}

/// Receives SIGTERM and Ctrl-C.
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
