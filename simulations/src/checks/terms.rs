//! One leader a term in every Raft group, as the nodes themselves have it; what a node has applied
//! stays applied.
//!
//! Election Safety: D. Ongaro, J. Ousterhout, "In Search of an Understandable Consensus
//! Algorithm" (2014), figure 3.

use std::collections::BTreeMap;

use outside::ensure;
use shiioo_actors::domain::ids::{GroupId, RaftId};
use shiioo_actors::ports::GroupStatus;

use super::Checked;

/// Who led what when.
#[derive(Debug, Default)]
pub struct Terms {
    /// The Raft id of the leader of each term, and who said so first.
    leaders: BTreeMap<(GroupId, u64), (RaftId, String)>,
    /// The term of each group as each node had it when it was last asked.
    last: BTreeMap<(String, GroupId), u64>,
}

impl Terms {
    /// Takes in what a node knows of its groups.
    ///
    /// # Errors
    /// When there are two leaders of a term, or a term goes back.
    pub fn learn(&mut self, node: &str, groups: &[GroupStatus]) -> Checked {
        for &GroupStatus { group, term, leader, .. } in groups {
            if let Some(leader) = leader {
                let first = (leader, node.to_owned());
                let (known, by) = self.leaders.entry((group, term)).or_insert(first);
                ensure!(
                    *known == leader,
                    "member {known} leads group {group} in term {term} for {by}, and member \
                     {leader} for {node}"
                );
            }
            let last = self.last.insert((node.to_owned(), group), term).unwrap_or_default();
            ensure!(last <= term, "group {group} on {node} goes back from term {last} to {term}");
        }
        Ok(())
    }

    /// Forgets a node, whose disk is gone.
    pub fn forget(&mut self, node: &str) {
        self.last.retain(|(known, _), _| known != node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(term: u64, leader: Option<u64>) -> [GroupStatus; 1] {
        [GroupStatus {
            group: GroupId(1),
            term,
            leader: leader.map(RaftId),
            replicas: Vec::new(),
            is_changing: false,
            unfinished: None,
        }]
    }

    #[test]
    fn two_leaders_of_a_term_and_terms_that_go_back_are_noticed() {
        let mut terms = Terms::default();
        assert_eq!(terms.learn("a", &status(2, None)), Ok(()));
        assert_eq!(terms.learn("a", &status(2, Some(1))), Ok(()));
        assert_eq!(terms.learn("a", &status(2, Some(1))), Ok(()));
        assert!(terms.learn("b", &status(2, Some(2))).is_err());
        assert!(terms.learn("a", &status(1, None)).is_err());
        terms.forget("a");
        assert_eq!(terms.learn("a", &status(1, None)), Ok(()));
    }
}
