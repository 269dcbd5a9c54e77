//! The shipped node in a deterministic world, alone or as one of a cluster.
//!
//! A run starts `shiioo::Node::start` exactly as the program does, on one simulated host or on
//! several that join over QUIC, and lets a few clients work against the HTTP API of all of them
//! while faults happen. A seed decides everything: which
//! fault comes when, what the clients ask for, how long a message travels, every random byte that
//! the program draws. The same seed gives the same run, byte for byte, so that a seed *is* a bug
//! report: `cargo run -p simulations -- replay --seed 7 --trace` tells its story.
//!
//! # What is real
//!
//! Everything above the seams: configuration, start and stop of a node, its log, Raft groups,
//! redb, actors, the HTTP server and the client of `http` steps; tokio and ractor below them.
//! [`NodeHost`](world::NodeHost) is the only place that starts a node, and it replaces
//! `NodeSeams` and nothing else.
//!
//! # What is simulated
//!
//! | seam | instead | what it can do |
//! |---|---|---|
//! | TCP | turmoil's network ([`seams::SimTcp`]) | latency, links that are lost or held up, connections that break |
//! | UDP | turmoil's network ([`seams::SimUdp`]) | the same, partitions of all kinds, and packets that are lost, come twice or late ([`seams::Air`]) |
//! | disk | storage's `SimDisk` below [`seams::TracedDisk`] | power cuts, also in the middle of an operation; kills; no room; syncs, writes and reads that fail; bits that rot; the loss of everything |
//! | wall clock | virtual time and an offset ([`seams::SimClock`]) | jumps, drift |
//! | entropy | a generator for each start of each node ([`seams::SeededEntropy`]) | |
//! | threads | none: `Executor::Paced` | syncs that take time, so that others come meanwhile |
//!
//! What draws chance below the seams, as hash maps do, gets it from [`det`].
//!
//! # What a run checks
//!
//! First the clients work under faults, and each compares what it was told with what it is told
//! now; somebody else asks all nodes who leads, all the time. Then the faults stop: there has to be
//! a leader, everything that was begun has to end, and all nodes have to give the same answers,
//! each within a bound. At last the nodes are stopped cleanly, their disks are read and compared,
//! and an order is searched that explains what all clients saw of one thing. The promises are in [`checks`], one a file. The
//! checks themselves are checked by [`Mutant`]s: a safety that is taken away has to be noticed.
//!
//! Every event, be it a packet, a request, a fault or a change on the disk, is hashed with its
//! virtual time ([`trace`]). `meta` runs a seed twice and compares the traces: what differs is
//! chance that leaked in.
//!
//! # What it therefore cannot see
//!
//! - Races between threads: there is one.
//! - Slow work: the program's own takes no virtual time, and neither do reads and writes without a
//!   sync. Work with a sync waits first, and then is done in one moment.
//! - What real sockets, kernels and file systems do beyond the model: TCP that sends again, partial
//!   writes to a socket.
//! - Damage where nothing is checked: bits rot only in the log, its last batch excepted, and in the
//!   identity.
//! - A process that stands still. turmoil ticks every host, so a node that is *paused* gets and
//!   sends nothing for a while, and then everything at once, but its own timers go on.
//! - A process that reads after a failed sync what that sync has dropped, unless asked for
//!   ([`Plan::stale_cache`]).

pub mod board;
pub mod checks;
pub mod client;
pub mod det;
mod plan;
pub mod seams;
mod sweep;
pub mod trace;
pub mod workload;
pub mod world;

pub use plan::{Mix, Mutant, NODES_DEFAULT, Outcome, Plan, SECS_DEFAULT};
pub use sweep::{Summary, sweep};
