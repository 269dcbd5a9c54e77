//! What replicas send to each other, given and taken.

use super::*;

#[tokio::test]
async fn only_what_is_newer_is_taken_over_and_then_whole() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    hand_over(&world, &queue, "text".into(), &told);
    hand_over(&world, &queue, "text".into(), &told);
    runner.drain().await.unwrap();
    let at = |index| Some(Position { term: 1, index });
    let dump = |index| Dump {
        position: at(index),
        rows: vec![(b"t".to_vec(), codec::encode(&(100 + index, false)))],
        ..Dump::default()
    };
    assert_eq!(runner.held().await.unwrap(), Held { position: at(1), events: 0 });
    assert_eq!(world.position().as_ref(), at(1).as_ref(), "it is durable then");
    world.rows.lock().unwrap().insert(b"of before".to_vec(), vec![1]);
    for (index, applied) in [(0, 2), (1, 2), (2, 102), (2, 102), (1, 102)] {
        runner.install(dump(index)).await.unwrap();
        assert_eq!(runner.machine.applied, applied, "at {index}");
    }
    assert_eq!(runner.applied(), at(2));
    assert_eq!(world.rows.lock().unwrap().len(), 1);
    for (held, expected) in [(at(1), Some(dump(2))), (at(2), None), (at(3), None)] {
        let given = runner.dump(Held { position: held, events: 0 }).await.unwrap();
        assert_eq!(given, expected, "beyond {held:?}");
    }
}

#[tokio::test]
async fn a_dump_on_a_full_disk_holds_what_was_applied() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    hand_over(&world, &queue, "text".into(), &told);
    runner.drain().await.unwrap();
    runner.make_durable().await.unwrap();
    *world.is_full.lock().unwrap() = true;
    hand_over(&world, &queue, "text".into(), &told);
    runner.drain().await.unwrap();
    let dump = runner.dump(Held::default()).await.unwrap().unwrap();
    assert_eq!(dump.position, Some(Position { term: 1, index: 1 }));
    assert_eq!(dump.rows, [(b"t".to_vec(), codec::encode(&(2_u64, false)))]);
    *world.is_full.lock().unwrap() = false;
    runner.make_durable().await.unwrap();
    assert_eq!(world.rows.lock().unwrap()[b"t".as_slice()], codec::encode(&(2_u64, false)));
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

/// What a replica is rebuilt with, and what another one holds.
fn damaged(world: &Arc<World>) -> (ReplicaDeps, StateMachineId, impl Fn(u64) -> Dump) {
    let deps = ReplicaDeps {
        log: Arc::clone(world) as Arc<dyn Durability>,
        stores: Arc::new(MemStores(Arc::clone(world))),
    };
    let copy = |index| Dump {
        position: Some(Position { term: 1, index }),
        rows: vec![(b"t".to_vec(), codec::encode(&(100_u64, false)))],
        ..Dump::default()
    };
    (deps, StateMachineId::Tenant(tenant()), copy)
}

/// The files hold what the log was cut up to. If they went first and were not missed, a crash before
/// the copy is durable would leave a replica that begins with nothing and takes no harm for it.
#[tokio::test]
async fn damaged_files_are_replaced_and_missed_until_they_are() {
    let (world, queue, told) = stopped().await;
    world.rows.lock().unwrap().insert(b"rot".to_vec(), vec![1]);
    // Two more come while the replica is out of service: one of them is in the copy.
    for _ in 0..2 {
        hand_over(&world, &queue, "text".into(), &told);
    }
    let (deps, part, copy) = damaged(&world);
    world.story();
    let rebuilt = ReplicaRunner::rebuild(deps, GroupId(1), part, Arc::clone(&queue), copy(2));
    let runner: ReplicaRunner<Texts> = rebuilt.await.unwrap().0;
    assert_eq!(world.story()[..4], ["removed", "opened", "durable 2", "reported 2"]);
    assert_eq!((runner.machine.applied, runner.applied().unwrap().index), (101, 3));
    assert!(!world.rows.lock().unwrap().contains_key(b"rot".as_slice()));
}

#[tokio::test]
async fn the_control_planes_damaged_files_are_set_aside() {
    let (world, queue, _) = stopped().await;
    world.story();
    let (deps, _, copy) = damaged(&world);
    let part = StateMachineId::System;
    let rebuilt = ReplicaRunner::<Texts>::rebuild(deps, GroupId::SYSTEM, part, queue, copy(2));
    let runner = rebuilt.await.unwrap().0;
    assert_eq!(world.story()[..4], ["set aside", "opened", "durable 2", "reported 2"]);
    assert_eq!((runner.machine.applied, runner.applied().unwrap().index), (100, 2));
}

#[tokio::test]
async fn a_copy_that_lacks_what_the_log_lacks_is_not_taken() {
    let (world, queue, _) = stopped().await;
    world.story();
    let (deps, part, copy) = damaged(&world);
    let rebuilt = ReplicaRunner::<Texts>::rebuild(deps, GroupId(1), part, queue, copy(0)).await;
    assert!(matches!(rebuilt, Err(StoreError::Damaged { .. })));
    assert_eq!(world.story(), Vec::<String>::new(), "the damaged files stay as they are");
}

#[tokio::test]
async fn rows_are_read_only_as_far_as_the_bound() {
    let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
    let mut runner = start(&world, &queue).await;
    hand_over(&world, &queue, "text".into(), &told);
    runner.drain().await.unwrap();
    runner.make_durable().await.unwrap();
    // Each is more than a piece, so that the bound is looked at after each.
    let rows = (0..4_u8).map(|key| (vec![key], vec![key; 2 << 20]));
    world.rows.lock().unwrap().extend(rows);
    let rows: Vec<Found> = world.rows.lock().unwrap().clone().into_iter().collect();
    let cost = rows.iter().map(Dump::cost).sum();
    let (read, bytes) = runner.rows_up_to(cost).await.unwrap().expect("they cost so much");
    assert!(read == rows && bytes == cost && read.len() == 5);
    assert_eq!(runner.rows_up_to(cost - 1).await.unwrap(), None);
    // What is behind the bound is not read.
    world.scanned.lock().unwrap().clear();
    assert_eq!(runner.rows_up_to(3 << 20).await.unwrap(), None);
    assert_eq!(*world.scanned.lock().unwrap(), [0, 1], "two are more than the bound");
}
