//! The innermost room of shiioo: the domain (ids, commands, pure state machines) and the actors
//! around it.
//!
//! Architecture invariant: nothing here knows HTTP, QUIC, Raft or a database. What is needed from
//! outside is stated as traits in [`ports`]; a test over `cargo metadata` keeps it so.

pub mod cluster;
pub mod command;
pub mod control;
pub mod domain;
pub mod elector;
pub mod fair;
pub mod handles;
pub mod heartbeat;
pub mod locks;
mod mailbox;
pub mod mutants;
pub mod node;
pub mod placement;
pub mod ports;
pub mod rate;
mod registering;
pub mod replica;
pub mod services;
pub mod state;
pub mod tenants;
