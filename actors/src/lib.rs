//! The innermost room of shiioo: the domain (ids, commands, pure state machines) and the actors
//! around it.
//!
//! Architecture invariant: nothing here knows HTTP, QUIC, Raft or a database. What is needed from
//! outside is stated as traits in [`ports`]; a test over `cargo metadata` keeps it so.

pub mod codec;
pub mod command;
pub mod error;
pub mod handles;
pub mod ids;
pub mod json;
pub mod outcome;
pub mod ports;
pub mod seams;
pub mod tenant_record;
pub mod views;
pub mod workflow;
