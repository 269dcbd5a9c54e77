//! Power is cut, or the program killed, in the middle of every single disk operation of a workload
//! over the whole crate: several groups in one log, their floors, and the parts' files. After each
//! end everything is opened again and must be what was acknowledged, give or take the one operation
//! under way; and what was found then, another power cut must not take back.

use std::collections::BTreeMap;
use std::sync::Arc;

use shiioo_actors::command::{Command, Envelope, TenantCommand};
use shiioo_actors::domain::ids::{Epoch, GroupId, Position, RunId, StateMachineId, TenantId};
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::{
    ApplySink, BoxFuture, CommittedEntry, Dump, Row, Store, StoreError, Stores,
};

use openraft::storage::RaftStateMachine;

use crate::disk::SimDisk;
use crate::executor::Executor;
use crate::log::record::{Body, LogEntry, Vote};
use crate::log::tests::now;
use crate::log::{Log, Op};
use crate::parts::FileStores;
use crate::raft::testing::{FloorKeeper, GroupMachine, raft_entry};

/// Segments are so short here that the workload begins and removes many.
const SEGMENT_BYTES: u64 = 1500;

const STEPS: u64 = 36;

/// What survives a cut is tried so many ways.
const SEEDS: u64 = 2;

const GROUPS: u32 = 3;

fn tenant(number: u32) -> TenantId {
    format!("00000000-0000-0000-0000-00000000000{number}").parse().unwrap()
}

fn entry(tenant: TenantId, term: u64, index: u64) -> LogEntry {
    let run: RunId = format!("10000000-0000-0000-0000-{index:012}").parse().unwrap();
    let command = Command::Tenant {
        tenant,
        epoch: Epoch(1),
        command: TenantCommand::CancelRun { run, reason: Some(format!("term {term}")) },
    };
    let at = Timestamp(0);
    let envelope = Envelope { version: 1, at, term: None, cause: None, rpc_id: None, command };
    LogEntry { position: Position { term, index }, body: Body::Command(Arc::new(envelope)) }
}

/// A group's part of the log.
#[derive(Debug, Default, Clone, PartialEq)]
struct GroupModel {
    vote: Option<Vote>,
    purged: Option<Position>,
    entries: BTreeMap<u64, LogEntry>,
}

impl GroupModel {
    fn next(&self) -> u64 {
        let last = self.entries.last_key_value().map(|(index, _)| *index);
        last.or(self.purged.map(|purged| purged.index)).map_or(0, |last| last + 1)
    }

    /// What it is after an operation of which, if it appends, only `count` entries came through.
    fn after(&self, op: &Op, count: usize) -> Self {
        let mut next = self.clone();
        match op {
            Op::Vote(vote) => next.vote = Some(*vote),
            Op::Append(entries) => next.entries.extend(
                entries.iter().take(count).map(|entry| (entry.position.index, entry.clone())),
            ),
            Op::Truncate(from) => drop(next.entries.split_off(from)),
            Op::Purge(upto) => {
                next.entries = next.entries.split_off(&(upto.index + 1));
                next.purged = Some(*upto);
            }
            Op::Forget(_) | Op::Mark => {}
        }
        next
    }

    fn of(log: &Log, group: GroupId) -> Self {
        let state = log.state(group);
        let entries = crate::log::tests::read(log, group);
        let entries = entries.into_iter().map(|entry| (entry.position.index, entry)).collect();
        Self { vote: state.vote, purged: state.purged, entries }
    }
}

/// One state of a part's files.
#[derive(Debug, Default, Clone, PartialEq)]
struct PartState {
    position: Option<Position>,
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    events: Vec<u8>,
}

impl PartState {
    fn of(store: &dyn Store) -> Result<Self, StoreError> {
        let len = usize::try_from(store.events_len()).unwrap();
        Ok(Self {
            position: store.position(),
            rows: store.scan(b"", b"\xff", usize::MAX, false)?,
            events: store.read_events(0, len)?,
        })
    }
}

/// Every state that a part's files were in, and the last one that was acknowledged as durable.
#[derive(Debug, Clone)]
struct PartModel {
    states: Vec<PartState>,
    durable: usize,
}

/// What a life of the program did, as it knew.
#[derive(Debug, Default)]
struct Oracle {
    groups: BTreeMap<GroupId, GroupModel>,
    under_way: Option<(GroupId, Op)>,
    parts: BTreeMap<TenantId, PartModel>,
    /// The tenant is being removed, or has been.
    removed: Option<(TenantId, bool)>,
    /// Indexes of the floor that were known when a batch was acknowledged, and since.
    floor_acknowledged: Option<u64>,
    floor_known: Option<u64>,
}

struct Nothing;

impl ApplySink for Nothing {
    fn deliver(&self, _group: GroupId, _entry: CommittedEntry) {}

    fn dump(&self, _group: GroupId) -> BoxFuture<'_, Result<Dump, StoreError>> {
        Box::pin(async { Ok(Dump { position: None, rows: Vec::new() }) })
    }

    fn install(&self, _group: GroupId, _dump: Dump) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn settle(&self, _group: GroupId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The group whose entries are applied to parts: those of the first two tenants.
const APPLIED: GroupId = GroupId(1);

/// One life of the program, until it ends or the power goes.
struct Life<'a> {
    oracle: &'a mut Oracle,
    log: Arc<Log>,
    stores: BTreeMap<TenantId, Box<dyn Store>>,
    keeper: Arc<FloorKeeper>,
    machine: GroupMachine,
}

impl Life<'_> {
    async fn write(&mut self, group: GroupId, op: Op) -> Result<(), StoreError> {
        let model = self.oracle.groups.entry(group).or_default().clone();
        let result = match &op {
            Op::Append(entries) => {
                let (tell, told) = tokio::sync::oneshot::channel();
                let done = Box::new(move |result| drop(tell.send(result)));
                self.log.append(group, entries.clone(), done).await;
                told.await.unwrap()
            }
            Op::Vote(vote) => self.log.write(group, vec![Op::Vote(*vote)]).await,
            Op::Truncate(from) => self.log.write(group, vec![Op::Truncate(*from)]).await,
            Op::Purge(upto) => self.log.write(group, vec![Op::Purge(*upto)]).await,
            Op::Forget(_) | Op::Mark => unreachable!("not in this workload"),
        };
        if let Err(error) = result {
            self.oracle.under_way = Some((group, op));
            return Err(crate::disk::store_error("log", error));
        }
        self.oracle.groups.insert(group, model.after(&op, usize::MAX));
        self.oracle.floor_acknowledged = self.oracle.floor_known;
        Ok(())
    }

    async fn apply(&mut self, entry: LogEntry, tenant: TenantId) -> Result<(), StoreError> {
        let position = entry.position;
        let handed = futures_util::stream::iter([Ok((raft_entry(entry), None))]);
        self.machine.apply(handed).await.unwrap();
        let store = self.stores.get_mut(&tenant).unwrap();
        store.append_events(format!("applied {position}\n").as_bytes())?;
        store.commit(vec![row(position)], position)?;
        self.oracle.parts.get_mut(&tenant).unwrap().states.push(PartState::of(store.as_ref())?);
        Ok(())
    }

    async fn make_durable(&mut self, tenant: TenantId) -> Result<(), StoreError> {
        let store = self.stores.get_mut(&tenant).unwrap();
        let Some(position) = store.position() else { return Ok(()) };
        store.make_durable(vec![row(position)], position).await?;
        let part = self.oracle.parts.get_mut(&tenant).unwrap();
        part.durable = part.states.len() - 1;
        self.keeper.durable(StateMachineId::Tenant(tenant), position);
        self.oracle.floor_known = self.keeper.floor().map(|floor| floor.position.index);
        Ok(())
    }
}

fn row(position: Position) -> Row {
    (format!("{:06}", position.index).into_bytes(), Some(position.to_string().into_bytes()))
}

async fn open_store(
    oracle: &mut Oracle,
    stores: &FileStores,
    tenant: TenantId,
) -> Result<Box<dyn Store>, StoreError> {
    let empty = PartModel { states: vec![PartState::default()], durable: 0 };
    oracle.parts.entry(tenant).or_insert(empty);
    stores.open(StateMachineId::Tenant(tenant)).await
}

async fn live(disk: &SimDisk, oracle: &mut Oracle) -> Result<(), StoreError> {
    let files = FileStores::open(disk.mount(), Executor::Inline, "default").await?;
    let log = Log::open_sized(disk.mount(), Executor::Inline, SEGMENT_BYTES)?;
    let keeper = Arc::new(FloorKeeper::new(APPLIED, Arc::clone(&log)));
    let sink = Arc::new(Nothing);
    let machine = GroupMachine::new(APPLIED, Arc::clone(&keeper), sink);
    let mut stores = BTreeMap::new();
    for tenant in [tenant(1), tenant(2)] {
        stores.insert(tenant, open_store(oracle, &files, tenant).await?);
    }
    let mut life = Life { oracle, log, stores, keeper, machine };
    for step in 0..STEPS {
        let term = 1 + step / 4;
        let group = GroupId(u32::try_from(step).unwrap() % GROUPS);
        let tenant_of = |index: u64| tenant(1 + u32::try_from(index % 2).unwrap());
        let first = life.oracle.groups.entry(group).or_default().next();
        let entries: Vec<_> = (first..first + 1 + step % 3)
            .map(|index| entry(tenant_of(index), term, index))
            .collect();
        life.write(group, Op::Append(entries.clone())).await?;
        if group == APPLIED {
            for entry in entries {
                let tenant = tenant_of(entry.position.index);
                life.apply(entry, tenant).await?;
            }
        }
        if step % 4 == 0 {
            let vote = Vote { term: term + 1, node: 1, committed: step % 8 == 0 };
            life.write(group, Op::Vote(vote)).await?;
        }
        if step % 7 == 3 && group != APPLIED {
            let from = life.oracle.groups[&group].next() - 1;
            life.write(group, Op::Truncate(from)).await?;
        }
        if step % 5 == 2 {
            life.make_durable(tenant(1 + u32::try_from(step % 2).unwrap())).await?;
        }
        if step % 6 == 5 {
            // The applied group is cut at its floor, the others where they are.
            let upto = match group {
                APPLIED => life.keeper.floor().map(|floor| floor.position),
                _ => life.oracle.groups[&group].entries.last_key_value().map(|(_, e)| e.position),
            };
            let is_new = upto > life.oracle.groups[&group].purged;
            if let Some(upto) = upto.filter(|_| is_new) {
                life.write(group, Op::Purge(upto)).await?;
            }
        }
        if step == STEPS / 2 {
            let mut store = open_store(life.oracle, &files, tenant(3)).await?;
            let position = Position { term, index: 7 };
            store.append_events(b"soon gone\n")?;
            store.commit(vec![row(position)], position)?;
            let part = life.oracle.parts.get_mut(&tenant(3)).unwrap();
            part.states.push(PartState::of(store.as_ref())?);
            drop(store);
            // Closing makes what was committed durable.
            life.oracle.removed = Some((tenant(3), false));
            files.remove(tenant(3)).await?;
            life.oracle.removed = Some((tenant(3), true));
        }
    }
    // Closing and opening again in the same life loses nothing.
    let store = life.stores.remove(&tenant(1)).unwrap();
    drop(store);
    files.open(StateMachineId::Tenant(tenant(1))).await?;
    Ok(())
}

/// What is found when everything is opened.
#[derive(Debug, PartialEq)]
struct Seen {
    groups: Vec<GroupModel>,
    floor: Option<u64>,
    parts: BTreeMap<TenantId, PartState>,
}

/// What is open. Dropped only when it can do no more: closing it well would make things durable.
type Open = (Arc<Log>, Vec<Box<dyn Store>>);

/// Opens everything and compares.
fn check(disk: &SimDisk, oracle: &Oracle, story: &str) -> (Seen, Open) {
    let mut open = Vec::new();
    let mut seen = Seen { groups: Vec::new(), floor: None, parts: BTreeMap::new() };
    let log = Log::open(disk.mount(), Executor::Inline).unwrap_or_else(|e| panic!("{story}: {e}"));
    for group in (0..GROUPS).map(GroupId) {
        let known = oracle.groups.get(&group).cloned().unwrap_or_default();
        let mut allowed = vec![known.clone()];
        if let Some((under_way, op)) = &oracle.under_way
            && *under_way == group
        {
            let count = if let Op::Append(entries) = op { entries.len() } else { 1 };
            allowed.extend((1..=count).map(|count| known.after(op, count)));
        }
        let found = GroupModel::of(&log, group);
        assert!(
            allowed.contains(&found),
            "{story}, group {group}: {found:#?}\nnot in {allowed:#?}"
        );
        seen.groups.push(found);
    }

    let floor = log.state(APPLIED).floor.map(|floor| floor.position.index);
    seen.floor = floor;
    assert!(floor >= oracle.floor_acknowledged, "{story}: the floor went back to {floor:?}");
    assert!(floor <= oracle.floor_known, "{story}: the floor {floor:?} was never known");
    let purged = log.state(APPLIED).purged.map(|purged| purged.index);
    assert!(purged <= floor, "{story}: purged {purged:?} above the floor {floor:?}");

    let files = now(FileStores::open(disk.mount(), Executor::Inline, "default")).unwrap();
    for (&tenant, part) in &oracle.parts {
        let is_there = files.exists(StateMachineId::Tenant(tenant)).unwrap();
        if let Some((_, is_gone)) = oracle.removed.filter(|(removed, _)| *removed == tenant) {
            assert!(!(is_gone && is_there), "{story}: {tenant} came back");
            if !is_there {
                continue;
            }
        }
        if !is_there {
            assert_eq!(part.durable, 0, "{story}: the files of {tenant} are gone");
            continue;
        }
        let store = now(files.open(StateMachineId::Tenant(tenant)));
        let store = store.unwrap_or_else(|error| panic!("{story}, {tenant}: {error}"));
        let found = PartState::of(store.as_ref()).unwrap();
        // The durable commit of a state may write it a second time: one more is allowed.
        assert!(
            part.states[part.durable..].contains(&found),
            "{story}, {tenant}: {found:#?}\nnot in {:#?}",
            &part.states[part.durable..]
        );
        if tenant != self::tenant(3) {
            let own = |index: u64| index % 2 + 1 == u64::from(tenant == self::tenant(2)) + 1;
            let missing = (0..=floor.unwrap_or(0)).filter(|_| floor.is_some()).rfind(|i| own(*i));
            let position = found.position.map(|position| position.index);
            assert!(position >= missing, "{story}, {tenant}: at {position:?}, floor {floor:?}");
        }
        seen.parts.insert(tenant, found);
        open.push(store);
    }
    (seen, (log, open))
}

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    PowerCut,
    Kill,
}

fn end_and_check(seed: u64, end: End, after: u64) -> bool {
    let disk = SimDisk::new(seed);
    match end {
        End::PowerCut => disk.cut_power_after(after),
        End::Kill => disk.kill_after(after),
    }
    let mut oracle = Oracle::default();
    let result = now(live(&disk, &mut oracle));
    let has_ended = disk.take_ended();
    let story = format!("seed {seed}, {end:?} in operation {after}");
    assert!(has_ended || result.is_ok(), "{story}: {result:?}");
    if !has_ended {
        disk.cut_power();
    }
    let (seen, open) = check(&disk, &oracle, &story);
    // What was found once has been acted upon: no power cut may take it back.
    disk.cut_power();
    drop(open);
    let story = format!("{story}, and a power cut");
    let (again, _open) = check(&disk, &oracle, &story);
    assert_eq!(again, seen, "{story}");
    has_ended
}

#[test]
fn nothing_acknowledged_is_lost_wherever_a_life_ends() {
    let disk = SimDisk::new(0);
    let mut oracle = Oracle::default();
    now(live(&disk, &mut oracle)).unwrap();
    let ops = disk.ops();
    assert!(ops > 200, "the workload has only {ops} operations");
    for (seed, end) in (0..SEEDS).map(|seed| (seed, End::PowerCut)).chain([(0, End::Kill)]) {
        for after in 0..ops {
            assert!(end_and_check(seed, end, after), "operation {after} of {ops} never came");
        }
        assert!(!end_and_check(seed, end, ops), "there are more than {ops} operations");
    }
}

/// The test above must be able to fail: on a disk that ignores every sync it does.
#[test]
fn a_program_that_does_not_sync_is_caught() {
    let caught = (0..20).any(|seed| {
        let disk = SimDisk::new(seed);
        disk.ignore_syncs(true);
        let mut oracle = Oracle::default();
        now(live(&disk, &mut oracle)).unwrap();
        disk.cut_power();
        let check = std::panic::AssertUnwindSafe(|| drop(check(&disk, &oracle, "no syncs")));
        std::panic::catch_unwind(check).is_err()
    });
    assert!(caught);
}
