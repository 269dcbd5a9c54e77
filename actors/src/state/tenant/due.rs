//! When steps that wait for a moment are due.
//!
//! `all` is a function of the runs, and is made of them when a replica is loaded. `new` is for the
//! actor, which arms a timer for each wait that has begun since it asked last.

use std::collections::BTreeSet;

use crate::domain::run::StepAttempt;
use crate::domain::time::Timestamp;

/// A step that waits: when it is due, and which attempt waits.
pub type Wait = (Timestamp, StepAttempt);

/// The waits there are, and which of them the actor has not been told of.
#[derive(Debug, Default)]
pub(super) struct DueSet {
    all: BTreeSet<Wait>,
    new: Vec<Wait>,
}

impl DueSet {
    pub(super) fn insert(&mut self, wait: Wait) {
        if self.all.insert(wait) {
            self.new.push(wait);
        }
    }

    pub(super) fn remove(&mut self, wait: &Wait) {
        self.all.remove(wait);
    }

    pub(super) fn contains(&self, wait: &Wait) -> bool {
        self.all.contains(wait)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Wait> {
        self.all.iter().copied()
    }

    /// Those that have begun since the last call and last still.
    pub(super) fn take_new(&mut self) -> Vec<Wait> {
        let mut new = std::mem::take(&mut self.new);
        new.retain(|wait| self.contains(wait));
        new
    }
}

/// What the actor has been told does not count.
impl PartialEq for DueSet {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}
