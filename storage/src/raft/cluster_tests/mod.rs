//! Groups of several replicas, told as stories: nodes that share nothing but links, in simulated
//! time, on simulated disks.

mod alone;
mod digests;
mod fabric;
mod heartbeats;
mod leaving;
mod part;
mod slow_links;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shiioo_actors::domain::ids::{GroupId, RaftId};
use shiioo_actors::ports::{
    LogStatus as _, Membership as _, Proposals as _, ProposeError, Service,
};
use tokio::time::Instant;

use super::wire;
use crate::log::record::Vote;
use fabric::{Cluster, ELECTION_TIMEOUT, GROUP, story, until};
use part::command;

#[test]
fn three_elect_one_and_hold_the_same() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        cluster.propose_many(leader, 20, "entry").await;
        cluster.same(leader, &[1, 2, 3]).await;
        for follower in cluster.followers(leader) {
            let leadership = *cluster.groups(follower).leadership(GROUP).unwrap().borrow();
            assert_eq!((leadership.leader, leadership.here), (Some(RaftId(leader)), false));
            let refused = cluster.groups(follower).propose(GROUP, command("")).await;
            assert_eq!(refused, Err(ProposeError::NotLeader));
        }
        let status = cluster.groups(leader).groups().remove(0);
        assert_eq!(status.replicas.len(), 3);
        assert!(status.replicas.iter().all(|replica| replica.voter && replica.lag == 0));
    });
}

#[test]
fn when_the_leader_loses_power_another_leads_and_has_everything() {
    story(async {
        let mut cluster = Cluster::start(3, 3).await;
        let first = cluster.leader().await;
        cluster.propose_many(first, 20, "before").await;
        let down = cluster.kill(first).await;
        let began = Instant::now();
        let second = cluster.leader().await;
        // Votes in a row may be split: openraft draws its timeouts by chance, in simulated time as well.
        assert!(began.elapsed() < 10 * ELECTION_TIMEOUT, "{:?}", began.elapsed());
        cluster.propose(second, "after").await;
        assert_eq!(cluster.part(second).texts().len(), 21);
        cluster.bring_back(first, down).await;
        cluster.same(second, &[1, 2, 3]).await;
        assert_eq!(cluster.leader().await, second, "who comes back disturbs nobody");
    });
}

#[test]
fn an_isolated_leader_commits_nothing_and_what_it_took_vanishes() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let old = cluster.leader().await;
        cluster.propose_many(old, 3, "before").await;
        cluster.isolate(old);
        let doomed = tokio::spawn({
            let groups = cluster.groups(old).clone();
            async move { groups.propose(GROUP, command("doomed")).await }
        });
        let others = cluster.followers(old);
        let new = cluster.leader_among(&others).await;
        assert!(!cluster.leads(old), "its lease is over");
        assert_eq!(
            cluster.groups(old).propose(GROUP, command("late")).await,
            Err(ProposeError::NoLeader)
        );
        assert_eq!(cluster.groups(old).read_index(GROUP).await, Err(ProposeError::NoLeader));
        cluster.propose_many(new, 3, "meanwhile").await;
        cluster.heal();
        cluster.same(new, &[1, 2, 3]).await;
        let answer = doomed.await.unwrap();
        assert!(matches!(answer, Err(ProposeError::Unknown(_))), "it was appended: {answer:?}");
        assert!(!cluster.part(new).texts().contains(&"doomed".into()));
        assert!(!cluster.part(old).texts().contains(&"doomed".into()));
    });
}

/// The leader is heard, but hears nobody: without its falling silent there would be no election.
#[test]
fn a_leader_that_hears_nobody_gives_way() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let deaf = cluster.leader().await;
        cluster.propose(deaf, "before").await;
        let others = cluster.followers(deaf);
        for other in &others {
            cluster.cut(*other, deaf);
        }
        let new = cluster.leader_among(&others).await;
        cluster.propose(new, "after").await;
        cluster.heal();
        cluster.same(new, &[1, 2, 3]).await;
    });
}

#[test]
fn who_was_cut_off_disturbs_nobody_when_it_is_back() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        cluster.propose(leader, "before").await;
        let term = cluster.groups(leader).leadership(GROUP).unwrap().borrow().term;
        let lonely = cluster.followers(leader)[0];
        cluster.isolate(lonely);
        tokio::time::sleep(20 * ELECTION_TIMEOUT).await;
        cluster.propose(leader, "meanwhile").await;
        cluster.heal();
        cluster.same(leader, &[1, 2, 3]).await;
        let now = *cluster.groups(leader).leadership(GROUP).unwrap().borrow();
        assert_eq!((now.term, now.here), (term, true));
    });
}

#[test]
fn a_replica_that_says_goodbye_disturbs_nobody() {
    story(async {
        let mut cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        cluster.propose(leader, "before").await;
        let follower = cluster.followers(leader)[0];
        let down = cluster.shut_down(follower).await;
        cluster.propose_many(leader, 10, "meanwhile").await;
        assert!(cluster.leads(leader));
        cluster.bring_back(follower, down).await;
        cluster.same(leader, &[1, 2, 3]).await;
        assert!(cluster.leads(leader));
    });
}

#[test]
fn a_learner_catches_up_and_becomes_a_voter() {
    story(async {
        let mut cluster = Cluster::start(4, 1).await;
        let leader = cluster.leader().await;
        assert_eq!(leader, 1);
        cluster.propose_many(1, 10, "before").await;
        for learner in 2..=4 {
            cluster.groups(1).add_learner(GROUP, RaftId(learner)).await.unwrap();
            cluster.groups(1).add_learner(GROUP, RaftId(learner)).await.unwrap();
        }
        cluster.same(1, &[2, 3, 4]).await;
        let last = |cluster: &Cluster| cluster.groups(1).log.last(GROUP);
        let before = last(&cluster);
        cluster.groups(1).add_learner(GROUP, RaftId(3)).await.unwrap();
        assert_eq!(last(&cluster), before, "nothing is appended for what is so already");

        let voters = BTreeSet::from([1, 2, 3].map(RaftId));
        cluster.groups(1).set_voters(GROUP, voters.clone()).await.unwrap();
        cluster.groups(1).set_voters(GROUP, voters.clone()).await.unwrap();
        let status = cluster.groups(1).groups().remove(0);
        let found: Vec<_> = status.replicas.iter().map(|r| (r.raft_id.0, r.voter)).collect();
        assert_eq!(found, [(1, true), (2, true), (3, true), (4, false)]);
        let refused = cluster.groups(2).set_voters(GROUP, voters).await;
        assert_eq!(refused, Err(ProposeError::NotLeader));
        let down = cluster.kill(1).await;
        let new = cluster.leader_among(&[2, 3]).await;
        cluster.propose(new, "after").await;
        cluster.bring_back(1, down).await;
        cluster.same(new, &[1, 2, 3, 4]).await;
    });
}

#[test]
fn who_loses_its_vote_stays_as_a_learner_until_it_is_removed() {
    story(async {
        let cluster = Cluster::start(4, 3).await;
        let leader = cluster.leader().await;
        cluster.groups(leader).add_learner(GROUP, RaftId(4)).await.unwrap();
        let others = cluster.followers(leader);
        let (stays, goes) = (others[0], others[1]);
        let voters = BTreeSet::from([leader, stays].map(RaftId));
        let refused = cluster.groups(leader).remove_learner(GROUP, RaftId(goes)).await;
        assert_eq!(refused, Err(ProposeError::NoLeader), "it votes");
        cluster.groups(leader).set_voters(GROUP, voters).await.unwrap();
        let found = || -> BTreeMap<u64, bool> {
            let status = cluster.groups(leader).groups().remove(0);
            status.replicas.iter().map(|replica| (replica.raft_id.0, replica.voter)).collect()
        };
        assert_eq!(
            found(),
            BTreeMap::from([(leader, true), (stays, true), (goes, false), (4, false)])
        );
        for learner in [4, goes, goes] {
            cluster.groups(leader).remove_learner(GROUP, RaftId(learner)).await.unwrap();
        }
        assert_eq!(found(), BTreeMap::from([(leader, true), (stays, true)]));
        tokio::time::sleep(10 * ELECTION_TIMEOUT).await;
        assert!(cluster.leads(leader), "who has left does not disturb");
        cluster.propose(leader, "after").await;
    });
}

#[test]
fn a_leader_that_loses_its_own_vote_hands_over() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let old = cluster.leader().await;
        let others = cluster.followers(old);
        cluster
            .groups(old)
            .set_voters(GROUP, others.iter().copied().map(RaftId).collect())
            .await
            .unwrap();
        until("an end of the old lead", || !cluster.leads(old)).await;
        let new = cluster.leader_among(&others).await;
        cluster.propose(new, "after").await;
    });
}

#[test]
fn the_lead_is_handed_over() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let old = cluster.leader().await;
        cluster.propose_many(old, 5, "before").await;
        let new = cluster.followers(old)[1];
        let began = Instant::now();
        cluster.groups(old).transfer(GROUP, RaftId(new)).await.unwrap();
        assert_eq!(cluster.leader_among(&[new]).await, new);
        assert!(began.elapsed() < ELECTION_TIMEOUT / 2, "{:?}", began.elapsed());
        cluster.propose(new, "after").await;
        cluster.same(new, &[1, 2, 3]).await;
        let refused = cluster.groups(old).transfer(GROUP, RaftId(old)).await;
        assert_eq!(refused, Err(ProposeError::NotLeader));
        let refused = cluster.groups(new).transfer(GROUP, RaftId(9)).await;
        assert_eq!(refused, Err(ProposeError::NoLeader), "no such voter");
    });
}

#[test]
fn a_lead_handed_to_one_who_cannot_take_it_comes_to_another() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let old = cluster.leader().await;
        cluster.propose(old, "before").await;
        let gone = cluster.followers(old)[0];
        cluster.isolate(gone);
        cluster.groups(old).transfer(GROUP, RaftId(gone)).await.unwrap();
        let others: Vec<_> = [1, 2, 3].into_iter().filter(|id| *id != gone).collect();
        tokio::time::sleep(2 * ELECTION_TIMEOUT).await;
        let new = cluster.leader_among(&others).await;
        cluster.propose(new, "after").await;
    });
}

#[test]
fn a_follower_reads_what_was_written_last() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        for number in 0..20 {
            cluster.propose(leader, &format!("write {number}")).await;
            for follower in cluster.followers(leader) {
                cluster.groups(follower).read_index(GROUP).await.unwrap();
                assert_eq!(cluster.part(follower).texts().len(), number + 1);
            }
        }
    });
}

#[test]
fn without_a_quorum_nobody_reads() {
    story(async {
        let mut cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        let others = cluster.followers(leader);
        cluster.propose(leader, "before").await;
        cluster.same(leader, &others).await;
        cluster.kill(others[0]).await;
        cluster.isolate(others[1]);
        let began = Instant::now();
        for node in [leader, others[1]] {
            let refused = cluster.groups(node).read_index(GROUP).await;
            assert_eq!(refused, Err(ProposeError::NoLeader), "node {node}");
        }
        assert!(began.elapsed() < 3 * ELECTION_TIMEOUT, "{:?}", began.elapsed());
    });
}

#[test]
fn reads_that_wait_share_a_round() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        cluster.propose(leader, "before").await;
        let before = cluster.calls(Service::Raft);
        let reads = (0..500).map(|_| cluster.groups(leader).read_index(GROUP));
        for read in futures_util::future::join_all(reads).await {
            read.unwrap();
        }
        let calls = cluster.calls(Service::Raft) - before;
        assert!(calls <= 12, "500 reads took {calls} calls");
    });
}

#[test]
fn strangers_and_liars_are_declined() {
    story(async {
        let cluster = Cluster::start(2, 1).await;
        cluster.leader().await;
        let deadline = Instant::now() + Duration::from_secs(5);
        let ballot = |term| wire::Ballot {
            vote: Vote { term, node: RaftId(2), committed: false },
            last: None,
            is_transfer: false,
        };
        let ask = |group, from, service, body| {
            let request = wire::encode(&wire::Request { group, body });
            cluster.groups(1).serve(RaftId(from), service, request, deadline)
        };
        let (raft, vote) = (Service::Raft, wire::RequestBody::Vote(ballot(0)));
        assert!(ask(GROUP, 2, raft, vote.clone()).await.is_ok());
        assert!(ask(GROUP, 3, raft, vote.clone()).await.is_err(), "3 speaks for 2");
        assert!(ask(GROUP, 2, Service::Snapshot, vote.clone()).await.is_err());
        assert!(ask(GroupId(5), 2, raft, vote.clone()).await.is_err(), "not here");
        assert!(cluster.groups(1).serve(RaftId(2), raft, vec![1, 2, 3], deadline).await.is_err());
        cluster.groups(1).shutdown().await;
        assert!(ask(GROUP, 2, raft, vote).await.is_err(), "it stops");
    });
}

/// Its copy was made in the same term, in which it acknowledged more since.
#[test]
fn who_comes_back_on_an_older_copy_stops_and_the_others_go_on() {
    story(async {
        let mut cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        cluster.propose_many(leader, 5, "before").await;
        cluster.same(leader, &[1, 2, 3]).await;
        let stale = cluster.followers(leader)[0];
        let copy = cluster.nodes[&stale].disk.fork();
        cluster.propose_many(leader, 5, "after").await;
        cluster.same(leader, &[1, 2, 3]).await;
        let mut down = cluster.kill(stale).await;
        down.disk = copy;
        cluster.bring_back(stale, down).await;
        let failed = cluster.groups(stale).failed();
        let why = tokio::time::timeout(20 * ELECTION_TIMEOUT, failed).await.unwrap();
        assert!(why.contains("join anew"), "{why}");
        assert!(cluster.leads(leader));
        cluster.propose(leader, "still").await;
    });
}
