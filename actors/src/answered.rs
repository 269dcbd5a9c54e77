//! Outcomes of requests that a node may send again because it did not hear of the first time.
//! Pure; replicated by its owner.
//!
//! After C. Lee et al., "Implementing Linearizability at Large Scale and Low Latency" (RIFL,
//! SOSP 2015): an outcome is kept until the node that asked says that it has answered its client,
//! so that only requests under way cost anything. Of nodes that say nothing any more, only the
//! latest [`LIVES_MAX`] are remembered: a number, for a clock may lie.
//!
//! Invariants:
//! - a request whose outcome is here, or that its node has answered, changes nothing again;
//! - only outcomes of what changed something are kept: refused requests may be asked again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::command::Origin;
use crate::mutants::{self, Mutant};
use crate::outcome::Outcome;
use crate::part::Overlay;
use crate::ports::{Row, StoreError};

/// Most lives of nodes that are remembered; the one that was silent for longest goes when there are
/// more. A life is two of these: quick requests and long polls.
pub const LIVES_MAX: usize = 512;
/// Most outcomes kept; the oldest goes when there are more.
pub const OUTCOMES_MAX: usize = 100_000;

/// The kind of the rows of lives: the first byte of their keys, in every state machine.
const LIFE_ROW: u8 = b'v';
/// The kind of the rows of outcomes.
const OUTCOME_ROW: u8 = b'a';

/// A life of a node: how far it has answered, and when it was last heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Life {
    answered_below: u64,
    /// Index of its last request in the log.
    seen: u64,
}

/// What was done for one request, and at which index of the log.
type Answer = (u64, Outcome);

/// The outcomes of one state machine.
#[derive(Debug, Default, PartialEq)]
pub struct Answered {
    lives: BTreeMap<u64, Life>,
    outcomes: BTreeMap<(u64, u64), Answer>,
    by_age: BTreeSet<(u64, u64, u64)>,
    /// What the rows hold.
    written: BTreeSet<(u64, u64)>,
    dirty_lives: BTreeSet<u64>,
}

/// Whether a request is new.
#[derive(Debug, PartialEq)]
pub enum Known {
    /// It is.
    New,
    /// It was done, with this outcome.
    Done(Outcome),
    /// Its node has answered it long since: this is a late copy.
    Answered,
}

impl Answered {
    /// As it was written down.
    ///
    /// # Errors
    /// When the rows cannot be read.
    pub fn load(rows: &Overlay) -> Result<Self, StoreError> {
        let lives = rows.all::<(u64, Life)>(LIFE_ROW)?.into_iter().map(|(_, life)| life);
        let outcomes = rows.all::<((u64, u64), Answer)>(OUTCOME_ROW)?;
        let outcomes: BTreeMap<_, _> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
        Ok(Self {
            lives: lives.collect(),
            by_age: outcomes.iter().map(|(key, (at, _))| (*at, key.0, key.1)).collect(),
            written: outcomes.keys().copied().collect(),
            outcomes,
            dirty_lives: BTreeSet::new(),
        })
    }

    /// What is known of a request that comes at `index` of the log.
    pub fn check(&mut self, origin: &Origin, index: u64) -> Known {
        if mutants::is(Mutant::NoRequestNames) {
            return Known::New;
        }
        if !self.lives.contains_key(&origin.incarnation) && self.lives.len() >= LIVES_MAX {
            self.forget_a_life();
        }
        let life =
            self.lives.entry(origin.incarnation).or_insert(Life { answered_below: 0, seen: index });
        life.seen = index;
        self.dirty_lives.insert(origin.incarnation);
        if origin.answered_below > life.answered_below {
            let answered = life.answered_below..origin.answered_below;
            life.answered_below = origin.answered_below;
            let (from, to) =
                ((origin.incarnation, answered.start), (origin.incarnation, answered.end));
            let gone: Vec<_> = self.outcomes.range(from..to).map(|(key, _)| *key).collect();
            for key in gone {
                self.forget(key);
            }
        } else if origin.sequence < life.answered_below {
            return Known::Answered;
        }
        match self.outcomes.get(&(origin.incarnation, origin.sequence)) {
            Some((_, outcome)) => Known::Done(outcome.clone()),
            None => Known::New,
        }
    }

    /// Keeps the outcome of a request, if it changed something.
    pub fn remember(&mut self, origin: &Origin, index: u64, outcome: &Outcome) {
        if !outcome.is_worth_keeping() || mutants::is(Mutant::NoRequestNames) {
            return;
        }
        let key = (origin.incarnation, origin.sequence);
        self.outcomes.insert(key, (index, outcome.clone()));
        self.by_age.insert((index, key.0, key.1));
        if self.outcomes.len() > OUTCOMES_MAX
            && let Some((_, incarnation, sequence)) = self.by_age.first().copied()
        {
            self.forget((incarnation, sequence));
        }
    }

    /// The rows that changed since the last call. An outcome that came and went meanwhile is in
    /// none: most of them never cost a row.
    pub fn take_rows(&mut self) -> Vec<Row> {
        let mut rows = Vec::new();
        for life in std::mem::take(&mut self.dirty_lives) {
            let value = self.lives.get(&life).map(|known| codec::encode(&(life, known)));
            rows.push((row_key(LIFE_ROW, &[life]), value));
        }
        for key in self.written.iter().filter(|key| !self.outcomes.contains_key(key)) {
            rows.push((row_key(OUTCOME_ROW, &[key.0, key.1]), None));
        }
        for (key, answer) in self.outcomes.iter().filter(|(key, _)| !self.written.contains(key)) {
            let value = codec::encode(&(key, answer));
            rows.push((row_key(OUTCOME_ROW, &[key.0, key.1]), Some(value)));
        }
        self.written = self.outcomes.keys().copied().collect();
        rows
    }

    fn forget(&mut self, key: (u64, u64)) {
        if let Some((at, _)) = self.outcomes.remove(&key) {
            self.by_age.remove(&(at, key.0, key.1));
        }
    }

    /// Makes room for a life that is new.
    fn forget_a_life(&mut self) {
        let silent = self.lives.iter().min_by_key(|(_, life)| life.seen).map(|(id, _)| *id);
        let Some(silent) = silent else { return };
        self.lives.remove(&silent);
        self.dirty_lives.insert(silent);
        let gone = self.outcomes.range((silent, 0)..=(silent, u64::MAX)).map(|(key, _)| *key);
        for key in gone.collect::<Vec<_>>() {
            self.forget(key);
        }
    }
}

fn row_key(kind: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(sequence: u64, answered_below: u64) -> Origin {
        Origin { incarnation: 7, sequence, answered_below }
    }

    #[test]
    fn a_request_that_was_done_is_not_done_again() {
        let mut table = Answered::default();
        assert_eq!(table.check(&origin(0, 0), 1), Known::New);
        table.remember(&origin(0, 0), 1, &Outcome::Done);
        assert_eq!(table.check(&origin(0, 0), 2), Known::Done(Outcome::Done));
        // Another node's request of the same number is another request.
        let other = Origin { incarnation: 8, ..origin(0, 0) };
        assert_eq!(table.check(&other, 2), Known::New);
    }

    #[test]
    fn what_was_refused_may_be_asked_again() {
        let mut table = Answered::default();
        table.remember(&origin(0, 0), 1, &Outcome::Released(false));
        table.remember(&origin(0, 0), 1, &Outcome::Ignored);
        assert_eq!(table.check(&origin(0, 0), 2), Known::New);
    }

    #[test]
    fn an_answered_request_is_forgotten_and_its_late_copy_refused() {
        let mut table = Answered::default();
        table.remember(&origin(0, 0), 1, &Outcome::Done);
        let written = table.take_rows().iter().filter(|(key, _)| key[0] == OUTCOME_ROW).count();
        assert_eq!(written, 1);
        assert_eq!(table.check(&origin(1, 1), 2), Known::New);
        assert!(table.take_rows().contains(&(row_key(OUTCOME_ROW, &[7, 0]), None)));
        assert_eq!(table.check(&origin(0, 0), 3), Known::Answered);
    }

    #[test]
    fn of_many_lives_the_most_silent_is_forgotten_with_its_rows() {
        let of = |incarnation, sequence| Origin { incarnation, sequence, answered_below: 0 };
        let lives = LIVES_MAX as u64;
        let mut table = Answered::default();
        for life in 0..lives {
            assert_eq!(table.check(&of(life, 0), life), Known::New);
            table.remember(&of(life, 0), life, &Outcome::Done);
        }
        // The first one is heard again: the second is the most silent now.
        assert_eq!(table.check(&of(0, 1), lives), Known::New);
        let mut rows = Overlay::default();
        rows.put(table.take_rows());
        assert_eq!(table.check(&of(lives, 0), lives + 1), Known::New);
        rows.put(table.take_rows());
        let mut again = Answered::load(&rows).unwrap();
        assert_eq!(again, table);
        for table in [&mut table, &mut again] {
            assert_eq!(table.lives.len(), LIVES_MAX);
            assert_eq!(table.check(&of(0, 0), 9999), Known::Done(Outcome::Done), "heard again");
            assert_eq!(table.check(&of(2, 0), 9999), Known::Done(Outcome::Done));
            assert!(!table.lives.contains_key(&1) && !table.outcomes.contains_key(&(1, 0)));
        }
    }

    #[test]
    fn of_many_outcomes_the_oldest_goes() {
        let mut table = Answered::default();
        for sequence in 0..=OUTCOMES_MAX as u64 {
            table.remember(&origin(sequence, 0), 1 + sequence, &Outcome::Done);
        }
        assert_eq!(table.outcomes.len(), OUTCOMES_MAX);
        assert_eq!(table.by_age.len(), OUTCOMES_MAX);
        assert_eq!(table.check(&origin(0, 0), 1), Known::New);
        assert_eq!(table.check(&origin(1, 0), 1), Known::Done(Outcome::Done));
    }

    #[test]
    fn a_reload_knows_the_same() {
        let mut table = Answered::default();
        table.check(&origin(3, 2), 5);
        table.remember(&origin(3, 2), 5, &Outcome::Released(true));
        let mut rows = Overlay::default();
        rows.put(table.take_rows());
        let mut again = Answered::load(&rows).unwrap();
        for (sequence, known) in
            [(1, Known::Answered), (2, Known::New), (3, Known::Done(Outcome::Released(true)))]
        {
            assert_eq!(again.check(&origin(sequence, 2), 6), known);
        }
        assert!(again.take_rows().iter().all(|(key, _)| key[0] == LIFE_ROW));
    }
}
