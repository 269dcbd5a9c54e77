//! Writes that power was cut in: they are cut off, and the log goes on.

use super::{GROUP, append, batches, entry, open, read, with_first_segment};
use crate::disk::SimDisk;
use crate::log::record;

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

/// After a failed sync the system takes pages for clean that never reached the disk: a power cut
/// after the next start must not take back what that start went on from.
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
