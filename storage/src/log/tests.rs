//! The log against a model, its records against themselves, and its recovery against every kind of
//! broken file.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use shiioo_actors::command::{Command, Envelope, SystemCommand};
use shiioo_actors::ids::{GroupId, NodeId, Position};
use shiioo_actors::ports::StoreError;
use shiioo_actors::seams::Timestamp;

use super::record::{self, Body, Floor, GroupState, LogEntry, Members, Record, Vote};
use super::{Log, Op, segment};
use crate::disk::{OpenMode, SimDisk};
use crate::executor::Executor;

/// Runs what never has to wait: under [`Executor::Inline`] everything is done at once.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(future)
}

pub(crate) fn command(number: u64) -> Body {
    let uuid = format!("00000000-0000-0000-0000-{number:012}");
    let node: NodeId = format!("node-{uuid}").parse().unwrap();
    Body::Command(Arc::new(Envelope {
        version: 1,
        at: Timestamp(i64::try_from(number).unwrap()),
        term: None,
        cause: None,
        command: Command::System(SystemCommand::RemoveNode { node }),
    }))
}

pub(crate) fn entry(term: u64, index: u64) -> LogEntry {
    LogEntry { position: Position { term, index }, body: command(index * 1000 + term) }
}

pub(crate) fn append(log: &Log, group: GroupId, entries: Vec<LogEntry>) -> std::io::Result<()> {
    now(async {
        let (tell, told) = tokio::sync::oneshot::channel();
        log.append(group, entries, Box::new(move |result| drop(tell.send(result)))).await;
        told.await.unwrap_or_else(|_| Err(std::io::Error::other("dropped")))
    })
}

pub(crate) fn read(log: &Log, group: GroupId) -> Vec<LogEntry> {
    now(log.read(group, 0, u64::MAX)).unwrap()
}

fn open(disk: &SimDisk) -> Result<Arc<Log>, StoreError> {
    Log::open(disk.mount(), Executor::Inline)
}

fn members() -> impl Strategy<Value = Members> {
    let ids = || prop::collection::vec(any::<u64>(), 0..4);
    (prop::collection::vec(ids(), 0..3), ids())
        .prop_map(|(voters, nodes)| Members { voters, nodes })
}

fn position() -> impl Strategy<Value = Position> {
    (any::<u64>(), any::<u64>()).prop_map(|(term, index)| Position { term, index })
}

fn vote() -> impl Strategy<Value = Vote> {
    (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(term, node, committed)| Vote {
        term,
        node,
        committed,
    })
}

fn floor() -> impl Strategy<Value = Floor> {
    (position(), prop::option::of((position(), members())))
        .prop_map(|(position, members)| Floor { position, members })
}

fn state() -> impl Strategy<Value = GroupState> {
    (prop::option::of(vote()), prop::option::of(position()), prop::option::of(floor()))
        .prop_map(|(vote, purged, floor)| GroupState { vote, purged, floor })
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        Just(Body::Blank),
        (0..1_000_000_u64).prop_map(command),
        members().prop_map(Body::Members),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn records_come_back_as_they_were(
        group in any::<u32>().prop_map(GroupId),
        vote in vote(),
        position in position(),
        floor in floor(),
        body in body(),
        states in prop::collection::vec((any::<u32>().prop_map(GroupId), state()), 0..4),
        segment in any::<u32>(),
        batch in any::<u32>(),
    ) {
        let entry = LogEntry { position, body };
        let mut payloads: Vec<(Record, Vec<u8>)> = Vec::new();
        let mut put = |record, write: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = Vec::new();
            write(&mut bytes);
            payloads.push((record, bytes));
        };
        put(Record::Vote(group, vote), &|bytes| record::put_vote(group, vote, bytes));
        put(Record::Entry(group, position), &|bytes| record::put_entry(group, &entry, bytes));
        put(Record::Truncate(group, 9), &|bytes| record::put_truncate(group, 9, bytes));
        put(Record::Purge(group, position), &|bytes| record::put_purge(group, position, bytes));
        put(Record::Floor(group, floor.clone()), &|bytes| record::put_floor(group, &floor, bytes));
        put(Record::Checkpoint(states.clone()), &|bytes| record::put_checkpoint(&states, bytes));
        put(Record::Mark, &record::put_mark);

        let mut bytes = Vec::new();
        for (record, payload) in payloads {
            let decoded = record::decode_record(&payload);
            prop_assert_eq!(decoded.as_ref(), Ok(&record));
            if let Record::Entry(..) = record {
                prop_assert_eq!(record::decode_entry(&payload), Ok((group, entry.clone())));
            }
            let start = bytes.len();
            let len = record::frame(segment, batch, &mut bytes, |bytes| bytes.extend(&payload));
            prop_assert_eq!(len.map(|len| len as usize), Some(bytes.len() - start));
            let framed = record::read_frame(segment, &bytes, start).unwrap();
            prop_assert_eq!(framed.batch, batch);
            prop_assert_eq!(&bytes[framed.payload], &payload[..]);
            prop_assert!(record::read_frame(segment.wrapping_add(1), &bytes, start).is_none());
        }
    }

    #[test]
    fn garbage_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = record::decode_record(&bytes);
        let _ = record::decode_entry(&bytes);
        prop_assert!(record::read_frame(1, &bytes, 0).is_none());
    }
}

/// What the log must show of one group.
#[derive(Debug, Default, Clone, PartialEq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<Position>,
    floor: Option<Floor>,
    entries: BTreeMap<u64, LogEntry>,
}

#[derive(Debug, Clone)]
enum Step {
    Append(u32, u8),
    Vote(u32),
    Truncate(u32, u8),
    Purge(u32, u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u32, 1..6_u8).prop_map(|(group, count)| Step::Append(group, count)),
        1 => (0..3_u32).prop_map(Step::Vote),
        1 => (0..3_u32, 0..4_u8).prop_map(|(group, back)| Step::Truncate(group, back)),
        1 => (0..3_u32, 0..4_u8).prop_map(|(group, back)| Step::Purge(group, back)),
        1 => Just(Step::Reopen),
    ]
}

fn take(step: &Step, term: u64, log: &mut Arc<Log>, disk: &SimDisk, models: &mut [Model; 3]) {
    let write = |log: &Log, group, op| now(log.write(GroupId(group), vec![op])).unwrap();
    match *step {
        Step::Append(group, count) => {
            let model = &mut models[group as usize];
            let next = model.entries.last_key_value().map(|(index, _)| *index);
            let next = next.or(model.purged.map(|purged| purged.index)).map_or(0, |last| last + 1);
            let entries: Vec<_> =
                (next..next + u64::from(count)).map(|index| entry(term, index)).collect();
            append(log, GroupId(group), entries.clone()).unwrap();
            model.entries.extend(entries.into_iter().map(|entry| (entry.position.index, entry)));
        }
        Step::Vote(group) => {
            let vote = Vote { term, node: 1, committed: term.is_multiple_of(2) };
            write(log, group, Op::Vote(vote));
            models[group as usize].vote = Some(vote);
        }
        Step::Truncate(group, back) => {
            let model = &mut models[group as usize];
            let end = model.entries.last_key_value().map_or(0, |(index, _)| index + 1);
            let first = model.purged.map_or(0, |purged| purged.index + 1);
            let from = end.saturating_sub(u64::from(back)).max(first);
            write(log, group, Op::Truncate(from));
            model.entries.split_off(&from);
        }
        Step::Purge(group, back) => {
            let model = &mut models[group as usize];
            let Some((last, _)) = model.entries.last_key_value() else { return };
            let Some((_, at)) =
                model.entries.range(..=last.saturating_sub(back.into())).next_back()
            else {
                return;
            };
            let upto = at.position;
            let floor = Floor { position: upto, members: None };
            log.set_floor(GroupId(group), floor.clone());
            write(log, group, Op::Purge(upto));
            model.entries = model.entries.split_off(&(upto.index + 1));
            model.purged = Some(upto);
            model.floor = Some(floor);
        }
        Step::Reopen => {
            now(log.close()).unwrap();
            *log = open(disk).unwrap();
        }
    }
}

fn check(log: &Log, models: &[Model; 3]) {
    for (group, model) in models.iter().enumerate() {
        let group = GroupId(u32::try_from(group).unwrap());
        let entries: Vec<_> = model.entries.values().cloned().collect();
        assert_eq!(read(log, group), entries);
        let state = log.state(group);
        assert_eq!(
            (state.vote, state.purged, state.floor),
            (model.vote, model.purged, model.floor.clone())
        );
        let last = entries.last().map(|entry| entry.position).or(model.purged);
        assert_eq!(log.last(group), last);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn the_log_is_what_a_map_would_be(steps in prop::collection::vec(step(), 1..40)) {
        let disk = SimDisk::new(1);
        let mut log = open(&disk).unwrap();
        let mut models = <[Model; 3]>::default();
        for (term, step) in (1..).zip(&steps) {
            take(step, term, &mut log, &disk, &mut models);
            check(&log, &models);
        }
        // Also when it was not closed.
        check(&open(&disk).unwrap(), &models);
    }
}

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

#[test]
fn a_segment_cut_at_a_record_is_damage() {
    let disk = SimDisk::new(1);
    drop(long_log(&disk));
    let file = disk.mount().open(&segment::path(1), OpenMode::Existing).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    let mut last = segment::HEAD_BYTES;
    let mut end = last;
    while let Some(framed) = record::read_frame(1, &bytes, end) {
        (last, end) = (end, framed.payload.end);
    }
    file.set_len(last as u64).unwrap();
    assert!(matches!(open(&disk), Err(StoreError::Damaged { .. })));
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
        disk.set_capacity(Some(first_segment(&disk).len() as u64 + 45));
        let (tell, mut told) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result| drop(tell.send(result)));
        log.append(GROUP, vec![entry(1, 1)], done).await;
        assert!(log.is_full() && told.try_recv().is_err());
        disk.set_capacity(None);
        told.await.unwrap().unwrap();
        assert!(!log.is_full());
    });
    append(&log, GROUP, vec![entry(1, 2)]).unwrap();
    assert_eq!(read(&open(&disk).unwrap(), GROUP).len(), 3);
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
