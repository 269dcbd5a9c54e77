//! The format on disk: what this version writes, and what earlier ones wrote.

use shiioo_actors::domain::ids::{Position, RaftId, StateMachineId};

use super::{
    GROUP, append, batches, entry, now, open, read, segment_bytes, with_first_segment, write,
};
use crate::disk::{OpenMode, SimDisk};
use crate::log::Op;
use crate::log::record::{Body, LogEntry, LowWaterMark, Members, Vote};

/// The bytes of version 2. When this fails, old logs can no longer be read: raise the version.
#[test]
fn this_version_is_written_as_ever() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    log.note_files(StateMachineId::System, Position { term: 2, index: 0 });
    let vote = Vote { term: 2, node: RaftId(9), committed: true };
    write(&log, GROUP, Op::Vote(vote)).unwrap();
    let position = Position { term: 2, index: 0 };
    let members = Members { voters: vec![vec![RaftId(9)]], nodes: vec![RaftId(9)] };
    let first = LogEntry { position, body: Body::Members(members.clone()) };
    append(&log, GROUP, vec![first]).unwrap();
    log.set_low_water_mark(GROUP, LowWaterMark { position, members: Some((position, members)) });
    now(log.write(GROUP, vec![Op::Truncate(1), Op::Purge(position)])).unwrap();
    now(log.close()).unwrap();
    let hex: String = segment_bytes(&disk, 1).iter().map(|byte| format!("{byte:02x}")).collect();
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
        assert_eq!(log.state(GROUP).vote, Some(Vote { term: 2, node: RaftId(9), committed: true }));
        assert_eq!(log.last(GROUP), Some(position));
        assert_eq!(log.segment_count(), 2, "given an id once");
        assert_eq!(log.files(StateMachineId::System), Some(Position::default()));
    }
    append(&open(&disk).unwrap(), GROUP, vec![entry(3, 1)]).unwrap();
    assert_eq!(read(&open(&disk).unwrap(), GROUP), [entry(3, 1)]);
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
