//! The network of shiioo: the sockets of production behind the seams, QUIC between nodes, and the
//! HTTP client that sends the requests of `http` steps.
//!
//! Architecture invariant: [`tcp`] and [`udp`] are the only places that open a socket. Everything
//! else is given a provider, so that a simulation can run the same code over its own network.

mod dial;
mod frame;
pub mod http_client;
pub mod join;
mod lookups;
pub mod pki;
pub mod quic;
mod settings;
mod shares;
pub mod tcp;
#[cfg(test)]
mod testing;
mod tls;
pub mod udp;
mod wire;
