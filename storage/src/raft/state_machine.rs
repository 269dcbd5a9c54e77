//! The state machine of a group, as openraft sees it: delivers every entry and goes on.
//!
//! 'Applied' means 'delivered' to openraft, so a state machine that stalls does not stop its group.
//! What is durable is told by the low-water mark: a restart begins from it, and a snapshot claims
//! it.
//!
//! Invariants:
//! - Every entry above the mark is delivered once in the life of the process, in order.
//! - An entry at or below the mark that the log remembers is never delivered again.
//! - A snapshot of another replica raises the mark only when its contents are durable here.
//! - The tracker knows of an entry before its state machine does, so that no report can come first.

use std::io;
use std::sync::Arc;

use futures_util::{Stream, TryStreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine, Snapshot};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use shiioo_actors::command::Outcome;
use shiioo_actors::domain::ids::{GroupId, Position};
use shiioo_actors::ports::{ApplySink, CommittedEntry, Payload, Reply};

use super::convert::stored_members;
use super::progress::GroupProgress;
use super::types::stored_membership;
use super::types::{Entry, LogId, StoredMembership, TypeConfig, log_id, members, position};
use crate::log::record::target_of;

/// A snapshot, as openraft passes it on. It names a low-water mark: its contents are in the files
/// already, those that another replica has sent, too, and are dumped only when it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotHandle {
    pub group: GroupId,
    /// Last position claimed; `None` for an empty group.
    pub upto: Option<Position>,
}

type Meta = SnapshotMetaOf<TypeConfig>;
type HandleSnapshot = SnapshotOf<TypeConfig, SnapshotHandle>;

/// The state machine of one group.
#[derive(Clone)]
pub(crate) struct GroupStateMachine {
    group: GroupId,
    progress: Arc<GroupProgress>,
    sink: Arc<dyn ApplySink>,
    snapshot: Arc<Mutex<Option<Meta>>>,
}

impl GroupStateMachine {
    pub fn new(group: GroupId, progress: Arc<GroupProgress>, sink: Arc<dyn ApplySink>) -> Self {
        Self { group, progress, sink, snapshot: Arc::default() }
    }

    pub fn progress(&self) -> Arc<GroupProgress> {
        Arc::clone(&self.progress)
    }

    /// Gives the low-water mark and the membership there, as openraft has them.
    fn at_low_water_mark(&self) -> (Option<LogId>, StoredMembership) {
        let mark = self.progress.low_water_mark();
        let membership = stored_membership(mark.as_ref().and_then(|mark| mark.members.as_ref()));
        (mark.map(|mark| log_id(mark.position)), membership)
    }

    fn with_handle(&self, meta: Meta) -> HandleSnapshot {
        let upto = meta.last_log_id.as_ref().map(position);
        Snapshot { meta, snapshot: SnapshotHandle { group: self.group, upto } }
    }

    /// Remembers a snapshot, unless a later one came in between.
    fn keep(&self, meta: &Meta) {
        let mut kept = self.snapshot.lock();
        // A snapshot that is built and one that is installed may end in any order.
        if kept.as_ref().is_none_or(|kept| kept.last_log_id <= meta.last_log_id) {
            *kept = Some(meta.clone());
        }
    }

    fn deliver(&self, (entry, responder): EntryResponder<TypeConfig>) {
        let position = position(&entry.log_id);
        let (part, members) = match &entry.payload {
            EntryPayload::Blank => (None, None),
            EntryPayload::Normal(envelope) => (Some(target_of(envelope)), None),
            EntryPayload::Membership(membership) => (None, Some(members(membership))),
        };
        // Noted first: the state machine may apply the entry and report it durable at once.
        self.progress.delivering(position, part, members);
        self.pass_on(position, entry, responder);
        // Told last: a reader that waits for this position expects the entry in the queue.
        self.progress.publish_delivered(position);
    }

    fn pass_on(
        &self,
        position: Position,
        entry: Entry,
        responder: Option<ApplyResponder<TypeConfig>>,
    ) {
        let payload = match entry.payload {
            EntryPayload::Blank => Payload::NewTerm,
            EntryPayload::Normal(envelope) => Payload::Command(envelope),
            EntryPayload::Membership(_) => {
                // Nobody applies it: openraft keeps the membership, and the tracker what is
                // durable.
                if let Some(responder) = responder {
                    responder.send(Outcome::Ignored);
                }
                return;
            }
        };
        let reply = responder.map(|responder| Reply::new(move |outcome| responder.send(outcome)));
        self.sink.deliver(self.group, CommittedEntry { position, payload, reply });
    }
}

impl RaftStateMachine<TypeConfig> for GroupStateMachine {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.at_low_water_mark())
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        // Never waits for a state machine: its queue takes the entry, or lets entries go and reads
        // them from the log later.
        while let Some(entry) = entries.try_next().await? {
            self.deliver(entry);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &Meta, _: SnapshotHandle) -> Result<(), io::Error> {
        // What the snapshot claims is in the files durably: see `Group::take_claim`. The mark rises
        // before the snapshot is kept, because openraft purges the log by it.
        if let Some(upto) = meta.last_log_id.as_ref().map(position) {
            self.progress.install(upto, stored_members(&meta.last_membership));
        }
        self.keep(meta);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<HandleSnapshot>, io::Error> {
        let meta = self.snapshot.lock().clone();
        Ok(meta.map(|meta| self.with_handle(meta)))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for GroupStateMachine {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(&mut self) -> Result<HandleSnapshot, io::Error> {
        // The mark as it is in memory, which the log may not have yet. The purge that follows from
        // this snapshot is a later job than the mark, so the log has it first.
        let (last_log_id, last_membership) = self.at_low_water_mark();
        let meta = Meta { last_log_id, last_membership };
        self.keep(&meta);
        Ok(self.with_handle(meta))
    }
}
