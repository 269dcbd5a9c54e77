//! The write-ahead log of the node: one for all its Raft groups.
//!
//! Every Raft group needs a log of its own, and every append to it has to be synced. A node has
//! nine groups or more, and a disk makes a few hundred syncs a second. So all groups share one
//! file, and one `fdatasync` serves whatever waits, of all groups. This module gives each group the
//! illusion of its own log; `raft` puts openraft on top of that.
//!
//! # The log as a table
//!
//! The log is a row of segment files, `log/0000000001.log`, `log/0000000002.log`, ... Only the last
//! one is written to. This is a segment as recovery reads it; `batch` is the offset at which the
//! write began that the record was part of:
//!
//! | offset | batch | record      | group | content                                           |
//! |-------:|------:|-------------|------:|---------------------------------------------------|
//! |      0 |       | head        |       | version 2, segment 7, length of segment 6, log id |
//! |     44 |     0 | checkpoint  |   all | votes, purged positions, marks; files on this node|
//! |    311 |   311 | entry       |     0 | term 3, index 41: create tenant t                 |
//! |    498 |   311 | entry       |     5 | term 1, index 12: start run r                     |
//! |    730 |   311 | vote        |     2 | term 4 for node 1                                 |
//! |    761 |   761 | files       |       | t's files are durable up to term 3, index 41      |
//! |    802 |   761 | low-water   |     0 | everything up to term 3, index 41 is in files     |
//! |    830 |   761 | truncate    |     5 | entries from index 12 on lost an election         |
//! |    859 |   859 | purge       |     0 | entries up to term 3, index 41 are given up       |
//! |    890 |   890 | closed      |       | the node stopped; all before was synced           |
//!
//! Nothing is ever changed in place. A truncation and a purge are records of their own, and a later
//! entry with the same index replaces an earlier one. What a group's log holds *now* is in memory
//! ([`entry_index`]), built by reading the segments from the first to the last. Bytes and tags are
//! in [`segment`] and [`record`].
//!
//! # Group commit
//!
//! Callers hand in *jobs*: changes to one group that become durable together. One writer takes all
//! jobs that wait, up to 4 MiB, frames them into one buffer, writes the buffer with one write,
//! syncs once, publishes the changes in memory, and only then tells each job's owner. What arrives
//! during the sync is the next batch. [`group_commit`] makes the batches, [`writer`] puts them on
//! disk, [`drivers`] decide when: a thread in production, the caller itself in the simulator, where
//! a thread would be a source of chance.
//!
//! An appended entry can be read before it is durable, because the leader sends it to others at the
//! same time as it syncs. Votes, truncations, purges and marks show only once they are durable.
//!
//! # A torn tail, or rot
//!
//! After a power cut the last write may be missing, cut short, full of holes, or have its end on
//! disk and its beginning not. Nobody was told of that write, so recovery drops it. A bit that
//! rotted in an *acknowledged* record looks the same, and dropping that would lose what others
//! count on. The `batch` field tells the two apart: a batch is written only after everything before
//! it is synced. So an intact record whose batch begins *behind* a broken place proves that the
//! broken place had been durable, and the log refuses to open. Without such a witness the broken
//! place is the last write, and is cut off. A log that is closed well ends with a record of its own
//! batch, a witness for all before. [`recovery`] applies the rule.
//!
//! # The id of the log
//!
//! A log that is *missing* must not be taken for an empty one: the node would vote and acknowledge
//! again as if it had promised nothing. So each log has an id, which stands in the head of every
//! segment, in the node's identity file, and in the index of every state machine. [`LogIdentity`] says
//! which log is expected; any other, or none where one is expected, is damage. Version 1 had no id:
//! such a log is read, and goes on in a segment of version 2 with one ([`upgrade`]).
//!
//! # The low-water mark, and cutting
//!
//! Entries are applied to files behind the log (decision 1). Each group's *low-water mark* is the
//! last position up to which every state machine of the group, control plane or tenant, is durable in its
//! files (`raft::durability`). It reaches
//! the log with the next batch, never with a sync of its own: an older mark only makes a restart
//! apply more entries again. Once the mark has risen by 16,384 entries, or has risen while entries
//! below it keep a segment that is not the last (`raft::progress`), or a segment was begun, openraft purges up
//! to it, unless a replica that is being sent a snapshot goes on from the entries behind it
//! (`raft::snapshot_sender`). A segment goes when no entry in it is needed any more, by the index's count,
//! and only from the front. Its votes and marks are not lost: every segment begins with a
//! checkpoint of them all. The last segment stays, so that segments are the smaller the smaller the disk is.
//!
//! # A full disk
//!
//! Two MiB are held in [`reserve`]. When a write finds no room, the file is cut back to the end of
//! the last batch, the reserve gives up some of itself, and the batch is tried again. So what was
//! proposed before anybody knew, and the vote that an election needs, still become durable. From
//! then on [`Log::is_full`] holds, and new proposals are refused above, but for those that make room
//! ([`Log::takes_what_makes_room`]): they may have what the reserve holds beyond the share of votes, and large
//! batches leave them some of that. However many of them come at once, a batch on a full disk takes them only up to a
//! length at which it may have all of the reserve. What came before the disk was known to be full may be longer than
//! what the reserve gives a large batch, about 1.2 MiB: such a batch waits for room, and everything behind it does,
//! votes as well. A process without file descriptors cannot begin a segment; that batch
//! waits likewise.
//!
//! # Invariants
//!
//! - A job's completion is called exactly once, and with `Ok` only when the job is durable and
//!   shows.
//! - An entry can be read from the moment [`Log::append`] returns.
//! - Jobs of one group are carried out in the order in which they were handed in.
//! - A batch begins only where everything before it is synced.
//! - After a failed sync nothing is written again in this process, for what the kernel dropped
//!   cannot be known. The node stops.
//! - A mark never reaches the log before the report of the files that it relies on.
//! - Before a purge the mark that allows it is in the log.
//!
//! # What this log does not do
//!
//! - It cannot tell rot in the very last batch from a torn write, unless the log was closed.
//! - It does not compact: one idle group keeps a segment alive for as long as its entries are
//!   needed. The mark of an idle group rises as soon as its files are synced, so this is bounded by
//!   time.
//! - It does not read in parallel, nor map files into memory: entries older than a 32 MiB cache
//!   cost a read each.
//! - It does not repair by itself. Damage names the file and the offset; where there are others the node
//!   goes on as another member, with a new log (`node/src/replacement.rs`). On a lone node a person decides:
//!   then [`salvage`] reads what is left, and [`rewrite`] makes a log of it (`node/src/repair`).

#[cfg(any(test, feature = "sim"))]
mod bit_rot;
mod drivers;
mod entry_index;
mod group_commit;
mod handle;
mod job;
mod read;
pub(crate) mod record;
pub(crate) mod recovery;
mod reserve;
mod rewrite;
mod salvage;
pub(crate) mod segment;
mod shared;
mod upgrade;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

#[cfg(any(test, feature = "sim"))]
pub use bit_rot::witnessed_log_bytes;
pub(crate) use handle::Log;
pub use handle::LogIdentity;
pub(crate) use job::Op;
pub use read::has_log;
#[cfg(feature = "sim")]
pub(crate) use read::load;
pub use rewrite::{Held, Repaired, RepairedGroup};
pub use salvage::{BrokenPlace, DamagedLog};
pub(crate) use segment::LOG_DIR;

/// Longest command that is taken on a full disk because it makes room, bytes: names of clients and requests are in it.
pub(crate) const MAKING_ROOM_COMMAND_BYTES_MAX: usize = 8 << 10;

/// Jobs that may wait for the writer.
const QUEUE_JOBS_MAX: usize = 1024;
