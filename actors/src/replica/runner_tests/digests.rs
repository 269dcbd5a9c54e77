//! What replicas held at one position, hashed to be compared.

use proptest::prelude::*;

use super::*;
use crate::ports::StateDigest;
use crate::replica::DigestCursor;

/// A replica with its world.
struct Replica {
    world: Arc<World>,
    queue: Arc<ApplyQueue>,
    told: Arc<AtomicUsize>,
    runner: ReplicaRunner<Texts>,
}

impl Replica {
    async fn new() -> Self {
        let (world, queue, told) = (Arc::new(World::default()), new_queue(), Arc::default());
        let runner = start(&world, &queue).await;
        Self { world, queue, told, runner }
    }

    /// Hands texts over; `None` stands for a comparison.
    fn hand_over(&self, texts: &[Option<&str>]) {
        for text in texts {
            match text {
                Some(text) => hand_over(&self.world, &self.queue, (*text).to_owned(), &self.told),
                None => {
                    let compare = TenantCommand::Compare;
                    hand_over_command(&self.world, &self.queue, compare, &self.told);
                }
            }
        }
    }

    async fn restart(&mut self) {
        self.runner.make_durable().await.unwrap();
        self.runner = start(&self.world, &self.queue).await;
    }

    async fn noted(&mut self, index: u64) -> Option<DigestCursor> {
        self.runner.noted_at(Some(Position { term: 1, index })).await.unwrap()
    }

    async fn digest(&mut self, index: u64) -> Option<StateDigest> {
        let mut cursor = self.noted(index).await?;
        while cursor.digest().is_none() {
            cursor = self.runner.hash_events(cursor).unwrap();
        }
        cursor.digest()
    }
}

const BEFORE: [Option<&str>; 3] = [Some("event 1"), Some("b"), Some("event 2")];
/// The position of a comparison after those.
const AT: u64 = BEFORE.len() as u64;

/// Some replicas go on at once, some write down what they have, some start again: at one position all of
/// them held the same.
#[tokio::test]
async fn replicas_that_applied_the_same_have_one_digest() {
    let mut digests = Vec::new();
    for how in 0..4 {
        let mut replica = Replica::new().await;
        replica.hand_over(&BEFORE);
        if how % 2 == 1 {
            replica.runner.drain().await.unwrap();
            replica.restart().await;
        }
        replica.hand_over(&[None]);
        if how >= 2 {
            replica.runner.drain().await.unwrap();
            replica.runner.make_durable().await.unwrap();
        }
        // In one batch with the comparison, or after it.
        replica.hand_over(&[Some("event 3"), Some("work")]);
        replica.runner.drain().await.unwrap();
        digests.push(replica.digest(AT).await.unwrap());
        assert_eq!(replica.digest(AT + 1).await, None, "nobody asked what was held there");
        assert_eq!(replica.digest(AT + 3).await, None, "not yet");
    }
    assert!(digests.windows(2).all(|two| two[0] == two[1]), "{digests:?}");
}

/// The actor that noted it has gone to sleep; nothing was applied since.
#[tokio::test]
async fn a_replica_that_slept_tells_the_same() {
    let mut replica = Replica::new().await;
    replica.hand_over(&BEFORE);
    replica.hand_over(&[None]);
    replica.runner.drain().await.unwrap();
    let before = replica.digest(AT).await.unwrap();
    replica.restart().await;
    assert_eq!(replica.digest(AT).await, Some(before));
    replica.hand_over(&[Some("b")]);
    replica.restart().await;
    assert_eq!(replica.digest(AT).await, None, "it has gone on, and nothing was noted");
}

#[tokio::test]
async fn a_replica_that_is_not_trusted_any_more_is_damaged() {
    let mut replica = Replica::new().await;
    let (reply, told) = tokio::sync::oneshot::channel();
    let at = Position { term: 1, index: AT };
    let distrust = ReplicaRequest::Distrust(at, reply);
    let error = replica.runner.serve_request(distrust).await.unwrap_err();
    assert!(told.await.unwrap().is_ok());
    assert!(matches!(error, StoreError::Damaged { .. }));
    let said = error.lasting().unwrap();
    assert!(said.contains("differs from that of two other replicas at 1-3"), "{said}");
}

/// Of all rows and events, whole, with what stands between them.
fn digest_of(rows: &BTreeMap<Vec<u8>, Vec<u8>>, events: &[u8]) -> StateDigest {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut replica = Replica::new().await;
        replica.hand_over(&[Some("b")]);
        replica.runner.drain().await.unwrap();
        replica.runner.make_durable().await.unwrap();
        replica.world.rows.lock().unwrap().extend(rows.clone());
        replica.world.events.lock().unwrap().extend_from_slice(events);
        replica.restart().await;
        replica.digest(0).await.unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, ..ProptestConfig::with_cases(64)
    })]

    #[test]
    fn any_other_row_or_event_is_another_digest(
        rows in prop::collection::btree_map(
            prop::collection::vec(b'u'.., 1..4),
            prop::collection::vec(any::<u8>(), 1..9),
            1..9,
        ),
        events in prop::collection::vec(any::<u8>(), 1..40),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let digest = digest_of(&rows, &events);
        prop_assert_eq!(digest_of(&rows, &events), digest);
        let mut other = events.clone();
        *at.get_mut(&mut other) ^= 1_u8 << bit;
        prop_assert_ne!(digest_of(&rows, &other), digest);
        prop_assert_ne!(digest_of(&rows, &events[1..]), digest);
        let (key, value) = at.get(&Vec::from_iter(rows.clone())).clone();
        let mut other = rows.clone();
        *at.get_mut(other.get_mut(&key).unwrap()) ^= 1_u8 << bit;
        prop_assert_ne!(digest_of(&other, &events), digest);
        let mut other = rows.clone();
        other.remove(&key);
        prop_assert_ne!(digest_of(&other, &events), digest);
        // A byte that goes from a key to its value.
        let mut longer = key.clone();
        longer.push(value[0]);
        other.insert(longer, value[1..].to_vec());
        prop_assert_ne!(digest_of(&other, &events), digest);
    }
}
