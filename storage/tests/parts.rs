//! A part, its files and its log together, over several lives of a directory: what does not belong
//! together is damage.

use std::sync::Arc;
use std::time::Duration;

use shiioo_actors::command::{Envelope, SetTenant, TenantCommand};
use shiioo_actors::domain::ids::{GroupId, RaftId, StateMachineId, TenantId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::domain::tenant::TenantRecord;
use shiioo_actors::ports::{
    ApplySink, CommittedEntry, Membership as _, Payload, Proposals as _, ProposeError, StoreError,
};
use shiioo_actors::replica::{ApplyQueue, ReplicaDeps, ReplicaRunner};
use shiioo_actors::state::tenant::TenantState;
use shiioo_actors::testing::{NoPeers, tenant_envelope, tenant_record};
use shiioo_storage::disk::{OpenMode, SimDisk};
use shiioo_storage::{Executor, FileStores, Groups, GroupsConfig, LogIdentity, StoresConfig};
use uuid::Uuid;

const GROUP: GroupId = GroupId(1);
const RAFT_ID: RaftId = RaftId(1);
const LOG: Uuid = Uuid::from_u128(5);
const TENANT: &str = "00000000-0000-0000-0000-000000000001";
const INDEX: &str = "tenants/00000000-0000-0000-0000-000000000001/index.redb";
const EVENTS: &str = "tenants/00000000-0000-0000-0000-000000000001/events.jsonl";

fn tenant() -> TenantId {
    TENANT.parse().unwrap()
}

/// The tenant's record at a version, or its end.
fn set(version: u64, name: Option<&str>) -> Envelope {
    let record = name.map(|name| TenantRecord { name: name.to_owned(), ..tenant_record() });
    tenant_envelope(tenant(), TenantCommand::Set(SetTenant { version, record }))
}

struct Sink(Arc<ApplyQueue>);

impl ApplySink for Sink {
    fn deliver(&self, _: GroupId, entry: CommittedEntry) {
        if matches!(entry.payload, Payload::Command(_)) {
            self.0.push(entry);
        }
    }
}

/// One life of a node with one tenant.
struct Life {
    groups: Arc<Groups>,
    runner: ReplicaRunner<TenantState>,
}

impl Life {
    async fn begin(disk: &SimDisk) -> Result<Self, StoreError> {
        let queue = Arc::new(ApplyQueue::default());
        let log = LogIdentity { expected: None, fresh: LOG, region: Region::default() };
        let election_timeout = Duration::from_millis(1000);
        let config = GroupsConfig { log, raft_id: RAFT_ID, election_timeout };
        let sink = Arc::new(Sink(Arc::clone(&queue)));
        let peers = Arc::new(NoPeers);
        let groups = Groups::start(config, disk.mount(), Executor::Inline, sink, peers).await?;
        groups.open_group(GROUP, vec![RAFT_ID]).await?;
        let mut leadership = groups.leadership(GROUP).unwrap();
        leadership.wait_for(|leadership| leadership.here).await.unwrap();
        // Everything that was committed is handed over.
        while groups.read_index(GROUP).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let log = groups.log_id();
        let region = Region::default();
        let stores = FileStores::open_with(
            disk.mount(),
            Executor::Inline,
            &region,
            StoresConfig { log: Some(log), ..StoresConfig::default() },
        );
        let deps = ReplicaDeps { log: groups.clone(), stores: stores.await? };
        match ReplicaRunner::start(deps, GROUP, StateMachineId::Tenant(tenant()), queue).await {
            Ok((runner, _)) => Ok(Self { groups, runner }),
            Err(error) => {
                groups.shutdown().await;
                Err(error)
            }
        }
    }

    async fn apply(&mut self, envelope: Envelope) -> Result<(), StoreError> {
        let groups = Arc::clone(&self.groups);
        let asked = tokio::spawn(async move {
            loop {
                match groups.propose(GROUP, envelope.clone()).await {
                    // A fresh leader refuses for a moment.
                    Err(ProposeError::NoLeader) => {
                        tokio::time::sleep(Duration::from_millis(10)).await
                    }
                    done => return done,
                }
            }
        });
        while !asked.is_finished() {
            self.runner.drain().await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        asked.await.unwrap().unwrap();
        self.runner.drain().await?;
        Ok(())
    }

    /// Makes everything durable, and the log remember it.
    async fn end(mut self) {
        self.runner.make_durable().await.unwrap();
        self.runner.drain().await.unwrap();
        self.groups.shutdown().await;
    }

    fn name(&self) -> Option<&str> {
        self.runner.machine.record().map(|record| record.name.as_str())
    }
}

fn copy(from: &SimDisk, to: &SimDisk, path: &str) {
    let file = from.mount().open(path, OpenMode::Existing).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    let file = to.mount().open(path, OpenMode::OpenOrCreate).unwrap();
    file.set_len(0).unwrap();
    file.write_at(0, &bytes).unwrap();
    file.sync_data().unwrap();
}

fn damage(result: Result<Life, StoreError>) -> String {
    match result {
        Err(StoreError::Damaged { what, .. }) => what,
        Err(other) => panic!("{other}"),
        Ok(life) => panic!("taken, with the tenant {:?}", life.name()),
    }
}

/// A directory in which the tenant was made, and ended well.
async fn with_tenant() -> SimDisk {
    let disk = SimDisk::new(1);
    let mut life = Life::begin(&disk).await.unwrap();
    life.apply(set(1, Some("one"))).await.unwrap();
    life.end().await;
    disk
}

#[tokio::test(start_paused = true)]
async fn files_that_are_gone_are_missed() {
    let disk = with_tenant().await;
    assert_eq!(Life::begin(&disk).await.unwrap().name(), Some("one"));
    disk.mount().remove_dir_all(&format!("tenants/{TENANT}")).unwrap();
    let what = damage(Life::begin(&disk).await);
    assert!(what.contains("missing"), "{what}");
    assert!(!disk.mount().exists(INDEX).unwrap(), "nothing was made anew");
}

#[tokio::test(start_paused = true)]
async fn files_from_before_are_not_taken() {
    let disk = with_tenant().await;
    let before = disk.fork();
    let mut life = Life::begin(&disk).await.unwrap();
    life.apply(set(2, Some("two"))).await.unwrap();
    life.end().await;
    copy(&before, &disk, INDEX);
    let what = damage(Life::begin(&disk).await);
    assert!(what.contains("older"), "{what}");
}

#[tokio::test(start_paused = true)]
async fn files_ahead_of_a_lone_nodes_log_are_not_taken() {
    let disk = with_tenant().await;
    let before = disk.fork();
    let mut life = Life::begin(&disk).await.unwrap();
    for version in 2..9 {
        life.apply(set(version, Some("later"))).await.unwrap();
    }
    life.end().await;
    copy(&disk, &before, INDEX);
    copy(&disk, &before, EVENTS);
    let what = damage(Life::begin(&before).await);
    assert!(what.contains("ahead of the log"), "{what}");
}

/// Two lives went on from one copy: the terms at the part's position differ.
#[tokio::test(start_paused = true)]
async fn files_of_another_history_are_not_gone_on_from() {
    let disk = with_tenant().await;
    let other = disk.fork();
    for (disk, lives) in [(&disk, 1), (&other, 3)] {
        for _ in 1..lives {
            // Each life leads in a term of its own.
            Life::begin(disk).await.unwrap().groups.shutdown().await;
        }
        let mut life = Life::begin(disk).await.unwrap();
        for version in 2..9 {
            life.apply(set(version, Some("forked"))).await.unwrap();
        }
        if lives == 1 {
            life.end().await;
        } else {
            // Its own files stay behind: the log knows no more of them than before the fork.
            life.groups.shutdown().await;
        }
    }
    copy(&disk, &other, INDEX);
    copy(&disk, &other, EVENTS);
    let gone_on = match Life::begin(&other).await {
        Ok(mut life) => life.apply(set(20, Some("after"))).await.map(|()| life),
        Err(error) => Err(error),
    };
    let what = damage(gone_on);
    assert!(what.contains("another history"), "{what}");
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_no_loss_wherever_it_is_interrupted() {
    let disk = with_tenant().await;
    let mut life = Life::begin(&disk).await.unwrap();
    life.apply(set(2, None)).await.unwrap();
    assert!(!disk.mount().exists(INDEX).unwrap());
    // Killed before the log's floor is past the deletion.
    disk.cut_power();
    drop(life);
    let life = Life::begin(&disk).await.unwrap();
    assert_eq!(life.name(), None);
    life.end().await;
    assert_eq!(Life::begin(&disk).await.unwrap().name(), None);
}
