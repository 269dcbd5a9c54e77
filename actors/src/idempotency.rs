//! Remembers which creating calls have been done, by the client's key, for 24 hours. Pure;
//! replicated by its owner, stored with the effect of the call: a refused one is not remembered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::command::Idempotency;
use crate::outcome::Refusal;
use crate::seams::Timestamp;

/// How long a key is remembered, milliseconds.
pub const KEPT_MS: u64 = 24 * 60 * 60 * 1000;
/// Most keys remembered in one scope.
pub const KEYS_MAX: usize = 100_000;
/// Keys forgotten for each new one, at most: keeps `apply` short.
const FORGET_PER_CALL_MAX: usize = 4;

/// A call that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done<R> {
    /// Hash of its body.
    pub body: [u8; 16],
    /// When.
    pub at: Timestamp,
    /// What it made.
    pub resource: R,
}

/// The calls of one scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyTable<R> {
    done: BTreeMap<[u8; 16], Done<R>>,
    by_age: VecDeque<(Timestamp, [u8; 16])>,
    dirty: BTreeSet<[u8; 16]>,
}

impl<R> Default for IdempotencyTable<R> {
    fn default() -> Self {
        Self { done: BTreeMap::new(), by_age: VecDeque::new(), dirty: BTreeSet::new() }
    }
}

impl<R: Clone> IdempotencyTable<R> {
    /// A table as it was written down.
    pub fn load(rows: impl IntoIterator<Item = ([u8; 16], Done<R>)>) -> Self {
        let done: BTreeMap<_, _> = rows.into_iter().collect();
        let mut by_age: Vec<_> = done.iter().map(|(key, done)| (done.at, *key)).collect();
        by_age.sort_unstable();
        Self { done, by_age: by_age.into(), dirty: BTreeSet::new() }
    }

    /// What the call made when it was done before; nothing when it is new and may go on.
    ///
    /// # Errors
    /// Refuses a known key with another body, and a new key when the table is full.
    pub fn check(
        &mut self,
        call: Option<&Idempotency>,
        at: Timestamp,
    ) -> Result<Option<R>, Refusal> {
        let Some(call) = call else { return Ok(None) };
        self.forget_old(at);
        match self.done.get(&call.key) {
            Some(done) if at.ms_since(done.at) > KEPT_MS => Ok(None),
            Some(done) if done.body == call.body => Ok(Some(done.resource.clone())),
            Some(_) => Err(Refusal::IdempotencyKeyReused),
            None if self.done.len() >= KEYS_MAX => {
                Err(Refusal::TooManyKeys { limit: KEYS_MAX as u64 })
            }
            None => Ok(None),
        }
    }

    /// Remembers what a call made.
    pub fn remember(&mut self, call: Option<&Idempotency>, at: Timestamp, resource: R) {
        if let Some(call) = call {
            self.done.insert(call.key, Done { body: call.body, at, resource });
            self.by_age.push_back((at, call.key));
            self.dirty.insert(call.key);
        }
    }

    /// The keys that changed since the last call, each with its call, if it is still remembered.
    pub fn take_dirty(&mut self) -> Vec<([u8; 16], Option<Done<R>>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|key| (key, self.done.get(&key).cloned())).collect()
    }

    fn forget_old(&mut self, at: Timestamp) {
        for _ in 0..FORGET_PER_CALL_MAX {
            match self.by_age.front() {
                Some((since, key)) if at.ms_since(*since) > KEPT_MS => {
                    // A key used again after its time stands in the queue twice: go by its call.
                    if self.done.get(key).is_some_and(|done| done.at == *since) {
                        self.done.remove(key);
                        self.dirty.insert(*key);
                    }
                    self.by_age.pop_front();
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_replays_for_a_day_and_only_with_its_body() {
        let mut table = IdempotencyTable::<u32>::default();
        let call = Idempotency { key: [1; 16], body: [2; 16] };
        assert_eq!(table.check(Some(&call), Timestamp(0)), Ok(None));
        table.remember(Some(&call), Timestamp(0), 7);
        assert_eq!(table.check(Some(&call), Timestamp(5)), Ok(Some(7)));
        let other = Idempotency { body: [3; 16], ..call };
        assert_eq!(table.check(Some(&other), Timestamp(5)), Err(Refusal::IdempotencyKeyReused));
        let later = Timestamp(0).plus_ms(KEPT_MS + 1);
        assert_eq!(table.check(Some(&other), later), Ok(None));
        assert_eq!(table.take_dirty(), vec![([1; 16], None)]);
        assert_eq!(table.check(None, later), Ok(None));
    }
}
