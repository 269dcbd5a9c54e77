//! Installs the state that another replica has sent, and answers requests for the state of this one.
//!
//! Both replicas went through the same entries, so the events of the one that is behind are the
//! beginning of the other's. Rows are replaced, events are added to. Both are in files of their own when a
//! replica hears of them ([`Staged`]); it closes its files, and goes on from what is in their place then.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::files::{not_of_log, opened};
use super::scrub::ScrubCursor;
use super::{ApplyQueue, DigestCursor, ReplicaDeps, ReplicaRunner};
use crate::domain::ids::{GroupId, Position, StateMachineId};
use crate::ports::{Dump, Held, LogMismatch, Place, Staged, StoreError};
use crate::state::{RowBuffer, StateMachine};

/// Asks the owner of a replica for what it holds, or gives it what another holds.
#[derive(Debug)]
pub enum ReplicaRequest {
    /// Makes durable what there is, and tells how far that is.
    Held(oneshot::Sender<Result<Held, StoreError>>),
    /// Gives what a replica lacks that holds so much; nothing when it lacks nothing.
    Dump(Held, oneshot::Sender<Result<Option<Dump>, StoreError>>),
    /// Takes over what another replica holds.
    Install(Staged, oneshot::Sender<Result<(), StoreError>>),
    /// Empties the replica: the group's snapshot up to this position does not contain its state machine.
    Clear(Position, oneshot::Sender<Result<(), StoreError>>),
    /// Reads the next piece of the files, to find damage.
    Scrub(ScrubCursor, oneshot::Sender<Result<Option<ScrubCursor>, StoreError>>),
    /// Tells what was noted at a position, or last; nothing when that cannot be told any more, or not yet.
    Noted(Option<Position>, oneshot::Sender<Result<Option<DigestCursor>, StoreError>>),
    /// Hashes the next piece of the events.
    Hash(DigestCursor, oneshot::Sender<Result<DigestCursor, StoreError>>),
    /// Takes the replica out of service: what it held at a position is not what two others held.
    Distrust(Position, oneshot::Sender<Result<(), StoreError>>),
    /// Takes the replica out of service: whoever read a view of its files found them damaged.
    Damaged(StoreError),
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
            ReplicaRequest::Install(staged, reply) => {
                let installed = self.install(staged).await?;
                answer(reply, installed)?;
            }
            ReplicaRequest::Clear(upto, reply) => answer(reply, self.clear(upto).await)?,
            ReplicaRequest::Scrub(cursor, reply) => answer(reply, self.scrub(cursor))?,
            ReplicaRequest::Noted(at, reply) => answer(reply, self.noted_at(at).await)?,
            ReplicaRequest::Hash(cursor, reply) => answer(reply, self.hash_events(cursor))?,
            ReplicaRequest::Distrust(at, reply) => {
                answer(reply, Ok(()))?;
                return Err(self.differs(at));
            }
            ReplicaRequest::Damaged(error) => return Err(error),
        }
        Ok(self.applied != before)
    }

    /// Makes durable what the replica holds, and returns how much that is.
    pub(super) async fn held(&mut self) -> Result<Held, StoreError> {
        self.settle().await?;
        Ok(Held { position: self.applied, events: self.rows.events_total() })
    }

    /// Takes over what another replica has sent. What is older than what is here changes nothing, and so does what does
    /// not go on where this replica ends, or finds no room.
    ///
    /// # Errors
    /// The outer one, when the files that are there afterwards cannot be loaded: the state in memory may not be theirs.
    pub(super) async fn install(
        &mut self,
        staged: Staged,
    ) -> Result<Result<(), StoreError>, StoreError> {
        // First its own: the events that are added to have to be in their file.
        if let Err(error) = self.settle().await {
            return Ok(Err(error));
        }
        if Some(staged.position) <= self.applied {
            return Ok(Ok(()));
        }
        // More may have been applied since this replica told what it holds.
        let (events, sent) = (self.rows.events_total(), staged.files.events_len());
        if events.checked_sub(staged.events_from).is_none_or(|known| known > sent) {
            return Ok(Err(StoreError::Damaged {
                file: format!("the events of {}", self.part),
                offset: events,
                what: "they are not the beginning of what another replica holds".to_owned(),
            }));
        }
        let has_files = self.rows.has_files();
        let place = if has_files { Place::Whole { events } } else { Place::Cleared };
        self.rows.let_go();
        let installed = staged.files.install(place).await;
        // Whatever came of it: what is there is whole, and of the position that it says.
        if has_files || self.deps.stores.exists(self.part)? {
            self.load_again().await?;
        }
        Ok(installed)
    }

    /// Goes on from the files that are there, which may be others than before.
    async fn load_again(&mut self) -> Result<(), StoreError> {
        // Opening would make what is missing.
        let is_there = self.deps.stores.exists(self.part)?;
        let store = if is_there { Some(opened(&self.deps, self.part).await?) } else { None };
        let held = store.as_ref().and_then(|store| store.position());
        if !is_there || held < self.in_files {
            let why = if is_there { LogMismatch::Older } else { LogMismatch::Missing };
            return Err(not_of_log(self.part, &why));
        }
        // The log has not shown yet that it goes on where these files end, and nothing is noted of them.
        let (deps, queue) = (self.deps.clone(), Arc::clone(&self.queue));
        *self = Self::over(deps, self.group, self.part, queue, store)?;
        self.offer_files();
        self.tell_held();
        Ok(())
    }

    /// Tells the log how far the files go, which were put in their place.
    fn tell_held(&self) {
        if let Some(durable) = self.durable {
            self.tell_durable(durable);
        }
    }

    /// Puts what another replica has sent in the place of files that are damaged, and goes on from there.
    ///
    /// The log is not told that the files go (`unfile`), as it is for a deletion. After a crash in
    /// between it has to miss them: they held what it has been cut up to, and nothing else here does.
    ///
    /// # Errors
    /// When what was sent does not go as far as the damaged files did, or the new files
    /// fail. The replica is as damaged as before then.
    pub async fn rebuild(
        deps: ReplicaDeps,
        group: GroupId,
        part: StateMachineId,
        queue: Arc<ApplyQueue>,
        staged: Staged,
    ) -> Result<(Self, Vec<M::Effect>), StoreError> {
        // Before anything is removed: what the log lacks must have been sent.
        let belongs = deps.log.belongs(group, part, Some(staged.position));
        belongs.map_err(|why| not_of_log(part, &why))?;
        staged.files.install(Place::Cleared).await?;
        let store = opened(&deps, part).await?;
        let runner = Self::over(deps, group, part, queue, Some(store))?;
        runner.tell_held();
        runner.begin().await
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
