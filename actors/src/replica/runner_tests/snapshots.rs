//! What replicas send to each other, given and taken.

use futures_util::TryStreamExt as _;

use super::*;
use crate::ports::{Dump, DumpPart, Held, Place, Staged};

/// The files as they are now.
struct MemView(std::vec::IntoIter<Found>, Vec<u8>);

pub(super) fn view(world: &World) -> Box<dyn View> {
    let rows: Vec<Found> = world.rows.lock().unwrap().clone().into_iter().collect();
    Box::new(MemView(rows.into_iter(), world.events.lock().unwrap().clone()))
}

impl View for MemView {
    fn rows(&mut self, _: usize) -> BoxFuture<'_, Result<(Vec<Found>, bool), StoreError>> {
        let next: Vec<Found> = self.0.next().into_iter().collect();
        let is_end = next.is_empty();
        Box::pin(async move { Ok((next, is_end)) })
    }
    fn events(&mut self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        let from = usize::try_from(offset).unwrap();
        let events = self.1[from..from + len].to_vec();
        Box::pin(async { Ok(events) })
    }
}

/// What another replica has sent to that of a world.
struct MemStaging {
    world: Arc<World>,
    index: u64,
    rows: Vec<Found>,
    events: &'static [u8],
    fails_with: Option<StoreError>,
}

impl std::fmt::Debug for MemStaging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemStaging")
    }
}

impl Staging for MemStaging {
    fn put(&mut self, _: DumpPart) -> BoxFuture<'_, Result<(), StoreError>> {
        unreachable!()
    }
    fn seal(&mut self, _: Position) -> BoxFuture<'_, Result<(), StoreError>> {
        unreachable!()
    }
    fn events_len(&self) -> u64 {
        self.events.len() as u64
    }
    fn install(self: Box<Self>, place: Place) -> BoxFuture<'static, Result<(), StoreError>> {
        let Self { world, index, rows, events, fails_with } = *self;
        world.tell(format!("installed {index} {place:?}"));
        if let Some(error) = fails_with {
            return Box::pin(async { Err(error) });
        }
        let known = match place {
            Place::Whole { events } => usize::try_from(events).unwrap(),
            Place::Cleared => 0,
        };
        let mut held = world.events.lock().unwrap();
        held.truncate(known);
        held.extend_from_slice(&events[known..]);
        *world.rows.lock().unwrap() = rows.into_iter().collect();
        *world.position() = Some(Position { term: 1, index });
        *world.exists.lock().unwrap() = true;
        Box::pin(async { Ok(()) })
    }
}

/// What another replica has sent, with all its events.
fn sent(world: &Arc<World>, index: u64, applied: u64, events: &'static [u8]) -> MemStaging {
    let rows = vec![(b"t".to_vec(), codec::encode(&(applied, false)))];
    MemStaging { world: Arc::clone(world), index, rows, events, fails_with: None }
}

fn staged(files: MemStaging) -> Staged {
    let position = Position { term: 1, index: files.index };
    Staged { position, events_from: 0, files: Box::new(files) }
}

/// All rows and events of a dump, and the position.
async fn read(dump: Dump) -> (Position, Vec<Found>, Vec<u8>) {
    let position = dump.position;
    let parts: Vec<DumpPart> = dump.parts.try_collect().await.unwrap();
    let rows = parts.iter().flat_map(|part| part.rows.clone()).collect();
    (position, rows, parts.into_iter().flat_map(|part| part.events).collect())
}

/// A replica that has applied these texts.
async fn applied(texts: &[&str]) -> (Arc<World>, Arc<ApplyQueue>, ReplicaRunner<Texts>) {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    for text in texts {
        hand_over(&world, &queue, (*text).to_owned(), &told);
    }
    runner.drain().await.unwrap();
    (world, queue, runner)
}

#[tokio::test]
async fn only_what_is_newer_is_taken_over_and_then_whole() {
    let (world, _, mut runner) = applied(&["text", "text"]).await;
    let at = |index| Some(Position { term: 1, index });
    assert_eq!(runner.held().await.unwrap(), Held { position: at(1), events: 0 });
    assert_eq!(world.position().as_ref(), at(1).as_ref(), "it is durable then");
    world.rows.lock().unwrap().insert(b"of before".to_vec(), vec![1]);
    for (index, applied) in [(0, 2), (1, 2), (2, 102), (2, 102), (1, 102)] {
        runner.install(staged(sent(&world, index, 100 + index, b""))).await.unwrap().unwrap();
        assert_eq!(runner.machine.applied, applied, "at {index}");
    }
    assert_eq!(runner.applied(), at(2));
    assert_eq!(*world.reported.lock().unwrap(), at(2), "the log need not keep it");
    assert_eq!(world.rows.lock().unwrap().len(), 1);
    for (held, is_given) in [(at(1), true), (at(2), false), (at(3), false)] {
        let given = runner.dump(Held { position: held, events: 0 }).await.unwrap();
        assert_eq!(given.is_some(), is_given, "beyond {held:?}");
        let Some(given) = given else { continue };
        let rows = vec![(b"t".to_vec(), codec::encode(&(102_u64, false)))];
        assert_eq!(read(given).await, (Position { term: 1, index: 2 }, rows, Vec::new()));
    }
}

/// What the other replica lacked may have been applied here since it was asked.
#[tokio::test]
async fn events_are_added_where_the_own_ones_end() {
    let (world, queue, mut runner) = applied(&["event a"]).await;
    hand_over(&world, &queue, "event b".into(), &Arc::default());
    runner.drain().await.unwrap();
    world.story();
    let newer = sent(&world, 7, 50, b"event a\nevent b\nevent c\n");
    runner.install(staged(newer)).await.unwrap().unwrap();
    let whole = "installed 7 Whole { events: 16 }";
    assert_eq!(world.story(), ["durable 1", "reported 1", "closed", whole, "opened", "reported 7"]);
    let dump = runner.dump(Held { position: None, events: 16 }).await.unwrap().unwrap();
    assert_eq!((dump.events_from, read(dump).await.2), (16, b"event c\n".to_vec()));
    // What holds fewer events is none of the same history.
    let other = runner.install(staged(sent(&world, 9, 50, b"event a\n"))).await.unwrap();
    assert!(matches!(other, Err(StoreError::Damaged { .. })));
    assert_eq!((runner.machine.applied, runner.applied().unwrap().index), (50, 7));
}

#[tokio::test]
async fn what_cannot_be_put_in_place_leaves_the_replica_as_it_was() {
    let (world, queue, mut runner) = applied(&["text", "text"]).await;
    let mut full = sent(&world, 9, 100, b"");
    full.fails_with = Some(StoreError::Full);
    let refused = runner.install(staged(full)).await.unwrap();
    assert!(matches!(refused, Err(StoreError::Full)));
    hand_over(&world, &queue, "text".into(), &Arc::default());
    runner.drain().await.unwrap();
    assert_eq!((runner.machine.applied, runner.applied().unwrap().index), (3, 2));
    // Gone instead: nobody goes on from what is in memory.
    let mut lost = sent(&world, 9, 100, b"");
    lost.fails_with = Some(StoreError::Full);
    runner.make_durable().await.unwrap();
    *world.exists.lock().unwrap() = false;
    let lost = runner.install(staged(lost)).await;
    assert!(matches!(lost, Err(StoreError::Damaged { .. })), "{lost:?}");
}

#[tokio::test]
async fn nothing_is_sent_while_what_was_applied_waits_for_room() {
    let (world, queue, mut runner) = applied(&["text"]).await;
    runner.make_durable().await.unwrap();
    *world.is_full.lock().unwrap() = true;
    hand_over(&world, &queue, "text".into(), &Arc::default());
    runner.drain().await.unwrap();
    let refused = runner.dump(Held::default()).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    *world.is_full.lock().unwrap() = false;
    let (position, rows, _) = read(runner.dump(Held::default()).await.unwrap().unwrap()).await;
    assert_eq!(position.index, 1);
    assert_eq!(rows, [(b"t".to_vec(), codec::encode(&(2_u64, false)))]);
}

#[tokio::test]
async fn files_that_are_being_sent_are_not_closed_for_others() {
    let (world, queue, mut runner) = applied(&["text"]).await;
    *world.is_viewed.lock().unwrap() = true;
    queue.want_files();
    runner.drain().await.unwrap();
    assert!(runner.rows.store.is_some());
    *world.is_viewed.lock().unwrap() = false;
    runner.drain().await.unwrap();
    assert!(runner.rows.store.is_none() && runner.rows.has_files());
}

#[tokio::test]
async fn what_a_snapshot_lacks_goes_unless_it_is_newer() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    for _ in 0..3 {
        hand_over(&world, &queue, "text".into(), &told);
    }
    runner.drain().await.unwrap();
    runner.make_durable().await.unwrap();
    let at = |index| Position { term: 1, index };
    runner.clear(at(2)).await.unwrap();
    assert_eq!((runner.machine.applied, *world.exists.lock().unwrap()), (3, true));
    runner.clear(at(3)).await.unwrap();
    assert_eq!((runner.machine.applied, *world.exists.lock().unwrap()), (0, false));
    assert_eq!(runner.applied(), Some(at(3)), "what came before is not applied again");
    assert_eq!(*world.reported.lock().unwrap(), Some(at(3)));
}

/// A replica with two entries in its files, whose actor has ended.
async fn stopped() -> (Arc<World>, Arc<ApplyQueue>, Arc<AtomicUsize>) {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    for _ in 0..2 {
        hand_over(&world, &queue, "text".into(), &told);
    }
    runner.drain().await.unwrap();
    runner.make_durable().await.unwrap();
    drop(runner);
    (world, queue, told)
}

/// What a replica is rebuilt with.
fn deps(world: &Arc<World>) -> ReplicaDeps {
    ReplicaDeps {
        log: Arc::clone(world) as Arc<dyn Durability>,
        stores: Arc::new(MemStores(Arc::clone(world))),
    }
}

/// The files hold what the log was cut up to. If they went first and were not missed, a crash before
/// the new ones are durable would leave a replica that begins with nothing and takes no harm for it.
#[tokio::test]
async fn damaged_files_are_replaced_and_missed_until_they_are() {
    let (world, queue, told) = stopped().await;
    world.rows.lock().unwrap().insert(b"rot".to_vec(), vec![1]);
    // Two more come while the replica is out of service: one of them is in what was sent.
    for _ in 0..2 {
        hand_over(&world, &queue, "text".into(), &told);
    }
    let part = StateMachineId::Tenant(tenant());
    world.story();
    let copy = staged(sent(&world, 2, 100, b""));
    let rebuilt = ReplicaRunner::rebuild(deps(&world), GroupId(1), part, Arc::clone(&queue), copy);
    let runner: ReplicaRunner<Texts> = rebuilt.await.unwrap().0;
    assert_eq!(world.story()[..3], ["installed 2 Cleared", "opened", "reported 2"]);
    assert_eq!((runner.machine.applied, runner.applied().unwrap().index), (101, 3));
    assert!(!world.rows.lock().unwrap().contains_key(b"rot".as_slice()));
}

#[tokio::test]
async fn what_lacks_what_the_log_lacks_is_not_taken() {
    let (world, queue, _) = stopped().await;
    world.story();
    let part = StateMachineId::Tenant(tenant());
    let copy = staged(sent(&world, 0, 100, b""));
    let rebuilt =
        ReplicaRunner::<Texts>::rebuild(deps(&world), GroupId(1), part, queue, copy).await;
    assert!(matches!(rebuilt, Err(StoreError::Damaged { .. })));
    assert_eq!(world.story(), Vec::<String>::new(), "the damaged files stay as they are");
}
