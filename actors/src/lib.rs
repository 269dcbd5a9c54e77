//! The innermost crate of shiioo: the domain and the actors around it.
//!
//! It is built in floors, from the bottom up: `domain`, `command`, `ports`, `state`, `replica`,
//! `cluster`, `services`, `handles`, `node`. A file names what is in its own folder or below it.
//!
//! Architecture invariant: nothing here knows HTTP, QUIC, Raft or a database. What is needed from
//! outside is stated as traits in [`ports`]. `tests/tests/architecture.rs` keeps both so.

pub mod cluster;
pub mod command;
pub mod domain;
pub mod handles;
pub mod mutants;
pub mod node;
pub mod ports;
pub mod replica;
pub mod services;
pub mod state;
pub mod testing;
