//! Replicas hold the same: two entries of a group with one index and term are one entry, and two
//! copies of a part that have applied the same entry are one state, row by row and event by event.
//!
//! What is in a log before each start and at the end counts, so that a difference shows also where it
//! was overwritten later. Entries below what the control plane has applied are committed: no term
//! may ever put another one in their place.
//!
//! Log Matching and State Machine Safety: D. Ongaro, J. Ousterhout, "In Search of an
//! Understandable Consensus Algorithm" (2014), figure 3.

use std::collections::BTreeMap;

use outside::ensure;
use shiioo_actors::domain::ids::{GroupId, Position};
use shiioo_storage::inspect::{LogImage, PartImage};

use super::Checked;

/// What was seen on the disks of all nodes.
#[derive(Debug, Default)]
pub struct Matching {
    entries: BTreeMap<(GroupId, Position), Copy<Vec<u8>>>,
    /// The term of each entry of the control plane that is known to be committed.
    committed: BTreeMap<u64, Copy<u64>>,
    states: BTreeMap<(String, Position), Copy<PartImage>>,
    compared: Compared,
}

/// How much was compared with what another node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Log entries.
    pub entries: u64,
    /// States after an entry.
    pub states: u64,
    /// Tenants whose replicas the nodes compared themselves, in the lives that were not killed.
    pub tenants: u64,
    /// Those of them whose replicas differed.
    pub differing: u64,
}

/// What was seen first, and on which node.
#[derive(Debug)]
struct Copy<T> {
    node: String,
    is: T,
}

impl std::ops::AddAssign for Compared {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.states += other.states;
        self.tenants += other.tenants;
        self.differing += other.differing;
    }
}

impl Matching {
    /// How much was compared with what another node has.
    pub fn compared(&self) -> Compared {
        self.compared
    }

    /// Takes in the log of a node.
    ///
    /// # Errors
    /// When another node's log has another entry in the same place of the same term.
    pub fn learn_log(&mut self, node: &str, log: &LogImage) -> Checked {
        for (group, entries) in &log.groups {
            for (position, bytes) in entries {
                let known = self
                    .entries
                    .entry((*group, *position))
                    .or_insert_with(|| Copy { node: node.to_owned(), is: bytes.clone() });
                ensure!(
                    known.is == *bytes,
                    "entry {position} of group {group} is not the same on {} and on {node}: \
                     {:02x?} and {bytes:02x?}",
                    known.node,
                    known.is
                );
                self.compared.entries += u64::from(known.node != node);
            }
        }
        Ok(())
    }

    /// Takes in the log of the control plane on a node, of which the entries up to `applied` are
    /// committed.
    ///
    /// # Errors
    /// When another entry is known to be committed in the place of one of them.
    pub fn learn_committed(&mut self, node: &str, log: &LogImage, applied: Position) -> Checked {
        let entries = log.groups.get(&GroupId::SYSTEM).map(Vec::as_slice).unwrap_or_default();
        let below = entries.iter().map(|(position, _)| *position);
        for Position { term, index } in below.filter(|position| position.index <= applied.index) {
            let known = self
                .committed
                .entry(index)
                .or_insert_with(|| Copy { node: node.to_owned(), is: term });
            ensure!(
                known.is == term,
                "entry {index} of the control plane is committed in term {} on {} and in term \
                 {term} on {node}",
                known.is,
                known.node
            );
        }
        Ok(())
    }

    /// Takes in a part of a node.
    ///
    /// # Errors
    /// When another node had another state after the same entry.
    pub fn learn_part(&mut self, node: &str, path: &str, part: PartImage) -> Checked {
        let place = (path.to_owned(), part.applied);
        let Some(known) = self.states.get(&place) else {
            self.states.insert(place, Copy { node: node.to_owned(), is: part });
            return Ok(());
        };
        let at = part.applied;
        for key in known.is.rows.keys().chain(part.rows.keys()) {
            let (here, there) = (part.rows.get(key), known.is.rows.get(key));
            ensure!(
                here == there,
                "row {key:02x?} of {path} after entry {at} is {there:02x?} on {} and {here:02x?} \
                 on {node}",
                known.node
            );
        }
        ensure!(
            known.is.events == part.events,
            "the events of {path} after entry {at} differ between {} and {node}",
            known.node
        );
        self.compared.states += u64::from(known.node != node);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(term: u64, index: u64) -> Position {
        Position { term, index }
    }

    fn log(entries: &[(Position, &[u8])]) -> LogImage {
        let entries = entries.iter().map(|(at, bytes)| (*at, bytes.to_vec())).collect();
        LogImage { groups: BTreeMap::from([(GroupId::SYSTEM, entries)]), ..LogImage::default() }
    }

    fn part(value: u8, events: &[u8]) -> PartImage {
        let rows = BTreeMap::from([(b"k".to_vec(), vec![value])]);
        PartImage { applied: at(1, 5), rows, events: events.to_vec() }
    }

    #[test]
    fn one_place_and_term_is_one_entry() {
        let mut seen = Matching::default();
        assert_eq!(seen.learn_log("a", &log(&[(at(1, 1), b"x"), (at(1, 2), b"y")])), Ok(()));
        assert_eq!(seen.learn_log("b", &log(&[(at(1, 1), b"x"), (at(2, 2), b"z")])), Ok(()));
        assert_eq!(seen.compared(), Compared { entries: 1, ..Compared::default() });
        assert!(seen.learn_log("c", &log(&[(at(1, 2), b"z")])).is_err());
    }

    #[test]
    fn what_is_committed_stays() {
        let mut seen = Matching::default();
        let (one, two) = (log(&[(at(1, 1), b"x")]), log(&[(at(2, 1), b"y")]));
        assert_eq!(seen.learn_committed("a", &one, at(1, 1)), Ok(()));
        assert_eq!(seen.learn_committed("b", &two, at(1, 0)), Ok(()));
        assert!(seen.learn_committed("b", &two, at(2, 1)).is_err());
    }

    #[test]
    fn one_applied_entry_is_one_state() {
        for (other, same) in [(part(1, b"e"), true), (part(2, b"e"), false), (part(1, b""), false)]
        {
            let mut seen = Matching::default();
            assert_eq!(seen.learn_part("a", "system.redb", part(1, b"e")), Ok(()));
            assert_eq!(seen.learn_part("b", "system.redb", other).is_ok(), same);
        }
    }
}
