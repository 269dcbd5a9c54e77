//! The `ReplicatedLog` port over the groups: what actors propose, read and change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shiioo_actors::command::Envelope;
use shiioo_actors::command::Outcome;
use shiioo_actors::domain::codec;
use shiioo_actors::domain::ids::{GroupId, Position, RaftId, StateMachineId};
use shiioo_actors::domain::voters::Voters;
use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::{
    BoxFuture, CopyProgress, Durability, GroupLead, GroupStatus, Leadership, LogMismatch,
    LogStatus, Membership, Proposals, ProposeError, Replay, StateDigest, StoreError,
};
use tokio::sync::watch;

use super::group::Group;
use super::groups::Groups;
use crate::disk::store_error;
use crate::log::MAKING_ROOM_COMMAND_BYTES_MAX;
use crate::log::record::{Body, target_of};

/// Entries that are read for one batch of a replay, at most.
const REPLAY_ENTRIES_MAX: u64 = 4096;

/// Bytes of entries that are read for one batch of a replay; one entry more may be read.
const REPLAY_BYTES_MAX: usize = 4 << 20;

impl Groups {
    /// Tells whether a command is taken though the disk is full, because it makes room.
    fn takes_though_full(&self, envelope: &Envelope) -> bool {
        envelope.makes_room()
            && codec::encoded_len(envelope) <= MAKING_ROOM_COMMAND_BYTES_MAX
            && self.log.takes_what_makes_room()
    }

    /// Tells whether there is room for a piece of a copy: in the log, and in files.
    fn has_room_for_copy(&self, envelope: &Envelope) -> bool {
        2 * codec::encoded_len(envelope) as u64 <= self.copies.bytes()
    }

    /// Reads the entries of one state machine that its queue let go, or that its files lack.
    async fn read_part(
        &self,
        id: GroupId,
        part: StateMachineId,
        from: u64,
        upto: u64,
    ) -> Result<Replay, StoreError> {
        let delivered = self.progress(id).and_then(|progress| progress.delivered());
        let Some(delivered) = delivered else { return Ok(Replay::default()) };
        // Only what is delivered is known to be committed.
        let end = upto.min(delivered.index).saturating_add(1);
        // What is purged is below the low-water mark, and the files have it.
        let from = from.max(self.log.state(id).purged.map_or(0, |purged| purged.index + 1));
        let to = end.min(from.saturating_add(REPLAY_ENTRIES_MAX));
        let read = self.log.read_some(id, from, to, REPLAY_BYTES_MAX).await?;
        let next = read.last().map_or(end, |last| last.position.index + 1);
        let own = read.into_iter().filter_map(|entry| match entry.body {
            Body::Command(envelope) if target_of(&envelope) == part => {
                Some((entry.position, envelope))
            }
            _ => None,
        });
        Ok(Replay { entries: own.collect(), next: (next < end).then_some(next) })
    }
}

impl Proposals for Groups {
    fn propose(
        &self,
        group: GroupId,
        envelope: Envelope,
    ) -> BoxFuture<'_, Result<Outcome, ProposeError>> {
        Box::pin(async move {
            let id = group;
            let group = self.ready(id)?;
            // Before everything else is looked at, for it may take a while.
            let room = self.proposed.room_for(&envelope).await?;
            // Asked of the leader only, whose state counts.
            if group.leads().is_some()
                && let Some(reason) = self.sink.refuses(id, &envelope)
            {
                return Err(ProposeError::Quarantined(reason));
            }
            // After the quarantine, before the proposal: a full log would take it and keep it
            // waiting.
            if self.log.is_full() && !self.takes_though_full(&envelope) {
                return Err(ProposeError::DiskFull);
            }
            // Before the disk is full: what is copied here takes nothing of what the log needs.
            if envelope.is_of_copy() && !self.has_room_for_copy(&envelope) {
                return Err(ProposeError::DiskFull);
            }
            let Some(room) = room else { return group.propose(envelope).await };
            // The log has it, and it takes its room, also when its caller stops waiting.
            let proposing = tokio::spawn(async move {
                let outcome = group.propose(envelope).await;
                drop(room);
                outcome
            });
            proposing.await.unwrap_or_else(|error| Err(ProposeError::Unknown(error.to_string())))
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
}

impl Durability for Groups {
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
        // Where others vote, an entry may be committed by them and applied here before this node's
        // own log has it durably. After a kill then the files are ahead, and the leader sends the
        // entry again.
        let is_only_replica = self.group(group).is_some_and(|group| group.is_only_replica());
        // `known` is what the log remembers of the files, `held` what the files say of themselves.
        match (self.log.files(part), held) {
            (Some(_), None) if mutants::is(Mutant::TrustMissingFiles) => Ok(()),
            (Some(_), None) => Err(LogMismatch::Missing),
            (Some(known), Some(held)) if held.index < known.index => {
                if mutants::is(Mutant::TrustOlderFiles) { Ok(()) } else { Err(LogMismatch::Older) }
            }
            (Some(known), Some(held))
                if held.term < known.term || held.index == known.index && held != known =>
            {
                Err(LogMismatch::Foreign)
            }
            (_, Some(held))
                if is_only_replica
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
        self.log.note_files(part, upto);
    }

    fn with_files(&self) -> BTreeSet<StateMachineId> {
        self.log.with_files()
    }

    fn unfile(
        &self,
        group: GroupId,
        part: StateMachineId,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let forgotten = self.log.forget_files(group, part).await;
            forgotten.map_err(|error| store_error(format!("forget the files of {part}"), error))
        })
    }

    fn durable(&self, group: GroupId, part: StateMachineId, upto: Position) {
        if let Some(progress) = self.progress(group) {
            progress.durable(part, upto);
        }
    }

    fn ask_for_copy(
        &self,
        group: GroupId,
        part: StateMachineId,
    ) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async move { self.ready(group)?.ask_for_copy(part).await })
    }

    fn digest_of(
        &self,
        group: GroupId,
        member: RaftId,
        part: StateMachineId,
        at: Position,
    ) -> BoxFuture<'_, Result<Option<StateDigest>, ProposeError>> {
        Box::pin(async move { self.ready(group)?.digest_of(member, part, at).await })
    }

    fn tell_difference(
        &self,
        group: GroupId,
        member: RaftId,
        part: StateMachineId,
        at: Position,
        digest: StateDigest,
    ) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async move { self.ready(group)?.tell_difference(member, part, at, digest).await })
    }

    fn kept_for(&self, group: GroupId, part: StateMachineId) -> u64 {
        self.progress(group).map_or(0, |progress| progress.kept_for(part))
    }

    fn has_room(&self) -> bool {
        !self.log.is_full()
    }

    fn found_no_room(&self) {
        self.log.found_no_room();
    }
}

impl Membership for Groups {
    fn open_group(
        &self,
        group: GroupId,
        members: Vec<RaftId>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.open(group, members))
    }

    fn leave_group<'a>(
        &'a self,
        group: GroupId,
        still: BoxFuture<'a, bool>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.leave(group, still))
    }

    fn add_learner(
        &self,
        group: GroupId,
        raft_id: RaftId,
    ) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async move { self.ready(group)?.add_learner(raft_id).await })
    }

    fn set_voters(
        &self,
        group: GroupId,
        voters: BTreeSet<RaftId>,
    ) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async move { self.ready(group)?.set_voters(voters).await })
    }

    fn remove_learner(
        &self,
        group: GroupId,
        raft_id: RaftId,
    ) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async move { self.ready(group)?.remove_learner(raft_id).await })
    }

    fn transfer(&self, group: GroupId, to: RaftId) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async move { self.ready(group)?.transfer(to).await })
    }
}

impl LogStatus for Groups {
    fn groups(&self) -> Vec<GroupStatus> {
        self.all().values().map(|group| group.status()).collect()
    }

    fn last_index(&self, group: GroupId) -> Option<u64> {
        self.log.last(group).map(|last| last.index)
    }

    fn copies(&self, group: GroupId) -> BTreeMap<RaftId, CopyProgress> {
        self.all()
            .get(&group)
            .map(|group| group.network().snapshots.sent_so_far())
            .unwrap_or_default()
    }

    fn led(&self) -> Vec<GroupLead> {
        let led = |group: &Arc<Group>| {
            Some(GroupLead { group: group.id(), term: group.leads()?, voters: group.voters() })
        };
        self.all().values().filter_map(led).collect()
    }

    fn leads_changed(&self) -> watch::Receiver<()> {
        self.leads_changed.subscribe()
    }

    fn room_for_copies(&self) -> u64 {
        self.copies.bytes()
    }

    fn lacks_room(&self) -> Option<String> {
        self.copies.lacks()
    }

    fn voters(&self, group: GroupId) -> Option<Voters> {
        self.all().get(&group).map(|group| group.voters())
    }
}
