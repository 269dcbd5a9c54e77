//! The network of shiioo: the sockets of production behind the seams, QUIC between nodes, and the
//! HTTP client that sends the requests of `http` steps.
//!
//! Architecture invariant: [`tcp`] and [`udp`] are the only places that open a socket. Everything
//! else is given a provider, so that a simulation can run the same code over its own network.
//!
//! Architecture invariant: folders import downwards only, and there is no circle between files of
//! different folders. From the bottom: `sockets`, `pki`, `quic`, `join`, `http`; within `quic`:
//! `settings` and `tls`, `exchange`, `dial`, `accept`, and `quic/mod.rs` on top.

pub mod http;
pub mod join;
pub mod pki;
pub mod quic;
mod sockets;
#[cfg(test)]
mod testing;

pub use sockets::{tcp, udp};
