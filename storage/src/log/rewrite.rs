//! Makes a log of what can be read of a damaged one.
//!
//! The problem: behind a broken place stand entries that were applied after those that are lost. Files
//! of state machines, which are written behind the log, may have what is lost or may lack it, and they
//! may be ahead of whatever is left of the log.
//!
//! The rule, for each group:
//!
//! | index | has | becomes |
//! |---|---|---|
//! | up to the low-water mark | nothing that is needed | purged |
//! | an entry, before everything that is lost | | the entry |
//! | nothing that can be read | unknown | an empty entry |
//! | an entry behind that, of a state machine whose files have all that is lost | | the entry |
//! | an entry behind that, of another | what must not be applied | an empty entry |
//! | behind the last entry, up to where files go | what they have | an empty entry |
//!
//! So every position stays what it was: files that are ahead of what is left fit to the log as before, and
//! nothing is applied to a state that lacks what came before.
//!
//! Invariants:
//! - no entry of a state machine is kept behind one of its own that is lost and that its files lack;
//! - terms never fall, and at a position that files are at the term is theirs;
//! - what was rewritten is a function of what can be read and of the files: it can be done again.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use shiioo_actors::command::Envelope;
use shiioo_actors::domain::ids::{GroupId, Position, RaftId, StateMachineId};
use shiioo_actors::ports::StoreError;
use tokio::sync::oneshot;

use super::handle::{Log, LogIdentity};
use super::record::{Body, Checkpoint, GroupState, LogEntry, LowWaterMark, Members};
use super::salvage::{DamagedLog, Salvaged, SalvagedGroup};
use super::segment;
use crate::disk::{Disk, create_dir_durably, store_error};
use crate::executor::Executor;

/// Entries that are written at a time.
const WRITE_ENTRIES: usize = 1024;

/// Positions that files of state machines are at, as they say themselves.
pub type Held = BTreeMap<StateMachineId, Position>;

/// What the log of a group becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairedGroup {
    /// What is purged, and counts as durable in files.
    pub(super) base: Option<Position>,
    /// Every entry behind it; `None` stands for an empty one.
    pub(super) entries: Vec<(Position, Option<Salvaged>)>,
    /// Entries that cannot be read, as far as their indexes tell. Files may have what was in them.
    pub unreadable: u64,
    /// Entries that can be read and must not be applied.
    pub dropped: u64,
}

/// What a repaired log is made of.
#[derive(Debug)]
pub struct Repaired<'a> {
    /// Whose log it is. It keeps its id.
    pub identity: LogIdentity,
    /// This node's id in Raft groups.
    pub raft_id: RaftId,
    /// The groups that it has.
    pub groups: &'a BTreeMap<GroupId, RepairedGroup>,
    /// Who has files, and up to where.
    pub files: Held,
}

impl RepairedGroup {
    /// Gives the last entry, or else the last one purged.
    pub fn last(&self) -> Option<Position> {
        self.entries.last().map(|(at, _)| *at).or(self.base)
    }

    pub(super) fn of(
        group: &SalvagedGroup,
        base: Option<Position>,
        held: &Held,
        files: &[Position],
    ) -> Self {
        let from = base.map_or(0, |base| base.index + 1);
        // Known positions tell the terms of those between.
        let mut terms: BTreeMap<u64, u64> = files.iter().map(|at| (at.index, at.term)).collect();
        terms.extend(group.entries.range(from..).map(|(index, entry)| (*index, entry.term)));
        let term_at = |index: u64| terms.range(index..).next().map_or(0, |(_, term)| *term);
        let first = group.entries.range(from..).next().map(|(index, _)| *index);
        let end = terms.last_key_value().map_or(from, |(index, _)| (index + 1).max(from));
        let mut repaired = Self { base, entries: Vec::new(), unreadable: 0, dropped: 0 };
        // Where nothing says up to where files have everything, the log begins with the first entry that
        // can be read: there may be millions of entries before it, which were purged long ago.
        let begin = if base.is_some() { from } else { first.unwrap_or(end) };
        // Index behind the last entry that is lost.
        let mut lost_to = None;
        if begin > from {
            repaired.unreadable = begin - from;
            repaired.base = Some(Position { term: term_at(begin - 1), index: begin - 1 });
            lost_to = Some(begin);
        }
        let has_lost = |part: StateMachineId, lost_to: u64| {
            held.get(&part).is_some_and(|held| held.index + 1 >= lost_to)
        };
        for index in begin..end {
            let entry = group.entries.get(&index);
            let position = Position { term: term_at(index), index };
            let may_stay = |entry: &&Salvaged| match (entry.part, lost_to) {
                (Some(part), Some(lost_to)) => has_lost(part, lost_to),
                _ => true,
            };
            let kept = entry.filter(may_stay).copied();
            match entry {
                Some(_) => repaired.dropped += u64::from(kept.is_none()),
                None => {
                    repaired.unreadable += 1;
                    lost_to = Some(index + 1);
                }
            }
            repaired.entries.push((position, kept));
        }
        repaired
    }
}

impl DamagedLog {
    /// Gives the position up to which the log says that files hold everything of a group.
    pub fn base(&self, group: GroupId) -> Option<Position> {
        self.groups.get(&group)?.base()
    }

    /// Decides what becomes of a group. Nothing up to `base` is needed any more, `held` says what each
    /// state machine has, and `files` where those of this group are.
    pub fn repaired(
        &self,
        group: GroupId,
        base: Option<Position>,
        held: &Held,
        files: &[Position],
    ) -> RepairedGroup {
        let nothing = SalvagedGroup::default();
        RepairedGroup::of(self.groups.get(&group).unwrap_or(&nothing), base, held, files)
    }

    /// Reads the commands that are kept of a group.
    ///
    /// # Errors
    /// When one cannot be read any more.
    pub fn commands(
        &self,
        repaired: &RepairedGroup,
    ) -> Result<Vec<(Position, Arc<Envelope>)>, StoreError> {
        let mut commands = Vec::new();
        for kept in repaired.entries.iter().filter_map(|(_, kept)| kept.as_ref()) {
            let LogEntry { position, body } = self.entry(kept)?;
            if let Body::Command(envelope) = body {
                commands.push((position, envelope));
            }
        }
        Ok(commands)
    }

    /// Writes the repaired log where there is none now, durably.
    ///
    /// # Errors
    /// When it cannot be written, or what it is made of cannot be read. What was written is no whole log.
    pub async fn write_repaired(
        &self,
        disk: Arc<dyn Disk>,
        executor: Executor,
        repaired: Repaired<'_>,
    ) -> Result<(), StoreError> {
        let failed = |error| store_error("write the log", error);
        let checkpoint = self.checkpoint(&repaired);
        let Repaired { identity, groups, .. } = repaired;
        let (begins, id) = (Arc::clone(&disk), identity.fresh);
        let begin = move || {
            create_dir_durably(&*begins, segment::LOG_DIR)?;
            segment::begin(&*begins, 1, 0, id, &checkpoint)
        };
        drop(executor.run(begin).await.map_err(failed)?);
        let identity = LogIdentity { expected: Some(id), ..identity };
        let opens = executor.clone();
        let log = executor.run(move || Log::open_as(disk, opens, &identity)).await?;
        // Who waits for this can make room and ask again.
        log.give_up_when_full();
        for (group, repaired) in groups {
            for entries in repaired.entries.chunks(WRITE_ENTRIES) {
                let entry = |(position, kept): &(Position, Option<Salvaged>)| match kept {
                    Some(kept) => self.entry(kept),
                    None => Ok(LogEntry { position: *position, body: Body::Blank }),
                };
                let entries = entries.iter().map(entry).collect::<Result<_, _>>()?;
                let (tell, told) = oneshot::channel();
                let done = Box::new(move |result| drop(tell.send(result)));
                log.append(*group, entries, done).await;
                let lost = |_| Err(io::Error::other("the log is closed"));
                told.await.unwrap_or_else(lost).map_err(failed)?;
            }
        }
        log.close().await.map_err(failed)
    }

    /// Makes the beginning of the log: what it says of groups beside their entries, and who has files.
    fn checkpoint(&self, repaired: &Repaired<'_>) -> Checkpoint {
        let Repaired { raft_id, groups, files, .. } = repaired;
        let alone = Members { voters: vec![vec![*raft_id]], nodes: vec![*raft_id] };
        let state = |known: GroupState, base: Option<Position>| GroupState {
            vote: known.vote,
            purged: base,
            low_water_mark: base.map(|position| {
                let members = known.low_water_mark.and_then(|mark| mark.members);
                let members = Some(members.unwrap_or_else(|| (position, alone.clone())));
                LowWaterMark { position, members }
            }),
        };
        let known = |group: &GroupId| {
            self.groups.get(group).map(|known| known.state.clone()).unwrap_or_default()
        };
        let with_base = groups.iter().map(|(group, it)| (*group, state(known(group), it.base)));
        let mut states: BTreeMap<GroupId, GroupState> = with_base.collect();
        // Of a group that this node has left there is its vote alone.
        for group in self.groups.keys() {
            states.entry(*group).or_insert_with(|| state(known(group), None));
        }
        Checkpoint { groups: states, files: files.clone(), left: self.left.clone() }
    }
}
