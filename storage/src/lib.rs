//! Disk, replicated log, Raft groups and tenant files of shiioo.

#[cfg(test)]
mod crash_tests;
pub mod disk;
mod executor;
mod log;
mod parts;
mod raft;

pub use executor::Executor;
pub use parts::FileStores;
pub use raft::{Groups, GroupsConfig};
