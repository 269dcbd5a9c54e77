//! A full disk, and a process without descriptors: the log waits, and loses nothing.

use std::sync::Arc;
use std::time::Duration;

use shiioo_actors::domain::ids::Position;
use shiioo_actors::testing::{tenant, text_envelope};

use super::{GROUP, append, begin_append, entry, now, open, read, segment_bytes, simulate, vote};
use crate::disk::{Shortage, SimDisk};
use crate::executor::{Executor, Pace};
use crate::log::record::{Body, LogEntry};
use crate::log::{Log, Op, segment};

/// How often the log looks for room.
const RETRY: Duration = Shortage::Room.retry_after();

#[test]
fn a_full_disk_delays_and_loses_nothing() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    append(&log, GROUP, vec![entry(1, 0)]).unwrap();
    simulate(async {
        let written = segment_bytes(&disk, 1);
        disk.set_capacity(Some(written.len() as u64 + 45));
        let mut told = begin_append(&log, GROUP, vec![entry(1, 1)]).await;
        assert!(log.is_full() && told.try_recv().is_err());
        assert_eq!(segment_bytes(&disk, 1), written, "what found room is cut off again");
        disk.set_capacity(None);
        told.await.unwrap().unwrap();
        assert!(!log.is_full());
    });
    append(&log, GROUP, vec![entry(1, 2)]).unwrap();
    assert_eq!(read(&open(&disk).unwrap(), GROUP).len(), 3);
}

/// Wherever in the change of segments the descriptors end: the log waits, and loses nothing.
#[test]
fn a_lack_of_descriptors_delays_and_loses_nothing() {
    const ENTRIES: u64 = 60;
    for opens in 0..6 {
        let disk = SimDisk::new(opens);
        let log = Log::open_sized(disk.mount(), Executor::Inline, 400).unwrap();
        let waited = simulate(async {
            let mut waited = 0;
            for index in 0..ENTRIES {
                disk.set_opens_left(Some(opens));
                let mut told = begin_append(&log, GROUP, vec![entry(1, index)]).await;
                if let Ok(done) = told.try_recv() {
                    done.unwrap();
                } else {
                    waited += 1;
                    assert!(!log.is_full(), "a lack of descriptors is no full disk");
                    disk.set_opens_left(None);
                    told.await.unwrap().unwrap();
                }
                // Old segments go, so that there is one to remove at most changes. Seldom enough
                // that it is appending that begins most segments.
                if index % 4 == 3 {
                    disk.set_opens_left(None);
                    let upto = Position { term: 1, index: index - 1 };
                    log.write(GROUP, vec![Op::Purge(upto)]).await.unwrap();
                }
            }
            waited
        });
        assert_eq!(waited > 0, opens < 2, "with {opens} descriptors {waited} batches waited");
        disk.set_opens_left(None);
        now(log.close()).unwrap();
        let found = read(&open(&disk).unwrap(), GROUP);
        assert_eq!(found.last(), Some(&entry(1, ENTRIES - 1)), "with {opens} descriptors");
        let segments = disk.mount().list(segment::LOG_DIR).unwrap().len();
        assert!(segments <= 3, "{segments} segments are left with {opens} descriptors");
    }
}

/// What is proposed before anybody knows that the disk is full is written all the same; from then
/// on the disk is full, until there is room beside the reserve.
#[test]
fn what_meets_a_full_disk_first_is_written_into_the_reserve() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    append(&log, GROUP, vec![entry(1, 0)]).unwrap();
    let used: u64 = disk.mount().list("log").unwrap().iter().map(|file| file.len).sum();
    simulate(async {
        disk.set_capacity(Some(used));
        log.write(GROUP, vec![Op::Append(vec![entry(1, 1)])]).await.unwrap();
        assert!(log.is_full());
        tokio::time::sleep(RETRY * 3).await;
        assert!(log.is_full(), "what it gave is not there to be taken back");
        // And a vote, after a start.
        drop(log);
        let log = open(&disk).unwrap();
        assert!(log.is_full());
        log.write(GROUP, vec![Op::Vote(vote(2))]).await.unwrap();
        disk.set_capacity(Some(used + (4 << 20)));
        tokio::time::sleep(RETRY * 2).await;
        assert!(!log.is_full());
    });
    assert_eq!(read(&open(&disk).unwrap(), GROUP).len(), 2);
}

/// However many small commands come at once on a full disk, in one append or in many, the reserve takes them, and
/// what comes behind them.
#[test]
fn many_small_entries_on_a_full_disk_make_no_batch_that_waits() {
    // Two MiB hold them, but not in a large batch: those leave more than a third to others.
    // More than a large batch gets, which leaves some of the reserve to others, and less than there is.
    const MANY: u64 = 180;
    const BYTES: usize = 8 << 10;
    for at_once in [1, MANY] {
        let (disk, pace) = (SimDisk::new(1), Pace::default());
        let log = Log::open(disk.mount(), Executor::Paced(pace.clone())).unwrap();
        let used: u64 = disk.mount().list("log").unwrap().iter().map(|file| file.len).sum();
        simulate(async {
            pace.set(Duration::from_millis(1));
            disk.set_capacity(Some(used));
            log.found_no_room();
            let small = |index| {
                let body =
                    Body::Command(Arc::new(text_envelope(tenant(1), "x".repeat(BYTES - 200))));
                LogEntry { position: Position { term: 1, index }, body }
            };
            let entries: Vec<_> = (0..MANY).map(small).collect();
            let mut told = Vec::new();
            for entries in entries.chunks(usize::try_from(at_once).unwrap()) {
                told.push(begin_append(&log, GROUP, entries.to_vec()).await);
            }
            let voted = log.write(GROUP, vec![Op::Vote(vote(2))]);
            tokio::time::timeout(RETRY / 2, voted).await.expect("it waits for room").unwrap();
            for told in told {
                told.await.unwrap().unwrap();
            }
            assert!(log.is_full());
        });
        drop(log);
        let log = open(&disk).unwrap();
        assert_eq!((read(&log, GROUP).len() as u64, log.state(GROUP).vote), (MANY, Some(vote(2))));
    }
}

/// Files of a tenant may find no room before the log does, which has its reserve.
#[test]
fn a_caller_that_finds_no_room_first_tells_the_log() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    let used: u64 = disk.mount().list("log").unwrap().iter().map(|file| file.len).sum();
    simulate(async {
        disk.set_capacity(Some(used + 1000));
        assert!(!log.is_full());
        log.found_no_room();
        assert!(log.is_full());
        tokio::time::sleep(RETRY * 3).await;
        assert!(log.is_full());
        disk.set_capacity(None);
        tokio::time::sleep(RETRY * 2).await;
        assert!(!log.is_full());
    });
}
