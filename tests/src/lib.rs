//! The outside world of a shiioo node: what its black-box tests, the soak and the load tool share.
//!
//! Everything here talks to the real program through what a user has: its command line, its HTTP
//! API, its files and signals. A test reads as follows:
//!
//! ```no_run
//! # async fn example() {
//! let server = tests::Server::shared(&[]).await;
//! let tenant = tests::Tenant::create(&server.client(), tests::spec::unlimited()).await;
//! let run = tenant.finished(tests::spec::inline([tests::spec::set("a", 1)])).await;
//! assert_eq!(run["output"]["a"], 1);
//! # }
//! ```
//!
//! | here | is |
//! |---|---|
//! | `harness` | nodes and clusters of real processes, their network, disks and files, and who calls them |
//! | [`load`] | the load tool |
//! | `soak` | trials that go on as long as one likes: kills, lost leaders, a hostile tenant, a cluster that grows |
//! | [`arrows`] | who names whom, for the test of the architecture |
//!
//! The client of the HTTP API, and promises that the simulator checks as well, are in `outside`.
//!
//! Rules: traffic goes to 127.0.0.1 only, every wait has a deadline, a process is ended by the one
//! that started it, and files live in temporary directories.

// This crate is the outside world: it needs real clocks, threads, sockets and files, which the
// product reaches through its seams only.
#![allow(clippy::disallowed_methods)]

pub mod arrows;
mod harness;
pub mod load;
mod soak;

pub use harness::{
    Background, Cluster, Counter, Exit, Launch, Lead, Namespace, Network, Observer, Ports, Process,
    Scripted, Server, SmallDisk, Tenant, away_from_midnight, binary, eventually, eventually_within,
    files, flood, pause, raw, spec,
};
pub use outside::{Broken, Call, Client, Reply};
pub use soak::{chaos, cluster_chaos, failover, grow, hostile};
