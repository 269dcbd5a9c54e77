//! Recovery against every kind of broken file, and the log on a disk that fails or is full.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use shiioo_actors::command::{Command, Envelope, TenantCommand};
use shiioo_actors::domain::ids::{Epoch, GroupId, Position, StateMachineId};
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::StoreError;

use super::record::{self, Body, Floor, LogEntry, Members, Record, Vote};
use super::segment::HEAD_BYTES;
use super::tests::{append, entry, now, open, read};
use super::{FULL_RETRY, Log, Op, segment, witnessed_log_bytes};
use crate::disk::{OpenMode, SimDisk};
use crate::executor::{Executor, Pace};

const GROUP: GroupId = GroupId(3);

fn first_segment(disk: &SimDisk) -> Vec<u8> {
    let file = disk.mount().open(&segment::path(1), OpenMode::Existing).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

/// A disk with a log whose first segment holds these bytes.
fn with_first_segment(bytes: &[u8]) -> SimDisk {
    let disk = SimDisk::new(1);
    let mounted = disk.mount();
    mounted.create_dir_all(segment::LOG_DIR).unwrap();
    let file = mounted.open(&segment::path(1), OpenMode::CreateNew).unwrap();
    file.write_at(0, bytes).unwrap();
    disk
}

/// The bytes of a log after every batch: its beginning, then two entries at a time.
fn batches(count: u64) -> Vec<Vec<u8>> {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    let mut all = vec![first_segment(&disk)];
    for batch in 0..count {
        append(&log, GROUP, vec![entry(1, 2 * batch), entry(1, 2 * batch + 1)]).unwrap();
        all.push(first_segment(&disk));
    }
    all
}

/// The bytes of version 2. When this fails, old logs can no longer be read: raise the version.
#[test]
fn this_version_is_written_as_ever() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    log.set_part(StateMachineId::System, Position { term: 2, index: 0 });
    let vote = Vote { term: 2, node: 9, committed: true };
    now(log.write(GROUP, vec![Op::Vote(vote)])).unwrap();
    let position = Position { term: 2, index: 0 };
    let members = Members { voters: vec![vec![9]], nodes: vec![9] };
    let first = LogEntry { position, body: Body::Members(members.clone()) };
    append(&log, GROUP, vec![first]).unwrap();
    log.set_floor(GROUP, Floor { position, members: Some((position, members)) });
    now(log.write(GROUP, vec![Op::Truncate(1), Op::Purge(position)])).unwrap();
    now(log.close()).unwrap();
    let hex: String = first_segment(&disk).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, GOLDEN);
}

/// What version 1 wrote is read, and goes on in a segment of this version.
#[test]
fn the_first_version_is_read_and_given_an_id() {
    let old: Vec<u8> = (0..GOLDEN_1.len() / 2)
        .map(|at| u8::from_str_radix(&GOLDEN_1[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let disk = with_first_segment(&old);
    disk.mount().open("system.redb", OpenMode::CreateNew).unwrap();
    let position = Position { term: 2, index: 0 };
    for _ in 0..2 {
        let log = open(&disk).unwrap();
        assert_eq!(log.state(GROUP).vote, Some(Vote { term: 2, node: 9, committed: true }));
        assert_eq!(log.last(GROUP), Some(position));
        assert_eq!(log.segment_count(), 2, "given an id once");
        assert_eq!(log.part(StateMachineId::System), Some(Position::default()));
    }
    append(&open(&disk).unwrap(), GROUP, vec![entry(3, 1)]).unwrap();
    assert_eq!(read(&open(&disk).unwrap(), GROUP), [entry(3, 1)]);
}

/// Version 1: without an id and without parts.
const GOLDEN_1: &str = concat!(
    "736869696f6c6f670100000001000000000000000000000095cf43c1020000000932531500000000",
    "010005000000053409082a00000002030209011b00000057f72c4c3b000000030300000000000000",
    "0000000002000000000000000201010901090c000000fbf686176200000006030200010200010109",
    "01090300000069f803ed62000000040301040000002f0110756200000005030200010000002fd000",
    "b39900000007",
);

const GOLDEN: &str = concat!(
    "736869696f6c6f670200000001000000000000000000000000000000000000000000000000000001",
    "488a7dbf03000000943f1aa40000000008000005000000ccab62403b000000090001020005000000",
    "3762b2b33b00000002030209011b00000012a1e8625d000000030300000000000000000000000200",
    "0000000000000201010901090c0000006cffab218400000006030200010200010109010903000000",
    "446b738d8400000004030104000000c92daf308400000005030200010000004bac0108bb00000007",
);

#[test]
fn a_write_torn_anywhere_is_cut_off_and_the_log_goes_on() {
    let batches = batches(3);
    let (acknowledged, whole) = (&batches[2], &batches[3]);
    for len in acknowledged.len()..=whole.len() {
        // Cut short, and with zeros or garbage where the rest should be.
        for fill in [None, Some(0_u8), Some(0xa5)] {
            let mut bytes = whole[..len].to_vec();
            if let Some(fill) = fill {
                bytes.resize(whole.len(), fill);
            }
            let disk = with_first_segment(&bytes);
            let log = open(&disk).unwrap();
            let found = read(&log, GROUP);
            assert!((4..=6).contains(&found.len()), "torn at {len}: {} entries", found.len());
            let next = found.len() as u64;
            append(&log, GROUP, vec![entry(2, next)]).unwrap();
            assert_eq!(read(&open(&disk).unwrap(), GROUP).len() as u64, next + 1);
        }
    }
}

#[test]
fn a_torn_write_whose_later_records_are_whole_is_cut_off() {
    let batches = batches(3);
    let (acknowledged, whole) = (batches[2].len(), &batches[3]);
    let mut bytes = whole.clone();
    bytes[acknowledged + record::FRAME_BYTES] ^= 1;
    let second = acknowledged + (whole.len() - acknowledged) / 2;
    assert!(record::read_frame(1, &bytes, second).is_some(), "the later record is whole");
    assert_eq!(read(&open(&with_first_segment(&bytes)).unwrap(), GROUP).len(), 4);
}

#[test]
fn a_torn_beginning_of_the_first_segment_begins_anew() {
    let beginning = &batches(0)[0];
    for len in 0..beginning.len() {
        let log = open(&with_first_segment(&beginning[..len])).unwrap();
        append(&log, GROUP, vec![entry(1, 0)]).unwrap();
    }
}

#[test]
fn a_flipped_bit_in_what_was_acknowledged_is_damage() {
    let batches = batches(3);
    let (safe, whole) = (batches[2].len(), &batches[3]);
    for at in 0..safe {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        match open(&with_first_segment(&bytes)) {
            Err(StoreError::Damaged { file, offset, .. }) => {
                assert_eq!(file, segment::path(1));
                assert!(offset <= at as u64);
            }
            other => panic!("bit flipped at {at}: {other:?}"),
        }
    }
}

#[test]
fn a_closed_log_has_a_witness_for_its_last_batch() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    append(&log, GROUP, vec![entry(1, 0)]).unwrap();
    let end = first_segment(&disk).len();
    now(log.close()).unwrap();
    assert!(append(&log, GROUP, vec![entry(1, 1)]).is_err(), "a closed log takes nothing");
    disk.flip_bit(&segment::path(1), end as u64 - 1, 0);
    assert!(matches!(open(&disk), Err(StoreError::Damaged { .. })));
}

#[test]
fn an_unknown_version_is_refused() {
    let mut bytes = batches(1)[1].clone();
    bytes[8] = 99;
    let crc = crc32fast::hash(&bytes[..24]).to_le_bytes();
    bytes[24..28].copy_from_slice(&crc);
    let refused = open(&with_first_segment(&bytes)).unwrap_err().to_string();
    assert!(refused.contains("version 99"), "{refused}");
}

/// A log that fills several short segments with entries of two groups.
fn long_log(disk: &SimDisk) -> Arc<Log> {
    let log = Log::open_sized(disk.mount(), Executor::Inline, 1000).unwrap();
    for index in 0..25 {
        append(&log, GroupId(1), vec![entry(1, index)]).unwrap();
        append(&log, GroupId(2), vec![entry(1, index)]).unwrap();
    }
    assert!(log.segment_count() > 2, "{} segments", log.segment_count());
    log
}

#[test]
fn a_missing_segment_is_damage() {
    let disk = SimDisk::new(1);
    drop(long_log(&disk));
    disk.mount().remove_file(&segment::path(2)).unwrap();
    match open(&disk) {
        Err(StoreError::Damaged { file, .. }) => assert_eq!(file, segment::path(2)),
        other => panic!("{other:?}"),
    }
}

/// The length that the next segment remembers shows it, also where no entry is missed: what was cut
/// off here is a vote.
#[test]
fn a_segment_cut_at_a_record_is_damage() {
    let disk = SimDisk::new(1);
    let log = Log::open_sized(disk.mount(), Executor::Inline, 300).unwrap();
    for index in 0..8 {
        append(&log, GROUP, vec![entry(1, index)]).unwrap();
        let vote = Vote { term: 2 + index, node: 1, committed: false };
        now(log.write(GROUP, vec![Op::Vote(vote)])).unwrap();
        if log.segment_count() > 1 {
            break;
        }
    }
    drop(log);
    let file = disk.mount().open(&segment::path(1), OpenMode::Existing).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    let mut last = segment::HEAD_BYTES;
    let mut end = last;
    while let Some(framed) = record::read_frame(1, &bytes, end) {
        (last, end) = (end, framed.payload.end);
    }
    let cut = record::decode_record(&bytes[last + record::FRAME_BYTES..]);
    assert!(matches!(cut, Ok(Record::Vote(..) | Record::Entry(..))), "{cut:?}");
    file.set_len(last as u64).unwrap();
    match open(&disk) {
        Err(StoreError::Damaged { file, offset, what }) => {
            assert_eq!((file, offset), (segment::path(1), last as u64));
            assert!(what.contains(&format!("{last} bytes long and was {end}")), "{what}");
        }
        other => panic!("{other:?}"),
    }
}

/// Segments are whole, and yet entries are not there: what a bug of ours would leave.
#[test]
fn a_hole_in_a_group_is_damage() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    append(&log, GROUP, vec![entry(1, 0), entry(1, 1)]).unwrap();
    append(&log, GROUP, vec![entry(1, 4)]).unwrap();
    drop(log);
    match open(&disk) {
        Err(StoreError::Damaged { what, .. }) => assert!(what.contains("0..4"), "{what}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lone_segment_whose_beginning_is_torn_is_damage_unless_it_is_the_first() {
    let disk = SimDisk::new(1);
    let log = long_log(&disk);
    for group in [1, 2] {
        let upto = Position { term: 1, index: 24 };
        now(log.write(GroupId(group), vec![Op::Purge(upto)])).unwrap();
    }
    drop(log);
    let names = disk.mount().list(segment::LOG_DIR).unwrap();
    let last = names.iter().filter_map(|entry| segment::number(&entry.name)).max().unwrap();
    for entry in names.iter().filter(|entry| segment::number(&entry.name) != Some(last)) {
        disk.mount().remove_file(&format!("{}/{}", segment::LOG_DIR, entry.name)).unwrap();
    }
    assert!(last > 1);
    let file = disk.mount().open(&segment::path(last), OpenMode::Existing).unwrap();
    file.set_len(HEAD_BYTES as u64 / 2).unwrap();
    match open(&disk) {
        Err(StoreError::Damaged { file, .. }) => assert_eq!(file, segment::path(last)),
        other => panic!("{other:?}"),
    }
    assert!(disk.mount().exists(&segment::path(last)).unwrap(), "nothing was removed");
}

/// After a failed sync the system takes pages for clean that never reached the disk: a power cut after
/// the next start must not take back what that start went on from.
#[test]
fn what_recovery_found_survives_a_power_cut() {
    for seed in 0..32 {
        let disk = SimDisk::new(seed);
        let log = open(&disk).unwrap();
        append(&log, GROUP, vec![entry(1, 0)]).unwrap();
        disk.fail_syncs(true);
        assert!(append(&log, GROUP, vec![entry(1, 1)]).is_err());
        disk.fail_syncs(false);
        drop(log);
        let found = read(&open(&disk).unwrap(), GROUP);
        disk.cut_power();
        assert_eq!(read(&open(&disk).unwrap(), GROUP), found, "seed {seed}");
    }
}

/// A removal that is not synced comes back with the next power cut, behind segments that are gone.
#[test]
fn segments_stay_gone() {
    for seed in 0..16 {
        let disk = SimDisk::new(seed);
        let log = long_log(&disk);
        for group in [1, 2] {
            let upto = Position { term: 1, index: 24 };
            now(log.write(GroupId(group), vec![Op::Purge(upto)])).unwrap();
        }
        let kept = log.segment_count();
        disk.cut_power();
        assert_eq!(open(&disk).unwrap().segment_count(), kept, "seed {seed}");
    }
}

#[test]
fn segments_go_when_nothing_in_them_is_needed_and_the_rest_survives() {
    let disk = SimDisk::new(1);
    let log = long_log(&disk);
    let vote = Vote { term: 1, node: 1, committed: true };
    now(log.write(GroupId(2), vec![Op::Vote(vote)])).unwrap();
    now(log.write(GroupId(1), vec![Op::Purge(Position { term: 1, index: 24 })])).unwrap();
    assert!(log.segment_count() > 2, "the other group still needs the first one");
    now(log.write(GroupId(2), vec![Op::Purge(Position { term: 1, index: 22 })])).unwrap();
    assert!(log.segment_count() <= 2, "{} segments", log.segment_count());
    let log = open(&disk).unwrap();
    assert_eq!(log.state(GroupId(2)).vote, Some(vote));
    assert_eq!(log.last(GroupId(1)), Some(Position { term: 1, index: 24 }));
    assert_eq!(read(&log, GroupId(2)), vec![entry(1, 23), entry(1, 24)]);
}

#[test]
fn entries_that_left_the_cache_are_read_and_checked() {
    let disk = SimDisk::new(1);
    drop(long_log(&disk));
    let log = open(&disk).unwrap();
    assert_eq!(read(&log, GroupId(2)).len(), 25);
    disk.flip_bit(&segment::path(2), 500, 3);
    let damaged = now(async {
        log.read(GroupId(1), 0, 25).await.and(log.read(GroupId(2), 0, 25).await).unwrap_err()
    });
    assert!(matches!(damaged, StoreError::Damaged { .. }), "{damaged}");
}

#[test]
fn a_failed_sync_is_final() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    disk.fail_syncs(true);
    assert!(append(&log, GROUP, vec![entry(1, 0)]).is_err());
    disk.fail_syncs(false);
    assert!(append(&log, GROUP, vec![entry(1, 1)]).is_err(), "never tried again");
    assert!(log.failed().borrow().is_some());
}

#[test]
fn a_full_disk_delays_and_loses_nothing() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    append(&log, GROUP, vec![entry(1, 0)]).unwrap();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let written = first_segment(&disk);
        disk.set_capacity(Some(written.len() as u64 + 45));
        let (tell, mut told) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result| drop(tell.send(result)));
        log.append(GROUP, vec![entry(1, 1)], done).await;
        assert!(log.is_full() && told.try_recv().is_err());
        assert_eq!(first_segment(&disk), written, "what found room is cut off again");
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
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let waited = runtime.unwrap().block_on(async {
            let mut waited = 0;
            for index in 0..ENTRIES {
                disk.set_opens_left(Some(opens));
                let (tell, mut told) = tokio::sync::oneshot::channel();
                let done = Box::new(move |result| drop(tell.send(result)));
                log.append(GROUP, vec![entry(1, index)], done).await;
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

/// What is proposed before anybody knows that the disk is full is written all the same; from then on
/// the disk is full, until there is room beside the reserve.
#[test]
fn what_meets_a_full_disk_first_is_written_into_the_reserve() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    append(&log, GROUP, vec![entry(1, 0)]).unwrap();
    let used: u64 = disk.mount().list("log").unwrap().iter().map(|file| file.len).sum();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        disk.set_capacity(Some(used));
        log.write(GROUP, vec![Op::Append(vec![entry(1, 1)])]).await.unwrap();
        assert!(log.is_full());
        tokio::time::sleep(FULL_RETRY * 3).await;
        assert!(log.is_full(), "what it gave is not there to be taken back");
        // And a vote, after a start.
        drop(log);
        let log = open(&disk).unwrap();
        assert!(log.is_full());
        let vote = Vote { term: 2, node: 1, committed: false };
        log.write(GROUP, vec![Op::Vote(vote)]).await.unwrap();
        disk.set_capacity(Some(used + (4 << 20)));
        tokio::time::sleep(FULL_RETRY * 2).await;
        assert!(!log.is_full());
    });
    assert_eq!(read(&open(&disk).unwrap(), GROUP).len(), 2);
}

/// Others look for room through the log: a part that found none, where the log has its reserve.
#[test]
fn who_finds_no_room_first_tells_the_log() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    let used: u64 = disk.mount().list("log").unwrap().iter().map(|file| file.len).sum();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        disk.set_capacity(Some(used + 1000));
        assert!(!log.is_full());
        log.found_no_room();
        assert!(log.is_full());
        tokio::time::sleep(FULL_RETRY * 3).await;
        assert!(log.is_full());
        disk.set_capacity(None);
        tokio::time::sleep(FULL_RETRY * 2).await;
        assert!(!log.is_full());
    });
}

/// A job with an entry that can never be written is given back whole: nothing of it shows or is on
/// disk, and what is in the same batch is.
#[test]
fn a_job_that_is_too_large_leaves_nothing_behind() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    let run = "10000000-0000-0000-0000-000000000000".parse().unwrap();
    let tenant = "00000000-0000-0000-0000-000000000001".parse().unwrap();
    let reason = Some("x".repeat(record::PAYLOAD_BYTES_MAX));
    let command = TenantCommand::CancelRun { run, reason };
    let command = Command::Tenant { tenant, epoch: Epoch(1), command };
    let at = Timestamp(0);
    let envelope = Envelope { version: 1, at, term: None, cause: None, rpc_id: None, command };
    let body = Body::Command(Arc::new(envelope));
    let oversized = LogEntry { position: Position { term: 1, index: 1 }, body };
    let before = first_segment(&disk);
    let vote = Vote { term: 9, node: 1, committed: true };
    let ops = vec![Op::Vote(vote), Op::Append(vec![entry(1, 0), oversized])];
    assert!(now(log.write(GROUP, ops)).is_err());
    assert_eq!(first_segment(&disk), before);
    // The batch after it: effects that were left behind would show with it.
    append(&log, GroupId(7), vec![entry(1, 0)]).unwrap();
    assert_eq!(log.state(GROUP).vote, None);
    let log = open(&disk).unwrap();
    assert_eq!((log.state(GROUP).vote, read(&log, GROUP).len()), (None, 0));
    assert_eq!(read(&log, GroupId(7)).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writers_thread_serves_many_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let disk = || Arc::new(crate::disk::RealDisk::new(dir.path()).unwrap());
    let log = Log::open(disk(), Executor::Threads).unwrap();
    let writers: Vec<_> = (0..8)
        .map(|group| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                for index in 0..50 {
                    let (tell, told) = tokio::sync::oneshot::channel();
                    let done = Box::new(move |result| drop(tell.send(result)));
                    log.append(GroupId(group), vec![entry(1, index)], done).await;
                    let vote = Vote { term: index, node: 1, committed: false };
                    log.write(GroupId(group), vec![Op::Vote(vote)]).await.unwrap();
                    told.await.unwrap().unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    log.close().await.unwrap();
    let log = Log::open(disk(), Executor::Threads).unwrap();
    for group in (0..8).map(GroupId) {
        assert_eq!(log.read(group, 0, u64::MAX).await.unwrap().len(), 50);
        assert_eq!(log.state(group).vote.unwrap().term, 49);
    }
}

#[test]
fn what_comes_while_a_slow_disk_syncs_is_the_next_batch_and_nothing_is_lost_at_a_close() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let (disk, pace) = (SimDisk::new(1), Pace::default());
        let log = Log::open(disk.mount(), Executor::Paced(pace.clone())).unwrap();
        pace.set(Duration::from_millis(100));
        let (began, syncs) = (tokio::time::Instant::now(), disk.syncs());
        let vote = |term| vec![Op::Vote(Vote { term, node: 1, committed: false })];
        let (one, two) =
            tokio::join!(log.write(GroupId(1), vote(1)), log.write(GroupId(2), vote(2)));
        one.and(two).unwrap();
        assert_eq!(began.elapsed(), Duration::from_millis(100));
        assert_eq!(disk.syncs() - syncs, 1, "one sync for both");
        // Handed in while the disk is slow, and again when it is not any more: still in order.
        let writing = log.write(GroupId(1), vote(3));
        let closing = async {
            tokio::task::yield_now().await;
            pace.set(Duration::ZERO);
            log.close().await
        };
        let (written, closed) = tokio::join!(writing, closing);
        written.and(closed).unwrap();
        assert!(log.write(GroupId(1), vote(4)).await.is_err(), "it is closed");
        drop(log);
        let log = Log::open(disk.mount(), Executor::Inline).unwrap();
        assert_eq!(log.state(GroupId(1)).vote.map(|vote| vote.term), Some(3));
    });
}

#[test]
fn a_log_that_cannot_be_read_is_not_taken_for_a_shorter_one() {
    let disk = SimDisk::new(7);
    let last = long_log(&disk).last(GroupId(1));
    let (mut opened, mut failed) = (0, 0);
    for _ in 0..64 {
        disk.fail_reads(0.05);
        let log = open(&disk);
        disk.fail_reads(0.0);
        match log {
            Ok(log) => {
                assert_eq!(log.last(GroupId(1)), last);
                opened += 1;
            }
            Err(StoreError::Io { .. }) => failed += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(opened > 0 && failed > 0, "{opened} {failed}");
}

#[test]
fn a_write_that_fails_kills_the_log_and_loses_nothing_acknowledged() {
    for seed in 0..32 {
        let disk = SimDisk::new(seed);
        let log = open(&disk).unwrap();
        append(&log, GroupId(1), vec![entry(1, 0)]).unwrap();
        disk.fail_writes(1.0);
        assert!(append(&log, GroupId(1), vec![entry(1, 1)]).is_err());
        disk.fail_writes(0.0);
        assert!(append(&log, GroupId(1), vec![entry(1, 2)]).is_err(), "it stays dead");
        drop(log);
        if seed % 2 == 0 {
            disk.cut_power();
        }
        assert_eq!(read(&open(&disk).unwrap(), GroupId(1)), [entry(1, 0)]);
    }
}

#[test]
fn every_rotten_bit_before_the_last_batch_is_damage() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    for index in 0..5 {
        append(&log, GroupId(1), vec![entry(1, index)]).unwrap();
    }
    drop(log);
    let path = segment::path(1);
    let witnessed = witnessed_log_bytes(&disk, &path);
    assert!(witnessed > HEAD_BYTES as u64);
    for offset in 0..witnessed {
        let bit = u8::try_from(offset % 8).unwrap();
        disk.flip_bit(&path, offset, bit);
        match open(&disk) {
            Err(StoreError::Damaged { file, .. }) => assert_eq!(file, path, "byte {offset}"),
            other => panic!("byte {offset}: {other:?}"),
        }
        disk.flip_bit(&path, offset, bit);
    }
    assert_eq!(read(&open(&disk).unwrap(), GroupId(1)).len(), 5);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// Whatever stands in a segment, it is refused, or what is taken from it was written as it is.
    #[test]
    fn what_was_not_written_is_never_taken(
        at in any::<prop::sample::Index>(),
        with in prop::collection::vec(any::<u8>(), 0..40),
        gone in 0_usize..60,
    ) {
        let whole = batches(3).pop().unwrap();
        let at = at.index(whole.len());
        let mut bytes = whole.clone();
        bytes.splice(at..(at + gone).min(whole.len()), with);
        match open(&with_first_segment(&bytes)) {
            Ok(log) => {
                let found = read(&log, GROUP);
                let written: Vec<_> = (0..6).map(|index| entry(1, index)).collect();
                prop_assert!(written.starts_with(&found));
            }
            Err(StoreError::Damaged { .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn any_bytes_are_no_segment(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        if let Ok(log) = open(&with_first_segment(&bytes)) {
            prop_assert_eq!(read(&log, GROUP), []);
        }
    }
}
