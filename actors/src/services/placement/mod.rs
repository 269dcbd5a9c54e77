//! Placement: decides which groups there are and gives each the members it should have.
//!
//! The problem: a cluster begins with one node and one group, and members come, go and get lost.
//! Every region needs groups for its tenants, and every group should have enough voters to survive
//! the loss of some, and none that hold up its writes.
//!
//! The protocol: each node looks at the groups that it leads, some times in a second. It compares
//! what is there (voters, learners, how far each has come) with the wish of [`policy`], and takes
//! one step in each group towards it. A new member is a learner until it has caught up (`rounds`),
//! then a voter, up to the number that the policy wants; the rest stay learners and step in for a
//! voter that is lost for long. Who is to leave loses its vote first, then its membership, then its
//! replica. Where the system group is led, a region with members and without groups gets some, and
//! each group is assigned to the members that should have it, two groups at a time (`moves` knows
//! which of them get on), for balance as well (`balance`). Both are commands of group 0; each node then
//! opens the groups that are assigned to it. Leads of tenant groups are spread by how many tenants they
//! have (`leaders`).
//!
//! Invariants:
//! - it acts on a group's leader only, one step at a time, and each step is repeatable: a new
//!   leader looks again and goes on;
//! - what it proposes counts only in the term it was decided in, and the state machine refuses what
//!   is not true any more: groups of a region that has some, voters that leave;
//! - no step leaves a group of voters of which no majority is known to be alive.
//!
//! A node that was relieved of a group lets go of its log and its files (`relieved`).
//!
//! A learner that gets nothing at all, or lacks room, for long loses its replica, where another member could have
//! one (`stalls`), and the other is chosen (`untaken`).
//!
//! Deliberately not done: a learner that once got something, and never catches up with what is written, is not
//! replaced by another; a region whose only members are lost gets no new groups; and a member that hears the leader of a
//! group and not that of the system group keeps its replica, though it learns of no new one.

mod actor;
mod balance;
mod group;
mod leaders;
mod message;
mod moves;
mod policy;
mod relieved;
mod rounds;
#[cfg(test)]
mod samples;
mod stalls;
mod state;
mod untaken;

pub use actor::{PlacementActor, PlacementArguments};
pub use message::PlacementMessage;
pub use state::keeps_quorum;
