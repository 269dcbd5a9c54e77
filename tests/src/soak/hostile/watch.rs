//! Watching nodes while they are attacked: memory, descriptors, terms.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::load::Process;
use crate::{Client, Cluster};

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a node took at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Resident memory.
    pub rss_kib_max: u64,
    /// Open file descriptors.
    pub descriptors_max: u64,
    threads_max: u64,
}

/// What was seen.
pub(super) struct Seen {
    pub(super) costs: Vec<Cost>,
    pub(super) new_terms: Vec<String>,
}

/// Watches until it is ended.
pub(super) struct Watch {
    clients: Vec<Client>,
    before: Vec<BTreeMap<String, u64>>,
    stop: oneshot::Sender<()>,
    watching: JoinHandle<Vec<Cost>>,
}

impl Watch {
    pub(super) async fn begin(cluster: &Cluster) -> Self {
        let clients: Vec<_> = cluster.running().into_iter().map(|it| cluster.client(it)).collect();
        let before = terms(&clients).await;
        let (stop, stopped) = oneshot::channel();
        let watching = tokio::spawn(watch(cluster.pids(), stopped));
        Self { clients, before, stop, watching }
    }

    pub(super) async fn end(self) -> Seen {
        // It ends by itself only with a panic, which the handle tells.
        let _ = self.stop.send(());
        let costs = self.watching.await.expect("the watch does not panic");
        let mut new_terms = Vec::new();
        for (node, (before, after)) in
            self.before.iter().zip(terms(&self.clients).await).enumerate()
        {
            for (group, term) in after {
                let old = before.get(&group).copied().unwrap_or(term);
                if term != old {
                    new_terms.push(format!("node {node}: {group} from {old} to {term}"));
                }
            }
        }
        Seen { costs, new_terms }
    }
}

/// The term of every group, as each node tells.
async fn terms(clients: &[Client]) -> Vec<BTreeMap<String, u64>> {
    let mut all = Vec::new();
    for client in clients {
        let text = client.call("GET", "/metrics").try_send().await;
        let text = text.map(|reply| String::from_utf8_lossy(&reply.body).into_owned());
        let term = |line: &str| {
            let (group, term) = line.strip_prefix("shiioo_group_term")?.split_once(' ')?;
            Some((group.to_owned(), term.parse().ok()?))
        };
        all.push(text.unwrap_or_default().lines().filter_map(term).collect());
    }
    all
}

async fn watch(pids: Vec<u32>, mut stopped: oneshot::Receiver<()>) -> Vec<Cost> {
    let mut costs = vec![Cost::default(); pids.len()];
    loop {
        for (cost, pid) in costs.iter_mut().zip(&pids) {
            // A node that has ended takes nothing; that it has is seen elsewhere.
            let process = Process::new(*pid);
            cost.rss_kib_max = cost.rss_kib_max.max(process.rss_kib_peak().unwrap_or(0));
            let open = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
            cost.descriptors_max = cost.descriptors_max.max(open as u64);
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
            cost.threads_max = cost.threads_max.max(threads as u64);
        }
        if tokio::time::timeout(LOOK_EVERY, &mut stopped).await.is_ok() {
            return costs;
        }
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "at most {} MiB resident, {} descriptors, {} threads",
            self.rss_kib_max / 1024,
            self.descriptors_max,
            self.threads_max
        )
    }
}
