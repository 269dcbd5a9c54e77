//! The network of shiioo: the sockets of production behind the seams, and the HTTP client that
//! sends the requests of `http` steps.
//!
//! Architecture invariant: [`tcp`] and [`udp`] are the only places that open a socket. Everything
//! else is given a provider, so that a simulation can run the same code over its own network.

pub mod http_client;
pub mod tcp;
pub mod udp;
