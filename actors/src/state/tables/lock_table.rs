//! The lock table: who holds what, under which fencing token. Pure; replicated by its owner.
//!
//! The problem: a holder may stall for longer than its lease, be taken for dead, and wake up
//! believing that it holds the lock. No lock service can prevent that. It can number the grants, so
//! that the service which the lock protects refuses the older holder; and it can see to it that no
//! lease ends early, by any clock.
//!
//! The protocol: the table knows no time. It knows grants, each with a *token*, and leases, each
//! with the number `renewal` within its grant. Time is the leader's: its lock manager
//! (`services/locks/`) starts a timer when it learns of a lease and proposes an expiry when the
//! timer fires.
//!
//! | command | the key is free | held by the caller | held by another |
//! |---|---|---|---|
//! | `Acquire` | a grant: token + 1, `renewal` 0 | a renewal: same token, `renewal` + 1 | `HeldByOther` |
//! | `Renew` | refused: `LockLost` | a renewal | refused: `LockLost` |
//! | `Release` | `Released(false)` | freed | `Released(false)` |
//! | `Expire` | nothing | freed, if token *and* `renewal` match | the same: it names no holder |
//!
//! A caller is the holder by its name, and by its token where it gives one.
//!
//! **The race of an expiry and a renewal** is decided by the log alone. An `Expire` names the lease
//! that its timer was armed for. A renewal that comes into the log first counts `renewal` up, and
//! the expiry finds another lease; a `Renew` that comes after it finds no lock, and is refused. The
//! envelope of an `Expire` has the term of the leader as well: in another term it does nothing, for
//! the next leader has given each lock a full lease anew. `acquired_at` and `expires_at` are labels for
//! people; nothing is decided by them.
//!
//! Waiters are elsewhere: they stand in the memory of the leader's lock manager, and each is served
//! by an ordinary `Acquire` (decision 2). [`LockNotice`] tells the manager what changed.
//!
//! Bounds: [`LOCKS_MAX`] locks, [`METADATA_BYTES_MAX`] bytes of metadata. A renewal by `Acquire`
//! replaces the metadata; the table counts the difference.
//!
//! Invariants:
//! - a key has at most one holder;
//! - a grant gets a token above every earlier one of the key space, also of keys that are free
//!   since: the last token is stored apart from the locks;
//! - a command that is refused changes nothing and gives no notice;
//! - nothing expires by itself.
//!
//! After a forced recovery nobody knows which tokens were given since. So all rise by
//! [`FENCING_STEP`](crate::domain::lock::FENCING_STEP) ([`LockTable::raise_tokens`]).
//!
//! One lock has no lease: `cluster/leader` follows leadership and is [seized](LockTable::seize)
//! with each term, under a new token. Clients read it and cannot change it (`handles/locks.rs`).
//!
//! Fencing tokens: M. Kleppmann, "How to do distributed locking" (2016); the lease idea is from C.
//! Gray and D. Cheriton, "Leases" (SOSP 1989).

use std::collections::{BTreeMap, BTreeSet};

use crate::command::{LockCommand, Outcome, Refusal};
use crate::domain::codec;
use crate::domain::json::Json;
use crate::domain::lock::{FencingToken, Holder, LockKey, LockView};
use crate::domain::time::Timestamp;
use crate::mutants::{self, Mutant};
use crate::ports::{Row, StoreError};
use crate::state::{RowBuffer, row_key};

/// Most locks held at once in one key space.
pub const LOCKS_MAX: usize = 100_000;
/// Most bytes of metadata of all locks of one key space together: a replica that begins is sent all
/// of it at once.
pub const METADATA_BYTES_MAX: usize = 64 << 20;

/// The kind of the rows of locks: the first byte of their keys, in every state machine.
const LOCK_ROW: u8 = b'l';

/// What the leader's lock manager has to know about a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockNotice {
    /// A lease began: granted or renewed.
    Held(LockView),
    /// The key is free.
    Freed {
        /// Which.
        key: LockKey,
    },
}

/// All locks of one key space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockTable {
    locks: BTreeMap<LockKey, LockView>,
    last_token: FencingToken,
    metadata_bytes: usize,
    dirty: BTreeSet<LockKey>,
}

impl LockTable {
    /// A table as it was written down.
    ///
    /// # Errors
    /// When its rows cannot be read.
    pub fn load(rows: &RowBuffer, last_token: FencingToken) -> Result<Self, StoreError> {
        let locks = rows.all::<LockView>(LOCK_ROW)?.into_iter();
        let locks: BTreeMap<_, _> = locks.map(|(_, lock)| (lock.key.clone(), lock)).collect();
        let metadata_bytes = locks.values().map(|lock| lock.metadata.as_str().len()).sum();
        Ok(Self { locks, last_token, metadata_bytes, dirty: BTreeSet::new() })
    }

    /// Bytes of the metadata of all locks.
    pub const fn metadata_bytes(&self) -> u64 {
        self.metadata_bytes as u64
    }

    /// The last token given.
    pub const fn last_token(&self) -> FencingToken {
        self.last_token
    }

    /// One lock.
    pub fn get(&self, key: &LockKey) -> Option<&LockView> {
        self.locks.get(key)
    }

    /// The locks whose keys begin with `prefix` and come after `after`, by key.
    pub fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = &'a LockView> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let from = match after {
            Some(after) if after >= prefix => Excluded(after),
            _ => Included(prefix),
        };
        self.locks
            .range::<str, _>((from, Unbounded))
            .take_while(move |(key, _)| key.as_str().starts_with(prefix))
            .map(|(_, lock)| lock)
    }

    /// The rows of the keys that changed since the last call.
    pub fn take_rows(&mut self) -> Vec<Row> {
        let dirty = std::mem::take(&mut self.dirty).into_iter();
        let row = |key: LockKey| {
            let lock = self.locks.get(&key).map(codec::encode);
            (row_key(LOCK_ROW, key.as_str().as_bytes()), lock)
        };
        dirty.map(row).collect()
    }

    /// Applies a command at time `at`.
    pub fn apply(&mut self, command: &LockCommand, at: Timestamp) -> (Outcome, Option<LockNotice>) {
        match command {
            LockCommand::Acquire { key, holder, ttl_ms, metadata } => {
                self.acquire(key, holder, *ttl_ms, metadata, at)
            }
            LockCommand::Renew { key, holder, token, ttl_ms } => {
                self.renew(key, holder, *token, *ttl_ms, at)
            }
            LockCommand::Release { key, holder, token } => {
                if self.held_by(key, holder, *token).is_none() {
                    return (Outcome::Released(false), None);
                }
                (Outcome::Released(true), Some(self.free(key)))
            }
            LockCommand::Expire { key, token, renewal } => match self.locks.get(key) {
                Some(lock)
                    if lock.token == *token
                        && (lock.renewal == *renewal || mutants::is(Mutant::ExpireRenewed)) =>
                {
                    (Outcome::Done, Some(self.free(key)))
                }
                _ => (Outcome::Ignored, None),
            },
        }
    }

    /// Raises all tokens, those of locks that are held as well, and returns these locks: a holder that
    /// shows its old token has lost its lock, and nobody else gets that before its lease has ended.
    pub fn raise_tokens(&mut self, by: u64) -> Vec<LockView> {
        self.last_token = self.last_token.raised(by);
        for lock in self.locks.values_mut() {
            lock.token = lock.token.raised(by);
        }
        self.dirty.extend(self.locks.keys().cloned());
        self.locks.values().cloned().collect()
    }

    /// Gives a key to a new holder, whoever had it: for the lock that follows leadership.
    pub fn seize(&mut self, key: LockKey, holder: Holder, at: Timestamp) -> LockView {
        self.grant(key, holder, 0, Json::null(), at)
    }

    fn grant(
        &mut self,
        key: LockKey,
        holder: Holder,
        ttl_ms: u64,
        metadata: Json,
        at: Timestamp,
    ) -> LockView {
        self.last_token = self.last_token.raised(1);
        let before = self.locks.get(&key).map_or(0, |lock| lock.metadata.as_str().len());
        self.metadata_bytes = self.metadata_bytes - before + metadata.as_str().len();
        let lock = LockView {
            key: key.clone(),
            holder,
            token: self.last_token,
            renewal: 0,
            ttl_ms,
            acquired_at: at,
            expires_at: at.plus_ms(ttl_ms),
            metadata,
        };
        self.dirty.insert(key.clone());
        self.locks.insert(key, lock.clone());
        lock
    }

    fn acquire(
        &mut self,
        key: &LockKey,
        holder: &Holder,
        ttl_ms: u64,
        metadata: &Json,
        at: Timestamp,
    ) -> (Outcome, Option<LockNotice>) {
        let held = self.locks.get(key);
        if let Some(lock) = held.filter(|lock| lock.holder != *holder) {
            return (Outcome::HeldByOther(lock.clone()), None);
        }
        let before = held.map_or(0, |lock| lock.metadata.as_str().len());
        let metadata_bytes = self.metadata_bytes - before + metadata.as_str().len();
        if metadata_bytes > METADATA_BYTES_MAX {
            let what = "bytes of metadata of locks".to_owned();
            let limit = METADATA_BYTES_MAX as u64;
            return (Outcome::Refused(Refusal::TooMany { what, limit }), None);
        }
        if let Some(lock) = self.locks.get_mut(key) {
            lock.metadata = metadata.clone();
            self.metadata_bytes = metadata_bytes;
            return self.begin_term(key, Some(ttl_ms), at);
        }
        if self.locks.len() >= LOCKS_MAX {
            let refusal = Refusal::TooMany { what: "locks".to_owned(), limit: LOCKS_MAX as u64 };
            return (Outcome::Refused(refusal), None);
        }
        let lock = self.grant(key.clone(), holder.clone(), ttl_ms, metadata.clone(), at);
        (Outcome::Locked(lock.clone()), Some(LockNotice::Held(lock)))
    }

    fn renew(
        &mut self,
        key: &LockKey,
        holder: &Holder,
        token: Option<FencingToken>,
        ttl_ms: Option<u64>,
        at: Timestamp,
    ) -> (Outcome, Option<LockNotice>) {
        if self.held_by(key, holder, token).is_none() {
            return (Outcome::Refused(Refusal::LockLost { key: key.clone() }), None);
        }
        self.begin_term(key, ttl_ms, at)
    }

    /// Begins a new lease of a lock that is held.
    fn begin_term(
        &mut self,
        key: &LockKey,
        ttl_ms: Option<u64>,
        at: Timestamp,
    ) -> (Outcome, Option<LockNotice>) {
        let Some(lock) = self.locks.get_mut(key) else { return (Outcome::Ignored, None) };
        lock.ttl_ms = ttl_ms.unwrap_or(lock.ttl_ms);
        lock.renewal += 1;
        // Labels of a clock that was ahead, and is not any more, are corrected with the next lease.
        lock.acquired_at = lock.acquired_at.min(at);
        lock.expires_at = at.plus_ms(lock.ttl_ms);
        self.dirty.insert(key.clone());
        (Outcome::Locked(lock.clone()), Some(LockNotice::Held(lock.clone())))
    }

    fn held_by(
        &self,
        key: &LockKey,
        holder: &Holder,
        token: Option<FencingToken>,
    ) -> Option<&LockView> {
        let token = token.filter(|_| !mutants::is(Mutant::NoFencing));
        self.locks
            .get(key)
            .filter(|lock| lock.holder == *holder && token.is_none_or(|token| token == lock.token))
    }

    fn free(&mut self, key: &LockKey) -> LockNotice {
        if let Some(lock) = self.locks.remove(key) {
            self.metadata_bytes -= lock.metadata.as_str().len();
        }
        self.dirty.insert(key.clone());
        LockNotice::Freed { key: key.clone() }
    }
}

#[cfg(test)]
mod tests;
