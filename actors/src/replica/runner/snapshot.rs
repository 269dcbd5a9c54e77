//! What one replica sends to another: its rows and the events that the other lacks, at one position.
//!
//! Both replicas went through the same entries, so the events of the one that is behind are the
//! beginning of the other's. Rows are replaced, events are added to.

use std::io;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::files::{not_of_log, opened};
use super::scrub::{RowsFrom, ScrubCursor};
use super::{ApplyQueue, DigestCursor, ReplicaDeps, ReplicaRunner};
use crate::domain::ids::{GroupId, Position, StateMachineId};
use crate::mutants::{self, Mutant};
use crate::ports::{Dump, Found, Held, StoreError};
use crate::state::{RowBuffer, StateMachine};

/// Behind all keys: none is as long. The longest are those of locks.
pub(super) static KEYS_END: [u8; 1024] = [u8::MAX; 1024];

/// Asks the owner of a replica for what it holds, or gives it what another holds.
#[derive(Debug)]
pub enum ReplicaRequest {
    /// Makes durable what there is, and tells how far that is.
    Held(oneshot::Sender<Result<Held, StoreError>>),
    /// Gives what a replica lacks that holds so much; nothing when it lacks nothing.
    Dump(Held, oneshot::Sender<Result<Option<Dump>, StoreError>>),
    /// Takes over what another replica holds.
    Install(Dump, oneshot::Sender<Result<(), StoreError>>),
    /// Holds nothing any more, as of a position: the snapshot of the group has nothing of it.
    Clear(Position, oneshot::Sender<Result<(), StoreError>>),
    /// Reads the next piece of the files, to find damage.
    Scrub(ScrubCursor, oneshot::Sender<Result<Option<ScrubCursor>, StoreError>>),
    /// Tells what was noted at a position, or last; nothing when that cannot be told any more, or not yet.
    Noted(Option<Position>, oneshot::Sender<Result<Option<DigestCursor>, StoreError>>),
    /// Hashes the next piece of the events.
    Hash(DigestCursor, oneshot::Sender<Result<DigestCursor, StoreError>>),
    /// Takes the replica out of service: what it held at a position is not what two others held.
    Distrust(Position, oneshot::Sender<Result<(), StoreError>>),
}

impl<M: StateMachine> ReplicaRunner<M> {
    /// Answers a request. Tells whether the state was replaced.
    ///
    /// # Errors
    /// When the files are damaged: what cannot be given away is not to be served either.
    pub async fn serve_request(&mut self, request: ReplicaRequest) -> Result<bool, StoreError> {
        let before = self.applied;
        match request {
            ReplicaRequest::Held(reply) => answer(reply, self.held().await)?,
            ReplicaRequest::Dump(beyond, reply) => answer(reply, self.dump(beyond).await)?,
            ReplicaRequest::Install(dump, reply) => answer(reply, self.install(dump).await)?,
            ReplicaRequest::Clear(upto, reply) => answer(reply, self.clear(upto).await)?,
            ReplicaRequest::Scrub(cursor, reply) => answer(reply, self.scrub(cursor))?,
            ReplicaRequest::Noted(at, reply) => answer(reply, self.noted_at(at).await)?,
            ReplicaRequest::Hash(cursor, reply) => answer(reply, self.hash_events(cursor))?,
            ReplicaRequest::Distrust(at, reply) => {
                answer(reply, Ok(()))?;
                return Err(self.differs(at));
            }
        }
        Ok(self.applied != before)
    }

    /// Makes durable what the replica holds, and returns how much that is.
    pub(super) async fn held(&mut self) -> Result<Held, StoreError> {
        self.settle().await?;
        Ok(Held { position: self.applied, events: self.rows.events_total() })
    }

    /// Returns what the replica holds beyond `held`. It is durable then, unless the disk is full.
    pub(super) async fn dump(&mut self, held: Held) -> Result<Option<Dump>, StoreError> {
        self.make_durable().await?;
        if self.applied <= held.position {
            return Ok(None);
        }
        // On a full disk nothing was written, and what changed is in the state machine alone: without this
        // the rows would be older than the position that they are sent with.
        self.rows.put(self.machine.take_final_rows());
        self.rows.put(self.machine.take_dirty_rows());
        let rows = self.rows_up_to(Dump::BYTES_MAX).await?;
        let refused = |why: String| StoreError::Io {
            what: format!("send a snapshot of {}", self.part),
            source: Arc::new(io::Error::other(why)),
        };
        let too_large = || refused(format!("more than {} bytes", Dump::BYTES_MAX));
        let (rows, bytes) = rows.ok_or_else(too_large)?;
        let events = self.rows.events_total().checked_sub(held.events);
        let Some(events) = events else {
            return Err(refused(
                "the other replica holds more events, and fewer entries".to_owned(),
            ));
        };
        let len = usize::try_from(events).ok().filter(|len| len + bytes <= Dump::BYTES_MAX);
        let len = len.ok_or_else(too_large)?;
        let events = self.rows.read_events(held.events, len)?;
        // Rot must not travel: the receiver would keep it, and could not tell it from what was written.
        let whole = M::check_events(&events, &mut false);
        let whole = whole.map_err(|at| self.rotten_event(held.events + at as u64))?;
        if whole != len {
            return Err(self.rotten_event(held.events + whole as u64));
        }
        if mutants::is(Mutant::SnapshotWithoutEvents) {
            return Ok(Some(Dump {
                events: Vec::new(),
                position: self.applied,
                rows,
                events_from: held.events,
            }));
        }
        Ok(Some(Dump { position: self.applied, rows, events_from: held.events, events }))
    }

    /// Takes over what another replica holds, and makes it durable. A dump that is older than what is
    /// here changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Full`] when the dump was taken over and waits in memory for room. Other errors when
    /// the files fail, or the dump does not go on where this replica ends.
    pub(super) async fn install(&mut self, dump: Dump) -> Result<(), StoreError> {
        // The files have to be open: rows that they hold and the dump lacks are to be deleted, and
        // unread they could not be named.
        if self.rows.store.is_none() && !self.open_files().await? && self.rows.is_shut {
            return Err(StoreError::Full);
        }
        if dump.position > self.applied {
            self.take_over(dump)?;
        }
        self.settle().await
    }

    /// Puts the dump of another replica in the place of files that are damaged, and goes on from there.
    ///
    /// The log is not told that the files go (`unfile`), as it is for a deletion. After a crash in
    /// between it has to miss them: they held what it has been cut up to, and nothing else here does.
    ///
    /// # Errors
    /// When the dump does not go as far as the damaged files did, the disk is full, or the new files
    /// fail. The replica is as damaged as before then.
    pub async fn rebuild(
        deps: ReplicaDeps,
        group: GroupId,
        part: StateMachineId,
        queue: Arc<ApplyQueue>,
        dump: Dump,
    ) -> Result<(Self, Vec<M::Effect>), StoreError> {
        // Before anything is removed: what the log lacks must be in the dump.
        let belongs = deps.log.belongs(group, part, Some(dump.position.unwrap_or_default()));
        belongs.map_err(|why| not_of_log(part, &why))?;
        match part {
            StateMachineId::Tenant(tenant) => deps.stores.remove(tenant).await?,
            StateMachineId::System => deps.stores.set_system_aside().await?,
        }
        let store = opened(&deps, part).await?;
        let mut runner = Self::over(deps, group, part, queue, Some(store))?;
        runner.take_over(dump)?;
        runner.settle().await?;
        runner.begin().await
    }

    /// Puts the dump of another replica in the place of what is here.
    fn take_over(&mut self, dump: Dump) -> Result<(), StoreError> {
        // More may have been applied since this replica told what it holds.
        let known = self.rows.events_total().checked_sub(dump.events_from);
        let known = known.and_then(|known| usize::try_from(known).ok());
        let Some(events) = known.and_then(|known| dump.events.get(known..)) else {
            return Err(StoreError::Damaged {
                file: format!("the events of {}", self.part),
                offset: self.rows.events_total(),
                what: "they are not the beginning of what another replica holds".to_owned(),
            });
        };
        let gone = self.keys()?.into_iter().map(|key| (key, None)).collect();
        // First what goes, then what comes: a key that is in both stays.
        self.rows.put(gone);
        let new = dump.rows.into_iter().map(|(key, value)| (key, Some(value)));
        self.rows.put(new.collect());
        self.rows.put_events(events);
        self.machine = M::load(&self.rows)?;
        self.applied = dump.position;
        // It is of what was replaced.
        self.noted = None;
        // The log has not shown yet that it goes on where the dump ends.
        self.is_continued = false;
        Ok(())
    }

    /// Lets go of everything: the group's snapshot up to `upto` has nothing of this replica, so it was
    /// deleted while this node was away. A replica that is further is left alone.
    pub(super) async fn clear(&mut self, upto: Position) -> Result<(), StoreError> {
        if self.applied < Some(upto) {
            self.machine = M::load(&RowBuffer::default())?;
            self.applied = Some(upto);
            self.is_continued = false;
        }
        self.settle().await
    }

    /// Makes everything durable.
    async fn settle(&mut self) -> Result<(), StoreError> {
        self.make_durable().await?;
        if self.is_dirty() { Err(StoreError::Full) } else { Ok(()) }
    }

    /// Reads all rows, and counts what they cost; nothing when that is more than `bytes_max`. Counted while
    /// they are read: a tenant may store many times as much as a node has memory.
    pub(super) async fn rows_up_to(
        &mut self,
        bytes_max: usize,
    ) -> Result<Option<(Vec<Found>, usize)>, StoreError> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let mut from = RowsFrom::Beginning;
        while from != RowsFrom::End && bytes <= bytes_max {
            from = self.read_rows(from, |key, value| {
                let row = (key.to_vec(), value.to_vec());
                bytes += Dump::cost(&row);
                rows.push(row);
            })?;
            // Other tenants go on between two pieces.
            tokio::task::yield_now().await;
        }
        Ok((bytes <= bytes_max).then_some((rows, bytes)))
    }

    /// Lists the keys of all rows.
    fn keys(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut keys = Vec::new();
        let mut from = RowsFrom::Beginning;
        while from != RowsFrom::End {
            from = self.read_rows(from, |key, _| keys.push(key.to_vec()))?;
        }
        Ok(keys)
    }
}

/// Answers, and passes on what is damaged for good.
fn answer<T>(
    reply: oneshot::Sender<Result<T, StoreError>>,
    answer: Result<T, StoreError>,
) -> Result<(), StoreError> {
    let damage = answer.as_ref().err().filter(|error| error.lasting().is_some()).cloned();
    // Whoever asked may have gone.
    let _ = reply.send(answer);
    damage.map_or(Ok(()), Err)
}
