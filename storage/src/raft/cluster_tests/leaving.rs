//! Replicas that are removed, let go of their log, and come back.

use std::time::Duration;

use shiioo_actors::domain::ids::{Position, RaftId};
use shiioo_actors::ports::{Membership as _, Service};
use tokio::time::Instant;

use super::fabric::{Cluster, GROUP, story};
use crate::log::record::Vote;
use crate::raft::wire::{self, Ballot, Request, RequestBody};

/// A cluster of three of which one follower was removed and has let go of everything.
async fn without_one() -> (Cluster, u64, u64) {
    let cluster = Cluster::start(3, 3).await;
    let leader = cluster.leader().await;
    cluster.propose_many(leader, 5, "all have").await;
    cluster.same(leader, &[1, 2, 3]).await;
    let gone = cluster.followers(leader)[0];
    let rest = (1..=3).filter(|node| *node != gone).map(RaftId).collect();
    cluster.groups(leader).set_voters(GROUP, rest).await.unwrap();
    cluster.groups(leader).remove_learner(GROUP, RaftId(gone)).await.unwrap();
    let groups = cluster.groups(gone);
    let (vote, last) = (groups.log.state(GROUP).vote, groups.log.last(GROUP));
    groups.leave_group(GROUP, Box::pin(async { false })).await.unwrap();
    assert_eq!(groups.log.last(GROUP), last, "it was not right any more");
    groups.leave_group(GROUP, Box::pin(async { true })).await.unwrap();
    assert_eq!(groups.log.last(GROUP), None);
    assert_eq!(groups.log.state(GROUP).vote, vote, "or it could vote twice in a term");
    assert_eq!(groups.log.left(GROUP), last);
    (cluster, leader, gone)
}

/// In the same term: the leader must not take the new beginning for a loss.
#[test]
fn a_replica_that_was_removed_comes_back_with_nothing() {
    story(async {
        let (cluster, leader, gone) = without_one().await;
        cluster.propose_many(leader, 5, "meanwhile").await;
        cluster.open(gone, Vec::new()).await;
        cluster.groups(leader).add_learner(GROUP, RaftId(gone)).await.unwrap();
        cluster.same(leader, &[1, 2, 3]).await;
        cluster.groups(leader).set_voters(GROUP, [1, 2, 3].map(RaftId).into()).await.unwrap();
        cluster.propose(leader, "after").await;
        cluster.same(leader, &[1, 2, 3]).await;
        let failed = tokio::time::timeout(Duration::from_secs(1), cluster.groups(gone).failed());
        assert!(failed.await.is_err(), "the node stays");
    });
}

/// After a start the groups are opened one by one. Until then nobody knows who leads them.
#[test]
fn a_group_that_is_not_open_yet_keeps_its_log() {
    story(async {
        let mut cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        cluster.propose_many(leader, 5, "all have").await;
        cluster.same(leader, &[1, 2, 3]).await;
        let follower = cluster.followers(leader)[0];
        let last = cluster.groups(follower).log.last(GROUP);
        let down = cluster.kill(follower).await;
        cluster.boot(follower, down.disk, down.durable).await;
        let groups = cluster.groups(follower);
        groups.leave_group(GROUP, Box::pin(async { true })).await.unwrap();
        assert_eq!(groups.log.last(GROUP), last);
    });
}

/// What it had acknowledged may be committed. Its own log does not say so any more.
#[test]
fn a_replica_that_came_back_votes_for_nobody_who_has_less_than_it_had() {
    story(async {
        let (cluster, leader, gone) = without_one().await;
        let groups = cluster.groups(gone);
        let had = groups.log.left(GROUP).unwrap();
        cluster.open(gone, Vec::new()).await;
        cluster.isolate(gone);
        let candidate = (1..=3).find(|node| *node != gone && *node != leader).unwrap();
        let ask = async |make: fn(Ballot) -> RequestBody, last: Option<Position>| {
            let vote = Vote { term: had.term + 9, node: RaftId(candidate), committed: false };
            let body = make(Ballot { vote, last, is_transfer: false });
            let request = wire::encode(&Request { group: GROUP, body });
            let deadline = Instant::now() + Duration::from_secs(1);
            groups.serve(RaftId(candidate), Service::Raft, request, deadline).await.is_ok()
        };
        let less = Position { index: had.index - 1, ..had };
        for make in [RequestBody::PreVote, RequestBody::Vote] {
            assert!(!ask(make, None).await && !ask(make, Some(less)).await);
        }
        assert!(ask(RequestBody::PreVote, Some(had)).await, "who has as much may lead");
        assert!(ask(RequestBody::Vote, Some(had)).await);
    });
}

/// Its first entries say that it is the only voter of the group.
#[test]
fn a_founder_that_came_back_does_not_elect_itself() {
    story(async {
        let cluster = Cluster::start(3, 1).await;
        let founder = cluster.leader().await;
        // More than is sent at once, so that the founder has the beginning alone for a while.
        cluster.propose_many(founder, 600, "alone").await;
        for other in [2, 3] {
            cluster.groups(founder).add_learner(GROUP, RaftId(other)).await.unwrap();
        }
        cluster.groups(founder).set_voters(GROUP, [1, 2, 3].map(RaftId).into()).await.unwrap();
        cluster.groups(founder).set_voters(GROUP, [2, 3].map(RaftId).into()).await.unwrap();
        let leader = cluster.leader_among(&[2, 3]).await;
        cluster.groups(leader).remove_learner(GROUP, RaftId(founder)).await.unwrap();
        cluster.groups(founder).leave_group(GROUP, Box::pin(async { true })).await.unwrap();
        cluster.open(founder, vec![founder]).await;
        let vote = cluster.groups(leader).log.state(GROUP).vote;

        cluster.limit(200_000);
        cluster.groups(leader).add_learner(GROUP, RaftId(founder)).await.unwrap();
        cluster.same(leader, &[1, 2, 3]).await;
        assert_eq!(cluster.groups(founder).log.state(GROUP).vote, vote, "nobody campaigned");
        // Whole again, it may lead.
        cluster.groups(leader).set_voters(GROUP, [1, 2, 3].map(RaftId).into()).await.unwrap();
        cluster.groups(leader).transfer(GROUP, RaftId(founder)).await.unwrap();
        assert_eq!(cluster.leader_among(&[founder]).await, founder);
        cluster.propose(founder, "after").await;
    });
}

/// A leader may take the replica back in the very moment, and count on what it then acknowledges.
#[test]
fn a_replica_acknowledges_nothing_while_it_is_asked_whether_it_still_leaves() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        let follower = cluster.followers(leader)[0];
        cluster.propose(leader, "before").await;
        cluster.same(leader, &[1, 2, 3]).await;
        let log = &cluster.groups(follower).log;
        let last = log.last(GROUP);
        let still = async {
            cluster.propose_many(leader, 5, "meanwhile").await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(log.last(GROUP), last);
            false
        };
        cluster.groups(follower).leave(GROUP, Box::pin(still)).await.unwrap();
        cluster.propose(leader, "after").await;
        cluster.same(leader, &[1, 2, 3]).await;
    });
}
