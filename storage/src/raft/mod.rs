//! The replicated log of every group on this node: openraft over the log.
//!
//! Architecture invariant: openraft's types do not leave this module; the actors see the
//! [`ReplicatedLog`] port.
//!
//! Groups are independent of each other but for the log and its disk: when the log dies, or any
//! group does, the node has to stop ([`Groups::failed`]).

mod convert;
mod floor;
mod group;
mod log_store;
mod machine;
mod membership;
mod network;
mod pace;
mod read;
mod serve;
mod snapshot;
mod types;
mod wire;

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod suite_tests;
#[cfg(test)]
mod wire_tests;

/// What the crash tests drive without openraft around it.
#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::machine::{FloorKeeper, GroupMachine};
    pub(crate) use super::types::raft_entry;
}

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use shiioo_actors::command::{Envelope, Outcome};
use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use shiioo_actors::domain::voters::Voters;
use shiioo_actors::ports::{
    ApplySink, BoxFuture, Declined, GroupStatus, Leadership, LogMismatch, Peers, ProposeError,
    Replay, ReplicatedLog, Service, StoreError,
};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::disk::{Disk, store_error};
use crate::executor::Executor;
use crate::log::record::{Body, Vote};
use crate::log::{Log, LogClaim};
use group::Group;
use log_store::GroupLog;
use machine::{FloorKeeper, GroupMachine};
use network::Network;

pub use network::NoPeers;

/// Entries that are looked at for one batch of a replay, at most.
const REPLAY_ENTRIES_MAX: u64 = 4096;

/// Bytes of entries that are read for one batch of a replay; one entry more may be read.
const REPLAY_BYTES_MAX: usize = 4 << 20;

/// What the groups of a node need to know.
#[derive(Debug, Clone)]
pub struct GroupsConfig {
    /// Whose log it is.
    pub log: LogClaim,
    /// This node's id in Raft groups.
    pub raft_id: u64,
    /// After so long without a leader there is a new one.
    pub election_timeout: Duration,
}

/// The groups on this node.
pub struct Groups {
    config: GroupsConfig,
    log: Arc<Log>,
    sink: Arc<dyn ApplySink>,
    peers: Arc<dyn Peers>,
    groups: RwLock<BTreeMap<GroupId, Arc<Group>>>,
    /// The floors of the groups, known before their first entry is handed over.
    keepers: RwLock<BTreeMap<GroupId, Arc<FloorKeeper>>>,
    /// Held while a group is opened, so that none is opened twice.
    opening: tokio::sync::Mutex<()>,
    is_stopping: Arc<AtomicBool>,
    failed: watch::Sender<Option<String>>,
}

impl Groups {
    /// Opens the log. No group runs before [`ReplicatedLog::open_group`].
    ///
    /// # Errors
    /// When the log cannot be read, or holds what no crash can have left; when the election timeout
    /// is too short to be divided.
    pub async fn start(
        config: GroupsConfig,
        disk: Arc<dyn Disk>,
        executor: Executor,
        sink: Arc<dyn ApplySink>,
        peers: Arc<dyn Peers>,
    ) -> Result<Arc<Self>, StoreError> {
        // Told now rather than when the first group is opened.
        group::raft_config(GroupId::SYSTEM, config.election_timeout)
            .map_err(|why| store_error("election timeout", std::io::Error::other(why)))?;
        let (opens, claim) = (executor.clone(), config.log.clone());
        let log = executor.run(move || Log::open_claimed(disk, opens, &claim)).await?;
        Ok(Arc::new(Self {
            config,
            log,
            sink,
            peers,
            groups: RwLock::default(),
            keepers: RwLock::default(),
            opening: tokio::sync::Mutex::default(),
            is_stopping: Arc::default(),
            failed: watch::Sender::new(None),
        }))
    }

    /// Stops every group and writes what waits. Nothing can be proposed any more. Without it the
    /// groups run on when this is dropped.
    pub async fn shutdown(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.log.give_up_when_full();
        let _no_more = self.opening.lock().await;
        let groups: Vec<_> = self.all().values().cloned().collect();
        for group in groups {
            group.shutdown().await;
        }
        if let Err(error) = self.log.close().await {
            tracing::warn!(%error, "the log was not closed");
        }
    }

    /// Answers what the member `from` asks of the groups here, until `deadline`: the other end of
    /// what [`Peers`] carries for [`Service::Raft`] and [`Service::Snapshot`].
    ///
    /// # Errors
    /// When nothing was done about the request: the group is not here or stops, the bytes are no
    /// request, or `from` is not who the request says.
    pub async fn serve(
        &self,
        from: u64,
        service: Service,
        request: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, Declined> {
        let wire::Request { group: id, body } = wire::decode(&request).map_err(Declined)?;
        drop(request);
        let not_here = || Declined(format!("group {id} is not here"));
        let group = self.ready(id).map_err(|_| not_here())?;
        let reverted = match &body {
            wire::Ask::Reverted(reverted) => Some(reverted.clone()),
            _ => None,
        };
        // Who asked has gone by then, and hears nothing of it.
        let answer = tokio::time::timeout_at(deadline, group.serve(from, service, body))
            .await
            .map_err(|_| Declined("too late".into()))??;
        if let Some(reverted) = reverted {
            self.look_back(id, &reverted);
        }
        Ok(wire::encode(&answer))
    }

    /// Fails where the log lacks what a leader says this node has acknowledged to it: other members
    /// count on what is gone.
    fn look_back(&self, id: GroupId, reverted: &wire::Reverted) {
        let wire::Reverted { vote, acknowledged } = reverted;
        let state = self.log.state(id);
        // In another term than that leader's the entry may have gone by rule.
        let is_leader = |known: Vote| (known.term, known.node) == (vote.term, vote.node);
        let is_of_term = state.vote.is_some_and(is_leader);
        let is_purged = state.purged.is_some_and(|purged| purged.index >= acknowledged.index);
        let is_there = self.log.term_at(id, acknowledged.index) == Some(acknowledged.term);
        if is_of_term && !is_purged && !is_there {
            self.failed.send_replace(Some(format!(
                "this member's log lacks entries that it had acknowledged (entry {acknowledged} of \
                 group {id}): its directory is an older copy, or its disk lost what it had written; \
                 remove its directory and join anew"
            )));
        }
    }

    /// Resolves, with the reason, when the log or a group has died. Then the node has to stop: what
    /// it acknowledged is safe, and it can acknowledge nothing more.
    pub async fn failed(&self) -> String {
        async fn reason(mut failed: watch::Receiver<Option<String>>) -> String {
            match failed.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                // Gone without a failure: there is none to tell.
                Err(_) => std::future::pending().await,
            }
        }
        tokio::select! {
            biased;
            reason = reason(self.log.failed()) => reason,
            reason = reason(self.failed.subscribe()) => reason,
        }
    }

    /// The id of the log.
    pub fn log_id(&self) -> Uuid {
        self.log.id()
    }

    fn all(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<GroupId, Arc<Group>>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn group(&self, group: GroupId) -> Option<Arc<Group>> {
        self.all().get(&group).cloned()
    }

    fn keeper(&self, group: GroupId) -> Option<Arc<FloorKeeper>> {
        self.keepers.read().unwrap_or_else(PoisonError::into_inner).get(&group).cloned()
    }

    fn ready(&self, group: GroupId) -> Result<Arc<Group>, ProposeError> {
        if self.is_stopping.load(Ordering::Acquire) {
            return Err(ProposeError::Stopping);
        }
        self.group(group).ok_or(ProposeError::NotLeader)
    }

    async fn open(&self, id: GroupId, members: Vec<u64>) -> Result<(), StoreError> {
        let _one_at_a_time = self.opening.lock().await;
        let refused =
            |why: String| store_error(format!("open group {id}"), std::io::Error::other(why));
        if self.is_stopping.load(Ordering::Acquire) {
            return Err(refused("the node is stopping".into()));
        }
        if self.group(id).is_some() {
            return Ok(());
        }
        let config = group::raft_config(id, self.config.election_timeout).map_err(refused)?;
        let raft_id = self.config.raft_id;
        let keeper = Arc::new(FloorKeeper::new(id, Arc::clone(&self.log)));
        self.keepers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, Arc::clone(&keeper));
        let machine = GroupMachine::new(id, keeper, Arc::clone(&self.sink));
        let store = GroupLog::new(id, Arc::clone(&self.log));
        let network = Network::new(id, Arc::clone(&self.peers), Arc::clone(&self.sink));
        let group =
            Group::open(id, raft_id, Arc::new(config), &members, store, machine, network).await?;
        let follow = Arc::clone(&group).follow(self.log.rolled());
        let (failed, is_stopping) = (self.failed.clone(), Arc::clone(&self.is_stopping));
        tokio::spawn(async move {
            if let Some(why) = follow.await
                && !is_stopping.load(Ordering::Acquire)
            {
                tracing::error!(%why, "a group has died");
                failed.send_replace(Some(why));
            }
        });
        self.groups.write().unwrap_or_else(PoisonError::into_inner).insert(id, group);
        Ok(())
    }

    async fn read_part(
        &self,
        id: GroupId,
        part: StateMachineId,
        from: u64,
        upto: u64,
    ) -> Result<Replay, StoreError> {
        let handed = self.keeper(id).and_then(|keeper| keeper.handed());
        let Some(handed) = handed else { return Ok(Replay::default()) };
        // Only what is handed over is known to be committed.
        let end = upto.min(handed.index).saturating_add(1);
        // Below the floor the part has everything: what is purged is not missed.
        let from = from.max(self.log.state(id).purged.map_or(0, |purged| purged.index + 1));
        let to = end.min(from.saturating_add(REPLAY_ENTRIES_MAX));
        let read = self.log.read_some(id, from, to, REPLAY_BYTES_MAX).await?;
        let next = read.last().map_or(end, |last| last.position.index + 1);
        let own = read.into_iter().filter_map(|entry| match entry.body {
            Body::Command(envelope) if machine::part_of(&envelope) == part => {
                Some((entry.position, envelope))
            }
            _ => None,
        });
        Ok(Replay { entries: own.collect(), next: (next < end).then_some(next) })
    }
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("config", &self.config).finish_non_exhaustive()
    }
}

impl ReplicatedLog for Groups {
    fn propose(
        &self,
        group: GroupId,
        envelope: Envelope,
    ) -> BoxFuture<'_, Result<Outcome, ProposeError>> {
        Box::pin(async move {
            let id = group;
            let group = self.ready(id)?;
            // Only on who leads, whose state counts.
            if group.leads().is_some()
                && let Some(reason) = self.sink.refuses(id, &envelope)
            {
                return Err(ProposeError::Quarantined(reason));
            }
            if self.log.is_full() {
                return Err(ProposeError::DiskFull);
            }
            group.propose(envelope).await
        })
    }

    fn read_index(&self, group: GroupId) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async move { self.ready(group)?.read_index().await })
    }

    fn leadership(&self, group: GroupId) -> Option<watch::Receiver<Leadership>> {
        Some(self.group(group)?.leadership())
    }

    fn leads(&self, group: GroupId) -> Option<u64> {
        self.group(group)?.leads()
    }

    fn replay(
        &self,
        group: GroupId,
        part: StateMachineId,
        from: u64,
        upto: u64,
    ) -> BoxFuture<'_, Result<Replay, StoreError>> {
        Box::pin(self.read_part(group, part, from, upto))
    }

    fn belongs(
        &self,
        group: GroupId,
        part: StateMachineId,
        held: Option<Position>,
    ) -> Result<(), LogMismatch> {
        let last = self.log.last(group);
        // Where others vote, what they made sure of may have been applied before this node's own
        // log had it, and a kill came then: the log is told again.
        let is_lone = self.group(group).is_some_and(|group| group.is_lone());
        match (self.log.part(part), held) {
            (Some(_), None) => Err(LogMismatch::Missing),
            (Some(known), Some(held)) if held.index < known.index => Err(LogMismatch::Older),
            (Some(known), Some(held))
                if held.term < known.term || held.index == known.index && held != known =>
            {
                Err(LogMismatch::Foreign)
            }
            (_, Some(held))
                if is_lone
                    && held != Position::default()
                    && last.is_none_or(|last| held.index > last.index) =>
            {
                Err(LogMismatch::Ahead)
            }
            _ => Ok(()),
        }
    }

    fn term_at(&self, group: GroupId, index: u64) -> Option<u64> {
        self.log.term_at(group, index)
    }

    fn filed(&self, part: StateMachineId, upto: Position) {
        self.log.set_part(part, upto);
    }

    fn with_files(&self) -> BTreeSet<StateMachineId> {
        self.log.parts()
    }

    fn unfile(
        &self,
        group: GroupId,
        part: StateMachineId,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let forgotten = self.log.forget_part(group, part).await;
            forgotten.map_err(|error| store_error(format!("forget the files of {part}"), error))
        })
    }

    fn durable(&self, group: GroupId, part: StateMachineId, upto: Position) {
        if let Some(keeper) = self.keeper(group) {
            keeper.durable(part, upto);
        }
    }

    fn kept_for(&self, group: GroupId, part: StateMachineId) -> u64 {
        self.keeper(group).map_or(0, |keeper| keeper.kept_for(part))
    }

    fn open_group(
        &self,
        group: GroupId,
        members: Vec<u64>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.open(group, members))
    }

    fn add_learner(&self, group: GroupId, raft_id: u64) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async move { self.ready(group)?.add_learner(raft_id).await })
    }

    fn set_voters(
        &self,
        group: GroupId,
        voters: BTreeSet<u64>,
    ) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async move { self.ready(group)?.set_voters(voters).await })
    }

    fn remove_learner(
        &self,
        group: GroupId,
        raft_id: u64,
    ) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async move { self.ready(group)?.remove_learner(raft_id).await })
    }

    fn transfer(&self, group: GroupId, to: u64) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async move { self.ready(group)?.transfer(to).await })
    }

    fn has_room(&self) -> bool {
        !self.log.is_full()
    }

    fn found_no_room(&self) {
        self.log.found_no_room();
    }

    fn groups(&self) -> Vec<GroupStatus> {
        self.all().values().map(|group| group.status()).collect()
    }

    fn voters(&self, group: GroupId) -> Option<Voters> {
        self.all().get(&group).map(|group| group.voters())
    }
}
