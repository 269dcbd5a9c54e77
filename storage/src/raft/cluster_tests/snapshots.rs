//! Replicas that need more than the log still has.

use std::sync::Arc;
use std::time::Duration;

use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::{
    Durability as _, LogStatus as _, Membership as _, Proposals as _, Service,
};

use super::fabric::{Cluster, GROUP, story, until};
use super::part::{Contents, DUMP_BYTES, Stall, part};

/// A leader whose log begins behind its beginning, and a node that has nothing.
async fn purged(voters: u64, entries: usize) -> (Cluster, u64) {
    let cluster = Cluster::start(voters + 1, voters).await;
    let leader = cluster.leader().await;
    cluster.propose_many(leader, entries, "purged").await;
    for node in 1..=voters {
        cluster.flush(node);
    }
    cluster.purge(leader).await;
    (cluster, leader)
}

#[test]
fn a_joiner_gets_a_snapshot_of_what_the_log_has_no_more() {
    story(async {
        let (cluster, leader) = purged(3, 30).await;
        cluster.groups(leader).add_learner(GROUP, RaftId(4)).await.unwrap();
        cluster.same(leader, &[4]).await;
        let position = cluster.part(leader).live().position;
        assert_eq!(cluster.part(4).installed(), [position]);
        cluster.propose_many(leader, 3, "after").await;
        cluster.same(leader, &[1, 2, 3, 4]).await;
        cluster.groups(4).read_index(GROUP).await.unwrap();
    });
}

#[test]
fn a_dump_may_be_ahead_of_what_the_snapshot_claims() {
    story(async {
        let (mut cluster, leader) = purged(1, 10).await;
        // These are in the dump, and the log has them too: the snapshot claims less.
        cluster.propose_many(leader, 10, "beyond the mark").await;
        cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
        cluster.same(leader, &[2]).await;
        assert_eq!(cluster.part(2).texts().len(), 20);
        let position = cluster.part(leader).live().position;
        assert_eq!(cluster.part(2).installed(), [position]);
        until("all of it delivered", || cluster.part(2).handed().last() >= position.as_ref()).await;
        // All that was delivered is durable there already: the part says so, and nothing pins the log.
        cluster.flush(2);
        let mark =
            || cluster.groups(2).progress(GROUP).unwrap().low_water_mark().map(|f| f.position);
        until("a low-water mark", || mark() >= position).await;

        // And after a restart the log gives again what it has, of which nothing is new.
        let down = cluster.kill(2).await;
        cluster.bring_back(2, down).await;
        cluster.propose(leader, "after").await;
        cluster.same(leader, &[2]).await;
        assert_eq!(cluster.part(2).texts().len(), 21);
    });
}

#[test]
fn a_follower_that_was_away_too_long_gets_a_snapshot_over_what_it_has() {
    story(async {
        let mut cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        cluster.propose_many(leader, 5, "all have").await;
        cluster.same(leader, &[1, 2, 3]).await;
        let away = cluster.followers(leader)[0];
        cluster.flush(away);
        let down = cluster.kill(away).await;
        cluster.propose_many(leader, 30, "meanwhile").await;
        cluster.flush(leader);
        let purged = cluster.purge(leader).await;
        cluster.bring_back(away, down).await;
        cluster.same(leader, &[1, 2, 3]).await;
        assert_eq!(cluster.part(away).installed().len(), 1);
        let has_purged = || cluster.groups(away).log.state(GROUP).purged.map(|at| at.index);
        until("a purge", || has_purged() >= Some(purged)).await;
        // It can lead with what it got.
        cluster.propose(leader, "after").await;
        cluster.same(leader, &[1, 2, 3]).await;
        cluster.groups(leader).transfer(GROUP, RaftId(away)).await.unwrap();
        cluster.leader_among(&[away]).await;
        cluster.propose(away, "led by it").await;
    });
}

#[test]
fn a_snapshot_of_many_chunks_arrives_whole() {
    story(async {
        let cluster = Cluster::start(2, 1).await;
        let leader = cluster.leader().await;
        for number in 0..8 {
            cluster.propose(leader, &format!("{number} {}", "x".repeat(400_000))).await;
        }
        cluster.flush(leader);
        cluster.purge(leader).await;
        cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
        cluster.same(leader, &[2]).await;
        assert!(cluster.calls(Service::Snapshot) >= 4);
    });
}

/// When each segment is begun nothing of those before is durable in files, so that nothing can be cut then.
#[test]
fn segments_go_once_what_fills_them_is_durable_without_another_entry() {
    story(async {
        let cluster = Cluster::start(1, 1).await;
        let leader = cluster.leader().await;
        let log = Arc::clone(&cluster.groups(leader).log);
        let text = "x".repeat(900_000);
        while log.segment_count() < 3 {
            cluster.propose(leader, &text).await;
        }
        cluster.flush(leader);
        until("one segment", || log.segment_count() == 1).await;
    });
}

/// A disk of 64 MiB has segments of 4 MiB: what fills them is not to wait for the next turn of its files.
#[test]
fn on_a_small_disk_the_log_asks_for_room_with_each_segment() {
    for (capacity, is_asked) in [(Some(64 << 20), true), (None, false)] {
        story(async move {
            let mut cluster = Cluster::start(1, 1).await;
            let down = cluster.kill(1).await;
            down.disk.set_capacity(capacity);
            cluster.bring_back(1, down).await;
            let leader = cluster.leader().await;
            let log = Arc::clone(&cluster.groups(leader).log);
            let text = "x".repeat(900_000);
            while log.segment_count() < 2 {
                cluster.propose(leader, &text).await;
            }
            // Another entry is applied after whoever waits for the segment has had its turn.
            cluster.propose(leader, "after").await;
            if is_asked {
                until("a wish for room", || cluster.part(leader).is_write_wanted()).await;
            }
            assert_eq!(cluster.part(leader).is_write_wanted(), is_asked, "of {capacity:?}");
            cluster.flush(leader);
            until("one segment", || log.segment_count() == 1).await;
        });
    }
}

/// Power goes while a follower installs, before or after its part has made it durable.
#[test]
fn a_follower_that_loses_power_while_it_installs_recovers() {
    for stall in [Stall::BeforeDurable, Stall::AfterDurable] {
        for has_state in [false, true] {
            story(power_cut_while_installing(stall, has_state));
        }
    }
}

async fn power_cut_while_installing(stall: Stall, has_state: bool) {
    let (mut cluster, leader) = purged(1, 20).await;
    if has_state {
        cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
        cluster.same(leader, &[2]).await;
        cluster.isolate(2);
        cluster.propose_many(leader, 20, "it lacks").await;
        cluster.flush(leader);
        cluster.purge(leader).await;
    }
    let before = cluster.calls(Service::Snapshot);
    cluster.part(2).stall(stall);
    cluster.heal();
    cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
    until("a snapshot under way", || cluster.calls(Service::Snapshot) > before).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let down = cluster.kill(2).await;
    cluster.propose(leader, "meanwhile").await;
    cluster.bring_back(2, down).await;
    cluster.same(leader, &[2]).await;
    cluster.propose(leader, "after").await;
    cluster.same(leader, &[2]).await;
    let position = cluster.part(2).flush().unwrap();
    cluster.groups(2).durable(GROUP, part(), position);
    let mark = || cluster.groups(2).progress(GROUP).unwrap().low_water_mark().map(|f| f.position);
    until("a low-water mark", || mark() >= Some(position)).await;
}

/// Power goes at every single operation of the disk of a joiner, from the first on.
#[test]
fn wherever_a_joiner_loses_power_it_recovers() {
    for ops in 0.. {
        let mut has_ended = false;
        story(async {
            let (mut cluster, leader) = purged(1, 6).await;
            cluster.nodes[&2].disk.cut_power_after(ops);
            cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
            cluster.propose_many(leader, 3, "after").await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            has_ended = cluster.nodes[&2].disk.take_ended();
            let down = cluster.kill(2).await;
            cluster.bring_back(2, down).await;
            cluster.propose(leader, "again").await;
            cluster.same(leader, &[2]).await;
        });
        if !has_ended {
            assert!(ops > 3, "the joiner did only {ops} operations");
            return;
        }
    }
}

/// A joiner without room for what it is sent keeps nothing of it, and is sent it again until there is room.
#[test]
fn a_snapshot_that_finds_no_room_is_sent_again() {
    story(async {
        let (cluster, leader) = purged(1, 20).await;
        cluster.part(2).set_full(true);
        cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
        until("snapshots without room", || cluster.part(2).refused() >= 2).await;
        assert!(cluster.part(2).installed().is_empty());
        assert!(cluster.groups(2).log.state(GROUP).low_water_mark.is_none(), "nothing is durable");
        let failed = tokio::time::timeout(Duration::from_secs(1), cluster.groups(2).failed());
        assert!(failed.await.is_err(), "the node stays");
        cluster.propose(leader, "meanwhile").await;
        cluster.part(2).set_full(false);
        cluster.same(leader, &[2]).await;
    });
}

/// What copies leave to the log on a small disk, bytes.
const LOG_ROOM_BYTES: u64 = 4 << 20;

/// A joiner says before anything is sent that it has no room, and names that until there is some. It is asked seldom.
#[test]
fn nothing_is_sent_to_a_replica_that_has_no_room() {
    story(async {
        let (cluster, leader) = purged(1, 20).await;
        let disk = &cluster.nodes[&2].disk;
        let used: u64 = disk.mount().list("log").unwrap().iter().map(|file| file.len).sum();
        disk.set_capacity(Some(used + LOG_ROOM_BYTES + DUMP_BYTES / 2));
        cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
        until("a want of room", || cluster.groups(2).lacks_room().is_some()).await;
        let asked = cluster.calls(Service::Snapshot);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let asked = cluster.calls(Service::Snapshot) - asked;
        assert!((8..60).contains(&asked), "asked {asked} times in a minute");
        let lacks = cluster.groups(2).lacks_room().unwrap();
        assert!(lacks.contains(&DUMP_BYTES.to_string()), "{lacks}");
        assert!(!cluster.part(2).is_whole() && cluster.part(2).installed().is_empty());
        // Nothing of the log is kept meanwhile for somebody who needs another snapshot anyway.
        let group = cluster.groups(leader).group(GROUP).unwrap();
        until("a pause", || !group.network().snapshots.is_any()).await;
        disk.set_capacity(None);
        cluster.same(leader, &[2]).await;
        assert_eq!(cluster.groups(2).lacks_room(), None);
    });
}

/// Whoever asks for a copy and has no room for it is sent nothing either.
#[test]
fn nothing_is_sent_again_to_a_replica_that_has_no_room() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        cluster.propose_many(leader, 5, "all have").await;
        cluster.same(leader, &[1, 2, 3]).await;
        let damaged = cluster.followers(leader)[0];
        *cluster.part(damaged).live() = Contents::default();
        let disk = &cluster.nodes[&damaged].disk;
        disk.set_capacity(Some(LOG_ROOM_BYTES));
        cluster.groups(damaged).ask_for_copy(GROUP, part()).await.unwrap();
        until("a want of room", || cluster.groups(damaged).lacks_room().is_some()).await;
        assert!(!cluster.part(damaged).is_whole());
        disk.set_capacity(None);
        cluster.groups(damaged).ask_for_copy(GROUP, part()).await.unwrap();
        cluster.same(leader, &[damaged]).await;
        assert_eq!(cluster.groups(damaged).lacks_room(), None);
    });
}

/// However long a snapshot is under way, its receiver goes on from the log behind it, and needs no second one.
#[test]
fn the_log_behind_a_snapshot_is_kept_until_it_has_arrived() {
    story(async {
        let (cluster, leader) = purged(1, 20).await;
        let log = Arc::clone(&cluster.groups(leader).log);
        let before = log.state(GROUP).purged;
        cluster.part(2).stall(Stall::BeforeDurable);
        cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
        until("a whole snapshot", || cluster.part(2).is_whole()).await;
        cluster.propose_many(leader, 5, "meanwhile").await;
        cluster.flush(leader);
        cluster.groups(leader).group(GROUP).unwrap().snapshot().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(log.state(GROUP).purged, before, "it is kept");
        cluster.part(2).stall(Stall::Nowhere);
        cluster.same(leader, &[2]).await;
        assert_eq!(cluster.part(2).installed().len(), 1);
        cluster.purge(leader).await;
    });
}

/// It goes while the first offer is answered, and who is offered a snapshot would need another.
#[test]
fn the_log_behind_a_snapshot_is_kept_from_the_first_offer_on() {
    story(async {
        let (cluster, leader) = purged(1, 20).await;
        let log = Arc::clone(&cluster.groups(leader).log);
        let before = log.state(GROUP).purged;
        cluster.part(2).set_silent(true);
        cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
        until("an offer", || cluster.calls(Service::Snapshot) > 0).await;
        cluster.propose_many(leader, 5, "meanwhile").await;
        cluster.flush(leader);
        let group = cluster.groups(leader).group(GROUP).unwrap();
        group.snapshot().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(log.state(GROUP).purged, before, "it is kept");
        // Not for somebody who never answers.
        until("the end of patience", || !group.network().snapshots.is_any()).await;
        group.snapshot().await;
        until("a purge", || log.state(GROUP).purged > before).await;
        // However often it is offered one.
        let offered = cluster.calls(Service::Snapshot);
        until("another offer", || cluster.calls(Service::Snapshot) > offered).await;
        assert!(group.network().snapshots.is_sent_to(RaftId(2)));
        assert!(!group.network().snapshots.is_any(), "it is kept for nobody");
        cluster.part(2).set_silent(false);
        cluster.same(leader, &[2]).await;
    });
}

/// What is being installed holds up no stop.
#[test]
fn a_node_stops_while_a_snapshot_is_installed() {
    story(async {
        let (mut cluster, leader) = purged(1, 20).await;
        cluster.part(2).stall(Stall::BeforeDurable);
        cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
        until("a whole snapshot", || cluster.part(2).is_whole()).await;
        let down = cluster.shut_down(2).await;
        cluster.bring_back(2, down).await;
        cluster.same(leader, &[2]).await;
    });
}

#[test]
fn a_leader_that_was_restarted_can_send_a_snapshot() {
    story(async {
        let (mut cluster, leader) = purged(1, 10).await;
        let down = cluster.kill(leader).await;
        cluster.bring_back(leader, down).await;
        cluster.leader_among(&[leader]).await;
        cluster.groups(leader).add_learner(GROUP, RaftId(2)).await.unwrap();
        cluster.same(leader, &[2]).await;
        assert_eq!(cluster.part(2).texts().len(), 10);
    });
}

/// A replica whose files of a state machine are damaged holds nothing of it. The leader sends all again,
/// to those who have a replica only.
#[test]
fn a_state_machine_is_sent_again_to_a_replica_that_asks() {
    story(async {
        let cluster = Cluster::start(4, 3).await;
        let leader = cluster.leader().await;
        cluster.propose_many(leader, 5, "all have").await;
        cluster.same(leader, &[1, 2, 3]).await;
        let damaged = cluster.followers(leader).into_iter().find(|node| *node != 4).unwrap();
        *cluster.part(damaged).live() = Contents::default();
        cluster.groups(damaged).ask_for_copy(GROUP, part()).await.unwrap();
        cluster.same(leader, &[damaged]).await;
        assert_eq!(cluster.part(damaged).installed().len(), 1);
        // Nobody sends anything to itself, nor to who has no replica.
        assert!(cluster.groups(leader).ask_for_copy(GROUP, part()).await.is_err());
        assert!(cluster.groups(4).ask_for_copy(GROUP, part()).await.is_err());
        // What is not lacking is not sent.
        cluster.groups(damaged).ask_for_copy(GROUP, part()).await.unwrap();
        cluster.propose(leader, "after").await;
        cluster.same(leader, &[1, 2, 3]).await;
        assert_eq!(cluster.part(damaged).installed().len(), 1);
    });
}
