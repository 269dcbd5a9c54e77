//! The files of parts as the actors see them: the `Stores` port.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shiioo_actors::domain::ids::{Position, StateMachineId, TenantId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::{Row, Store, StoreError, Stores};
use shiioo_storage::disk::{
    DirEntry, Disk, DiskFile, DiskLock, OpenMode, RealDisk, SimDisk, read_small, write_durably,
};
use shiioo_storage::{Executor, FileStores, StoresConfig};
use uuid::Uuid;

const TENANT: &str = "00000000-0000-0000-0000-000000000001";
const INDEX: &str = "tenants/00000000-0000-0000-0000-000000000001/index.redb";
const EVENTS: &str = "tenants/00000000-0000-0000-0000-000000000001/events.jsonl";

fn tenant() -> TenantId {
    TENANT.parse().unwrap()
}

fn part() -> StateMachineId {
    StateMachineId::Tenant(tenant())
}

fn at(index: u64) -> Position {
    Position { term: 1, index }
}

fn put(key: &str, value: &str) -> Row {
    (key.into(), Some(value.into()))
}

fn pair(key: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (key.into(), value.into())
}

async fn stores(disk: Arc<dyn Disk>) -> Arc<FileStores> {
    stores_with(disk, StoresConfig::default()).await
}

async fn stores_with(disk: Arc<dyn Disk>, config: StoresConfig) -> Arc<FileStores> {
    FileStores::open_with(disk, Executor::Inline, &Region::default(), config).await.unwrap()
}

async fn open(disk: &SimDisk) -> Result<Box<dyn Store>, StoreError> {
    stores(disk.mount()).await.open(part()).await
}

/// A store with one durable state, and events behind it that are not durable.
async fn written(disk: &SimDisk) -> Box<dyn Store> {
    let mut store = open(disk).await.unwrap();
    store.append_events(b"one\n").unwrap();
    store.make_durable(vec![put("a", "1"), put("b", "2")], at(1)).await.unwrap();
    store.append_events(b"two\n").unwrap();
    store
}

#[tokio::test]
async fn rows_and_events_come_back() {
    let disk = SimDisk::new(1);
    let mut store = written(&disk).await;
    store.make_durable(vec![put("c", "3"), ("a".into(), None)], at(2)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(store.position(), Some(at(2)));
        assert_eq!(store.get(b"a").unwrap(), None);
        assert_eq!(store.get(b"b").unwrap(), Some(b"2".to_vec()));
        assert_eq!(store.events_len(), 8);
        assert_eq!(store.read_events(4, 4).unwrap(), b"two\n");
        let (b, c) = (pair("b", "2"), pair("c", "3"));
        assert_eq!(store.scan(b"a", b"z", 9, false).unwrap(), [b.clone(), c.clone()]);
        assert_eq!(store.scan(b"a", b"z", 9, true).unwrap(), [c.clone(), b.clone()]);
        assert_eq!(store.scan(b"a", b"z", 1, true).unwrap(), [c]);
        assert_eq!(store.scan(b"a", b"c", 9, true).unwrap(), [b]);
        assert!(store.scan(b"z", b"a", 9, false).unwrap().is_empty());
        assert!(store.read_events(4, 5).is_err(), "too short");
        assert!(store.get(b"b").unwrap().is_some(), "asking for too much breaks nothing");
    }
    drop(store);
    let store = open(&disk).await.unwrap();
    assert_eq!((store.position(), store.events_len()), (Some(at(2)), 8));
}

#[tokio::test]
async fn a_power_cut_leaves_the_last_durable_state_and_its_events() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let store = written(&disk).await;
        disk.cut_power();
        drop(store);
        let store = open(&disk).await.unwrap();
        assert_eq!(store.position(), Some(at(1)));
        assert_eq!(store.events_len(), 4);
        assert_eq!(store.read_events(0, 4).unwrap(), b"one\n");
        assert_eq!(store.stats().unwrap().events_bytes, 4, "the rest is cut off");
        assert_eq!(store.get(b"a").unwrap(), Some(b"1".to_vec()));
    }
}

#[tokio::test]
async fn events_shorter_than_the_index_knows_are_damage() {
    let disk = SimDisk::new(1);
    drop(written(&disk).await);
    let events = disk.mount().open(EVENTS, OpenMode::Existing).unwrap();
    events.set_len(3).unwrap();
    match open(&disk).await.err() {
        Some(StoreError::Damaged { file, offset, .. }) => {
            assert_eq!((file.as_str(), offset), (EVENTS, 3));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_missing_index_beside_events_is_damage() {
    let disk = SimDisk::new(1);
    drop(written(&disk).await);
    disk.mount().remove_file(INDEX).unwrap();
    assert!(matches!(open(&disk).await.err(), Some(StoreError::Damaged { .. })));
}

#[tokio::test]
async fn a_folder_that_was_being_made_is_gone_after_the_next_start() {
    let disk = SimDisk::new(1);
    drop(stores(disk.mount()).await);
    let dir = INDEX.rsplit_once('/').unwrap().0;
    let mounted = disk.mount();
    mounted.create_dir_all(&format!("{dir}/blobs")).unwrap();
    for file in [EVENTS, &format!("{INDEX}.new")] {
        mounted.open(file, OpenMode::OpenOrCreate).unwrap().sync_data().unwrap();
    }
    drop(stores(disk.mount()).await);
    assert!(!disk.mount().exists(dir).unwrap());
}

#[tokio::test]
async fn a_folder_that_cannot_be_read_stays_and_keeps_no_node_from_starting() {
    let disk = SimDisk::new(1);
    drop(stores(disk.mount()).await);
    // Not a file: it cannot be opened.
    disk.mount().create_dir_all(EVENTS).unwrap();
    drop(stores(disk.mount()).await);
    assert!(disk.mount().exists(EVENTS).unwrap());
}

/// Where the bytes `needle` stand in the index.
fn places(disk: &SimDisk, needle: &[u8]) -> Vec<u64> {
    let file = disk.mount().open(INDEX, OpenMode::Existing).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    let found = bytes.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
    found.map(|(at, _)| at as u64).collect()
}

#[tokio::test]
async fn any_flipped_bit_of_a_rows_value_is_damage_and_breaks_the_store() {
    const VALUE: &str = "a value that is nowhere else";
    let disk = SimDisk::new(1);
    let mut store = open(&disk).await.unwrap();
    store.make_durable(vec![put("key", VALUE), put("other", "2")], at(1)).await.unwrap();
    drop(store);
    let places = places(&disk, VALUE.as_bytes());
    assert!(!places.is_empty());
    // The value and the checksum behind it.
    for offset in 0..VALUE.len() as u64 + 4 {
        let bit = u8::try_from(offset % 8).unwrap();
        let disk = disk.fork();
        for place in &places {
            disk.flip_bit(INDEX, place + offset, bit);
        }
        let store = open(&disk).await.unwrap();
        match store.get(b"key") {
            Err(StoreError::Damaged { file, what, .. }) => {
                assert!(file.ends_with("index.redb") && what.contains("key"), "{file}: {what}");
            }
            other => panic!("byte {offset}: {other:?}"),
        }
        assert!(matches!(store.failure(), Some(StoreError::Damaged { .. })));
        assert!(store.get(b"other").is_err(), "nothing is served from it any more");
    }
}

#[tokio::test]
async fn files_of_another_log_are_damage() {
    let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let disk = SimDisk::new(1);
    let open = async |log| {
        let config = StoresConfig { log: Some(log), ..StoresConfig::default() };
        stores_with(disk.mount(), config).await.open(part()).await
    };
    let mut store = open(one).await.unwrap();
    store.make_durable(vec![put("a", "1")], at(1)).await.unwrap();
    drop(store);
    assert_eq!(open(one).await.unwrap().position(), Some(at(1)));
    match open(two).await.err() {
        Some(StoreError::Damaged { what, .. }) => assert!(what.contains("another node"), "{what}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_damaged_index_is_refused() {
    let disk = SimDisk::new(1);
    drop(written(&disk).await);
    disk.mount().open(INDEX, OpenMode::Existing).unwrap().write_at(0, b"not redb").unwrap();
    assert!(open(&disk).await.is_err());
}

#[tokio::test]
async fn a_store_that_failed_is_broken_until_it_is_opened_again() {
    let disk = SimDisk::new(1);
    let mut store = written(&disk).await;
    disk.fail_syncs(true);
    assert!(store.make_durable(vec![put("d", "4")], at(3)).await.is_err());
    disk.fail_syncs(false);
    assert!(store.get(b"b").is_err());
    assert!(store.make_durable(vec![], at(4)).await.is_err());
    drop(store);
    let store = open(&disk).await.unwrap();
    assert_eq!(store.position(), Some(at(1)), "nothing was made durable when it was closed");
}

#[tokio::test]
async fn a_full_disk_is_told_as_such() {
    let disk = SimDisk::new(1);
    let mut store = written(&disk).await;
    disk.set_capacity(Some(0));
    assert!(matches!(store.append_events(b"three\n"), Err(StoreError::Full)));
    drop(store);
    disk.set_capacity(None);
    let store = open(&disk).await.unwrap();
    assert_eq!(store.events_len(), 4);
}

#[tokio::test]
async fn a_removed_tenant_is_gone_and_its_leftovers_too() {
    let disk = SimDisk::new(1);
    let files = stores(disk.mount()).await;
    drop(files.open(part()).await.unwrap());
    assert!(files.exists(part()).unwrap());
    assert_eq!(files.tenants().unwrap(), [tenant()]);
    files.remove(tenant()).await.unwrap();
    files.remove(tenant()).await.unwrap();
    disk.cut_power();
    let mounted = disk.mount();
    mounted.create_dir_all(&format!("tenants/trash-{TENANT}/blobs")).unwrap();
    let files = stores(Arc::clone(&mounted)).await;
    assert!(!files.exists(part()).unwrap());
    assert!(files.tenants().unwrap().is_empty());
    assert!(mounted.list("tenants").unwrap().is_empty());
    let store = files.open(part()).await.unwrap();
    assert_eq!(store.position(), None);
}

#[tokio::test]
async fn the_control_plane_has_an_index_and_no_events() {
    let disk = SimDisk::new(1);
    let files = stores(disk.mount()).await;
    let mut store = files.open(StateMachineId::System).await.unwrap();
    store.make_durable(vec![put("a", "1")], at(1)).await.unwrap();
    assert!(store.append_events(b"no").is_err());
    let stats = store.stats().unwrap();
    assert_eq!((stats.file_count, stats.events_bytes), (1, 0));
    assert!(stats.index_bytes > 0);
    drop(store);
    assert_eq!(files.open(StateMachineId::System).await.unwrap().position(), Some(at(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn on_files_of_the_system_a_part_is_open_once_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::new(dir.path()).unwrap());
    let files =
        FileStores::open(disk.clone(), Executor::Threads, &Region::default()).await.unwrap();
    for round in 1..=20 {
        let mut store = files.open(part()).await.unwrap();
        store.append_events(b"line\n").unwrap();
        // The close of the one before, on another thread, has ended: nothing is lost.
        assert_eq!(store.events_len(), 5 * round);
        store.make_durable(vec![put("round", &round.to_string())], at(round)).await.unwrap();
    }
    let blobs = dir.path().join("tenants").join(TENANT).join("blobs");
    disk.create_dir_all(&format!("tenants/{TENANT}/blobs/ab")).unwrap();
    assert!(blobs.exists());
    write_durably(disk.as_ref(), &format!("tenants/{TENANT}/blobs/ab/cd"), b"blob").unwrap();
    let store = files.open(part()).await.unwrap();
    let stats = store.stats().unwrap();
    assert_eq!((stats.file_count, stats.blobs_bytes, stats.events_bytes), (3, 4, 100));
}

#[test]
fn small_files_are_replaced_whole() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let mounted = disk.mount();
        assert_eq!(read_small(mounted.as_ref(), "node.id").unwrap(), None);
        write_durably(mounted.as_ref(), "node.id", b"first").unwrap();
        disk.cut_power_after(3);
        let written = write_durably(mounted.as_ref(), "node.id", b"second");
        assert!(written.is_err());
        let found = read_small(disk.mount().as_ref(), "node.id").unwrap().unwrap();
        assert!(found == b"first" || found == b"second", "{found:?}");
    }
}

#[test]
fn paths_do_not_leave_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::new(dir.path()).unwrap();
    for path in ["../x", "/etc/passwd", "a/../../x"] {
        assert!(disk.open(path, OpenMode::OpenOrCreate).is_err(), "{path}");
    }
    let held = disk.lock("node.lock").unwrap();
    assert!(disk.lock("node.lock").is_err());
    drop(held);
    disk.lock("node.lock").unwrap();
}

#[tokio::test]
async fn files_that_cannot_be_looked_for_are_not_taken_for_missing_ones() {
    let disk = SimDisk::new(1);
    let files = stores(disk.mount()).await;
    let mut store = files.open(part()).await.unwrap();
    store.append_events(b"one\n").unwrap();
    store.make_durable(vec![put("a", "1")], at(3)).await.unwrap();
    drop(store);
    disk.fail_reads(1.0);
    assert!(matches!(files.exists(part()), Err(StoreError::Io { .. })));
    assert!(files.tenants().is_err());
    assert!(files.open(part()).await.is_err());
    assert!(files.remove(tenant()).await.is_err());
    disk.fail_reads(0.0);
    assert!(files.exists(part()).unwrap());
    assert_eq!(files.open(part()).await.unwrap().position(), Some(at(3)));
}

fn numbered(number: u32) -> StateMachineId {
    StateMachineId::Tenant(format!("00000000-0000-0000-0000-{number:012}").parse().unwrap())
}

/// The one who used his files least recently is asked, each once, until somebody closes them.
#[tokio::test(start_paused = true)]
async fn no_more_are_open_than_allowed_and_the_least_used_are_asked_to_close() {
    let config = StoresConfig { open_stores: 3, ..StoresConfig::default() };
    let files = stores_with(SimDisk::new(1).mount(), config).await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let mut open = Vec::new();
    for number in 0..3 {
        let mut store = files.open(numbered(number)).await.unwrap();
        let asked = Arc::clone(&asked);
        store.on_wanted(Box::new(move || asked.lock().unwrap().push(number)));
        open.push(store);
    }
    assert_eq!(open[0].get(b"a").unwrap(), None);
    let opening = Arc::clone(&files);
    let mut fourth = tokio::spawn(async move { opening.open(numbered(3)).await.unwrap() });
    let waits = tokio::time::timeout(Duration::from_secs(1), &mut fourth).await;
    assert!(waits.is_err(), "a fourth is open");
    assert_eq!(*asked.lock().unwrap(), [1, 2, 0]);
    drop(open.remove(1));
    let fourth = fourth.await.unwrap();
    // The control plane is never asked and never waits.
    drop(files.open(StateMachineId::System).await.unwrap());
    drop((fourth, open));
    for number in 0..20 {
        drop(files.open(numbered(number)).await.unwrap());
    }
}

#[tokio::test]
async fn the_mark_of_an_idle_tenant_is_gone_for_good_once_it_is_taken_away() {
    let marked = async |files: &FileStores| {
        let with_work = files.tenants_with_work().await.unwrap();
        assert_eq!(files.tenants().unwrap(), [tenant()]);
        !with_work.contains(&tenant())
    };
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let files = stores(disk.mount()).await;
        let mut store = files.open(part()).await.unwrap();
        assert!(!store.is_idle() && !marked(&files).await, "unknown is not idle");
        store.set_idle(true).await.unwrap();
        assert!(store.is_idle() && marked(&files).await);
        let before = store.stats().unwrap();
        drop(store);
        let mut store = files.open(part()).await.unwrap();
        assert!(store.is_idle(), "it stays");
        assert_eq!(store.stats().unwrap(), before, "no file of the tenant's own");
        store.set_idle(false).await.unwrap();
        disk.cut_power();
        let files = stores(disk.mount()).await;
        assert!(!marked(&files).await, "seed {seed}: a power cut brought it back");
    }
}

/// A disk that has no descriptors for a while.
#[derive(Debug)]
struct Scarce {
    disk: Arc<dyn Disk>,
    left: AtomicI32,
}

impl Scarce {
    fn take(&self) -> io::Result<()> {
        const EMFILE: i32 = 24;
        let is_over = self.left.fetch_sub(1, Ordering::Relaxed) <= 0;
        if is_over { Ok(()) } else { Err(io::Error::from_raw_os_error(EMFILE)) }
    }
}

impl Disk for Scarce {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.take()?;
        self.disk.open(path, mode)
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.take()?;
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

#[tokio::test(start_paused = true)]
async fn a_lack_of_descriptors_is_waited_for() {
    let scarce = Arc::new(Scarce { disk: SimDisk::new(1).mount(), left: AtomicI32::new(0) });
    let files = stores(Arc::clone(&scarce) as Arc<dyn Disk>).await;
    scarce.left.store(7, Ordering::Relaxed);
    let store = files.open(part()).await.unwrap();
    scarce.left.store(3, Ordering::Relaxed);
    drop(store);
    files.remove(tenant()).await.unwrap();
    assert!(files.tenants().unwrap().is_empty());
}
