//! State machines that are sent from one replica to another, over real files: what arrives, how much of it is in memory
//! at once, and what becomes of the one that is sent meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use proptest::prelude::*;
use shiioo_actors::command::{CancelRun, Command, Envelope, Outcome, TenantCommand};
use shiioo_actors::domain::ids::{Epoch, GroupId, Position, StateMachineId, TenantId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::{
    CommittedEntry, Dump, DumpPart, Held, Payload, Row, Staged, StoreError, Stores,
};
use shiioo_actors::replica::{ApplyQueue, ReplicaDeps, ReplicaRequest, ReplicaRunner};
use shiioo_actors::state::{RowBuffer, StateMachine};
use shiioo_actors::testing::AnyLog;
use shiioo_storage::disk::SimDisk;
use shiioo_storage::{Executor, FileStores};
use tokio::sync::oneshot;

const TENANT: &str = "00000000-0000-0000-0000-000000000001";
const GROUP: GroupId = GroupId(1);

/// Bytes that a part is to have, about.
const PART_BYTES: usize = 1 << 20;

fn tenant() -> StateMachineId {
    StateMachineId::Tenant(TENANT.parse::<TenantId>().unwrap())
}

/// Does what it is told, and keeps nothing but what is to be written. A text of another kind deletes all.
#[derive(Default)]
struct Writes {
    rows: Vec<Row>,
    events: Vec<u8>,
    is_gone: bool,
}

/// What a state machine is told.
#[derive(Debug, Clone, PartialEq)]
enum Write {
    /// A row of a key, with a value of so many bytes.
    Row(u16, usize),
    Delete(u16),
    /// An event of so many bytes and its end.
    Event(usize),
    /// Everything goes.
    End,
}

impl Write {
    fn text(&self) -> String {
        match self {
            Self::Row(key, len) => format!("row {key} {len}"),
            Self::Delete(key) => format!("delete {key}"),
            Self::Event(len) => format!("event {len}"),
            Self::End => "end".to_owned(),
        }
    }
}

fn key(number: &str) -> Vec<u8> {
    number.parse::<u16>().unwrap().to_be_bytes().to_vec()
}

impl StateMachine for Writes {
    type Effect = ();

    fn load(_: &RowBuffer) -> Result<Self, StoreError> {
        Ok(Self::default())
    }

    fn apply(&mut self, position: Position, envelope: &Envelope) -> (Outcome, Vec<()>) {
        let Command::Tenant { command: TenantCommand::CancelRun(told), .. } = &envelope.command
        else {
            unreachable!()
        };
        let text = told.reason.clone().unwrap();
        let value =
            |len: &str| vec![u8::try_from(position.index % 200).unwrap(); len.parse().unwrap()];
        match text.split(' ').collect::<Vec<_>>()[..] {
            ["row", at, len] => self.rows.push((key(at), Some(value(len)))),
            ["delete", at] => self.rows.push((key(at), None)),
            ["event", len] => {
                self.events.extend(std::iter::repeat_n(b'e', len.parse().unwrap()));
                self.events.push(b'\n');
            }
            _ => self.is_gone = true,
        }
        (Outcome::Done, Vec::new())
    }

    fn take_events(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.events)
    }

    fn check_events(bytes: &[u8], _: &mut bool) -> Result<usize, usize> {
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        bytes[..whole].iter().position(|byte| !b"e\n".contains(byte)).map_or(Ok(whole), Err)
    }

    fn take_final_rows(&mut self) -> Vec<Row> {
        std::mem::take(&mut self.rows)
    }

    fn take_dirty_rows(&mut self) -> Vec<Row> {
        Vec::new()
    }

    fn needs_files(&self) -> bool {
        !self.is_gone
    }

    fn has_work(&self) -> bool {
        false
    }
}

/// Rows and events.
type Contents = (BTreeMap<Vec<u8>, Vec<u8>>, Vec<u8>);

/// A replica over files of its own.
struct Replica {
    disk: SimDisk,
    stores: Arc<FileStores>,
    queue: Arc<ApplyQueue>,
    runner: ReplicaRunner<Writes>,
    next: u64,
}

impl Replica {
    async fn new() -> Self {
        let disk = SimDisk::new(1);
        let stores = FileStores::open(disk.mount(), Executor::Inline, &Region::default()).await;
        Self::start(disk, stores.unwrap()).await
    }

    async fn start(disk: SimDisk, stores: Arc<FileStores>) -> Self {
        let queue = Arc::new(ApplyQueue::default());
        let deps = ReplicaDeps { log: Arc::new(AnyLog), stores: Arc::clone(&stores) as _ };
        let runner = ReplicaRunner::start(deps, GROUP, tenant(), Arc::clone(&queue)).await;
        Self { disk, stores, queue, runner: runner.unwrap().0, next: 0 }
    }

    async fn start_again(self) -> Self {
        let Self { disk, stores, runner, .. } = self;
        drop(runner);
        Self::start(disk, stores).await
    }

    async fn apply(&mut self, write: &Write) {
        let (run, reason) = ("10000000-0000-0000-0000-000000000000", Some(write.text()));
        let command = TenantCommand::CancelRun(CancelRun { run: run.parse().unwrap(), reason });
        let tenant = TENANT.parse().unwrap();
        let command = Command::Tenant { tenant, epoch: Epoch(1), command };
        let at = Timestamp(0);
        let envelope = Envelope { version: 1, at, term: None, cause: None, rpc_id: None, command };
        let position = Position { term: 1, index: self.next };
        self.next += 1;
        let payload = Payload::Command(Arc::new(envelope));
        self.queue.push(CommittedEntry { position, payload, reply: None });
        self.runner.drain().await.unwrap();
    }

    async fn ask<T>(
        &mut self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> ReplicaRequest,
    ) -> Result<T, StoreError> {
        let (reply, mut answer) = oneshot::channel();
        self.runner.ensure_files().await?;
        self.runner.serve_request(request(reply)).await?;
        answer.try_recv().unwrap()
    }

    async fn dump(&mut self, beyond: Held) -> Result<Option<Dump>, StoreError> {
        self.ask(|reply| ReplicaRequest::Dump(beyond, reply)).await
    }

    /// Takes the dump of another, with a look at each part.
    async fn take(
        &mut self,
        dump: Dump,
        mut look: impl AsyncFnMut(&DumpPart),
    ) -> Result<(), StoreError> {
        let Dump { position, events_from, bytes, mut parts } = dump;
        let mut sent = 0;
        let mut files = self.stores.stage(tenant(), events_from).await?;
        while let Some(part) = parts.next().await {
            let part = part?;
            look(&part).await;
            let rows = part.rows.iter().map(|(key, value)| key.len() + value.len());
            sent += (rows.sum::<usize>() + part.events.len()) as u64;
            files.put(part).await?;
        }
        assert!(sent <= bytes, "{sent} bytes are more than the {bytes} that were announced");
        files.seal(position).await?;
        let staged = Staged { position, events_from, files };
        self.ask(|reply| ReplicaRequest::Install(staged, reply)).await
    }

    fn contents(&self) -> Contents {
        let rows = self.runner.rows.scan(&[], &[u8::MAX; 3], usize::MAX / 2, false).unwrap();
        let len = usize::try_from(self.runner.rows.events_total()).unwrap();
        (rows.into_iter().collect(), self.runner.rows.read_events(0, len).unwrap())
    }
}

fn write() -> impl Strategy<Value = Write> {
    let value = prop_oneof![8 => 0..2_000_usize, 1 => 900_000..2_500_000_usize];
    prop_oneof![
        6 => (0..40_u16, value.clone()).prop_map(|(key, len)| Write::Row(key, len)),
        2 => (0..40_u16).prop_map(Write::Delete),
        3 => value.prop_map(Write::Event),
    ]
}

fn in_one_thread(story: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(story);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the one replica lacks, and whatever the other does while it is sent: what arrives is what that one held when
    /// it was asked.
    #[test]
    fn what_arrives_is_what_was_held(
        both in prop::collection::vec(write(), 0..20),
        one in prop::collection::vec(write(), 1..30),
        meanwhile in prop::collection::vec(write(), 0..20),
        added in 0..3_usize,
    ) {
        in_one_thread(async {
            let (mut from, mut to) = (Replica::new().await, Replica::new().await);
            for write in &both {
                from.apply(write).await;
                to.apply(write).await;
            }
            let held = to.ask(ReplicaRequest::Held).await.unwrap();
            for write in &one {
                from.apply(write).await;
            }
            // Some come to the other while nobody knows yet.
            for write in one.iter().take(added) {
                to.apply(write).await;
            }
            let dump = from.dump(held).await.unwrap().expect("something is lacking");
            let expected = from.contents();
            let mut meanwhile = meanwhile.iter();
            to.take(dump, async |_| {
                if let Some(write) = meanwhile.next() {
                    from.apply(write).await;
                    from.runner.make_durable().await.unwrap();
                }
            })
            .await
            .unwrap();
            assert!(to.contents() == expected, "something else has arrived");
            assert_eq!(to.runner.applied().unwrap().index, (both.len() + one.len()) as u64 - 1);
            // It goes on from there, and again after a start.
            to.next = to.runner.applied().unwrap().index + 1;
            to.apply(&Write::Row(7, 77)).await;
            to.runner.make_durable().await.unwrap();
            let (mut rows, events) = expected;
            rows.insert(key("7"), vec![u8::try_from((to.next - 1) % 200).unwrap(); 77]);
            assert!(to.contents() == (rows.clone(), events.clone()));
            let again = to.start_again().await;
            assert!(again.contents() == (rows, events));
        });
    }
}

/// 20 MiB of rows and 6 of events, one of which is larger than a part.
async fn large() -> Replica {
    let mut replica = Replica::new().await;
    for number in 0..10_000 {
        replica.apply(&Write::Row(number, 2_000)).await;
    }
    for _ in 0..3_000 {
        replica.apply(&Write::Event(1_000)).await;
    }
    replica.apply(&Write::Event(3 << 20)).await;
    replica
}

#[test]
fn neither_end_holds_more_than_a_part() {
    in_one_thread(async {
        let (mut from, mut to) = (large().await, Replica::new().await);
        let dump = from.dump(Held::default()).await.unwrap().unwrap();
        let (mut costs, mut longest) = (Vec::new(), 0);
        to.take(dump, async |part| {
            costs.push(part.cost());
            longest = longest.max(part.events.len());
        })
        .await
        .unwrap();
        assert!(to.contents() == from.contents());
        // The event that is larger than a part is read with up to as much as it is long.
        assert!(costs.iter().all(|cost| *cost < 2 * PART_BYTES || *cost <= longest), "{costs:?}");
        assert!(longest < 8 * PART_BYTES && costs.len() > 20, "{costs:?}");
    });
}

#[test]
fn who_is_sent_can_be_deleted_meanwhile_and_the_rest_does_not_come() {
    in_one_thread(async {
        let mut from = large().await;
        let mut dump = from.dump(Held::default()).await.unwrap().unwrap();
        dump.parts.next().await.unwrap().unwrap();
        from.apply(&Write::End).await;
        assert!(!from.disk.mount().exists(&format!("tenants/{TENANT}")).unwrap());
        let next = dump.parts.next().await.unwrap();
        assert!(matches!(next, Err(StoreError::Io { .. })), "{next:?}");
    });
}

#[test]
fn files_stay_open_for_others_while_they_are_sent() {
    in_one_thread(async {
        let mut from = large().await;
        let dump = from.dump(Held::default()).await.unwrap().unwrap();
        from.queue.want_files();
        from.runner.drain().await.unwrap();
        assert!(!from.runner.rows.is_let_go());
        drop(dump);
        from.runner.drain().await.unwrap();
        assert!(from.runner.rows.is_let_go());
    });
}

#[test]
fn rot_does_not_travel() {
    in_one_thread(async {
        let mut from = large().await;
        from.ask(ReplicaRequest::Held).await.unwrap();
        from.disk.flip_bit(&format!("tenants/{TENANT}/events.jsonl"), 2_500_000, 3);
        let mut to = Replica::new().await;
        let dump = from.dump(Held::default()).await.unwrap().unwrap();
        let taken = to.take(dump, async |_| {}).await;
        assert!(matches!(taken, Err(StoreError::Damaged { .. })), "{taken:?}");
        assert!(!to.stores.exists(tenant()).unwrap() && to.runner.applied().is_none());
    });
}
