//! One Raft group on this node: openraft's handle, and a task that follows it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, InitializeError, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Config, RaftMetrics, ServerState, SnapshotPolicy};
use shiioo_actors::command::{Envelope, Outcome};
use shiioo_actors::domain::ids::GroupId;
use shiioo_actors::domain::voters::Voters;
use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::{GroupStatus, Leadership, ProposeError, ReplicaStatus, StoreError};
use tokio::sync::watch;

use super::log_store::GroupLog;
use super::machine::{FloorKeeper, GroupMachine};
use super::network::Network;
use super::read::ReadRounds;
use super::snapshot::Assembly;
use super::types::TypeConfig;
use crate::disk::store_error;

/// Proposals that may wait for a group's core.
const PROPOSALS_MAX: u64 = 4096;

/// Entries that are appended, or sent to a replica, at once.
const BATCH_ENTRIES_MAX: u64 = 256;

/// See the module.
pub(crate) struct Group {
    id: GroupId,
    raft_id: u64,
    raft: openraft::Raft<TypeConfig, GroupMachine>,
    keeper: Arc<FloorKeeper>,
    network: Network,
    read_rounds: ReadRounds,
    assembly: Mutex<Assembly>,
    leadership: watch::Sender<Leadership>,
    has_ended: watch::Sender<bool>,
}

/// Turns an election timeout into openraft's settings.
///
/// openraft's lease is its `election_timeout_max`, and a follower campaigns only when the lease
/// and a random time between min and max are over: 0.3 T and 0.5 T make that 0.8 T to T.
pub(crate) fn raft_config(group: GroupId, election_timeout: Duration) -> Result<Config, String> {
    let total = u64::try_from(election_timeout.as_millis()).unwrap_or(u64::MAX);
    let heartbeat = (total / 10).max(1);
    let config = Config {
        cluster_name: format!("group-{group}"),
        heartbeat_interval: heartbeat,
        election_timeout_min: total / 10 * 3,
        election_timeout_max: total / 2,
        enable_pre_vote: Some(true),
        // A leader that comes back in the same term after a power cut may have lost what it had
        // not synced, and would give the same index twice.
        enable_leader_restore: Some(mutants::is(Mutant::RestoreLeader)),
        // A leader that hears no quorum falls silent for T, so that those who hear it, but whom it
        // does not hear, elect another.
        quorum_loss_probe_interval: Some(total),
        // Whoever cannot be reached is tried again soon enough to be back within T.
        backoff: format!("{heartbeat}ms ..{}ms", total.max(heartbeat)),
        // A follower that lacks what it acknowledged is refused in `network.rs`. Where its answer
        // overtakes that, as when two processes have one identity for a moment, openraft would
        // otherwise have the leader, which lacks nothing, panic for it.
        allow_log_reversion: Some(true),
        // Snapshots are asked for when the floor has risen, and claim no more than it.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        purge_batch_size: 1,
        max_payload_entries: BATCH_ENTRIES_MAX,
        max_append_entries: Some(BATCH_ENTRIES_MAX),
        api_channel_size: Some(PROPOSALS_MAX),
        api_batch_capacity: BATCH_ENTRIES_MAX,
        ..Config::default()
    };
    config.validate().map_err(|error| error.to_string())
}

impl Group {
    /// Starts the group's Raft, and makes it new where it is.
    pub async fn open(
        id: GroupId,
        raft_id: u64,
        config: Arc<Config>,
        members: &[u64],
        store: GroupLog,
        machine: GroupMachine,
        network: Network,
    ) -> Result<Arc<Self>, StoreError> {
        let keeper = machine.keeper();
        let failed = |error: &dyn std::fmt::Display| {
            store_error(format!("open group {id}"), std::io::Error::other(error.to_string()))
        };
        let raft = openraft::Raft::new(raft_id, config, network.clone(), store, machine)
            .await
            .map_err(|fatal| failed(&fatal))?;
        // Asked always: once it is answered, the group tells who is in it.
        let is_initialized = raft.is_initialized().await.map_err(|fatal| failed(&fatal))?;
        if members.first() == Some(&raft_id) && !is_initialized {
            match raft.initialize(BTreeSet::from_iter(members.iter().copied())).await {
                // Somebody else made it between the two questions.
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(Arc::new(Self {
            id,
            raft_id,
            raft,
            keeper,
            network,
            read_rounds: ReadRounds::default(),
            assembly: Mutex::default(),
            leadership: watch::Sender::new(Leadership::default()),
            has_ended: watch::Sender::new(false),
        }))
    }

    pub fn id(&self) -> GroupId {
        self.id
    }

    pub fn raft_id(&self) -> u64 {
        self.raft_id
    }

    pub(super) fn raft(&self) -> &openraft::Raft<TypeConfig, GroupMachine> {
        &self.raft
    }

    pub(super) fn keeper(&self) -> &FloorKeeper {
        &self.keeper
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    pub(super) fn read_rounds(&self) -> &ReadRounds {
        &self.read_rounds
    }

    pub(super) fn assembly_lock(&self) -> &Mutex<Assembly> {
        &self.assembly
    }

    /// Waits until the group runs no more.
    pub(super) async fn ended(&self) {
        // The sender is here: waiting cannot fail.
        let _ = self.has_ended.subscribe().wait_for(|has_ended| *has_ended).await;
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    pub async fn propose(&self, envelope: Envelope) -> Result<Outcome, ProposeError> {
        match self.raft.client_write(Arc::new(envelope)).await {
            Ok(written) => Ok(written.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(self.not_here(&forward))
            }
            // Accepted first: it may have reached a quorum, or may yet.
            Err(error) => Err(ProposeError::Unknown(error.to_string())),
        }
    }

    pub(super) fn not_here(&self, forward: &ForwardToLeader<TypeConfig>) -> ProposeError {
        match forward.leader_id {
            Some(leader) if leader != self.raft_id => ProposeError::NotLeader,
            _ => ProposeError::NoLeader,
        }
    }

    pub fn status(&self) -> GroupStatus {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let last = metrics.last_log_index.unwrap_or(0);
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let joint = metrics.membership_config.membership().get_joint_config();
        let replicas = metrics
            .membership_config
            .nodes()
            .map(|(&raft_id, _)| {
                let applied = if raft_id == self.raft_id {
                    metrics.last_applied.as_ref().map(openraft::LogId::index)
                } else {
                    let matched = metrics.replication.as_ref().and_then(|all| all.get(&raft_id));
                    matched.and_then(|at| at.as_ref()).map(openraft::LogId::index)
                };
                let applied = applied.unwrap_or(0);
                let lag = last.saturating_sub(applied);
                ReplicaStatus { raft_id, voter: voters.contains(&raft_id), applied, lag }
            })
            .collect();
        GroupStatus {
            group: self.id,
            term: metrics.current_term,
            leader: metrics.current_leader,
            replicas,
            is_changing: metrics.membership_config.log_id()
                != metrics.committed_membership_config.log_id(),
            unfinished: (joint.len() > 1).then(|| joint.last().cloned().unwrap_or_default()),
        }
    }

    pub fn voters(&self) -> Voters {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let committed = metrics.committed_membership_config.membership();
        let newest = metrics.membership_config.membership();
        // What is committed counts until the newest is: a leader that dies now may take the newest
        // along.
        let sets = newest.get_joint_config().iter().chain(committed.get_joint_config());
        Voters {
            sets: sets.filter(|set| !set.is_empty()).cloned().collect(),
            learners: newest.learner_ids().collect(),
        }
    }

    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = %self.id, %error, "the group did not stop cleanly");
        }
    }

    /// Publishes the leadership and asks for snapshots, until the group ends. Says why it did,
    /// when it was not told to.
    pub async fn follow(self: Arc<Self>, mut rolled: watch::Receiver<u32>) -> Option<String> {
        let config = Arc::clone(self.raft.config());
        let lease = Duration::from_millis(config.election_timeout_max);
        let metrics = self.raft.metrics();
        let mut server = self.raft.server_metrics();
        loop {
            let now = self.observe(&metrics, &server, lease);
            self.leadership.send_if_modified(|published| std::mem::replace(published, now) != now);
            let voters = server.borrow_watched().membership_config.voter_ids().count();
            // A lease runs out by time alone; a lone voter needs none.
            let must_look_again = now.leader == Some(self.raft_id) && voters > 1;
            tokio::select! {
                changed = server.changed() => if changed.is_err() {
                    break;
                },
                () = tokio::time::sleep(Duration::from_millis(config.heartbeat_interval)),
                    if must_look_again => {}
                Ok(()) = rolled.changed() => self.snapshot().await,
                () = self.keeper.snapshot_due() => self.snapshot().await,
            }
        }
        self.leadership.send_replace(Leadership::default());
        self.has_ended.send_replace(true);
        match &metrics.borrow_watched().running_state {
            Err(Fatal::Stopped) => None,
            Err(fatal) => Some(format!("group {}: {fatal}", self.id)),
            Ok(()) => Some(format!("group {}: its core panicked", self.id)),
        }
    }

    pub(super) async fn snapshot(&self) {
        // An error means that the group has stopped, which shows otherwise.
        if let Err(error) = self.raft.trigger().snapshot().await {
            tracing::debug!(group = %self.id, %error, "no snapshot");
        }
    }

    /// Whether this node is the group's only replica.
    pub fn is_lone(&self) -> bool {
        let server = self.raft.server_metrics();
        let server = server.borrow_watched();
        server.membership_config.nodes().map(|(id, _)| *id).eq(std::iter::once(self.raft_id))
    }

    /// The term in which this node leads, by what a quorum has confirmed up to this moment.
    pub fn leads(&self) -> Option<u64> {
        let lease = Duration::from_millis(self.raft.config().election_timeout_max);
        let now = self.observe(&self.raft.metrics(), &self.raft.server_metrics(), lease);
        now.here.then_some(now.term)
    }

    fn observe(
        &self,
        metrics: &WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
        server: &WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
        lease: Duration,
    ) -> Leadership {
        let server = server.borrow_watched();
        let leads = server.state == ServerState::Leader;
        let is_lone = server.membership_config.voter_ids().eq(std::iter::once(self.raft_id));
        let is_confirmed = is_lone
            || metrics.borrow_watched().last_quorum_acked.is_some_and(|acked| {
                use openraft::Instant as _;
                acked.elapsed() < lease
            });
        Leadership {
            term: server.vote.leader_id().term,
            leader: server.current_leader,
            here: leads && server.current_leader == Some(self.raft_id) && is_confirmed,
        }
    }
}
