//! What a node is from outside, for whoever has no part in it.
//!
//! | here | is |
//! |---|---|
//! | [`Client`] | the HTTP API over any stream of bytes: of the system, or of the simulation |
//! | [`checks`] | promises over plain facts, which the black-box tests and the simulator both check |
//!
//! Nothing here knows a crate of the product, and nothing a harness.

pub mod checks;
mod http;

pub use http::{Broken, Call, Client, Reply, Stream};
