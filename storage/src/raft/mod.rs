//! The replicated log of every group on this node: openraft over the node's one log.
//!
//! Raft itself is openraft's: elections, replication, commitment, membership. This module gives it
//! what it asks for, a log store, a state machine and a network, and decides what those promise.
//! Whoever changes something here should know four words.
//!
//! - A *group* is one Raft group. Group 0 holds the cluster's own state, the others hold tenants.
//! - An entry is *committed* when a quorum has it durably.
//! - An entry is *delivered* when it was given to the state machine's queue. openraft is told that
//!   it is applied then, so that a tenant that stalls does not stall its group.
//! - The *low-water mark* is the position up to which every delivered entry is durable in files.
//!
//! # Many groups, one log
//!
//! | openraft asks for | is | over |
//! |---|---|---|
//! | `RaftLogStorage` | [`log_store`] | the group's share of `log` |
//! | `RaftStateMachine` | [`state_machine`] | the actors' `ApplySink` |
//! | `RaftNetworkV2` | [`network`] | the actors' `Peers`: one QUIC call a message |
//! | the same, for heartbeats | [`heartbeats`] | the same: one call for all groups |
//! | the receiving side | [`serve`] | the same calls, from other members |
//!
//! Each group is an openraft instance of its own ([`group`]): own term, own leader, own members.
//! They share the log, and thereby its disk and its fate. When the log dies, or one group does, the
//! node has to stop ([`Groups::failed`]): what it acknowledged is safe, and it can acknowledge
//! nothing more.
//!
//! # What is durable when
//!
//! | what | before |
//! |---|---|
//! | a vote | it is answered |
//! | an entry, on a follower | the append is answered |
//! | an entry, on the leader | the leader counts itself towards the quorum; it is sent at once |
//! | a truncation | the entries that replace it are appended |
//! | the low-water mark | the purge that it allows |
//! | the commit index | never: a quorum of logs tells it again |
//!
//! A client is answered after commitment *and* application, by the state machine's outcome. When a
//! proposal fails after openraft took it, the outcome is unknown, never 'failed'.
//!
//! # Restart
//!
//! The log gives vote, entries and the low-water mark with the members there. openraft is told that
//! everything up to the mark is applied. What is above is delivered again once it is known to be
//! committed; a state machine skips what its files have already. A leader does not go on leading
//! after a restart (`enable_leader_restore` is off): it may have lost unsynced entries in a power
//! cut, and would give the same index of the same term twice.
//!
//! # Snapshots
//!
//! A snapshot is not a copy that lies on disk. It is the claim 'everything up to the low-water mark
//! is in the files', which is true by definition and costs nothing. Taking one lets openraft purge
//! the log up to there. It is due when the mark has risen by 16,384 entries, or has risen while
//! entries below it keep a segment that is not the last, or a segment of the log was begun ([`progress`]).
//! The last is for groups whose mark does not rise any more.
//!
//! Contents are needed only when a replica lacks what is purged. Then each state machine of the
//! group is read while the group goes on, at a position of its own, so that it holds what the snapshot claims *or more*;
//! entries that it holds already are delivered once more and skipped. They travel one after another,
//! in pieces of 1 MiB that the receiver writes to files beside its own as they come, and the claim last ([`snapshot`],
//! decision 26). The receiver raises its own mark only when
//! everything is durable in its files, so a crash in between leaves the old mark, over files that may
//! be further. A replica whose files of one state machine are damaged, the control plane's too, asks for
//! that one alone ([`serve`]); no claim follows.
//!
//! # Reads
//!
//! A linearizable read asks the leader for its commit index. The leader confirms by one round of
//! heartbeats that it still leads, and the reader waits until everything up to that index is
//! delivered to the replica that it reads ([`read`]). Readers that come during a round share the
//! next one, never the one under way: it may have begun before a write that they must see. For a
//! read no lease is trusted, because a process can stand still for longer than any lease.
//!
//! # Timing
//!
//! All is derived from one setting, the election timeout T. Heartbeats go out every T/5, those of all
//! groups at the same moment and together ([`heartbeats`]). A follower campaigns after 0.8 T to T
//! without one, and asks first whether others would (pre-vote), so that a node that was cut off for a
//! while does not end the term of a working leader when it comes back.
//!
//! **The silence of a leader without a quorum.** Behind a partition that is cut in one direction,
//! followers hear a leader that does not hear them. They would follow for ever a leader that
//! commits nothing. So a leader that has lost its quorum sends no heartbeats for T, long enough for
//! them to elect another; then it sends for T again, in case the partition has healed, and so on.
//!
//! **Pacing.** A deadline that does not grow with the bytes is a livelock on a slow link: the same
//! batch is sent and dropped for ever. So each message has the time that 1 Mbit/s takes for it, and
//! the bytes of entries in one message follow the link: halved after a loss, doubled after a full
//! batch that came back soon ([`flow_control`]). Appends to one replica go one after another.
//!
//! # A follower that lost what it acknowledged
//!
//! Its directory may be an older copy, or its disk may have lied. It may then vote for a candidate
//! that lacks entries which it once helped to commit, and acknowledged data is lost. openraft takes
//! for granted that this does not happen. So the leader remembers what each replica has
//! acknowledged in this term. One that answers 'conflict' below that is sent nothing more, and is
//! told ([`network`]). It looks into its own log, finds the entry missing, and ends its process
//! ([`Groups::serve`]). The operator removes its directory and lets it join anew.
//!
//! # Invariants
//!
//! - openraft's types do not leave this folder; the actors see the `ReplicatedLog` port.
//! - Every entry above the mark is delivered once in the life of the process, in order.
//! - A message counts as that of the member whose certificate carried it, never of who it says it
//!   is.
//! - Bytes from the network become openraft's values only when they keep the rules that it asserts.
//!
//! # What is not done
//!
//! - A loss that the leader has not seen acknowledged in its own term is not found: that is why a
//!   log has an id, and nothing goes on from a missing one.
//! - A state machine of a snapshot whose transfer breaks off is sent again from its beginning.
//! - There are no witnesses, no priorities among voters, and no reads from a follower that is
//!   behind.

mod comparison;
mod convert;
mod copy_room;
mod durability;
mod flow_control;
mod group;
mod groups;
mod heartbeat_timer;
mod heartbeats;
mod log_store;
mod membership;
mod network;
mod progress;
mod proposed_bytes;
mod read;
mod replicated_log;
mod returning;
mod serve;
mod snapshot;
mod snapshot_sender;
mod snapshot_wire;
mod snapshots_under_way;
mod state_machine;
mod types;
mod wire;

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod heartbeats_tests;
#[cfg(test)]
mod suite_tests;
#[cfg(test)]
mod wire_tests;

pub use groups::{Groups, GroupsConfig};

/// What the crash tests drive without openraft around it.
#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::progress::GroupProgress;
    pub(crate) use super::state_machine::GroupStateMachine;
    pub(crate) use super::types::raft_entry;
}
