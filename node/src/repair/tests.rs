//! Repairs that are interrupted anywhere, over what one real node left behind.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use shiioo_actors::domain::ids::{GroupId, Position, TenantId};
use shiioo_actors::ports::Stores as _;
use shiioo_storage::disk::{DirEntry, DiskFile, DiskLock, OpenMode, SimDisk};
use shiioo_storage::{Executor, FileStores, StoppedLog, StoresConfig};
use tokio::time::timeout;

use super::*;
use crate::client_threads::ClientThreads;
use crate::config::Config;
use crate::node::Node;

/// Longest wait for a node to be ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// Fewer disk operations would mean that the test cuts the power nowhere.
const OPERATIONS_MIN: u64 = 30;
/// The first segment of the log.
const SEGMENT: &str = "log/0000000001.log";

fn seams(disk: &SimDisk) -> NodeSeams {
    // The folder is made and not used: the files are on the simulated disk.
    let unused = tempfile::tempdir().unwrap();
    let real = NodeSeams::real(unused.path(), ClientThreads::Shared).unwrap();
    NodeSeams { disk: disk.mount(), executor: Executor::Inline, ..real }
}

fn config() -> Config {
    let free: SocketAddr = ([127, 0, 0, 1], 0).into();
    Config { api_addr: free, node_addr: free, ..Config::default() }
}

async fn run(disk: &SimDisk) -> Result<Option<Report>, RepairError> {
    repair(Path::new("data"), &seams(disk)).await
}

async fn start(disk: &SimDisk) -> Result<Node, StartError> {
    Node::start(config(), seams(disk)).await
}

/// A lone node that was stopped, and whose log has rotted since.
async fn with_rotten_log() -> (SimDisk, Identity) {
    let disk = SimDisk::new(1);
    let node = start(&disk).await.unwrap();
    timeout(READY_MAX, node.ready()).await.unwrap();
    node.stop().await;
    let identity = Identity::load(&*disk.mount()).unwrap().unwrap();
    let len = disk.mount().open(SEGMENT, OpenMode::Existing).unwrap().len().unwrap();
    disk.flip_bit(SEGMENT, len / 2, 3);
    (disk, identity)
}

/// The positions of the last entries of the groups.
async fn lasts(disk: &SimDisk, identity: &Identity) -> Vec<(GroupId, u64)> {
    let (disk, id) = (disk.fork().mount(), identity.log_id.unwrap());
    let log = StoppedLog::open(disk, Executor::Inline, id, &identity.region).await.unwrap();
    let groups = log.groups().await.unwrap();
    groups.into_iter().map(|group| (group.group, group.last.index)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_has_happened_or_not_or_is_ended_by_the_same_command() {
    let (rotten, before) = with_rotten_log().await;
    assert!(start(&rotten.fork()).await.is_err(), "the damage is not noticed");
    let whole = rotten.fork();
    run(&whole).await.unwrap().expect("a report");
    let expected = lasts(&whole, &before).await;
    assert_eq!(expected.len(), 9);

    let (mut after, mut begun) = (0, 0);
    loop {
        let disk = rotten.fork();
        disk.cut_power_after(after);
        let interrupted = run(&disk).await;
        let was_cut = disk.take_ended();
        if !was_cut {
            disk.cut_power();
        }
        match start(&disk.fork()).await {
            // It starts only where everything has happened: what is left is the removal of the marker.
            Ok(node) => {
                timeout(READY_MAX, node.ready()).await.unwrap();
                node.stop().await;
            }
            Err(StartError::Identity { source: IdentityError::HalfRepaired, .. }) => begun += 1,
            Err(StartError::Services { .. }) => assert_eq!(begun, 0, "cut after {after}"),
            Err(error) => panic!("cut after {after}: {error}"),
        }
        let again = run(&disk).await.unwrap_or_else(|error| panic!("cut after {after}: {error}"));
        disk.cut_power();
        assert_eq!(lasts(&disk, &before).await, expected, "cut after {after}, {again:?}");
        let found = Identity::load(&*disk.mount()).unwrap().unwrap();
        assert_ne!(found.cluster_id, before.cluster_id, "cut after {after}");
        let names = disk.mount().list("").unwrap();
        let of = |prefix: &str| names.iter().filter(|it| it.name.starts_with(prefix)).count();
        assert_eq!((of("repair-"), of("repaired-")), (1, 1), "cut after {after}: {names:?}");
        if !was_cut {
            interrupted.unwrap().expect("a report");
            assert_eq!(run(&disk).await.unwrap(), None, "nothing is damaged any more");
            break;
        }
        after += 1;
    }
    assert!(
        after > OPERATIONS_MIN && begun > OPERATIONS_MIN / 2,
        "{after} operations, {begun} begun"
    );
}

/// A disk with a file that cannot be read.
#[derive(Debug)]
struct BadSector {
    disk: Arc<dyn Disk>,
    file: String,
}

/// The file.
#[derive(Debug)]
struct BadFile(Arc<dyn DiskFile>);

impl Disk for BadSector {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(path, mode)?;
        Ok(if path == self.file { Arc::new(BadFile(file)) } else { file })
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.disk.sync_dir(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        self.disk.list(path)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.disk.remove_file(path)
    }
    fn remove_dir_all(&self, path: &str) -> io::Result<()> {
        self.disk.remove_dir_all(path)
    }
    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }
    fn exists(&self, path: &str) -> io::Result<bool> {
        self.disk.exists(path)
    }
    fn lock(&self, path: &str) -> io::Result<DiskLock> {
        self.disk.lock(path)
    }
}

impl DiskFile for BadFile {
    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        const EIO: i32 = 5;
        Err(io::Error::from_raw_os_error(EIO))
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// The disk has lost a sector of one tenant's index, and the log has rotted: the log is repaired, and the tenant named.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_index_cannot_be_read_holds_up_no_repair() {
    let (disk, identity) = with_rotten_log().await;
    let config = StoresConfig { log: identity.log_id, ..StoresConfig::default() };
    let stores = FileStores::open_with(disk.mount(), Executor::Inline, &identity.region, config);
    let stores = stores.await.unwrap();
    let [bad, good] = [1, 2].map(|id| TenantId::from_uuid(uuid::Uuid::from_u128(id)));
    for tenant in [bad, good] {
        let mut store = stores.open(StateMachineId::Tenant(tenant)).await.unwrap();
        store.make_durable(Vec::new(), Position { term: 1, index: 1 }).await.unwrap();
    }
    drop(stores);
    let file = format!("tenants/{bad}/index.redb");
    let of = |disk: &SimDisk| {
        let bad: Arc<dyn Disk> = Arc::new(BadSector { disk: disk.mount(), file: file.clone() });
        NodeSeams { disk: bad, ..seams(disk) }
    };
    let report = repair(Path::new("data"), &of(&disk)).await.unwrap().expect("a report");
    let told = report.to_string();
    assert!(report.log.is_some(), "{told}");
    let lost: Vec<_> = report.tenants.iter().map(|lost| &lost.id).collect();
    assert_eq!(lost, [&bad.to_string()], "{told}");
    assert!(told.contains(&file) && told.contains("os error 5"), "{told}");
    let node = Node::start(self::config(), of(&disk)).await.unwrap();
    timeout(READY_MAX, node.ready()).await.unwrap();
    node.stop().await;
}
