//! The innermost room of shiioo: the domain (ids, commands, pure state machines) and the actors
//! around it.
//!
//! Architecture invariant: nothing here knows HTTP, QUIC, Raft or a database. What is needed from
//! outside is stated as traits in [`ports`]; a test over `cargo metadata` keeps it so.

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
