//! Links on which megabytes take longer than an election timeout.

use std::time::Duration;

use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::{Membership as _, Proposals as _, Service};
use tokio::time::Instant;

use super::fabric::{Cluster, ELECTION_TIMEOUT, GROUP, story, until};

const MBIT: u64 = 125_000;

/// Entries of one MB.
async fn fill(cluster: &Cluster, leader: u64, megabytes: usize) {
    for number in 0..megabytes {
        cluster.propose(leader, &format!("{number} {}", "x".repeat(1_000_000))).await;
    }
}

/// Waits until a replica has been handed all that the leader was: contents are compared once, then.
async fn caught_up(cluster: &Cluster, leader: u64, replica: u64) {
    let position = |node: u64| cluster.part(node).live().position;
    until("a replica that has caught up", || position(replica) == position(leader)).await;
    cluster.same(leader, &[replica]).await;
}

/// 7 MB are before a joiner, over links of which the slowest carries 1 MB in four seconds: it gets
/// them, gets a vote, and writes go on.
#[test]
fn a_learner_catches_up_over_a_slow_link_and_writes_go_on() {
    for mbit in [2, 50, 100] {
        story(async move {
            let cluster = Cluster::start(2, 1).await;
            let leader = cluster.leader().await;
            fill(&cluster, leader, 7).await;
            cluster.limit(mbit * MBIT);
            cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
            let began = Instant::now();
            caught_up(&cluster, leader, 2).await;
            // Nothing is sent much more than once.
            let least = Duration::from_millis(7_000_000 * 1_000 / (mbit * MBIT));
            let took = began.elapsed();
            assert!(took < least * 3 / 2 + 4 * ELECTION_TIMEOUT, "{took:?} at {mbit} Mbit/s");
            cluster.groups(leader).set_voters(GROUP, [1, 2].map(RaftId).into()).await.unwrap();
            for number in 0..10 {
                cluster.propose(leader, &format!("after {number}")).await;
            }
            assert!(cluster.leads(leader));
            caught_up(&cluster, leader, 2).await;
        });
    }
}

/// A follower that comes back far behind does not cost the leader its lease, and a fast link is
/// used.
#[test]
fn a_follower_that_is_far_behind_disturbs_nobody() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        let term = cluster.groups(leader).leadership(GROUP).unwrap().borrow().term;
        let late = cluster.followers(leader)[0];
        cluster.isolate(late);
        fill(&cluster, leader, 12).await;
        cluster.limit(20 * MBIT);
        cluster.heal();
        let began = Instant::now();
        until("the follower to have caught up", || {
            assert!(cluster.leads(leader), "the leader keeps its lease");
            cluster.part(late).live().position == cluster.part(leader).live().position
        })
        .await;
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        let now = *cluster.groups(leader).leadership(GROUP).unwrap().borrow();
        assert_eq!((now.term, now.here), (term, true));
    });
}

/// Chunks of a snapshot have the time that their bytes take.
#[test]
fn a_snapshot_arrives_over_a_slow_link() {
    story(async {
        let cluster = Cluster::start(2, 1).await;
        let leader = cluster.leader().await;
        cluster.propose(leader, &"x".repeat(4_000_000)).await;
        cluster.flush(leader);
        cluster.purge(leader).await;
        cluster.limit(MBIT * 3 / 2);
        cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
        caught_up(&cluster, leader, 2).await;
        assert_eq!(cluster.part(2).installed().len(), 1);
        assert!(cluster.calls(Service::Snapshot) < 5, "sent once");
    });
}
