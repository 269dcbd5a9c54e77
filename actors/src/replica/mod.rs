//! A replica: a pure state machine, its share of a group's log, and its files.
//!
//! The control plane and every tenant are run the same way: the group's apply loop pushes entries
//! into a [`ApplyQueue`] and goes on; the replica's actor takes them out in batches with a
//! [`ReplicaRunner`], applies them, answers whoever proposed them, and now and then makes what has
//! changed durable, which lets the log be cut.
//!
//! Invariants:
//! - entries are applied in log order, each once: the index remembers up to where its rows go, and
//!   what is at or below that position is skipped;
//! - nothing a replica writes is needed for what was acknowledged to survive: the log has it. Rows
//!   are therefore written behind, many changes at once;
//! - a queue that overflows forgets entries and remembers that it did: they are read again from
//!   the log.

mod apply_queue;
mod runner;

pub use apply_queue::{ApplyQueue, QueueBytes};
pub use runner::{ReplicaDeps, ReplicaRunner};
