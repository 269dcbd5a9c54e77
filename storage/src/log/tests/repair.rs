//! What is left of a damaged log, and the log that is made of it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use shiioo_actors::domain::ids::{GroupId, Position, RaftId, StateMachineId, TenantId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::StoreError;
use uuid::Uuid;

use super::{damage, long_log, now, open, purge, read, segment_bytes};
use crate::disk::{OpenMode, SimDisk};
use crate::executor::Executor;
use crate::log::record::{Body, LowWaterMark};
use crate::log::rewrite::{Held, Repaired, RepairedGroup};
use crate::log::salvage::{DamagedLog, Salvaged, SalvagedGroup};
use crate::log::segment::LOG_DIR;
use crate::log::{Log, LogIdentity, segment};

/// The id that logs of tests have.
const ID: Uuid = Uuid::from_u128(1);

fn tenant(number: u8) -> StateMachineId {
    StateMachineId::Tenant(TenantId::from_uuid(Uuid::from_u128(number.into())))
}

fn at(index: u64) -> Position {
    // A term for every four entries.
    Position { term: 1 + index / 4, index }
}

/// A group of which these entries can be read, each of a state machine.
fn group(entries: impl IntoIterator<Item = (u64, u8)>) -> SalvagedGroup {
    let salvaged = |(index, part): (u64, u8)| {
        let part = (part > 0).then(|| tenant(part));
        (index, Salvaged { term: at(index).term, part, segment: 1, offset: index, len: 1 })
    };
    let entries = entries.into_iter().map(salvaged).collect();
    SalvagedGroup { entries, ..SalvagedGroup::default() }
}

fn kept(repaired: &RepairedGroup) -> Vec<u64> {
    let kept = repaired.entries.iter().filter(|(_, kept)| kept.is_some());
    kept.map(|(at, _)| at.index).collect()
}

#[test]
fn what_is_kept_and_what_is_counted() {
    let held = |parts: &[(u8, u64)]| -> Held {
        parts.iter().map(|(part, index)| (tenant(*part), at(*index))).collect()
    };
    let of = |entries: &[(u64, u8)], base: Option<u64>, held: &Held, files: &[u64]| {
        let files: Vec<Position> = files.iter().map(|index| at(*index)).collect();
        let it = RepairedGroup::of(&group(entries.iter().copied()), base.map(at), held, &files);
        (kept(&it), it.unreadable, it.dropped, it.base.map(|at| at.index), it.last())
    };
    let none = held(&[]);
    // Nothing is missing.
    assert_eq!(of(&[(0, 0), (1, 1)], None, &none, &[]), (vec![0, 1], 0, 0, None, Some(at(1))));
    // What is below the mark is not missed.
    assert_eq!(of(&[(5, 1)], Some(4), &none, &[]), (vec![5], 0, 0, Some(4), Some(at(5))));
    // Behind what is missing only those go on whose files have it, and entries of nobody.
    let entries = [(0, 1), (1, 2), (3, 1), (4, 2), (5, 0)];
    let two_has_it = held(&[(1, 1), (2, 2)]);
    assert_eq!(of(&entries, None, &two_has_it, &[]), (vec![0, 1, 4, 5], 1, 1, None, Some(at(5))));
    // Files that are ahead of what is left.
    assert_eq!(of(&[(0, 1)], None, &held(&[(1, 3)]), &[3]), (vec![0], 3, 0, None, Some(at(3))));
    // A log that is gone, and one whose beginning is: what is before was purged, as far as is known.
    assert_eq!(of(&[], None, &none, &[9]), (vec![], 10, 0, Some(9), Some(at(9))));
    assert_eq!(of(&[(7, 1)], None, &none, &[2]), (vec![], 7, 1, Some(6), Some(at(7))));
    assert_eq!(of(&[(7, 1)], None, &held(&[(1, 6)]), &[6]).0, vec![7]);
    // Behind a mark nothing is taken for purged.
    let behind = of(&[(7, 1)], Some(4), &held(&[(1, 4)]), &[4]);
    assert_eq!(behind, (vec![], 2, 1, Some(4), Some(at(7))));
    assert_eq!(of(&[], None, &none, &[]), (vec![], 0, 0, None, None));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_applied_behind_what_a_state_machine_lacks(
        entries in prop::collection::btree_map(0_u64..30, 0_u8..4, 0..30),
        base in prop::option::of(0_u64..20),
        files in prop::collection::btree_map(1_u8..4, 0_u64..40, 0..3),
    ) {
        let held: Held = files.iter().map(|(part, index)| (tenant(*part), at(*index))).collect();
        let positions: Vec<Position> = held.values().copied().collect();
        let salvaged = group(entries.clone());
        let repaired = RepairedGroup::of(&salvaged, base.map(at), &held, &positions);
        let from = repaired.base.map_or(0, |base| base.index + 1);
        for (next, (position, kept)) in (from..).zip(&repaired.entries) {
            prop_assert_eq!(*position, Position { index: next, ..*position }, "a gap");
            if let Some(kept) = kept {
                prop_assert_eq!(Some(kept), salvaged.entries.get(&next));
                let Some(part) = kept.part else { continue };
                // By the definition: whatever is missing before it, the files have.
                let needed = base.map_or(0, |base| base + 1);
                let mut missing = (needed..next).filter(|index| !entries.contains_key(index));
                let has = |index| held.get(&part).is_some_and(|held| held.index >= index);
                prop_assert!(missing.all(has), "{part} at {next}");
            }
        }
        let terms: Vec<u64> = repaired.entries.iter().map(|(at, _)| at.term).collect();
        prop_assert!(terms.is_sorted(), "{terms:?}");
        for position in &positions {
            prop_assert!(repaired.last() >= Some(*position), "files are ahead");
            let there = repaired.entries.iter().find(|(at, _)| at.index == position.index);
            prop_assert!(there.is_none_or(|(at, _)| at == position));
        }
        let behind = entries.keys().filter(|index| base.is_none_or(|base| **index > base));
        let kept = kept(&repaired).len() as u64;
        prop_assert_eq!(kept + repaired.dropped, behind.count() as u64, "what is not counted");
    }
}

/// Makes a log of what is left, as if all files were as far as the marks.
fn repair(disk: &SimDisk) -> (DamagedLog, BTreeMap<GroupId, RepairedGroup>) {
    let mounted = disk.mount();
    let log = DamagedLog::read(&*mounted, LOG_DIR, ID).unwrap();
    let groups: BTreeMap<_, _> = log
        .groups()
        .map(|group| (group, log.repaired(group, log.base(group), &Held::new(), &[])))
        .collect();
    crate::set_log_aside(&*mounted, "aside").unwrap();
    let repaired = Repaired {
        identity: LogIdentity { expected: None, fresh: ID, region: Region::default() },
        raft_id: RaftId(1),
        groups: &groups,
        files: log.files().clone(),
    };
    now(log.write_repaired(mounted, Executor::Inline, repaired)).unwrap();
    (log, groups)
}

/// Wherever a bit rots: what could be read is there again at its place, and the log is whole.
#[test]
fn a_log_with_a_rotten_bit_anywhere_is_made_whole() {
    let whole = SimDisk::new(1);
    let log = long_log(&whole);
    let before: Vec<_> = [1, 2].map(|group| read(&log, GroupId(group))).into();
    drop(log);
    let mut kept_all = 0;
    for number in 1..=2 {
        for offset in (0..segment_bytes(&whole, number).len()).step_by(7) {
            let disk = whole.fork();
            disk.flip_bit(&segment::path(number), offset as u64, 2);
            assert_eq!(damage(open(&disk)).0, segment::path(number));
            let (log, groups) = repair(&disk);
            assert_eq!(log.broken().len(), 1, "{number} {offset}: {:?}", log.broken());
            let broken = &log.broken()[0];
            let end = broken.offset + broken.bytes;
            assert!(broken.offset <= offset as u64 && end > offset as u64, "{offset}: {broken:?}");
            let again = open(&disk).unwrap();
            let lost: u64 = groups.values().map(|it| it.unreadable + it.dropped).sum();
            kept_all += u64::from(lost == 0);
            for (group, before) in [1, 2].into_iter().zip(&before) {
                let after = read(&again, GroupId(group));
                let base = again.state(GroupId(group)).purged.map_or(0, |purged| purged.index + 1);
                assert_eq!(base + after.len() as u64, 25, "group {group} at {number} {offset}");
                for entry in after {
                    let index = usize::try_from(entry.position.index).unwrap();
                    assert_eq!(entry.position, before[index].position);
                    assert!(entry == before[index] || entry.body == Body::Blank);
                }
            }
        }
    }
    assert!(kept_all > 0, "heads and checkpoints hold no entries");
}

#[test]
fn a_missing_segment_costs_what_was_in_it_and_what_a_mark_covers_costs_nothing() {
    for is_covered in [false, true] {
        let disk = SimDisk::new(1);
        let log = long_log(&disk);
        if is_covered {
            let mark = LowWaterMark { position: Position { term: 1, index: 24 }, members: None };
            log.set_low_water_mark(GroupId(1), mark.clone());
            log.set_low_water_mark(GroupId(2), mark);
            now(log.close()).unwrap();
        }
        drop(log);
        disk.mount().remove_file(&segment::path(2)).unwrap();
        let (log, groups) = repair(&disk);
        assert_eq!(log.broken()[0].file, segment::path(2));
        let lost: u64 = groups.values().map(|it| it.unreadable).sum();
        assert_eq!(lost == 0, is_covered, "{lost}");
        assert_eq!(open(&disk).unwrap().last(GroupId(1)).unwrap().index, 24);
    }
}

#[test]
fn a_torn_write_is_nothing_that_is_lost_and_a_newer_record_is_no_damage() {
    let disk = SimDisk::new(1);
    drop(long_log(&disk));
    let names = disk.mount().list(LOG_DIR).unwrap();
    let last = names.iter().filter_map(|entry| segment::number(&entry.name)).max().unwrap();
    let file = disk.mount().open(&segment::path(last), OpenMode::Existing).unwrap();
    file.set_len(file.len().unwrap() - 1).unwrap();
    let log = DamagedLog::read(&*disk.mount(), LOG_DIR, ID).unwrap();
    assert_eq!(log.broken(), []);

    let newer = SimDisk::new(1);
    let log = long_log(&newer);
    purge(&log, GroupId(1), 3);
    drop(log);
    let mut bytes = segment_bytes(&newer, 1);
    let framed = crate::log::record::read_frame(1, &bytes, segment::HEAD_BYTES).unwrap();
    let end = framed.payload.end;
    bytes.truncate(end);
    crate::log::record::frame(1, u32::try_from(end).unwrap(), &mut bytes, |bytes| bytes.push(200));
    let file = newer.mount().open(&segment::path(1), OpenMode::Existing).unwrap();
    file.set_len(0).unwrap();
    file.write_at(0, &bytes).unwrap();
    let refused = DamagedLog::read(&*newer.mount(), LOG_DIR, ID).unwrap_err();
    assert!(matches!(refused, StoreError::TooNew { .. }), "{refused}");
}

/// The log of another node is nothing that could be gone on with.
#[test]
fn segments_of_another_log_are_not_read() {
    let disk = SimDisk::new(1);
    drop(long_log(&disk));
    let log = DamagedLog::read(&*disk.mount(), LOG_DIR, Uuid::from_u128(2)).unwrap();
    assert!(log.groups().next().is_none() && !log.broken().is_empty(), "{log:?}");
    let opened = Log::open_as(
        disk.mount(),
        Executor::Inline,
        &LogIdentity { expected: Some(ID), fresh: ID, region: Region::default() },
    );
    assert!(opened.is_ok(), "nothing was changed");
}
