//! Batches: what is in one, what is in none, and what a disk that fails makes of them.

use std::sync::Arc;
use std::time::Duration;

use shiioo_actors::domain::ids::{GroupId, Position, RaftId};
use shiioo_actors::testing::{tenant, text_envelope};

use super::{GROUP, append, begin_append, entry, now, open, read, segment_bytes, simulate, vote};
use crate::disk::{OpenMode, RealDisk, SimDisk};
use crate::executor::{Executor, Pace};
use crate::log::record::{self, Body, LogEntry, Vote};
use crate::log::{Log, Op, segment};

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

/// A job with an entry that can never be written is given back whole: nothing of it shows or is on
/// disk, and what is in the same batch is.
#[test]
fn a_job_that_is_too_large_leaves_nothing_behind() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    let envelope = text_envelope(tenant(1), "x".repeat(record::PAYLOAD_BYTES_MAX));
    let body = Body::Command(Arc::new(envelope));
    let oversized = LogEntry { position: Position { term: 1, index: 1 }, body };
    let before = segment_bytes(&disk, 1);
    let vote = Vote { term: 9, node: RaftId(1), committed: true };
    let ops = vec![Op::Vote(vote), Op::Append(vec![entry(1, 0), oversized])];
    assert!(now(log.write(GROUP, ops)).is_err());
    assert_eq!(segment_bytes(&disk, 1), before);
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
    let disk = || Arc::new(RealDisk::new(dir.path()).unwrap());
    let log = Log::open(disk(), Executor::Threads).unwrap();
    let writers: Vec<_> = (0..8)
        .map(|group| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                for index in 0..50 {
                    let told = begin_append(&log, GroupId(group), vec![entry(1, index)]).await;
                    log.write(GroupId(group), vec![Op::Vote(vote(index))]).await.unwrap();
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
    simulate(async {
        let (disk, pace) = (SimDisk::new(1), Pace::default());
        let log = Log::open(disk.mount(), Executor::Paced(pace.clone())).unwrap();
        pace.set(Duration::from_millis(100));
        let (began, syncs) = (tokio::time::Instant::now(), disk.syncs());
        let vote = |term| vec![Op::Vote(vote(term))];
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

/// The bytes of a group's entries are what the segment grew by, and are given up when entries go.
#[test]
fn terms_and_sizes_of_entries_are_known_as_long_as_they_are_there() {
    let (group, other, unknown) = (GroupId(1), GroupId(2), GroupId(3));
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    let length = || {
        let segment = disk.mount().open(&segment::path(1), OpenMode::Existing).unwrap();
        segment.len().unwrap()
    };
    let mut sizes = Vec::new();
    for index in 0..6 {
        let before = length();
        append(&log, group, vec![entry(10_u64.pow(u32::try_from(index).unwrap()), index)]).unwrap();
        sizes.push(length() - before);
        append(&log, other, vec![entry(1, index)]).unwrap();
    }
    let sum = |from: usize, to: usize| sizes[from..to].iter().sum::<u64>();
    assert_eq!(log.bytes_between(group, 0, u64::MAX), sum(0, 6));
    assert_eq!(log.bytes_between(group, 1, 4), sum(1, 4));
    assert_eq!(log.bytes_between(group, 3, 3), 0);
    assert_eq!(log.bytes_between(unknown, 0, u64::MAX), 0);
    now(log.write(group, vec![Op::Purge(Position { term: 10, index: 1 }), Op::Truncate(5)]))
        .unwrap();
    assert_eq!(log.bytes_between(group, 0, u64::MAX), sum(2, 5));
    let terms: Vec<_> = (0..6).map(|index| log.term_at(group, index)).collect();
    let purged = Some(10);
    assert_eq!(terms, [None, purged, Some(100), Some(1000), Some(10_000), None]);
    assert_eq!(log.term_at(unknown, 0), None);
}
