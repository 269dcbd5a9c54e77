//! Idempotency keys: which creating calls have been done, by the client's own name for them. Pure;
//! replicated by its owner.
//!
//! The problem: a client that has lost the answer to a creating call does not know whether to call
//! again. It may come back much later, after a restart, through another node. So the client names
//! the call with a key, and a call of the same name is answered with what the first one made.
//!
//! The protocol:
//! 1. The API hashes tenant (or 'cluster'), operation and key into one name, and the bytes of the
//!    body into another. Names of two tenants or of two operations never meet.
//! 2. [`IdempotencyTable::check`] comes before the command's other rules. A name that is known,
//!    with the same body, gives what was made: also where the tenant is suspended by now, or its
//!    quota is used up. With another body the call is refused, for it is another call under a used
//!    name.
//! 3. The command does its work, and [`IdempotencyTable::remember`] notes it. Both are in one entry
//!    of the log, so no crash can have one without the other. A refused call is not remembered, and
//!    may come again under its key.
//!
//! Two copies of a call that race are two entries of one log: the second finds the first.
//!
//! How long: [`KEPT_MS`]. The moments here are those of
//! [`StateClock::aged`](crate::state::StateClock::aged), which only grows, and from entry to entry
//! by an hour at most: a wall clock that jumps ahead must not make a second run of a call that was
//! done a minute ago. That hour is what the constant has beyond the 24. Where no entry came for
//! longer than an hour, the leader that watched the pause tells its length before the next call
//! with a key (`TimePassed`).
//!
//! Bounds: [`KEYS_MAX`] names in one table; where it is full a new name is refused, and a known one
//! is still answered. At most `FORGET_PER_CALL_MAX` names are forgotten with each call, so that no
//! entry takes long to apply. One that has had its time and is not forgotten yet counts as unknown.
//!
//! Invariants:
//! - while a name is kept, its call is done at most once;
//! - the table is a function of the entries: what is forgotten, and when, does not depend on when a
//!   replica was loaded. `by_age` is therefore made of nothing but what is stored.
//!
//! Deliberately not done: what was made is remembered, not what was answered. A replayed call shows
//! the resource as it is now, or says that it is gone. A call that came to nothing is no thing to
//! remember.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::command::{Idempotency, Refusal};
use crate::domain::codec;
use crate::domain::time::Timestamp;
use crate::mutants::{self, Mutant};
use crate::ports::{Row, StoreError};
use crate::state::{AGE_STEP_MS_MAX, RowBuffer, row_key};

/// How long a key is remembered, milliseconds: 24 hours, also when a clock that was ahead has made
/// it older by one step.
pub const KEPT_MS: u64 = 24 * 60 * 60 * 1000 + AGE_STEP_MS_MAX;
/// Most keys remembered in one scope.
pub const KEYS_MAX: usize = 100_000;
/// Keys forgotten for each new one, at most: keeps `apply` short.
const FORGET_PER_CALL_MAX: usize = 4;

/// A call that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyRecord<R> {
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
    done: BTreeMap<[u8; 16], IdempotencyRecord<R>>,
    /// When each key in `done` was done. Sorted and without anything else, so that it is the same
    /// after a reload: replicas must forget the same keys at the same entry of the log.
    by_age: BTreeSet<(Timestamp, [u8; 16])>,
    dirty: BTreeSet<[u8; 16]>,
}

impl<R> Default for IdempotencyTable<R> {
    fn default() -> Self {
        Self { done: BTreeMap::new(), by_age: BTreeSet::new(), dirty: BTreeSet::new() }
    }
}

impl<R: Clone + Serialize + DeserializeOwned> IdempotencyTable<R> {
    /// A table as it was written down, in rows of a kind.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn load(rows: &RowBuffer, kind: u8) -> Result<Self, StoreError> {
        let rows = rows.all::<IdempotencyRecord<R>>(kind)?.into_iter();
        let rows = rows.filter_map(|(key, done)| Some((key.try_into().ok()?, done)));
        let done: BTreeMap<_, IdempotencyRecord<R>> = rows.collect();
        let by_age = done.iter().map(|(key, done)| (done.at, *key)).collect();
        Ok(Self { done, by_age, dirty: BTreeSet::new() })
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
        let call = call.filter(|_| !mutants::is(Mutant::NoIdempotencyKeys));
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

    /// Tells whether a call was done before, as far as is remembered.
    pub fn knows(&self, call: Option<&Idempotency>) -> bool {
        call.is_some_and(|call| self.done.contains_key(&call.key))
    }

    /// Remembers what a call made.
    pub fn remember(&mut self, call: Option<&Idempotency>, at: Timestamp, resource: R) {
        if let Some(call) = call {
            let done = IdempotencyRecord { body: call.body, at, resource };
            if let Some(old) = self.done.insert(call.key, done) {
                self.by_age.remove(&(old.at, call.key));
            }
            self.by_age.insert((at, call.key));
            self.dirty.insert(call.key);
        }
    }

    /// The rows of the keys that changed since the last call.
    pub fn take_rows(&mut self, kind: u8) -> Vec<Row> {
        let dirty = std::mem::take(&mut self.dirty).into_iter();
        dirty.map(|key| (row_key(kind, &key), self.done.get(&key).map(codec::encode))).collect()
    }

    fn forget_old(&mut self, at: Timestamp) {
        for _ in 0..FORGET_PER_CALL_MAX {
            match self.by_age.first() {
                Some(&(since, key)) if at.ms_since(since) > KEPT_MS => {
                    self.by_age.pop_first();
                    self.done.remove(&key);
                    self.dirty.insert(key);
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIND: u8 = b'k';

    #[test]
    fn a_key_replays_for_a_day_and_only_with_its_body() {
        let mut table = IdempotencyTable::<u32>::default();
        let call = Idempotency { key: [1; 16], body: [2; 16] };
        assert_eq!(table.check(Some(&call), Timestamp(0)), Ok(None));
        table.remember(Some(&call), Timestamp(0), 7);
        assert_eq!(table.check(Some(&call), Timestamp(5)), Ok(Some(7)));
        let day = Timestamp(24 * 60 * 60 * 1000);
        assert_eq!(table.check(Some(&call), day), Ok(Some(7)), "a day is 24 hours");
        assert_eq!(table.check(Some(&call), day.plus_ms(AGE_STEP_MS_MAX)), Ok(Some(7)));
        let other = Idempotency { body: [3; 16], ..call };
        assert_eq!(table.check(Some(&other), Timestamp(5)), Err(Refusal::IdempotencyKeyReused));
        let later = Timestamp(0).plus_ms(KEPT_MS + 1);
        assert_eq!(table.check(Some(&other), later), Ok(None));
        assert_eq!(table.take_rows(KIND), [(row_key(KIND, &[1; 16]), None)]);
        assert_eq!(table.check(None, later), Ok(None));
    }

    #[test]
    fn a_key_used_again_after_its_time_is_kept_from_then() {
        let mut table = IdempotencyTable::<u32>::default();
        let calls = [0, 1, 2, 3, 4, 5].map(|key| Idempotency { key: [key; 16], body: [0; 16] });
        for call in &calls {
            table.remember(Some(call), Timestamp(0), 7);
        }
        let later = Timestamp(0).plus_ms(KEPT_MS + 1);
        // Four are forgotten; the last has had its time but is still there.
        assert_eq!(table.check(Some(&calls[5]), later), Ok(None));
        table.remember(Some(&calls[5]), later, 8);
        assert_eq!(table.by_age.len(), table.done.len());
        assert_eq!(table.check(Some(&calls[5]), later.plus_ms(KEPT_MS)), Ok(Some(8)));
    }

    proptest! {
        #[test]
        fn a_reload_changes_nothing(
            // Key, body, hours until then, whether the check is followed by an effect, and
            // whether the second table is loaded again.
            steps in prop::collection::vec(
                (0_u8..12, 0_u8..2, 0_u64..16, any::<bool>(), any::<bool>()), 1..120,
            ),
        ) {
            let mut kept = IdempotencyTable::<u32>::default();
            let (mut loaded, mut rows) = (kept.clone(), RowBuffer::default());
            let mut now = Timestamp(0);
            for (made, (key, body, hours, effect, reload)) in (0..).zip(steps) {
                // Small steps first, so that several keys run out together.
                now = now.plus_ms(hours / 8 * hours * 60 * 60 * 1000 + hours % 2);
                let call = Idempotency { key: [key; 16], body: [body; 16] };
                let answer = kept.check(Some(&call), now);
                prop_assert_eq!(&answer, &loaded.check(Some(&call), now));
                if effect && answer == Ok(None) {
                    kept.remember(Some(&call), now, made);
                    loaded.remember(Some(&call), now, made);
                }
                let changes = kept.take_rows(KIND);
                prop_assert_eq!(&changes, &loaded.take_rows(KIND));
                rows.put(changes);
                if reload {
                    loaded = IdempotencyTable::load(&rows, KIND).unwrap();
                }
                prop_assert_eq!(&kept, &loaded);
            }
        }
    }
}
