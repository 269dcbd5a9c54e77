//! What shiioo keeps, and how it is kept: the disk seam, the replicated log of every group, and the
//! files of every part.
//!
//! | here | is | for |
//! |---|---|---|
//! | [`disk`] | the only way to files | everybody |
//! | [`Executor`] | where blocking work runs | `node` chooses |
//! | [`Groups`] | Raft groups over one log | the actors' `ReplicatedLog`, and their replicas elsewhere |
//! | [`FileStores`] | indexes and event logs | the actors' `Stores` |
//!
//! Architecture invariant: only this crate knows redb and openraft, and neither shows in its public
//! face. It knows nothing of HTTP or QUIC, and of the domain only what a command is for.
//!
//! The durability point is the log: what [`Groups`] acknowledges is synced there. The parts' files
//! follow when their actors say so, and tell the log by the floor what it may forget. The rules, and
//! why a torn write can be told from damage, are in the modules `log` and `raft::floor`.

#[cfg(test)]
mod crash_tests;
pub mod disk;
mod executor;
#[cfg(feature = "sim")]
pub mod inspect;
mod log;
mod parts;
mod raft;
mod under_way;

pub use executor::{Executor, Pace};
#[cfg(any(test, feature = "sim"))]
pub use log::witnessed_log_bytes;
pub use log::{LogClaim, has_log};
pub use parts::{FileStores, StoresConfig};
pub use raft::{Groups, GroupsConfig, NoPeers};
pub use under_way::UnderWayFile;
