//! What travels together, when, and to whom its answers go.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use shiioo_actors::domain::ids::{GroupId, Position, RaftId};
use shiioo_actors::ports::seams::ByteStream;
use shiioo_actors::ports::{BoxFuture, Peer, PeerError, Peers, Service, StreamService};
use tokio::time::Instant;

use super::heartbeats::{Answer, HeartbeatBatches};
use super::wire::{self, Append, AppendReply, HEARTBEATS_MAX, HeartbeatReplies, Heartbeats};
use crate::log::record::Vote;

const ELECTION_TIMEOUT: Duration = Duration::from_millis(1_600);
const WINDOW: Duration = Duration::from_millis(10);

/// Keeps what it is asked, with the time since its start. Answers group 1 with 'done', group 2 with a
/// later vote, group 3 not at all; node 9 declines everything.
struct FakePeers {
    started: Instant,
    asked: Mutex<Vec<(Duration, u64, Vec<GroupId>)>>,
}

impl Peers for FakePeers {
    fn call(
        &self,
        to: RaftId,
        service: Service,
        request: Vec<u8>,
        _deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        assert_eq!(service, Service::GroupHeartbeats);
        let Heartbeats(beats) = wire::decode(&request).unwrap();
        let groups: Vec<GroupId> = beats.iter().map(|(group, _)| *group).collect();
        self.asked.lock().push((self.started.elapsed(), to.0, groups.clone()));
        let reply = |group: GroupId| match group {
            GroupId(2) => Some(AppendReply::HigherVote(vote(8))),
            GroupId(3) => None,
            _ => Some(AppendReply::Done),
        };
        let replies = HeartbeatReplies(groups.into_iter().map(reply).collect());
        Box::pin(async move {
            if to == RaftId(9) { Err(declined()) } else { Ok(wire::encode(&replies)) }
        })
    }

    fn open_stream(
        &self,
        _to: RaftId,
        _service: StreamService,
        _deadline: Instant,
    ) -> BoxFuture<'_, Result<Box<dyn ByteStream>, PeerError>> {
        unreachable!("heartbeats open no streams")
    }

    fn set_members(&self, _members: Vec<Peer>, _last_given: RaftId) {}
}

fn declined() -> PeerError {
    PeerError::Declined { to: RaftId(9), why: "not known here".into() }
}

fn vote(term: u64) -> Vote {
    Vote { term, node: RaftId(1), committed: true }
}

fn heartbeat(group: GroupId) -> Append {
    let prev = Some(Position { term: 3, index: 9 });
    Append::new(group, vote(3), prev, None, [], usize::MAX).0
}

fn start() -> (Arc<FakePeers>, Arc<HeartbeatBatches>) {
    let peers = Arc::new(FakePeers { started: Instant::now(), asked: Mutex::default() });
    (Arc::clone(&peers), HeartbeatBatches::new(peers, ELECTION_TIMEOUT))
}

async fn send(batches: &Arc<HeartbeatBatches>, to: u64, group: u32) -> Answer {
    let (group, deadline) = (GroupId(group), Instant::now() + ELECTION_TIMEOUT);
    batches.send(RaftId(to), group, heartbeat(group), deadline).await
}

#[tokio::test(start_paused = true)]
async fn what_comes_within_a_window_travels_together_and_each_group_has_its_answer() {
    let (peers, batches) = start();
    let later = async {
        tokio::time::sleep(WINDOW / 2).await;
        send(&batches, 2, 3).await
    };
    let (first, second, third, other) =
        tokio::join!(send(&batches, 2, 1), send(&batches, 2, 2), later, send(&batches, 3, 1));
    assert_eq!(first, Ok(Some(AppendReply::Done)));
    assert_eq!(second, Ok(Some(AppendReply::HigherVote(vote(8)))));
    assert_eq!(third, Ok(None), "to be asked alone");
    assert_eq!(other, Ok(Some(AppendReply::Done)));
    // The next window begins with the next heartbeat.
    assert_eq!(send(&batches, 2, 1).await, Ok(Some(AppendReply::Done)));
    let asked = peers.asked.lock();
    let groups = |groups: &[u32]| groups.iter().copied().map(GroupId).collect::<Vec<_>>();
    assert_eq!(
        *asked,
        [(WINDOW, 2, groups(&[1, 2, 3])), (WINDOW, 3, groups(&[1])), (2 * WINDOW, 2, groups(&[1]))]
    );
}

#[tokio::test(start_paused = true)]
async fn a_read_makes_the_message_leave_that_has_a_heartbeat_of_its_group() {
    let (peers, batches) = start();
    let reads = async {
        tokio::task::yield_now().await;
        batches.hurry(GroupId(1));
    };
    let (both, alone, ()) = tokio::join!(
        async { tokio::join!(send(&batches, 2, 1), send(&batches, 2, 2)) },
        send(&batches, 3, 2),
        reads
    );
    assert!(both.0.is_ok() && both.1.is_ok() && alone.is_ok());
    let asked: Vec<_> = peers.asked.lock().iter().map(|(at, to, _)| (*at, *to)).collect();
    assert_eq!(asked, [(Duration::ZERO, 2), (WINDOW, 3)]);
}

#[tokio::test(start_paused = true)]
async fn a_message_holds_so_many_and_the_rest_is_asked_alone() {
    let (peers, batches) = start();
    let count = u32::try_from(HEARTBEATS_MAX).unwrap() + 2;
    let answers = join_all((10..10 + count).map(|group| send(&batches, 2, group))).await;
    assert_eq!(answers.iter().filter(|answer| **answer == Ok(None)).count(), 2);
    assert_eq!(peers.asked.lock().len(), 1);
    assert_eq!(peers.asked.lock()[0].2.len(), HEARTBEATS_MAX);
}

#[tokio::test(start_paused = true)]
async fn who_declines_declines_for_each_group() {
    let (_, batches) = start();
    let (first, second) = tokio::join!(send(&batches, 9, 1), send(&batches, 9, 2));
    assert_eq!((first, second), (Err(declined()), Err(declined())));
}
