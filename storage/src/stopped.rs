//! The log of a node that does not run: what is in it, and the entries with which one replica goes on
//! alone.
//!
//! Raft never lets a minority change who votes. Forced recovery does, by hand: it appends, in a term of
//! its own above every one that the replica knows, a membership of this replica alone. Everything that
//! the log holds stays in it, committed or not, since an entry that is in it may have been acknowledged.
//! The replica elects itself when it is started, and commits all of it.
//!
//! Invariants:
//! - what is appended depends on the position after which it is and on nothing else, so that it can be
//!   appended again after a crash: the first entry replaces whatever stands behind that position;
//! - the term is voted for, durably, before anything of it is there.
//!
//! What this cannot know is whether the others had entries that this log has not. It must not be used
//! while they may run.

use std::collections::BTreeSet;
use std::sync::Arc;

use shiioo_actors::command::Envelope;
use shiioo_actors::domain::ids::{GroupId, Position, RaftId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::StoreError;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::disk::{Disk, store_error};
use crate::executor::Executor;
use crate::log::record::{Body, LogEntry, Members, Vote};
use crate::log::{Log, LogIdentity, Op};

/// Entries that are appended at a time.
const APPEND_ENTRIES: usize = 1024;
/// Bytes of entries that are read at a time.
const READ_BYTES: usize = 4 << 20;

/// The log of a node that does not run.
pub struct StoppedLog(Arc<Log>);

/// A replica of a group in that log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppedGroup {
    /// The group.
    pub group: GroupId,
    /// Its last entry here.
    pub last: Position,
    /// The greatest term that the replica knows.
    pub term: u64,
    /// The last entry that is known to be committed. Later ones may be, too.
    pub committed: Option<Position>,
    /// Where the replica's log ended when this node left the group last, if it did. A replica that came back
    /// and does not go so far lacks what it had acknowledged.
    pub left: Option<Position>,
    /// Raft ids of those who vote, by the last membership in the log, committed or not.
    pub voters: BTreeSet<RaftId>,
    /// Raft ids of the other members.
    pub learners: BTreeSet<RaftId>,
}

impl StoppedLog {
    /// Opens the log with this id, as a start does. The node must be kept from starting.
    ///
    /// # Errors
    /// When the log is not there, is another one, or is damaged.
    pub async fn open(
        disk: Arc<dyn Disk>,
        executor: Executor,
        id: Uuid,
        region: &Region,
    ) -> Result<Self, StoreError> {
        let identity = LogIdentity { expected: Some(id), fresh: id, region: region.clone() };
        let opens = executor.clone();
        let log = executor.run(move || Log::open_as(disk, opens, &identity)).await?;
        // Who waits for this can make room and ask again.
        log.give_up_when_full();
        Ok(Self(log))
    }

    /// Lists the groups of which the log has a replica.
    ///
    /// # Errors
    /// When an entry cannot be read.
    pub async fn groups(&self) -> Result<Vec<StoppedGroup>, StoreError> {
        let mut groups = Vec::new();
        for group in self.0.groups() {
            if let Some(last) = self.0.last(group) {
                groups.push(self.group(group, last).await?);
            }
        }
        Ok(groups)
    }

    async fn group(&self, group: GroupId, last: Position) -> Result<StoppedGroup, StoreError> {
        let state = self.0.state(group);
        let mark = state.low_water_mark;
        let mut members =
            mark.as_ref().and_then(|mark| mark.members.as_ref()).map(|it| it.1.clone());
        let committed = mark.map(|mark| mark.position);
        self.each_entry(group, committed, last, |entry| {
            if let Body::Members(newer) = entry.body {
                members = Some(newer);
            }
        })
        .await?;
        let Members { voters, nodes } =
            members.unwrap_or(Members { voters: vec![], nodes: vec![] });
        let voters: BTreeSet<RaftId> = voters.into_iter().flatten().collect();
        let learners = nodes.into_iter().filter(|id| !voters.contains(id)).collect();
        let term = state.vote.map_or(last.term, |vote| vote.term.max(last.term));
        let left = self.0.left(group);
        Ok(StoppedGroup { group, last, term, committed, left, voters, learners })
    }

    /// Reads the commands of a group behind one position and up to another.
    ///
    /// # Errors
    /// When an entry cannot be read, or those behind `after` are not in the log any more.
    pub async fn commands(
        &self,
        group: GroupId,
        after: Option<Position>,
        upto: Position,
    ) -> Result<Vec<(Position, Arc<Envelope>)>, StoreError> {
        let purged = self.0.state(group).purged;
        if purged > after {
            let behind = |at: Option<Position>| {
                at.map_or_else(|| "its beginning".to_owned(), |at| format!("entry {at}"))
            };
            let (has, needed) = (behind(purged), behind(after));
            let why =
                format!("it has what comes after {has}, and what comes after {needed} is needed");
            return Err(store_error(
                format!("read the log of group {group}"),
                std::io::Error::other(why),
            ));
        }
        let mut commands = Vec::new();
        self.each_entry(group, after, upto, |entry| {
            if let Body::Command(envelope) = entry.body {
                commands.push((entry.position, envelope));
            }
        })
        .await?;
        Ok(commands)
    }

    async fn each_entry(
        &self,
        group: GroupId,
        after: Option<Position>,
        upto: Position,
        mut each: impl FnMut(LogEntry),
    ) -> Result<(), StoreError> {
        let mut from = after.map_or(0, |after| after.index + 1);
        loop {
            let entries = self.0.read_some(group, from, upto.index + 1, READ_BYTES).await?;
            let Some(last) = entries.last() else { return Ok(()) };
            from = last.position.index + 1;
            entries.into_iter().for_each(&mut each);
        }
    }

    /// Begins a group anew of which the log has nothing, or nothing but its vote, with this node as the
    /// only member. Durable when it returns. Can be called again.
    ///
    /// # Errors
    /// When it cannot be written. Some of it may have been.
    pub async fn begin_alone(&self, group: GroupId, raft_id: RaftId) -> Result<(), StoreError> {
        let voted = self.0.state(group).vote.map_or(0, |vote| vote.term);
        self.go_on_alone(group, raft_id, voted + 1, None, Vec::new()).await
    }

    /// Makes this replica the only member of its group, in `term` and behind `after`, and appends
    /// commands. Durable when it returns. Can be called again with the same.
    ///
    /// # Errors
    /// When it cannot be written. Some of it may have been.
    pub async fn go_on_alone(
        &self,
        group: GroupId,
        raft_id: RaftId,
        term: u64,
        after: Option<Position>,
        commands: Vec<Envelope>,
    ) -> Result<(), StoreError> {
        let failed = |error| store_error(format!("write the log of group {group}"), error);
        // In this order: an entry of a term that was not voted for could meet another of that term.
        let vote = Op::Vote(Vote { term, node: raft_id, committed: false });
        self.0.write(group, vec![vote]).await.map_err(failed)?;
        let alone = Members { voters: vec![vec![raft_id]], nodes: vec![raft_id] };
        let commands = commands.into_iter().map(|command| Body::Command(Arc::new(command)));
        let bodies = std::iter::once(Body::Members(alone)).chain(commands);
        let first = after.map_or(0, |after| after.index + 1);
        let entries: Vec<LogEntry> = (first..)
            .zip(bodies)
            .map(|(index, body)| LogEntry { position: Position { term, index }, body })
            .collect();
        for entries in entries.chunks(APPEND_ENTRIES) {
            let (tell, told) = oneshot::channel();
            let done = Box::new(move |result| drop(tell.send(result)));
            self.0.append(group, entries.to_vec(), done).await;
            let lost = |_| Err(std::io::Error::other("the log is closed"));
            told.await.unwrap_or_else(lost).map_err(failed)?;
        }
        Ok(())
    }

    /// Closes the log, so that damage in what was written last would be noticed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn close(self) -> Result<(), StoreError> {
        self.0.close().await.map_err(|error| store_error("close the log", error))
    }
}
