//! One replica of three that goes on alone, by force.

use std::collections::BTreeSet;

use shiioo_actors::domain::ids::{Position, RaftId};
use shiioo_actors::domain::region::Region;

use super::fabric::{Cluster, Down, GROUP, story, until};
use super::*;
use crate::disk::Disk;
use crate::executor::Executor;
use crate::stopped::{StoppedGroup, StoppedLog};

async fn open(disk: std::sync::Arc<dyn Disk>) -> StoppedLog {
    let id = uuid::Uuid::from_u128(1);
    StoppedLog::open(disk, Executor::Inline, id, &Region::default()).await.unwrap()
}

/// Makes what is left of a node the only member, and gives what it was before.
async fn go_on_alone(raft_id: u64, down: &Down, texts: &[&str]) -> StoppedGroup {
    let log = open(down.disk.mount()).await;
    let group = log.groups().await.unwrap().remove(0);
    let commands = || texts.iter().map(|text| command(text)).collect();
    // Twice: as after a crash in between.
    for _ in 0..2 {
        let done =
            log.go_on_alone(GROUP, RaftId(raft_id), group.term + 1, Some(group.last), commands());
        done.await.unwrap();
    }
    log.close().await.unwrap();
    group
}

#[test]
fn a_replica_goes_on_alone_with_all_that_its_log_holds() {
    story(async {
        let mut cluster = Cluster::start(3, 3).await;
        let first = cluster.leader().await;
        cluster.propose_many(first, 5, "agreed").await;
        cluster.isolate(first);
        let groups = cluster.groups(first).clone();
        tokio::spawn(async move { groups.propose(GROUP, command("not agreed")).await });
        let log = std::sync::Arc::clone(&cluster.groups(first).log);
        let before = log.last(GROUP);
        until("its entry in the log", || log.last(GROUP) > before).await;
        for lost in cluster.followers(first) {
            cluster.kill(lost).await;
        }
        let down = cluster.kill(first).await;
        let group = go_on_alone(first, &down, &["told"]).await;
        let three = BTreeSet::from([1, 2, 3].map(RaftId));
        assert_eq!((group.voters, group.learners), (three, BTreeSet::new()));
        assert_eq!(Some(group.last), log.last(GROUP));
        cluster.heal();
        cluster.bring_back(first, down).await;
        assert_eq!(cluster.leader().await, first);
        // In a term of its own: the one of what was appended is over.
        let leads_in = cluster.groups(first).leadership(GROUP).unwrap().borrow().term;
        assert!(leads_in > group.term + 1, "{leads_in}");
        cluster.propose(first, "after").await;
        let texts = cluster.part(first).texts();
        assert_eq!(texts[..5], (0..5).map(|n| format!("agreed {n}")).collect::<Vec<_>>());
        assert_eq!(texts[5..], ["not agreed", "told", "after"]);
        // Others come, who get all of it from a log that has been in two clusters.
        for newcomer in [4, 5] {
            cluster.boot(newcomer, crate::disk::SimDisk::new(newcomer), Default::default()).await;
            cluster.open(newcomer, Vec::new()).await;
            cluster.groups(first).add_learner(GROUP, RaftId(newcomer)).await.unwrap();
        }
        cluster.same(first, &[first, 4, 5]).await;
    });
}

/// Also a replica that began with what the leader sent it, and that had no vote.
#[test]
fn a_learner_goes_on_alone_behind_what_its_log_has_given_up() {
    story(async {
        let mut cluster = Cluster::start(2, 1).await;
        cluster.propose_many(1, 5, "early").await;
        cluster.flush(1);
        cluster.purge(1).await;
        cluster.groups(1).add_learner(GROUP, RaftId(2)).await.unwrap();
        cluster.propose(1, "late").await;
        cluster.same(1, &[1, 2]).await;
        // Not only with the contents of the snapshot, which are ahead of what it claims.
        let log = std::sync::Arc::clone(&cluster.groups(2).log);
        let last = cluster.groups(1).log.last(GROUP);
        until("the last entry in its log", || log.last(GROUP) == last).await;
        cluster.kill(1).await;
        let down = cluster.kill(2).await;
        let group = go_on_alone(2, &down, &[]).await;
        assert_eq!((group.voters, group.learners), ([RaftId(1)].into(), [RaftId(2)].into()));
        cluster.bring_back(2, down).await;
        assert_eq!(cluster.leader().await, 2);
        cluster.propose(2, "after").await;
        assert_eq!(cluster.part(2).texts().len(), 7);
    });
}

#[test]
fn a_log_is_looked_at_and_stays_as_it_is() {
    story(async {
        let mut cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        cluster.propose_many(leader, 5, "entry").await;
        let last = cluster.groups(leader).log.last(GROUP).unwrap();
        let down = cluster.kill(leader).await;
        let before = down.disk.settled("log/0000000001.log");
        let log = open(std::sync::Arc::new(crate::disk::PreviewDisk(down.disk.mount()))).await;
        let groups = log.groups().await.unwrap();
        assert_eq!(
            groups.iter().map(|it| (it.group, it.last)).collect::<Vec<_>>(),
            [(GROUP, last)]
        );
        let commands = log.commands(GROUP, None, last).await.unwrap();
        assert_eq!(commands.len(), 5);
        let (third, _) = commands[2];
        assert_eq!(log.commands(GROUP, Some(third), last).await.unwrap().len(), 2);
        log.go_on_alone(GROUP, RaftId(leader), 9, Some(last), Vec::new()).await.unwrap();
        drop(log);
        assert_eq!(down.disk.settled("log/0000000001.log"), before);
    });
}

/// The power goes in the middle of each disk operation; then the same is done again, whole.
#[test]
fn it_can_be_done_again_wherever_it_was_interrupted() {
    let texts = ["a", "b", "c"];
    story(async {
        let mut cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        cluster.propose_many(leader, 3, "entry").await;
        let down = cluster.kill(leader).await;
        let log = open(down.disk.fork().mount()).await;
        let StoppedGroup { last, term, .. } = log.groups().await.unwrap().remove(0);
        let position = |more| Position { term: term + 1, index: last.index + more };
        let mut after = 0;
        loop {
            let disk = down.disk.fork();
            disk.cut_power_after(disk.ops() + after);
            let id = uuid::Uuid::from_u128(1);
            let go_on = async |log: &StoppedLog| {
                let commands = texts.iter().map(|text| command(text)).collect();
                log.go_on_alone(GROUP, RaftId(leader), term + 1, Some(last), commands).await
            };
            let opened =
                StoppedLog::open(disk.mount(), Executor::Inline, id, &Region::default()).await;
            if let Ok(log) = &opened {
                let _ = go_on(log).await;
            }
            let has_ended = disk.take_ended();
            drop(opened);
            if !has_ended {
                disk.cut_power();
            }
            let log = open(disk.mount()).await;
            let found = log.groups().await.unwrap().remove(0);
            assert!(found.last >= last, "cut after {after}: {found:?}");
            go_on(&log).await.unwrap();
            disk.cut_power();
            let log = open(disk.mount()).await;
            let group = log.groups().await.unwrap().remove(0);
            assert_eq!((group.last, group.term), (position(4), term + 1), "cut after {after}");
            assert_eq!(group.voters, BTreeSet::from([RaftId(leader)]));
            let commands = log.commands(GROUP, Some(last), group.last).await.unwrap();
            assert_eq!(commands.len(), texts.len());
            if !has_ended {
                break;
            }
            after += 1;
        }
        assert!(after > 5, "only {after} operations");
    });
}

/// It was to get a replica from members that are lost, and has nothing of it.
#[test]
fn a_group_without_a_log_is_begun_anew() {
    story(async {
        let mut cluster = Cluster::start(1, 0).await;
        let down = cluster.kill(1).await;
        let log = open(down.disk.mount()).await;
        for _ in 0..2 {
            log.begin_alone(GROUP, RaftId(1)).await.unwrap();
        }
        log.close().await.unwrap();
        cluster.bring_back(1, down).await;
        assert_eq!(cluster.leader().await, 1);
        cluster.propose(1, "begun").await;
        assert_eq!(cluster.part(1).texts(), ["begun"]);
    });
}

/// It had a replica before and has let go of it: alone it waits for nobody to get it back from.
#[test]
fn a_group_that_was_left_is_begun_anew() {
    story(async {
        let mut cluster = Cluster::start(1, 1).await;
        cluster.propose_many(1, 3, "let go of").await;
        let down = cluster.shut_down(1).await;
        let log = crate::log::Log::open(down.disk.mount(), Executor::Inline).unwrap();
        log.leave(GROUP).await.unwrap();
        drop(log);
        let log = open(down.disk.mount()).await;
        assert_eq!(log.groups().await.unwrap(), []);
        log.begin_alone(GROUP, RaftId(1)).await.unwrap();
        log.close().await.unwrap();
        cluster.bring_back(1, down).await;
        assert_eq!(cluster.leader().await, 1);
        cluster.propose(1, "begun").await;
    });
}
