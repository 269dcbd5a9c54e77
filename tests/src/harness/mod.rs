//! What the tests and the tools start, reach and look at.

pub mod binary;
mod cluster;
mod counter;
pub mod files;
pub mod flood;
pub(crate) mod message;
mod network;
mod observer;
mod ports;
mod process;
pub mod raw;
mod server;
mod small_disk;
mod spawner;
pub mod spec;
mod tenant;
mod wait;

pub use cluster::{Cluster, Lead};
pub use counter::{Counter, Scripted};
pub use network::{Namespace, Network};
pub use observer::Observer;
pub use ports::Ports;
pub use process::Process;
pub use server::{Background, Exit, Launch, Server};
pub use small_disk::SmallDisk;
pub use tenant::Tenant;
pub use wait::{away_from_midnight, eventually, eventually_within, pause};
