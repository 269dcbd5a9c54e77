//! What of a group's entries may be forgotten: the floor.
//!
//! An entry is handed over long before what it did is durable in its part's files. The floor is
//! the position below which nothing handed over can still be lost: restart hands over what is
//! above it once more, a snapshot claims it, and only below it is the log cut.
//!
//! Invariants:
//! - The floor never passes an entry that some part has not reported durable.
//! - It never goes back, and never passes what was handed over.
//! - Entries without a part (a new term, a membership) never hold it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use shiioo_actors::ids::{Part, Position};

use crate::log::record::{Floor, Members};

/// A part with entries that are not durable.
#[derive(Debug)]
struct Dirty {
    /// Everything of the part up to here is durable; `None` when nothing was handed over before.
    clean: Option<Position>,
    /// The last entry of the part.
    last: Position,
}

/// The floor of one group, and what holds it.
#[derive(Debug, Default)]
pub(crate) struct Floors {
    handed: Option<Position>,
    floor: Option<Position>,
    /// Up to here the parts hold everything durably, though it is not handed over yet: they were
    /// given the contents of another replica that was further than its snapshot claimed.
    ahead: Option<Position>,
    dirty: BTreeMap<Part, Dirty>,
    /// The parts of `dirty` by how far they are clean.
    order: BTreeSet<(Option<Position>, Part)>,
    /// The memberships from the last one at or below the floor on.
    memberships: VecDeque<(Position, Members)>,
}

impl Floors {
    /// As the log remembered it.
    pub fn restore(floor: Option<Floor>) -> Self {
        let position = floor.as_ref().map(|floor| floor.position);
        let memberships = floor.and_then(|floor| floor.members).into_iter().collect();
        Self { handed: position, floor: position, memberships, ..Self::default() }
    }

    /// Notes that an entry is handed over. Gives the floor when that raised it.
    pub fn hand_over(&mut self, position: Position, part: Option<Part>) -> Option<Floor> {
        let before = self.handed.replace(position);
        if let Some(part) = part.filter(|_| Some(position) > self.ahead) {
            let dirty = self.dirty.entry(part).or_insert_with(|| {
                self.order.insert((before, part));
                Dirty { clean: before, last: position }
            });
            dirty.last = position;
        }
        self.raise()
    }

    /// Notes a membership that is about to be handed over.
    pub fn add_membership(&mut self, position: Position, members: Members) {
        self.memberships.push_back((position, members));
    }

    /// Notes that a part is durable up to a position. Gives the floor when that raised it.
    pub fn durable(&mut self, part: Part, upto: Position) -> Option<Floor> {
        let dirty = self.dirty.get_mut(&part)?;
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

    /// Takes over a snapshot that claims everything up to `position`: its contents are durable in
    /// the parts, and so is all up to `dumped`, which may be further. Gives the floor when that
    /// raised it; a snapshot from below the floor changes nothing.
    pub fn install(
        &mut self,
        position: Position,
        members: Option<(Position, Members)>,
        dumped: Option<Position>,
    ) -> Option<Floor> {
        self.ahead = self.ahead.max(dumped);
        if Some(position) <= self.floor {
            return None;
        }
        self.handed = self.handed.max(Some(position));
        self.floor = Some(position);
        self.dirty.clear();
        self.order.clear();
        self.memberships = members.into_iter().collect();
        self.floor()
    }

    fn raise(&mut self) -> Option<Floor> {
        let lowest = match self.order.first() {
            Some((clean, _)) => *clean,
            None => self.handed,
        };
        if lowest <= self.floor {
            return None;
        }
        self.floor = lowest;
        while self.memberships.get(1).is_some_and(|(position, _)| Some(*position) <= lowest) {
            self.memberships.pop_front();
        }
        self.floor()
    }

    /// The floor and the last membership at or below it.
    pub fn floor(&self) -> Option<Floor> {
        let position = self.floor?;
        Some(Floor { position, members: self.members_at(position).cloned() })
    }

    fn members_at(&self, position: Position) -> Option<&(Position, Members)> {
        self.memberships.front().filter(|(at, _)| *at <= position)
    }

    /// The indexes that the floor would pass if this part had everything durable; `None` when it
    /// would not move.
    pub fn held_by(&self, part: Part) -> Option<Range<u64>> {
        let mut lowest = self.order.iter();
        if lowest.next()?.1 != part {
            return None;
        }
        let then = lowest.next().map_or(self.handed, |(clean, _)| *clean);
        let behind = |position: Option<Position>| position.map_or(0, |at| at.index + 1);
        let held = behind(self.floor)..behind(then);
        (!held.is_empty()).then_some(held)
    }

    /// The last entry handed over.
    pub fn handed(&self) -> Option<Position> {
        self.handed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shiioo_actors::ids::TenantId;

    use super::*;

    fn at(index: u64) -> Position {
        Position { term: 1, index }
    }

    fn part(number: u8) -> Option<Part> {
        (number > 0).then(|| {
            let uuid = format!("00000000-0000-0000-0000-0000000000{number:02}");
            Part::Tenant(uuid.parse::<TenantId>().unwrap())
        })
    }

    #[test]
    fn entries_without_a_part_do_not_hold_the_floor() {
        let mut floors = Floors::default();
        floors.add_membership(at(0), Members { voters: vec![vec![1]], nodes: vec![1] });
        let floor = floors.hand_over(at(0), None).unwrap();
        assert_eq!(floor.position, at(0));
        assert_eq!(floor.members.unwrap().0, at(0));
        assert!(floors.hand_over(at(1), part(1)).is_none());
        assert!(floors.hand_over(at(2), None).is_none());
        assert_eq!(floors.durable(part(1).unwrap(), at(1)).unwrap().position, at(2));
    }

    #[test]
    fn an_installed_snapshot_is_the_floor_and_what_the_dump_has_beyond_it_is_durable() {
        let mut floors = Floors::default();
        floors.hand_over(at(0), part(1));
        let members = Members { voters: vec![vec![1, 2]], nodes: vec![1, 2] };
        let floor = floors.install(at(7), Some((at(3), members)), Some(at(9))).unwrap();
        assert_eq!((floor.position, floor.members.unwrap().0), (at(7), at(3)));
        assert!(floors.install(at(5), None, None).is_none(), "older than the floor");
        assert_eq!(floors.hand_over(at(8), part(1)).unwrap().position, at(8));
        assert_eq!(floors.hand_over(at(9), part(1)).unwrap().position, at(9));
        assert!(floors.hand_over(at(10), part(1)).is_none());
        assert_eq!(floors.durable(part(1).unwrap(), at(10)).unwrap().position, at(10));
    }

    #[test]
    fn a_floor_has_the_last_membership_at_or_below_it_also_after_a_restart() {
        let members = |id| Members { voters: vec![vec![id]], nodes: vec![id] };
        let mut floors = Floors::default();
        for index in 0..=3 {
            if index % 2 == 0 {
                floors.add_membership(at(index), members(index));
            }
            floors.hand_over(at(index), part(u8::from(index == 2)));
        }
        let floor = floors.floor().unwrap();
        assert_eq!((floor.position, floor.members.clone().unwrap().0), (at(1), at(0)));
        let raised = floors.durable(part(1).unwrap(), at(2)).unwrap();
        assert_eq!((raised.position, raised.members.unwrap().0), (at(3), at(2)));

        let mut again = Floors::restore(Some(floor.clone()));
        assert_eq!((again.floor(), again.handed()), (Some(floor), Some(at(1))));
        let raised = again.hand_over(at(2), None).unwrap();
        assert_eq!((raised.position, raised.members.unwrap().0), (at(2), at(0)));
        assert_eq!((Floors::restore(None).floor(), Floors::restore(None).handed()), (None, None));
    }

    #[test]
    fn what_one_part_alone_holds_is_told() {
        let mut floors = Floors::default();
        let held = |floors: &Floors, number| floors.held_by(part(number).unwrap());
        for (index, number) in [(0, 1), (1, 2), (2, 2), (3, 1), (4, 0)] {
            floors.hand_over(at(index), part(number));
        }
        assert_eq!(held(&floors, 1), Some(0..1), "up to where the other holds it too");
        assert_eq!(held(&floors, 2), None, "another holds it before");
        floors.durable(part(2).unwrap(), at(2));
        assert_eq!((held(&floors, 1), held(&floors, 2)), (Some(0..5), None));
        floors.durable(part(1).unwrap(), at(0));
        assert_eq!(held(&floors, 1), Some(1..5));
        floors.durable(part(1).unwrap(), at(3));
        assert_eq!(held(&floors, 1), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None, ..ProptestConfig::default()
        })]

        /// Against the definition: the highest position at or below which nothing is undurable;
        /// the floor is at most that, and is that once every part has reported.
        #[test]
        fn the_floor_is_a_lower_bound_that_arrives(
            steps in prop::collection::vec((0_u8..4, any::<bool>(), 0_u64..6), 1..120),
        ) {
            let mut floors = Floors::default();
            let mut handed: Vec<Option<Part>> = Vec::new();
            let mut durable: BTreeMap<Part, u64> = BTreeMap::new();
            let mut last_floor = None;
            for (number, is_report, back) in steps {
                let index = handed.len() as u64;
                match (is_report, part(number)) {
                    (true, Some(part)) if index > 0 => {
                        let upto = (index - 1).saturating_sub(back);
                        floors.durable(part, at(upto));
                        let known = durable.entry(part).or_default();
                        *known = (*known).max(upto + 1);
                    }
                    (_, part) => {
                        floors.hand_over(at(index), part);
                        handed.push(part);
                    }
                }
                let bound = handed.iter().enumerate().position(|(index, part)| {
                    part.is_some_and(|part| {
                        durable.get(&part).is_none_or(|upto| (index as u64) >= *upto)
                    })
                });
                let bound = bound.unwrap_or(handed.len()).checked_sub(1).map(|at| at as u64);
                let floor = floors.floor().map(|floor| floor.position.index);
                prop_assert!(floor <= bound, "floor {floor:?} above {bound:?}");
                prop_assert!(floor >= last_floor);
                last_floor = floor;
            }
            for number in 1..4 {
                if let Some(last) = floors.handed() {
                    floors.durable(part(number).unwrap(), last);
                }
            }
            prop_assert_eq!(floors.floor().map(|floor| floor.position), floors.handed());
        }
    }
}
