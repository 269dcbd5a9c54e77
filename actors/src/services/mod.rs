//! The services of a node: supervised actors, and what answers the calls of other nodes with them.
//!
//! A service has the same plan everywhere: `mod.rs` (handle, invariants), `message.rs`, `state.rs`
//! (pure), `actor.rs` (shell).

mod join;
mod node_rpc;

pub use join::JoinDesk;
pub use node_rpc::NodeCalls;
