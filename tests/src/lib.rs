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
//! Rules: traffic goes to 127.0.0.1 only, every wait has a deadline, a process is ended by the one
//! that started it, and files live in temporary directories.

// This crate is the outside world: it needs real clocks, threads, sockets and files, which the
// product reaches through its seams only.
#![allow(clippy::disallowed_methods)]

pub mod arrows;
pub mod binary;
pub mod chaos;
mod client;
mod cluster;
pub mod cluster_chaos;
mod counter;
pub mod failover;
pub mod files;
pub mod flood;
pub mod hostile;
pub mod load;
mod network;
mod observer;
mod ports;
pub mod raw;
mod server;
mod small_disk;
mod spawner;
pub mod spec;
mod tenant;
mod wait;

pub use client::{Broken, Call, Client, Reply};
pub use cluster::{Cluster, Lead};
pub use counter::{Counter, Scripted};
pub use network::{Namespace, Network};
pub use observer::Observer;
pub use ports::Ports;
pub use server::{Background, Exit, Launch, Server};
pub use small_disk::SmallDisk;
pub use tenant::Tenant;
pub use wait::{away_from_midnight, eventually, eventually_within, pause};
