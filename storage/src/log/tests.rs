//! The log against a model, and its records against themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use shiioo_actors::command::{Command, Envelope, SystemCommand};
use shiioo_actors::ids::{GroupId, NodeId, Part, Position, TenantId};
use shiioo_actors::ports::StoreError;
use shiioo_actors::seams::Timestamp;

use super::record::{self, Body, Checkpoint, Floor, GroupState, LogEntry, Members, Record, Vote};
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
        origin: None,
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

pub(crate) fn open(disk: &SimDisk) -> Result<Arc<Log>, StoreError> {
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

fn part() -> impl Strategy<Value = Part> {
    prop::option::of(any::<u128>()).prop_map(|uuid| {
        let tenant = uuid.map(|uuid| TenantId::from_uuid(uuid::Uuid::from_u128(uuid)));
        tenant.map_or(Part::System, Part::Tenant)
    })
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let groups = prop::collection::btree_map(any::<u32>().prop_map(GroupId), state(), 0..4);
    let parts = prop::collection::btree_map(part(), position(), 0..4);
    (groups, parts).prop_map(|(groups, parts)| Checkpoint { groups, parts })
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
        checkpoint in checkpoint(),
        filed in (part(), prop::option::of(position())),
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
        put(Record::Checkpoint(checkpoint.clone()), &|bytes| {
            record::put_checkpoint(&checkpoint, bytes);
        });
        put(Record::Part(filed.0, filed.1), &|bytes| record::put_part(filed.0, filed.1, bytes));
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
    fn any_flipped_bit_of_a_record_is_noticed(
        position in position(),
        body in body(),
        segment in any::<u32>(),
        batch in any::<u32>(),
    ) {
        let mut bytes = Vec::new();
        let entry = LogEntry { position, body };
        record::frame(segment, batch, &mut bytes, |bytes| {
            record::put_entry(GroupId(1), &entry, bytes);
        });
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(record::read_frame(segment, &flipped, 0).is_none(), "bit {}", bit);
        }
    }

    #[test]
    fn garbage_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = record::decode_record(&bytes);
        let _ = record::decode_entry(&bytes);
        prop_assert!(record::read_frame(1, &bytes, 0).is_none());
    }
}

/// What a group's entries take is what the segment grew by, and is given up when they go.
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
