//! The durable side of shiioo: the disk seam, the replicated log of every group, and the files that
//! state machines keep.
//!
//! | here | is | for |
//! |---|---|---|
//! | [`disk`] | the only way to files | everybody |
//! | [`Executor`] | runs work that blocks | `node` chooses |
//! | [`FileStores`] | indexes and event logs | the actors' `Stores` |
//! | [`Groups`] | Raft groups over one log | the actors' `ReplicatedLog`, and their replicas elsewhere |
//!
//! The log is the durability point: an entry that [`Groups`] acknowledges is synced there. The
//! files in `index` follow later, and report to the log how far they are, which is what lets it be
//! cut. The rules, and why a torn write can be told from damage, are told at the head of `log`,
//! `raft` and `index`.
//!
//! # Floors
//!
//! Folders and files of this crate import only what is above them in this list:
//!
//! 1. `disk`: the seam, and its simulation
//! 2. `executor`: where blocking work runs
//! 3. `index`: files of state machines
//! 4. `log`: the write-ahead log of the node; asks `index` who had files beside a log of version 1
//! 5. `raft`: openraft over `log`
//! 6. `under_way`: the file of attempts under way, over `disk` alone
//! 7. `stopped`: the log of a node that does not run, for forced recovery, over `log`
//! 8. `aside`: moves what is lost or damaged out of the way, over `index` and `log`
//! 9. `inspect`: reads a dead node's disk, for the simulator
//!
//! Architecture invariant: only this crate knows redb and openraft, and neither shows in its public
//! face. It knows nothing of HTTP or QUIC, and of the domain only which state machine a command is
//! for.

mod aside;
#[cfg(test)]
mod crash_tests;
pub mod disk;
mod executor;
mod index;
#[cfg(feature = "sim")]
pub mod inspect;
mod log;
mod raft;
mod stopped;
mod under_way;

pub use aside::{keep_events, set_data_aside, set_log_aside, set_system_aside};
pub use executor::{Executor, Pace};
pub use index::{FileStores, StoresConfig};
#[cfg(any(test, feature = "sim"))]
pub use log::witnessed_log_bytes;
pub use log::{BrokenPlace, DamagedLog, Held, Repaired, RepairedGroup};
pub use log::{LogIdentity, has_log};
pub use raft::{Groups, GroupsConfig};
pub use stopped::{StoppedGroup, StoppedLog};
pub use under_way::UnderWayFile;
