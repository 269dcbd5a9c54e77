//! Where groups are led, and the way of a command to the node that leads its group.
//!
//! The problem: any node is asked, and only the leader of a group can decide. No node knows for
//! certain who leads or where a tenant lives; both change while a message is under way. So
//! everything here is a *hint*, cheap enough for every request: a wrong one must cost time and
//! nothing else.
//!
//! | question | who answers |
//! |---|---|
//! | which group has a tenant? | `Directory`: what group 0 last said on this node |
//! | who leads a group? | this node, while a quorum confirms it; else the member whose ping said so within T, in a term not older than the one known here; else the leader that Raft here knows |
//! | who votes in a group? | its leader, with the same ping; else this node's log; else the placement |
//!
//! A node that is asked wrongly says that it does not lead. A tenant that the directory does not
//! know is looked for in group 0, linearizably, before it is called unknown; its group refuses
//! another epoch. T is the election timeout.
//!
//! Two things go this way. A *request of a client* travels whole, to the leader of the group that
//! it is about (`api/src/forward`, by [`Routes`](crate::handles::Routes)). A *command of the node
//! itself*, such as the registration of a member, goes through [`Router::propose`]. It is tried
//! again until there is an outcome or its deadline has come: at once when the lead moves, after a
//! pause otherwise.
//!
//! Invariants:
//! - no hint decides: a command counts where the group's log has it, and what it comes to is
//!   decided by the state that applies it;
//! - what goes through [`Router::propose`] may be proposed twice without harm, and each attempt is
//!   made anew, from what is true by then: it may come long after the one before it;
//! - once an attempt may have been applied, the final answer is an outcome or 'unknown'. No later
//!   attempt can deny what an earlier one may have done.
//!
//! Deliberately not done: nobody is redirected, and nothing about who leads is stored.

mod directory;
mod leader_hint;
mod router;

pub use directory::{Directory, TenantLocation};
pub use leader_hint::{LeaderHint, LeaderHints};
pub use router::{Lead, Router, RouterSources};
