//! One Raft group on this node: openraft's handle, its settings, and a task that follows it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, InitializeError, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Config, RaftMetrics, ServerState, SnapshotPolicy};
use shiioo_actors::command::Envelope;
use shiioo_actors::command::Outcome;
use shiioo_actors::domain::ids::{GroupId, RaftId, StateMachineId};
use shiioo_actors::domain::voters::Voters;
use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::{GroupStatus, Leadership, ProposeError, ReplicaStatus, StoreError};
use tokio::sync::{Mutex, RwLock, Semaphore, watch};
use tokio::time::Instant;

use super::heartbeats::HEARTBEATS_PER_TIMEOUT;
use super::log_store::GroupLog;
use super::network::Network;
use super::progress::GroupProgress;
use super::read::ReadRounds;
use super::returning;
use super::snapshot::SnapshotAssembler;
use super::state_machine::GroupStateMachine;
use super::types::{TypeConfig, vote};
use super::wire::RequestBody;
use crate::disk::store_error;
use crate::log::record::Vote;

/// Proposals that may wait for a group's core.
const PROPOSALS_MAX: u64 = 4096;

/// Entries that are appended or sent to a replica at once.
const BATCH_ENTRIES_MAX: u64 = 256;

/// Time in which a leader says whether it begins to send a state machine.
const RESEND_TIMEOUT: Duration = Duration::from_secs(5);

/// State machines of a group that are sent at once to replicas that ask for them.
const RESENDS_MAX: usize = 1;

/// Time after which a group looks whether the snapshot that was due came to be.
const LOOK_BACK_AFTER: Duration = Duration::from_secs(1);

/// One group on this node.
pub(crate) struct Group {
    id: GroupId,
    raft_id: RaftId,
    raft: openraft::Raft<TypeConfig, GroupStateMachine>,
    progress: Arc<GroupProgress>,
    network: Network,
    read_rounds: ReadRounds,
    assembler: Mutex<SnapshotAssembler>,
    /// Bounds the state machines that are sent at once to replicas that ask for them.
    resending: Arc<Semaphore>,
    leadership: watch::Sender<Leadership>,
    has_ended: watch::Sender<bool>,
    /// Whether campaigns are off until the log reaches to where it ended before: see `returning`.
    pub(super) waits_to_return: AtomicBool,
    /// Held for reading by each request of another replica, for writing while this node leaves the group.
    pub(super) serves: RwLock<()>,
}

/// Turns an election timeout into openraft's settings.
///
/// openraft's lease is its `election_timeout_max`, and a follower campaigns only when the lease
/// and a random time between min and max are over: 0.3 T and 0.5 T make that 0.8 T to T.
pub(crate) fn raft_config(group: GroupId, election_timeout: Duration) -> Result<Config, String> {
    let total = u64::try_from(election_timeout.as_millis()).unwrap_or(u64::MAX);
    let heartbeat = (total / u64::from(HEARTBEATS_PER_TIMEOUT)).max(1);
    let backoff = (total / 10).max(1);
    let config = Config {
        cluster_name: format!("group-{group}"),
        heartbeat_interval: heartbeat,
        election_timeout_min: total / 10 * 3,
        election_timeout_max: total / 2,
        enable_pre_vote: Some(true),
        // A leader that comes back in the same term after a power cut may have lost what it had
        // not synced, and would give the same index twice.
        enable_leader_restore: Some(mutants::is(Mutant::RestoreLeader)),
        // After losing its quorum a leader sends no heartbeats for T, then sends for T, and so on.
        // Followers behind a one-way partition (they hear it, it does not hear them) can then elect
        // another.
        quorum_loss_probe_interval: Some(total),
        // A replica that cannot be reached is tried again soon enough to be back within T.
        backoff: format!("{backoff}ms ..{}ms", total.max(backoff)),
        // A follower that lacks what it acknowledged is refused in `network`. An answer of it may
        // get past that check, as when two processes have one identity for a moment. openraft would
        // then have the leader panic, which lacks nothing.
        allow_log_reversion: Some(true),
        // Snapshots are triggered when the low-water mark has risen, and claim no more than it.
        snapshot_policy: SnapshotPolicy::Never,
        // The log is cut up to the snapshot: what replicas that are behind may need is kept by the
        // mark, which rises in steps.
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
    /// Starts the group's Raft, and initializes a new group where this node is the first member.
    pub async fn open(
        id: GroupId,
        raft_id: RaftId,
        mut config: Config,
        members: &[RaftId],
        store: GroupLog,
        machine: GroupStateMachine,
        network: Network,
    ) -> Result<Arc<Self>, StoreError> {
        let progress = machine.progress();
        let failed = |error: &dyn std::fmt::Display| {
            store_error(format!("open group {id}"), std::io::Error::other(error.to_string()))
        };
        let is_returning = returning::is_returning(network.log(), id);
        // Before the group runs: a lone voter, which the first entries may say that this is, is elected
        // with the first tick.
        config.enable_elect = !is_returning;
        let raft = openraft::Raft::new(raft_id, Arc::new(config), network.clone(), store, machine)
            .await
            .map_err(|fatal| failed(&fatal))?;
        // Asked always: once it is answered, openraft has loaded its state, and the group tells its
        // members.
        let is_initialized = raft.is_initialized().await.map_err(|fatal| failed(&fatal))?;
        if members.first() == Some(&raft_id) && !is_initialized && !is_returning {
            match raft.initialize(BTreeSet::from_iter(members.iter().copied())).await {
                // Another member initialized it between the two questions.
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(Arc::new(Self {
            id,
            raft_id,
            raft,
            progress,
            network,
            read_rounds: ReadRounds::default(),
            assembler: Mutex::default(),
            resending: Arc::new(Semaphore::new(RESENDS_MAX)),
            leadership: watch::Sender::new(Leadership::default()),
            has_ended: watch::Sender::new(false),
            waits_to_return: AtomicBool::new(is_returning),
            serves: RwLock::default(),
        }))
    }

    pub fn id(&self) -> GroupId {
        self.id
    }

    pub fn raft_id(&self) -> RaftId {
        self.raft_id
    }

    pub(super) fn raft(&self) -> &openraft::Raft<TypeConfig, GroupStateMachine> {
        &self.raft
    }

    pub(super) fn progress(&self) -> &GroupProgress {
        &self.progress
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    pub(super) fn read_rounds(&self) -> &ReadRounds {
        &self.read_rounds
    }

    pub(super) fn resending(&self) -> &Arc<Semaphore> {
        &self.resending
    }

    pub(super) fn assembler(&self) -> &Mutex<SnapshotAssembler> {
        &self.assembler
    }

    /// Waits until the group has ended.
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
            // openraft took it and then failed: it may have reached a quorum, or may yet.
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
        let voters: BTreeSet<RaftId> = metrics.membership_config.voter_ids().collect();
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
        // The committed membership counts until the newest one is committed: a leader that dies now
        // may take the newest along.
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

    /// Publishes the leadership and triggers snapshots until the group ends. Gives the reason when
    /// it was not told to end.
    pub async fn follow(
        self: Arc<Self>,
        mut rolled: watch::Receiver<u32>,
        leads_changed: watch::Sender<()>,
    ) -> Option<String> {
        let config = Arc::clone(self.raft.config());
        let lease = Duration::from_millis(config.election_timeout_max);
        let metrics = self.raft.metrics();
        let mut server = self.raft.server_metrics();
        let mut look_back = std::pin::pin!(tokio::time::sleep(LOOK_BACK_AFTER));
        loop {
            let now = self.observe(&metrics, &server, lease);
            let mut is_news = false;
            self.leadership.send_if_modified(|published| {
                let before = std::mem::replace(published, now);
                // Who follows learns of it from the leader: only a leader has something to tell.
                is_news = before != now && (before.here || now.here);
                before != now
            });
            if is_news {
                leads_changed.send_replace(());
            }
            let voters = server.borrow_watched().membership_config.voter_ids().count();
            // A lease runs out by time alone, which no metric tells. A lone voter needs none.
            let must_look_again = now.leader == Some(self.raft_id) && voters > 1;
            // In any order: whatever wakes this loop, the leadership is looked at anew above.
            tokio::select! {
                changed = server.changed() => if changed.is_err() {
                    break;
                },
                () = self.network.pulse.triggered.notified(), if must_look_again => {}
                Ok(()) = rolled.changed() => {
                    self.make_room();
                    look_back.as_mut().reset(self.snapshot().await);
                }
                () = self.progress.snapshot_due() => {
                    look_back.as_mut().reset(self.snapshot().await);
                }
                () = &mut look_back, if self.is_snapshot_short() => {
                    look_back.as_mut().reset(self.snapshot().await);
                }
            }
        }
        // Before the end is told: whoever hears of the end finds that nobody leads here.
        self.leadership.send_replace(Leadership::default());
        self.has_ended.send_replace(true);
        match &metrics.borrow_watched().running_state {
            Err(Fatal::Stopped) => None,
            Err(fatal) => Some(format!("group {}: {fatal}", self.id)),
            Ok(()) => Some(format!("group {}: its core panicked", self.id)),
        }
    }

    /// Has the state machines make durable what fills the log, where it needs the room.
    fn make_room(&self) {
        for part in self.progress.to_write_soon() {
            self.network.sink().write_soon(self.id, part);
        }
    }

    /// Tells whether the last snapshot leaves a segment in place that could go: one that is due while another
    /// is made is not made, and nothing would ask for it again on a disk that takes no more writes.
    fn is_snapshot_short(&self) -> bool {
        let metrics = self.raft.metrics();
        let upto = metrics.borrow_watched().snapshot.as_ref().map(openraft::LogId::index);
        self.progress.would_free_segment(upto)
    }

    /// Asks for a snapshot, and returns when to look back at it.
    pub(super) async fn snapshot(&self) -> Instant {
        // The log would be cut up to it.
        if self.keeps_log() {
            return Instant::now() + LOOK_BACK_AFTER;
        }
        // An error means that the group has stopped, which `follow` finds by itself.
        if let Err(error) = self.raft.trigger().snapshot().await {
            tracing::debug!(group = %self.id, %error, "no snapshot");
        }
        Instant::now() + LOOK_BACK_AFTER
    }

    /// Tells whether this node is the group's only replica.
    pub fn is_only_replica(&self) -> bool {
        let server = self.raft.server_metrics();
        let server = server.borrow_watched();
        server.membership_config.nodes().map(|(id, _)| *id).eq(std::iter::once(self.raft_id))
    }

    /// Gives the term in which this node leads, by what a quorum has confirmed up to this moment.
    pub fn leads(&self) -> Option<u64> {
        let lease = Duration::from_millis(self.raft.config().election_timeout_max);
        let now = self.observe(&self.raft.metrics(), &self.raft.server_metrics(), lease);
        now.here.then_some(now.term)
    }

    /// Gives the vote under which this node leads.
    pub(super) fn leading_vote(&self) -> Option<Vote> {
        let term = self.leads()?;
        let known = vote(&self.raft.metrics().borrow_watched().vote);
        (known.term == term && known.node == self.raft_id && known.committed).then_some(known)
    }

    /// Asks the leader to send a state machine whose files here are damaged.
    pub async fn ask_for_copy(&self, part: StateMachineId) -> Result<(), ProposeError> {
        let leader = self.leadership.borrow().leader.ok_or(ProposeError::NoLeader)?;
        if leader == self.raft_id {
            // It has nobody to ask before it has let another lead.
            return Err(ProposeError::NotLeader);
        }
        let leader = self.network.replica(leader);
        let begun = leader.call(RequestBody::Resend(part), RESEND_TIMEOUT).await;
        begun.map(drop).map_err(|error| ProposeError::Unknown(error.to_string()))
    }

    /// Computes the leadership. This node leads only while a quorum has answered it within the
    /// lease: a leader that is cut off says so before others can have elected another.
    fn observe(
        &self,
        metrics: &WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
        server: &WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
        lease: Duration,
    ) -> Leadership {
        let server = server.borrow_watched();
        let leads = server.state == ServerState::Leader;
        let is_only_replica =
            server.membership_config.voter_ids().eq(std::iter::once(self.raft_id));
        let is_confirmed = is_only_replica
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
