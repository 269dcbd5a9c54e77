//! What the nodes themselves know of their groups: checked now and then, and told in the story.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use shiioo_actors::domain::ids::{GroupId, RaftId};
use shiioo_actors::ports::GroupStatus;

use super::{NodeHost, World};
use crate::checks::Checked;
use crate::env::trace;

/// Steps between two checks: a look costs more than a step.
const LOOK_STEPS: u64 = 25;

/// What the story has said last of a group on a node.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    term: u64,
    leader: Option<RaftId>,
    applied: u64,
}

/// The same for all, nodes by their places.
pub(super) type AllTold = BTreeMap<(usize, GroupId), Told>;

impl World {
    /// Asks every node that runs for its groups.
    ///
    /// # Errors
    /// When what they say cannot be.
    pub(super) fn look_inside(&mut self) -> Checked {
        self.steps += 1;
        let checks = self.steps.is_multiple_of(LOOK_STEPS);
        if !checks && !trace::keeps_lines() {
            return Ok(());
        }
        for at in 0..self.seats.len() {
            let host = Rc::clone(&self.seats[at].host);
            let groups = host.groups();
            if trace::keeps_lines() {
                self.tell(at, &host, &groups);
            }
            if checks {
                self.terms.learn(host.name(), &groups)?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, at: usize, host: &NodeHost, groups: &[GroupStatus]) {
        for GroupStatus { group, term, leader, replicas, .. } in groups {
            let own = replicas.iter().find(|replica| host.is_member(replica.raft_id));
            let applied = own.map_or(0, |own| own.applied);
            let now = Told { term: *term, leader: *leader, applied };
            let before = self.told.insert((at, *group), now).unwrap_or_default();
            let tell = |what: fmt::Arguments<'_>| {
                trace::note(host.name(), "raft", format_args!("group {group}: {what}"));
            };
            if (before.term, before.leader) != (now.term, now.leader) {
                match leader {
                    Some(leader) => tell(format_args!("term {term}, member {leader} leads")),
                    None => tell(format_args!("term {term}, nobody leads")),
                }
            }
            if before.applied != applied {
                tell(format_args!("applied up to {applied}"));
            }
        }
    }
}
