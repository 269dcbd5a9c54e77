//! The shipped node in a deterministic world, alone or as one of a cluster.
//!
//! A run starts `shiioo::Node::start` exactly as the program does, on one simulated host or on
//! several that join over QUIC, and lets a few clients work against the HTTP API of all of them
//! while faults happen. A seed decides everything, so that a seed *is* a bug report:
//! `cargo run -p simulations -- replay --seed 7 --trace` tells its story. What is real, what is
//! simulated, what is checked and what none of it can see is told in `docs/simulation.md`.
//!
//! | here | is |
//! |---|---|
//! | [`Plan`] | one run, from its seed to its verdict; [`sweep`] runs many |
//! | [`world`] | the hosts, what happens to them, and the phases of a run |
//! | [`seams`] | what the node stands on instead of sockets, files, clocks and chance |
//! | [`workload`], [`client`], [`board`] | what clients do, and what they know |
//! | [`checks`] | the promises, one a file |
//! | [`script`] | stories that a text tells, and their transcripts |
//! | [`det`], [`trace`], [`heap`] | chance under control; what happened; what it took |
//!
//! Invariants:
//! - [`world::NodeHost`] is the only place that starts a node, and it replaces `NodeSeams` and
//!   nothing else;
//! - whatever decides something draws from a generator that the seed has seeded;
//! - every packet, request, fault and change on a disk is hashed with its virtual time, so that two
//!   runs of a seed can be compared.

pub mod board;
pub mod checks;
pub mod client;
pub mod det;
pub mod heap;
#[cfg(feature = "mutants")]
pub mod mutants;
mod plan;
pub mod script;
pub mod seams;
pub mod sweep;
pub mod trace;
pub mod workload;
pub mod world;

pub use plan::{LyingDisk, Mix, NODES_DEFAULT, Outcome, Plan, SECS_DEFAULT};
pub use sweep::Summary;
