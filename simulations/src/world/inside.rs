//! What the nodes themselves know of their groups: checked now and then, and told in the story.

use std::collections::BTreeMap;
use std::rc::Rc;

use shiioo_actors::ids::GroupId;
use shiioo_actors::ports::GroupStatus;

use super::{NodeHost, World};
use crate::checks::Checked;
use crate::trace;

/// Steps between two looks, where no story is kept: a look costs more than a step.
const LOOK_STEPS: u64 = 25;

/// How far each group has been applied on each node, by their places.
pub(super) type Applied = BTreeMap<(usize, GroupId), u64>;

impl World {
    /// Asks every node that runs for its groups.
    ///
    /// # Errors
    /// When what they say cannot be.
    pub(super) fn look_inside(&mut self) -> Checked {
        self.steps += 1;
        if !trace::keeps_lines() && !self.steps.is_multiple_of(LOOK_STEPS) {
            return Ok(());
        }
        for at in 0..self.seats.len() {
            let host = Rc::clone(&self.seats[at].host);
            let groups = host.groups();
            let changed = self.terms.learn(host.name(), &groups)?;
            if trace::keeps_lines() {
                self.tell(at, &host, &groups, &changed);
            }
        }
        Ok(())
    }

    fn tell(&mut self, at: usize, host: &NodeHost, groups: &[GroupStatus], changed: &[GroupId]) {
        for GroupStatus { group, term, leader, replicas, .. } in groups {
            if changed.contains(group) {
                let leads = match leader {
                    Some(leader) => format!("member {leader} leads"),
                    None => "nobody leads".to_owned(),
                };
                trace::note(
                    host.name(),
                    "raft",
                    format_args!("group {group}: term {term}, {leads}"),
                );
            }
            let Some(own) = replicas.iter().find(|replica| host.is_member(replica.raft_id)) else {
                continue;
            };
            let before = self.applied.insert((at, *group), own.applied).unwrap_or_default();
            if before != own.applied {
                let to = own.applied;
                trace::note(host.name(), "raft", format_args!("group {group}: applied up to {to}"));
            }
        }
    }
}
