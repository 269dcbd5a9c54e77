//! Groups as the actors see them: the `ReplicatedLog` port over a real and over a simulated disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shiioo_actors::command::{
    Cause, Command, Envelope, MoveTenant, MovedPiece, Outcome, RemoveNode, SetTenant,
    SystemCommand, TenantCommand,
};
use shiioo_actors::domain::ids::{GroupId, NodeId, Position, RaftId, StateMachineId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::{
    ApplySink, CommittedEntry, Durability as _, LogStatus as _, Membership as _, Payload,
    Proposals as _, ProposeError, Replay, Reply, StoreError,
};
use shiioo_actors::testing::{NoPeers, envelope, tenant, tenant_envelope, text_envelope};
use shiioo_storage::disk::{RealDisk, SimDisk};
use shiioo_storage::{Executor, Groups, GroupsConfig, LogIdentity};

const GROUP: GroupId = GroupId(1);
const RAFT_ID: RaftId = RaftId(11);

fn to_tenant(number: u128, text: &str) -> Envelope {
    text_envelope(tenant(number), text)
}

fn to_system() -> Envelope {
    let node: NodeId = "node-00000000-0000-0000-0000-000000000001".parse().unwrap();
    envelope(Command::System(SystemCommand::RemoveNode(RemoveNode { node })))
}

/// What is done with the replies to commands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Replies {
    Send,
    Keep,
    Drop,
}

/// Answers `Done` to every command and remembers what it was given.
struct Sink {
    replies: Replies,
    handed: Mutex<BTreeMap<GroupId, Vec<Position>>>,
    kept: Mutex<Vec<Reply>>,
}

impl Sink {
    fn new(replies: Replies) -> Arc<Self> {
        Arc::new(Self { replies, handed: Mutex::default(), kept: Mutex::default() })
    }

    fn handed(&self, group: GroupId) -> Vec<Position> {
        self.handed.lock().unwrap().get(&group).cloned().unwrap_or_default()
    }
}

impl ApplySink for Sink {
    fn deliver(&self, group: GroupId, entry: CommittedEntry) {
        if let Payload::Command(_) = entry.payload {
            self.handed.lock().unwrap().entry(group).or_default().push(entry.position);
        }
        match (self.replies, entry.reply) {
            (_, None) | (Replies::Drop, _) => {}
            (Replies::Send, Some(reply)) => reply.send(Outcome::Done),
            (Replies::Keep, Some(reply)) => self.kept.lock().unwrap().push(reply),
        }
    }
}

fn config() -> GroupsConfig {
    let fresh = uuid::Uuid::from_u128(1);
    let log = LogIdentity { expected: None, fresh, region: Region::default() };
    GroupsConfig { log, raft_id: RAFT_ID, election_timeout: Duration::from_millis(1000) }
}

async fn try_start(
    config: GroupsConfig,
    disk: &SimDisk,
    sink: &Arc<Sink>,
) -> Result<Arc<Groups>, StoreError> {
    let sink = Arc::clone(sink) as Arc<dyn ApplySink>;
    Groups::start(config, disk.mount(), Executor::Inline, sink, Arc::new(NoPeers)).await
}

async fn start(disk: &SimDisk, sink: &Arc<Sink>) -> Arc<Groups> {
    try_start(config(), disk, sink).await.unwrap()
}

/// A node that leads [`GROUP`].
async fn leading(disk: &SimDisk, sink: &Arc<Sink>) -> Arc<Groups> {
    let groups = start(disk, sink).await;
    lead(&groups, GROUP).await;
    groups
}

async fn lead(groups: &Groups, group: GroupId) {
    groups.open_group(group, vec![RAFT_ID]).await.unwrap();
    let mut leadership = groups.leadership(group).unwrap();
    leadership.wait_for(|leadership| leadership.here).await.unwrap();
}

/// Proposes again while a fresh leader still refuses.
async fn propose(groups: &Groups, group: GroupId, envelope: Envelope) -> Outcome {
    loop {
        match groups.propose(group, envelope.clone()).await {
            Ok(outcome) => return outcome,
            Err(ProposeError::NoLeader) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_node_leads_without_waiting_for_others_and_goes_on_after_a_restart() {
    /// Far longer than real disks take on a busy machine.
    const ELECTION_TIMEOUT: Duration = Duration::from_secs(20);
    let dir = tempfile::tempdir().unwrap();
    let disk = || Arc::new(RealDisk::new(dir.path()).unwrap());
    let sink = Sink::new(Replies::Send);
    for life in 0..2 {
        let began = tokio::time::Instant::now();
        let handler = Arc::clone(&sink) as Arc<dyn ApplySink>;
        let config = GroupsConfig { election_timeout: ELECTION_TIMEOUT, ..config() };
        let groups = Groups::start(config, disk(), Executor::Threads, handler, Arc::new(NoPeers));
        let groups = groups.await.unwrap();
        lead(&groups, GroupId::SYSTEM).await;
        assert_eq!(propose(&groups, GroupId::SYSTEM, to_system()).await, Outcome::Done);
        assert!(began.elapsed() < ELECTION_TIMEOUT / 2, "{:?}", began.elapsed());
        groups.read_index(GroupId::SYSTEM).await.unwrap();
        let status = groups.groups();
        assert_eq!(status.len(), 1);
        assert_eq!(status[0].leader, Some(RAFT_ID));
        assert!(status[0].term > life);
        assert_eq!((status[0].replicas[0].raft_id, status[0].replicas[0].voter), (RAFT_ID, true));
        groups.shutdown().await;
        assert_eq!(groups.propose(GroupId::SYSTEM, to_system()).await, Err(ProposeError::Stopping));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_durable_is_not_handed_over_again_and_the_rest_is() {
    let (disk, sink) = (SimDisk::new(1), Sink::new(Replies::Send));
    let groups = leading(&disk, &sink).await;
    for number in 0..10 {
        propose(&groups, GROUP, to_tenant(1 + number % 2, "first life")).await;
    }
    let handed = sink.handed(GROUP);
    assert_eq!(handed.len(), 10);
    // One part is durable up to the sixth, the other whole: the floor is the sixth.
    groups.durable(GROUP, StateMachineId::Tenant(tenant(1)), handed[6]);
    groups.durable(GROUP, StateMachineId::Tenant(tenant(2)), handed[9]);
    groups.shutdown().await;
    disk.cut_power();

    let sink = Sink::new(Replies::Send);
    let groups = leading(&disk, &sink).await;
    propose(&groups, GROUP, to_tenant(1, "second life")).await;
    let again = sink.handed(GROUP);
    assert_eq!(again[..again.len() - 1], handed[7..]);
    groups.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_kill_without_a_flush_hands_over_all_that_was_acknowledged() {
    let (disk, sink) = (SimDisk::new(1), Sink::new(Replies::Send));
    let groups = leading(&disk, &sink).await;
    for _ in 0..5 {
        propose(&groups, GROUP, to_tenant(1, "acknowledged")).await;
    }
    disk.cut_power();

    let again = Sink::new(Replies::Send);
    let groups = leading(&disk, &again).await;
    groups.read_index(GROUP).await.unwrap();
    assert_eq!(again.handed(GROUP), sink.handed(GROUP));
}

#[tokio::test(start_paused = true)]
async fn a_part_is_replayed_its_own_entries() {
    let sink = Sink::new(Replies::Send);
    let groups = leading(&SimDisk::new(1), &sink).await;
    lead(&groups, GroupId::SYSTEM).await;
    propose(&groups, GroupId::SYSTEM, to_system()).await;
    for number in 0..6 {
        propose(&groups, GROUP, to_tenant(1 + number % 2, &number.to_string())).await;
    }
    let handed = sink.handed(GROUP);
    let replay = |part, from, upto| groups.replay(GROUP, part, from, upto);
    let first = StateMachineId::Tenant(tenant(1));
    let positions = |found: Replay| -> Vec<Position> {
        assert_eq!(found.next, None);
        found.entries.into_iter().map(|(position, _)| position).collect()
    };
    let all = replay(first, 0, u64::MAX).await.unwrap();
    assert_eq!(positions(all), [handed[0], handed[2], handed[4]]);
    let some = replay(first, handed[0].index + 1, handed[3].index).await.unwrap();
    assert_eq!(positions(some), [handed[2]]);
    assert!(replay(StateMachineId::System, 0, u64::MAX).await.unwrap().entries.is_empty());
    let system = groups.replay(GroupId::SYSTEM, StateMachineId::System, 0, u64::MAX).await.unwrap();
    assert_eq!(system.entries.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_long_replay_comes_in_pieces() {
    let sink = Sink::new(Replies::Send);
    let groups = leading(&SimDisk::new(1), &sink).await;
    for number in 0..60 {
        let text = if number % 6 < 5 { "x".repeat(1 << 20) } else { String::new() };
        propose(&groups, GROUP, to_tenant(1 + u128::from(number % 6 == 5), &text)).await;
    }
    let handed = sink.handed(GROUP);
    for (number, every) in [(1, 0..5), (2, 5..6)] {
        let expected = handed.iter().enumerate().filter(|(at, _)| every.contains(&(at % 6)));
        let (mut from, mut pieces, mut found) = (0, 0, Vec::new());
        loop {
            let piece =
                groups.replay(GROUP, StateMachineId::Tenant(tenant(number)), from, u64::MAX).await;
            let piece = piece.unwrap();
            assert!(piece.entries.len() <= 5, "{} MiB at once", piece.entries.len());
            found.extend(piece.entries.into_iter().map(|(position, _)| position));
            pieces += 1;
            match piece.next {
                Some(next) => from = next,
                None => break,
            }
        }
        assert!(pieces >= 10, "{pieces} pieces of 50 MiB");
        assert_eq!(found, expected.map(|(_, position)| *position).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn groups_that_are_not_here_are_not_led_here() {
    let sink = Sink::new(Replies::Send);
    let groups = start(&SimDisk::new(1), &sink).await;
    assert!(groups.leadership(GROUP).is_none());
    let refused = groups.propose(GROUP, to_tenant(1, "")).await;
    assert_eq!(refused, Err(ProposeError::NotLeader));
    // A group of others, this node not the first of them, waits for them.
    groups.open_group(GROUP, vec![RaftId(RAFT_ID.0 + 1)]).await.unwrap();
    groups.open_group(GROUP, vec![RaftId(RAFT_ID.0 + 1)]).await.unwrap();
    let refused = groups.propose(GROUP, to_tenant(1, "")).await;
    assert_eq!(refused, Err(ProposeError::NoLeader));
    assert!(!groups.leadership(GROUP).unwrap().borrow().here);
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_nobody_leads() {
    let sink = Sink::new(Replies::Send);
    let groups = start(&SimDisk::new(1), &sink).await;
    groups.open_group(GROUP, vec![RAFT_ID, RaftId(RAFT_ID.0 + 1)]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!groups.leadership(GROUP).unwrap().borrow().here);
    let refused = groups.propose(GROUP, to_tenant(1, "")).await;
    assert!(matches!(refused, Err(ProposeError::NoLeader)), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_reply_leaves_the_outcome_unknown() {
    let groups = leading(&SimDisk::new(1), &Sink::new(Replies::Drop)).await;
    let answer = groups.propose(GROUP, to_tenant(1, "")).await;
    assert!(matches!(answer, Err(ProposeError::Unknown(_))), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_part_that_does_not_answer_holds_up_no_other() {
    let sink = Sink::new(Replies::Keep);
    let groups = leading(&SimDisk::new(1), &sink).await;
    let stalled = groups.propose(GROUP, to_tenant(1, "stalled"));
    let other = groups.propose(GROUP, to_tenant(2, "not stalled"));
    let answer = async {
        while sink.kept.lock().unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let reply = sink.kept.lock().unwrap().pop().unwrap();
        reply.send(Outcome::Done);
    };
    let ((), first) = tokio::join!(answer, async {
        tokio::select! {
            biased;
            answer = stalled => ("stalled", answer),
            answer = other => ("other", answer),
        }
    });
    assert_eq!(first, ("other", Ok(Outcome::Done)));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_and_recovers_by_itself() {
    let (disk, sink) = (SimDisk::new(1), Sink::new(Replies::Send));
    let groups = leading(&disk, &sink).await;
    propose(&groups, GROUP, to_tenant(1, "room")).await;
    disk.set_capacity(Some(0));
    let waits = groups.propose(GROUP, to_tenant(1, "no room"));
    let refused_then_room = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let refused = groups.propose(GROUP, to_tenant(1, "refused")).await;
        assert_eq!(refused, Err(ProposeError::DiskFull));
        disk.set_capacity(None);
    };
    let (answer, ()) = tokio::join!(waits, refused_then_room);
    assert_eq!(answer, Ok(Outcome::Done));
    assert_eq!(propose(&groups, GROUP, to_tenant(1, "room again")).await, Outcome::Done);
}

fn used(disk: &SimDisk) -> u64 {
    disk.mount().list("log").unwrap().iter().map(|file| file.len).sum()
}

/// Waits for what must not wait for room.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), what).await.expect("it waits for room")
}

/// What frees the disk passes where it is full, however often it is asked for: up to what votes need.
#[tokio::test(start_paused = true)]
async fn a_full_disk_takes_what_makes_room() {
    let (disk, sink) = (SimDisk::new(1), Sink::new(Replies::Send));
    let groups = leading(&disk, &sink).await;
    propose(&groups, GROUP, to_tenant(1, "room")).await;
    let gone = SetTenant { version: 2, record: None };
    let deletion_of = |bytes: usize| {
        let (who, request_id) = ("admin".to_owned(), "r".repeat(bytes));
        let deletion = tenant_envelope(tenant(1), TenantCommand::Set(gone.clone()));
        Envelope { cause: Some(Cause { who, request_id }), ..deletion }
    };
    // Longer than they are, so that there need not be as many.
    let deletion = || deletion_of(4 << 10);
    disk.set_capacity(Some(used(&disk)));
    groups.found_no_room();
    let refused = groups.propose(GROUP, to_tenant(1, "a write")).await;
    assert_eq!(refused, Err(ProposeError::DiskFull));
    let refused = groups.propose(GROUP, deletion_of(8 << 10)).await;
    assert_eq!(refused, Err(ProposeError::DiskFull), "it is not small");
    let mut taken = 0;
    let refused = loop {
        match soon(groups.propose(GROUP, deletion())).await {
            Ok(outcome) => assert_eq!(outcome, Outcome::Done),
            Err(error) => break error,
        }
        taken += 1;
    };
    assert_eq!((refused, taken > 100), (ProposeError::DiskFull, true), "{taken} were taken");
    // Elections still have room.
    groups.shutdown().await;
    let groups = leading(&disk, &sink).await;
    assert_eq!(groups.propose(GROUP, deletion()).await, Err(ProposeError::DiskFull));
    disk.set_capacity(None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(propose(&groups, GROUP, to_tenant(1, "room again")).await, Outcome::Done);
}

/// A tenant that is copied here by a move takes nothing of what the log needs: its pieces are refused earlier.
#[tokio::test(start_paused = true)]
async fn what_is_copied_here_is_refused_before_the_disk_is_full() {
    let (disk, sink) = (SimDisk::new(1), Sink::new(Replies::Send));
    let groups = leading(&disk, &sink).await;
    propose(&groups, GROUP, to_tenant(1, "room")).await;
    let piece = || {
        let (number, rows, begun, is_last) = (0, Vec::new(), Vec::new(), false);
        let piece = MovedPiece { number, rows, begun, events: vec![1; 100_000], is_last };
        tenant_envelope(tenant(1), TenantCommand::Move(MoveTenant::TakeIn(piece)))
    };
    disk.set_capacity(Some(used(&disk) + (4 << 20) + 150_000));
    assert_eq!(groups.propose(GROUP, piece()).await, Err(ProposeError::DiskFull));
    assert_eq!(propose(&groups, GROUP, to_tenant(1, "a write")).await, Outcome::Done);
    disk.set_capacity(None);
    assert_eq!(propose(&groups, GROUP, piece()).await, Outcome::Done);
}

/// A batch that is too large for the reserve waits in the log, and what makes room would wait behind it.
#[tokio::test(start_paused = true)]
async fn behind_a_batch_that_waits_nothing_is_taken() {
    let (disk, sink) = (SimDisk::new(1), Sink::new(Replies::Send));
    let groups = leading(&disk, &sink).await;
    propose(&groups, GROUP, to_tenant(1, "room")).await;
    disk.set_capacity(Some(used(&disk)));
    let waits = groups.propose(GROUP, to_tenant(1, &"x".repeat(2 << 20)));
    let refused_then_room = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let gone = SetTenant { version: 2, record: None };
        let deletion = tenant_envelope(tenant(1), TenantCommand::Set(gone));
        let refused = soon(groups.propose(GROUP, deletion.clone())).await;
        assert_eq!(refused, Err(ProposeError::DiskFull));
        disk.set_capacity(None);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(groups.propose(GROUP, deletion).await, Ok(Outcome::Done));
    };
    let (answer, ()) = tokio::join!(waits, refused_then_room);
    assert_eq!(answer, Ok(Outcome::Done));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_does_not_hold_up_the_end() {
    let disk = SimDisk::new(1);
    let groups = leading(&disk, &Sink::new(Replies::Send)).await;
    disk.set_capacity(Some(0));
    let proposed = groups.propose(GROUP, to_tenant(1, "no room"));
    let end = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        groups.shutdown().await;
    };
    let (answer, ()) = tokio::join!(proposed, end);
    assert!(matches!(answer, Err(ProposeError::Unknown(_))), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn an_election_timeout_that_cannot_be_divided_is_refused() {
    let config = GroupsConfig { election_timeout: Duration::from_millis(5), ..config() };
    let started = try_start(config, &SimDisk::new(1), &Sink::new(Replies::Send)).await;
    assert!(started.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_stops_the_node_loudly() {
    let disk = SimDisk::new(1);
    let groups = leading(&disk, &Sink::new(Replies::Send)).await;
    disk.fail_syncs(true);
    let answer = groups.propose(GROUP, to_tenant(1, "")).await;
    assert!(matches!(answer, Err(ProposeError::Unknown(_))), "{answer:?}");
    let why = groups.failed().await;
    assert!(why.contains("sync"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn damage_is_refused_at_start() {
    let (disk, sink) = (SimDisk::new(1), Sink::new(Replies::Send));
    let groups = leading(&disk, &sink).await;
    propose(&groups, GROUP, to_tenant(1, "acknowledged")).await;
    groups.shutdown().await;
    disk.flip_bit("log/0000000001.log", 100, 0);
    let refused = try_start(config(), &disk, &sink).await.err();
    assert!(matches!(refused, Some(StoreError::Damaged { .. })), "{refused:?}");
}

/// Names of the log's segments.
fn segments(disk: &SimDisk) -> Vec<String> {
    let entries = disk.mount().list("log").unwrap();
    entries.into_iter().map(|entry| entry.name).collect()
}

#[tokio::test(start_paused = true)]
async fn segments_go_as_the_floor_rises_also_those_of_an_idle_group() {
    let disk = SimDisk::new(1);
    let sink = Sink::new(Replies::Send);
    let groups = start(&disk, &sink).await;
    lead(&groups, GroupId::SYSTEM).await;
    propose(&groups, GroupId::SYSTEM, to_system()).await;
    groups.durable(GroupId::SYSTEM, StateMachineId::System, sink.handed(GroupId::SYSTEM)[0]);
    lead(&groups, GROUP).await;
    let text = "x".repeat(1 << 20);
    for _ in 0..40 {
        propose(&groups, GROUP, to_tenant(1, &text)).await;
        let last = *sink.handed(GROUP).last().unwrap();
        groups.durable(GROUP, StateMachineId::Tenant(tenant(1)), last);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let left = segments(&disk);
    assert!(left.len() <= 2, "{left:?}");
    groups.shutdown().await;

    let sink = Sink::new(Replies::Send);
    let groups = leading(&disk, &sink).await;
    lead(&groups, GroupId::SYSTEM).await;
    propose(&groups, GROUP, to_tenant(1, "after")).await;
    assert_eq!(sink.handed(GROUP).len(), 1, "all before was durable");
    assert!(sink.handed(GroupId::SYSTEM).is_empty());
}
