//! A replica: one state machine on one node, with its queue, its state in memory and its files.
//!
//! The control plane is one replica of a node, and every tenant that is awake is another. All of them
//! are run in the same way. A state machine (`state/`) is pure: it says what a command comes to. This
//! folder decides *when* a committed entry is applied, when rows reach the files, and what may then
//! be forgotten by the log.
//!
//! # The way of an entry
//!
//! ```text
//! group's apply loop --push--> ApplyQueue --take--> ReplicaRunner::drain --> StateMachine::apply
//!                                                        |                        |
//!                              Reply to the proposer <---+     events, rows <-----+
//!                                                              |
//!                                    RowBuffer (memory) <------+
//!                                        |  make_durable: every 5 s, 4 MiB, 4096 entries, before closing
//!                                        v
//!                                    Store (events, then index with the position) --> low-water mark
//! ```
//!
//! 1. The apply loop of a group *delivers* a committed entry: it pushes the entry into the
//!    [`ApplyQueue`] of the replica and goes on. It never waits for a replica, so that one tenant that
//!    stalls does not stop its group.
//! 2. The actor that owns the replica *drains* the queue with its [`ReplicaRunner`]: it takes
//!    everything, applies it in order, writes behind, and answers the proposers.
//! 3. Rows and events wait in the `RowBuffer`, over the rows of the files, so that a read sees both.
//! 4. A *durable write* puts them into the files together with the position of the last entry.
//!    Afterwards the runner tells the log, which raises the group's low-water mark and cuts what lies
//!    below it.
//!
//! # Invariants
//!
//! - Entries are applied in the order of the log, each once. The index holds the position up to which
//!   its rows go; an entry at or below that position is skipped.
//! - An acknowledged write needs nothing that this folder writes: the log has it. The files are
//!   written behind the log, and a crash costs a replay.
//! - Nothing is in an index that is not durable, and nothing leaves the memory before it is durable. A
//!   write that finds the disk full takes back what it has written, and the replica goes on from
//!   memory.
//! - What waits in queues is bounded in entries and in bytes, for each replica and for all together.
//!   A queue that overflows lets entries go and remembers that it did.
//! - Missing is never taken for empty. Files that are closed cannot be read ([`ReplicaRunner`] opens
//!   them first); files that have vanished are damage.
//!
//! # Replay
//!
//! A replica reads entries from the log instead of its queue in two cases: its queue has overflowed,
//! or an actor has died with entries that it had taken. Both end at an index that the queue knows, and
//! everything after it is still in the queue. The log gives some MiB at a time, so that a replica far
//! behind costs time and no memory. After a restart of the process nothing is replayed in this way: the
//! group delivers everything above its low-water mark again.
//!
//! # The low-water mark
//!
//! A replica reports the position up to which its files are durable. The mark of a group is the lowest
//! report of its replicas. Before a report the log has to know *that* the replica has files
//! (`filed`): a log that has been cut must miss the files which held what was cut. When files are
//! removed the order is the reverse (`unfile` first).
//!
//! # Damage
//!
//! Files are compared with the log when they are opened: they may be missing, older than what was
//! reported, ahead of the log, or of another history. Each of these is damage, and so is a row that
//! cannot be decoded. The runner fails with [`StoreError::Damaged`](crate::ports::StoreError); its
//! owner takes the tenant out of service, or stops the node for the control plane. The files are
//! replaced by what another replica holds ([`ReplicaRunner::rebuild`]), those of the control plane at the
//! next start. The log misses the old files
//! until the new ones are durable, so that a crash in between is damage again. The files are read
//! whole now and then to find damage early (`runner/scrub.rs`). A full disk and a lack of file
//! descriptors are no damage: both pass.
//!
//! # Snapshots
//!
//! A replica that lacks entries which the log has no more gets what another holds
//! ([`ReplicaRequest`]): all rows and the events beyond its own, at one position, read part by part from a view of the
//! other's files (`runner/dump.rs`). It hears of them when they are in files, whole, and puts these in the place of
//! its own (`runner/snapshot.rs`, decision 26). Entries up to that
//! position are skipped when they are delivered afterwards. A replica of which the group's snapshot has
//! nothing was deleted meanwhile, and lets go of what it has.
//!
//! # Not done
//!
//! That the events of the replica that is behind are the beginning of the other's is taken for granted, but for their
//! lengths and checksums; whether it was right shows when replicas are compared (`services/tenants/compare.rs`).

mod apply_queue;
mod runner;

pub use apply_queue::{ApplyQueue, QueueBytes};
pub use runner::{DigestCursor, ReplicaDeps, ReplicaRequest, ReplicaRunner, ScrubCursor};
