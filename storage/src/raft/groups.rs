//! The groups on this node: opens them, stops them, and answers their peers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard};
use shiioo_actors::domain::ids::{GroupId, RaftId};
use shiioo_actors::ports::{
    ApplySink, BoxFuture, Declined, Peers, ProposeError, Service, StoreError,
};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::copy_room::CopyRoom;
use super::group::{self, Group};
use super::heartbeat_timer;
use super::heartbeats::{HEARTBEATS_PER_TIMEOUT, HeartbeatBatches};
use super::log_store::GroupLog;
use super::network::Network;
use super::progress::GroupProgress;
use super::proposed_bytes::ProposedBytes;
use super::state_machine::GroupStateMachine;
use super::wire;
use crate::disk::{Disk, store_error};
use crate::executor::Executor;
use crate::log::record::Vote;
use crate::log::{Log, LogIdentity};

/// The configuration of a node's groups.
#[derive(Debug, Clone)]
pub struct GroupsConfig {
    /// Which log the groups share, and whose it is.
    pub log: LogIdentity,
    /// This node's id in Raft groups.
    pub raft_id: RaftId,
    /// Time without a leader after which another is elected.
    pub election_timeout: Duration,
}

/// The groups on this node.
pub struct Groups {
    config: GroupsConfig,
    pub(super) log: Arc<Log>,
    pub(super) sink: Arc<dyn ApplySink>,
    peers: Arc<dyn Peers>,
    heartbeats: Arc<HeartbeatBatches>,
    pub(super) proposed: ProposedBytes,
    pub(super) copies: Arc<CopyRoom>,
    groups: RwLock<BTreeMap<GroupId, Arc<Group>>>,
    /// The progress of each group. In here before the group runs, so that the first entry delivered
    /// can be reported durable.
    progress_of: RwLock<BTreeMap<GroupId, Arc<GroupProgress>>>,
    /// Held while a group is opened, so that none is opened twice.
    opening: tokio::sync::Mutex<()>,
    is_stopping: Arc<AtomicBool>,
    failed: watch::Sender<Option<String>>,
    /// Changes with the leadership of any group.
    pub(super) leads_changed: watch::Sender<()>,
}

impl Groups {
    /// Opens the log. No group runs before
    /// [`Membership::open_group`](shiioo_actors::ports::Membership::open_group).
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
        // A bad timeout is refused now rather than when the first group is opened.
        group::raft_config(GroupId::SYSTEM, config.election_timeout)
            .map_err(|why| store_error("use the election timeout", std::io::Error::other(why)))?;
        let (opens, identity) = (executor.clone(), config.log.clone());
        let copies = Arc::new(CopyRoom::new(Arc::clone(&disk)));
        let log = executor.run(move || Log::open_as(disk, opens, &identity)).await?;
        let heartbeats = HeartbeatBatches::new(Arc::clone(&peers), config.election_timeout);
        let pause = config.election_timeout / HEARTBEATS_PER_TIMEOUT;
        let groups = Arc::new(Self {
            config,
            log,
            sink,
            peers,
            heartbeats,
            proposed: ProposedBytes::default(),
            copies,
            groups: RwLock::default(),
            progress_of: RwLock::default(),
            opening: tokio::sync::Mutex::default(),
            is_stopping: Arc::default(),
            failed: watch::Sender::new(None),
            leads_changed: watch::Sender::new(()),
        });
        tokio::spawn(heartbeat_timer::beat(Arc::downgrade(&groups), pause));
        Ok(groups)
    }

    /// Stops every group and writes what waits. Nothing can be proposed any more. Without it the
    /// groups run on when this is dropped.
    pub async fn shutdown(&self) {
        self.is_stopping.store(true, Ordering::Release);
        // First: a group that waits for room on a full disk could not be stopped.
        self.log.give_up_when_full();
        // Whoever opens a group at the moment ends that, and then finds that the node is stopping.
        let _no_more = self.opening.lock().await;
        let groups: Vec<_> = self.all().values().cloned().collect();
        for group in groups {
            group.shutdown().await;
        }
        // Last: what the groups still wrote is before the record that closes the log.
        if let Err(error) = self.log.close().await {
            tracing::warn!(%error, "the log was not closed");
        }
    }

    /// Answers the request of the member `from` until `deadline`: the receiving end of what
    /// [`Peers`] carries for [`Service::Raft`], [`Service::GroupHeartbeats`] and
    /// [`Service::Snapshot`].
    ///
    /// # Errors
    /// When nothing was done about the request: the group is not here or stops, the bytes are no
    /// request, or `from` is not who the request says.
    pub async fn serve(
        &self,
        from: RaftId,
        service: Service,
        request: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, Declined> {
        if service == Service::GroupHeartbeats {
            return self.serve_heartbeats(from, &request, deadline).await;
        }
        let wire::Request { group: id, body } = wire::decode(&request).map_err(Declined)?;
        drop(request);
        let not_here = || Declined(format!("group {id} is not here"));
        let group = self.ready(id).map_err(|_| not_here())?;
        let reverted = match &body {
            wire::RequestBody::LogReverted(reverted) => Some(reverted.clone()),
            _ => None,
        };
        // After the deadline the caller has gone, and hears nothing of the answer.
        let answer = tokio::time::timeout_at(deadline, group.serve(from, service, body))
            .await
            .map_err(|_| Declined("too late".into()))??;
        if let Some(reverted) = reverted {
            self.check_acknowledged(id, &reverted);
        }
        Ok(wire::encode(&answer))
    }

    /// Ends the node where its log lacks an entry that it has acknowledged to a leader: other
    /// members count on what is gone.
    ///
    /// The leader's word is checked against the log, since its notice may be old.
    fn check_acknowledged(&self, id: GroupId, reverted: &wire::LogReverted) {
        let wire::LogReverted { vote, acknowledged } = reverted;
        let state = self.log.state(id);
        // A replica that was removed let go of its entries by rule, whatever a leader of before counts on.
        let is_left = self.log.left(id).is_some_and(|left| left >= *acknowledged);
        // In another term than that leader's the entry may have been truncated by rule.
        let is_leader = |known: Vote| (known.term, known.node) == (vote.term, vote.node);
        let is_of_term = state.vote.is_some_and(is_leader);
        let is_purged = state.purged.is_some_and(|purged| purged.index >= acknowledged.index);
        let is_there = self.log.term_at(id, acknowledged.index) == Some(acknowledged.term);
        if is_of_term && !is_left && !is_purged && !is_there {
            self.failed.send_replace(Some(format!(
                "this member's log lacks entries that it had acknowledged (entry {acknowledged} of \
                 group {id}): its directory is an older copy, or its disk lost what it had written; \
                 remove its directory and join anew"
            )));
        }
    }

    /// Resolves with the reason when the log or a group has died. The node has to stop then.
    pub async fn failed(&self) -> String {
        async fn reason(mut failed: watch::Receiver<Option<String>>) -> String {
            match failed.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                // The sender is gone without a failure: there is none to tell.
                Err(_) => std::future::pending().await,
            }
        }
        // Biased towards the cause: a log that dies takes its groups with it, and both may be seen at
        // once.
        tokio::select! {
            biased;
            reason = reason(self.log.failed()) => reason,
            reason = reason(self.failed.subscribe()) => reason,
        }
    }

    /// Gives the id of the log, for those who must tell whether their files belong to it.
    pub fn log_id(&self) -> Uuid {
        self.log.id()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    pub(super) fn all(&self) -> RwLockReadGuard<'_, BTreeMap<GroupId, Arc<Group>>> {
        self.groups.read()
    }

    pub(super) fn group(&self, group: GroupId) -> Option<Arc<Group>> {
        self.all().get(&group).cloned()
    }

    pub(super) fn progress(&self, group: GroupId) -> Option<Arc<GroupProgress>> {
        self.progress_of.read().get(&group).cloned()
    }

    /// Gives a group that takes requests.
    pub(super) fn ready(&self, group: GroupId) -> Result<Arc<Group>, ProposeError> {
        if self.is_stopping() {
            return Err(ProposeError::Stopping);
        }
        self.group(group).ok_or(ProposeError::NotLeader)
    }

    /// Ends a group of which this node has no replica any more, gives up everything of it in the log but
    /// the vote and where it ended, and has the files of its state machines removed. A later replica
    /// begins with nothing: see `returning`. Does nothing where `still` says no.
    ///
    /// To be awaited to its end: a group that was left half could be opened over a log that goes.
    pub(super) async fn leave(
        &self,
        id: GroupId,
        still: BoxFuture<'_, bool>,
    ) -> Result<(), StoreError> {
        // Held to the end: whoever opens the group does so before, which `still` sees, or after all of it
        // is gone.
        let _one_at_a_time = self.opening.lock().await;
        let group = self.group(id);
        if group.is_none() && self.log.last(id).is_some() {
            // Not opened yet: nobody has heard of its leader, whose word is needed.
            return Ok(());
        }
        // Before `still`: a leader that takes the replica back counts on whatever is acknowledged after.
        let nothing_served = match &group {
            Some(group) => Some(group.serves.write().await),
            None => None,
        };
        if self.is_stopping() || !still.await {
            return Ok(());
        }
        self.groups.write().remove(&id);
        if let Some(group) = &group {
            group.shutdown().await;
            // Until its last task has ended it may still write.
            group.ended().await;
        }
        drop(nothing_served);
        if let Some(progress) = self.progress_of.write().remove(&id) {
            progress.leave();
        }
        if self.log.last(id).is_some() {
            let left = self.log.leave(id).await;
            left.map_err(|error| store_error(format!("leave group {id}"), error))?;
        }
        // After the log: files without a log are looked for at the next start. A log without its files
        // would be damage.
        self.sink.leave(id).await
    }

    /// Opens a group, and makes it new with these members where it is new and this node is the
    /// first.
    pub(super) async fn open(&self, id: GroupId, members: Vec<RaftId>) -> Result<(), StoreError> {
        let _one_at_a_time = self.opening.lock().await;
        let refused =
            |why: String| store_error(format!("open group {id}"), std::io::Error::other(why));
        if self.is_stopping() {
            return Err(refused("the node is stopping".into()));
        }
        if self.group(id).is_some() {
            return Ok(());
        }
        let config = group::raft_config(id, self.config.election_timeout).map_err(refused)?;
        let raft_id = self.config.raft_id;
        let progress = Arc::new(GroupProgress::new(id, Arc::clone(&self.log)));
        // Before the group runs: a state machine reports as soon as it was given an entry.
        self.progress_of.write().insert(id, Arc::clone(&progress));
        let machine = GroupStateMachine::new(id, progress, Arc::clone(&self.sink));
        let store = GroupLog::new(id, Arc::clone(&self.log));
        let (peers, heartbeats) = (Arc::clone(&self.peers), Arc::clone(&self.heartbeats));
        let log = Arc::clone(&self.log);
        let (sink, copies) = (Arc::clone(&self.sink), Arc::clone(&self.copies));
        let network = Network::new(id, peers, sink, log, heartbeats, copies);
        let group = Group::open(id, raft_id, config, &members, store, machine, network).await?;
        let follow = Arc::clone(&group).follow(self.log.rolled(), self.leads_changed.clone());
        let (failed, is_stopping) = (self.failed.clone(), Arc::clone(&self.is_stopping));
        tokio::spawn(async move {
            // A group that ends while the node stops was told to.
            if let Some(why) = follow.await
                && !is_stopping.load(Ordering::Acquire)
            {
                tracing::error!(%why, "a group has died");
                failed.send_replace(Some(why));
            }
        });
        // Last: a group that is listed takes proposals. It may have delivered entries before this line;
        // whoever applies them waits for the group to be listed.
        self.groups.write().insert(id, group);
        Ok(())
    }
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("config", &self.config).finish_non_exhaustive()
    }
}
