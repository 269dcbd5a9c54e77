//! Tests of the log, and what they have in common.

mod damage;
mod identity;
mod model;
mod records;
mod repair;
mod segments;
mod shortages;
mod torn_writes;
mod versions;
mod writing;

use std::sync::Arc;

use shiioo_actors::command::{Command, Envelope, RemoveNode, SystemCommand};
use shiioo_actors::domain::ids::{GroupId, NodeId, Position, RaftId};
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::StoreError;
use shiioo_actors::testing::envelope;
use tokio::sync::oneshot;

use super::record::{Body, LogEntry, Vote};
use super::{Log, Op, segment};
use crate::disk::{OpenMode, SimDisk};
use crate::executor::Executor;

/// The group of tests that need only one.
const GROUP: GroupId = GroupId(3);

/// Runs a future that never has to wait: under [`Executor::Inline`] everything is done at once.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(future)
}

/// Runs a future that waits for simulated time.
fn simulate<T>(future: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(future)
}

pub(crate) fn command(number: u64) -> Body {
    let uuid = format!("00000000-0000-0000-0000-{number:012}");
    let node: NodeId = format!("node-{uuid}").parse().unwrap();
    let command = Command::System(SystemCommand::RemoveNode(RemoveNode { node }));
    let at = Timestamp(i64::try_from(number).unwrap());
    Body::Command(Arc::new(Envelope { version: 1, at, ..envelope(command) }))
}

pub(crate) fn entry(term: u64, index: u64) -> LogEntry {
    LogEntry { position: Position { term, index }, body: command(index * 1000 + term) }
}

fn vote(term: u64) -> Vote {
    Vote { term, node: RaftId(1), committed: false }
}

/// Hands entries in, and gives the way to learn when they are durable.
pub(crate) async fn begin_append(
    log: &Log,
    group: GroupId,
    entries: Vec<LogEntry>,
) -> oneshot::Receiver<std::io::Result<()>> {
    let (tell, told) = oneshot::channel();
    log.append(group, entries, Box::new(move |result| drop(tell.send(result)))).await;
    told
}

/// Appends entries durably.
pub(crate) fn append(log: &Log, group: GroupId, entries: Vec<LogEntry>) -> std::io::Result<()> {
    now(async {
        let told = begin_append(log, group, entries).await;
        told.await.unwrap_or_else(|_| Err(std::io::Error::other("dropped")))
    })
}

/// Makes one change durably.
fn write(log: &Log, group: GroupId, op: Op) -> std::io::Result<()> {
    now(log.write(group, vec![op]))
}

/// Purges the entries of a group up to an index, which are of the first term.
fn purge(log: &Log, group: GroupId, index: u64) {
    write(log, group, Op::Purge(Position { term: 1, index })).unwrap();
}

pub(crate) fn read(log: &Log, group: GroupId) -> Vec<LogEntry> {
    now(log.read(group, 0, u64::MAX)).unwrap()
}

pub(crate) fn open(disk: &SimDisk) -> Result<Arc<Log>, StoreError> {
    Log::open(disk.mount(), Executor::Inline)
}

/// Reads a segment's file.
fn segment_bytes(disk: &SimDisk, number: u32) -> Vec<u8> {
    let file = disk.mount().open(&segment::path(number), OpenMode::Existing).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Makes a disk with a log whose first segment holds these bytes.
fn with_first_segment(bytes: &[u8]) -> SimDisk {
    let disk = SimDisk::new(1);
    let mounted = disk.mount();
    mounted.create_dir_all(segment::LOG_DIR).unwrap();
    let file = mounted.open(&segment::path(1), OpenMode::CreateNew).unwrap();
    file.write_at(0, bytes).unwrap();
    disk
}

/// Gives the bytes of a log after every batch: its beginning, then two entries at a time.
fn batches(count: u64) -> Vec<Vec<u8>> {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    let mut all = vec![segment_bytes(&disk, 1)];
    for batch in 0..count {
        append(&log, GROUP, vec![entry(1, 2 * batch), entry(1, 2 * batch + 1)]).unwrap();
        all.push(segment_bytes(&disk, 1));
    }
    all
}

/// Makes a log that fills several short segments with entries of two groups.
fn long_log(disk: &SimDisk) -> Arc<Log> {
    let log = Log::open_sized(disk.mount(), Executor::Inline, 1000).unwrap();
    for index in 0..25 {
        append(&log, GroupId(1), vec![entry(1, index)]).unwrap();
        append(&log, GroupId(2), vec![entry(1, index)]).unwrap();
    }
    assert!(log.segment_count() > 2, "{} segments", log.segment_count());
    log
}

/// Expects a log that refuses to open, and gives file, offset and reason.
fn damage(opened: Result<Arc<Log>, StoreError>) -> (String, u64, String) {
    match opened {
        Err(StoreError::Damaged { file, offset, what }) => (file, offset, what),
        other => panic!("{other:?}"),
    }
}
