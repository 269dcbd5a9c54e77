//! Recoveries that are interrupted anywhere, over what two real nodes left behind.

use std::net::SocketAddr;
use std::time::Duration;

use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::domain::region::Region;
use shiioo_storage::Executor;
use shiioo_storage::disk::SimDisk;
use tokio::time::timeout;

use super::*;
use crate::client_threads::ClientThreads;
use crate::config::Config;
use crate::identity::LoadedIdentity;
use crate::node::Node;

/// Longest wait for a node to be ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// Fewer disk operations would mean that the test cuts the power nowhere.
const OPERATIONS_MIN: u64 = 30;

fn seams(disk: &SimDisk) -> NodeSeams {
    // The folder is made and not used: the files are on the simulated disk.
    let unused = tempfile::tempdir().unwrap();
    let real = NodeSeams::real(unused.path(), ClientThreads::Shared).unwrap();
    NodeSeams { disk: disk.mount(), executor: Executor::Inline, ..real }
}

fn config(join: &[SocketAddr]) -> Config {
    let free: SocketAddr = ([127, 0, 0, 1], 0).into();
    Config {
        api_addr: free,
        node_addr: free,
        join: join.iter().map(ToString::to_string).collect(),
        ..Config::default()
    }
}

/// What is left of the first of two nodes.
async fn left_of_two() -> SimDisk {
    let (disk, lost) = (SimDisk::new(1), SimDisk::new(2));
    let first = Node::start(config(&[]), seams(&disk)).await.unwrap();
    let second = Node::start(config(&[first.node_addr()]), seams(&lost)).await.unwrap();
    timeout(READY_MAX, second.ready()).await.unwrap();
    timeout(READY_MAX, first.ready()).await.unwrap();
    // The first keeps its vote in every group.
    disk.cut_power();
    first.stop().await;
    second.stop().await;
    disk
}

async fn run(disk: &SimDisk, is_forced: bool) -> Result<Report, RecoverError> {
    recover(Path::new("data"), &seams(disk), is_forced).await
}

fn identity(disk: &SimDisk) -> Result<Identity, IdentityError> {
    match Identity::load_or_create(&*disk.mount(), &seams(disk).seams, &Region::default(), false)? {
        LoadedIdentity::Member(identity) => Ok(*identity),
        LoadedIdentity::Candidate(candidate) => panic!("{candidate:?}"),
    }
}

async fn voters(disk: &SimDisk, log_id: Uuid) -> Vec<Vec<u64>> {
    let region = Region::default();
    let log = StoppedLog::open(disk.fork().mount(), Executor::Inline, log_id, &region);
    let groups = log.await.unwrap().groups().await.unwrap();
    groups.into_iter().map(|group| group.voters.into_iter().map(|id| id.0).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_has_happened_or_not_or_is_ended_by_the_same_command() {
    let left = left_of_two().await;
    let before = identity(&left).unwrap();
    let log_id = before.log_id.unwrap();
    assert_eq!(voters(&left, log_id).await, vec![vec![1, 2]; 9]);
    let told = run(&left, false).await.unwrap();
    assert_eq!(voters(&left, log_id).await, vec![vec![1, 2]; 9], "it was not forced");
    assert!(told.to_string().contains("members that are given up: 1"), "{told}");

    let (mut after, mut begun) = (0, 0);
    loop {
        let disk = left.fork();
        disk.cut_power_after(after);
        let interrupted = run(&disk, true).await;
        let was_cut = disk.take_ended();
        if !was_cut {
            disk.cut_power();
        }
        match identity(&disk) {
            // Nothing has happened, as far as anybody can tell.
            Ok(found) if found == before => {
                assert_eq!(voters(&disk, log_id).await, vec![vec![1, 2]; 9], "cut after {after}");
                run(&disk, true).await.unwrap();
            }
            Ok(found) => assert!(found.former.is_some(), "cut after {after}: {found:?}"),
            Err(IdentityError::HalfRecovered) => {
                begun += 1;
                run(&disk, true).await.unwrap_or_else(|error| panic!("cut after {after}: {error}"));
            }
            Err(error) => panic!("cut after {after}: {error}"),
        }
        disk.cut_power();
        let found = identity(&disk).unwrap();
        assert_ne!(found.cluster_id, before.cluster_id);
        assert_eq!(voters(&disk, log_id).await, vec![vec![1]; 9], "cut after {after}");
        let reports = disk.mount().list("").unwrap();
        let reports = reports.iter().filter(|it| it.name.starts_with("recovery-"));
        assert_eq!(reports.filter(|it| it.name.ends_with(".json")).count(), 1);
        if !was_cut {
            interrupted.unwrap();
            assert!(matches!(run(&disk, true).await, Err(RecoverError::AlreadyAlone)));
            let node = Node::start(config(&[]), seams(&disk)).await.unwrap();
            timeout(READY_MAX, node.ready()).await.unwrap();
            assert_eq!(node.groups().len(), 9);
            node.stop().await;
            break;
        }
        after += 1;
    }
    assert!(
        after > OPERATIONS_MIN && begun > OPERATIONS_MIN / 2,
        "{after} operations, {begun} begun"
    );
}

/// The log remembers how far the replica went that it had before: the one that came back lacks what is between.
#[test]
fn a_replica_that_came_back_and_had_not_caught_up_is_told() {
    let at = |index| Position { term: 3, index };
    let stopped = |left| shiioo_storage::StoppedGroup {
        group: GroupId(4),
        last: at(7),
        term: 3,
        committed: None,
        left,
        voters: [RaftId(1), RaftId(2)].into(),
        learners: [].into(),
    };
    let told = |left| {
        let kept = report::KeptGroup::of(&stopped(left).into(), RaftId(1), &BTreeMap::new());
        (serde_json::to_value(&kept).unwrap()["had_before"].clone(), kept.to_string())
    };
    let (had, text) = told(Some(at(9)));
    assert_eq!(had["index"], 9);
    assert!(text.contains("up to 3-9 IS missing"), "{text}");
    for caught_up in [None, Some(at(7)), Some(at(2))] {
        let (had, text) = told(caught_up);
        assert!(had.is_null() && text.contains("may be missing"), "{text}");
    }
}
