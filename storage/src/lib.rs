//! Disk, replicated log, Raft groups and tenant files of shiioo.

pub mod disk;
mod executor;
#[allow(dead_code)]
mod log;
mod parts;
mod raft;

pub use executor::Executor;
pub use parts::FileStores;
pub use raft::{Groups, GroupsConfig};
