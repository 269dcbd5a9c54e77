//! The heartbeats of several groups, told as stories.

use std::time::Duration;

use shiioo_actors::domain::ids::{GroupId, RaftId};
use shiioo_actors::ports::{Membership as _, Proposals as _, Service};
use tokio::time::Instant;

use super::fabric::{Cluster, ELECTION_TIMEOUT, GROUP, story, until};
use crate::log::record::Vote;
use crate::raft::heartbeats::HEARTBEATS_PER_TIMEOUT;
use crate::raft::wire::{Append, AppendReply, HeartbeatReplies, Heartbeats, decode, encode};

const OTHER: GroupId = GroupId(1);

/// Election timeouts in which nothing happens.
const IDLE_TIMEOUTS: u32 = 10;

fn leads(cluster: &Cluster, raft_id: u64, group: GroupId) -> Option<u64> {
    let leadership = *cluster.groups(raft_id).leadership(group)?.borrow();
    leadership.here.then_some(leadership.term)
}

#[test]
fn groups_that_one_node_leads_share_their_heartbeats() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        for raft_id in 1..=3 {
            cluster
                .groups(raft_id)
                .open_group(OTHER, [1, 2, 3].map(RaftId).to_vec())
                .await
                .unwrap();
        }
        until("leads", || leads(&cluster, 1, GROUP).and(leads(&cluster, 1, OTHER)).is_some()).await;
        tokio::time::sleep(ELECTION_TIMEOUT).await;
        let terms = (leads(&cluster, 1, GROUP), leads(&cluster, 1, OTHER));
        let calls = || (cluster.calls(Service::Raft), cluster.calls(Service::GroupHeartbeats));
        let before = calls();
        tokio::time::sleep(IDLE_TIMEOUTS * ELECTION_TIMEOUT).await;
        let after = calls();
        assert_eq!(after.0, before.0, "none travels alone");
        // Of both groups together, to two followers.
        let expected = u64::from(IDLE_TIMEOUTS * HEARTBEATS_PER_TIMEOUT) * 2;
        assert!(
            (expected - 10..=expected + 10).contains(&(after.1 - before.1)),
            "{}",
            after.1 - before.1
        );
        assert_eq!((leads(&cluster, 1, GROUP), leads(&cluster, 1, OTHER)), terms);
    });
}

/// As members of the version before are.
#[test]
fn groups_of_a_peer_that_does_not_know_the_message_are_asked_alone() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        cluster.know_nothing_of(Service::GroupHeartbeats);
        let leader = cluster.leader().await;
        let term = leads(&cluster, leader, GROUP);
        let before = cluster.calls(Service::Raft);
        let ends = Instant::now() + IDLE_TIMEOUTS * ELECTION_TIMEOUT;
        while Instant::now() < ends {
            assert_eq!(leads(&cluster, leader, GROUP), term);
            tokio::time::sleep(ELECTION_TIMEOUT / 20).await;
        }
        assert!(
            cluster.calls(Service::Raft) - before
                > u64::from(IDLE_TIMEOUTS * HEARTBEATS_PER_TIMEOUT)
        );
    });
}

#[test]
fn a_group_that_is_not_here_leaves_the_others_their_answers() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        let follower = cluster.followers(leader)[0];
        let term = leads(&cluster, leader, GROUP).unwrap();
        let beat = |group, term| {
            let vote = Vote { term, node: RaftId(leader), committed: true };
            (group, Append::new(group, vote, None, None, [], 0).0)
        };
        let ask = async |from: u64, beats| {
            let (groups, request) = (cluster.groups(follower), encode(&Heartbeats(beats)));
            let deadline = Instant::now() + Duration::from_secs(1);
            let answer =
                groups.serve(RaftId(from), Service::GroupHeartbeats, request, deadline).await;
            answer.map(|answer| decode::<HeartbeatReplies>(&answer).unwrap().0)
        };
        let answers = ask(leader, vec![beat(GroupId(7), term), beat(GROUP, term)]).await;
        assert_eq!(answers, Ok(vec![None, Some(AppendReply::Done)]));
        let answers = ask(leader, vec![beat(GROUP, term - 1)]).await.unwrap();
        assert!(
            matches!(answers[..], [Some(AppendReply::HigherVote(known))] if known.term == term)
        );
        assert_eq!(ask(follower, vec![beat(GROUP, term)]).await, Ok(vec![None]), "a liar");
        cluster.groups(follower).shutdown().await;
        assert_eq!(ask(leader, vec![beat(GROUP, term)]).await, Ok(vec![None]), "it stops");
    });
}
