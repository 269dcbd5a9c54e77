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
//! | [`Plan`], [`run`] | what is to be done in a run, and its way to a verdict; [`run::sweep`] does many |
//! | [`world`] | the hosts, their disks, the faults, the phases of a run and its verdict |
//! | [`workload`] | what clients do; [`world::Board`] is what they share |
//! | [`facts`], [`checks`] | what clients were told, and the promises, one a file |
//! | [`script`] | stories that a text tells, and their transcripts |
//! | [`env`] | what all of it stands on: sockets, disks, clocks, chance; what happened; what it took |
//!
//! Invariants:
//! - [`world::NodeHost`] is the only place that starts a node, and it replaces `NodeSeams` and
//!   nothing else;
//! - whatever decides something draws from a generator that the seed has seeded;
//! - every packet, request, fault and change on a disk is hashed with its virtual time, so that two
//!   runs of a seed can be compared.

pub mod checks;
pub mod env;
pub mod facts;
mod plan;
pub mod run;
pub mod script;
pub mod workload;
pub mod world;

pub use plan::{LyingDisk, Mix, NODES_DEFAULT, Plan, REGIONS_MAX, SECS_DEFAULT};
pub use run::Outcome;
pub use run::sweep::Summary;
