//! The services of a node: supervised actors, what they use, and what answers the calls of other nodes.
//!
//! A service has the same plan everywhere: `mod.rs` (handle, invariants), `message.rs`, `state.rs`
//! (pure), `actor.rs` (shell).

mod call;
pub mod control;
pub mod elector;
pub mod executor;
pub mod heartbeat;
mod join;
pub mod locks;
pub(crate) mod mailbox;
mod node_rpc;
mod petition;
pub mod placement;
#[cfg(test)]
mod puppet;
pub mod tenants;

pub use call::{Call, Created};
pub use join::JoinHandler;
pub use node_rpc::NodeRpcHandler;
pub use petition::{groups_elsewhere, petition};
