//! Computes the low-water mark of a group: the position up to which nothing can be lost any more.
//! Pure.
//!
//! An entry is delivered to a state machine long before its rows and events are durable in files. A
//! restart delivers again what is above the mark, a snapshot claims what is at or below it, and the
//! log is cut below it only.
//!
//! For each state machine with entries that are not durable ('dirty') the tracker keeps a *clean*
//! position: everything of it up to there is durable. The mark is the lowest of those, or the last
//! entry delivered where none is dirty. It costs a tree operation an entry, however many tenants
//! there are.
//!
//! | delivered | to | durable reports | clean of A | clean of B | mark |
//! |---:|---|---|---:|---:|---:|
//! | 1 | A | | 0 | | 0 |
//! | 2 | B | | 0 | 1 | 0 |
//! | 3 | A | | 0 | 1 | 0 |
//! | | | A up to 1 | 1 | 1 | 1 |
//! | | | B up to 2 | 1 | | 1 |
//! | | | A up to 3 | | | 3 |
//!
//! Invariants:
//! - The mark never passes an entry that its state machine has not reported durable.
//! - The mark never goes back, and never passes what was delivered.
//! - Entries for no state machine (a new term, a membership) never hold it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use shiioo_actors::domain::ids::{Position, StateMachineId};

use crate::log::record::{LowWaterMark, Members};

/// A state machine with entries that are not durable.
#[derive(Debug)]
struct Dirty {
    /// Everything of it up to here is durable; `None` when nothing was delivered before.
    clean: Option<Position>,
    /// The last entry delivered to it.
    last: Position,
}

/// The low-water mark of one group, and what holds it.
#[derive(Debug, Default)]
pub(crate) struct DurabilityTracker {
    delivered: Option<Position>,
    mark: Option<Position>,
    dirty: BTreeMap<StateMachineId, Dirty>,
    /// The keys of `dirty`, by how far they are clean.
    order: BTreeSet<(Option<Position>, StateMachineId)>,
    /// The memberships from the last one at or below the mark on.
    memberships: VecDeque<(Position, Members)>,
}

impl DurabilityTracker {
    /// Goes on from the mark that the log remembered.
    pub fn restore(mark: Option<LowWaterMark>) -> Self {
        let position = mark.as_ref().map(|mark| mark.position);
        let memberships = mark.and_then(|mark| mark.members).into_iter().collect();
        Self { delivered: position, mark: position, memberships, ..Self::default() }
    }

    /// Notes that an entry is delivered. Gives the mark when that raised it.
    pub fn deliver(
        &mut self,
        position: Position,
        part: Option<StateMachineId>,
    ) -> Option<LowWaterMark> {
        let before = self.delivered.replace(position);
        if let Some(part) = part {
            let dirty = self.dirty.entry(part).or_insert_with(|| {
                // Clean up to the entry before this one: all earlier entries of it are durable.
                self.order.insert((before, part));
                Dirty { clean: before, last: position }
            });
            dirty.last = position;
        }
        self.raise()
    }

    /// Notes a membership that is about to be delivered.
    pub fn add_membership(&mut self, position: Position, members: Members) {
        self.memberships.push_back((position, members));
    }

    /// Notes that the files of a state machine are durable up to a position. Gives the mark when
    /// that raised it.
    pub fn durable(&mut self, part: StateMachineId, upto: Position) -> Option<LowWaterMark> {
        let dirty = self.dirty.get_mut(&part)?;
        // Reports may come late, or twice.
        if Some(upto) <= dirty.clean {
            return None;
        }
        self.order.remove(&(dirty.clean, part));
        if upto >= dirty.last {
            self.dirty.remove(&part);
        } else {
            dirty.clean = Some(upto);
            self.order.insert((dirty.clean, part));
        }
        self.raise()
    }

    /// Takes over a snapshot that claims everything up to `position`, all of which is durable in
    /// files. They may hold more; that is delivered, skipped and reported by each state machine.
    /// Gives the mark when that raised it; a snapshot from below the mark changes nothing.
    pub fn install(
        &mut self,
        position: Position,
        members: Option<(Position, Members)>,
    ) -> Option<LowWaterMark> {
        if Some(position) <= self.mark {
            return None;
        }
        self.delivered = self.delivered.max(Some(position));
        self.mark = Some(position);
        // Clean up to here; what was delivered beyond it still waits for a report.
        self.dirty.retain(|_, dirty| dirty.last > position);
        self.order.clear();
        for (part, dirty) in &mut self.dirty {
            dirty.clean = dirty.clean.max(Some(position));
            self.order.insert((dirty.clean, *part));
        }
        self.memberships = members.into_iter().collect();
        self.low_water_mark()
    }

    fn raise(&mut self) -> Option<LowWaterMark> {
        let lowest = match self.order.first() {
            Some((clean, _)) => *clean,
            None => self.delivered,
        };
        if lowest <= self.mark {
            return None;
        }
        self.mark = lowest;
        // Keep the last membership at or below the mark: a restart begins with it.
        while self.memberships.get(1).is_some_and(|(position, _)| Some(*position) <= lowest) {
            self.memberships.pop_front();
        }
        self.low_water_mark()
    }

    /// Gives the mark and the last membership at or below it.
    pub fn low_water_mark(&self) -> Option<LowWaterMark> {
        let position = self.mark?;
        Some(LowWaterMark { position, members: self.members_at(position).cloned() })
    }

    fn members_at(&self, position: Position) -> Option<&(Position, Members)> {
        self.memberships.front().filter(|(at, _)| *at <= position)
    }

    /// Gives the indexes that the mark would pass if this state machine had everything durable;
    /// `None` when it would not move.
    pub fn held_by(&self, part: StateMachineId) -> Option<Range<u64>> {
        let mut lowest = self.order.iter();
        if lowest.next()?.1 != part {
            return None;
        }
        let then = lowest.next().map_or(self.delivered, |(clean, _)| *clean);
        let behind = |position: Option<Position>| position.map_or(0, |at| at.index + 1);
        let held = behind(self.mark)..behind(then);
        (!held.is_empty()).then_some(held)
    }

    /// Lists the state machines with entries that are not durable.
    pub fn dirty(&self) -> Vec<StateMachineId> {
        self.dirty.keys().copied().collect()
    }

    /// Gives the last entry delivered.
    pub fn delivered(&self) -> Option<Position> {
        self.delivered
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shiioo_actors::domain::ids::{RaftId, TenantId};

    use super::*;

    fn at(index: u64) -> Position {
        Position { term: 1, index }
    }

    fn part(number: u8) -> Option<StateMachineId> {
        (number > 0).then(|| {
            let uuid = format!("00000000-0000-0000-0000-0000000000{number:02}");
            StateMachineId::Tenant(uuid.parse::<TenantId>().unwrap())
        })
    }

    #[test]
    fn a_mark_has_the_last_membership_at_or_below_it_also_after_a_restart() {
        let members = |id| Members { voters: vec![vec![id]], nodes: vec![id] };
        let mut tracker = DurabilityTracker::default();
        for index in 0..=3 {
            if index % 2 == 0 {
                tracker.add_membership(at(index), members(RaftId(index)));
            }
            tracker.deliver(at(index), part(u8::from(index == 2)));
        }
        let mark = tracker.low_water_mark().unwrap();
        assert_eq!((mark.position, mark.members.clone().unwrap().0), (at(1), at(0)));
        let raised = tracker.durable(part(1).unwrap(), at(2)).unwrap();
        assert_eq!((raised.position, raised.members.unwrap().0), (at(3), at(2)));

        let mut again = DurabilityTracker::restore(Some(mark.clone()));
        assert_eq!((again.low_water_mark(), again.delivered()), (Some(mark), Some(at(1))));
        let raised = again.deliver(at(2), None).unwrap();
        assert_eq!((raised.position, raised.members.unwrap().0), (at(2), at(0)));
        let none = DurabilityTracker::restore(None);
        assert_eq!((none.low_water_mark(), none.delivered()), (None, None));
    }

    #[test]
    fn entries_for_no_state_machine_do_not_hold_the_mark() {
        let mut tracker = DurabilityTracker::default();
        tracker.add_membership(
            at(0),
            Members { voters: vec![vec![RaftId(1)]], nodes: vec![RaftId(1)] },
        );
        let mark = tracker.deliver(at(0), None).unwrap();
        assert_eq!(mark.position, at(0));
        assert_eq!(mark.members.unwrap().0, at(0));
        assert!(tracker.deliver(at(1), part(1)).is_none());
        assert!(tracker.deliver(at(2), None).is_none());
        assert_eq!(tracker.durable(part(1).unwrap(), at(1)).unwrap().position, at(2));
    }

    #[test]
    fn an_installed_snapshot_is_the_mark_and_what_is_beyond_it_waits_for_a_report() {
        let mut tracker = DurabilityTracker::default();
        tracker.deliver(at(0), part(1));
        let ids = vec![RaftId(1), RaftId(2)];
        let members = Members { voters: vec![ids.clone()], nodes: ids };
        let mark = tracker.install(at(7), Some((at(3), members))).unwrap();
        assert_eq!((mark.position, mark.members.unwrap().0), (at(7), at(3)));
        assert!(tracker.install(at(5), None).is_none(), "older than the mark");
        assert!(tracker.deliver(at(8), part(1)).is_none());
        assert!(tracker.deliver(at(9), part(2)).is_none());
        assert_eq!(tracker.durable(part(1).unwrap(), at(12)).unwrap().position, at(8));
        // One of two that are dirty is dirty beyond the next snapshot, too.
        tracker.deliver(at(10), part(1));
        let mark = tracker.install(at(9), None).unwrap();
        assert_eq!(mark.position, at(9));
        assert!(tracker.durable(part(2).unwrap(), at(9)).is_none());
        assert_eq!(tracker.durable(part(1).unwrap(), at(10)).unwrap().position, at(10));
    }

    #[test]
    fn what_one_state_machine_alone_holds_is_told() {
        let mut tracker = DurabilityTracker::default();
        let held = |tracker: &DurabilityTracker, number| tracker.held_by(part(number).unwrap());
        for (index, number) in [(0, 1), (1, 2), (2, 2), (3, 1), (4, 0)] {
            tracker.deliver(at(index), part(number));
        }
        assert_eq!(held(&tracker, 1), Some(0..1), "up to where the other holds it too");
        assert_eq!(held(&tracker, 2), None, "another holds it before");
        tracker.durable(part(2).unwrap(), at(2));
        assert_eq!((held(&tracker, 1), held(&tracker, 2)), (Some(0..5), None));
        tracker.durable(part(1).unwrap(), at(0));
        assert_eq!(held(&tracker, 1), Some(1..5));
        tracker.durable(part(1).unwrap(), at(3));
        assert_eq!(held(&tracker, 1), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None, ..ProptestConfig::default()
        })]

        /// Against the definition: the highest position at or below which nothing is undurable;
        /// the mark is at most that, and is that once every state machine has reported.
        #[test]
        fn the_mark_is_a_lower_bound_that_arrives(
            steps in prop::collection::vec((0_u8..4, any::<bool>(), 0_u64..6), 1..120),
        ) {
            let mut tracker = DurabilityTracker::default();
            let mut delivered: Vec<Option<StateMachineId>> = Vec::new();
            let mut durable: BTreeMap<StateMachineId, u64> = BTreeMap::new();
            let mut last_mark = None;
            for (number, is_report, back) in steps {
                let index = delivered.len() as u64;
                match (is_report, part(number)) {
                    (true, Some(part)) if index > 0 => {
                        let upto = (index - 1).saturating_sub(back);
                        tracker.durable(part, at(upto));
                        let known = durable.entry(part).or_default();
                        *known = (*known).max(upto + 1);
                    }
                    (_, part) => {
                        tracker.deliver(at(index), part);
                        delivered.push(part);
                    }
                }
                let bound = delivered.iter().enumerate().position(|(index, part)| {
                    part.is_some_and(|part| {
                        durable.get(&part).is_none_or(|upto| (index as u64) >= *upto)
                    })
                });
                let bound = bound.unwrap_or(delivered.len()).checked_sub(1).map(|at| at as u64);
                let mark = tracker.low_water_mark().map(|mark| mark.position.index);
                prop_assert!(mark <= bound, "mark {mark:?} above {bound:?}");
                prop_assert!(mark >= last_mark);
                last_mark = mark;
            }
            for number in 1..4 {
                if let Some(last) = tracker.delivered() {
                    tracker.durable(part(number).unwrap(), last);
                }
            }
            prop_assert_eq!(tracker.low_water_mark().map(|mark| mark.position), tracker.delivered());
        }
    }
}
