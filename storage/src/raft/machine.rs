//! The state machine of a group, as openraft sees it: it hands every entry over and goes on.
//!
//! 'Applied' means 'handed over' here, so a part that stalls does not stop its group. What is
//! durable is told by the floor, and the floor is what a restart begins from and what a snapshot
//! claims.
//!
//! Invariants:
//! - Every entry above the floor is handed over once in the life of the process, in order.
//! - An entry at or below the floor that the log remembers is never handed over again.
//! - A snapshot of another replica raises the floor only when its contents are durable here.
//! - A part is noted as dirty before it is given the entry, so that its report cannot come first.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine, Snapshot};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use shiioo_actors::command::{Command, Envelope, Outcome};
use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use shiioo_actors::ports::{ApplySink, CommittedEntry, Dump, Payload, Reply, StoreError};
use tokio::sync::{Notify, watch};

use super::convert::stored_members;
use super::floor::Floors;
use super::types::{
    Entry, LogId, StoredMembership, TypeConfig, io_error, log_id, members, position,
    stored_membership,
};
use crate::log::Log;
use crate::log::record::Floor;

/// Entries by which the floor rises before a snapshot lets the log be cut.
const SNAPSHOT_ENTRIES: u64 = 16_384;

/// Wait before a snapshot that found no room is made durable again.
const ROOM_RETRY: Duration = Duration::from_millis(250);

/// A snapshot, as openraft passes it on. One that is made here names a floor: what it claims is in
/// the parts already, and is dumped only when it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotHandle {
    /// Whose.
    pub group: GroupId,
    /// Up to where; `None` for that of an empty group.
    pub upto: Option<Position>,
    /// The contents, when another replica sent them.
    pub dump: Option<Dump>,
}

type Meta = SnapshotMetaOf<TypeConfig>;
type HandleSnapshot = SnapshotOf<TypeConfig, SnapshotHandle>;

/// The floor of a group and where it is remembered.
#[derive(Debug)]
pub(crate) struct FloorKeeper {
    group: GroupId,
    log: Arc<Log>,
    floors: Mutex<Floors>,
    /// Index of the floor when a snapshot was last due.
    snapshot_at: AtomicU64,
    snapshot_due: Notify,
    /// Index below which everything has been handed over.
    next: watch::Sender<u64>,
    /// Whether the part takes a snapshot over at the moment.
    is_installing: AtomicBool,
}

impl FloorKeeper {
    pub fn new(group: GroupId, log: Arc<Log>) -> Self {
        let floor = log.state(group).floor;
        let next = floor.as_ref().map_or(0, |floor| floor.position.index.saturating_add(1));
        Self {
            next: watch::Sender::new(next),
            group,
            log,
            snapshot_at: AtomicU64::new(floor.as_ref().map_or(0, |floor| floor.position.index)),
            floors: Mutex::new(Floors::restore(floor)),
            snapshot_due: Notify::new(),
            is_installing: AtomicBool::new(false),
        }
    }

    async fn while_installing<T>(&self, installs: impl Future<Output = T>) -> T {
        self.is_installing.store(true, Ordering::Release);
        let installed = installs.await;
        self.is_installing.store(false, Ordering::Release);
        installed
    }

    /// Whether a snapshot is being taken over: another would only wait behind it, in memory.
    pub fn is_installing(&self) -> bool {
        self.is_installing.load(Ordering::Acquire)
    }

    /// Notes that a part is durable up to a position.
    pub fn durable(&self, part: StateMachineId, upto: Position) {
        let mut floors = self.floors();
        let raised = floors.durable(part, upto);
        self.remember(raised);
    }

    /// Bytes of the log that are kept on account of a part alone.
    pub fn kept_for(&self, part: StateMachineId) -> u64 {
        let Some(held) = self.floors().held_by(part) else { return 0 };
        self.log.bytes_between(self.group, held.start, held.end)
    }

    /// The last entry handed over.
    pub fn handed(&self) -> Option<Position> {
        self.floors().handed()
    }

    /// Waits until everything up to an index has been handed over.
    pub async fn handed_at_least(&self, index: u64) {
        // The sender is here: waiting cannot fail.
        let _ = self.next.subscribe().wait_for(|next| *next > index).await;
    }

    fn tell_handed(&self, position: Position) {
        self.next.send_if_modified(|next| {
            let is_more = *next <= position.index;
            *next = (*next).max(position.index.saturating_add(1));
            is_more
        });
    }

    /// Takes over a snapshot whose contents are durable.
    fn install(&self, meta: &Meta, dumped: Option<Position>) {
        let Some(upto) = meta.last_log_id.as_ref().map(position) else { return };
        {
            let mut floors = self.floors();
            let raised = floors.install(upto, stored_members(&meta.last_membership), dumped);
            if raised.is_some() {
                self.snapshot_at.fetch_max(upto.index, Ordering::Relaxed);
            }
            self.remember(raised);
        }
        self.tell_handed(upto);
    }

    /// Waits until the floor has risen so far that a snapshot should be made.
    pub async fn snapshot_due(&self) {
        self.snapshot_due.notified().await;
    }

    fn hand_over(&self, position: Position, payload: &Body) {
        let mut floors = self.floors();
        if let EntryPayload::Membership(membership) = payload {
            floors.add_membership(position, members(membership));
        }
        let part = match payload {
            EntryPayload::Normal(envelope) => Some(part_of(envelope)),
            EntryPayload::Blank | EntryPayload::Membership(_) => None,
        };
        let raised = floors.hand_over(position, part);
        self.remember(raised);
    }

    /// Called with the floors locked, so that a lower floor never comes after a higher one.
    fn remember(&self, raised: Option<Floor>) {
        let Some(floor) = raised else { return };
        let index = floor.position.index;
        self.log.set_floor(self.group, floor);
        if index >= self.snapshot_at.load(Ordering::Relaxed).saturating_add(SNAPSHOT_ENTRIES) {
            self.snapshot_at.store(index, Ordering::Relaxed);
            self.snapshot_due.notify_one();
        }
    }

    /// The floor as it is known, durable or not.
    pub fn floor(&self) -> Option<Floor> {
        self.floors().floor()
    }

    fn floors(&self) -> MutexGuard<'_, Floors> {
        self.floors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Body = EntryPayload<Arc<Envelope>, u64, openraft::EmptyNode>;

/// The part that a command is for.
pub(crate) fn part_of(envelope: &Envelope) -> StateMachineId {
    match &envelope.command {
        Command::System(_) => StateMachineId::System,
        Command::Tenant { tenant, .. } => StateMachineId::Tenant(*tenant),
    }
}

/// See the module.
#[derive(Clone)]
pub(crate) struct GroupMachine {
    group: GroupId,
    keeper: Arc<FloorKeeper>,
    sink: Arc<dyn ApplySink>,
    snapshot: Arc<Mutex<Option<Meta>>>,
}

impl GroupMachine {
    pub fn new(group: GroupId, keeper: Arc<FloorKeeper>, sink: Arc<dyn ApplySink>) -> Self {
        Self { group, keeper, sink, snapshot: Arc::default() }
    }

    pub fn keeper(&self) -> Arc<FloorKeeper> {
        Arc::clone(&self.keeper)
    }

    fn at_floor(&self) -> (Option<LogId>, StoredMembership) {
        let floor = self.keeper.floor();
        let membership = stored_membership(floor.as_ref().and_then(|floor| floor.members.as_ref()));
        (floor.map(|floor| log_id(floor.position)), membership)
    }

    fn snapshot(&self) -> MutexGuard<'_, Option<Meta>> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_handle(&self, meta: Meta) -> HandleSnapshot {
        let upto = meta.last_log_id.as_ref().map(position);
        Snapshot { meta, snapshot: SnapshotHandle { group: self.group, upto, dump: None } }
    }

    /// Remembers a snapshot, unless a later one came in between.
    fn keep(&self, meta: &Meta) {
        let mut kept = self.snapshot();
        if kept.as_ref().is_none_or(|kept| kept.last_log_id <= meta.last_log_id) {
            *kept = Some(meta.clone());
        }
    }

    /// Has the part take a dump over. Without room it waits: an error here would end the group, and
    /// with it the node, for something that passes by itself.
    async fn install(&self, dump: Dump) -> Result<(), io::Error> {
        let mut installed = self.sink.install(self.group, dump).await;
        while matches!(installed, Err(StoreError::Full)) && !self.keeper.log.is_closing() {
            tokio::time::sleep(ROOM_RETRY).await;
            installed = self.sink.settle(self.group).await;
        }
        installed.map_err(io_error)
    }

    fn hand_over(&self, (entry, responder): EntryResponder<TypeConfig>) {
        let position = position(&entry.log_id);
        self.keeper.hand_over(position, &entry.payload);
        self.pass_on(position, entry, responder);
        // Told last: who waits for it may look for the entry in the part's queue.
        self.keeper.tell_handed(position);
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

impl RaftStateMachine<TypeConfig> for GroupMachine {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.at_floor())
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.try_next().await? {
            self.hand_over(entry);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &Meta,
        handle: SnapshotHandle,
    ) -> Result<(), io::Error> {
        let mut dumped = None;
        if let Some(dump) = handle.dump {
            dumped = dump.position;
            self.keeper.while_installing(self.install(dump)).await?;
        }
        self.keeper.install(meta, dumped);
        self.keep(meta);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<HandleSnapshot>, io::Error> {
        let meta = self.snapshot().clone();
        Ok(meta.map(|meta| self.with_handle(meta)))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for GroupMachine {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(&mut self) -> Result<HandleSnapshot, io::Error> {
        let (last_log_id, last_membership) = self.at_floor();
        let meta = Meta { last_log_id, last_membership };
        self.keep(&meta);
        Ok(self.with_handle(meta))
    }
}
