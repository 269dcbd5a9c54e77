//! One group's share of the log, as openraft sees it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures_util::stream::{self, Stream, TryStreamExt};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use shiioo_actors::domain::ids::GroupId;

use super::types::{
    Entry, LogId, RaftVote, TypeConfig, io_error, log_entry, log_id, position, raft_entry,
    raft_vote, vote,
};
use crate::log::{Log, Op};

/// Entries that are read for replication at once.
const READ_ENTRIES_MAX: u64 = 256;

/// Bytes of entries that are read at once, to be sent or to be delivered.
const READ_BYTES_MAX: usize = 4 << 20;

/// The log of one group.
#[derive(Debug, Clone)]
pub(crate) struct GroupLog {
    group: GroupId,
    log: Arc<Log>,
}

impl GroupLog {
    pub fn new(group: GroupId, log: Arc<Log>) -> Self {
        Self { group, log }
    }
}

impl RaftLogReader<TypeConfig> for GroupLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = bounds(&range);
        let entries = self.log.read(self.group, from, to).await.map_err(io_error)?;
        Ok(entries.into_iter().map(raft_entry).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.log.state(self.group).vote.map(raft_vote))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        let end = end.min(start.saturating_add(READ_ENTRIES_MAX));
        let read = self.log.read_some(self.group, start, end, READ_BYTES_MAX).await;
        Ok(read.map_err(io_error)?.into_iter().map(raft_entry).collect())
    }

    /// Reads a little at a time: after a restart the range is everything above the low-water mark,
    /// which may be gigabytes.
    async fn entries_stream<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend {
        let (from, to) = bounds(&range);
        let reader = self.clone();
        let batches = stream::try_unfold((reader, from), move |(mut reader, from)| async move {
            let read = reader.limited_get_log_entries(from, to).await?;
            let Some(last) = read.last() else { return Ok(None) };
            let next = last.log_id.index().saturating_add(1);
            Ok::<_, io::Error>(Some((stream::iter(read.into_iter().map(Ok)), (reader, next))))
        });
        Box::pin(batches.try_flatten())
    }
}

/// Gives the first index of a range, and the one behind its last.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl RaftLogStorage<TypeConfig> for GroupLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        Ok(LogState {
            last_purged_log_id: self.log.state(self.group).purged.map(log_id),
            last_log_id: self.log.last(self.group).map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, cast: &RaftVote) -> Result<(), io::Error> {
        // Durable before it is answered: a vote that is forgotten can be given twice.
        self.log.write(self.group, vec![Op::Vote(vote(cast))]).await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(log_entry).collect();
        // Returns before the entries are durable, so that openraft sends them meanwhile. The
        // callback is what lets it count this node towards the quorum, or answer the leader.
        let done = Box::new(move |result| callback.io_completed(result));
        self.log.append(self.group, entries, done).await;
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        // Durable before openraft appends what replaces them. Jobs of a group are carried out in
        // order, so it need not be; but a truncation that fails must stop the group here.
        let from = last.map_or(0, |last| last.index().saturating_add(1));
        self.log.write(self.group, vec![Op::Truncate(from)]).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.log.write(self.group, vec![Op::Purge(position(&upto))]).await
    }
}
