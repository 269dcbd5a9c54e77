//! The workload: one life of the program, until it ends or the power goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use shiioo_actors::domain::ids::{GroupId, Position, RaftId, StateMachineId, TenantId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::{ApplySink, CommittedEntry, Row, Store, StoreError, Stores};
use shiioo_actors::testing::{tenant, text_envelope};

use super::model::{FileModel, FileState, Oracle};
use crate::disk::{SimDisk, store_error};
use crate::executor::Executor;
use crate::index::FileStores;
use crate::log::record::{Body, LogEntry, Vote};
use crate::log::tests::begin_append;
use crate::log::{Log, Op};
use crate::raft::testing::{GroupProgress, GroupStateMachine, raft_entry};

/// Segments are so short here that the workload begins and removes many.
const SEGMENT_BYTES: u64 = 1500;

const STEPS: u64 = 36;

pub const GROUPS: u32 = 3;

fn entry(tenant: TenantId, term: u64, index: u64) -> LogEntry {
    let envelope = text_envelope(tenant, format!("entry {index} of term {term}"));
    LogEntry { position: Position { term, index }, body: Body::Command(Arc::new(envelope)) }
}

/// A sink that takes everything and keeps nothing: the workload applies entries itself.
struct Nothing;

impl ApplySink for Nothing {
    fn deliver(&self, _group: GroupId, _entry: CommittedEntry) {}
}

/// The group whose entries are applied, to the files of the first two tenants.
pub const APPLIED: GroupId = GroupId(1);

/// One life of the program, until it ends or the power goes.
struct Life<'a> {
    oracle: &'a mut Oracle,
    log: Arc<Log>,
    stores: BTreeMap<TenantId, Box<dyn Store>>,
    /// Rows that are not written yet, with the positions that they complete.
    rows: BTreeMap<TenantId, Vec<(Row, Position)>>,
    progress: Arc<GroupProgress>,
    machine: GroupStateMachine,
}

impl Life<'_> {
    async fn write(&mut self, group: GroupId, op: Op) -> Result<(), StoreError> {
        let model = self.oracle.groups.entry(group).or_default().clone();
        let result = match &op {
            Op::Append(entries) => {
                begin_append(&self.log, group, entries.clone()).await.await.unwrap()
            }
            Op::Vote(vote) => self.log.write(group, vec![Op::Vote(*vote)]).await,
            Op::Truncate(from) => self.log.write(group, vec![Op::Truncate(*from)]).await,
            Op::Purge(upto) => self.log.write(group, vec![Op::Purge(*upto)]).await,
            Op::ForgetFiles(_) | Op::Leave(_) | Op::Close => unreachable!("not in this workload"),
        };
        if let Err(error) = result {
            self.oracle.under_way = Some((group, op));
            return Err(store_error("write the log", error));
        }
        self.oracle.groups.insert(group, model.after(&op, usize::MAX));
        self.oracle.mark_acknowledged = self.oracle.mark_known;
        Ok(())
    }

    async fn apply(&mut self, entry: LogEntry, tenant: TenantId) -> Result<(), StoreError> {
        let position = entry.position;
        let committed = futures_util::stream::iter([Ok((raft_entry(entry), None))]);
        self.machine.apply(committed).await.unwrap();
        let store = self.stores.get_mut(&tenant).unwrap();
        store.append_events(format!("applied {position}\n").as_bytes())?;
        self.rows.entry(tenant).or_default().push((row(position), position));
        Ok(())
    }

    async fn make_durable(&mut self, tenant: TenantId) -> Result<(), StoreError> {
        let rows = std::mem::take(self.rows.entry(tenant).or_default());
        let Some((_, position)) = rows.last().cloned() else { return Ok(()) };
        let rows = rows.into_iter().map(|(row, _)| row).collect();
        let store = self.stores.get_mut(&tenant).unwrap();
        make_durable(self.oracle, store.as_mut(), tenant, rows, position).await?;
        self.progress.durable(StateMachineId::Tenant(tenant), position);
        self.oracle.mark_known = self.progress.low_water_mark().map(|mark| mark.position.index);
        Ok(())
    }
}

fn row(position: Position) -> Row {
    (format!("{:06}", position.index).into_bytes(), Some(position.to_string().into_bytes()))
}

/// Makes a state durable. It may be on disk from the moment this begins, and must be when it
/// returns.
async fn make_durable(
    oracle: &mut Oracle,
    store: &mut dyn Store,
    tenant: TenantId,
    rows: Vec<Row>,
    position: Position,
) -> Result<(), StoreError> {
    let mut state = FileState::of(store)?;
    state.position = Some(position);
    state.rows.extend(rows.iter().map(|(key, value)| (key.clone(), value.clone().unwrap())));
    let files = oracle.files.get_mut(&tenant).unwrap();
    files.states.push(state);
    store.make_durable(rows, position).await?;
    files.durable = files.states.len() - 1;
    Ok(())
}

async fn open_store(
    oracle: &mut Oracle,
    stores: &FileStores,
    tenant: TenantId,
) -> Result<Box<dyn Store>, StoreError> {
    let empty = FileModel { states: vec![FileState::default()], durable: 0 };
    oracle.files.entry(tenant).or_insert(empty);
    stores.open(StateMachineId::Tenant(tenant)).await
}

pub async fn live(disk: &SimDisk, oracle: &mut Oracle) -> Result<(), StoreError> {
    let files = FileStores::open(disk.mount(), Executor::Inline, &Region::default()).await?;
    let log = Log::open_sized(disk.mount(), Executor::Inline, SEGMENT_BYTES)?;
    let progress = Arc::new(GroupProgress::new(APPLIED, Arc::clone(&log)));
    let sink = Arc::new(Nothing);
    let machine = GroupStateMachine::new(APPLIED, Arc::clone(&progress), sink);
    let mut stores = BTreeMap::new();
    for tenant in [tenant(1), tenant(2)] {
        stores.insert(tenant, open_store(oracle, &files, tenant).await?);
    }
    let rows = BTreeMap::new();
    let mut life = Life { oracle, log, stores, rows, progress, machine };
    for step in 0..STEPS {
        let term = 1 + step / 4;
        let group = GroupId(u32::try_from(step).unwrap() % GROUPS);
        let tenant_of = |index: u64| tenant(1 + u128::from(index % 2));
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
            let vote = Vote { term: term + 1, node: RaftId(1), committed: step % 8 == 0 };
            life.write(group, Op::Vote(vote)).await?;
        }
        if step % 7 == 3 && group != APPLIED {
            let from = life.oracle.groups[&group].next() - 1;
            life.write(group, Op::Truncate(from)).await?;
        }
        if step % 5 == 2 {
            life.make_durable(tenant(1 + u128::from(step % 2))).await?;
        }
        if step % 6 == 5 {
            // The applied group is cut at its mark, the others where they are.
            let upto = match group {
                APPLIED => life.progress.low_water_mark().map(|mark| mark.position),
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
            make_durable(life.oracle, store.as_mut(), tenant(3), vec![row(position)], position)
                .await?;
            drop(store);
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
