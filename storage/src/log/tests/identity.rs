//! The identity of a log, who has files, and entries that a later version wrote.

use std::sync::Arc;

use shiioo_actors::command::{COMMAND_VERSION, Envelope};
use shiioo_actors::domain::ids::{Position, StateMachineId};
use shiioo_actors::domain::region::Region;
use uuid::Uuid;

use super::{GROUP, append, command, entry, now, open, purge, segment_bytes};
use crate::disk::{OpenMode, SimDisk};
use crate::executor::Executor;
use crate::log::record::{Body, LogEntry};
use crate::log::reserve::Reserve;
use crate::log::{Log, LogIdentity, segment};

fn identity(expected: Option<u128>) -> LogIdentity {
    LogIdentity {
        expected: expected.map(Uuid::from_u128),
        fresh: Uuid::from_u128(7),
        region: Region::default(),
    }
}

fn open_as(disk: &SimDisk, expected: Option<u128>) -> Result<Uuid, String> {
    let opened = Log::open_as(disk.mount(), Executor::Inline, &identity(expected));
    opened.map(|log| log.id()).map_err(|error| error.to_string())
}

#[test]
fn a_log_is_begun_once_and_never_taken_for_another() {
    let disk = SimDisk::new(1);
    let refused = |disk, expected, words: &str| {
        let why = open_as(disk, expected).unwrap_err();
        assert!(why.contains(words), "{why}");
    };
    refused(&disk, Some(7), "is missing");
    assert!(disk.mount().list(segment::LOG_DIR).unwrap().is_empty(), "none was begun");
    // Begun, and the node died before its identity could name it.
    for expected in [None, None, Some(7)] {
        assert_eq!(open_as(&disk, expected), Ok(Uuid::from_u128(7)));
    }
    refused(&disk, Some(8), "another node");
    disk.mount().remove_file(&segment::path(1)).unwrap();
    refused(&disk, Some(7), "is missing");
    // A torn beginning is no beginning where there was a log.
    let file = disk.mount().open(&segment::path(1), OpenMode::CreateNew).unwrap();
    file.write_at(0, b"shiiolog").unwrap();
    refused(&disk, Some(7), "head of the segment is broken");
    assert!(disk.mount().exists(&segment::path(1)).unwrap());
}

#[test]
fn segments_of_two_logs_do_not_mix() {
    let (one, two) = (SimDisk::new(1), SimDisk::new(1));
    for (disk, fresh) in [(&one, 1), (&two, 2)] {
        let identity = LogIdentity { fresh: Uuid::from_u128(fresh), ..identity(None) };
        let log =
            Log::open_with(disk.mount(), Executor::Inline, 1000, |_| Reserve::none(), &identity)
                .unwrap();
        for index in 0..25 {
            append(&log, GROUP, vec![entry(1, index)]).unwrap();
        }
    }
    let bytes = segment_bytes(&two, 2);
    let to = one.mount().open(&segment::path(2), OpenMode::Existing).unwrap();
    to.set_len(0).unwrap();
    to.write_at(0, &bytes).unwrap();
    let why = open_as(&one, None).unwrap_err();
    assert!(why.contains("another node"), "{why}");
}

#[test]
fn who_has_files_is_known_in_time_and_survives() {
    let disk = SimDisk::new(1);
    let (at, later) = (Position { term: 1, index: 3 }, Position { term: 2, index: 9 });
    let tenant = StateMachineId::Tenant("00000000-0000-0000-0000-000000000001".parse().unwrap());
    let log = Log::open_sized(disk.mount(), Executor::Inline, 300).unwrap();
    log.note_files(tenant, at);
    log.note_files(StateMachineId::System, at);
    assert_eq!(log.files(tenant), Some(at), "before it is written");
    for index in 0..12 {
        append(&log, GROUP, vec![entry(1, index)]).unwrap();
    }
    assert!(log.segment_count() > 2);
    purge(&log, GROUP, 11);
    log.note_files(StateMachineId::System, later);
    now(log.forget_files(GROUP, tenant)).unwrap();
    disk.cut_power();
    let log = open(&disk).unwrap();
    assert_eq!((log.files(tenant), log.files(StateMachineId::System)), (None, Some(later)));
}

#[test]
fn an_entry_of_a_later_version_is_refused_when_the_log_is_opened() {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    let Body::Command(envelope) = command(1) else { unreachable!() };
    let envelope = Envelope { version: COMMAND_VERSION + 1, ..(*envelope).clone() };
    let position = Position { term: 1, index: 0 };
    let newer = LogEntry { position, body: Body::Command(Arc::new(envelope)) };
    append(&log, GROUP, vec![newer]).unwrap();
    drop(log);
    let why = open(&disk).unwrap_err().to_string();
    assert!(why.contains("newer shiioo"), "{why}");
}
