//! A replica against a log and files that remember what was asked of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::*;
use crate::command::{CancelRun, Command, TenantCommand};
use crate::domain::ids::{Epoch, TenantId};
use crate::domain::time::Timestamp;
use crate::ports::{
    BoxFuture, CommittedEntry, Durability, Found, LogEntry, LogMismatch, Replay, Row, Staging,
    Store, StoreStats, Stores, View,
};
use crate::replica::QueueBytes;

#[path = "runner_tests/digests.rs"]
mod digests;
#[path = "runner_tests/snapshots.rs"]
mod snapshots;
#[path = "runner_tests/world.rs"]
mod world;

use world::{MemStores, World};

/// Bytes of entries that the log gives at once.
const LOG_BYTES_AT_ONCE: usize = 4 << 20;

/// Counts what it is told; has work while the last text began with "work", and needs no files after
/// "gone". A text that begins with "event" is one, and "reset" lets go of all that was before. "load" loads it all
/// from its rows first, which "event" has written.
#[derive(Default)]
struct Texts {
    has_reset: bool,
    applied: u64,
    works: bool,
    is_gone: bool,
    events: Vec<u8>,
}

impl StateMachine for Texts {
    type Effect = ();

    fn load(rows: &RowBuffer) -> Result<Self, StoreError> {
        let held = rows.get(b"t")?;
        let (applied, works) = held.unwrap_or_default();
        Ok(Self { applied, works, is_gone: held.is_none(), ..Self::default() })
    }

    fn apply(&mut self, _: Position, envelope: &Envelope) -> (Outcome, Vec<()>) {
        if let Command::Tenant {
            command: TenantCommand::CancelRun(CancelRun { reason, .. }), ..
        } = &envelope.command
        {
            self.applied += 1;
            self.works = reason.as_ref().is_some_and(|text| text.starts_with("work"));
            self.is_gone = reason.as_deref() == Some("gone");
            if reason.as_deref() == Some("reset") {
                *self = Self { has_reset: true, ..Self::default() };
            }
            let event = reason.as_ref().filter(|text| text.starts_with("event"));
            self.events.extend(event.iter().flat_map(|event| format!("{event}\n").into_bytes()));
        }
        (Outcome::Done, Vec::new())
    }

    fn check_events(bytes: &[u8], _: &mut bool) -> Result<usize, usize> {
        Ok(bytes.len())
    }

    fn take_events(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.events)
    }

    fn take_final_rows(&mut self) -> Vec<Row> {
        Vec::new()
    }

    fn take_dirty_rows(&mut self) -> Vec<Row> {
        vec![(b"t".to_vec(), Some(codec::encode(&(self.applied, self.works))))]
    }

    fn needs_files(&self) -> bool {
        !self.is_gone
    }

    fn has_work(&self) -> bool {
        self.works
    }

    fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.has_reset)
    }

    fn is_loaded_by(&self, envelope: &Envelope) -> bool {
        let Command::Tenant { command: TenantCommand::CancelRun(cancel), .. } = &envelope.command
        else {
            return false;
        };
        cancel.reason.as_deref() == Some("load")
    }

    fn load_for(rows: &RowBuffer, position: Position) -> Result<Self, StoreError> {
        let loaded = Self::load(rows)?;
        Ok(Self { applied: loaded.applied + 1000 * position.index, ..loaded })
    }
}

fn tenant() -> TenantId {
    "20000000-0000-0000-0000-000000000000".parse().unwrap()
}

/// Hands an entry over; whoever proposed it counts in `told`.
fn hand_over(world: &World, queue: &ApplyQueue, text: String, told: &Arc<AtomicUsize>) {
    let run = "10000000-0000-0000-0000-000000000000".parse().unwrap();
    hand_over_command(
        world,
        queue,
        TenantCommand::CancelRun(CancelRun { run, reason: Some(text) }),
        told,
    );
}

fn hand_over_command(
    world: &World,
    queue: &ApplyQueue,
    command: TenantCommand,
    told: &Arc<AtomicUsize>,
) {
    let command = Command::Tenant { tenant: tenant(), epoch: Epoch(1), command };
    let envelope =
        Envelope { version: 1, at: Timestamp(0), term: None, cause: None, rpc_id: None, command };
    let envelope = Arc::new(envelope);
    let mut entries = world.entries.lock().unwrap();
    let position = Position { term: 1, index: entries.len() as u64 };
    entries.push((position, Arc::clone(&envelope)));
    let told = Arc::clone(told);
    let reply = Reply::new(move |_| {
        told.fetch_add(1, Ordering::Relaxed);
    });
    queue.push(CommittedEntry {
        position,
        payload: Payload::Command(envelope),
        reply: Some(reply),
    });
}

async fn start(world: &Arc<World>, queue: &Arc<ApplyQueue>) -> ReplicaRunner<Texts> {
    let stores = Arc::new(MemStores(Arc::clone(world)));
    let deps = ReplicaDeps { log: Arc::clone(world) as Arc<dyn Durability>, stores };
    let part = StateMachineId::Tenant(tenant());
    ReplicaRunner::start(deps, GroupId(1), part, Arc::clone(queue)).await.unwrap().0
}

fn new_queue() -> Arc<ApplyQueue> {
    Arc::new(ApplyQueue::sharing(Arc::new(QueueBytes::default())))
}

#[tokio::test]
async fn what_the_queue_let_go_is_read_in_pieces_and_everybody_is_told() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    for _ in 0..40 {
        hand_over(&world, &queue, "x".repeat(1 << 20), &told);
    }
    runner.drain().await.unwrap();
    assert_eq!(runner.machine.applied, 40);
    assert_eq!(told.load(Ordering::Relaxed), 40, "whoever asked is told");
    let replayed = world.replayed.lock().unwrap().clone();
    assert!(replayed.len() > 4, "in pieces: {replayed:?}");
    assert!(replayed.iter().all(|bytes| *bytes < LOG_BYTES_AT_ONCE + (2 << 20)), "{replayed:?}");
}

/// The log may have forgotten what is applied.
#[tokio::test]
async fn what_is_applied_is_not_read_again() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    assert_eq!(runner.applied(), None);
    for _ in 0..3 {
        hand_over(&world, &queue, "text".into(), &told);
    }
    runner.drain().await.unwrap();
    assert_eq!(runner.applied(), Some(Position { term: 1, index: 2 }));
    runner.replay(2, VecDeque::new(), &mut Vec::new()).await.unwrap();
    assert_eq!(*world.replayed.lock().unwrap(), [0]);
    hand_over(&world, &new_queue(), "text".into(), &told);
    runner.replay(3, VecDeque::new(), &mut Vec::new()).await.unwrap();
    assert_eq!(runner.applied(), Some(Position { term: 1, index: 3 }));
    assert_eq!(runner.machine.applied, 4);
}

/// Killed in between, the node finds files that nobody misses; the other way round it would miss some.
#[tokio::test]
async fn the_log_is_told_that_files_are_gone_before_they_are() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    hand_over(&world, &queue, "text".into(), &told);
    runner.drain().await.unwrap();
    runner.make_durable().await.unwrap();
    let _ = world.story();
    hand_over(&world, &queue, "gone".into(), &told);
    runner.drain().await.unwrap();
    assert_eq!(world.story()[..3], ["closed", "unfiled", "removed"]);
    assert!(!*world.exists.lock().unwrap() && !runner.rows.has_files());
    hand_over(&world, &queue, "text".into(), &told);
    runner.drain().await.unwrap();
    assert_eq!(world.story()[0], "opened", "they are made anew");
    assert!(runner.rows.has_files());
}

/// A tenant leaves a group and comes back, all in one batch: its files have nothing of before.
#[tokio::test]
async fn what_is_let_go_of_in_a_batch_is_not_in_the_files_after_it() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    for text in ["event a", "event b"] {
        hand_over(&world, &queue, text.into(), &told);
    }
    runner.drain().await.unwrap();
    runner.make_durable().await.unwrap();
    world.rows.lock().unwrap().insert(b"old".to_vec(), b"row".to_vec());
    let _ = world.story();
    for text in ["event c", "reset", "event d"] {
        hand_over(&world, &queue, text.into(), &told);
    }
    runner.drain().await.unwrap();
    assert_eq!(world.story()[..4], ["closed", "unfiled", "removed", "opened"]);
    runner.make_durable().await.unwrap();
    assert_eq!(*world.events.lock().unwrap(), b"event d\n");
    assert_eq!(world.rows.lock().unwrap().keys().collect::<Vec<_>>(), [b"t"]);
    assert_eq!((runner.machine.applied, told.load(Ordering::Relaxed)), (1, 5));
    // Killed before the files were removed it applies the same once more; killed after that, too.
    let again = start(&world, &new_queue()).await;
    assert_eq!(again.machine.applied, 1);
}

/// What a command wakes is loaded with everything that was written before, in the files or not.
#[tokio::test]
async fn what_a_command_wakes_is_loaded_with_what_waits_to_be_written() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    for text in ["text", "text", "load"] {
        hand_over(&world, &queue, text.into(), &told);
    }
    runner.drain().await.unwrap();
    assert_eq!(runner.machine.applied, 2 + 1000 * 2 + 1, "two were written, and it is told where");
}

#[tokio::test]
async fn while_the_disk_is_full_nothing_is_written_and_the_part_stays_dirty() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    hand_over(&world, &queue, "text".into(), &told);
    runner.drain().await.unwrap();
    runner.make_durable().await.unwrap();
    let _ = world.story();
    *world.is_full.lock().unwrap() = true;
    hand_over(&world, &queue, "text".into(), &told);
    runner.drain().await.unwrap();
    runner.make_durable().await.unwrap();
    assert_eq!(world.story(), [""; 0]);
    assert!(runner.is_dirty() && runner.machine.applied == 2, "it goes on from memory");
    *world.is_full.lock().unwrap() = false;
    runner.make_durable().await.unwrap();
    assert_eq!(world.story(), ["durable 1", "reported 1"]);
    assert!(!runner.is_dirty());
}

/// The room of what is deleted comes back, and nothing else would bring it back.
#[tokio::test]
async fn a_full_disk_keeps_no_files_of_what_is_deleted() {
    for text in ["gone", "reset"] {
        let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
        let mut runner = start(&world, &queue).await;
        hand_over(&world, &queue, "text".into(), &told);
        runner.drain().await.unwrap();
        runner.make_durable().await.unwrap();
        let _ = world.story();
        *world.is_full.lock().unwrap() = true;
        hand_over(&world, &queue, text.into(), &told);
        runner.drain().await.unwrap();
        runner.make_durable().await.unwrap();
        let story = world.story();
        assert_eq!(story[..3], ["closed", "unfiled", "removed"], "{text}");
        assert!(!*world.exists.lock().unwrap());
        // Nothing of the first has to be in files, so that the log may forget it. The second needs new files.
        assert_eq!(story[3..], ["reported 1"][..usize::from(text == "gone")]);
        assert_eq!((runner.is_dirty(), told.load(Ordering::Relaxed)), (text == "reset", 2));
    }
}

/// Files hold an entry for which the log has another: they are of another history.
#[tokio::test]
async fn files_of_another_history_are_not_gone_on_from() {
    for (term, is_other) in [(None, false), (Some(1), false), (Some(2), true)] {
        let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
        hand_over(&world, &new_queue(), "text".into(), &told);
        let rows = vec![(b"t".to_vec(), Some(codec::encode(&(1_u64, false))))];
        world.write(rows, Position { term: 1, index: 0 });
        *world.exists.lock().unwrap() = true;
        *world.term.lock().unwrap() = term;
        let mut runner = start(&world, &queue).await;
        hand_over(&world, &queue, "text".into(), &told);
        let drained = runner.drain().await.map(drop);
        assert_eq!(matches!(drained, Err(StoreError::Damaged { .. })), is_other, "{drained:?}");
    }
}

#[tokio::test]
async fn many_bytes_are_made_durable_before_many_entries_are() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    for _ in 0..UNDURABLE_BYTES_MAX >> 20 {
        hand_over(&world, &queue, "x".repeat(1 << 20), &told);
        runner.drain().await.unwrap();
    }
    let story = world.story();
    let durable = story.iter().filter(|told| told.starts_with("durable")).count();
    assert_eq!(durable, 1, "{story:?}");
}

#[tokio::test]
async fn the_mark_of_an_idle_part_goes_before_its_work_is_durable_and_comes_after_its_end_is() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    let step = async |text: &str, runner: &mut ReplicaRunner<Texts>| {
        hand_over(&world, &queue, text.to_owned(), &told);
        runner.drain().await.unwrap();
        runner.make_durable().await.unwrap();
        runner.mark_idle().await.unwrap();
        world.story()
    };
    let (made, again) = (["opened", "durable 0", "reported 0", "marked"], &mut runner);
    assert_eq!(step("created", again).await, made);
    let begun = ["unmarked", "durable 1", "reported 1"];
    assert_eq!(step("work begins", again).await, begun);
    assert_eq!(step("work goes on", again).await, ["durable 2", "reported 2"]);
    assert_eq!(step("ended", again).await, ["durable 3", "reported 3", "marked"]);
}

/// A kill may come between a durable write and its report: a replica that is opened in such a state
/// takes the mark away before it reports the state.
#[tokio::test]
async fn a_part_that_comes_back_with_work_is_not_marked_when_it_says_so() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let position = Position { term: 1, index: 0 };
    hand_over(&world, &queue, "work".into(), &told);
    world.write(vec![(b"t".to_vec(), Some(codec::encode(&(1_u64, true))))], position);
    *world.is_idle.lock().unwrap() = true;
    *world.exists.lock().unwrap() = true;
    let _ = world.story();
    let runner = start(&world, &queue).await;
    assert_eq!(runner.machine.applied, 1, "not twice");
    assert_eq!(world.story(), ["opened", "unmarked", "reported 0"]);
}

#[tokio::test]
async fn files_that_others_need_are_closed_and_opened_again_when_they_are_needed() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    hand_over(&world, &queue, "work".into(), &told);
    runner.drain().await.unwrap();
    let _ = world.story();
    queue.want_files();
    runner.drain().await.unwrap();
    assert_eq!(world.story(), ["durable 0", "reported 0", "closed"]);
    assert!(runner.rows.get::<(u64, bool)>(b"t").is_err(), "closed is not empty");
    runner.make_durable().await.unwrap();
    assert!(world.story().is_empty(), "nothing to write: they stay closed");
    runner.ensure_files().await.unwrap();
    assert_eq!(runner.rows.get(b"t").unwrap(), Some((1_u64, true)));
    queue.want_files();
    runner.drain().await.unwrap();
    hand_over(&world, &queue, "ended".into(), &told);
    runner.drain().await.unwrap();
    runner.make_durable().await.unwrap();
    let story = world.story();
    assert_eq!(story, ["opened", "closed", "opened", "durable 1", "reported 1"]);
    // Whatever happened to them meanwhile is damage.
    queue.want_files();
    runner.drain().await.unwrap();
    *world.position() = Some(Position { term: 1, index: 0 });
    assert!(matches!(runner.ensure_files().await, Err(StoreError::Damaged { .. })));
    *world.exists.lock().unwrap() = false;
    assert!(matches!(runner.ensure_files().await, Err(StoreError::Damaged { .. })));
}
