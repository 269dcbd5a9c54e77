//! Files that another replica's are written to: what they hold, and what is left wherever they are interrupted.

use std::sync::Arc;
use std::time::Duration;

use shiioo_actors::domain::ids::{Position, StateMachineId, TenantId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::{DumpPart, Place, Row, Staging, Store, StoreError, Stores};
use shiioo_storage::disk::{Disk, SimDisk};
use shiioo_storage::{Executor, FileStores};

const TENANT: &str = "00000000-0000-0000-0000-000000000001";

const ROWS: u8 = 6;

/// Bytes of a row of which so many are synced once on their way.
const LARGE: usize = 900_000;

/// Bytes of a row of which so many are synced in the end.
const SMALL: usize = 900;

fn tenant() -> StateMachineId {
    StateMachineId::Tenant(TENANT.parse::<TenantId>().unwrap())
}

fn at(index: u64) -> Position {
    Position { term: 1, index }
}

/// What files hold: the position, the rows by their keys and first bytes, the events.
type Contents = (Option<Position>, Vec<(Vec<u8>, u8)>, Vec<u8>);

fn contents(store: &dyn Store) -> Contents {
    let rows = store.scan(&[0], &[u8::MAX; 4], usize::MAX, false).unwrap();
    let rows = rows.into_iter().map(|(key, value)| (key, value[0])).collect();
    let len = usize::try_from(store.events_len()).unwrap();
    let events = if len == 0 { Vec::new() } else { store.read_events(0, len).unwrap() };
    (store.position(), rows, events)
}

/// The state before: two rows, of which the other replica has one no more, and an event where there are any.
fn old(part: StateMachineId) -> Contents {
    let events = if part == StateMachineId::System { b"".to_vec() } else { b"one\n".to_vec() };
    (Some(at(1)), vec![(b"\x03".to_vec(), 1), (b"gone".to_vec(), 1)], events)
}

/// The state of the other replica.
fn new(part: StateMachineId) -> Contents {
    let events = if part == StateMachineId::System { b"".to_vec() } else { b"one\ntwo\n".to_vec() };
    (Some(at(9)), (0..ROWS).map(|key| (vec![key], 9)).collect(), events)
}

async fn stores(disk: &SimDisk) -> Result<Arc<FileStores>, StoreError> {
    FileStores::open(disk.mount(), Executor::Inline, &Region::default()).await
}

/// A disk with the state before, with the mark of an idle tenant.
async fn disk(seed: u64, part: StateMachineId) -> SimDisk {
    let disk = SimDisk::new(seed);
    let mut store = stores(&disk).await.unwrap().open(part).await.unwrap();
    let (position, rows, events) = old(part);
    if !events.is_empty() {
        store.append_events(&events).unwrap();
    }
    let rows: Vec<Row> = rows.into_iter().map(|(key, first)| (key, Some(vec![first]))).collect();
    store.make_durable(rows, position.unwrap()).await.unwrap();
    store.set_idle(true).await.unwrap();
    drop(store);
    // An operation of a life that went well is durable before the next one begins.
    drop(stores(&disk).await.unwrap().open(part).await.unwrap());
    disk
}

/// Writes what the other replica sends, whose events begin at a byte of all.
async fn stage(
    stores: &FileStores,
    part: StateMachineId,
    events_from: u64,
    row_bytes: usize,
) -> Result<Box<dyn Staging>, StoreError> {
    let mut staging = stores.stage(part, events_from).await?;
    let (position, rows, events) = new(part);
    for (key, first) in rows {
        let row = (key, vec![first; row_bytes]);
        staging.put(DumpPart { rows: vec![row], events: Vec::new() }).await?;
    }
    let events = events[usize::try_from(events_from).unwrap()..].to_vec();
    staging.put(DumpPart { rows: Vec::new(), events }).await?;
    staging.seal(position.unwrap()).await?;
    Ok(staging)
}

/// How files come to the place of others.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// The new events are added to the old ones.
    Over,
    /// All events come, and the replica has added one of them itself meanwhile.
    OverWithMore,
    /// The old files are damaged.
    Cleared,
}

impl Way {
    const ALL: [Self; 3] = [Self::Over, Self::OverWithMore, Self::Cleared];

    fn events_from(self, part: StateMachineId) -> u64 {
        match (self, part) {
            (Self::Over, StateMachineId::Tenant(_)) => 4,
            _ => 0,
        }
    }

    fn place(self, part: StateMachineId) -> Place {
        match self {
            Self::Cleared => Place::Cleared,
            _ => Place::Whole { events: old(part).2.len() as u64 },
        }
    }
}

async fn replace(
    disk: &SimDisk,
    part: StateMachineId,
    way: Way,
    row_bytes: usize,
) -> Result<(), StoreError> {
    let stores = stores(disk).await?;
    let staging = stage(&stores, part, way.events_from(part), row_bytes).await?;
    staging.install(way.place(part)).await
}

/// The names on a disk that are none of a replica's own files.
fn left(disk: &SimDisk) -> Vec<String> {
    let mounted = disk.mount();
    let names = ["", "tenants"].map(|dir| mounted.list(dir).unwrap());
    let names = names.into_iter().flatten().map(|entry| entry.name);
    let own = ["tenants", TENANT, "system.redb", "system.redb.damaged"];
    names.filter(|name| !own.contains(&name.as_str())).collect()
}

#[tokio::test]
async fn staged_files_take_the_place_of_others() {
    for part in [tenant(), StateMachineId::System] {
        for way in Way::ALL {
            let disk = disk(1, part).await;
            replace(&disk, part, way, LARGE).await.unwrap();
            assert_eq!(left(&disk), Vec::<String>::new(), "{part}, {way:?}");
            disk.cut_power();
            let stores = stores(&disk).await.unwrap();
            let store = stores.open(part).await.unwrap();
            assert_eq!(contents(store.as_ref()), new(part), "{part}, {way:?}");
            assert!(!store.is_idle(), "what has come may have work");
            let aside = disk.mount().exists("system.redb.damaged").unwrap();
            assert_eq!(aside, part == StateMachineId::System && way == Way::Cleared);
        }
    }
}

#[tokio::test]
async fn a_replica_without_files_gets_them_whole() {
    let disk = SimDisk::new(1);
    replace(&disk, tenant(), Way::Cleared, LARGE).await.unwrap();
    disk.cut_power();
    let stores = stores(&disk).await.unwrap();
    assert_eq!(contents(stores.open(tenant()).await.unwrap().as_ref()), new(tenant()));
    // Files that are missing are not taken for such.
    stores.remove("00000000-0000-0000-0000-000000000001".parse().unwrap()).await.unwrap();
    let missing =
        stage(&stores, tenant(), 0, SMALL).await.unwrap().install(Place::Whole { events: 0 });
    assert!(matches!(missing.await, Err(StoreError::Damaged { .. })));
}

/// One way to interrupt.
#[derive(Debug, Clone, Copy)]
struct Interruption {
    part: StateMachineId,
    way: Way,
    row_bytes: usize,
    seed: u64,
    is_kill: bool,
}

/// Looks what is there after a start, once the node was killed or lost its power at an operation. `false` when the
/// operation never came.
async fn interrupted(how: Interruption, ops: u64) -> bool {
    let Interruption { part, way, row_bytes, seed, is_kill } = how;
    let story = format!("{how:?}, operation {ops}");
    let disk = disk(seed, part).await;
    match is_kill {
        true => disk.kill_after(ops),
        false => disk.cut_power_after(ops),
    }
    let replaced = replace(&disk, part, way, row_bytes).await;
    let has_ended = disk.take_ended();
    assert!(has_ended || replaced.is_ok(), "{story}: {replaced:?}");
    if !has_ended {
        disk.cut_power();
    }
    let found = |life: &'static str| {
        let (disk, story) = (disk.clone(), story.clone());
        async move {
            let stores = stores(&disk).await.unwrap();
            assert_eq!(left(&disk), Vec::<String>::new(), "{story}, {life}");
            if !stores.exists(part).unwrap() {
                return None;
            }
            let store = stores.open(part).await;
            let store = store.unwrap_or_else(|error| panic!("{story}, {life}: {error}"));
            Some(contents(store.as_ref()))
        }
    };
    let first = found("the next life").await;
    match &first {
        // The log says that there were files: they are missed.
        None => assert_eq!(way, Way::Cleared, "{story}: the files are gone"),
        Some(found) => {
            assert!(*found == old(part) || *found == new(part), "{story}: {found:?}");
            assert!(replaced.is_err() || *found == new(part), "{story}: {found:?}");
        }
    }
    // What was found was acted upon: no power cut takes it back.
    disk.cut_power();
    assert_eq!(found("after a power cut").await, first, "{story}");
    // And another try ends well, whatever was left.
    let again = if first.is_none() { Way::Cleared } else { way };
    if first != Some(new(part)) {
        replace(&disk, part, again, row_bytes).await.unwrap();
        assert_eq!(found("after another try").await, Some(new(part)), "{story}");
    }
    has_ended
}

#[tokio::test]
async fn wherever_it_is_interrupted_the_old_files_are_there_or_the_new_ones() {
    for part in [tenant(), StateMachineId::System] {
        for way in Way::ALL {
            for (seed, is_kill, row_bytes) in [
                (1, false, SMALL),
                (2, false, SMALL),
                (3, false, SMALL),
                (1, true, SMALL),
                (4, false, LARGE),
            ] {
                // One of them is enough: it comes to where its files are not read.
                if row_bytes == LARGE && (part, way) != (tenant(), Way::Over) {
                    continue;
                }
                let how = Interruption { part, way, row_bytes, seed, is_kill };
                let mut ops = 0;
                while interrupted(how, ops).await {
                    ops += 1;
                }
                assert!(ops > 20, "{how:?}: only {ops} operations");
            }
        }
    }
}

#[tokio::test]
async fn what_is_left_of_another_transfer_is_in_nobodys_way() {
    let disk = disk(1, tenant()).await;
    // A life ends in the middle of a transfer.
    let first = stores(&disk).await.unwrap();
    let begun = stage(&first, tenant(), 0, LARGE).await.unwrap();
    let mounted = disk.mount();
    let staged = format!("tenants/staged-{TENANT}");
    assert!(mounted.exists(&format!("{staged}/index.redb")).unwrap());
    assert_eq!(first.tenants().unwrap(), [TENANT.parse().unwrap()], "it is nobody's");
    disk.cut_power();
    drop(begun);
    // The next begins with nothing of it, although nobody has removed it.
    let mounted: Arc<dyn Disk> = disk.mount();
    mounted.create_dir_all(&format!("{staged}/blobs")).unwrap();
    let second = stores(&disk).await.unwrap();
    assert!(!mounted.exists(&staged).unwrap(), "a start removes it");
    mounted.create_dir_all(&format!("{staged}/blobs")).unwrap();
    let staging = stage(&second, tenant(), 4, SMALL).await.unwrap();
    staging.install(Place::Whole { events: 4 }).await.unwrap();
    assert_eq!(contents(second.open(tenant()).await.unwrap().as_ref()), new(tenant()));
    assert_eq!(left(&disk), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_given_up_makes_room_for_the_next() {
    let disk = disk(1, tenant()).await;
    let stores = stores(&disk).await.unwrap();
    let first = stage(&stores, tenant(), 0, SMALL).await.unwrap();
    // There is one place.
    let second = stage(&stores, tenant(), 4, SMALL);
    let mut second = Box::pin(second);
    let waits = tokio::time::timeout(Duration::from_millis(20), &mut second).await;
    assert!(waits.is_err(), "two are staged at once");
    drop(first);
    let second = second.await.unwrap();
    second.install(Place::Whole { events: 4 }).await.unwrap();
    assert_eq!(contents(stores.open(tenant()).await.unwrap().as_ref()), new(tenant()));
}

/// What copies leave to the log on a small disk, bytes.
const LOG_ROOM_BYTES: u64 = 4 << 20;

#[tokio::test]
async fn a_full_disk_ends_a_transfer_and_nothing_is_left_of_it() {
    let disk = disk(1, tenant()).await;
    let stores = stores(&disk).await.unwrap();
    let left = |disk: &SimDisk| left(disk).len();
    disk.set_capacity(Some(used(&disk) + LOG_ROOM_BYTES + (6 << 20)));
    let refused = stage(&stores, tenant(), 4, LARGE).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    assert_eq!(left(&disk), 0);
    disk.set_capacity(None);
    // No room for the events alone: the old state is there whole.
    let staged = stage(&stores, tenant(), 4, LARGE).await.unwrap();
    disk.set_capacity(Some(0));
    let refused = staged.install(Place::Whole { events: 4 }).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    disk.set_capacity(None);
    assert_eq!(contents(stores.open(tenant()).await.unwrap().as_ref()), old(tenant()));
    assert_eq!(left(&disk), 0);
}

fn used(disk: &SimDisk) -> u64 {
    let mounted = disk.mount();
    let dirs = ["".to_owned(), "tenants".to_owned(), format!("tenants/{TENANT}")];
    let listed = dirs.iter().flat_map(|dir| mounted.list(dir).unwrap());
    listed.map(|entry| entry.len).sum()
}

/// A copy is given up before it takes what the log needs, whoever else fills the disk meanwhile.
#[tokio::test]
async fn what_is_staged_leaves_the_log_its_room() {
    let disk = disk(1, tenant()).await;
    let stores = stores(&disk).await.unwrap();
    let row = || DumpPart { rows: vec![(b"a".to_vec(), vec![1; SMALL])], events: Vec::new() };
    let mut staging = stores.stage(tenant(), 0).await.unwrap();
    staging.put(row()).await.unwrap();
    // As much as there is.
    let room = disk.mount().list(&format!("tenants/staged-{TENANT}")).unwrap();
    let room: u64 = room.iter().map(|file| file.len).sum();
    disk.set_capacity(Some(used(&disk) + room + LOG_ROOM_BYTES));
    for refused in [staging.put(row()).await, staging.seal(at(9)).await] {
        assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    }
    drop(staging);
    assert_eq!(left(&disk), Vec::<String>::new());
    let refused = {
        disk.set_capacity(Some(used(&disk) + LOG_ROOM_BYTES));
        stores.stage(tenant(), 0).await
    };
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    assert_eq!(left(&disk), Vec::<String>::new());
}

/// Wherever descriptors end while files are put in place, the files wait for some.
#[tokio::test(start_paused = true)]
async fn a_want_of_descriptors_delays_an_installation_and_loses_nothing() {
    for part in [tenant(), StateMachineId::System] {
        for way in Way::ALL {
            let mut opens = 0;
            loop {
                let story = format!("{part}, {way:?}, {opens} descriptors");
                let disk = disk(1, part).await;
                let stores = stores(&disk).await.unwrap();
                let staging = stage(&stores, part, way.events_from(part), SMALL).await.unwrap();
                disk.set_opens_left(Some(opens));
                let mut install = staging.install(way.place(part));
                let waited = tokio::time::timeout(Duration::from_secs(1), &mut install).await;
                disk.set_opens_left(None);
                let has_waited = waited.is_err();
                match waited {
                    Ok(installed) => installed.unwrap_or_else(|error| panic!("{story}: {error}")),
                    Err(_) => install.await.unwrap_or_else(|error| panic!("{story}: {error}")),
                }
                assert_eq!(left(&disk), Vec::<String>::new(), "{story}");
                disk.cut_power();
                let again = self::stores(&disk).await.unwrap();
                let found = contents(again.open(part).await.unwrap().as_ref());
                assert_eq!(found, new(part), "{story}");
                if !has_waited {
                    break;
                }
                opens += 1;
            }
            assert!(opens > 0, "{part}, {way:?}: it needs none");
        }
    }
}
