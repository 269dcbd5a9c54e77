//! Records against themselves: they come back as they were, and nothing else is taken for one.

use proptest::prelude::*;
use shiioo_actors::domain::ids::{GroupId, Position, RaftId, StateMachineId, TenantId};

use super::command;
use crate::log::record::{
    self, Body, Checkpoint, GroupState, LogEntry, LowWaterMark, Members, Record, Vote,
};

fn members() -> impl Strategy<Value = Members> {
    let ids = || prop::collection::vec(any::<u64>().prop_map(RaftId), 0..4);
    (prop::collection::vec(ids(), 0..3), ids())
        .prop_map(|(voters, nodes)| Members { voters, nodes })
}

fn position() -> impl Strategy<Value = Position> {
    (any::<u64>(), any::<u64>()).prop_map(|(term, index)| Position { term, index })
}

fn vote() -> impl Strategy<Value = Vote> {
    (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(term, node, committed)| Vote {
        term,
        node: RaftId(node),
        committed,
    })
}

fn low_water_mark() -> impl Strategy<Value = LowWaterMark> {
    (position(), prop::option::of((position(), members())))
        .prop_map(|(position, members)| LowWaterMark { position, members })
}

fn state() -> impl Strategy<Value = GroupState> {
    (prop::option::of(vote()), prop::option::of(position()), prop::option::of(low_water_mark()))
        .prop_map(|(vote, purged, low_water_mark)| GroupState { vote, purged, low_water_mark })
}

fn part() -> impl Strategy<Value = StateMachineId> {
    prop::option::of(any::<u128>()).prop_map(|uuid| {
        let tenant = uuid.map(|uuid| TenantId::from_uuid(uuid::Uuid::from_u128(uuid)));
        tenant.map_or(StateMachineId::System, StateMachineId::Tenant)
    })
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let groups = prop::collection::btree_map(any::<u32>().prop_map(GroupId), state(), 0..4);
    let files = prop::collection::btree_map(part(), position(), 0..4);
    let left = prop::collection::btree_map(any::<u32>().prop_map(GroupId), position(), 0..4);
    (groups, files, left).prop_map(|(groups, files, left)| Checkpoint { groups, files, left })
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
        mark in low_water_mark(),
        body in body(),
        checkpoint in checkpoint(),
        files in (part(), prop::option::of(position())),
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
        put(Record::LowWaterMark(group, mark.clone()), &|bytes| record::put_low_water_mark(group, &mark, bytes));
        put(Record::Checkpoint(checkpoint.clone()), &|bytes| {
            record::put_checkpoint(&checkpoint, bytes);
        });
        put(Record::Files(files.0, files.1), &|bytes| record::put_files(files.0, files.1, bytes));
        for last in [None, Some(position)] {
            put(Record::Left(group, last), &|bytes| record::put_left(group, last, bytes));
        }
        put(Record::Closed, &record::put_closed);

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
    fn the_length_of_an_entry_is_that_of_its_payload(position in position(), body in body()) {
        let (mut bytes, entry) = (Vec::new(), LogEntry { position, body });
        record::put_entry(GroupId(1), &entry, &mut bytes);
        prop_assert_eq!(entry.payload_len(), bytes.len());
    }

    #[test]
    fn garbage_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = record::decode_record(&bytes);
        let _ = record::decode_entry(&bytes);
        prop_assert!(record::read_frame(1, &bytes, 0).is_none());
    }
}
