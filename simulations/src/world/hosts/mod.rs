//! The hosts of a run: nodes, each through all its lives, and the service that their steps call.

mod host;
mod lives;
mod service;

pub use host::{Exit, NodeHost};
pub(super) use lives::{NodeState, Seat};
pub use service::Service;
