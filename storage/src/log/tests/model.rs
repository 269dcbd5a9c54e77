//! The log against a model: a map for each group.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use shiioo_actors::domain::ids::{GroupId, Position, RaftId};

use super::{append, entry, now, open, read, write};
use crate::disk::SimDisk;
use crate::log::record::{LogEntry, LowWaterMark, Vote};
use crate::log::{Log, Op};

/// What the log must show of one group.
#[derive(Debug, Default, Clone, PartialEq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<Position>,
    low_water_mark: Option<LowWaterMark>,
    entries: BTreeMap<u64, LogEntry>,
    left: Option<Position>,
}

#[derive(Debug, Clone)]
enum Step {
    Append(u32, u8),
    Vote(u32),
    Truncate(u32, u8),
    Purge(u32, u8),
    Leave(u32),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u32, 1..6_u8).prop_map(|(group, count)| Step::Append(group, count)),
        1 => (0..3_u32).prop_map(Step::Vote),
        1 => (0..3_u32, 0..4_u8).prop_map(|(group, back)| Step::Truncate(group, back)),
        1 => (0..3_u32, 0..4_u8).prop_map(|(group, back)| Step::Purge(group, back)),
        1 => (0..3_u32).prop_map(Step::Leave),
        1 => Just(Step::Reopen),
    ]
}

fn take(step: &Step, term: u64, log: &mut Arc<Log>, disk: &SimDisk, models: &mut [Model; 3]) {
    let write = |log: &Log, group, op| write(log, GroupId(group), op).unwrap();
    match *step {
        Step::Append(group, count) => {
            let model = &mut models[group as usize];
            let next = model.entries.last_key_value().map(|(index, _)| *index);
            let next = next.or(model.purged.map(|purged| purged.index)).map_or(0, |last| last + 1);
            let entries: Vec<_> =
                (next..next + u64::from(count)).map(|index| entry(term, index)).collect();
            append(log, GroupId(group), entries.clone()).unwrap();
            model.entries.extend(entries.into_iter().map(|entry| (entry.position.index, entry)));
        }
        Step::Vote(group) => {
            let vote = Vote { term, node: RaftId(1), committed: term.is_multiple_of(2) };
            write(log, group, Op::Vote(vote));
            models[group as usize].vote = Some(vote);
        }
        Step::Truncate(group, back) => {
            let model = &mut models[group as usize];
            let end = model.entries.last_key_value().map_or(0, |(index, _)| index + 1);
            let first = model.purged.map_or(0, |purged| purged.index + 1);
            let from = end.saturating_sub(u64::from(back)).max(first);
            write(log, group, Op::Truncate(from));
            model.entries.split_off(&from);
        }
        Step::Purge(group, back) => {
            let model = &mut models[group as usize];
            let Some((last, _)) = model.entries.last_key_value() else { return };
            let Some((_, at)) =
                model.entries.range(..=last.saturating_sub(back.into())).next_back()
            else {
                return;
            };
            let upto = at.position;
            let mark = LowWaterMark { position: upto, members: None };
            log.set_low_water_mark(GroupId(group), mark.clone());
            write(log, group, Op::Purge(upto));
            model.entries = model.entries.split_off(&(upto.index + 1));
            model.purged = Some(upto);
            model.low_water_mark = Some(mark);
        }
        Step::Leave(group) => {
            now(log.leave(GroupId(group))).unwrap();
            let model = &mut models[group as usize];
            let last = model.entries.last_key_value().map(|(_, entry)| entry.position);
            let left = model.left.max(last.or(model.purged));
            *model = Model { vote: model.vote, left, ..Model::default() };
        }
        Step::Reopen => {
            now(log.close()).unwrap();
            *log = open(disk).unwrap();
        }
    }
}

fn check(log: &Log, models: &[Model; 3]) {
    for (group, model) in models.iter().enumerate() {
        let group = GroupId(u32::try_from(group).unwrap());
        let entries: Vec<_> = model.entries.values().cloned().collect();
        assert_eq!(read(log, group), entries);
        let state = log.state(group);
        assert_eq!(
            (state.vote, state.purged, state.low_water_mark),
            (model.vote, model.purged, model.low_water_mark.clone())
        );
        assert_eq!(log.left(group), model.left);
        let last = entries.last().map(|entry| entry.position).or(model.purged);
        assert_eq!(log.last(group), last);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn the_log_is_what_a_map_would_be(steps in prop::collection::vec(step(), 1..40)) {
        let disk = SimDisk::new(1);
        let mut log = open(&disk).unwrap();
        let mut models = <[Model; 3]>::default();
        for (term, step) in (1..).zip(&steps) {
            take(step, term, &mut log, &disk, &mut models);
            check(&log, &models);
        }
        // Also when it was not closed.
        check(&open(&disk).unwrap(), &models);
    }
}
