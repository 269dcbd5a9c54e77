//! Segments come and go.

use shiioo_actors::domain::ids::{GroupId, Position, RaftId};

use super::{entry, long_log, open, purge, read, write};
use crate::disk::SimDisk;
use crate::log::Op;
use crate::log::record::Vote;

/// A removal that is not synced comes back with the next power cut, behind segments that are gone.
#[test]
fn segments_stay_gone() {
    for seed in 0..16 {
        let disk = SimDisk::new(seed);
        let log = long_log(&disk);
        for group in [1, 2] {
            purge(&log, GroupId(group), 24);
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
    let vote = Vote { term: 1, node: RaftId(1), committed: true };
    write(&log, GroupId(2), Op::Vote(vote)).unwrap();
    purge(&log, GroupId(1), 24);
    assert!(log.segment_count() > 2, "the other group still needs the first one");
    purge(&log, GroupId(2), 22);
    assert!(log.segment_count() <= 2, "{} segments", log.segment_count());
    let log = open(&disk).unwrap();
    assert_eq!(log.state(GroupId(2)).vote, Some(vote));
    assert_eq!(log.last(GroupId(1)), Some(Position { term: 1, index: 24 }));
    assert_eq!(read(&log, GroupId(2)), vec![entry(1, 23), entry(1, 24)]);
}
