//! Damage that no crash leaves: the log refuses to open.

use proptest::prelude::*;
use shiioo_actors::domain::ids::GroupId;
use shiioo_actors::ports::StoreError;

use super::{
    GROUP, append, batches, damage, entry, long_log, now, open, purge, read, segment_bytes, vote,
    with_first_segment, write,
};
use crate::disk::{OpenMode, SimDisk};
use crate::executor::Executor;
use crate::log::record::{self, Record};
use crate::log::segment::HEAD_BYTES;
use crate::log::{Log, Op, segment, witnessed_log_bytes};

#[test]
fn a_flipped_bit_in_what_was_acknowledged_is_damage() {
    let batches = batches(3);
    let (safe, whole) = (batches[2].len(), &batches[3]);
    for at in 0..safe {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let (file, offset, _) = damage(open(&with_first_segment(&bytes)));
        assert_eq!(file, segment::path(1));
        assert!(offset <= at as u64, "bit flipped at {at}, told of {offset}");
    }
}

#[test]
fn a_closed_log_has_a_witness_for_its_last_batch() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    append(&log, GROUP, vec![entry(1, 0)]).unwrap();
    let end = segment_bytes(&disk, 1).len();
    now(log.close()).unwrap();
    assert!(append(&log, GROUP, vec![entry(1, 1)]).is_err(), "a closed log takes nothing");
    disk.flip_bit(&segment::path(1), end as u64 - 1, 0);
    assert!(matches!(open(&disk), Err(StoreError::Damaged { .. })));
}

#[test]
fn a_missing_segment_is_damage() {
    let disk = SimDisk::new(1);
    drop(long_log(&disk));
    disk.mount().remove_file(&segment::path(2)).unwrap();
    assert_eq!(damage(open(&disk)).0, segment::path(2));
}

/// The length that the next segment remembers shows it, also where no entry is missed: what was cut
/// off here is a vote.
#[test]
fn a_segment_cut_at_a_record_is_damage() {
    let disk = SimDisk::new(1);
    let log = Log::open_sized(disk.mount(), Executor::Inline, 300).unwrap();
    for index in 0..8 {
        append(&log, GROUP, vec![entry(1, index)]).unwrap();
        write(&log, GROUP, Op::Vote(vote(2 + index))).unwrap();
        if log.segment_count() > 1 {
            break;
        }
    }
    drop(log);
    let bytes = segment_bytes(&disk, 1);
    let mut last = segment::HEAD_BYTES;
    let mut end = last;
    while let Some(framed) = record::read_frame(1, &bytes, end) {
        (last, end) = (end, framed.payload.end);
    }
    let cut = record::decode_record(&bytes[last + record::FRAME_BYTES..]);
    assert!(matches!(cut, Ok(Record::Vote(..) | Record::Entry(..))), "{cut:?}");
    let file = disk.mount().open(&segment::path(1), OpenMode::Existing).unwrap();
    file.set_len(last as u64).unwrap();
    let (file, offset, what) = damage(open(&disk));
    assert_eq!((file, offset), (segment::path(1), last as u64));
    assert!(what.contains(&format!("{last} bytes long and was {end}")), "{what}");
}

/// Segments are whole, and yet entries are not there: what a bug of ours would leave.
#[test]
fn a_hole_in_a_group_is_damage() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    append(&log, GROUP, vec![entry(1, 0), entry(1, 1)]).unwrap();
    append(&log, GROUP, vec![entry(1, 4)]).unwrap();
    drop(log);
    let (_, _, what) = damage(open(&disk));
    assert!(what.contains("0..4"), "{what}");
}

#[test]
fn a_lone_segment_whose_beginning_is_torn_is_damage_unless_it_is_the_first() {
    let disk = SimDisk::new(1);
    let log = long_log(&disk);
    for group in [1, 2] {
        purge(&log, GroupId(group), 24);
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
    assert_eq!(damage(open(&disk)).0, segment::path(last));
    assert!(disk.mount().exists(&segment::path(last)).unwrap(), "nothing was removed");
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
        assert_eq!(damage(open(&disk)).0, path, "byte {offset}");
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
