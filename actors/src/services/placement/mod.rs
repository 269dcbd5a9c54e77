//! Placement: on the leader, gives members of the cluster their place in the system group.
//!
//! A new member is a learner until it has caught up, then a voter, up to [`VOTERS_MAX`] of them;
//! the rest stay learners and step in for a voter that is lost for long. Who is to leave loses its
//! vote first, then its membership, then its replica.
//!
//! Invariants:
//! - it acts on the leader only, one step at a time, and each step is repeatable: a new leader
//!   looks again and goes on;
//! - no step leaves a group of voters of which no majority is known to be alive.

mod actor;
mod message;
mod rounds;
mod state;

pub use actor::{PlacementActor, PlacementArguments};
pub use message::PlacementMessage;
pub use state::keeps_quorum;
